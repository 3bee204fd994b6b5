"""How often the golden set's judges are wrong, over thousands of simulated golden sets of 1,000 rows.

Each draw makes labels and the answers of two versions whose true difference is known, and asks `validation.metrics.not_worse`, as the gate
does. Refused means not passed: neither failed nor inconclusive gets a model to production. `tests/test_calibration.py` uses the same
draws. Runs in the environment `golden_set`; `bench.offline` starts it.

What is assumed. *Identical*: the same model exported again; its scores differ by relative rounding of 1e-6 (float32), and one answer in ten
thousand tips over in either direction. *At the margin* and *dropped*: truly worse by so much over all rows that could be drawn. Accuracy,
AUC, F1 and NDCG are so in the way that is hardest to see: few rows get answers that have nothing to do with them, all others are the same.
Margins of the unbounded metrics are shares of a small number: one broken row in a thousand is more than the margin, and no test of 1,000
rows can exclude what a third of them does not hold (the gate's parity findings are about such rows, and the finding says `unless`). Their
candidates are a little worse on all rows: too sure of themselves, or noisier. Two classes, half of the rows each, AUC 0.955, accuracy
0.885; numbers with normal errors; of NDCG 1,000 queries of five rows, since queries are what it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from bench.figures import Figure
from validation.contract import Outcome
from validation.metrics import Answers, not_worse
from validation.policy import HIGHER_IS_BETTER, Metric

ROWS = 1000
MARGIN, DROP = 0.005, 0.01
ERROR = 0.05
DRAWS = 10_000
"""Of accuracy. The others cost up to 5 ms a draw: `FEWER` of each, and the greatest of all rates counts."""

FEWER = 700
QUERY_ROWS, RANKING_NOISE = 5, 0.8
ROUNDING = 1e-6
TIPPED = 1e-4
APART = 1.2
"""Half the distance between the two classes' normal scores, in standard deviations; both balance at 0."""

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[Answers, Answers]
Draw = Callable[[np.random.Generator, int, float], Pair]


def measure() -> list[Figure]:
    """The three figures; each is the worst rate over the metrics, in per cent."""
    refused = {name: 100 - share for name, share in _passed_pct(0.0, 101).items()}
    at_margin, dropped = _passed_pct(MARGIN, 202), _passed_pct(DROP, 303)
    same = f"not passed, same model with relative rounding of {ROUNDING:g} and one answer in {1 / TIPPED:,.0f} tipped each way"
    return [
        _figure("identical_refused_pct", refused, same),
        _figure("margin_passed_pct", at_margin, "true loss of exactly the margin"),
        _figure("drop_passed_pct", dropped, f"true loss of {DROP:g}"),
    ]


def passed(name: str, draw: Draw, worse: float, *, draws: int, seed: int, rows: int = ROWS, margin: float = MARGIN) -> dict[Outcome, float]:
    """Share of draws with each outcome, when the candidate is truly worse by `worse` (0: identical)."""
    rng, metric = np.random.default_rng(seed), policy_metric(name)
    found = [not_worse(name, metric, *draw(rng, rows, worse), margin=margin, error=ERROR).outcome for _ in range(draws)]
    return {outcome: found.count(outcome) / draws for outcome in Outcome}


def policy_metric(name: str) -> Metric:
    """The metric as a policy would have it, with a limit that plays no part here."""
    least, most = (0.5, None) if HIGHER_IS_BETTER[name] else (None, 0.5)
    return Metric(name=name, not_worse_than_stable=MARGIN, at_least=least, at_most=most, group="query" if name == "ndcg" else None)


def _passed_pct(worse: float, seed: int) -> dict[str, float]:
    draws = {name: DRAWS if name == "accuracy" else FEWER for name in DRAWN}
    return {name: 100 * passed(name, draw, worse, draws=draws[name], seed=seed)[Outcome.PASSED] for name, draw in DRAWN.items()}


def _figure(name: str, rates: Mapping[str, float], what: str) -> Figure:
    each = ", ".join(f"{metric} {rate:.2g}" for metric, rate in rates.items())
    how = f"{what}; {ROWS:,} rows, margin {MARGIN:g}, {DRAWS:,} draws of accuracy and {FEWER:,} of each other metric, worst of: {each}"
    return Figure(name=name, value=round(max(rates.values()), 2), unit="%", goal="<= 5", how=how)


# Pairs of versions with a known difference. With `worse` 0 the second is the first with rounding noise.


def accuracy(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """Rows that only the reference gets right, `worse` more of them than rows that only the candidate does."""
    where = rng.random(rows)
    right = rng.random(rows) < chance_right()
    lost, won = where < worse + TIPPED, where > 1 - TIPPED
    labels = np.ones(rows, dtype=int)
    return _answers(labels, predicted=(right | won) & ~lost), _answers(labels, predicted=(right | lost) & ~won)


def auc(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """A share q of the rows gets any row's score. Real against random ranks (A + 1/2) / 2, random against random 1/2."""
    area = _normal(APART * math.sqrt(2))
    # (1 - q)^2 A + 2 q (1 - q) (A + 1/2) / 2 + q^2 / 2 = A - q (A - 1/2)
    return _scored(rng, rows, worse / (area - 0.5))


def f1(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """A share of the hits is lost: F1 = t / (1/2 + (t + f) / 2) with true and false positive rates t and f."""
    hit, false = chance_right(), 1 - chance_right()
    wanted = 2 * hit / (1 + hit + false) - worse
    lost = rng.random(rows) < 1 - wanted * (1 + false) / (2 - wanted) / hit
    labels, scores = _scores(rng, rows)
    return _answers(labels, predicted=(scores > 0) & ~(lost & (labels == 1))), _answers(labels, predicted=scores > 0)


def log_loss(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """The candidate is too sure of itself: all log odds are too great by one factor, which costs most on the rows that are wrong."""
    labels, scores = _scores(rng, rows)
    sure = (1 + _rounding(rng, rows)) * (_overconfidence(worse) if worse else 1)
    return _answers(labels, scores=_chance(sure * scores)), _answers(labels, scores=_chance(scores))


@lru_cache
def _overconfidence(worse: float) -> float:
    """The factor above 1 on the log odds that raises the expected log loss by this share (Gauss-Hermite quadrature, bisection)."""
    scores, weights = np.polynomial.hermite_e.hermegauss(200)

    def loss(factor: float) -> float:
        return float(weights @ np.logaddexp(0, -2 * APART * factor * (scores + APART)))

    low, high = 1.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < (1 + worse) * loss(1) else (low, middle)
    return low


def calibration_error(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """The reference is calibrated; all of the candidate's probabilities are too great by `worse`."""
    chance = rng.uniform(0.03, 0.97, rows)
    labels = (rng.random(rows) < chance).astype(int)
    return _answers(labels, scores=chance * (1 + _rounding(rng, rows)) + worse), _answers(labels, scores=chance)


def rmse(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """Independent normal noise on top, so that all normal errors grow by the share `worse`."""
    labels, errors = rng.uniform(1, 2, rows), rng.normal(0, 0.1, rows)
    more = rng.normal(0, 0.1 * math.sqrt((1 + worse) ** 2 - 1), rows) + _rounding(rng, rows)
    return _answers(labels, predicted=labels + errors + more), _answers(labels, predicted=labels + errors)


def ndcg(rng: np.random.Generator, rows: int, worse: float) -> Pair:
    """Queries of five rows, so many as `rows`; in a share of them the candidate ranks by chance, so that the mean falls by `worse`."""
    relevance, scores = _rankings(rng, rows)
    broken = rng.random((rows, 1)) < (worse / _ranked_by_chance() if worse else 0)
    candidate = np.where(broken, rng.random(relevance.shape), scores * (1 + rng.normal(0, ROUNDING, relevance.shape)))
    groups = np.repeat(np.arange(rows), QUERY_ROWS)
    one, other = (Answers(labels=relevance.ravel(), scores=each.ravel(), groups=groups) for each in (candidate, scores))
    return one, other


@lru_cache
def _ranked_by_chance() -> float:
    """What a query's NDCG falls by on average when its rows are ranked by chance: over 200,000 queries, to 0.0006."""
    rng = np.random.default_rng(404)
    relevance, scores = _rankings(rng, 200_000)
    lost = _gain(relevance, scores) - _gain(relevance, np.asarray(rng.random(relevance.shape)))
    return float((lost / _gain(relevance, relevance)).mean())


def _rankings(rng: np.random.Generator, queries: int) -> tuple[Array, Array]:
    """Relevances from 0 to 2, one row of each query surely relevant, and scores that follow them; both [queries, QUERY_ROWS]."""
    relevance = rng.integers(0, 3, (queries, QUERY_ROWS)).astype(float)
    relevance[:, 0] = 2
    return relevance, relevance + rng.normal(0, RANKING_NOISE, relevance.shape)


def _gain(relevance: Array, scores: Array) -> Array:
    """Discounted gain of each query, [queries] (Jarvelin and Kekalainen 2002)."""
    ranked = np.take_along_axis(relevance, np.argsort(-scores, axis=1), axis=1)
    return np.asarray(ranked @ (1 / np.log2(np.arange(QUERY_ROWS) + 2)))


DRAWN: Mapping[str, Draw] = {
    "accuracy": accuracy,
    "auc": auc,
    "f1": f1,
    "log_loss": log_loss,
    "calibration_error": calibration_error,
    "rmse": rmse,
    "mae": rmse,
    "mape": rmse,
    "ndcg": ndcg,
}


def chance_right() -> float:
    return _normal(APART)


def _scored(rng: np.random.Generator, rows: int, broken: float) -> Pair:
    """Scores of two versions; a share of the candidate's rows gets scores that have nothing to do with them."""
    labels, scores = _scores(rng, rows)
    candidate = np.where(rng.random(rows) < broken, _scores(rng, rows)[1], scores * (1 + _rounding(rng, rows)))
    return _answers(labels, scores=_chance(candidate)), _answers(labels, scores=_chance(scores))


def _chance(scores: Array) -> Array:
    """Of the second class: Bayes' rule for two normal classes."""
    return np.asarray(1 / (1 + np.exp(-2 * APART * scores)))


def _scores(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
    labels = rng.integers(0, 2, rows)
    return labels, rng.normal(APART * (2 * labels - 1))


def _answers(labels: Array, *, predicted: Array | None = None, scores: Array | None = None) -> Answers:
    answered = predicted.astype(int) if predicted is not None and predicted.dtype == bool else predicted
    return Answers(labels=labels, predicted=answered, scores=scores, classes=(0, 1) if labels.dtype.kind == "i" else None)


def _rounding(rng: np.random.Generator, rows: int) -> Array:
    return rng.normal(0, ROUNDING, rows)


def _normal(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2
