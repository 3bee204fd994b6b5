"""The watch under traffic: it renews, judges every look, and takes the candidate back itself; it never passes for lack of evidence."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow_home import ROOT
from fakes import FakeRecorder, NoJournal, pair

from delivery import rollback_sensor, rollout, shadow, traffic_shift
from delivery.director_client import DirectorUnreachable, LeaseHeld, LeaseLost, Mirrored, ModelView, OrdersView, Row, Rows, SplitView
from delivery.order_book import OrderBook
from delivery.rollout_evidence import RolloutLog
from validation.contract import BadSpec, Bundle, Decision, Outcome, Spec, Stable, worst
from validation.policy import read_policy, section
from validation.rollout_judge import PARTS, SHADOW_PART

POLICY = read_policy(ROOT / "dags" / "policies" / "digits.toml")
HOLDER = "deliver__digits__v2"


class Gateway:
    """A director whose traffic is scripted: each look adds a second of requests with given failures and latencies."""

    def __init__(self, *, per_look: int = 20, fails: Callable[[int], bool] = lambda _: False, slow: float = 1.0) -> None:
        self.per_look, self.fails, self.slow = per_look, fails, slow
        self.rows: list[Row] = [Row(i, time.time() - 60 + i / 10, 1, True, 20.0 + i % 5) for i in range(1, 500)]
        self.permille = 0
        self.history: list[int] = []
        self.renewals = 0
        self.lose: set[int] = set()
        self.unreachable: set[int] = set()
        self.mirror = 0
        self.mirror_puts = 0
        self.counters = (100, 0)
        self.epoch = "one"
        self.book = OrderBook(NoJournal())
        self.book.begin("digits", 2, HOLDER)

    def orders(self, model: str) -> OrdersView:
        orders = self.book.orders(model)
        return OrdersView(model=model, delivery=self.book.delivery(model), at="", sentence="", allowed=(), orders=orders)

    def put_split(self, model: str, holder: str, permille: int, ttl_s: float) -> None:
        self.permille = permille
        self.history.append(permille)

    def renew(self, model: str, holder: str, ttl_s: float) -> int:
        self.renewals += 1
        if self.renewals in self.unreachable:
            raise DirectorUnreachable("gone")
        if self.renewals in self.lose:
            raise LeaseLost("lapsed")
        self._second()
        return self.permille

    def release(self, model: str, holder: str) -> None:
        self.permille = 0
        self.history.append(0)

    def observations(self, model: str, after: int = 0) -> Rows:
        rows = tuple(row for row in self.rows if row.number > after)[:20_000]
        return Rows(epoch=self.epoch, last=rows[-1].number if rows else self.rows[-1].number, rows=rows)

    def put_shadow(self, model: str, permille: int, ttl_s: float | None = None) -> None:
        self.mirror_puts += 1
        if self.mirror_puts in self.unreachable:
            raise DirectorUnreachable("gone")
        assert (permille > 0) == (ttl_s is not None)
        self.mirror = permille
        self.history.append(permille)

    def mirrored(self, model: str) -> Mirrored:
        requests, failures = self.counters
        if self.mirror:
            self.counters = (requests + self.per_look, failures + sum(self.fails(i) for i in range(self.per_look)))
        return Mirrored(requests=self.counters[0], failures=self.counters[1])

    def model(self, model: str) -> ModelView:
        split = SplitView(holder=HOLDER, permille=self.permille, expires_in_s=10)
        return ModelView(model=model, stable=None, previous=None, candidate=None, shadow_permille=0, split=split)

    def _second(self) -> None:
        second = self.rows[-1].unix_s + 1
        for i in range(self.per_look):
            for version, factor, ok in ((1, 1.0, True), (2, self.slow, not self.fails(i))):
                self.rows.append(Row(self.rows[-1].number + 1, second, version, ok, (20.0 + i % 5) * factor))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "TICK_S", 0.0)
    monkeypatch.delenv("TASK_KEEPALIVE_S", raising=False)


def spec(task: str = "rollback_sensor", *, max_seconds: float = 5.0, permille: int = 100, **changes: Any) -> Spec:
    step = replace(POLICY.rollout.steps[1], permille=permille, min_seconds=0.0, max_seconds=max_seconds)
    limits = {
        "step": section(step),
        "rollout": section(replace(POLICY.rollout, indifferent_below_ms=10.0, **changes)),
        "trigger": section(POLICY.trigger),
        "shadow": section(replace(POLICY.shadow, min_seconds=0.0, max_seconds=max_seconds)),
    }
    bundle = Bundle(uri="file:///b", sha256="0")
    return Spec(
        task=task,
        model="digits",
        version=2,
        delivery=HOLDER,
        evidence_uri="file:///e",
        stable=Stable(version=1, bundle=bundle),
        limits=limits,
    )


def run(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: Any = rollback_sensor, **changes: Any) -> Decision:
    monkeypatch.setattr(task.Director, "from_env", lambda: gateway)
    if task is shadow:
        recorder = changes.pop("recorder", FakeRecorder())
        monkeypatch.setattr(task.Recorder, "from_env", lambda: recorder)
    return task.run(spec(**changes), tmp_path)


def outcome(decision: Decision) -> Outcome:
    return worst(each.outcome for each in decision.findings)


def test_a_good_candidate_passes_and_keeps_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Enough clean and quick answers pass the step; the split stays for the next one, and the evidence is written."""
    gateway = Gateway()
    decision = run(gateway, monkeypatch, tmp_path)
    assert (outcome(decision), gateway.permille) == (Outcome.PASSED, 100)
    assert len(RolloutLog.read(tmp_path / "requests.parquet").of(2)) == decision.outputs["requests"] > 0


def test_a_failing_candidate_is_taken_back_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Errors surely above the limit: the watch itself puts all traffic back on stable, within a few looks, and says how fast."""
    gateway = Gateway(fails=lambda i: i % 5 == 0)
    decision = run(gateway, monkeypatch, tmp_path)
    assert (outcome(decision), gateway.history) == (Outcome.FAILED, [100, 0])
    assert gateway.renewals <= 2
    assert decision.outputs["failures"] > 0
    assert "first_failure_to_stable_s" in decision.outputs


def test_a_slow_candidate_is_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A candidate that is surely more than 10 % slower than stable is taken back though nothing fails."""
    gateway = Gateway(slow=2.0)
    decision = run(gateway, monkeypatch, tmp_path)
    assert (outcome(decision), gateway.permille) == (Outcome.FAILED, 0)
    assert {each.name: each.outcome for each in decision.findings}["latency_mean"] is Outcome.FAILED


def test_without_traffic_nothing_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No requests at the candidate until the deadline: inconclusive, and the share is taken back."""
    gateway = Gateway(per_look=0)
    decision = run(gateway, monkeypatch, tmp_path, max_seconds=0.1)
    assert (outcome(decision), gateway.permille) == (Outcome.INCONCLUSIVE, 0)


def test_a_lost_lease_is_asked_for_again_with_the_same_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a director's restart the watch goes on at the share it had; it never asks for more."""
    gateway = Gateway()
    gateway.lose = {2}
    assert outcome(run(gateway, monkeypatch, tmp_path)) is Outcome.PASSED
    assert gateway.history == [100, 100]


def test_a_lease_that_keeps_being_lost_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lease lost again and again ends the watch without a verdict, on stable."""
    gateway = Gateway(per_look=0)
    gateway.lose = set(range(1, 100))
    with pytest.raises(LeaseLost):
        run(gateway, monkeypatch, tmp_path)
    assert gateway.permille == 0


def test_a_director_that_is_away_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Looks without an answer bring no evidence and no verdict; the watch goes on when the director is back."""
    gateway = Gateway()
    gateway.unreachable = {2, 3}
    assert outcome(run(gateway, monkeypatch, tmp_path)) is Outcome.PASSED


def test_a_refusal_is_told_even_if_the_director_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A candidate that was judged failed stays failed when its release cannot be confirmed; it never gets a second try by that."""
    gateway = Gateway(fails=lambda i: i % 5 == 0)

    def gone(*args: Any) -> None:
        raise DirectorUnreachable("gone")

    gateway.release = gone  # type: ignore[method-assign]
    assert outcome(run(gateway, monkeypatch, tmp_path)) is Outcome.FAILED


def test_what_the_candidate_answered_before_the_watch_began_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the moment of the shift every request is evidence, also those before the sensor's process was up."""
    gateway = Gateway(per_look=0)
    now_s = time.time()
    gateway.rows += [Row(500 + i, now_s - 2, 2, False, 20.0) for i in range(3)]
    gateway.rows += [Row(600 + i, now_s - 30, 2, True, 20.0) for i in range(3)]
    monkeypatch.setattr(rollback_sensor.Director, "from_env", lambda: gateway)
    decision = rollback_sensor.run(replace(spec(), inputs={"shifted_unix_s": now_s - 5}), tmp_path)
    assert (outcome(decision), decision.outputs["requests"], decision.outputs["failures"]) == (Outcome.FAILED, 3, 3)


def test_another_holder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A split that another delivery holds is never judged as ours."""
    gateway = Gateway()

    def held(*args: Any) -> None:
        raise LeaseHeld("held", "somebody else")

    gateway.put_split = held  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld):
        run(gateway, monkeypatch, tmp_path)


def test_a_watch_that_nobody_waits_for_takes_the_candidate_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the trigger's sign of life is too old, the split is released and there is no verdict."""
    gateway = Gateway(per_look=0)
    (tmp_path / "keepalive").touch()
    os.utime(tmp_path / "keepalive", (time.time() - 60, time.time() - 60))
    monkeypatch.setenv("TASK_KEEPALIVE_S", "6")
    monkeypatch.setenv("TASK_OUT", str(tmp_path))
    with pytest.raises(rollout.Abandoned, match="nobody has waited"):
        run(gateway, monkeypatch, tmp_path)
    assert gateway.permille == 0


def test_a_newer_version_takes_the_place_if_the_policy_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under `supersedes` a newer wanted version ends the rollout as failed, naming it; under `waits` nobody asks."""

    class Registry:
        def newer_wanted(self, *args: Any) -> int:
            return 3

    monkeypatch.setattr(rollout.Registry, "from_env", Registry)
    gateway = Gateway()
    decision = run(gateway, monkeypatch, tmp_path, newer="supersedes")
    assert (outcome(decision), gateway.permille) == (Outcome.FAILED, 0)
    assert "v3 arrived" in {each.name: each.why for each in decision.findings}["not_superseded"]
    assert outcome(run(Gateway(), monkeypatch, tmp_path)) is Outcome.PASSED


def test_a_step_without_stable_or_with_a_wrong_limit_is_a_bad_spec(tmp_path: Path) -> None:
    """A spec that cannot be watched is refused before any traffic moves, naming what is missing."""
    with pytest.raises(BadSpec, match="needs a stable version"):
        rollback_sensor.run(replace(spec(), stable=None), tmp_path)
    with pytest.raises(BadSpec, match=r"needs limits\.step"):
        rollback_sensor.run(replace(spec(), limits={}), tmp_path)
    with pytest.raises(BadSpec, match=r"unknown key step\.share"):
        rollback_sensor.run(replace(spec(), limits={**spec().limits, "step": {"share": 1}}), tmp_path)


def test_a_shift_is_set_then_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shift passes only when the director reads back the share that was asked for."""
    gateway = Gateway()
    assert outcome(run(gateway, monkeypatch, tmp_path, traffic_shift)) is Outcome.PASSED
    gateway.put_split = lambda *args: None  # type: ignore[method-assign]
    gateway.permille = 10
    assert outcome(run(gateway, monkeypatch, tmp_path, traffic_shift)) is Outcome.FAILED


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        (Gateway(), Outcome.PASSED),
        (Gateway(fails=lambda i: i % 5 == 0), Outcome.FAILED),
        (Gateway(per_look=0), Outcome.INCONCLUSIVE),
        (Gateway(per_look=-1), Outcome.INCONCLUSIVE),
    ],
)
def test_a_mirror_is_judged_by_the_candidates_own_endpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gateway: Gateway, expected: Outcome
) -> None:
    """Mirrored requests pass, fail or leave it open by counters; counters that fall are no evidence; the mirror is always off after."""
    decision = run(gateway, monkeypatch, tmp_path, shadow, max_seconds=0.3 if expected is Outcome.INCONCLUSIVE else 10.0)
    assert (outcome(decision), gateway.mirror) == (expected, 0)


def test_a_mirror_is_renewed_at_every_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same share is put at each look, with the policy's time to live, and taken back at the end."""
    gateway = Gateway(per_look=1)
    run(gateway, monkeypatch, tmp_path, shadow, max_seconds=0.3)
    assert gateway.history[-1] == 0
    assert set(gateway.history[:-2]) == {POLICY.shadow.permille}
    assert len(gateway.history) > 3


def test_a_mirror_outlives_a_short_absence_of_the_director(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first looks bring nothing, and the mirror is put again as soon as somebody answers."""
    gateway = Gateway()
    gateway.unreachable = {2, 3}
    decision = run(gateway, monkeypatch, tmp_path, shadow, max_seconds=5.0)
    assert (outcome(decision), gateway.mirror) == (Outcome.PASSED, 0)


@pytest.mark.parametrize(
    ("recorder", "expected", "said"),
    [
        (FakeRecorder(makes=lambda i: pair(flipped=i % 20 == 0)), Outcome.PASSED, "paired_disagreement"),
        (FakeRecorder(restarts_at=40), Outcome.PASSED, "paired_requests"),
        (FakeRecorder(makes=lambda i: pair(flipped=i % 2 == 0)), Outcome.FAILED, "paired_disagreement"),
        (FakeRecorder(makes=lambda i: pair(state="candidate_silent", why="candidate: UNAVAILABLE")), Outcome.FAILED, "paired_disagreement"),
        (FakeRecorder(makes=lambda i: pair(state="unfinite" if i == 9 else "compared")), Outcome.FAILED, "paired_finite"),
        (FakeRecorder(makes=lambda i: pair(candidate=3)), Outcome.INCONCLUSIVE, "paired_requests"),
        (None, Outcome.INCONCLUSIVE, "paired_requests"),
    ],
)
def test_a_mirror_is_judged_by_pairs_of_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorder: FakeRecorder | None, expected: Outcome, said: str
) -> None:
    """A few percent of other answers pass, many or one NaN fail; another version's pairs, or no recorder, leave it open."""
    max_seconds = 0.3 if expected is Outcome.INCONCLUSIVE else 10.0
    decision = run(Gateway(), monkeypatch, tmp_path, shadow, max_seconds=max_seconds, recorder=recorder)
    assert outcome(decision) == expected
    assert said in {each.name for each in decision.findings if each.outcome == expected}


def test_a_director_that_stays_away_ends_the_mirrors_watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An error of ours and no verdict; the mirror has lapsed by then."""
    monkeypatch.setattr(shadow, "PATIENCE_S", 0.0)
    gateway = Gateway()
    gateway.unreachable = set(range(2, 50))
    with pytest.raises(DirectorUnreachable):
        run(gateway, monkeypatch, tmp_path, shadow, max_seconds=5.0)


def test_one_false_alarm_budget_covers_mirror_and_steps() -> None:
    """The parts of all metrics, the mirror's included, add up to the policy's `false_alarm` and no more."""
    assert math.isclose(math.fsum(PARTS.values()) + SHADOW_PART, 1)


def test_evidence_of_earlier_steps_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second step's watch goes on from the first one's file: failures seen there are not forgotten, nor are clean answers."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    gateway = Gateway()
    before = run(gateway, monkeypatch, first)
    carried = {"observed_uri": (first / "requests.parquet").as_uri(), "observed_sha256": before.outputs["observed_sha256"]}
    gateway.per_look = 1
    decision = rollback_sensor.run(replace(spec(permille=500), inputs=carried), second)
    assert outcome(decision) is Outcome.PASSED
    seen = RolloutLog.read(second / "requests.parquet").of(2)
    assert len(seen) == before.outputs["requests"] + decision.outputs["requests"]
    assert len({row.number for row in seen}) == len(seen)


def test_evidence_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The digest that the step before put out must be that of the bytes."""
    run(Gateway(), monkeypatch, tmp_path)
    inputs = {"observed_uri": (tmp_path / "requests.parquet").as_uri(), "observed_sha256": "0" * 64}
    gateway = Gateway()
    monkeypatch.setattr(rollback_sensor.Director, "from_env", lambda: gateway)
    with pytest.raises(BadSpec, match="refusing to read it"):
        rollback_sensor.run(replace(spec(), inputs=inputs), tmp_path)


def test_lost_rows_are_a_gap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was seen before rows were lost passes nothing any more: as much must be shown again, here until the deadline."""
    gateway = Gateway()
    answer = gateway.observations
    gateway.observations = lambda model, after=0: replace(answer(model, after), gaps=gateway.renewals)  # type: ignore[method-assign]
    decision = run(gateway, monkeypatch, tmp_path, max_seconds=0.5)
    assert (outcome(decision), gateway.permille) == (Outcome.INCONCLUSIVE, 0)


def test_a_look_takes_one_page_of_a_stream_that_never_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows that come as fast as they are read do not keep the watch from judging and renewing."""
    gateway = Gateway()
    answer = gateway.observations

    def endless(model: str, after: int = 0) -> Rows:
        gateway._second()
        return answer(model, after)

    gateway.observations = endless  # type: ignore[method-assign]
    assert outcome(run(gateway, monkeypatch, tmp_path)) is Outcome.PASSED


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    """Evidence is compared by digest."""
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        log = RolloutLog(stable=1, candidate=2)
        log.add(Row(n, 1000.0 + n, 1 + n % 2, True, 5.0) for n in range(100))
        digests.append(log.write(tmp_path / name))
    assert digests[0] == digests[1]


def test_a_clock_set_back_is_a_gap_and_time_goes_on(tmp_path: Path) -> None:
    """Rows that seem to come from an hour before are later all the same; what was seen until then counts against the candidate only."""
    log = RolloutLog(stable=1, candidate=2)
    log.add(Row(n, 10_000.0 + n, 2, True, 5.0) for n in range(5))
    log.add(Row(5 + n, 6_400.0 + n, 2, True, 5.0) for n in range(5))
    evidence = log.evidence(step_since_s=0.0)
    assert (len(log.gaps_unix_s), evidence.candidate.readable, len(evidence.whole.candidate)) == (1, True, 4)
    log.write(tmp_path)
    assert RolloutLog.read(tmp_path / "requests.parquet") == log


def test_rows_that_come_late_find_their_place() -> None:
    """Whether the rows were taken at once or look by look, in the order of their end or not: the same columns, in order of beginning."""
    rows = [Row(n, 1000.0 + (n * 7) % 13, 1 + n % 2, n % 5 > 0, 5.0 + n, f"s{n % 3}") for n in range(60)]
    once, often = RolloutLog(stable=1, candidate=2), RolloutLog(stable=1, candidate=2)
    once.add(rows)
    for start in range(0, 60, 7):
        often.add(rows[start : start + 7])
        often.evidence(step_since_s=0.0)
    here, there = (each.evidence(step_since_s=0.0) for each in (once, often))
    for a, b in ((here.candidate, there.candidate), (here.stable, there.stable)):
        assert [a.unix_s.tolist(), a.ok.tolist(), a.latency_ms.tolist()] == [b.unix_s.tolist(), b.ok.tolist(), b.latency_ms.tolist()]
        assert a.readable
    assert here.slices.tolist() == there.slices.tolist()
