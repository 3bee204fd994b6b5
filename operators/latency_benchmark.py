"""The gate on latency: p50 and p99 under open-loop load on a private Triton, beside stable's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.runtimes import Job
from operators.task import TaskOperator
from validation.contract import Spec
from validation.policy import Policy, section


class LatencyBenchmark(TaskOperator):
    """Runs in the pool of its device, which has one slot: two benchmarks on one device would measure each other."""

    noun = "latency_benchmark"
    package = "validation"
    environment = "latency_benchmark"

    def __init__(self, *, policy: Policy, **kwargs: Any) -> None:
        super().__init__(policy=policy, pool=f"penstock-{policy.latency_benchmark.device}", **kwargs)

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return section(self.policy.latency_benchmark)

    def job(self, spec: Spec) -> Job:
        device = self.policy.latency_benchmark.device
        if device == "cpu":
            return super().job(spec)
        return replace(super().job(spec), gpu=int(device.removeprefix("gpu")), environment="latency_benchmark_gpu")
