"""The gate `golden_set`, measured: its rate beside a bare ONNX Runtime loop, its memory at ten million rows, and a small check's seconds.

Each run is a process of its own in the gate's environment. The long ones (`measure_long`) take about five minutes and need 4 GiB of disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Figure
from bench.world import Unexpected
from stack.settings import ROOT, state_folder

CHILD = ROOT / "bench" / "golden_child.py"
MANY, FEW = 10_000_000, 100_000
BATCH_ROWS = 4096
REPEATS = 5
ALONE = "import sys; from validation import check; code = check.main(); sys.exit(99 if {'airflow', 'mlflow'} & set(sys.modules) else code)"


def measure() -> list[Figure]:
    """Seconds of one small check. Raises `Unexpected` when it does not pass."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        _child("export", "loose", folder)
        seconds = statistics.median(_small_check(folder) for _ in range(REPEATS))
    how = f"`penstock check golden_set` as a new process, 1,000 rows x 30 features, trees; median of {REPEATS}; no Airflow, no MLflow"
    return [Figure(name="small_check_s", value=round(seconds, 2), unit="s", goal="<= 2", how=how)]


def measure_long() -> list[Figure]:
    """Rate and memory at ten million rows. Raises `Unexpected` when the gate does not pass."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        few, many = (_made(Path(name) / str(rows), rows) for rows in (FEW, MANY))
        bare, gate, small = _child("golden_set", "loop", many, BATCH_ROWS), _gate(many), _gate(few)
    on_rows, limit_mib = gate["seconds"] - gate["opened"], 1.2 * small["peak_mib"]
    whole = f"with the bundle's download, digests and unpacking ({gate['opened']:.1f} s) {bare['seconds'] / gate['seconds']:.2f}"
    rates = f"{MANY / on_rows:,.0f} rows/s from the first row read to the verdict; {whole}"
    return [
        Figure(
            name="golden_rate_vs_ort",
            value=round(bare["seconds"] / on_rows, 2),
            unit="of the bare loop's rate",
            goal=">= 0.85",
            how=f"10 million rows x 30 features, gradient-boosted trees; {rates}; reading, answering and counting overlap",
            peer=f"onnxruntime alone, same model, rows, batches and one thread: {MANY / bare['seconds']:,.0f} rows/s, reading not counted",
        ),
        Figure(
            name="golden_10m_peak_mib",
            value=round(gate["peak_mib"]),
            unit="MiB",
            goal=f"<= {limit_mib:.0f}",
            how=f"peak resident memory of the gate at 10 million rows; at 100 thousand it is {small['peak_mib']:.0f} MiB (goal: 1.2 times)",
        ),
    ]


def _made(folder: Path, rows: int) -> Path:
    folder.mkdir()
    (folder / "made.json").write_text(json.dumps(_child("export", "make", folder, rows)))
    return folder


def _gate(folder: Path) -> dict[str, Any]:
    done = _child("golden_set", "gate", folder)
    if done["bad"]:
        raise Unexpected(f"the gate did not pass: {done['bad'][0]}")
    return done


def _small_check(folder: Path) -> float:
    files = [word for name in ("model.onnx", "golden.parquet", "policy.toml") for word in (f"--{name.split('.')[0]}", str(folder / name))]
    start = time.monotonic()
    ended = subprocess.run(
        [_python("golden_set"), "-c", ALONE, "golden_set", *files], check=False, capture_output=True, text=True, cwd=folder
    )
    if ended.returncode != 0:
        raise Unexpected(f"the small check ended with status {ended.returncode}: {ended.stdout[-300:]}{ended.stderr[-300:]}")
    return time.monotonic() - start


def _child(environment: str, command: str, folder: Path, *numbers: int) -> dict[str, Any]:
    words = [_python(environment), str(CHILD), command, str(folder), *map(str, numbers)]
    ended = subprocess.run(words, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        raise Unexpected(f"{' '.join(words[2:])} ended with status {ended.returncode}: {ended.stderr[-500:]}")
    row: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return row


def _python(environment: str) -> str:
    return str(state_folder(os.environ) / "envs" / environment / "bin" / "python")
