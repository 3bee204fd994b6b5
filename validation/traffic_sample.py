"""What users asked of a model of late, as a sketch: made of a recorder's sample by `claim`, read by the gate `golden_set`.

The sketch travels between them as one JSON file: the gate needs no access to users' rows. `penstock check --traffic` makes one of a Parquet
file. This module asks no server and judges nothing; `golden_quality.like_traffic` does.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from validation.contract import BadSpec
from validation.drift import BadSketch, Sketch, read_sketches, sketch_batches

if TYPE_CHECKING:
    import pyarrow as pa

NEWEST = b"penstock.newest_unix_s"
LIMIT_BYTES = 256 << 20
NO_STABLE = "no version is stable yet"
"""Why there is no sample, when there can be none: the only reason that a gate may pass over."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Sketches by column of `rows` rows of inputs, of which the newest came at `newest_unix_s`."""

    rows: int
    newest_unix_s: float
    sketches: dict[str, Sketch]

    def to_json(self) -> bytes:
        sketches = {name: each.to_json() for name, each in self.sketches.items()}
        return json.dumps({"rows": self.rows, "newest_unix_s": self.newest_unix_s, "sketches": sketches}, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Traffic:
        """Raises `BadSpec`, naming what is wrong."""
        try:
            row = json.loads(data)
            rows, newest = row["rows"], float(row["newest_unix_s"])
            if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0 or not math.isfinite(newest):
                raise BadSpec(f"the sketch of traffic is of {rows!r} rows, the newest of {newest!r}")
            return cls(rows=rows, newest_unix_s=newest, sketches=read_sketches(row["sketches"]))
        except (ValueError, TypeError, KeyError, BadSketch, RecursionError) as error:
            raise BadSpec(f"the sketch of traffic cannot be read: {type(error).__name__}: {error}") from error


def sketch_sample(data: bytes, newest_unix_s: float | None = None) -> Traffic:
    """Of a Parquet file with a column an input; `newest_unix_s` counts where the file does not say it. Raises `BadSpec`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
        newest = float((table.schema.metadata or {}).get(NEWEST, b"nan"))
        arrays = {name: _array(table, name) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadSpec(f"the sample of traffic cannot be read: {str(error)[:200]}") from error
    newest = newest_unix_s if math.isnan(newest) and newest_unix_s is not None else newest
    if math.isnan(newest):
        raise BadSpec("the sample of traffic does not say when it was taken")
    return Traffic(rows=table.num_rows, newest_unix_s=newest, sketches=sketch_batches([arrays]))


def _array(table: pa.Table, name: str) -> np.ndarray:
    """Shape [rows, values]; an empty cell is a missing value."""
    import pyarrow as pa

    column: Any = table.column(name).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = column.flatten() if pa.types.is_nested(column.type) else column
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(table.num_rows, -1)
