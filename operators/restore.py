"""The teardown: whatever happened, stable has the traffic, nothing of an unpromoted candidate runs, the registry says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.rollout import delivery_verdicts
from operators.task import TaskOperator, forget, has_engine, job_name, verdicts


class Restore(TaskOperator):
    noun = "restore"
    uses_engine = True
    connections = ("mlflow", "director")
    tries_again = 10

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Also forgets the delivery's jobs, so that a run that a person clears begins anew."""
        outputs: dict[str, Any] = super().execute(context)
        spec = self.spec(context)
        for task in self.dag.tasks:
            forget(job_name(spec, task.task_id))
        return outputs

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        rows = delivery_verdicts(self.dag, context)
        promoted = any(row["task"] == "promote" and row["outcome"] == "passed" for row in rows)
        params = context["params"]
        known = [row["outputs"]["artifacts_uri"] for row in verdicts(context, ("claim",)) if "artifacts_uri" in row["outputs"]]
        place = {"artifacts_uri": known[0]} if known else {}  # beside the gates' evidence, if the claim came that far
        not_run = {} if has_engine() else {"container_check": "not run, no engine"}
        return {
            **place,
            "not_run": not_run,
            "verdicts": rows,
            "promoted": promoted,
            "dry_run": bool(params.get("dry_run")),
            "strategy": params.get("strategy"),
        }
