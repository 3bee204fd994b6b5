"""Reads a model's outputs as answers to the labels: which output is the label, which the scores, which class a column of scores is.

`validation.scoring` calls it. ONNX files name their outputs as they please and say nothing of classes, so everything is read from form: one
whole number or word a row is the label, one float vector a row is scores, one float a row is a score or a number. What can be read in two
ways is not read at all. No metric is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from validation.metrics import Answers, Unmeasurable
from validation.parity import NUMBERS, RANKING, is_float, is_text, is_vector

COLUMNS_AGREE = 0.99
"""Share of rows whose label must be that of their greatest score, for the scores' columns to be taken in the labels' order."""

Arrays = Mapping[str, np.ndarray]


def read_answers(metric: str, outputs: Arrays, labels: np.ndarray, groups: np.ndarray | None = None) -> Answers:
    """Answers fit for this metric, on the rows of `labels` [rows]; raises `Unmeasurable` with what the outputs lack."""
    labels = plain(labels)
    if metric in NUMBERS:
        return Answers(labels=labels, predicted=_number(outputs))
    if metric in RANKING:
        return Answers(labels=labels, scores=_number(outputs), groups=groups)
    return _classes(outputs, labels)


def predicted(outputs: Arrays) -> np.ndarray | None:
    """The label of each row: the one output with one whole number or word a row, else the place of the greatest in the one vector.

    A single score between 0 and 1 a row is read as the chance of the second of two classes. None when nothing exists once: then it is
    not known what the model says.
    """
    labels, vectors, columns = _labels(outputs), _vectors(outputs), _columns(outputs)
    if len(labels) == 1:
        return np.asarray(labels[0].reshape(-1))
    if not labels and len(vectors) == 1:
        return np.asarray(vectors[0].argmax(axis=1))
    if not labels and not vectors and len(columns) == 1 and _are_chances(columns[0]):
        return np.asarray((columns[0].reshape(-1) >= 0.5).astype(np.int64))
    return None


def plain(labels: np.ndarray) -> np.ndarray:
    """Text as text, truth values and whole floats as whole numbers: files and models differ in these without meaning anything by it."""
    if is_text(labels):
        return np.asarray(labels.astype(str))
    whole = is_float(labels) and bool(np.isfinite(labels).all()) and not (labels % 1).any()
    return np.asarray(labels.astype(np.int64)) if whole or labels.dtype.kind == "b" else labels


def _classes(outputs: Arrays, labels: np.ndarray) -> Answers:
    said = predicted(outputs)
    if said is None:
        raise Unmeasurable(
            f"none of the outputs {sorted(outputs)} can be read as the label", "give the model one output that holds the label"
        )
    said, scores = plain(said), _scores(outputs)
    from_scores = not _labels(outputs)
    order = _order(labels, said, scores, from_scores=from_scores)
    if from_scores and order is None:
        why = f"which class each score is cannot be said: the labels are {np.unique(labels)[:10].tolist()}"
        raise Unmeasurable(why, "give the model an output that holds the label, or labels that count the classes from 0")
    if from_scores and order is not None:
        said = order[said]
    labels, said = _alike(labels, said)
    return Answers(
        labels=labels, predicted=said, scores=None if order is None else scores, classes=None if order is None else tuple(order.tolist())
    )


def _order(labels: np.ndarray, said: np.ndarray, scores: np.ndarray | None, *, from_scores: bool) -> np.ndarray | None:
    """The class of each column of scores: whole numbers below their count mean themselves, others stand in order."""
    if scores is None:
        return None
    count = 2 if scores.ndim == 1 else scores.shape[1]
    found = np.unique(labels) if from_scores or is_text(labels) != is_text(said) else np.unique(np.concatenate([labels, said]))
    counted = found.dtype.kind in "iu" and found.size and found.min() >= 0 and found.max() < count
    order = np.arange(count) if counted else found
    if len(order) != count:
        return None
    middle = 0.5 if _are_chances(scores) else 0.0
    greatest = (scores >= middle).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
    agree = from_scores or np.mean(np.equal(*_alike(order[greatest], said))) >= COLUMNS_AGREE
    return order if agree else None


def _scores(outputs: Arrays) -> np.ndarray | None:
    vectors, columns = _vectors(outputs), _columns(outputs)
    if len(vectors) == 1:
        return vectors[0]
    return columns[0].reshape(-1) if not vectors and len(columns) == 1 else None


def _number(outputs: Arrays) -> np.ndarray:
    single = _columns(outputs) or [each for each in _labels(outputs) if not is_text(each)]
    if len(single) != 1:
        raise Unmeasurable(
            f"of the outputs {sorted(outputs)} {len(single)} hold one number a row", "give the model exactly one such output"
        )
    return single[0].reshape(-1)


def _alike(labels: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as text when one of them is."""
    return (labels.astype(str), said.astype(str)) if is_text(labels) != is_text(said) else (labels, said)


def _labels(outputs: Arrays) -> list[np.ndarray]:
    return [each for each in outputs.values() if not is_float(each) and each.size == len(each)]


def _vectors(outputs: Arrays) -> list[np.ndarray]:
    return [each for each in outputs.values() if is_vector(each)]


def _columns(outputs: Arrays) -> list[np.ndarray]:
    return [each for each in outputs.values() if is_float(each) and each.size == len(each)]


def _are_chances(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())
