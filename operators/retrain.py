"""Runs a model's own training; the version that it registers is delivered by the registry's event."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {}
