"""The gate on distributions: the answers by themselves, beside stable's, and the golden set as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from operators.task import TaskOperator
from validation.policy import section

SUITE_BYTES = 64 << 10
"""A spec travels in one environment variable, of which Linux carries 128 KiB."""


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
        return limits if name is None else limits | {"suite": read_suite(self.folder / name)}


def read_suite(path: Path) -> Any:
    """The JSON of a suite. Raises `AirflowFailException`, which is not tried again: the file would be the same."""
    try:
        data = path.read_bytes()
        if len(data) > SUITE_BYTES:
            advice = "use fewer expectations, or check in the training what need not be checked at each delivery"
            raise AirflowFailException(f"{path.name} has {len(data)} bytes; a suite may have {SUITE_BYTES}: {advice}")
        return json.loads(data, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise AirflowFailException(f"distribution.expectations: {path.name} beside the policy cannot be read as JSON: {error}") from error


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")
