"""What happens inside export's sandbox: loads the foreign model, lets it answer the golden rows, writes it as ONNX.

Started by `delivery.walls`, never in the process of a task. Reads `job.json`, `model/` and `golden/<i>.npy` from its inputs; leaves
`model.onnx` and one `<i>.npy` for each output of the ONNX graph, in their order. When it cannot, it leaves `trouble.json` with the stage
(load, answer, convert) and a sentence. Nothing outside believes what it leaves without looking.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SENTENCE = 400  # characters
OPSETS = {"": 17, "ai.onnx.ml": 3}  # ONNX 1.12: what every ONNX Runtime in Triton images since 2022 reads
BATCH_ROWS = 256


class Trouble(Exception):
    """A stage that did not work, and why."""

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(why)
        self.stage = stage


def main(inputs: Path, outputs: Path) -> None:
    job = json.loads((inputs / "job.json").read_text())
    export = {"sklearn": export_sklearn, "onnx": export_onnx}[job["kind"]]
    try:
        export(job, inputs, outputs)
    except Trouble as trouble:
        traceback.print_exc()
        (outputs / "trouble.json").write_text(json.dumps({"stage": trouble.stage, "why": str(trouble)[:SENTENCE]}))


def export_sklearn(job: dict[str, Any], inputs: Path, outputs: Path) -> None:
    model = _stage("load", lambda: _load(job, inputs / "model"))
    features = _features(job, _golden(job, inputs))
    answers = _stage("answer", lambda: _answers(model, features))
    converted = _stage("convert", lambda: _convert(model, job, keep=len(answers)))
    (outputs / "model.onnx").write_bytes(converted.SerializeToString())
    for number, (output, answer) in enumerate(zip(converted.graph.output, answers, strict=True)):
        _save(outputs / f"{number}.npy", _as_output(answer, output))


def export_onnx(job: dict[str, Any], inputs: Path, outputs: Path) -> None:
    """Weights in files beside the model (the way mlflow.onnx writes) are taken into the one file; ONNX refuses those elsewhere."""
    import onnx

    model = _stage("load", lambda: onnx.load(inputs / "model" / job["file"]))
    data = model.SerializeToString()
    answers = _stage("answer", lambda: _run_onnx(data, _golden(job, inputs)))
    (outputs / "model.onnx").write_bytes(data)
    for number, answer in enumerate(answers):
        _save(outputs / f"{number}.npy", np.asarray(answer))


def _load(job: dict[str, Any], folder: Path) -> Any:
    if job["code"]:
        sys.path.insert(0, str(folder / job["code"]))
    path = folder / job["file"]
    if job["format"] == "skops":
        import skops.io

        return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))  # the walls guard, not a list of types
    import cloudpickle

    with path.open("rb") as file:
        return cloudpickle.load(file)


def _golden(job: dict[str, Any], inputs: Path) -> dict[str, np.ndarray]:
    return {each["name"]: np.load(inputs / "golden" / f"{number}.npy") for number, each in enumerate(job["inputs"])}


def _features(job: dict[str, Any], golden: dict[str, np.ndarray]) -> Any:
    """One array, or a data frame under the columns' own names, as the model was trained."""
    if not job["frame"]:
        return next(iter(golden.values()))
    import pandas as pd

    return pd.DataFrame({each["column"]: golden[each["name"]].reshape(-1) for each in job["inputs"]})


def _answers(model: Any, features: Any) -> list[np.ndarray]:
    """In the order of skl2onnx's outputs: label and probabilities of a classifier, one value of a regressor."""
    from sklearn.base import is_classifier, is_regressor

    if is_regressor(model):
        return [np.asarray(model.predict(features)).reshape(len(features), -1)]
    if not is_classifier(model):
        raise Trouble("answer", f"{type(model).__name__} is neither a classifier nor a regressor")
    answers = [np.asarray(model.predict(features))]
    if hasattr(model, "predict_proba"):
        answers.append(np.asarray(model.predict_proba(features)))
    return answers


def _convert(model: Any, job: dict[str, Any], *, keep: int) -> Any:
    """A fixed graph name, because the default is a random one and equal exports must give equal bytes."""
    from skl2onnx import convert_sklearn

    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    types = [_initial_type(each) for each in job["inputs"]]
    converted = convert_sklearn(model, name="penstock", initial_types=types, options=options, target_opset=OPSETS)
    _insist_on_inputs(converted, job)
    del converted.graph.output[keep:]  # scores of a classifier without probabilities
    return converted


def _initial_type(described: dict[str, Any]) -> tuple[str, Any]:
    """skl2onnx finds a frame's columns by their own names and makes the names plain itself."""
    from skl2onnx.common import data_types

    kinds = {
        "FP32": data_types.FloatTensorType,
        "FP64": data_types.DoubleTensorType,
        "INT64": data_types.Int64TensorType,
        "INT32": data_types.Int32TensorType,
        "BOOL": data_types.BooleanTensorType,
        "BYTES": data_types.StringTensorType,
    }
    if described["dtype"] not in kinds:
        raise Trouble("convert", f"input {described['name']} is {described['dtype']}; scikit-learn models take {', '.join(kinds)}")
    return described["column"] or described["name"], kinds[described["dtype"]]([None, *described["shape"]])


def _insist_on_inputs(converted: Any, job: dict[str, Any]) -> None:
    found, wanted = {each.name for each in converted.graph.input}, {each["name"] for each in job["inputs"]}
    if found != wanted:
        odd = sorted(found ^ wanted)
        raise Trouble("convert", f"inputs {', '.join(odd)[:200]} are in the signature or in the ONNX graph, but not in both")


def _as_output(answer: np.ndarray, output: Any) -> np.ndarray:
    """The answer in the dtype that the ONNX graph has for it."""
    import onnx

    kind = output.type.tensor_type.elem_type
    return answer.astype(str) if kind == onnx.TensorProto.STRING else answer.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _run_onnx(data: bytes, golden: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rows = len(next(iter(golden.values())))
    names = [each.name for each in session.get_inputs()]
    parts = [session.run(None, {name: golden[name][at : at + BATCH_ROWS] for name in names}) for at in range(0, rows, BATCH_ROWS)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _save(path: Path, answer: np.ndarray) -> None:
    """Text as fixed-width text: an array of objects would be a pickle."""
    np.save(path, answer.astype(str) if answer.dtype == object else answer, allow_pickle=False)


def _stage(stage: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Trouble:
        raise
    except Exception as error:
        why = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        raise Trouble(stage, why) from error
