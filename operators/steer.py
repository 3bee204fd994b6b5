"""Gives a person's order from the Airflow UI: who triggered the run is who orders, and the form says what and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.task import TaskOperator
from validation.contract import Spec


class Steer(TaskOperator):
    noun = "steer"
    connections = ("mlflow", "director")
    follows_claim = False

    def spec(self, context: Mapping[str, Any]) -> Spec:
        """Of the model that the form names: an order belongs to no policy of its own."""
        return replace(super().spec(context), model=str(context["params"]["model"]))

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The run's id is the order's: the task tried again is the same order again."""
        who = getattr(context["dag_run"], "triggering_user_name", None) or "somebody"
        words = {"action": context["params"]["action"], "why": context["params"]["why"]}
        return {**words, "who": f"airflow:{who}", "order": context["run_id"]}
