"""The gate `latency_benchmark`, against a server that speaks Triton's gRPC and misbehaves on demand."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from made_bundles import MODEL, golden_rows, make_bundle

from validation import latency_benchmark
from validation.contract import BadSpec, Outcome, Spec
from validation.latency_benchmark import DoesNotLoad, Query, ServerTrouble, arrivals, judge, looks
from validation.policy import LatencyBenchmark

FAKE = Path(__file__).parent / "fake_triton.py"
LIMITS = {"rate_per_s": 500.0, "min_queries": 700, "max_seconds": 3.0, "p50_ms": 500.0, "p99_ms": 1000.0}


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Runs the gate on a made bundle against a fake server that behaves as told."""

    def run(behaviour="fine", rows=None, **limits):
        monkeypatch.setattr(latency_benchmark, "LATE_PART", 1000.0)  # the machine that runs the tests is not judged
        monkeypatch.setenv("PENSTOCK_TRITON", f"{sys.executable} {FAKE} --behaviour={behaviour}")
        bundle = make_bundle(tmp_path, rows=rows or golden_rows(20))
        spec = Spec(
            task="latency_benchmark",
            model=MODEL,
            version=1,
            delivery="d",
            evidence_uri="file:///e",
            bundle=bundle,
            limits={**LIMITS, **limits},
        )
        return latency_benchmark.run(spec, tmp_path).findings

    return run


def limits(**changes):
    return LatencyBenchmark(**{**LIMITS, "rate_per_s": 100, "max_seconds": 30, "p50_ms": 25, "p99_ms": 100, **changes})


def queries(n=700, *, latency_s=0.01, slow=0, late=0, failed=0):
    slowest = [Query(due_s=0, late_s=0, latency_s=9)] * slow + [Query(due_s=0, late_s=0, latency_s=math.inf, error="INTERNAL")] * failed
    lagging = [Query(due_s=0, late_s=0.011, latency_s=latency_s)] * late
    return [*slowest, *lagging, *[Query(due_s=0, late_s=0, latency_s=latency_s)] * (n - slow - late - failed)]


def outcomes(findings):
    return {each.name: each.outcome for each in findings}


def test_a_fast_server_passes_with_its_evidence(benchmark, tmp_path):
    """A server within its limits passes every finding, and each query's latency stands in the evidence."""
    findings = benchmark()
    assert outcomes(findings) == dict.fromkeys(("request_errors", "load", "p50_ms", "p99_ms"), Outcome.PASSED)
    rows = list(csv.DictReader((tmp_path / "latencies.csv").open()))
    assert len(rows) == json.loads((tmp_path / "summary.json").read_text())["queries"] == 700
    assert all(float(row["latency_ms"]) > 0 for row in rows)


def test_a_slow_server_fails_its_quantiles(benchmark):
    """Answers that surely take longer than the limit fail, and no more load is sent than that takes."""
    found = outcomes(benchmark("slow", p50_ms=5.0, p99_ms=10.0, rate_per_s=300.0, min_queries=300))
    assert (found["p50_ms"], found["p99_ms"]) == (Outcome.FAILED, Outcome.FAILED)


def test_one_failed_query_fails(benchmark):
    """Any failed query fails the gate and the finding quotes the server."""
    finding = benchmark("failing")[0]
    assert (finding.name, finding.outcome) == ("request_errors", Outcome.FAILED)
    assert "index out of range" in finding.why


def test_a_model_that_does_not_load_fails_with_the_servers_reason(benchmark):
    """A server that ends over the model is the model's fault, in the server's words."""
    (finding,) = benchmark("unloadable")
    assert finding.outcome is Outcome.FAILED
    assert finding.why == "does not load: Internal: the file is no ONNX model"


def test_a_server_that_is_silent_is_an_error(benchmark, monkeypatch):
    """A server that is not ready in time and names no model is no proof against the model: no verdict, but a retry."""
    monkeypatch.setattr(latency_benchmark, "READY_TIMEOUT_S", 0.5)
    with pytest.raises(ServerTrouble, match=r"was not ready after 0\.5 s"):
        benchmark("deaf")


def test_a_silent_server_that_refused_the_model_fails(benchmark, monkeypatch):
    """Triton's own table condemns the model also when the server does not end over it."""
    monkeypatch.setattr(latency_benchmark, "READY_TIMEOUT_S", 2.0)
    (finding,) = benchmark("refusing")
    assert (finding.name, finding.outcome) == ("loads", Outcome.FAILED)
    assert finding.why == "does not load: Internal: the file is no ONNX model"


@pytest.mark.parametrize(("behaviour", "words"), [("killed", "ended with status -9"), ("killed_under_load", "killed during the load")])
def test_a_killed_server_is_an_error(benchmark, behaviour, words):
    """A server that the machine killed, before or under the load, says nothing about the model."""
    with pytest.raises(ServerTrouble, match=words):
        benchmark(behaviour, min_queries=300, max_seconds=1.0)


def test_a_machine_without_triton_is_an_error(benchmark):
    """A launcher that cannot run is our fault: no verdict, so that a retry may find it mended."""
    with pytest.raises(ServerTrouble, match="there is no wheel"):
        benchmark("not_installed")


def test_no_launcher_is_an_error(benchmark, monkeypatch):
    """Without PENSTOCK_TRITON nothing is measured, and the error names the variable."""
    monkeypatch.setattr("shlex.split", lambda _: [])
    with pytest.raises(ServerTrouble, match="PENSTOCK_TRITON"):
        benchmark()


TABLE = "| {} | 1 | UNAVAILABLE: {} |\nerror: creating server: Internal - failed to load all models"


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        (TABLE.format("irises", "Internal: bad file"), DoesNotLoad, "^Internal: bad file$"),
        ("Poll failed for model directory 'irises': failed to read config.pbtxt\"\n", DoesNotLoad, r"^failed to read config\.pbtxt$"),
        ("error: creating server: Internal - failed to load all models", ServerTrouble, "failed to load all models"),
        (TABLE.format("another", "Internal: bad file"), ServerTrouble, "failed to load all models"),
        (TABLE.format("irises", "Internal: Unable to initialize shared memory: No space left on device"), ServerTrouble, "No space left"),
        ("Unable to bind: Address already in use", ServerTrouble, "already in use"),
        ("", ServerTrouble, "its log is empty"),
    ],
)
def test_only_tritons_own_words_condemn_the_model(tmp_path, log, kind, words):
    """Its table of models, or its reading of the configuration; whatever else ends the server is worth a retry."""
    (tmp_path / "log").write_text(log)
    trouble = latency_benchmark._trouble("ended", "irises", tmp_path / "log")
    assert type(trouble) is kind
    assert re.search(words, str(trouble))


def test_a_killed_gate_leaves_no_server(tmp_path):
    """When the gate dies without a word, the kernel ends its server."""
    code = (
        "import sys, time\nfrom validation.latency_benchmark import _start\n"
        f"print(_start([sys.executable, '-c', 'import time; time.sleep(600)'], open({str(tmp_path / 'log')!r}, 'wb')).pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as gate:
        server = psutil.Process(int(gate.stdout.readline()))
        gate.kill()
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def children():
    """Living processes below this one; other tests of the run may have servers of theirs up."""
    return [each for each in psutil.Process(os.getpid()).children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]


def test_no_process_is_left_behind(benchmark, monkeypatch):
    """A server that ignores SIGTERM, and its children, are gone when the gate ends."""
    monkeypatch.setattr(latency_benchmark, "STOP_TIMEOUT_S", 0.2)
    before = children()
    benchmark("stubborn", min_queries=300, max_seconds=1.0)
    left = [each for each in children() if each not in before]
    orphans = [each for each in psutil.process_iter(["cmdline"]) if "signal.SIG_IGN" in " ".join(each.info["cmdline"] or [])]
    assert (left, orphans) == ([], [])


def test_an_empty_golden_set_is_inconclusive(benchmark):
    """Without rows nothing can be sent, so nothing is passed."""
    (finding,) = benchmark(rows=golden_rows(0))
    assert (finding.outcome, finding.advice) == (Outcome.INCONCLUSIVE, "give it rows")


def test_bad_limits_are_a_bad_spec(benchmark):
    """A limit that the policy does not know ends in an error that names it."""
    with pytest.raises(BadSpec, match=r"latency_benchmark\.p95_ms"):
        benchmark(p95_ms=3)


def test_late_sends_make_the_measurement_invalid():
    """More than 1 % of sends later than a tenth of the p99 limit: the machine was measured, so no latency is judged."""
    assert outcomes(judge(queries(late=7), limits()))["load"] is Outcome.PASSED
    findings = judge(queries(late=8), limits())
    assert outcomes(findings) == {"request_errors": Outcome.PASSED, "load": Outcome.INCONCLUSIVE}
    assert "less busy machine" in findings[1].advice


def test_too_few_queries_are_invalid():
    """Fewer queries than the policy asks for are inconclusive, however fast."""
    assert outcomes(judge(queries(699), limits()))["load"] is Outcome.INCONCLUSIVE
    assert outcomes(judge([], limits()))["load"] is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("slow", "outcome"), [(0, Outcome.PASSED), (7, Outcome.INCONCLUSIVE), (30, Outcome.FAILED)])
def test_p99_needs_its_count(slow, outcome):
    """The 99 % quantile is judged by how many queries were over, not by the point estimate."""
    assert outcomes(judge(queries(slow=slow), limits()))["p99_ms"] is outcome


def test_failed_queries_count_as_slow():
    """A query without an answer never counts as fast."""
    assert outcomes(judge(queries(failed=40), limits()))["p99_ms"] is not Outcome.PASSED


def test_looks_double_up_to_the_end():
    """Figures are judged after the fewest queries, twice as many, and so on, last after all that fit into the time."""
    assert looks(limits()) == [700, 1400, 2800, 3000]
    assert looks(limits(min_queries=9000)) == [3000]


def test_later_looks_demand_more():
    """Each look spends half of the budget of the one before, so that looking often does not pass what one look would not."""
    assert outcomes(judge(queries(slow=0), limits(), looks=1))["p99_ms"] is Outcome.PASSED
    assert outcomes(judge(queries(slow=0), limits(), looks=5))["p99_ms"] is Outcome.INCONCLUSIVE


def test_the_load_is_a_poisson_process_of_the_rate():
    """Gaps between arrivals are exponential with the policy's mean, and the same seed gives the same load."""
    gaps = np.diff(arrivals(100, 20_000, np.random.default_rng(3)))
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)
    assert (arrivals(100, 5, np.random.default_rng(3)) == arrivals(100, 5, np.random.default_rng(3))).all()
