"""Tells MLflow where its events go: one webhook, registered over MLflow's REST interface.

`stack.up` and `stack.compose` call it at each start; a webhook that is right is left alone, because MLflow notices a change only after up
to a minute. It receives nothing: that is `plugins/registry_webhook.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import httpx

from stack.keys import Keys

NAME = "penstock"
EVENTS = (("MODEL_VERSION", "CREATED"), ("MODEL_VERSION_TAG", "SET"), ("MODEL_VERSION_ALIAS", "CREATED"))
PATH = "/api/2.0/mlflow/webhooks"


def register(mlflow_url: str, airflow_url: str, keys: Keys) -> str:
    """Leaves exactly one webhook of our name, with our address, events and secret; returns its id. Raises `httpx.HTTPError`."""
    wanted = _wanted(airflow_url, keys)
    with httpx.Client(base_url=mlflow_url, timeout=10, trust_env=False) as registry:
        ours = [row for row in _all(registry) if row.get("name") == NAME]
        right = [row for row in ours if _is(row, wanted)][:1]
        for row in ours:
            if row not in right:
                registry.delete(f"{PATH}/{row['webhook_id']}").raise_for_status()
        return str((right or [_create(registry, wanted)])[0]["webhook_id"])


def _wanted(airflow_url: str, keys: Keys) -> dict[str, Any]:
    """MLflow never shows a secret again; a digest of it in the description tells whether it is still ours."""
    mark = hashlib.sha256(keys.mlflow_webhook_secret.encode()).hexdigest()[:16]
    return {
        "name": NAME,
        "description": f"Events that may ask for a delivery. Secret {mark}.",
        "url": f"{airflow_url}/mlflow-webhook/",
        "events": [{"entity": entity, "action": action} for entity, action in EVENTS],
        "secret": keys.mlflow_webhook_secret,
        "status": "ACTIVE",
    }


def _is(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    same = all(row.get(key) == wanted[key] for key in ("description", "url", "status"))
    return same and {(e["entity"], e["action"]) for e in row.get("events", [])} == set(EVENTS)


def _all(registry: httpx.Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    token = ""
    while True:
        page = _json(registry.get(PATH, params={"max_results": 100, "page_token": token} if token else {"max_results": 100}))
        rows += page.get("webhooks", [])
        token = page.get("next_page_token", "")
        if not token:
            return rows


def _create(registry: httpx.Client, wanted: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = _json(registry.post(PATH, json=dict(wanted)))["webhook"]
    return row


def _json(answer: httpx.Response) -> dict[str, Any]:
    answer.raise_for_status()
    row: dict[str, Any] = answer.json()
    return row
