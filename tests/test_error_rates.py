"""The judges of counts are judged: budgets hold for every look and in bursts, gross harm is found soon, nothing unseen passes."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from bench.error_rates import beside, in_bursts, independent, stops
from validation import error_rates
from validation.contract import Outcome
from validation.error_rates import (
    FIRST,
    LONG,
    disagreement_below,
    error_rate_below,
    error_rate_not_above,
    first_sure,
    score_shift_within,
)
from validation.served import Served

BUDGETS = {"false_alarm": 0.01, "miss": 0.05}
LOOSE = {"limit": 0.05, "exclude": 0.4, "false_alarm": 0.2, "miss": 0.2}
"""Margins and budgets at which a dozen rows decide."""

ROWS = st.lists(st.booleans(), max_size=60).map(lambda rows: np.array(rows, bool))


def errors(failed, *, limit=0.001, exclude=0.05, correlation=0.0, **budgets):
    return error_rate_below(name="errors", failed=failed, limit=limit, exclude=exclude, correlation=correlation, **(BUDGETS | budgets))


def rises(candidate, stable, *, rise=0.001, exclude=0.02, **budgets):
    return error_rate_not_above(name="errors", candidate=candidate, stable=stable, rise=rise, exclude=exclude, **(BUDGETS | budgets))


def shifts(differences, *, margin=0.02, exclude=0.05, **budgets):
    return score_shift_within(name="score", differences=differences, margin=margin, exclude=exclude, **(BUDGETS | budgets))


def rows(n, *failing):
    failed = np.zeros(n, bool)
    failed[list(failing)] = True
    return failed


def served(failed, *, unix_s=None):
    times = np.arange(len(failed), dtype=float) if unix_s is None else unix_s
    return Served(unix_s=times, ok=~failed, latency_ms=np.ones(len(failed)))


# The error rate against a limit


def test_the_shares_of_the_budget_add_up_to_one():
    """What the three ways to fail spend of the false-alarm budget is the budget; so do the weights of every mixture."""
    assert math.isclose(sum(FIRST) + LONG + sum(share for _, share in error_rates.ABOVE), 1)
    for mixture in (error_rates.ABOVE_STABLE, error_rates.BELOW):
        assert math.isclose(sum(share for _, share in mixture), 1)


@pytest.mark.parametrize(("rate", "median", "p90"), [(0.2, 8, 19), (0.05, 33, 110), (0.01, 410, 1000)])
def test_bad_candidates_are_found_within_the_requests_promised(rate, median, p90):
    """At a limit of 0.1 % and a budget of 1 %: half of the runs at 20 % end by request 8, nine in ten by 19; 5 % and 1 % by theirs."""
    found = stops(independent(rate, round(30 / rate)), false_alarm=0.01, runs=2000, seed=5)
    assert np.median(found) <= median
    assert np.quantile(found, 0.9) <= p90


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_candidates_at_the_limit_keep_the_budget_in_bursts_too(correlation):
    """Looked at after each of 20,000 requests at the limit itself, at most 1 % are ever failed, also when failures come in bursts."""
    draw = in_bursts(0.001, correlation, 20_000)
    assert np.isfinite(stops(draw, false_alarm=0.01, runs=2000, seed=6)).mean() <= 0.01


def chance(sequence, rate, correlation):
    """Chance of this sequence in a stationary Markov chain of failures."""
    after = {False: (1 - correlation) * rate, True: correlation + (1 - correlation) * rate}
    chances = [rate, *(after[before] for before in sequence[:-1])]
    return math.prod(each if failed else 1 - each for each, failed in zip(chances, sequence, strict=True))


@cache
def sequences(n=12):
    return list(itertools.product([False, True], repeat=n))


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("limit", [0.02, 0.1, 0.3])
def test_all_sequences_together_keep_the_false_alarm(limit, correlation):
    """The chances of all 4,096 sequences of twelve requests at the limit that are ever failed add up to the budget at most."""
    failed = [each for each in sequences() if first_sure(np.array(each), limit, 0.3) is not None]
    assert failed
    assert math.fsum(chance(each, limit, correlation) for each in failed) <= 0.3


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_all_sequences_together_keep_the_miss(correlation):
    """The chances of all sequences at `exclude` that ever pass add up to `miss` at most, in bursts too when the judge is told of them."""
    claim = error_rates._Claim(limit=0.01, exclude=0.5, false_alarm=0.01, miss=0.2, correlation=correlation)

    @cache
    def passes(failures, n, tried, begun):
        bursts = error_rates._Bursts(n=n, failures=failures, tried=tried, places=np.arange(begun))
        return error_rates._rate_excluded(bursts, claim.exclude, claim)

    def ever(sequence):
        counts = [error_rates._Bursts.of(np.array(sequence[: n + 1])) for n in range(len(sequence))]
        return any(passes(each.failures, each.n, each.tried, each.begun) for each in counts)

    passing = [each for each in sequences(10) if ever(each)]
    assert passing
    assert math.fsum(chance(each, 0.5, correlation) for each in passing) <= 0.2


@pytest.mark.parametrize(("k", "n", "rate"), [(0, 4, 0.001), (1, 52, 0.001), (2, 1000, 0.0001), (2, 2, 0.3), (1, 100_000, 1e-7)])
def test_the_chance_of_early_bursts_is_binomial(k, n, rate):
    """More than k among n: as SciPy has it."""
    assert error_rates._chance_of_more(k, n, rate) == pytest.approx(binom.sf(k, n, rate), rel=1e-6, abs=1e-15)


@given(ROWS, ROWS)
def test_what_has_failed_stays_failed_word_for_word(first, more):
    """A failed finding does not change with rows that come later: it does not matter when one looked."""
    finding = errors(first, **LOOSE)
    if finding.outcome is Outcome.FAILED:
        assert errors(np.concatenate([first, more]), **LOOSE) == finding


@given(ROWS)
def test_it_is_failed_exactly_when_some_prefix_is(failed):
    """Looking once at the end finds what looking after every request would have found, at the same request."""
    looks = [n for n in range(len(failed) + 1) if errors(failed[:n], **LOOSE).outcome is Outcome.FAILED]
    finding = errors(failed, **LOOSE)
    assert (finding.outcome is Outcome.FAILED) == bool(looks)
    assert not looks or finding.n == looks[0]


@given(ROWS)
def test_a_failure_is_never_milder_than_a_success(failed):
    """Whatever came before, the next request's failing gives no milder outcome than its going well."""
    well, badly = (errors(np.append(failed, last), **LOOSE).outcome for last in (False, True))
    assert well <= badly


@given(st.lists(st.integers(2, 40), max_size=8), st.integers(0, 300))
def test_one_more_failure_apart_from_the_others_never_helps(gaps, place):
    """Where failures stand alone, one more that stands alone never makes the outcome milder. Beside another it may join two bursts."""
    failed = rows(300 + sum(gaps), *np.cumsum(gaps))
    if not failed[max(place - 2, 0) : place + 3].any():
        more = failed | rows(len(failed), min(place, len(failed) - 1))
        assert errors(failed, limit=0.01).outcome <= errors(more, limit=0.01).outcome


@given(ROWS)
def test_the_interval_agrees_with_the_outcome(failed):
    """Passed means that the margin lies above the interval; not failed, that the limit is not excluded; the rate seen is inside."""
    finding = errors(failed, **LOOSE)
    low, high = finding.interval
    assert finding.outcome is not Outcome.PASSED or high <= LOOSE["exclude"]
    assert finding.outcome is Outcome.FAILED or low <= LOOSE["limit"]
    assert not len(failed) or low <= high


def test_a_server_that_dies_after_long_good_service_is_found_within_twenty_requests():
    """After 1,000 clean requests a burst is failed as soon as it is longer than an autocorrelation of 0.6 explains."""
    assert errors(rows(1100, *range(1000, 1100))).n == 1019


def test_a_short_burst_is_one_failure():
    """Ten failures in a row after good service are one event, which at this limit is no certainty; ten apart are."""
    assert errors(rows(1000, *range(500, 510))).outcome is not Outcome.FAILED
    assert errors(rows(1000, *range(500, 520, 2))).outcome is Outcome.FAILED


def test_failing_always_is_failed_and_never_passed():
    """All requests failing is failed at once, also where the margin is 100 %."""
    assert errors(np.ones(30, bool), exclude=1.0).outcome is Outcome.FAILED


@pytest.mark.parametrize(("exclude", "n"), [(0.5, 5), (0.05, 64), (0.01, 323), (0.005, 648)])
def test_clean_requests_pass_a_step_in_the_count_that_its_margin_needs(exclude, n):
    """Small shares exclude gross harm after a handful of requests; finer margins need their number, and the advice says it."""
    assert errors(rows(n), exclude=exclude).outcome is Outcome.PASSED
    short = errors(rows(n - 1), exclude=exclude)
    assert short.outcome is Outcome.INCONCLUSIVE
    assert short.advice == f"1 more requests without a failure would exclude {exclude:.3%}"


def test_passing_in_spite_of_bursts_takes_more_requests():
    """Told to allow for an autocorrelation of 0.6, the judge asks for two and a half times as many clean requests."""
    assert errors(rows(160), correlation=0.6).outcome is Outcome.INCONCLUSIVE
    assert errors(rows(161), correlation=0.6).outcome is Outcome.PASSED


def test_no_requests_are_inconclusive():
    """Nothing seen is nothing shown, and says how much is needed."""
    finding = errors(rows(0))
    assert (finding.outcome, finding.observed, finding.interval, finding.n) == (Outcome.INCONCLUSIVE, None, (0.0, 1.0), 0)
    assert finding.advice == "64 more requests without a failure would exclude 5.000%"


@pytest.mark.parametrize("failed", [np.zeros(500), np.full(500, np.nan), np.zeros((500, 1), bool), np.array([None] * 500)])
def test_rows_that_are_not_true_or_false_pass_nothing(failed):
    """Numbers, NaN, None and tables are no list of requests."""
    finding = errors(failed)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert finding.advice


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 0},
        {"limit": 0.05},
        {"limit": math.nan},
        {"exclude": math.nan},
        {"exclude": 1.1},
        {"false_alarm": 0},
        {"miss": 1},
        {"correlation": 1.0},
    ],
)
def test_margins_without_meaning_are_refused(change):
    """A limit at or above its margin, a budget outside 0 to 1, NaN: an error, not a verdict."""
    with pytest.raises(ValueError, match=r"limit|false_alarm|correlation"):
        errors(rows(10), **change)


def test_disagreement_is_judged_like_errors_in_words_of_its_own():
    """The same rows give the same outcome and numbers; the sentence speaks of answers."""
    failed = rows(400, 10, 60, 90)
    finding = disagreement_below(name="errors", disagreed=failed, limit=0.001, exclude=0.05, **BUDGETS)
    alike = errors(failed)
    assert (finding.outcome, finding.interval, finding.n, finding.observed) == (alike.outcome, alike.interval, alike.n, alike.observed)
    assert finding.why == "3 of 91 mirrored requests were answered differently; surely more than 0.100%"


# The candidate against stable


def test_a_rise_is_found_beside_a_stable_that_fails_too():
    """5 % against stable's 0.5 % with nine times the traffic is failed within the first 600 requests in nearly all runs."""
    rng = np.random.default_rng(7)
    found = [rises(*beside(0.05, 0.005, 600, 9)(rng), rise=0.005).outcome for _ in range(40)]
    assert found.count(Outcome.FAILED) >= 38


@pytest.mark.parametrize("times", [1, 9])
def test_equal_versions_and_rises_of_the_margin_keep_the_false_alarm(times):
    """With the rise itself as the truth, at most the budget (5 % here) is failed in any of 1,500 requests' looks."""
    rng = np.random.default_rng(8)
    pairs = (beside(0.006, 0.005, 1500, times)(rng) for _ in range(300))
    found = [error_rates._Pair.of(*pair).first_sure(0.001, 0.05) for pair in pairs]
    assert sum(each is not None for each in found) / 300 <= 0.05


@pytest.mark.parametrize(("early", "late"), [(10, 10), (1, 50), (50, 90)])
def test_an_outage_that_both_suffer_is_not_the_candidates_fault(early, late):
    """When for a minute a twentieth of all requests fails, an equal candidate stays, also when its share has just grown."""
    rng = np.random.default_rng(9)
    pairs = ((in_an_outage(rng, early, late), in_an_outage(rng, 100 - early, 100 - late)) for _ in range(60))
    taken = [error_rates._Pair.of(*pair).first_sure(0.001, 0.01) for pair in pairs]
    assert sum(each is not None for each in taken) <= 1


def in_an_outage(rng, early, late):
    """Two minutes at `early` requests a second, two at `late`; the outage is in the third."""
    times = np.sort(np.concatenate([rng.uniform(0, 120, 120 * early), rng.uniform(120, 240, 120 * late)]))
    rates = np.where((times > 120) & (times < 180), 0.05, 0.0005)
    return served(rng.random(len(times)) < rates, unix_s=times)


def test_a_rise_of_the_margin_passes_within_its_budget():
    """A candidate whose rate lies `exclude` above stable's passes at any of its looks in at most 5 % of the runs."""
    rng = np.random.default_rng(10)
    assert sum(passes_at_a_look(*beside(0.055, 0.005, 600, 2)(rng)) for _ in range(150)) / 150 <= 0.05


def passes_at_a_look(candidate, stable):
    pair = error_rates._Pair.of(candidate, stable)
    looks = (pair.until(row) for row in range(10, pair.n, 10))
    return any(each.evidence_below(0.05, 0) >= math.log(20) for each in looks)


def test_a_clean_candidate_passes_beside_stable():
    """Enough clean requests exclude the rise, and one fewer says how many are missing."""
    stable = served(rows(5000))
    passed = next(n for n in range(1, 1000) if rises(served(rows(n)), stable).outcome is Outcome.PASSED)
    assert passed <= 250
    assert rises(served(rows(passed - 1)), stable).advice == "1 more requests without a failure would exclude a rise of 2.000%"


def test_stables_failures_excuse_the_candidates():
    """The same candidate that is failed beside a clean stable is not failed beside one that fails as often."""
    failed = rows(1500, *range(100, 1500, 70))
    assert rises(served(failed), served(rows(1500))).outcome is Outcome.FAILED
    assert rises(served(failed), served(np.roll(failed, 35))).outcome is not Outcome.FAILED


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_rise_that_was_found_stays_found_word_for_word(n, seed):
    """Rows after the first sure one change nothing in a failed finding."""
    candidate, stable = beside(0.1, 0.005, 400, 3)(np.random.default_rng(seed))
    cut = candidate.unix_s[n - 1]
    early = rises(candidate.where(candidate.unix_s <= cut), stable.where(stable.unix_s <= cut))
    if early.outcome is Outcome.FAILED:
        assert rises(candidate, stable) == early


@pytest.mark.parametrize(
    ("candidate", "stable"),
    [
        (served(rows(0)), served(rows(2000))),
        (served(rows(2000)), served(rows(0))),
        (served(rows(2000)), served(rows(2000), unix_s=np.arange(2000) + 5000.0)),
        (served(rows(2000)), served(rows(2000), unix_s=np.arange(2000) - 5000.0)),
        (served(rows(2000), unix_s=np.full(2000, np.nan)), served(rows(2000))),
        (served(rows(2000), unix_s=np.arange(2000, 0.0, -1)), served(rows(2000))),
    ],
)
def test_what_was_not_served_side_by_side_passes_nothing(candidate, stable):
    """No candidate, no stable, stable before or after only, times that are missing or run backwards: inconclusive, with advice."""
    finding = rises(candidate, stable)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert finding.advice


# Paired scores


@pytest.mark.parametrize("shift", [0.02, -0.02])
def test_a_shift_of_the_margin_keeps_both_budgets(shift):
    """With the margin as the truth, looked at after every pair, at most 5 % are ever failed and at most 5 % ever pass at it."""
    rng = np.random.default_rng(11)
    failed, passed = 0, 0
    for _ in range(400):
        differences = np.clip(shift + rng.choice([-0.1, 0.0, 0.1], 2000, p=[0.1, 0.8, 0.1]), -1, 1)
        low, high = error_rates._mean_bounds(differences, 0.05)
        failed += bool(((low > 0.02) | (high < -0.02)).any())
        low, high = error_rates._mean_bounds(differences, 0.1)
        passed += bool((np.maximum(-low, high) < 0.02).any())
    assert failed / 400 <= 0.05
    assert passed / 400 <= 0.05


@pytest.mark.parametrize("sign", [1, -1])
def test_shifts_are_found_either_way(sign):
    """Scores that are 0.1 off on average are failed within 300 pairs, up or down; equal ones with a small spread pass within 1,000."""
    rng = np.random.default_rng(12)
    noise = rng.normal(0, 0.05, 1000)
    found = shifts(np.clip(sign * 0.1 + noise, -1, 1))
    assert (found.outcome, found.n <= 300) == (Outcome.FAILED, True)
    assert shifts(np.clip(noise, -1, 1)).outcome is Outcome.PASSED


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=200), st.lists(st.floats(-1, 1), max_size=50))
def test_a_shift_that_was_found_stays_found_word_for_word(first, more):
    """Pairs after the first sure one change nothing in a failed finding."""
    finding = shifts(np.array(first), false_alarm=0.5)
    if finding.outcome is Outcome.FAILED:
        assert shifts(np.array(first + more), false_alarm=0.5) == finding


@pytest.mark.parametrize(
    "differences",
    [
        np.zeros(0),
        np.full(5000, np.nan),
        np.append(np.zeros(5000), np.inf),
        np.append(np.zeros(5000), 1.01),
        np.zeros((5000, 1)),
        rows(5000),
    ],
)
def test_differences_that_cannot_be_read_pass_nothing(differences):
    """Empty, NaN, infinite, out of scale, a table, no numbers: inconclusive, with advice."""
    finding = shifts(differences)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert finding.advice
    assert shifts(np.zeros(5000)).outcome is Outcome.PASSED


def test_an_undecided_shift_says_how_many_pairs_are_missing():
    """About as many as it says are enough; where the mean itself lies beyond the margin, more of the same is not advised."""
    noise = np.tile([-0.1, 0.1], 75)
    finding = shifts(noise)
    more = int(finding.advice.split()[1])
    assert shifts(np.tile(noise, 2 + more // 150)).outcome is Outcome.PASSED
    assert shifts(np.tile([0.3, -0.18], 10)).advice.startswith("more of the same would not help")
