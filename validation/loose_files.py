"""Makes a bundle from loose files, so that a gate can judge a model on a laptop as it judges a delivery.

`validation.check` calls it. The signature is what the ONNX file declares; sizes that it leaves open are the golden set's. What loose files
lack (source model, probes, training run) is missing from the bundle and never made up. It judges nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from validation.bundle import NUMPY_DTYPES, Tensor, write_bundle
from validation.contract import BadSpec, Bundle
from validation.onnx_model import ModelFault, OnnxModel, Port

BATCH_ROWS = 1 << 16
UNKNOWN = -1
DTYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    **{f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""ONNX Runtime's words for element types and Triton's."""


@dataclass(frozen=True, kw_only=True)
class LooseFiles:
    """What a user has at hand. `reference` is a folder of `<output>.npy` or an `.npz`; `columns` are no inputs."""

    model: Path
    golden: Path
    label: str = "label"
    reference: Path | None = None
    columns: tuple[str, ...] = ()
    written_unix_s: float | None = None
    logged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which golden columns become which inputs, and which stay beside them."""

    inputs: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]


def make_bundle(files: LooseFiles, name: str, folder: Path) -> Bundle:
    """Writes the bundle below `folder`. Raises `BadSpec` naming the file or column that does not fit."""
    root = folder / "content"
    (root / name / "1").mkdir(parents=True)
    shutil.copyfile(_existing(files.model, "model"), root / name / "1" / "model.onnx")
    (root / name / "config.pbtxt").write_text(f'name: "{name}"\n')
    with _golden(files) as golden:
        ports = _ports(files.model, golden, files.label)
        plan = _plan(ports["inputs"], golden, files)
        inputs = tuple(_tensor(each, plan.inputs[each.name], golden) for each in ports["inputs"])
        _write_golden(golden, plan, inputs, files.label, root / "golden")
        rows = golden.metadata.num_rows
    _write_reference(files.reference, root / "reference")
    outputs = tuple(Tensor(name=each.name, dtype=DTYPES.get(each.kind, "BYTES"), shape=_row(each)) for each in ports["outputs"])
    (root / "manifest.json").write_text(json.dumps(_manifest(files, name, inputs, outputs, rows)))
    return Bundle(uri=(folder / "bundle.tar").as_uri(), sha256=write_bundle(root, folder / "bundle.tar"))


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise BadSpec(f"{what} {path}: there is no such file")
    return path


def _golden(files: LooseFiles) -> pq.ParquetFile:
    try:
        golden = pq.ParquetFile(_existing(files.golden, "golden set"), pre_buffer=False, buffer_size=1 << 18)
    except (pa.ArrowException, OSError) as error:
        raise BadSpec(f"golden set {files.golden} is no parquet file: {error}") from error
    if files.label not in (names := golden.schema_arrow.names):
        raise BadSpec(f"golden set {files.golden} has no column {files.label!r}; its columns are {', '.join(names)}: name one with --label")
    return golden


def _ports(path: Path, golden: pq.ParquetFile, label: str) -> dict[str, tuple[Port, ...]]:
    """As the file declares them; of a file that does not load, made up from the golden set: the gate will say why it does not."""
    try:
        return OnnxModel(path).ports
    except ModelFault:
        columns = [name for name in golden.schema_arrow.names if name != label] or [label]
        return {
            "inputs": tuple(Port(name=name, kind="tensor(float)", axes=(None,)) for name in columns),
            "outputs": (Port(name="unknown", kind="tensor(float)", axes=(None, 1)),),
        }


def _plan(ports: Iterable[Port], golden: pq.ParquetFile, files: LooseFiles) -> Plan:
    """Inputs take the column of their name; a single input without one takes what is left: one column, or all of them side by side."""
    ports = tuple(ports)
    left = [name for name in golden.schema_arrow.names if name != files.label]
    inputs = {each.name: (each.name,) for each in ports if each.name in left}
    if not inputs and len(ports) == 1:
        inputs = {ports[0].name: tuple(name for name in left if name not in files.columns)}
    if missing := [each.name for each in ports if not inputs.get(each.name)]:
        raise BadSpec(f"golden set {files.golden} has no column for the model's input {missing[0]!r}; its columns are {', '.join(left)}")
    used = {name for names in inputs.values() for name in names}
    return Plan(inputs=inputs, others=tuple(name for name in left if name not in used))


def _tensor(port: Port, columns: tuple[str, ...], golden: pq.ParquetFile) -> Tensor:
    """One open axis at most can be told from the golden set: its lists are flat."""
    if port.kind not in DTYPES:
        raise BadSpec(f"the model's input {port.name!r} is {port.kind}; a golden set can hold tensors only")
    row, dynamic = _row(port), tuple(axis for axis, size in enumerate(port.axes[1:]) if not isinstance(size, int))
    if len(dynamic) > 1:
        raise BadSpec(f"the model's input {port.name!r} leaves {len(dynamic)} axes of a row open; fix all but one of them")
    cells = len(columns) if len(columns) > 1 else _cells(golden, columns[0])
    if dynamic:
        row = tuple(cells // max(math.prod(row) * -1, 1) if size == UNKNOWN else size for size in row)
    if math.prod(row) != cells:
        found = f"the golden set has {cells} values in {', '.join(columns)}"
        raise BadSpec(f"the model's input {port.name!r} takes {list(row)} a row; {found}: name columns that are no inputs with --not-input")
    return Tensor(name=port.name, dtype=DTYPES[port.kind], shape=row, dynamic=dynamic)


def _row(port: Port) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else UNKNOWN for size in port.axes[1:])


def _cells(golden: pq.ParquetFile, column: str) -> int:
    """Values in one row of a column: of the first row, because all are alike or do not fit."""
    kind = golden.schema_arrow.field(column).type
    if not pa.types.is_nested(kind):
        return 1
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    first = next(golden.iter_batches(batch_size=1, columns=[column]), None)
    return 0 if first is None or not len(first.column(0)) else len(first.column(0)[0].as_py() or ())


def _write_golden(golden: pq.ParquetFile, plan: Plan, tensors: tuple[Tensor, ...], label: str, folder: Path) -> None:
    """Piece by piece, so that a large set passes through a small memory."""
    folder.mkdir()
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for batch in golden.iter_batches(batch_size=BATCH_ROWS) if golden.metadata.num_rows else (_empty(golden),):
            for name, table in _split(batch, plan, tensors, label).items():
                if name not in writers:
                    writers[name] = stack.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", table.schema))
                writers[name].write_table(table)


def _empty(golden: pq.ParquetFile) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=golden.schema_arrow)


def _split(batch: pa.RecordBatch, plan: Plan, tensors: tuple[Tensor, ...], label: str) -> dict[str, pa.Table]:
    inputs = {each.name: _joined(batch, plan.inputs[each.name], each) for each in tensors}
    tables = {"inputs": pa.table(inputs), "labels": pa.table({"label": batch.column(label)})}
    return tables | ({"slices": pa.table({name: batch.column(name) for name in plan.others})} if plan.others else {})


def _joined(batch: pa.RecordBatch, columns: tuple[str, ...], tensor: Tensor) -> Any:
    if len(columns) == 1:
        return batch.column(columns[0])
    dtype = NUMPY_DTYPES[tensor.dtype]
    parts = [_numbers(batch.column(name), name, dtype) for name in columns]
    return pa.FixedSizeListArray.from_arrays(pa.array(np.stack(parts, axis=1).ravel()), len(columns))


def _numbers(values: pa.Array, name: str, dtype: str) -> np.ndarray:
    if values.null_count:
        raise BadSpec(f"column {name!r} of the golden set has empty cells")
    try:
        return np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype, casting="unsafe" if dtype == "object" else "same_kind")
    except (ValueError, TypeError) as error:
        raise BadSpec(f"column {name!r} of the golden set does not fit the model's {dtype}: {error}") from error


def _write_reference(reference: Path | None, folder: Path) -> None:
    if reference is None:
        return
    folder.mkdir()
    try:
        found = dict(np.load(reference, allow_pickle=False)) if reference.is_file() else _arrays(reference)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise BadSpec(f"reference {reference} is no .npz and no folder of .npy files: {error}") from error
    if not found:
        raise BadSpec(f"reference {reference} holds no arrays")
    for name, values in found.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def _manifest(files: LooseFiles, name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], rows: int) -> dict[str, Any]:
    with files.golden.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    golden_set = {"uri": files.golden.resolve().as_uri(), "sha256": digest, "rows": rows}
    return {
        "model": name,
        "version": 0,
        "semantic_version": "0.0.0",
        "signature": {"inputs": [asdict(each) for each in inputs], "outputs": [asdict(each) for each in outputs]},
        "opset": 0,
        "ir_version": 0,
        "source_run": "none",
        "git_commit": "unknown",
        "training_metrics": dict(files.logged),
        "framework_versions": {},
        "golden_set": golden_set | ({} if files.written_unix_s is None else {"written_unix_s": files.written_unix_s}),
        "baselines": {},
    }
