"""Runs a model's own training; the version that it registers is delivered by the registry's event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.task import TaskOperator
from validation.policy import section


class RetrainModel(TaskOperator):
    noun = "retrain"

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {"retrain": section(self.policy.retrain), "trigger": section(self.policy.trigger)}

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {}
