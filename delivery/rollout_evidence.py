"""The evidence of a rollout: every request that the gateway saw of the two versions, carried from step to step and kept for a replay.

The watch of a step takes new rows in, hands them to the judge as columns, and writes one Parquet file; the next step's watch reads it back
and goes on. Times never go backwards in it: where the gateway's clock was set back, later rows are shifted and a gap is noted. Wherever
rows may be missing there is a gap. Nothing is judged here.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from delivery.director_client import Row, Rows
from validation.contract import BadSpec, download_into, sha256
from validation.rollout_judge import Evidence
from validation.served import Served

FILE = "requests.parquet"
FORMAT = "1"
LIMIT_BYTES = 1 << 30
SET_BACK_S = 60.0
"""A request that began so much before one logged earlier: longer than a request may take, so the clock was set back."""

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("unix_s", pa.float64()),
        ("version", pa.int32()),
        ("ok", pa.bool_()),
        ("latency_ms", pa.float64()),
        ("slice", pa.string()),
    ]
)


@dataclass(kw_only=True)
class _Columns:
    """One version's rows as arrays in order of their beginning; it grows with the log."""

    version: int
    seen: int = 0
    served: Served = field(default_factory=lambda: _served([]))
    slices: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))

    def upto(self, rows: list[Row]) -> _Columns:
        """With the rows that the log has more since the last time. Times that cannot be read go to the end."""
        new = [row for row in rows[self.seen :] if row.version == self.version]
        self.seen = len(rows)
        if new:
            added = _served(new)
            unix_s = np.concatenate([self.served.unix_s, added.unix_s])
            order = np.argsort(unix_s, kind="stable")
            ok, latency_ms = (
                np.concatenate([before, after])[order]
                for before, after in ((self.served.ok, added.ok), (self.served.latency_ms, added.latency_ms))
            )
            self.served = Served(unix_s=unix_s[order], ok=ok, latency_ms=latency_ms)
            self.slices = np.concatenate([self.slices, np.array([row.slice for row in new], dtype=np.str_)])[order]
        return self


@dataclass(kw_only=True)
class RolloutLog:
    """Rows of stable and candidate in the order of the gateway's log; `last` and `epoch` say where to go on, `gaps_unix_s` where rows
    may be missing.
    """

    stable: int
    candidate: int
    rows: list[Row] = field(default_factory=list)
    last: int = 0
    epoch: str = ""
    gaps_unix_s: list[float] = field(default_factory=list)
    gaps_told: int | None = None
    shifted_s: float = 0.0
    latest_s: float = -math.inf
    _columns: dict[int, _Columns] = field(default_factory=dict, init=False, repr=False, compare=False)

    def take(self, answer: Rows) -> None:
        """Another epoch, rows that left the director's ring unread, or a count of gaps that grew: something may be missing."""
        fresh = self.epoch != answer.epoch
        if self.epoch and (fresh or answer.lost or answer.gaps != self.gaps_told):
            self.note_gap()
        self.epoch, self.last, self.gaps_told = answer.epoch, answer.last, answer.gaps
        self.add(answer.rows)

    def add(self, rows: Iterable[Row]) -> None:
        self.rows.extend(self._in_time(row) for row in rows if row.version in {self.stable, self.candidate})

    def note_gap(self) -> None:
        if math.isfinite(self.latest_s):
            self.gaps_unix_s.append(self.latest_s)

    def of(self, version: int) -> list[Row]:
        return [row for row in self.rows if row.version == version]

    def evidence(self, step_since_s: float) -> Evidence:
        """What the judge reads; rows that were columns at the last look are not made so again."""
        candidate, stable = (
            self._columns.setdefault(each, _Columns(version=each)).upto(self.rows) for each in (self.candidate, self.stable)
        )
        return Evidence(
            candidate=candidate.served,
            stable=stable.served,
            slices=candidate.slices,
            stable_slices=stable.slices,
            step_since_s=step_since_s,
            whole_since_s=math.nextafter(self.gaps_unix_s[-1], math.inf) if self.gaps_unix_s else -math.inf,
        )

    def write(self, folder: Path) -> str:
        """Writes `FILE`, the same bytes for the same rows; returns its sha256."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(SCHEMA)
        arrays = [pa.array(column, type=each.type) for column, each in zip(columns, SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata({"penstock": json.dumps(self._state())}))
        pq.write_table(table, folder / FILE, compression="zstd")
        return sha256((folder / FILE).read_bytes())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `BadSpec` when the file is not what `write` made."""
        try:
            table = pq.read_table(path)
            state = json.loads(table.schema.metadata[b"penstock"])
            if state.pop("format") != FORMAT:
                raise BadSpec(f"{path.name} has another format than {FORMAT}")
            return cls(rows=[Row(*each.values()) for each in table.to_pylist()], **_from_state(state))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise BadSpec(f"{path.name} is no evidence of a rollout: {error}") from error

    @classmethod
    def fetch(cls, uri: str, digest: str) -> Self:
        """An earlier step's file. Raises `BadSpec` when its bytes are not those that the step put out; `OSError` is worth a retry."""
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            path = Path(folder) / FILE
            try:
                with path.open("wb") as file:
                    download_into(file, uri, digest, limit_bytes=LIMIT_BYTES)
            except ValueError as error:
                raise BadSpec(str(error)) from error
            return cls.read(path)

    def _state(self) -> dict[str, Any]:
        names = ("stable", "candidate", "last", "epoch", "gaps_unix_s", "gaps_told", "shifted_s")
        latest_s = self.latest_s if math.isfinite(self.latest_s) else None
        return {"format": FORMAT, "latest_s": latest_s, **{name: getattr(self, name) for name in names}}

    def _in_time(self, row: Row) -> Row:
        began_s = row.unix_s + self.shifted_s
        if began_s < self.latest_s - SET_BACK_S:
            self.note_gap()
            self.shifted_s += self.latest_s - began_s
            began_s = self.latest_s
        self.latest_s = max(self.latest_s, began_s)
        return row._replace(unix_s=began_s)


def _from_state(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state, "latest_s": -math.inf if state["latest_s"] is None else state["latest_s"]}


def _served(rows: list[Row]) -> Served:
    return Served(
        unix_s=np.array([row.unix_s for row in rows], float),
        ok=np.array([row.ok for row in rows], bool),
        latency_ms=np.array([row.latency_ms for row in rows], float),
    )
