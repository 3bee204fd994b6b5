"""Renders Triton's `config.pbtxt` from a model's signature. Pure; used by `export`, read by Triton and by nobody else here.

The configuration is complete, because servers start with auto-completion off (it costs a second a model and hides mistakes), and it is the
same for the C++ ONNX Runtime backend and for the Python one of `docker/triton`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

MAX_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output: Triton's dtype word, shape of one row.

    `scalar` marks an ONNX output of shape [rows]: one plain value a row. `open_axes` are those of `shape` that requests may vary.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scalar: bool = False
    open_axes: tuple[int, ...] = ()

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(-1 if axis in self.open_axes and not self.scalar else size for axis, size in enumerate(self.shape))


def render(model: str, inputs: Iterable[Port], outputs: Iterable[Port]) -> str:
    """The whole file. Batching without a delay costs nothing (5.5 times the throughput of a matrix model at 64 clients)."""
    taken, given = list(inputs), list(outputs)
    parts = [
        f"name: {_text(model)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        *(f"input [ {_port(each)} ]" for each in taken),
        *(f"output [ {_port(each)} ]" for each in given),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        "dynamic_batching { }",
        *_warmup(taken),
    ]
    return "\n".join(parts) + "\n"


def _port(port: Port) -> str:
    reshape = " reshape { shape: [ ] }" if port.scalar else ""
    return f"{{ name: {_text(port.name)} data_type: {_type(port.dtype)} dims: {_dims(port.dims)}{reshape} }}"


def _warmup(inputs: list[Port]) -> list[str]:
    """The first request is ten times slower than the second without it. Zeros are no words, so models that take text have none."""
    if any(each.dtype == "BYTES" for each in inputs):
        return []
    return [f'model_warmup [ {{ name: "zeros" batch_size: 1 {" ".join(map(_zeros, inputs))} }} ]']


def _zeros(port: Port) -> str:
    return f"inputs {{ key: {_text(port.name)} value {{ data_type: {_type(port.dtype)} dims: {_dims(port.shape)} zero_data: true }} }}"


def _type(dtype: str) -> str:
    return "TYPE_STRING" if dtype == "BYTES" else f"TYPE_{dtype}"


def _dims(shape: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, shape))} ]"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=True)
