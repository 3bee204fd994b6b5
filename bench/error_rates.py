"""The always-valid error judge, measured by simulation: how soon it finds what, and how rarely it is wrong. Seeded; one process.

Failures are independent here, and the judge counts them as if they came in bursts; its false alarms are also counted with real bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.figures import Figure
from validation.error_rates import surely_above_at

SEED, RUNS, LIMIT = 4, 4000, 0.001
ALONE, IN_THE_SET = 0.01, 0.0045
"""The chance of a false alarm that this metric has alone, and within the default set of metrics (`rollout_judge.PARTS`)."""

FOREVER = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    rate: float
    rows: int
    percentile: float
    goal: int


CASES = (
    Case(name="err20_median", rate=0.2, rows=200, percentile=50, goal=8),
    Case(name="err20_p90", rate=0.2, rows=200, percentile=90, goal=19),
    Case(name="err5_median", rate=0.05, rows=800, percentile=50, goal=32),
    Case(name="err1_median", rate=0.01, rows=6000, percentile=50, goal=410),
    Case(name="err05_median", rate=0.005, rows=12_000, percentile=50, goal=1450),
)


def measure() -> list[Figure]:
    return [*(_delay(case) for case in CASES), _low_traffic(), *(_false_alarms(each) for each in (0.0, 0.3, 0.6))]


def _delay(case: Case) -> Figure:
    alone, within = (_percentile(case, chance) for chance in (ALONE, IN_THE_SET))
    bound = math.log(1 / ALONE) / _divergence(case.rate, LIMIT)
    what = f"candidate requests until taken back, {case.rate:.1%} errors, limit 0.1 %, this metric alone at 1 %; {RUNS:,} runs"
    how = f"{what}; within the default set {within:.0f} (goal {1.5 * case.goal:.0f}); ln(1/alpha)/KL is {bound:.0f}, a mean"
    return Figure(name=case.name, value=round(alone), unit="requests", goal=f"<= {case.goal}", how=how)


def _percentile(case: Case, chance: float) -> float:
    random = np.random.default_rng(SEED)
    ends = [surely_above_at(random.random(case.rows) < case.rate, LIMIT, chance) or FOREVER for _ in range(RUNS)]
    return float(np.percentile(ends, case.percentile, method="inverted_cdf"))


def _low_traffic() -> Figure:
    """60 requests a minute for an hour, errors risen from 0.05 % to 0.5 %."""
    found = {chance: _found(0.005, 3600, chance) for chance in (ALONE, IN_THE_SET)}
    how = f"errors 0.05 % -> 0.5 % at 60 requests a minute, within the hour, alone at 1 %; {RUNS:,} runs; within the default set"
    return Figure(
        name="low_traffic_found_pct", value=round(found[ALONE], 1), unit="%", goal=">= 90", how=f"{how} {found[IN_THE_SET]:.1f} %"
    )


def _found(rate: float, rows: int, chance: float) -> float:
    random = np.random.default_rng(SEED)
    return 100 * float(np.mean([surely_above_at(random.random(rows) < rate, LIMIT, chance) is not None for _ in range(RUNS)]))


def _false_alarms(correlation: float) -> Figure:
    random = np.random.default_rng(SEED)
    alarms = np.mean([surely_above_at(burst_flags(random, correlation, LIMIT, 20_000), LIMIT, ALONE) is not None for _ in range(10_000)])
    name = f"err_false_alarm{f'_ar{10 * correlation:.0f}' if correlation else ''}_pct"
    how = f"a rate of exactly the limit, lag-1 correlation {correlation}, 20,000 requests, every look; 10,000 runs"
    return Figure(name=name, value=round(100 * float(alarms), 2), unit="%", goal="<= 1", how=how)


def burst_flags(random: np.random.Generator, correlation: float, rate: float, rows: int) -> np.ndarray:
    """Failures as a Markov chain: a failure begins with chance (1 - r) p, and goes on with chance r + (1 - r) p."""
    failed, begins = np.zeros(rows, bool), (1 - correlation) * rate
    for start in np.flatnonzero(random.random(rows) < begins):
        failed[start : start + random.geometric(1 - correlation - begins)] = True
    return failed


def _divergence(rate: float, limit: float) -> float:
    """Kullback-Leibler divergence per request, in nats."""
    return rate * math.log(rate / limit) + (1 - rate) * math.log((1 - rate) / (1 - limit))
