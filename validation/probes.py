"""Probe rows: golden rows pushed to the edges of what the golden set holds, where exporters and source models part first.

`delivery.export` makes them from the golden inputs and has the source model answer them; the gate `golden_set` holds the exported model
against these answers. Both must get the same rows, so nothing here is random. No value is invented: a source model may rightly refuse a
word or a number that it never saw, and a refusal would say nothing about the export. This module runs no model and reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FEATURES = 512
"""Features of one input that are pushed, spread evenly over all of them: a picture's neighbouring pixels teach the same."""

CELLS = 4_000_000
"""Cells of all probes of one input: what a row of many features costs in number of probes."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Edges:
    """The smallest and greatest values of each feature of one input [features], and which features are missing in some row."""

    low: np.ndarray
    high: np.ndarray
    missing: np.ndarray
    none: object


def probe_rows(arrays: Arrays) -> dict[str, np.ndarray]:
    """Probes by input name, first axis = probes, from golden inputs by name with rows first; dtypes and row shapes stay.

    Each feature alone at its smallest and its greatest value (words: the first and last by length, then letters), each in another golden
    row; all features at once; and, where golden rows hold missing values (NaN, an empty word), each such feature missing alone and all of
    them missing at once: a feature that is never missing there may not be missing in production either. No rows give no probes.
    """
    rows = len(next(iter(arrays.values())))
    pushed = {name: tuple(_pushes(values)) if rows else () for name, values in arrays.items()}
    total = sum(map(len, pushed.values()))
    base = np.arange(total) % max(rows, 1)
    probes = {name: np.array(values[base], order="C") for name, values in arrays.items()}
    start = 0
    for name, pushes in pushed.items():
        flat = probes[name].reshape(total, math.prod(probes[name].shape[1:]))  # a view: the copy above is contiguous
        for row, (places, values) in enumerate(pushes, start):
            flat[row, places] = values
        start += len(pushes)
    return probes


def _pushes(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which features of a row get which values, one pair a probe."""
    flat = values.reshape(len(values), -1)
    edges = _edges(flat)
    everywhere = np.arange(flat.shape[1])
    for place in _spread(everywhere):
        yield from ((place, side[place]) for side in (edges.low, edges.high))
    yield from ((everywhere, side) for side in (edges.low, edges.high))
    absent = np.flatnonzero(edges.missing)
    nothing = np.full(flat.shape[1], edges.none, dtype=flat.dtype) if absent.size else flat[0]
    yield from ((place, nothing[place]) for place in _spread(absent))
    if absent.size:
        yield absent, nothing[absent]


def _spread(features: np.ndarray) -> np.ndarray:
    """At most as many features as the limits allow, each as an array of one."""
    count = max(1, min(len(features), FEATURES, CELLS // max(2 * len(features), 1)))
    chosen = np.unique(np.linspace(0, len(features) - 1, count).round().astype(int)) if len(features) else np.empty(0, int)
    return np.asarray(features[chosen].reshape(-1, 1))


def _edges(flat: np.ndarray) -> Edges:
    if flat.dtype.kind in "OSU":
        return _word_edges(flat)
    seen = np.isfinite(flat) if flat.dtype.kind == "f" else np.ones(flat.shape, dtype=bool)
    fallback = flat[0]  # of a feature without one finite value
    low, high = (_extreme(flat, seen, fallback, smallest=smallest) for smallest in (True, False))
    missing = np.isnan(flat).any(axis=0) if flat.dtype.kind == "f" else np.zeros(flat.shape[1], dtype=bool)
    return Edges(low=low, high=high, missing=missing, none=np.nan)


def _extreme(flat: np.ndarray, seen: np.ndarray, fallback: np.ndarray, *, smallest: bool) -> np.ndarray:
    pick = np.argmin if smallest else np.argmax
    if flat.dtype.kind == "f":
        flat = np.where(seen, flat, np.inf if smallest else -np.inf)
    found = np.asarray(flat[pick(flat, axis=0), np.arange(flat.shape[1])])
    return np.asarray(np.where(seen.any(axis=0), found, fallback))


def _word_edges(flat: np.ndarray) -> Edges:
    columns = [sorted(set(column.tolist()), key=lambda word: (len(word), word)) for column in flat.T]
    missing = np.array([not words[0] for words in columns], dtype=bool)
    full = [[word for word in words if word] or words for words in columns]
    low, high = (np.array([words[end] for words in full], dtype=flat.dtype) for end in (0, -1))
    return Edges(low=low, high=high, missing=missing, none=type(flat[0, 0])())
