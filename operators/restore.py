"""The teardown: whatever happened, stable has the traffic, nothing of an unpromoted candidate runs, the registry says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.rollout import delivery_verdicts
from operators.task import TaskOperator


class Restore(TaskOperator):
    noun = "restore"
    connections = ("mlflow", "director")

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        rows = delivery_verdicts(self.dag, context)
        promoted = any(row["task"] == "promote" and row["outcome"] == "passed" for row in rows)
        return {"verdicts": rows, "promoted": promoted, "dry_run": bool(context["params"].get("dry_run"))}
