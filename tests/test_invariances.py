"""Invariances: models that look at their neighbours, at the clock or at the size of an axis are found without any reference."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from whole_findings import expected, in_full

from validation.bundle import Tensor
from validation.contract import Outcome
from validation.invariances import invariance_findings
from validation.onnx_model import OnnxModel
from validation.policy import GoldenSet, Metric

LIMITS = GoldenSet(
    min_rows=1, atol=1e-5, rtol=1e-5, rows_outside_permille=0, metrics=(Metric(name="accuracy", at_least=0.5, not_worse_than_stable=0.1),)
)
ROWS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
ALL = {"batch_of_one", "padded_batch", "row_order", "repeatable", "dynamic_axes"}


@pytest.fixture
def findings(tmp_path):
    """The findings about a graph from X [N, 4] to Y, by name."""

    def judge(*nodes, weights=(), rows=None, axes=("N", 4), dynamic=(), kind=TensorProto.FLOAT):
        graph = helper.make_graph(
            list(nodes),
            "case",
            [helper.make_tensor_value_info("X", kind, axes)],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", None])],
            [numpy_helper.from_array(np.array(value), name) for name, value in weights],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        tensors = (Tensor(name="X", dtype="FP32", shape=(4,), dynamic=dynamic),)
        inputs = {"X": ROWS if rows is None else rows}
        found = invariance_findings(OnnxModel(path), lambda: OnnxModel(path), inputs, LIMITS, tensors)
        return {each.name: each for each in found}

    return judge


def failed(found):
    return {name for name, each in found.items() if each.outcome is Outcome.FAILED}


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, **attributes)


def test_a_model_that_looks_at_each_row_alone_passes(findings):
    """Every claim is made and holds."""
    found = findings(node("Softmax", ["X"], ["Y"], axis=1))
    assert set(found) == ALL
    assert failed(found) == set()


def test_the_mean_of_the_batch_is_seen(findings):
    """Normalising over the batch makes a row depend on its neighbours, but not on their order."""
    mean = node("ReduceMean", ["X"], ["m"], axes=[0], keepdims=1)
    assert failed(findings(mean, node("Sub", ["X", "m"], ["Y"]))) == {"batch_of_one", "padded_batch"}


def test_a_running_sum_over_the_rows_is_seen(findings):
    """The first row is right alone and padding behind changes nothing; the order does."""
    found = findings(node("CumSum", ["X", "axis"], ["Y"]), weights=[("axis", np.int64(0))])
    assert failed(found) == {"batch_of_one", "row_order"}


def test_a_choice_by_batch_size_is_seen(findings):
    """An answer that depends on how many rows came is none to serve: Triton decides how many come."""
    nodes = [
        node("Shape", ["X"], ["s"], start=0, end=1),
        node("Greater", ["s", "limit"], ["many"]),
        node("Cast", ["many"], ["f"], to=TensorProto.FLOAT),
    ]
    found = findings(*nodes, node("Add", ["X", "f"], ["Y"]), weights=[("limit", np.array([20], np.int64))])
    assert failed(found) == {"padded_batch"}


def test_empty_rows_behind_the_others_are_seen(findings):
    """A model that normalises by the smallest size in the batch is right with copies and wrong with an empty row."""
    nodes = [
        node("ReduceL1", ["X"], ["size"], axes=[1], keepdims=1),
        node("ReduceMin", ["size"], ["least"], axes=[0, 1], keepdims=1),
        node("Greater", ["least", "zero"], ["full"]),
        node("Cast", ["full"], ["f"], to=TensorProto.FLOAT),
    ]
    found = findings(*nodes, node("Add", ["X", "f"], ["Y"]), weights=[("zero", np.float32(0))])
    assert failed(found) == {"padded_batch"}
    assert "empty rows stand behind it" in found["padded_batch"].why


def test_empty_rows_that_the_model_refuses_are_left_out(findings):
    """A table of known values need not know zero; only rows that can be asked are laid behind others."""
    nodes = [
        node("Sub", ["X", "ten"], ["shifted"]),
        node("Cast", ["shifted"], ["place"], to=TensorProto.INT64),
        node("Gather", ["table", "place"], ["Y"]),
    ]
    weights = [("ten", np.float32(10)), ("table", np.arange(5, dtype=np.float32))]
    rows = np.random.default_rng(0).integers(10, 15, (16, 4)).astype(np.float32)
    assert failed(findings(*nodes, weights=weights, rows=rows)) == set()


def test_chance_is_seen(findings):
    """The same input twice must give the same bits."""
    nodes = [node("RandomUniformLike", ["X"], ["noise"], high=1e-7), node("Add", ["X", "noise"], ["Y"])]
    assert failed(findings(*nodes)) == {"repeatable"}


def test_a_batch_size_of_its_own_is_seen(findings):
    """A graph with a fixed number of rows inside does not answer others."""
    found = findings(node("Reshape", ["X", "to"], ["Y"]), weights=[("to", np.array([16, 4], np.int64))])
    assert failed(found) == {"batch_of_one", "padded_batch"}
    assert "not answered" in found["batch_of_one"].why


def test_a_model_that_answers_no_batch_says_so(findings):
    """What cannot be asked cannot be compared: one failed finding, no guesses."""
    found = findings(node("Reshape", ["X", "to"], ["Y"]), weights=[("to", np.array([1, 4], np.int64))])
    assert set(found) == failed(found) == {"batch_of_one"}


def test_an_open_axis_is_tried_at_one_half_and_all(findings):
    """A mean over the open axis works at every size; the finding names the sizes."""
    found = findings(node("ReduceMean", ["X"], ["Y"], axes=[1], keepdims=1), axes=("N", "length"), dynamic=(0,))
    assert failed(found) == set()
    assert found["dynamic_axes"].why.endswith("length at 1, length at 2, length at 4")


def test_an_axis_that_is_open_in_name_only_fails(findings):
    """Weights of a fixed size behind an open axis: the signature promises what the model does not keep."""
    product = node("MatMul", ["X", "W"], ["Y"])
    found = findings(product, weights=[("W", np.ones((4, 2), np.float32))], axes=("N", None), dynamic=(0,))
    assert failed(found) == {"dynamic_axes"}
    assert "with the open axis X[1] at 1" in found["dynamic_axes"].why


def test_nan_at_another_size_fails(findings):
    """A spread over one value is no number."""
    nodes = [
        node("ReduceSum", ["X", "axes"], ["sum"], keepdims=1),
        node("Shape", ["X"], ["s"], start=1, end=2),
        node("Cast", ["s"], ["n"], to=TensorProto.FLOAT),
        node("Sub", ["n", "one"], ["rest"]),
        node("Div", ["sum", "rest"], ["Y"]),
    ]
    weights = [("axes", np.array([1], np.int64)), ("one", np.array([1], np.float32))]
    found = findings(*nodes, weights=weights, axes=("N", "length"), dynamic=(0,))
    assert "length at 1: NaN or infinity in Y" in found["dynamic_axes"].why


# What a finding says


@pytest.fixture
def whole(findings):
    """The findings by case."""
    length = {"axes": ("N", "length"), "dynamic": (0,)}
    ones = {"weights": [("W", np.ones((4, 2), np.float32))], "axes": ("N", None), "dynamic": (0,)}
    cases = {
        "each row alone": lambda: findings(node("Softmax", ["X"], ["Y"], axis=1)),
        "the mean of the batch": lambda: findings(node("ReduceMean", ["X"], ["m"], axes=[0], keepdims=1), node("Sub", ["X", "m"], ["Y"])),
        "a running sum": lambda: findings(node("CumSum", ["X", "axis"], ["Y"]), weights=[("axis", np.int64(0))]),
        "noise": lambda: findings(node("RandomUniformLike", ["X"], ["noise"], high=1e-7), node("Add", ["X", "noise"], ["Y"])),
        "an open axis": lambda: findings(node("ReduceMean", ["X"], ["Y"], axes=[1], keepdims=1), **length),
        "an axis open in name": lambda: findings(node("MatMul", ["X", "W"], ["Y"]), **ones),
    }
    return lambda case: cases[case]().values()


@pytest.mark.parametrize("case", ["each row alone", "the mean of the batch", "a running sum", "noise", "an open axis"])
def test_the_findings_are_whole(whole, case):
    """Each with its words, and with how many rows were asked."""
    assert in_full(whole(case)) == expected("invariances", case)


@pytest.mark.parametrize("case", ["an axis open in name"])
def test_advice_on_an_open_axis_is_whole(whole, case):
    """What to do about an axis that the model does not keep open; the runtime's own words are not ours to fix."""
    found = in_full(whole(case))[-1]
    assert found.pop("why").startswith("with the open axis X[1] at 1: ")
    assert found == {"name": "dynamic_axes", "outcome": "failed", "advice": "fix the axis when exporting, or mend the model"}
