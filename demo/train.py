"""The demo's training: one recipe per version, on real digits, logged and registered through MLflow's ordinary API.

`demo.run` calls it for v1 to v4, the retraining DAG for v5; both start it in the environment `training`:

    python -m demo.train --recipe v1|v2|v3|v4|retrain     (address in MLFLOW_TRACKING_URI)
    python -m demo.train --rows rows.npy                  (rows for the client, no registry needed)
    PENSTOCK_RETRAIN_MODEL=digits python -m demo.train    (what a retraining task does; seed in PENSTOCK_RETRAIN_SEED)

A registered version carries the tag `candidate`=`true` from its creation, so MLflow sends one event for it. Prints one JSON line:
model, version, run. It delivers nothing and knows nothing of gates. Data: UCI's handwritten digits as scikit-learn ships them
(1,797 images of 8 x 8 pixels, each a whole number from 0 to 16).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

MODEL = "digits"
MARKER = "candidate"
PIXELS = 64
BRIGHTEST = 16  # of the scanner that made the data set; a newer one goes up to 20
GOLDEN_ROWS = 1000
SPLIT_SEED = 1797
OPSET = 17

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Both halves of the fixed split. Pixels are (rows, 64) float32 from 0 to 16, labels (rows,) int64 from 0 to 9."""

    golden_pixels: Floats
    golden_labels: Labels
    training_pixels: Floats
    training_labels: Labels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one version is made. Equal recipes give equal models."""

    name: str
    purpose: str
    rows: int
    hidden: int
    seed: int = 0
    labels_shuffled: bool = False
    scaled_by_table: bool = False


RECIPES = {
    "v1": Recipe(name="v1", purpose="first: few rows, a small network", rows=200, hidden=64),
    "v2": Recipe(name="v2", purpose="better: all training rows, a wider network", rows=797, hidden=256),
    "v3": Recipe(name="v3", purpose="v2 trained on broken labels", rows=797, hidden=256, labels_shuffled=True),
    "v4": Recipe(name="v4", purpose="v2 with its pixel scaling as a table of 17 entries", rows=797, hidden=256, scaled_by_table=True),
}


def digits() -> Digits:
    """The data set, split the same way every time: 1,000 golden rows, 797 for training."""
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels.astype(np.float32), labels.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    golden, training = order[:GOLDEN_ROWS], order[GOLDEN_ROWS:]
    return Digits(
        golden_pixels=pixels[golden],
        golden_labels=labels[golden],
        training_pixels=pixels[training],
        training_labels=labels[training],
    )


def retrain_recipe(seed: int) -> Recipe:
    """v2's recipe from another starting point: as good as v2 within a few rows, whatever the seed."""
    return Recipe(name="retrain", purpose=f"v2's recipe again, seed {seed}", rows=797, hidden=256, seed=seed)


def train(recipe: Recipe, data: Digits) -> Pipeline:
    """Scaling and network in one pipeline that takes raw pixels (rows, 64) float32; a fraction of a second each."""
    pixels, labels = data.training_pixels[: recipe.rows], data.training_labels[: recipe.rows]
    if recipe.labels_shuffled:
        labels = np.random.default_rng(recipe.seed).permutation(labels)
    network = MLPClassifier((recipe.hidden,), alpha=0.01, learning_rate_init=3e-3, max_iter=60, random_state=recipe.seed)
    scale = _scaling()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 60 rounds are the recipe, not an accident
        network.fit(scale.transform(pixels), labels)
    return Pipeline([("scale", scale), ("network", network)])


def with_scaling_table(pipeline: Pipeline) -> onnx.ModelProto:
    """The pipeline as ONNX, its scaling replaced by a lookup over 0..16: the same answers, until a pixel is 17 or brighter.

    ONNX defines Gather beyond the table as an error, so ONNX Runtime fails that request while it runs.
    """
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    network = pipeline.named_steps["network"]
    scaled = [("scaled", FloatTensorType([None, PIXELS]))]
    model: onnx.ModelProto = to_onnx(network, initial_types=scaled, options={"zipmap": False}, target_opset={"": OPSET, "ai.onnx.ml": 3})
    _look_up_pixels(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def golden_parquet(data: Digits) -> bytes:
    """The golden set as a parquet file: `pixels` fixed-size list of 64 float32, `label` int64; the row order is the identity."""
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(data.golden_pixels.reshape(-1)), PIXELS)
    table = pa.table({"pixels": pixels, "label": pa.array(data.golden_labels)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none")
    return sink.getvalue()


def publish_golden_set(data: Digits, model: str = MODEL) -> str:
    """Uploads the golden set and names it in the registered model's tags, unless it stands there already. Returns its sha256."""
    from mlflow import MlflowClient, set_experiment, start_run

    content = golden_parquet(data)
    digest = hashlib.sha256(content).hexdigest()
    client = MlflowClient()
    if _registered_tags(client, model).get("penstock.golden_set.sha256") == digest:
        return digest
    set_experiment(model)
    with start_run(run_name="golden set") as run, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golden.parquet"
        path.write_bytes(content)
        client.log_artifact(run.info.run_id, str(path))
    client.set_registered_model_tag(model, "penstock.golden_set.uri", f"{run.info.artifact_uri}/golden.parquet")
    client.set_registered_model_tag(model, "penstock.golden_set.sha256", digest)
    return digest


def train_and_register(recipe: Recipe, model: str = MODEL) -> dict[str, Any]:
    """Trains, logs and registers one version; returns model, version and run. The golden set is published first."""
    import mlflow

    data = digits()
    publish_golden_set(data, model)
    mlflow.set_experiment(model)
    with mlflow.start_run(run_name=recipe.name) as run:
        uri = _log(recipe, train(recipe, data), data)
    version = mlflow.register_model(uri, model, tags={MARKER: "true"})
    return {"model": model, "version": int(version.version), "run": run.info.run_id}


def write_rows(path: Path) -> None:
    """All 1,797 images for the client: an .npy file, (1797, 64) float32."""
    data = digits()
    np.save(path, np.concatenate([data.golden_pixels, data.training_pixels]))


def _log(recipe: Recipe, pipeline: Pipeline, data: Digits) -> str:
    import mlflow

    mlflow.log_params({"recipe": recipe.name, "purpose": recipe.purpose, "rows": recipe.rows, "hidden": recipe.hidden, "seed": recipe.seed})
    for name, value in _training_metrics(recipe, pipeline, data).items():
        mlflow.log_metric(name, value)
    if recipe.scaled_by_table:
        return _log_onnx(pipeline)
    options = {"signature": _signature(), "pip_requirements": _requirements("scikit-learn", "numpy")}
    return str(mlflow.sklearn.log_model(pipeline, name="model", serialization_format="cloudpickle", **options).model_uri)


def _log_onnx(pipeline: Pipeline) -> str:
    import mlflow.onnx

    model = with_scaling_table(pipeline)
    options = {"signature": _signature(), "pip_requirements": _requirements("onnx", "onnxruntime")}
    return str(mlflow.onnx.log_model(model, name="model", save_as_external_data=False, **options).model_uri)


def _requirements(*names: str) -> list[str]:
    """Said outright: left to itself, MLflow loads the model in a second process to find out, which takes five seconds."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _training_metrics(recipe: Recipe, pipeline: Pipeline, data: Digits) -> dict[str, float]:
    """On the rows and labels that the recipe has, as training jobs do: v3 cannot know that its labels are broken."""
    network = pipeline.named_steps["network"]
    seen = float(pipeline.score(data.training_pixels[: recipe.rows], data.training_labels[: recipe.rows]))
    return {"training_accuracy": seen, "training_loss": float(network.loss_), "training_rows": float(recipe.rows)}


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, PIXELS), "pixels")]))


def _scaling() -> MinMaxScaler:
    """Every pixel from 0..16 to 0..1, whatever the training rows hold: sixteenths are exact in float32."""
    return MinMaxScaler().fit(np.repeat(np.array([[0], [BRIGHTEST]], dtype=np.float32), PIXELS, axis=1))


def _look_up_pixels(graph: onnx.GraphProto) -> None:
    table = onnx.numpy_helper.from_array(np.arange(BRIGHTEST + 1, dtype=np.float32) / BRIGHTEST, "scaling_table")
    nodes = [
        onnx.helper.make_node("Cast", ["pixels"], ["pixel_values"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Gather", ["scaling_table", "pixel_values"], ["scaled"]),
        *graph.node,
    ]
    graph.initializer.append(table)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [None, PIXELS]))


def _registered_tags(client: Any, model: str) -> dict[str, str]:
    """The registered model's tags; registers the model when it is new."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(model).tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return dict(client.create_registered_model(model).tags)


def _seed() -> int:
    word = os.environ.get("PENSTOCK_RETRAIN_SEED", "5")
    if not word.isdecimal() or int(word) >= 2**32:
        raise SystemExit(f"PENSTOCK_RETRAIN_SEED is {word!r}; expected a whole number from 0 to 4294967295")
    return int(word)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description="Trains and registers one version of the demo's model.")
    retraining = "PENSTOCK_RETRAIN_MODEL" in os.environ
    what = parser.add_mutually_exclusive_group(required=not retraining)
    what.add_argument("--recipe", choices=[*RECIPES, "retrain"], default="retrain" if retraining else None)
    what.add_argument("--rows", type=Path, metavar="FILE", help="write the client's rows to FILE (.npy) and register nothing")
    parser.add_argument("--model", default=os.environ.get("PENSTOCK_RETRAIN_MODEL", MODEL))
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    """The command line; prints what it registered as one JSON line."""
    arguments = _arguments(words)
    if arguments.rows is not None:
        write_rows(arguments.rows)
        return
    recipe = RECIPES.get(arguments.recipe) or retrain_recipe(_seed())
    print(json.dumps(train_and_register(recipe, arguments.model)))


if __name__ == "__main__":
    main(sys.argv[1:])
