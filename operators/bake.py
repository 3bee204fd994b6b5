"""Watches the version after its promotion, for the policy's `bake_seconds`; a `failed` verdict means that the version before is back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.rollout import RolloutOperator
from operators.task import verdicts


class Bake(RolloutOperator):
    noun = "bake"
    moves_tags = True
    deferrable = True

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Also the evidence of the last step, which goes on here."""
        merged = super().inputs(context)
        for row in verdicts(context, (f"rollback_sensor_{self.policy.rollout.steps[-1].permille}",)):
            merged |= row["outputs"]
        return merged
