"""The gate `latency_benchmark`, against a server that speaks Triton's HTTP and gRPC and misbehaves on demand."""

import csv
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from made_bundles import MODEL, golden_rows, make_bundle

from validation import child, latency_benchmark, machine, private_server
from validation.client_limits import ClientLimits
from validation.contract import BadSpec, Outcome, Spec, Stable
from validation.golden_requests import of_length
from validation.gpu import GpuSeen
from validation.latency_judge import CANDIDATE, STABLE, Measured, judge
from validation.load_client import Answers
from validation.load_run import LoadRun
from validation.policy import LatencyBenchmark
from validation.private_server import DoesNotLoad, ServerTrouble

FAKE = Path(__file__).parent / "fake_triton.py"
ANY_MACHINE = {"late_ms": 60_000.0, "taken_share": 1.0}
"""The machine that runs the tests is not judged."""

LIMITS = {"rate_per_s": 500.0, "min_queries": 700, "max_seconds": 3.0, "p50_ms": 500.0, "p99_ms": 1000.0, **ANY_MACHINE}


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Runs the gate on a made bundle against a fake server that behaves as told."""

    def run(behaviour="fine", rows=None, *, with_stable=False, **limits):
        if not with_stable:  # its own tests measure it
            monkeypatch.setattr(latency_benchmark, "client_limits", lambda *_: CLIENT)
        monkeypatch.setenv("PENSTOCK_TRITON", f"{sys.executable} {FAKE} --behaviour={behaviour}")
        bundle = make_bundle(tmp_path, rows=rows or golden_rows(20))
        spec = Spec(
            task="latency_benchmark",
            model=MODEL,
            version=2,
            delivery="d",
            evidence_uri="file:///e",
            bundle=bundle,
            stable=Stable(version=1, bundle=bundle) if with_stable else None,
            limits={**LIMITS, **limits},
        )
        return latency_benchmark.run(spec, tmp_path).findings

    return run


def limits(**changes):
    return LatencyBenchmark(**{**LIMITS, "rate_per_s": 100, "max_seconds": 30, "p50_ms": 25, "p99_ms": 100, "late_ms": 1.0, **changes})


CLIENT = ClientLimits(floor_p50_ms=0.1, floor_p99_ms=0.2, slip_p99_ms=0.1, ceiling_rps=20_000.0)


def measured(n=700, *, latency_s=0.01, slow=0, late=0, failed=0, **more):
    """A load of `n` queries, so many of them slow, sent late, or without an answer."""
    latencies = np.full(n, latency_s)
    latencies[:slow] = 9.0
    latencies[slow : slow + failed] = math.inf
    lateness = np.zeros(n)
    lateness[n - late :] = 0.0011
    due = np.arange(n) / 100
    found = Measured(client=CLIENT, **more)
    errors = dict.fromkeys(range(slow, slow + failed), "status 500")
    found.add(Answers(due_s=due, sent_s=due + lateness, done_s=due + latencies, errors=errors, cpu_s=0.1))
    return found


def in_turns(ratio, pairs=8, seed=1):
    """Blocks of lognormal latencies around 20 ms, the candidate's so many times stable's."""
    rng = np.random.default_rng(seed)
    return {
        STABLE: [0.02 * rng.lognormal(0, 0.2, 25) for _ in range(pairs)],
        CANDIDATE: [ratio * 0.02 * rng.lognormal(0, 0.2, 25) for _ in range(pairs)],
    }


def outcomes(findings):
    return {each.name: each.outcome for each in findings}


def test_a_fast_server_passes_with_its_evidence(benchmark, tmp_path):
    """A server within its limits passes every finding, and each query's latency stands in the evidence."""
    findings = benchmark(throughput_rps=600.0, curve_rps=(700.0, 500.0))
    names = ("request_errors", "load", "p50_ms", "p99_ms", "throughput_rps")
    assert outcomes(findings) == dict.fromkeys(names, Outcome.PASSED)
    rows = list(csv.DictReader((tmp_path / "latencies.csv").open()))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(rows) == summary["queries"] >= 700
    assert all(float(row["latency_ms"]) > 0 for row in rows)
    assert summary["cold_start_s"] > 0
    assert summary["client"]["ceiling_rps"] > 0
    assert [(each["rate_per_s"], each["answered"]) for each in summary["curve"][CANDIDATE]] == [(500.0, 1.0), (700.0, 1.0)]
    assert "candidate: p99" in (tmp_path / "report.html").read_text()


def test_stable_is_measured_beside_it_in_turns(benchmark, tmp_path):
    """With a stable version both are served at once, asked in turns, and the same server is not called worse than itself."""
    findings = benchmark(with_stable=True, protocol="grpc", indifferent_below_ms=5000.0, throughput_rps=300.0)
    assert outcomes(findings)["p50_ratio"] is outcomes(findings)["p99_ratio"] is Outcome.PASSED
    assert outcomes(findings)["throughput_ratio"] is not Outcome.FAILED
    blocks = {row["measured"] for row in csv.DictReader((tmp_path / "latencies.csv").open())} - {"load"}
    assert blocks == {f"{name} {number}" for name in (CANDIDATE, STABLE) for number in range(8)}
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "stable, in turns" in page
    assert "<script" not in page


class Sends:
    """A client that remembers how it was asked."""

    def send(self, name, due_s, picks):
        return name, due_s, picks

    def send_closed(self, name, queries, concurrency):
        return name, queries, concurrency


class IsAnswered:
    """A client whose every query is answered after ten milliseconds."""

    def send(self, name, due_s, picks):
        del name, picks
        return Answers(due_s=due_s, sent_s=due_s, done_s=due_s + 0.01, errors={}, cpu_s=0.0)


@pytest.mark.parametrize(("arrivals", "words"), [("closed_loop", "hides what waiting users"), ("fixed_rate", "hides the queues")])
def test_other_loads_say_what_they_cannot_see(arrivals, words):
    """A closed loop and a fixed rate are there for whoever needs them, and their result names their blind spot."""
    load = judge(measured(), limits(arrivals=arrivals))[1]
    assert (load.outcome, words in load.why) == (Outcome.PASSED, True), load.why


def test_arrivals_are_the_policys():
    """Poisson and fixed-rate loads are sent when due; a closed loop so many at a time."""
    closed, fixed, poisson = (
        LoadRun(Sends(), limits(arrivals=each, concurrency=3), np.random.default_rng(1)).send(CANDIDATE, 200)
        for each in ("closed_loop", "fixed_rate", "poisson")
    )
    assert closed == (CANDIDATE, 200, 3)
    assert np.diff(fixed[1]) == pytest.approx(0.01)
    assert np.diff(poisson[1]).std() > 0.005


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
    monkeypatch.setattr(private_server, "READY_TIMEOUT_S", 0.5)
    with pytest.raises(ServerTrouble, match=r"was not ready after 0\.5 s"):
        benchmark("deaf")


def test_a_silent_server_that_refused_the_model_fails(benchmark, monkeypatch):
    """Triton's own table condemns the model also when the server does not end over it."""
    monkeypatch.setattr(private_server, "READY_TIMEOUT_S", 2.0)
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
    trouble = private_server._trouble("ended", "irises", tmp_path / "log")
    assert type(trouble) is kind
    assert re.search(words, str(trouble))


def children():
    """Living processes below this one; other tests of the run may have servers of theirs up."""
    return [each for each in psutil.Process(os.getpid()).children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]


def test_no_process_is_left_behind(benchmark, monkeypatch):
    """A server that ignores SIGTERM, and its children, are gone when the gate ends."""
    monkeypatch.setattr(child, "STOP_TIMEOUT_S", 0.2)
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
    """More than 1 % of sends later than the policy allows: the machine was measured, so no latency is judged."""
    assert outcomes(judge(measured(late=7), limits()))["load"] is Outcome.PASSED
    findings = judge(measured(late=8), limits())
    assert outcomes(findings) == {"request_errors": Outcome.PASSED, "load": Outcome.INCONCLUSIVE}
    assert "less busy machine" in findings[1].advice


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warm_up": None}, "not steady after 20 s of warm-up"),
        ({"taken": machine.Taken(stolen=0.02, held_up=0.0, too_hot=0)}, "the hypervisor took 2.0% of the CPU time; 1.0% are allowed"),
        ({"taken": machine.Taken(stolen=0.0, held_up=0.0, too_hot=3)}, "slowed down 3 times for its heat"),
        ({"gpu": GpuSeen(name="T4", slowed=("by its driver, for its heat",))}, "the GPU was slowed down by its driver, for its heat"),
        ({"gpu": GpuSeen(unknown="no driver")}, "the state of the GPU cannot be read: no driver"),
    ],
)
def test_an_unfit_machine_makes_it_invalid(changes, words):
    """Latencies that never settled, stolen CPU time and heat say nothing about the model, and the finding names them."""
    load = judge(measured(**changes), limits(taken_share=0.01))[1]
    assert (load.outcome, load.why.startswith("INVALID")) == (Outcome.INCONCLUSIVE, True)
    assert words in load.why


def test_a_gpu_that_was_once_unfit_stays_so():
    """A later look at a cool device does not mend the queries before; a fit one is told with the load."""
    fit = GpuSeen(name="T4", busy=0.4, memory_mib=800.0, clock_mhz=1500.0, most_clock_mhz=1590.0)
    found = measured()
    found.saw(fit)
    assert "T4: busy 40% of the time" in judge(found, limits())[1].why
    found.saw(GpuSeen(name="T4", slowed=("by its power supply",)))
    found.saw(fit)
    assert judge(found, limits())[1].outcome is Outcome.INCONCLUSIVE


def test_a_load_on_a_gpu_is_watched(monkeypatch):
    """From its first query to its last, on the device that the task may use; without NVIDIA's library nothing is passed."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = Measured(client=CLIENT)
    on_gpu = limits(protocol="in_process", provider="cuda", device="gpu0", min_queries=700)
    LoadRun(IsAnswered(), on_gpu, np.random.default_rng(1)).measure_load(found)
    assert found.gpu is not None
    assert "cannot be read: ModuleNotFoundError" in judge(found, on_gpu)[1].why


def test_a_model_that_never_keeps_up_is_too_slow_and_not_unknown():
    """Latencies that grow without end never become steady; those that are surely over the limit fail all the same, none passes."""
    assert outcomes(judge(measured(warm_up=None, latency_s=2.0), limits()))["p99_ms"] is Outcome.FAILED
    assert outcomes(judge(measured(warm_up=None), limits())) == {"request_errors": Outcome.PASSED, "load": Outcome.INCONCLUSIVE}


def test_a_client_near_its_own_ceiling_makes_it_invalid():
    """A client that could send less than twice the rate would have its own queue booked as the model's."""
    found = measured()
    found.client = ClientLimits(floor_p50_ms=1, floor_p99_ms=2, slip_p99_ms=1, ceiling_rps=199.0)
    load = judge(found, limits())[1]
    assert (load.outcome, "manages 199 queries a second here; 2 times 100 are needed" in load.why) == (Outcome.INCONCLUSIVE, True)


def test_too_few_queries_are_invalid():
    """Fewer queries than the policy asks for are inconclusive, however fast."""
    assert outcomes(judge(measured(699), limits()))["load"] is Outcome.INCONCLUSIVE
    assert outcomes(judge(Measured(client=CLIENT), limits()))["load"] is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("slow", "outcome"), [(0, Outcome.PASSED), (7, Outcome.INCONCLUSIVE), (30, Outcome.FAILED)])
def test_p99_needs_its_count(slow, outcome):
    """The 99 % quantile is judged by how many queries were over, not by the point estimate."""
    assert outcomes(judge(measured(slow=slow), limits()))["p99_ms"] is outcome


def test_failed_queries_count_as_slow():
    """A query without an answer never counts as fast."""
    assert outcomes(judge(measured(failed=40), limits()))["p99_ms"] is not Outcome.PASSED


@pytest.mark.parametrize(
    ("full", "outcome", "words"),
    [
        ({}, Outcome.PASSED, "at 400 queries a second: p99_ms: 0 of 1400 queries took longer"),
        ({"slow": 100}, Outcome.FAILED, "at 400 queries a second: p99_ms: 100 of 1400 queries took longer"),
        ({"failed": 1}, Outcome.FAILED, "at 400 queries a second: request_errors: 1 of 1400 queries failed"),
        ({"late": 100}, Outcome.INCONCLUSIVE, "at 400 queries a second: load: INVALID"),
    ],
)
def test_the_rate_that_must_be_borne_is_judged_by_its_own_load(full, outcome, words):
    """The p99 must hold there, too, and the load itself be fit; the policy's own load does not speak for it."""
    found = measured(at_throughput=measured(1400, **full))
    finding = {each.name: each for each in judge(found, limits(throughput_rps=400.0))}["throughput_rps"]
    assert (finding.outcome, words in finding.why) == (outcome, True), finding.why


def full_block(seconds, queries=200, **errors):
    """A full server answers its queries evenly within so many seconds."""
    done = np.linspace(seconds / queries, seconds, queries)
    done[list(errors.get("failed", ()))] = math.inf
    failed = dict.fromkeys(errors.get("failed", ()), "status 500")
    return Answers(due_s=np.zeros(queries), sent_s=np.zeros(queries), done_s=done, errors=failed, cpu_s=0.1)


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(1.0, Outcome.PASSED), (1.1, Outcome.PASSED), (1.2, Outcome.INCONCLUSIVE), (1.4, Outcome.FAILED)]
)
def test_what_a_full_server_bears_is_held_against_stables(ratio, outcome):
    """A version that holds every limit and yet surely takes more than 20 % longer a query when it is full fails."""
    rng, found = np.random.default_rng(1), measured(blocks=in_turns(1.0))
    for _ in range(8):
        found.add_full(STABLE, full_block(0.5 * rng.lognormal(0, 0.02)))
        found.add_full(CANDIDATE, full_block(0.5 * ratio * rng.lognormal(0, 0.02)))
    finding = judge(found, limits(throughput_rps=400.0, indifferent_below_ms=5000.0))[-1]
    assert (finding.name, finding.outcome) == ("throughput_ratio", outcome)
    assert "the time that a full server takes for a query is" in finding.why


def test_a_full_server_that_fails_has_failed():
    """The candidate's errors count wherever they come; where stable's server fails nothing is known, and nothing passed."""
    for name, errors, ratio in ((CANDIDATE, Outcome.FAILED, Outcome.INCONCLUSIVE), (STABLE, Outcome.PASSED, Outcome.INCONCLUSIVE)):
        found = measured(blocks=in_turns(1.0))
        for _ in range(8):
            for each in (CANDIDATE, STABLE):
                found.add_full(each, full_block(0.5, failed=(3,) if each == name else ()))
        said = outcomes(judge(found, limits(throughput_rps=400.0)))
        assert (said["request_errors"], said["throughput_ratio"]) == (errors, ratio)


def test_a_failure_in_turns_fails_the_candidate_and_not_for_stables():
    """Wherever the candidate gives no answer it has failed; where stable does, that is not the candidate's fault."""
    answers = Answers(due_s=np.zeros(1), sent_s=np.zeros(1), done_s=np.full(1, math.inf), errors={0: "status 500"}, cpu_s=0.0)
    for name, outcome in ((CANDIDATE, Outcome.FAILED), (STABLE, Outcome.PASSED)):
        found = measured(blocks=in_turns(1.0, pairs=7))
        found.add_block(name, answers)
        found.blocks[STABLE if name == CANDIDATE else CANDIDATE].append(np.full(1, 0.02))
        assert outcomes(judge(found, limits()))["request_errors"] is outcome


def test_a_single_look_follows_mlperf_to_the_query():
    """With no later look to come, the whole confidence is this one's: 459 queries with none over pass, 458 do not; 662 bear one."""
    once = {"rate_per_s": 1000.0, "max_seconds": 0.459, "min_queries": 459}
    assert outcomes(judge(measured(459), limits(**once)))["p99_ms"] is Outcome.PASSED
    assert outcomes(judge(measured(459, slow=1), limits(**once)))["p99_ms"] is Outcome.INCONCLUSIVE
    less = {"rate_per_s": 1000.0, "max_seconds": 0.458, "min_queries": 458}
    assert outcomes(judge(measured(458), limits(**less)))["p99_ms"] is Outcome.INCONCLUSIVE
    more = {"rate_per_s": 1000.0, "max_seconds": 0.662, "min_queries": 662}
    assert outcomes(judge(measured(662, slow=1), limits(**more)))["p99_ms"] is Outcome.PASSED


def test_later_looks_demand_more():
    """Each look spends half of what is left of the budget, so that looking often does not pass what one look would not."""
    looks = {"min_queries": 580, "max_seconds": 30}
    assert outcomes(judge(measured(580), limits(**looks)))["p99_ms"] is Outcome.PASSED
    assert outcomes(judge(measured(1160, slow=4), limits(**looks)))["p99_ms"] is Outcome.INCONCLUSIVE
    assert outcomes(judge(measured(1160, slow=4), limits(min_queries=1160, max_seconds=11.6)))["p99_ms"] is Outcome.PASSED


@pytest.mark.parametrize(("ratio", "outcome"), [(1.0, Outcome.PASSED), (1.2, Outcome.INCONCLUSIVE), (1.6, Outcome.FAILED)])
def test_a_version_slower_than_stable_is_found(ratio, outcome):
    """Within every limit and yet surely more than 20 % slower than stable fails; about as much worse is not known."""
    findings = judge(measured(blocks=in_turns(ratio)), limits())
    assert (outcomes(findings)["p99_ms"], outcomes(findings)["p50_ratio"]) == (Outcome.PASSED, outcome)


def test_a_stable_version_that_cannot_be_measured_passes_nothing():
    """Without a fit measurement of stable nobody is shown to be as fast, and the finding says what is wrong with stable."""
    findings = judge(measured(stable_trouble="it does not load: no such file"), limits())
    assert [(each.outcome, "it does not load: no such file" in each.why) for each in findings[-2:]] == [(Outcome.INCONCLUSIVE, True)] * 2


def test_open_axes_have_the_policys_length():
    """Longer than the golden rows by repetition, shorter by a cut."""
    values = np.arange(6.0).reshape(2, 3)
    assert of_length(values, [1], 5).tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]
    assert of_length(values, [1], 2).tolist() == [[0, 1], [3, 4]]
