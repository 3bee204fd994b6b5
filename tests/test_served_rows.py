"""validation.served_rows: what a server answers is held against the reference, row by row."""

import numpy as np
import pytest

from validation.served_rows import rows_allowed, rows_outside


def test_rows_are_compared_one_by_one():
    """A row is outside when any of its outputs is; a NaN always is; a flat reference equals a column."""
    reference = {"label": np.array([0, 1, 2]), "share": np.array([[0.5], [0.25], [1.0]])}
    good = {"label": np.array([[0], [1], [2]]), "share": reference["share"] + 1e-4}
    assert rows_outside(good, reference) == 0
    assert rows_outside({**good, "label": np.array([[0], [0], [2]])}, reference) == 1
    assert rows_outside({**good, "share": np.array([[np.nan], [0.25], [np.nan]])}, reference) == 2
    assert rows_outside({"word": np.array([[b"low"], [b"high"]], dtype=object)}, {"word": np.array(["low", "low"])}) == 1


@pytest.mark.parametrize("answer", [{}, {"label": np.zeros((3, 1))}, {"label": None}, {"other": np.zeros(2)}, {"label": np.zeros((2, 2))}])
def test_outputs_that_differ_in_name_or_shape_are_no_answer(answer: dict[str, np.ndarray]):
    """Nothing is compared with something else, and no output may be missing."""
    with pytest.raises(ValueError, match="the reference"):
        rows_outside(answer, {"label": np.zeros(2)})


def test_nothing_to_compare_is_no_agreement():
    """A bundle without a reference shows nothing."""
    with pytest.raises(ValueError, match="the reference has"):
        rows_outside({}, {})


def test_one_row_in_64_may_fall_either_way():
    """A slip more is allowed with every 64 rows, and one in fewer."""
    assert [rows_allowed(rows) for rows in (20, 64, 100, 128, 1000)] == [1, 1, 1, 2, 15]
