"""What a logged MLflow model is: its flavour, the file that holds it, and the inputs that it takes. Read by `export`.

Only `MLmodel`, a YAML text file, and the outline of an ONNX file are read here; no model is loaded. Supported are the flavours of
`FRAMEWORKS`; any other is refused by name, and so is one whose framework this environment does not have.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delivery.findings import refused
from validation.onnx_file import OnnxTensor, check_onnx

FRAMEWORKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sklearn": ("export", ("sklearn", "skl2onnx")),
    "xgboost": ("export_boosting", ("xgboost", "onnxmltools")),
    "lightgbm": ("export_boosting", ("lightgbm", "onnxmltools")),
    "pytorch": ("export_torch", ("torch", "onnxscript")),
    "keras": ("export_tensorflow", ("tensorflow", "tf2onnx")),
    "tensorflow": ("export_tensorflow", ("tensorflow", "tf2onnx")),
    "onnx": ("export", ("onnxruntime",)),
}
"""What is supported, in the order in which a model of several flavours is taken: the environment with its framework, and the modules."""

SAVED_MODEL, KERAS = "saved_model", "keras"
KERAS_FILES = ("model.keras", "model.h5", "model")
TORCH_FILES = {"model.pt2": "pt2", "model.pth": "pickle"}
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
    """How to load a model: which `file` in which `format`; `frame` says that it takes a data frame of the inputs, not arrays.

    `outputs` are names from the signature, for frameworks that have none of their own. `kept` is a folder that the bundle keeps as it is.
    """

    kind: str
    file: str
    format: str
    frame: bool
    code: str | None
    trained_with: Mapping[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...] = ()
    kept: str | None = None


def read_flavour(folder: Path) -> Flavour:
    """Reads `MLmodel` of a logged model. Raises `Refusal` with a finding that names what is missing or not supported, and `BadModel`."""
    mlmodel = _mlmodel(folder)
    flavours = mlmodel.get("flavors") or {}
    kind = next((name for name in FRAMEWORKS if isinstance(flavours.get(name), Mapping)), None)
    if kind is None:
        named = ", ".join(sorted(set(map(str, flavours)) - {"python_function"})) or "none"
        why = f"the model's flavour is {named}; supported: {', '.join(FRAMEWORKS)}"
        raise refused("flavour", why, "log it in a supported flavour")
    read = {"onnx": _onnx, "pytorch": _pytorch, "keras": _tensorflow, "tensorflow": _tensorflow}.get(kind, _tabular)
    flavour = read(folder, kind, flavours[kind], mlmodel)
    _insist_on_framework(kind)
    return flavour


def _insist_on_framework(kind: str) -> None:
    """Heavy frameworks are installed only where they are asked for: the refusal says how to ask."""
    environment, modules = FRAMEWORKS[kind]
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        why = f"the flavour {kind} needs {' and '.join(missing)}, which this environment does not have"
        advice = (
            f'say environment = "{environment}" in the policy\'s section [export], and install it once: make extras EXTRAS={environment}'
        )
        raise refused("flavour", why, advice)


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


def _tabular(folder: Path, kind: str, row: Mapping[str, Any], mlmodel: Mapping[str, Any]) -> Flavour:
    """scikit-learn, XGBoost and LightGBM: one file, and one matrix or one data frame."""
    file = _inside(folder, row.get("pickled_model") if kind == "sklearn" else row.get("data"))
    inputs, frame = _signature(mlmodel, "inputs")
    if not frame and len(inputs) != 1:
        raise refused("signature", f"the signature has {len(inputs)} tensors", f"{kind} models take one tensor, or scalar columns")
    return Flavour(
        kind=kind,
        file=file,
        format=_format(kind, row),
        frame=frame,
        code=_code(folder, row),
        trained_with=_trained(kind, row),
        inputs=inputs,
    )


def _format(kind: str, row: Mapping[str, Any]) -> str:
    """How the file was written: XGBoost's own formats need the class, a LightGBM booster is text, anything else some pickle."""
    model_class = str(row.get("model_class") or f"{kind}.Booster")
    if kind == "xgboost":
        return model_class
    if kind == "lightgbm" and model_class.endswith(".Booster"):
        return "booster"
    return str(row.get("serialization_format") or "cloudpickle")


def _pytorch(folder: Path, kind: str, row: Mapping[str, Any], mlmodel: Mapping[str, Any]) -> Flavour:
    data = _inside(folder, row.get("model_data"))
    name = next((name for name in TORCH_FILES if (folder / data / name).is_file()), None)
    file = _inside(folder, f"{data}/{name or next(iter(TORCH_FILES))}")
    return _of_tensors(folder, kind, row, mlmodel, file=file, format=TORCH_FILES[Path(file).name])


def _tensorflow(folder: Path, kind: str, row: Mapping[str, Any], mlmodel: Mapping[str, Any]) -> Flavour:
    """A SavedModel is a folder; Keras's own format is one file."""
    if row.get("saved_model_dir"):
        file = _inside(folder, row["saved_model_dir"])
    else:
        data = _inside(folder, row.get("data"))
        names = [name for name in KERAS_FILES if (folder / data / name).exists()]
        file = _inside(folder, f"{data}/{names[0] if names else KERAS_FILES[0]}")
    saved = (folder / file / "saved_model.pb").is_file()
    kept = file if saved else None
    return _of_tensors(folder, kind, row, mlmodel, file=file, format=SAVED_MODEL if saved else KERAS, kept=kept)


def _of_tensors(folder: Path, kind: str, row: Mapping[str, Any], mlmodel: Mapping[str, Any], **fields: Any) -> Flavour:
    inputs, frame = _signature(mlmodel, "inputs")
    if frame:
        why = f"the signature of the {kind} model has columns"
        raise refused("signature", why, "log it with a signature of tensors: ModelSignature(inputs=Schema([TensorSpec(...)]))")
    named = [each.name for each in _outputs(mlmodel)]
    return Flavour(
        kind=kind, frame=False, code=_code(folder, row), trained_with=_trained(kind, row), inputs=inputs, outputs=tuple(named), **fields
    )


def _outputs(mlmodel: Mapping[str, Any]) -> tuple[Input, ...]:
    """Tensors of the signature's outputs that have names."""
    if not (mlmodel.get("signature") or {}).get("outputs"):
        return ()
    outputs, frame = _signature(mlmodel, "outputs")
    return () if frame else tuple(each for each in outputs if each.column)


def _code(folder: Path, row: Mapping[str, Any]) -> str | None:
    return _inside(folder, row["code"]) if row.get("code") else None


def _trained(kind: str, row: Mapping[str, Any]) -> dict[str, str]:
    keys = {"sklearn": "sklearn_version", "xgboost": "xgb_version", "lightgbm": "lgb_version", "pytorch": "pytorch_version"}
    names = {"sklearn": "scikit-learn", "pytorch": "torch"}
    return {names.get(kind, kind): str(row.get(keys.get(kind, f"{kind}_version")) or row.get("keras_version") or "unknown")}


def _onnx(folder: Path, kind: str, row: Mapping[str, Any], mlmodel: Mapping[str, Any]) -> Flavour:
    del mlmodel  # the file says it itself
    file = _inside(folder, row.get("data"))
    inputs = tuple(_onnx_input(each) for each in check_onnx(folder / file, weights_beside=True).inputs)
    return Flavour(kind=kind, file=file, format="onnx", frame=False, code=None, trained_with=_trained(kind, row), inputs=inputs)


def _onnx_input(tensor: OnnxTensor) -> Input:
    return Input(name=tensor.name, column=tensor.name, dtype=tensor.dtype, shape=tensor.row_shape)


def _signature(mlmodel: Mapping[str, Any], way: str) -> tuple[tuple[Input, ...], bool]:
    """Inputs or outputs of the MLflow signature, and whether they are columns of a frame."""
    try:
        rows = json.loads(mlmodel["signature"][way])
        kinds = {row["type"] for row in rows}
        if kinds == {"tensor"}:
            return _distinct(_tensor(row, number if len(rows) > 1 else None) for number, row in enumerate(rows)), False
        if rows and "tensor" not in kinds:
            return _distinct(_scalar(row["name"], row["type"]) for row in rows), True
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        advice = "log the model with signature=infer_signature(inputs, outputs)"
        raise refused("signature", f"the model's signature cannot be used: {error!r}", advice) from error
    raise refused("signature", f"the signature has inputs of types {sorted(kinds)}", "tensors, or scalar columns, can be delivered")


def _tensor(row: Mapping[str, Any], number: int | None) -> Input:
    spec = row["tensor-spec"]
    batch, *shape = spec["shape"]
    if batch != -1:
        raise ValueError(f"the first dimension is {batch}; it must be the batch (-1)")
    name = row.get("name")
    dtype = _dtype(spec["dtype"], TENSOR_DTYPES)
    if dtype == "BYTES" and not shape:  # a list of texts: servers take it as one column
        shape = [1]
    plain = _plain(name or ("input" if number is None else f"input_{number}"))
    return Input(name=plain, column=name, dtype=dtype, shape=tuple(int(size) for size in shape))


def _distinct(found: Iterable[Input]) -> tuple[Input, ...]:
    inputs = tuple(found)
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
