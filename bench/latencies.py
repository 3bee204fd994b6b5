"""The always-valid latency judges, measured by simulation: delays, false alarms of a whole rollout, units, speed. Seeded; one process.

Latencies are log-normal (log-sigma 0.5) about 20 ms. `measure` takes about a minute; `measure_long` simulates 10,000 rollouts without any
difference between the versions, three times: independent, and with neighbours correlated 0.3 and 0.6 (latency an AR(1), failures a chain).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import NormalDist

import numpy as np

from bench.error_rates import burst_flags
from bench.figures import Figure
from validation.contract import Outcome
from validation.latencies import Statistic, latency_not_worse
from validation.policy import Rollout, Step
from validation.rollout_judge import Evidence, judge_rollout
from validation.served import Served

SEED, SIGMA, BASE_MS = 6, 0.5, 20.0
STATISTICS: tuple[Statistic, ...] = ("mean", "median", "p99")
ALONE = 0.01
ROLLOUTS = 10_000
SHARES = ((0.01, 60.0), (0.1, 30.0), (0.5, 30.0), (1.0, 30.0))
RPS = 100.0
ERRORS = 0.0005


def measure() -> list[Figure]:
    return [
        _delay("lat20_mean_median", "mean", 150, seconds=40.0, runs=400),
        _delay("lat20_p99_median", "p99", 750, seconds=200.0, runs=800),
        _rollout_caught(),
        _blocked(),
        _unit_flips(),
        _speed(),
    ]


def measure_long() -> list[Figure]:
    """About ten minutes on two cores."""
    names = {0.0: "aa_false_alarm_pct", 0.3: "aa_ar3_false_alarm_pct", 0.6: "aa_ar6_false_alarm_pct"}
    return [_false_alarms(name, correlation) for correlation, name in names.items()]


def served(random: np.random.Generator, rate: float, seconds: float, *, times: float = 1.0, start_s: float = 0.0) -> Served:
    """Independent requests."""
    return _served(random, rate, (start_s, seconds), times=times, correlation=0.0)


def _served(random: np.random.Generator, rate: float, span_s: tuple[float, float], *, times: float, correlation: float) -> Served:
    n = int(random.poisson(rate * span_s[1]))
    failed = burst_flags(random, correlation, ERRORS, n) if correlation else random.random(n) < ERRORS
    return Served(
        unix_s=span_s[0] + np.sort(random.random(n)) * span_s[1],
        ok=~failed,
        latency_ms=BASE_MS * times * np.exp(SIGMA * _noise(random, n, correlation)),
    )


def _noise(random: np.random.Generator, n: int, correlation: float) -> np.ndarray:
    """A stationary AR(1) of unit variance: summed in pieces of its powers, which vanish after some dozens."""
    steps = random.normal(size=n + 64) * math.sqrt(1 - correlation**2)
    powers = correlation ** np.arange(64) if correlation else np.array([1.0])
    return np.convolve(steps, powers)[64 : 64 + n]


def joined(parts: Sequence[Served]) -> Served:
    columns = {name: np.concatenate([getattr(each, name) for each in parts]) for name in ("unix_s", "ok", "latency_ms")}
    return Served(**columns)


def _failed(candidate: Served, stable: Served, statistic: Statistic, *, worse: float, chance: float) -> bool:
    finding = latency_not_worse(
        name="latency",
        statistic=statistic,
        candidate=candidate,
        stable=stable,
        worse=worse,
        exclude=worse + 1,
        indifferent_below_ms=0.0,
        false_alarm=chance,
        miss=0.05,
    )
    return finding.outcome is Outcome.FAILED


def _delay(name: str, statistic: Statistic, goal: int, *, seconds: float, runs: int) -> Figure:
    """The verdict is sticky, so the first second at which it is failed is found by bisection."""
    with ProcessPoolExecutor(2) as pool:
        delays = list(pool.map(partial(_requests_until_failed, statistic, seconds), range(runs), chunksize=20))
    q99 = NormalDist().inv_cdf(0.99)
    above = 1 - NormalDist().cdf(q99 - math.log(1.2) / SIGMA)
    per_request = (
        (math.log(1.2) / SIGMA) ** 2 / 2
        if statistic == "mean"
        else above * math.log(above / 0.01) + (1 - above) * math.log((1 - above) / 0.99)
    )
    how = f"candidate requests until taken back, +20 %, margin 0, alone at 1 %, stable nine times as many, every second; {runs} runs"
    bound = math.log(1 / ALONE) / per_request
    return Figure(
        name=name,
        value=round(float(np.median(delays))),
        unit="requests",
        goal=f"<= {goal}",
        how=f"{how}; ln(1/alpha)/KL is {bound:.0f}, a mean, with stable known exactly",
    )


def _requests_until_failed(statistic: Statistic, seconds: float, seed: int) -> int:
    random = np.random.default_rng((SEED, seed))
    candidate, stable = served(random, 20, seconds, times=1.2), served(random, 180, seconds)
    failed = partial(_failed_by, candidate, stable, statistic)
    second = _first(failed, math.ceil(seconds))
    return int((candidate.unix_s < second).sum()) if failed(second) else 1 << 30


def _failed_by(candidate: Served, stable: Served, statistic: Statistic, second: int) -> bool:
    here, there = (each.where(each.unix_s < second) for each in (candidate, stable))
    return _failed(here, there, statistic, worse=0.0, chance=ALONE)


def _first(holds: Callable[[int], bool], most: int) -> int:
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _rollout_caught(runs: int = 300) -> Figure:
    random, caught = np.random.default_rng(SEED), 0
    for _ in range(runs):
        steps = [(0.01, 0.0), (0.05, 120.0)]
        candidate = joined([served(random, 200 * share, 120, times=1.1, start_s=at) for share, at in steps])
        stable = joined([served(random, 200 * (1 - share), 120, start_s=at) for share, at in steps])
        caught += any(_failed(candidate, stable, each, worse=0.0, chance=ALONE / 3) for each in STATISTICS)
    how = f"+10 %, margin 0, 200 rps, 1 % then 5 % for two minutes each: taken back by the end of the 5 % step; {runs} runs"
    return Figure(name="lat10_rollout_caught_pct", value=round(100 * caught / runs, 1), unit="%", goal=">= 95", how=how)


def _blocked(runs: int = 100) -> Figure:
    random, blocked = np.random.default_rng(SEED), 0
    for _ in range(runs):
        candidate, stable = served(random, 10, 3600, times=1.005), served(random, 90, 3600)
        blocked += any(_failed(candidate, stable, each, worse=0.05, chance=ALONE / 3) for each in STATISTICS)
    how = f"+0.5 %, margin 5 %, 6,000 requests a minute for an hour, a tenth of them the candidate's; {runs} runs"
    return Figure(name="lat05_blocked_pct", value=round(100 * blocked / runs, 1), unit="%", goal="<= 1", how=how)


def _unit_flips(runs: int = 60) -> Figure:
    random, flips = np.random.default_rng(SEED), 0
    for _ in range(runs):
        times = float(random.choice([1.0, 1.1, 1.2, 1.3]))
        candidate, stable = served(random, 20, 60, times=times), served(random, 80, 60)
        flips += sum(len({_in_unit(candidate, stable, each, unit) for unit in (1e-6, 1e-3, 1.0, 1e3, 1e6)}) > 1 for each in STATISTICS)
    how = f"verdicts that change with the unit, 1e-6 to 1e6, floor included; {runs} rollouts, three statistics"
    return Figure(name="unit_flips", value=flips, unit="verdicts", goal="= 0", how=how)


def _in_unit(candidate: Served, stable: Served, statistic: Statistic, unit: float) -> Outcome:
    here, there = (Served(unix_s=each.unix_s, ok=each.ok, latency_ms=each.latency_ms * unit) for each in (candidate, stable))
    return latency_not_worse(
        name="latency",
        statistic=statistic,
        candidate=here,
        stable=there,
        worse=0.1,
        exclude=0.2,
        indifferent_below_ms=12.0 * unit,
        false_alarm=ALONE,
        miss=0.05,
    ).outcome


def _speed() -> Figure:
    random = np.random.default_rng(SEED)
    evidence = _evidence(served(random, 140, 3600), served(random, 140, 3600))
    start = time.process_time()
    judge_rollout(evidence, ROLLOUT, ROLLOUT.steps[-1])
    how = f"{len(evidence.candidate) + len(evidence.stable):,} requests, all default metrics, CPU time of one look"
    return Figure(name="judge_1m_s", value=round(time.process_time() - start, 2), unit="s", goal="<= 1", how=how)


ROLLOUT = Rollout(
    newer="waits",
    lease_seconds=10.0,
    false_alarm=0.01,
    miss=0.05,
    error_limit=0.001,
    latency_worse=0.10,
    indifferent_below_ms=0.0,
    steps=tuple(
        Step(permille=round(1000 * share), min_seconds=0.0, max_seconds=600.0, exclude_error_rate=0.5, exclude_latency_worse=5.0)
        for share, _ in SHARES
    ),
)


def _evidence(candidate: Served, stable: Served) -> Evidence:
    slices, stable_slices = (np.full(len(each), "") for each in (candidate, stable))
    return Evidence(candidate=candidate, stable=stable, slices=slices, stable_slices=stable_slices, step_since_s=0.0)


def _false_alarms(name: str, correlation: float) -> Figure:
    with ProcessPoolExecutor(2) as pool:
        failed = list(pool.map(partial(_alarm, correlation), range(ROLLOUTS), chunksize=50))
    steps = ", ".join(f"{share:.0%} for {seconds:.0f} s" for share, seconds in SHARES)
    how = f"{ROLLOUTS:,} rollouts of like versions, all default metrics, every second: {steps} at {RPS:.0f} rps; correlation {correlation}"
    at_limit = f"each latency statistic alone at 1 % with margin 0: {_hard(correlation)}"
    return Figure(name=name, value=round(100 * sum(failed) / ROLLOUTS, 2), unit="%", goal="<= 1", how=f"{how}; {at_limit}")


def _alarm(correlation: float, seed: int) -> bool:
    """Verdicts are sticky: the last look knows what any look would have said."""
    findings = judge_rollout(_evidence(*_alike(correlation, seed)), ROLLOUT, ROLLOUT.steps[-1])
    return any(each.outcome is Outcome.FAILED for each in findings)


def _alike(correlation: float, seed: int) -> tuple[Served, Served]:
    random, at, sides = np.random.default_rng((SEED, seed)), 0.0, ([], [])  # type: ignore[var-annotated]
    for share, seconds in SHARES:
        for side, part in zip(sides, (share, 1 - share), strict=True):
            side.append(_served(random, RPS * part, (at, seconds), times=1.0, correlation=correlation))
        at += seconds
    return joined(sides[0]), joined(sides[1])


def _hard(correlation: float, runs: int = 1000) -> str:
    alarms = dict.fromkeys(STATISTICS, 0)
    for seed in range(runs):
        candidate, stable = _alike(correlation, ROLLOUTS + seed)
        for each in STATISTICS:
            alarms[each] += _failed(candidate, stable, each, worse=0.0, chance=ALONE)
    return ", ".join(f"{name} {100 * count / runs:.1f} %" for name, count in alarms.items())
