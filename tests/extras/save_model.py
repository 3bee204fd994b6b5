"""Saves a small model of one kind as MLflow does: `python save_model.py <kind> <folder>`, in the environment that has its framework."""

import sys
from pathlib import Path

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

FEATURES = Schema([TensorSpec(np.dtype(np.float32), (-1, 4), "features")])
SCORES = Schema([TensorSpec(np.dtype(np.float32), (-1, 3), "scores")])
SEQUENCES = Schema([TensorSpec(np.dtype(np.float32), (-1, -1), "values"), TensorSpec(np.dtype(np.float32), (-1, 1), "weights")])
OWN = Path(__file__).with_name("own_layers.py")


def torch(kind: str, folder: Path) -> None:
    import mlflow.pytorch
    import torch

    sys.path.insert(0, str(OWN.parent))
    import own_layers

    torch.manual_seed(7)
    module = {"sequences": own_layers.Sequences, "cubes": own_layers.Cubes}.get(kind, own_layers.Scores)()
    signature = ModelSignature(SEQUENCES if kind == "sequences" else FEATURES, None if kind == "sequences" else SCORES)
    pt2 = {"serialization_format": "pt2", "input_example": np.ones((3, 4), np.float32)}
    options = pt2 if kind == "pt2" else {"serialization_format": "pickle"}
    mlflow.pytorch.save_model(module, folder, signature=signature, code_paths=[str(OWN)], pip_requirements=["torch"], **options)


def tensorflow(kind: str, folder: Path) -> None:
    import mlflow.tensorflow
    import tensorflow as tf

    tf.keras.utils.set_random_seed(7)
    dense = tf.keras.layers.Dense
    model = tf.keras.Sequential([tf.keras.layers.Input((4,), name="features"), dense(8, activation="relu"), dense(3, activation="softmax")])
    signature, options = ModelSignature(FEATURES, SCORES), {}
    if kind != "keras":
        model, options = _served(tf, model, kind), {"saved_model_kwargs": {}}
        options["saved_model_kwargs"]["signatures"] = {"serving_default": model.serve}
    mlflow.tensorflow.save_model(model, folder, signature=signature, pip_requirements=["tensorflow"], **options)


def _served(tf, model, kind: str):
    class Served(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="features")])
        def serve(self, features):
            scores = self.model(features)
            return {"scores": scores, **({"odd": tf.linalg.eigvalsh(scores[:, :, None] * scores[:, None, :])} if kind == "eigen" else {})}

    return Served()


def boosting(kind: str, folder: Path) -> None:
    import mlflow.xgboost
    import xgboost

    draws = np.random.default_rng(7)
    features = draws.normal(size=(200, 4)).astype(np.float32)
    model = xgboost.XGBClassifier(n_estimators=5).fit(features, (features.sum(axis=1) > 0).astype(int))
    mlflow.xgboost.save_model(model, folder, signature=ModelSignature(FEATURES), pip_requirements=["xgboost"])


KINDS = {
    **dict.fromkeys(("module", "pt2", "sequences", "cubes"), torch),
    **dict.fromkeys(("keras", "saved_model", "eigen"), tensorflow),
    "xgboost": boosting,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[1], Path(sys.argv[2]))
