"""`penstock check`: the gate on loose files, with exit codes that scripts can rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_bundles import answers, classifier, column, golden_rows, weights
from onnx import TensorProto, helper, numpy_helper

from validation import check

POLICY = """
[distribution]
majority_share = 0.8
entropy_bits = 1.0
sigmas = 2.0
psi = 0.25

[golden_set]
min_rows = 600
atol = 1e-4
rtol = 1e-3
rows_outside_permille = 1

[[golden_set.metrics]]
name = "accuracy"
at_least = 0.85
not_worse_than_stable = 0.02
"""


@pytest.fixture
def files(tmp_path):
    """A good model's loose files, and a way to run the check on them."""
    rows = golden_rows(1000)
    (tmp_path / "model.onnx").write_bytes(classifier(weights()))
    (tmp_path / "bad.onnx").write_bytes(classifier(weights()[:, ::-1].copy()))
    (tmp_path / "irises.toml").write_text(POLICY)
    columns = {f"f{place}": rows.inputs[:, place] for place in range(4)}
    pq.write_table(pa.table(columns | {"label": rows.labels}), tmp_path / "golden.parquet")
    np.savez(tmp_path / "reference.npz", **answers(rows.inputs, weights()))

    def run(*more, gate="golden_set", model="model.onnx", golden="golden.parquet", policy="irises.toml"):
        names = {"--model": model, "--golden": golden, "--policy": policy}
        return check.main(["check", gate, *(str(word) for name, file in names.items() for word in (name, tmp_path / file)), *more])

    run.folder = tmp_path
    run.rows = rows
    return run


def test_a_good_model_passes_with_exit_code_0(files, capsys):
    """Every finding is printed with its reason; what cannot be compared on a laptop is shown as skipped."""
    assert files() == 0
    printed = capsys.readouterr().out
    assert "passed        accuracy_at_least" in printed
    assert "skipped       parity_rows" in printed
    assert printed.splitlines()[-1] == "golden_set: PASSED (10 passed, 4 skipped)"


def test_a_bad_model_fails_with_exit_code_1(files, capsys):
    """The reason stands beside the finding."""
    assert files(model="bad.onnx") == 1
    assert "surely below 0.8500" in " ".join(capsys.readouterr().out.split())


def test_too_little_evidence_ends_with_exit_code_2(files, capsys):
    """Inconclusive is neither a pass nor the model's fault, and says what would settle it."""
    (files.folder / "strict.toml").write_text(POLICY.replace("min_rows = 600", "min_rows = 1200"))
    assert files(policy="strict.toml") == 2
    assert "advice: add 200 rows to the golden set" in capsys.readouterr().out


def test_source_answers_are_compared_when_they_are_at_hand(files, capsys):
    """With `--reference` the model must answer as its source did."""
    assert files("--reference", str(files.folder / "reference.npz")) == 0
    assert "passed        parity_rows" in capsys.readouterr().out
    assert files("--reference", str(files.folder / "reference.npz"), model="bad.onnx") == 1
    assert "failed        parity_rows" in capsys.readouterr().out


def test_stable_is_another_file(files, capsys):
    """`--stable` answers the same rows and is compared row by row."""
    assert files("--stable", str(files.folder / "model.onnx"), model="bad.onnx") == 1
    assert "failed        accuracy_not_worse_than_stable" in capsys.readouterr().out


def test_slices_and_labels_are_columns_of_the_golden_file(files, capsys):
    """Columns that the policy names for slices are no inputs; the label's name is free; a value without rows is not passed."""
    table = pq.read_table(files.folder / "golden.parquet").rename_columns(["f0", "f1", "f2", "f3", "kind"])
    pq.write_table(table.append_column("region", pa.array(["EU", "US"] * 500)), files.folder / "regions.parquet")
    slices = '\n[[golden_set.slices]]\ncolumn = "region"\nvalues = ["US", "ASIA"]\n'
    (files.folder / "regions.toml").write_text(POLICY + slices)
    assert files("--label", "kind", golden="regions.parquet", policy="regions.toml") == 2
    printed = capsys.readouterr().out
    assert "passed        accuracy_at_least[region=US]" in printed
    assert "inconclusive  accuracy_at_least[region=ASIA]" in printed


def test_a_column_that_is_no_input_can_be_named(files, capsys):
    """A row's name would be stacked as a feature; the sentence says what to do."""
    table = pq.read_table(files.folder / "golden.parquet").append_column("id", pa.array(range(1000)))
    pq.write_table(table, files.folder / "ids.parquet")
    assert files(golden="ids.parquet") == 64
    assert "with --not-input" in capsys.readouterr().err
    assert files("--not-input", "id", golden="ids.parquet") == 0


def test_an_input_may_be_one_column_of_lists(files):
    """The form in which golden sets are registered is read, too, whatever other columns stand beside it."""
    columns = {"X": column(files.rows.inputs), "label": pa.array(files.rows.labels), "note": pa.array(["n"] * 1000)}
    pq.write_table(pa.table(columns), files.folder / "lists.parquet")
    assert files(golden="lists.parquet") == 0


def test_open_axes_take_the_golden_sets_size_and_are_tried_at_others(files, capsys):
    """An axis that the file leaves open is judged at sizes that callers may send; two such axes cannot be told apart in flat lists."""

    def mean_of(axes):
        nodes = [
            helper.make_node("ReduceMean", ["X"], ["mean"], axes=list(range(1, len(axes))), keepdims=0),
            helper.make_node("Greater", ["mean", "zero"], ["above"]),
            helper.make_node("Cast", ["above"], ["label"], to=TensorProto.INT64),
        ]
        inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, axes)]
        outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])]
        graph = helper.make_graph(nodes, "mean", inputs, outputs, [numpy_helper.from_array(np.float32(0), "zero")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    labels = (files.rows.inputs.mean(axis=1) > 0).astype(np.int64)
    pq.write_table(pa.table({"X": column(files.rows.inputs), "label": labels}), files.folder / "lists.parquet")
    (files.folder / "mean.onnx").write_bytes(mean_of(["N", "length"]))
    assert files(model="mean.onnx", golden="lists.parquet") == 0
    assert "length at 1, length at 2, length at 4" in " ".join(capsys.readouterr().out.split())
    (files.folder / "mean.onnx").write_bytes(mean_of(["N", "length", "width"]))
    assert files(model="mean.onnx", golden="lists.parquet") == 64
    assert "leaves 2 axes of a row open" in capsys.readouterr().err


def test_a_whole_policy_works_and_its_other_tables_are_not_read(files):
    """The file that deliveries use is the file that a laptop uses."""
    (files.folder / "whole.toml").write_text(f'model = "irises"\n{POLICY}\n[rollout]\nnewer = "whatever"\n')
    assert files(policy="whole.toml") == 0


def test_a_file_that_is_no_model_fails(files, capsys):
    """What does not load is the model's fault, as in a delivery."""
    assert files(model="golden.parquet") == 1
    assert "failed        loads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "none.toml"}, "none.toml"),
        ({"golden": "none.parquet"}, "there is no such file"),
        ({"model": "none.onnx"}, "there is no such file"),
        ({"golden": "irises.toml"}, "is no parquet file"),
        ({"policy": "empty.toml"}, "has no table [golden_set]"),
        ({"policy": "typo.toml"}, "unknown key golden_set.min_row"),
        ({"golden": "narrow.parquet"}, "takes [4] a row; the golden set has 2 values"),
        ({"golden": "nulls.parquet"}, "column 'f1' of the golden set has empty cells"),
        ({"golden": "words.parquet"}, "does not fit the model's float32"),
    ],
)
def test_what_cannot_be_used_ends_with_exit_code_64_and_a_sentence(files, capsys, change, words):
    """A wrong file or policy is no verdict about the model."""
    (files.folder / "empty.toml").write_text("")
    (files.folder / "typo.toml").write_text(POLICY.replace("min_rows", "min_row"))
    table = pq.read_table(files.folder / "golden.parquet")
    pq.write_table(table.drop_columns(["f1", "f2"]), files.folder / "narrow.parquet")
    nulls = table.set_column(1, "f1", pa.array([None] * 1000, pa.float32()))
    pq.write_table(nulls, files.folder / "nulls.parquet")
    pq.write_table(table.set_column(1, "f1", pa.array(["a"] * 1000)), files.folder / "words.parquet")
    assert files(**change) == 64
    assert words in capsys.readouterr().err


def test_wrong_usage_is_no_verdict(files, capsys):
    """An unknown gate or option ends with 64, not with argparse's 2."""
    for words in (["check", "golden"], ["check", "golden_set", "--model"], ["check"]):
        with pytest.raises(SystemExit) as ended:
            check.main(words)
        assert ended.value.code == 64


def test_a_missing_label_column_is_named(files, capsys):
    """The sentence lists the columns and says how to name the label."""
    assert files("--label", "truth") == 64
    assert "has no column 'truth'; its columns are f0, f1, f2, f3, label: name one with --label" in capsys.readouterr().err


def test_evidence_is_kept_on_request(files):
    """The numbers behind the verdict can be looked at."""
    assert files("--evidence", str(files.folder / "evidence")) == 0
    assert (files.folder / "evidence" / "metrics.json").exists()


def test_logged_metrics_and_the_sets_age_can_be_given(files, capsys):
    """What a registry would know is said on the command line, and what is not said is not passed."""
    extra = POLICY.replace("min_rows", "max_age_days = 30\nmin_rows") + 'logged_as = "val_accuracy"\n'
    (files.folder / "more.toml").write_text(extra)
    assert files("--logged", "val_accuracy=0.90", "--written", "2020-01-01", policy="more.toml") == 1
    printed = capsys.readouterr().out
    assert "failed        golden_age" in printed
    assert "passed        accuracy_not_worse_than_logged" in printed
    assert files(policy="more.toml") == 2
    printed = capsys.readouterr().out
    assert "inconclusive  golden_age" in printed
    assert "inconclusive  accuracy_not_worse_than_logged" in printed


def test_a_check_needs_neither_airflow_nor_mlflow(files):
    """A laptop has the gate's own libraries and no more; the module runs as a program."""
    words = [
        str(word) for name in ("model.onnx", "golden.parquet", "irises.toml") for word in (f"--{name.split('.')[0]}", files.folder / name)
    ]
    words[4] = "--policy"
    code = (
        "import sys; from validation import check; code = check.main(sys.argv[1:]);"
        "assert not {'airflow', 'mlflow', 'delivery', 'operators'} & set(sys.modules); sys.exit(code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "golden_set", *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=os.environ,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_distribution_can_be_checked_too(files, capsys):
    """The same files go through the other gate, with stable and a suite beside the policy; what nobody stored is skipped in sight."""
    suite = {"expectations": [{"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "label", "value_set": [0, 1, 2]}}]}
    (files.folder / "own.json").write_text(json.dumps(suite))
    (files.folder / "own.toml").write_text(POLICY.replace("psi", 'expectations = "own.json"\npsi'))
    assert files("--stable", str(files.folder / "model.onnx"), gate="distribution", policy="own.toml") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "distribution: PASSED (10 passed, 2 skipped)"
    assert "skipped       from_source" in printed
    assert "1 expectations of the suite hold" in printed
    (files.folder / "own.json").unlink()
    assert files(gate="distribution", policy="own.toml") == 64


def test_traffic_is_compared_when_a_sample_is_given(files, capsys):
    """With the policy's `traffic_drift`, a sample like the golden rows passes, another fails, and none is inconclusive."""
    policy = POLICY.replace("min_rows = 600", "min_rows = 600\ntraffic_drift = true")
    (files.folder / "irises.toml").write_text(policy)
    for name, values in (("alike", files.rows.inputs), ("moved", files.rows.inputs * 3 + 5)):
        column = pa.FixedSizeListArray.from_arrays(values.reshape(-1), 4)
        pq.write_table(pa.table({"X": column}), files.folder / f"{name}.parquet")
    assert [files("--traffic", str(files.folder / f"{name}.parquet")) for name in ("alike", "moved")] == [0, 1]
    assert "traffic_X[0]_ks" in capsys.readouterr().out
    assert (files(), files("--traffic", str(files.folder / "golden.toml"))) == (2, 64)
