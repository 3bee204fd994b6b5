"""What `MLmodel` says of a model: file, format, inputs and outputs of every supported flavour; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from delivery import flavours
from delivery.findings import Refusal
from delivery.flavours import FRAMEWORKS, Flavour, read_flavour
from validation.policy import EXPORT_ENVIRONMENTS


@pytest.fixture(name="has", autouse=True)
def has_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every framework were here."""
    monkeypatch.setattr(flavours.importlib.util, "find_spec", lambda name: name)


def tensor(name: str | None, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}, **({"name": name} if name else {})}


FEATURES = [tensor("features", 4)]
COLUMNS = [{"type": "double", "name": "age (years)"}, {"type": "string", "name": "city"}]


def logged(folder: Path, kind: str, row: dict[str, Any], files: list[str], **signature: list[dict[str, Any]]) -> Flavour:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    signature = {"inputs": FEATURES, **signature}
    content = {"flavors": {kind: row, "python_function": {}}, "signature": {way: json.dumps(rows) for way, rows in signature.items()}}
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    return read_flavour(folder)


@pytest.mark.parametrize(
    ("said", "files", "expected"),
    [
        (("sklearn", {"pickled_model": "m.pkl", "serialization_format": "skops"}), ["m.pkl"], ("m.pkl", "skops", None)),
        (("sklearn", {"pickled_model": "m.pkl"}), ["m.pkl"], ("m.pkl", "cloudpickle", None)),
        (("xgboost", {"data": "m.ubj", "model_class": "xgboost.XGBClassifier"}), ["m.ubj"], ("m.ubj", "xgboost.XGBClassifier", None)),
        (("xgboost", {"data": "m.ubj"}), ["m.ubj"], ("m.ubj", "xgboost.Booster", None)),
        (("lightgbm", {"data": "m.lgb", "model_class": "lightgbm.basic.Booster"}), ["m.lgb"], ("m.lgb", "booster", None)),
        (("lightgbm", {"data": "m.pkl", "model_class": "lightgbm.sklearn.LGBMClassifier"}), ["m.pkl"], ("m.pkl", "cloudpickle", None)),
        (("pytorch", {"model_data": "data"}), ["data/model.pth"], ("data/model.pth", "pickle", None)),
        (("pytorch", {"model_data": "data"}), ["data/model.pt2"], ("data/model.pt2", "pt2", None)),
        (("tensorflow", {"saved_model_dir": "tf2model"}), ["tf2model/saved_model.pb"], ("tf2model", "saved_model", "tf2model")),
        (("tensorflow", {"data": "data"}), ["data/model.keras"], ("data/model.keras", "keras", None)),
        (("tensorflow", {"data": "data"}), ["data/model/saved_model.pb"], ("data/model", "saved_model", "data/model")),
        (("keras", {"data": "data"}), ["data/model.keras"], ("data/model.keras", "keras", None)),
    ],
)  # fmt: skip
def test_every_flavour_is_found(tmp_path: Path, said: Any, files: list[str], expected: tuple[str, ...]) -> None:
    """Which file holds the model, how it was written, and whether the bundle keeps it; the input is the signature's."""
    found = logged(tmp_path, *said, files)
    assert (found.kind, (found.file, found.format, found.kept)) == (said[0], expected)
    assert [(each.name, each.dtype, each.shape) for each in found.inputs] == [("features", "FP32", (4,))]


def test_tensors_keep_their_order_and_open_sizes(tmp_path: Path) -> None:
    """Several inputs, some without a name; outputs that have names."""
    inputs = [tensor("values", -1), tensor(None, 2, 3), tensor("words", dtype="str")]
    found = logged(tmp_path, "pytorch", {"model_data": "data"}, ["data/model.pth"], inputs=inputs, outputs=[tensor("scores", 3)])
    assert [(each.name, each.shape) for each in found.inputs] == [("values", (-1,)), ("input_1", (2, 3)), ("words", (1,))]
    assert found.outputs == ("scores",)


def test_columns_make_a_frame(tmp_path: Path) -> None:
    """Each column is an input; names are made plain for servers."""
    found = logged(tmp_path, "lightgbm", {"data": "m.pkl"}, ["m.pkl"], inputs=COLUMNS)
    assert found.frame
    assert [(each.name, each.column, each.dtype) for each in found.inputs] == [
        ("age__years_", "age (years)", "FP64"),
        ("city", "city", "BYTES"),
    ]


@pytest.mark.parametrize(
    ("said", "files", "inputs", "reason"),
    [
        (("pytorch", {"model_data": "data"}), ["data/model.pth"], COLUMNS, "the signature of the pytorch model has columns"),
        (("sklearn", {"pickled_model": "m"}), ["m"], [tensor("a", 2), tensor("b", 2)], "has 2 tensors"),
        (("sklearn", {"pickled_model": "m"}), ["m"], [tensor("a b", 2), tensor("a_b", 2)], "the same name"),
        (("pytorch", {"model_data": "data"}), ["data/other"], FEATURES, "'data/model.pt2', which is not among the model's files"),
        (("tensorflow", {"data": "data"}), ["data/other"], FEATURES, "'data/model.keras', which is not among the model's files"),
        (("tensorflow", {"saved_model_dir": "../up"}), ["x"], FEATURES, "not among the model's files"),
        (("xgboost", {"data": "/etc/passwd"}), ["x"], FEATURES, "not among the model's files"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, said: Any, files: list[str], inputs: Any, reason: str) -> None:
    """Before anything is loaded, by name."""
    with pytest.raises(Refusal) as caught:
        logged(tmp_path, *said, files, inputs=inputs)
    assert reason in caught.value.finding.why


def test_every_environment_that_is_advised_may_stand_in_a_policy() -> None:
    """The refusal's advice can be followed."""
    assert {environment for environment, _ in FRAMEWORKS.values()} == set(EXPORT_ENVIRONMENTS)
