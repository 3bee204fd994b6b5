"""Compares what a server answered about golden rows with the bundle's reference, row by row. Pure.

`delivery.start_candidate` asks the version's own server, the gate `integration` the same one through the gateway. Both look for a model
that is served otherwise than it was judged, not for quality: `golden_set` compared every row, with the policy's own limits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MIN_ROWS = 20
"""Below it nothing is said about a server."""

ATOL = RTOL = 1e-3  # the server computes in single precision, the reference perhaps not
ROWS_A_SLIP = 64  # a row on the edge of two classes may fall either way; golden_set has counted such rows with its own limit

Arrays = Mapping[str, np.ndarray]


def rows_allowed(rows: int) -> int:
    """How many of so many rows may lie outside of the tolerances: one, and one more with every 64."""
    return max(1, rows // ROWS_A_SLIP)


def rows_outside(answers: Arrays, reference: Arrays) -> int:
    """Rows with any output outside of the tolerances; a NaN is outside. Raises `ValueError` for outputs or shapes that differ."""
    return int(np.sum(~rows_inside(answers, reference)))


def rows_inside(answers: Arrays, reference: Arrays) -> np.ndarray:
    """Which rows agree in all outputs, shape [rows]. Raises `ValueError` for outputs or shapes that differ."""
    if set(answers) != set(reference) or not reference:
        raise ValueError(f"the server answers {sorted(answers)}, the reference has {sorted(reference)}")
    inside = [_inside(name, answers[name], expected) for name, expected in reference.items()]
    return np.asarray(np.logical_and.reduce(inside))


def _inside(name: str, answer: np.ndarray | None, expected: np.ndarray) -> np.ndarray:
    """Which rows agree, shape [rows]. Triton gives [rows, 1] where a model gives [rows]."""
    if answer is None or answer.shape[:1] != expected.shape[:1] or answer.size != expected.size:
        raise ValueError(f"{name} has shape {list(getattr(answer, 'shape', []))}, the reference {list(expected.shape)}")
    answer, expected = answer.reshape(len(answer), -1), expected.reshape(len(expected), -1)
    if expected.dtype.kind in "fc":
        return np.asarray(np.isclose(answer, expected, atol=ATOL, rtol=RTOL).all(axis=1))
    return np.asarray((_plain(answer) == expected).all(axis=1))


def _plain(answer: np.ndarray) -> np.ndarray:
    """Triton's clients give strings as bytes."""
    if answer.dtype.kind != "O":
        return answer
    texts = [each.decode() if isinstance(each, bytes) else each for each in answer.ravel()]
    return np.array(texts).reshape(answer.shape)
