"""What a logged MLflow model is: its flavour, the file that holds it, and the inputs that it takes. Read by `export`.

Only `MLmodel`, a YAML text file, and the outline of an ONNX file are read here; no model is loaded. Supported are the flavours
`sklearn` and `onnx`; any other is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delivery.findings import refused
from validation.onnx_file import OnnxTensor, check_onnx

SUPPORTED = ("sklearn", "onnx")
MLMODEL_LIMIT_BYTES = 1 << 20
TENSOR_DTYPES = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
    "str": "BYTES",
    "object": "BYTES",
}
COLUMN_DTYPES = {"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64", "string": "BYTES"}
"""MLflow's words for element types (tensor and column signatures) and Triton's."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input as the model was trained on it.

    `column` is its column in the golden set, None where the signature gives it no name; `shape` is of one row, -1 where unknown.
    """

    name: str
    column: str | None
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """How to load a model: which `file` in which `format`; `frame` says that it takes a data frame of the inputs, not one array."""

    kind: str
    file: str
    format: str
    frame: bool
    code: str | None
    trained_with: Mapping[str, str]
    inputs: tuple[Input, ...]


def read_flavour(folder: Path) -> Flavour:
    """Reads `MLmodel` of a logged model. Raises `Refusal` with a finding that names what is missing or not supported, and `BadModel`."""
    mlmodel = _mlmodel(folder)
    flavours = mlmodel.get("flavors") or {}
    kind = next((name for name in SUPPORTED if name in flavours), None)
    if kind is None:
        named = ", ".join(sorted(set(map(str, flavours)) - {"python_function"})) or "none"
        why = f"the model's flavour is {named}; supported: {', '.join(SUPPORTED)}"
        raise refused("flavour", why, "log it in a supported flavour")
    return _sklearn(folder, flavours[kind], mlmodel) if kind == "sklearn" else _onnx(folder, flavours[kind])


def _mlmodel(folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / "MLmodel"
    if not path.is_file():
        raise refused(
            "artifacts", f"the artifact is not a model: it has no MLmodel, only {_names(folder)}", "register what log_model wrote"
        )
    try:
        content = yaml.safe_load(path.read_bytes()[:MLMODEL_LIMIT_BYTES])
    except yaml.YAMLError as error:
        raise refused("artifacts", f"MLmodel is no YAML: {str(error)[:200]}", "log the model again") from error
    if not isinstance(content, dict) or not isinstance(content.get("flavors"), dict):
        raise refused("artifacts", "MLmodel names no flavors", "log the model again")
    return content


def _sklearn(folder: Path, row: Mapping[str, Any], mlmodel: Mapping[str, Any]) -> Flavour:
    file = _inside(folder, row.get("pickled_model"))
    inputs, frame = _signature(mlmodel)
    return Flavour(
        kind="sklearn",
        file=file,
        format=str(row.get("serialization_format") or "cloudpickle"),
        frame=frame,
        code=_inside(folder, row["code"]) if row.get("code") else None,
        trained_with={"scikit-learn": str(row.get("sklearn_version") or "unknown")},
        inputs=inputs,
    )


def _onnx(folder: Path, row: Mapping[str, Any]) -> Flavour:
    file = _inside(folder, row.get("data"))
    inputs = tuple(_onnx_input(each) for each in check_onnx(folder / file, weights_beside=True).inputs)
    trained = {"onnx": str(row.get("onnx_version") or "unknown")}
    return Flavour(kind="onnx", file=file, format="onnx", frame=False, code=None, trained_with=trained, inputs=inputs)


def _onnx_input(tensor: OnnxTensor) -> Input:
    return Input(name=tensor.name, column=tensor.name, dtype=tensor.dtype, shape=tensor.row_shape)


def _signature(mlmodel: Mapping[str, Any]) -> tuple[tuple[Input, ...], bool]:
    """Inputs of the MLflow signature, and whether they are columns of a frame."""
    try:
        rows = json.loads(mlmodel["signature"]["inputs"])
        kinds = {row["type"] for row in rows}
        if kinds == {"tensor"} and len(rows) == 1:
            return (_tensor(rows[0]),), False
        if rows and "tensor" not in kinds:
            return _columns(rows), True
    except (KeyError, TypeError, ValueError) as error:
        advice = "log the model with signature=infer_signature(inputs, outputs)"
        raise refused("signature", f"the model's signature cannot be used: {error!r}", advice) from error
    raise refused("signature", f"the signature has inputs of types {sorted(kinds)}", "one tensor, or scalar columns, can be delivered")


def _tensor(row: Mapping[str, Any]) -> Input:
    spec = row["tensor-spec"]
    batch, *shape = spec["shape"]
    if batch != -1:
        raise ValueError(f"the first dimension is {batch}; it must be the batch (-1)")
    name = row.get("name")
    dtype = _dtype(spec["dtype"], TENSOR_DTYPES)
    return Input(name=_plain(name or "input"), column=name, dtype=dtype, shape=tuple(int(size) for size in shape))


def _columns(rows: list[Mapping[str, Any]]) -> tuple[Input, ...]:
    inputs = tuple(_scalar(row["name"], row["type"]) for row in rows)
    if len({each.name for each in inputs}) != len(inputs):
        raise ValueError("two columns have the same name once it is made plain")
    return inputs


def _scalar(name: str, word: str) -> Input:
    return Input(name=_plain(name), column=name, dtype=_dtype(word, COLUMN_DTYPES), shape=(1,))


def _dtype(word: str, known: Mapping[str, str]) -> str:
    if word not in known:
        raise ValueError(f"type {word!r}; known: {', '.join(known)}")
    return known[word]


def _plain(name: str) -> str:
    """The name that skl2onnx gives an input: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _inside(folder: Path, name: Any) -> str:
    """A file name of `MLmodel` that stays below the model's folder."""
    path = folder / str(name)
    if not name or not path.resolve().is_relative_to(folder.resolve()) or not path.exists():
        raise refused("artifacts", f"MLmodel names {name!r}, which is not among the model's files: {_names(folder)}", "log the model again")
    return path.resolve().relative_to(folder.resolve()).as_posix()


def _names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) or "nothing"
