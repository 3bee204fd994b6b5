"""What the latency gate decides on: a load's columns and blocks in, findings out. Pure; `latency_benchmark` and the figures use it.

First comes whether the measurement is fit to be judged, VALID or INVALID, as in MLPerf LoadGen; only then its figures. Limits are judged on
the load without pauses, the ratio to stable on blocks in turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from validation.client_limits import ClientLimits
from validation.contract import Finding, Outcome
from validation.findings import failed, inconclusive, passed
from validation.gpu import GpuSeen
from validation.judges import quantile_within
from validation.load_client import Answers
from validation.machine import Taken
from validation.policy import LatencyBenchmark
from validation.schedule import doubling, error_at, queries_within
from validation.side_by_side import not_worse

ERROR = 0.01
"""Chance that a quantile's comparison errs, over all looks; MLPerf's confidence of 99 %."""

CANDIDATE, STABLE = "candidate", "stable"
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99}
RATIOS = {"p50_ratio": 0.5, "p99_ratio": 0.99}
FULL_PAIRS = (8, 16, 32)
"""Numbers of pairs of full blocks after which throughput is compared."""

LATE_SHARE = 0.01
WARM_UP_SECONDS = 20.0
BLOCK_QUERIES, BLOCK_S = 25, 0.2
"""A block in turns has so many queries, or those of so long a time, whichever is more."""

FIRST_PAIRS = 8
HEADROOM = 2.0
"""The client must be able to send so many times the policy's rate: near its own ceiling its queue would be booked as the model's."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A load at one rate of the curve: quantiles of latency in ms, and the share of queries that had a good answer."""

    rate_per_s: float
    p50_ms: float
    p99_ms: float
    answered: float


@dataclass(kw_only=True)
class Measured:
    """What a run has seen. Columns have one entry a query of the load, in the order in which they were due.

    `blocks` are latencies in s by who was asked, one array a block. `warm_up` is how many queries the warm-up had, or None when it did not
    end. `stable_trouble` says why stable could not be measured beside it. `costs` are the candidate's: seconds from the start of its server
    until it was ready, and MiB of memory after the load. `at_throughput` is a load of its own, at the rate that it must bear; `curve` has
    what loads at other rates were like, by who was asked. `gpu` is the device that it ran on, if it ran on one. `full` has one number
    for each block of a server that always had requests waiting: seconds a query, infinite when one failed; the candidate had so many.
    """

    client: ClientLimits
    due_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    late_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    latency_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    errors: list[str] = field(default_factory=list)
    blocks: Mapping[str, list[np.ndarray]] = field(default_factory=lambda: {CANDIDATE: [], STABLE: []})
    warm_up: int | None = 0
    taken: Taken | None = None
    costs: dict[str, float] = field(default_factory=dict)
    stable_trouble: str = ""
    at_throughput: Measured | None = None
    curve: dict[str, list[Rung]] = field(default_factory=dict)
    gpu: GpuSeen | None = None
    full: Mapping[str, list[np.ndarray]] = field(default_factory=lambda: {CANDIDATE: [], STABLE: []})
    full_queries: int = 0

    def saw(self, gpu: GpuSeen | None) -> None:
        """The latest look at the device; what was wrong with an earlier one stays wrong."""
        if self.gpu is None or self.gpu.trouble() is None:
            self.gpu = gpu

    def add_block(self, name: str, answers: Answers) -> None:
        """A failure of the candidate's is one, in whatever load it comes; stable's are not its fault."""
        self.blocks[name].append(answers.latency_s)
        if name == CANDIDATE:
            self.errors += answers.errors.values()

    def add_full(self, name: str, answers: Answers) -> None:
        self.full[name].append(np.array([answers.done_s.max() / len(answers.done_s)]))
        if name == CANDIDATE:
            self.errors += answers.errors.values()
            self.full_queries += len(answers.done_s)

    def add(self, answers: Answers, after_s: float = 0.0) -> None:
        self.due_s = np.concatenate([self.due_s, after_s + answers.due_s])
        self.late_s = np.concatenate([self.late_s, answers.late_s])
        self.latency_s = np.concatenate([self.latency_s, answers.latency_s])
        self.errors += answers.errors.values()

    @property
    def queries(self) -> int:
        return len(self.latency_s)


def judge(measured: Measured, limits: LatencyBenchmark) -> tuple[Finding, ...]:
    """All that can be said at the latest look; without a fit measurement nothing of its figures."""
    findings = judge_load(measured, limits)
    if measured.at_throughput:
        findings += (judge_throughput(measured.at_throughput, limits),)
    if measured.stable_trouble:
        advice = "look into the stable version first, or undo it"
        findings += tuple(inconclusive(name, f"stable cannot be measured: {measured.stable_trouble}", advice) for name in RATIOS)
    elif measured.blocks[STABLE]:
        findings += judge_turns(measured, limits)
    return (*findings, judge_full(measured, limits)) if measured.full[STABLE] else findings


def judge_load(measured: Measured, limits: LatencyBenchmark) -> tuple[Finding, ...]:
    """A load that is no measurement says nothing of the figures; one that never became steady can still be surely too slow."""
    first = (_request_errors(measured), _load(measured, limits))
    if first[1].outcome is not Outcome.PASSED and not (measured.warm_up is None and measured.queries):
        return first
    looks = queries_at(limits)
    error = error_at(1 + looks.index(measured.queries), len(looks), ERROR)
    quantiles = [_quantile(name, measured.latency_s, limits, error) for name in QUANTILES]
    return (*first, *(each for each in quantiles if measured.warm_up is not None or each.outcome is Outcome.FAILED))


def judge_throughput(measured: Measured, limits: LatencyBenchmark) -> Finding:
    """Whether the p99 stays within its limit at the rate that the policy wants borne."""
    rate = limits.throughput_rps
    found = [each for each in judge_load(measured, at_rate(limits, rate)) if each.name != "p50_ms"]
    decides = max(reversed(found), key=lambda each: each.outcome)  # the p99 itself, unless something else is worse
    details: dict[str, Any] = {"observed": decides.observed, "limit": decides.limit, "n": measured.queries, "advice": decides.advice}
    why = f"at {rate:g} queries a second: {decides.name}: {decides.why}"
    return Finding(name="throughput_rps", outcome=decides.outcome, why=why, **details)


def at_rate(limits: LatencyBenchmark, rate_per_s: float) -> LatencyBenchmark:
    return replace(limits, rate_per_s=rate_per_s)


def rung(rate_per_s: float, answers: Answers) -> Rung:
    return Rung(
        rate_per_s=rate_per_s,
        p50_ms=observed_ms(answers.latency_s, QUANTILES["p50_ms"]),
        p99_ms=observed_ms(answers.latency_s, QUANTILES["p99_ms"]),
        answered=1 - len(answers.errors) / len(answers.latency_s),
    )


def judge_turns(measured: Measured, limits: LatencyBenchmark) -> tuple[Finding, ...]:
    looks = pairs_at(limits)
    error = error_at(1 + looks.index(len(measured.blocks[STABLE])), len(looks), ERROR)
    return tuple(
        not_worse(
            name=name,
            candidate=measured.blocks[CANDIDATE],
            stable=measured.blocks[STABLE],
            quantile=quantile,
            margin=limits.worse_than_stable,
            equal_below_s=limits.indifferent_below_ms / 1000,
            error=error,
        )
        for name, quantile in RATIOS.items()
    )


def judge_full(measured: Measured, limits: LatencyBenchmark) -> Finding:
    """Whether a full server of the candidate answers as many queries a second as stable's, but for `worse_than_stable`."""
    return not_worse(
        name="throughput_ratio",
        candidate=measured.full[CANDIDATE],
        stable=measured.full[STABLE],
        quantile=0.5,
        margin=limits.worse_than_stable,
        equal_below_s=0.0,
        error=error_at(1 + FULL_PAIRS.index(len(measured.full[STABLE])), len(FULL_PAIRS), ERROR),
        what="the time that a full server takes for a query",
    )


def queries_at(limits: LatencyBenchmark) -> list[int]:
    """Numbers of queries after which the load is judged."""
    return doubling(limits.min_queries, queries_within(limits.rate_per_s, limits.max_seconds))


def pairs_at(limits: LatencyBenchmark) -> list[int]:
    """Numbers of pairs of blocks after which the versions are compared."""
    return doubling(FIRST_PAIRS, max(FIRST_PAIRS, int(limits.max_seconds * limits.rate_per_s / (2 * block_queries(limits)))))


def block_queries(limits: LatencyBenchmark) -> int:
    return max(BLOCK_QUERIES, int(limits.rate_per_s * BLOCK_S))


def _request_errors(measured: Measured) -> Finding:
    n = measured.queries + sum(map(len, measured.blocks[CANDIDATE])) + measured.full_queries
    details: dict[str, Any] = {"observed": len(measured.errors), "limit": 0, "n": n}
    if measured.errors:
        why = f"{len(measured.errors)} of {n} queries failed, the first with: {measured.errors[0][:300]}"
        return failed("request_errors", why, **details)
    return passed("request_errors", f"none of {n} queries failed", **details)


def _load(measured: Measured, limits: LatencyBenchmark) -> Finding:
    """VALID or INVALID: whether the load was what the policy asks for, and client and machine fit to bear it."""
    late = float(np.mean(~(1000 * measured.late_s <= limits.late_ms))) if measured.queries else 0.0
    details: dict[str, Any] = {"observed": late, "limit": LATE_SHARE, "n": measured.queries}
    for trouble, advice in _troubles(measured, limits, late):
        return inconclusive("load", f"INVALID: {trouble}", advice, **details)
    loaded = f"{measured.queries} queries, {_arrivals(limits)}, after {measured.warm_up} of warm-up"
    on = f"; {measured.gpu}" if measured.gpu else ""
    return passed("load", f"VALID: {loaded}; {late:.2%} sent late; {measured.client}{on}", **details)


def _troubles(measured: Measured, limits: LatencyBenchmark, late: float) -> Iterator[tuple[str, str]]:
    """What makes a measurement unfit, and what to do about it."""
    ceiling = measured.client.ceiling_rps
    if limits.arrivals != "closed_loop" and not HEADROOM * limits.rate_per_s <= ceiling:
        why = f"the load client manages {ceiling:,.0f} queries a second here; {HEADROOM:g} times {limits.rate_per_s:g} are needed"
        yield why, "measure on a faster machine, or lower rate_per_s"
    if measured.warm_up is None:
        why = f"latencies were not steady after {WARM_UP_SECONDS:g} s of warm-up"
        yield why, "measure on a quieter machine, or lower rate_per_s: the load may be more than the model bears"
    if measured.queries < limits.min_queries:
        why = f"{measured.queries} queries in {limits.max_seconds:g} s; the policy asks for {limits.min_queries}"
        yield why, "raise max_seconds or rate_per_s, or lower min_queries"
    if not late <= LATE_SHARE:
        why = f"{late:.1%} of the queries were sent more than {limits.late_ms:g} ms late; {LATE_SHARE:.0%} are allowed"
        yield why, "measure on a less busy machine, or lower rate_per_s"
    if measured.taken and (trouble := measured.taken.trouble(limits.taken_share)):
        yield trouble, "measure on another machine, or give the task more CPU"
    if measured.gpu and (trouble := measured.gpu.trouble()):
        yield trouble, "let it cool, look after its power, and see that NVIDIA's driver with its library NVML can be reached from the task"


def _arrivals(limits: LatencyBenchmark) -> str:
    if limits.arrivals == "closed_loop":
        return f"{limits.concurrency} at a time, each sent when one before it was answered (which hides what waiting users would feel)"
    if limits.arrivals == "fixed_rate":
        return f"at even distances, {limits.rate_per_s:g} a second (which hides the queues that bursts make)"
    return f"Poisson arrivals at {limits.rate_per_s:g} a second"


def _quantile(name: str, latency_s: np.ndarray, limits: LatencyBenchmark, error: float) -> Finding:
    limit_ms = float(getattr(limits, name))
    return quantile_within(
        name=name,
        over=int(np.sum(~(1000 * latency_s <= limit_ms))),
        n=len(latency_s),
        quantile=QUANTILES[name],
        limit_ms=limit_ms,
        observed_ms=observed_ms(latency_s, QUANTILES[name]),
        error=error,
    )


def observed_ms(latency_s: np.ndarray, quantile: float) -> float:
    """The nearest-rank quantile."""
    return 1000 * float(np.sort(latency_s)[math.ceil(quantile * len(latency_s)) - 1])
