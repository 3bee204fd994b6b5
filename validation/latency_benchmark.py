"""The gate `latency_benchmark`: is the candidate fast enough under load, on a Triton of its own, and not slower than stable beside it?

Starts a private server on the bundle's model directory, sends golden rows to it in an open load (`validation.load_client`), and stops it
whatever happens. A latency counts from the moment when its query was due, not from when it was sent (what closed loops leave out of their
tails). It checks no values: other gates do.

| step      | what happens                                                                                                         |
|-----------|----------------------------------------------------------------------------------------------------------------------|
| client    | the load client's own floor, slip and ceiling, on a server that does nothing (`validation.client_limits`)             |
| warm-up   | the policy's load until latencies are steady (`validation.warm_up`); nothing of it is judged                         |
| load      | the policy's load without a pause, looked at after `min_queries` and each doubling, until its figures decide          |
| in turns  | with a stable version: short blocks of candidate and stable in turns, A B B A at random, until they decide            |

First comes whether the measurement is fit to be judged, VALID or INVALID, as in MLPerf LoadGen; only then its figures.

| finding            | claim                                                                                               |
|--------------------|-----------------------------------------------------------------------------------------------------|
| loads              | Triton loads this model (only when Triton itself says that it does not)                             |
| request_errors     | no query failed                                                                                     |
| load               | warmed up, enough queries, sent when due, by a client and on a machine that can; else inconclusive    |
| p50_ms, p99_ms     | the quantile lies within the policy's limit, with 99 % confidence over all looks together             |
| p50_ratio, p99_ratio | the quantile is not more than `worse_than_stable` worse than stable's, with 99 % confidence each      |

Two versions are measured in turns and not at once, because they would slow each other down; a block of them begins with an idle server, so
limits are judged on the load without pauses only. Evidence: latencies.csv, summary.json, report.html, triton.log.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from validation import latency_report, machine
from validation.bundle import Manifest, OpenBundle, read_bundle
from validation.client_limits import ClientLimits, client_limits
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.findings import failed, inconclusive, passed
from validation.golden_rows import GoldenRows
from validation.judges import quantile_within
from validation.load_client import Answers, LoadClient, Target, load_client
from validation.payloads import grpc_message, http_request
from validation.policy import BadPolicy, LatencyBenchmark, parse
from validation.private_server import DoesNotLoad, Server, private_server
from validation.schedule import ARRIVALS, doubling, error_at, queries_within
from validation.side_by_side import not_worse
from validation.warm_up import LEAST, steady_from

ERROR = 0.01
"""Chance that a quantile's comparison errs, over all looks; MLPerf's confidence of 99 %."""

QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99}
CANDIDATE, STABLE = "candidate", "stable"
RATIOS = {"p50_ratio": 0.5, "p99_ratio": 0.99}
LATE_SHARE = 0.01
WARM_UP_SECONDS = 20.0
ROWS_DRAWN = 256
BLOCK_QUERIES, BLOCK_S = 25, 0.2
"""A block in turns has so many queries, or those of so long a time, whichever is more."""

FIRST_PAIRS = 8
HEADROOM = 2.0
"""The client must be able to send so many times the policy's rate: near its own ceiling its queue would be booked as the model's."""


@dataclass(kw_only=True)
class Measured:
    """What a run has seen. Columns have one entry a query of the load, in the order in which they were due.

    `blocks` are latencies in s by who was asked, one array a block. `warm_up` is how many queries the warm-up had, or None when it did not
    end. `stable_trouble` says why stable could not be measured beside it. `costs` are the candidate's: seconds from the start of its server
    until it was ready, and MiB of memory after the load.
    """

    client: ClientLimits
    due_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    late_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    latency_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    errors: list[str] = field(default_factory=list)
    blocks: Mapping[str, list[np.ndarray]] = field(default_factory=lambda: {CANDIDATE: [], STABLE: []})
    warm_up: int | None = 0
    taken: machine.Taken | None = None
    costs: dict[str, float] = field(default_factory=dict)
    stable_trouble: str = ""

    def add(self, answers: Answers, after_s: float = 0.0) -> None:
        self.due_s = np.concatenate([self.due_s, after_s + answers.due_s])
        self.late_s = np.concatenate([self.late_s, answers.late_s])
        self.latency_s = np.concatenate([self.latency_s, answers.latency_s])
        self.errors += answers.errors.values()

    @property
    def queries(self) -> int:
        return len(self.latency_s)


def run(spec: Spec, evidence: Path) -> Decision:
    """Measures the spec's bundle; writes the evidence. Raises `BadSpec`, or `ServerTrouble` and `ClientTrouble` (retry)."""
    limits = _limits(spec)
    with ExitStack() as stack:
        candidate = stack.enter_context(read_bundle(spec.need_bundle()))
        stable = stack.enter_context(read_bundle(spec.stable.bundle)) if spec.stable else None
        if candidate.manifest.rows == 0:
            return Decision(findings=(inconclusive("load", "the golden set has no rows to send", "give it rows"),))
        try:
            with load_client() as client:
                measured = _Run(client, limits, np.random.default_rng(spec.seed), evidence).measure(candidate, stable)
        except DoesNotLoad as reason:
            return Decision(findings=(failed("loads", f"does not load: {reason}"),))
    findings = judge(measured, limits)
    _write(evidence, measured, findings)
    baselines = {each.name: each.observed for each in findings if each.name in QUANTILES}
    return Decision(findings=findings, outputs={"baselines": baselines})


# What is judged


def judge(measured: Measured, limits: LatencyBenchmark) -> tuple[Finding, ...]:
    """All that can be said at the latest look; without a fit measurement nothing of its figures."""
    findings = judge_load(measured, limits)
    if measured.stable_trouble:
        advice = "look into the stable version first, or undo it"
        findings += tuple(inconclusive(name, f"stable cannot be measured: {measured.stable_trouble}", advice) for name in RATIOS)
    elif measured.blocks[STABLE]:
        findings += judge_turns(measured, limits)
    return findings


def judge_load(measured: Measured, limits: LatencyBenchmark) -> tuple[Finding, ...]:
    first = (_request_errors(measured), _load(measured, limits))
    if first[1].outcome is not Outcome.PASSED:
        return first
    looks = _looks(limits)
    error = error_at(1 + looks.index(measured.queries), len(looks), ERROR)
    return (*first, *(_quantile(name, measured.latency_s, limits, error) for name in QUANTILES))


def judge_turns(measured: Measured, limits: LatencyBenchmark) -> tuple[Finding, ...]:
    looks = _pairs(limits)
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


def _looks(limits: LatencyBenchmark) -> list[int]:
    """Numbers of queries after which the load is judged."""
    return doubling(limits.min_queries, queries_within(limits.rate_per_s, limits.max_seconds))


def _pairs(limits: LatencyBenchmark) -> list[int]:
    """Numbers of pairs of blocks after which the versions are compared."""
    return doubling(FIRST_PAIRS, max(FIRST_PAIRS, int(limits.max_seconds * limits.rate_per_s / (2 * _block(limits)))))


def _block(limits: LatencyBenchmark) -> int:
    return max(BLOCK_QUERIES, int(limits.rate_per_s * BLOCK_S))


def _request_errors(measured: Measured) -> Finding:
    details: dict[str, Any] = {"observed": len(measured.errors), "limit": 0, "n": measured.queries}
    if measured.errors:
        why = f"{len(measured.errors)} of {measured.queries} queries failed, the first with: {measured.errors[0][:300]}"
        return failed("request_errors", why, **details)
    return passed("request_errors", f"none of {measured.queries} queries failed", **details)


def _load(measured: Measured, limits: LatencyBenchmark) -> Finding:
    """VALID or INVALID: whether the load was what the policy asks for, and client and machine fit to bear it."""
    late = float(np.mean(~(1000 * measured.late_s <= limits.late_ms))) if measured.queries else 0.0
    details: dict[str, Any] = {"observed": late, "limit": LATE_SHARE, "n": measured.queries}
    for trouble, advice in _troubles(measured, limits, late):
        return inconclusive("load", f"INVALID: {trouble}", advice, **details)
    loaded = f"{measured.queries} queries, {_arrivals(limits)}, after {measured.warm_up} of warm-up"
    return passed("load", f"VALID: {loaded}; {late:.2%} sent late; {measured.client}", **details)


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
        observed_ms=_observed_ms(latency_s, QUANTILES[name]),
        error=error,
    )


def _observed_ms(latency_s: np.ndarray, quantile: float) -> float:
    """The nearest-rank quantile."""
    return 1000 * float(np.sort(latency_s)[math.ceil(quantile * len(latency_s)) - 1])


# The measurement


class _Run:
    """One run of the gate: a client, the policy's limits, and what is drawn at random."""

    def __init__(self, client: LoadClient, limits: LatencyBenchmark, rng: np.random.Generator, evidence: Path) -> None:
        self._client = client
        self._limits = limits
        self._rng = rng
        self._evidence = evidence

    def measure(self, candidate: OpenBundle, stable: OpenBundle | None) -> Measured:
        limits, before = self._limits, machine.look()
        with self._served(candidate, CANDIDATE) as (server, requests):
            measured = Measured(client=client_limits(self._client, limits.protocol, requests[0], limits.rate_per_s, self._rng))
            self._measure_load(measured, before)
            measured.costs = {"cold_start_s": server.cold_start_s, "memory_mib": server.memory_mib()}
            if stable and worst(each.outcome for each in judge_load(measured, limits)) is Outcome.PASSED:
                self._measure_beside(measured, stable, server)
        return measured

    def _measure_beside(self, measured: Measured, stable: OpenBundle, server: Server) -> None:
        try:
            with self._served(stable, STABLE) as (other, _):
                self._measure_turns(measured)
                self._end_together(server, other)
        except DoesNotLoad as reason:
            measured.stable_trouble = f"it does not load: {reason}"

    def _end_together(self, *servers: Server) -> None:
        """A server ends sooner when nobody is connected, and two at a time sooner than one after another."""
        for name in (CANDIDATE, STABLE):
            self._client.close(name)
        for each in servers:
            each.begin_end()

    def _measure_load(self, measured: Measured, before: machine.Look) -> None:
        """Sends up to each look in turn, until its figures decide; an unfit measurement goes on too, in the hope of quieter seconds."""
        measured.warm_up = self._warm_up(CANDIDATE)
        for queries in _looks(self._limits) if measured.warm_up is not None else ():
            after_s = float(measured.due_s[-1]) if measured.queries else 0.0
            measured.add(self._send(CANDIDATE, queries - measured.queries), after_s)
            measured.taken = machine.taken(before, machine.look())
            if worst(each.outcome for each in judge_load(measured, self._limits)) is not Outcome.INCONCLUSIVE:
                return

    def _measure_turns(self, measured: Measured) -> None:
        """Pairs of blocks until they decide."""
        if self._warm_up(STABLE) is None:
            measured.stable_trouble = f"its latencies were not steady after {WARM_UP_SECONDS:g} s of warm-up"
            return
        for pairs in _pairs(self._limits):
            while len(measured.blocks[STABLE]) < pairs:
                for name in self._rng.permutation([CANDIDATE, STABLE]):
                    measured.blocks[name].append(self._send(str(name), _block(self._limits)).latency_s)
            if worst(each.outcome for each in judge_turns(measured, self._limits)) is not Outcome.INCONCLUSIVE:
                return

    def _warm_up(self, name: str) -> int | None:
        """Queries until latencies were steady, or None when they never were."""
        latencies = np.empty(0)
        most = max(LEAST, queries_within(self._limits.rate_per_s, WARM_UP_SECONDS))
        while len(latencies) < most:
            latencies = np.concatenate([latencies, self._send(name, LEAST).latency_s])
            if steady_from(latencies) is not None:
                return len(latencies)
        return None

    def _send(self, name: str, queries: int) -> Answers:
        limits = self._limits
        if limits.arrivals == "closed_loop":
            return self._client.send_closed(name, queries, limits.concurrency)
        due_s = ARRIVALS[limits.arrivals](limits.rate_per_s, queries, self._rng)
        return self._client.send(name, due_s, self._rng.integers(ROWS_DRAWN, size=queries))

    @contextmanager
    def _served(self, bundle: OpenBundle, name: str) -> Iterator[tuple[Server, tuple[bytes, ...]]]:
        """A private server for the bundle, known to the client under `name`."""
        manifest, protocol = bundle.manifest, self._limits.protocol
        requests = _requests(bundle, self._limits, self._rng)
        log = self._evidence / ("triton.log" if name == CANDIDATE else f"triton-{name}.log")
        server_name = f"benchmark--{manifest.model}--v{manifest.version}"
        with private_server(manifest.model, bundle.model_directory, server_name, log) as server:
            self._client.open(name, Target(protocol=protocol, address=server.address(protocol), requests=requests))
            try:
                yield server, requests
            finally:
                self._client.close(name)


def _requests(bundle: OpenBundle, limits: LatencyBenchmark, rng: np.random.Generator) -> tuple[bytes, ...]:
    """Golden rows, drawn at random, as ready-made requests of the policy's batch sizes and sequence lengths."""
    manifest = bundle.manifest
    sizes = rng.choice(limits.batch_sizes, size=ROWS_DRAWN)
    lengths = rng.choice(limits.sequence_lengths, size=ROWS_DRAWN) if limits.sequence_lengths else [0] * ROWS_DRAWN
    columns = GoldenRows(bundle).inputs(rng.integers(manifest.rows, size=int(sizes.sum())))
    stops = np.cumsum(sizes)
    return tuple(
        _request(manifest, limits.protocol, {name: values[stop - size : stop] for name, values in columns.items()}, int(length))
        for size, stop, length in zip(sizes, stops, lengths, strict=True)
    )


def _request(manifest: Manifest, protocol: str, rows: Mapping[str, np.ndarray], length: int) -> bytes:
    rows = {each.name: rows[each.name].reshape(-1, 1) if rows[each.name].ndim == 1 else rows[each.name] for each in manifest.inputs}
    if length:
        rows = {each.name: _of_length(rows[each.name], [1 + axis for axis in each.dynamic], length) for each in manifest.inputs}
    if protocol == "http":
        return http_request(manifest.model, manifest.inputs, (), rows)
    message: bytes = grpc_message(manifest.model, manifest.inputs, (), rows).SerializeToString()
    return message


def _of_length(values: np.ndarray, axes: Sequence[int], length: int) -> np.ndarray:
    """The same with each open axis cut, or repeated, to this length."""
    for axis in axes:
        values = np.take(values, np.arange(length) % values.shape[axis], axis=axis)
    return values


# Evidence and small things


def _write(evidence: Path, measured: Measured, findings: Sequence[Finding]) -> None:
    with (evidence / "latencies.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["measured", "due_s", "late_ms", "latency_ms"])
        columns = zip(measured.due_s.tolist(), (1000 * measured.late_s).tolist(), (1000 * measured.latency_s).tolist(), strict=True)
        rows.writerows(["load", f"{due:.6f}", f"{late:.3f}", f"{latency:.3f}"] for due, late, latency in columns)
        for name, blocks in measured.blocks.items():
            rows.writerows([f"{name} {i}", "", "", f"{1000 * each:.3f}"] for i, block in enumerate(blocks) for each in block)
    summary = {"queries": measured.queries, "findings": [each.to_dict() for each in findings], **_figures(measured)}
    (evidence / "summary.json").write_text(json.dumps(summary, indent=1))
    latency_report.write(evidence / "report.html", measured, findings)


def _figures(measured: Measured) -> dict[str, Any]:
    figures: dict[str, float] = {}
    if measured.queries:
        figures |= {f"p{100 * quantile:g}_ms": _observed_ms(measured.latency_s, quantile) for quantile in (0.5, 0.9, 0.99, 0.999)}
        figures |= {"late_p99_ms": 1000 * float(np.quantile(measured.late_s, 0.99))}
    figures |= measured.costs
    known: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return {**known, "warm_up_queries": measured.warm_up, "client": measured.client.to_dict()}


def _limits(spec: Spec) -> LatencyBenchmark:
    try:
        return parse(LatencyBenchmark, spec.limits, "latency_benchmark")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error
