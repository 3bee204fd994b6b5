"""Stands where a delivery would be when its policy cannot be read, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from operators.notice import tell_failure


class BrokenPolicy(BaseOperator):
    """Fails each delivery with the policy's error; clear the run once the file is mended."""

    def __init__(self, *, why: str, **kwargs: Any) -> None:
        super().__init__(task_id="claim", on_failure_callback=tell_failure, **kwargs)
        self.why = why

    def execute(self, context: Mapping[str, Any]) -> None:
        del context
        raise AirflowFailException(f"{self.why}; nothing was touched: mend the policy, then clear this run")
