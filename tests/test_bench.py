"""bench: what is measured is what the gateway does, not what somebody says of it."""

import json
from configparser import ConfigParser
from pathlib import Path

import pytest
from scipy.stats import binomtest

from bench import faults, mutation, offline, offline_judges
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


def test_faults_that_nothing_noticed_are_alive():
    """A failed test and a timeout count as noticed; survivors, faults that no test reaches, crashes and untried ones do not."""
    drawn = {"a": "1", "b": "36", "c": "0", "d": "33", "e": "-11", "f": "None", "g": "3", "h": "5"}
    found = mutation.figure(1234, drawn, 7)
    assert (found.value, found.holds) == (37.5, False)
    assert found.how.startswith(
        "8 of mutmut's 1,234 faults in 22 modules of `validation/`, drawn with seed 7: 2 killed, 1 by timeout, 5 alive"
    )


@pytest.mark.parametrize(("noticed", "n"), [(0, 10), (85, 100), (400, 400)])
def test_the_interval_of_a_share_is_wilsons(noticed, n):
    """As scipy has it."""
    assert mutation.wilson(noticed, n) == pytest.approx(tuple(binomtest(noticed, n).proportion_ci(method="wilson")), abs=1e-6)


def test_what_is_mutated_and_what_tests_it_is_laid_out(tmp_path: Path):
    """Every module and every test file that mutmut is told of is there."""
    mutation.lay_out(tmp_path)
    said = ConfigParser()
    said.read(tmp_path / "setup.cfg")
    named = [line for key in ("only_mutate", "also_copy", "pytest_add_cli_args_test_selection") for line in said["mutmut"][key].split()]
    assert len(named) > len(mutation.MODULES)
    assert [name for name in named if not (tmp_path / name).exists()] == []


def test_a_copy_that_nobody_imports_is_no_figure(tmp_path: Path):
    """Were the checkout tested in the copy's place, no fault would ever be noticed: one that must be is tried first."""
    meta = tmp_path / "mutants" / "validation" / "contract.py.meta"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"exit_code_by_key": {mutation.SURE: 0}}))
    with pytest.raises(Unexpected, match="the tests do not import the mutated copy"):
        mutation.try_sample(tmp_path, Path("/bin/true"), 5, 1)


def test_a_run_that_ends_badly_is_no_score(tmp_path: Path):
    """The message holds the status."""
    with pytest.raises(Unexpected, match="mutmut ended with status 1"):
        mutation.try_sample(tmp_path, Path("/bin/false"), 5, 1)
