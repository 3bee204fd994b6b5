"""The gate `latency_benchmark`: is the candidate fast enough under load, on a Triton of its own?

Starts a private server on the bundle's model directory with the command in PENSTOCK_TRITON (shell words; it is given `--name`,
`--repository`, `--http`, `--grpc` and `--metrics`), sends golden rows over gRPC at the policy's rate, and stops the server whatever
happens. The load is open: queries arrive as a Poisson process, late answers do not hold later queries back, and a latency counts from the
moment when its query was due, not from when it was sent (what closed-loop clients leave out of their tails). It compares no versions and
checks no values: other gates do.

First comes whether the measurement is fit to be judged (`load`), as in MLPerf LoadGen; only then its figures.

| finding         | claim                                                                                    |
|-----------------|------------------------------------------------------------------------------------------|
| loads           | Triton loads this model (only when Triton itself says that it does not)                  |
| request_errors  | no query failed                                                                          |
| load            | enough queries were sent, and sent when due; otherwise inconclusive                      |
| p50_ms, p99_ms  | the quantile lies within the policy's limit, with 99 % confidence over all looks together |
"""

from __future__ import annotations

import asyncio
import csv
import ctypes
import functools
import gc
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import tritonclient.grpc
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from validation.bundle import OpenBundle, Tensor, read_bundle
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.golden_rows import GoldenRows
from validation.judges import quantile_within
from validation.policy import BadPolicy, LatencyBenchmark, parse

ERROR = 0.01
"""Chance that a quantile's comparison errs, over all looks; MLPerf's confidence of 99 %."""

QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99}
LATE_PART = 0.1
"""Of the p99 limit: a query sent later than this is late. A latency counts from the due time, so lateness never flatters the model; what it
spoils is the load, which must not be gentler than the policy's by a part that could turn the verdict."""

LATE_SHARE = 0.01
WARM_UP_QUERIES = 30
ROWS_DRAWN = 256
READY_TIMEOUT_S = 60.0
QUERY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 8.0  # shorter than the 10 s after which a task that is told to end is killed
PARENT_DEATH_SIGNAL = 1  # prctl(2)
TROUBLE_OF_THE_PLACE = re.compile(r"already in use|no space left on device|cannot allocate memory|shm-size", re.IGNORECASE)

_libc = ctypes.CDLL(None, use_errno=True)  # loaded here, because nothing may be loaded between fork and exec


class ServerTrouble(RuntimeError):
    """The private server did not come up, or was killed, and nothing says that the model is at fault; worth a retry."""


class DoesNotLoad(Exception):
    """Triton itself says that it cannot load this model; the message is its own reason."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query: when it was due, how late it was sent and how long it took since due, in seconds; infinite when it failed."""

    due_s: float
    late_s: float
    latency_s: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A private server: name and loopback ports."""

    name: str
    http: int
    grpc: int
    metrics: int

    @property
    def flags(self) -> list[str]:
        return [word for kind in ("name", "http", "grpc", "metrics") for word in (f"--{kind}", str(getattr(self, kind)))]


def run(spec: Spec, evidence: Path) -> Decision:
    """Measures the spec's bundle; writes latencies.csv, summary.json and triton.log. Raises `BadSpec`, or `ServerTrouble` (retry)."""
    limits = _limits(spec)
    with read_bundle(spec.need_bundle()) as bundle:
        if bundle.manifest.rows == 0:
            return Decision(findings=(_inconclusive("load", "the golden set has no rows to send", "give it rows"),))
        try:
            queries = _measure(bundle, limits, spec.seed, evidence / "triton.log")
        except DoesNotLoad as reason:
            why = f"does not load: {reason}"
            return Decision(findings=(Finding(name="loads", outcome=Outcome.FAILED, why=why),))
    findings = judge(queries, limits, looks=1 + _look_of(len(queries), limits))
    _write(evidence, queries, findings)
    baselines = {each.name: each.observed for each in findings if each.name in QUANTILES}
    return Decision(findings=findings, outputs={"baselines": baselines})


def judge(queries: Sequence[Query], limits: LatencyBenchmark, looks: int = 1) -> tuple[Finding, ...]:
    """Findings at the `looks`-th look at a measurement: look k spends `ERROR` / 2^k, so that all together spend less than `ERROR`."""
    first = (_request_errors(queries), _load(queries, limits))
    if first[1].outcome is not Outcome.PASSED:
        return first
    return (*first, *(_quantile(name, queries, limits, ERROR / 2**looks) for name in QUANTILES))


def arrivals(rate_per_s: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Times in s from now at which `n` queries are due: a Poisson process."""
    return np.cumsum(rng.exponential(1 / rate_per_s, size=n))


def looks(limits: LatencyBenchmark) -> list[int]:
    """Numbers of queries after which the figures are judged: `min_queries`, doubled up to what fits into `max_seconds`."""
    most = max(1, math.floor(limits.rate_per_s * limits.max_seconds))
    sizes = [limits.min_queries * 2**k for k in range(32) if limits.min_queries * 2**k < most]
    return [*sizes, most]


def _look_of(n: int, limits: LatencyBenchmark) -> int:
    return looks(limits).index(n)


# The figures


def _request_errors(queries: Sequence[Query]) -> Finding:
    errors = [each.error for each in queries if each.error]
    details: dict[str, Any] = {"observed": len(errors), "limit": 0, "n": len(queries)}
    if errors:
        why = f"{len(errors)} of {len(queries)} queries failed, the first with: {errors[0][:300]}"
        return Finding(name="request_errors", outcome=Outcome.FAILED, why=why, **details)
    return Finding(name="request_errors", outcome=Outcome.PASSED, why=f"none of {len(queries)} queries failed", **details)


def _load(queries: Sequence[Query], limits: LatencyBenchmark) -> Finding:
    """VALID or INVALID: whether the load was what the policy asks for."""
    if len(queries) < limits.min_queries:
        why = f"INVALID: {len(queries)} queries in {limits.max_seconds:g} s; the policy asks for {limits.min_queries}"
        return _inconclusive("load", why, "raise max_seconds or rate_per_s, or lower min_queries")
    late_ms = LATE_PART * limits.p99_ms
    share = sum(not 1000 * each.late_s <= late_ms for each in queries) / len(queries)
    if not share <= LATE_SHARE:
        why = f"INVALID: {share:.1%} of the queries were sent more than {late_ms:g} ms late; {LATE_SHARE:.0%} are allowed"
        return _inconclusive("load", why, "measure on a less busy machine, or lower rate_per_s", observed=share, limit=LATE_SHARE)
    why = f"VALID: {len(queries)} queries at {limits.rate_per_s:g} a second, {share:.2%} sent late"
    return Finding(name="load", outcome=Outcome.PASSED, why=why, observed=share, limit=LATE_SHARE, n=len(queries))


def _quantile(name: str, queries: Sequence[Query], limits: LatencyBenchmark, error: float) -> Finding:
    limit_ms = float(getattr(limits, name))
    return quantile_within(
        name=name,
        over=sum(not 1000 * each.latency_s <= limit_ms for each in queries),
        n=len(queries),
        quantile=QUANTILES[name],
        limit_ms=limit_ms,
        observed_ms=_observed_ms(queries, QUANTILES[name]),
        error=error,
    )


def _observed_ms(queries: Sequence[Query], quantile: float) -> float:
    """The nearest-rank quantile."""
    latencies = sorted(each.latency_s for each in queries)
    return 1000 * latencies[math.ceil(quantile * len(latencies)) - 1]


# The load


def _measure(bundle: OpenBundle, limits: LatencyBenchmark, seed: int, log: Path) -> list[Query]:
    rng = np.random.default_rng(seed)
    payloads = _payloads(bundle, rng)
    with _private_server(bundle, log) as server:
        return asyncio.run(_load_until_decided(server, bundle.manifest.model, payloads, limits, rng))


def _payloads(bundle: OpenBundle, rng: np.random.Generator) -> list[list[InferInput]]:
    """Golden rows as ready-made requests of one row: making them while the clock runs would make the next one late."""
    inputs = GoldenRows(bundle).inputs(rng.integers(bundle.manifest.rows, size=ROWS_DRAWN))
    return [[_payload(each, inputs[each.name][row : row + 1]) for each in bundle.manifest.inputs] for row in range(ROWS_DRAWN)]


def _payload(tensor: Tensor, values: np.ndarray) -> InferInput:
    values = values.reshape(1, 1) if values.ndim == 1 else values
    payload = InferInput(tensor.name, list(values.shape), tensor.dtype)
    payload.set_data_from_numpy(values)
    return payload


async def _load_until_decided(
    server: Server, model: str, payloads: list[list[InferInput]], limits: LatencyBenchmark, rng: np.random.Generator
) -> list[Query]:
    """Sends up to each look in turn, until its figures decide; an unfit measurement goes on too, in the hope of quieter seconds."""
    queries: list[Query] = []
    async with InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        await _warm_up(client, model, payloads)
        for number, n in enumerate(looks(limits), start=1):
            queries += await _send(client, model, payloads, arrivals(limits.rate_per_s, n - len(queries), rng))
            findings = judge(queries, limits, number)
            if worst(each.outcome for each in findings) is not Outcome.INCONCLUSIVE:
                break
    return queries


async def _warm_up(client: InferenceServerClient, model: str, payloads: list[list[InferInput]]) -> None:
    for payload in payloads[:WARM_UP_QUERIES]:
        await _query(client, model, payload, time.monotonic())


async def _send(client: InferenceServerClient, model: str, payloads: list[list[InferInput]], due: np.ndarray) -> list[Query]:
    start = time.monotonic()
    tasks = []
    with _no_collections():
        for i, at in enumerate(due):
            await asyncio.sleep(max(0.0, start + at - time.monotonic()))
            tasks.append(asyncio.create_task(_query(client, model, payloads[i % len(payloads)], start + at)))
        return list(await asyncio.gather(*tasks))


async def _query(client: InferenceServerClient, model: str, payload: list[InferInput], due_s: float) -> Query:
    late_s = time.monotonic() - due_s
    try:
        await client.infer(model, payload, client_timeout=QUERY_TIMEOUT_S)
    except InferenceServerException as error:
        return Query(due_s=due_s, late_s=late_s, latency_s=math.inf, error=str(error))
    return Query(due_s=due_s, late_s=late_s, latency_s=time.monotonic() - due_s)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A garbage collection of ours in the middle of the load would be booked as the model's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# The private server


@contextmanager
def _private_server(bundle: OpenBundle, log: Path) -> Iterator[Server]:
    """A Triton that serves this bundle's model only and is gone afterwards, with every process that it started."""
    manifest = bundle.manifest
    server = Server(name=f"benchmark--{manifest.model}--v{manifest.version}", **_free_ports("http", "grpc", "metrics"))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, log.open("wb") as output:
        shutil.copytree(bundle.model_directory, Path(folder) / manifest.model)
        process = _start([*_launcher(), "--repository", folder, *server.flags], output)
        try:
            _wait_ready(process, server, manifest.model, log)
            yield server
            _insist_not_killed(process)
        finally:
            _stop(process)


def _start(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a session of its own, to be ended as a whole; when the gate is killed, the kernel ends the server too."""
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=functools.partial(_die_with, os.getpid()),  # noqa: PLW1509 - one system call, and this gate has no threads yet
    )


def _die_with(parent: int) -> None:
    """Runs between fork and exec, and holds through the launcher's own exec; the parent may have died before the call."""
    _libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _launcher() -> list[str]:
    words = shlex.split(os.environ.get("PENSTOCK_TRITON", ""))
    if not words:
        raise ServerTrouble("PENSTOCK_TRITON is not set: it must hold the command that starts a Triton")
    return words


def _free_ports(*names: str) -> dict[str, int]:
    """Ports that were free just now, all taken at once so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: int(each.getsockname()[1]) for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def _wait_ready(process: subprocess.Popen[bytes], server: Server, model: str, log: Path) -> None:
    """Raises `DoesNotLoad` when Triton's own log refuses the model, `ServerTrouble` for every other end or silence."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if _is_ready(server, model):
            return
        if process.poll() is not None:
            raise _trouble(f"ended with status {process.returncode} before it was ready", model, log)
        time.sleep(0.05)
    raise _trouble(f"was not ready after {READY_TIMEOUT_S:g} s", model, log)


def _is_ready(server: Server, model: str) -> bool:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        try:
            return bool(client.is_model_ready(model, client_timeout=1))
        except InferenceServerException:
            return False


def _trouble(how: str, model: str, log: Path) -> Exception:
    """Whose fault it is that the server is not ready: the model's only in Triton's own words about it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    refusal = _refusal(lines, model)
    if refusal and not TROUBLE_OF_THE_PLACE.search(refusal):
        return DoesNotLoad(refusal)
    return ServerTrouble(f"the private Triton {how}: {refusal or _last_complaint(lines)}")


def _refusal(lines: Sequence[str], model: str) -> str | None:
    """Triton's reason for not loading the model: its row in the table of models, else what it says of its configuration."""
    name = re.escape(model)
    for pattern in (rf"\|\s*{name}\s*\|[^|]*\|\s*UNAVAILABLE: ([^|]+)", rf"Poll failed for model directory '{name}': ([^\"]+)"):
        if found := next((match[1] for line in lines if (match := re.search(pattern, line))), None):
            return _short(found)
    return None


def _last_complaint(lines: Sequence[str]) -> str:
    complaints = [line for line in lines if re.search(r"error|fail|cannot|in use", line, re.IGNORECASE)]
    return _short((complaints or lines or ["its log is empty"])[-1])


def _short(text: str) -> str:
    return " ".join(text.split())[:400]


def _insist_not_killed(process: subprocess.Popen[bytes]) -> None:
    """A model may crash its server, and then its queries failed; SIGKILL comes from the machine, mostly for want of memory."""
    if process.poll() == -signal.SIGKILL:
        raise ServerTrouble("the private Triton was killed during the load; the machine may be short of memory")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, then ends its whole process group: a Python backend's stubs are processes of their own."""
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


# Evidence and small things


def _write(evidence: Path, queries: Sequence[Query], findings: Sequence[Finding]) -> None:
    start = queries[0].due_s
    with (evidence / "latencies.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["due_s", "late_ms", "latency_ms", "error"])
        rows.writerows([_row(each, start) for each in queries])
    summary = {"queries": len(queries), "findings": [each.to_dict() for each in findings], **_figures(queries)}
    (evidence / "summary.json").write_text(json.dumps(summary, indent=1))


def _row(query: Query, start: float) -> list[Any]:
    return [f"{query.due_s - start:.6f}", f"{1000 * query.late_s:.3f}", f"{1000 * query.latency_s:.3f}", query.error]


def _figures(queries: Sequence[Query]) -> dict[str, float | None]:
    figures = {f"p{100 * quantile:g}_ms": _observed_ms(queries, quantile) for quantile in (0.5, 0.9, 0.99, 0.999)}
    figures["late_p99_ms"] = 1000 * float(np.quantile([each.late_s for each in queries], 0.99))
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _inconclusive(name: str, why: str, advice: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, advice=advice, **details)


def _limits(spec: Spec) -> LatencyBenchmark:
    try:
        return parse(LatencyBenchmark, spec.limits, "latency_benchmark")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error
