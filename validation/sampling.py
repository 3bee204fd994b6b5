"""Which golden rows the metrics are computed on when there are too many for memory: chosen once, before any model runs.

The gate `golden_set` calls it. Each row gets a pseudo-random priority from the seed and its number, and the smallest priorities are kept
(bottom-k sampling: Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"): a uniform sample without replacement, the same every
time. Slices have samples of their own, so that a rare one keeps all its rows. Rows of one query (for ranking) share a priority and stay
together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from validation.golden_rows import BATCH_ROWS, GoldenRows
from validation.policy import GoldenSet

SAMPLE_ROWS = 100_000
SLICE_ROWS = 20_000
CHUNK_ROWS = BATCH_ROWS * 16


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One slice: the rows that have this value, as text, in this column."""

    column: str
    value: str

    @property
    def words(self) -> str:
        return f"{self.column}={self.value}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Golden row numbers in order: `rows` are all that are kept; `whole` and each of `cuts` are places in `rows`.

    `seen` counts a cut's rows before sampling.
    A cut whose column the golden set does not have is missing from `cuts`. `groups` are the query names of `rows` by column.
    """

    rows: np.ndarray
    whole: np.ndarray
    cuts: Mapping[Cut, np.ndarray]
    seen: Mapping[Cut, int]
    groups: Mapping[str, np.ndarray]


class Reservoir:
    """Keeps the numbers of the `limit` rows with the smallest priorities, whole priorities at a time."""

    def __init__(self, limit: int) -> None:
        self._limit, self.seen = limit, 0
        self._rows, self._priorities = np.empty(0, np.int64), np.empty(0, np.uint64)

    def add(self, rows: np.ndarray, priorities: np.ndarray) -> None:
        self.seen += len(rows)
        self._rows, self._priorities = np.concatenate([self._rows, rows]), np.concatenate([self._priorities, priorities])
        if len(self._rows) > 2 * self._limit:
            self._prune()

    def rows(self) -> np.ndarray:
        self._prune()
        return np.sort(self._rows)

    def _prune(self) -> None:
        """Equal priorities go together, unless the first of them alone are too many."""
        if len(self._rows) <= self._limit:
            return
        order = np.argsort(self._priorities, kind="stable")
        ranked = self._priorities[order]
        cut = int(np.searchsorted(ranked, ranked[self._limit], side="left")) or self._limit
        self._rows, self._priorities = self._rows[order[:cut]], ranked[:cut]


def choose(golden: GoldenRows, limits: GoldenSet, seed: int, most: int = SAMPLE_ROWS) -> Sample:
    """At most `most` rows of the whole and `SLICE_ROWS` of each slice; two passes at most over the columns that the policy names."""
    whole, cuts = Reservoir(most), _empty_cuts(golden, limits, min(SLICE_ROWS, most))
    for start, columns in _chunks(golden, _columns(golden, limits)):
        rows = start + np.arange(len(next(iter(columns.values()))) if columns else min(CHUNK_ROWS, golden.rows - start))
        priorities = _priorities(rows, columns, limits, seed)
        whole.add(rows, priorities)
        for cut, reservoir in cuts.items():
            mask = columns[cut.column] == cut.value
            reservoir.add(rows[mask], priorities[mask])
    return _sample(golden, limits, whole.rows(), {cut: (each.rows(), each.seen) for cut, each in cuts.items()})


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random uint64 for uint64 values (SplitMix64's finaliser: Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def word_hashes(words: np.ndarray) -> np.ndarray:
    """A uint64 for each word, the same in every process (Python's own hash is not)."""
    unique, places = np.unique(words.astype(str), return_inverse=True)
    digests = [int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()) for word in unique]
    return np.asarray(np.array(digests, dtype=np.uint64)[places.reshape(-1)])


def _empty_cuts(golden: GoldenRows, limits: GoldenSet, most: int) -> dict[Cut, Reservoir]:
    known = golden.columns
    return {
        Cut(column=each.column, value=value): Reservoir(most) for each in limits.slices if each.column in known for value in each.values
    }


def _columns(golden: GoldenRows, limits: GoldenSet) -> list[str]:
    wanted = [each.column for each in limits.slices] + [each.group for each in limits.metrics if each.group]
    return [name for name in dict.fromkeys(wanted) if name in golden.columns]


def _chunks(golden: GoldenRows, names: list[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The columns' values as text, chunk by chunk, with the number of the first row."""
    start, streams = 0, [golden.words(name) for name in names]
    while start < golden.rows:
        columns = {name: next(stream) for name, stream in zip(names, streams, strict=True)}
        yield start, columns
        start += len(columns[names[0]]) if names else CHUNK_ROWS


def _priorities(rows: np.ndarray, columns: Mapping[str, np.ndarray], limits: GoldenSet, seed: int) -> np.ndarray:
    group = next((each.group for each in limits.metrics if each.group in columns), None)
    return mixed(rows.astype(np.uint64) if group is None else word_hashes(columns[group]), seed)


def _sample(golden: GoldenRows, limits: GoldenSet, whole: np.ndarray, cuts: Mapping[Cut, tuple[np.ndarray, int]]) -> Sample:
    rows = np.unique(np.concatenate([whole, *(kept for kept, _ in cuts.values())]))
    groups = [each.group for each in limits.metrics if each.group in golden.columns]
    return Sample(
        rows=rows,
        whole=np.searchsorted(rows, whole),
        cuts={cut: np.searchsorted(rows, kept) for cut, (kept, _) in cuts.items()},
        seen={cut: seen for cut, (_, seen) in cuts.items()},
        groups={name: _values_at(golden, name, rows) for name in groups if name is not None},
    )


def _values_at(golden: GoldenRows, column: str, rows: np.ndarray) -> np.ndarray:
    parts, start = [], 0
    for words in golden.words(column):
        first, last = np.searchsorted(rows, (start, start + len(words)))
        parts.append(words[rows[first:last] - start])
        start += len(words)
    return np.concatenate(parts) if parts else np.empty(0, dtype=object)
