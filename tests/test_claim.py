"""Claim: one delivery per version, and registry and gateway in agreement before anything begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeDirector, FakeServers
from registry_fixtures import mlflow_address_fixture, model_fixture, register, register_any, register_files, registry_fixture, spec  # noqa: F401 - found by name

from delivery.claim import claim
from delivery.director_client import DirectorUnreachable
from delivery.registry import BUNDLE_SHA256, BUNDLE_URI, DELIVERY, OUTCOME, PROMOTING, WHY, Registry
from validation.contract import Decision, Outcome

BUNDLE = {BUNDLE_URI: "http://m/bundle.tar", BUNDLE_SHA256: "ab"}


@pytest.fixture(name="director")
def director_fixture() -> FakeDirector:
    return FakeDirector()


def run(
    registry: Registry, director: FakeDirector, model: str, version: int, delivery: str = "mine", *, servers: frozenset[str] = frozenset()
) -> Decision:
    task = spec("claim", model, version, Path("/nowhere"), delivery=delivery)
    return claim(task, registry, director, FakeServers(names=set(servers)).running)  # type: ignore[arg-type]


def outcome(decision: Decision) -> Outcome:
    return max(each.outcome for each in decision.findings)


def refusal(decision: Decision) -> str:
    (finding,) = decision.findings
    assert finding.outcome is Outcome.FAILED
    return f"{finding.name}: {finding.why} ({finding.advice})"


def serves(registry: Registry, director: FakeDirector, model: str, version: int, **tags: str) -> None:
    """Makes a version production in the registry and stable at the gateway."""
    registry.tag(registry.version(model, version), {**BUNDLE, **tags})
    registry.move_production(model, version)
    director.serves(model, stable=version)


def test_the_first_version_is_claimed(registry: Registry, director: FakeDirector, model: str, mlflow_address: str) -> None:
    """Claiming tags the version and says where run, files and artifacts are, and that nothing is stable."""
    version = register_any(registry, model)
    decision = run(registry, director, model, version)
    assert outcome(decision) is Outcome.PASSED
    run_id = registry.version(model, version).run_id
    assert decision.outputs == {
        "source_run": run_id,
        "source_uri": f"mlflow-artifacts:/0/{run_id}/artifacts/model",
        "artifacts_uri": f"{mlflow_address}/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/penstock/v1",
        "stable_version": 0,
        "stable_bundle_uri": "",
        "stable_bundle_sha256": "",
    }
    assert registry.version(model, version).tags[DELIVERY] == "mine"


def test_stable_is_what_production_points_at(registry: Registry, director: FakeDirector, model: str) -> None:
    """The version under the alias, and its bundle's address, are passed on for the comparison."""
    stable, version = register_any(registry, model), register_any(registry, model)
    serves(registry, director, model, stable)
    outputs = run(registry, director, model, version).outputs
    assert (outputs["stable_version"], outputs["stable_bundle_uri"], outputs["stable_bundle_sha256"]) == (1, "http://m/bundle.tar", "ab")


def test_the_same_delivery_claims_again(registry: Registry, director: FakeDirector, model: str) -> None:
    """A repeated task finds its own claim and changes nothing."""
    version = register_any(registry, model)
    assert run(registry, director, model, version) == run(registry, director, model, version)


def test_a_live_delivery_keeps_its_version(registry: Registry, director: FakeDirector, model: str) -> None:
    """A second delivery is refused, the first is named, and its claim stays."""
    version = register_any(registry, model)
    run(registry, director, model, version, "first")
    assert "is being delivered by first" in refusal(run(registry, director, model, version, "second"))
    assert registry.version(model, version).tags[DELIVERY] == "first"


def test_a_version_can_be_delivered_again_after_its_end(registry: Registry, director: FakeDirector, model: str) -> None:
    """Once an outcome stands, a person may try again; what the earlier delivery wrote is cleared."""
    version = register_any(registry, model)
    run(registry, director, model, version, "first")
    registry.end(registry.version(model, version), outcome="refused", at="golden_set", why="worse")
    assert outcome(run(registry, director, model, version, "second")) is Outcome.PASSED
    tags = registry.version(model, version).tags
    assert tags[DELIVERY] == "second"
    assert {OUTCOME, WHY}.isdisjoint(tags)


def test_production_is_not_delivered_again(registry: Registry, director: FakeDirector, model: str) -> None:
    """What serves already is refused, and its tags stay as they are."""
    version = register_any(registry, model)
    serves(registry, director, model, version, **{DELIVERY: "first", OUTCOME: "promoted"})
    assert f"{model} v1 is production already" in refusal(run(registry, director, model, version, "second"))
    assert registry.version(model, version).tags[DELIVERY] == "first"


def test_a_late_event_does_not_lead_back_behind_production(registry: Registry, director: FakeDirector, model: str) -> None:
    """An older version whose event comes after a newer one is production is refused, and its tags say so; a person may ask for it."""
    for _ in range(2):
        register_any(registry, model)
    serves(registry, director, model, 2)
    event = f"deliver__{model}__v1"
    assert "not_older" in refusal(run(registry, director, model, 1, delivery=event))
    assert registry.version(model, 1).tags[DELIVERY] == event
    registry.untag(registry.version(model, 1), DELIVERY)
    assert outcome(run(registry, director, model, 1, delivery="manual__by-a-person")) is Outcome.PASSED


@pytest.mark.parametrize("other", ["", "nowhere"])
def test_what_is_not_registered_is_refused(registry: Registry, director: FakeDirector, model: str, other: str) -> None:
    """An unknown model or version is a finding that names it."""
    name = other or model
    assert f"version_exists: {name} v7" in refusal(run(registry, director, name, 7))


def test_a_version_without_a_run_is_refused(registry: Registry, director: FakeDirector, model: str) -> None:
    """Without a source run there is no place for bundle and evidence."""
    version = register(registry, model, "s3://bucket/model", None)
    assert "names no source run" in refusal(run(registry, director, model, version))


def test_a_version_without_artifacts_is_refused(registry: Registry, director: FakeDirector, model: str) -> None:
    """A version whose files are gone is told apart from one that holds something else."""
    run_id = registry._client.create_run("0").info.run_id
    version = register(registry, model, f"mlflow-artifacts:/0/{run_id}/artifacts/gone", run_id)
    assert "has no artifacts at mlflow-artifacts:" in refusal(run(registry, director, model, version))


def test_an_artifact_that_is_no_model_is_refused(registry: Registry, director: FakeDirector, model: str) -> None:
    """What lies there is named."""
    version = register_files(registry, model, {"notes.txt": b"x"})
    assert "is not a model" in refusal(run(registry, director, model, version))


def test_a_refused_claim_keeps_the_tag(registry: Registry, director: FakeDirector, model: str) -> None:
    """The delivery that was refused for its artifacts owns the version, so that its teardown can write the outcome."""
    version = register_files(registry, model, {"notes.txt": b"x"})
    run(registry, director, model, version)
    assert registry.version(model, version).tags[DELIVERY] == "mine"


def test_a_production_without_a_bundle_is_refused(registry: Registry, director: FakeDirector, model: str) -> None:
    """An alias that somebody set by hand cannot be compared with; the advice says how to begin."""
    stable, version = register_any(registry, model), register_any(registry, model)
    registry.move_production(model, stable)
    director.serves(model, stable=stable)
    assert "remove the alias production" in refusal(run(registry, director, model, version))


def test_a_half_done_promotion_is_finished(registry: Registry, director: FakeDirector, model: str) -> None:
    """The gateway serves v2 whose promotion was announced: the aliases follow, and its outcome is written."""
    for _ in range(3):
        register_any(registry, model)
    serves(registry, director, model, 1)
    registry.tag(registry.version(model, 2), {**BUNDLE, DELIVERY: "second", PROMOTING: "second"})
    director.serves(model, stable=2, previous=1)
    decision = run(registry, director, model, 3)
    assert outcome(decision) is Outcome.PASSED
    assert decision.outputs["stable_version"] == 2
    assert registry.aliases(model) == {"production": 2, "previous": 1}
    tags = registry.version(model, 2).tags
    assert tags[OUTCOME] == "promoted"
    assert PROMOTING not in tags


def test_an_undo_is_written_down_by_the_next_delivery(registry: Registry, director: FakeDirector, model: str) -> None:
    """Ordered where no registry was to be reached: the claim that finds gateway and registry apart knows why, and goes on."""
    for _ in range(3):
        register_any(registry, model)
    for number in (1, 2):
        serves(registry, director, model, number)
    director.serves(model, stable=2, previous=1)
    director.order(model, order_id="12345678", action="undo", who="ada", why="complaints")
    decision = run(registry, director, model, 3)
    assert decision.outputs["stable_version"] == 1
    assert registry.aliases(model) == {"production": 1, "previous": 2}
    assert registry.version(model, 2).tags[WHY] == "undone by ada: complaints"


def test_a_disagreement_that_nobody_announced_is_a_persons_work(registry: Registry, director: FakeDirector, model: str) -> None:
    """Gateway and alias differ without a promotion in between: both are named and nothing moves."""
    for _ in range(3):
        register_any(registry, model)
    serves(registry, director, model, 1)
    director.serves(model, stable=2)
    said = refusal(run(registry, director, model, 3))
    assert "the gateway serves v2 and the registry's production is v1" in said
    assert registry.aliases(model) == {"production": 1}


def test_a_gateway_without_memory_gets_stable_back(registry: Registry, director: FakeDirector, model: str) -> None:
    """The gateway lost its state and the server of production runs: it becomes stable again."""
    for _ in range(2):
        register_any(registry, model)
    serves(registry, director, model, 1)
    director.traffic.clear()
    decision = run(registry, director, model, 2, servers=frozenset({f"{model}--v1"}))
    assert outcome(decision) is Outcome.PASSED
    stable = director.model(model).stable
    assert stable is not None
    assert (stable.version, stable.metrics) == (1, "127.0.0.1:18202")


def test_a_lost_stable_without_a_server_is_refused(registry: Registry, director: FakeDirector, model: str) -> None:
    """The gateway lost its state and no server of production runs: the finding says what to do."""
    for _ in range(2):
        register_any(registry, model)
    serves(registry, director, model, 1)
    director.traffic.clear()
    assert "deliver it again" in refusal(run(registry, director, model, 2))


def test_a_silent_director_is_an_error(registry: Registry, director: FakeDirector, model: str) -> None:
    """Trouble of ours is no finding about a version: it raises, and Airflow retries; the claim stands, for the teardown's outcome."""
    version = register_any(registry, model)
    director.broken.add("model")
    with pytest.raises(DirectorUnreachable):
        run(registry, director, model, version)
    assert registry.version(model, version).tags[DELIVERY] == "mine"


def test_a_claim_of_a_half_promoted_version_finishes_it(registry: Registry, director: FakeDirector, model: str) -> None:
    """The version that is claimed serves already and only its aliases are missing: they are set, and there is nothing to deliver."""
    version = register_any(registry, model, **{**BUNDLE, PROMOTING: "first"})
    director.serves(model, stable=version)
    assert "is production already" in refusal(run(registry, director, model, version))
    assert registry.production(model) == version
    assert registry.version(model, version).tags[OUTCOME] == "promoted"
