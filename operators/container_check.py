"""The gate on the serving image: it is built, small, unprivileged, ready in time, right, bounded, and stops when told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from operators.task import TaskOperator, has_engine
from validation.policy import section

NOT_RUN = "container_check: not run, no engine"


class ContainerCheck(TaskOperator):
    noun = "container_check"
    reaches = ("core", "serving")
    uses_engine = True

    def skip_reason(self, context: Mapping[str, Any]) -> str | None:
        """Without an engine nothing can be checked: said in the UI and in the registry, and no pass; the policy may insist."""
        if has_engine():
            return None
        if self.policy.container_check.required:
            why = f"{NOT_RUN}, and the policy of {self._model} says container_check.required: deliver it where there is an engine"
            row = {"task": self.task_id, "outcome": "inconclusive", "why": why, "outputs": {}}
            context["ti"].xcom_push(key="verdict", value=row)
            raise AirflowFailException(why)
        return f"{NOT_RUN} (PENSTOCK_ENGINE is not set)"

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return section(self.policy.container_check)
