"""The bundle: one deterministic tar that holds everything about a model version that gates and servers need.

`delivery.export` writes it; gates, `package` and `start_candidate` read it. The format lives here and nowhere else. Reading trusts nothing:
the tar must have its digest, every member must be a plain file with a plain relative name, and manifest and files must agree both ways.
This module runs no model and imports no framework; an ONNX file is only searched for data that it would pull in from outside the bundle.

| member                         | what it is                                                                             |
|--------------------------------|----------------------------------------------------------------------------------------|
| manifest.json                  | `Manifest`, with the sha256 of every other member                                      |
| <model>/config.pbtxt           | Triton's configuration                                                                 |
| <model>/1/model.onnx           | the model                                                                              |
| golden/inputs.parquet          | one column per input; vectors and tensors as flat lists of fixed size; row order counts |
| golden/labels.parquet          | column `label`                                                                         |
| golden/slices.parquet          | columns of the golden set that the policy names (slices, queries), if any; same rows    |
| reference/<output name>.npy    | what the source model answered on the golden rows, first axis = rows                   |
| probes/inputs.parquet          | rows at the edges of the features' ranges (`validation.probes`), like golden/inputs     |
| probes/reference/<output>.npy  | what the source model answered on the probes                                           |
| source/...                     | a TensorFlow SavedModel, when that was the source                                      |
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Self

from validation.contract import PIECE_BYTES, BadSpec, Bundle, canonical_json, download_into

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

FORMAT = 1
LIMIT_BYTES = 4 << 30
LIMIT_FILES = 1000
LIMIT_NAME = 200
MANIFEST = "manifest.json"
FOLDERS = ("golden", "reference", "probes", "source")

NUMPY_DTYPES = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""Triton's words for element types and numpy's (Open Inference Protocol, tensor data types)."""


class BadBundle(BadSpec):
    """A bundle that is not what its digest or manifest promise; names the file. Reading it again would meet the same bytes."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output: Triton's dtype word and the shape of one row (without the batch dimension).

    `dynamic` are the axes of `shape` whose size the model leaves open; the size there is the golden set's.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: tuple[int, ...] = ()

    @property
    def numpy_dtype(self) -> str:
        return NUMPY_DTYPES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`: what the bundle holds and where it came from.

    `golden_set` has the keys uri, sha256 and rows; `probes` and `probes_left_out`, the numbers of probe rows that the source model answered
    and refused; and `written_unix_s` where it is known. `baselines` has the keys inputs and outputs, each a sketch of `validation.drift`
    by column: of the golden inputs, and of the source model's answers on them.
    """

    model: str
    version: int
    semantic_version: str
    files: Mapping[str, str]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    opset: int
    ir_version: int
    source_run: str
    git_commit: str
    training_metrics: Mapping[str, float]
    framework_versions: Mapping[str, str]
    golden_set: Mapping[str, Any]
    baselines: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Number of golden rows."""
        return int(self.golden_set["rows"])

    @property
    def served(self) -> dict[str, str]:
        """The sha256 of each file that a server is given, by its name below Triton's repository."""
        return {name: digest for name, digest in sorted(self.files.items()) if name.startswith(f"{self.model}/")}

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises `BadBundle` naming the key that is missing, unknown or unreadable."""
        try:
            return cls(**_manifest_row(json.loads(data)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadBundle(f"{MANIFEST}: {error!r}; expected format {FORMAT} with signature and {', '.join(_manifest_keys())}") from error

    def __post_init__(self) -> None:
        if type(self.golden_set["rows"]) is not int or self.rows < 0 or not self.inputs or not self.outputs:
            raise ValueError("golden_set.rows must be a whole number, and at least one input and one output must be named")


@dataclass(frozen=True, kw_only=True)
class OpenBundle:
    """A verified bundle, unpacked below `root`. Use as a context manager: leaving it removes the directory."""

    manifest: Manifest
    root: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def model_directory(self) -> Path:
        """`<model>/`: what Triton's repository holds."""
        return self.root / self.manifest.model

    @property
    def model_path(self) -> Path:
        return self.root / _model_file(self.manifest.model)

    def inputs(self) -> dict[str, np.ndarray]:
        """Golden inputs by name, shape [rows, *shape], in the dtype of the signature. Raises `BadBundle` naming column and file."""
        table = _table(self.root / "golden/inputs.parquet", self.manifest.rows)
        names = [each.name for each in self.manifest.inputs]
        if sorted(table.column_names) != sorted(names):
            raise BadBundle(f"golden/inputs.parquet has columns {table.column_names}; the model takes {names}")
        return {each.name: read_column(table, each.name, each.numpy_dtype, each.shape) for each in self.manifest.inputs}

    def labels(self) -> np.ndarray:
        """The true labels, shape [rows]."""
        table = _table(self.root / "golden/labels.parquet", self.manifest.rows)
        if table.column_names != ["label"]:
            raise BadBundle(f"golden/labels.parquet has columns {table.column_names}; expected one, named label")
        return read_column(table, "label", None, ())

    def reference(self) -> dict[str, np.ndarray]:
        """The source model's outputs by name, first axis = rows."""
        folder = self.root / "reference"
        paths = {path.relative_to(folder).as_posix().removesuffix(".npy"): path for path in sorted(folder.rglob("*.npy"))}
        return {name: _array(path, f"reference/{name}.npy", self.manifest.rows) for name, path in paths.items()}


def read_bundle(bundle: Bundle) -> OpenBundle:
    """Downloads, verifies and unpacks a bundle into a temporary directory of its own.

    Raises `BadBundle` naming the member that is wrong, and whatever `contract.download` raises when the address cannot be read (retry).
    """
    root = Path(tempfile.mkdtemp(prefix="bundle-"))
    try:
        with tempfile.TemporaryFile() as tar:
            _download(bundle, tar)
            return OpenBundle(manifest=_unpack(tar, root), root=root)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


def write_bundle(root: Path, target: Path) -> str:
    """Packs the directory `root` into the tar `target` and returns the tar's sha256; equal content gives equal bytes.

    `root/manifest.json` must hold everything but `format` and `files`, which are filled in here from what lies there.
    """
    row = json.loads((root / MANIFEST).read_bytes())
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path != root / MANIFEST)
    row |= {"format": FORMAT, "files": {name: _digest(root / name) for name in names}}
    (root / MANIFEST).write_bytes(canonical_json(row).encode())
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted([MANIFEST, *names]):
            _add(tar, name, root / name)
    return _digest(target)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    member = tarfile.TarInfo(name)  # owner and group 0, time 0 by default
    member.size, member.mode = path.stat().st_size, 0o644
    with path.open("rb") as file:
        tar.addfile(member, file)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(bundle: Bundle, tar: BinaryIO) -> None:
    try:
        download_into(tar, bundle.uri, bundle.sha256, limit_bytes=LIMIT_BYTES)
        tar.seek(0)
    except ValueError as error:  # digest, size or scheme; a lost connection is an OSError and passes through
        raise BadBundle(str(error)) from error


def _unpack(file: BinaryIO, root: Path) -> Manifest:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = _members(tar)
            manifest = Manifest.from_json(_content(tar, members, MANIFEST).read())
            _same_names(set(members) - {MANIFEST}, set(manifest.files))
            _complete(manifest)
            for name in members:
                _write(root / name, name, _content(tar, members, name), manifest.files.get(name))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadBundle(f"the bundle is no readable tar: {error}") from error
    _no_external_data(root / _model_file(manifest.model), _model_file(manifest.model))
    return manifest


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Members by name; every one a plain file with a plain name, none twice."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        _plain_name(member.name)
        if member.type != tarfile.REGTYPE or member.issparse():
            raise BadBundle(f"{member.name}: not a plain file; links, folders and devices are refused")
        if member.name in members:
            raise BadBundle(f"{member.name}: stands in the tar twice")
        members[member.name] = member
        if len(members) > LIMIT_FILES:
            raise BadBundle(f"more than {LIMIT_FILES} files")
    return members


def _plain_name(name: str) -> None:
    parts = name.split("/")
    plain = all(part not in {"", ".", ".."} for part in parts) and "\\" not in name and "\0" not in name and len(name) <= LIMIT_NAME
    if not plain or PurePosixPath(name).is_absolute():
        raise BadBundle(f"{name!r}: not a plain relative name of at most {LIMIT_NAME} characters")


def _content(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> IO[bytes]:
    file = tar.extractfile(members[name]) if name in members else None
    if file is None:
        raise BadBundle(f"{name} is missing")
    return file


def _same_names(found: set[str], promised: set[str]) -> None:
    if missing := sorted(promised - found):
        raise BadBundle(f"{missing[0]}: in the manifest and not in the bundle")
    if extra := sorted(found - promised):
        raise BadBundle(f"{extra[0]}: in the bundle and not in the manifest")


def _complete(manifest: Manifest) -> None:
    model = manifest.model
    _plain_name(model)
    needed = {f"{model}/config.pbtxt", _model_file(model), "golden/inputs.parquet", "golden/labels.parquet"}
    if missing := sorted(needed - set(manifest.files)):
        raise BadBundle(f"{missing[0]} is missing")
    if strange := sorted(name for name in manifest.files if name.split("/")[0] not in {model, *FOLDERS} or "/" not in name):
        raise BadBundle(f"{strange[0]}: a bundle holds {MANIFEST}, {model}/, {'/, '.join(FOLDERS)}/ only")


def _write(path: Path, name: str, content: IO[bytes], expected_sha256: str | None) -> None:
    """Copies and digests in one pass: what is large is read once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while piece := content.read(PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
    if expected_sha256 is not None and digest.hexdigest() != expected_sha256:
        raise BadBundle(f"{name} has sha256 {digest.hexdigest()}, the manifest says {expected_sha256}")


def _model_file(model: str) -> str:
    return f"{model}/1/model.onnx"


def _manifest_keys() -> list[str]:
    return [each.name for each in fields(Manifest) if each.name not in {"inputs", "outputs"}]


def _manifest_row(row: dict[str, Any]) -> dict[str, Any]:
    """The manifest's JSON as arguments of `Manifest`."""
    if row["format"] != FORMAT:
        raise ValueError(f"format is {row['format']!r}, not {FORMAT}")
    signature = {way: tuple(_tensor(each) for each in row["signature"][way]) for way in ("inputs", "outputs")}
    return {key: value for key, value in row.items() if key not in {"format", "signature"}} | signature


def _tensor(row: Mapping[str, Any]) -> Tensor:
    if row["dtype"] not in NUMPY_DTYPES:
        raise ValueError(f"dtype {row['dtype']!r} of {row['name']!r}; known: {', '.join(NUMPY_DTYPES)}")
    if not all(type(size) is int for size in row["shape"]):
        raise ValueError(f"shape of {row['name']!r} must be whole numbers")
    dynamic = tuple(row.get("dynamic", ()))
    if not all(type(axis) is int and 0 <= axis < len(row["shape"]) for axis in dynamic):
        raise ValueError(f"dynamic axes {dynamic} of {row['name']!r} must be axes of its shape")
    return Tensor(**{**row, "shape": tuple(row["shape"]), "dynamic": dynamic})


def _table(path: Path, rows: int) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = f"{path.parent.name}/{path.name}"
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows != rows:  # before its columns are unpacked: a few bytes can promise any number
            raise BadBundle(f"{name} has {file.metadata.num_rows} rows, the manifest says {rows}")
        return file.read()
    except (pa.ArrowException, OSError) as error:
        raise BadBundle(f"{name} is no readable parquet file: {error}") from error


def read_column(table: pa.Table, name: str, dtype: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """A column as an array [rows, *shape]; lists are flat and of one size."""
    import numpy as np
    import pyarrow as pa

    column = table.column(name).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = column.flatten() if pa.types.is_nested(column.type) else column
    if column.null_count or flat.null_count:
        raise BadBundle(f"column {name!r} of the golden set has empty cells")
    try:
        values = np.asarray(flat.to_numpy(zero_copy_only=False))
        return values.astype(dtype or values.dtype, casting="same_kind").reshape(table.num_rows, *shape)
    except (ValueError, TypeError) as error:
        raise BadBundle(f"column {name!r} of the golden set does not fit {dtype or 'scalars'} {list(shape)} a row: {error}") from error


def _array(path: Path, name: str, rows: int) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = read_array(file, path.stat().st_size)
    except (ValueError, OSError, EOFError) as error:
        raise BadBundle(f"{name} is no readable array: {error}") from error
    if array.ndim == 0 or array.shape[0] != rows:
        raise BadBundle(f"{name} has shape {list(array.shape)}, the manifest says {rows} rows")
    return array


def read_array(file: BinaryIO, size: int) -> np.ndarray:
    """An .npy file of `size` bytes that holds what its header says; never a pickle. Raises `ValueError`, `EOFError` or `OSError`.

    The header is looked at first: of a few bytes that promise terabytes, numpy would make the array before it reads.
    """
    import numpy as np

    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"format {version} of .npy files is not read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"its header says {dtype} {list(shape)[:8]}, and {size - file.tell()} bytes follow")
    file.seek(0)
    array: np.ndarray = np.load(file, allow_pickle=False)
    return array


# Which fields of ONNX's messages hold messages that may hold tensors (onnx.proto3, IR version 10); all else is skipped.
_ONNX: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def _no_external_data(path: Path, name: str) -> None:
    """Refuses a model whose weights lie in another file: it could name any file of the machine that loads it.

    Read from the bytes, because the images that open bundles do not carry the `onnx` package. Bytes that are not ONNX at all pass:
    the gate that loads the model says so.
    """
    try:
        external = _has_external_data(memoryview(path.read_bytes()), "model")
    except ValueError:
        return
    except RecursionError:
        external = True
    if external:
        raise BadBundle(f"{name}: keeps weights outside the file (ONNX external data); export it as one file")


def _has_external_data(data: memoryview, message: str) -> bool:
    for number, value in _fields(data):
        if message == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        inner = _ONNX[message].get(number)
        if inner and isinstance(value, memoryview) and _has_external_data(value, inner):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one protobuf message: number, and a whole number or the bytes (protobuf's wire format)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind in (3, 4):  # start and end of a group, which parsers skip: its content is looked at as if it stood here
            continue
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError("not a protobuf message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("not a protobuf message")
