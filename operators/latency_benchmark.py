"""The gate on latency: p50 and p99 under open-loop load on a private Triton."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.runtimes import Job
from operators.task import TaskOperator
from validation.contract import Spec
from validation.policy import section


class LatencyBenchmark(TaskOperator):
    noun = "latency_benchmark"
    package = "validation"
    environment = "latency_benchmark"

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return section(self.policy.latency_benchmark)

    def job(self, spec: Spec) -> Job:
        return replace(super().job(spec), gpus=int(os.environ.get("PENSTOCK_BENCHMARK_GPUS", "0")))
