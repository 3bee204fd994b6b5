"""Writes a model of matrix products as Triton's model directory: what batching pays for, and what is slower by as many layers as one wants.

    python bench/matrix_model.py <folder> <layers> <width> <the rest of config.pbtxt>

The latency and tuning figures run it by path in the environment `export`, which has `onnx`. Weights are random and small, so that nothing
overflows; the last argument is put into the configuration as it stands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NAME = "matrix"
OPSET, IR = 17, 9


def model(layers: int, width: int) -> onnx.ModelProto:
    """`layers` times a product with a width x width matrix and a ReLU, on rows of float32."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "X"
    for number in range(layers):
        matrix = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"W{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"W{number}"], [f"M{number}"]))
        last = "Y" if number + 1 == layers else f"H{number}"
        nodes.append(helper.make_node("Relu", [f"M{number}"], [last]))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in ("X", "Y")]
    graph = helper.make_graph(nodes, NAME, ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def write(folder: Path, layers: int, width: int, rest: str) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    onnx.save(model(layers, width), version / "model.onnx")
    ports = (f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {width} ] }} ]' for kind, name in (("input", "X"), ("output", "Y")))
    lines = [f'name: "{NAME}"', 'backend: "onnxruntime"', 'default_model_filename: "model.onnx"', *ports, rest]
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str]) -> None:
    folder, layers, width, rest = arguments
    write(Path(folder), int(layers), int(width), rest)


if __name__ == "__main__":
    main(sys.argv[1:])
