"""MLflow's webhook in: a registered version that wants a delivery becomes a DAG run.

The signature is the authentication (Airflow leaves a plugin's routes open). An event is a hint: it is checked for signature, age and size,
and turned into one POST to Airflow's own REST API under a run id made from model and version, so that the database's unique key makes the
same event twice one delivery. Whatever else comes is refused with a status and no detail. When Airflow cannot take the run, the answer is
503, so that MLflow tries again; what MLflow drops, `registry_sweep` finds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import httpx
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, HTTPException, Request

from operators.registry_sweep import offer
from validation.policy import Trigger, read_policies

BODY_LIMIT_BYTES = 64 * 1024
WINDOW_S = 300  # MLflow retries for about 7 s with the first timestamp; clocks may differ
log = logging.getLogger(__name__)

app = FastAPI(title="registry webhook", docs_url=None, redoc_url=None, openapi_url=None)
seen_deliveries: dict[str, float] = {}
token: dict[str, Any] = {}


@app.post("/")
async def receive(request: Request) -> dict[str, str]:
    """202-like answers in the body: `accepted`, `duplicate` or `ignored`."""
    body = await _bounded_body(request)
    delivery_id = _authentic(request, body, secret=os.environ.get("PENSTOCK_WEBHOOK_SECRET", ""), now_s=time.time())
    wanted = wanted_version(_event(body), _triggers())
    if wanted is None:
        return {"status": "ignored"}
    if delivery_id in seen_deliveries:
        return {"status": "duplicate"}
    status = await _post_run(offer(*wanted))
    _remember(delivery_id, time.time())
    return {"status": status}


def signature(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """MLflow's own scheme: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    digest = hmac.new(secret.encode(), f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def wanted_version(event: dict[str, Any], triggers: dict[str, Trigger]) -> tuple[str, int] | None:
    """Model and version that this event asks to deliver under the model's policy, or None."""
    data = event.get("data")
    data = data if isinstance(data, dict) else {}
    trigger = triggers.get(str(data.get("name")))
    marks = {
        ("model_version", "created"): ("created", data.get("tags") or {}),
        ("model_version_tag", "set"): ("tag", {data.get("key"): True}),
        ("model_version_alias", "created"): ("alias", {data.get("alias"): True}),
    }
    kind, markers = marks.get((str(event.get("entity")), str(event.get("action"))), ("", {}))
    version = str(data.get("version"))
    if trigger is None or kind not in trigger.on or trigger.marker not in markers or not version.isdecimal():
        return None
    return str(data["name"]), int(version)


async def _bounded_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT_BYTES:
            raise HTTPException(413)
    return body


def _authentic(request: Request, body: bytes, *, secret: str, now_s: float) -> str:
    names = ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")
    delivery_id, timestamp, given = (request.headers.get(name, "") for name in names)
    fresh = timestamp.isdecimal() and len(timestamp) <= 12 and abs(now_s - int(timestamp)) <= WINDOW_S
    genuine = hmac.compare_digest(given.encode(), signature(secret, delivery_id, timestamp, body).encode())
    if not (secret and delivery_id and fresh and genuine):
        raise HTTPException(401)
    return delivery_id


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except ValueError:
        raise HTTPException(400) from None
    if not isinstance(event, dict):
        raise HTTPException(400)
    return event


def _triggers() -> dict[str, Trigger]:
    folder = os.environ.get("PENSTOCK_POLICIES") or Path(__file__).parent.parent / "dags" / "policies"
    good, bad = read_policies(Path(folder))
    for why in bad.values():
        log.error("events of a model without a readable policy are left to registry_sweep: %s", why)
    return {name: policy.trigger for name, policy in good.items()}


async def _post_run(run: dict[str, Any]) -> str:
    """Asks this very server for the run; 409 means that the version has its delivery already."""
    try:
        async with httpx.AsyncClient(base_url=os.environ["PENSTOCK_AIRFLOW_URL"], timeout=10) as airflow:
            answer = await airflow.post(
                f"/api/v2/dags/{run['trigger_dag_id']}/dagRuns",
                json={"dag_run_id": run["trigger_run_id"], "conf": run["conf"], "logical_date": None},
                headers={"Authorization": f"Bearer {await _token(airflow)}"},
            )
    except httpx.HTTPError as error:
        log.warning("Airflow did not take %s: %s", run["trigger_run_id"], error)
        raise HTTPException(503) from error
    if answer.status_code == 409:
        return "duplicate"
    if answer.status_code >= 300:
        log.warning("Airflow refused %s: %s %s", run["trigger_run_id"], answer.status_code, answer.text[:500])
        raise HTTPException(503)
    return "accepted"


async def _token(airflow: httpx.AsyncClient) -> str:
    """The webhook's own user at Airflow's auth manager; a token is used for an hour."""
    if token.get("until", 0) < time.monotonic():
        login = {"username": os.environ["PENSTOCK_AIRFLOW_USER"], "password": os.environ["PENSTOCK_AIRFLOW_PASSWORD"]}
        answer = await airflow.post("/auth/token", json=login)
        answer.raise_for_status()
        token.update(value=answer.json()["access_token"], until=time.monotonic() + 3600)
    return str(token["value"])


def _remember(delivery_id: str, now_s: float) -> None:
    """Delivery ids inside the window; older ones are refused by their timestamp."""
    for old in [known for known, at_s in seen_deliveries.items() if now_s - at_s > 2 * WINDOW_S]:
        del seen_deliveries[old]
    seen_deliveries[delivery_id] = now_s


class RegistryWebhook(AirflowPlugin):
    """Mounts the receiver below `/mlflow-webhook/`."""

    name = "registry_webhook"
    fastapi_apps = [{"app": app, "url_prefix": "/mlflow-webhook", "name": "registry webhook"}]  # noqa: RUF012 - Airflow's own form
