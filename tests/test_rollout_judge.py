"""The judge of a rollout: what is demanded at which share, what a gap does, and that nothing is passed for lack of anything."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from airflow_home import ROOT

from validation.contract import Outcome, worst
from validation.policy import TrafficSlices, read_policy
from validation.rollout_judge import Evidence, chance, judge_rollout, slice_chance
from validation.served import Served

# The answers that are made up here take 20 ms: the policy's own limit would call them all fast enough.
ROLLOUT = replace(read_policy(ROOT / "dags" / "policies" / "digits.toml").rollout, indifferent_below_ms=10.0)
FIRST, THIRD = ROLLOUT.steps[0], ROLLOUT.steps[2]
SLICED = replace(ROLLOUT, slices=TrafficSlices(header="x-tenant", values=("a", "b")))


def served(n, *, start_s=0.0, seconds=60.0, fails=0, times=1.0, seed=0) -> Served:
    random = np.random.default_rng(seed)
    unix_s = start_s + np.sort(random.random(n)) * seconds
    ok = np.ones(n, bool)
    ok[random.permutation(n)[:fails]] = False
    return Served(unix_s=unix_s, ok=ok, latency_ms=20 * times * np.exp(0.3 * random.normal(size=n)))


def evidence(candidate, stable=None, *, slices="", stable_slices="", **changes) -> Evidence:
    stable = served(3000, seed=9) if stable is None else stable
    named, stable_named = (
        np.full(len(each), names) if isinstance(names, str) else names for each, names in ((candidate, slices), (stable, stable_slices))
    )
    return Evidence(candidate=candidate, stable=stable, slices=named, stable_slices=stable_named, **({"step_since_s": 0.0} | changes))


def outcomes(seen, step=THIRD, rollout=ROLLOUT) -> dict[str, Outcome]:
    return {each.name: each.outcome for each in judge_rollout(seen, rollout, step)}


def test_a_good_candidate_passes_in_everything_that_is_demanded():
    """Before all of the traffic: errors, errors against stable, and latency in three ways."""
    found = outcomes(evidence(served(3000, seed=1)))
    assert found == dict.fromkeys(("errors", "errors_against_stable", "latency_mean", "latency_median", "latency_p99"), Outcome.PASSED)


def test_a_small_share_need_not_show_what_it_cannot():
    """At 1 % the tail of latency is heard only when it is surely bad."""
    assert set(outcomes(evidence(served(100, seed=1)), FIRST)) == {"errors", "errors_against_stable", "latency_mean"}
    slow = served(1000, times=4, seed=1)
    assert outcomes(evidence(slow), FIRST)["latency_p99"] is Outcome.FAILED


@pytest.mark.parametrize("candidate", [served(0), served(3)])
@pytest.mark.parametrize("step", ROLLOUT.steps)
def test_without_requests_no_step_is_passed(candidate, step):
    """Empty or nearly: inconclusive."""
    assert worst(outcomes(evidence(candidate), step).values()) is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("step", ROLLOUT.steps)
def test_without_stable_no_step_is_passed(step):
    """Nothing to compare with."""
    assert worst(outcomes(evidence(served(5000, seed=1), served(0)), step).values()) is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("column", ["unix_s", "latency_ms"])
def test_a_row_that_cannot_be_read_is_never_passed(column):
    """NaN in any column."""
    candidate = served(3000, seed=1)
    values = getattr(candidate, column).copy()
    values[17] = math.nan
    assert Outcome.PASSED not in outcomes(evidence(replace(candidate, **{column: values}))).values()


def test_failures_decide_by_themselves():
    """A fifth of 40 requests fails: failed, though nothing is known of latency yet."""
    assert outcomes(evidence(served(40, fails=8, seed=1)))["errors"] is Outcome.FAILED


def test_what_came_before_a_gap_counts_against_and_never_for():
    """3,000 clean requests before a gap pass nothing; failures before it are remembered."""
    gap = {"whole_since_s": 59.9}
    clean = outcomes(evidence(served(3000, seed=1), **gap))
    assert Outcome.PASSED not in clean.values()
    assert outcomes(evidence(served(40, fails=8, seed=1), **gap))["errors"] is Outcome.FAILED


def test_after_a_gap_as_much_can_be_shown_again():
    """A minute of clean traffic on both sides passes."""
    candidate, stable = (served(6000, seconds=120, seed=each) for each in (1, 2))
    assert worst(outcomes(evidence(candidate, stable, whole_since_s=60.0)).values()) is Outcome.PASSED


def test_the_least_number_of_requests_is_demanded():
    """Counted since the step's share was set."""
    step = replace(THIRD, min_requests=2000)
    seen = evidence(served(3000, seed=1), step_since_s=30.0)
    assert outcomes(seen, step)["requests"] is Outcome.INCONCLUSIVE
    assert outcomes(replace(seen, step_since_s=0.0), step)["requests"] is Outcome.PASSED


def test_a_slice_without_requests_is_not_a_pass():
    """Each value that the policy lists must be shown, once the next share is all of the traffic."""
    found = outcomes(evidence(served(3000, seed=1), slices="a", stable_slices="a"), rollout=SLICED)
    assert (found["errors[x-tenant=a]"], found["errors[x-tenant=b]"]) == (Outcome.PASSED, Outcome.INCONCLUSIVE)
    assert (found["latency_mean[x-tenant=a]"], found["latency_mean[x-tenant=b]"]) == (Outcome.PASSED, Outcome.INCONCLUSIVE)
    alone = outcomes(evidence(served(3000, seed=1), slices="a", stable_slices="b"), rollout=SLICED)
    assert Outcome.PASSED not in (alone["latency_mean[x-tenant=a]"], alone["latency_mean[x-tenant=b]"])


def test_a_slice_that_fails_is_found_among_many_good_requests():
    """Twenty of tenant b's forty requests fail, everything else is fine."""
    candidate = served(4000, seed=1)
    slices = np.where(np.arange(4000) % 100 == 0, "b", "a")
    ok = candidate.ok & ~((slices == "b") & (np.arange(4000) % 200 == 0))
    assert outcomes(evidence(replace(candidate, ok=ok), slices=slices), FIRST, SLICED)["errors[x-tenant=b]"] is Outcome.FAILED


def test_a_slice_that_is_slow_is_found_among_many_fast_requests():
    """Tenant b waits three times as long, one request in twenty; the mean of all hardly moves."""
    slices = np.where(np.arange(4000) % 20 == 0, "b", "a")
    candidate, stable = served(4000, seed=1), served(4000, seed=2)
    slow = replace(candidate, latency_ms=candidate.latency_ms * np.where(slices == "b", 3, 1))
    found = outcomes(evidence(slow, stable, slices=slices, stable_slices=slices), FIRST, SLICED)
    assert found["latency_mean[x-tenant=b]"] is Outcome.FAILED
    assert found["latency_mean"] is not Outcome.FAILED
    assert "latency_mean[x-tenant=a]" not in found


def test_slices_share_the_budgets_of_errors_and_mean():
    """Family-wise: with slices the whole keeps half of its part, and they have the rest."""
    for name in ("errors", "latency_mean"):
        assert chance(SLICED, name) == chance(ROLLOUT, name) / 2
        assert chance(SLICED, name) + 2 * slice_chance(SLICED, name) == pytest.approx(chance(ROLLOUT, name))
    assert chance(SLICED, "latency_p99") == chance(ROLLOUT, "latency_p99")


def test_slow_answers_while_warming_up_are_forgiven():
    """The candidate's first two seconds say nothing about latency; its errors there count."""
    cold, warm = served(40, seconds=1.9, times=50, seed=1), served(3000, start_s=2.1, seed=2)
    columns = {name: np.concatenate([getattr(cold, name), getattr(warm, name)]) for name in ("unix_s", "ok", "latency_ms")}
    candidate = Served(**columns)
    assert outcomes(evidence(candidate))["latency_mean"] is Outcome.PASSED
    assert outcomes(evidence(candidate), rollout=replace(ROLLOUT, warmup_seconds=0.0))["latency_mean"] is not Outcome.PASSED
