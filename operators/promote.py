"""Makes the candidate stable for good, and moves the registry's aliases after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.rollout import RolloutOperator, delivery_verdicts
from validation.policy import section


class Promote(RolloutOperator):
    noun = "promote"
    reaches = ("core", "serving")
    uses_engine = True
    needs_stable = False

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().limits(context), "archive": section(self.policy.archive)}

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().inputs(context), "verdicts": delivery_verdicts(self.dag, context)}
