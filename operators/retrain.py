"""Runs a model's own training; the version that it registers is delivered by the registry's event."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.runtimes import Job
from operators.task import TaskOperator
from validation.contract import Spec
from validation.policy import section


class RetrainModel(TaskOperator):
    noun = "retrain"
    follows_claim = False

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {"retrain": section(self.policy.retrain), "trigger": section(self.policy.trigger)}

    def spec(self, context: Mapping[str, Any]) -> Spec:
        """Another seed for each run, the same on each try of it."""
        seed = int(hashlib.sha256(str(context["run_id"]).encode()).hexdigest()[:8], 16)
        return replace(super().spec(context), seed=seed)

    def job(self, spec: Spec) -> Job:
        """In containers the task runs in the training's own image, which has both; as a process it starts the training's interpreter."""
        job = super().job(spec)
        in_containers = os.environ.get("PENSTOCK_RUNTIME") == "docker"
        return replace(job, environment=self.policy.retrain.environment) if in_containers and self.policy.retrain else job

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {}
