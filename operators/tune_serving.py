"""Finds the serving configuration that bears most within the policy's p99; `package` writes it into the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.task import TaskOperator
from validation.policy import Policy, section


class TuneServing(TaskOperator):
    """Runs in the environment of `latency_benchmark`, and in the same pool: the two would measure each other."""

    noun = "tune_serving"
    package = "validation"
    environment = "latency_benchmark"

    def __init__(self, *, policy: Policy, **kwargs: Any) -> None:
        super().__init__(policy=policy, pool="penstock-cpu", **kwargs)

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return section(self.policy.tune_serving)
