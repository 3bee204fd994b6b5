"""The gate `latency_benchmark`: is the candidate fast enough under load, on a Triton of its own, and not slower than stable beside it?

Starts a private server on the bundle's model directory, sends golden rows to it in an open load (`validation.load_client`), and stops it
whatever happens. A latency counts from the moment when its query was due, not from when it was sent (what closed loops leave out of their
tails). It checks no values: other gates do.

| step      | what happens                                                                                                         |
|-----------|----------------------------------------------------------------------------------------------------------------------|
| client    | the load client's own floor, slip and ceiling, on a server that does nothing (`validation.client_limits`)             |
| warm-up   | the policy's load until latencies are steady (`validation.warm_up`); nothing of it is judged                         |
| load      | the policy's load, looked at after `min_queries` and each doubling, until its figures decide; no pause up to a look    |
| in turns  | with a stable version: short blocks of candidate and stable in turns, A B B A at random, until they decide            |

First comes whether the measurement is fit to be judged, VALID or INVALID, as in MLPerf LoadGen; only then its figures.

| finding            | claim                                                                                               |
|--------------------|-----------------------------------------------------------------------------------------------------|
| loads              | Triton loads this model (only when Triton itself says that it does not)                             |
| request_errors     | no query failed                                                                                     |
| load               | warmed up, enough queries, sent when due, by a client and on a machine that can; else inconclusive    |
| p50_ms, p99_ms     | the quantile lies within the policy's limit, with 99 % confidence over all looks together             |
| throughput_rps     | at this rate, too, the p99 lies within its limit (only when the policy names one)                     |
| p50_ratio, p99_ratio | the quantile is not more than `worse_than_stable` worse than stable's, with 99 % confidence each      |
| throughput_ratio   | a full server of it takes no more than that much longer a query (only when the policy names a rate)   |

Two versions are measured in turns and not at once, because they would slow each other down; a block of them begins with an idle server, so
limits are judged on the load without pauses only. Evidence: latencies.csv, summary.json, report.html, triton.log.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from validation import latency_report
from validation.bundle import OpenBundle, read_bundle
from validation.client_limits import client_limits
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.findings import failed, inconclusive
from validation.golden_requests import IN_PROCESS, golden_requests
from validation.in_process import DoesNotRun, NoProvider
from validation.latency_judge import CANDIDATE, QUANTILES, STABLE, Measured, judge, judge_load, observed_ms
from validation.load_client import Target, load_client
from validation.load_run import LoadRun
from validation.policy import BadPolicy, LatencyBenchmark, parse
from validation.private_server import DoesNotLoad, Server, private_server


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
                measured = _Bench(LoadRun(client, limits, np.random.default_rng(spec.seed)), evidence).measure(candidate, stable)
        except (DoesNotLoad, DoesNotRun) as reason:
            return Decision(findings=(failed("loads", f"does not load: {reason}"),))
        except NoProvider as reason:
            advice = "run the task where such a device is, or set provider to what is there"
            return Decision(findings=(inconclusive("load", f"INVALID: {reason}", advice),))
    findings = judge(measured, limits)
    _write(evidence, measured, findings)
    baselines = {each.name: each.observed for each in findings if each.name in QUANTILES}
    return Decision(findings=findings, outputs={"baselines": baselines})


# The measurement


class _Bench:
    """The servers of one run of the gate, and the load on them."""

    def __init__(self, load: LoadRun, evidence: Path) -> None:
        self._load = load
        self._evidence = evidence

    def measure(self, candidate: OpenBundle, stable: OpenBundle | None) -> Measured:
        load = self._load
        measured = Measured(client=client_limits(load.client, load.limits.protocol, load.limits.rate_per_s, load.rng))
        start_s = time.monotonic()
        with self._asked(candidate, CANDIDATE) as servers:
            measured.costs["cold_start_s"] = servers[0].cold_start_s if servers else time.monotonic() - start_s
            load.measure_load(measured)
            if worst(each.outcome for each in judge_load(measured, load.limits)) is Outcome.PASSED:
                load.measure_throughput(measured)
                load.measure_curve(measured, CANDIDATE)
            for each in servers:
                measured.costs["memory_mib"] = each.memory_mib()
            if stable and worst(each.outcome for each in judge(measured, load.limits)) is Outcome.PASSED:
                self._measure_beside(measured, stable, *servers)
        return measured

    def _measure_beside(self, measured: Measured, stable: OpenBundle, *servers: Server) -> None:
        try:
            with self._asked(stable, STABLE) as more:
                self._load.measure_turns(measured)
                self._load.measure_full(measured)
                self._load.measure_curve(measured, STABLE)
                self._end_together(*servers, *more)
        except (DoesNotLoad, DoesNotRun) as reason:
            measured.stable_trouble = f"it does not load: {reason}"

    def _end_together(self, *servers: Server) -> None:
        """A server ends sooner when nobody is connected, and two at a time sooner than one after another."""
        for name in (CANDIDATE, STABLE):
            self._load.client.close(name)
        for each in servers:
            each.begin_end()

    @contextmanager
    def _asked(self, bundle: OpenBundle, name: str) -> Iterator[list[Server]]:
        """The bundle's model, known to the client under `name`, and the private server that it is on: none in process."""
        limits, manifest = self._load.limits, bundle.manifest
        requests = golden_requests(bundle, limits.protocol, limits.batch_sizes, limits.sequence_lengths, self._load.rng)
        with ExitStack() as stack:
            servers: list[Server] = []
            address = str(bundle.model_directory / "1" / "model.onnx")
            if limits.protocol != IN_PROCESS:
                log = self._evidence / ("triton.log" if name == CANDIDATE else f"triton-{name}.log")
                server_name = f"benchmark--{manifest.model}--v{manifest.version}"
                servers = [stack.enter_context(private_server(manifest.model, bundle.model_directory, server_name, log))]
                address = servers[0].address(limits.protocol)
            target = Target(protocol=limits.protocol, address=address, requests=requests, provider=limits.provider)
            self._load.client.open(name, target)
            stack.callback(self._load.client.close, name)
            yield servers


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
        figures |= {f"p{100 * quantile:g}_ms": observed_ms(measured.latency_s, quantile) for quantile in (0.5, 0.9, 0.99, 0.999)}
        figures |= {"late_p99_ms": 1000 * float(np.quantile(measured.late_s, 0.99))}
    figures |= measured.costs
    known: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    curve = {name: [asdict(each) for each in rungs] for name, rungs in measured.curve.items()}
    device = measured.gpu.to_dict() if measured.gpu else None
    return {**known, "warm_up_queries": measured.warm_up, "client": measured.client.to_dict(), "curve": curve, "gpu": device}


def _limits(spec: Spec) -> LatencyBenchmark:
    try:
        return parse(LatencyBenchmark, spec.limits, "latency_benchmark")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error
