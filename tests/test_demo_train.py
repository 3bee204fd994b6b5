"""The demo's models are what its story says of them: judged here with the judges and the limits that the demo's delivery uses."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType

from demo import train
from demo.traffic import new_scanner
from stack.settings import ROOT
from validation.contract import Outcome
from validation.judges import accuracy_at_least, paired_not_worse
from validation.policy import read_policy

METRIC = read_policy(ROOT / "dags" / "policies" / "digits.toml").golden_set.metrics[0]
ERROR = 0.05


@cache
def data() -> train.Digits:
    return train.digits()


@cache
def model(name: str, seed: int = 0) -> onnx.ModelProto:
    recipe = train.RECIPES.get(name) or train.retrain_recipe(seed)
    pipeline = train.train(recipe, data())
    if recipe.scaled_by_table:
        return train.with_scaling_table(pipeline)
    inputs = [("pixels", FloatTensorType([None, train.PIXELS]))]
    opset = {"": train.OPSET, "ai.onnx.ml": 3}
    made: onnx.ModelProto = to_onnx(pipeline, initial_types=inputs, options={"zipmap": False}, target_opset=opset)
    return made


@cache
def session(name: str, seed: int = 0) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model(name, seed).SerializeToString(), providers=["CPUExecutionProvider"])


def answers(name: str, pixels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    label, probabilities = session(name, seed).run(["label", "probabilities"], {"pixels": pixels})
    return label, probabilities


def right(name: str, seed: int = 0) -> np.ndarray:
    correct: np.ndarray = np.equal(answers(name, data().golden_pixels, seed)[0], data().golden_labels)
    return correct


def above_floor(name: str) -> Outcome:
    correct = right(name)
    return accuracy_at_least(name="accuracy", correct=int(correct.sum()), n=len(correct), limit=METRIC.at_least, error=ERROR).outcome


def not_worse(candidate: np.ndarray, stable: np.ndarray) -> Outcome:
    wins, losses = int((candidate & ~stable).sum()), int((stable & ~candidate).sum())
    margin = METRIC.not_worse_than_stable
    return paired_not_worse(name="accuracy", wins=wins, losses=losses, n=len(stable), margin=margin, error=ERROR).outcome


def test_the_split_is_fixed_and_whole() -> None:
    """1,000 golden rows and 797 for training, the same ones every time, pixels whole numbers from 0 to 16."""
    first, second = train.digits(), train.digits()
    assert first.golden_pixels.shape == (1000, 64)
    assert first.training_pixels.shape == (797, 64)
    assert np.array_equal(first.golden_pixels, second.golden_pixels)
    assert set(np.unique(first.golden_pixels)) == set(range(17))


def test_equal_recipes_give_equal_models() -> None:
    """Training is deterministic: what the tests show of a recipe holds in the demo."""
    again = train.train(train.RECIPES["v1"], data())
    assert np.array_equal(again.predict(data().golden_pixels), answers("v1", data().golden_pixels)[0])


def test_v1_is_surely_above_the_policys_floor() -> None:
    """The first version passes the golden set: its accuracy is surely above `at_least`."""
    assert above_floor("v1") is Outcome.PASSED


def test_v2_is_better_than_v1() -> None:
    """The second version is worth its delivery."""
    assert right("v2").mean() > right("v1").mean() + 0.02
    assert not_worse(right("v2"), right("v1")) is Outcome.PASSED


def test_v3_is_surely_refused() -> None:
    """Broken labels give a model that fails the floor, not one that is merely inconclusive."""
    assert above_floor("v3") is Outcome.FAILED


def test_v4_answers_the_golden_rows_as_v2_does() -> None:
    """Nothing that the golden set can see tells the fourth version from the second."""
    expected, got = answers("v2", data().golden_pixels), answers("v4", data().golden_pixels)
    assert np.array_equal(got[0], expected[0])
    assert np.allclose(got[1], expected[1], atol=1e-6)


def test_v4_fails_on_every_image_of_the_new_scanner() -> None:
    """A pixel of 17 or more makes ONNX Runtime raise, alone or in a batch, and each new-scanner image has one."""
    bright = new_scanner(np.concatenate([data().golden_pixels, data().training_pixels]))
    assert (bright.max(axis=1) > train.BRIGHTEST).all()
    for rows in (bright[:1], np.full((1, 64), 20, np.float32), np.concatenate([data().golden_pixels[:3], bright[:1]])):
        with pytest.raises(Exception, match="out of"):
            answers("v4", rows)


@pytest.mark.parametrize("name", ["v1", "v2", "retrain"])
def test_the_other_versions_answer_the_new_scanner(name: str) -> None:
    """Only v4 stumbles over the new scanner; whatever is stable answers it."""
    probabilities = answers(name, new_scanner(data().golden_pixels), 5)[1]
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("seed", [1, 2, 5, 42])
def test_a_retrained_version_is_not_worse_than_v2(seed: int) -> None:
    """Whatever the seed, a retraining passes the paired comparison with v2 and the floor."""
    assert not_worse(right("retrain", seed), right("v2")) is Outcome.PASSED


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v4"])
def test_all_versions_have_the_same_signature(name: str) -> None:
    """One input `pixels`, outputs `label` and `probabilities` of the same types and shapes: clients see no difference."""
    inputs = [(each.name, each.type, each.shape[1:]) for each in session(name).get_inputs()]
    outputs = [(each.name, each.type, each.shape[1:]) for each in session(name).get_outputs()]
    assert inputs == [("pixels", "tensor(float)", [64])]
    assert outputs == [("label", "tensor(int64)", []), ("probabilities", "tensor(float)", [10])]


def test_golden_parquet_holds_the_rows_in_order() -> None:
    """The golden file is the same bytes every time and reads back as the split's rows."""
    content = train.golden_parquet(data())
    table = pq.read_table(io.BytesIO(content))
    assert content == train.golden_parquet(data())
    assert str(table.schema.field("pixels").type) == "fixed_size_list<element: float>[64]"
    assert np.array_equal(np.stack(table["pixels"].to_numpy()), data().golden_pixels)
    assert np.array_equal(table["label"].to_numpy(), data().golden_labels)


def test_registering_marks_the_version_and_publishes_the_golden_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version carries the marker from its creation; the golden set is uploaded once, with its digest in the model's tags."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    first, second = (train.train_and_register(train.RECIPES[name]) for name in ("v1", "v4"))
    client = mlflow.MlflowClient()
    tags = client.get_registered_model("digits").tags
    golden = Path(mlflow.artifacts.download_artifacts(tags["penstock.golden_set.uri"])).read_bytes()
    assert [first["version"], second["version"]] == [1, 2]
    assert all(client.get_model_version("digits", str(each)).tags == {"candidate": "true"} for each in (1, 2))
    assert hashlib.sha256(golden).hexdigest() == tags["penstock.golden_set.sha256"]
    experiments = [each.experiment_id for each in client.search_experiments()]
    assert len(client.search_runs(experiments)) == 3  # one of them the golden set's


def test_retraining_needs_no_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With PENSTOCK_RETRAIN_MODEL set the module registers a version of that model by the seed it is given."""
    asked = []
    monkeypatch.setenv("PENSTOCK_RETRAIN_MODEL", "digits")
    monkeypatch.setenv("PENSTOCK_RETRAIN_SEED", "11")

    def note(recipe: train.Recipe, model: str) -> dict[str, int]:
        asked.append((recipe.name, recipe.seed, model))
        return {"version": 9}

    monkeypatch.setattr(train, "train_and_register", note)
    train.main([])
    assert asked == [("retrain", 11, "digits")]
    assert json.loads(capsys.readouterr().out) == {"version": 9}


def test_a_bad_seed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that is no whole number ends with a sentence that names the variable."""
    monkeypatch.setenv("PENSTOCK_RETRAIN_MODEL", "digits")
    monkeypatch.setenv("PENSTOCK_RETRAIN_SEED", "-1")
    with pytest.raises(SystemExit, match="PENSTOCK_RETRAIN_SEED"):
        train.main([])
