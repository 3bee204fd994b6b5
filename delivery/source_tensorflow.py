"""A TensorFlow source model: a Keras file, or a SavedModel with a serving signature; converted by tf2onnx.

Inputs go in by name where the model names them, else by the signature's order. Outputs have the names of the serving signature, of the
Keras model's dictionary, else of MLflow's signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from delivery.source import OPSETS, Rows, Trouble, add_code, in_batches

SERVING = "serving_default"
CUSTOM_OBJECTS = ("global_custom_objects.cloudpickle", "custom_objects.cloudpickle")
DTYPES = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BOOL": "bool", "BYTES": "string"}


@dataclass(frozen=True, kw_only=True)
class TensorflowSource:
    """`call` takes tensors by input name and gives tensors by output name."""

    call: Callable[[Mapping[str, Any]], dict[str, Any]]
    job: dict[str, Any]
    names: list[str] = field(default_factory=list)

    def answer(self, rows: Rows) -> list[np.ndarray]:
        return in_batches(self._answer, rows)

    def convert(self) -> onnx.ModelProto:
        import tf2onnx

        inputs, keys = self.job["inputs"], [each["name"] for each in self.job["inputs"]]
        signature = [tf.TensorSpec((None, *_open(each)), _dtype(each["dtype"]), name=each["name"]) for each in inputs]
        whole = tf.function(lambda *tensors: self.call(dict(zip(keys, tensors, strict=True))), input_signature=signature)
        model: onnx.ModelProto
        model, _ = tf2onnx.convert.from_function(whole, input_signature=signature, opset=OPSETS[""])
        return _ordered(model, self.names)

    def _answer(self, rows: Rows) -> list[np.ndarray]:
        given = self.call({name: tf.constant(values) for name, values in rows.items()})
        self.names[:] = list(given)
        return [each.numpy() for each in given.values()]


def load(job: dict[str, Any], folder: Path) -> TensorflowSource:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    add_code(job, folder)
    path = folder / job["file"]
    read = _saved_model if job["format"] == "saved_model" else _keras
    return TensorflowSource(call=read(path, job), job=job)


def _saved_model(path: Path, job: dict[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures.get(SERVING)
    if serve is None:
        raise Trouble("load", f"the SavedModel has no signature {SERVING}; save it with signatures={{'{SERVING}': ...}}")
    taken = list(serve.structured_input_signature[1])
    named = _matched([each["name"] for each in job["inputs"]], taken)

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return dict(sorted(serve(**{named[name]: each for name, each in tensors.items()}).items()))

    call.loaded = loaded  # type: ignore[attr-defined]  # its variables die with it
    return call


def _keras(path: Path, job: dict[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    model = tf.keras.models.load_model(path, custom_objects=_custom_objects(path.parent), compile=False, safe_mode=False)
    names = list(getattr(model, "input_names", None) or [each.name for each in model.inputs])
    named = _matched([each["name"] for each in job["inputs"]], names)

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        by_name = {named[name]: each for name, each in tensors.items()}
        ordered = [by_name[name] for name in names]
        return _outputs(model(ordered[0] if len(ordered) == 1 else ordered, training=False), job["outputs"])

    return call


def _matched(wanted: list[str], taken: list[str]) -> dict[str, str]:
    """The model's own names by ours: the same words, or by order where the signature uses others."""
    if len(wanted) != len(taken):
        raise Trouble("load", f"the signature has {len(wanted)} inputs, the model takes {len(taken)}: {', '.join(taken)}")
    return {name: name for name in wanted} if set(wanted) == set(taken) else dict(zip(wanted, taken, strict=True))


def _outputs(given: Any, names: list[str]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(sorted(given.items()))
    tensors = list(given) if isinstance(given, (tuple, list)) else [given]
    usual = ["output"] if len(tensors) == 1 else [f"output_{number}" for number in range(len(tensors))]
    return dict(zip(names if len(names) == len(tensors) else usual, tensors, strict=True))


def _custom_objects(folder: Path) -> dict[str, Any]:
    """Classes and functions that MLflow pickled beside a Keras model."""
    import cloudpickle

    found: dict[str, Any] = {}
    for path in (folder / name for name in CUSTOM_OBJECTS):
        if path.is_file():
            with path.open("rb") as file:
                found |= cloudpickle.load(file)
    return found


def _dtype(word: str) -> str:
    return DTYPES.get(word, word.lower())


def _open(described: Mapping[str, Any]) -> list[int | None]:
    return [None if size < 0 else size for size in described["open_shape"]]


def _ordered(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Outputs in the order of the answers: tf2onnx sorts them its own way."""
    found = {each.name: each for each in model.graph.output}
    if set(found) != set(names):
        raise Trouble("convert", f"tf2onnx names the outputs {', '.join(found)}, the model {', '.join(names)}")
    outputs = [found[name] for name in names]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model
