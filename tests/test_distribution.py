"""The gate `distribution`, through its contract: a spec in, a verdict out, on material that is wrong in one way each."""

import json
import socket

import numpy as np
import onnx
import pytest
from conformance.material import BAD_SPEC, baselines, graph_model, healthy, run
from made_bundles import CLASSES, answers, classifier, golden_rows, weights
from onnx import TensorProto, helper, numpy_helper
from whole_findings import expected, in_full

from validation import distribution
from validation.contract import Finding, Outcome
from validation.distribution import answers as answers_of
from validation.distribution import judged_columns

PASSED, INCONCLUSIVE, FAILED = Outcome.PASSED, Outcome.INCONCLUSIVE, Outcome.FAILED
ALWAYS = ("golden_rows", "finite", "constant_outputs", "label_majority_share", "label_entropy_bits")


@pytest.fixture
def material():
    return healthy("distribution")


@pytest.fixture
def judged(tmp_path):
    """Runs the gate on material and returns what is not passed, by name; the verdict's outcome is theirs."""

    def judge(material):
        answer = run(material, tmp_path)
        findings = {name: Outcome[word.upper()] for name, word in answer.findings.items()}
        assert (answer.code, answer.outcome) == ("exit 0", max(findings.values()).word)
        judge.findings = findings
        return {name: outcome for name, outcome in findings.items() if outcome is not PASSED}

    return judge


def evidence(tmp_path, name):
    return (tmp_path / "out" / "evidence" / name).read_text()


def why(tmp_path, name):
    return next(row["why"] for row in json.loads(evidence(tmp_path, "findings.json")) if row["name"] == name)


def with_answers(material, matrix=None, *, nodes=(), model=None):
    """The material with another model; the baseline of outputs stays the healthy one's."""
    material.model = model or classifier(weights() if matrix is None else matrix, nodes=list(nodes))
    return material


def own(material, *expectations):
    """The material with a user's suite."""
    material.limits |= {
        "expectations": "irises.json",
        "suite": {"expectations": [{"type": kind, "kwargs": of} for kind, of in expectations]},
    }
    return material


def test_a_healthy_model_passes_with_its_evidence(material, judged, tmp_path):
    """Every finding passes, and comparisons, outputs and the page for people are evidence."""
    material.stable = healthy("distribution", seed=2)
    material.limits["ranges"] = [{"column": "probabilities", "low": 0.0, "high": 1.0}]
    assert judged(material) == {}
    assert set(judged.findings) == {
        *ALWAYS,
        *("probabilities_majority_share", "probabilities_entropy_bits", "probabilities_range"),
        *("from_stable", "from_source", "from_inputs", "generated"),
    }
    assert set(json.loads(evidence(tmp_path, "drift.json"))) == {"stable", "source"}
    assert set(json.loads(evidence(tmp_path, "outputs.json"))) == {"label", *(f"probabilities[{i}]" for i in range(CLASSES))}


def test_without_stable_the_comparison_is_skipped_in_sight(material, judged, tmp_path):
    """A first version has nothing to drift from; the finding says that it was skipped."""
    assert judged(material) == {}
    assert why(tmp_path, "from_stable")[:8] == "skipped:"


@pytest.mark.parametrize("rows", [0, 1, 29])
def test_too_few_rows_are_no_distribution(judged, rows):
    """A handful of golden rows passes nothing, an empty golden set neither."""
    assert judged(healthy("distribution", rows=rows)) == {"golden_rows": INCONCLUSIVE}


@pytest.mark.parametrize(("model", "finding"), [(b"not ONNX", "loads"), (None, "answers")])
def test_a_model_that_does_not_answer_fails(material, judged, model, finding):
    """What cannot be loaded, or takes other inputs, fails; the golden set is looked at all the same."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["Z"], ["label"])],
        "g",
        [helper.make_tensor_value_info("Z", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("label", TensorProto.FLOAT, ["N", 4])],
    )
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    assert judged(with_answers(material, model=model or other)) == {finding: FAILED}
    assert {"from_inputs", "generated"} <= set(judged.findings)


def test_an_answer_that_is_no_number_fails(material, judged):
    """NaN from the model is found whatever else is the matter."""
    matrix = weights()
    matrix[0, 0] = np.nan
    found = judged(with_answers(material, matrix))
    assert (found["finite"], found["source_probabilities[0]_sketch"]) == (FAILED, INCONCLUSIVE)


def test_a_model_that_always_says_the_same_fails(material, judged):
    """Constant scores: the same answer in every row, no entropy, and drift from the source."""
    found = judged(with_answers(material, np.zeros_like(weights())))
    names = {"constant_outputs", "label_majority_share", "label_entropy_bits", "probabilities_majority_share", "probabilities_entropy_bits"}
    assert {name for name, outcome in found.items() if outcome is FAILED} >= {*names, "source_label_psi"}


def test_an_output_that_is_meant_to_be_constant_may_be(material, judged):
    """The policy can name it; nothing else is excused by that."""
    nodes = [helper.make_node("Mul", ["scores", "zero"], ["bias"])]
    more = {"nodes": nodes, "outputs": [helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["N", CLASSES])]}
    material.model = with_weights(classifier(weights(), **more), zero=np.zeros(1, dtype=np.float32))
    material.reference["bias"] = np.zeros((len(material.labels), CLASSES), dtype=np.float32)
    material.manifest["baselines"] = baselines(material.inputs, material.reference)
    material.limits["constant"] = ["bias"]
    assert judged(material) == {"bias_majority_share": FAILED, "bias_entropy_bits": FAILED}


def with_weights(model, **arrays):
    made = onnx.load_model_from_string(model)
    made.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
    return made.SerializeToString()


def test_one_answer_for_most_rows_fails(material, judged, tmp_path):
    """The most frequent answer's share is counted, and the finding names the answer."""
    material.limits["majority_share"] = 0.4
    assert judged(material) == {"label_majority_share": FAILED, "probabilities_majority_share": FAILED}
    assert why(tmp_path, "label_majority_share") == "2 is the answer on 443 of 1000 rows"


def test_a_value_outside_its_range_fails(material, judged, tmp_path):
    """The policy's range holds for every number of the output."""
    material.limits["ranges"] = [{"column": "probabilities", "low": 0.0, "high": 0.9}]
    assert judged(material) == {"probabilities_range": FAILED}
    assert why(tmp_path, "probabilities_range").startswith("values outside 0 to 0.9: ")


def test_a_range_for_nothing_is_not_passed_over(material, judged):
    """A misspelt column in the policy is no column that fits."""
    material.limits["ranges"] = [{"column": "probabilties", "low": 0.0, "high": 1.0}]
    assert judged(material) == {"probabilties_range": INCONCLUSIVE}


def test_answers_that_drifted_from_stables_fail(material, judged, tmp_path):
    """Stable's own file runs on the candidate's rows; another mixture of answers is found by name, with all comparisons in the evidence."""
    material.stable = with_answers(healthy("distribution"), weights()[:, [0, 0, 0]] * np.array([1, 0.9, 0.5], dtype=np.float32))
    found = judged(material)
    assert found["stable_probabilities:winner_psi"] is FAILED
    assert len(json.loads(evidence(tmp_path, "drift.json"))["stable"]) == 20


def test_scores_may_be_sharper_than_stables(material, judged):
    """Twice as sure of the same answers is no drift of the answers."""
    material.stable = with_answers(healthy("distribution"), weights() / 2)
    assert judged(material) == {}


def test_a_new_output_has_nothing_to_drift_from(material, judged):
    """A candidate may answer more than stable does; an output that stable has and the candidate has not fails."""
    less, names = healthy("distribution"), ("label",)
    made = onnx.load_model_from_string(less.model)
    del made.graph.output[1:]
    less.model, less.reference = made.SerializeToString(), {name: less.reference[name] for name in names}
    less.manifest["baselines"] = baselines(less.inputs, less.reference)
    assert [each.name for each in made.graph.output] == list(names)
    material.stable = less
    assert judged(material) == {}


def test_an_output_that_stable_has_is_missed(judged):
    """Whoever reads that output would get none."""
    less = healthy("distribution")
    made = onnx.load_model_from_string(less.model)
    del made.graph.output[1:]
    less.model, less.stable = made.SerializeToString(), healthy("distribution")
    found = judged(less)
    assert (found["stable_probabilities:winner_sketch"], found["source_probabilities[0]_sketch"]) == (FAILED, FAILED)


def test_a_stable_that_does_not_take_the_rows_leaves_it_open(material, judged):
    """With another signature there is no comparison, and none is passed."""
    material.stable = with_answers(healthy("distribution"), model=b"not ONNX")
    assert judged(material) == {"from_stable": INCONCLUSIVE}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({}, {"from_source": INCONCLUSIVE, "from_inputs": INCONCLUSIVE}),
        ({"inputs": [], "outputs": {"label": {}}}, {"from_source": INCONCLUSIVE, "from_inputs": INCONCLUSIVE}),
    ],
)
def test_absent_or_broken_baselines_are_never_passed(material, judged, stored, expected):
    """Without the sketches that export keeps nothing is shown about source and inputs."""
    material.manifest["baselines"] = stored
    assert judged(material) == expected


def test_a_baseline_of_other_rows_fails(material, judged):
    """Sketches are of the golden rows in the bundle, to the value."""
    other = golden_rows(1000, seed=9).inputs
    material.manifest["baselines"] = baselines({"X": other}, answers(other, weights()))
    assert judged(material)["from_inputs"] is FAILED


def test_a_baseline_with_other_columns_fails(material, judged):
    """A sketch of an output that the model has not, and none of one that it has."""
    stored = material.manifest["baselines"]["outputs"]
    stored["gone"] = stored.pop("label")
    assert judged(material) == {"source_gone_sketch": FAILED, "source_label_sketch": INCONCLUSIVE}


# Expectations


def test_missing_inputs_where_none_were_are_found(material, judged):
    """A golden row with NaN, and a baseline without: sketch and generated suite both say so."""
    material.inputs["X"] = material.inputs["X"].copy()
    material.inputs["X"][5, 2] = np.nan
    found = judged(material)
    assert (found["from_inputs"], found["generated_1"], found["finite"]) == (FAILED, FAILED, FAILED)


def test_inputs_outside_the_policys_range_are_found(material, judged, tmp_path):
    """The generated suite takes the policy's range before the baseline's."""
    material.limits["ranges"] = [{"column": "X", "low": -1.0, "high": 1.0}]
    assert judged(material) == {f"generated_{i}": FAILED for i in (1, 2, 3, 4)}
    assert "expect_column_values_to_be_between" in why(tmp_path, "generated_1")


def test_a_users_suite_runs_beside_the_generated_one(material, judged, tmp_path):
    """Its expectations count like ours, labels included, and have a page of their own."""
    own(material, ("expect_column_values_to_be_in_set", {"column": "label", "value_set": [0, 1, 2]}))
    assert judged(material) == {}
    assert judged.findings["own"] is PASSED
    assert "expect_column_values_to_be_in_set" not in evidence(tmp_path, "data_docs_generated.html")
    assert "label" in evidence(tmp_path, "data_docs_own.html")


@pytest.mark.parametrize(
    ("expectation", "outcome"),
    [
        (("expect_column_mean_to_be_between", {"column": "X[0]", "min_value": 5, "max_value": 6}), FAILED),
        (("expect_column_values_to_be_in_set", {"column": "label", "value_set": [0, 1]}), FAILED),
        (("expect_column_values_to_not_be_null", {"column": "gone"}), INCONCLUSIVE),
        (("expect_column_values_to_match_regex", {"column": "X[0]", "regex": "("}), INCONCLUSIVE),
        (("expect_column_values_to_be_between", {"column": "X[3]", "min_value": 0, "max_value": 1, "row_condition": "label > 9",
                                                 "condition_parser": "pandas"}), INCONCLUSIVE),
    ],
)  # fmt: skip
def test_an_expectation_that_is_not_met_is_not_passed(material, judged, expectation, outcome):
    """Not met fails; what raised, or looked at no row, is inconclusive, and the finding says which expectation."""
    own(material, expectation, ("expect_table_row_count_to_equal", {"value": 1000}))
    assert judged(material) == {"own_1": outcome}


@pytest.mark.parametrize(
    "change",
    [
        {"majority_share": 1.0},
        {"sigmas": "2"},
        {"psi": None},
        {"unknown": 1},
        {"expectations": "irises.json"},
        {"suite": {"expectations": []}},
        {"expectations": "irises.json", "suite": {}},
        {"expectations": "irises.json", "suite": {"expectations": [{"type": "expect_miracles", "kwargs": {}}]}},
        {"expectations": "irises.json", "suite": {"expectations": [{"type": "expect_column_to_exist"}]}},
        {"expectations": "irises.json", "suite": {"expectations": [{"type": "expect_column_to_exist", "kwargs": {"colum": "X"}}]}},
        {"expectations": "../irises.json", "suite": {"expectations": [{"type": "expect_column_to_exist", "kwargs": {"column": "label"}}]}},
    ],
)
def test_limits_and_suites_that_cannot_be_obeyed_are_bad_specs(material, tmp_path, change):
    """Unknown keys, values out of range, a suite that is absent, empty or not understood: exit 64, no verdict, no retry."""
    material.limits |= change
    assert run(material, tmp_path).code == BAD_SPEC


def test_nobody_is_called(material, judged, tmp_path, monkeypatch):
    """No connection is opened while the gate runs, and the pages in the evidence may load nothing when they are read."""
    called = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: called.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: called.append(address))
    assert (judged(material), called) == ({}, [])
    page = evidence(tmp_path, "data_docs_generated.html")
    assert page.index("Content-Security-Policy\" content=\"default-src 'none'") < page.index("https://")


def test_many_findings_fit_into_a_verdict(material, judged, monkeypatch):
    """Every number of the inputs is outside its range and every comparison drifted: the worst are kept, the others counted together."""
    monkeypatch.setattr(distribution, "FINDINGS", 5)
    material.limits |= {"ranges": [{"column": "X", "low": 100.0, "high": 101.0}]}
    with_answers(material, np.zeros_like(weights()))
    found = judged(material)
    assert (len(judged.findings), set(found.values()), judged.findings["others"]) == (6, {FAILED}, FAILED)


# Small parts


def test_an_answer_is_a_value_or_the_best_of_a_vector():
    """One value a row is the answer itself, of scores it is the place of the best; tensors have none."""
    assert answers_of(np.array([[3], [4]])).tolist() == [3, 4]
    assert answers_of(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]
    assert answers_of(np.zeros((2, 2, 2))) is None
    assert answers_of(np.zeros((2, 2), dtype=int)) is None


def test_scores_are_judged_by_winner_and_mean():
    """A vector of scores gets a column for the winner, whose shares count, and its scores are judged by their means only."""
    columns, scores = judged_columns({"p": np.array([[0.1, 0.9], [0.8, 0.2]]), "y": np.array([1.0, 2.0])})
    assert (list(columns), scores) == (["p", "y", "p:winner", "p:best"], {"p[0]", "p[1]", "p:best"})


def test_of_a_large_golden_set_evenly_spread_rows_are_judged(material, judged, tmp_path, monkeypatch):
    """Memory stays bounded: half of the rows is judged, in every batch, and the sketches are compared over all of them."""
    monkeypatch.setattr(distribution, "JUDGED_ROWS", 500)
    monkeypatch.setattr("validation.golden_rows.BATCH_ROWS", 64)
    assert judged(material) == {}
    assert why(tmp_path, "golden_rows") == "500 of 1000 golden rows are judged"
    rows = {row["name"]: row.get("n") for row in json.loads(evidence(tmp_path, "findings.json"))}
    assert (rows["label_majority_share"], rows["from_inputs"], rows["generated"]) == (500, 1000, 500)


COLOURS = ("amber", "blue", "coral", "denim")


def coloured(rows=1000, unknown=0):
    """Material with a text input: each colour has a score, unknown ones have none of their own."""
    words = np.array(COLOURS, dtype=object)[np.random.default_rng(0).integers(0, 4, rows)]
    words[:unknown] = "mauve"
    scores = {name: float(place) for place, name in enumerate(COLOURS)}
    node = helper.make_node(
        "LabelEncoder",
        ["colour"],
        ["score"],
        domain="ai.onnx.ml",
        keys_strings=list(scores),
        values_floats=list(scores.values()),
        default_float=9.0,
    )
    ports = [helper.make_tensor_value_info(name, kind, ["N", 1]) for name, kind in (("colour", 8), ("score", 1))]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = healthy("distribution", rows=rows)
    made.model = graph_model([node], ports[:1], ports[1:], opset_imports=opsets)
    made.inputs, made.reference = {"colour": words}, {"score": np.array([[scores.get(word, 9.0)] for word in words], dtype=np.float32)}
    made.set_signature("inputs", [{"name": "colour", "dtype": "BYTES", "shape": [1]}])
    made.set_signature("outputs", [{"name": "score", "dtype": "FP32", "shape": [1]}])
    made.manifest["baselines"] = baselines(made.inputs, made.reference)
    return made


def test_words_are_expected_as_the_baseline_has_them(judged):
    """A text input passes with its own values; the generated suite knows type and set of values."""
    assert judged(coloured()) == {}


def test_words_that_the_baseline_never_had_are_found(judged, tmp_path):
    """Rows with a new value fail the sketch's comparison and the suite's set of values, by name."""
    spoilt, clean = coloured(unknown=300), coloured()
    spoilt.manifest["baselines"] = clean.manifest["baselines"]
    found = judged(spoilt)
    assert (found["from_inputs"], found["generated_1"]) == (FAILED, FAILED)
    assert "mauve" in why(tmp_path, "generated_1")


# What a finding says


def ranged(made, low, high, column="probabilities"):
    made.limits["ranges"] = [{"column": column, "low": low, "high": high}]
    return made


def beside_stable(made, matrix=None):
    made.stable = with_answers(healthy("distribution", seed=2), matrix)
    return made


def without_baselines(made):
    made.manifest["baselines"] = {}
    return made


def of_other_rows(made):
    other = golden_rows(1000, seed=9).inputs
    made.manifest["baselines"] = baselines({"X": other}, answers(other, weights()))
    return made


def not_finite(made):
    matrix = weights()
    matrix[0, 0] = np.nan
    return with_answers(made, matrix)


WHOLE = {
    "a healthy model": lambda made: made,
    "beside stable": beside_stable,
    "beside another stable": lambda made: beside_stable(made, weights()[:, [0, 0, 0]] * np.array([1, 0.9, 0.5], dtype=np.float32)),
    "always the same": lambda made: with_answers(made, np.zeros_like(weights())),
    "not finite": not_finite,
    "in range": lambda made: ranged(made, 0.0, 1.0),
    "out of range": lambda made: ranged(made, 0.1, 0.9),
    "a range for nothing": lambda made: ranged(made, 0.0, 1.0, "probabilties"),
    "few rows": lambda made: healthy("distribution", rows=29),
    "no baselines": without_baselines,
    "baselines of other rows": of_other_rows,
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case, material, judged, tmp_path):
    """Words, numbers, size and advice: all that people and the registry read, but for how near to its source the runtime rounds."""
    judged(WHOLE[case](material))
    rows = [Finding.from_dict(row) for row in json.loads(evidence(tmp_path, "findings.json"))]
    assert in_full(each for each in rows if (each.name, each.outcome) != ("from_source", PASSED)) == expected("distribution", case)
