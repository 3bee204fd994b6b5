"""Export, from a registered model to a bundle that can be read back; real MLflow, real sandbox, real conversions."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import lightgbm
import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skl2onnx  # noqa: F401 - compiled here once: behind the walls nothing is written
import xgboost
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper
from registry_fixtures import (  # noqa: F401 - found by name
    fixed_size,
    mlflow_address_fixture,
    model_fixture,
    name_golden,
    register,
    register_any,
    register_files,
    registry_fixture,
    set_golden,
    spec,
)
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC

from delivery.export import _walls, export
from delivery.export_child import _probed
from delivery.registry import GOLDEN_SHA256, GOLDEN_WRITTEN, SEMANTIC_VERSION, Registry
from delivery.sandbox import Ended, Limits
from validation import golden_set
from validation.bundle import OpenBundle, Tensor, read_bundle
from validation.contract import BadSpec, Bundle, Decision, Outcome, Stable
from validation.drift import read_sketches
from validation.probes import probe_rows

LIMITS = Limits(wall_s=60, memory_bytes=4 << 30)
ROWS = 40
DRAWN = np.random.default_rng(7)
FEATURES = DRAWN.normal(size=(ROWS, 4)).astype(np.float32)
LABELS = (FEATURES.sum(axis=1) > 0).astype(np.int64) + (FEATURES[:, 0] > 1)
FEATURE_COLUMN, LABEL_COLUMN = fixed_size(FEATURES), pa.array(LABELS)
SIGNATURE = ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 4), "features")]))


@pytest.fixture(autouse=True)
def lenient_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run on kernels that refuse walls too."""
    monkeypatch.setenv("PENSTOCK_SANDBOX", "lenient")


def run(registry: Registry, model: str, version: int, folder: Path, limits: Limits = LIMITS, **fields: Any) -> Decision:
    """`limits` are the sandbox's, `limits_` the spec's."""
    fields["limits"] = fields.pop("limits_", {})
    (folder / "evidence").mkdir(exist_ok=True)
    inputs = {"artifacts_uri": f"{folder.as_uri()}/artifacts"}
    return export(spec("export", model, version, folder, inputs=inputs, **fields), folder / "evidence", registry, limits)


def opened(decision: Decision) -> OpenBundle:
    return read_bundle(Bundle(uri=decision.outputs["bundle_uri"], sha256=decision.outputs["bundle_sha256"]))


def refusal(decision: Decision) -> str:
    """Name, reason and advice of the one finding that refuses."""
    (finding,) = decision.findings
    assert finding.outcome is Outcome.FAILED
    return f"{finding.name}: {finding.why} ({finding.advice})"


def log_sklearn(model: str, estimator: Any, signature: Any = SIGNATURE, **options: Any) -> int:
    with mlflow.start_run():
        mlflow.log_metric("accuracy", 0.9)
        options = {"pip_requirements": ["scikit-learn"], **options}
        info = mlflow.sklearn.log_model(estimator, name="model", signature=signature, **options)
    return int(mlflow.register_model(info.model_uri, model).version)


def log_onnx(model: str, graph: onnx.ModelProto, **options: Any) -> int:
    with mlflow.start_run():
        info = mlflow.onnx.log_model(graph, name="model", signature=SIGNATURE, pip_requirements=["onnx"], **options)
    return int(mlflow.register_model(info.model_uri, model).version)


def golden(registry: Registry, model: str, folder: Path) -> None:
    set_golden(registry, model, folder, {"features": fixed_size(FEATURES), "label": pa.array(LABELS)})


def classifier() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(FEATURES, LABELS)


def small_onnx(batch: int | None = None, weights: np.ndarray | None = None) -> onnx.ModelProto:
    matrix = np.ones((4, 3), np.float32) if weights is None else weights
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["scores"])],
        "small",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, matrix.shape[1]])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("options", [{}, {"serialization_format": "cloudpickle"}], ids=["as-logged-by-default", "cloudpickle"])
def test_a_classifier_becomes_a_bundle(registry: Registry, model: str, tmp_path: Path, options: dict[str, Any]) -> None:
    """Model, configuration, golden rows and the source model's own answers are in the bundle, and agree with ONNX Runtime's."""
    estimator = classifier()
    golden(registry, model, tmp_path)
    decision = run(registry, model, log_sklearn(model, estimator, **options), tmp_path)
    assert [each.outcome for each in decision.findings] == [Outcome.PASSED, Outcome.PASSED], decision.findings
    with opened(decision) as bundle:
        assert bundle.manifest.inputs == (Tensor(name="features", dtype="FP32", shape=(4,)),)
        assert bundle.manifest.outputs == (
            Tensor(name="label", dtype="INT64", shape=(1,)),
            Tensor(name="probabilities", dtype="FP32", shape=(3,)),
        )
        assert np.array_equal(bundle.inputs()["features"], FEATURES)
        assert np.array_equal(bundle.labels(), LABELS)
        assert np.array_equal(bundle.reference()["label"], estimator.predict(FEATURES))
        label, probabilities = onnxruntime.InferenceSession(bundle.model_path).run(None, bundle.inputs())
        assert np.array_equal(label, bundle.reference()["label"])
        assert np.allclose(probabilities, bundle.reference()["probabilities"], atol=1e-5)
        assert bundle.manifest.training_metrics == {"accuracy": 0.9}
        assert bundle.manifest.semantic_version == decision.outputs["semantic_version"] == "v1.0.0"
        config = (bundle.model_directory / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert "TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] }" in config


def test_the_same_version_gives_the_same_bytes(registry: Registry, model: str, tmp_path: Path) -> None:
    """Exported twice, a version has one digest: whoever repeats a delivery compares what was tested."""
    golden(registry, model, tmp_path)
    version = log_sklearn(model, classifier())
    first, second = (run(registry, model, version, tmp_path).outputs for _ in range(2))
    assert first == second


def test_a_regressor_answers_one_value(registry: Registry, model: str, tmp_path: Path) -> None:
    """A regressor's output is `variable`, one value a row, as skl2onnx names it."""
    golden(registry, model, tmp_path)
    estimator = LinearRegression().fit(FEATURES, LABELS)
    with opened(run(registry, model, log_sklearn(model, estimator), tmp_path)) as bundle:
        assert bundle.manifest.outputs == (Tensor(name="variable", dtype="FP32", shape=(1,)),)
        assert np.allclose(bundle.reference()["variable"][:, 0], estimator.predict(FEATURES), atol=1e-5)


def test_a_classifier_without_probabilities_answers_labels(registry: Registry, model: str, tmp_path: Path) -> None:
    """Scores that are no probabilities are not served under that name."""
    golden(registry, model, tmp_path)
    with opened(run(registry, model, log_sklearn(model, LinearSVC().fit(FEATURES, LABELS)), tmp_path)) as bundle:
        assert [each.name for each in bundle.manifest.outputs] == ["label"]
        assert list(bundle.reference()) == ["label"]


def test_a_frame_of_columns_becomes_inputs(registry: Registry, model: str, tmp_path: Path) -> None:
    """Each column of a frame is an input of its own; words are served as words, and names are made plain."""
    frame = pd.DataFrame({"sepal length (cm)": FEATURES[:, 0].astype(float), "kind": np.where(FEATURES[:, 1] > 0, "a", "b")})
    words = np.where(LABELS > 0, "yes", "no")
    prepared = make_column_transformer((StandardScaler(), ["sepal length (cm)"]), (OneHotEncoder(), ["kind"]))
    estimator = make_pipeline(prepared, LogisticRegression()).fit(frame, words)
    set_golden(registry, model, tmp_path, {**{name: pa.array(frame[name].to_numpy()) for name in frame}, "label": pa.array(words)})
    decision = run(registry, model, log_sklearn(model, estimator, infer_signature(frame, words)), tmp_path)
    assert "exported" in [each.name for each in decision.findings if each.outcome is Outcome.PASSED], decision.findings
    with opened(decision) as bundle:
        assert [(each.name, each.dtype) for each in bundle.manifest.inputs] == [("sepal_length__cm_", "FP64"), ("kind", "BYTES")]
        assert bundle.reference()["label"].tolist() == estimator.predict(frame).tolist()
        assert bundle.inputs()["kind"][:, 0].tolist() == frame["kind"].tolist()
        label = onnxruntime.InferenceSession(bundle.model_path).run(["label"], bundle.inputs())[0]
        assert label.tolist() == bundle.reference()["label"].tolist()
        assert "model_warmup" not in (bundle.model_directory / "config.pbtxt").read_text()


TEXTS = np.array([" ".join(DRAWN.choice(["the Quick fox", "lazy dogs", "a Zwölf-Kämpfer don't", "foxes"], 2)) for _ in range(ROWS)])
KINDS, SIZES = DRAWN.choice(["a", "b", "c"], ROWS), DRAWN.choice(["S", "M", "L"], ROWS)


def answers_agree(bundle: OpenBundle) -> None:
    """ONNX Runtime gives what the source model gave, on golden rows and probes alike."""
    session = onnxruntime.InferenceSession(bundle.model_path)
    names = [each.name for each in bundle.manifest.outputs]
    for name, given in zip(names, session.run(names, bundle.inputs()), strict=True):
        expected = bundle.reference()[name]
        assert given.tolist() == expected.tolist() if expected.dtype.kind in "UO" else np.allclose(given, expected, atol=1e-5), name


def gate_passes(decision: Decision, folder: Path) -> set[str]:
    """Names of what the gate on golden rows passes of the exported bundle."""
    metric = {"name": "accuracy", "at_least": 0.1, "within_training": 0.2, "not_worse_than_stable": 0.2}
    limits = {"min_rows": 10, "atol": 1e-4, "rtol": 1e-3, "rows_outside_permille": 0, "metrics": [metric]}
    bundle = Bundle(uri=decision.outputs["bundle_uri"], sha256=decision.outputs["bundle_sha256"])
    judged = golden_set.run(spec("golden_set", "any", 1, folder, bundle=bundle, limits=limits), folder / "evidence")
    return {each.name for each in judged.findings if each.outcome is Outcome.PASSED}


def test_text_and_categories_are_served(registry: Registry, model: str, tmp_path: Path) -> None:
    """A frame of text, categories, whole and broken numbers: words of any alphabet and case are cut as scikit-learn cuts them."""
    frame = pd.DataFrame({"text": TEXTS, "kind": KINDS, "size": SIZES, "amount": FEATURES[:, 0].astype(float), "count": LABELS})
    encoders = [(TfidfVectorizer(ngram_range=(1, 2)), "text"), (OneHotEncoder(handle_unknown="ignore"), ["kind"])]
    encoders += [(OrdinalEncoder(categories=[["S", "M", "L"]]), ["size"]), (StandardScaler(), ["amount", "count"])]
    estimator = make_pipeline(make_column_transformer(*encoders), LogisticRegression()).fit(frame, LABELS)
    set_golden(registry, model, tmp_path, {**{name: pa.array(frame[name].to_numpy()) for name in frame}, "label": pa.array(LABELS)})
    decision = run(registry, model, log_sklearn(model, estimator, infer_signature(frame, LABELS)), tmp_path)
    with opened(decision) as bundle:
        assert [each.dtype for each in bundle.manifest.inputs] == ["BYTES", "BYTES", "BYTES", "FP64", "INT64"]
        answers_agree(bundle)
    assert {"parity_rows", "label_flips", "feature_extremes", "batch_of_one", "padded_batch", "row_order"} <= gate_passes(
        decision, tmp_path
    )


def test_a_model_of_plain_texts_is_served(registry: Registry, model: str, tmp_path: Path) -> None:
    """A vectorizer that takes a list of texts gets one; servers take them as a column."""
    estimator = make_pipeline(TfidfVectorizer(stop_words="english"), LogisticRegression()).fit(TEXTS, LABELS)
    set_golden(registry, model, tmp_path, {"text": pa.array(TEXTS), "label": pa.array(LABELS)})
    with opened(run(registry, model, log_sklearn(model, estimator, infer_signature(TEXTS, LABELS)), tmp_path)) as bundle:
        assert [(each.dtype, each.shape) for each in bundle.manifest.inputs] == [("BYTES", (1,))]
        answers_agree(bundle)


def log_boosted(model: str, flavour: Any, estimator: Any, signature: Any) -> int:
    with mlflow.start_run():
        info = flavour.log_model(estimator, name="model", signature=signature, pip_requirements=["scikit-learn"])
    return int(mlflow.register_model(info.model_uri, model).version)


FRAME = pd.DataFrame({"first column": FEATURES[:, 0].astype(float), "second": FEATURES[:, 1], "count": LABELS, "flag": FEATURES[:, 2] > 0})
PICKLED = {"serialization_format": "cloudpickle"}
BOOSTED: dict[str, Any] = {
    "xgboost-frame": (mlflow.xgboost, lambda: xgboost.XGBClassifier(n_estimators=5).fit(FRAME, LABELS), FRAME),
    "xgboost-matrix": (mlflow.xgboost, lambda: xgboost.XGBRegressor(n_estimators=5).fit(FEATURES, LABELS), FEATURES),
    "xgboost-booster": (
        mlflow.xgboost,
        lambda: xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(FEATURES, label=LABELS > 0), 5),
        FEATURES,
    ),
    "lightgbm-frame": (mlflow.lightgbm, lambda: lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(FRAME, LABELS), FRAME),
    "lightgbm-matrix": (mlflow.lightgbm, lambda: lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(FEATURES, LABELS), FEATURES),
    "lightgbm-booster": (
        mlflow.lightgbm,
        lambda: lightgbm.train({"objective": "multiclass", "num_class": 3, "verbose": -1}, lightgbm.Dataset(FEATURES, LABELS), 5),
        FEATURES,
    ),
    "in-a-pipeline": (
        None,
        lambda: make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(n_estimators=5, verbose=-1)).fit(FEATURES, LABELS),
        FEATURES,
    ),
}


@pytest.mark.parametrize("case", BOOSTED)
def test_boosted_trees_are_served(registry: Registry, model: str, tmp_path: Path, case: str) -> None:
    """Estimators and bare boosters of both libraries, on a matrix or on columns, of which each stays an input of its own."""
    flavour, made, taken = BOOSTED[case]
    columns = {name: pa.array(taken[name].to_numpy()) for name in taken} if taken is FRAME else {"features": FEATURE_COLUMN}
    set_golden(registry, model, tmp_path, {**columns, "label": pa.array(LABELS)})
    signature = infer_signature(taken) if taken is FRAME else SIGNATURE
    version = log_boosted(model, flavour, made(), signature) if flavour else log_sklearn(model, made(), signature, **PICKLED)
    with opened(run(registry, model, version, tmp_path)) as bundle:
        assert len(bundle.manifest.inputs) == len(columns)
        answers_agree(bundle)


def test_boosted_trees_give_the_same_bytes_twice(registry: Registry, model: str, tmp_path: Path) -> None:
    """Their converter names things at random, if it is let."""
    flavour, made, _ = BOOSTED["lightgbm-matrix"]
    golden(registry, model, tmp_path)
    version = log_boosted(model, flavour, made(), SIGNATURE)
    first, second = (run(registry, model, version, tmp_path).outputs for _ in range(2))
    assert first == second


def test_a_framework_that_is_not_here_is_asked_for(registry: Registry, model: str, tmp_path: Path) -> None:
    """The refusal names flavour, missing package, the policy's key and the command that installs it."""
    golden(registry, model, tmp_path)
    signature = json.dumps(SIGNATURE.to_dict()["inputs"])
    mlmodel = f"flavors:\n  pytorch:\n    model_data: data\nsignature:\n  inputs: {signature}\n"
    version = register_files(registry, model, {"MLmodel": mlmodel.encode(), "data/model.pth": b"x"})
    said = refusal(run(registry, model, version, tmp_path))
    for words in ("the flavour pytorch needs torch", 'environment = "export_torch"', "section [export]", "make extras EXTRAS=export_torch"):
        assert words in said


class Sevenfold(TransformerMixin, BaseEstimator):
    """A step that skl2onnx does not know."""

    def fit(self, features: Any, labels: Any = None) -> Any:
        return self

    def transform(self, features: Any) -> Any:
        return features * 7


def test_a_step_that_cannot_be_converted_is_named(registry: Registry, model: str, tmp_path: Path) -> None:
    """Whoever wrote the pipeline learns which part stands in the way."""
    golden(registry, model, tmp_path)
    estimator = make_pipeline(StandardScaler(), Sevenfold(), LogisticRegression()).fit(FEATURES, LABELS)
    said = refusal(run(registry, model, log_by_value(model, estimator), tmp_path))
    assert "cannot be written as ONNX" in said
    assert "Sevenfold" in said


def log_by_value(model: str, estimator: Any) -> int:
    """With the classes of this file inside, as a notebook's are: the sandbox cannot import a test."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return log_sklearn(model, estimator, serialization_format="cloudpickle")


class Fussy(ClassifierMixin, BaseEstimator):
    """Refuses rows whose first feature is as large as the largest that it saw."""

    def fit(self, features: Any, labels: Any) -> Any:
        self.classes_, self.most_ = np.unique(labels), features[:, 0].max()
        return self

    def predict(self, features: Any) -> Any:
        if (features[:, 0] >= self.most_).any():
            raise ValueError("too large")
        return np.zeros(len(features), np.int64)


def test_probes_that_the_model_refuses_are_left_out(tmp_path: Path) -> None:
    """One that is refused says nothing about the export; the others are answered, each with its place."""
    rows = {"features": np.arange(8, dtype=np.float32).reshape(8, 1)}
    model = Fussy().fit(np.array([[5.0]]), [0])
    answers, places = _probed(lambda asked: [model.predict(asked["features"])], rows, [np.zeros(3, np.int64)])
    assert places.tolist() == [0, 1, 2, 3, 4]
    assert [each.shape for each in answers] == [(5,)]


def test_the_bundle_says_where_it_came_from(registry: Registry, model: str, tmp_path: Path) -> None:
    """Probes with the source model's answers, sketches of inputs and outputs, the columns that the policy names, and the set's time."""
    columns = {"features": FEATURE_COLUMN, "label": LABEL_COLUMN, "region": pa.array(KINDS), "other": pa.array(KINDS)}
    set_golden(registry, model, tmp_path, columns)
    registry._client.set_registered_model_tag(model, GOLDEN_WRITTEN, "1764000000")
    version = log_sklearn(model, classifier())
    with opened(run(registry, model, version, tmp_path, limits_={"columns": ["region"]})) as bundle:
        manifest = bundle.manifest
        assert pq.read_table(bundle.root / "golden/slices.parquet").to_pydict() == {"region": KINDS.tolist()}
        asked = pq.read_table(bundle.root / "probes/inputs.parquet")
        probes = np.asarray(asked["features"].combine_chunks().flatten()).reshape(asked.num_rows, 4)
        assert np.array_equal(probes, probe_rows({"features": FEATURES})["features"])
        label = np.load(bundle.root / "probes/reference/label.npy", allow_pickle=False)
        assert np.array_equal(label, onnxruntime.InferenceSession(bundle.model_path).run(["label"], {"features": probes})[0])
        golden_set = {key: manifest.golden_set[key] for key in ("rows", "probes", "probes_left_out", "written_unix_s")}
        assert golden_set == {"rows": ROWS, "probes": len(probes), "probes_left_out": 0, "written_unix_s": 1764000000.0}
        assert set(read_sketches(manifest.baselines["inputs"])) == {f"features[{i}]" for i in range(4)}
        assert read_sketches(manifest.baselines["outputs"])["label"].rows == ROWS


def test_a_column_that_the_policy_names_and_nobody_has_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """Better now than in the gate, after a conversion."""
    golden(registry, model, tmp_path)
    said = refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path, limits_={"columns": ["region"]}))
    assert "the policy names the column 'region'" in said


def test_open_axes_are_in_the_signature(registry: Registry, model: str, tmp_path: Path) -> None:
    """Rows of any length: the manifest names the axis and the golden set's size, the server's configuration leaves it open."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["features"], ["scores"])],
        "any",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, None])],
    )
    golden(registry, model, tmp_path)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with opened(run(registry, model, log_onnx(model, made), tmp_path)) as bundle:
        assert bundle.manifest.inputs == (Tensor(name="features", dtype="FP32", shape=(4,), dynamic=(0,)),)
        assert bundle.manifest.outputs == (Tensor(name="scores", dtype="FP32", shape=(4,), dynamic=(0,)),)
        assert "TYPE_FP32 dims: [ -1 ]" in (bundle.model_directory / "config.pbtxt").read_text()


def test_a_missing_number_is_no_empty_cell(registry: Registry, model: str, tmp_path: Path) -> None:
    """Pandas writes NaN as an empty cell; it reaches the model as NaN again."""
    numbers = FEATURES[:, :1].astype(float).copy()
    numbers[3] = np.nan
    frame = pd.DataFrame({"amount": numbers[:, 0]})
    estimator = HistGradientBoostingClassifier(max_iter=3).fit(frame, LABELS)
    set_golden(registry, model, tmp_path, {"amount": pa.array(numbers[:, 0], from_pandas=True), "label": pa.array(LABELS)})
    with opened(run(registry, model, log_sklearn(model, estimator, infer_signature(frame, LABELS), **PICKLED), tmp_path)) as bundle:
        assert np.isnan(bundle.inputs()["amount"][3])
        assert bundle.inputs()["amount"].dtype == np.float64
        answers_agree(bundle)


def test_scalar_columns_make_an_unnamed_tensor(registry: Registry, model: str, tmp_path: Path) -> None:
    """A model trained on a plain matrix takes the golden set's columns in their order, as one input named `input`."""
    set_golden(registry, model, tmp_path, {**{f"x{i}": pa.array(FEATURES[:, i]) for i in range(4)}, "label": pa.array(LABELS)})
    version = log_sklearn(model, classifier(), infer_signature(FEATURES, LABELS))
    with opened(run(registry, model, version, tmp_path)) as bundle:
        assert np.array_equal(bundle.inputs()["input"], FEATURES)


@pytest.mark.parametrize("options", [{}, {"save_as_external_data": False}], ids=["as-logged-by-default", "one-file"])
def test_an_onnx_model_is_taken_as_it_is(registry: Registry, model: str, tmp_path: Path, options: dict[str, Any]) -> None:
    """Weights that MLflow keeps in a file beside the model, as it does by default, become part of the one file."""
    weights = DRAWN.normal(size=(4, 400)).astype(np.float32)
    golden(registry, model, tmp_path)
    decision = run(registry, model, log_onnx(model, small_onnx(weights=weights), **options), tmp_path)
    with opened(decision) as bundle:
        assert bundle.manifest.outputs == (Tensor(name="scores", dtype="FP32", shape=(400,)),)
        assert (bundle.manifest.opset, bundle.manifest.ir_version) == (17, 8)
        assert np.allclose(bundle.reference()["scores"], FEATURES @ weights, atol=1e-5)


def test_the_semantic_version_follows_from_stable(registry: Registry, model: str, tmp_path: Path) -> None:
    """Stable's bundle and the numbers that other versions have decide; the version's own number from before does not count."""
    golden(registry, model, tmp_path)
    first, second = log_onnx(model, small_onnx()), log_onnx(model, small_onnx())
    outputs = run(registry, model, first, tmp_path).outputs
    (tmp_path / "artifacts" / "bundle.tar").rename(tmp_path / "stable.tar")
    stable = Stable(version=1, bundle=Bundle(uri=(tmp_path / "stable.tar").as_uri(), sha256=outputs["bundle_sha256"]))
    registry.tag(registry.version(model, second), {SEMANTIC_VERSION: "1.1.0"})
    assert run(registry, model, second, tmp_path, stable=stable).outputs["semantic_version"] == "v1.1.0"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"notes.txt": b"x"}, "no MLmodel, only notes.txt"),
        (
            {"MLmodel": b"flavors: {spacy: {}, python_function: {}}"},
            "flavour is spacy; supported: sklearn, xgboost, lightgbm, pytorch, keras, tensorflow, onnx",
        ),
        ({"MLmodel": b"{"}, "MLmodel is no YAML"),
        ({"MLmodel": b"- 1"}, "names no flavors"),
        ({"MLmodel": b"flavors: {sklearn: {pickled_model: ../../x}}"}, "not among the model's files"),
        ({"MLmodel": b"flavors: {sklearn: {pickled_model: m.pkl}}", "m.pkl": b"x"}, "signature cannot be used"),
        ({"MLmodel": b"flavors: {onnx: {data: m.onnx}}", "m.onnx": b"not onnx"}, "is no ONNX file"),
        ({"MLmodel": b"flavors: {onnx: {data: m.onnx}}", "m.onnx": b""}, "is no ONNX file"),
    ],
)
def test_what_is_no_model_is_refused_by_name(registry: Registry, model: str, tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    """An artifact that cannot be delivered is a failed finding that names the thing, not a crash."""
    golden(registry, model, tmp_path)
    assert reason in refusal(run(registry, model, register_files(registry, model, files), tmp_path))


def test_a_version_without_artifacts_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """A version that points at nothing is told so."""
    run_id = registry._client.create_run("0").info.run_id
    version = register(registry, model, f"mlflow-artifacts:/0/{run_id}/artifacts/nothing", run_id)
    assert "has no artifacts" in refusal(run(registry, model, version, tmp_path))


def test_a_missing_golden_set_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """Without a golden set nothing can be shown, so there is no bundle; the missing tag is named."""
    assert "penstock.golden_set.uri" in refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path))


def test_a_golden_set_that_is_gone_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """An address with nothing behind it is a failed finding that names the address."""
    golden(registry, model, tmp_path)
    (tmp_path / "source-golden.parquet").unlink()
    assert "there is nothing at file:" in refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path))


def test_a_changed_golden_set_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """Rows that were exchanged behind the tag's back are not used."""
    golden(registry, model, tmp_path)
    registry._client.set_registered_model_tag(model, GOLDEN_SHA256, hashlib.sha256(b"other").hexdigest())
    assert "expected" in refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"features": FEATURE_COLUMN[:0], "label": LABEL_COLUMN[:0]}, "has no rows"),
        ({"features": FEATURE_COLUMN}, "no column 'label'"),
        ({"other": FEATURE_COLUMN, "label": LABEL_COLUMN}, "no column 'features'"),
        ({"features": fixed_size(FEATURES[:, :3].copy()), "label": LABEL_COLUMN}, "rows of [4]"),
        ({"features": pa.array(["x"] * ROWS), "label": LABEL_COLUMN}, "the model takes FP32"),
        ({"features": FEATURE_COLUMN, "label": pa.array([None] * ROWS, pa.int64())}, "one value in every row"),
        ({"features": pa.array([[1.0] * 4] * (ROWS - 1) + [None]), "label": LABEL_COLUMN}, "empty cells"),
    ],
)
def test_a_golden_set_that_does_not_fit_is_refused(
    registry: Registry, model: str, tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    """Empty, without label, without the model's input, of other size or kind: each is named."""
    set_golden(registry, model, tmp_path, columns)
    assert reason in refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path))


def test_a_golden_set_that_unpacks_to_too_much_is_refused(
    registry: Registry, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What parquet says of itself is looked at before it is unpacked."""
    golden(registry, model, tmp_path)
    monkeypatch.setattr("delivery.golden.LIMIT_ROWS", ROWS - 1)
    assert f"has {ROWS} rows that unpack to" in refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path))


def test_a_golden_set_that_is_no_table_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """Bytes that are no parquet file are named as such."""
    name_golden(registry, model, tmp_path, b"no table")
    assert "is no parquet file" in refusal(run(registry, model, log_onnx(model, small_onnx()), tmp_path))


def test_a_fixed_batch_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """A model for one row at a time cannot be batched by a server; the advice says how to export it."""
    golden(registry, model, tmp_path)
    assert "dynamic first dimension" in refusal(run(registry, model, log_onnx(model, small_onnx(batch=1)), tmp_path))


def test_an_onnx_model_that_reaches_outside_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """Weights in a file outside the model's folder are not read, whatever is there."""
    golden(registry, model, tmp_path)
    graph = small_onnx()
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../../../etc/ld.so.cache")
    tensor.external_data.add(key="length", value="48")
    files = {"MLmodel": b"flavors: {onnx: {data: m.onnx}}", "m.onnx": graph.SerializeToString()}
    assert "lies outside or is no plain file" in refusal(run(registry, model, register_files(registry, model, files), tmp_path))


def test_an_estimator_of_another_kind_is_refused(registry: Registry, model: str, tmp_path: Path) -> None:
    """What neither classifies nor predicts has no answers to compare."""
    golden(registry, model, tmp_path)
    assert "neither a classifier nor a regressor" in refusal(
        run(registry, model, log_sklearn(model, StandardScaler().fit(FEATURES)), tmp_path)
    )


class Hostile:
    """Unpickles into the run of its code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (self.code,)


def hostile_version(registry: Registry, model: str, code: str) -> int:
    signature = json.dumps(SIGNATURE.to_dict()["inputs"])
    mlmodel = f"flavors:\n  sklearn:\n    pickled_model: m.pkl\n    serialization_format: pickle\nsignature:\n  inputs: {signature}\n"
    return register_files(registry, model, {"MLmodel": mlmodel.encode(), "m.pkl": pickle.dumps(Hostile(code))})


@pytest.mark.parametrize(
    "case",
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", LIMITS, "cannot be loaded: "),
        ("import os; os._exit(0)", LIMITS, "left no result: model.onnx"),
        ("import os; os.abort()", LIMITS, "was ended by signal SIGABRT"),
        ("while True: pass", Limits(wall_s=2.0), "was stopped at its time limit"),
        ("import os; os.symlink('/etc/passwd', os.environ['HOME'] + '/model.onnx'); os._exit(0)", LIMITS, "plain file"),
        ("open(__import__('os').environ['HOME'] + '/model.onnx', 'w').write('x'); __import__('os')._exit(0)", LIMITS, "is no ONNX file"),
    ],
)
def test_a_hostile_model_is_refused(registry: Registry, model: str, tmp_path: Path, case: tuple[str, Limits, str]) -> None:
    """Whatever a model's own code tries, the delivery ends in a finding that says what happened."""
    code, limits, reason = case
    golden(registry, model, tmp_path)
    said = refusal(run(registry, model, hostile_version(registry, model, code), tmp_path, limits))
    assert reason in said
    assert (tmp_path / "evidence" / "sandbox.log").exists()


def test_answers_that_are_a_pickle_are_never_loaded(registry: Registry, model: str, tmp_path: Path) -> None:
    """A model that leaves a pickle in the place of its answers runs nothing outside of the sandbox."""
    golden(registry, model, tmp_path)
    proof = tmp_path / "proof"
    stolen = pickle.dumps(Hostile(f"open({str(proof)!r}, 'w').write('x')"))
    code = f"""
import os
home = os.environ['HOME']
open(home + '/model.onnx', 'wb').write({small_onnx().SerializeToString()!r})
open(home + '/0.npy', 'wb').write({stolen!r})
os._exit(0)
"""
    assert "cannot be read" in refusal(run(registry, model, hostile_version(registry, model, code), tmp_path))
    assert not proof.exists()


def test_export_without_a_claim_is_a_bad_spec(registry: Registry, model: str, tmp_path: Path) -> None:
    """Where the bundle goes is claim's to say."""
    with pytest.raises(BadSpec, match="artifacts_uri"):
        export(spec("export", model, 1, tmp_path), tmp_path, registry, LIMITS)


def test_missing_walls_are_said_in_a_lenient_place() -> None:
    """They do not fail a model, and the finding names them with what to do."""
    said = _walls(Ended(exit_code=0, walls=("user",), log=""))
    assert said.outcome is Outcome.PASSED
    assert "refused the walls network, files, processes" in said.why
    assert "user namespaces" in str(said.advice)


def test_missing_walls_refuse_the_export_elsewhere(registry: Registry, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a needed wall is missing and nobody allowed that, the export ends as a bad spec does: no verdict, no retry, no bundle."""
    monkeypatch.delenv("PENSTOCK_SANDBOX")
    monkeypatch.setattr("delivery.sandbox.NEEDED", ("network", "moat"))
    golden(registry, model, tmp_path)
    with pytest.raises(BadSpec, match="PENSTOCK_SANDBOX=lenient"):
        run(registry, model, log_sklearn(model, classifier()), tmp_path)
    assert not (tmp_path / "artifacts").exists()
