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
        """Also when the step's share was set, and the evidence of the steps before: what was seen there counts here."""
        merged = super().inputs(context)
        for row in verdicts(context, (*self._before(), f"traffic_shift_{self.step.permille}")):
            merged |= row["outputs"]
        return merged

    def _before(self) -> tuple[str, ...]:
        """The watches of the steps before, in order; of those that ran, the last one's evidence holds all."""
        steps = self.policy.rollout.steps
        return tuple(f"{self.noun}_{step.permille}" for step in steps if step.permille < self.step.permille)
