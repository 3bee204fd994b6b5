"""bench: what is measured is what the gateway does, not what somebody says of it."""

import json
from pathlib import Path

import pytest

from bench import faults, offline, offline_judges
from bench.faults import reverted, until_reverted
from bench.figures import Figure
from bench.world import PORT_SHIFT, Unexpected, shifted_settings
from stack.environments import ENVIRONMENTS
from stack.settings import read_settings
from validation.contract import Outcome

HELD = {"split.digits.digits--v2--http": "100", "split.digits.digits--v2--grpc": "100", "split.digits.digits--v1--http": "900"}


@pytest.mark.parametrize(
    ("runtime", "back"),
    [
        (HELD, False),
        ({}, True),
        (dict.fromkeys(HELD, "0"), True),
        ({**HELD, "split.digits.digits--v2--http": "0"}, False),
        ({"split.digits.digits--v3--http": "100"}, True),
    ],
)
def test_traffic_is_back_when_the_gateway_has_no_weight_for_the_version(runtime: dict[str, str], *, back: bool):
    """Keys that are gone or 0, for both protocols; other versions' do not count."""
    assert reverted(runtime, 2) is back


def test_the_first_look_without_the_candidate_counts():
    """The watch may put it back right after: that is no longer the revert's business."""
    looks = iter([HELD, HELD, {}, HELD])
    until_reverted(lambda: next(looks), 2)
    assert next(looks) == HELD


def test_traffic_that_never_goes_back_is_no_figure(monkeypatch: pytest.MonkeyPatch):
    """A limit that is over ends the measurement."""
    monkeypatch.setattr(faults, "LIMIT_S", 0.0)
    with pytest.raises(Unexpected, match="still sends traffic to v2"):
        until_reverted(lambda: HELD, 2)


def test_only_ports_are_shifted(tmp_path: Path):
    """A stack beside the usual one differs from it in ports and in nothing else."""
    usual, beside = read_settings({}), read_settings({"PENSTOCK_SETTINGS": str(shifted_settings(tmp_path))})
    assert beside.ports.fixed() == {name: port + PORT_SHIFT for name, port in usual.ports.fixed().items()}
    assert (beside.airflow, beside.gateway) == (usual.airflow, usual.gateway)


def test_offline_figures_come_back_as_they_were_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A module prints its figures as JSON in the environment of its gate; what is read there is what was measured."""
    measured = [Figure(name="a_pct", value=1.5, unit="%", goal="<= 5", how="by hand")]
    monkeypatch.setattr(offline_judges, "measure", lambda: measured)
    assert offline.main(["offline_judges"]) == 0
    assert [Figure(**row) for row in json.loads(capsys.readouterr().out)] == measured
    assert set(offline.MODULES.values()) <= set(ENVIRONMENTS)


def test_a_measurement_that_ends_badly_is_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The message names the module and holds the end of what it said."""
    python = tmp_path / "envs" / "golden_set" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho no such model >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setenv("PENSTOCK_STATE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"bench\.offline_judges ended with status 3: no such model"):
        offline.measure()


def test_the_worst_metric_is_the_judges_figure(monkeypatch: pytest.MonkeyPatch):
    """Of the rates of all metrics the greatest counts, and refused is all that did not pass."""
    rates = {"accuracy": {Outcome.PASSED: 0.99}, "auc": {Outcome.PASSED: 0.96}, "f1": {Outcome.PASSED: 1.0}}
    monkeypatch.setattr(offline_judges, "DRAWN", rates)
    monkeypatch.setattr(
        offline_judges, "passed", lambda name, draw, worse, *, draws, seed: {each: 1 - p if worse else p for each, p in draw.items()}
    )
    figures = {each.name: each for each in offline_judges.measure()}
    assert {name: each.value for name, each in figures.items()} == {
        "identical_refused_pct": 4.0,
        "margin_passed_pct": 4.0,
        "drop_passed_pct": 4.0,
    }
    assert all(each.holds for each in figures.values())
    assert "accuracy 1, auc 4, f1 0" in figures["identical_refused_pct"].how
