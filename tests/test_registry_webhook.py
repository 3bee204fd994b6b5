"""MLflow's webhook: only a genuine, fresh, small event that asks for a delivery makes a DAG run, and makes it once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import registry_webhook
from airflow_home import ROOT
from fastapi.testclient import TestClient

from validation.policy import Trigger

SECRET = "a webhook secret"


class Airflow(ThreadingHTTPServer):
    """As much of Airflow's REST API as the webhook uses: a login and runs that exist once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Any] = {}
        self.status: int | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Airflow

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            return self._answer(201, {"access_token": "token"})
        assert self.headers["Authorization"] == "Bearer token"
        known = body["dag_run_id"] in self.server.runs
        status = self.server.status or (409 if known else 200)
        if status == 200:
            self.server.runs[body["dag_run_id"]] = {"path": self.path, **body}
        return self._answer(status, {})

    def _answer(self, status: int, row: dict[str, Any]) -> None:
        data = json.dumps(row).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    server = Airflow()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("PENSTOCK_AIRFLOW_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PENSTOCK_AIRFLOW_USER", "webhook")
    monkeypatch.setenv("PENSTOCK_AIRFLOW_PASSWORD", "password")
    monkeypatch.setenv("PENSTOCK_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("PENSTOCK_POLICIES", str(ROOT / "dags" / "policies"))
    registry_webhook.seen_deliveries.clear()
    registry_webhook.token.clear()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def event(*, entity: str = "model_version_tag", action: str = "set", **data: Any) -> dict[str, Any]:
    return {"entity": entity, "action": action, "data": {"name": "digits", "version": "7", "key": "candidate", "value": "true", **data}}


def post(
    body: bytes | dict[str, Any], *, secret: str = SECRET, age_s: float = 0, delivery_id: str = "id", signed: bytes | None = None
) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    timestamp = str(int(time.time() - age_s))
    headers = {
        "X-MLflow-Delivery-Id": delivery_id,
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Signature": registry_webhook.signature(secret, delivery_id, timestamp, signed if signed is not None else data),
    }
    return TestClient(registry_webhook.app).post("/", content=data, headers=headers)


def test_a_marked_version_becomes_one_run(airflow: Airflow) -> None:
    """The run's id is made from model and version, and its form carries the version."""
    assert post(event()).json() == {"status": "accepted"}
    ((run_id, run),) = airflow.runs.items()
    assert (run_id, run["path"], run["conf"]) == ("deliver__digits__v7", "/api/v2/dags/deliver_digits/dagRuns", {"version": 7})


@pytest.mark.parametrize("delivery_id", ["id", "another id"])
def test_the_same_version_twice_is_one_delivery(airflow: Airflow, delivery_id: str) -> None:
    """The same event again, and another event for the same version, are duplicates."""
    post(event())
    assert post(event(), delivery_id=delivery_id).json() == {"status": "duplicate"}
    assert len(airflow.runs) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "another secret"},
        {"signed": b"another body"},
        {"age_s": 400},
        {"age_s": -400},
        {"delivery_id": ""},
    ],
)
def test_what_is_not_genuine_and_fresh_is_refused(airflow: Airflow, wrong: dict[str, Any]) -> None:
    """A wrong key, a changed body, an old or a future timestamp, no delivery id: 401 and nothing said."""
    answer = post(event(), **wrong)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Unauthorized"})
    assert airflow.runs == {}


def test_without_a_secret_nothing_is_genuine(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset secret refuses everything; it is never a key that anybody knows."""
    monkeypatch.delenv("PENSTOCK_WEBHOOK_SECRET")
    assert post(event(), secret="").status_code == 401


def test_a_body_of_10_mb_is_refused(airflow: Airflow) -> None:
    """A body over 64 KiB is refused by size before its signature is looked at."""
    assert post(b"x" * 10_000_000).status_code == 413


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b"\xff\xfe"])
def test_a_signed_body_that_is_no_event_is_refused(airflow: Airflow, body: bytes) -> None:
    """A genuine request whose body is no JSON object is a 400."""
    assert post(body).status_code == 400


@pytest.mark.parametrize(
    "unwanted",
    [
        event(name="example_model"),
        event(key="another tag"),
        event(version="seven"),
        event(version=None),
        event(entity="registered_model", action="created"),
        event(action="deleted"),
        {"entity": "model_version_tag", "action": "set"},
        {"entity": "model_version_tag", "action": "set", "data": "text"},
    ],
)
def test_other_events_are_ignored(airflow: Airflow, unwanted: dict[str, Any]) -> None:
    """Unknown models (MLflow's test button sends example_model), other tags and other events make no run and no error."""
    assert post(unwanted).json() == {"status": "ignored"}
    assert airflow.runs == {}


@pytest.mark.parametrize(
    ("on", "given", "wanted"),
    [
        ("created", event(entity="model_version", action="created", tags={"candidate": "true"}), ("digits", 7)),
        ("created", event(entity="model_version", action="created", tags={}), None),
        ("created", event(), None),
        ("alias", event(entity="model_version_alias", action="created", alias="candidate"), ("digits", 7)),
        ("alias", event(entity="model_version_alias", action="created", alias="production"), None),
        ("tag", event(), ("digits", 7)),
    ],
)
def test_the_policy_says_which_event_delivers(on: str, given: dict[str, Any], wanted: tuple[str, int] | None) -> None:
    """Only the events that the policy's trigger lists ask for a delivery, and only with its marker."""
    assert registry_webhook.wanted_version(given, {"digits": Trigger(on=(on,), marker="candidate")}) == wanted


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_event_that_airflow_does_not_take_is_answered_503(airflow: Airflow, status: int) -> None:
    """MLflow tries again what Airflow could not take; the retry, with the same id, is accepted."""
    airflow.status = status
    assert post(event()).status_code == 503
    airflow.status = None
    assert post(event()).json() == {"status": "accepted"}
