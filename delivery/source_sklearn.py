"""A scikit-learn source model: classifiers and regressors, alone or at the end of a pipeline; converted by skl2onnx.

Pipelines may begin with a data frame's columns (numbers, words, text). Estimators of xgboost and lightgbm inside them are converted where
the environment has those and onnxmltools.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from delivery.source import OPSETS, Rows, Trouble, fed_as_float, loads, unpickled

ANY_LOCALE = "C.UTF-8"  # skl2onnx's en_US.UTF-8 is missing in most containers, and lower case is the same in both
WORDS = r"[\p{L}\p{N}_]{2,}"  # scikit-learn's default (?u)\b\w\w+\b for RE2, whose \w and \b know ASCII only
DEFAULT_WORDS = r"(?u)\b\w\w+\b"


@dataclass(frozen=True, kw_only=True)
class SklearnSource:
    model: Any
    job: dict[str, Any]

    def answer(self, rows: Rows) -> list[np.ndarray]:
        """In the order of skl2onnx's outputs: label and probabilities of a classifier, one value of a regressor."""
        from sklearn.base import is_classifier, is_regressor

        features = self._features(rows)
        if is_regressor(self.model):
            return [np.asarray(self.model.predict(features)).reshape(len(features), -1)]
        if not is_classifier(self.model):
            raise Trouble("answer", f"{type(self.model).__name__} is neither a classifier nor a regressor")
        answers = [np.asarray(self.model.predict(features))]
        if hasattr(self.model, "predict_proba"):
            answers.append(np.asarray(self.model.predict_proba(features)))
        return answers

    def convert(self) -> onnx.ModelProto:
        """In the inputs' own types; where ONNX Runtime has no kernel for the doubles that this leads to, in float behind a cast."""
        converted = self._converted(as_float=False)
        if not (why := loads(converted)):
            return converted
        if any(each["dtype"] == "FP64" for each in self.job["inputs"]):
            converted = fed_as_float(self._converted(as_float=True), self.job["inputs"])
            why = loads(converted)
        if why:
            raise Trouble("convert", f"ONNX Runtime cannot load what skl2onnx wrote: {why}")
        return converted

    def _features(self, rows: Rows) -> Any:
        """One array; or a data frame under the columns' own names, as the model was trained; or plain texts for one that takes those."""
        first = next(iter(rows.values()))
        if len(rows) == 1 and first.dtype.kind in "OUS" and _takes_texts(self.model):
            return first.reshape(-1)
        if not self.job["frame"]:
            return first
        import pandas as pd

        return pd.DataFrame({each["column"]: rows[each["name"]].reshape(-1) for each in self.job["inputs"]})

    def _converted(self, *, as_float: bool) -> onnx.ModelProto:
        """A fixed graph name, because the default is a random one and equal exports must give equal bytes."""
        from skl2onnx import convert_sklearn

        _register_boosting()
        types = [_initial_type(each, as_float=as_float) for each in self.job["inputs"]]
        options = _text_options(self.model) | ({id(self.model): {"zipmap": False}} if hasattr(self.model, "predict_proba") else {})
        converted: onnx.ModelProto = convert_sklearn(self.model, name="penstock", initial_types=types, options=options, target_opset=OPSETS)
        _insist_on_inputs(converted, self.job)
        if not hasattr(self.model, "predict_proba"):
            del converted.graph.output[1:]  # scores of a classifier without probabilities
        return converted


def load(job: dict[str, Any], folder: Path) -> SklearnSource:
    return SklearnSource(model=unpickled(job, folder), job=job)


def _parts(model: Any) -> Iterator[Any]:
    """The fitted estimators inside a pipeline, a column transformer or a union, and the model itself."""
    yield model
    for name in ("steps", "transformers_", "transformer_list"):
        for row in getattr(model, name, None) or ():
            yield from _parts(row[1])


def _takes_texts(model: Any) -> bool:
    """Whether the model begins with a vectorizer: that takes a list of texts, not columns."""
    from sklearn.feature_extraction.text import CountVectorizer

    first = model
    while getattr(first, "steps", None):
        first = first.steps[0][1]
    return isinstance(first, CountVectorizer)


def _text_options(model: Any) -> dict[int, dict[str, Any]]:
    """Words of any alphabet, in a locale that every machine has; the words to leave out by themselves, not by a list's name."""
    from sklearn.feature_extraction.text import CountVectorizer

    options: dict[int, dict[str, Any]] = {}
    for each in _parts(model):
        if isinstance(each, CountVectorizer):
            each.stop_words = sorted(each.get_stop_words() or ()) or None
            usual = each.analyzer == "word" and each.token_pattern == DEFAULT_WORDS
            options[id(each)] = {"locale": ANY_LOCALE} | ({"tokenexp": WORDS} if usual else {})
    return options


def _initial_type(described: dict[str, Any], *, as_float: bool) -> tuple[str, Any]:
    """skl2onnx finds a frame's columns by their own names and makes the names plain itself."""
    from skl2onnx.common import data_types

    kinds = {
        "FP32": data_types.FloatTensorType,
        "FP64": data_types.FloatTensorType if as_float else data_types.DoubleTensorType,
        "INT64": data_types.Int64TensorType,
        "INT32": data_types.Int32TensorType,
        "BOOL": data_types.BooleanTensorType,
        "BYTES": data_types.StringTensorType,
    }
    if described["dtype"] not in kinds:
        raise Trouble("convert", f"input {described['name']} is {described['dtype']}; scikit-learn models take {', '.join(kinds)}")
    return described["column"] or described["name"], kinds[described["dtype"]]([None, *described["shape"]])


def _insist_on_inputs(converted: onnx.ModelProto, job: dict[str, Any]) -> None:
    found, wanted = {each.name for each in converted.graph.input}, {each["name"] for each in job["inputs"]}
    if found != wanted:
        odd = sorted(found ^ wanted)
        raise Trouble("convert", f"inputs {', '.join(odd)[:200]} are in the signature or in the ONNX graph, but not in both")


def _register_boosting() -> None:
    """Teaches skl2onnx the estimators of xgboost and lightgbm, if the model brought them along."""
    if {"xgboost", "lightgbm"} & set(sys.modules):
        from delivery.source_boosting import register

        register()
