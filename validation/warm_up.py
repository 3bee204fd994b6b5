"""Where a server's warm-up ends: the rule MSER-5, on the logarithms of latencies. Pure; the load's gates and figures use it.

K. P. White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69 (1997): leave out as many of the
first batches as make the standard error of the rest's mean smallest. Batches are medians of five, so that a single slow answer is no trend.
When that is more than a quarter, the warm-up is not over: under noise a trend to the very end has its smallest error anywhere later.
"""

from __future__ import annotations

import numpy as np

BATCH = 5
ROUNDING = 1e-9  # of squared logarithms: among equal latencies no cut is better than none
LEAST = 20 * BATCH
"""Fewer queries are no sample of what is to come."""


def steady_from(latency_s: np.ndarray) -> int | None:
    """The place of the first query after the warm-up, or None when it is not over: too few queries, or more than a quarter are before it.

    `latency_s`: in the order in which the queries were due; infinite ones (failed) count as the longest that was seen.
    """
    if len(latency_s) < LEAST:
        return None
    finite = latency_s[np.isfinite(latency_s)]
    longest = finite.max() if len(finite) else 1.0
    logs = np.log(np.clip(latency_s, 1e-9, max(longest, 1e-9)))
    batches = np.median(logs[: len(logs) // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    errors = [float((np.var(batches[cut:]) + ROUNDING) / (len(batches) - cut)) for cut in range(len(batches) // 2 + 1)]
    cut = int(np.argmin(errors))
    return cut * BATCH if cut <= len(batches) // 4 else None
