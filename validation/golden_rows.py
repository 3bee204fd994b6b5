"""The golden rows of an open bundle, read piece by piece: memory does not grow with their number.

The gates and the probe of a started server call it. Inputs come from Parquet in batches, the source model's answers from `.npy` files by
memory map, both from files whose digests `read_bundle` has verified. What a row means is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.bundle import BadBundle, OpenBundle, Tensor, read_column

BATCH_ROWS = 4096
BATCH_BYTES = 4 << 20
"""A batch has so many rows or bytes of input, whichever is less: enough to make Python's share small, and to stay in the cache."""

BUFFER_BYTES = 1 << 18
"""Read ahead in each column; Parquet's pages are of this order."""

Arrays = Mapping[str, np.ndarray]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive golden rows from number `start` on: inputs and the source model's answers by name, rows first."""

    start: int
    rows: int
    inputs: Arrays
    reference: Arrays


class GoldenRows:
    """The golden rows of a bundle. Raises `BadBundle` naming the file that does not fit the manifest, as soon as it is met."""

    def __init__(self, bundle: OpenBundle) -> None:
        self.rows = bundle.manifest.rows
        self.tensors = bundle.manifest.inputs
        self.input_bytes = _row_bytes(bundle.manifest.inputs)
        self.answer_bytes = _row_bytes(bundle.manifest.outputs)
        self._inputs = bundle.root / "golden/inputs.parquet"
        self._labels = bundle.root / "golden/labels.parquet"
        self._others = bundle.root / "golden/slices.parquet"
        self._reference = reference_files(bundle.root / "reference")
        self._insist_on_columns()

    @property
    def reference_names(self) -> tuple[str, ...]:
        return tuple(self._reference)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns by which rows can be told apart: those of `golden/slices.parquet`, and inputs that are one value a row."""
        single = [each.name for each in self.tensors if math.prod(each.shape) == 1]
        return tuple(dict.fromkeys([*(_names(self._others) if self._others.exists() else ()), *single]))

    @property
    def batch_rows(self) -> int:
        return max(1, min(BATCH_ROWS, BATCH_BYTES // self.input_bytes))

    def batches(self, batch_rows: int) -> Iterator[Batch]:
        """All rows in order; one batch is read ahead."""
        return ahead(self._batches(batch_rows))

    def _batches(self, batch_rows: int) -> Generator[Batch]:
        start = 0
        for table in _tables(self._inputs, self.rows, batch_rows):
            stop = start + table.num_rows
            inputs = {each.name: read_column(table, each.name, each.numpy_dtype, each.shape) for each in self.tensors}
            reference = {name: _part(path, name, self.rows, slice(start, stop)) for name, path in self._reference.items()}
            yield Batch(start=start, rows=table.num_rows, inputs=inputs, reference=reference)
            start = stop

    def first(self, rows: int) -> Batch:
        """The first `rows` rows, or all where there are fewer. Raises `BadBundle` for a golden set without rows, too."""
        batches = self._batches(rows)
        if (batch := next(batches, None)) is None:
            raise BadBundle("golden/inputs.parquet has no rows")
        batches.close()
        return batch

    def inputs(self, rows: np.ndarray) -> Arrays:
        """Inputs by name of these rows, in any order and more than once if wanted."""
        wanted, places = np.unique(rows, return_inverse=True)
        tables = list(_chosen(self._inputs, [each.name for each in self.tensors], self.rows, self.batch_rows, wanted))
        table = pa.concat_tables(tables)
        return {each.name: read_column(table, each.name, each.numpy_dtype, each.shape)[places] for each in self.tensors}

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """The labels of these rows, which must be in order, shape [rows]."""
        parts = [read_column(table, "label", None, ()) for table in _chosen(self._labels, ["label"], self.rows, BATCH_ROWS * 16, rows)]
        return np.concatenate(parts) if parts else np.empty(0)

    def words(self, column: str) -> Iterator[np.ndarray]:
        """A column's values as text, batch by batch, each of shape [rows]; None where a cell is empty."""
        path = self._others if self._others.exists() and column in _names(self._others) else self._inputs
        for table in _tables(path, self.rows, BATCH_ROWS * 16, [column]):
            yield _as_text(table.column(column).combine_chunks())

    def _insist_on_columns(self) -> None:
        names = [each.name for each in self.tensors]
        if sorted(found := _names(self._inputs)) != sorted(names):
            raise BadBundle(f"golden/inputs.parquet has columns {found}; the model takes {names}")
        if (found := _names(self._labels)) != ["label"]:
            raise BadBundle(f"golden/labels.parquet has columns {found}; expected one, named label")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread of its own works on the next one while the caller works on the one before. No item is None."""
    with ThreadPoolExecutor(1, thread_name_prefix="golden-rows") as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Probe rows and what the source model answered on them, by name, rows first."""

    inputs: Arrays
    reference: Arrays


def read_probes(bundle: OpenBundle) -> Probes | None:
    """None when the bundle has none. They are few by construction (`validation.probes`) and read whole."""
    path = bundle.root / "probes/inputs.parquet"
    if not path.exists():
        return None
    table = _whole(path)
    names = [each.name for each in bundle.manifest.inputs]
    if sorted(table.column_names) != sorted(names):
        raise BadBundle(f"probes/inputs.parquet has columns {table.column_names}; the model takes {names}")
    inputs = {each.name: read_column(table, each.name, each.numpy_dtype, each.shape) for each in bundle.manifest.inputs}
    files = reference_files(bundle.root / "probes/reference")
    return Probes(inputs=inputs, reference={name: _part(file, name, table.num_rows, slice(None)) for name, file in files.items()})


def reference_files(folder: Path) -> dict[str, Path]:
    """The arrays below a folder by output name."""
    return {path.relative_to(folder).as_posix().removesuffix(".npy"): path for path in sorted(folder.rglob("*.npy"))}


def _row_bytes(tensors: Sequence[Tensor]) -> int:
    return max(1, sum(abs(math.prod(each.shape)) * np.dtype(each.numpy_dtype).itemsize for each in tensors))


def _part(path: Path, name: str, rows: int, part: slice) -> np.ndarray:
    """A copy of some rows. The map is opened anew each time: pages of an open one count as this process's memory."""
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r" if path.stat().st_size else None)
    except (ValueError, OSError, EOFError) as error:
        raise BadBundle(f"reference/{name}.npy is no readable array: {error}") from error
    if array.ndim == 0 or array.shape[0] != rows:
        raise BadBundle(f"reference/{name}.npy has shape {list(array.shape)}, there are {rows} rows")
    return np.array(array[part])


def _names(path: Path) -> list[str]:
    with _reading(path) as file:
        return list(file.schema_arrow.names)


def _tables(path: Path, rows: int, batch_rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    with _reading(path) as file:
        if file.metadata.num_rows != rows:
            raise BadBundle(f"{_name(path)} has {file.metadata.num_rows} rows, the manifest says {rows}")
        try:
            for batch in file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error


def _chosen(path: Path, columns: list[str], rows: int, batch_rows: int, wanted: np.ndarray) -> Iterator[pa.Table]:
    """The wanted rows of these columns; row numbers in order."""
    start = 0
    for table in _tables(path, rows, batch_rows, columns):
        first, last = np.searchsorted(wanted, (start, start + table.num_rows))
        if last > first:
            yield table.take(pa.array(wanted[first:last] - start))
        start += table.num_rows


def _reading(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _whole(path: Path) -> pa.Table:
    with _reading(path) as file:
        try:
            return file.read()
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BadBundle:
    return BadBundle(f"{_name(path)} is no readable parquet file: {error}")


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _as_text(values: pa.Array) -> np.ndarray:
    flat = values.flatten() if pa.types.is_nested(values.type) else values
    return np.asarray(pc.cast(flat, pa.string()).to_numpy(zero_copy_only=False))
