"""What the demo asks of the running stack over HTTP: Airflow's deliveries, MLflow's versions, the director's traffic.

`demo.run` calls it every half second. It only reads, except for what a user would do in Airflow's UI: trigger a run.
A service that is being restarted answers nothing for a while: that raises `NotNow`, and the caller looks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from demo.expected import Share, TaskRun

TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 60.0  # who gives up early does not know whether it was done
RUNNING_STATES = ("running", "deferred", "queued", "scheduled", "up_for_retry", "restarting")


class NotNow(RuntimeError):
    """A service did not answer, or not usefully: look again."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A model version as MLflow knows it."""

    number: int
    registered_unix_s: float
    tags: Mapping[str, str]

    @property
    def outcome(self) -> str:
        return self.tags.get("penstock.outcome", "")


class Registry:
    """MLflow's REST API, as far as the demo reads it."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._http = _client(url, transport)

    def version(self, model: str, number: int) -> Version | None:
        row = _get(self._http, "/api/2.0/mlflow/model-versions/get", name=model, version=str(number))
        return None if row is None else _version(row["model_version"])

    def alias(self, model: str, alias: str) -> int:
        """The version that the alias names, 0 for none."""
        row = _get(self._http, "/api/2.0/mlflow/registered-models/alias", name=model, alias=alias, none_is=(404, 400))
        return 0 if row is None else int(row["model_version"]["version"])


class Airflow:
    """Airflow's REST API as user `admin`."""

    def __init__(self, url: str, password: str, transport: httpx.BaseTransport | None = None) -> None:
        self._http = _client(url, transport)
        self._password = password

    def knows(self, dag: str) -> bool:
        return self._get(f"/api/v2/dags/{dag}") is not None

    def description(self, dag: str) -> str:
        row = self._get(f"/api/v2/dags/{dag}")
        return "" if row is None else str(row["description"])

    def started_and_ended(self, dag: str, run: str) -> tuple[float | None, float | None]:
        """Unix seconds; None for what has not happened."""
        row = self._get(f"/api/v2/dags/{dag}/dagRuns/{run}") or {}
        return _unix_s(row.get("start_date")), _unix_s(row.get("end_date"))

    def run_state(self, dag: str, run: str) -> str:
        """The run's state, empty while there is no such run."""
        row = self._get(f"/api/v2/dags/{dag}/dagRuns/{run}")
        return "" if row is None else str(row["state"])

    def tasks(self, dag: str, run: str) -> tuple[TaskRun, ...]:
        row = self._get(f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances?limit=100")
        return tuple(_task(each) for each in row["task_instances"]) if row else ()

    def task_ids(self, dag: str) -> set[str]:
        """The tasks that a run of the DAG has from now on."""
        row = self._get(f"/api/v2/dags/{dag}/tasks")
        return {str(each["task_id"]) for each in row["tasks"]} if row else set()

    def runs(self, dag: str) -> list[str]:
        """The ids of the DAG's runs, newest first, at most a hundred."""
        row = self._get(f"/api/v2/dags/{dag}/dagRuns?limit=100&order_by=-run_after")
        return [str(each["dag_run_id"]) for each in row["dag_runs"]] if row else []

    def reparse(self, dag: str) -> None:
        """Has the DAG's file read again now, not when its turn comes."""
        row = self._get(f"/api/v2/dags/{dag}")
        token = row["file_token"] if row else ""
        self._ask("PUT", f"/api/v2/parseDagFile/{token}")

    def log(self, dag: str, run: str, task: str, attempt: int) -> str:
        """What the task's attempt logged; empty while there is nothing."""
        path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}?full_content=true"
        answer = self._ask("GET", path)
        return answer.text if answer.is_success else ""

    def trigger(self, dag: str, **form: Any) -> str:
        """Starts a run as the UI does: logical date now, the form's values, Airflow's own run id. Returns the run id."""
        body = {"logical_date": datetime.now(UTC).isoformat(), "conf": form}
        return str(_object(self._ask("POST", f"/api/v2/dags/{dag}/dagRuns", json=body, timeout=WRITE_TIMEOUT_S))["dag_run_id"])

    def _get(self, path: str) -> dict[str, Any] | None:
        answer = self._ask("GET", path)
        return None if answer.status_code == 404 else _object(answer)

    def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        if "Authorization" not in self._http.headers:
            self._sign_in()
        answer = _send(self._http, method, path, **what)
        if answer.status_code == 401:  # the api-server was restarted with other keys, or a day has passed
            del self._http.headers["Authorization"]
        return answer

    def _sign_in(self) -> None:
        given = {"username": "admin", "password": self._password}
        token = _object(_send(self._http, "POST", "/auth/token", json=given))["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"


class Director:
    """The director's HTTP API, reading only."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self._http = _client(url, transport)
        self._http.headers["Authorization"] = f"Bearer {token}"

    def share(self, model: str, unix_s: float) -> Share:
        row = _object(_send(self._http, "GET", f"/v1/models/{model}"))
        return Share(
            unix_s=unix_s,
            stable=_number(row["stable"]),
            candidate=_number(row["candidate"]),
            permille=int((row["split"] or {}).get("permille", 0)),
            shadow_permille=int(row["shadow_permille"]),
        )

    def archived(self, model: str) -> set[int]:
        """The versions that answer those who pin them, from the archive."""
        return {int(each["version"]) for each in _object(_send(self._http, "GET", f"/v1/models/{model}"))["archived"]}

    def previous(self, model: str) -> int:
        """The version that was stable before, still loaded and asked where stable fails; 0 for none."""
        return _number(_object(_send(self._http, "GET", f"/v1/models/{model}"))["previous"])

    def observations(self, model: str, after: int) -> dict[str, Any]:
        return _object(_send(self._http, "GET", f"/v1/models/{model}/observations?after={after}"))


def running_tasks(tasks: tuple[TaskRun, ...]) -> str:
    """The tasks that are at work now, by name."""
    return ", ".join(each.task for each in tasks if each.state in RUNNING_STATES)


def _client(url: str, transport: httpx.BaseTransport | None) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False, transport=transport)  # loopback: no proxy has a say


def _get(http: httpx.Client, path: str, *, none_is: tuple[int, ...] = (404,), **query: str) -> dict[str, Any] | None:
    answer = _send(http, "GET", path, params=query)
    return None if answer.status_code in none_is else _object(answer)


def _send(http: httpx.Client, method: str, path: str, **what: Any) -> httpx.Response:
    try:
        return http.request(method, path, **what)
    except httpx.HTTPError as error:
        raise NotNow(f"{http.base_url}{path}: {type(error).__name__} {error}") from error


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        row = answer.json()
    except ValueError:
        row = None
    if not answer.is_success or not isinstance(row, dict):
        raise NotNow(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
    return row


def _version(row: Mapping[str, Any]) -> Version:
    tags = {each["key"]: each["value"] for each in row.get("tags", [])}
    return Version(number=int(row["version"]), registered_unix_s=int(row["creation_timestamp"]) / 1000, tags=tags)


def _task(row: Mapping[str, Any]) -> TaskRun:
    return TaskRun(
        task=row["task_id"], state=row["state"] or "none", started_unix_s=_unix_s(row["start_date"]), ended_unix_s=_unix_s(row["end_date"])
    )


def _unix_s(word: str | None) -> float | None:
    return datetime.fromisoformat(word).timestamp() if word else None


def _number(server: Mapping[str, Any] | None) -> int:
    return int(server["version"]) if server else 0
