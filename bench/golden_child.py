"""What `bench.golden_set` runs in other environments, by path: makes a bundle, runs the gate on it, runs the bare loop beside it.

`make` and `loose` need the environment `export` (they train and convert a model), `gate` and `loop` `golden_set`. Each prints one
JSON object. `loop` is the null system: ONNX Runtime asked for the same rows in the same batches on one thread, and nothing else done.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = 30
TRAINING_ROWS = 4000
TREES, DEPTH = 100, 6
CHUNK_ROWS = 1 << 16
SMALL_ROWS = 1000
MODEL = "bench"
LIMITS = {
    "min_rows": 1000,
    "atol": 1e-4,
    "rtol": 1e-3,
    "rows_outside_permille": 1,
    "metrics": [{"name": "accuracy", "at_least": 0.5, "not_worse_than_stable": 0.02}],
}

POLICY = """
[golden_set]
min_rows = 600
atol = 1e-4
rtol = 1e-3
rows_outside_permille = 1

[[golden_set.metrics]]
name = "accuracy"
at_least = 0.5
not_worse_than_stable = 0.02
"""


def main(arguments: list[str]) -> None:
    command, folder, *rest = arguments
    commands: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "loose": loose, "gate": gate, "loop": loop}
    done = commands[command](Path(folder), *map(int, rest))
    print(json.dumps({**done, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def make(folder: Path, rows: int) -> dict[str, Any]:
    """A bundle of so many golden rows below `folder`, written piece by piece as large sets are."""
    from validation.bundle import write_bundle

    root = folder / "root"
    for name in (f"{MODEL}/1", "golden", "reference", "probes/reference"):
        (root / name).mkdir(parents=True)
    (root / MODEL / "1" / "model.onnx").write_bytes(trained())
    (root / MODEL / "config.pbtxt").write_text(f'name: "{MODEL}"\n')
    _golden(root, rows)
    (root / "manifest.json").write_text(json.dumps(_manifest(rows)))
    return {"sha256": write_bundle(root, folder / "bundle.tar")}


def loose(folder: Path) -> dict[str, Any]:
    """Model, golden set and policy of a small check."""
    values, labels = _rows(np.random.default_rng(1), SMALL_ROWS)
    columns = {f"f{place}": values[:, place] for place in range(FEATURES)}
    pq.write_table(pa.table(columns | {"label": labels}), folder / "golden.parquet")
    (folder / "model.onnx").write_bytes(trained())
    (folder / "policy.toml").write_text(POLICY)
    return {}


def trained() -> bytes:
    """Gradient-boosted trees of two classes as ONNX."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    inputs, labels = _rows(np.random.default_rng(0), TRAINING_ROWS)
    model = GradientBoostingClassifier(n_estimators=TREES, max_depth=DEPTH, random_state=0).fit(inputs, labels)
    return bytes(to_onnx(model, inputs[:1], options={"zipmap": False}, target_opset=17).SerializeToString())


def gate(folder: Path) -> dict[str, Any]:
    from validation.bundle import read_bundle
    from validation.contract import Bundle, Outcome, Spec
    from validation.golden_set import run

    digest = json.loads((folder / "made.json").read_text())["sha256"]
    bundle = Bundle(uri=(folder / "bundle.tar").as_uri(), sha256=digest)
    spec = Spec(task="golden_set", model=MODEL, version=1, delivery="bench", evidence_uri="file:///dev/null", bundle=bundle, limits=LIMITS)
    start = time.perf_counter()
    with read_bundle(bundle):
        opened = time.perf_counter() - start
    start = time.perf_counter()
    decision = run(spec, folder)
    bad = [f"{each.name}: {each.why}" for each in decision.findings if each.outcome is not Outcome.PASSED]
    return {"seconds": time.perf_counter() - start, "opened": opened, "bad": bad}


def loop(folder: Path, batch_rows: int) -> dict[str, Any]:
    """Seconds in ONNX Runtime alone; reading the rows is not counted."""
    session, seconds, rows = _session((folder / "root" / MODEL / "1" / "model.onnx").read_bytes()), 0.0, 0
    for batch in pq.ParquetFile(folder / "root/golden/inputs.parquet").iter_batches(batch_rows):
        values = batch.column(0).flatten().to_numpy().reshape(-1, FEATURES)
        start = time.perf_counter()
        session.run(None, {"X": values})
        seconds += time.perf_counter() - start
        rows += len(values)
    return {"seconds": seconds, "rows": rows}


def _golden(root: Path, rows: int) -> None:
    from validation.probes import probe_rows

    session, random = _session((root / MODEL / "1" / "model.onnx").read_bytes()), np.random.default_rng(1)
    label = np.lib.format.open_memmap(root / "reference/label.npy", mode="w+", dtype=np.int64, shape=(rows,))
    chances = np.lib.format.open_memmap(root / "reference/probabilities.npy", mode="w+", dtype=np.float32, shape=(rows, 2))
    inputs_schema, labels_schema = pa.schema({"X": pa.list_(pa.float32(), FEATURES)}), pa.schema({"label": pa.int64()})
    with (
        pq.ParquetWriter(root / "golden/inputs.parquet", inputs_schema) as inputs,
        pq.ParquetWriter(root / "golden/labels.parquet", labels_schema) as labels,
    ):
        for start in range(0, rows, CHUNK_ROWS):
            values, truth = _rows(random, min(CHUNK_ROWS, rows - start))
            inputs.write_table(pa.table([_column(values)], schema=inputs_schema))
            labels.write_table(pa.table([pa.array(truth)], schema=labels_schema))
            label[start : start + len(values)], chances[start : start + len(values)] = session.run(None, {"X": values})
    probes = probe_rows({"X": values})["X"]
    pq.write_table(pa.table({"X": _column(probes)}), root / "probes/inputs.parquet")
    for name, answer in zip(("label", "probabilities"), session.run(None, {"X": probes}), strict=True):
        np.save(root / f"probes/reference/{name}.npy", answer)


def _rows(random: np.random.Generator, rows: int) -> tuple[Any, Any]:
    values = random.normal(size=(rows, FEATURES)).astype(np.float32)
    noise = random.normal(scale=0.5, size=rows)
    return values, (values[:, :5].sum(axis=1) + values[:, 5] * values[:, 6] + noise > 0).astype(np.int64)


def _column(values: Any) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), FEATURES)


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _manifest(rows: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "version": 1,
        "semantic_version": "1.0.0",
        "signature": {
            "inputs": [{"name": "X", "dtype": "FP32", "shape": [FEATURES]}],
            "outputs": [{"name": "label", "dtype": "INT64", "shape": [1]}, {"name": "probabilities", "dtype": "FP32", "shape": [2]}],
        },
        "opset": 17,
        "ir_version": 8,
        "source_run": "bench",
        "git_commit": "unknown",
        "training_metrics": {},
        "framework_versions": {},
        "golden_set": {"uri": "file:///dev/null", "sha256": "0" * 64, "rows": rows},
        "baselines": {},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
