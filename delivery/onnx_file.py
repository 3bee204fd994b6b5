"""What an ONNX file says of itself: inputs, outputs, versions, and whether the ONNX checker accepts it. Runs no model.

`export` reads with it what its sandbox left, and `flavours` the outline of a model that was logged as ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery.findings import refused

if TYPE_CHECKING:
    import onnx

LIMIT_BYTES = (2 << 30) - 1  # protobuf's own limit for one message
UNKNOWN = -1
ELEMENT_TYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
}
"""Numbers of `onnx.TensorProto.DataType` and Triton's words."""


@dataclass(frozen=True, kw_only=True)
class OnnxTensor:
    """An input or output of the graph. `shape` with the batch first; -1 where the size is not fixed."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a checked ONNX model says of itself."""

    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    opset: int
    ir_version: int


def outline(data: bytes) -> Outline:
    """Parses and checks a model. Raises `Refusal` when it is not ONNX, is malformed, or fixes its batch."""
    import onnx

    model = _parsed(data)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        why = f"the ONNX checker refuses the model: {str(error)[:200]}"
        raise refused("onnx", why, "export it as one file of standard operators") from error
    opset = max((each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}), default=0)
    return Outline(inputs=_inputs(model), outputs=tuple(map(_tensor, model.graph.output)), opset=opset, ir_version=model.ir_version)


def input_tensors(path: Path) -> tuple[OnnxTensor, ...]:
    """The graph's inputs, without those that only name weights."""
    return _inputs(_parsed(path.read_bytes()))


def _parsed(data: bytes) -> onnx.ModelProto:
    import onnx

    if len(data) > LIMIT_BYTES:
        raise refused("onnx", f"the model has {len(data)} bytes; one ONNX file can have {LIMIT_BYTES}", "export a smaller model")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise refused("onnx", f"the model is no ONNX file: {str(error)[:200]}", "log it with mlflow.onnx.log_model") from error
    if not model.graph.output:
        raise refused("onnx", "the model is no ONNX file: it has no graph with outputs", "log it with mlflow.onnx.log_model")
    return model


def _inputs(model: onnx.ModelProto) -> tuple[OnnxTensor, ...]:
    weights = {each.name for each in model.graph.initializer}
    return tuple(_tensor(each) for each in model.graph.input if each.name not in weights)


def _tensor(value: Any) -> OnnxTensor:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in ELEMENT_TYPES:
        raise refused("onnx", f"{value.name} is not a tensor of a type that Triton serves", "for a classifier turn ZipMap off")
    shape = tuple(size.dim_value if size.HasField("dim_value") else UNKNOWN for size in kind.shape.dim)
    if not shape or shape[0] != UNKNOWN:
        fixed = f"the shape {list(shape)}" if shape else "no batch dimension"
        raise refused("onnx", f"{value.name} has {fixed}", "export it with a dynamic first dimension, so that requests can be batched")
    return OnnxTensor(name=value.name, dtype=ELEMENT_TYPES[kind.elem_type], shape=shape)
