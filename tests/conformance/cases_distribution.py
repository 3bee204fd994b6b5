"""Cases about the distribution of answers and golden rows, for the gate `distribution`."""

from __future__ import annotations

from typing import Any

import numpy as np
from conformance.cases import case
from conformance.cases_files import with_manifest
from conformance.cases_model import BEST, SCORES, SHARES, constant, graph, node
from conformance.material import Material, baselines
from made_bundles import answers, classifier, weights

ANSWERS, BESIDE, TABLE = "The answers' distribution", "The answers beside stable's and the source model's", "The golden set as a table"


def distribution_case(group: str, id: str, wrong: str, answer: str) -> Any:  # noqa: A002
    return case(group, id, wrong, answer, gate="distribution")


@distribution_case("Nothing wrong", "distribution-healthy", "nothing", "passed: from_source")
def _healthy(material: Material) -> None:
    material.stable = material.twin()


# The answers by themselves


def model_becomes(material: Material, matrix: np.ndarray) -> None:
    """Export and source model are both another model, which its own baseline describes."""
    material.model, material.reference = classifier(matrix), answers(material.inputs["X"], matrix)
    material.manifest["baselines"] = baselines(material.inputs, material.reference)


@distribution_case(ANSWERS, "answers-one-class", "the model says one class on nearly every row", "failed: label_majority_share")
def _one_class(material: Material) -> None:
    bias = np.array([0.0, 5.0, 0.0], dtype=np.float32)
    material.model = graph(
        node("MatMul", ["X", "W"], ["raw"]), node("Add", ["raw", "bias"], ["scores"]), SHARES, BEST, weights_=[constant("bias", bias)]
    )()


@distribution_case(ANSWERS, "answers-no-entropy", "the answers' entropy is below the policy's", "failed: label_entropy_bits")
def _entropy(material: Material) -> None:
    material.limits["entropy_bits"] = 1.59


@distribution_case(ANSWERS, "outputs-constant", "every row gets the same probabilities", "failed: constant_outputs")
def _constant(material: Material) -> None:
    model_becomes(material, np.zeros_like(weights()))


@distribution_case(ANSWERS, "outputs-one-constant", "one of the probabilities never changes", "failed: constant_outputs")
def _one_constant(material: Material) -> None:
    mask = np.array([0.0, 1.0, 1.0], dtype=np.float32)
    material.model = graph(SCORES, BEST, node("Mul", ["scores", "mask"], ["probabilities"]), weights_=[constant("mask", mask)])()


@distribution_case(ANSWERS, "outputs-nan", "the model answers NaN", "failed: finite")
def _nan(material: Material) -> None:
    matrix = weights()
    matrix[0, 0] = np.nan
    material.model = classifier(matrix)


@distribution_case(
    ANSWERS, "outputs-out-of-range", "scores leave the range that the policy gives probabilities", "failed: probabilities_range"
)
def _range(material: Material) -> None:
    material.model = graph(SCORES, BEST, node("Identity", ["scores"], ["probabilities"]))()
    material.limits["ranges"] = [{"column": "probabilities", "low": 0.0, "high": 1.0}]


@distribution_case(ANSWERS, "range-of-nothing", "the policy gives a range to a column that nobody has", "inconclusive: odds_range")
def _range_of_nothing(material: Material) -> None:
    material.limits["ranges"] = [{"column": "odds", "low": 0.0, "high": 1.0}]


@distribution_case(ANSWERS, "distribution-no-model", "the model does not load", "failed: loads")
def _no_model(material: Material) -> None:
    material.model = b"nothing"


@distribution_case(ANSWERS, "distribution-few-rows", "ten rows are no distribution", "inconclusive: golden_rows")
def _few_rows(material: Material) -> None:
    material.resize(10)


@distribution_case(ANSWERS, "distribution-no-rows", "the golden set is empty", "inconclusive: golden_rows")
def _no_rows(material: Material) -> None:
    material.resize(0)


@distribution_case(ANSWERS, "distribution-policy-key", "a limit is misspelt", "exit 64")
def _misspelt(material: Material) -> None:
    material.limits["sigma"] = 2.0


@distribution_case(ANSWERS, "distribution-policy-missing", "a limit is missing", "exit 64")
def _missing(material: Material) -> None:
    del material.limits["psi"]


@distribution_case(ANSWERS, "distribution-policy-share", "the majority may have all rows", "exit 64")
def _share(material: Material) -> None:
    material.limits["majority_share"] = 1.0


# Beside others


@distribution_case(
    BESIDE, "stable-answers-otherwise", "the answers' shares are far from stable's on the same rows", "failed: stable_label_psi"
)
def _from_stable(material: Material) -> None:
    material.stable = material.twin()
    material.stable.model = _leaning(4.0)


def _leaning(by: float) -> bytes:
    """The healthy model with one class favoured."""
    bias = constant("bias", np.array([0.0, by, 0.0], dtype=np.float32))
    return graph(node("MatMul", ["X", "W"], ["raw"]), node("Add", ["raw", "bias"], ["scores"]), SHARES, BEST, weights_=[bias])()


@distribution_case(BESIDE, "stable-does-not-answer", "stable takes another input: nothing can be compared", "inconclusive: from_stable")
def _stable_other_input(material: Material) -> None:
    material.stable = material.twin()
    material.stable.model = classifier(weights()).replace(b"\x01X", b"\x01Z")


@distribution_case(BESIDE, "stable-with-more", "stable has an output that the candidate lost", "failed: stable_extra[0]_sketch")
def _stable_with_more(material: Material) -> None:
    import onnx

    material.stable = material.twin()
    outputs = [onnx.helper.make_tensor_value_info("extra", 1, ["N", 3])]
    material.stable.model = classifier(weights(), nodes=[node("Identity", ["scores"], ["extra"])], outputs=outputs)


@distribution_case(BESIDE, "stable-bundle-changed", "stable's bundle has another digest than the spec says", "exit 64")
def _stable_changed(material: Material) -> None:
    material.stable = material.twin()
    material.stable.digest = "0" * 64


@distribution_case(
    BESIDE, "source-answers-otherwise", "the answers are far from the source model's, by the stored sketch", "failed: source_label_psi"
)
def _from_source(material: Material) -> None:
    material.model = _leaning(4.0)


@distribution_case(BESIDE, "baseline-missing", "the bundle has no sketch of the source model's answers", "inconclusive: from_source")
def _no_baseline(material: Material) -> None:
    material.manifest["baselines"] = {"inputs": material.manifest["baselines"]["inputs"]}


@distribution_case(BESIDE, "baseline-unreadable", "the sketch of the source model's answers is no sketch", "inconclusive: from_source")
def _bad_baseline(material: Material) -> None:
    material.manifest["baselines"] = {**material.manifest["baselines"], "outputs": {"label": {"kind": "rumour"}}}


@distribution_case(BESIDE, "baseline-counts-negative", "the sketch of the answers counts -1 rows", "inconclusive: from_source")
def _negative(material: Material) -> None:
    def change(row: dict[str, Any]) -> None:
        next(iter(row["baselines"]["outputs"].values()))["rows"] = -1

    material.repack = with_manifest(change)


@distribution_case(BESIDE, "inputs-not-those", "the stored sketch is of other golden rows", "failed: from_inputs")
def _other_rows(material: Material) -> None:
    moved = {"X": material.inputs["X"] + np.float32(3)}
    material.manifest["baselines"] = baselines(moved, material.reference)


@distribution_case(BESIDE, "inputs-sketch-missing", "the bundle has no sketch of its golden rows", "inconclusive: from_inputs")
def _no_inputs(material: Material) -> None:
    material.manifest["baselines"] = {"outputs": material.manifest["baselines"]["outputs"]}


@distribution_case(
    BESIDE, "inputs-missing-values", "90 % of a feature are missing, and were not when the sketch was made", "failed: from_inputs"
)
def _missing_values(material: Material) -> None:
    material.inputs["X"][: len(material.labels) * 9 // 10, 2] = np.nan


# As a table


def own(material: Material, kind: str, **arguments: Any) -> None:
    """The user's own suite with one expectation."""
    material.limits["expectations"] = "irises.json"
    material.limits["suite"] = {"expectations": [{"type": kind, "kwargs": arguments}]}


@distribution_case(TABLE, "own-not-met", "a feature leaves the range of the user's own suite", "failed: own_1")
def _own(material: Material) -> None:
    own(material, "expect_column_values_to_be_between", column="X[0]", min_value=0, max_value=1)


@distribution_case(TABLE, "own-unknown-column", "the user's suite is about a column that is not there", "inconclusive: own_1")
def _own_column(material: Material) -> None:
    own(material, "expect_column_values_to_not_be_null", column="height")


@distribution_case(TABLE, "own-unknown-kind", "the user's suite has an expectation that does not exist", "exit 64")
def _own_kind(material: Material) -> None:
    own(material, "expect_miracles")


@distribution_case(TABLE, "own-empty", "the user's suite expects nothing", "exit 64")
def _own_empty(material: Material) -> None:
    material.limits |= {"expectations": "irises.json", "suite": {"expectations": []}}


@distribution_case(TABLE, "own-not-sent", "the policy names a suite that the spec does not hold", "exit 64")
def _own_not_sent(material: Material) -> None:
    material.limits["expectations"] = "irises.json"
