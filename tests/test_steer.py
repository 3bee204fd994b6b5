"""An order from the Airflow UI reaches the director with the person's name, and a refusal is a verdict with what is allowed instead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fakes import FakeDirector

from delivery import steer
from operators.steer import Steer
from validation.contract import BadSpec, Outcome, Spec

RUN = "deliver__m__v2"


def spec(action: str = "pause", **changes) -> Spec:
    inputs = {"action": action, "who": "airflow:ada", "why": "deploy freeze", "order": "manual__2026-11-25"} | changes
    return Spec(task="steer", model="m", version=0, delivery="manual__2026-11-25", evidence_uri="file:///e", inputs=inputs)


def under_way() -> FakeDirector:
    director = FakeDirector()
    director.serves("m", stable=1, candidate=2)
    director.begin_delivery("m", 2, RUN)
    director.put_split("m", RUN, 100, 10.0)
    return director


def test_an_order_is_given_once_with_who_and_why():
    """Tried again it is the same order: the run's id is its id."""
    director = under_way()
    for _ in range(2):
        decision = steer.steer(spec(), director)
        assert decision.findings[0].outcome is Outcome.PASSED
    orders = director.orders("m").orders
    assert [(each.action, each.version, each.who, each.why) for each in orders] == [("pause", 2, "airflow:ada", "deploy freeze")]


def test_a_refusal_is_a_verdict_and_no_error():
    """Nothing to resume: failed, with what is allowed; it is not tried again."""
    finding = steer.steer(spec("resume"), under_way()).findings[0]
    assert (finding.outcome, "allowed: pause" in finding.why) == (Outcome.FAILED, True)


def test_an_order_without_a_word_of_it_is_a_bad_spec():
    """The spec names what is missing."""
    with pytest.raises(BadSpec, match=r"needs inputs\.why"):
        steer.steer(Spec(**{**vars(spec()), "inputs": {"action": "pause", "who": "a", "order": "12345678"}}), under_way())


def test_who_triggered_the_run_is_who_orders():
    """The UI's user, or somebody when Airflow does not know."""
    operator = Steer(task_id="steer")
    context = {
        "params": {"action": "abort", "why": "wrong data"},
        "run_id": "manual__1",
        "dag_run": SimpleNamespace(triggering_user_name="ada"),
    }
    assert operator.inputs(context) == {"action": "abort", "why": "wrong data", "who": "airflow:ada", "order": "manual__1"}
    assert operator.inputs({**context, "dag_run": SimpleNamespace()})["who"] == "airflow:somebody"
