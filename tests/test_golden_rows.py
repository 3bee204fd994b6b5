"""Golden rows read in pieces: the same rows as read whole, and whatever does not fit the manifest is a bad bundle by name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_bundles import SIZE, answers, golden_rows, make_bundle, weights

from validation.bundle import BadBundle, read_bundle
from validation.golden_rows import GoldenRows, read_probes

ROWS = golden_rows(200)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A bundle of 200 rows in row groups of 30, with a column of regions and one of yes and no."""

    def write(root):
        for name in ("inputs", "labels"):
            path = root / f"golden/{name}.parquet"
            pq.write_table(pq.read_table(path), path, row_group_size=30)
        columns = {"region": pa.array(["EU", "US", None, "ASIA"] * 50).dictionary_encode(), "paid": [True, False] * 100}
        pq.write_table(pa.table(columns), root / "golden/slices.parquet", row_group_size=70)

    with read_bundle(make_bundle(tmp_path_factory.mktemp("golden"), rows=ROWS, change=write)) as bundle:
        yield bundle


@given(st.integers(1, 250))
def test_batches_are_the_rows_in_order(opened, batch_rows):
    """Whatever the size of batches and row groups: every row once, with the source model's answers to it."""
    batches = list(GoldenRows(opened).batches(batch_rows))
    assert max(each.rows for each in batches) <= batch_rows
    assert np.array_equal(np.concatenate([each.inputs["X"] for each in batches]), ROWS.inputs)
    right = answers(ROWS.inputs, weights())
    for name, values in right.items():
        assert np.array_equal(np.concatenate([each.reference[name] for each in batches]), values)
    assert [each.start for each in batches] == np.cumsum([0, *(each.rows for each in batches)])[:-1].tolist()


@given(st.sets(st.integers(0, 199)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_labels_are_taken_by_row(opened, wanted):
    """The labels of any rows, in their order."""
    rows = np.array(sorted(wanted), dtype=np.int64)
    assert np.array_equal(GoldenRows(opened).labels(rows), ROWS.labels[rows])


@given(st.lists(st.integers(0, 199), min_size=1, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_inputs_are_taken_by_row(opened, wanted):
    """The inputs of any rows, in any order, one of them as often as asked for."""
    assert np.array_equal(GoldenRows(opened).inputs(np.array(wanted))["X"], ROWS.inputs[wanted])


@pytest.mark.parametrize(("wanted", "found"), [(1, 1), (37, 37), (200, 200), (500, 200)])
def test_the_first_rows_are_the_first(opened, wanted, found):
    """So many rows from the top with the source model's answers, or all where there are fewer."""
    first = GoldenRows(opened).first(wanted)
    assert (first.start, first.rows) == (0, found)
    assert np.array_equal(first.inputs["X"], ROWS.inputs[:found])
    for name, values in answers(ROWS.inputs[:found], weights()).items():
        assert np.array_equal(first.reference[name], values)


def test_the_first_of_no_rows_is_a_bad_bundle(tmp_path):
    """A golden set without rows has no first one."""
    with read_bundle(make_bundle(tmp_path, rows=golden_rows(0))) as bundle, pytest.raises(BadBundle, match="no rows"):
        GoldenRows(bundle).first(5)


def test_columns_are_read_as_text(opened):
    """Slices are named by text: dictionaries, truth values and empty cells become words or none."""
    golden = GoldenRows(opened)
    assert golden.columns == ("region", "paid")
    assert np.concatenate(list(golden.words("region"))).tolist() == ["EU", "US", None, "ASIA"] * 50
    assert np.concatenate(list(golden.words("paid"))).tolist() == ["true", "false"] * 100


def write(name, table):
    return lambda root: pq.write_table(table, root / name)


def vectors(values):
    return pa.table({"X": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), SIZE)})


def read_all(bundle):
    golden = GoldenRows(bundle)
    return list(golden.batches(64)), golden.labels(np.arange(200)), read_probes(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (write("golden/inputs.parquet", vectors(ROWS.inputs[:199])), "inputs.parquet has 199 rows, the manifest says 200"),
        (write("golden/inputs.parquet", pa.table({"Y": ROWS.labels})), r"has columns \['Y'\]; the model takes \['X'\]"),
        (write("golden/inputs.parquet", pa.table({"X": ["word"] * 200})), "column 'X' of the golden set does not fit"),
        (write("golden/inputs.parquet", pa.table({"X": pa.array([None] * 200, pa.float32())})), "has empty cells"),
        (lambda root: (root / "golden/inputs.parquet").write_bytes(b"PAR1"), "no readable parquet file"),
        (write("golden/labels.parquet", pa.table({"label": ROWS.labels[:7]})), "labels.parquet has 7 rows"),
        (write("golden/labels.parquet", pa.table({"truth": ROWS.labels})), "expected one, named label"),
        (write("golden/labels.parquet", pa.table({"label": [None, *ROWS.labels[1:].tolist()]})), "has empty cells"),
        (lambda root: np.save(root / "reference/label.npy", ROWS.labels[:7]), r"reference/label.npy has shape \[7\], there are 200 rows"),
        (lambda root: np.save(root / "reference/label.npy", ROWS.labels.astype(object), allow_pickle=True), "no readable array"),
        (lambda root: (root / "reference/label.npy").write_bytes(b""), "no readable array"),
        (write("probes/inputs.parquet", pa.table({"Y": ROWS.labels})), r"probes/inputs.parquet has columns \['Y'\]"),
        (lambda root: np.save(root / "probes/reference/label.npy", ROWS.labels[:3]), "has shape"),
        (lambda root: (root / "probes/inputs.parquet").write_bytes(b"PAR1"), "probes/inputs.parquet is no readable parquet file"),
    ],
)
def test_what_does_not_fit_the_manifest_is_a_bad_bundle(tmp_path, change, words):
    """Other rows, columns, types, empty cells, pickles and damage are named, and nothing is judged on them."""
    with read_bundle(make_bundle(tmp_path, rows=ROWS, change=change)) as bundle, pytest.raises(BadBundle, match=words):
        read_all(bundle)
