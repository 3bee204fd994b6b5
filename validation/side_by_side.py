"""Two versions measured in turns (A B A B) on one machine: is the candidate's quantile of latency more than a share worse than stable's?

What the machine does to both falls out: each pair of blocks is measured within a second or two. Pure; `latency_benchmark` uses it.

The ratio of the pooled quantiles is judged on its logarithm. Its standard error comes from drawing whole pairs of blocks with replacement
(the bootstrap by clusters; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, 3.8), its bounds from Student's t with as
many degrees of freedom as there are pairs, less one. Latencies below `equal_below_s` count as that: faster is not better there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from validation.contract import Finding, Outcome

DRAWS = 400
LEAST_PAIRS = 6

Blocks = Sequence[np.ndarray]


def not_worse(
    *,
    name: str,
    candidate: Blocks,
    stable: Blocks,
    quantile: float,
    margin: float,
    equal_below_s: float,
    error: float,
    what: str = "",
    seed: int = 0,
) -> Finding:
    """Blocks hold latencies in s, infinite for failed queries; `error` is the chance that the answer errs, on either side.

    `observed` is the candidate's quantile divided by stable's, `limit` is 1 + `margin`. `what` names the quantile in the sentence.
    """
    pairs = list(zip(candidate, stable, strict=True))
    if len(pairs) < LEAST_PAIRS:
        return _unknown(name, f"{len(pairs)} pairs of blocks were measured; {LEAST_PAIRS} are needed", margin)
    ratio, spread = _log_ratio([one for one, _ in pairs], [two for _, two in pairs], quantile, equal_below_s, seed)
    if not (math.isfinite(ratio) and math.isfinite(spread)):
        return _unknown(name, "the quantile of a version is no number: its queries failed", margin)
    reach, limit = _t(1 - error, len(pairs) - 1) * spread, math.log1p(margin)
    outcome = Outcome.FAILED if ratio - reach > limit else Outcome.PASSED if ratio + reach <= limit else Outcome.INCONCLUSIVE
    told = ("surely not", "not surely", "surely")[outcome]
    change = f"{math.expm1(ratio):+.1%} ({math.expm1(ratio - reach):+.1%} to {math.expm1(ratio + reach):+.1%})"
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{what or f'p{100 * quantile:g}'} is {told} more than {margin:.0%} worse than stable's: {change}, {len(pairs)} pairs",
        observed=math.exp(ratio),
        limit=1 + margin,
        interval=(math.exp(ratio - reach), math.exp(ratio + reach)),
        n=sum(map(len, candidate)),
        advice="raise max_seconds or rate_per_s, measure on a quieter machine, or say in indifferent_below_ms what is fast enough"
        if outcome is Outcome.INCONCLUSIVE
        else None,
    )


def _log_ratio(candidate: Blocks, stable: Blocks, quantile: float, floor_s: float, seed: int) -> tuple[float, float]:
    """Logarithm of the ratio of the pooled quantiles, and its standard error."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(candidate), [1 / len(candidate)] * len(candidate), size=DRAWS)
    weights = np.concatenate([np.ones((1, len(candidate)), dtype=int), drawn])
    with np.errstate(invalid="ignore"):  # infinite latencies on both sides: no number, and said so
        ratios = np.log(_quantiles(candidate, weights, quantile, floor_s)) - np.log(_quantiles(stable, weights, quantile, floor_s))
        return float(ratios[0]), float(np.std(ratios[1:], ddof=1))


def _quantiles(blocks: Blocks, weights: np.ndarray, quantile: float, floor_s: float) -> np.ndarray:
    """The pooled quantile (nearest rank) for each row of weights, one weight a block."""
    values = np.concatenate(blocks)
    block = np.repeat(np.arange(len(blocks)), [len(each) for each in blocks])
    order = np.argsort(values, kind="stable")
    values, block = np.maximum(values[order], floor_s), block[order]
    found = np.empty(len(weights))
    for row, each in enumerate(weights):
        reached = np.cumsum(each[block])
        found[row] = values[min(np.searchsorted(reached, quantile * reached[-1]), len(values) - 1)]
    return found


def _t(level: float, degrees: int) -> float:
    """Student's t quantile by Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + float(sum(term / degrees ** (power + 1) for power, term in enumerate(terms)))


def _unknown(name: str, why: str, margin: float) -> Finding:
    return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, advice="measure again", limit=1 + margin)
