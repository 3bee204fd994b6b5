"""Is the golden set itself worth judging by? Its size, its doubles, its age, and whether an input gives the label away.

The gate `golden_set` calls it. What is wrong here is the golden set's fault and not the model's, but no model is promoted on it.

| finding              | claim                                                                                               |
|----------------------|-----------------------------------------------------------------------------------------------------|
| golden_rows          | enough rows to say anything                                                                         |
| golden_duplicates    | rows whose inputs stood there before are within the policy's share                                  |
| golden_leakage       | no input value alone determines the label                                                           |
| golden_age           | written no longer ago than the policy allows (when it sets `max_age_days`)                          |
| golden_traffic_drift | its inputs have not drifted from recent traffic (when the policy asks for it; `validation.drift`)    |
| traffic_<...>        | the comparisons with traffic that do not hold                                                       |
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from validation.contract import Finding, Outcome
from validation.drift import drift, sketch_batches
from validation.findings import failed, inconclusive, passed
from validation.parity import is_float, is_text
from validation.sampling import mixed, word_hashes
from validation.traffic_sample import Traffic

DISTINCT = 200_000
"""Hashes of rows that are kept at once; beyond it every second value of the hash is dropped, again and again."""

LEAK = 0.98
"""Share of the errors that knowing one input value spares (Goodman and Kruskal 1954, lambda) from which on it determines the label."""

LEAK_RANKS = 0.9999
"""The same for labels that are numbers: correlation of ranks (Spearman 1904)."""

LEAK_ROWS = 5_000
RARE_ROWS = 20
"""Fewer rows than this without the commonest label separate by chance."""

TRAFFIC_ROWS, TRAFFIC_DAYS = 100, 7
"""A sample of traffic that is smaller, or whose newest row is older, is none."""

TRAFFIC_SHOWN = 20
DAY_S = 86_400.0
Arrays = Mapping[str, np.ndarray]


def enough_rows(rows: int, needed: int) -> Finding:
    if rows >= needed:
        return passed("golden_rows", f"{rows} golden rows", observed=rows, limit=needed, n=rows)
    why = f"the golden set has {rows} rows; the policy asks for {needed}"
    return inconclusive("golden_rows", why, f"add {needed - rows} rows to the golden set", observed=rows, limit=needed, n=rows)


# Duplicates


class Duplicates:
    """Counts rows that stood there before, by a hash of their inputs; exact up to `DISTINCT` different rows, estimated beyond.

    Beyond, only rows whose hash ends in `level` zero bits are counted (Gibbons 2001, "Distinct sampling"): with a row all its copies are in
    or out. A single row of very many copies could be out, so the share among a uniform sample of rows is held against it too.
    """

    def __init__(self) -> None:
        self.level = self.rows = 0
        self._hashes, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._waiting = 0

    def add(self, hashes: np.ndarray) -> None:
        kept = self._kept(hashes)
        self.rows += len(hashes)
        self._pending.append(kept)
        self._waiting += len(kept)
        if self._waiting > DISTINCT // 2:  # sorting is dear: once for many batches
            self._merge()

    @property
    def permille(self) -> float:
        self._merge()
        counted = int(self._counts.sum())
        return 1000 * (counted - len(self._hashes)) / counted if counted else 0.0

    def _merge(self) -> None:
        fresh, counts = np.unique(self._kept(np.concatenate([np.empty(0, np.uint64), *self._pending])), return_counts=True)
        self._hashes, places = np.unique(np.concatenate([self._hashes, fresh]), return_inverse=True)
        self._counts = np.bincount(places.reshape(-1), np.concatenate([self._counts, counts])).astype(np.int64)
        self._pending, self._waiting = [], 0
        while len(self._hashes) > DISTINCT:
            self.level += 1
            mask = (self._hashes & self._mask()) == 0
            self._hashes, self._counts = self._hashes[mask], self._counts[mask]

    def _kept(self, hashes: np.ndarray) -> np.ndarray:
        return np.asarray(hashes[(hashes & self._mask()) == 0])

    def _mask(self) -> np.uint64:
        return np.uint64((1 << self.level) - 1)


def few_duplicates(found: Duplicates, sample: np.ndarray, limit_permille: int) -> Finding:
    """`sample` are the hashes of a uniform sample of the rows."""
    repeated = 1000 * (1 - len(np.unique(sample)) / len(sample)) if len(sample) else math.nan
    counted = found.permille
    permille = max(counted, repeated) if found.level else counted
    how = f"estimated from one in {1 << found.level} different rows and a sample of {len(sample)}" if found.level else "counted"
    why = f"{permille:.4g} per mille of {found.rows} rows have inputs that stood there before ({how}); {limit_permille} are allowed"
    details: dict[str, Any] = {"observed": permille, "limit": limit_permille, "n": found.rows}
    if found.rows and permille <= limit_permille:
        return passed("golden_duplicates", why, **details)
    advice = "remove the copies: they count one row's answer many times; or raise golden_set.duplicates_permille if equal rows are natural"
    return failed("golden_duplicates", why, advice=advice, **details)


def row_hashes(inputs: Arrays) -> np.ndarray:
    """A uint64 for each row: equal rows have equal ones, others only by chance (multilinear hashing, Carter and Wegman 1979)."""
    total: Any = np.uint64(0)
    with np.errstate(over="ignore"):
        for place, name in enumerate(sorted(inputs)):
            total = mixed(_linear(_whole_numbers(inputs[name]), place) ^ total, place)
    return np.asarray(total)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    """Rows as uint64 [rows, words]: the bytes of numbers eight at a time, the hashes of words."""
    flat = np.ascontiguousarray(values.reshape(len(values), -1))
    if is_text(flat):
        return word_hashes(flat.reshape(-1)).reshape(flat.shape)
    if is_float(flat):
        flat = flat + flat.dtype.type(0)  # -0.0 and 0.0 are one value
    raw = flat.view(np.uint8)
    if raw.shape[1] % 8:
        raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 8)))
    bits = raw.view(np.uint64)
    return np.asarray(bits ^ (bits >> np.uint64(32)))  # of whole numbers as float64 only the upper bits differ


def _linear(cells: np.ndarray, place: int) -> np.ndarray:
    factors = mixed(np.arange(cells.shape[1], dtype=np.uint64), place + 1) | np.uint64(1)
    return np.asarray(cells @ factors)


# Leakage


def no_leakage(inputs: Arrays, labels: np.ndarray) -> Finding:
    """`inputs` and `labels` of a sample of rows. An input value is looked at alone: what several say together is what models are for."""
    name, n = "golden_leakage", len(labels)
    if n == 0 or len(np.unique(labels.astype(str))) < 2:
        return inconclusive(
            name, f"{n} rows have one label at most, so nothing can be seen to determine it", "give the golden set other labels"
        )
    if not is_numeric(labels):
        rare = n - int(np.unique(labels.astype(str), return_counts=True)[1].max())
        if rare < RARE_ROWS:
            advice = f"add about {RARE_ROWS - rare} rows of the rarer labels"
            return inconclusive(name, f"{rare} of {n} rows do not have the commonest label: too few to see a leak", advice, n=n)
    telling = {f"{each}[{cell}]": found for each, cell, found in _telling(inputs, labels)}
    if not telling:
        return passed(name, f"no input value alone determines the label on {n} rows", n=n)
    most = max(telling, key=lambda each: telling[each])
    why = f"{most} alone determines the label ({telling[most]:.4f} of what there is to know, on {n} rows); {len(telling)} such inputs"
    advice = "take the label, or what is made from it, out of the model's inputs"
    return failed(name, why, observed=telling[most], limit=LEAK, n=n, advice=advice)


def telling_places(labels: np.ndarray, most: int) -> np.ndarray:
    """Places of at most so many rows to look for leaks on, in order: of each class equally many, so that rare ones are seen."""
    if is_numeric(labels):
        return spread(np.arange(len(labels)), most)
    codes = _codes(labels)
    classes = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if len(codes) else []
    chosen = [spread(each, max(1, most // len(classes))) for each in classes[:most]]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the places, evenly spread, in order."""
    count = min(len(places), most)
    return np.asarray(places[np.unique(np.linspace(0, len(places) - 1, count).round().astype(np.int64))]) if count else places[:0]


def is_numeric(labels: np.ndarray) -> bool:
    """Whether labels are measured numbers, not names of classes: floats that are not whole, or more different values than classes have."""
    if is_text(labels) or labels.dtype.kind == "b":
        return False
    different = len(np.unique(labels))
    fractions = is_float(labels) and bool((labels[np.isfinite(labels)] % 1).any())
    return fractions or different > max(2, min(100, len(labels) // 20))


def _telling(inputs: Arrays, labels: np.ndarray) -> list[tuple[str, int, float]]:
    numeric = is_numeric(labels)
    codes = np.unique(labels.astype(str) if is_text(labels) else labels, return_inverse=True)[1].reshape(-1)
    told, limit = (_rank_correlation, LEAK_RANKS) if numeric else (determined, LEAK)
    found = []
    for name, values in inputs.items():
        for cell, column in enumerate(values.reshape(len(values), -1).T):
            share = told(_codes(column), codes)
            if share >= limit:
                found.append((name, cell, share))
    return found


def _codes(column: np.ndarray) -> np.ndarray:
    """Ranks of the values: whole numbers from 0, equal for equal values."""
    return np.asarray(np.unique(column.astype(str) if is_text(column) else column, return_inverse=True)[1].reshape(-1))


def determined(values: np.ndarray, labels: np.ndarray) -> float:
    """Share of the errors of always naming the commonest label that knowing the value spares: 0 nothing, 1 all of them.

    Of values that repeat (ten rows each or more) their commonest label is named; else the label may change as the values grow, at no more
    places than there are labels.
    """
    rows, different = len(labels), int(values.max()) + 1
    errors = rows - int(np.bincount(labels).max())
    if different == 1 or errors == 0:
        return 0.0
    left = _errors_by_value(values, labels) if different * 10 <= rows else _errors_by_order(values, labels)
    return 1 - left / errors


def _errors_by_value(values: np.ndarray, labels: np.ndarray) -> float:
    table = np.zeros((int(values.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (values, labels), 1)
    return float(len(labels) - table.max(axis=1).sum())


def _errors_by_order(values: np.ndarray, labels: np.ndarray) -> float:
    """Each row with a stray label makes two changes in the row of labels sorted by value."""
    ordered = labels[np.lexsort((labels, values))]
    changes = int(np.count_nonzero(ordered[1:] != ordered[:-1]))
    return max(changes - int(labels.max()), 0) / 2


def _rank_correlation(values: np.ndarray, labels: np.ndarray) -> float:
    if values.max() == 0:
        return 0.0
    return abs(float(np.corrcoef(_mean_ranks(values), _mean_ranks(labels))[0, 1]))


def _mean_ranks(codes: np.ndarray) -> np.ndarray:
    counts = np.bincount(codes)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[codes])


# Age and likeness


def young_enough(golden_set: Mapping[str, Any], max_age_days: float, now_unix_s: float | None = None) -> Finding:
    """From `golden_set.written_unix_s` of the manifest; an age that is not known is none that can pass."""
    name, written = "golden_age", golden_set.get("written_unix_s")
    advice = "write the golden set again and register it, so that its age is known"
    if isinstance(written, bool) or not isinstance(written, int | float) or not math.isfinite(written):
        return inconclusive(name, f"when the golden set was written is not known; the policy allows {max_age_days:g} days", advice)
    age_days = ((time.time() if now_unix_s is None else now_unix_s) - written) / DAY_S
    details: dict[str, Any] = {"observed": round(age_days, 2), "limit": max_age_days}
    if age_days < -1:
        return inconclusive(name, f"the golden set was written {-age_days:.1f} days in the future", advice, **details)
    why = f"the golden set is {age_days:.1f} days old; the policy allows {max_age_days:g}"
    return passed(name, why, **details) if age_days <= max_age_days else failed(name, why, advice="make a newer golden set", **details)


def like_traffic(
    traffic: Traffic | None, batches: Iterable[Arrays], *, absent: str = "", now_unix_s: float | None = None
) -> Iterator[Finding]:
    """Do the golden inputs (`batches`) look like what users asked of late? First all in one finding, then the claims that do not hold."""
    name = "golden_traffic_drift"
    if traffic is None:
        why = (
            f"the policy asks that the golden set resemble recent traffic, and there is no sample of it: {absent or 'nobody recorded any'}"
        )
        advice = "let the recorder see traffic first ([recorder] in settings.toml), or set golden_set.traffic_drift to false"
        yield inconclusive(name, why, advice)
        return
    age_days = ((time.time() if now_unix_s is None else now_unix_s) - traffic.newest_unix_s) / DAY_S
    if traffic.rows < TRAFFIC_ROWS or not -1 <= age_days <= TRAFFIC_DAYS:
        why = f"the sample of traffic has {traffic.rows} rows and is {age_days:.1f} days old"
        advice = f"wait for {TRAFFIC_ROWS} rows of requests that are at most {TRAFFIC_DAYS} days old"
        yield inconclusive(name, why, advice, observed=float(traffic.rows), limit=float(TRAFFIC_ROWS), n=traffic.rows)
        return
    yield from _drifted(name, drift(traffic.sketches, sketch_batches(batches, traffic.sketches)), traffic.rows)


def _drifted(name: str, found: Sequence[Finding], rows: int) -> Iterator[Finding]:
    bad = sorted((each for each in found if each.outcome is not Outcome.PASSED), key=lambda each: -each.outcome)
    worst = bad[0].outcome if bad else Outcome.PASSED
    why = f"{len(bad)} of {len(found)} comparisons with {rows} rows of recent traffic do not hold" + (
        f", first {bad[0].name}" if bad else ""
    )
    advice = "make a golden set of what users ask now" if bad else None
    yield Finding(name=name, outcome=worst, why=why, observed=float(len(bad)), limit=0.0, n=rows, advice=advice)
    yield from (replace(each, name=f"traffic_{each.name}") for each in bad[:TRAFFIC_SHOWN])
