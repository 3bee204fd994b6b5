"""The end of a warm-up is found where the trend ends, and nowhere in noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.warm_up import BATCH, LEAST, steady_from


def noise(seed, n=1000, spread=0.2):
    return np.random.default_rng(seed).lognormal(math.log(0.01), spread, n)


def ramp(n, warm, factor=8.0):
    """Factors that fall to 1 until `warm`."""
    return factor ** np.clip(1 - np.arange(n) / warm, 0, None)


@pytest.mark.parametrize("warm", [50, 100, 200])
def test_a_warm_up_is_cut_where_it_ends(warm):
    """Of a server that is eight times as slow at first, most of the slow part is left out, and little else."""
    cuts = [steady_from(noise(seed) * ramp(1000, warm)) for seed in range(20)]
    assert all(0.7 * warm <= cut <= warm + 100 for cut in cuts)


def test_what_is_left_is_steady():
    """The median after the cut is that of the noise alone, within a few percent."""
    for seed in range(20):
        latency_s = noise(seed) * ramp(1000, 200)
        assert np.median(latency_s[steady_from(latency_s) :]) == pytest.approx(0.01, rel=0.06)


def test_stationary_noise_is_steady_soon():
    """A server that is warm already gives nothing away: half of the cuts lie within the first twentieth, none beyond the middle."""
    cuts = [steady_from(noise(seed, n=500, spread=0.4)) for seed in range(200)]
    assert None not in cuts
    assert np.median(cuts) <= 25
    assert np.quantile(cuts, 0.9) <= 100


@pytest.mark.parametrize("factor", [8.0, 1 / 8])
def test_a_trend_to_the_end_is_no_steady_state(factor):
    """Latencies that fall, or rise, all the time say nothing of what is to come."""
    assert [steady_from(noise(seed, spread=0.02) * ramp(1000, 1000, factor)) for seed in range(20)] == [None] * 20


def test_a_warm_up_longer_than_half_is_not_over():
    """More than the first half is never left out: the rest would be too few to know."""
    assert steady_from(noise(1) * ramp(1000, 700)) is None


def test_too_few_queries_are_no_steady_state():
    """Also when they are all equal."""
    assert steady_from(np.full(LEAST - 1, 0.01)) is None
    assert steady_from(np.array([])) is None


@pytest.mark.parametrize("odd", [9.0, math.inf])
def test_a_single_slow_answer_is_no_trend(odd):
    """One of five does not move a batch's median; nor does one that failed."""
    latency_s = noise(1, n=500)
    latency_s[3] = odd
    assert steady_from(latency_s) <= BATCH


def test_failed_queries_among_good_ones_do_not_hide_the_steady_state():
    """Infinite latencies here and there count as the longest that was seen."""
    latency_s = noise(2, n=500)
    latency_s[::40] = math.inf
    assert steady_from(latency_s) <= 50


def test_queries_that_fail_at_first_are_part_of_the_warm_up():
    """A server that refuses until it has loaded is left out as a slow one is."""
    latency_s = noise(3)
    latency_s[:150] = math.inf
    assert 150 <= steady_from(latency_s) <= 250


def test_queries_that_all_fail_are_no_trend():
    """To fail them is another's business; here they raise nothing, not even one of NumPy's warnings."""
    with np.errstate(all="raise"):
        assert steady_from(np.full(LEAST, math.inf)) == 0


@settings(max_examples=25)
@given(st.lists(st.one_of(st.floats(1e-6, 100), st.just(math.inf)), min_size=LEAST, max_size=LEAST + 2 * BATCH))
def test_a_cut_is_whole_batches_of_the_first_half(latencies_s):
    """Whatever the latencies are, infinite ones among them."""
    cut = steady_from(np.array(latencies_s))
    assert cut is None or (cut % BATCH == 0 and 0 <= cut < len(latencies_s) / 2)


def test_equal_latencies_are_steady_from_the_first():
    """Rounding is no trend."""
    assert steady_from(np.full(100, 0.0123)) == 0


def test_a_trend_under_noise_is_rarely_taken_for_steady():
    """A fall of eight times over the whole load, under noise of 0.4 on the logarithm."""
    rng = [np.random.default_rng(seed) for seed in range(100)]
    falls = [each.lognormal(math.log(0.01), 0.4, 1000) * 8.0 ** (1 - np.arange(1000) / 1000) for each in rng]
    assert sum(steady_from(each) is not None for each in falls) <= 1
