"""The latency gate's own honesty: its client's limits, its p99 beside MLPerf's load generator, and how often its verdicts err.

`measure` takes about two minutes. `measure_like` and `measure_slower` compare two servers a hundred times beside a program that takes a
core again and again: an hour and a quarter together.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.figures import Figure
from stack.settings import ROOT, read_settings, state_folder
from validation.bundle import Tensor
from validation.child import child
from validation.client_limits import REQUESTS, ClientLimits
from validation.contract import Outcome, worst
from validation.latency_judge import CANDIDATE, STABLE, Measured, judge_load, judge_turns, queries_at
from validation.load_client import Answers, LoadClient, Target, load_client
from validation.load_run import LoadRun
from validation.payloads import http_request
from validation.policy import LatencyBenchmark
from validation.private_server import private_server
from validation.schedule import poisson

SLIP_RATE_PER_S, SLIP_S = 1000.0, 10.0
CEILING_QUERIES, CEILING_AT_ONCE = 20_000, 16
SERVICE_QUERIES = 200
STALL_RATE_PER_S, STALL_S = 300.0, 30.0
CLOSED_QUERIES = 50_000  # several stalls long
SIMULATIONS = 1000
SLA_MS = 50.0
RUNS = 100
RATE_PER_S = 100.0
LIKE_S, SLOWER_S = 12.0, 120.0
"""The longest load of a comparison. Like ones mostly last to its end, as their p99 is not surely the same before; slower ones seldom do."""

WIDTH, ROWS, LAYERS = 256, 64, 96
"""A model whose time is the processor's: each matrix serves many rows. Where memory decides, two processes of one model differ by 10 %."""

SERVICE_MS = 2.5
"""About how long the compared models take for a query: on any machine the servers are idle most of the time."""

SLOWER, TRUTH_PAIRS = 1.30, 40
BUSY = "import time\nwhile True:\n    end = time.monotonic() + 0.2\n    while time.monotonic() < end:\n        pass\n    time.sleep(0.2)\n"
BESIDE = f"two Tritons in turns, {RATE_PER_S:g} requests/s for at most {{:g}} s, beside a program that takes a core half of the time"
NAME = "matrix"
CONFIGURATION = "max_batch_size: 64\ninstance_group [ { kind: KIND_CPU count: 1 } ]\ndynamic_batching { }"
IDLE_CLIENT = ClientLimits(floor_p50_ms=0.0, floor_p99_ms=0.0, slip_p99_ms=0.0, ceiling_rps=1e6)


def measure() -> list[Figure]:
    return [*_client(), _stall(), *_simulated()]


# The client


def _client() -> list[Figure]:
    """Slip and ceiling on a server that does nothing."""
    with _listening("validation.null_server", "http") as port, load_client() as client:
        client.open("null", Target(protocol="http", address=f"127.0.0.1:{port}", requests=(REQUESTS["http"],)))
        n = int(SLIP_RATE_PER_S * SLIP_S)
        client.send_closed("null", CEILING_AT_ONCE, CEILING_AT_ONCE)
        open_load = client.send("null", poisson(SLIP_RATE_PER_S, n, np.random.default_rng(1)), np.zeros(n, dtype=int))
        closed_load = client.send_closed("null", CEILING_QUERIES, CEILING_AT_ONCE)
    slip_ms = 1000 * float(np.quantile(open_load.late_s, 0.99))
    floor = f"floor of its latency there: p50 {_ms(open_load, 0.5):.2f}, p99 {_ms(open_load, 0.99):.2f} ms"
    return [
        Figure(
            name="send_slip_p99_ms",
            value=round(slip_ms, 3),
            unit="ms",
            goal="<= 1",
            how=f"Poisson arrivals at {SLIP_RATE_PER_S:g} a second for {SLIP_S:g} s over HTTP to the null server; {floor}",
        ),
        Figure(
            name="client_ceiling_rps",
            value=round(CEILING_QUERIES / closed_load.cpu_s),
            unit="requests/s and core",
            goal=">= 3000",
            how=f"{CEILING_QUERIES:,} requests over HTTP, {CEILING_AT_ONCE} at a time, by the client's own CPU seconds",
        ),
    ]


def _stall() -> Figure:
    """Both generators at the same time, each on a server of its own that stalls in the same seconds."""
    n = int(STALL_RATE_PER_S * STALL_S)
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(_listening("bench.stall_server")) for _ in range(2))
        client = stack.enter_context(load_client())
        client.open("stall", Target(protocol="http", address=f"127.0.0.1:{ours}", requests=(REQUESTS["http"],)))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-"))
        peer = _Beside([sys.executable, "-m", "bench.loadgen_child", str(theirs), str(STALL_RATE_PER_S), str(STALL_S), folder])
        load = client.send("stall", poisson(STALL_RATE_PER_S, n, np.random.default_rng(2)), np.zeros(n, dtype=int))
        their_ms = float(peer.output())
        closed = client.send_closed("stall", CLOSED_QUERIES, 1)
    our_ms = _ms(load, 0.99)
    measured = Measured(client=IDLE_CLIENT)
    measured.add(load)
    limits = _limits(rate_per_s=STALL_RATE_PER_S, min_queries=n, max_seconds=STALL_S + 1, p50_ms=SLA_MS, p99_ms=SLA_MS)
    says = {each.name: each.outcome.word for each in judge_load(measured, limits)}
    said = f"an SLA of {SLA_MS:g} ms: {says.get('p99_ms', 'not judged')}; a closed loop says {_ms(closed, 0.99):.1f} ms"
    return Figure(
        name="stall_p99_vs_loadgen",
        value=round(abs(our_ms / their_ms - 1), 4),
        unit="off",
        goal="<= 0.05",
        how=f"a server that stalls 1 s in 5, {STALL_RATE_PER_S:g} queries/s for {STALL_S:g} s: p99 {our_ms:.0f} ms; {said}",
        peer=f"mlcommons-loadgen, scenario Server, in the same seconds: p99 {their_ms:.0f} ms",
    )


# Verdicts on simulated services


def _simulated() -> list[Figure]:
    limits = _limits(rate_per_s=100.0, min_queries=600, max_seconds=60.0, p50_ms=SLA_MS, p99_ms=SLA_MS)
    at_limit = [_verdict(0.01, limits, seed) for seed in range(SIMULATIONS)]
    good = [_verdict(0.0, limits, seed) for seed in range(20)]
    passed = sum(outcome is Outcome.PASSED for outcome, _ in at_limit)
    needed = max(queries for _, queries in good)
    how = f"{SIMULATIONS:,} services whose p99 is the limit exactly, looked at after {', '.join(map(str, queries_at(limits)))} queries"
    return [
        Figure(name="sla_false_pass_pct", value=round(100 * passed / SIMULATIONS, 2), unit="%", goal="<= 1", how=how),
        Figure(
            name="sla_good_queries",
            value=needed,
            unit="queries",
            goal="<= 700",
            how="until the verdict on a service without a slow query, the most of 20",
        ),
    ]


def _verdict(over: float, limits: LatencyBenchmark, seed: int) -> tuple[Outcome, int]:
    """The gate's outcome on a service of which this share of queries takes longer than the limit; and after how many queries."""
    rng, measured = np.random.default_rng(seed), Measured(client=IDLE_CLIENT)
    outcome = Outcome.INCONCLUSIVE
    for queries in queries_at(limits):
        n = queries - measured.queries
        due = np.arange(n) / limits.rate_per_s
        latency = np.where(rng.random(n) < over, 2 * SLA_MS, SLA_MS / 10) / 1000
        measured.add(Answers(due_s=due, sent_s=due, done_s=due + latency, errors={}, cpu_s=0.0))
        outcome = worst(each.outcome for each in judge_load(measured, limits))
        if outcome is not Outcome.INCONCLUSIVE:
            break
    return outcome, measured.queries


# Two versions in turns, on a busy machine


def measure_like() -> list[Figure]:
    """One model twice: how often it is called slower than itself."""
    let_triton_run()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, load_client() as client:
        layers = _layers(client, Path(folder))
        with _compared(client, Path(folder), layers, layers, LIKE_S) as run:
            outcomes = _beside_a_busy_program(run)
    how = f"the same model twice ({layers} matrix products on {ROWS} rows), {BESIDE.format(LIKE_S)}; {_told(outcomes)}"
    return [Figure(name="ab_false_slow", value=_called_slower(outcomes), unit=f"of {RUNS}", goal="<= 1", how=how)]


def measure_slower() -> list[Figure]:
    """A candidate that is truly slower: how often that is found."""
    let_triton_run()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, load_client() as client:
        stable = _layers(client, Path(folder))
        candidate, truth, outcomes = _slower(client, Path(folder), stable)
    models = (
        f"{stable} and {candidate} matrix products on {ROWS} rows, the median {truth - 1:+.1%} by {TRUTH_PAIRS} pairs on the idle machine"
    )
    how = f"a candidate that is truly slower ({models}), {BESIDE.format(SLOWER_S)}; {_told(outcomes)}"
    return [Figure(name="ab_found_slow", value=_called_slower(outcomes), unit=f"of {RUNS}", goal=">= 99", how=how)]


def _called_slower(outcomes: list[tuple[Outcome, int]]) -> int:
    return sum(outcome is Outcome.FAILED for outcome, _ in outcomes)


def _told(runs: list[tuple[Outcome, int]]) -> str:
    counts = {outcome.word: sum(each is outcome for each, _ in runs) for outcome in Outcome}
    return f"{counts}, after {np.median([pairs for _, pairs in runs]):.0f} pairs of blocks (median)"


def _beside_a_busy_program(run: LoadRun) -> list[tuple[Outcome, int]]:
    with child([sys.executable, "-c", BUSY]):
        return [_in_turns(run) for _ in range(RUNS)]


def _in_turns(run: LoadRun) -> tuple[Outcome, int]:
    """The comparison's outcome on fresh blocks, and how many pairs it took."""
    measured = Measured(client=IDLE_CLIENT)
    run.measure_turns(measured)
    if measured.stable_trouble:
        return Outcome.INCONCLUSIVE, 0
    return worst(each.outcome for each in judge_turns(measured, run.limits)), len(measured.blocks[STABLE])


@contextmanager
def _compared(client: LoadClient, folder: Path, stable: int, candidate: int, max_seconds: float) -> Iterator[LoadRun]:
    """Two private servers of so many layers, known to the client."""
    limits = _limits(rate_per_s=RATE_PER_S, min_queries=600, max_seconds=max_seconds, p50_ms=1000.0, p99_ms=5000.0)
    with ExitStack() as stack:
        for name, layers in ((STABLE, stable), (CANDIDATE, candidate)):
            model_directory = made(folder, layers, WIDTH)
            server = stack.enter_context(private_server(NAME, model_directory, f"bench--{name}", folder / f"{name}.log"))
            client.open(name, Target(protocol="http", address=server.address("http"), requests=(request(WIDTH, ROWS),)))
            stack.callback(client.close, name)
        yield LoadRun(client, limits, np.random.default_rng(stable + candidate))


def _layers(client: LoadClient, folder: Path) -> int:
    """Of a model that takes about `SERVICE_MS` for a query on this machine, asked one at a time."""
    with _compared(client, folder, LAYERS, LAYERS, LIKE_S):
        took_ms = _ms(client.send_closed(STABLE, SERVICE_QUERIES, 1), 0.5)
    return max(1, round(LAYERS * SERVICE_MS / took_ms))


def _slower(client: LoadClient, folder: Path, stable: int) -> tuple[int, float, list[tuple[Outcome, int]]]:
    """The fewest layers (about) with which the candidate's median is truly so much slower, how much that is on these very servers while the
    machine is idle, and what came of the comparisons.
    """
    layers = round(stable * SLOWER)
    while layers < 3 * stable:
        with _compared(client, folder, stable, layers, SLOWER_S) as run:
            truth = _ratio(run)
            if truth >= SLOWER:
                return layers, truth, _beside_a_busy_program(run)
        layers += max(1, round(stable * (SLOWER - truth)))
    raise RuntimeError(f"even {layers} products are not {SLOWER} times slower than {stable}")


def _ratio(run: LoadRun) -> float:
    """Of the candidate's median to stable's."""
    measured = Measured(client=IDLE_CLIENT)
    for name in (STABLE, CANDIDATE):
        run.warm_up(name)
    run.measure_pairs(measured, TRUTH_PAIRS)
    candidate, stable = (float(np.median(np.concatenate(measured.blocks[name]))) for name in (CANDIDATE, STABLE))
    return candidate / stable


# Small things


def let_triton_run() -> None:
    """Private servers are started with this command from now on."""
    python = read_settings(os.environ).python("triton")
    os.environ["PENSTOCK_TRITON"] = shlex.join([str(python), str(ROOT / "docker" / "triton" / "serve.py")])


def made(folder: Path, layers: int, width: int) -> Path:
    """Triton's directory of a model of so many products; made once."""
    place = folder / f"{layers}x{width}"
    if not place.exists():
        python = state_folder(os.environ) / "envs" / "export" / "bin" / "python"
        subprocess.run([python, ROOT / "bench" / "matrix_model.py", place, str(layers), str(width), CONFIGURATION], check=True)
    return place


def request(width: int, rows: int = 1) -> bytes:
    return payload(NAME, width, rows)


def payload(model: str, width: int, rows: int = 1) -> bytes:
    """A whole HTTP request to a model of matrix products."""
    row = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    return http_request(model, [Tensor(name="X", dtype="FP32", shape=(width,))], (), {"X": row})


def _limits(**limits: Any) -> LatencyBenchmark:
    return LatencyBenchmark(**{"late_ms": 1000.0, "taken_share": 1.0, **limits})


def _ms(load: Answers, quantile: float) -> float:
    return 1000 * float(np.quantile(load.latency_s, quantile))


@contextmanager
def _listening(module: str, *arguments: str) -> Iterator[int]:
    """A server of ours as a process; its port."""
    with child([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


class _Beside:
    """A command that runs while something else does."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._said: list[str] = []
        self._reader = threading.Thread(target=lambda: self._said.append(self._process.communicate()[0]))
        self._reader.start()

    def output(self) -> str:
        self._reader.join()
        if self._process.returncode != 0:
            raise RuntimeError(f"{shlex.join(self._command)} ended with status {self._process.returncode}")
        return self._said[0].strip().splitlines()[-1]
