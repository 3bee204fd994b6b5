"""The always-valid judges of latency: surely slower, surely not, or not known yet; whatever the unit, whoever looks and whenever."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_findings import expected, in_full

from validation.contract import Finding, Outcome
from validation.latencies import latency_not_worse
from validation.served import Served

STATISTICS = ("mean", "median", "p99")


def served(rate, seconds, *, times=1.0, start_s=0.0, sigma=0.5, correlation=0.0, seed=0) -> Served:
    """Log-normal latencies about 20 ms, an AR(1) in the order of the requests."""
    random = np.random.default_rng(seed)
    n = int(rate * seconds)
    noise = random.normal(size=n) * math.sqrt(1 - correlation**2)
    for at in range(1, n if correlation else 0):
        noise[at] += correlation * noise[at - 1]
    unix_s = start_s + np.sort(random.random(n)) * seconds
    return Served(unix_s=unix_s, ok=np.ones(n, bool), latency_ms=20 * times * np.exp(sigma * noise))


def joined(*parts: Served) -> Served:
    columns = {name: np.concatenate([getattr(each, name) for each in parts]) for name in ("unix_s", "ok", "latency_ms")}
    return Served(**columns)


def judged(candidate, stable, statistic="mean", **changes) -> Finding:
    numbers = {"worse": 0.1, "exclude": 0.2, "indifferent_below_ms": 0.0, "false_alarm": 0.01, "miss": 0.05} | changes
    return latency_not_worse(name="latency", statistic=statistic, candidate=candidate, stable=stable, **numbers)


def scaled(each: Served, unit: float) -> Served:
    return Served(unix_s=each.unix_s, ok=each.ok, latency_ms=each.latency_ms * unit)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_candidate_twice_as_slow_is_found(statistic):
    """In each of the three ways to look at latency, within a minute at ten requests a second."""
    finding = judged(served(20, 60, times=2, seed=1), served(180, 60, seed=2), statistic)
    assert (finding.outcome, finding.observed > 1.5) == (Outcome.FAILED, True)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_like_candidate_is_shown_not_to_be_slower(statistic):
    """With enough requests 20 % more is excluded."""
    assert judged(served(100, 60, seed=1), served(100, 60, seed=2), statistic).outcome is Outcome.PASSED


@pytest.mark.parametrize("statistic", STATISTICS)
def test_between_the_margins_nothing_is_said(statistic):
    """15 % slower is neither surely more than 10 % nor surely less than 20 % in a minute of thin traffic."""
    finding = judged(served(2, 60, times=1.15, seed=1), served(18, 60, seed=2), statistic)
    assert (finding.outcome, bool(finding.advice)) == (Outcome.INCONCLUSIVE, True)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("times", [1.0, 1.12, 1.3])
def test_the_unit_changes_nothing(statistic, unit, times):
    """Microseconds or hours: the same outcome, with the floor in the same unit."""
    candidate, stable = served(30, 40, times=times, seed=3), served(90, 40, seed=4)
    here = judged(candidate, stable, statistic, indifferent_below_ms=15.0)
    there = judged(scaled(candidate, unit), scaled(stable, unit), statistic, indifferent_below_ms=15.0 * unit)
    assert (there.outcome, there.observed) == (here.outcome, pytest.approx(here.observed))


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("column", ["unix_s", "latency_ms"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_that_cannot_be_read_is_never_passed(statistic, column, value, side):
    """NaN, infinity, below zero or out of order, on either side."""
    sides = [served(100, 60, seed=1), served(100, 60, seed=2)]
    columns = {name: getattr(sides[side], name).copy() for name in ("unix_s", "ok", "latency_ms")}
    columns[column][500] = value
    sides[side] = Served(**columns)
    assert judged(*sides, statistic).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("rows", "stable_rows"), [(0, 1000), (1000, 0), (5, 1000), (1000, 5), (0, 0)])
def test_too_few_rows_say_nothing(statistic, rows, stable_rows):
    """Of either version; the advice says how many are needed."""
    finding = judged(served(rows, 1, times=5, seed=1), served(stable_rows, 1, seed=2), statistic)
    assert (finding.outcome, "wait for" in finding.advice) == (Outcome.INCONCLUSIVE, True)


@given(seed=st.integers(0, 1000), statistic=st.sampled_from(STATISTICS))
@settings(max_examples=25, deadline=None)
def test_failed_stays_failed(seed, statistic):
    """Whoever looks later gets the same answer, however well the candidate does from then on."""
    candidate, stable = served(20, 30, times=1.6, seed=seed), served(180, 30, seed=seed + 1)
    if judged(candidate, stable, statistic).outcome is Outcome.FAILED:
        later = (served(20, 30, times=0.5, start_s=30, seed=seed + 2), served(180, 30, start_s=30, seed=seed + 3))
        assert judged(joined(candidate, later[0]), joined(stable, later[1]), statistic).outcome is Outcome.FAILED


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_slow_hour_that_both_share_is_nobodys_fault(statistic):
    """Everything takes three times as long while the candidate has half of the traffic instead of a tenth."""
    candidate = joined(served(10, 60, seed=1), served(50, 60, times=3, start_s=60, seed=2))
    stable = joined(served(90, 60, seed=3), served(50, 60, times=3, start_s=60, seed=4))
    assert judged(candidate, stable, statistic).outcome is not Outcome.FAILED


@pytest.mark.parametrize("statistic", STATISTICS)
def test_with_all_of_the_traffic_a_gross_slowdown_is_still_seen(statistic):
    """At 100 % there are only stable's earlier rows to compare with."""
    before = served(50, 60, seed=1), served(50, 60, seed=2)
    slow, like = (served(100, 60, times=each, start_s=70, seed=3) for each in (3.0, 1.0))
    assert judged(joined(before[0], slow), before[1], statistic).outcome is Outcome.FAILED
    assert judged(joined(before[0], like), before[1], statistic).outcome is Outcome.PASSED


def paused(each: Served, starts_s, length_s=0.3) -> Served:
    """Requests that begin in a pause wait for its end as well."""
    ends_s = np.asarray(starts_s)[np.searchsorted(starts_s, each.unix_s, side="right") - 1] + length_s
    waited_s = np.where(each.unix_s >= starts_s[0], np.maximum(ends_s - each.unix_s, 0), 0)
    return Served(unix_s=each.unix_s, ok=each.ok, latency_ms=each.latency_ms + 1000 * waited_s)


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("shared", [True, False], ids=["one machine", "two machines"])
def test_pauses_that_hit_both_alike_are_nobodys_fault(share, shared):
    """A pause hits dozens of stable's requests in a row and one or two of a thin candidate's: that is the same rate of slow requests."""
    failed = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        pauses = [np.cumsum(random.exponential(10, 60)) for _ in range(2)]
        candidate = paused(served(200 * share, 120, seed=2 * seed), pauses[0])
        stable = paused(served(200 * (1 - share), 120, seed=2 * seed + 1), pauses[0 if shared else 1])
        failed += judged(candidate, stable, "p99").outcome is Outcome.FAILED
    assert failed <= 1


def test_one_pause_is_one_event():
    """However many requests it hits, a p99 is not surely worse for it."""
    assert judged(paused(served(100, 60, seed=1), [20.0], 2.0), served(100, 60, seed=2), "p99").outcome is not Outcome.FAILED


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_wave_that_both_share_is_nobodys_fault_when_stable_has_left(statistic):
    """All latencies rise and fall by a quarter within seconds, while the candidate has all of the traffic: a wave is no trend."""
    failed = 0
    for seed in range(20):
        wave = np.repeat(np.exp(0.25 * np.random.default_rng(seed).normal(size=130)), 2)

        def waved(each: Served, wave=wave) -> Served:
            return Served(unix_s=each.unix_s, ok=each.ok, latency_ms=each.latency_ms * wave[each.unix_s.astype(int)])

        candidate = joined(served(10, 60, seed=3 * seed), served(100, 60, start_s=61, seed=3 * seed + 1))
        failed += judged(waved(candidate), waved(served(90, 60, seed=3 * seed + 2)), statistic).outcome is Outcome.FAILED
    assert failed <= 1


@pytest.mark.parametrize("statistic", STATISTICS)
def test_answers_faster_than_the_floor_are_equally_good(statistic):
    """3 ms against 1 ms, where all below 10 ms is alike: passed."""
    candidate, stable = scaled(served(100, 60, seed=1), 0.15 / 4), scaled(served(100, 60, seed=2), 0.05 / 4)
    assert judged(candidate, stable, statistic, indifferent_below_ms=10.0).outcome is Outcome.PASSED
    assert judged(candidate, stable, statistic).outcome is Outcome.FAILED


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_a_candidate_at_the_limit_is_rarely_taken_back(statistic, correlation):
    """Exactly 10 % slower, requests alike or not: at most 1 % of 80 runs, give or take what 80 can tell."""
    failed = 0
    for seed in range(80):
        candidate = served(5, 60, times=1.1, correlation=correlation, seed=2 * seed)
        failed += judged(candidate, served(45, 60, correlation=correlation, seed=2 * seed + 1), statistic).outcome is Outcome.FAILED
    assert failed <= 4


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_candidate_at_the_margin_is_rarely_passed(statistic):
    """Exactly 20 % slower: passed in at most 5 % of 80 runs, give or take."""
    runs = [judged(served(20, 40, times=1.2, seed=2 * n), served(80, 40, seed=2 * n + 1), statistic).outcome for n in range(80)]
    assert sum(each is Outcome.PASSED for each in runs) <= 10


@pytest.mark.parametrize("numbers", [{"worse": -0.1}, {"exclude": 0.1}, {"false_alarm": 0.0}, {"miss": 1.0}])
def test_numbers_that_make_no_sense_are_refused(numbers):
    """A margin that is not above the limit, a chance of 0 or 1."""
    with pytest.raises(ValueError, match="make no sense together"):
        judged(served(10, 10), served(10, 10), **numbers)


WHOLE = {
    "slower": lambda statistic: judged(served(20, 60, times=2.0, seed=1), served(100, 60, seed=2), statistic),
    "like": lambda statistic: judged(served(50, 200, seed=3), served(50, 200, seed=4), statistic),
    "not known": lambda statistic: judged(served(5, 20, times=1.15, seed=5), served(50, 20, seed=6), statistic),
    "alone": lambda statistic: judged(served(50, 60, times=3.0, start_s=100.0, seed=7), served(50, 60, seed=8), statistic),
    "few": lambda statistic: judged(served(1, 4, seed=9), served(1, 4, seed=10), statistic),
}


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case, statistic):
    """Every word and number of a finding is what people were promised."""
    assert in_full(WHOLE[case](statistic)) == expected("latencies", f"{case}, {statistic}")
