"""The planner: what the steps of a policy can see at a given traffic, and what it calls a problem."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from airflow_home import ROOT

from validation.error_rates import surely_above_at
from validation.plan import Traffic, main, plan, seen_error_rate, seen_mean_ratio, sees_errors
from validation.policy import Policy, Step, read_policy
from validation.rollout_judge import chance

FILE = ROOT / "dags" / "policies" / "digits.toml"
POLICY = read_policy(FILE)


def stepped(*steps: Step) -> Policy:
    return replace(POLICY, rollout=replace(POLICY.rollout, steps=steps))


def test_more_traffic_sees_more():
    """At each step the least rise that is found falls with the rate, for errors, mean and p99."""
    thin, thick = (plan(POLICY, Traffic(rps=rps)) for rps in (20, 400))
    for few, many in zip(thin, thick, strict=True):
        assert many.seen_error_rate <= few.seen_error_rate
        assert many.seen_mean_ratio < few.seen_mean_ratio
        assert many.seen_p99_ratio <= few.seen_p99_ratio


def test_later_steps_see_what_earlier_ones_saw():
    """Evidence goes on: no step sees less of errors than the one before."""
    rates = [each.seen_error_rate for each in plan(POLICY, Traffic(rps=100))]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("n", [300, 3000, 30_000])
def test_what_is_said_to_be_seen_is_found(n):
    """Of simulated versions with the least rate that is promised, most are found, whose power was put at 80 %."""
    rate, random = seen_error_rate(n, POLICY.rollout), np.random.default_rng(1)
    budget = chance(POLICY.rollout, "errors")
    found = [surely_above_at(random.random(n) < rate, POLICY.rollout.error_limit, budget) is not None for _ in range(200)]
    assert np.mean(found) > 0.7


def test_no_requests_see_nothing():
    """Zero requests, or so few that nothing could be shown: infinite, and not a small number."""
    assert math.isinf(seen_error_rate(0, POLICY.rollout))
    assert math.isinf(seen_mean_ratio(0.5, 100, POLICY.rollout, 0.5))
    assert not sees_errors(0, 0.9, POLICY.rollout)


def test_a_step_that_cannot_be_passed_in_time_is_a_problem():
    """At half a request a second nobody excludes 0.5 % errors within three minutes."""
    problems = [problem for each in plan(POLICY, Traffic(rps=0.5)) for problem in each.problems]
    assert any("has max_seconds = 180" in each for each in problems)


def test_a_step_that_sees_nothing_is_a_problem_unless_it_is_meant_so():
    """One per mille of one request a second for ten seconds."""
    blind = Step(permille=1, min_seconds=0.0, max_seconds=10.0, exclude_error_rate=0.9, exclude_latency_worse=9.0)
    problems = list(plan(stepped(blind, POLICY.rollout.steps[-1]), Traffic(rps=1))[0].problems)
    assert any("sees nothing" in each for each in problems)
    meant = replace(blind, blind=True)
    assert not any("sees nothing" in each for each in plan(stepped(meant, POLICY.rollout.steps[-1]), Traffic(rps=1))[0].problems)


def test_the_command_prints_a_line_for_each_step(capsys: pytest.CaptureFixture[str]):
    """And how long a rise of errors and of the tail takes; status 0 without problems."""
    assert main(["plan", str(FILE), "--rps", "130"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("1.0%", "10.0%", "50.0%", "100.0%", "errors of 0.5 %", "a p99 20 %"))


def test_the_command_tells_problems_and_bad_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Status 1 with problems, 64 for a policy that cannot be read."""
    assert main(["plan", str(FILE), "--rps", "0.5"]) == 1
    assert "problem: the step at" in capsys.readouterr().out
    (tmp_path / "churn.toml").write_text("model = 3")
    assert main(["plan", str(tmp_path / "churn.toml"), "--rps", "10"]) == 64


DIGITS = [
    "digits at 130 requests/s; stable fails 0.050%, latency log-normal, log-sigma 0.5",
    "  share  requests good passes after     must exclude sees errors from mean from  p99 from",
    "   1.0%       156               8 s    50.00%, +500%            3.89%      +34%      +76%",
    "  10.0%     2,351               9 s     5.00%, +100%            0.55%      +16%      +30%",
    "  50.0%    11,831              27 s      0.50%, +25%            0.28%      +14%      +22%",
    " 100.0%    25,273               8 s      0.50%, +25%            0.21%      +15%      +25%",
    "errors of 0.5 % are found after 3,059 candidate requests: 39.2 min at 1.0%, 3.9 min at 10.0%, 0.8 min at 50.0%, 0.4 min at 100.0%",
    (
        "a p99 20 % beyond what is allowed, beside nine times the traffic on stable, after 1,793: "
        "23.0 min at 1.0%, 2.3 min at 10.0%, 0.5 min at 50.0%, 0.2 min at 100.0%"
    ),
]


def test_the_report_is_whole(capsys: pytest.CaptureFixture[str]):
    """What the README shows: shares, requests, times and the least rises that are seen, each in its column."""
    main(["plan", str(FILE), "--rps", "130"])
    assert capsys.readouterr().out.splitlines() == DIGITS
