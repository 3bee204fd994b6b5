"""Probe rows: each feature at its edges, the same every time, and never a value that the golden set does not hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from validation import probes
from validation.probes import probe_rows

TABLES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.floats(-1e6, 1e6, width=32) | st.just(np.nan)
)


def same(left, right):
    return all(np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f") for name in left)


@given(TABLES)
def test_every_feature_reaches_its_edges_with_golden_values_only(values):
    """Smallest and greatest of each feature appear, every cell is a golden value of its feature, NaN only where it was."""
    found = probe_rows({"X": values})["X"]
    assert found.dtype == values.dtype
    assert found.shape[1:] == values.shape[1:]
    for probe, golden in zip(found.reshape(len(found), -1).T, values.reshape(len(values), -1).T, strict=True):
        finite = golden[np.isfinite(golden)]
        assert set(probe[np.isfinite(probe)]) <= set(finite)
        assert finite.size == 0 or {finite.min(), finite.max()} <= set(probe)
        assert bool(np.isnan(probe).any()) == bool(np.isnan(golden).any())


@given(TABLES)
def test_the_same_golden_rows_give_the_same_probes(values):
    """Export and gate need not exchange a seed."""
    assert same(probe_rows({"X": values, "Y": values[:, :1]}), probe_rows({"X": values.copy(), "Y": values[:, :1].copy()}))


def test_each_feature_is_pushed_alone_and_all_at_once():
    """One cell of a golden row changes in each single probe; the joint ones change all."""
    golden = np.arange(12, dtype=np.int64).reshape(4, 3)
    found = probe_rows({"X": golden})["X"]
    assert found.tolist()[:6] == [[0, 1, 2], [9, 4, 5], [6, 1, 8], [9, 10, 11], [0, 1, 2], [3, 4, 11]]
    assert found.tolist()[6:] == [[0, 1, 2], [9, 10, 11]]


def test_missing_values_are_probed_where_the_golden_set_has_them():
    """A model that never saw a missing value need not answer one."""
    golden = np.array([[1.0, np.nan], [2.0, 5.0]])
    missing = np.isnan(probe_rows({"X": golden})["X"])
    assert missing.any(axis=0).tolist() == [False, True]
    assert missing[-1].tolist() == [False, True]


def test_words_are_pushed_to_the_shortest_and_longest_and_to_empty_ones():
    """Text has no smallest number; an empty word is its missing value."""
    golden = np.array([["red"], ["green"], [""]], dtype=object)
    assert probe_rows({"colour": golden})["colour"].ravel().tolist() == ["red", "green", "red", "green", "", ""]


def test_inputs_keep_their_rows_together():
    """While one input is pushed the others stay what they are in that golden row."""
    golden = {"a": np.arange(5.0).reshape(-1, 1), "b": np.arange(5.0).reshape(-1, 1) * 10}
    found = probe_rows(golden)
    assert len(found["a"]) == len(found["b"])
    moved = (found["a"] * 10 != found["b"]).ravel()
    assert found["b"].ravel()[:4].tolist() == [0, 10, 20, 30]
    assert moved.any()


def test_wide_rows_give_few_probes(monkeypatch):
    """A picture of many pixels must not make more probes than golden rows would cost."""
    monkeypatch.setattr(probes, "FEATURES", 10)
    assert len(probe_rows({"X": np.zeros((2, 1000), np.float32)})["X"]) == 2 * 10 + 2
    monkeypatch.setattr(probes, "CELLS", 2000)
    assert len(probe_rows({"X": np.zeros((2, 1000), np.float32)})["X"]) == 2 * 1 + 2


def test_a_single_number_a_row_is_pushed_too():
    """An input may have no second dimension."""
    assert probe_rows({"X": np.array([1, 5, 3])})["X"].tolist() == [1, 5, 1, 5]


def test_no_rows_give_no_probes():
    """Of an empty golden set there is nothing to push."""
    assert probe_rows({"X": np.zeros((0, 4), np.float32)})["X"].shape == (0, 4)
