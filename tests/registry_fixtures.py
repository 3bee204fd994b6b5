"""A real MLflow server for the tests of the registry's side: SQLite store, proxied artifacts, a free port on loopback, once per session.

Also ways to register what those tests need: good models, and broken ones made by hand. Every test uses a model name of its own.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ports import free_port

from delivery.registry import GOLDEN_SHA256, GOLDEN_URI, Registry
from validation.contract import Spec

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
READY_S = 60.0


@functools.cache
def start_mlflow() -> str:
    """Address of the session's one server: fixtures that are imported by name exist once a module, the server once a process."""
    folder, port = Path(tempfile.mkdtemp(prefix="mlflow-")), free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **QUIET}, stdout=log, stderr=log, start_new_session=True)
    atexit.register(_stop_mlflow, server, folder)
    wait_for(f"http://127.0.0.1:{port}/health", folder / "log")
    return f"http://127.0.0.1:{port}"


def _stop_mlflow(server: subprocess.Popen[bytes], folder: Path) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", name="mlflow_address")
def mlflow_address_fixture() -> Iterator[str]:
    """Address of the server; while a module's tests run also the process's tracking address, which MLflow's own functions read."""
    address = start_mlflow()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUIET, "MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}.items():
            patch.setenv(name, value)
        mlflow.set_experiment(experiment_id="0")  # MLflow remembers another test's choice for the whole process
        yield address


@pytest.fixture(scope="module", name="registry")
def registry_fixture(mlflow_address: str) -> Registry:
    return Registry(mlflow_address)


@pytest.fixture(name="model")
def model_fixture(registry: Registry, request: pytest.FixtureRequest) -> str:
    """A fresh registered model, named after the test."""
    name = f"{request.node.name.split('[')[0].removeprefix('test_').replace('_', '-')[:40].strip('-')}-{os.urandom(3).hex()}"
    registry._client.create_registered_model(name)
    return name


def wait_for(address: str, log: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=1).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
            continue
        return
    raise TimeoutError(f"{address} does not answer: {log.read_text()[-2000:]}")


def register_files(registry: Registry, model: str, files: dict[str, bytes], **tags: str) -> int:
    """A version whose artifacts are these files, as if logged by hand; the version's number."""
    run = registry._client.create_run("0")
    for name, data in files.items():
        put(f"{registry.run(run.info.run_id).artifacts}/model/{name}", data)
    return register(registry, model, f"{run.info.artifact_uri}/model", run.info.run_id, **tags)


def register(registry: Registry, model: str, source: str, run_id: str | None, **tags: str) -> int:
    row = registry._client.create_model_version(model, source=source, run_id=run_id, tags=tags, await_creation_for=0)
    return int(row.version)


def register_any(registry: Registry, model: str, **tags: str) -> int:
    """A version that looks like a model from afar: enough for tasks that do not open it."""
    return register_files(registry, model, {"MLmodel": b"flavors: {sklearn: {}}\n"}, **tags)


def put(address: str, data: bytes) -> None:
    request = urllib.request.Request(address, data=data, method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


def set_golden(registry: Registry, model: str, folder: Path, columns: dict[str, Any]) -> None:
    """Writes a golden set of these columns and names it in the registered model's tags."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    name_golden(registry, model, folder, sink.getvalue())


def name_golden(registry: Registry, model: str, folder: Path, data: bytes) -> None:
    path = folder / "source-golden.parquet"
    path.write_bytes(data)
    registry._client.set_registered_model_tag(model, GOLDEN_URI, path.as_uri())
    registry._client.set_registered_model_tag(model, GOLDEN_SHA256, hashlib.sha256(data).hexdigest())


def fixed_size(rows: np.ndarray) -> pa.Array:
    """A matrix as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def spec(task: str, model: str, version: int, folder: Path, **fields: Any) -> Spec:
    fields.setdefault("delivery", f"deliver__{model}__v{version}")
    return Spec(task=task, model=model, version=version, evidence_uri=f"{folder.as_uri()}/evidence/{task}", **fields)
