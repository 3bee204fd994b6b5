"""The golden set of a model: rows with known answers, read from the address that the registered model names, brought into a model's inputs.

`export` calls it. The file is one parquet table with the input columns and `label`. It decides nothing about the answers, but a set that is
missing, empty, changed or without the right columns is refused here, by name. Other columns are kept where the policy names them.
"""

from __future__ import annotations

import math
import urllib.error
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery.findings import Refusal, refused
from delivery.flavours import Input
from validation.bundle import NUMPY_DTYPES
from validation.contract import Bundle, download

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

LABEL = "label"
UNKNOWN_SIZE = -1
LIMIT_BYTES = 1 << 30
LIMIT_UNPACKED_BYTES = 8 << 30
LIMIT_ROWS = 20_000_000
ADVICE = "write it again, and set the registered model's tags penstock.golden_set.uri and penstock.golden_set.sha256"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden rows as the model takes them: `arrays` by input name, shape [rows, *shape]; `inputs` with every size known.

    `slices` holds the columns that the policy's slices and rankings go by.
    """

    address: Bundle
    rows: int
    inputs: tuple[Input, ...]
    arrays: dict[str, np.ndarray]
    labels: pa.Array
    slices: pa.Table | None = None
    written_unix_s: float | None = None


def read_golden(address: Bundle, inputs: Iterable[Input], named: Iterable[str] = ()) -> Golden:
    """Raises `Refusal` naming what is wrong with the set; a server that does not answer stays an `OSError`."""
    table = _table(address)
    arrays = {each.name: _array(table, each) for each in inputs}
    known = tuple(replace(each, shape=arrays[each.name].shape[1:]) for each in inputs)
    slices = [_named(table, name) for name in sorted(set(named))]
    kept = table.select(slices) if slices else None
    return Golden(address=address, rows=table.num_rows, inputs=known, arrays=arrays, labels=_label(table), slices=kept)


def write_golden(golden: Golden, folder: Path) -> None:
    """`inputs.parquet`, `labels.parquet`, and `slices.parquet` where there are some."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_inputs(golden.inputs, golden.arrays, folder)
    pq.write_table(pa.table({LABEL: golden.labels}), folder / "labels.parquet")
    if golden.slices is not None:
        pq.write_table(golden.slices.replace_schema_metadata(None), folder / "slices.parquet")


def write_inputs(inputs: Iterable[Input], arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """`inputs.parquet` with one column an input; flat lists of fixed size where a row is more than one value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    columns = {each.name: _column(arrays[each.name], each) for each in inputs}
    pq.write_table(pa.table(columns), folder / "inputs.parquet")


def _table(address: Bundle) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = _data(address)
    try:
        found = pq.ParquetFile(pa.BufferReader(data))
        _insist_on_bounded(found.metadata, address)
        table = found.read()
    except (pa.ArrowException, OSError) as error:
        raise _bad(f"{address.uri} is no parquet file: {str(error)[:200]}") from error
    if table.num_rows == 0:
        raise _bad(f"{address.uri} has no rows")
    return table


def _insist_on_bounded(metadata: Any, address: Bundle) -> None:
    """A few kilobytes of parquet can unpack to more than any memory: what it says of itself is looked at first."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if metadata.num_rows > LIMIT_ROWS or size > LIMIT_UNPACKED_BYTES:
        limits = f"the limits are {LIMIT_ROWS} and {LIMIT_UNPACKED_BYTES}"
        raise _bad(f"{address.uri} has {metadata.num_rows} rows that unpack to {size} bytes; {limits}")


def _named(table: pa.Table, name: str) -> str:
    """A column that the policy names: one plain value a row."""
    import pyarrow as pa

    if name not in table.column_names:
        raise _bad(f"the policy names the column {name!r}; its columns are {', '.join(table.column_names)[:200]}")
    if pa.types.is_nested(table.column(name).type):
        raise _bad(f"column {name!r}, which the policy names, must have one value in every row")
    return name


def _data(address: Bundle) -> bytes:
    try:
        return download(address.uri, address.sha256, limit_bytes=LIMIT_BYTES)
    except ValueError as error:
        raise _bad(str(error)) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError) or getattr(error, "code", None) in {404, 410}:
            raise _bad(f"there is nothing at {address.uri}") from error
        raise


def _array(table: pa.Table, wanted: Input) -> np.ndarray:
    """One input's values; a tensor without a name of its own takes the only column there is, or all scalar columns in their order."""
    names = [name for name in table.column_names if name != LABEL]
    if wanted.column is not None:
        names = [name for name in names if name == wanted.column]
    if not names:
        raise _bad(f"it has no column {wanted.column or wanted.name!r}; its columns are {', '.join(table.column_names)[:200]}")
    if len(names) == 1:
        return _values(table.column(names[0]), names[0], wanted)
    return _stacked(table, names, wanted)


def _stacked(table: pa.Table, names: list[str], wanted: Input) -> np.ndarray:
    import numpy as np

    one = replace(wanted, shape=())
    if UNKNOWN_SIZE in wanted.shape or math.prod(wanted.shape) != len(names):
        raise _bad(f"{len(names)} columns do not make one row of {list(wanted.shape)}")
    return np.stack([_values(table.column(name), name, one) for name in names], axis=1).reshape(table.num_rows, *wanted.shape)


def _values(column: Any, name: str, wanted: Input) -> np.ndarray:
    """Shape [rows, *shape] in the input's dtype."""
    import numpy as np
    import pyarrow as pa

    rows, array = len(column), column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    flat = array.flatten() if pa.types.is_nested(array.type) else array
    if array.null_count + flat.null_count and not (array is flat and pa.types.is_floating(flat.type)):
        raise _bad(f"column {name!r} has empty cells")
    values = np.asarray(flat.to_numpy(zero_copy_only=False))  # an empty cell among floats is a missing value: NaN, as pandas writes it
    _fits(values, name, wanted)
    try:
        return values.astype(_numpy(wanted.dtype)).reshape(rows, *_sizes(wanted.shape, values.size // rows))
    except ValueError as error:
        raise _bad(f"column {name!r} does not have rows of {list(wanted.shape)}: {error}") from error


def _fits(values: np.ndarray, name: str, wanted: Input) -> None:
    import numpy as np

    text, numeric = wanted.dtype == "BYTES", values.dtype.kind in "biuf"
    if text == numeric or (numeric and not np.can_cast(values.dtype, _numpy(wanted.dtype), casting="same_kind")):
        raise _bad(f"column {name!r} holds {values.dtype}, the model takes {wanted.dtype}")


def _sizes(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The shape of a row with its one unknown size found from the number of values in a row."""
    return shape if shape.count(UNKNOWN_SIZE) != 1 else tuple(size // -math.prod(shape) if each == UNKNOWN_SIZE else each for each in shape)


def _label(table: pa.Table) -> Any:
    import pyarrow as pa

    if LABEL not in table.column_names:
        raise _bad(f"it has no column {LABEL!r}; its columns are {', '.join(table.column_names)[:200]}")
    column = table.column(LABEL)
    if column.null_count or pa.types.is_nested(column.type):
        raise _bad(f"column {LABEL!r} must have one value in every row")
    return column


def _column(values: np.ndarray, described: Input) -> Any:
    import pyarrow as pa

    flat = pa.array(values.reshape(-1).tolist() if described.dtype == "BYTES" else values.reshape(-1))
    size = math.prod(described.shape)
    return flat if described.shape == (1,) else pa.FixedSizeListArray.from_arrays(flat, size)


def _numpy(dtype: str) -> str:
    return "str" if dtype == "BYTES" else NUMPY_DTYPES[dtype]


def _bad(why: str) -> Refusal:
    return refused("golden_set", f"the golden set cannot be used: {why}", ADVICE)
