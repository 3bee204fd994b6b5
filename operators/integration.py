"""The gate on integration: the candidate as callers reach it, behind the gateway and before it has traffic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from operators.policy_file import LIMIT_BYTES, read_beside
from operators.rollout import RolloutOperator
from validation.contract import canonical_json
from validation.policy import section

ADVICE = "keep one request of each kind, or a schema in place of recorded answers"


class Integration(RolloutOperator):
    noun = "integration"
    package = "validation"
    environment = "integration"
    connections = ("mlflow",)
    needs_stable = False
    strategies = ("canary", "blue_green", "shadow")

    def __init__(self, *, folder: Path, **kwargs: Any) -> None:
        """`folder` holds the policies, and beside them the contracts and schemas that they name."""
        super().__init__(**kwargs)
        self.folder = folder

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The policy's section, and the content of the files that it names. Raises `AirflowFailException` when they are too much."""
        del context
        files = {name: self._read(name) for name in self.policy.integration.files}
        limits = {**section(self.policy.integration), "files": files}
        if (size := len(canonical_json(limits).encode())) > LIMIT_BYTES:
            raise AirflowFailException(f"integration: contracts and calls have {size} bytes together; {LIMIT_BYTES} may travel: {ADVICE}")
        return limits

    def _read(self, name: str) -> Any:
        return read_beside(self.folder, name, place="integration", what="a contract", advice=ADVICE)
