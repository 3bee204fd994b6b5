"""A watch obeys what people order of its delivery, and nobody orders away what is surely bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow_home import ROOT
from test_rollout import HOLDER, POLICY, Gateway, outcome, spec

from delivery import orders_watch, rollback_sensor, rollout, shadow, traffic_shift
from delivery.director_client import Refused
from delivery.orders import Order
from delivery.traffic import ModelTraffic
from validation.contract import Decision, Outcome, Spec
from validation.policy import read_policy

AT = "100 per mille"
Look = Callable[["Steered"], None]


class Steered(Gateway):
    """A scripted director to which people speak: `people[n]` happens at the n-th look."""

    def __init__(self, people: dict[int, Look] | None = None, **gateway: Any) -> None:
        super().__init__(**gateway)
        self.people = people or {}
        self.asked = 0

    def order(self, action: str, at: str = AT) -> None:
        number = len(self.book.orders("digits")) + 1
        here = replace(self.book.situation(ModelTraffic(model="digits"), None), where="split", at=at)
        self.book.take(Order(id=f"order-{number:04}", model="digits", version=2, action=action, who="ada", why="because"), here)

    def orders(self, model: str) -> Any:
        self.asked += 1
        self.people.get(self.asked, lambda _: None)(self)
        return super().orders(model)


def says(*actions: str, at: str = AT) -> Look:
    def speak(gateway: Steered) -> None:
        for each in actions:
            gateway.order(each, at)

    return speak


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "TICK_S", 0.0)
    monkeypatch.setattr(orders_watch, "LOOK_S", 0.0)
    monkeypatch.delenv("TASK_KEEPALIVE_S", raising=False)


def watched(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: Any = rollback_sensor, **changes: Any) -> Decision:
    approval = changes.pop("approval", False)
    asked: Spec = spec(**changes)
    limits = {**asked.limits, "step": {**asked.limits["step"], "approval": approval}}
    monkeypatch.setattr(task.Director, "from_env", lambda: gateway)
    decision: Decision = task.run(replace(asked, limits=limits), tmp_path)
    return decision


def why(decision: Decision, name: str) -> str:
    return next(each.why for each in decision.findings if each.name == name)


def names(decision: Decision) -> set[str]:
    return {each.name for each in decision.findings}


def test_a_pause_holds_a_good_candidate_until_it_is_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing passes and its time stands still, however long it takes; the share stays; resumed it passes as ever."""
    gateway = Steered({2: says("pause"), 25: says("resume")}, per_look=200)
    decision = watched(gateway, monkeypatch, tmp_path)
    assert (outcome(decision), gateway.permille, gateway.asked) == (Outcome.PASSED, 100, 25)
    orders = json.loads((tmp_path / "orders.json").read_bytes())["orders"]
    assert [(each["action"], each["who"], each["why"]) for each in orders] == [("pause", "ada", "because"), ("resume", "ada", "because")]


def test_the_deadline_stands_still_while_paused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A candidate that nobody asks is not taken back at its deadline while a person holds it; the longest pause ends it."""
    gateway = Steered({2: says("pause")}, per_look=0)
    decision = watched(gateway, monkeypatch, tmp_path, max_seconds=0.2, pause_max_seconds=1.0)
    held = json.loads((tmp_path / "orders.json").read_bytes())["held_s"]
    assert (outcome(decision), gateway.permille, held >= 1.0) == (Outcome.INCONCLUSIVE, 0, True)
    assert "paused by ada: because" in why(decision, "not_paused")


def test_a_paused_candidate_is_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is surely bad is taken back, paused or not."""
    gateway = Steered({2: says("pause")}, fails=lambda i: i % 4 == 0)
    decision = watched(gateway, monkeypatch, tmp_path)
    assert (outcome(decision), gateway.permille) == (Outcome.FAILED, 0)
    assert gateway.asked < 100


def test_a_delivery_that_is_paused_between_two_steps_gets_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shift leaves the share alone and the next watch waits before it begins; resumed, it sets its step's share."""
    gateway = Steered()
    gateway.order("pause")
    assert watched(gateway, monkeypatch, tmp_path, traffic_shift).findings[0].name == "not_shifted"
    assert gateway.history == []
    gateway.people = {gateway.asked + 5: lambda each: each.order("resume") if each.history == [] else each.order("abort")}
    assert outcome(watched(gateway, monkeypatch, tmp_path)) is Outcome.PASSED
    assert gateway.history[0] == 100


@pytest.mark.parametrize(("action", "at"), [("promote_now", AT), ("promote_fully", AT), ("promote_fully", "10 per mille")])
def test_a_person_ends_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str, at: str) -> None:
    """It passes at once, whatever its shortest time; what was not shown is named in the verdict and kept in the evidence."""
    gateway = Steered({3: says(action, at=at)}, per_look=0)
    decision = watched(gateway, monkeypatch, tmp_path, max_seconds=600.0)
    assert (outcome(decision), gateway.permille) == (Outcome.PASSED, 100)
    assert why(decision, "promoted_by_hand").startswith(f"{action} by ada: because; not shown until then: errors")
    assert "errors" in {each["name"] for each in json.loads((tmp_path / "orders.json").read_bytes())["set_aside"]}


def test_promote_now_is_about_the_step_that_it_was_given_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that was given at an earlier step leaves this one as it is."""
    gateway = Steered({3: says("promote_now", at="10 per mille")}, per_look=0)
    decision = watched(gateway, monkeypatch, tmp_path, max_seconds=0.2)
    assert (outcome(decision), gateway.permille, "promoted_by_hand" in names(decision)) == (Outcome.INCONCLUSIVE, 0, False)


@pytest.mark.parametrize("action", ["promote_now", "promote_fully"])
def test_no_order_promotes_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str) -> None:
    """A finding that is failed cannot be overruled, whatever was ordered."""
    gateway = Steered(fails=lambda _: True, per_look=2000)
    gateway.order(action)
    decision = watched(gateway, monkeypatch, tmp_path)
    assert (outcome(decision), gateway.permille, "promoted_by_hand" in names(decision)) == (Outcome.FAILED, 0, False)


class Aborting(Steered):
    """After an abort the director has dropped the lease and gives none again."""

    def renew(self, model: str, holder: str, ttl_s: float) -> int:
        if any(each.action == "abort" for each in self.book.orders(model)):
            raise Refused("digits v2 was aborted by ada: because; it gets no traffic in this delivery")
        return super().renew(model, holder, ttl_s)


@pytest.mark.parametrize("kind", [Steered, Aborting])
def test_an_aborted_watch_ends_failed_with_who_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Steered]) -> None:
    """Whether it hears of it first from the orders or from the refused lease."""
    gateway = kind({2: says("abort")}, per_look=0)
    decision = watched(gateway, monkeypatch, tmp_path, max_seconds=600.0)
    assert (outcome(decision), gateway.permille) == (Outcome.FAILED, 0)
    assert why(decision, "not_aborted") == "aborted by ada: because"


def test_an_aborted_mirror_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shadow obeys, too."""
    gateway = Steered({2: says("abort", at="shadow")}, per_look=0)
    decision = watched(gateway, monkeypatch, tmp_path, shadow, max_seconds=600.0)
    assert (outcome(decision), gateway.mirror) == (Outcome.FAILED, 0)


def test_an_aborted_delivery_gets_no_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Aborted between two tasks: neither the shift nor the watch sets a share."""
    gateway = Steered()
    gateway.order("abort")
    for task in (traffic_shift, rollback_sensor):
        assert why(watched(gateway, monkeypatch, tmp_path, task), "not_aborted") == "aborted by ada: because"
    assert gateway.history == []


def test_orders_of_another_delivery_do_not_bind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same version, delivered again after an abort, passes as ever."""
    gateway = Steered()
    gateway.order("abort")
    gateway.book.end("digits", HOLDER)
    gateway.book.begin("digits", 2, HOLDER)
    assert outcome(watched(gateway, monkeypatch, tmp_path)) is Outcome.PASSED


@pytest.mark.parametrize("action", ["approve", "promote_now", "promote_fully"])
def test_a_step_with_approval_waits_for_a_person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str) -> None:
    """All is shown and nothing happens beyond its deadline, until somebody says so; who and why stand in the verdict."""
    gateway = Steered({25: says(action)}, per_look=200)
    decision = watched(gateway, monkeypatch, tmp_path, approval=True)
    assert (outcome(decision), gateway.permille, gateway.asked) == (Outcome.PASSED, 100, 25)
    assert why(decision, "approved") == f"{action} by ada: because"


def test_an_approval_that_came_early_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Approved before all is shown: the step goes on until it is, and passes then."""
    gateway = Steered({2: says("approve")})
    decision = watched(gateway, monkeypatch, tmp_path, approval=True)
    assert (outcome(decision), gateway.asked > 5) == (Outcome.PASSED, True)


def test_an_approval_overrules_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Approved without evidence it is taken back at its deadline; approved and bad, at once."""
    quiet = watched(Steered({2: says("approve")}, per_look=0), monkeypatch, tmp_path, approval=True, max_seconds=0.2)
    assert outcome(quiet) is Outcome.INCONCLUSIVE
    gateway = Steered({2: says("approve")}, fails=lambda i: i % 4 == 0)
    assert (outcome(watched(gateway, monkeypatch, tmp_path, approval=True)), gateway.permille) == (Outcome.FAILED, 0)


def test_nobody_approves_and_it_is_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wait for a person has an end: inconclusive, with the command that was missing."""
    gateway = Steered(per_look=200)
    decision = watched(gateway, monkeypatch, tmp_path, approval=True, pause_max_seconds=1.0)
    assert (outcome(decision), gateway.permille) == (Outcome.INCONCLUSIVE, 0)
    assert next(each.advice for each in decision.findings if each.name == "approved") == "penstock approve digits"


def test_approval_is_one_line_in_the_policy(tmp_path: Path) -> None:
    """A step says `approval = true`; without it nobody is waited for."""
    text = (ROOT / "dags" / "policies" / "digits.toml").read_text().replace("permille = 500\n", "permille = 500\napproval = true\n")
    (tmp_path / "digits.toml").write_text(text)
    assert [step.approval for step in POLICY.rollout.steps] == [False] * 4
    assert [step.approval for step in read_policy(tmp_path / "digits.toml").rollout.steps] == [False, False, True, False]
