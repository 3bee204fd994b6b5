"""People's orders: what may be ordered in which state, that they outlive the director, that watches obey, and the command for them."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeDirector, NoJournal
from gateway_fixtures import TOKEN, Stack, begin_rollout, call, running, versions

from delivery import command
from delivery.director_client import LeaseLost, Refused
from delivery.order_book import Journal, OrderBook
from delivery.orders import ABORT, ACTIONS, APPROVE, PAUSE, PROMOTE_FULLY, PROMOTE_NOW, RESUME, RETRY, UNDO, Order, check, situation, wanted
from delivery.orders_watch import Steering
from delivery.traffic import Backend, Lease, ModelTraffic, NotAllowed
from validation.contract import Finding, Outcome, Spec, worst

MODEL, RUN = "m", "deliver__m__v2"
V1, V2, V3 = (Backend(version=n, http=f"127.0.0.1:{8000 + n}", grpc=f"127.0.0.1:{9000 + n}") for n in (1, 2, 3))
LEASE = Lease(holder=RUN, permille=100, expires_at_s=1e12, stable=1, candidate=2)
SPEC = Spec(task="rollback_sensor", model=MODEL, version=2, delivery=RUN, evidence_uri="file:///e")
STATES = {
    "idle": (ModelTraffic(model=MODEL, stable=V1, previous=V3), None, False),
    "gates": (ModelTraffic(model=MODEL, stable=V1), None, True),
    "loaded": (ModelTraffic(model=MODEL, stable=V1, candidate=V2), None, True),
    "shadow": (ModelTraffic(model=MODEL, stable=V1, candidate=V2, shadow_permille=500), None, True),
    "split": (ModelTraffic(model=MODEL, stable=V1, candidate=V2), LEASE, True),
    "bake": (ModelTraffic(model=MODEL, stable=V2, previous=V1), None, True),
}
ALLOWED = {
    "idle": {UNDO},
    "gates": {PAUSE, ABORT},
    "loaded": {PAUSE, PROMOTE_FULLY, ABORT},
    "shadow": {PAUSE, PROMOTE_NOW, PROMOTE_FULLY, ABORT},
    "split": {PAUSE, PROMOTE_NOW, PROMOTE_FULLY, APPROVE, ABORT},
    "bake": {PROMOTE_NOW, PROMOTE_FULLY, UNDO},
}


def order(action: str, *, version: int = 2, number: int = 1, **changes) -> Order:
    words = {"id": f"order-{number:04d}", "model": MODEL, "version": version, "action": action, "who": "ada", "why": "because"}
    return Order(**(words | changes))


def book(*, begun: bool = True) -> OrderBook:
    made = OrderBook(NoJournal())
    if begun:
        made.begin(MODEL, 2, RUN)
    return made


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", [each for each in ACTIONS if each != RETRY])
def test_each_order_in_each_state(state, action):
    """It is taken where it makes sense; elsewhere the refusal names the state and what is allowed there."""
    traffic, lease, begun = STATES[state]
    here = book(begun=begun).situation(traffic, lease)
    given = order(action, version=here.stable if action == UNDO else 2)
    if action in ALLOWED[state]:
        assert check(given, here) is None
    else:
        with pytest.raises(NotAllowed, match=r"makes no sense there; allowed: "):
            check(given, here)


def test_a_retry_is_of_a_version_that_neither_serves_nor_is_under_way():
    """Any other may be delivered again, also while one is under way: it waits for its turn."""
    here = book().situation(*STATES["split"][:2])
    check(order(RETRY, version=3), here)
    with pytest.raises(NotAllowed, match="is stable already"):
        check(order(RETRY, version=1), here)
    with pytest.raises(NotAllowed, match="makes no sense"):
        check(order(RETRY, version=2), here)


def test_a_pause_ends_with_a_resume_and_an_abort_never():
    """What the orders add up to, in the order in which they were taken."""
    orders = [order(PAUSE), order(RESUME, number=2), order(ABORT, number=3), order(RESUME, number=4)]
    assert wanted(orders[:1]).paused == orders[0]
    assert wanted(orders[:2]).paused is None
    assert wanted(orders).aborted == orders[2]


def test_an_order_about_a_step_means_that_step():
    """`promote_now` at 10 % says nothing of 50 %; `promote_fully` does."""
    now, fully = order(PROMOTE_NOW, at="100 per mille"), order(PROMOTE_FULLY, number=2)
    assert (wanted([now]).promoted("100 per mille"), wanted([now]).promoted("500 per mille")) == (now, None)
    assert wanted([now, fully]).promoted("500 per mille") == fully


@pytest.mark.parametrize("wrong", [{"who": ""}, {"why": "a\nb"}, {"id": "x"}, {"action": "dance"}, {"version": 0}, {"model": "../m"}])
def test_an_order_without_who_why_or_sense_is_refused(wrong):
    """Each is one line; ids are made so that an order can be sent twice."""
    with pytest.raises(ValueError, match=r"who|why|id|action|version|model"):
        order(**({"action": PAUSE} | wrong))


def test_orders_outlive_the_director(tmp_path: Path):
    """The journal is read back, is its owner's only, and forgets a line that was never finished."""
    path = tmp_path / "director" / "orders.jsonl"
    first = OrderBook(Journal(path))
    first.begin(MODEL, 2, RUN)
    first.take(order(PAUSE), first.situation(*STATES["split"][:2]))
    with path.open("ab") as file:
        file.write(b'{"event": "order", "id": "ha')
    second = OrderBook(Journal(path))
    assert (second.delivery(MODEL), second.of_delivery(MODEL)) == (first.delivery(MODEL), first.of_delivery(MODEL))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second.end(MODEL, RUN)
    assert OrderBook(Journal(path)).of_delivery(MODEL) == ()


def test_a_journal_that_cannot_be_understood_is_refused(tmp_path: Path):
    """Better no director than one that forgets an abort; the message names the line."""
    path = tmp_path / "orders.jsonl"
    path.write_text("no json\n")
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        OrderBook(Journal(path))


def test_the_same_order_twice_is_one():
    """By its id; the same id for something else is refused."""
    made, here = book(), STATES["split"][:2]
    taken = made.take(order(PAUSE), made.situation(*here))
    assert made.find(order(PAUSE)) == taken
    with pytest.raises(NotAllowed):
        made.find(order(ABORT))


def steering(director: FakeDirector, *, approval: bool = False, pause_max_s: float = 100.0) -> tuple[Steering, list[float]]:
    clock = [0.0]
    made = Steering(
        spec=SPEC, director=director, at="100 per mille", approval=approval, pause_max_s=pause_max_s, min_s=0.0, now_s=lambda: clock[0]
    )
    return made, clock


def under_way() -> FakeDirector:
    director = FakeDirector()
    director.serves(MODEL, stable=1, candidate=2)
    director.begin_delivery(MODEL, 2, RUN)
    director.put_split(MODEL, RUN, 100, 10.0)
    return director


def looked(made: Steering, clock: list[float], findings: tuple[Finding, ...], *, after_s: float = 2.0) -> tuple[Finding, ...]:
    clock[0] += after_s
    made.look()
    made.tick(findings)
    return made.applied(findings)


PASSED, OPEN, FAILED = (
    (Finding(name="errors", outcome=each, why="w", advice="a" if each is Outcome.INCONCLUSIVE else None),) for each in Outcome
)


def test_while_paused_nothing_passes_and_time_stands_still():
    """The step goes on to be judged: what is surely bad is failed all the same. Resumed, it passes."""
    director = under_way()
    made, clock = steering(director)
    looked(made, clock, PASSED)
    director.order(MODEL, order_id="pause-0001", action=PAUSE, who="ada", why="lunch")
    assert worst(each.outcome for each in looked(made, clock, PASSED)) is Outcome.INCONCLUSIVE
    elapsed_s = made.elapsed_s
    assert worst(each.outcome for each in looked(made, clock, FAILED)) is Outcome.FAILED
    assert made.elapsed_s == elapsed_s
    director.order(MODEL, order_id="resume-001", action=RESUME, who="ada", why="back")
    assert worst(each.outcome for each in looked(made, clock, PASSED)) is Outcome.PASSED


def test_a_pause_has_an_end():
    """After the longest pause the step is over, inconclusive."""
    director = under_way()
    made, clock = steering(director, pause_max_s=5.0)
    director.order(MODEL, order_id="pause-0001", action=PAUSE, who="ada", why="lunch")
    findings = [looked(made, clock, PASSED) for _ in range(5)][-1]
    assert (made.over(findings), worst(each.outcome for each in findings)) == (True, Outcome.INCONCLUSIVE)


def test_a_promotion_by_hand_sets_aside_what_is_not_shown_and_never_what_failed():
    """Who, why, and what was missing stand in the finding."""
    director = under_way()
    made, clock = steering(director)
    director.order(MODEL, order_id="promote-01", action=PROMOTE_NOW, who="ada", why="known traffic")
    findings = looked(made, clock, OPEN)
    assert (made.over(findings), worst(each.outcome for each in findings)) == (True, Outcome.PASSED)
    assert "ada: known traffic; not shown until then: errors" in findings[-1].why
    assert worst(each.outcome for each in looked(made, clock, FAILED)) is Outcome.FAILED


def test_a_step_that_wants_approval_waits_for_it():
    """All is shown, and still nobody goes on before a person says so."""
    director = under_way()
    made, clock = steering(director, approval=True)
    assert worst(each.outcome for each in looked(made, clock, PASSED)) is Outcome.INCONCLUSIVE
    director.order(MODEL, order_id="approve-01", action=APPROVE, who="ada", why="looked at it")
    assert worst(each.outcome for each in looked(made, clock, PASSED)) is Outcome.PASSED


def test_an_abort_ends_the_watch_as_failed():
    """With who and why."""
    director = under_way()
    made, clock = steering(director)
    director.order(MODEL, order_id="abort-0001", action=ABORT, who="ada", why="wrong data")
    findings = looked(made, clock, PASSED)
    assert [(each.name, each.outcome, each.why) for each in findings[1:]] == [("not_aborted", Outcome.FAILED, "aborted by ada: wrong data")]


@pytest.fixture
def stack(tmp_path, monkeypatch) -> Stack:
    with running(Stack(tmp_path)) as made:
        monkeypatch.setenv("PENSTOCK_DIRECTOR_URL", made.director_url)
        monkeypatch.setenv("PENSTOCK_DIRECTOR_TOKEN", TOKEN)
        yield made


def said(*words: str) -> int:
    return command.main([*words, "--who", "ada", "--why", "a test"])


async def test_the_command_steers_a_live_rollout(stack: Stack, capsys):
    """Pause, resume, a refusal, and an abort that takes the traffic at once and cannot be taken back by the delivery."""
    async with versions(MODEL, 1, 2) as (v1, v2):
        await begin_rollout(stack, v1, v2)
        await call(stack.client.begin_delivery, MODEL, 2, RUN)
        await call(stack.client.put_split, MODEL, RUN, 100, 30.0)
        assert await call(said, "pause", MODEL) == 0
        assert await call(said, "promote", MODEL) == 1
        assert await call(said, "resume", MODEL) == 0
        assert await call(said, "abort", MODEL) == 0
        assert (await call(stack.client.model, MODEL)).split is None
        with pytest.raises((Refused, LeaseLost), match=r"abort|over"):
            await call(stack.client.put_split, MODEL, RUN, 100, 30.0)
        assert await call(command.main, ["status", MODEL]) == 0
    out, err = capsys.readouterr()
    assert "promote_now makes no sense there; allowed: resume, approve, abort" in err
    assert "aborted" in out


async def test_an_undo_by_command_swaps_at_once(stack: Stack, capsys, monkeypatch):
    """The earlier version is still loaded: it serves again, and a second undo is about the other one."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # what the command sets ends with the test
    async with versions(MODEL, 1, 2) as (v1, v2):
        await begin_rollout(stack, v1, v2)
        await call(stack.client.put_stable, MODEL, 2)
        assert await call(said, "undo", MODEL) == 0
        seen = await call(stack.client.model, MODEL)
    assert (seen.stable.version, seen.previous.version) == (1, 2)
    assert "undo of m v2 is ordered, by ada: a test" in capsys.readouterr().out


def test_wrong_usage_is_said(capsys):
    """No word, an unknown word, no reason: status 64, and nothing is asked of anybody."""
    assert command.main([]) == 64
    assert command.main(["dance"]) == 64
    with pytest.raises(SystemExit) as ended:
        command.main(["abort", MODEL])
    assert ended.value.code == 64
    assert "--why" in capsys.readouterr().err


def test_without_an_address_the_command_says_what_to_set(tmp_path, monkeypatch, capsys):
    """Neither environment nor local stack."""
    for name in ("PENSTOCK_DIRECTOR_URL", "PENSTOCK_DIRECTOR_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PENSTOCK_STATE", str(tmp_path))
    assert command.main(["status"]) == 64
    assert "PENSTOCK_DIRECTOR_URL" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_delivery_that_begins_anew_is_not_bound_by_old_orders():
    """An abort of the run before, under the same name, is history."""
    made, here = book(), STATES["split"][:2]
    made.take(order(ABORT), made.situation(*here))
    made.end(MODEL, RUN)
    made.begin(MODEL, 2, RUN)
    assert made.of_delivery(MODEL) == ()
    assert situation(here[0], here[1], made.delivery(MODEL), made.of_delivery(MODEL)).wanted.aborted is None
    assert replace(order(ABORT), delivery=RUN).said == "ada: because"
