"""How soon the judges of error counts take a bad candidate back, and how often a good one, over thousands of simulated runs.

Each figure asks `validation.error_rates` itself, about rows as the watch would give them. The goals are for this judge alone with a budget
of 1 %; `how` adds what it needs with `SHARED`, its part of the budget among a rollout's default metrics (half as much again is allowed
there), and Wald's bound ln(1/budget) / KL: the least that any always valid test needs on average (Wald 1945, "Sequential tests of
statistical hypotheses"). A median may lie below it, because the mean of the requests needed lies above their median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from bench.figures import Figure
from validation.contract import Outcome
from validation.error_rates import Bools, error_rate_not_above, first_sure
from validation.served import Served

LIMIT = 0.001
ALONE, SHARED = 0.01, 0.004
RUNS, PAIRED_RUNS = 10_000, 500
LONG = 30_000
"""Requests of a run at the limit: 30 times as many as one failure takes."""

HOUR = 3600
"""Requests of the candidate's in an hour at 60 a minute."""

SEED = 41

Draw = Callable[[np.random.Generator], Bools]


def measure() -> list[Figure]:
    return [*_gross(), *_finer(), _low_traffic(), _false_alarms()]


def stops(draw: Draw, *, false_alarm: float, runs: int, seed: int) -> np.ndarray:
    """The request, from 1, at which each of the runs is failed; infinite where it never is."""
    rng = np.random.default_rng(seed)
    found = (first_sure(draw(rng), LIMIT, false_alarm) for _ in range(runs))
    return np.array([math.inf if row is None else row + 1 for row in found])


def independent(rate: float, n: int) -> Draw:
    return lambda rng: rng.random(n) < rate


def in_bursts(rate: float, correlation: float, n: int) -> Draw:
    """A Markov chain of failures with this rate and lag-1 autocorrelation, in its stationary state."""
    begin, end = (1 - correlation) * rate, (1 - correlation) * (1 - rate)

    def draw(rng: np.random.Generator) -> Bools:
        lengths, failing, total = [], bool(rng.random() < rate), 0
        first = failing
        while total < n:
            lengths.append(int(rng.geometric(end if failing else begin)))
            total, failing = total + lengths[-1], not failing
        return np.repeat(np.arange(len(lengths)) % 2 == (0 if first else 1), lengths)[:n]

    return draw


def beside(rate: float, stable_rate: float, n: int, times: int) -> Callable[[np.random.Generator], tuple[Served, Served]]:
    """The candidate's `n` requests, one a second on average, among `times` as many of stable's."""
    return lambda rng: (_served(rng, rate, n, n), _served(rng, stable_rate, n * times, n))


def _served(rng: np.random.Generator, rate: float, n: int, seconds: float) -> Served:
    return Served(unix_s=np.sort(rng.uniform(0, seconds, n)), ok=rng.random(n) >= rate, latency_ms=np.ones(n))


def _gross() -> Iterator[Figure]:
    alone, shared = _both(0.2, 400)
    yield _stop("err20_median", 0.2, np.median(alone), np.median(shared), 8)
    yield _stop("err20_p90", 0.2, np.quantile(alone, 0.9), np.quantile(shared, 0.9), 19)


def _finer() -> Iterator[Figure]:
    for name, rate, goal in (("err5_median", 0.05, 32), ("err1_median", 0.01, 410), ("err05_median", 0.005, 1450)):
        alone, shared = _both(rate, round(60 / rate))
        yield _stop(name, rate, np.median(alone), np.median(shared), goal)


def _both(rate: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    alone, shared = (stops(independent(rate, n), false_alarm=each, runs=RUNS, seed=SEED) for each in (ALONE, SHARED))
    return alone, shared


def _stop(name: str, rate: float, alone: float, shared: float, goal: int) -> Figure:
    bounds = ", ".join(f"{math.log(1 / budget) / _divergence(rate):.1f} at {budget:.1%}" for budget in (ALONE, SHARED))
    how = f"limit {LIMIT:.1%}, true {rate:.1%}, {RUNS:,} runs, seed {SEED}; {shared:g} with a budget of {SHARED:.1%}"
    return Figure(name=name, value=float(alone), unit="requests", goal=f"<= {goal}", how=f"{how}; ln(1/budget)/KL {bounds}")


def _divergence(rate: float) -> float:
    return rate * math.log(rate / LIMIT) + (1 - rate) * math.log((1 - rate) / (1 - LIMIT))


def _low_traffic() -> Figure:
    alone, shared = (100 * float(np.mean(each <= HOUR)) for each in _both(0.005, HOUR))
    beside_stable = (f"{_found_beside_stable(budget):.0f} % with {budget:.1%}" for budget in (ALONE, SHARED))
    against = f"against stable's 0.05 % plus 0.05 %, with nine times the traffic: {', '.join(beside_stable)} ({PAIRED_RUNS} runs)"
    bound = math.log(1 / ALONE) / _divergence(0.005)
    how = f"0.5 % in {HOUR:,} requests, limit {LIMIT:.1%}, {RUNS:,} runs, seed {SEED}; {shared:.1f} % with a budget of {SHARED:.1%}"
    how = f"{how}; {against}; ln(1/budget)/KL {bound:.0f} requests"
    return Figure(name="low_traffic_found_pct", value=round(alone, 1), unit="%", goal=">= 90", how=how)


def _found_beside_stable(false_alarm: float) -> float:
    rng, draw = np.random.default_rng(SEED), beside(0.005, 0.0005, HOUR, 9)
    found = sum(_rises(*draw(rng), false_alarm) for _ in range(PAIRED_RUNS))
    return 100 * found / PAIRED_RUNS


def _rises(candidate: Served, stable: Served, false_alarm: float) -> bool:
    asked = error_rate_not_above(
        name="errors", candidate=candidate, stable=stable, rise=0.0005, exclude=0.01, false_alarm=false_alarm, miss=0.05
    )
    return asked.outcome is Outcome.FAILED


def _false_alarms() -> Figure:
    draws = {
        "independent": independent(LIMIT, LONG),
        "autocorrelated 0.3": in_bursts(LIMIT, 0.3, LONG),
        "autocorrelated 0.6": in_bursts(LIMIT, 0.6, LONG),
    }
    rates = {name: 100 * float(np.isfinite(stops(draw, false_alarm=ALONE, runs=RUNS, seed=SEED)).mean()) for name, draw in draws.items()}
    each = ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())
    how = f"true rate at the limit of {LIMIT:.1%}, {RUNS:,} runs of {LONG:,} requests looked at after each, seed {SEED}, worst of: {each}"
    return Figure(name="err_false_alarm_pct", value=round(max(rates.values()), 2), unit="%", goal="<= 1", how=how)
