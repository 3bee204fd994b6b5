"""The main job on the whole system: what is good is promoted, what is bad is refused or taken back, and whatever dies, users see no error.

The fixture `world` holds the stack with v1 stable and a client that sends steady traffic; after each test it must have met no error.
"""

from __future__ import annotations

import httpx
import pytest

from bench.world import DELIVER, MODEL, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_the_first_version_is_stable(world: World) -> None:
    """The first version passes its gates and becomes stable without a rollout: alias, tags and gateway agree."""
    version = world.version(1)
    assert (world.registry.alias(MODEL, "production"), world.share().stable) == (1, 1)
    assert version is not None
    assert version.tags["penstock.semantic_version"] == "v1.0.0"
    assert 0.85 < float(version.tags["penstock.baseline.accuracy"]) <= 1
    assert 0 < float(version.tags["penstock.baseline.p50_ms"]) <= float(version.tags["penstock.baseline.p99_ms"])
    assert {version.tags[f"penstock.finding.{gate}"] for gate in ("golden_set", "distribution", "latency_benchmark", "integration")} == {
        "passed"
    }


def test_a_version_without_a_run_is_refused_by_name(world: World) -> None:
    """A marked version that no training run stands behind is refused with a sentence, and no traffic changes."""
    number = world.register("s3://nowhere/model")
    assert world.outcome(number) == "refused"
    assert "names no source run" in world.why(number)
    assert world.share().stable == 1


def test_the_same_event_again_is_one_delivery(world: World) -> None:
    """Setting the marker a second time makes no second run of the same version."""
    world.mlflow("POST", "model-versions/set-tag", json={"name": MODEL, "version": "1", "key": "candidate", "value": "again"})
    alias = {"name": MODEL, "alias": "candidate", "version": "1"}
    world.mlflow("POST", "registered-models/alias", json=alias)
    runs = world.airflow.runs(DELIVER)
    assert runs.count(f"deliver__{MODEL}__v1") == 1
    assert len(runs) == len(set(runs))


@pytest.mark.full
def test_a_dry_run_from_the_form_runs_the_gates_and_nothing_else(world: World) -> None:
    """A person asks for one by the UI's form: the gates run, also against what users asked of late; no server starts, no traffic moves."""
    stable = world.share().stable
    number = world.register_again(1)
    with world.policy_with(("min_rows = 600", "traffic_drift = true\nmin_rows = 600")):
        run = world.airflow.trigger(DELIVER, version=number, dry_run=True)
        assert world.ended(number, run) == "dry_run"
    states = {each.task: each.state for each in world.airflow.tasks(DELIVER, run)}
    assert [states[task] for task in ("latency_benchmark", "start_candidate", "integration", "promote")] == ["success", *["skipped"] * 3]
    assert (world.share().stable, world.share().candidate) == (stable, 0)
    like_traffic = world.findings(number, "golden_set")["golden_traffic_drift"]
    assert (like_traffic["outcome"], "rows of recent traffic" in like_traffic["why"]) == ("passed", True), like_traffic


def test_the_webhook_refuses_what_mlflow_did_not_sign(world: World) -> None:
    """The receiver stands open on the api-server, takes nothing unsigned."""
    answer = httpx.post(f"{world.stage.settings.airflow_url}/mlflow-webhook/", json={"entity": "model_version"}, trust_env=False)
    assert answer.status_code == 401


def test_a_model_trained_on_broken_labels_never_meets_traffic(world: World) -> None:
    """The golden set refuses it with the reason in a sentence; the gateway never heard of it."""
    number = world.deliver("v3")
    assert world.outcome(number) == "refused"
    assert "accuracy" in world.why(number)
    assert world.answered(number) == 0


def test_a_version_that_fails_on_production_inputs_is_taken_back(world: World) -> None:
    """Good offline and bad online: rolled back in mid-canary, while the client meets no error."""
    stable = world.share().stable
    number = world.deliver("v4")
    world.until_share(100)
    world.stage.use_new_scanner(200)
    assert world.outcome(number) == "rolled_back", world.why(number)
    assert "requests failed" in world.why(number)
    share = world.share()
    assert (share.stable, share.candidate, share.permille) == (stable, 0, 0)
    world.stage.use_new_scanner(0)


def test_a_stack_that_is_stopped_and_started_serves_stable_again(world: World) -> None:
    """`down` leaves no process behind; `up` brings the same stable version back, from what is on disk."""
    stable = world.share().stable
    world.restart()
    world.until_answered_by(stable, 20)
    assert world.share().stable == stable
