"""An XGBoost or LightGBM source model: scikit-learn's kind of estimator or a bare booster; converted by onnxmltools.

Both compute on one matrix of numbers. A model that was trained on a data frame keeps one input a column; the graph lays them side by side.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from delivery.source import Rows, Trouble, add_code, fed_as_float, fed_by_columns, matrix, unpickled

OPSET = 15  # the newest whose ai.onnx.ml is version 3, as everywhere here; onnxmltools takes one number for both
MATRIX = "penstock_matrix"
NUMBERS = ("FP32", "FP64", "INT64", "INT32", "BOOL")


@dataclass(frozen=True, kw_only=True)
class BoostedSource:
    model: Any
    job: dict[str, Any]

    def answer(self, rows: Rows) -> list[np.ndarray]:
        """Label and probabilities of a classifier, one value of anything else, as onnxmltools orders them."""
        features = self._features(rows)
        if hasattr(self.model, "predict_proba"):
            return [np.asarray(self.model.predict(features)), np.asarray(self.model.predict_proba(features))]
        if hasattr(self.model, "get_booster") or hasattr(self.model, "booster_"):
            return [np.asarray(self.model.predict(features)).reshape(len(features), -1)]
        return _as_outputs(*(_xgboost if self.job["kind"] == "xgboost" else _lightgbm)(self.model, features))

    def convert(self) -> onnx.ModelProto:
        from onnxmltools.convert.common.data_types import FloatTensorType

        self._insist_on_numbers()
        inputs = self.job["inputs"]
        columns = sum(int(np.prod(each["shape"])) for each in inputs)
        name = MATRIX if self.job["frame"] else inputs[0]["name"]
        converted = self._converted([(name, FloatTensorType([None, columns]))])
        for output in converted.graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = "rows"  # LightGBM's label says 1
        return (
            fed_by_columns(converted, inputs) if self.job["frame"] else fed_as_float(converted, inputs, ("FP64", "INT64", "INT32", "BOOL"))
        )

    def _features(self, rows: Rows) -> Any:
        if not self.job["frame"]:
            return matrix(rows)
        import pandas as pd

        return pd.DataFrame({each["column"]: rows[each["name"]].reshape(-1) for each in self.job["inputs"]})

    def _converted(self, types: list[tuple[str, Any]]) -> onnx.ModelProto:
        import onnxmltools

        options = {"name": "penstock", "initial_types": types, "target_opset": OPSET}
        if self.job["kind"] == "xgboost":
            _forget_names(self.model)
            converted: onnx.ModelProto = onnxmltools.convert_xgboost(self.model, **options)
        else:
            converted = onnxmltools.convert_lightgbm(self.model, zipmap=False, **options)
        return converted

    def _insist_on_numbers(self) -> None:
        for each in self.job["inputs"]:
            if each["dtype"] not in NUMBERS:
                why = f"input {each['name']} is {each['dtype']}; onnxmltools writes boosted trees on numbers only: {', '.join(NUMBERS)}"
                raise Trouble("convert", why)


def load(job: dict[str, Any], folder: Path) -> BoostedSource:
    add_code(job, folder)
    read = _load_xgboost if job["kind"] == "xgboost" else _load_lightgbm
    return BoostedSource(model=read(job, folder), job=job)


def register() -> None:
    """Teaches skl2onnx the estimators of both, for pipelines that end in one."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes, calculate_linear_regressor_output_shapes

    choices = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    for package, prefix, module in (("xgboost", "XGB", "XGBoost"), ("lightgbm", "LGBM", "LightGbm")):
        if package not in sys.modules:
            continue
        library = sys.modules[package]
        convert = getattr(importlib.import_module(f"onnxmltools.convert.{package}.operator_converters.{module}"), f"convert_{package}")
        for kind, shapes, options in (
            ("Classifier", calculate_linear_classifier_output_shapes, choices),
            ("Regressor", calculate_linear_regressor_output_shapes, {"split": None} if prefix == "LGBM" else None),
        ):
            name = f"{prefix}{kind}"
            update_registered_converter(getattr(library, name), f"Penstock{name}", shapes, convert, options=options)


def _load_xgboost(job: dict[str, Any], folder: Path) -> Any:
    module, _, name = str(job["format"]).rpartition(".")
    model = getattr(importlib.import_module(module), name)()
    model.load_model(folder / job["file"])
    return model


def _load_lightgbm(job: dict[str, Any], folder: Path) -> Any:
    if job["format"] != "booster":
        return unpickled(job, folder)
    import lightgbm

    return lightgbm.Booster(model_file=str(folder / job["file"]))


def _xgboost(model: Any, features: Any) -> tuple[str, np.ndarray]:
    """A bare booster's objective and its answers."""
    import xgboost

    objective = json.loads(model.save_config())["learner"]["objective"]["name"]
    if objective == "multi:softmax":  # answers labels; ONNX has the probabilities too
        raise Trouble("answer", "a booster with the objective multi:softmax; train it with multi:softprob")
    return objective, np.asarray(model.predict(xgboost.DMatrix(features)))


def _lightgbm(model: Any, features: Any) -> tuple[str, np.ndarray]:
    return str(model.dump_model()["objective"]).split()[0], np.asarray(model.predict(features))


def _as_outputs(objective: str, answers: np.ndarray) -> list[np.ndarray]:
    if objective in {"binary:logistic", "binary"}:
        return [(answers > 0.5).astype(np.int64), np.stack([1 - answers, answers], axis=1)]
    if objective in {"multi:softprob", "multiclass"}:
        return [answers.argmax(axis=1), answers]
    return [answers.reshape(len(answers), -1)]


def _forget_names(model: Any) -> None:
    """The converter reads trees whose features are numbered; called when no more answers are wanted."""
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    booster.feature_names = booster.feature_types = None
