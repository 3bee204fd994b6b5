"""Always-valid judges of latency: is the candidate's mean log latency, median or p99 worse than stable's by more than a margin?

The judge of a rollout asks after every second, for hours; the bench asks too. Pure: arrays in, a finding out. It reads no log and no
policy, and it does not know the share of the traffic: only rows that both versions served (`Served`).

How it decides. Latencies are taken as logarithms above the floor, so that a unit of measurement cannot matter. The candidate's are lowered
by the margin; what is then tested is "not slower than stable" (for `failed`) and "not faster than stable" (for `passed`). Rows are grouped
into blocks of whole seconds that both versions share, and versions are compared within blocks only: a second that is slow for both says
nothing. The evidence against either claim is an e-process; where it passes 1/alpha, the claim is rejected (Ville 1939). It is computed for
all seconds in one pass, and `failed` is said when it crossed at any of them: the verdict is a function of the rows, not of who looked when.

What is exact and what is not. For p99 and independent requests the evidence is an exact e-process (see `_odds_path`). For mean and median
it is asymptotic: a normal mixture with an estimated variance (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central
limit theory and asymptotic confidence sequences") that pays for the estimate as a t-test does. For all three, correlated requests are
allowed for by a long-run variance from batches that grow with the sample, which is asymptotic again. Simulations: `bench/latencies.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from validation.contract import Finding, Outcome
from validation.findings import inconclusive
from validation.served import Served

Statistic = Literal["mean", "median", "p99"]
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

QUANTILES: dict[str, float] = {"median": 0.5, "p99": 0.99}
FIRST_ROWS: dict[str, int] = {"median": 20, "p99": 100}
"""Rows of stable that the first threshold is taken from; before that nothing is said of a quantile."""

BLOCK_ROWS = 10
"""Stable's rows in a block at least: with fewer beside a candidate's row the comparison would mostly be of stable's own chance."""

MIN_BLOCKS = 5
"""Blocks with rows of both versions below which nothing is said: five seconds of ordinary traffic."""

WINDOW_ROWS = 20_000
"""Stable's latest rows that a threshold is taken from, and that a candidate without stable beside it is compared with."""

REFRESHED_ROWS = 10_000
"""A threshold is renewed after so many rows of stable, or after a quarter more."""

ALONE_AFTER_S = 10
"""Seconds without a row of stable after which the candidate is compared with what stable did before."""

ALONE_BUDGET = 0.1
"""Part of either chance to err that is kept for that comparison (union bound)."""

REQUEST_SPREAD = 0.3
"""Standard deviation of a request's log latency that is believed before any was seen: a few equal values are no certainty."""

PRIOR_BATCHES = 3
"""Weight of that belief, in batches."""

PRIOR_BLOCKS = 10
"""Weight, in blocks, of the belief that blocks are as like each other as their requests let expect."""

EFFECTS: dict[str, float] = {"mean": 0.15, "median": 0.1}
"""Typical differences that the normal mixtures are tuned to: of log latency, and of the share of requests above stable's median."""

RATIOS = 1.5 * 2.0 ** np.arange(5)
"""Alternatives of the mixture for p99: how many times as often the candidate exceeds the threshold. +20 % of log-sigma 0.5 is 2.5."""

TIE = 1e-9
"""Relative difference of latencies that is none: 11 ms is not more than 10 % above 10 ms, whatever the unit."""

_LOOK = "look for the cause in the access log"
_NEVER = "more of the same would not help: the estimate itself lies beyond the margin"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Natural logs of the evidence at the end of each second that has a row, in units of its threshold's log: at 1 or more it is crossed.

    `seconds`: int64, unix time in s. `slower`: against "at most 1 + worse times stable". `faster`: against "at least 1 + exclude times".
    """

    seconds: Whole
    slower: Floats
    faster: Floats

    @property
    def failed_s(self) -> int | None:
        """The second, if any, at which the candidate was first surely slower."""
        return int(self.seconds[np.argmax(self.slower >= 1)]) if (self.slower >= 1).any() else None

    @property
    def passed(self) -> bool:
        """Whether a departure by the margin is excluded at the last second."""
        return bool(len(self.faster) and self.faster[-1] >= 1)


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """Both versions' natural-log latencies above the floor, and how many rows each has at the end of each second that has a row."""

    seconds: Whole
    candidate: Floats
    stable: Floats
    candidate_ends: Whole
    stable_ends: Whole


@dataclass(frozen=True, kw_only=True)
class _Values:
    """What is averaged, a number a row: log latencies, or 1.0 where a request exceeds its threshold and 0.0 where not."""

    candidate: Floats
    stable: Floats


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Rows and sums of either version in blocks of whole seconds; `closing` is the index of each block's last second."""

    closing: Whole
    candidate_ends: Whole
    stable_ends: Whole
    candidate_n: Floats
    stable_n: Floats
    candidate_sum: Floats
    stable_sum: Floats

    @property
    def weight(self) -> Floats:
        """Requests that the block is worth: c s / (c + s), as for any difference of two means (Mantel and Haenszel 1959)."""
        return self.candidate_n * self.stable_n / np.maximum(self.candidate_n + self.stable_n, 1)

    @property
    def score(self) -> Floats:
        """Candidate's mean minus stable's, times the weight."""
        apart = self.candidate_sum / np.maximum(self.candidate_n, 1) - self.stable_sum / np.maximum(self.stable_n, 1)
        return np.asarray(apart * self.weight)


def latency_paths(
    *,
    statistic: Statistic,
    candidate: Served,
    stable: Served,
    worse: float,
    exclude: float,
    indifferent_below_ms: float,
    false_alarm: float,
    miss: float,
) -> Paths:
    """The evidence at every second that has a row, first to last; see `latency_not_worse`. Both must be readable."""
    line = _timeline(candidate, stable, indifferent_below_ms)
    slower = _evidence(statistic, line, worse, 1, false_alarm)
    return Paths(seconds=line.seconds, slower=slower, faster=_evidence(statistic, line, exclude, -1, miss))


def _timeline(candidate: Served, stable: Served, floor_ms: float) -> _Timeline:
    ours, theirs = (np.floor(each.unix_s).astype(np.int64) for each in (candidate, stable))
    seconds = np.union1d(ours, theirs)
    return _Timeline(
        seconds=seconds,
        candidate=np.log(np.maximum(candidate.latency_ms / floor_ms, 1.0)),
        stable=np.log(np.maximum(stable.latency_ms / floor_ms, 1.0)),
        candidate_ends=np.searchsorted(ours, seconds, side="right"),
        stable_ends=np.searchsorted(theirs, seconds, side="right"),
    )


def _evidence(statistic: Statistic, line: _Timeline, margin: float, sign: int, chance: float) -> Floats:
    """The greater of the evidence beside stable and without it, each in units of its own threshold; `sign` 1: slower, -1: faster."""
    beside = _beside(statistic, line, margin, sign) / math.log(1 / (chance * (1 - ALONE_BUDGET)))
    alone = _alone(statistic, line, margin, sign, chance * ALONE_BUDGET)
    return np.maximum(beside, alone)


# Beside stable


def _beside(statistic: Statistic, line: _Timeline, margin: float, sign: int) -> Floats:
    """Log evidence at each second: that of the last block which closed by then."""
    if statistic == "mean":
        values = _Values(candidate=line.candidate - math.log1p(margin), stable=line.stable)
    else:
        line, values = _exceeding(statistic, line, margin)
    blocks = _blocks(line, values)
    at_blocks = _odds_path(blocks, values, sign) if statistic == "p99" else _normal_path(statistic, blocks, values, sign)
    at_blocks = np.where(np.cumsum(blocks.weight > 0) >= MIN_BLOCKS, at_blocks, -math.inf)
    closed = np.searchsorted(blocks.closing, np.arange(len(line.seconds)), side="right")
    return np.concatenate([[-math.inf], at_blocks])[closed]


def _blocks(line: _Timeline, values: _Values) -> _Blocks:
    """A block closes with the second in which stable's count passes a multiple of `BLOCK_ROWS`: later rows move no block."""
    tens = line.stable_ends // BLOCK_ROWS
    closing = np.flatnonzero(np.diff(tens, prepend=0) > 0)
    ours, theirs = line.candidate_ends[closing], line.stable_ends[closing]
    return _Blocks(
        closing=closing,
        candidate_ends=ours,
        stable_ends=theirs,
        candidate_n=np.diff(ours, prepend=0).astype(float),
        stable_n=np.diff(theirs, prepend=0).astype(float),
        candidate_sum=_sums(values.candidate, ours),
        stable_sum=_sums(values.stable, theirs),
    )


def _sums(values: Floats, ends: Whole) -> Floats:
    return np.diff(np.concatenate([[0.0], np.cumsum(values)])[ends], prepend=0.0)


def _normal_path(statistic: Statistic, blocks: _Blocks, values: _Values, sign: int) -> Floats:
    """Log evidence of a difference of means: a normal mixture on the summed scores, whose variance is weight times long-run variance."""
    weight = np.cumsum(blocks.weight)
    spread = REQUEST_SPREAD if statistic == "mean" else 0.5
    ours, batches = _long_run(values.candidate, blocks.candidate_ends, spread)
    theirs, _ = _long_run(values.stable, blocks.stable_ends, spread)
    variance = _with_blocks(blocks, np.maximum(ours, theirs))
    return _mixture(sign * np.cumsum(blocks.score), weight, variance, batches, EFFECTS[statistic])


def _long_run(values: Floats, counts: Whole, spread: float | Floats) -> tuple[Floats, Floats]:
    """Variance that a request adds to a sum of the first `counts` rows, correlation included, and the batches that it is seen in.

    Batches of K rows in order, K the power of two nearest to half the root of the count; half the mean square of the differences between
    neighbours, over K (von Neumann 1941): what drifts slowly does not count, and as K grows all shorter correlation does.
    """
    sizes = np.rint(np.log2(np.maximum(np.sqrt(counts) / 2, 1))).astype(int)
    squares, batches = np.zeros(len(counts)), np.zeros(len(counts))
    for power in range(int(sizes.max(initial=0)) + 1):
        at = sizes == power
        size = 1 << power
        whole = int(counts[at].max(initial=0)) // size
        sums = values[: whole * size].reshape(whole, size).sum(axis=1)
        steps = np.concatenate([[0.0], np.cumsum(np.diff(sums) ** 2) / (2 * size)])
        batches[at] = np.maximum(counts[at] // size - 1, 0)
        squares[at] = steps[batches[at].astype(int)]
    return (squares + PRIOR_BATCHES * spread**2) / (batches + PRIOR_BATCHES), batches


def _with_blocks(blocks: _Blocks, variance: Floats) -> Floats:
    """The variance, or what the blocks show if that is more: a version's own slow second hits many requests at once."""
    scored = np.flatnonzero(blocks.weight > 0)
    scores = blocks.score[scored] / np.sqrt(blocks.weight[scored])
    squares, count = np.zeros(len(variance)), np.zeros(len(variance))
    squares[scored[1:]], count[scored[1:]] = np.diff(scores) ** 2 / 2, 1
    shown = (np.cumsum(squares) + PRIOR_BLOCKS * variance) / (np.cumsum(count) + PRIOR_BLOCKS)
    return np.maximum(variance, shown)


def _mixture(score: Floats, weight: Floats, variance: Floats, batches: Floats, effect: float) -> Floats:
    """Log of the evidence that a sum of this weight has a mean above 0: likelihood ratios averaged over a half-normal prior of effects.

    With Z the sum in standard deviations and u the prior's variance in units of the estimate's, it is
    2 Phi(Z sqrt(w)) (1 + u)^(-1/2) exp(w Z^2 / 2) with w = u / (1 + u) (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021,
    "Time-uniform, nonparametric, nonasymptotic confidence sequences", section 3.2). The exponential is taken as for Student's t with as
    many degrees of freedom as batches (Lai 1976; Wang and Ramdas 2025, "Anytime-valid t-tests and confidence sequences for Gaussian means
    with unknown variance"), and 2 Phi(x) as its lower bound 1 + sqrt(1 - exp(-x^2 / 2)).
    """
    u = weight * effect**2 / variance
    shrunk = u / (1 + u)
    squared = np.divide(score**2, weight * variance, out=np.zeros(len(score)), where=weight > 0)
    student = -(batches + 1) / 2 * np.log1p(-shrunk * squared / (squared + np.maximum(batches, 1)))
    tail = np.log1p(np.sqrt(-np.expm1(-shrunk * squared / 2)))
    return np.asarray(np.where(score > 0, student + tail, 0.0) - np.log1p(u) / 2)


# Above a threshold


def _exceeding(statistic: Statistic, line: _Timeline, margin: float) -> tuple[_Timeline, _Values]:
    """Which requests exceed stable's quantile, the candidate's lowered by the margin; from the first second on that has a threshold.

    The threshold of a second is taken from stable's rows before it: betting on what follows is fair whatever the threshold
    (Howard and Ramdas 2022, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification").
    """
    before = np.concatenate([[0], line.stable_ends])[: len(line.seconds)]
    renewed, thresholds = _thresholds(statistic, line.stable)
    which = np.searchsorted(renewed, before, side="right")
    rest, at = _since(line, int(np.searchsorted(which, 1))), np.concatenate([[math.nan], thresholds])[which]
    ours = np.repeat(at, np.diff(rest.candidate_ends, prepend=0))
    theirs = np.repeat(at, np.diff(rest.stable_ends, prepend=0))
    return rest, _Values(candidate=_above(rest.candidate - math.log1p(margin), ours), stable=_above(rest.stable, theirs))


def _above(logs: Floats, threshold: Floats | float) -> Floats:
    return (logs > threshold + TIE).astype(float)


def _thresholds(statistic: Statistic, logs: Floats) -> tuple[Whole, Floats]:
    """Counts of rows at which the threshold is renewed, and the quantile of the last `WINDOW_ROWS` rows before each."""
    renewed, count = [], FIRST_ROWS[statistic]
    while count <= len(logs):
        renewed.append(count)
        count = min(count + -(-count // 4), count + REFRESHED_ROWS)
    found = [_quantile(logs[max(0, count - WINDOW_ROWS) : count], QUANTILES[statistic]) for count in renewed]
    return np.array(renewed, dtype=np.int64), np.array(found)


def _quantile(values: Floats, level: float) -> float:
    """The smallest value that at least this share of the values does not exceed: always one of them."""
    rank = max(math.ceil(level * len(values)) - 1, 0)
    return float(np.partition(values, rank)[rank])


def _since(line: _Timeline, start: int) -> _Timeline:
    """Without the rows of the seconds before this index; the seconds stay, empty, so that paths keep their length."""
    ours, theirs = (int(ends[start - 1]) if start else 0 for ends in (line.candidate_ends, line.stable_ends))
    return _Timeline(
        seconds=line.seconds,
        candidate=line.candidate[ours:],
        stable=line.stable[theirs:],
        candidate_ends=np.maximum(line.candidate_ends - ours, 0),
        stable_ends=np.maximum(line.stable_ends - theirs, 0),
    )


def _odds_path(blocks: _Blocks, values: _Values, sign: int) -> Floats:
    """Log evidence that the candidate exceeds thresholds more often than stable does (`sign` -1: less often), averaged over `RATIOS`.

    Of a block's exceedances a share p = c / (c + s) would be the candidate's if the rates were equal, r p / (1 + p (r - 1)) were its rate
    r times stable's; the evidence is the product of the likelihood ratios. For independent requests it is an exact e-process, whatever
    the rates and however they move: a block's factor is expected to be at most exp(q (r - 1) (c (1 - p) - s p) / (1 + p (r - 1))) = 1 at
    rate q of both (1 + x <= exp(x); the idea is that of Turner, Ly and Grunwald 2021, "Generic e-variables for exact sequential k-sample
    tests that allow for optional stopping"). Its log is divided by how much more than independent requests the counts vary.
    """
    hits, both = blocks.candidate_sum, blocks.candidate_sum + blocks.stable_sum
    share = blocks.candidate_n / np.maximum(blocks.candidate_n + blocks.stable_n, 1)
    ratios = RATIOS**sign
    gains = np.stack([np.cumsum(hits * math.log(r) - both * np.log1p(share * (r - 1))) for r in ratios])
    gains /= np.maximum(_clustering(values.candidate, blocks.candidate_ends), _clustering(values.stable, blocks.stable_ends))
    return np.asarray(np.logaddexp.reduce(gains, axis=0) - math.log(len(ratios)))


def _clustering(exceeded: Floats, counts: Whole) -> Floats:
    """How many times as much as independent requests' the count of exceedances varies, at least 1."""
    rate = np.concatenate([[0.0], np.cumsum(exceeded)])[counts] / np.maximum(counts, 1)
    alone = np.maximum(rate * (1 - rate), 1 / np.maximum(counts, 1))
    return np.maximum(_long_run(exceeded, counts, np.sqrt(alone))[0] / alone, 1.0)


# Without stable beside it


@dataclass(frozen=True, kw_only=True)
class _Lonely:
    """The candidate's rows without stable beside them, how many there are at each second, and stable's last rows before the first."""

    candidate: Floats
    ends: Whole
    stable: Floats


def _alone(statistic: Statistic, line: _Timeline, margin: float, sign: int, chance: float) -> Floats:
    """Evidence, in units of its threshold, from candidate's rows since stable fell silent, against stable's last rows before that.

    Nothing is shared there: what changed in the traffic itself counts for or against the candidate.
    """
    lonely = _lonely(line, margin)
    if lonely is None:
        return np.full(len(line.seconds), -math.inf)
    if statistic == "p99":
        return _rate_path(lonely, sign, chance)
    if statistic == "median":
        threshold = _quantile(lonely.stable, QUANTILES[statistic])
        lonely = _Lonely(candidate=_above(lonely.candidate, threshold), ends=lonely.ends, stable=_above(lonely.stable, threshold))
    return _against_baseline(statistic, lonely, sign) / math.log(1 / chance)


def _lonely(line: _Timeline, margin: float) -> _Lonely | None:
    """None while stable never was silent for `ALONE_AFTER_S`, or had too few rows before."""
    stable_n, candidate_n = np.diff(line.stable_ends, prepend=0), np.diff(line.candidate_ends, prepend=0)
    heard = np.maximum.accumulate(np.where(stable_n > 0, np.arange(len(line.seconds)), -1))
    silent = (heard >= 0) & (line.seconds - line.seconds[heard] >= ALONE_AFTER_S)
    first = int(line.stable_ends[np.argmax(silent)]) if silent.any() else 0
    if first < max(FIRST_ROWS.values()):
        return None
    kept = np.repeat(silent, candidate_n)
    ends = np.cumsum(np.where(silent, candidate_n, 0))
    return _Lonely(candidate=line.candidate[kept] - math.log1p(margin), ends=ends, stable=line.stable[max(0, first - WINDOW_ROWS) : first])


def _against_baseline(statistic: Statistic, lonely: _Lonely, sign: int) -> Floats:
    """The scores of two samples of which one grows have independent increments (Jennison and Turnbull 1997, "Group-sequential analysis
    incorporating covariate information"), so the same mixture holds."""
    spread, rows = (REQUEST_SPREAD if statistic == "mean" else 0.5), len(lonely.stable)
    weight = lonely.ends * rows / (lonely.ends + rows)
    mean = np.concatenate([[0.0], np.cumsum(lonely.candidate)])[lonely.ends] / np.maximum(lonely.ends, 1)
    ours, batches = _long_run(lonely.candidate, lonely.ends, spread)
    theirs, _ = _long_run(lonely.stable, np.array([rows]), spread)
    score = sign * weight * (mean - lonely.stable.mean())
    return _mixture(score, weight, np.maximum(ours, theirs), batches, EFFECTS[statistic])


def _rate_path(lonely: _Lonely, sign: int, chance: float) -> Floats:
    """Of p99: half the chance bounds stable's rate of exceeding its own quantile, half is for the candidate's being beyond that bound."""
    threshold = _quantile(lonely.stable, QUANTILES["p99"])
    theirs, ours = _above(lonely.stable, threshold), _above(lonely.candidate, threshold)
    clustering = np.maximum(_clustering(theirs, np.array([len(theirs)])), _clustering(ours, lonely.ends))
    bound = _rate_bound(float(theirs.mean()), len(theirs) / float(_clustering(theirs, np.array([len(theirs)]))[0]), sign, chance / 2)
    hits = np.concatenate([[0.0], np.cumsum(ours)])[lonely.ends]
    rates = np.minimum(RATIOS**sign * bound, (1 + bound) / 2)
    gains = np.stack([hits * math.log(r / bound) + (lonely.ends - hits) * math.log((1 - r) / (1 - bound)) for r in rates])
    return np.asarray((np.logaddexp.reduce(gains / clustering, axis=0) - math.log(len(rates))) / math.log(2 / chance))


def _rate_bound(rate: float, rows: float, sign: int, chance: float) -> float:
    """Bound of a share seen in so many independent rows (Wilson 1927), a row more on the far side for counts being whole."""
    z, seen = NormalDist().inv_cdf(1 - chance), min(max(rate + sign / rows, 0.0), 1.0)
    middle, width = seen + z * z / (2 * rows), z * math.sqrt(seen * (1 - seen) / rows + z * z / (4 * rows * rows))
    return min(max((middle + sign * width) / (1 + z * z / rows), 1e-9), 0.5)
