"""Retraining: a module of the user's runs with little and must leave a version that asks for delivery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from registry_fixtures import mlflow_address_fixture, model_fixture, registry_fixture, spec  # noqa: F401 - found by name

from delivery.registry import Registry
from delivery.retrain import retrain
from validation.contract import BadSpec, Decision, Outcome

TRIGGER = {"on": ["created"], "marker": "candidate"}
REGISTER = """
import json, os, urllib.request
def post(path, **body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/" + path, data=data)
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request))
name, tags = os.environ["PENSTOCK_RETRAIN_MODEL"], [{"key": KEY, "value": "yes"}]
run = post("runs/create", experiment_id="0")["run"]["info"]
post("model-versions/create", name=name, run_id=run["run_id"], source=run["artifact_uri"] + "/model", tags=tags)
print("seed", os.environ["PENSTOCK_RETRAIN_SEED"])
"""


@pytest.fixture(name="environments")
def environments_fixture(tmp_path: Path) -> Path:
    """An environment `training` whose interpreter finds the test's module: this interpreter with one folder on its path."""
    python = tmp_path / "envs" / "training" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "modules").mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/modules exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "envs"


def run(registry: Registry, model: str, environments: Path, code: str, timeout_s: float = 60, **section: Any) -> Decision:
    (environments.parent / "modules" / "their_training.py").write_text(code)
    row = {"schedule": "@daily", "environment": "training", "module": "their_training", "timeout_seconds": timeout_s, **section}
    evidence = environments.parent / "evidence"
    evidence.mkdir()
    task = spec("retrain", model, 0, environments.parent, limits={"retrain": row, "trigger": TRIGGER}, seed=5)
    return retrain(task, evidence, registry, environments)


def refusal(decision: Decision) -> str:
    (finding,) = [each for each in decision.findings if each.outcome is Outcome.FAILED]
    return f"{finding.name}: {finding.why} ({finding.advice})"


def test_a_training_registers_a_marked_version(registry: Registry, model: str, environments: Path) -> None:
    """The new version's number is put out, and what the training printed is evidence."""
    decision = run(registry, model, environments, REGISTER.replace("KEY", '"candidate"'))
    assert decision.outputs == {"version": 1}
    assert max(each.outcome for each in decision.findings) is Outcome.PASSED
    assert (environments.parent / "evidence" / "training.log").read_text() == "seed 5\n"


def test_a_version_without_the_marker_is_not_enough(registry: Registry, model: str, environments: Path) -> None:
    """Nothing would deliver it, so the retraining failed; the marker is named."""
    assert "does not carry 'candidate'" in refusal(run(registry, model, environments, REGISTER.replace("KEY", '"other"')))


def test_a_training_that_registers_nothing_failed(registry: Registry, model: str, environments: Path) -> None:
    """Exit code 0 is no proof."""
    assert "registered no new version" in refusal(run(registry, model, environments, "print('trained')"))


def test_a_training_that_raises_failed_with_its_last_words(registry: Registry, model: str, environments: Path) -> None:
    """The last line of its log says why."""
    said = refusal(run(registry, model, environments, "raise ValueError('no data today')"))
    assert "exit code 1: ValueError: no data today" in said


def test_a_training_has_a_time_limit(registry: Registry, model: str, environments: Path) -> None:
    """It is stopped with everything that it started, and the limit is named."""
    code = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(77777)'])\nwhile True: pass"
    said = refusal(run(registry, model, environments, code, timeout_s=3))
    assert "stopped after 3 s" in said
    assert not any("77777" in _command(pid) for pid in os.listdir("/proc") if pid.isdigit())


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_that_ends_leaves_no_training(tmp_path: Path, sign: signal.Signals) -> None:
    """Told to end, the task ends its training; killed, the kernel does."""
    training = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(600)"
    code = f"""
import os, signal, sys
from pathlib import Path
from delivery.retrain import _run_limited
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
_run_limited([sys.executable, "-c", {training!r}], "/", os.environ, 600, Path({str(tmp_path / "log")!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as task:
        while not (tmp_path / "up").exists():
            assert task.poll() is None
        trained = psutil.Process(task.pid).children()
        task.send_signal(sign)
    assert len(trained) == 1
    assert psutil.wait_procs(trained, timeout=10)[1] == []


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_training_gets_no_credentials(registry: Registry, model: str, environments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the task's environment only a few plain words are passed on."""
    monkeypatch.setenv("PENSTOCK_DIRECTOR_TOKEN", "a-secret")
    run(registry, model, environments, "import os; print(sorted(os.environ))")
    log = (environments.parent / "evidence" / "training.log").read_text()
    assert "PENSTOCK_RETRAIN_MODEL" in log
    assert "PENSTOCK_DIRECTOR_TOKEN" not in log


def test_an_environment_that_is_not_there_is_a_bad_spec(registry: Registry, model: str, environments: Path) -> None:
    """No retry makes an environment; the one that is missing is named."""
    with pytest.raises(BadSpec, match="'elsewhere'"):
        run(registry, model, environments, "", environment="elsewhere")


def test_retraining_needs_its_sections(registry: Registry, model: str, tmp_path: Path) -> None:
    """A spec without the policy's sections is refused by name."""
    with pytest.raises(BadSpec, match=r"limits\.retrain"):
        retrain(spec("retrain", model, 0, tmp_path), tmp_path, registry, tmp_path)
