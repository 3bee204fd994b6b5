"""The always-valid judges of error counts: surely above, surely excluded, or not known yet; whoever looks, and whenever."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_findings import expected, in_full

from validation.contract import Finding, Outcome
from validation.error_rates import (
    ABOVE,
    HIGHEST,
    LONG,
    OVERSHOOT,
    SMALL_LIMIT,
    Tally,
    _Beside,
    _evidence,
    _evidence_of_rise,
    _upper_rates,
    clean_requests_to_exclude,
    disagreement_below,
    error_rate_below,
    error_rate_not_above,
    lower_rate,
    score_shift_within,
    surely_above_at,
    upper_rate,
)
from validation.served import Served

ROWS = st.lists(st.booleans(), max_size=300).map(lambda rows: np.array(rows, bool))


def below(failed, **changes) -> Finding:
    numbers = {"limit": 0.001, "exclude": 0.01, "false_alarm": 0.01, "miss": 0.05} | changes
    return error_rate_below(name="errors", failed=np.asarray(failed, bool), **numbers)


def served(ok, *, seconds: float = 100.0) -> Served:
    ok = np.asarray(ok, bool)
    return Served(unix_s=np.linspace(0, seconds, len(ok)), ok=ok, latency_ms=np.full(len(ok), 20.0))


def against(candidate, stable, **changes) -> Finding:
    numbers = {"rise": 0.001, "exclude": 0.01, "false_alarm": 0.01, "miss": 0.05} | changes
    return error_rate_not_above(name="rise", candidate=candidate, stable=stable, **numbers)


def chance_to_cross(limit: float, chance: float, counted: int) -> float:
    """Exact: over all ways that so many independent requests at the limit can go, the part whose evidence ever reaches the threshold."""
    bursts = np.arange(counted + 1)
    most = min(60, counted)
    alive, crossed = np.zeros(most + 1), 0.0
    alive[0] = 1.0
    for n in range(1, counted + 1):
        evidence = _evidence(bursts[1 : most + 1], np.full(most, n), limit, ABOVE)
        over = (evidence >= math.log(OVERSHOOT / chance)) & (bursts[1 : most + 1] <= n)
        falls = alive[:-1] * limit
        crossed += falls[over].sum()
        alive *= 1 - limit
        alive[1:] += np.where(over, 0, falls)
    return float(crossed)


@pytest.mark.parametrize("chance", [0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.01, 0.02, 0.05])
def test_the_threshold_keeps_the_budget_exactly(chance):
    """At the greatest limit that the lowered threshold is used for, the exact chance of a false alarm is within the budget.

    `LONG` of it is for bursts that do not end, of which independent failures have none.
    """
    begins = (1 - LONG) * chance
    assert chance_to_cross(SMALL_LIMIT, begins, 6000) <= begins


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("limit", [0.02, 0.1, 0.3])
def test_all_sequences_together_keep_the_budget(limit, correlation):
    """The chances of all 4,096 sequences of twelve requests at the limit that are ever failed add up to the budget at most."""
    failing = [each for each in itertools.product([False, True], repeat=12) if surely_above_at(np.array(each), limit, 0.3) is not None]
    assert failing
    assert math.fsum(chance_of(each, limit, correlation) for each in failing) <= 0.3


def chance_of(sequence, rate, correlation) -> float:
    """Chance of this sequence in a stationary Markov chain of failures."""
    after = {False: (1 - correlation) * rate, True: correlation + (1 - correlation) * rate}
    chances = [rate, *(after[before] for before in sequence[:-1])]
    return math.prod(each if failed else 1 - each for each, failed in zip(chances, sequence, strict=True))


@given(rows=ROWS, at=st.integers(0, 299))
@settings(max_examples=40)
def test_one_more_failure_never_helps(rows, at):
    """Where a request fails that did not, after at least one that did not either, the outcome is as bad or worse."""
    if len(rows) < 2 or not 0 < at < len(rows) - 1 or rows[at - 1 : at + 2].any():
        return
    worse = rows.copy()
    worse[at] = True
    assert below(worse).outcome >= below(rows).outcome


@given(rows=ROWS, more=ROWS)
@settings(max_examples=40)
def test_failed_stays_failed(rows, more):
    """The verdict holds for every later look: it says that at some prefix the limit was surely broken."""
    if below(rows).outcome is Outcome.FAILED:
        assert below(np.concatenate([rows, more])).outcome is Outcome.FAILED


@given(length=st.integers(1, 15), before=st.integers(0, 300))
@settings(max_examples=40)
def test_a_burst_counts_once(length, before):
    """A few failures in a row are one event: what one failure shows at that place, its whole burst shows, and no more."""
    clean = np.zeros(before, bool)
    once, burst = np.concatenate([clean, [True]]), np.concatenate([clean, np.ones(length, bool)])
    assert (surely_above_at(once, 0.001, 0.01) is None) == (surely_above_at(burst, 0.001, 0.01) is None)


@pytest.mark.parametrize("chance", [0.0045, 0.01])
@pytest.mark.parametrize("before", [1, 4, 10, 100, 1000, 100_000])
def test_a_server_that_dies_after_good_service_is_found(before, chance):
    """However many requests went well before, some twenty failures in a row are longer than a correlation of 0.6 explains."""
    failed = np.arange(before + 100) >= before
    assert surely_above_at(failed, 0.001, chance) <= before + 20


def test_earlier_failures_do_not_hide_that_a_server_dies():
    """After fifty failures, each alone, among 100,000 requests it takes some thirty in a row."""
    failed = np.concatenate([np.arange(100_000) % 2000 == 7, np.ones(100, bool)])
    assert surely_above_at(failed, 0.001, 0.01) <= 100_000 + 35


@pytest.mark.parametrize("rows", [np.zeros(5000), np.full(5000, math.nan), np.zeros((5000, 1), bool), np.array([None] * 5000)])
def test_rows_that_are_not_true_or_false_are_no_evidence(rows):
    """Numbers, NaN, tables and None are no list of requests that went well."""
    finding = error_rate_below(name="errors", failed=rows, limit=0.001, exclude=0.01, false_alarm=0.01, miss=0.05)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert finding.advice


def test_nothing_is_no_pass():
    """No rows: inconclusive, with the number of requests that would do."""
    finding = below([])
    assert (finding.outcome, finding.n) == (Outcome.INCONCLUSIVE, 0)
    assert f"about {clean_requests_to_exclude(0.01, 0.05)} more requests" in finding.advice


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.5])
def test_as_many_clean_requests_pass_as_the_advice_says(rate):
    """One fewer does not."""
    needed = clean_requests_to_exclude(rate, 0.05)
    assert below(np.zeros(needed, bool), exclude=rate).outcome is Outcome.PASSED
    assert below(np.zeros(needed - 1, bool), exclude=rate).outcome is Outcome.INCONCLUSIVE


def test_a_version_that_fails_outright_is_found_at_its_first_request():
    """At 1 % budget and a limit of 0.1 % one failure at once is enough; among a hundred it is not."""
    assert below([True]).outcome is Outcome.FAILED
    assert below(np.arange(100) == 50).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_bursts_do_not_break_the_budget(correlation):
    """Failures at the limit, alone or in bursts (a Markov chain): at most 1 % of runs fail, by simulation of 2,000."""
    random, limit, alarms = np.random.default_rng(5), 0.001, 0
    for _ in range(2000):
        failed = np.zeros(2000, bool)
        for start in np.flatnonzero(random.random(2000) < (1 - correlation) * limit):
            failed[start : start + random.geometric(1 - correlation - (1 - correlation) * limit)] = True
        alarms += surely_above_at(failed, limit, 0.01) is not None
    assert alarms <= 20 + 3 * math.sqrt(20)


def test_a_rate_at_the_margin_is_rarely_passed():
    """Looked at after each of 1,000 requests, a version that fails as often as the margin is passed in at most 5 % of runs."""
    random, n, passed = np.random.default_rng(6), np.arange(1, 1001), 0
    for _ in range(300):
        failed = random.random(1000) < 0.01
        passed += bool((_upper_rates(np.cumsum(failed), n, np.ones(1000), 0.05) < 0.01).any())
    assert passed <= 15 + 3 * math.sqrt(15)


@given(failures=st.integers(1, 50), n=st.integers(100, 100_000))
@settings(max_examples=50)
def test_the_bounds_lie_around_what_was_seen(failures, n):
    """Lower below, upper above, both rates; a smaller chance to err widens them."""
    tally = Tally(failures=failures, n=n, bursts=failures, counted=n)
    assert (
        0 <= lower_rate(tally, 0.001) <= lower_rate(tally, 0.01) <= failures / n <= upper_rate(tally, 0.05) <= upper_rate(tally, 0.01) < 1
    )


def test_no_alternative_is_a_rate_above_one():
    """Limits of any size give finite evidence."""
    for limit in (1e-6, 0.002, 0.1, 0.45, 0.89):
        evidence = _evidence(np.array([1, 5]), np.array([10, 10]), limit, ABOVE)
        assert not np.isnan(evidence).any()
    assert HIGHEST < 1


@pytest.mark.parametrize(("rate", "base", "n", "times"), [(0.05, 0.005, 600, 9), (0.05, 0.005, 900, 1), (0.005, 0.0005, 4500, 9)])
def test_a_rise_tenfold_is_found_at_any_share(rate, base, n, times):
    """Ten times stable's rate is failed within 30 to 40 of the candidate's failures in most runs, at a tenth and at half of the traffic."""
    random = np.random.default_rng(7)
    pairs = ((served(random.random(n) > rate, seconds=n), served(random.random(n * times) > base, seconds=n)) for _ in range(40))
    assert sum(against(*pair, rise=base, exclude=0.2).outcome is Outcome.FAILED for pair in pairs) >= 34


@pytest.mark.parametrize("times", [1, 9])
def test_a_rise_of_the_margin_keeps_the_false_alarm(times):
    """With stable's rate plus `rise` as the truth, at most the budget (5 % here) is failed at any of 1,500 requests."""
    random, taken = np.random.default_rng(8), 0
    for _ in range(200):
        sides = (served(random.random(1500) > 0.006, seconds=1500), served(random.random(1500 * times) > 0.005, seconds=1500))
        taken += bool((_evidence_of_rise(_Beside.of(*sides), 0.001) >= math.log(20)).any())
    assert taken <= 10


def test_a_candidate_that_fails_more_than_stable_is_found():
    """5 % against 0.1 %: surely more than a rise of 0.1 %."""
    random = np.random.default_rng(1)
    finding = against(served(random.random(400) > 0.05), served(random.random(3600) > 0.001))
    assert finding.outcome is Outcome.FAILED
    assert finding.interval[0] > 0.001


@pytest.mark.parametrize(("early", "late"), [(10, 10), (1, 50), (50, 90)])
def test_an_outage_that_both_suffer_is_not_the_candidates_fault(early, late):
    """When for a minute a twentieth of all requests fails, an equal candidate stays, also when its share has just grown."""
    random = np.random.default_rng(9)
    pairs = ((in_an_outage(random, early, late), in_an_outage(random, 100 - early, 100 - late)) for _ in range(25))
    assert sum(against(*pair).outcome is Outcome.FAILED for pair in pairs) <= 1


def in_an_outage(random, early, late) -> Served:
    """Two minutes at `early` requests a second, two at `late`; the outage is in the third."""
    times = np.sort(np.concatenate([random.uniform(0, 120, 120 * early), random.uniform(120, 240, 120 * late)]))
    rates = np.where((times > 120) & (times < 180), 0.05, 0.0005)
    return Served(unix_s=times, ok=random.random(len(times)) >= rates, latency_ms=np.ones(len(times)))


@pytest.mark.parametrize("before_s", [60, 100, 200])
def test_a_rise_that_was_found_stays_found(before_s):
    """Requests that come later, also within the same window, do not take the verdict back."""
    random, failed = np.random.default_rng(10), 0
    for _ in range(8):
        sides = [served(random.random(n) > rate, seconds=300.0) for n, rate in ((3000, 0.08), (3000, 0.005))]
        early = against(*(side.where(side.unix_s < before_s) for side in sides)).outcome is Outcome.FAILED
        failed += early
        assert not early or against(*sides).outcome is Outcome.FAILED
    assert failed


def test_versions_that_fail_alike_are_not_told_apart():
    """Both at 2 %: the rise is excluded, though the rate itself is high."""
    random = np.random.default_rng(2)
    finding = against(served(random.random(40_000) > 0.02), served(random.random(40_000) > 0.02), exclude=0.01)
    assert finding.outcome is Outcome.PASSED


@pytest.mark.parametrize(("candidate", "stable"), [([], [True] * 50), ([True] * 5000, [])])
def test_without_both_sides_there_is_no_comparison(candidate, stable):
    """No requests on either side: inconclusive."""
    assert against(served(candidate), served(stable)).outcome is Outcome.INCONCLUSIVE


@given(ours=ROWS.filter(len), theirs=ROWS.filter(len))
@settings(max_examples=60, deadline=None)
def test_any_two_versions_can_be_compared(ours, theirs):
    """However few requests, however many of them failed: a finding with an interval around what was seen, and no crash."""
    finding = against(served(~ours), served(~theirs))
    assert -1 <= finding.interval[0] <= finding.interval[1] <= 1
    if len(ours) < 20:
        assert finding.outcome is not Outcome.PASSED


def test_times_that_cannot_be_read_are_no_evidence():
    """A clock that goes backwards, or is not a number, passes nothing."""
    good = served([True] * 5000)
    backwards = Served(unix_s=good.unix_s[::-1], ok=good.ok, latency_ms=good.latency_ms)
    unknown = Served(unix_s=good.unix_s * math.nan, ok=good.ok, latency_ms=good.latency_ms)
    assert against(good, good).outcome is Outcome.PASSED
    assert {against(each, good).outcome for each in (backwards, unknown)} == {Outcome.INCONCLUSIVE}


def test_disagreements_are_counted_as_failures_are():
    """The same rows, the same answer, in other words."""
    rows = np.arange(3000) % 40 == 7
    finding = disagreement_below(name="flips", disagreed=rows, limit=0.001, exclude=0.01, false_alarm=0.01, miss=0.05)
    assert (finding.outcome, "pairs of answers differ" in finding.why) == (below(rows).outcome, True)


def test_a_version_that_answers_everything_otherwise_is_failed():
    """All pairs differ: one long burst is no burst that chance explains."""
    finding = disagreement_below(name="flips", disagreed=np.ones(50, bool), limit=0.1, exclude=0.3, false_alarm=0.001, miss=0.05)
    assert finding.outcome is Outcome.FAILED


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, Outcome.PASSED), (0.2, Outcome.FAILED), (-0.2, Outcome.FAILED)])
def test_a_shift_of_scores_is_seen_in_either_direction(shift, outcome):
    """2,000 pairs with a spread of 0.1 show a mean shift of 0.2 and exclude one of 0.05."""
    differences = np.random.default_rng(3).normal(shift, 0.1, 2000).clip(-1, 1)
    finding = score_shift_within(name="shift", differences=differences, margin=0.02, exclude=0.05, false_alarm=0.01, miss=0.05)
    assert finding.outcome is outcome


@pytest.mark.parametrize("bad", [[], [math.nan] * 10, [1.5] * 10])
def test_scores_that_cannot_be_read_are_no_evidence(bad):
    """Empty, NaN, beyond the bound: inconclusive."""
    finding = score_shift_within(name="shift", differences=np.array(bad, float), margin=0.02, exclude=0.05, false_alarm=0.01, miss=0.05)
    assert finding.outcome is Outcome.INCONCLUSIVE


def test_a_shift_at_the_margin_keeps_both_chances():
    """A mean of exactly the margin is called too large in at most 1 % of 400 runs, and excluded, when it is `exclude`, in at most 5 %."""
    random = np.random.default_rng(4)
    runs = [random.choice([-0.5, 0.5], p=(0.475, 0.525), size=1500) for _ in range(400)]
    found = [
        score_shift_within(name="s", differences=r, margin=0.025, exclude=0.0250001, false_alarm=0.01, miss=0.05).outcome for r in runs
    ]
    assert sum(each is Outcome.FAILED for each in found) <= 4 + 6
    assert sum(each is Outcome.PASSED for each in found) <= 20 + 13


@pytest.mark.parametrize("numbers", [{"limit": 0.0}, {"limit": 0.02}, {"exclude": 0.0005}, {"false_alarm": 0.0}, {"miss": 1.0}])
def test_numbers_that_make_no_sense_are_refused(numbers):
    """A limit of nothing, a margin below the limit, a chance of 0 or 1."""
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        below([False], **numbers)


def _every(n: int, rows: int) -> np.ndarray:
    return np.arange(rows) % n == n - 1


def _shift(values: np.ndarray, **changes: float) -> Finding:
    numbers = {"margin": 0.05, "exclude": 0.15, "false_alarm": 0.01, "miss": 0.05} | changes
    return score_shift_within(name="shift", differences=values, **numbers)


WHOLE = {
    "below, passed": lambda: below([False] * 400),
    "below, failed": lambda: below(_every(5, 60)),
    "below, not known": lambda: below([False] * 40),
    "below, a few failures": lambda: below(_every(300, 900), exclude=0.002),
    "below, nothing": lambda: below([]),
    "below, one burst": lambda: below([False] * 50 + [True] * 30),
    "disagreement": lambda: disagreement_below(name="d", disagreed=_every(4, 80), limit=0.1, exclude=0.3, false_alarm=0.01, miss=0.05),
    "rise, passed": lambda: against(served([True] * 600), served([True] * 2000)),
    "rise, failed": lambda: against(served(~_every(4, 200)), served([True] * 2000)),
    "rise, not known": lambda: against(served([True] * 60), served(~_every(50, 900))),
    "rise, nothing beside": lambda: against(served([True] * 60), served([])),
    "rise, nothing": lambda: against(served([]), served([True] * 60)),
    "shift, passed": lambda: _shift(np.tile([0.01, -0.02, 0.0, 0.015], 400)),
    "shift, failed": lambda: _shift(np.tile([0.2, 0.3], 400)),
    "shift down, failed": lambda: _shift(np.tile([-0.2, -0.3], 400)),
    "shift, not known": lambda: _shift(np.tile([0.4, -0.4], 30)),
    "shift, at the edge": lambda: _shift(np.tile([0.05, 0.06], 900), margin=0.055, exclude=0.06),
    "shift, nothing": lambda: _shift(np.array([])),
    "shift, no number": lambda: _shift(np.array([0.1, np.nan])),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Every word and number of a finding is what people were promised."""
    assert in_full(WHOLE[case]()) == expected("error_rates", case)
