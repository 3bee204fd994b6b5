"""An order from the Airflow UI reaches the director with the person's name, and a refusal is a verdict with what is allowed instead."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import FakeDirector, backend

from delivery import steer
from delivery.archive import Archive
from delivery.triton import Server
from operators.steer import Steer, again
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


def test_a_retry_is_recorded_and_begins_a_delivery():
    """The director keeps the order; what the DAG triggers is named after it."""
    director = under_way()
    decision = steer.steer(replace(spec("retry"), version=7), director)
    assert (decision.outputs, [each.version for each in director.orders("m").orders]) == ({"retry": 7}, [7])
    assert again("m", 7, "manual__1", "disk was full") == {
        "trigger_dag_id": "deliver_m",
        "trigger_run_id": "retry__m__v7__manual__1",
        "conf": {"version": 7},
        "note": "retry: disk was full",
    }


def test_a_refusal_is_a_verdict_and_no_error():
    """Nothing to resume: failed, with what is allowed; it is not tried again."""
    finding = steer.steer(spec("resume"), under_way()).findings[0]
    assert (finding.outcome, "allowed: pause" in finding.why) == (Outcome.FAILED, True)


@pytest.fixture(name="no_registry")
def no_registry_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steer.Registry, "from_env", lambda: None)
    monkeypatch.setattr(steer, "follow", lambda model, registry, director: "the registry follows")


@pytest.mark.usefixtures("no_registry")
def test_an_undo_may_name_an_archived_version():
    """One with a server of its own becomes stable as it is."""
    director = FakeDirector()
    director.serves("m", stable=3, previous=2)
    director.put_archived("m", [backend(1)])
    assert steer.steer(spec("undo", to=1), director).findings[0].outcome is Outcome.PASSED
    assert director.model("m").stable == backend(1)


@pytest.mark.usefixtures("no_registry")
def test_an_archived_version_that_shares_its_server_gets_one_of_its_own_first(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Done once, however often the task is tried."""
    director, started = FakeDirector(), []
    director.serves("m", stable=3, previous=2)
    director.put_archived("m", [replace(backend(1), name="m--v1"), replace(backend(4), name="m--v4")])

    def start_alone(_, model: str, version: int) -> Server:
        started.append((model, version))
        return Server(name="m--v1", http="127.0.0.1:18200", grpc="127.0.0.1:18201", metrics="127.0.0.1:18202")

    monkeypatch.setattr(Archive, "start_alone", start_alone)
    monkeypatch.setenv("PENSTOCK_STATE", str(tmp_path))
    for _ in range(2):
        assert steer.steer(spec("undo", to=1), director).findings[0].outcome is Outcome.PASSED
    view = director.model("m")
    assert (view.stable.http, view.previous.version, [each.version for each in view.archived]) == ("127.0.0.1:18200", 3, [2, 4])
    assert started == [("m", 1)]


@pytest.mark.parametrize("to", ["1", 0, -1, True, 1.5])
def test_where_an_undo_leads_is_a_version(to):
    """Anything else is a bad spec."""
    with pytest.raises(BadSpec, match=r"inputs\.to is"):
        steer.steer(spec("undo", to=to), under_way())


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


@pytest.mark.parametrize(("to", "given"), [(None, {}), (5, {"to": 5})])
def test_where_an_undo_shall_lead_is_passed_on(to, given):
    """An empty field says nothing."""
    context = {"params": {"action": "undo", "why": "wrong data", "to": to}, "run_id": "manual__1", "dag_run": SimpleNamespace()}
    words = {"action": "undo", "why": "wrong data", "who": "airflow:somebody", "order": "manual__1"}
    assert Steer(task_id="steer").inputs(context) == words | given
