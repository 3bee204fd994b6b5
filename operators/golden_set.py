"""The gate on golden rows: the exported model against its source, against labels, against stable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.task import TaskOperator
from validation.policy import section


class GoldenSet(TaskOperator):
    noun = "golden_set"
    package = "validation"
    environment = "golden_set"

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return section(self.policy.golden_set)
