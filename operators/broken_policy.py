"""Stands where a delivery would be when its policy cannot be read, says so, and makes way once the policy is mended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from operators.notice import tell_failure

LOOK_AGAIN = timedelta(seconds=15)
TRIES = 200_000  # a month: an event that came meanwhile must not be lost


class BrokenPolicy(BaseOperator):
    """Fails with the policy's error, again and again, so that the run stays open until the DAG is a delivery again.

    It has a name of its own: a worker may read the mended file before the scheduler does, and must not run one task of the delivery alone.
    """

    def __init__(self, *, why: str, **kwargs: Any) -> None:
        kwargs.update(on_retry_callback=tell_once, on_failure_callback=tell_failure)
        super().__init__(task_id="policy", retries=TRIES, retry_delay=LOOK_AGAIN, **kwargs)
        self.why = why

    def execute(self, context: Mapping[str, Any]) -> None:
        del context
        raise AirflowException(f"{self.why}; no traffic is with this delivery: mend the policy, and it goes on by itself")


def tell_once(context: Mapping[str, Any]) -> None:
    """People are told at the first try, not every few seconds."""
    if context["ti"].try_number == 1:
        tell_failure(context)
