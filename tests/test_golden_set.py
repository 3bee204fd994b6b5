"""The gate `golden_set`, on small ONNX models that differ from their source model in one way each."""

import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_bundles import CLASSES, MANIFEST, MODEL, answers, classifier, golden_rows, make_bundle, weights
from onnx import TensorProto, helper
from whole_findings import expected, in_full

from validation import golden_rows as golden_rows_module
from validation import golden_set
from validation.answers import predicted
from validation.contract import BadSpec, Outcome, Spec, Stable, worst
from validation.parity import rows_flipped, rows_outside
from validation.policy import GoldenSet, parse
from validation.traffic_sample import NO_STABLE

ACCURACY = {"name": "accuracy", "at_least": 0.85, "within_training": 0.005, "not_worse_than_stable": 0.02}
LIMITS = {"min_rows": 500, "atol": 1e-4, "rtol": 1e-3, "rows_outside_permille": 1, "metrics": [ACCURACY]}


@pytest.fixture
def gate(tmp_path):
    """Runs the gate on a made bundle and returns its findings by name."""

    def run(stable=None, limits=None, inputs=None, **parts):
        spec = Spec(
            task="golden_set",
            model=MODEL,
            version=2,
            delivery="d",
            evidence_uri="file:///e",
            bundle=make_bundle(Path(tempfile.mkdtemp(dir=tmp_path)), **parts),
            stable=stable and Stable(version=1, bundle=stable),
            limits=limits or LIMITS,
            inputs=inputs or {},
        )
        decision = golden_set.run(spec, tmp_path)
        run.outputs = decision.outputs
        return {each.name: each for each in decision.findings}

    return run


def bad_names(findings):
    return {name for name, each in findings.items() if each.outcome is not Outcome.PASSED}


def test_a_faithful_export_passes_every_finding(gate, tmp_path):
    """A model that answers as its source, right often enough and no worse than stable, passes with its numbers in the evidence."""
    findings = gate(stable=make_bundle(tmp_path / "stable"))
    assert worst(each.outcome for each in findings.values()) is Outcome.PASSED
    assert list(findings) == [
        *("golden_rows", "output_names", "output_dtypes", "output_shapes", "finite", "parity_rows", "label_flips", "feature_extremes"),
        *("batch_of_one", "padded_batch", "row_order", "repeatable", "dynamic_axes", "golden_duplicates", "golden_leakage"),
        *("accuracy_at_least", "accuracy_within_training", "accuracy_not_worse_than_stable"),
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == {"candidate": 0.95, "source_model": 0.95, "stable": 0.95}
    assert gate.outputs == {"baselines": {"accuracy": 0.95}, "golden_set_sha256": "0" * 64}
    assert json.loads((tmp_path / "mismatches.json").read_text()) == []


def test_without_stable_the_comparison_is_skipped_in_sight(gate):
    """A first version has nothing to be worse than; the finding says that it was skipped."""
    finding = gate()["accuracy_not_worse_than_stable"]
    assert (finding.outcome, finding.why[:8]) == (Outcome.PASSED, "skipped:")


def test_too_few_rows_are_inconclusive(gate):
    """Fewer rows than the policy asks for show too little, and the advice says how many are missing."""
    finding = gate(rows=golden_rows(499))["golden_rows"]
    assert (finding.outcome, finding.advice) == (Outcome.INCONCLUSIVE, "add 1 rows to the golden set")


def test_no_rows_are_inconclusive(gate):
    """An empty golden set passes nothing."""
    findings = gate(rows=golden_rows(0))
    assert {name: each.outcome for name, each in findings.items()} == {"golden_rows": Outcome.INCONCLUSIVE}


@pytest.mark.parametrize("model", [b"pickle, not ONNX", b"\x08\x08"])
def test_an_artifact_that_is_not_a_model_fails(gate, model):
    """What ONNX Runtime cannot load is the model's fault and a finding, not a crash."""
    findings = gate(model=model)
    assert findings["loads"].outcome is Outcome.FAILED


def test_a_model_that_raises_on_golden_rows_fails(gate):
    """An error of the runtime on a row is a failed finding with the runtime's reason."""
    broken = helper.make_node("Reshape", ["scores", "label"], ["wrong"])
    findings = gate(model=classifier(weights(), nodes=[broken], outputs=[helper.make_tensor_value_info("wrong", TensorProto.FLOAT, ["N"])]))
    assert findings["answers"].outcome is Outcome.FAILED
    assert "Reshape" in findings["answers"].why


def test_other_inputs_than_the_golden_sets_fail(gate):
    """A model that takes an input that the golden set lacks is not run on guesses."""
    other = classifier(weights()).replace(b"\x01X", b"\x01Z")
    assert "['Z']" in gate(model=other)["answers"].why


def test_outputs_are_compared_by_name_both_ways(gate):
    """An output without reference and a reference without output both fail."""
    extra = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])
    assert "'scores'" in gate(model=classifier(weights(), outputs=[extra]))["output_names"].why


def test_a_missing_output_fails(gate, tmp_path):
    """A reference output that the model does not have fails by name."""
    rows = golden_rows()
    more = answers(rows.inputs, weights()) | {"margin": np.zeros(600, np.float32)}
    finding = gate(rows=rows, reference=more)["output_names"]
    assert (finding.outcome, "missing outputs ['margin']" in finding.why) == (Outcome.FAILED, True)


def test_another_dtype_or_shape_fails(gate, tmp_path):
    """Clients read outputs by type and shape, so these are compared exactly, with the source model's and the signature's."""
    right = answers(golden_rows().inputs, weights())
    assert bad_names(gate(reference=right | {"label": right["label"].astype(np.int32)})) == {"output_dtypes"}


def test_another_shape_fails(gate):
    """A flat output where the source model gives columns is another answer to its clients."""
    right = answers(golden_rows().inputs, weights())
    finding = gate(reference=right | {"label": right["label"].reshape(-1, 1)})["output_shapes"]
    assert (finding.outcome, "[600, 1]" in finding.why) == (Outcome.FAILED, True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(gate, value):
    """One weight that is not finite fails, even when the source model answers the same."""
    matrix = weights()
    matrix[0, 0] = value
    with np.errstate(all="ignore"):
        findings = gate(model=classifier(matrix), reference=answers(golden_rows().inputs, matrix))
    assert findings["finite"].outcome is Outcome.FAILED
    assert worst(each.outcome for each in findings.values()) is Outcome.FAILED


def test_a_source_model_with_nan_fails(gate):
    """NaN in the reference is no answer to be compared with."""
    spoilt = answers(golden_rows().inputs, weights())
    spoilt["probabilities"][7, 0] = np.nan
    findings = gate(reference=spoilt)
    assert "the source model answers NaN or infinity in 'probabilities' on 1 rows, first row 7" in findings["finite"].why


def test_rows_outside_the_tolerances_fail_with_evidence(gate, tmp_path):
    """More rows outside than the policy allows fail, and the first of them stand in the evidence."""
    moved = answers(golden_rows().inputs, weights())
    moved["probabilities"][40:43] += 0.01
    findings = gate(reference=moved)
    assert bad_names(findings) == {"parity_rows"}
    assert findings["parity_rows"].observed == pytest.approx(5)
    assert [each["row"] for each in json.loads((tmp_path / "mismatches.json").read_text())] == [40, 41, 42]


def test_flipped_labels_fail(gate):
    """Answers that change with the export fail, also when all numbers are near."""
    flipped = answers(golden_rows().inputs, weights())
    flipped["label"][:2] = (flipped["label"][:2] + 1) % CLASSES
    assert {"parity_rows", "label_flips"} <= bad_names(gate(reference=flipped))


def test_an_answer_that_depends_on_its_batch_fails(gate):
    """A row alone must get what it gets among others: Triton batches as it pleases."""
    nodes = [
        helper.make_node("ReduceMean", ["probabilities"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["probabilities", "mean"], ["centred"]),
    ]
    outputs = [helper.make_tensor_value_info("centred", TensorProto.FLOAT, ["N", CLASSES])]
    right = answers(golden_rows().inputs, weights())
    reference = right | {"centred": right["probabilities"] - right["probabilities"].mean(axis=0)}
    outputs_row = {"name": "centred", "dtype": "FP32", "shape": [CLASSES]}
    manifest = {"signature": golden_signature()}
    manifest["signature"]["outputs"].append(outputs_row)
    findings = gate(model=classifier(weights(), nodes=nodes, outputs=outputs), reference=reference, manifest=manifest)
    assert findings["batch_of_one"].outcome is Outcome.FAILED


def golden_signature():
    return copy.deepcopy(MANIFEST["signature"])


def test_a_model_trained_on_broken_labels_fails(gate):
    """A faithful export of a bad model is a bad model: its metric is surely below the policy's limit."""
    bad = weights()[:, ::-1].copy()
    findings = gate(model=classifier(bad), reference=answers(golden_rows().inputs, bad))
    assert bad_names(findings) == {"accuracy_at_least"}
    assert findings["accuracy_at_least"].outcome is Outcome.FAILED


def test_an_export_that_lost_accuracy_fails(gate):
    """The metric is compared with the source model's on the same rows."""
    rows = golden_rows()
    worse = weights() + np.random.default_rng(5).normal(scale=0.4, size=weights().shape).astype(np.float32)
    assert gate(model=classifier(worse), rows=rows)["accuracy_within_training"].outcome is Outcome.FAILED


def test_a_version_worse_than_stable_fails(gate, tmp_path):
    """Stable's own file is run on the candidate's golden rows and compared row by row."""
    worse = weights() + np.random.default_rng(5).normal(scale=0.3, size=weights().shape).astype(np.float32)
    findings = gate(
        model=classifier(worse),
        reference=answers(golden_rows().inputs, worse),
        stable=make_bundle(tmp_path / "stable", rows=golden_rows(30)),
        limits={**LIMITS, "metrics": [{**ACCURACY, "at_least": 0.5}]},
    )
    assert bad_names(findings) == {"accuracy_not_worse_than_stable"}


def test_a_stable_that_cannot_answer_is_inconclusive(gate, tmp_path):
    """When stable does not run on these rows it is not known whether the candidate is worse."""
    other = classifier(weights()).replace(b"\x01X", b"\x01Z")
    finding = gate(stable=make_bundle(tmp_path / "stable", model=other))["accuracy_not_worse_than_stable"]
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert "stable (v1) does not answer the golden rows" in finding.why


def test_a_stable_that_stops_answering_is_inconclusive(gate, tmp_path, monkeypatch):
    """What it answered before does not count: the comparison would be on the rows that it liked."""
    few = helper.make_node("Gather", ["table", "row"], ["probe"])
    nodes = [
        helper.make_node("Constant", [], ["table"], value_floats=[0.0] * 5),
        helper.make_node("Slice", ["X", "zero", "one", "axis"], ["first"]),
        helper.make_node("Cast", ["first"], ["row"], to=TensorProto.INT64),
    ]
    constants = [helper.make_node("Constant", [], [name], value_ints=[value]) for name, value in (("zero", 0), ("one", 1), ("axis", 1))]
    outputs = [helper.make_tensor_value_info("probe", TensorProto.FLOAT, ["N", 1])]
    picky = classifier(weights(), nodes=[*constants, *nodes, few], outputs=outputs)
    rows = golden_rows()
    rows.inputs[450, 0] = 9
    monkeypatch.setattr(golden_rows_module, "BATCH_ROWS", 100)
    findings = gate(
        rows=rows, reference=answers(rows.inputs, weights()), stable=make_bundle(tmp_path / "stable", model=picky, probes=False)
    )
    assert bad_names(findings) == {"accuracy_not_worse_than_stable"}
    assert findings["accuracy_not_worse_than_stable"].outcome is Outcome.INCONCLUSIVE
    assert "stable (v1) does not answer the golden rows" in findings["accuracy_not_worse_than_stable"].why


def test_a_margin_finer_than_the_rows_is_inconclusive(gate):
    """Equal answers on 530 rows do not show half a point; the advice says how many rows would."""
    finding = gate(rows=golden_rows(530))["accuracy_within_training"]
    assert (finding.outcome, finding.advice) == (Outcome.INCONCLUSIVE, "about 69 more golden rows like these would settle it")


# Probes


def test_a_bundle_without_probes_is_inconclusive(gate):
    """Without the source model's answers at the edges nothing is known of them; the advice is to export again."""
    finding = gate(probes=False)["feature_extremes"]
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert "export the version again" in finding.advice


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_probes_that_are_answered_otherwise_fail(gate, value):
    """An export that parts from its source at the edges, or a source that answers no number there, is not passed."""

    def spoil(root):
        path = root / "probes/reference/probabilities.npy"
        reference = np.load(path)
        reference[3, 0] += value
        np.save(path, reference)

    findings = gate(change=spoil)
    assert bad_names(findings) == {"feature_extremes"}
    assert "first row 3" in findings["feature_extremes"].why


def test_probes_lacking_an_output_fail(gate):
    """The answers to probes have the form of all answers."""
    findings = gate(change=lambda root: (root / "probes/reference/label.npy").unlink())
    assert bad_names(findings) == {"feature_extremes"}


def test_empty_probes_are_inconclusive(gate):
    """A file without rows is as good as none."""

    def spoil(root):
        path = root / "probes/inputs.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)
        for each in (root / "probes/reference").iterdir():
            np.save(each, np.load(each)[:0])

    assert gate(change=spoil)["feature_extremes"].outcome is Outcome.INCONCLUSIVE


def labels_with_nan(root):
    labels = golden_rows().labels.astype(float)
    labels[17] = np.nan
    pq.write_table(pa.table({"label": labels}), root / "golden/labels.parquet")


def inputs_with_nan(root):
    inputs = golden_rows().inputs.copy()
    inputs[17, 2] = np.nan
    pq.write_table(
        pa.table({"X": pa.FixedSizeListArray.from_arrays(pa.array(inputs.ravel()), inputs.shape[1])}), root / "golden/inputs.parquet"
    )


def reference_with_nan(root):
    path = root / "reference/probabilities.npy"
    values = np.load(path)
    values[17, 2] = np.nan
    np.save(path, values)


@pytest.mark.parametrize("change", [labels_with_nan, inputs_with_nan, reference_with_nan])
def test_nan_anywhere_is_never_passed(gate, change):
    """One NaN among labels, inputs that the model cannot take, or the source model's answers."""
    assert worst(each.outcome for each in gate(change=change).values()) is not Outcome.PASSED


# Slices, and the set itself


def regions(root, rows=600):
    column = ["EU" if row % 3 == 0 else "US" for row in range(rows)]
    pq.write_table(pa.table({"region": column}), root / "golden/slices.parquet")


def test_slices_are_found_in_the_bundle(gate):
    """Each listed value has a finding of its own; a value without rows is not passed."""
    slices = [{"column": "region", "values": ["EU", "US", "ASIA"]}]
    findings = gate(change=regions, limits={**LIMITS, "slices": slices})
    assert {name: each.outcome for name, each in findings.items() if "region" in name} == {
        "accuracy_at_least[region=EU]": Outcome.PASSED,
        "accuracy_at_least[region=US]": Outcome.PASSED,
        "accuracy_at_least[region=ASIA]": Outcome.INCONCLUSIVE,
    }
    assert findings["accuracy_at_least[region=EU]"].n == 200


def test_slices_of_a_column_that_is_not_there_are_inconclusive(gate):
    """A golden set that lost its column does not pass for it."""
    findings = gate(limits={**LIMITS, "slices": [{"column": "region", "values": ["EU"]}]})
    assert bad_names(findings) == {"accuracy_at_least[region=EU]"}


def test_slices_with_other_rows_than_the_golden_set_are_a_bad_bundle(gate):
    """Rows that do not line up are an error, not a judgement."""
    limits = {**LIMITS, "slices": [{"column": "region", "values": ["EU"]}]}
    with pytest.raises(BadSpec, match="599 rows"):
        gate(change=lambda root: regions(root, 599), limits=limits)


def test_copied_rows_fail(gate):
    """A golden set that counts one row's answer many times says less than it seems to."""
    rows = golden_rows()
    rows.inputs[:10], rows.labels[:10] = rows.inputs[10:20], rows.labels[10:20]
    finding = gate(rows=rows)["golden_duplicates"]
    assert (finding.outcome, finding.limit) == (Outcome.FAILED, 10)
    assert gate.outputs["golden_set_sha256"] == "0" * 64


def test_a_label_among_the_inputs_fails(gate):
    """A model that is given its answer is not judged by giving it back."""
    rows = golden_rows()
    rows.inputs[:, 2] = rows.labels
    findings = gate(rows=rows)
    assert findings["golden_leakage"].outcome is Outcome.FAILED
    assert findings["golden_leakage"].why.startswith("X[2] alone determines the label")


def test_age_is_judged_when_the_policy_asks(gate):
    """A young set passes, an old one fails, and one of unknown age is inconclusive."""
    limits = {**LIMITS, "max_age_days": 30}
    ages = {"young": time.time() - 86400, "old": time.time() - 40 * 86400}
    golden_set = {"uri": "file:///nowhere", "sha256": "0" * 64, "rows": 600}
    found = {name: gate(limits=limits, manifest={"golden_set": golden_set | {"written_unix_s": at}}) for name, at in ages.items()}
    assert found["young"]["golden_age"].outcome is Outcome.PASSED
    assert found["old"]["golden_age"].outcome is Outcome.FAILED
    assert gate(limits=limits)["golden_age"].outcome is Outcome.INCONCLUSIVE


def test_likeness_to_traffic_needs_a_sample(gate):
    """A policy that asks for what nobody recorded is told so; only where no version ever served there is nothing to be like."""
    none_yet = {"inputs": {"traffic_absent": NO_STABLE}}
    assert gate(limits={**LIMITS, "traffic_drift": True}, **none_yet)["golden_traffic_drift"].outcome is Outcome.PASSED
    finding = gate(limits={**LIMITS, "traffic_drift": True})["golden_traffic_drift"]
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert "traffic_drift to false" in finding.advice


def test_numbers_too_large_for_a_narrow_type_fail(gate):
    """A feature of a hundred thousand does not survive float16, and the policy serves it."""
    rows = golden_rows()
    rows.inputs[5, 0] = 1e5
    reference = answers(rows.inputs, weights())
    findings = gate(rows=rows, reference=reference, limits={**LIMITS, "narrowed_to": ["float16"]})
    assert findings["narrowed_float16"].outcome is Outcome.FAILED
    assert "'X' leaves -65504 to 65504 on 1 rows, first row 5" in findings["narrowed_float16"].why


# Batches and memory


def test_findings_do_not_depend_on_batches(gate, monkeypatch, tmp_path):
    """Read in batches of seven from row groups of fifty, everything is as in one."""
    whole = gate(stable=make_bundle(tmp_path / "stable"))

    def regroup(root):
        for name in ("inputs", "labels"):
            path = root / f"golden/{name}.parquet"
            pq.write_table(pq.read_table(path), path, row_group_size=50)

    monkeypatch.setattr(golden_rows_module, "BATCH_ROWS", 7)
    assert gate(stable=make_bundle(tmp_path / "again"), change=regroup) == whole


def test_references_stored_by_column_are_read_by_row(gate):
    """NumPy writes an array in the order that it has; both are the same answers."""
    right = answers(golden_rows().inputs, weights())
    findings = gate(reference=right | {"probabilities": np.asfortranarray(right["probabilities"])})
    assert bad_names(findings) == set()


def test_a_shape_that_changes_with_the_rows_fails(gate, monkeypatch):
    """An output that is as wide as its data happens to make it is refused at the batch where it changes."""
    nodes = [
        helper.make_node("ReduceMax", ["X"], ["greatest"], keepdims=0),
        helper.make_node("Greater", ["greatest", "limit"], ["large"]),
        helper.make_node("Cast", ["large"], ["more"], to=TensorProto.INT64),
        helper.make_node("Add", ["more", "two"], ["end"]),
        helper.make_node("Reshape", ["end", "flat"], ["ends"]),
        helper.make_node("Constant", [], ["limit"], value_float=50.0),
        helper.make_node("Constant", [], ["two"], value_int=2),
        helper.make_node("Constant", [], ["flat"], value_ints=[1]),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Slice", ["probabilities", "zero", "ends", "axis"], ["some"]),
    ]
    order = [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 10]
    rows = golden_rows()
    rows.inputs[300, 0] = 100
    right = answers(rows.inputs, weights())
    signature = golden_signature()
    signature["outputs"] = [*signature["outputs"], {"name": "some", "dtype": "FP32", "shape": [2]}]
    monkeypatch.setattr(golden_rows_module, "BATCH_ROWS", 100)
    findings = gate(
        rows=rows,
        model=classifier(
            weights(), nodes=[nodes[i] for i in order], outputs=[helper.make_tensor_value_info("some", TensorProto.FLOAT, ["N", "M"])]
        ),
        reference=right | {"some": right["probabilities"][:, :2]},
        manifest={"signature": signature},
    )
    assert findings["answers"].outcome is Outcome.FAILED
    assert findings["answers"].why.startswith("output 'some' is [100, 3] in one batch")


@pytest.mark.parametrize("cells", [2_000_000_000, 2**60])
def test_a_model_that_asks_for_absurd_memory_fails(gate, cells):
    """The allocator refuses before the machine has to; the finding has its reason."""
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_ints=[2]),
        helper.make_node("Constant", [], ["size"], value_ints=[1, 1, cells]),
        helper.make_node("Unsqueeze", ["probabilities", "axis"], ["deep"]),
        helper.make_node("Expand", ["deep", "size"], ["wide"]),
    ]
    findings = gate(
        model=classifier(weights(), nodes=nodes, outputs=[helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["N", "M", "K"])]),
        probes=False,
    )
    assert findings["answers"].outcome is Outcome.FAILED


def test_a_delivery_without_the_source_models_answers_fails(gate):
    """Only `penstock check` may go without them; an empty reference in a delivery is missing outputs."""
    findings = gate(change=lambda root: [path.unlink() for path in (root / "reference").iterdir()])
    assert findings["output_names"].outcome is Outcome.FAILED


@pytest.mark.parametrize("change", [{"metrics": []}, {"min_rows": 0}, {"atol": float("nan")}, {"unknown": 1}])
def test_bad_limits_are_a_bad_spec(gate, change):
    """Limits that are no policy section end in a bad spec, not in a verdict."""
    with pytest.raises(BadSpec, match="limits: "):
        gate(limits={**LIMITS, **change})


def test_the_label_is_the_one_output_with_a_word_a_row():
    """Whole numbers or text name the label; else the greatest of the only vector; else a chance of the second of two."""
    words, shares = np.array(["b", "a"]), np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert predicted({"label": words, "p": shares}).tolist() == ["b", "a"]
    assert predicted({"p": shares}).tolist() == [1, 0]
    assert predicted({"a": words, "b": words}) is None
    assert predicted({"chance": shares[:, :1]}).tolist() == [0, 1]
    assert predicted({"score": 2 - shares[:, :1]}) is None


def test_text_outputs_are_compared_as_text():
    """Labels that are words flip when they differ, whatever numpy calls their type."""
    here, there = {"label": np.array(["a", "b"], dtype=object)}, {"label": np.array(["a", "c"])}
    assert rows_flipped(here, there).tolist() == [False, True]
    assert rows_outside(here, there, parse(GoldenSet, LIMITS)).tolist() == [False, True]


def test_a_gate_runs_as_a_program(tmp_path):
    """`python -m validation` on a real bundle writes a verdict that answers its spec, and its evidence."""
    import os
    import subprocess
    import sys

    from validation.contract import Verdict

    spec = Spec(
        task="golden_set",
        model=MODEL,
        version=2,
        delivery="d",
        evidence_uri=(tmp_path / "published").as_uri(),
        bundle=make_bundle(tmp_path / "candidate"),
        limits=LIMITS,
    )
    environment = {**os.environ, "TASK_SPEC": spec.to_json(), "TASK_OUT": str(tmp_path / "out")}
    subprocess.run([sys.executable, "-m", "validation"], env=environment, check=True, cwd=Path(__file__).parent)
    verdict = Verdict.from_bytes((tmp_path / "out/verdict.json").read_bytes(), spec)
    assert verdict.outcome is Outcome.PASSED
    assert (tmp_path / "published/metrics.json").exists()


# What a finding says


def moved_source():
    moved = answers(golden_rows().inputs, weights())
    moved["probabilities"][40:43] += 0.01
    return {"reference": moved}


def sick_stable(tmp_path):
    return make_bundle(tmp_path / "sick", model=b"not ONNX")


def aged(days):
    return {"manifest": {"golden_set": {**MANIFEST["golden_set"], "written_unix_s": days}}}


WHOLE = {
    "a faithful export": lambda gate, folder: gate(stable=make_bundle(folder / "stable")),
    "the first version": lambda gate, folder: gate(),
    "a moved source model": lambda gate, folder: gate(**moved_source()),
    "few rows": lambda gate, folder: gate(rows=golden_rows(499)),
    "no rows": lambda gate, folder: gate(rows=golden_rows(0)),
    "a bad model": lambda gate, folder: gate(model=classifier(weights()[:, ::-1].copy())),
    "like traffic and young": lambda gate, folder: gate(limits={**LIMITS, "traffic_drift": True, "max_age_days": 30}, **aged(None)),
}


@pytest.mark.parametrize("case", WHOLE)
def test_findings_are_whole(case, gate, tmp_path):
    """In order, each with words, numbers, size and advice."""
    assert in_full(WHOLE[case](gate, tmp_path).values()) == expected("golden_set", case)


def test_evidence_is_whole(gate, tmp_path):
    """Numbers by metric and side, and the first rows that differ with their labels."""
    gate(**moved_source())
    metrics, rows_ = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("metrics", "mismatches"))
    assert metrics == {
        "rows": 600,
        "rows_outside": 3,
        "label_flips": 0,
        "largest_difference": {"probabilities": pytest.approx(0.01, rel=1e-3)},
        "accuracy": {"candidate": 0.95, "source_model": 0.95, "stable": None},
    }
    assert [set(each) for each in rows_] == [{"row", "model", "source_model", "label"}] * 3
    assert [each["label"] for each in rows_] == golden_rows().labels[40:43].tolist()


def test_evidence_is_indented_for_people(tmp_path):
    """A line a number; what JSON cannot hold stands there as a word."""
    golden_set.Report(metrics={"a": {"b": [float("nan"), 1.5]}}, mismatches=[{"row": 1}]).write(tmp_path)
    assert (tmp_path / "metrics.json").read_text() == '{\n "a": {\n  "b": [\n   "nan",\n   1.5\n  ]\n }\n}'
    assert (tmp_path / "mismatches.json").read_text() == '[\n {\n  "row": 1\n }\n]'
