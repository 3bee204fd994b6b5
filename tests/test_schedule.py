"""When the queries of a load are due, and what each look at them may spend."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from validation.schedule import ARRIVALS, doubling, error_at, fixed_rate, poisson, queries_within


def test_poisson_arrivals_keep_their_rate():
    """Over many queries the time between two is one over the rate."""
    due_s = poisson(50, 20_000, np.random.default_rng(1))
    assert due_s[-1] / len(due_s) == pytest.approx(1 / 50, rel=0.03)


def test_poisson_gaps_are_exponential():
    """Users know nothing of each other: gaps have the exponential law, the first one among them, and do not follow from the one before."""
    gaps_s = np.diff(poisson(50, 5000, np.random.default_rng(2)), prepend=0.0)
    assert kstest(gaps_s * 50, "expon").pvalue > 0.01
    assert abs(np.corrcoef(gaps_s[:-1], gaps_s[1:])[0, 1]) < 0.05


def test_a_fixed_rate_has_even_distances():
    """No two queries are nearer to each other than any others, and the first comes at a random place of the first distance."""
    due_s = fixed_rate(50, 1000, np.random.default_rng(3))
    assert np.diff(due_s) == pytest.approx(np.full(999, 1 / 50))
    starts = [fixed_rate(50, 1, np.random.default_rng(seed))[0] * 50 for seed in range(200)]
    assert kstest(starts, "uniform").pvalue > 0.01


@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
def test_the_same_seed_gives_the_same_load(arrivals):
    """A load can be repeated, and is in order of time from now on."""
    first, second = (arrivals(100, 50, np.random.default_rng(4)) for _ in range(2))
    assert first.tolist() == second.tolist() == sorted(first.tolist())
    assert (len(first), first[0] > 0) == (50, True)


@pytest.mark.parametrize(
    ("first", "most", "sizes"),
    [
        (100, 800, [100, 200, 400, 800]),
        (100, 900, [100, 200, 400, 800, 900]),
        (100, 101, [100, 101]),
        (100, 100, [100]),
        (100, 30, [30]),
        (100, 0, [1]),
    ],
)
def test_looks_double_up_to_the_most(first, most, sizes):
    """The last look has all queries that there will be, also where these are no doubling or fewer than the first look's."""
    assert doubling(first, most) == sizes


@given(st.integers(1, 1000), st.integers(1, 10**6))
def test_each_look_sees_more_than_the_one_before(first, most):
    """Sizes rise, the last is the most, and none more than doubles the one before."""
    sizes = doubling(first, most)
    assert sizes[-1] == most
    assert all(few < many <= 2 * few for few, many in pairwise(sizes))


@given(st.integers(1, 12), st.floats(1e-6, 0.5))
def test_all_looks_together_spend_exactly_the_error(looks, error):
    """Never more, which would break the promise, and never less, which would waste it."""
    assert math.isclose(math.fsum(error_at(look, looks, error) for look in range(1, looks + 1)), error, rel_tol=1e-12)


@given(st.integers(2, 12), st.floats(1e-6, 0.5))
def test_looks_that_are_never_taken_cost_half_at_most(looks, error):
    """The first of several has half of the error, and no look has more than the one before."""
    spent = [error_at(look, looks, error) for look in range(1, looks + 1)]
    assert spent[0] == error / 2
    assert spent == sorted(spent, reverse=True)


def test_a_single_look_has_all_of_the_error():
    """Who looks once pays nothing for looks that nobody takes."""
    assert error_at(1, 1, 0.01) == 0.01


@pytest.mark.parametrize(("rate_per_s", "seconds", "n"), [(10, 3, 30), (0.5, 3, 1), (0.1, 1, 1)])
def test_a_load_has_at_least_one_query(rate_per_s, seconds, n):
    """Whole queries that fit the time; a rate that fits none still asks once."""
    assert queries_within(rate_per_s, seconds) == n
