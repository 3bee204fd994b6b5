"""Takes a version for this delivery: it must exist, be wanted and be nobody else's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.task import TaskOperator
from validation.policy import section


class Claim(TaskOperator):
    noun = "claim"
    uses_engine = True
    connections = ("mlflow", "director")
    tries_again = 30  # it holds nothing yet, and a version whose claim gave up would never be offered again
    follows_claim = False

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {"rollout": section(self.policy.rollout), "traffic_drift": self.policy.golden_set.traffic_drift}
