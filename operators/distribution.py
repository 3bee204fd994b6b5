"""The gate on distributions: the answers by themselves, beside stable's, and the golden set as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from operators.policy_file import LIMIT_BYTES, read_beside
from operators.task import TaskOperator
from validation.policy import section

SUITE_BYTES = LIMIT_BYTES
ADVICE = "use fewer expectations, or check in the training what need not be checked at each delivery"


class Distribution(TaskOperator):
    noun = "distribution"
    package = "validation"
    environment = "distribution"

    def __init__(self, *, folder: Path, **kwargs: Any) -> None:
        """`folder` holds the policies, and beside them the suites that they name."""
        super().__init__(**kwargs)
        self.folder = folder

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The policy's section, and the content of the suite that it names: gates do not see the policies' folder."""
        del context
        limits = section(self.policy.distribution)
        name = self.policy.distribution.expectations
        if name is None:
            return limits
        return limits | {"suite": read_beside(self.folder, name, place="distribution.expectations", what="a suite", advice=ADVICE)}
