"""Asks Airflow for a run, as its UI does, where a person's command needs a task. `delivery.orders_command` uses it.

It imports no Airflow and reads nothing back; whether what was asked for is possible is for the run's own tasks to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from delivery.addresses import Addresses
from delivery.orders import Order

TIMEOUT_S = 10.0


class AirflowRefused(RuntimeError):
    """Airflow does not answer, or does not take the run; the message says which."""


class Airflow:
    """Airflow's REST API."""

    def __init__(self, addresses: Addresses, transport: httpx.BaseTransport | None = None) -> None:
        self._addresses = addresses
        self._http = httpx.Client(base_url=addresses.airflow_url, timeout=TIMEOUT_S, trust_env=False, transport=transport)

    def deliver(self, order: Order) -> str:
        """A run of the model's delivery, named after the order, with who and why as its note. Asked for again it is the same run."""
        run = f"retry__{order.model}__v{order.version}__{order.id}"
        return self._run(f"deliver_{order.model}", run, {"version": order.version}, f"retry by {order.said}")

    def steer(self, model: str, action: str, *, version: int | None, to: int, why: str, order_id: str) -> str:
        """A run of the form for people, with this order in it."""
        form = {"model": model, "action": action, "version": version, "to": to, "why": why}
        return self._run("steer", f"{action}__{model}__{order_id}", form, why)

    def _run(self, dag: str, run: str, conf: Mapping[str, Any], note: str) -> str:
        body = {"dag_run_id": run, "logical_date": None, "conf": dict(conf), "note": note}
        answer = self._ask(f"/api/v2/dags/{dag}/dagRuns", body, {"Authorization": f"Bearer {self._token()}"})
        if answer.status_code != 409 and not answer.is_success:
            raise AirflowRefused(f"Airflow does not take {run}: {answer.status_code} {answer.text[:300]}")
        return run

    def _token(self) -> str:
        login = {"username": self._addresses.airflow_user, "password": self._addresses.airflow_password}
        answer = self._ask("/auth/token", login, {})
        if not answer.is_success:
            raise AirflowRefused(
                f"Airflow does not let {login['username']} in: {answer.status_code}; set PENSTOCK_AIRFLOW_USER and _PASSWORD"
            )
        return str(answer.json()["access_token"])

    def _ask(self, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        try:
            return self._http.post(path, json=body, headers=headers)
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise AirflowRefused(f"Airflow at {self._addresses.airflow_url or '(no address)'} does not answer: {error!r}") from error
