"""Cases about the exported model: files that do not load, models that do not answer, answers that are not the source model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from conformance.cases import case
from conformance.material import Material, graph_model
from made_bundles import CLASSES, SIZE, answers, classifier, weights
from onnx import TensorProto, helper, numpy_helper

LOADS, PARITY, COMPANY = "Models that do not load or answer", "Answers that are not the source model's", "Answers that depend on company"
X = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", SIZE])
LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
PROBABILITIES = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])
Model = Callable[[], bytes]


def model_case(group: str, id: str, wrong: str, answer: str, model: Model) -> None:  # noqa: A002
    def spoil(material: Material) -> None:
        material.model = model()

    case(group, id, wrong, answer)(spoil)


def graph(
    *nodes: Any, inputs: list[Any] | None = None, outputs: list[Any] | None = None, weights_: list[Any] | None = None, **more: Any
) -> Model:
    """A model with the healthy one's weights and form unless said otherwise."""
    given = [numpy_helper.from_array(weights(), "W"), *(weights_ or [])]
    return lambda: graph_model(list(nodes), inputs or [X], outputs or [LABEL, PROBABILITIES], given, **more)


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, **attributes)


SCORES = node("MatMul", ["X", "W"], ["scores"])
SHARES = node("Softmax", ["scores"], ["probabilities"], axis=1)
BEST = node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0)
HEALTHY = (SCORES, SHARES, BEST)


def adapted(scores: Any, *more: Any, weights_: list[Any] | None = None) -> Model:
    """The healthy model with something else (`scores`) made of its raw scores."""
    return graph(node("MatMul", ["X", "W"], ["raw"]), *more, scores, SHARES, BEST, weights_=weights_)


def constant(name: str, value: Any) -> Any:
    return numpy_helper.from_array(np.asarray(value), name)


# Models that do not load or answer

model_case(LOADS, "model-empty", "the model is an empty file", "failed: loads", lambda: b"")
model_case(LOADS, "model-noise", "the model is noise", "failed: loads", lambda: bytes(range(256)) * 40)
model_case(LOADS, "model-half", "the model's protobuf is cut off", "failed: loads", lambda: classifier(weights())[:-40])
model_case(LOADS, "model-no-graph", "the model holds no graph", "failed: loads", lambda: onnx.ModelProto(ir_version=8).SerializeToString())
model_case(
    LOADS,
    "operator-unknown",
    "the model has an operator that does not exist",
    "failed: loads",
    graph(node("Enchant", ["X"], ["raw"]), *HEALTHY),
)
model_case(
    LOADS,
    "domain-unknown",
    "an operator comes from a domain that nobody knows",
    "failed: loads",
    graph(
        node("MatMul", ["X", "W"], ["raw"], domain="evil.example"),
        *HEALTHY,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("evil.example", 1)],
    ),
)
model_case(
    LOADS,
    "opset-future",
    "the model needs operators of a future version",
    "failed: loads",
    graph(*HEALTHY, opset_imports=[helper.make_opsetid("", 999)]),
)
model_case(
    LOADS,
    "cycle",
    "the graph runs in a circle",
    "failed: loads",
    graph(node("Add", ["X", "b"], ["a"]), node("Add", ["a", "X"], ["b"]), *HEALTHY),
)
model_case(
    LOADS,
    "value-unknown",
    "an operator takes a value that nothing makes",
    "failed: loads",
    graph(node("MatMul", ["ghost", "W"], ["scores"]), SHARES, BEST),
)
model_case(LOADS, "value-twice", "two operators make the same value", "failed: loads", graph(SCORES, SCORES, SHARES, BEST))
model_case(LOADS, "output-unmade", "nothing makes an output", "failed: loads", graph(SCORES, BEST))
model_case(
    LOADS,
    "weight-short",
    "a weight says that it is larger than it is",
    "failed: loads",
    lambda: graph_model(
        list(HEALTHY), [X], [LABEL, PROBABILITIES], [TensorProto(name="W", data_type=1, dims=[SIZE, CLASSES], raw_data=b"1234")]
    ),
)
model_case(
    LOADS,
    "weight-absurd",
    "a weight says that it has 10^15 numbers and holds none",
    "failed: loads",
    lambda: graph_model(list(HEALTHY), [X], [LABEL, PROBABILITIES], [TensorProto(name="W", data_type=1, dims=[10**8, 10**7])]),
)
model_case(
    LOADS,
    "input-other-name",
    "the model takes an input of another name",
    "failed: answers",
    graph(node("MatMul", ["Z", "W"], ["scores"]), SHARES, BEST, inputs=[helper.make_tensor_value_info("Z", 1, ["N", SIZE])]),
)
model_case(
    LOADS,
    "input-more",
    "the model takes an input that the golden set does not have",
    "failed: answers",
    graph(
        node("Add", ["X", "Z"], ["sum"]),
        node("MatMul", ["sum", "W"], ["scores"]),
        SHARES,
        BEST,
        inputs=[X, helper.make_tensor_value_info("Z", 1, ["N", SIZE])],
    ),
)
model_case(
    LOADS,
    "input-other-type",
    "the model takes whole numbers where the golden set has fractions",
    "failed: answers",
    graph(
        node("Cast", ["X"], ["f"], to=1),
        node("MatMul", ["f", "W"], ["scores"]),
        SHARES,
        BEST,
        inputs=[helper.make_tensor_value_info("X", TensorProto.INT64, ["N", SIZE])],
    ),
)
model_case(
    LOADS,
    "batch-fixed",
    "the model takes one row at a time only",
    "failed: loads",
    graph(
        *HEALTHY,
        inputs=[helper.make_tensor_value_info("X", 1, [1, SIZE])],
        outputs=[helper.make_tensor_value_info("label", 7, [1]), helper.make_tensor_value_info("probabilities", 1, [1, CLASSES])],
    ),
)
model_case(
    LOADS,
    "features-fixed",
    "the model takes rows of five numbers",
    "failed: answers",
    graph(
        node("Slice", ["X", "zero", "four", "one"], ["part"]),
        node("MatMul", ["part", "W"], ["scores"]),
        SHARES,
        BEST,
        inputs=[helper.make_tensor_value_info("X", 1, ["N", SIZE + 1])],
        weights_=[constant("zero", np.array([0])), constant("four", np.array([SIZE])), constant("one", np.array([1]))],
    ),
)
model_case(
    LOADS,
    "answers-list",
    "the model answers a list of maps, not a tensor",
    "failed: loads",
    graph(
        SCORES,
        BEST,
        SHARES,
        node("ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        outputs=[
            LABEL,
            helper.make_value_info(
                "maps", helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])))
            ),
        ],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
    ),
)
model_case(
    LOADS,
    "answers-one-row",
    "the model answers one row for the whole batch",
    "failed: answers",
    graph(SCORES, BEST, node("ReduceMean", ["scores"], ["probabilities"], axes=[0], keepdims=1)),
)
model_case(
    LOADS,
    "answers-turned",
    "the model's rows stand in columns",
    "failed: loads",
    graph(
        SCORES,
        BEST,
        node("Transpose", ["scores"], ["probabilities"], perm=[1, 0]),
        outputs=[LABEL, helper.make_tensor_value_info("probabilities", 1, [CLASSES, "N"])],
    ),
)
model_case(
    LOADS,
    "answers-huge",
    "the model's answer to a row takes gigabytes",
    "failed: loads",
    graph(
        SCORES,
        BEST,
        node("Unsqueeze", ["scores", "two"], ["tall"]),
        node("Expand", ["tall", "size"], ["probabilities"]),
        weights_=[constant("two", np.array([2])), constant("size", np.array([1, CLASSES, 10**9]))],
        outputs=[LABEL, helper.make_tensor_value_info("probabilities", 1, ["N", CLASSES, 10**9])],
    ),
)


# Answers that are not the source model's


def outputs_case(id: str, wrong: str, answer: str, change: Callable[[dict[str, np.ndarray]], Any]) -> None:  # noqa: A002
    """Changes what the source model answered; the exported model stays as it is."""

    def spoil(material: Material) -> None:
        material.reference = {name: values.copy() for name, values in material.reference.items()}
        change(material.reference)

    case(PARITY, id, wrong, answer)(spoil)


def _cells(output: str, value: Any, rows: int = 1) -> Callable[[dict[str, np.ndarray]], Any]:
    def change(outputs: dict[str, np.ndarray]) -> None:
        outputs[output][:rows, ...] = value

    return change


def _moved(by: float, rows: int) -> Callable[[dict[str, np.ndarray]], Any]:
    def change(outputs: dict[str, np.ndarray]) -> None:
        outputs["probabilities"][:rows] += by

    return change


model_case(
    PARITY, "output-missing", "an output of the source model is missing", "failed: output_names", graph(SCORES, BEST, outputs=[LABEL])
)
model_case(
    PARITY,
    "output-extra",
    "the export has an output that nothing is compared with",
    "failed: output_names",
    lambda: classifier(
        weights(), nodes=[node("Identity", ["scores"], ["extra"])], outputs=[helper.make_tensor_value_info("extra", 1, ["N", CLASSES])]
    ),
)
model_case(
    PARITY,
    "output-renamed",
    "an output has another name than in the source model",
    "failed: output_names",
    graph(SCORES, BEST, node("Softmax", ["scores"], ["p"], axis=1), outputs=[LABEL, helper.make_tensor_value_info("p", 1, ["N", CLASSES])]),
)
outputs_case(
    "reference-missing", "the source model's answers lack an output", "failed: output_names", lambda outputs: outputs.pop("probabilities")
)
outputs_case(
    "reference-extra",
    "the source model has an output that the export lost",
    "failed: output_names",
    lambda outputs: outputs.update(more=outputs["label"]),
)
outputs_case("reference-none", "the source model answered nothing", "failed: output_names", lambda outputs: outputs.clear())
model_case(
    PARITY,
    "output-wider",
    "probabilities are float64 where the source model has float32",
    "failed: output_dtypes",
    graph(
        SCORES,
        BEST,
        node("Softmax", ["scores"], ["p"], axis=1),
        node("Cast", ["p"], ["probabilities"], to=11),
        outputs=[LABEL, helper.make_tensor_value_info("probabilities", 11, ["N", CLASSES])],
    ),
)
model_case(
    PARITY,
    "label-narrower",
    "labels are int32 where callers expect int64",
    "failed: output_dtypes",
    graph(
        SCORES,
        SHARES,
        node("ArgMax", ["scores"], ["l"], axis=1, keepdims=0),
        node("Cast", ["l"], ["label"], to=6),
        outputs=[helper.make_tensor_value_info("label", 6, ["N"]), PROBABILITIES],
    ),
)
model_case(
    PARITY,
    "label-words",
    "labels are words where the source model has numbers",
    "failed: output_dtypes",
    graph(
        SCORES,
        SHARES,
        node("ArgMax", ["scores"], ["l"], axis=1, keepdims=0),
        node("Cast", ["l"], ["label"], to=8),
        outputs=[helper.make_tensor_value_info("label", 8, ["N"]), PROBABILITIES],
    ),
)
model_case(
    PARITY,
    "output-kept-axis",
    "labels have an axis more than the source model's",
    "failed: output_shapes",
    graph(
        SCORES,
        SHARES,
        node("ArgMax", ["scores"], ["label"], axis=1, keepdims=1),
        outputs=[helper.make_tensor_value_info("label", 7, ["N", 1]), PROBABILITIES],
    ),
)
model_case(
    PARITY,
    "classes-fewer",
    "the export knows one class fewer",
    "failed: output_shapes",
    graph(
        SCORES,
        BEST,
        node("Slice", ["scores", "zero", "two", "one"], ["s"]),
        node("Softmax", ["s"], ["probabilities"], axis=1),
        weights_=[constant("zero", np.array([0])), constant("two", np.array([2])), constant("one", np.array([1]))],
        outputs=[LABEL, helper.make_tensor_value_info("probabilities", 1, ["N", 2])],
    ),
)


@case(PARITY, "signature-other-output", "the signature names an output that neither model has", "failed: output_names")
def _signature_output(material: Material) -> None:
    material.set_signature(
        "outputs", [{"name": "label", "dtype": "INT64", "shape": [1]}, {"name": "odds", "dtype": "FP32", "shape": [CLASSES]}]
    )


@case(PARITY, "signature-other-type", "the signature promises callers another type than both models answer", "failed: output_dtypes")
def _signature_type(material: Material) -> None:
    material.set_signature(
        "outputs", [{"name": "label", "dtype": "INT32", "shape": [1]}, {"name": "probabilities", "dtype": "FP32", "shape": [CLASSES]}]
    )


@case(PARITY, "signature-other-shape", "the signature promises callers another shape than both models answer", "failed: output_shapes")
def _signature_shape(material: Material) -> None:
    material.set_signature(
        "outputs", [{"name": "label", "dtype": "INT64", "shape": [1]}, {"name": "probabilities", "dtype": "FP32", "shape": [CLASSES + 1]}]
    )


outputs_case(
    "source-nan", "the source model answers NaN in one row and the export a number", "failed: finite", _cells("probabilities", np.nan)
)
outputs_case("source-infinite", "the source model answers infinity in one row", "failed: finite", _cells("probabilities", np.inf))
outputs_case("source-all-nan", "the source model answers NaN in every row", "failed: finite", _cells("probabilities", np.nan, rows=1000))


def _with_cell(value: float) -> Model:
    """The export's answers hold `value` where the first number is at least 2.5 (a handful of rows)."""
    return adapted(
        node("Where", ["big", "bad", "raw"], ["scores"]),
        node("Gather", ["X", "first"], ["column"], axis=1),
        node("Greater", ["column", "edge"], ["big"]),
        weights_=[constant("first", np.array([0])), constant("edge", np.float32(2.5)), constant("bad", np.float32(value))],
    )


model_case(PARITY, "export-nan", "the export answers NaN on a few rows", "failed: finite", _with_cell(np.nan))
model_case(PARITY, "export-infinite", "the export's scores run to infinity on a few rows", "failed: finite", _with_cell(np.inf))


@case(PARITY, "both-nan", "export and source model answer NaN on the same rows: alike, and worth nothing", "failed: finite")
def _both_nan(material: Material) -> None:
    material.model = _with_cell(np.nan)()
    bad = material.inputs["X"][:, 0] > 2.5
    material.reference["probabilities"][bad] = np.nan


outputs_case("rows-outside", "two rows of 1,000 differ; one is allowed", "failed: parity_rows", _moved(0.01, rows=2))
outputs_case("rows-outside-all", "every row differs by ten times the tolerance", "failed: parity_rows", _moved(0.011, rows=1000))
outputs_case("rows-outside-one", "one row of 1,000 differs, as the policy allows", "passed: parity_rows", _moved(0.01, rows=1))
outputs_case("rows-within", "every row differs by half the tolerance", "passed: parity_rows", _moved(0.00005, rows=1000))
outputs_case(
    "rows-shifted",
    "the source model's answers are those of the rows before",
    "failed: parity_rows",
    lambda outputs: outputs.update({name: np.roll(values, 1, axis=0) for name, values in outputs.items()}),
)
outputs_case(
    "label-flips",
    "probabilities agree and the labels of ten rows do not",
    "failed: label_flips",
    lambda outputs: outputs["label"].__setitem__(slice(10), (outputs["label"][:10] + 1) % CLASSES),
)
model_case(
    PARITY,
    "weights-rounded",
    "the export's weights are rounded to one digit",
    "failed: parity_rows",
    lambda: classifier(weights().round(1)),
)
model_case(PARITY, "weights-others", "the export is another model", "failed: parity_rows", lambda: classifier(weights(seed=7)))
model_case(
    PARITY,
    "features-swapped",
    "the export takes two features in the other order",
    "failed: parity_rows",
    lambda: classifier(weights()[[1, 0, 2, 3]]),
)
model_case(
    PARITY,
    "classes-swapped",
    "the export's classes stand in another order",
    "failed: label_flips",
    lambda: classifier(weights()[:, [1, 0, 2]]),
)
model_case(
    PARITY,
    "scores-raw",
    "the export answers scores where the source model answers probabilities",
    "failed: parity_rows",
    graph(SCORES, BEST, node("Identity", ["scores"], ["probabilities"])),
)
model_case(
    PARITY,
    "answers-constant",
    "the export answers the same for every row",
    "failed: label_flips",
    lambda: classifier(np.zeros_like(weights())),
)
model_case(
    PARITY,
    "answers-float16",
    "the export computes in float16 and misses the tolerance",
    "failed: parity_rows",
    adapted(node("Cast", ["half"], ["scores"], to=1), node("Cast", ["raw"], ["half"], to=10)),
)


@case(PARITY, "tolerance-own", "one output has a narrower tolerance of its own, and leaves it", "failed: parity_rows[probabilities]")
def _tolerance(material: Material) -> None:
    material.reference["probabilities"] = material.reference["probabilities"] + np.float32(0.00005)
    material.limits["tolerances"] = [{"output": "probabilities", "atol": 1e-6, "rtol": 0.0, "rows_outside_permille": 0}]


@case(
    PARITY, "tolerance-for-nothing", "the policy gives tolerances for an output that the model does not have", "failed: parity_rows[odds]"
)
def _tolerance_nothing(material: Material) -> None:
    material.limits["tolerances"] = [{"output": "odds", "atol": 1e-6, "rtol": 0.0, "rows_outside_permille": 0}]


@case(PARITY, "narrow-float16", "serving narrows to float16, and a feature goes to 100,000", "failed: narrowed_float16")
def _narrow(material: Material) -> None:
    material.limits["narrowed_to"] = ["float16"]
    material.inputs["X"][5] = 1e5
    material.reference = answers(material.inputs["X"], weights())


@case(PARITY, "narrow-int8", "serving narrows to int8, and a feature goes to 200", "failed: narrowed_int8")
def _narrow_int8(material: Material) -> None:
    material.limits["narrowed_to"] = ["int8"]
    material.inputs["X"][5] = 200
    material.reference = answers(material.inputs["X"], weights())


@case(PARITY, "edges-differ", "at the edges of the features' ranges the source model answers something else", "failed: feature_extremes")
def _edges(material: Material) -> None:
    material.probes, found = material.own_probes()
    material.probes_reference = {name: np.roll(values, 1, axis=0) for name, values in found.items()}


@case(PARITY, "edges-nan", "at the edges of the features' ranges the source model answers NaN", "failed: feature_extremes")
def _edges_nan(material: Material) -> None:
    material.probes, material.probes_reference = material.own_probes()
    material.probes_reference["probabilities"][:] = np.nan


@case(PARITY, "edges-output-missing", "on the probes the source model's answers lack an output", "failed: feature_extremes")
def _edges_missing(material: Material) -> None:
    material.probes, material.probes_reference = material.own_probes()
    del material.probes_reference["label"]


@case(PARITY, "edges-unknown", "the bundle has no probes: nothing is known of the edges", "inconclusive: feature_extremes")
def _edges_unknown(material: Material) -> None:
    material.without_probes = True


# Answers that depend on company


def company_case(id: str, wrong: str, answer: str, model: Model) -> None:  # noqa: A002
    """The source model's answers are what this model says to all golden rows at once: parity holds."""

    def spoil(material: Material) -> None:
        material.model = model()
        material.answers_as_the_model()

    case(COMPANY, id, wrong, answer)(spoil)


company_case(
    "company-mean",
    "a row's scores are taken relative to the batch's mean",
    "failed: batch_of_one",
    adapted(node("Sub", ["raw", "mean"], ["scores"]), node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1)),
)
company_case(
    "company-greatest",
    "a row's scores are divided by the batch's greatest",
    "failed: batch_of_one",
    adapted(node("Div", ["raw", "top"], ["scores"]), node("ReduceMax", ["raw"], ["top"], axes=[0], keepdims=1)),
)
company_case(
    "company-place",
    "a row's answer depends on its place in the batch",
    "failed: row_order",
    adapted(
        node("Add", ["raw", "sum"], ["scores"]),
        node("CumSum", ["raw", "axis"], ["sum"]),
        weights_=[constant("axis", np.int64(0))],
    ),
)
company_case(
    "company-first",
    "every row gets what the first row's features add",
    "failed: batch_of_one",
    adapted(
        node("Add", ["raw", "head"], ["scores"]),
        node("Slice", ["raw", "zero", "one", "zero"], ["head"]),
        weights_=[constant("zero", np.array([0])), constant("one", np.array([1]))],
    ),
)
company_case(
    "company-chance",
    "the answer is drawn by chance",
    "failed: repeatable",
    adapted(node("Add", ["raw", "noise"], ["scores"]), node("RandomNormalLike", ["raw"], ["noise"], scale=1e-6)),
)
company_case(
    "company-size",
    "the answer depends on the number of rows",
    "failed: batch_of_one",
    adapted(
        node("Mul", ["raw", "count"], ["scores"]), node("Shape", ["X"], ["shape"], start=0, end=1), node("Cast", ["shape"], ["count"], to=1)
    ),
)
