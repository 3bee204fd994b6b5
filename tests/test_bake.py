"""After the promotion: the judge goes on, and leads back when the new version is surely bad or a person says so, never for less."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from airflow_home import ROOT
from fakes import FakeDirector
from registry_fixtures import mlflow_address_fixture, model_fixture, register_any, registry_fixture  # noqa: F401 - found by name

from delivery import rollout
from delivery.bake import bake
from delivery.director_client import DirectorUnreachable, Row, Rows
from delivery.judged import JudgedStep, differences, read
from delivery.registry import DELIVERY, ENDED_AT, OUTCOME, UNDONE_BY, WHY, Registry
from validation.contract import BadSpec, Bundle, Decision, Outcome, Spec, Stable, sha256, worst
from validation.policy import read_policy, section

POLICY = read_policy(ROOT / "dags" / "policies" / "digits.toml")
RUN = "deliver__digits__v2"


@dataclass(kw_only=True)
class Serving(FakeDirector):
    """A director whose gateway answers some requests of the stable version between two looks; `before` is called at each look."""

    per_look: int = 20
    fails: Callable[[int], bool] = lambda _: False
    before: Callable[[int], None] = lambda _: None
    looks: int = 0
    read: bool = False
    began_s: float = field(default_factory=time.time)

    def observations(self, model: str, after: int = 0) -> Rows:
        newest = self.rows[-1].number if self.rows else 0
        self.read = after == newest and not self.read
        if self.read:  # a look reads on until nothing is left
            self.looks += 1
            self.before(self.looks)
            self.rows.extend(self._row(model, i) for i in range(self.per_look))
        return super().observations(model, after)

    def _row(self, model: str, i: int) -> Row:
        stable, number = self.traffic[model].stable, len(self.rows) + 1
        assert stable is not None
        return Row(number, self.began_s + number / 100, stable.version, stable.version == 1 or not self.fails(i), 20.0 + number % 5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "TICK_S", 0.02)
    monkeypatch.delenv("TASK_KEEPALIVE_S", raising=False)


def promoted(registry: Registry, model: str, director: Serving) -> Serving:
    """v2 is stable since a moment ago, by the delivery that bakes it now; v1 is loaded still."""
    for number in (1, 2):
        register_any(registry, model)
        registry.move_production(model, number)
        registry.end(registry.version(model, number), outcome="promoted", at="promote", why="it passed")
    registry.tag(registry.version(model, 2), {DELIVERY: RUN})
    director.serves(model, stable=2, previous=1)
    director.begin_delivery(model, 2, RUN)
    return director


def spec(model: str, *, bake_seconds: float = 0.3, newer: str = "waits") -> Spec:
    limits = {
        "rollout": section(replace(POLICY.rollout, bake_seconds=bake_seconds, newer=newer)),
        "trigger": section(POLICY.trigger),
    }
    stable = Stable(version=1, bundle=Bundle(uri="file:///b", sha256="0"))
    return Spec(task="bake", model=model, version=2, delivery=RUN, evidence_uri="file:///e", stable=stable, limits=limits)


def outcome(decision: Decision) -> Outcome:
    return worst(each.outcome for each in decision.findings)


def stands(registry: Registry, director: FakeDirector, model: str) -> tuple[int | None, dict[str, int], str]:
    """Who is stable at the gateway, the registry's aliases, and v2's outcome there."""
    stable = director.model(model).stable
    return stable and stable.version, dict(registry.aliases(model)), registry.version(model, 2).tags[OUTCOME]


KEPT = (2, {"production": 2, "previous": 1}, "promoted")
BACK = (1, {"production": 1, "previous": 2}, "rolled_back")


def test_a_good_version_keeps_its_place(registry: Registry, model: str, tmp_path: Path) -> None:
    """It passes when the time is over, having been seen at work; a newer version that waits changes nothing."""
    director = promoted(registry, model, Serving())
    decision = bake(spec(model, newer="supersedes"), tmp_path, director, registry)  # type: ignore[arg-type]
    assert ([each.name for each in decision.findings], outcome(decision)) == (["baked"], Outcome.PASSED)
    assert decision.outputs["seconds"] >= 0.3
    assert stands(registry, director, model) == KEPT


def test_a_version_that_fails_after_its_promotion_is_undone(registry: Registry, model: str, tmp_path: Path) -> None:
    """Gateway first, then the registry: the version before is stable and production again, with who and why on the one that was undone."""
    director = promoted(registry, model, Serving(fails=lambda i: i % 3 == 0))
    decision = bake(spec(model, bake_seconds=30), tmp_path, director, registry)  # type: ignore[arg-type]
    assert (outcome(decision), decision.findings[0].name) == (Outcome.FAILED, "errors")
    assert stands(registry, director, model) == BACK
    tags = registry.version(model, 2).tags
    assert (tags[ENDED_AT], tags[UNDONE_BY]) == ("bake", "penstock")
    assert tags[WHY].startswith("undone by penstock: errors: ")


def test_a_bake_can_be_decided_again(registry: Registry, model: str, tmp_path: Path) -> None:
    """Its evidence gives the same findings again, and others when the budget is another."""
    director = promoted(registry, model, Serving(fails=lambda i: i % 3 == 0))
    decision = bake(spec(model, bake_seconds=30), tmp_path, director, registry)  # type: ignore[arg-type]
    judge = tuple(each for each in decision.findings if each.name != "registry")
    (tmp_path / "findings.json").write_text(json.dumps([each.to_dict() for each in judge]))
    judged = written(tmp_path)
    assert differences(judged) == []
    assert differences(replace(judged, rollout=replace(judged.rollout, false_alarm=0.001))) != []


def written(folder: Path) -> JudgedStep:
    """What a replay reads of the folder, whose manifest the task's frame writes."""
    rows = {each.name: sha256(each.read_bytes()) for each in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps(rows))
    judged = read(folder)
    assert isinstance(judged, JudgedStep)
    return judged


def test_nothing_is_undone_for_lack_of_evidence(registry: Registry, model: str, tmp_path: Path) -> None:
    """Without a request the bake is inconclusive, which is told and takes nothing back."""
    director = promoted(registry, model, Serving(per_look=0))
    decision = bake(spec(model, bake_seconds=0.1), tmp_path, director, registry)  # type: ignore[arg-type]
    assert (outcome(decision), stands(registry, director, model)) == (Outcome.INCONCLUSIVE, KEPT)


def test_a_bake_that_dies_takes_nothing_back(registry: Registry, model: str, tmp_path: Path) -> None:
    """A version that is stable needs no watch to stay so."""

    def die(look: int) -> None:
        if look == 3:
            raise KeyboardInterrupt

    director = promoted(registry, model, Serving(before=die))
    with pytest.raises(KeyboardInterrupt):
        bake(spec(model, bake_seconds=30), tmp_path, director, registry)  # type: ignore[arg-type]
    assert stands(registry, director, model) == KEPT


def test_a_person_undoes_during_the_bake(registry: Registry, model: str, tmp_path: Path) -> None:
    """The director acts at once; the bake ends failed with who and why, orders no second undo, and the registry follows."""

    def complain(look: int) -> None:
        if look == 3:
            director.order(model, order_id="12345678", action="undo", who="ada", why="complaints")

    director = promoted(registry, model, Serving(before=complain))
    decision = bake(spec(model, bake_seconds=30), tmp_path, director, registry)  # type: ignore[arg-type]
    assert next(each.why for each in decision.findings if each.name == "not_undone") == "undone by ada: complaints"
    assert (director.calls.count("order"), stands(registry, director, model)) == (1, BACK)


def test_a_person_ends_the_bake(registry: Registry, model: str, tmp_path: Path) -> None:
    """`promote` during the bake ends it; one that was given before does not, and a pause that came too late does not hold it."""
    director = promoted(registry, model, Serving())
    director.order(model, order_id="12345678", action="promote_now", who="ada", why="seen enough")
    decision = bake(spec(model, bake_seconds=1000), tmp_path, director, registry)  # type: ignore[arg-type]
    assert ([each.name for each in decision.findings], outcome(decision)) == (["promoted_by_hand"], Outcome.PASSED)
    assert "promote_now by ada: seen enough; not shown until then: baked" in decision.findings[0].why


def test_an_undo_that_the_registry_missed_is_made_up_for(registry: Registry, model: str, tmp_path: Path) -> None:
    """The task died between gateway and registry: tried again, it finds the undo, judges nothing anew and does the rest."""
    director = promoted(registry, model, Serving())
    director.order(model, order_id="12345678", action="undo", who="penstock", why="errors: too many")
    decision = bake(spec(model, bake_seconds=30), tmp_path, director, registry)  # type: ignore[arg-type]
    assert (outcome(decision), director.looks, stands(registry, director, model)) == (Outcome.FAILED, 0, BACK)


def test_an_undo_that_the_director_does_not_carry_out_is_tried_again(registry: Registry, model: str, tmp_path: Path) -> None:
    """A bad version that could not be undone is an error of ours, and never a verdict that says it was."""
    director = promoted(registry, model, Serving(fails=lambda i: i % 3 == 0, broken={"order"}))
    with pytest.raises(DirectorUnreachable):
        bake(spec(model, bake_seconds=30), tmp_path, director, registry)  # type: ignore[arg-type]
    director.broken.clear()
    assert outcome(bake(spec(model, bake_seconds=30), tmp_path, director, registry)) is Outcome.FAILED  # type: ignore[arg-type]
    assert stands(registry, director, model) == BACK


def test_a_first_version_has_nothing_to_go_back_to(registry: Registry, model: str, tmp_path: Path) -> None:
    """Without a version that was stable before, the task has no business."""
    with pytest.raises(BadSpec, match="stable before"):
        bake(replace(spec(model), stable=None), tmp_path, FakeDirector(), registry)  # type: ignore[arg-type]
