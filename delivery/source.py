"""What export's sandbox knows about a source model, whatever made it: it answers rows and is written as ONNX.

`delivery.export_child` uses it behind the walls; each family of frameworks has a module of its own (`source_sklearn`, `source_boosting`,
`source_torch`, `source_tensorflow`, `source_onnx`) with `load(job, folder) -> Source`. Nothing here is imported outside of the sandbox.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSETS = {"": 17, "ai.onnx.ml": 3}  # ONNX 1.12: what every ONNX Runtime in Triton images since 2022 reads
BATCH_ROWS = 256
SENTENCE = 400  # characters

Rows = Mapping[str, np.ndarray]
Result = TypeVar("Result")


class Source(Protocol):
    """A loaded model of a stranger; both calls run its code."""

    def answer(self, rows: Rows) -> list[np.ndarray]:
        """One array for each output of the ONNX graph, in its order; first axis = rows. `rows` by input name, [rows, *shape]."""

    def convert(self) -> onnx.ModelProto:
        """The model as ONNX, with inputs named as the job names them. Called once, after all answers: it may change the source."""


class Trouble(Exception):
    """A stage (load, answer, convert) that did not work, and why."""

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(why)
        self.stage = stage


def staged(stage: str, work: Callable[[], Result]) -> Result:
    """Any error of foreign code or of a converter becomes `Trouble` of that stage, in one line: converters name operator or layer there."""
    try:
        return work()
    except Trouble:
        raise
    except Exception as error:
        raise Trouble(stage, _why(error)) from error


def _why(error: BaseException) -> str:
    """The first cause before what was made of it: PyTorch names the operator there, and ends in general advice."""
    words = re.sub(r"\x1b\[[0-9;]*m|\s+", " ", f"{type(error).__name__}: {error}").strip()
    return f"{_why(error.__cause__)[:SENTENCE]} | {words}" if error.__cause__ else words


def unpickled(job: Mapping[str, Any], folder: Path) -> Any:
    """The model in a file of format skops, pickle or cloudpickle; the walls guard, not a list of types."""
    add_code(job, folder)
    path = folder / job["file"]
    if job["format"] == "skops":
        import skops.io

        return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    import cloudpickle

    with path.open("rb") as file:
        return cloudpickle.load(file)


def add_code(job: Mapping[str, Any], folder: Path) -> None:
    """Modules that were logged with the model can be imported, as MLflow does it."""
    if job["code"]:
        sys.path.insert(0, str(folder / job["code"]))


def in_batches(answer: Callable[[Rows], list[np.ndarray]], rows: Rows) -> list[np.ndarray]:
    """Bounds memory; a batch's answers do not depend on other rows, or the gate will say so."""
    count = len(next(iter(rows.values())))
    starts = range(0, count, BATCH_ROWS)
    parts = [answer({name: values[start : start + BATCH_ROWS] for name, values in rows.items()}) for start in starts]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def matrix(rows: Rows) -> np.ndarray:
    """The one input as it is, or all columns side by side."""
    values = list(rows.values())
    return values[0] if len(values) == 1 else np.concatenate([each.reshape(len(each), -1) for each in values], axis=1)


def loads(model: onnx.ModelProto) -> str:
    """Why ONNX Runtime cannot load the model; empty when it can."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    return ""


def fed_by_columns(model: onnx.ModelProto, inputs: list[dict[str, Any]]) -> onnx.ModelProto:
    """Replaces the one input of shape [rows, columns] by one input a column, cast to float and laid side by side."""
    (whole,) = model.graph.input
    casts = [_cast(each["name"], f"{each['name']}__float") for each in inputs]
    joined = helper.make_node("Concat", [cast.output[0] for cast in casts], [whole.name], name="penstock_columns", axis=1)
    return _before(model, [*casts, joined], inputs)


def fed_as_float(model: onnx.ModelProto, inputs: list[dict[str, Any]], dtypes: tuple[str, ...] = ("FP64",)) -> onnx.ModelProto:
    """Takes inputs of these types as they are, and hands them to a graph that takes them, by the same names, as float."""
    cast = sorted(each["name"] for each in inputs if each["dtype"] in dtypes)
    if not cast:
        return model
    for node in model.graph.node:
        node.input[:] = [f"{name}__float" if name in cast else name for name in node.input]
    return _before(model, [_cast(name, f"{name}__float") for name in cast], inputs)


def _cast(name: str, to: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to], name=f"penstock_{to}", to=TensorProto.FLOAT)


def _before(model: onnx.ModelProto, nodes: list[onnx.NodeProto], inputs: list[dict[str, Any]]) -> onnx.ModelProto:
    later = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*nodes, *later])
    model.graph.input.extend(_value(each) for each in inputs)
    if not any(each.domain in {"", "ai.onnx"} and each.version >= 9 for each in model.opset_import):
        with_standard = [each for each in model.opset_import if each.domain not in {"", "ai.onnx"}]
        del model.opset_import[:]
        model.opset_import.extend([*with_standard, helper.make_opsetid("", OPSETS[""])])
    return model


def _value(described: Mapping[str, Any]) -> onnx.ValueInfoProto:
    kinds = {
        "FP64": TensorProto.DOUBLE,
        "FP32": TensorProto.FLOAT,
        "INT64": TensorProto.INT64,
        "INT32": TensorProto.INT32,
        "BOOL": TensorProto.BOOL,
        "BYTES": TensorProto.STRING,
    }
    return helper.make_tensor_value_info(described["name"], kinds[described["dtype"]], [None, *described["shape"]])
