"""Always-valid judges of latency: is the candidate's mean log latency, median or p99 worse than stable's by more than a margin?

`rollout_judge` asks after every look, for hours. Pure: columns in, a finding out; the evidence is computed for all seconds in one pass and
`failed` is said when it crossed at any of them, so the verdict is a function of the rows and not of who looked when.

Latencies are taken as logarithms above the floor, so a unit cannot matter. The candidate's are lowered by the margin; what is tested then
is "not slower than stable" (for `failed`, at 1 + worse) and "not faster than stable" (for `passed`, at 1 + exclude). Rows are grouped into
blocks, the seconds that both versions share, and the versions are compared within blocks only: a second that is slow for both says
nothing, and neither does an hour in which the candidate had another share. Where stable has no rows beside the candidate (at 100 %), its
earlier rows are compared with, at a small part of the budget.

Mean and median (the share of rows above stable's median): a normal mixture with an estimated long-run variance (Robbins 1970; Waudby-Smith,
Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central limit theory and asymptotic confidence sequences"). Asymptotic: few blocks
say nothing, and a prior spread is mixed in. Correlated rows are allowed for by batches of growing length, the largest variance counts.
p99 (the share of rows above stable's 99th percentile): a product of two-sample E-variables, one a block (Turner, Ly and Grünwald 2021,
"Generic E-variables for exact sequential k-sample tests that allow for optional stopping"), exact for independent rows whatever the share
is in each block. Slow requests come in bursts: the log of that evidence is divided by how much more than independent rows the counts vary.
(To count only the first of a burst will not do: a pause that hits both hits a row of a thin candidate and dozens of stable's in a row,
which would then be one against one.) `bench/latencies.py` simulates all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from validation.contract import Finding, Outcome
from validation.error_rates import Tally, surely_above_at, upper_rate
from validation.findings import inconclusive
from validation.served import Served

Statistic = Literal["mean", "median", "p99"]
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

QUANTILES: dict[str, float] = {"median": 0.5, "p99": 0.99}
MIN_ROWS: dict[str, int] = {"mean": 10, "median": 20, "p99": 100}
"""Rows of stable below which nothing is said; a first threshold is taken from so many."""

MIN_BLOCKS = 6
"""Blocks with rows of both versions below which nothing is said of a mean: seconds of ordinary traffic."""

BATCHES = (1, 4, 16, 64)
MIN_BATCHES = 8
"""Lengths of batches, in blocks, and how many of one length there must be before its variance counts."""

PRIOR_BLOCKS = 6
"""Weight, in blocks, of the prior spread of a block."""

PRIOR_SPREAD: dict[str, float] = {"mean": 0.3, "median": 0.5, "p99": 0.1}
"""Prior standard deviation of one row: of a log latency, of being above the quantile."""

TUNED_ROWS = 12.0
"""The normal mixture is tightest at about eleven times so many candidate rows."""

FASTER = ((0.02, 0.5), (0.3, 0.4), (0.6, 0.1))
SLOWER = ((1.7, 0.15), (2.5, 0.6), (5.0, 0.15), (20.0, 0.1))
"""Alternatives for p99 with their weights: how many times as often the candidate is above. +20 % of log-sigma 0.5 is 2.5 times."""

BLOCK_ROWS, BLOCK_S = 10, 2
"""A block has so many rows of stable, and of the candidate as many or at least one in so many seconds."""

NEIGHBOURS = 5.0
"""Rows that follow each other are alike. Within a block that shows in its spread; until batches of several blocks can be compared, a
variance is raised by the part `NEIGHBOURS` / candidate rows in a block, which covers a correlation of 0.6 (bench.latencies)."""

ALONE_AFTER_S = 6
"""Seconds after stable's last row from which on the candidate's rows count as alone."""

WINDOW_ROWS = 50_000
"""Stable's latest rows that a threshold is taken from."""

SMALL_SAMPLE = 2.0
"""A variance of m batches is raised by the part 2 / m: a few of them may be alike by chance."""

SURE_ERRORS = 1.5
"""Standard errors by which p99's counts must vary more than independent rows' before that counts: a rare event's variance is a rough
number, and the greatest of several would cost independent traffic a fifth of its power (so it costs 3 %)."""

MOST = 0.85
"""Greatest share that a limit may be: alternatives lie above it."""

WORDS = {"mean": "geometric mean", "median": "median", "p99": "99th percentile"}

STABLE_ERRORS = 2.0
"""Standard errors that stable's share above its own quantile is taken to be off."""

ALONE = 0.15
"""Part of either chance to err that is kept for seconds without stable beside the candidate (union bound)."""

TIE = 1e-9
"""Relative difference of latencies that is none, so that a unit's rounding decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Rows and the sum of their values by block: `n` and `total` of candidate and stable, each [blocks]."""

    n: Floats
    total: Floats
    stable_n: Floats
    stable_total: Floats


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both versions' rows, and a value for each of them: a log latency, or whether it is above a threshold."""

    candidate: Served
    values: Any
    stable: Served
    stable_values: Any


@dataclass(frozen=True, kw_only=True)
class Path:
    """Evidence against a claim after each block, in units of its threshold: crossed at 1. `now` is the last."""

    values: Floats

    @property
    def crossed(self) -> bool:
        return bool((self.values >= 1).any())

    @property
    def now(self) -> float:
        return float(self.values[-1]) if len(self.values) else -math.inf


def latency_not_worse(
    *,
    name: str,
    statistic: Statistic,
    candidate: Served,
    stable: Served,
    worse: float,
    exclude: float,
    indifferent_below_ms: float,
    false_alarm: float,
    miss: float,
) -> Finding:
    """Is the candidate's latency at most (1 + `worse`) times stable's? Passed only when (1 + `exclude`) times is surely excluded.

    `observed` is the ratio of geometric means, medians or 99th percentiles over all rows; what decides is the comparison within blocks.
    """
    if not 0 <= worse < exclude or not 0 < false_alarm < 1 or not 0 < miss < 1:
        raise ValueError(f"worse {worse}, exclude {exclude}, false_alarm {false_alarm}, miss {miss} make no sense together")
    limit = 1 + worse
    if not (candidate.readable and stable.readable):
        why = "a time or latency is missing, not finite, not positive or not in order"
        return inconclusive(name, why, "look for the cause in the access log", limit=limit, n=len(candidate))
    if min(len(candidate), len(stable)) < MIN_ROWS[statistic]:
        seen = f"{len(candidate)} requests of the candidate and {len(stable)} of stable are too few to compare"
        return inconclusive(name, seen, f"wait for {MIN_ROWS[statistic]} of each", limit=limit, n=len(candidate))
    logs = Sides(
        candidate=candidate,
        values=_logs(candidate, indifferent_below_ms),
        stable=stable,
        stable_values=_logs(stable, indifferent_below_ms),
    )
    slower = paths(statistic, logs, margin=math.log1p(worse), chance=false_alarm, slower=True)
    faster = paths(statistic, logs, margin=math.log1p(exclude), chance=miss, slower=False)
    surely, shown = any(each.crossed for each in slower), max(each.now for each in faster)
    outcome = Outcome.FAILED if surely else Outcome.PASSED if shown >= 1 else Outcome.INCONCLUSIVE
    claim = (
        f"{1 + exclude:.2f} times is excluded",
        f"neither surely above {limit:.2f} nor surely below {1 + exclude:.2f} times",
        f"surely more than {limit:.2f} times",
    )
    ratio = math.exp(min(_value(statistic, logs.values) - _value(statistic, logs.stable_values), 700))
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{WORDS[statistic]} {ratio:.3f} times stable's over {len(candidate)} requests, {claim[outcome]}",
        observed=ratio,
        limit=limit,
        n=len(candidate),
        advice=_advice(len(candidate), shown) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _advice(n: int, shown: float) -> str:
    """Evidence grows about with the number of rows."""
    if shown <= 0.01:
        return "wait for more requests; if it stays so, the estimate lies near or beyond the margin, and more would not help"
    return f"about {math.ceil(n * (1 / shown - 1))} more requests like these would settle it"


def _value(statistic: Statistic, logs: Floats) -> float:
    return float(logs.mean() if statistic == "mean" else np.quantile(logs, QUANTILES[statistic]))


def _logs(served: Served, floor_ms: float) -> Floats:
    """Natural logs above the floor; without a floor, of the latency itself."""
    return np.asarray(np.log(np.maximum(served.latency_ms, floor_ms)))


def paths(statistic: Statistic, logs: Sides, *, margin: float, chance: float, slower: bool) -> tuple[Path, Path]:
    """Evidence beside stable, and alone: each with its part of the chance. `margin` is a log; `logs` holds log latencies."""
    lowered = replace(logs, values=logs.values - margin)
    beside, alone = (1 - ALONE) * chance, ALONE * chance
    if statistic == "mean":
        normal = _normal_path(_grouped(lowered), PRIOR_SPREAD[statistic], beside, slower=slower)
        return normal, _alone_mean(lowered, PRIOR_SPREAD[statistic], alone, slower=slower)
    above = _above(statistic, lowered, slower=slower)
    paired = (
        _odds_path(above, beside, slower=slower)
        if statistic == "p99"
        else _normal_path(_grouped(above), PRIOR_SPREAD[statistic], beside, slower=slower)
    )
    late = _alone_above(statistic, above, alone) if slower else _alone_below(above, QUANTILES[statistic], alone)
    return paired, late


# Blocks and thresholds


@dataclass(frozen=True, kw_only=True)
class _Threshold:
    """Stable's quantile as it was known: `values[i]` from `since_s[i]` on. Taken anew whenever stable has half as many rows more."""

    quantile: float
    since_s: Floats
    values: Floats

    @classmethod
    def of(cls, stable: Served, logs: Floats, quantile: float, first: int) -> _Threshold:
        counts = [first]
        while counts[-1] * 1.5 <= len(logs):
            counts.append(int(counts[-1] * 1.5))
        values = [float(np.quantile(logs[max(0, n - WINDOW_ROWS) : n], quantile, method="inverted_cdf")) for n in counts]
        since_s = [float(stable.unix_s[n - 1]) for n in counts]
        return cls(quantile=quantile, since_s=np.array(since_s), values=np.array(values))

    def of_rows(self, served: Served) -> Floats:
        """For each row what was known before it; for those before anything was, the first."""
        places = np.searchsorted(self.since_s, served.unix_s, side="left") - 1
        return np.asarray(self.values[np.maximum(places, 0)])


def _above(statistic: Statistic, logs: Sides, *, slower: bool) -> Sides:
    """Which rows are above stable's quantile; a tie counts against whatever is claimed."""
    at = _Threshold.of(logs.stable, logs.stable_values, QUANTILES[statistic], MIN_ROWS[statistic])
    above = logs.values > at.of_rows(logs.candidate) + (TIE if slower else -TIE)
    return replace(logs, values=above, stable_values=logs.stable_values >= at.of_rows(logs.stable) - TIE)


def _grouped(sides: Sides) -> Blocks:
    """Seconds in a row until both versions have rows enough; what is not complete yet is left out."""
    seconds = [np.floor(each.unix_s).astype(np.int64) for each in (sides.candidate, sides.stable)]
    known, ends = _block_ends(*seconds)
    sums = []
    for each, row in zip(seconds, (sides.values, sides.stable_values), strict=True):
        place = np.searchsorted(ends, np.searchsorted(known, each))
        kept = place < len(ends)
        sums += [np.bincount(place[kept], minlength=len(ends)).astype(float)]
        sums += [np.bincount(place[kept], np.asarray(row, float)[kept], len(ends))]
    return Blocks(n=sums[0], total=sums[1], stable_n=sums[2], stable_total=sums[3])


def _block_ends(candidate_s: Whole, stable_s: Whole) -> tuple[Whole, Whole]:
    """All seconds with rows, in order, and the places among them of those that end a block. Only numbers of rows decide."""
    known = np.union1d(candidate_s, stable_s)
    counts = [np.bincount(np.searchsorted(known, each), minlength=len(known)).tolist() for each in (candidate_s, stable_s)]
    ends, here, there, start_s = [], 0, 0, int(known[0])
    for place, (second, n, stable_n) in enumerate(zip(known.tolist(), *counts, strict=True)):
        here, there = here + n, there + stable_n
        if there >= BLOCK_ROWS and (here >= BLOCK_ROWS or (here and second - start_s >= BLOCK_S - 1)):
            ends.append(place)
            here, there, start_s = 0, 0, second + 1
    return known, np.array(ends, np.int64)


# Evidence


def _normal_path(blocks: Blocks, prior: float, chance: float, *, slower: bool) -> Path:
    weight = blocks.n * blocks.stable_n / (blocks.n + blocks.stable_n)
    gaps = blocks.total / np.maximum(blocks.n, 1) - blocks.stable_total / np.maximum(blocks.stable_n, 1)
    rows = np.cumsum(weight)
    mean = np.cumsum(weight * gaps) / np.maximum(rows, 1e-300)
    before = np.concatenate([mean[:1], mean[:-1]])
    variance = _long_run_variance(weight * (gaps - before), weight, blocks.n, prior)
    values = (1 if slower else -1) * rows * mean / _boundary(rows, variance, chance)
    values[: MIN_BLOCKS - 1] = -np.inf
    return Path(values=values)


def _boundary(rows: Floats, variance: Floats, chance: float) -> Floats:
    """Of a sum of so many rows: the two-sided normal mixture at twice the chance, one side of it."""
    reach = rows + TUNED_ROWS
    return np.asarray(np.sqrt(variance * reach * (np.log(reach / TUNED_ROWS) + 2 * math.log(1 / (2 * chance)))))


def _long_run_variance(residuals: Floats, weight: Floats, rows_of: Floats, prior: float) -> Floats:
    """Per row, after each block: the largest that batches of any length show, the prior mixed in. `rows_of`: candidate rows a block."""
    blocks = np.arange(1, len(weight) + 1)
    believed = PRIOR_BLOCKS * np.cumsum(weight) / blocks
    largest = np.zeros(len(weight))
    for length in BATCHES:
        batches = len(weight) // length
        if batches < MIN_BATCHES and length > 1:
            break
        squares = residuals[: batches * length].reshape(batches, length).sum(axis=1) ** 2
        weights = weight[: batches * length].reshape(batches, length).sum(axis=1)
        done = blocks // length
        spread, rows = (np.concatenate([[0.0], np.cumsum(each)])[done] for each in (squares, weights))
        estimate = (spread + believed * prior**2) / np.maximum(rows + believed, 1e-300) * (1 + SMALL_SAMPLE / np.maximum(done, 1))
        largest = np.maximum(largest, np.where((done >= MIN_BATCHES) | (length == 1), estimate, 0.0))
    raised = 1 + NEIGHBOURS * blocks / np.maximum(np.cumsum(rows_of), 1e-300)
    return np.where(blocks < MIN_BATCHES * BATCHES[1], raised, 1.0) * largest


def _odds_path(above: Sides, chance: float, *, slower: bool) -> Path:
    """Mixture over how many times as often the candidate is above the threshold; each block is bet on with its own numbers of rows."""
    blocks = _grouped(above)
    share, clustering = 1 - QUANTILES["p99"], _clustering(above, blocks)
    terms = [math.log(weight) + _gains(blocks, times * share, share) / clustering for times, weight in (SLOWER if slower else FASTER)]
    evidence: Floats = np.logaddexp.reduce(np.array(terms), axis=0)
    if slower:  # one pause is one event, however many requests it hits
        evidence[np.cumsum(blocks.total > 0) < MIN_BLOCKS] = -np.inf
    return Path(values=evidence / math.log(1 / chance))


def _gains(blocks: Blocks, here: float, there: float) -> Floats:
    """Summed log likelihood ratio of shares `here` and `there` against the one share that both would have to have."""
    both = (blocks.n * here + blocks.stable_n * there) / np.maximum(blocks.n + blocks.stable_n, 1)
    below, stable_below = blocks.n - blocks.total, blocks.stable_n - blocks.stable_total
    gains = blocks.total * np.log(here / both) + below * np.log((1 - here) / (1 - both))
    gains += blocks.stable_total * np.log(there / both) + stable_below * np.log((1 - there) / (1 - both))
    return np.asarray(np.cumsum(gains))


def _clustering(above: Sides, blocks: Blocks) -> Floats:
    """How many times as much as independent rows' the counts surely vary, after each block: neighbours, seconds and minutes looked at."""
    here = _row_clustering(above.values, np.cumsum(blocks.n).astype(np.int64))
    there = _row_clustering(above.stable_values, np.cumsum(blocks.stable_n).astype(np.int64))
    return np.maximum(np.maximum(here, there), _block_clustering(blocks))


def _row_clustering(above: NDArray[np.bool_], counts: Whole) -> Floats:
    """Of the first `counts` rows, in batches whose length is about half the root of the count.

    Half the mean square of the differences between neighbouring batches (von Neumann 1941, "Distribution of the ratio of the mean square
    successive difference to the variance"): what drifts slowly does not count.
    """
    rate = np.concatenate([[0.0], np.cumsum(above)])[counts] / np.maximum(counts, 1)
    powers = np.rint(np.log2(np.maximum(np.sqrt(counts) / 2, 1))).astype(int)
    lengths = 1 << powers
    steps = np.maximum(counts // lengths - 1, 1)
    squares = np.zeros(len(counts))
    for length in np.unique(lengths):
        at = lengths == length
        squares[at] = _steps_squared(above, int(length), counts[at])
    expected = np.maximum(lengths * rate * (1 - rate), 1 / steps)
    return _surely(squares / steps / expected, steps, lengths * rate, 3.0)


def _steps_squared(above: NDArray[np.bool_], length: int, counts: Whole) -> Floats:
    """Half the summed squares of the differences between neighbouring batches among the first `counts` rows."""
    batches = int(counts.max()) // length
    sums = above[: batches * length].reshape(batches, length).sum(axis=1, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(np.diff(sums) ** 2) / 2])[np.maximum(counts // length - 1, 0)]


def _block_clustering(blocks: Blocks) -> Floats:
    """Of the differences within blocks, in batches of blocks: a version's own bad second or minute hits many rows at once."""
    weight, number = blocks.n * blocks.stable_n / (blocks.n + blocks.stable_n), np.arange(1, len(blocks.n) + 1)
    residuals = _residuals(blocks, weight)
    here, there = _shares(blocks)
    variance = here * (1 - here) * np.cumsum(weight**2 / blocks.n) + there * (1 - there) * np.cumsum(weight**2 / blocks.stable_n)
    hits = (np.cumsum(blocks.total) + np.cumsum(blocks.n) * there) / 2
    largest = np.ones(len(number))
    for length in BATCHES:
        done = number // length
        squares = np.add.reduceat(residuals, np.arange(0, len(residuals), length)) ** 2 if len(residuals) else residuals
        summed = np.concatenate([[0.0], np.cumsum(squares)])[done]
        expected = np.maximum(done, 1) * length * variance / number
        shown = _surely(summed / expected, np.maximum(done, 1), length * hits / number, 2.0)
        largest = np.maximum(largest, np.where((done >= MIN_BATCHES) | (length == 1), shown, 1.0))
    return largest


def _residuals(blocks: Blocks, weight: Floats) -> Floats:
    """Weighted differences between the versions, less what the blocks before let expect."""
    gaps = blocks.total / blocks.n - blocks.stable_total / blocks.stable_n
    mean = np.cumsum(weight * gaps) / np.cumsum(weight)
    return np.asarray(weight * (gaps - np.concatenate([[0.0], mean])[: len(gaps)]))


def _shares(blocks: Blocks) -> tuple[Floats, Floats]:
    """Shares above the threshold after each block, for their variance: stable's half of what it was made to be at least, the candidate's
    at least stable's, neither more than a half.
    """
    there = np.clip(np.cumsum(blocks.stable_total) / np.cumsum(blocks.stable_n), (1 - QUANTILES["p99"]) / 2, 0.5)
    return np.clip(np.cumsum(blocks.total) / np.cumsum(blocks.n), there, 0.5), there


def _surely(ratio: Floats, batches: Whole, hits: Floats, kurtosis: float) -> Floats:
    """A ratio of variances less `SURE_ERRORS` standard errors, which rare `hits` a batch (of Poisson's law) make great; at least 1."""
    return np.asarray(np.maximum(ratio - SURE_ERRORS * np.sqrt((kurtosis + 1 / np.maximum(hits, 1e-9)) / batches), 1.0))


def _alone_mean(sides: Sides, prior: float, chance: float, *, slower: bool) -> Path:
    """The candidate's rows after stable's last, against all of stable's: a confidence sequence for each, at half of the chance."""
    alone = _late(sides)
    if alone.sum() < MIN_ROWS["mean"]:
        return Path(values=np.empty(0))
    value, width = _sequence(*_by_second(sides.stable, sides.stable_values), prior, chance / 2)
    values, widths = _sequence(*_by_second(sides.candidate.where(alone), sides.values[alone]), prior, chance / 2)
    evidence = (values - value[-1] if slower else value[-1] - values) / (widths + width[-1])
    evidence[: MIN_BLOCKS - 1] = -np.inf
    return Path(values=evidence)


def _late(sides: Sides) -> NDArray[np.bool_]:
    return np.asarray(sides.candidate.unix_s > sides.stable.unix_s[-1] + ALONE_AFTER_S)


def _by_second(served: Served, values: Floats) -> tuple[Floats, Floats]:
    """Number of rows and their sum, by second."""
    _, places = np.unique(np.floor(served.unix_s), return_inverse=True)
    return np.bincount(places).astype(np.float64), np.bincount(places, values).astype(np.float64)


def _sequence(n: Floats, total: Floats, prior: float, chance: float) -> tuple[Floats, Floats]:
    """Running mean and the width of its confidence sequence, by second."""
    rows = np.cumsum(n)
    mean = np.cumsum(total) / rows
    before = np.concatenate([mean[:1], mean[:-1]])
    return mean, _boundary(rows, _long_run_variance(total - n * before, n, n, prior), chance) / rows


def _alone_above(statistic: Statistic, above: Sides, chance: float) -> Path:
    """Rows after stable's last, as a mean; of p99, so rare that a mean of few is none, the count must say it too, each burst once."""
    normal = _alone_mean(above, PRIOR_SPREAD[statistic], chance, slower=True)
    if statistic != "p99" or not normal.crossed:
        return normal
    share = 1 - QUANTILES[statistic]
    counted = surely_above_at(above.values[_late(above)], min(share + _share_error(above, share), MOST), chance)
    return normal if counted is not None else Path(values=np.full(len(normal.values), -math.inf))


def _alone_below(above: Sides, quantile: float, chance: float) -> Path:
    """All of the candidate's rows against the share that stable has above its own quantile, give or take what its rows leave open.

    Where most latencies lie at the floor, no block tells the versions apart.
    """
    share = 1 - quantile
    least = min(share, float(np.mean(above.stable_values))) - _share_error(above, share)
    return Path(values=np.array([least / upper_rate(Tally.of(above.values), chance) if least > 0 else -math.inf]))


def _share_error(above: Sides, share: float) -> float:
    return STABLE_ERRORS * math.sqrt(share * (1 - share) / len(above.stable_values))
