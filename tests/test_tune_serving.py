"""The task `tune_serving`, against a server that serves as its configuration says."""

import json
import sys
from pathlib import Path

import pytest
from made_bundles import MODEL, golden_rows, make_bundle

from validation import tune_serving, tuning
from validation.client_limits import ClientLimits
from validation.contract import BadSpec, Outcome, Spec
from validation.serving import NotTunable

FAKE = Path(__file__).parent / "fake_triton.py"
LIMITS = {
    "p99_ms": 5000.0,
    "rate_per_s": 50.0,
    "max_seconds": 60.0,
    "instances": [1, 2],
    "threads": [1],
    "delay_us": [0],
    "preferred": [0],
}


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """Runs the task on a made bundle, with few queries each, against a fake server that behaves as told; the client has this ceiling."""
    for name, few in {"FULL_S": 0.2, "QUERIES": 20, "WARM_UP_QUERIES": 40, "ALONE_QUERIES": 5, "SHARES": (0.5,)}.items():
        monkeypatch.setattr(tuning, name, few)

    def run(behaviour="instances", rows=20, ceiling_rps=1e6, **limits):
        client = ClientLimits(floor_p50_ms=0.1, floor_p99_ms=0.2, slip_p99_ms=0.1, ceiling_rps=ceiling_rps)
        monkeypatch.setattr(tune_serving, "client_limits", lambda *_: client)
        monkeypatch.setenv("PENSTOCK_TRITON", f"{sys.executable} {FAKE} --behaviour={behaviour}")
        spec = Spec(
            task="tune_serving",
            model=MODEL,
            version=1,
            delivery="d",
            evidence_uri="file:///e",
            bundle=make_bundle(tmp_path, rows=golden_rows(rows)),
            limits={**LIMITS, **limits},
        )
        return tune_serving.run(spec, tmp_path)

    return run


def test_what_serves_most_is_chosen(tune, tmp_path):
    """A server that answers two at a time where its configuration says so is given that; the curve holds all that was measured."""
    decision = tune()
    (finding,) = decision.findings
    assert finding.outcome is Outcome.PASSED
    assert (decision.outputs["serving"]["instances"], decision.outputs["serving"]["threads"]) == (2, 1)
    assert "requests a second within a p99 of 5000 ms; the default:" in finding.why
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert [(row["instances"], row["batching"]) for row in curve][:2] == [(1, True), (2, True)]
    assert all(row["within_rps"] > 0 for row in curve)


def test_no_configuration_is_chosen_that_breaks_the_p99(tune):
    """Not even the default: the finding says which p99 it breaks, and nothing is passed."""
    decision = tune(p99_ms=1.0)
    (finding,) = decision.findings
    assert (finding.outcome, decision.outputs) == (Outcome.INCONCLUSIVE, {})
    assert "no configuration holds a p99 of 1 ms; the default breaks it with one request at a time" in finding.why


def test_a_client_near_its_own_ceiling_tunes_nothing(tune):
    """What was found would be the client's limit and not the server's: no configuration is given out, and the finding says the figures."""
    decision = tune(ceiling_rps=60.0)
    (finding,) = decision.findings
    assert (finding.outcome, decision.outputs) == (Outcome.INCONCLUSIVE, {})
    assert "the load client manages 60 requests a second here; 2 times" in finding.why


def test_the_search_ends_with_its_time(tune, tmp_path):
    """The default is measured whatever the time; what is best of what there is stays."""
    decision = tune(max_seconds=0.001)
    assert decision.outputs["serving"]["instances"] == 1
    assert len(json.loads((tmp_path / "curve.json").read_text())) == 1


def test_a_model_that_does_not_load_is_failed(tune):
    """In Triton's words."""
    (finding,) = tune("unloadable").findings
    assert (finding.name, finding.outcome) == ("loads", Outcome.FAILED)
    assert "the file is no ONNX model" in finding.why


def test_a_configuration_that_is_not_ours_is_not_tuned(tune, monkeypatch):
    """What cannot be changed surely is a refusal with advice, and no server is started for it."""

    def refuse(text, serving):
        raise NotTunable("config.pbtxt has no line")

    monkeypatch.setattr(tuning, "configured", refuse)
    (finding,) = tune().findings
    assert (finding.outcome, finding.advice) == (Outcome.FAILED, "take tune_serving out of the policy")


def test_without_rows_nothing_is_tuned(tune):
    """There is nothing to send."""
    (finding,) = tune(rows=0).findings
    assert (finding.outcome, finding.advice) == (Outcome.INCONCLUSIVE, "give it rows")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"instances": [2, 1]}, "rising numbers from 1 on"),
        ({"delay_us": [100]}, "rising numbers from 0 on"),
        ({"threads": []}, "rising numbers from 1 on"),
        ({"p99_ms": 0.0}, "p99_ms is 0.0"),
        ({"batch_sizes": []}, "batch_sizes is 0"),
        ({"delays": [0]}, "unknown key tune_serving.delays"),
    ],
)
def test_bad_limits_are_a_bad_spec(tune, limits, words):
    """The error names what may not stand there."""
    with pytest.raises(BadSpec, match=words):
        tune(**limits)
