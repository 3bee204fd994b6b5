"""Models measured without a server: the provider that was asked for runs them, or nothing does."""

import sys
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from made_bundles import classifier, golden_rows, make_bundle, weights

from validation import latency_benchmark
from validation.contract import Outcome, Spec
from validation.in_process import DoesNotRun, NoProvider, session
from validation.load_client import Answers, Process, Target

ANY_MACHINE = {"late_ms": 60_000.0, "taken_share": 1.0}
LIMITS = {"rate_per_s": 500.0, "min_queries": 600, "max_seconds": 2.0, "p50_ms": 500.0, "p99_ms": 1000.0, **ANY_MACHINE}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier(weights()))
    return str(path)


@pytest.fixture
def stand_in(monkeypatch):
    """An ONNX Runtime of a machine with a GPU: it knows CUDA, and runs on whatever `first` says at the end."""

    class Session:
        def __init__(self, path, options, providers):
            del path, options
            self.providers = providers

        def get_providers(self):
            return [place.first or self.providers[0], "CPUExecutionProvider"]

        def run(self, outputs, inputs):
            del outputs
            if place.fails:
                raise RuntimeError(place.fails)
            place.threads.add(threading.get_ident())
            place.answered.append(inputs)

    place = SimpleNamespace(
        first="",
        fails="",
        threads=set(),
        answered=[],
        SessionOptions=SimpleNamespace,
        InferenceSession=Session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", place)
    return place


@asynccontextmanager
async def asked(path, provider, requests):
    process = Process()
    await process.open("it", Target(protocol="in_process", address=path, requests=requests, provider=provider))
    try:
        yield process
    finally:
        await process.close("it")


async def sent(process, n):
    return Answers(**await process.send("it", np.arange(n) / 1000, np.arange(n)))


async def test_a_model_answers_on_the_cpu(model):
    """Each query is answered, after it was due and sent."""
    rows = tuple({"X": row[None]} for row in golden_rows(20).inputs)
    async with asked(model, "cpu", rows) as process:
        answers = await sent(process, 50)
    assert answers.errors == {}
    assert (answers.done_s >= answers.sent_s).all()
    assert (answers.sent_s >= answers.due_s).all()


async def test_another_provider_is_used_where_it_is(stand_in):
    """On a machine whose ONNX Runtime has CUDA the queries go there, one after another, in their order."""
    async with asked("model.onnx", "cuda", tuple({"X": number} for number in range(50))) as process:
        answers = await sent(process, 50)
    assert answers.errors == {}
    assert stand_in.answered == [{"X": number} for number in range(50)]
    assert len(stand_in.threads) == 1
    assert threading.get_ident() not in stand_in.threads


async def test_what_a_provider_raises_is_the_querys_error(stand_in):
    """A device that runs out of memory fails its queries, in its own words."""
    stand_in.fails = "CUDA out of memory"
    async with asked("model.onnx", "cuda", ({},)) as process:
        answers = await sent(process, 3)
    assert set(answers.errors.values()) == {"RuntimeError: CUDA out of memory"}
    assert np.isinf(answers.latency_s).all()


def test_a_provider_that_is_not_there_is_named(model):
    """No GPU, no CUDA: what there is instead, and what to install."""
    with pytest.raises(NoProvider, match=r"'cuda' is not there; this ONNX Runtime has .*CPUExecutionProvider: install onnxruntime-gpu"):
        session(model, "cuda")


def test_a_silent_fall_back_to_the_cpu_is_refused(stand_in):
    """A CPU's latency never goes by a GPU's name."""
    stand_in.first = "CPUExecutionProvider"
    with pytest.raises(NoProvider, match="fell back to CPUExecutionProvider"):
        session("model.onnx", "cuda")


def test_what_is_no_model_does_not_run(tmp_path):
    """The runtime's own reason is kept."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(DoesNotRun, match="Protobuf parsing failed"):
        session(str(path), "cpu")


def gate(tmp_path, **limits):
    spec = Spec(
        task="latency_benchmark",
        model="irises",
        version=1,
        delivery="d",
        evidence_uri="file:///e",
        bundle=make_bundle(tmp_path, rows=golden_rows(20)),
        limits={**LIMITS, "protocol": "in_process", **limits},
    )
    return {each.name: each for each in latency_benchmark.run(spec, tmp_path).findings}


def test_the_gate_measures_in_process(tmp_path):
    """No Triton is needed, and the same findings come of it."""
    findings = gate(tmp_path)
    assert {name: each.outcome for name, each in findings.items()} == dict.fromkeys(
        ("request_errors", "load", "p50_ms", "p99_ms"), Outcome.PASSED
    )


def test_the_gate_passes_nothing_without_the_device(tmp_path):
    """A GPU that was asked for and is not there makes the measurement invalid, and says what to do."""
    (finding,) = gate(tmp_path, provider="cuda", device="gpu0").values()
    assert (finding.outcome, finding.why.startswith("INVALID: provider 'cuda' is not there")) == (Outcome.INCONCLUSIVE, True)
    assert "where such a device is" in finding.advice
