"""Promote: gateway, aliases and outcome, in an order that survives a crash at each point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDirector, FakeServers, backend
from registry_fixtures import mlflow_address_fixture, model_fixture, register_any, registry_fixture, spec  # noqa: F401 - found by name

from delivery.director_client import DirectorUnreachable
from delivery.promote import promote, retired
from delivery.registry import DELIVERY, EVIDENCE, OUTCOME, PROMOTING, Registry
from validation.contract import Bundle, Decision, Outcome, Stable

STABLE = Stable(version=2, bundle=Bundle(uri="file:///b", sha256="0"))
WATCHED = {"verdicts": [{"task": "rollback_sensor_1000", "outcome": "passed"}]}
MEASURED = {"verdicts": [{"task": "integration", "outcome": "passed"}]}


def run(registry: Registry, director: FakeDirector, servers: FakeServers, model: str, version: int, **fields: Any) -> Decision:
    limits = {"archive": {"versions": 2}}
    given = {"delivery": "mine", "stable": STABLE, "inputs": WATCHED, "limits": limits, **fields}
    return promote(spec("promote", model, version, Path("/e"), **given), registry, director, servers)  # type: ignore[arg-type]


def prepared(registry: Registry, model: str) -> tuple[FakeDirector, FakeServers]:
    """v1 was before, v2 serves, v3 is the candidate of the delivery `mine`; all three servers run."""
    for _ in range(3):
        register_any(registry, model)
    for number in (1, 2):
        registry.move_production(model, number)
    registry.tag(registry.version(model, 3), {DELIVERY: "mine"})
    director = FakeDirector()
    director.serves(model, stable=2, previous=1, candidate=3)
    return director, FakeServers(names={f"{model}--v{number}" for number in (1, 2, 3)} | {"other--v1"})


def check_promoted(registry: Registry, director: FakeDirector, servers: FakeServers, model: str) -> None:
    traffic = director.model(model)
    assert traffic.stable is not None
    assert traffic.previous is not None
    assert (traffic.stable.version, traffic.previous.version, traffic.candidate) == (3, 2, None)
    assert registry.aliases(model) == {"production": 3, "previous": 2}
    tags = registry.version(model, 3).tags
    assert tags[OUTCOME] == "promoted"
    assert tags[EVIDENCE] == "file:///e/evidence"
    assert PROMOTING not in tags
    assert servers.names == {f"{model}--v2", f"{model}--v3", "other--v1"}


def test_a_candidate_is_promoted(registry: Registry, model: str) -> None:
    """The gateway, the aliases, the outcome follow; the server of the version before the previous one stops, no other."""
    director, servers = prepared(registry, model)
    decision = run(registry, director, servers, model, 3)
    assert [(each.name, each.outcome) for each in decision.findings] == [
        (name, Outcome.PASSED) for name in ("shown", "serving", "registry")
    ]
    assert decision.outputs == {"stopped": [f"{model}--v1"], "archived": "2 asked for"}
    check_promoted(registry, director, servers, model)


def test_the_archive_follows_before_a_server_stops(registry: Registry, model: str) -> None:
    """It is told how many versions the policy keeps while the version before the previous one is served still."""
    director, servers = prepared(registry, model)
    run(registry, director, servers, model, 3)
    ((_, asked, versions, running),) = servers.events
    assert (asked, versions, f"{model}--v1" in running) == (model, 2, True)


def test_an_archived_version_keeps_its_own_server(registry: Registry, model: str) -> None:
    """Where each has one of its own it goes on for those who pin it; one that is in a shared server needs none."""
    director, servers = prepared(registry, model)
    director.put_archived(model, [backend(7), replace(backend(8), name=f"{model}--v8")])
    servers.start([f"{model}--v7", f"{model}--v8"])
    assert run(registry, director, servers, model, 3).outputs["stopped"] == [f"{model}--v1", f"{model}--v8"]


def test_an_archive_in_trouble_holds_up_no_promotion(registry: Registry, model: str) -> None:
    """Nobody depends on it: the version is promoted, and what was not archived is told."""
    director, servers = prepared(registry, model)
    servers.broken_archive = True
    decision = run(registry, director, servers, model, 3)
    assert decision.outputs["archived"] == "the archive was not brought up to date: the archive was not ready"
    check_promoted(registry, director, servers, model)


def test_the_first_version_is_promoted_without_a_previous(registry: Registry, model: str) -> None:
    """With nothing stable before, production is set and there is no previous."""
    register_any(registry, model, **{DELIVERY: "mine"})
    director = FakeDirector()
    director.serves(model, candidate=1)
    run(registry, director, FakeServers(), model, 1, stable=None, inputs=MEASURED)
    assert registry.aliases(model) == {"production": 1}


@pytest.mark.parametrize(
    ("stable", "inputs"),
    [(STABLE, {}), (STABLE, MEASURED), (STABLE, {"verdicts": [{"task": "rollback_sensor_1000", "outcome": "failed"}]}), (None, {})],
)
def test_nothing_is_promoted_for_lack_of_evidence(registry: Registry, model: str, stable: Stable | None, inputs: dict[str, Any]) -> None:
    """Without a passed watch over all of the traffic (or, for a first version, a passed gate) everything stays as it is."""
    director, servers = prepared(registry, model)
    (finding,) = run(registry, director, servers, model, 3, stable=stable, inputs=inputs).findings
    assert (finding.name, finding.outcome) == ("shown", Outcome.FAILED)
    assert (director.model(model).stable.version, registry.aliases(model)["production"]) == (2, 2)


def test_promoting_twice_changes_nothing(registry: Registry, model: str) -> None:
    """A task that is retried after it was done finds everything in place."""
    director, servers = prepared(registry, model)
    run(registry, director, servers, model, 3)
    decision = run(registry, director, servers, model, 3)
    assert max(each.outcome for each in decision.findings) is Outcome.PASSED
    check_promoted(registry, director, servers, model)


@pytest.mark.parametrize("step", ["put_stable", "tag", "move_production", "end", "untag", "stop"])
def test_a_crash_at_any_point_is_finished_by_the_next_try(
    registry: Registry, model: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the first try ends, the second one ends as if there had been no first."""
    director, servers = prepared(registry, model)
    owner = {"put_stable": director, "stop": servers}.get(step, registry)
    crashed = getattr(owner, step)

    def crash(*arguments: object, **named: object) -> None:
        monkeypatch.undo()
        raise ConnectionError(step)

    monkeypatch.setattr(owner, step, crash)
    with pytest.raises(ConnectionError, match=step):
        run(registry, director, servers, model, 3)
    assert getattr(owner, step) == crashed
    run(registry, director, servers, model, 3)
    check_promoted(registry, director, servers, model)


def test_a_half_done_promotion_can_be_seen(registry: Registry, model: str) -> None:
    """Before the gateway changes, the version says that its promotion has begun; the aliases have not moved then."""
    director, servers = prepared(registry, model)
    director.broken.add("put_stable")
    with pytest.raises(DirectorUnreachable):
        run(registry, director, servers, model, 3)
    assert registry.version(model, 3).tags[PROMOTING] == "mine"
    assert registry.production(model) == 2


def test_another_deliverys_version_is_not_promoted(registry: Registry, model: str) -> None:
    """A delivery that lost its claim promotes nothing."""
    director, servers = prepared(registry, model)
    registry.tag(registry.version(model, 3), {DELIVERY: "other"})
    decision = run(registry, director, servers, model, 3)
    assert "belongs to other" in decision.findings[0].why
    assert director.calls == []
    assert registry.production(model) == 2


def test_only_servers_of_this_model_are_retired() -> None:
    """Models whose names begin alike keep their servers, and so do versions that something points at."""
    names = ["digits--v1", "digits--v2", "digits-wide--v1", "dig--v1"]
    assert retired("digits", names, {2}) == ["digits--v1"]
