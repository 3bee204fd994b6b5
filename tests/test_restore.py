"""Restore: whatever happened, stable serves, nothing of the candidate is left, and the registry says how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDirector, FakeServers
from registry_fixtures import mlflow_address_fixture, model_fixture, register_any, registry_fixture, spec  # noqa: F401 - found by name

from delivery.registry import DELIVERY, ENDED_AT, OUTCOME, PROMOTING, WHY, Registry
from delivery.restore import Ending, NotRestored, ended, restore
from validation.contract import BadSpec, Decision

CLAIMED = {"task": "claim", "outcome": "passed", "why": "claimed"}
BROKEN_OFF = [CLAIMED, {"task": "rollback_sensor_100", "outcome": "failed", "why": "errors_at_100_permille: 20 % of 31 failed"}]


def row(task: str, outcome: str | None, why: str = "because") -> dict[str, Any]:
    return {"task": task, "outcome": outcome, "why": why}


@pytest.mark.parametrize(
    ("rows", "outcome", "at"),
    [
        ([row("claim", "failed")], "refused", "claim"),
        ([CLAIMED, row("golden_set", "failed")], "refused", "golden_set"),
        ([CLAIMED, row("start_candidate", "failed")], "refused", "start_candidate"),
        ([CLAIMED, row("integration", "failed")], "refused", "integration"),
        ([CLAIMED, row("shadow", "failed")], "rolled_back", "shadow"),
        ([CLAIMED, row("traffic_shift_10", "failed")], "rolled_back", "traffic_shift_10"),
        ([CLAIMED, row("rollback_sensor_10", "failed")], "rolled_back", "rollback_sensor_10"),
        ([CLAIMED, row("rollback_sensor_10", "failed", "not_superseded: v9 arrived")], "superseded", "rollback_sensor_10"),
        ([CLAIMED, row("rollback_sensor_10", "inconclusive")], "inconclusive", "rollback_sensor_10"),
        ([CLAIMED, row("export", "error")], "error", "export"),
        ([CLAIMED, row("export", None)], "error", "export"),
        ([CLAIMED, row("export", "strange")], "error", "export"),
        ([CLAIMED, row("promote", "passed")], "promoted", "promote"),
        ([CLAIMED, row("latency_benchmark", "passed")], "error", "latency_benchmark"),
        ([CLAIMED, row("shadow", "passed")], "error", "shadow"),
        ([], "error", "-"),
    ],
)
def test_the_first_verdict_that_did_not_pass_decides(rows: list[dict[str, Any]], outcome: str, at: str) -> None:
    """Each way to end has its word; a missing or unknown outcome is an error and never a success."""
    found = ended(rows, dry_run=False)
    assert (found.outcome, found.at) == (outcome, at)


def test_a_shadow_delivery_ends_with_its_mirror() -> None:
    """Under the strategy `shadow` a passed mirror is all that was asked for; without stable there was nothing to mirror."""
    assert ended([CLAIMED, row("shadow", "passed")], dry_run=False, strategy="shadow").outcome == "dry_run"
    nothing = ended([CLAIMED, row("integration", "passed")], dry_run=False, strategy="shadow")
    assert (nothing.outcome, nothing.why) == ("inconclusive", "nothing is stable yet: there was no traffic to mirror")


def test_a_delivery_ends_with_its_bake() -> None:
    """Passed, the version is promoted; failed, it was rolled back; too little seen, it is told so."""
    before = [CLAIMED, row("promote", "passed")]
    found = [ended([*before, row("bake", word)], dry_run=False) for word in ("passed", "failed", "inconclusive")]
    assert [(each.outcome, each.at) for each in found] == [("promoted", "bake"), ("rolled_back", "bake"), ("inconclusive", "bake")]


def test_a_dry_run_that_passed_says_so() -> None:
    """Only a dry run may end well without a promotion."""
    rows = [CLAIMED, row("latency_benchmark", "passed")]
    assert ended(rows, dry_run=True).outcome == "dry_run"
    assert ended([*rows, row("export", "failed")], dry_run=True) == Ending(outcome="refused", at="export", why="because")


def run(
    registry: Registry, director: FakeDirector, servers: FakeServers, model: str, rows: list[dict[str, Any]] = BROKEN_OFF, **inputs: Any
) -> Decision:
    task = spec("restore", model, 2, Path("/e"), delivery="mine", inputs={"verdicts": rows, "promoted": False, **inputs})
    return restore(task, registry, director, servers.stop)  # type: ignore[arg-type]


def in_canary(registry: Registry, model: str) -> tuple[FakeDirector, FakeServers]:
    """v1 serves, v2 is the candidate of the delivery `mine` with a tenth of the traffic and a mirror."""
    for _ in range(2):
        register_any(registry, model)
    registry.move_production(model, 1)
    registry.tag(registry.version(model, 2), {DELIVERY: "mine"})
    director = FakeDirector()
    director.serves(model, stable=1, candidate=2)
    director.put_shadow(model, 1000, ttl_s=10)
    director.put_split(model, "mine", 100, 10)
    return director, FakeServers(names={f"{model}--v1", f"{model}--v2"})


def check_restored(director: FakeDirector, servers: FakeServers, model: str) -> None:
    traffic = director.model(model)
    assert traffic.stable is not None
    assert (traffic.stable.version, traffic.candidate, traffic.split, traffic.shadow_permille) == (1, None, None, 0)
    assert servers.names == {f"{model}--v1"}


def test_a_candidate_under_traffic_is_taken_back(registry: Registry, model: str) -> None:
    """Split, mirror, candidate and server go; the registry says what happened, where and why."""
    director, servers = in_canary(registry, model)
    decision = run(registry, director, servers, model)
    check_restored(director, servers, model)
    tags = registry.version(model, 2).tags
    assert (tags[OUTCOME], tags[ENDED_AT], tags[WHY]) == ("rolled_back", "rollback_sensor_100", BROKEN_OFF[1]["why"])
    assert tags["penstock.evidence"] == "file:///e/evidence"
    assert tags["penstock.finding.rollback_sensor_100"] == "failed"
    assert decision.outputs["outcome"] == "rolled_back"


def test_restoring_twice_changes_nothing(registry: Registry, model: str) -> None:
    """A retried teardown finds everything done, and keeps what the first try wrote."""
    director, servers = in_canary(registry, model)
    run(registry, director, servers, model)
    first = registry.version(model, 2).tags
    run(registry, director, servers, model)
    assert registry.version(model, 2).tags == first
    check_restored(director, servers, model)


def test_after_a_promotion_nothing_is_taken_away(registry: Registry, model: str) -> None:
    """A promoted version keeps traffic, server and outcome; the gates' results are added."""
    director, servers = in_canary(registry, model)
    director.put_stable(model, 2)
    registry.end(registry.version(model, 2), outcome="promoted", at="promote", why="passed")
    run(registry, director, servers, model, [CLAIMED, row("promote", "passed")], promoted=True)
    traffic = director.model(model)
    assert traffic.stable is not None
    assert traffic.stable.version == 2
    assert f"{model}--v2" in servers.names
    tags = registry.version(model, 2).tags
    assert tags[OUTCOME] == "promoted"
    assert tags["penstock.finding.promote"] == "passed"


def test_an_undo_that_its_bake_did_not_write_down_is_written_here(registry: Registry, model: str) -> None:
    """The gateway went back and the bake died: aliases and outcome follow in the teardown, once."""
    director, servers = in_canary(registry, model)
    director.begin_delivery(model, 2, "mine")
    director.put_stable(model, 2)
    registry.move_production(model, 2)
    registry.end(registry.version(model, 2), outcome="promoted", at="promote", why="passed")
    director.order(model, order_id="12345678", action="undo", who="penstock", why="errors")
    for _ in range(2):
        run(registry, director, servers, model, [CLAIMED, row("promote", "passed"), row("bake", "error")], promoted=True)
        assert registry.aliases(model) == {"production": 1, "previous": 2}
        tags = registry.version(model, 2).tags
        assert (tags[OUTCOME], tags[ENDED_AT], tags[WHY]) == ("rolled_back", "bake", "undone by penstock: errors")
    assert servers.names == {f"{model}--v1", f"{model}--v2"}


def test_a_promotion_that_crashed_half_way_is_finished(registry: Registry, model: str) -> None:
    """The gateway serves the version already: going back would be a second change; the aliases follow instead."""
    director, servers = in_canary(registry, model)
    registry.tag(registry.version(model, 2), {PROMOTING: "mine"})
    director.put_stable(model, 2)
    run(registry, director, servers, model, [CLAIMED, row("promote", "error")])
    assert registry.aliases(model) == {"production": 2, "previous": 1}
    tags = registry.version(model, 2).tags
    assert tags[OUTCOME] == "promoted"
    assert PROMOTING not in tags
    assert servers.names == {f"{model}--v1", f"{model}--v2"}


def test_a_promotion_that_never_reached_the_gateway_is_called_off(registry: Registry, model: str) -> None:
    """Announced and not done: stable stays, the announcement goes, the outcome is an error."""
    director, servers = in_canary(registry, model)
    registry.tag(registry.version(model, 2), {PROMOTING: "mine"})
    run(registry, director, servers, model, [CLAIMED, row("promote", "error")])
    check_restored(director, servers, model)
    tags = registry.version(model, 2).tags
    assert tags[OUTCOME] == "error"
    assert PROMOTING not in tags


def test_another_deliverys_version_is_not_touched(registry: Registry, model: str) -> None:
    """A delivery whose claim was refused leaves traffic, server and tags of the one that has the version."""
    director, servers = in_canary(registry, model)
    registry.tag(registry.version(model, 2), {DELIVERY: "other"})
    before, calls = registry.version(model, 2).tags, list(director.calls)
    decision = run(registry, director, servers, model, [row("claim", "failed", "not_claimed: being delivered by other")])
    assert "nothing was touched" in decision.findings[0].why
    assert registry.version(model, 2).tags == before
    assert director.calls == calls
    assert servers.names == {f"{model}--v1", f"{model}--v2"}


def test_a_version_that_does_not_exist_needs_no_restoring(registry: Registry, model: str) -> None:
    """A delivery of an unknown version ends without an error of its own."""
    decision = run(registry, FakeDirector(), FakeServers(), model, [row("claim", "failed")])
    assert "nothing was touched" in decision.findings[0].why


@pytest.mark.parametrize("broken", ["release", "put_shadow", "delete_candidate", "model"])
def test_every_part_is_tried_though_one_fails(registry: Registry, model: str, broken: str) -> None:
    """A part that fails is named and makes the task an error to be retried; the registry has its outcome all the same."""
    director, servers = in_canary(registry, model)
    director.broken.add(broken)
    with pytest.raises(NotRestored, match="does not answer"):
        run(registry, director, servers, model)
    assert registry.version(model, 2).tags[OUTCOME] == "rolled_back"
    director.broken.clear()
    run(registry, director, servers, model)
    check_restored(director, servers, model)


def test_a_server_goes_on_while_the_gateway_may_use_it(registry: Registry, model: str) -> None:
    """As long as the candidate could not be removed, its server runs: better a bad answer than none."""
    director, servers = in_canary(registry, model)
    director.broken.add("delete_candidate")
    with pytest.raises(NotRestored):
        run(registry, director, servers, model)
    assert f"{model}--v2" in servers.names


def test_a_silent_registry_does_not_keep_the_traffic(registry: Registry, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery's own claim says whose the candidate is when the registry cannot; then the task is retried for the tags."""
    director, servers = in_canary(registry, model)

    def silent(*arguments: Any) -> None:
        raise ConnectionError("no registry")

    monkeypatch.setattr(registry, "version", silent)
    with pytest.raises(NotRestored, match="no registry"):
        run(registry, director, servers, model)
    check_restored(director, servers, model)


def test_a_lease_of_another_holder_is_left_alone(registry: Registry, model: str) -> None:
    """Releasing is for the holder; another's lease is no failure of this teardown."""
    director, servers = in_canary(registry, model)
    director.serves(model, stable=1, candidate=2)
    director.leases.clear()
    director.put_split(model, "other", 100, 10)
    decision = run(registry, director, servers, model)
    assert "the split is other's and not ours" in [each.why for each in decision.findings]


def test_the_server_of_the_previous_version_goes_on(registry: Registry, model: str) -> None:
    """A version that was delivered again and refused early keeps the server that the undo needs."""
    for _ in range(3):
        register_any(registry, model)
    registry.tag(registry.version(model, 2), {DELIVERY: "mine"})
    director, servers = FakeDirector(), FakeServers(names={f"{model}--v2"})
    director.serves(model, stable=3, previous=2)
    run(registry, director, servers, model, [CLAIMED, row("golden_set", "failed")])
    assert servers.names == {f"{model}--v2"}


@pytest.mark.parametrize("verdicts", [None, "x", [1], [{}]])
def test_verdicts_of_another_kind_are_a_bad_spec(registry: Registry, verdicts: Any) -> None:
    """A spec without readable verdicts is nothing to guess from."""
    task = spec("restore", "m", 1, Path("/e"), inputs={"verdicts": verdicts})
    with pytest.raises(BadSpec, match="verdicts"):
        restore(task, registry, FakeDirector(), FakeServers().stop)  # type: ignore[arg-type]
