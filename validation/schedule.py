"""When the queries of a load are due, and after how many of them it is looked at. Pure; gates and figures use it.

Poisson arrivals are what many independent users make. A fixed rate has no bursts, and so misses the queues that bursts make.
"""

from __future__ import annotations

import math

import numpy as np


def poisson(rate_per_s: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Times in s from now at which `n` queries are due: a Poisson process."""
    return np.cumsum(rng.exponential(1 / rate_per_s, size=n))


def fixed_rate(rate_per_s: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """The same at even distances, begun at a random place of the first one."""
    return (rng.random() + np.arange(n)) / rate_per_s


ARRIVALS = {"poisson": poisson, "fixed_rate": fixed_rate}


def doubling(first: int, most: int) -> list[int]:
    """How many queries there are at each look: `first`, doubled as often as fits, at last `most`."""
    sizes = [first * 2**k for k in range(32) if first * 2**k < most]
    return [*sizes, max(1, most)]


def error_at(look: int, looks: int, error: float) -> float:
    """What the look of this number (from 1) may spend of `error`: half of what is left, and the last one all of it.

    So a single look has all of it, and looks that are never taken cost half of it at most.
    """
    return error / float(2 ** min(look, looks - 1))


def queries_within(rate_per_s: float, seconds: float) -> int:
    return max(1, math.floor(rate_per_s * seconds))
