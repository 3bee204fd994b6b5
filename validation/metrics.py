"""The policy's metrics on golden rows, with what each row contributes to them, and their findings. The gate `golden_set` calls it.

Estimates are scikit-learn's (calibration error, which it lacks, and NDCG of queries of any length are computed here). What each row
contributes goes to a judge, which knows how sure the estimate is. Nothing here reads files, runs models or decides anything by itself.

| metric            | of two classes                    | of several classes                 | contributions of a row                    |
|-------------------|-----------------------------------|------------------------------------|-------------------------------------------|
| accuracy          | rows that are right               | the same                           | counted: exact tests                      |
| auc               | of the second class               | one against the rest, plain mean   | its placement (DeLong et al. 1988)        |
| f1                | of the second class               | macro: plain mean over the classes | influence on the quotient (delta method)  |
| log_loss          | needs probabilities               | the same                           | its own loss                              |
| calibration_error | of the second class's probability | of the greatest probability        | gap, with its bin's sign; bias bounded    |
| rmse              | numbers                           |                                    | influence on the root (delta method)      |
| mae, mape         | numbers                           |                                    | its own error                             |
| ndcg              | relevances from 0, by query       |                                    | a query's own NDCG: queries are counted   |

What cannot be computed is `Unmeasurable`, never a number that happens to compare well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from validation.contract import Finding, Outcome
from validation.judges import (
    Contributions,
    accuracy_at_least,
    mean_at_least,
    mean_at_most,
    paired_mean_not_worse,
    paired_not_worse,
    unpaired_mean_not_worse,
)
from validation.policy import Metric

BINS = 10
"""Equal bins of probability in the calibration error, as in Naeini, Cooper and Hauskrecht (2015, "Obtaining well calibrated probabilities
using Bayesian binning"). More bins see more and know each less well."""

LEAST_PROBABILITY = float(np.finfo(np.float32).eps)
"""What a probability of 0 counts as in the log loss (a loss of 15.9), for every version alike: scikit-learn's depends on the dtype."""

SUM_ATOL = 1e-3
"""How far a row's probabilities may be from 1 in sum: float16's rounding."""

LOST_RANK = 0.5
"""What a row whose score says nothing any more loses of its placement on average: the least that an unseen row is taken to cost an AUC."""

Array = np.ndarray[Any, np.dtype[Any]]


class Unmeasurable(ValueError):
    """The metric has no value on these answers: nothing was shown. `advice` says what would give it one."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.advice = advice


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a version says about the golden rows, beside the truth.

    `labels` [rows]; `predicted` [rows], the class or number answered; `scores` [rows], [rows, 1] or [rows, classes] in the order of
    `classes` (without them: the labels' own, sorted); `groups` [rows], the query of each row, for NDCG.
    """

    labels: Array
    predicted: Array | None = None
    scores: Array | None = None
    groups: Array | None = None
    classes: tuple[Any, ...] | None = None


def within_limit(name: str, metric: Metric, answers: Answers, *, error: float) -> Finding:
    """Does the metric surely keep the policy's limit? Raises `Unmeasurable`."""
    if metric.name == "accuracy":
        right = _right(answers)
        return accuracy_at_least(name=name, correct=int(right.sum()), n=len(right), limit=metric.limit, error=error)
    judge = mean_at_least if metric.higher_is_better else mean_at_most
    return judge(name=name, contributions=contributions(metric, answers), limit=metric.limit, error=error)


def not_worse(name: str, metric: Metric, candidate: Answers, reference: Answers, *, margin: float, error: float) -> Finding:
    """Is the candidate surely not worse than the reference by `margin` on the same rows? Raises `Unmeasurable`, `ValueError` for others."""
    _same_rows(candidate, reference)
    if metric.name == "accuracy":
        won, lost = _right(candidate), _right(reference)
        counts = {"wins": int((won & ~lost).sum()), "losses": int((lost & ~won).sum()), "n": len(won)}
        return paired_not_worse(name=name, **counts, margin=margin, error=error)
    if metric.name == "calibration_error":
        return _not_worse_calibrated(name, metric, candidate, reference, margin=margin, error=error)
    return _paired(name, metric, contributions(metric, candidate), contributions(metric, reference), margin=margin, error=error)


def not_worse_than_logged(name: str, metric: Metric, answers: Answers, *, logged: float, margin: float, error: float) -> Finding:
    """Is the metric surely not worse by `margin` than what training logged on other rows? Not paired: see the judge for what that costs.

    Raises `Unmeasurable`, also for a logged value that the metric cannot have.
    """
    if not (0 <= logged < np.inf and (metric.relative or logged <= 1)):
        allowed = "from 0" if metric.relative else "from 0 to 1"
        raise Unmeasurable(
            f"training logged {metric.name} = {logged:g}, which must be {allowed}", f"log {metric.name} as a number {allowed}"
        )
    return unpaired_mean_not_worse(
        name=name,
        candidate=contributions(metric, answers),
        logged=logged,
        margin=margin,
        error=error,
        higher_is_better=metric.higher_is_better,
        relative=metric.relative,
    )


def contributions(metric: Metric, answers: Answers) -> Contributions:
    """The metric and what each row (of NDCG: each query) contributes to it. Raises `Unmeasurable`."""
    if len(answers.labels) == 0:
        raise Unmeasurable("no rows: nothing was shown", "give the golden set rows")
    return _CONTRIBUTIONS[metric.name](answers)


def _paired(name: str, metric: Metric, candidate: Contributions, reference: Contributions, *, margin: float, error: float) -> Finding:
    return paired_mean_not_worse(
        name=name,
        candidate=candidate,
        reference=reference,
        margin=margin,
        error=error,
        higher_is_better=metric.higher_is_better,
        relative=metric.relative,
    )


def _same_rows(candidate: Answers, reference: Answers) -> None:
    for one, other in ((candidate.labels, reference.labels), (candidate.groups, reference.groups)):
        if one is not other and (one is None or other is None or not np.array_equal(one.astype(str), other.astype(str))):
            raise ValueError("the two versions must answer the same rows, with the same labels and groups, in the same order")


# Classes


def _right(answers: Answers) -> Array:
    labels, predicted = _alike(_labels(answers), _predicted(answers))
    return np.asarray(labels == predicted)


def _accuracy(answers: Answers) -> Contributions:
    right = _right(answers).astype(float)
    return Contributions(estimate=float(right.mean()), values=right.tolist(), scale=1.0)


def _auc(answers: Answers) -> Contributions:
    from sklearn.metrics import roc_auc_score

    codes, classes = _codes(answers)
    columns = _columns(answers, classes)
    wanted = range(len(classes)) if len(classes) > 2 else (1,)
    each = [_one_auc(codes == k, columns[:, k], float(roc_auc_score(codes == k, columns[:, k]))) for k in wanted]
    return _plain_mean(each)


def _one_auc(positive: Array, scores: Array, auc: float) -> Contributions:
    """Placements of DeLong, DeLong and Clarke-Pearson (1988) by ranks (Sun and Xu 2014), each class weighted by its share of the rows."""
    from scipy.stats import rankdata

    ranks, values, share = rankdata(scores), np.empty(len(scores)), float(positive.mean())
    for rows, part, sign in ((positive, share, 1), (~positive, 1 - share, -1)):
        beaten = (ranks[rows] - rankdata(scores[rows])) / (~rows).sum()
        values[rows] = (sign * beaten - (auc if sign > 0 else auc - 1)) / part
    return Contributions(estimate=auc, values=values.tolist(), scale=LOST_RANK / min(share, 1 - share))


def _f1(answers: Answers) -> Contributions:
    from sklearn.metrics import f1_score

    codes, classes = _codes(answers)
    predicted = _coded(_predicted(answers), classes, "predicted")
    wanted = list(range(len(classes))) if len(classes) > 2 else [1]
    scores = np.asarray(f1_score(codes, predicted, labels=wanted, average=None, zero_division=0.0))
    each = [_one_f1(codes == k, predicted == k, float(score)) for k, score in zip(wanted, scores, strict=True)]
    mistaken = max(one.estimate / weight for one, weight in each) if len(each) > 1 else 0.0  # a lost row is another class's false alarm too
    whole = _plain_mean([one for one, _ in each])
    return replace(whole, scale=whole.scale + mistaken / len(each))


def _one_f1(labelled: Array, predicted: Array, score: float) -> tuple[Contributions, float]:
    """F1 is 2 TP / D with D = 2 TP + FP + FN, labelled + predicted rows; with D by row. A hit that is lost costs (2 - F1) / D."""
    weight = float(labelled.mean() + predicted.mean())
    values = (2.0 * (labelled & predicted) - score * (labelled.astype(float) + predicted)) / weight
    return Contributions(estimate=score, values=values.tolist(), scale=(2 - score) / weight), weight


def _log_loss(answers: Answers) -> Contributions:
    from sklearn.metrics import log_loss

    codes, classes = _codes(answers, every=False)
    chances = np.clip(_probabilities(answers, classes), LEAST_PROBABILITY, 1)
    own = chances[np.arange(len(codes)), codes]
    with warnings.catch_warnings():  # of sums that are off by the roundings that `_probabilities` allows
        warnings.simplefilter("ignore", UserWarning)
        value = float(log_loss(codes, chances, labels=range(len(classes))))
    none = int((own == LEAST_PROBABILITY).sum())
    note = f"{none} rows gave their class no chance and count as a loss of {-np.log(LEAST_PROBABILITY):.1f}" if none else ""
    return Contributions(estimate=value, values=(-np.log(own)).tolist(), scale=_some(value, "log_loss"), note=note)


@dataclass(frozen=True, kw_only=True)
class _Gaps:
    """By row: its bin of probability, and the probability minus what came true."""

    bins: Array
    gaps: Array

    def sums(self) -> Array:
        """The bins' gaps as shares of all rows; their absolute values add up to the calibration error."""
        return np.bincount(self.bins, self.gaps, minlength=BINS) / len(self.gaps)

    def signed(self, sums: Array) -> Array:
        """The rows' gaps with the signs of these sums."""
        return np.where(sums < 0, -1.0, 1.0)[self.bins] * self.gaps


def _gaps(answers: Answers) -> _Gaps:
    codes, classes = _codes(answers, every=False)
    chances = _probabilities(answers, classes)
    top = chances.argmax(axis=1) if len(classes) > 2 else np.ones(len(codes), dtype=int)
    said = chances[np.arange(len(codes)), top]
    return _Gaps(bins=np.minimum((said * BINS).astype(int), BINS - 1), gaps=said - (codes == top))


def _calibration_error(answers: Answers) -> Contributions:
    """Sum over bins of |mean probability - share that came true|, weighted by rows (Naeini et al. 2015; of the top class Guo et al. 2017).

    An absolute value of something noisy is too large on average, by the sum of the bins' mean absolute errors at most (`over`), and never
    too small: whatever the true signs are, the signs seen give the greatest sum.
    """
    found = _gaps(answers)
    values = found.signed(found.sums())
    noise = np.sqrt(np.bincount(found.bins, found.gaps**2, minlength=BINS)) / len(found.gaps)
    return Contributions(estimate=float(values.mean()), values=values.tolist(), scale=1.0, over=float(np.sqrt(2 / np.pi) * noise.sum()))


def _not_worse_calibrated(name: str, metric: Metric, candidate: Answers, reference: Answers, *, margin: float, error: float) -> Finding:
    """Two ways to show it, with half the error each. The difference of the two errors, whose bias bound is wide; and the bins' own moves:
    an error grows by no more than its bins' gaps moved, which two versions that say nearly the same can show on few rows.
    """
    half = error / 2
    finding = _paired(name, metric, contributions(metric, candidate), contributions(metric, reference), margin=margin, error=half)
    if finding.outcome is not Outcome.INCONCLUSIVE:
        return finding
    moves = _moved(_gaps(candidate), _gaps(reference))
    moved = mean_at_most(name=name, contributions=moves, limit=margin, error=half)
    if moved.outcome is Outcome.PASSED:
        return replace(moved, why=f"the bins' gaps moved by {moved.why}")
    return replace(finding, advice=moved.advice) if moves.estimate < margin else finding


def _moved(candidate: _Gaps, reference: _Gaps) -> Contributions:
    moves = candidate.sums() - reference.sums()
    values = candidate.signed(moves) - reference.signed(moves)
    return Contributions(estimate=float(np.abs(moves).sum()), values=values.tolist(), scale=1.0)


# Numbers


def _rmse(answers: Answers) -> Contributions:
    from sklearn.metrics import root_mean_squared_error

    labels, predicted = _numbers(answers)
    value = _some(float(root_mean_squared_error(labels, predicted)), "rmse")
    return Contributions(estimate=value, values=(((labels - predicted) / value) ** 2 * value / 2).tolist(), scale=value)


def _mae(answers: Answers) -> Contributions:
    from sklearn.metrics import mean_absolute_error

    labels, predicted = _numbers(answers)
    value = _some(float(mean_absolute_error(labels, predicted)), "mae")
    return Contributions(estimate=value, values=np.abs(labels - predicted).tolist(), scale=value)


def _mape(answers: Answers) -> Contributions:
    from sklearn.metrics import mean_absolute_percentage_error

    labels, predicted = _numbers(answers)
    if not labels.all():
        raise Unmeasurable(f"{int((labels == 0).sum())} labels are 0: no error is a share of them", "use mae, or leave these rows out")
    value = _some(float(mean_absolute_percentage_error(labels, predicted)), "mape")
    return Contributions(estimate=value, values=np.abs((labels - predicted) / labels).tolist(), scale=value)


def _some(value: float, name: str) -> float:
    """A loss above 0: without any error on any row there is no unit to say how much another row might cost."""
    if not value > 0:
        raise Unmeasurable(f"{name} is {value:g}: not one row has any error", "look whether the label is among the inputs, or use accuracy")
    return value


# Queries


def _ndcg(answers: Answers) -> Contributions:
    """By query, gains as they are labelled, ties shared out (Jarvelin and Kekalainen 2002; McSherry and Najork 2008): scikit-learn's."""
    query, gains, scores = _rankings(answers)
    found = _gained(query, gains, scores) / _gained(query, gains, gains)
    return Contributions(estimate=float(found.mean()), values=found.tolist(), scale=1.0, rows="queries")


def _gained(query: Array, gains: Array, scores: Array) -> Array:
    """Discounted gain [queries] when each query's rows are ordered by score; rows with the same score share their places' discounts."""
    order = np.lexsort((-scores, query))
    query, gains, scores = query[order], gains[order], scores[order]
    first = np.flatnonzero(np.diff(query, prepend=-1))
    discounts = 1 / np.log2(np.arange(len(query)) - first[query] + 2)
    tied = np.cumsum((np.diff(query, prepend=-1) != 0) | (np.diff(scores, prepend=np.nan) != 0)) - 1
    shared = (np.bincount(tied, discounts) / np.bincount(tied))[tied]
    return np.bincount(query, gains * shared)


def _rankings(answers: Answers) -> tuple[Array, Array, Array]:
    """Query number from 0, relevance and score of each row."""
    if answers.groups is None or len(answers.groups) != len(answers.labels) or not _present(answers.groups).all():
        raise Unmeasurable("rows without a query cannot be ranked", "name the golden set's column of queries in the policy's `group`")
    ranker = answers if answers.scores is None else replace(answers, predicted=answers.scores)
    gains, scores = _numbers(ranker)
    names, query = np.unique(_plain(answers.groups), return_inverse=True)
    if (gains < 0).any():
        raise Unmeasurable(f"{int((gains < 0).sum())} relevances are below 0", "label relevance from 0 (none) upwards")
    _judgeable(names[np.bincount(query) < 2], "have one row, so nothing to order")
    _judgeable(names[np.bincount(query, gains) <= 0], "have no relevant row")
    return query, gains, scores


def _judgeable(names: Array, trouble: str) -> None:
    if len(names):
        raise Unmeasurable(f"{len(names)} queries {trouble}, the first {str(names[0])!r}", "leave these queries out of the golden set")


# Reading the answers


def _labels(answers: Answers) -> Array:
    if not (present := _present(answers.labels)).all():
        why = f"{int((~present).sum())} of {len(present)} labels are missing or not finite, first row {int(present.argmin())}"
        raise Unmeasurable(why, "label every golden row")
    return _plain(_column(answers.labels, len(answers.labels), "the labels' column"))


def _predicted(answers: Answers) -> Array:
    if answers.predicted is None:
        raise Unmeasurable("the model's outputs hold no label or number", "give the model one output that holds it")
    predicted = _column(answers.predicted, len(answers.labels), "the model's answer")
    if not (present := _present(predicted)).all():
        why = f"{int((~present).sum())} answers are missing or not finite, first row {int(present.argmin())}"
        raise Unmeasurable(why, "look at these rows' inputs")
    return _plain(predicted)


def _numbers(answers: Answers) -> tuple[Array, Array]:
    """Labels and predictions as float64."""
    labels, predicted = _labels(answers), _predicted(answers)
    if labels.dtype.kind not in "biuf" or predicted.dtype.kind not in "biuf":
        raise Unmeasurable("labels or predictions are words where numbers are needed", "use a metric of classes")
    return labels.astype(float), predicted.astype(float)


def _column(values: Array, rows: int, what: str) -> Array:
    if values.size != rows or len(values) != rows:
        raise Unmeasurable(f"{what} has shape {list(values.shape)} for {rows} rows", "give the model an output with one value a row")
    return values.reshape(-1)


def _codes(answers: Answers, *, every: bool = True) -> tuple[Array, Array]:
    """The labels' places among the classes, and the classes; with `every`, each class needs a row, and there must be two."""
    labels = _labels(answers)
    classes = np.unique(labels) if answers.classes is None else _plain(np.asarray(answers.classes))
    if len(classes) < 2:
        raise Unmeasurable(
            f"all {len(labels)} labels are {str(classes[0])!r}: one class cannot be told apart", "add rows of the other classes"
        )
    codes = _coded(labels, classes, "labels")
    absent = classes[np.bincount(codes, minlength=len(classes)) == 0]
    if every and len(absent):
        raise Unmeasurable(f"no golden row has the label {str(absent[0])!r}", "add rows of every class")
    return codes, classes


def _coded(values: Array, classes: Array, what: str) -> Array:
    values, known = _alike(values, classes)
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known, values, sorter=order), len(known) - 1)
    codes = order[places]
    unknown = values[known[codes] != values]
    if len(unknown):
        words = ", ".join(map(str, classes[:10]))
        raise Unmeasurable(f"{len(unknown)} {what} are no known class, the first {str(unknown[0])!r}", f"the known classes are {words}")
    return np.asarray(codes)


def _columns(answers: Answers, classes: Array) -> Array:
    """Scores [rows, classes], of two classes also made from the second one's alone; larger means likelier, whatever the unit."""
    if answers.scores is None:
        raise Unmeasurable("the model's outputs hold no scores", "export the model with its probabilities")
    scores = np.asarray(answers.scores, dtype=float)
    scores = scores.reshape(len(scores), -1)
    if not (finite := np.isfinite(scores).all(axis=1)).all():
        raise Unmeasurable(
            f"{int((~finite).sum())} rows have scores that are not finite, first row {int(finite.argmin())}", "look at these rows' inputs"
        )
    if scores.shape == (len(answers.labels), 1) and len(classes) == 2:
        return np.column_stack((-scores, scores))
    if scores.shape != (len(answers.labels), len(classes)):
        found = f"scores have shape {list(scores.shape)} for {len(answers.labels)} rows of {len(classes)} classes"
        raise Unmeasurable(found, "give the model an output with one score a class")
    return scores


def _probabilities(answers: Answers, classes: Array) -> Array:
    """Scores that are probabilities: from 0 to 1, and 1 in sum to within `SUM_ATOL`. Others are refused, not clipped."""
    chances = _columns(answers, classes)
    if answers.scores is not None and answers.scores.size == len(chances):
        chances = np.column_stack((1 - chances[:, 1], chances[:, 1]))
    outside = (chances < 0) | (chances > 1) | (np.abs(chances.sum(axis=1, keepdims=True) - 1) > SUM_ATOL)
    if outside.any():
        bad = outside.any(axis=1)
        why = f"the scores of {int(bad.sum())} rows are no probabilities, first row {int(bad.argmax())}"
        raise Unmeasurable(why, "export the model with probabilities, not logits")
    return chances


def _alike(one: Array, other: Array) -> tuple[Array, Array]:
    """Both as numbers if both are, else both as words."""
    if one.dtype.kind in "biuf" and other.dtype.kind in "biuf":
        return one, other
    return _words(one), _words(other)


def _words(values: Array) -> Array:
    """As text; a whole number is written as one, whatever its type: tables with gaps hold 1 as 1.0."""
    whole = values.dtype.kind == "f" and bool((values == np.floor(values)).all())
    return (values.astype(np.int64) if whole else values).astype(str)


def _plain(values: Array) -> Array:
    """An array of objects as numbers, if all are, or as words."""
    if values.dtype.kind != "O":
        return values
    numbers = all(isinstance(each, int | float | np.number | np.bool_) for each in values)
    return values.astype(float) if numbers else values.astype(str)


def _present(values: Array) -> Array:
    """Mask: neither missing nor NaN nor infinite."""
    if values.dtype.kind == "f":
        return np.isfinite(values)
    if values.dtype.kind == "O":
        return np.array([each is not None and each == each and each not in {np.inf, -np.inf} for each in values], dtype=bool)  # noqa: PLR0124 - NaN
    return np.ones(len(values), dtype=bool)


def _plain_mean(each: list[Contributions]) -> Contributions:
    """The mean of statistics on the same rows, each with the same weight."""
    return Contributions(
        estimate=float(np.mean([one.estimate for one in each])),
        values=np.mean([one.values for one in each], axis=0).tolist(),
        scale=max(one.scale for one in each) / len(each),
    )


_CONTRIBUTIONS: Mapping[str, Callable[[Answers], Contributions]] = {
    "accuracy": _accuracy,
    "auc": _auc,
    "f1": _f1,
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
    "rmse": _rmse,
    "mae": _mae,
    "mape": _mape,
    "ndcg": _ndcg,
}
