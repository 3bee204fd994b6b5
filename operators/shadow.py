"""Mirrors traffic to the candidate and watches what its server makes of it; users see stable's answers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.rollout import RolloutOperator
from validation.policy import section


class Shadow(RolloutOperator):
    noun = "shadow"
    deferrable = True
    strategies = ("shadow",)

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().limits(context), "shadow": section(self.policy.shadow)}
