"""Small bundles for tests: a linear classifier of four numbers into three classes, with golden rows that it mostly gets right."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from validation.bundle import write_bundle
from validation.contract import Bundle
from validation.probes import probe_rows

MODEL = "irises"
CLASSES = 3
SIZE = 4


@dataclass(frozen=True, kw_only=True)
class Rows:
    inputs: np.ndarray
    labels: np.ndarray


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(SIZE, CLASSES)).astype(np.float32)


def golden_rows(rows: int = 600, *, wrong: float = 0.05, seed: int = 1) -> Rows:
    """Rows whose labels `weights()` gets right but for a share `wrong`, spread evenly."""
    inputs = np.random.default_rng(seed).normal(size=(rows, SIZE)).astype(np.float32)
    labels = (inputs @ weights()).argmax(axis=1) if rows else np.empty(0, dtype=np.int64)
    every = round(1 / wrong) if wrong else rows + 1
    labels[::every] = (labels[::every] + 1) % CLASSES
    return Rows(inputs=inputs, labels=labels.astype(np.int64))


def answers(inputs: np.ndarray, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """What the ONNX file of `classifier` answers, computed without it."""
    scores = inputs @ matrix
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return {"label": shares.argmax(axis=1).astype(np.int64), "probabilities": shares.astype(np.float32)}


def classifier(matrix: np.ndarray, *, nodes: list[Any] | None = None, outputs: list[Any] | None = None) -> bytes:
    """ONNX bytes: X [N, 4] to probabilities [N, 3] and label [N]; `nodes` and `outputs` are added."""
    steps = [
        helper.make_node("MatMul", ["X", "W"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        [*steps, *(nodes or [])],
        "classifier",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", SIZE])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES]),
            *(outputs or []),
        ],
        [numpy_helper.from_array(matrix, "W")],
    )
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


CONFIG = f"""name: "{MODEL}"
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ {SIZE} ] }} ]
output [
  {{ name: "label" data_type: TYPE_INT64 dims: [ 1 ] }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {CLASSES} ] }}
]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ }}
"""

MANIFEST: dict[str, Any] = {
    "model": MODEL,
    "version": 1,
    "semantic_version": "v1.0.0",
    "signature": {
        "inputs": [{"name": "X", "dtype": "FP32", "shape": [SIZE]}],
        "outputs": [
            {"name": "label", "dtype": "INT64", "shape": [1]},
            {"name": "probabilities", "dtype": "FP32", "shape": [CLASSES]},
        ],
    },
    "opset": 17,
    "ir_version": 8,
    "source_run": "0123456789abcdef",
    "git_commit": "unknown",
    "training_metrics": {"accuracy": 0.95},
    "framework_versions": {"onnx": onnx.__version__},
    "golden_set": {"uri": "file:///nowhere/golden.parquet", "sha256": "0" * 64, "rows": 600},
    "baselines": {},
}


def make_bundle(
    folder: Path,
    *,
    rows: Rows | None = None,
    model: bytes | None = None,
    reference: dict[str, np.ndarray] | None = None,
    manifest: dict[str, Any] | None = None,
    probes: bool = True,
    change: Callable[[Path], None] | None = None,
) -> Bundle:
    """Writes a bundle below `folder` and returns its address and digest; `change` may spoil its files before they are packed.

    The probes' reference is what the model itself answers.
    """
    rows = rows or golden_rows()
    root = lay_out(folder / "root", rows, model or classifier(weights()), reference or answers(rows.inputs, weights()), manifest or {})
    if probes:
        lay_out_probes(root / "probes", {"X": rows.inputs}, model or classifier(weights()))
    if change:
        change(root)
    target = folder / "bundle.tar"
    return Bundle(uri=target.as_uri(), sha256=write_bundle(root, target))


def lay_out_probes(folder: Path, inputs: dict[str, np.ndarray], model: bytes) -> None:
    """As export would, were the source model a faithful twin of this one; none of a model that does not answer."""
    rows = probe_rows(inputs)
    found = answered(model, rows)
    if found is None:
        return
    (folder / "reference").mkdir(parents=True)
    pq.write_table(pa.table({name: column(values) for name, values in rows.items()}), folder / "inputs.parquet")
    for name, values in found.items():
        np.save(folder / "reference" / f"{name}.npy", values)


def answered(model: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """What an ONNX file answers, by output name; None when it does not."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found = session.run(None, inputs)
    except Exception:  # ONNX Runtime's errors have no common type
        return None
    return dict(zip([each.name for each in session.get_outputs()], found, strict=True))


def column(values: np.ndarray) -> pa.Array:
    """Scalars as they are, rows of several values as flat lists of fixed size."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), int(np.prod(values.shape[1:])))


def lay_out(root: Path, rows: Rows, model: bytes, reference: dict[str, np.ndarray], manifest: dict[str, Any]) -> Path:
    for name in (f"{MODEL}/1", "golden", "reference"):
        (root / name).mkdir(parents=True)
    golden_set = MANIFEST["golden_set"] | {"rows": len(rows.labels)}
    (root / "manifest.json").write_text(json.dumps({**MANIFEST, "golden_set": golden_set, **manifest}))
    (root / MODEL / "config.pbtxt").write_text(CONFIG)
    (root / MODEL / "1" / "model.onnx").write_bytes(model)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.inputs.ravel()), SIZE)
    pq.write_table(pa.table({"X": vectors}), root / "golden/inputs.parquet")
    pq.write_table(pa.table({"label": rows.labels}), root / "golden/labels.parquet")
    for name, values in reference.items():
        np.save(root / "reference" / f"{name}.npy", values)
    return root
