"""The gate on latency: p50 and p99 under open-loop load on a private Triton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.task import TaskOperator
from validation.policy import section


class LatencyBenchmark(TaskOperator):
    noun = "latency_benchmark"
    package = "validation"
    environment = "latency_benchmark"

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return section(self.policy.latency_benchmark)
