"""Gives a person's order from the Airflow UI: who triggered the run is who orders, and the form says what and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.task import TaskOperator
from validation.contract import Spec


class Steer(TaskOperator):
    """Puts out one keyword dictionary for `TriggerDagRunOperator` for a retry, and none for any other order."""

    noun = "steer"
    moves_tags = True
    connections = ("mlflow", "director")
    follows_claim = False

    def spec(self, context: Mapping[str, Any]) -> Spec:
        """Of the model that the form names: an order belongs to no policy of its own."""
        return replace(super().spec(context), model=str(context["params"]["model"]))

    def execute(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        ordered, model = super().execute(context), context["params"]["model"]
        return [again(model, ordered["retry"], context["run_id"], context["params"]["why"])] if "retry" in ordered else []

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The run's id is the order's: the task tried again is the same order again."""
        who = getattr(context["dag_run"], "triggering_user_name", None) or "somebody"
        form = context["params"]
        further = {"to": form["to"]} if form.get("to") else {}
        return {"action": form["action"], "why": form["why"], "who": f"airflow:{who}", "order": context["run_id"], **further}


def again(model: str, version: int, order: str, why: str) -> dict[str, Any]:
    """The delivery that a retry begins, named after the order, so that it happens once."""
    return {
        "trigger_dag_id": f"deliver_{model}",
        "trigger_run_id": f"retry__{model}__v{version}__{order}",
        "conf": {"version": version},
        "note": f"retry: {why}",
    }
