"""Export of the heavy flavours, each in the environment that has its framework: real models, real conversions, behind the walls.

Skipped where the environment is not installed: `make test-extras` installs and runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from registry_fixtures import (  # noqa: F401 - found by name
    fixed_size,
    mlflow_address_fixture,
    model_fixture,
    register_files,
    registry_fixture,
    set_golden,
    spec,
)

from delivery.registry import Registry
from validation.bundle import OpenBundle, read_bundle
from validation.contract import Bundle, Outcome, Spec, Verdict

ENVIRONMENTS = Path(sys.prefix).parent
SAVE = Path(__file__).parent / "extras" / "save_model.py"
ROWS = 30
DRAWS = np.random.default_rng(3)
FEATURES = {"features": DRAWS.normal(size=(ROWS, 4)).astype(np.float32)}
SEQUENCES = {"values": DRAWS.normal(size=(ROWS, 7)).astype(np.float32), "weights": DRAWS.normal(size=(ROWS, 1)).astype(np.float32)}


def python(environment: str) -> str:
    found = ENVIRONMENTS / environment / "bin" / "python"
    if not found.exists():
        pytest.skip(f"the environment {environment} is not installed: make extras EXTRAS={environment}")
    return str(found)


def logged(registry: Registry, model: str, environment: str, kind: str, folder: Path) -> int:
    """The number of a version that holds the model of that kind, saved by its own framework."""
    target = folder / "saved"
    command = [python(environment), "-W", "ignore", str(SAVE), kind, str(target)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    files = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    return register_files(registry, model, files)


def run(registry: Registry, environment: str, asked: Spec, folder: Path) -> Verdict:
    """The task as Airflow starts it: a process of that environment, a spec in its environment, a verdict in a file."""
    out = folder / "out"
    out.mkdir()
    task = {"TASK_SPEC": asked.to_json(), "TASK_OUT": str(out), "MLFLOW_TRACKING_URI": registry.tracking_uri, "PENSTOCK_SANDBOX": "lenient"}
    done = subprocess.run([python(environment), "-m", "delivery"], check=False, capture_output=True, text=True, env={**os.environ, **task})
    assert done.returncode == 0, done.stderr[-2000:]
    return Verdict.from_bytes((out / "verdict.json").read_bytes(), asked)


def export(registry: Registry, model: str, environment: str, kind: str, folder: Path) -> Verdict:
    folder.mkdir(exist_ok=True)
    version = logged(registry, model, environment, kind, folder)
    rows = SEQUENCES if kind == "sequences" else FEATURES
    set_golden(registry, model, folder, {**{name: fixed_size(values) for name, values in rows.items()}, "label": pa.array([0] * ROWS)})
    asked = spec("export", model, version, folder, inputs={"artifacts_uri": f"{folder.as_uri()}/artifacts"})
    return run(registry, environment, asked, folder)


def opened(verdict: Verdict) -> OpenBundle:
    assert verdict.outcome is Outcome.PASSED, verdict.why
    return read_bundle(Bundle(uri=verdict.outputs["bundle_uri"], sha256=verdict.outputs["bundle_sha256"]))


SERVED = {
    "xgboost": ("export_boosting", ["label", "probabilities"]),
    "module": ("export_torch", ["scores"]),
    "pt2": ("export_torch", ["scores"]),
    "sequences": ("export_torch", ["total", "weighted"]),
    "keras": ("export_tensorflow", ["scores"]),
    "saved_model": ("export_tensorflow", ["scores"]),
}
UNKNOWN = {"cubes": ("export_torch", "own.cube"), "eigen": ("export_tensorflow", "SelfAdjointEigV2")}


@pytest.mark.parametrize("kind", SERVED)
def test_a_heavy_flavour_becomes_a_bundle(registry: Registry, model: str, tmp_path: Path, kind: str) -> None:
    """Inputs and outputs have the signature's names, any batch goes in, and ONNX Runtime answers as the framework did."""
    environment, outputs = SERVED[kind]
    with opened(export(registry, model, environment, kind, tmp_path)) as bundle:
        assert [each.name for each in bundle.manifest.outputs] == outputs
        session = onnxruntime.InferenceSession(bundle.model_path)
        for rows in (1, ROWS):
            given = dict(zip(outputs, session.run(outputs, {name: each[:rows] for name, each in bundle.inputs().items()}), strict=True))
            for name, reference in bundle.reference().items():
                assert np.allclose(given[name], reference[:rows], atol=1e-5), name
        assert (bundle.root / "source/tf2model/saved_model.pb").exists() == (kind == "saved_model")
        assert bundle.manifest.golden_set["probes"] > 0
        open_axes = {each.name: each.dynamic for each in bundle.manifest.inputs}
        assert open_axes == ({"values": (0,), "weights": ()} if kind == "sequences" else {"features": ()})


@pytest.mark.parametrize(("environment", "kind"), [("export_torch", "module"), ("export_tensorflow", "saved_model")])
def test_the_same_version_gives_the_same_bytes(registry: Registry, model: str, tmp_path: Path, environment: str, kind: str) -> None:
    """Two processes convert it: no time, place, random name or order of theirs is in the bundle."""
    first = export(registry, model, environment, kind, tmp_path)
    (tmp_path / "out").rename(tmp_path / "first")
    version = registry.versions(model)[0].number
    asked = spec("export", model, version, tmp_path, inputs={"artifacts_uri": f"{tmp_path.as_uri()}/artifacts"})
    again = run(registry, environment, asked, tmp_path)
    assert first.outputs == again.outputs


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_cannot_be_converted_is_named(registry: Registry, model: str, tmp_path: Path, kind: str) -> None:
    """The refusal names the operator that no converter knows."""
    environment, reason = UNKNOWN[kind]
    verdict = export(registry, model, environment, kind, tmp_path)
    assert verdict.outcome is Outcome.FAILED
    assert reason in json.dumps([each.why for each in verdict.findings]), verdict.why
