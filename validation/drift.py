"""Drift: what a column looked like, kept as a small sketch, and whether another sample of it looks the same.

`export` stores sketches of the golden inputs and of the source model's answers in the bundle; the gate `distribution` and a watch in
production compare with them. The reference table itself is never needed again. This module reads no file and knows no model; arrays come
in as batches, plain JSON values and findings go out.

A sketch is made in one pass with bounded memory. Its counts, moments and range are exact; its bin edges are percentiles, exact up to
`POINTS` values and within `log2(n / POINTS) / (2 POINTS)` of the rank beyond. The sample that is compared is sketched along the
reference's edges (`like`), so that the two sets of counts can be held against each other exactly.

| finding              | claim                                                                                              |
|----------------------|----------------------------------------------------------------------------------------------------|
| <column>_sketch      | both samples have rows that can be compared (only when they have not)                               |
| <column>_missing     | the share of missing values is the reference's, give or take `missing`; none where it had none       |
| <column>_infinite    | no infinity where the reference had none, and no other share of them                                |
| <column>_unseen      | values that the reference never had, or has no name for, stay below the share `unseen` (categories)  |
| <column>_shift       | the mean moved by less than `sigmas` standard deviations of the reference                           |
| <column>_ks          | the largest distance between the distribution functions is below `ks` (Kolmogorov and Smirnov)      |
| <column>_psi         | the population stability index over tenths of the reference, or its categories, is below `psi`       |

Each claim has two error rates. It is `failed` when the column surely moved further than the limit, with the false discovery rate over all
claims held at `error` (Benjamini and Hochberg 1995); `passed` when a move as far as the limit is excluded at `error`; else inconclusive,
with the number of rows that would do. So a drift that is sure and small is no failure, and a sample that is too small is no pass.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from statistics import NormalDist
from typing import Any

import numpy as np

from validation.contract import Finding, Outcome

BINS = 100
"""Percentiles: a column's edges are about so many, and two more for each value that holds a hundredth of the rows or more."""

GROUPS = 10
"""Tenths of the reference, over which the stability index is summed: its customary form (Siddiqi 2006, "Credit Risk Scorecards")."""

POINTS = 1 << 15
"""Values that are sorted at once, and kept by level of the quantile sketch: at ten million rows its rank error is at most 0.013 %."""

FEW = 20
"""Whole numbers with at most so many values are categories."""

CATEGORIES = 100
"""The most frequent categories, kept by name; the others are counted together."""

TRACKED = 10_000
"""Categories counted by name while a stream is read; beyond that the rarest are counted together, so memory stays bounded."""

COMPONENTS = 256
"""A tensor of up to so many numbers a row is sketched number by number, a larger one by each row's mean, least and greatest."""

NUMBERS, WORDS = "biuf", "OSUT"
"""numpy's kinds of element types."""

SHOWN = 5
NAME_CHARACTERS = 80
RARE = 5
"""Categories expected less often than this in the smaller sample are counted together (Cochran 1954)."""

_NORMAL = NormalDist()


class BadSketch(ValueError):
    """A stored sketch that cannot be one; the message names the key."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a column may move; see the table above for the units. `error` is both error rates.

    Two standard deviations are the field's rule for a mean. A stability index of 0.25 is its rule for a major change (Siddiqi 2006): half
    a standard deviation's shift of a bell curve, whose `ks` is then 0.2.
    """

    sigmas: float = 2.0
    psi: float = 0.25
    ks: float = 0.25
    missing: float = 0.05
    unseen: float = 0.01
    error: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """One column: `kind` is number, category or unknown. Shares are of `rows`; moments and range of the finite values.

    Of numbers: `counts[i]` values lie above `edges[i - 1]` and up to `edges[i]`. Of categories: `categories` are the most frequent by name,
    `others` the rows with none of these, `most_other` those with the most frequent of these, `examples` a few of these. Moments are None
    where there are no numbers or they overflow.
    """

    kind: str
    dtype: str
    rows: int
    missing: int = 0
    plus_infinite: int = 0
    minus_infinite: int = 0
    mean: float | None = None
    std: float | None = None
    kurtosis: float | None = None
    low: float | None = None
    high: float | None = None
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    categories: Mapping[str, int] = field(default_factory=dict)
    others: int = 0
    most_other: int = 0
    examples: tuple[str, ...] = ()

    @property
    def finite(self) -> int:
        """Rows with a value that can be placed."""
        return self.rows - self.missing - self.infinite

    @property
    def infinite(self) -> int:
        return self.plus_infinite + self.minus_infinite

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, about 3 KiB; `from_json` reads them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, row: Any) -> Sketch:
        """Raises `BadSketch`, naming the key: a sketch that does not add up compares with nothing."""
        names = {each.name for each in fields(cls)}
        if not isinstance(row, Mapping) or set(row) != names:
            raise BadSketch(f"a sketch has the keys {', '.join(sorted(names))}")
        try:
            values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            sketch = cls(**values)
            sketch._checked()
        except TypeError as error:
            raise BadSketch(f"a sketch with values of the wrong kind: {error}") from error
        return sketch

    def _checked(self) -> None:
        counted = (
            self.rows,
            self.missing,
            self.plus_infinite,
            self.minus_infinite,
            self.others,
            self.most_other,
            *self.counts,
            *self.categories.values(),
        )
        moments = [each for each in (self.mean, self.std, self.kurtosis, self.low, self.high) if each is not None]
        binned = sum(self.counts) if self.kind == "number" else self.others + sum(self.categories.values())
        _need(self.kind in {"number", "category", "unknown"}, f"kind {self.kind!r} is not known")
        _need(all(type(each) is int and each >= 0 for each in counted), "counts must be whole numbers from 0")
        _need(all(math.isfinite(each) for each in (*moments, *self.edges)), "moments and edges must be finite")
        _need(self.std is None or self.std >= 0, "std must not be negative")
        _need((self.std == 0) == (self.low is not None and self.low == self.high), "std must be 0 just where low and high are equal")
        _need(list(self.edges) == sorted(set(self.edges)), "edges must grow")
        _need(self.kind != "number" or len(self.counts) == len(self.edges) + 1, "counts must be one more than edges")
        _need(self.kind == "unknown" or binned == self.finite >= 0, "the counts do not add up to rows")


def sketch(values: np.ndarray, like: Sketch | None = None) -> Sketch:
    """The sketch of one column [rows]; along the edges and categories of `like` when it is to be compared with that."""
    column = Column(like)
    column.add(values)
    return column.sketch()


def sketch_batches(batches: Iterable[Mapping[str, np.ndarray]], like: Mapping[str, Sketch] | None = None) -> dict[str, Sketch]:
    """Sketches by column of a table that comes as batches of arrays by name, each [rows, *shape]; one batch is in memory at a time."""
    columns: dict[str, Column] = {}
    for batch in batches:
        for name, values in components(batch):
            if name not in columns:
                columns[name] = Column((like or {}).get(name))
            columns[name].add(values)
    return {name: column.sketch() for name, column in columns.items()}


def components(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Columns [rows] of arrays [rows, *shape].

    `X` for one value a row, `X[3]` for the fourth of up to `COMPONENTS`, else `X:mean`, `X:low` and `X:high` of each row's values.
    """
    for name, values in arrays.items():
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        if flat.shape[1] == 1:
            yield name, flat[:, 0]
        elif flat.shape[1] <= COMPONENTS or flat.dtype.kind not in "biuf":
            yield from ((f"{name}[{i}]", flat[:, i]) for i in range(min(flat.shape[1], COMPONENTS)))
        else:
            yield from _rows_of(name, flat.astype(float, copy=False))


def _rows_of(name: str, flat: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{name}:mean", flat.mean(axis=1)
    yield f"{name}:low", flat.min(axis=1)
    yield f"{name}:high", flat.max(axis=1)


def read_sketches(row: Any) -> dict[str, Sketch]:
    """Sketches by column from their JSON form. Raises `BadSketch`, naming the column."""
    if not isinstance(row, Mapping):
        raise BadSketch(f"sketches are an object by column, not {type(row).__name__}")
    read: dict[str, Sketch] = {}
    for name, each in row.items():
        try:
            read[name] = Sketch.from_json(each)
        except BadSketch as error:
            raise BadSketch(f"{name}: {error}") from error
    return read


# Making a sketch


class Column:
    """One column's sketch in the making: `add` batches [rows], then ask for `sketch`."""

    def __init__(self, like: Sketch | None = None) -> None:
        self.like = like
        self.dtypes: dict[str, None] = {}
        self.rows = self.missing = self.plus_infinite = self.minus_infinite = 0
        self.moments = Moments()
        self.words = Words()
        self.few = like is None or like.kind == "category"
        self.bins: Quantiles | Along = Along(like.edges) if like and like.kind == "number" else Quantiles()

    def add(self, values: np.ndarray) -> None:
        self.dtypes[values.dtype.name if values.dtype.kind in NUMBERS else _word_kind(values)] = None
        self.rows += len(values)
        if values.dtype.kind in NUMBERS:
            self.few &= self.like is not None or values.dtype.kind != "f"
            for start in range(0, len(values), POINTS):
                self._numbers(np.sort(values[start : start + POINTS].astype(np.float64)))
        elif values.dtype.kind in WORDS:
            self.missing += self.words.add(values)

    def _numbers(self, ordered: np.ndarray) -> None:
        """Takes sorted values: -inf first, then numbers, +inf, NaN, so that what is no number is cut off at the ends."""
        first = int(np.searchsorted(ordered, -math.inf, side="right"))
        last, numbers = (int(each) for each in np.searchsorted(ordered, (math.inf, math.nan)))
        self.minus_infinite += first
        self.plus_infinite += numbers - last
        self.missing += len(ordered) - numbers
        finite = ordered[first:last]
        self.moments.add(finite)
        self.bins.add(finite)
        if self.few:
            self.words.add_numbers(finite)
            self.few = self.like is not None or len(self.words.counts) <= FEW

    def sketch(self) -> Sketch:
        found: dict[str, Any] = {"dtype": ", ".join(self.dtypes) or "none", "rows": self.rows, "missing": self.missing}
        found |= {"plus_infinite": self.plus_infinite, "minus_infinite": self.minus_infinite, "kind": self._kind()}
        if found["kind"] == "category":
            found |= self.words.kept(self.like.categories if self.like else None)
        if found["kind"] == "number":
            found["edges"], found["counts"] = self.bins.counted()
        return Sketch(**(found | self.moments.kept()))

    def _kind(self) -> str:
        """Numbers and words are never mixed; whole numbers are categories when they have few values, or when the reference's were."""
        texts = {name == "text" for name in self.dtypes}
        if len(texts) > 1 or "unknown" in self.dtypes:
            return "unknown"
        if self.like and self.like.kind != "unknown":
            same = (self.like.dtype == "text") in (texts or {self.like.dtype == "text"})
            return self.like.kind if same else "unknown"
        return "category" if texts == {True} or (texts and self.few) else "number"


class Moments:
    """Mean and central sums of powers 2 to 4, merged batch by batch (Pebay 2008, "Formulas for robust, one-pass parallel computation")."""

    def __init__(self) -> None:
        self.n, zero = 0, np.float64(0)
        self.mean, self.second, self.third, self.fourth = zero, zero, zero, zero
        self.low, self.high = math.inf, -math.inf

    def add(self, ordered: np.ndarray) -> None:
        if not len(ordered):
            return
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            mean = ordered.mean()
            apart = ordered - mean  # powers by elements: a product of vectors would wake the threads of BLAS
            square = apart * apart
            self._merge(len(ordered), mean, square.sum(), (square * apart).sum(), np.square(square, out=square).sum())
        self.low, self.high = min(self.low, float(ordered[0])), max(self.high, float(ordered[-1]))

    def _merge(self, n: int, mean: np.float64, second: np.float64, third: np.float64, fourth: np.float64) -> None:
        """Sums as numpy's floats: they overflow to infinity where Python's raise."""
        total, gap = self.n + n, mean - self.mean if self.n else np.float64(0)
        part = gap * gap * self.n * n / total
        self.fourth += fourth + part * gap * gap * (self.n**2 - self.n * n + n**2) / total**2
        self.fourth += (
            6 * gap * gap * (self.n**2 * second + n**2 * self.second) / total**2 + 4 * gap * (self.n * third - n * self.third) / total
        )
        self.third += third + part * gap * (self.n - n) / total + 3 * gap * (self.n * second - n * self.second) / total
        self.second += second + part
        self.mean = self.mean + gap * n / total if self.n else mean
        self.n = total

    def kept(self) -> dict[str, float | None]:
        """None for what overflows or underflows: a spread that cannot be held is not a spread of nothing."""
        if not self.n:
            return {}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            std, kurtosis = float(np.sqrt(self.second / self.n)), float(self.n * self.fourth / np.square(self.second))
        varies = self.low < self.high
        return {
            "mean": _finite(float(self.mean)),
            "std": (_finite(std) or None) if varies else 0.0,
            "kurtosis": _finite(kurtosis) if varies else None,
            "low": self.low,
            "high": self.high,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Along:
    """Counts along edges that are given."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = np.array(edges)
        self.counts = np.zeros(len(edges) + 1, dtype=np.int64)

    def add(self, ordered: np.ndarray) -> None:
        self.counts += _counts(ordered, self.edges)

    def counted(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        return tuple(self.edges.tolist()), tuple(self.counts.tolist())


class Quantiles:
    """Finds the edges: a hierarchy of sorted samples, each level's points standing for twice as many values as those of the level below.

    Two samples of a level are merged and every second point is kept, from the first or the second in turn (Manku, Rajagopalan and Lindsay
    1998, "Approximate medians and other quantiles in one pass and with limited memory").
    """

    def __init__(self) -> None:
        self.levels: dict[int, np.ndarray] = {}
        self.rest = np.empty(0)
        self.merges = 0

    def add(self, ordered: np.ndarray) -> None:
        self.rest = np.sort(np.concatenate((self.rest, ordered))) if len(self.rest) else ordered
        while len(self.rest) >= POINTS:
            self._carry(self.rest[:POINTS])
            self.rest = self.rest[POINTS:].copy()

    def _carry(self, points: np.ndarray) -> None:
        level = 0
        while level in self.levels:
            merged = np.sort(np.concatenate((self.levels.pop(level), points)))
            points, level, self.merges = merged[self.merges % 2 :: 2], level + 1, self.merges + 1
        self.levels[level] = points

    def counted(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        samples = [(self.rest, 1), *((points, 1 << level) for level, points in sorted(self.levels.items()))]
        values = np.concatenate([points for points, _ in samples])
        order = np.argsort(values, kind="stable")
        upto = np.cumsum(np.concatenate([np.full(len(points), weight, dtype=np.int64) for points, weight in samples])[order])
        edges = _edges(values[order], upto)
        below = np.concatenate(([0], upto))[np.searchsorted(values[order], edges, side="right")]
        return tuple(edges.tolist()), tuple(np.diff(below, prepend=0, append=upto[-1] if len(upto) else 0).tolist())


def _edges(ordered: np.ndarray, upto: np.ndarray) -> np.ndarray:
    """Percentiles, the greatest value, and one edge just below the least value and below each that holds more than a percentile.

    With these a value that many rows share has a bin of its own, and what leaves the range on either side is seen.
    """
    if not len(ordered):
        return np.empty(0)
    wanted = np.arange(1, BINS + 1) * int(upto[-1]) / BINS
    percentiles = ordered[np.searchsorted(upto, wanted)]
    shared = percentiles[1:][percentiles[1:] == percentiles[:-1]]
    below = np.nextafter(np.concatenate((ordered[:1], shared)), -math.inf)
    edges = np.unique(np.concatenate((percentiles, below)))
    return np.asarray(edges[np.isfinite(edges)])


def _counts(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.diff(np.searchsorted(ordered, edges, side="right"), prepend=0, append=len(ordered))


class Words:
    """Counts values by name. Beyond `TRACKED` names the rarest are counted together."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.others = 0

    def add(self, values: np.ndarray) -> int:
        """Counts texts and returns how many values were missing."""
        found = _counted(values.tolist())
        missing = sum(count for value, count in found.items() if _absent(value))
        for value, count in found.items():
            if not _absent(value):
                self.counts[_name(value)] += count
        self._bound()
        return missing

    def add_numbers(self, ordered: np.ndarray) -> None:
        values, counts = np.unique(ordered, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[f"{value:.17g}"] += count
        self._bound()

    def _bound(self) -> None:
        if len(self.counts) > TRACKED:
            kept = Counter(dict(self._ranked()[: TRACKED // 2]))
            self.others += self.counts.total() - kept.total()
            self.counts = kept

    def _ranked(self) -> list[tuple[str, int]]:
        """Most frequent first, equal ones by name: the order of the rows must not show."""
        return sorted(self.counts.items(), key=lambda each: (-each[1], each[0]))

    def kept(self, like: Iterable[str] | None) -> dict[str, Any]:
        ranked = self._ranked()
        known = {name: self.counts[name] for name in ([name for name, _ in ranked[:CATEGORIES]] if like is None else like)}
        others = self.others + self.counts.total() - sum(known.values())
        unnamed = [each for each in ranked if each[0] not in known]
        most = max((count for _, count in unnamed), default=0)
        return {"categories": known, "others": others, "most_other": most, "examples": tuple(name for name, _ in unnamed[:SHOWN])}


def _counted(values: list[Any]) -> Counter[Any]:
    try:
        return Counter(values)
    except TypeError:  # lists and the like cannot be keys
        return Counter(each if _absent(each) else _name(each) for each in values)


def _absent(value: Any) -> bool:
    """None, a float's NaN, and the ones of pandas, which this module does not import."""
    return value is None or type(value).__name__ in {"NAType", "NaTType"} or (isinstance(value, float) and math.isnan(value))


def _name(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if len(text) <= NAME_CHARACTERS:
        return text
    return f"{text[: NAME_CHARACTERS - 20]}...{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


# Comparing two


def drift(
    reference: Mapping[str, Sketch], current: Mapping[str, Sketch], limits: Limits = Limits(), shift_only: Collection[str] = ()
) -> tuple[Finding, ...]:
    """The findings of the table above, for every column of either side. `current` must be sketched `like` `reference`.

    Columns in `shift_only` get no `ks` and no `psi`: scores of a vector, whose order below a hundredth means nothing and moves freely.
    """
    if not reference:
        return (_unknown("reference_sketch", "no column has a stored reference", "export the model again, so that its baselines are kept"),)
    names = sorted({*reference, *current})
    looks = [
        look
        for name in names
        for look in _column(name, reference.get(name), current.get(name), limits)
        if name not in shift_only or not look.name.endswith(("_ks", "_psi"))
    ]
    sure = _discoveries([each.above for each in looks if isinstance(each, Look)], limits.error)
    return tuple(_judged(each, sure, limits.error) if isinstance(each, Look) else each for each in looks)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One comparison before judgement: `above` is the p-value of "no further than the limit", `below` of "at least as far".

    `below_with(k)` is what `below` would be with k times the rows at the same estimate.
    """

    name: str
    observed: float
    limit: float
    what: str
    n: int
    above: float
    below_with: Callable[[float], float]

    @property
    def below(self) -> float:
        return self.below_with(1)


def _column(name: str, reference: Sketch | None, current: Sketch | None, limits: Limits) -> Iterator[Look | Finding]:
    if problem := _incomparable(reference, current):
        yield problem(f"{name}_sketch")
    elif reference and current:
        yield _missing(name, reference, current, limits)
        yield _infinite(name, reference, current, limits)
        if not reference.finite or not current.finite:
            yield _unknown(f"{name}_sketch", "no value that can be placed: all are missing or infinite", "look where the column comes from")
        elif reference.kind == "category":
            yield from _categories(name, reference, current, limits)
        else:
            yield from _numbers(name, reference, current, limits)


def _incomparable(reference: Sketch | None, current: Sketch | None) -> Callable[[str], Finding] | None:
    """The finding that says why the two cannot be compared, or None; an absent column is the data's fault, an absent sketch nobody's."""
    if reference is None:
        return lambda name: _unknown(name, "the column has no stored reference", "export the model again, so that its baseline is kept")
    if current is None:
        return lambda name: Finding(name=name, outcome=Outcome.FAILED, why="the column is missing", n=0)
    if "unknown" in (reference.kind, current.kind) or reference.kind != current.kind:
        why = f"values of type {current.dtype} cannot be compared with a reference of type {reference.dtype}"
        return lambda name: Finding(name=name, outcome=Outcome.FAILED, why=why, n=current.rows)
    if not reference.rows or not current.rows:
        return lambda name: _unknown(name, f"{reference.rows} reference rows and {current.rows} to compare", "give both sides rows")
    if reference.edges != current.edges or list(reference.categories) != list(current.categories):
        return lambda name: _unknown(name, "sketched along other edges than the reference's", "sketch the column `like` its reference")
    return None


def _missing(name: str, reference: Sketch, current: Sketch, limits: Limits) -> Look | Finding:
    words = ("missing", reference.missing, current.missing)
    return _share(f"{name}_missing", words, (reference.rows, current.rows), limits.missing)


def _infinite(name: str, reference: Sketch, current: Sketch, limits: Limits) -> Look | Finding:
    words = ("infinite", reference.infinite, current.infinite)
    return _share(f"{name}_infinite", words, (reference.rows, current.rows), limits.missing)


def _share(name: str, counted: tuple[str, int, int], rows: tuple[int, int], limit: float) -> Look | Finding:
    """A share of rows beside the reference's. Where the reference has none there may be none: that is counted, not estimated."""
    word, before, now = counted
    if before == 0:
        why = f"{now} of {rows[1]} values are {word}; the reference has none"
        return Finding(name=name, outcome=Outcome.FAILED if now else Outcome.PASSED, why=why, observed=now / rows[1], limit=0.0, n=rows[1])
    gap = abs(now / rows[1] - before / rows[0])
    padded = [(part + 1) / (n + 2) for part, n in zip((before, now), rows, strict=True)]  # Agresti and Caffo 2000
    variance = sum(share * (1 - share) / (n + 2) for share, n in zip(padded, rows, strict=True))
    what = f"{now / rows[1]:.2%} of the values are {word}, {before / rows[0]:.2%} of the reference's"
    return _bell(name, gap, limit, what=what, n=rows[1], deviation=math.sqrt(variance))


def _numbers(name: str, reference: Sketch, current: Sketch, limits: Limits) -> Iterator[Look | Finding]:
    before, now = np.array(reference.counts), np.array(current.counts)
    yield _shift(name, reference, current, limits.sigmas)
    yield _ks(name, before, now, limits.ks)
    yield from _psi(name, *_tenths(before, now), limits.psi)


def _shift(name: str, reference: Sketch, current: Sketch, limit: float) -> Look | Finding:
    if None in (reference.mean, reference.std, current.mean, current.std):
        return _unknown(f"{name}_shift", "the values are too large for a mean and a spread", "scale the column")
    mean, std, now, spread = (float(each or 0) for each in (reference.mean, reference.std, current.mean, current.std))
    std = max(std, _noise(reference)) if std else 0
    if std == 0:
        same = now == mean and spread == 0
        why = f"the reference is {mean:g} in every row, so " + ("is this" if same else "any other value is beyond every limit")
        return Finding(name=f"{name}_shift", outcome=Outcome.PASSED if same else Outcome.FAILED, why=why, limit=limit, n=current.finite)
    deviation = math.sqrt(1 / reference.finite + (spread / std) ** 2 / current.finite + _of_the_unit(reference, limit))
    what = f"the mean is {now:g}, the reference's {mean:g} with standard deviation {std:g}: {abs(now - mean) / std:.3g} of them apart"
    return _bell(f"{name}_shift", abs(now - mean) / std, limit, what=what, n=current.finite, deviation=deviation)


def _of_the_unit(reference: Sketch, shift: float) -> float:
    """Variance that a shift has because its unit, the reference's standard deviation, is an estimate (delta method)."""
    return shift**2 * max((reference.kurtosis or 3) - 1, 0) / (4 * reference.finite)


def _noise(reference: Sketch) -> float:
    """What rounding alone may do to a sum of such numbers: a spread below it is none (1,000 shares that add up to 1 have a mean so)."""
    size = max(abs(reference.low or 0), abs(reference.high or 0))
    return 8 * size * float(np.finfo(reference.dtype).eps) if reference.dtype in {"float16", "float32", "float64"} else 0.0


def _bell(name: str, observed: float, limit: float, *, what: str, n: int, deviation: float) -> Look:
    """An estimate with a normal error of that standard deviation."""
    apart = (observed - limit) / deviation
    return Look(
        name=name,
        observed=observed,
        limit=limit,
        what=what,
        n=n,
        above=_NORMAL.cdf(-apart),
        below_with=lambda times: _NORMAL.cdf(apart * math.sqrt(times)),
    )


def _ks(name: str, before: np.ndarray, now: np.ndarray, limit: float) -> Look:
    """Distance at the edges, with the leading term of Kolmogorov's law, which is above its tail (Smirnov 1948)."""
    distance = float(np.abs(np.cumsum(before) / before.sum() - np.cumsum(now) / now.sum()).max())
    size = _together(before, now)

    def tail(apart: float, times: float = 1) -> float:
        return min(1.0, 2 * math.exp(-2 * times * size * apart * apart)) if apart > 0 else 1.0

    return Look(
        name=f"{name}_ks",
        observed=distance,
        limit=limit,
        what=f"the distribution functions are {distance:.3f} apart (of no difference p = {tail(distance):.2g})",
        n=int(now.sum()),
        above=tail(distance - limit),
        below_with=lambda times: tail(limit - distance, times),
    )


def _tenths(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both counts over about ten groups of bins with equal shares of the reference."""
    middle = (np.cumsum(before) - before / 2) / before.sum()
    group = np.minimum((middle * GROUPS).astype(int), GROUPS - 1)
    return np.bincount(group, before, GROUPS), np.bincount(group, now, GROUPS)


def _categories(name: str, reference: Sketch, current: Sketch, limits: Limits) -> Iterator[Look | Finding]:
    yield (_frequent if reference.others else _unseen)(f"{name}_unseen", reference, current, limits.unseen)
    before, now = (np.array(list(each.categories.values()), dtype=float) for each in (reference, current))
    yield from _psi(name, *_with_a_tail(before, now, (reference.others, current.others)), limits.psi)


def _unseen(name: str, reference: Sketch, current: Sketch, limit: float) -> Look | Finding:
    """The share of values that the reference never had; a limit of none is counted.

    What the reference saw once says how much it has not seen: that share comes on top of the limit (Good 1953, "The population frequencies
    of species and the estimation of population parameters", after Turing).
    """
    n, unseen = current.finite, current.others
    what = f"{unseen} of {n} values are none of the reference's" + (f": {', '.join(current.examples)}" if unseen else "")
    if limit == 0:
        outcome = Outcome.FAILED if unseen else Outcome.PASSED
        return Finding(name=name, outcome=outcome, why=what, observed=unseen / n, limit=limit, n=n)
    once = sum(count == 1 for count in reference.categories.values())
    return _few(name, unseen, n, limit + once / reference.finite, what=what, variance=once / reference.finite**2)


def _frequent(name: str, reference: Sketch, current: Sketch, limit: float) -> Look:
    """Of a reference that has not kept all values by name: no value without a name is more frequent than one was, by the limit."""
    most, n = reference.most_other / reference.finite, current.finite
    what = f"{current.most_other} of {n} values are {next(iter(current.examples), 'others')}, which the reference does not name"
    return _few(name, current.most_other, n, limit + most, what=what, variance=most / reference.finite)


def _few(name: str, count: int, n: int, allowed: float, *, what: str, variance: float) -> Look:
    """Score test of one share with a correction for whole numbers (Wilson 1927); `variance` is that of the limit itself."""
    limit = min(max(allowed, 1 / n), 0.5)
    deviation = math.sqrt(limit * (1 - limit) / n + variance)

    def apart(times: float, half: float) -> float:
        return (count / n - limit + half / (times * n)) * math.sqrt(times) / deviation

    return Look(
        name=name,
        observed=count / n,
        limit=limit,
        what=what,
        n=n,
        above=_NORMAL.cdf(-apart(1, -0.5)),
        below_with=lambda times: _NORMAL.cdf(apart(times, 0.5)),
    )


def _with_a_tail(before: np.ndarray, now: np.ndarray, others: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both counts, the categories that are too rare for a sum of squares counted together with those that have no name.

    A rare category has a name when the reference happened to meet it, so its share there is too large: only of both together it is right.
    """
    sizes = before.sum() + others[0], now.sum() + others[1]
    rare = (before + now) / sum(sizes) * min(sizes) < RARE
    return np.append(before[~rare], before[rare].sum() + others[0]), np.append(now[~rare], now[rare].sum() + others[1])


def _psi(name: str, before: np.ndarray, now: np.ndarray, limit: float) -> Iterator[Look]:
    """The index times n m / (n + m) has, near no drift, a chi-square law; at a drift it is off centre by the true index as many times.

    Groups that neither side has are left out, and each count is taken half larger, or one empty group would make the index infinite.
    """
    used = (before + now) > 0
    groups = int(used.sum())
    if groups < 2:
        return
    p, q = ((counts[used] + 0.5) / (counts.sum() + groups / 2) for counts in (before, now))
    index = float(((p - q) * np.log(p / q)).sum())
    size = _together(before, now)
    freedom = groups - 1
    chance = _chi_square_above(index * size, freedom, 0)
    yield Look(
        name=f"{name}_psi",
        observed=index,
        limit=limit,
        what=f"the stability index over {groups} groups is {index:.3f} (of no difference p = {chance:.2g})",
        n=int(now.sum()),
        above=_chi_square_above(index * size, freedom, limit * size),
        below_with=lambda times: 1 - _chi_square_above(times * index * size, freedom, times * limit * size),
    )


def _chi_square_above(value: float, freedom: int, apart: float) -> float:
    """Chance of at least `value` under a chi-square law that is `apart` off centre, by a normal cube root (Abdel-Aty 1954)."""
    centre = freedom + apart
    width = 2 / 9 * (1 + apart / centre) / centre
    return _NORMAL.cdf((1 - width - (value / centre) ** (1 / 3)) / math.sqrt(width))


def _together(before: np.ndarray, now: np.ndarray) -> float:
    """The size n m / (n + m) of one sample that errs as much as the two do."""
    return float(before.sum() * now.sum() / (before.sum() + now.sum()))


# From looks to findings


def _discoveries(chances: list[float], error: float) -> float:
    """The largest p-value that counts with the false discovery rate held at `error` (Benjamini and Hochberg 1995); -1 when none does."""
    ranked = sorted(chances)
    return max((each for i, each in enumerate(ranked, 1) if each <= error * i / len(ranked)), default=-1.0)


def _judged(look: Look, sure: float, error: float) -> Finding:
    """A number that is none (NaN) is above and below nothing, and so inconclusive."""
    outcome = Outcome.FAILED if look.above <= sure else Outcome.PASSED if look.below <= error else Outcome.INCONCLUSIVE
    claim = (f"{look.limit:g} is excluded", f"not surely on either side of {look.limit:g}", f"surely beyond {look.limit:g}")[outcome]
    return Finding(
        name=look.name,
        outcome=outcome,
        why=f"{look.what}; {claim}",
        observed=look.observed,
        limit=look.limit,
        n=look.n,
        advice=_more_rows(look, error) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _more_rows(look: Look, error: float) -> str:
    for times in (2**k for k in range(1, 21)):
        if look.below_with(times) <= error:
            return f"about {times} times as many rows like these, on both sides, would settle it"
    return "more of the same would not help: the estimate itself lies beyond the limit"


def _unknown(name: str, why: str, advice: str) -> Finding:
    return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, advice=advice, n=0)


def _word_kind(values: np.ndarray) -> str:
    return "text" if values.dtype.kind in "OSUT" else "unknown"


def _need(holds: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise BadSketch(why)
