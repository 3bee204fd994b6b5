"""ONNX files of strangers: what is refused before anything runs, and that the good ones are not."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from made_bundles import classifier, weights
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state

from validation.onnx_file import CONTRIBUTED, IR_VERSIONS, LIMIT_DEPTH, OPSETS, BadModel, check_onnx, check_onnx_bytes

GOOD = classifier(weights())


def graph_of(nodes: list[onnx.NodeProto], initializers: list[TensorProto] | None = None, **fields: Any) -> onnx.GraphProto:
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])
    return helper.make_graph(nodes, "g", fields.get("inputs", [taken]), [given], initializers or [])


def model_of(nodes: list[onnx.NodeProto], *, opset: int = 17, ir_version: int = 8, **fields: Any) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), *fields.pop("imports", [])]
    functions = fields.pop("functions", [])
    return helper.make_model(graph_of(nodes, **fields), opset_imports=imports, ir_version=ir_version, functions=functions)


def node(operator: str, taken: list[str], given: list[str], **fields: Any) -> onnx.NodeProto:
    return helper.make_node(operator, taken, given, name=f"the-{operator}", **fields)


def spoilt(change: Callable[[onnx.ModelProto], Any]) -> bytes:
    """The good classifier with one thing changed."""
    model = onnx.load_model_from_string(GOOD)
    change(model)
    return model.SerializeToString()


def nested(depth: int) -> onnx.NodeProto:
    """Conditions in conditions."""
    inner = node("Identity", ["x"], ["y"])
    for level in range(depth):
        branch = helper.make_graph([inner], f"b{level}", [], [helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, None)])
        inner = node("If", ["c"], [f"n{level}"], then_branch=branch)  # two branches each would make two to the depth
    return inner


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    names = [f"v{number}" for number in range(len(calls))]
    nodes = [helper.make_node(call, ["a"], [out], domain="own") for call, out in zip(calls, names, strict=True)]
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    return helper.make_function("own", name, ["a"], [names[-1]], nodes, imports)


def tensor(dims: list[int], held: bytes = b"", kind: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="w", dims=dims, data_type=kind, raw_data=held)


def external(location: str, **entries: str) -> TensorProto:
    made = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        made.external_data.add(key=key, value=value)
    return made


ADD = node("Add", ["x", "w"], ["y"])
OWN = helper.make_opsetid("own", 1)
CALLS_ITSELF = [function("F", ["G"]), function("G", ["F"])]
UNFOLDS = [*(function(f"F{level}", [f"F{level + 1}"] * 10) for level in range(8)), helper.make_function(
    "own", "F8", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 17)])]  # fmt: skip
BIG_SHAPE = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "w")
CONDITION = numpy_helper.from_array(np.array(True), "c")

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no ONNX file, or is cut off"),
    "noise": (b"not onnx at all", "is no ONNX file, or is cut off"),
    "half": (GOOD[: len(GOOD) // 2], "is no ONNX file, or is cut off"),
    "one byte short": (GOOD[:-1], "is no ONNX file, or is cut off"),
    "no graph": (spoilt(lambda m: m.ClearField("graph")), "no graph with nodes"),
    "no opset": (spoilt(lambda m: m.ClearField("opset_import")), "names no opset"),
    "no outputs": (spoilt(lambda m: m.graph.ClearField("output")), "no graph with outputs"),
    "no inputs": (spoilt(lambda m: m.graph.ClearField("input")), "takes no inputs"),
    "an input that is missing": (spoilt(lambda m: m.graph.node[0].input.__setitem__(0, "Z")), "takes 'Z', which nothing gives"),
    "an output that is missing": (spoilt(lambda m: m.graph.node.pop()), "promises the output 'label', which nothing gives"),
    "out of order": (spoilt(lambda m: m.graph.node.insert(0, m.graph.node.pop())), "it or a later node gives"),
    "cycle": (model_of([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"]), node("Neg", ["a"], ["y"])]).SerializeToString(),
              "takes 'b', which it or a later node gives"),
    "cycle of one": (model_of([node("Add", ["x", "y"], ["y"])]).SerializeToString(), "takes 'y', which it or a later node gives"),
    "a name twice": (model_of([node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])]).SerializeToString(), "a second time"),
    "unknown operator": (model_of([node("Sqish", ["x"], ["y"])]).SerializeToString(), "node 'the-Sqish' is ai.onnx 'Sqish'"),
    "operator of a later opset": (model_of([node("Gelu", ["x"], ["y"])]).SerializeToString(), "'Gelu' of opset 17"),
    "unknown domain": (model_of([node("Neg", ["x"], ["y"], domain="own")], imports=[OWN]).SerializeToString(), "is own 'Neg'"),
    "domain not imported": (model_of([node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml")]).SerializeToString(), "of opset none"),
    "operator that opens files": (
        model_of([node("EPContext", ["x"], ["y"], domain="com.microsoft")], imports=[helper.make_opsetid("com.microsoft", 1)])
        .SerializeToString(), "com.microsoft 'EPContext'"),
    "opset from the future": (spoilt(lambda m: setattr(m.opset_import[0], "version", 999)), "opset ai.onnx is 999"),
    "opset from the past": (spoilt(lambda m: setattr(m.opset_import[0], "version", 6)), "opset ai.onnx is 6"),
    "opset twice": (spoilt(lambda m: m.opset_import.add(domain="ai.onnx", version=16)), "imported in two versions"),
    "IR from the future": (spoilt(lambda m: setattr(m, "ir_version", 99)), "the IR version is 99"),
    "training": (spoilt(lambda m: m.training_info.add()), "carries graphs for training"),
    "nested graphs": (model_of([nested(LIMIT_DEPTH + 2)], initializers=[CONDITION]).SerializeToString(), "nests"),
    "function that calls itself": (
        model_of([node("F", ["x"], ["y"], domain="own")], functions=CALLS_ITSELF, imports=[OWN]).SerializeToString(), "calls itself"),
    "functions that unfold": (
        model_of([node("F0", ["x"], ["y"], domain="own")], functions=UNFOLDS, imports=[OWN]).SerializeToString(), "unfolds to"),
    "tensor without its bytes": (model_of([ADD], initializers=[tensor([1000, 1000])]).SerializeToString(), "need 4000000"),
    "tensor of half its bytes": (model_of([ADD], initializers=[tensor([2], bytes(4))]).SerializeToString(), "holds 4 bytes"),
    "tensor of too many bytes": (model_of([ADD], initializers=[tensor([1], bytes(8))]).SerializeToString(), "holds 8 bytes"),
    "tensor beyond all memory": (model_of([ADD], initializers=[tensor([1 << 40, 1 << 40])]).SerializeToString(), "declares"),
    "tensor that overflows": (model_of([ADD], initializers=[tensor([1 << 62, 4], b"")]).SerializeToString(), "declares"),
    "negative dimension": (model_of([ADD], initializers=[tensor([-2], bytes(8))]).SerializeToString(), "none can be negative"),
    "unknown element type": (model_of([ADD], initializers=[tensor([2], bytes(8), kind=99)]).SerializeToString(), "element type 99"),
    "huge shape": (model_of([node("ConstantOfShape", ["w"], ["y"])], initializers=[BIG_SHAPE]).SerializeToString(),
                   "the result of node 'the-ConstantOfShape' declares"),
    "huge constant shape": (
        model_of([node("Constant", [], ["w"], value=BIG_SHAPE), node("Expand", ["x", "w"], ["y"])]).SerializeToString(), "declares"),
    "huge random": (model_of([node("RandomNormal", [], ["y"], shape=[1 << 20, 1 << 20])]).SerializeToString(), "declares"),
    "huge input": (
        model_of([node("Neg", ["x"], ["y"])], inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1 << 40])])
        .SerializeToString(), "value 'x' declares"),
    "absolute external data": (model_of([ADD], initializers=[external("/etc/passwd")]).SerializeToString(), "in another file, '/etc"),
    "external data beside": (model_of([ADD], initializers=[external("weights")]).SerializeToString(), "in another file, 'weights'"),
    "external data in an attribute": (
        model_of([node("Constant", [], ["w"], value=external("weights")), ADD]).SerializeToString(), "in another file, 'weights'"),
    "attribute missing": (model_of([node("Cast", ["x"], ["y"])]).SerializeToString(), "refused by the ONNX checker"),
    "fixed batch": (spoilt(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1)), "has the shape [1, 4]"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(case: str) -> None:
    """Before anything runs, by a refusal that names the thing, its value, the limit and what to do."""
    data, reason = HOSTILE[case]
    with pytest.raises(BadModel) as caught:
        check_onnx_bytes(data)
    assert reason in str(caught.value)
    assert all((caught.value.thing, caught.value.value, caught.value.limit, caught.value.advice))


def test_a_file_cut_off_anywhere_is_refused() -> None:
    """Protobuf has no end mark: a prefix may parse, and is missed by what it lacks."""
    for length in range(0, len(GOOD), 7):
        with pytest.raises(BadModel):
            check_onnx_bytes(GOOD[:length])


def test_a_good_file_says_what_it_is(tmp_path: Path) -> None:
    """Inputs, outputs, opset and IR version of the classifier, from bytes or file alike."""
    (tmp_path / "m.onnx").write_bytes(GOOD)
    found = check_onnx(tmp_path / "m.onnx")
    assert found == check_onnx_bytes(GOOD)
    assert [(each.name, each.dtype, each.row_shape) for each in found.inputs] == [("X", "FP32", (4,))]
    assert [(each.name, each.dtype, each.row_shape) for each in found.outputs] == [("label", "INT64", ()), ("probabilities", "FP32", (3,))]
    assert (found.opset, found.ir_version) == (17, 8)


def test_a_branch_may_use_names_from_around_it() -> None:
    """A graph inside a node sees what was given before that node."""
    given = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "b", [], [given])
    check_onnx_bytes(
        model_of([node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], initializers=[CONDITION]).SerializeToString()
    )


def test_functions_of_the_file_are_operators() -> None:
    """PyTorch's exporter writes them; they are checked where they are defined."""
    double = helper.make_function("own", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])
    good = model_of([node("Double", ["x"], ["y"], domain="own")], functions=[double], imports=[OWN])
    assert check_onnx_bytes(good.SerializeToString()).opset == 17
    double.node[0].op_type = "Sqish"
    bad = model_of([node("Double", ["x"], ["y"], domain="own")], functions=[double], imports=[OWN])
    with pytest.raises(BadModel, match="Sqish"):
        check_onnx_bytes(bad.SerializeToString())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32", "uint64", "float16", "bool", "complex64", "str"])
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_that_hold_what_they_say_pass(dtype: str, *, raw: bool) -> None:
    """Every way to store elements is counted right: in raw bytes and in typed fields."""
    values = np.ones((3, 5)).astype(dtype) if dtype != "str" else np.full((3, 5), "a", dtype=object)
    made = numpy_helper.from_array(values, "w")
    if not raw and dtype != "str":
        made = helper.make_tensor("w", made.data_type, made.dims, values.ravel())
    check_onnx_bytes(model_of([node("Neg", ["x"], ["y"])], initializers=[made]).SerializeToString())


def lay(folder: Path, location: str, **entries: str) -> Path:
    path = folder / "model" / "m.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model_of([ADD], initializers=[external(location, **entries)]).SerializeToString())
    return path


def test_weights_beside_the_model_may_be_allowed(tmp_path: Path) -> None:
    """MLflow writes them so; export takes them in. Without that word they are refused."""
    path = lay(tmp_path, "weights", offset="4", length="8")
    (path.parent / "weights").write_bytes(bytes(12))
    assert check_onnx(path, weights_beside=True).opset == 17
    with pytest.raises(BadModel, match="in another file"):
        check_onnx(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "linked/secret", "missing", "", ".", "a/../../secret"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    """Neither absolute names nor `..` nor links lead out of the model's folder."""
    path = lay(tmp_path, location)
    (tmp_path / "secret").write_bytes(bytes(8))
    os.symlink(tmp_path / "secret", path.parent / "link")
    os.symlink(tmp_path, path.parent / "linked")
    with pytest.raises(BadModel, match="lies outside or is no plain file"):
        check_onnx(path, weights_beside=True)


@pytest.mark.parametrize("entries", [{"offset": "5"}, {"length": "4"}, {"offset": "-4"}, {"length": "9" * 30}, {"offset": "x"}])
def test_weights_that_are_not_all_there_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    """Offset and length must lie in the file, and agree with the dimensions."""
    path = lay(tmp_path, "weights", **entries)
    (path.parent / "weights").write_bytes(bytes(12))
    with pytest.raises(BadModel, match="its dimensions need 8 bytes"):
        check_onnx(path, weights_beside=True)


def loads(model: onnx.ModelProto) -> bool:
    onnxruntime.set_default_logger_severity(4)
    try:
        onnxruntime.InferenceSession(model.SerializeToString())
    except Exception:
        return False
    return True


def test_the_known_versions_are_those_of_the_server() -> None:
    """The pinned ONNX Runtime reads the newest opset and IR version that pass here, and not the next."""
    negation = [node("Neg", ["x"], ["y"])]
    newest, newest_ir = OPSETS[""][1], IR_VERSIONS[1]
    assert [loads(model_of(negation, opset=newest + step)) for step in (0, 1)] == [True, False]
    assert [loads(model_of(negation, ir_version=newest_ir + step)) for step in (0, 1)] == [True, False]
    learned = [node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml")]
    imports = [[helper.make_opsetid("ai.onnx.ml", OPSETS["ai.onnx.ml"][1] + step)] for step in (0, 1)]
    assert [loads(model_of(learned, imports=each)) for each in imports] == [True, False]


def test_the_contributed_operators_are_the_servers() -> None:
    """None is named that the pinned ONNX Runtime does not have."""
    schemas = onnxruntime_pybind11_state.get_all_operator_schema()
    assert {each.name for each in schemas if each.domain == "com.microsoft"} >= CONTRIBUTED


def test_flipped_bytes_never_crash() -> None:
    """Whatever is damaged, the answer is an outline or a refusal."""
    for place, value in itertools.product(range(0, len(GOOD), 5), (0, 0x7F, 0xFF)):
        damaged = bytearray(GOOD)
        damaged[place] = value
        with contextlib.suppress(BadModel):
            assert check_onnx_bytes(bytes(damaged)).outputs


@pytest.mark.parametrize("package", ["validation", "delivery"])
def test_onnx_runtime_reports_to_nobody(package: str, tmp_path: Path) -> None:
    """Its wheels tell their maker of each session, and keep an identity of the machine for it; not where our code loads them."""
    (tmp_path / "model.onnx").write_bytes(GOOD)
    home = tmp_path / "home"
    home.mkdir()
    program = f"import {package}, onnxruntime; onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])"
    environ = {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environ, cwd=tmp_path, check=True, timeout=60)
    assert list(home.rglob("*")) == []
