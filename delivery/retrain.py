"""The task `retrain`: runs a model's own training module and insists that it registered a new version that asks for delivery.

The module runs in the environment that the policy names, as a process of its own with an environment of a few words, and is stopped at its
time limit, when this task is told to end, and by the kernel when this task is killed. What it registers is delivered by the registry's
event, like any other version; nothing is started here.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from delivery.findings import Refusal, failed, passed, refused
from delivery.registry import ModelVersion, Registry
from delivery.sandbox import end_group
from delivery.walls import die_with
from validation.contract import BadSpec, Decision, Finding, Spec
from validation.policy import BadPolicy, Retrain, Trigger, parse

LOG_TAIL_BYTES = 65_536
SENTENCE = 300  # characters of the log's last line that fit a finding
PASSED_ON = ("MLFLOW_TRACKING_URI", "PATH", "HOME", "LANG")

Section = TypeVar("Section", Retrain, Trigger)


def run(spec: Spec, evidence: Path) -> Decision:
    state = os.environ.get("PENSTOCK_STATE")
    return retrain(spec, evidence, Registry.from_env(), Path(state) / "envs" if state else None)


def retrain(spec: Spec, evidence: Path, registry: Registry, environments: Path | None) -> Decision:
    """Versions are compared before and after; the evidence is the end of what the training printed.

    Without a folder of `environments` this very one is the training's: a container of the training's image.
    """
    section, trigger = _section(spec, "retrain", Retrain), _section(spec, "trigger", Trigger)
    before = {each.number for each in registry.versions(spec.model)}
    try:
        _train(spec, section, _interpreter(section, environments), evidence / "training.log")
        version = _new_version(spec.model, before, registry)
    except Refusal as refusal:
        return refusal.decision
    marked = _marked(version, trigger, registry)
    return Decision(findings=(passed("registered", f"the training registered {version.name}"), marked), outputs={"version": version.number})


def _section(spec: Spec, name: str, kind: type[Section]) -> Section:
    try:
        return parse(kind, spec.limits[name], name)
    except KeyError:
        raise BadSpec(f"retrain needs limits.{name}") from None
    except BadPolicy as error:
        raise BadSpec(str(error)) from error


def _interpreter(section: Retrain, environments: Path | None) -> Path:
    """Raises `BadSpec` when the environment is not there: no retry makes it."""
    if environments is None:
        return Path(sys.executable)
    python = environments / section.environment / "bin" / "python"
    if not python.exists():
        raise BadSpec(f"retrain.environment {section.environment!r}: there is no {python}; make that environment, or name another")
    return python


def _train(spec: Spec, section: Retrain, python: Path, log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        code = _run_limited([str(python), "-m", section.module], folder, _environ(spec), section.timeout_seconds, log)
    if code is None:
        why = f"{section.module} was stopped after {section.timeout_seconds:g} s"
        raise refused("training", why, "raise retrain.timeout_seconds or train less")
    if code != 0:
        raise refused("training", f"{section.module} ended with exit code {code}: {_last_line(log)}", "the evidence holds its log")


def _run_limited(command: list[str], folder: str, environ: Mapping[str, str], timeout_s: float, log: Path) -> int | None:
    """The exit code, or None when the time limit ended it; no process of its group is left in either case."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=functools.partial(die_with, os.getpid()),  # noqa: PLW1509 - two system calls and no lock
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)
            output.seek(max(0, os.fstat(output.fileno()).st_size - LOG_TAIL_BYTES))
            log.write_bytes(output.read(LOG_TAIL_BYTES))


def _environ(spec: Spec) -> dict[str, str]:
    """The registry's address and what a process cannot do without; nothing else of this task's environment, which holds secrets."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        **kept,
        "PENSTOCK_RETRAIN_MODEL": spec.model,
        "PENSTOCK_RETRAIN_SEED": str(spec.seed),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "true",
    }


def _new_version(model: str, before: set[int], registry: Registry) -> ModelVersion:
    new = [each for each in registry.versions(model) if each.number not in before]
    if not new:
        why = f"the training ended well and registered no new version of {model}"
        raise refused("registered", why, "it must call log_model with registered_model_name")
    return new[-1]


def _marked(version: ModelVersion, trigger: Trigger, registry: Registry) -> Finding:
    if registry.marked(version, trigger):
        return passed("marked", f"{version.name} carries {trigger.marker!r}, so its event asks for a delivery")
    advice = f"set {trigger.marker!r} as {' or '.join(trigger.on)} in the training"
    return failed("marked", f"{version.name} does not carry {trigger.marker!r}: nothing will deliver it", advice=advice)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:SENTENCE] if lines else "it printed nothing"
