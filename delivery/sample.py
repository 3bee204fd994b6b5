"""The last rows that users asked each model about, kept on disk: of what they sent, and nothing else.

`delivery.recorder` adds what it was shown and reads the rows back for the task `claim`. These are users' data: files are 0600, a model has
two segments at most, and the older one is deleted when the newer is full or has been open for half of the days that rows are kept. It
knows no version and no answer.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from delivery.inference import read_request, write_request

ROWS_KEPT = 20_000
DAYS_KEPT, DAY_S = 7.0, 86_400.0
BYTES_KEPT = 64 << 20
OLDEST, NEWEST = "penstock.oldest_unix_s", "penstock.newest_unix_s"
_HEAD = struct.Struct("<dII")  # unix seconds, rows, bytes that follow

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Inputs by name, rows first, oldest first; when the oldest and the newest came."""

    inputs: Arrays
    oldest_unix_s: float
    newest_unix_s: float

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Sample:
    """The segments of all models below `folder`. What a crash left half written ends the reading of its segment, no more."""

    def __init__(self, folder: Path, *, rows_kept: int = ROWS_KEPT, bytes_kept: int = BYTES_KEPT, days_kept: float = DAYS_KEPT) -> None:
        self._folder = folder
        self._rows_kept = rows_kept
        self._segment_bytes = bytes_kept // 2
        self._kept_s = days_kept * DAY_S
        self._segments: dict[str, _Segment] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)

    def add(self, model: str, inputs: Arrays, unix_s: float) -> None:
        """Of a request that alone is larger than a segment, nothing is kept."""
        data = write_request(model, inputs)
        record = _HEAD.pack(unix_s, len(next(iter(inputs.values()))), len(data)) + data
        if len(record) <= self._segment_bytes:
            self._room(model, len(record), unix_s).write(record, len(next(iter(inputs.values()))))

    def last(self, model: str, rows: int) -> Rows | None:
        """The last `rows`, or as many as there are; None without any. Of requests of several forms the most frequent form counts."""
        newest, have = [], 0
        for record in reversed([each for path in self._paths(model) for each in _records(path)]):
            if have >= rows:
                break
            newest.append(record)
            have += record.rows
        requests = _of_one_form([(each.unix_s, read_request(each.body)[1]) for each in reversed(newest)])
        return _joined(requests, rows) if requests else None

    def forget(self, now_unix_s: float) -> None:
        """Deletes each segment whose first row is older than the days that rows are kept: no row outlives them, whatever came later."""
        for path in self._folder.glob("*/*.rows"):
            if _began_s(path) <= now_unix_s - self._kept_s:
                if (segment := self._segments.get(path.parent.name)) and segment.path == path:
                    del self._segments[path.parent.name]
                path.unlink(missing_ok=True)

    def _room(self, model: str, size: int, unix_s: float) -> _Segment:
        segment = self._segments.get(model)
        full = segment is not None and (segment.rows >= self._rows_kept or segment.bytes + size > self._segment_bytes)
        if segment is None or full or unix_s - segment.began_s > self._kept_s / 2:
            segment = self._segments[model] = self._next(model, unix_s)
        return segment

    def _next(self, model: str, unix_s: float) -> _Segment:
        """A new segment; of those before it the newest stays."""
        paths = self._paths(model)
        for each in paths[:-1]:
            each.unlink()
        number = int(paths[-1].stem) + 1 if paths else 1
        (self._folder / model).mkdir(mode=0o700, exist_ok=True)
        return _Segment(self._folder / model / f"{number}.rows", unix_s)

    def _paths(self, model: str) -> list[Path]:
        return sorted((self._folder / model).glob("*.rows"), key=lambda each: int(each.stem))


class _Segment:
    def __init__(self, path: Path, began_s: float) -> None:
        self.path, self.began_s = path, began_s
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self.rows = self.bytes = 0

    def write(self, record: bytes, rows: int) -> None:
        os.write(self._descriptor, record)
        self.rows += rows
        self.bytes += len(record)

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Record(NamedTuple):
    unix_s: float
    rows: int
    body: bytes


def _began_s(path: Path) -> float:
    """When the first row of a segment came; of a torn or empty one, long ago."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    return float(_HEAD.unpack(head)[0]) if len(head) == _HEAD.size else -math.inf


def _records(path: Path) -> Iterator[_Record]:
    data, place = path.read_bytes(), 0
    while place + _HEAD.size <= len(data):
        unix_s, rows, size = _HEAD.unpack_from(data, place)
        place += _HEAD.size + size
        if place > len(data):
            return
        yield _Record(unix_s, rows, data[place - size : place])


def _form(inputs: Arrays) -> Any:
    return tuple(sorted((name, values.dtype.name, values.shape[1:]) for name, values in inputs.items()))


def _of_one_form(requests: list[tuple[float, dict[str, np.ndarray]]]) -> list[tuple[float, dict[str, np.ndarray]]]:
    forms = Counter(_form(inputs) for _, inputs in requests)
    wanted = max(forms, key=forms.__getitem__) if forms else None
    return [each for each in requests if _form(each[1]) == wanted]


def _joined(requests: Sequence[tuple[float, Arrays]], rows: int) -> Rows:
    names = requests[0][1]
    inputs = {name: np.concatenate([each[name] for _, each in requests])[-rows:] for name in names}
    return Rows(inputs=inputs, oldest_unix_s=requests[0][0], newest_unix_s=requests[-1][0])


def parquet(rows: Rows) -> bytes:
    """A column an input, like a bundle's `golden/inputs.parquet`; when the rows came stands in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _column(values) for name, values in rows.inputs.items()}
    times = {OLDEST: repr(rows.oldest_unix_s), NEWEST: repr(rows.newest_unix_s)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(times), buffer)
    return buffer.getvalue()


def _column(values: np.ndarray) -> Any:
    import pyarrow as pa

    flat, size = values.reshape(-1), math.prod(values.shape[1:])
    column = pa.array([each.decode(errors="replace") for each in flat] if flat.dtype.hasobject else flat)
    return column if size == 1 else pa.FixedSizeListArray.from_arrays(column, size)
