"""Turns the registered model into a bundle; the only task that loads a foreign model, in a sandbox of its own.

It runs in the environment that has the model's framework, which the policy names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.runtimes import Job
from operators.task import TaskOperator
from validation.contract import Spec


class Export(TaskOperator):
    noun = "export"
    environment = "export"

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The golden set's columns that later gates need."""
        del context
        return {"columns": list(self.policy.golden_set.columns)}

    def job(self, spec: Spec) -> Job:
        return replace(super().job(spec), environment=self.policy.export.environment, sandboxed=True)
