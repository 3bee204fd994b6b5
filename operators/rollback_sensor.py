"""Watches one step: renews the lease, judges, and takes the candidate back the moment that its verdict is `failed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.rollout import StepOperator
from operators.task import verdicts


class RollbackSensor(StepOperator):
    noun = "rollback_sensor"
    deferrable = True

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Also when the step's share was set: what the candidate answered from then on counts."""
        merged = super().inputs(context)
        for row in verdicts(context, (f"traffic_shift_{self.step.permille}",)):
            merged |= row["outputs"]
        return merged
