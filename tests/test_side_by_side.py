"""Two versions in turns: what the machine does to both is no evidence, what a version does is found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student

from validation.contract import Outcome
from validation.side_by_side import LEAST_PAIRS, _t, not_worse


def turns(rng, *, ratio=1.0, pairs=6, n=30, drift=0.3):
    """Blocks of the candidate and of stable: lognormal latencies about 10 ms, and a machine that slows both of a pair alike."""
    machine = rng.lognormal(math.log(0.01), drift, pairs)
    return [ratio * each * rng.lognormal(0, 0.4, n) for each in machine], [each * rng.lognormal(0, 0.4, n) for each in machine]


def compared(candidate, stable, *, quantile=0.5, margin=0.1, equal_below_s=0.0, error=0.05):
    return not_worse(
        name="ratio",
        candidate=candidate,
        stable=stable,
        quantile=quantile,
        margin=margin,
        equal_below_s=equal_below_s,
        error=error,
    )


def share(outcome, seed, runs, *, quantile=0.5, **made):
    rng = np.random.default_rng(seed)
    return np.mean([compared(*turns(rng, **made), quantile=quantile).outcome is outcome for _ in range(runs)])


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_equal_versions_are_not_called_worse(quantile):
    """Of versions that are the same, at most the budget fails, however the machine drifts from pair to pair."""
    assert share(Outcome.FAILED, 1, 200, quantile=quantile) <= 0.05


def test_versions_at_the_margin_are_not_passed():
    """Of candidates just as much worse as is too much, no more pass than the budget and the luck of 100 runs."""
    assert share(Outcome.PASSED, 2, 100, ratio=1.1) <= binom.ppf(0.99, 100, 0.05) / 100


def test_a_slower_version_is_found():
    """30 % slower where 10 % are allowed: found in nearly all of the runs, from six pairs."""
    rng = np.random.default_rng(3)
    found = [compared(*turns(rng, ratio=1.3, n=60)).outcome for _ in range(50)]
    assert found.count(Outcome.FAILED) >= 45
    assert found.count(Outcome.PASSED) == 0


def test_an_equal_version_passes():
    """Nearly always, from twenty pairs."""
    assert share(Outcome.PASSED, 4, 50, pairs=20, n=60) >= 0.9


def test_a_faster_version_passes():
    """To be better is never to be different."""
    assert share(Outcome.PASSED, 5, 20, ratio=0.5) == 1


def test_below_what_is_fast_enough_everything_is_equal():
    """Five times as slow passes where nobody can tell, and the ratio says that they are equal."""
    finding = compared(*turns(np.random.default_rng(6), ratio=5.0, drift=0.0), equal_below_s=9.0)
    assert (finding.outcome, finding.observed, finding.interval) == (Outcome.PASSED, 1.0, (1.0, 1.0))


def test_a_slow_candidate_is_measured_from_what_is_fast_enough():
    """30 ms against 1 ms, with 20 ms fast enough, are half as long again and not thirty times as long."""
    finding = compared([np.full(9, 0.03)] * 6, [np.full(9, 0.001)] * 6, equal_below_s=0.02)
    assert (finding.outcome, finding.observed) == (Outcome.FAILED, pytest.approx(1.5))


def test_a_share_as_large_as_the_margin_passes():
    """The margin itself is allowed."""
    assert compared([np.full(9, 0.0109999)] * 6, [np.full(9, 0.01)] * 6).outcome is Outcome.PASSED
    assert compared([np.full(9, 0.0110001)] * 6, [np.full(9, 0.01)] * 6).outcome is Outcome.FAILED


@pytest.mark.parametrize("failing", [("candidate",), ("stable",), ("candidate", "stable")])
def test_infinite_latencies_never_pass(failing):
    """A quantile made of failed queries is no number, whichever version they are of, also where all is fast enough."""
    blocks = dict(zip(("candidate", "stable"), turns(np.random.default_rng(7)), strict=True))
    for each in failing:
        for block in blocks[each]:
            block[:3] = math.inf
    for equal_below_s in (0.0, 9.0):
        finding = compared(**blocks, quantile=0.95, equal_below_s=equal_below_s)
        assert (finding.outcome, finding.observed) == (Outcome.INCONCLUSIVE, None)
        assert "failed" in finding.why


def test_a_quantile_that_may_be_infinite_does_not_pass():
    """When all failures lie in one pair, and drawing it twice would reach the quantile, nothing is known."""
    candidate, stable = turns(np.random.default_rng(8), ratio=0.1)
    candidate[0][:8] = math.inf
    assert compared(candidate, stable, quantile=0.95).outcome is Outcome.INCONCLUSIVE


def test_few_pairs_are_inconclusive():
    """However clear they look; the finding says how many there must be."""
    candidate, stable = turns(np.random.default_rng(9), ratio=9.0, pairs=LEAST_PAIRS)
    finding = compared(candidate[1:], stable[1:])
    assert (finding.outcome, finding.observed) == (Outcome.INCONCLUSIVE, None)
    assert finding.why == f"{LEAST_PAIRS - 1} pairs of blocks were measured; {LEAST_PAIRS} are needed"
    assert compared(candidate, stable).outcome is Outcome.FAILED
    assert compared([], []).outcome is Outcome.INCONCLUSIVE


def test_blocks_without_a_partner_are_no_pairs():
    """Fewer blocks of one version than of the other are a programmer's error, and no measurement."""
    candidate, stable = turns(np.random.default_rng(10))
    with pytest.raises(ValueError, match="shorter"):
        compared(candidate, stable[1:])


SECONDS = st.floats(1e-4, 10.0)
BLOCKS = st.lists(st.lists(SECONDS, min_size=1, max_size=9), min_size=6, max_size=8)


@settings(max_examples=40)
@given(BLOCKS, BLOCKS, st.sampled_from([0.5, 0.9, 0.99]))
def test_the_finding_agrees_with_its_numbers(candidate, stable, quantile):
    """The ratio is that of NumPy's quantiles (nearest rank), inside its interval, and the interval's place makes the outcome."""
    pairs = min(len(candidate), len(stable))
    candidate, stable = ([np.array(each) for each in blocks[:pairs]] for blocks in (candidate, stable))
    finding = compared(candidate, stable, quantile=quantile)
    ours, theirs = (np.quantile(np.concatenate(blocks), quantile, method="inverted_cdf") for blocks in (candidate, stable))
    low, high = finding.interval
    assert finding.observed == pytest.approx(ours / theirs)
    assert low <= finding.observed <= high
    assert (finding.outcome is Outcome.FAILED) == (low > finding.limit)
    assert (finding.outcome is Outcome.PASSED) == (high <= finding.limit)
    assert finding.n == sum(map(len, candidate))


def test_what_is_not_known_comes_with_advice():
    """Inconclusive says what would help; the others need nothing."""
    noisy = [np.full(5, 0.01 * 3.0**place) for place in range(6)]
    unsure = compared(noisy, noisy[::-1])
    assert unsure.outcome is Outcome.INCONCLUSIVE
    assert "max_seconds" in unsure.advice
    assert compared([np.full(9, 0.01)] * 6, [np.full(9, 0.01)] * 6).advice is None


def test_the_same_measurements_give_the_same_finding():
    """What is drawn is drawn from the seed."""
    blocks = turns(np.random.default_rng(11))
    assert compared(*blocks) == compared(*blocks)


@pytest.mark.parametrize("degrees", [7, 8, 10, 15, 30, 100])
@pytest.mark.parametrize("level", [0.99, 0.995, 0.999, 0.9999])
def test_students_quantile_agrees_with_scipys(level, degrees):
    """The expansion is within 2 % of the true quantile at the levels that looks use."""
    assert _t(level, degrees) == pytest.approx(student.ppf(level, degrees), rel=0.02)


def test_the_fewest_pairs_reach_far_enough():
    """At five degrees and the levels of several looks the expansion still misses less than 4 %."""
    for level in (0.99, 0.999, 0.9999):
        assert _t(level, LEAST_PAIRS - 1) == pytest.approx(student.ppf(level, LEAST_PAIRS - 1), rel=0.04)
