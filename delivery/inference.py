"""Requests and answers of the Open Inference Protocol as arrays: JSON and binary tensors over HTTP, protobuf over gRPC.

`delivery.recorder` reads mirrored requests with it, asks servers, and keeps what it read. Whatever a client may have sent comes in here, so
nothing is believed: names, types, shapes and sizes must agree before an array is made. It sends nothing and compares nothing.
The protocol: KServe's "Open Inference Protocol" V2, and Triton's extension for binary tensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from validation.bundle import NUMPY_DTYPES

INFER = "/inference.GRPCInferenceService/ModelInfer"
HEADER_LENGTH = "Inference-Header-Content-Length"
CONTENTS = {  # where a tensor's numbers lie when they do not come raw
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
TRITON_DTYPES = {numpy: triton for triton, numpy in NUMPY_DTYPES.items()}

Arrays = Mapping[str, np.ndarray]


class Malformed(ValueError):
    """Bytes that are no request, or no answer, that can be read; the message names what does not fit and holds no value of a user's."""


def read_http(body: bytes, header_length: str | None = None) -> dict[str, np.ndarray]:
    """Inputs by name, rows first, of a POST to `/infer`; `header_length` is the request's `HEADER_LENGTH`. Words are `bytes` objects."""
    cut = _number(header_length, len(body)) if header_length is not None else len(body)
    try:
        row = json.loads(body[:cut])
        tensors = [(each["name"], each["datatype"], each["shape"], each) for each in row["inputs"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Malformed(f"the body is no inference request: {type(error).__name__}") from error
    rest = _Rest(body[cut:])
    return _rows_agree({name: _http_tensor(datatype, shape, tensor, rest) for name, datatype, shape, tensor in tensors})


def read_request(body: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """Model and inputs by name, rows first, of a `ModelInferRequest`."""
    message = _parsed(service_pb2.ModelInferRequest(), body)
    return message.model_name, _rows_agree(_tensors(message.inputs, message.raw_input_contents))


def read_answer(body: bytes) -> dict[str, np.ndarray]:
    """Outputs by name of a `ModelInferResponse`."""
    message = _parsed(service_pb2.ModelInferResponse(), body)
    return _tensors(message.outputs, message.raw_output_contents)


def write_request(model: str, inputs: Arrays) -> bytes:
    """A `ModelInferRequest` that asks for all outputs; `read_request` reads it back."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, values in inputs.items():
        message.inputs.add(name=name, datatype=TRITON_DTYPES[values.dtype.name], shape=values.shape)
        message.raw_input_contents.append(_packed(values))
    return bytes(message.SerializeToString())


def write_answer(model: str, outputs: Arrays) -> bytes:
    """A `ModelInferResponse`; `read_answer` reads it back."""
    message = service_pb2.ModelInferResponse(model_name=model)
    for name, values in outputs.items():
        message.outputs.add(name=name, datatype=TRITON_DTYPES[values.dtype.name], shape=values.shape)
        message.raw_output_contents.append(_packed(values))
    return bytes(message.SerializeToString())


class _Rest:
    """Binary tensors behind the JSON part, taken in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def take(self, size: Any) -> bytes:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(self._data) - self._place:
            raise Malformed("binary_data_size leaves the body")
        self._place += size
        return self._data[self._place - size : self._place]


def _http_tensor(datatype: Any, shape: Any, tensor: Mapping[str, Any], rest: _Rest) -> np.ndarray:
    parameters = tensor.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise Malformed("parameters are no object")
    if "binary_data_size" in parameters:
        return _unpacked(datatype, shape, rest.take(parameters["binary_data_size"]))
    if "data" not in tensor:
        raise Malformed("a tensor without data (shared memory is not read)")
    return _listed(datatype, shape, tensor["data"])


def _tensors(heads: Sequence[Any], raw: Sequence[bytes]) -> dict[str, np.ndarray]:
    if raw and len(raw) != len(heads):
        raise Malformed(f"{len(heads)} tensors and {len(raw)} raw contents")
    if raw:
        return {head.name: _unpacked(head.datatype, list(head.shape), data) for head, data in zip(heads, raw, strict=True)}
    return {head.name: _listed(head.datatype, list(head.shape), _contents(head)) for head in heads}


def _contents(head: Any) -> list[Any]:
    if head.datatype not in CONTENTS:
        raise Malformed(f"datatype {head.datatype[:20]!r} must come raw")
    return list(getattr(head.contents, CONTENTS[head.datatype]))


def _unpacked(datatype: Any, shape: Any, data: bytes) -> np.ndarray:
    dtype, size = _dtype(datatype), _size(shape)
    if dtype.hasobject:
        values = np.empty(size, dtype=object)
        values[:] = _exactly(list(_words(data)), size)
        return values.reshape(shape)
    if len(data) != size * dtype.itemsize:
        raise Malformed(f"{len(data)} bytes are no {datatype} of shape {shape}")
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _listed(datatype: Any, shape: Any, data: Any) -> np.ndarray:
    """Of a list, flat or nested."""
    dtype, size = _dtype(datatype), _size(shape)
    try:
        values = np.array(data, dtype=dtype).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise Malformed(f"data that is no {datatype} of shape {shape}") from error
    _exactly(values, size)
    if dtype.hasobject:
        values = np.array([_word(each) for each in values], dtype=object)
    return values.reshape(shape)


def _dtype(datatype: Any) -> np.dtype[Any]:
    if not isinstance(datatype, str) or datatype not in NUMPY_DTYPES:
        raise Malformed(f"datatype {str(datatype)[:20]!r} is not known")
    return np.dtype(NUMPY_DTYPES[datatype])


def _size(shape: Any) -> int:
    if (
        not isinstance(shape, list)
        or not shape
        or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in shape)
    ):
        raise Malformed("a shape must be a list of whole numbers from 0")
    return math.prod(shape)


def _exactly(values: Any, size: int) -> Any:
    if len(values) != size:
        raise Malformed(f"{len(values)} values where the shape asks for {size}")
    return values


def _words(data: bytes) -> Iterator[bytes]:
    """Each word behind its length in four bytes, least first."""
    place = 0
    while place < len(data):
        if place + 4 > len(data) or place + 4 + (length := struct.unpack_from("<I", data, place)[0]) > len(data):
            raise Malformed("a word's length leaves its tensor")
        yield data[place + 4 : place + 4 + length]
        place += 4 + length


def _word(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Malformed("BYTES hold something else than words")
    return value.encode("utf-8", "surrogatepass")


def _packed(values: np.ndarray) -> bytes:
    if values.dtype.hasobject:
        return b"".join(struct.pack("<I", len(each)) + each for each in values.reshape(-1))
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _rows_agree(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = {len(values) for values in inputs.values()}
    if len(rows) != 1 or not all(values.size for values in inputs.values()):
        raise Malformed(f"inputs of {sorted(rows) or 'no'} rows, or an empty one")
    return inputs


def _parsed(message: Any, body: bytes) -> Any:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Malformed("the body is no protobuf message of this kind") from error
    return message


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or int(text[:12]) > most:
        raise Malformed(f"{HEADER_LENGTH} leaves the body")
    return int(text)
