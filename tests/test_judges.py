"""The judges are judged: budgets hold under peeking and correlated requests, gross harm is found within a few requests."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm
from scipy.stats import t as student
from whole_findings import expected, in_full

from validation import judges
from validation.contract import Outcome
from validation.judges import (
    Contributions,
    accuracy_at_least,
    errors_below,
    mean_at_least,
    mean_at_most,
    paired_mean_not_worse,
    paired_not_worse,
    quantile_within,
    queries_needed,
    shared_error,
    unpaired_mean_not_worse,
)

COUNTS = st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def errors(failures, n, *, limit=0.001, exclude=0.05, false_alarm=0.01, miss=0.05):
    return errors_below(name="errors", failures=failures, n=n, limit=limit, exclude=exclude, false_alarm=false_alarm, miss=miss)


# Errors


def first_failed(failed_at, *, limit, false_alarm):
    """The request number at which a candidate with failures at these request numbers is taken back, or None.

    Evidence rises at failures only, so looking there is looking after every request.
    """
    for count, n in enumerate(failed_at, start=1):
        if count >= judges.MIN_FAILURES and judges._evidence_above(count, int(n), limit) >= math.log(1 / false_alarm):
            return int(n)
    return None


def failure_times(rng, rate, n):
    times = np.cumsum(rng.geometric(rate, size=int(n * rate * 3) + 50))
    return times[times <= n]


def test_gross_errors_are_found_within_a_few_requests():
    """At a true rate of 20 % and a limit of 0.1 %: half of the runs end by request 8 or so, nine in ten by request 19."""
    rng = np.random.default_rng(11)
    stops = [first_failed(failure_times(rng, 0.2, 1000), limit=0.001, false_alarm=0.01) for _ in range(3000)]
    assert np.median(stops) <= 9
    assert np.quantile(stops, 0.9) <= 19


@pytest.mark.parametrize("rate", [0.0005, 0.001])
def test_good_candidates_are_not_taken_back(rate):
    """Looked at after every request for 30 minutes at 600 a minute, at or below the limit, at most the budget of 1 % is ever failed."""
    rng = np.random.default_rng(12)
    taken = [first_failed(failure_times(rng, rate, 18_000), limit=0.001, false_alarm=0.01) for _ in range(1500)]
    assert sum(each is not None for each in taken) / 1500 <= 0.01


@pytest.mark.parametrize("rate", [0.5, 0.05, 0.01])
def test_bad_candidates_are_not_promoted(rate):
    """At a true rate equal to the margin, looked at after every request, at most the budget of 5 % is ever passed."""
    rng = np.random.default_rng(13)
    assert sum(ever_passed(failure_times(rng, rate, int(60 / rate)), rate) for _ in range(1000)) / 1000 <= 0.05


def ever_passed(failed_at, exclude):
    """Evidence falls at failures only, so the best moment is just before one."""
    return any(judges._evidence_below(count, int(n) - 1, exclude) >= math.log(20) for count, n in enumerate(failed_at))


@pytest.mark.parametrize(("exclude", "n"), [(0.5, 5), (0.05, 65), (0.01, 328), (0.005, 657)])
def test_clean_requests_pass_a_step_in_the_count_that_its_margin_needs(exclude, n):
    """Small shares exclude gross harm after a handful of requests; finer margins need their number."""
    assert errors(0, n - 1, exclude=exclude).outcome is Outcome.INCONCLUSIVE
    assert errors(0, n, exclude=exclude).outcome is Outcome.PASSED
    assert errors(0, n - 1, exclude=exclude).advice == f"1 more requests without a failure would exclude {exclude:.3%}"


def test_no_requests_are_inconclusive():
    """Nothing seen is nothing shown, and says how much is needed."""
    finding = errors(0, 0)
    assert (finding.outcome, finding.observed, finding.interval) == (Outcome.INCONCLUSIVE, None, (0.0, 1.0))
    assert finding.advice.startswith("65 more requests")


def test_one_failure_is_never_sure():
    """A single failed request takes no candidate back, whatever the odds."""
    assert errors(1, 1, false_alarm=0.4).outcome is Outcome.INCONCLUSIVE
    assert errors(2, 2).outcome is Outcome.FAILED


def test_a_candidate_that_fails_always_is_failed_and_never_passed():
    """All requests failing ends in failed, also where the margin is 100 %."""
    assert errors(10, 10, exclude=1.0).outcome is Outcome.FAILED


@given(COUNTS)
def test_errors_below_agrees_with_its_interval(counts):
    """Failed means that the limit lies below the interval, passed that the margin lies above it; the observed rate is always inside."""
    failures, n = counts
    finding = errors(failures, n)
    lower, upper = finding.interval
    assert (finding.outcome is Outcome.FAILED) == (lower > 0.001)
    assert finding.outcome is not Outcome.PASSED or upper <= 0.05
    assert n == 0 or lower <= failures / n <= upper


@given(COUNTS)
def test_another_failure_never_helps(counts):
    """With the same number of requests, more failures never give a milder outcome."""
    failures, n = counts
    assume(failures < n)
    assert errors(failures, n).outcome <= errors(failures + 1, n).outcome


@pytest.mark.parametrize(
    "change", [{"limit": 0}, {"limit": 0.05}, {"limit": math.nan}, {"false_alarm": 0}, {"miss": 1}, {"exclude": math.nan}]
)
def test_margins_without_meaning_are_refused(change):
    """A limit at or above its margin, or a budget outside 0 to 1, is an error, not a verdict."""
    with pytest.raises(ValueError, match="must lie between"):
        errors(0, 10, **change)


@pytest.mark.parametrize(("failures", "n"), [(-1, 5), (6, 5)])
def test_counts_without_meaning_are_refused(failures, n):
    """More failures than requests is a mistake of the caller's."""
    with pytest.raises(ValueError, match="is no count"):
        errors(failures, n)


# Fixed samples


@given(COUNTS, st.sampled_from([0.01, 0.05, 0.1]))
def test_binomial_bounds_are_clopper_and_pearsons(counts, error):
    """The exact bounds agree with the quantiles of the beta distribution."""
    successes, n = counts
    assume(n > 0)
    lower, upper = judges._binomial_interval(successes, n, error)
    assert lower == pytest.approx(beta.ppf(error, successes, n - successes + 1) if successes else 0.0, abs=1e-9)
    assert upper == pytest.approx(beta.ppf(1 - error, successes + 1, n - successes) if successes < n else 1.0, abs=1e-9)


@given(COUNTS, st.floats(0.001, 0.999))
def test_binomial_tails_are_exact(counts, p):
    """The chance of at most k successes agrees with scipy's."""
    k, n = counts
    assert judges._at_most(k, n, p) == pytest.approx(binom.cdf(k, n, p), abs=1e-11)


@pytest.mark.parametrize(("correct", "outcome"), [(870, Outcome.PASSED), (855, Outcome.INCONCLUSIVE), (800, Outcome.FAILED)])
def test_accuracy_needs_its_distance(correct, outcome):
    """Only an accuracy surely above the limit passes; a point estimate a little above it does not."""
    finding = accuracy_at_least(name="accuracy", correct=correct, n=1000, limit=0.85, error=0.05)
    assert finding.outcome is outcome


def test_accuracy_says_how_many_rows_would_settle_it():
    """The advice is right: with that many rows more at the same accuracy it passes."""
    finding = accuracy_at_least(name="accuracy", correct=870, n=1000, limit=0.86, error=0.05)
    more = int(finding.advice.split()[1])
    n = 1000 + more
    assert accuracy_at_least(name="accuracy", correct=math.floor(0.87 * n), n=n, limit=0.86, error=0.05).outcome is Outcome.PASSED


def test_equal_models_without_discordant_rows_are_judged_by_their_rows():
    """No row won or lost on few rows shows little: half a point needs 599 rows at 5 %, as exact chances do."""
    found = [paired_not_worse(name="a", wins=0, losses=0, n=n, margin=0.005, error=0.05).outcome for n in (1, 598, 599, 5000)]
    assert found == [Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE, Outcome.PASSED, Outcome.PASSED]


def test_a_lost_point_fails_and_is_never_passed():
    """Many rows lost fail; a few lost among thousands pass within the margin."""
    judge = {"name": "a", "margin": 0.02, "error": 0.05}
    assert paired_not_worse(wins=5, losses=60, n=1000, **judge).outcome is Outcome.FAILED
    assert paired_not_worse(wins=20, losses=25, n=1000, **judge).outcome is Outcome.PASSED
    assert paired_not_worse(wins=20, losses=36, n=1000, **judge).outcome is Outcome.INCONCLUSIVE


@given(st.integers(1, 400), st.data())
def test_the_paired_score_uses_the_likeliest_share(n, data):
    """Tango's closed form for the nuisance share is where the likelihood under the null is greatest."""
    wins = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - wins))
    loss = data.draw(st.floats(0.01, 0.9))
    gap, score = losses - wins - n * loss, judges._tango(wins, losses, n, loss)
    assume(abs(score) > 1e-3)
    share = ((gap / score) ** 2 / n - loss * (1 - loss)) / 2
    likelihood = [loglik(wins, losses, n, loss, p) for p in np.linspace(1e-9, (1 - loss) / 2 - 1e-9, 400)]
    assert loglik(wins, losses, n, loss, min(max(share, 1e-9), (1 - loss) / 2 - 1e-9)) >= max(likelihood) - 1e-4 * n


def loglik(wins, losses, n, loss, share):
    return wins * math.log(share) + losses * math.log(share + loss) + (n - wins - losses) * math.log(max(1 - 2 * share - loss, 1e-300))


def test_the_paired_judge_keeps_its_error():
    """Models that truly lost exactly the margin pass in at most about 5 % of the samples, equal ones on 1,000 rows mostly do."""
    rng = np.random.default_rng(31)
    margin, discordant, n = 0.02, 0.05, 1000
    lost, won = rng.multinomial(n, [(discordant + margin) / 2, (discordant - margin) / 2, 1 - discordant], size=4000).T[:2]
    passed = [judges._tango(w, x, n, margin) <= -1.6449 for w, x in zip(won, lost, strict=True)]
    assert np.mean(passed) <= 0.06


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 3000))
def test_paired_agrees_with_its_interval(wins, losses, n):
    """The interval holds the net loss and its upper end decides what passes."""
    assume(wins + losses <= n)
    finding = paired_not_worse(name="a", wins=wins, losses=losses, n=n, margin=0.02, error=0.05)
    lower, upper = finding.interval
    assert lower - 1e-9 <= finding.observed <= upper + 1e-9
    assert (finding.outcome is Outcome.PASSED) == (upper <= 0.02)


def test_a_quantile_states_its_sample_count():
    """MLPerf's figures: at 99 % confidence a p99 needs 459 queries with none over the limit and 662 with one."""
    assert [queries_needed(over=over, quantile=0.99, error=0.01) for over in (0, 1)] == [459, 662]
    assert [queries_needed(over=0, quantile=0.5, error=error) for error in (0.6, 0.4)] == [1, 2]


@pytest.mark.parametrize("quantile", [0.9, 0.95, 0.99, 0.999])
def test_the_table_of_queries_is_mlperfs(quantile):
    """For 0 to 100 slow queries at 99 % confidence: so many are the fewest whose chance of so few slow ones is 1 % (scipy's binomial)."""
    over = np.arange(101)
    needed = np.array([queries_needed(over=int(each), quantile=quantile, error=0.01) for each in over])
    assert (binom.cdf(over, needed, 1 - quantile) <= 0.01).all()
    assert (binom.cdf(over, needed - 1, 1 - quantile) > 0.01).all()


def test_mlperfs_own_figures_for_three_nines():
    """4,603 queries with none over, 6,636 with one."""
    assert [queries_needed(over=over, quantile=0.999, error=0.01) for over in (0, 1)] == [4603, 6636]
    judge = {"name": "p99_ms", "quantile": 0.99, "limit_ms": 10.0, "observed_ms": 9.0, "error": 0.01}
    found = [quantile_within(over=over, n=n, **judge).outcome for over, n in ((0, 458), (0, 459), (1, 661), (1, 662), (30, 662))]
    passed, unknown = Outcome.PASSED, Outcome.INCONCLUSIVE
    assert found == [unknown, passed, unknown, passed, Outcome.FAILED]
    advice = [quantile_within(over=over, n=n, **judge).advice for over, n in ((0, 458), (0, 459), (30, 662))]
    assert advice == ["about 1 more queries like these would settle it", None, None]


@pytest.mark.parametrize(("observed_ms", "n"), [(math.nan, 1000), (math.inf, 1000), (5.0, 0)])
def test_an_unreadable_quantile_never_passes(observed_ms, n):
    """No queries, or a quantile that is not finite, show nothing."""
    finding = quantile_within(name="p99_ms", over=0, n=n, quantile=0.99, limit_ms=10, observed_ms=observed_ms, error=0.01)
    assert finding.outcome is Outcome.INCONCLUSIVE


def test_no_rows_are_never_a_pass():
    """Offline judges say inconclusive of nothing."""
    assert accuracy_at_least(name="a", correct=0, n=0, limit=0.5, error=0.05).outcome is Outcome.INCONCLUSIVE
    assert paired_not_worse(name="a", wins=0, losses=0, n=0, margin=0.5, error=0.05).outcome is Outcome.INCONCLUSIVE


@given(COUNTS, st.floats(0.05, 0.95))
def test_another_right_answer_never_hurts(counts, limit):
    """With the same number of rows, more right answers never give a worse outcome."""
    correct, n = counts
    assume(correct < n)
    found = [accuracy_at_least(name="a", correct=each, n=n, limit=limit, error=0.05).outcome for each in (correct, correct + 1)]
    assert found[1] <= found[0]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 3000))
def test_another_lost_row_never_helps(wins, losses, n):
    """With the same number of rows, another row lost, or one won less, never gives a better outcome; nor does a finer margin."""
    assume(wins + losses < n)
    found = [
        paired_not_worse(name="a", wins=w, losses=x, n=n, margin=margin, error=0.05).outcome
        for w, x, margin in ((wins + 1, losses, 0.01), (wins, losses, 0.01), (wins, losses + 1, 0.01), (wins, losses + 1, 0.005))
    ]
    assert found == sorted(found)


@given(COUNTS, st.sampled_from([0.5, 0.9, 0.99]))
def test_another_slow_query_never_helps(counts, quantile):
    """With the same number of queries, more slow ones never give a better outcome."""
    over, n = counts
    assume(over < n)
    judge = {"name": "p", "n": n, "quantile": quantile, "limit_ms": 10.0, "observed_ms": 9.0, "error": 0.05}
    assert quantile_within(over=over, **judge).outcome <= quantile_within(over=over + 1, **judge).outcome


# Means of contributions


def spread(values, *, estimate=None, scale=1.0, **biases):
    values = [float(each) for each in values]
    return Contributions(estimate=float(np.mean(values)) if estimate is None else estimate, values=values, scale=scale, **biases)


def at_most(one, other, limit):
    return mean_at_most(name="m", contributions=one, limit=limit, error=0.05)


def at_least(one, other, limit):
    return mean_at_least(name="m", contributions=one, limit=limit, error=0.05)


def paired(one, other, limit):
    return paired_mean_not_worse(
        name="m", candidate=one, reference=other, margin=abs(limit) or 0.1, error=0.05, higher_is_better=False, relative=False
    )


def paired_share(one, other, limit):
    return paired_mean_not_worse(
        name="m", candidate=one, reference=other, margin=abs(limit) or 0.1, error=0.05, higher_is_better=False, relative=True
    )


def unpaired(one, other, limit):
    return unpaired_mean_not_worse(
        name="m", candidate=one, logged=other.estimate, margin=abs(limit) or 0.1, error=0.05, higher_is_better=False, relative=False
    )


MEANS = (at_most, at_least, paired, paired_share, unpaired)


def halves(seed, n, tail, alike):
    """Contributions of two versions on the same rows, log-normal with this tail, equal on a share of the rows."""
    rng = np.random.default_rng(seed)
    one, other = rng.lognormal(0, tail, (2, n))
    return spread(np.where(rng.random(n) < alike, other, one)), spread(other)


HALVES = st.builds(halves, st.integers(0, 2**32), st.integers(60, 200), st.floats(0, 1.5), st.floats(0, 1))


@pytest.mark.parametrize("judge", MEANS)
@given(pair=HALVES, shift=st.floats(0.001, 5), limit=st.floats(0.001, 8))
def test_a_worse_mean_never_helps(judge, pair, shift, limit):
    """All rows worse by the same never give a better outcome; nor does a tighter limit or margin."""
    one, other = pair
    moved = spread([each + shift for each in one.values])
    outcomes = [judge(each, other, limit).outcome for each in (one, moved)]
    assert outcomes == sorted(outcomes, reverse=judge is at_least)
    outcomes = [judge(one, other, each).outcome for each in (limit, limit / 2)]
    assert outcomes == sorted(outcomes, reverse=judge is at_least)


@pytest.mark.parametrize("judge", MEANS)
@given(pair=HALVES, limit=st.floats(0.001, 8), times=st.integers(2, 5))
def test_more_of_the_same_evidence_never_unsettles(judge, pair, limit, times):
    """What passed or failed does so again when the same rows stand there several times."""
    first = judge(*pair, limit).outcome
    assume(first is not Outcome.INCONCLUSIVE)
    assert judge(*(spread(each.values * times) for each in pair), limit).outcome is first


@pytest.mark.parametrize("judge", MEANS)
@given(pair=HALVES, limit=st.floats(0.001, 8), exponent=st.integers(-6, 6), seed=st.integers(0, 99))
def test_units_and_order_of_rows_change_nothing(judge, pair, limit, exponent, seed):
    """The outcome is the same in another unit, with the limit in that unit too (a share has none), and in another order of rows."""
    unit, order = 10.0**exponent, np.random.default_rng(seed).permutation(len(pair[0].values))
    moved = [spread(np.array(each.values)[order] * unit, scale=unit) for each in pair]
    first, second = judge(*pair, limit), judge(*moved, limit if judge is paired_share else limit * unit)
    assume(min(abs(end - first.limit) for end in first.interval) > 1e-9 * first.limit)
    assert second.outcome is first.outcome


@pytest.mark.parametrize("judge", MEANS)
@given(pair=HALVES, place=st.integers(0, 59), bad=st.sampled_from([math.nan, math.inf, -math.inf, 1e200]), side=st.sampled_from([0, 1]))
def test_a_value_that_is_no_number_never_passes(judge, pair, place, bad, side):
    """NaN, infinity and what overflows, in one row of either version, are inconclusive."""
    sides = list(pair)
    sides[side] = spread([*sides[side].values[:place], bad, *sides[side].values[place + 1 :]])
    assume(side == 0 or judge not in {at_most, at_least})
    found = judge(*sides, -1e9 if judge is at_least else 1e9)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.advice


def test_a_quotient_that_overflows_never_passes():
    """Readable numbers whose share is none are inconclusive, however wide the margin."""
    great, small = spread(np.full(100, 1e140)), spread(np.full(100, 1e-140), scale=1e-140)
    for judge in (paired_share, paired):
        assert judge(small, replace(great, scale=1e-149), 1e149).outcome is not Outcome.FAILED
    assert paired_share(great, small, 1e149).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("field", ["estimate", "scale", "over", "under"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_statistic_that_is_no_number_never_passes(field, bad):
    """Neither the estimate, nor the scale, nor a bias may be unreadable."""
    one = replace(spread(np.linspace(0, 1, 100)), **{field: bad})
    for judge in MEANS:
        assert judge(one, spread(np.linspace(0, 1, 100)), -1e9 if judge is at_least else 1e9).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("judge", MEANS)
@pytest.mark.parametrize("n", [0, 1, 2, 49])
def test_few_rows_show_nothing_of_a_mean(judge, n):
    """Below 50 rows nothing is said, and the advice says how many are missing."""
    few = spread([0.5] * n, estimate=0.5)
    found = judge(few, few, -1e9 if judge is at_least else 1e9)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.advice == f"about {50 - n} more golden rows are needed"
    enough = spread([0.5] * 50, estimate=0.5)
    assert judge(enough, enough, -1e9 if judge is at_least else 1e9).outcome is Outcome.PASSED


@pytest.mark.parametrize("judge", MEANS)
def test_rows_that_are_all_equal_are_judged_by_their_number(judge):
    """Without any spread the bound is that of a row unlike them that was not seen: 0.005 of a scale of 1 needs 671 rows."""
    limit = 0.495 if judge is at_least else 0.505 if judge is at_most else 0.005
    needed = 1342 if judge in {unpaired, paired_share} else 671
    found = [judge(spread([0.5] * n), spread([0.5] * n), limit).outcome for n in (needed - 5, needed + 5)]
    assert found == [Outcome.INCONCLUSIVE, Outcome.PASSED]


@given(HALVES, st.floats(0.9, 1.1))
def test_advice_on_rows_is_right(pair, near):
    """With so many rows like these the claim passes; where none would help, the estimate itself lies on the wrong side."""
    limit = near * pair[0].estimate
    found = at_most(pair[0], None, limit)
    assume(found.outcome is Outcome.INCONCLUSIVE)
    if found.advice.startswith("more of the same"):
        assert found.observed >= limit
    else:
        sample, more = judges._sample(pair[0]), int(found.advice.split()[1])
        assert [judges._bounds(sample, 0.05, sample.n + each)[1] <= limit for each in (more - 1, more)] == [False, True]


@given(HALVES, st.floats(0.001, 8), st.sampled_from([0.05, 0.01, 0.001]))
def test_a_mean_agrees_with_its_interval(pair, limit, error):
    """The interval holds the observed value; passed and failed are what its ends say; a smaller error widens it."""
    wide = mean_at_most(name="m", contributions=pair[0], limit=limit, error=error / 2).interval
    found = mean_at_most(name="m", contributions=pair[0], limit=limit, error=error)
    lower, upper = found.interval
    assert wide[0] < lower < found.observed < upper < wide[1]
    assert (found.outcome is Outcome.PASSED, found.outcome is Outcome.FAILED) == (upper <= limit, lower > limit)


@given(HALVES, st.floats(0.001, 8))
def test_at_least_mirrors_at_most(pair, limit):
    """What is said of a statistic and a limit is said of both negated."""
    negated = spread([-each for each in pair[0].values])
    assert at_most(pair[0], None, limit).outcome is at_least(negated, None, -limit).outcome


def test_higher_is_better_turns_the_sides():
    """A score that fell is worse, a loss that fell is better."""
    low, high = (spread(np.linspace(0, 1, 200) + shift) for shift in (0, 0.5))
    judge = {"name": "m", "margin": 0.1, "error": 0.05, "relative": False}
    fell = paired_mean_not_worse(candidate=low, reference=high, higher_is_better=True, **judge)
    rose = paired_mean_not_worse(candidate=low, reference=high, higher_is_better=False, **judge)
    assert (fell.outcome, fell.observed) == (Outcome.FAILED, pytest.approx(0.5))
    assert (rose.outcome, rose.observed) == (Outcome.PASSED, pytest.approx(-0.5))


def test_a_bias_counts_on_its_own_side():
    """An estimate that may lie above the truth does not fail so soon, one that may lie below does not pass so soon."""
    values = np.linspace(0.4, 0.6, 2000)
    plain, over, under = spread(values), spread(values, over=0.2), spread(values, under=0.2)
    assert [at_most(each, None, 0.6).outcome for each in (plain, over, under)] == [Outcome.PASSED, Outcome.PASSED, Outcome.INCONCLUSIVE]
    assert [at_most(each, None, 0.4).outcome for each in (plain, over, under)] == [Outcome.FAILED, Outcome.INCONCLUSIVE, Outcome.FAILED]
    judge = {"name": "m", "margin": 0.1, "error": 0.05, "higher_is_better": False, "relative": False}
    found = [
        paired_mean_not_worse(candidate=one, reference=other, **judge).interval
        for one, other in ((plain, plain), (over, plain), (plain, over), (under, plain), (plain, under))
    ]
    lower, upper = found[0]
    assert found[1:3] == [pytest.approx((lower - 0.2, upper)), pytest.approx((lower, upper + 0.2))]
    assert found[3:] == [pytest.approx((lower, upper + 0.2)), pytest.approx((lower - 0.2, upper))]


def test_a_share_of_the_reference_has_its_biases_as_shares():
    """With a reference of 4 and a candidate of 6, a bias of 0.2 is 0.05 of it; the reference's own counts 1.5 times."""
    one, other = spread(np.linspace(5, 7, 100)), spread(np.linspace(3, 5, 100))
    biased = replace(one, over=0.2, under=0.4), replace(other, over=0.8, under=1.6)
    found = judges.worsening(*biased, higher_is_better=False, relative=True)
    assert (found.over, found.under) == pytest.approx((0.05 + 1.5 * 0.4, 0.1 + 1.5 * 0.2))
    assert (found.estimate, found.scale) == pytest.approx((0.5, 1.5 / 4))
    turned = judges.worsening(*biased, higher_is_better=True, relative=False)
    assert (turned.over, turned.under) == pytest.approx((0.4 + 0.8, 0.2 + 1.6))
    assert (turned.estimate, turned.scale) == pytest.approx((-2, 1))


@given(HALVES)
def test_moments_are_numpys(pair):
    """The variance has n - 1 below, and the farthest values are those on either side of the mean, or the scale."""
    sample, values = judges._sample(pair[0]), np.array(pair[0].values)
    expected = values.mean(), np.var(values, ddof=1), max(values.max() - values.mean(), 1), max(values.mean() - values.min(), 1)
    assert (sample.estimate, sample.variance, sample.above, sample.below) == pytest.approx(expected)


def test_unpaired_is_wider_by_the_root_of_two():
    """A logged value is taken to be as uncertain as the candidate's."""
    one = spread(np.random.default_rng(3).normal(5, 1, 50_000))
    widths = [upper - lower for lower, upper in (unpaired(one, one, 0.1).interval, at_most(one, None, 5).interval)]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(2), rel=0.03)


def test_a_share_of_nothing_is_no_margin():
    """A reference of 0 or below has no share; a comparison without pairs is a mistake of the caller's."""
    one, none = spread(np.linspace(0, 1, 100)), spread(np.linspace(-1, 1, 100), estimate=0.0)
    assert paired_share(one, none, 0.5).outcome is Outcome.INCONCLUSIVE
    with pytest.raises(ValueError, match="are no pairs"):
        paired(one, spread(np.linspace(0, 1, 99)), 0.5)


@pytest.mark.parametrize("change", [{"error": 0}, {"error": math.nan}, {"error": 1}, {"limit": math.nan}, {"limit": math.inf}])
def test_means_without_meaningful_limits_are_refused(change):
    """An error budget outside 0 to 1 or a limit that is no number is an error, not a verdict."""
    with pytest.raises(ValueError, match=r"must lie between|must be finite"):
        mean_at_most(**{"name": "m", "contributions": spread(np.linspace(0, 1, 100)), "limit": 1.0, "error": 0.05, **change})


@pytest.mark.parametrize("margin", [0, -0.1, math.nan, math.inf])
def test_a_margin_without_meaning_is_refused(margin):
    """Margins are above 0 and finite."""
    one = spread(np.linspace(0, 1, 100))
    kinds = {"name": "m", "candidate": one, "margin": margin, "error": 0.05, "higher_is_better": False, "relative": False}
    with pytest.raises(ValueError, match="must lie between"):
        paired_mean_not_worse(reference=one, **kinds)
    with pytest.raises(ValueError, match="must lie between"):
        unpaired_mean_not_worse(logged=0.5, **kinds)


def test_findings_say_their_error_rates_and_what_they_take_for_granted():
    """In `why`: the chance to pass at the margin, and to pass and fail when equal; what an unseen row is taken to cost; any note."""
    rng = np.random.default_rng(8)
    one, other = (replace(spread(rng.normal(5, 0.2, 2000)), note="3 rows were odd") for _ in range(2))
    said = paired(one, other, 0.02).why
    assert "on the same 2000 rows (3 rows were odd)" in said
    assert "at this n, if a row unseen costs 1.2 at most: passed at the margin <= 5 %, an equal version passed ~ 91 %, failed < 1 %" in said
    assert len(said) < 400
    assert "passed at the limit <= 5 %, passed when better by 0.0" in at_most(one, None, 6).why
    assert "at this n: passed at the margin <= 5 %, an equal version passed > 99 %, failed < 1 %" in (
        paired_not_worse(name="a", wins=0, losses=0, n=2000, margin=0.02, error=0.05).why
    )
    assert "at this n: passed at the limit <= 5 %, passed when better by" in (
        accuracy_at_least(name="a", correct=900, n=1000, limit=0.85, error=0.05).why
    )


@pytest.mark.parametrize("freedom", [49, 200, 1000])
@pytest.mark.parametrize("error", [0.05, 0.01, 0.001, 0.0001])
def test_students_quantile_is_near(freedom, error):
    """The expansion agrees with scipy's quantile to a thousandth."""
    assert judges._student(norm.ppf(1 - error), freedom) == pytest.approx(student.ppf(1 - error, freedom), rel=1e-3)


def test_comparisons_share_one_error():
    """Bonferroni: shares add up to the whole, one comparison keeps it all, none is a mistake."""
    assert (shared_error(0.05, 1), shared_error(0.05, 10)) == (0.05, 0.005)
    with pytest.raises(ValueError, match="share nothing"):
        shared_error(0.05, 0)
    with pytest.raises(ValueError, match="must lie between"):
        shared_error(math.nan, 3)


# What a finding says


def accuracy(correct, n):
    return accuracy_at_least(name="accuracy", correct=correct, n=n, limit=0.85, error=0.05)


def pairs(wins, losses, n):
    return paired_not_worse(name="accuracy_vs_stable", wins=wins, losses=losses, n=n, margin=0.01, error=0.05)


def slow_queries(over, n, observed_ms):
    return quantile_within(name="p99_ms", over=over, n=n, quantile=0.99, limit_ms=100.0, observed_ms=observed_ms, error=0.01)


def ones_and_zeros(count, moved=0.0, **more):
    """So many pairs of 0 and 1, all moved by as much."""
    return Contributions(estimate=0.5 + moved, values=[0.0 + moved, 1.0 + moved] * count, scale=1.0, **more)


def below(limit, contributions):
    return mean_at_most(name="mae", contributions=contributions, limit=limit, error=0.05)


def above(limit, contributions):
    return mean_at_least(name="auc", contributions=contributions, limit=limit, error=0.05)


LOSS = {"margin": 0.1, "error": 0.05, "higher_is_better": False, "relative": True}


def against(reference, candidate):
    return paired_mean_not_worse(name="mae_vs_stable", candidate=candidate, reference=reference, **LOSS)


def against_logged(logged, candidate):
    return unpaired_mean_not_worse(name="mae_within_training", candidate=candidate, logged=logged, **LOSS)


WHOLE = {
    "right enough": lambda: accuracy(870, 1000),
    "not surely right enough": lambda: accuracy(855, 1000),
    "not right enough, but not surely": lambda: accuracy(845, 1000),
    "surely not right enough": lambda: accuracy(800, 1000),
    "no row to be right on": lambda: accuracy(0, 0),
    "as many won as lost": lambda: pairs(5, 5, 2000),
    "ten lost": lambda: pairs(0, 10, 400),
    "few pairs": lambda: pairs(0, 0, 10),
    "more lost than the margin, but not surely": lambda: pairs(0, 12, 1000),
    "no pairs": lambda: pairs(0, 0, 0),
    "no slow query in 459": lambda: slow_queries(0, 459, 90.0),
    "no slow query in 458": lambda: slow_queries(0, 458, 90.0),
    "many slow queries": lambda: slow_queries(20, 1000, 120.0),
    "some slow queries": lambda: slow_queries(5, 400, 101.0),
    "a quantile that is no number": lambda: slow_queries(0, 9, math.inf),
    "no failed request": lambda: errors(0, 65),
    "one failed request": lambda: errors(1, 9),
    "three failed requests": lambda: errors(3, 9),
    "as many failed as allowed": lambda: errors(90, 2000, limit=0.04),
    "a mean below": lambda: below(0.6, ones_and_zeros(100)),
    "a mean that may be below": lambda: below(0.55, ones_and_zeros(100, under=0.02)),
    "a mean above": lambda: below(0.4, ones_and_zeros(100)),
    "a mean at least": lambda: above(0.4, ones_and_zeros(100, note="by pairs", rows="groups")),
    "a mean not at least": lambda: above(0.7, ones_and_zeros(100, over=0.02)),
    "a mean of few": lambda: below(0.6, ones_and_zeros(10)),
    "a mean that is no number": lambda: below(0.6, Contributions(estimate=math.nan, values=[1.0, math.nan], scale=1.0)),
    "an equal mean": lambda: against(ones_and_zeros(100), ones_and_zeros(100)),
    "a worse mean": lambda: against(ones_and_zeros(100, note="a word"), ones_and_zeros(100, 0.1)),
    "a slightly worse mean": lambda: against(ones_and_zeros(40), ones_and_zeros(40, 0.03)),
    "no mean to have a share of": lambda: against(ones_and_zeros(100, -0.5), ones_and_zeros(100)),
    "the logged mean": lambda: against_logged(0.5, ones_and_zeros(2000, note="a word")),
    "the logged mean on few rows": lambda: against_logged(0.5, ones_and_zeros(100, over=0.01, under=0.03)),
    "the logged mean on very few rows": lambda: against_logged(0.5, ones_and_zeros(5)),
    "a logged mean that is no number": lambda: against_logged(math.nan, ones_and_zeros(100)),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Words, numbers, interval, size and advice: all that people and the registry read, in each outcome."""
    assert in_full(WHOLE[case]()) == expected("judges", case)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (lambda: errors(6, 5), "6 of 5 is no count"),
        (lambda: errors(-1, 5), "-1 of 5 is no count"),
        (lambda: errors(0, 9, limit=0.05), "0.05 must lie between 0.05 and 1"),
        (lambda: errors(0, 9, limit=0), "0 must lie between 0 and 1"),
        (lambda: errors(0, 9, miss=1), "1 must lie between 0 and 1"),
        (lambda: accuracy(6, 5), "6 of 5 is no count"),
        (lambda: pairs(4, 2, 5), "4 of 3 is no count"),
        (lambda: paired_not_worse(name="a", wins=0, losses=0, n=5, margin=1, error=0.05), "1 must lie between 0 and 1"),
        (lambda: quantile_within(name="a", over=0, n=5, quantile=1, limit_ms=1, observed_ms=1, error=0.05), "1 must lie between 0 and 1"),
        (lambda: below(math.inf, ones_and_zeros(100)), "the limit is inf: it must be finite"),
        (lambda: against(ones_and_zeros(10), ones_and_zeros(100)), "200 and 20 rows are no pairs"),
        (lambda: shared_error(0.05, 0), "0 comparisons share nothing"),
        (lambda: shared_error(1.0, 2), "1.0 must lie between 0 and 1"),
    ],
)
def test_a_question_without_meaning_is_refused_in_one_sentence(judge, words):
    """It is the caller's mistake: the number is named, and where it must lie."""
    with pytest.raises(ValueError, match=r".") as caught:
        judge()
    assert str(caught.value) == words
