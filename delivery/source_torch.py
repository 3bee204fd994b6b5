"""A PyTorch source model: a module that was logged whole, or a graph of torch.export (.pt2); converted by torch.onnx with dynamo.

Inputs go in by the signature's order, on the CPU, on one thread, without gradients. Outputs are the tensors that the model returns, named
by its own dictionary, else by the signature.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from delivery.source import Rows, Trouble, add_code, in_batches

OPSET = 18  # the oldest that torch's exporter writes by itself; older ones go through a converter that does not know all operators
EXAMPLE_ROWS = 2  # of one row torch would take the batch for a constant
CLOUDPICKLES = ("mlflow.pytorch.pickle_module", "cloudpickle")
PICKLE_MODULE = "pickle_module_info.txt"


@dataclass(frozen=True, kw_only=True)
class TorchSource:
    """`program` is what is converted: the module itself, or the program of a .pt2 file. `seen` holds rows of the first question."""

    module: Any
    program: Any
    job: dict[str, Any]
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def answer(self, rows: Rows) -> list[np.ndarray]:
        if not self.seen:
            self.seen.update({name: np.resize(values, (EXAMPLE_ROWS, *values.shape[1:])) for name, values in rows.items()})
        return in_batches(self._answer, rows)

    def convert(self) -> onnx.ModelProto:
        inputs = self.job["inputs"]
        options = {"dynamo": True, "opset_version": OPSET, "input_names": [each["name"] for each in inputs], "output_names": self.names}
        if isinstance(self.program, torch.export.ExportedProgram):
            program = torch.onnx.export(self.program, **options)
        else:
            batch = torch.export.Dim("batch")
            shapes = tuple({0: batch, **_open_axes(each)} for each in inputs)
            program = torch.onnx.export(self.program, self._tensors(self.seen), dynamic_shapes=shapes, **options)
        if program is None:
            raise Trouble("convert", "torch.onnx gave no program")
        model: onnx.ModelProto = program.model_proto
        return model

    def _answer(self, rows: Rows) -> list[np.ndarray]:
        with torch.no_grad():
            given = self.module(*self._tensors(rows))
        found = _named(given, self.job["outputs"])
        self.names[:] = list(found)
        return [each.cpu().numpy() for each in found.values()]

    def _tensors(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(rows[each["name"]])) for each in self.job["inputs"])


def load(job: dict[str, Any], folder: Path) -> TorchSource:
    torch.set_num_threads(1)
    add_code(job, folder)
    path = folder / job["file"]
    if job["format"] == "pt2":
        program = torch.export.load(path)
        return TorchSource(module=program.module(), program=program, job=job)
    module = _unpickled(path)
    if isinstance(module, torch.jit.ScriptModule):
        raise Trouble("load", "the model is TorchScript, which torch.onnx with dynamo does not take; log the module itself")
    module.eval()
    return TorchSource(module=module, program=module, job=job)


def _unpickled(path: Path) -> Any:
    """With the pickle module that MLflow notes beside the file; what the cloudpickles write, pickle itself reads."""
    note = path.with_name(PICKLE_MODULE)
    named = note.read_text().strip() if note.is_file() else "pickle"
    pickle = importlib.import_module("pickle" if named in CLOUDPICKLES else named)
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=pickle)


def _named(given: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors by name, in the order in which torch.onnx gives them."""
    if isinstance(given, Mapping):
        found = dict(given)
    else:
        tensors = list(given) if isinstance(given, (tuple, list)) else [given]
        usual = ["output"] if len(tensors) == 1 else [f"output_{number}" for number in range(len(tensors))]
        found = dict(zip(names if len(names) == len(tensors) else usual, tensors, strict=True))
    odd = [name for name, each in found.items() if not isinstance(each, torch.Tensor)]
    if odd or not found:
        raise Trouble("answer", f"the model returns {type(given).__name__} with {', '.join(odd) or 'nothing'} that is no tensor")
    return found


def _open_axes(described: Mapping[str, Any]) -> dict[int, Any]:
    """Whatever the signature leaves open beside the batch."""
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(described["open_shape"], 1) if size < 0}
