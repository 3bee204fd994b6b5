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
is in each block; of rows above the threshold in a row only the first counts, so bursts do not add up. `bench/latencies.py` simulates both.
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

PRIOR_SPREAD: dict[str, float] = {"mean": 0.3, "median": 0.5}
"""Prior standard deviation of one row: of a log latency, of being above the median."""

TUNED_ROWS = 12.0
"""The normal mixture is tightest at about eleven times so many candidate rows."""

FASTER = ((0.02, 0.5), (0.3, 0.4), (0.6, 0.1))
SLOWER = ((1.7, 0.2), (2.5, 0.5), (5.0, 0.2), (20.0, 0.1))
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
        return normal, _alone_mean(lowered, alone, slower=slower)
    above = _above(statistic, lowered, slower=slower)
    paired = (
        _odds_path(_grouped(above, first_of_bursts=True), beside, slower=slower)
        if statistic == "p99"
        else _normal_path(_grouped(above), PRIOR_SPREAD[statistic], beside, slower=slower)
    )
    return paired, _alone_share(above, QUANTILES[statistic], alone, slower=slower)


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


def _grouped(sides: Sides, *, first_of_bursts: bool = False) -> Blocks:
    """Seconds in a row until both versions have rows enough; what is not complete yet is left out."""
    seconds = [np.floor(each.unix_s).astype(np.int64) for each in (sides.candidate, sides.stable)]
    known, ends = _block_ends(*seconds)
    sums = []
    for each, row in zip(seconds, (sides.values, sides.stable_values), strict=True):
        place = np.searchsorted(ends, np.searchsorted(known, each))
        kept = (place < len(ends)) & (_unpreceded(row) if first_of_bursts else True)
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


def _unpreceded(above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows whose predecessor was not above."""
    return np.concatenate([[True], ~above[:-1]])[: len(above)]


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


def _odds_path(blocks: Blocks, chance: float, *, slower: bool) -> Path:
    """Mixture over how many times as often the candidate is above the threshold; each block is bet on with its own numbers of rows."""
    share = 1 - QUANTILES["p99"]
    terms = []
    for times, weight in SLOWER if slower else FASTER:
        here, there = times * share, share
        both = (blocks.n * here + blocks.stable_n * there) / np.maximum(blocks.n + blocks.stable_n, 1)
        both = np.where(both > 0, both, share)
        above, below = blocks.total, blocks.n - blocks.total
        stable_above, stable_below = blocks.stable_total, blocks.stable_n - blocks.stable_total
        gains = above * np.log(here / both) + below * np.log((1 - here) / (1 - both))
        gains += stable_above * np.log(there / both) + stable_below * np.log((1 - there) / (1 - both))
        terms.append(math.log(weight) + np.cumsum(gains))
    evidence: Floats = np.logaddexp.reduce(np.array(terms), axis=0)
    return Path(values=evidence / math.log(1 / chance))


def _alone_mean(logs: Sides, chance: float, *, slower: bool) -> Path:
    """The candidate's rows after stable's last, against all of stable's: a confidence sequence for each, at half of the chance."""
    alone = logs.candidate.unix_s > logs.stable.unix_s[-1] + ALONE_AFTER_S
    if alone.sum() < MIN_ROWS["mean"]:
        return Path(values=np.empty(0))
    value, width = _sequence(*_by_second(logs.stable, logs.stable_values), chance / 2)
    values, widths = _sequence(*_by_second(logs.candidate.where(alone), logs.values[alone]), chance / 2)
    evidence = (values - value[-1] if slower else value[-1] - values) / (widths + width[-1])
    evidence[: MIN_BLOCKS - 1] = -np.inf
    return Path(values=evidence)


def _by_second(served: Served, values: Floats) -> tuple[Floats, Floats]:
    """Number of rows and their sum, by second."""
    _, places = np.unique(np.floor(served.unix_s), return_inverse=True)
    return np.bincount(places).astype(np.float64), np.bincount(places, values).astype(np.float64)


def _sequence(n: Floats, total: Floats, chance: float) -> tuple[Floats, Floats]:
    """Running mean and the width of its confidence sequence, by second."""
    rows = np.cumsum(n)
    mean = np.cumsum(total) / rows
    before = np.concatenate([mean[:1], mean[:-1]])
    return mean, _boundary(rows, _long_run_variance(total - n * before, n, n, PRIOR_SPREAD["mean"]), chance) / rows


def _alone_share(above: Sides, quantile: float, chance: float, *, slower: bool) -> Path:
    """The candidate's rows against the share that stable has above its own quantile, give or take what its number of rows leaves open.

    For `slower`, rows after stable's last. For `faster` all: where most latencies lie at the floor, no block tells the versions apart.
    """
    share = 1 - quantile
    error = STABLE_ERRORS * math.sqrt(quantile * share / len(above.stable_values))
    if slower:
        late = above.candidate.unix_s > above.stable.unix_s[-1] + ALONE_AFTER_S
        failed_at = surely_above_at(above.values[late], min(share + error, MOST), chance)
        return Path(values=np.array([-math.inf if failed_at is None else 1.0]))
    least = min(share, float(np.mean(above.stable_values))) - error
    highest = upper_rate(Tally.of(above.values), chance)
    return Path(values=np.array([least / highest if least > 0 else -math.inf]))
