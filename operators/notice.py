"""Tells people that a delivery's task failed: one line in the log, and a JSON message to an address if one is set.

Called by Airflow as the failure callback of every task. Sends to `PENSTOCK_NOTICE_URL` (an incoming webhook of a chat or an on-call
system); a message that cannot be sent is logged and never fails a task a second time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


def tell_failure(context: Mapping[str, Any]) -> None:
    """Airflow's `on_failure_callback`."""
    text = failure_text(context)
    log.error("%s", text)
    if address := os.environ.get("PENSTOCK_NOTICE_URL"):
        _send(address, {"text": text})


def failure_text(context: Mapping[str, Any]) -> str:
    """What failed, in one line: the delivery, the task, the reason."""
    task = context["ti"]
    return f"{task.dag_id} {task.run_id}: {task.task_id} failed: {context.get('exception') or 'no reason given'}"


def _send(address: str, message: Mapping[str, str]) -> None:
    import httpx

    try:
        httpx.post(address, json=message, timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        log.warning("the notice could not be sent: %s", error)
