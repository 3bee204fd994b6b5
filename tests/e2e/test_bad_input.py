"""Bad input on the whole system: a clear error that names the thing, no traffic moved, no event lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator

import httpx
import pytest
import registry_webhook

from bench.world import DELIVER, MODEL, World
from stack.keys import read_keys

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
NOWHERE = "s3://nowhere/model"


@pytest.fixture(autouse=True)
def _traffic_stays(world: World) -> Iterator[None]:
    """Whatever nonsense comes in: stable keeps all traffic."""
    before = world.share()
    yield
    after = world.share()
    assert (after.stable, after.candidate, after.permille) == (before.stable, 0, 0)


# The webhook


def signed(world: World, body: bytes, *, secret: str = "", age_s: int = 0) -> httpx.Response:
    """Posts a body to the real receiver, signed as MLflow would."""
    secret = secret or read_keys(world.state).mlflow_webhook_secret
    at = str(int(time.time()) - age_s)
    headers = {"X-MLflow-Delivery-Id": hashlib.sha256(body).hexdigest(), "X-MLflow-Timestamp": at}
    headers["X-MLflow-Signature"] = registry_webhook.signature(secret, headers["X-MLflow-Delivery-Id"], at, body)
    return httpx.post(f"{world.stage.settings.airflow_url}/mlflow-webhook/", content=body, headers=headers, timeout=30, trust_env=False)


def event(version: int) -> bytes:
    """What MLflow sends when a marked version is created."""
    data = {"name": MODEL, "version": str(version), "tags": {"candidate": "true"}}
    return json.dumps({"entity": "model_version", "action": "created", "data": data}).encode()


@pytest.mark.parametrize(
    ("body", "how", "status"),
    [
        (event(9000), {"secret": "somebody else's"}, 401),
        (event(9001), {"age_s": 3600}, 401),
        (event(9002) + b" " * 10_000_000, {}, 413),
        (b"no JSON at all", {}, 400),
        (b'["no object"]', {}, 400),
    ],
    ids=["wrong signature", "old timestamp", "10 MB", "no JSON", "no object"],
)
def test_the_receiver_refuses_what_is_no_event(world: World, body: bytes, how: dict[str, object], status: int) -> None:
    """The status says that it is refused and nothing else; no run is made of it."""
    runs = world.airflow.runs(DELIVER)
    answer = signed(world, body, **how)
    assert answer.status_code == status
    assert len(answer.content) < 100
    assert world.airflow.runs(DELIVER) == runs


# The golden set


def golden_set_nowhere(world: World) -> None:
    """The registered model names a golden set that nobody wrote."""
    run = world.mlflow("POST", "runs/create", json={"experiment_id": "0"})["run"]["info"]
    place = f"{run['artifact_uri']}/golden.parquet"
    _tag(world, {"penstock.golden_set.uri": place, "penstock.golden_set.sha256": hashlib.sha256(b"").hexdigest()})


@contextlib.contextmanager
def _golden_set_restored(world: World) -> Iterator[None]:
    row = world.mlflow("GET", "registered-models/get", params={"name": MODEL})["registered_model"]
    before = {each["key"]: each["value"] for each in row["tags"] if each["key"].startswith("penstock.golden_set")}
    try:
        yield
    finally:
        _tag(world, before)


def _tag(world: World, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        world.mlflow("POST", "registered-models/set-tag", json={"name": MODEL, "key": key, "value": value})


def test_a_golden_set_that_is_not_there_refuses_the_version(world: World) -> None:
    """Without golden rows nothing is delivered; the refusal says where nothing is."""
    with _golden_set_restored(world):
        golden_set_nowhere(world)
        number = world.register_again(1)
        run = world.airflow.trigger(DELIVER, version=number)
        assert world.ended(number, run) == "refused"
    assert "golden set cannot be used: there is nothing at" in world.why(number)


# Policies


def test_a_broken_policy_holds_its_deliveries_until_it_is_mended(world: World) -> None:
    """An unknown key names itself in the waiting task; after the mending all go on, what was under way from its start."""
    good = world.policy()
    under_way, by_hand = world.register_again(1), world.register(NOWHERE, tags=[])
    with _policy_restored(world, good):
        first = world.airflow.trigger(DELIVER, version=under_way, dry_run=True)
        world.until(lambda: "claim" in _ended(world, first) or None, "the claim", 60)
        world.write_policy(MODEL, good.replace("min_rows =", "mni_rows ="))
        told = "unknown key golden_set.mni_rows; allowed here: min_rows"
        world.until(lambda: told in world.airflow.log(DELIVER, first, "policy", 1) or None, "the reason in the log", 90)
        second, by_event = world.airflow.trigger(DELIVER, version=by_hand), world.register(NOWHERE)
        world.write_policy(MODEL, good.replace("at_least = 0.85", "at_least = 0.999"))
        assert world.ended(under_way, first) == "refused"
    assert "surely below 0.9990" in world.why(under_way)
    assert {"claim", "export"} <= _ended(world, first)
    assert world.ended(by_hand, second) == "refused"
    assert "names no source run" in world.why(by_hand)
    assert world.outcome(by_event) == "refused"


def test_what_no_event_delivered_is_found_by_the_sweep(world: World) -> None:
    """A version marked while the receiver is dead, and one of a model that nobody had a policy for: both get their delivery, once."""
    model = "orphan"
    world.mlflow("POST", "registered-models/create", json={"name": model})
    orphan = world.register(NOWHERE, model)
    assert not world.airflow.knows(f"deliver_{model}")
    world.write_policy(model, world.policy().replace('model = "digits"', f'model = "{model}"'))
    world.kill("api-server")
    number = world.register(NOWHERE)
    assert world.outcome(number) == "refused"
    assert world.airflow.runs(DELIVER).count(world.run_of(number)) == 1
    version = world.until(lambda: found if (found := world.version(orphan, model)) and found.outcome else None, "an outcome", 180)
    assert version.outcome == "refused"


@contextlib.contextmanager
def _policy_restored(world: World, text: str) -> Iterator[None]:
    try:
        yield
    finally:
        world.write_policy(MODEL, text)


def _ended(world: World, run: str) -> set[str]:
    return {each.task for each in world.airflow.tasks(DELIVER, run) if each.state == "success"}


# Tasks

ONLY_CLAIM = 'case "$TASK_SPEC" in *\'"task":"claim"\'*) ;; *) exec "$REAL" "$@" ;; esac\n'
FOREIGN = """import os, json
from pathlib import Path
from dataclasses import replace
from validation.contract import Decision, Finding, Outcome, Spec, write_verdict
spec = Spec.from_json(os.environ["TASK_SPEC"])
good = Decision(findings=(Finding(name="claimed", outcome=Outcome.PASSED, why="of another version"),))
write_verdict(good, spec=replace(spec, version=spec.version + 1), evidence_digest="0" * 64, out=Path(os.environ["TASK_OUT"]))
"""


def test_a_verdict_of_another_spec_is_an_error_and_tried_again(world: World) -> None:
    """It is neither a pass nor a refusal: the task says what it got, is tried again, and the version gets its answer."""
    with world.environment_runs("rollout", f"{ONLY_CLAIM}exec $REAL - <<'END'\n{FOREIGN}END"):
        number = world.register(NOWHERE)
        run = f"deliver__{MODEL}__v{number}"
        world.until(lambda: "it is tried again" in world.airflow.log(DELIVER, run, "claim", 1) or None, "the error in the log", 60)
    assert world.outcome(number) == "refused"
    assert "names no source run" in world.why(number)
