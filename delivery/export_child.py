"""What happens inside export's sandbox: loads the foreign model, lets it answer golden rows and probes, writes it as ONNX.

Each input in the job has its `shape` as in the golden set and `open_shape` as in the signature, with -1 where that leaves a size open.
Started by `delivery.walls`, never in the process of a task. Reads `job.json`, `model/`, `golden/<i>.npy` and `probes/<i>.npy` from its
inputs; leaves `model.onnx` and, for each output of the ONNX graph in their order, `<i>.npy` and `probe-<i>.npy`, with `probes.npy` saying
which probes the model answered. When it cannot, it leaves `trouble.json` with the stage (load, answer, convert) and a sentence. Nothing
outside believes what it leaves without looking.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from delivery.source import SENTENCE, Rows, Source, Trouble, staged

MODULES = {
    "sklearn": "delivery.source_sklearn",
    "onnx": "delivery.source_onnx",
    "xgboost": "delivery.source_boosting",
    "lightgbm": "delivery.source_boosting",
    "pytorch": "delivery.source_torch",
    "tensorflow": "delivery.source_tensorflow",
    "keras": "delivery.source_tensorflow",
}


def main(inputs: Path, outputs: Path) -> None:
    job = json.loads((inputs / "job.json").read_text())
    try:
        _export(job, inputs, outputs)
    except Trouble as trouble:
        traceback.print_exc()
        (outputs / "trouble.json").write_text(json.dumps({"stage": trouble.stage, "why": str(trouble)[:SENTENCE]}))


def _export(job: dict[str, Any], inputs: Path, outputs: Path) -> None:
    source: Source = staged("load", lambda: importlib.import_module(MODULES[job["kind"]]).load(job, inputs / "model"))
    rows = _rows(job, inputs / "golden")
    answers = staged("answer", lambda: source.answer(rows))
    probed, places = staged("answer", lambda: _probed(source.answer, _rows(job, inputs / "probes"), answers))
    converted = staged("convert", source.convert)
    _insist_on_outputs(converted, answers)
    _plain(converted)
    (outputs / "model.onnx").write_bytes(converted.SerializeToString(deterministic=True))
    np.save(outputs / "probes.npy", places)
    for number, output in enumerate(converted.graph.output):
        _save(outputs / f"{number}.npy", _as_output(answers[number], output))
        _save(outputs / f"probe-{number}.npy", _as_output(probed[number], output))


def _rows(job: dict[str, Any], folder: Path) -> Rows:
    return {each["name"]: _strings(np.load(folder / f"{number}.npy")) for number, each in enumerate(job["inputs"])}


def _strings(values: np.ndarray) -> np.ndarray:
    """Frameworks take words as objects, not as text of a fixed width."""
    return values.astype(object) if values.dtype.kind == "U" else values


def _probed(answer: Callable[[Rows], list[np.ndarray]], rows: Rows, golden: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Answers to the probes that the model takes, and their places; one that it refuses says nothing about the export."""
    count = len(next(iter(rows.values())))
    parts = list(_answered(answer, rows, 0, count))
    places = np.array([place for start, stop, _ in parts for place in range(start, stop)], dtype=np.int64)
    empty = [each[:0] for each in golden]
    return [np.concatenate([none, *(part[number] for _, _, part in parts)]) for number, none in enumerate(empty)], places


def _answered(answer: Callable[[Rows], list[np.ndarray]], rows: Rows, start: int, stop: int) -> Any:
    """Halves the rows until what is refused stands alone."""
    if start == stop:
        return
    try:
        yield start, stop, answer({name: values[start:stop] for name, values in rows.items()})
    except Exception:
        if stop - start == 1:
            return
        middle = (start + stop) // 2
        yield from _answered(answer, rows, start, middle)
        yield from _answered(answer, rows, middle, stop)


def _insist_on_outputs(converted: Any, answers: list[np.ndarray]) -> None:
    if len(converted.graph.output) != len(answers):
        names = ", ".join(each.name for each in converted.graph.output)[:200]
        raise Trouble("convert", f"the model gives {len(answers)} outputs, the ONNX graph has {names}")


def _plain(model: Any) -> None:
    """Without what converters note of the place: paths, stack traces, random names and orders. Equal exports must give equal bytes."""
    model.graph.name = "penstock"
    imports = sorted(model.opset_import, key=lambda each: (each.domain, each.version))
    del model.opset_import[:]
    model.opset_import.extend(imports)
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    for graph in (model.graph, *model.functions):
        _forget_notes(graph)


def _forget_notes(graph: Any) -> None:
    groups = (getattr(graph, name, ()) for name in ("input", "output", "value_info", "initializer"))
    nodes = list(graph.node)
    for each in (graph, *nodes, *(row for group in groups for row in group if not isinstance(row, str))):
        each.ClearField("doc_string")
        each.ClearField("metadata_props")
    for node in nodes:
        for attribute in node.attribute:
            for inner in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                _forget_notes(inner)


def _as_output(answer: np.ndarray, output: Any) -> np.ndarray:
    """The answer in the dtype that the ONNX graph has for it."""
    import onnx

    kind = output.type.tensor_type.elem_type
    return answer.astype(str) if kind == onnx.TensorProto.STRING else answer.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _save(path: Path, answer: np.ndarray) -> None:
    """Text as fixed-width text: an array of objects would be a pickle."""
    np.save(path, answer.astype(str) if answer.dtype == object else answer, allow_pickle=False)
