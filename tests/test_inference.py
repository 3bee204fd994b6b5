"""Requests of the Open Inference Protocol as arrays: whatever a client may send is read rightly or refused."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from delivery.inference import Malformed, read_answer, read_http, read_request, write_answer, write_request

ARRAYS: dict[str, np.ndarray] = {
    "f": np.array([[1.5, -2.0], [0.0, np.inf]], dtype=np.float32),
    "h": np.array([[1.5], [2.5]], dtype=np.float16),
    "i": np.array([[1], [-(2**62)]], dtype=np.int64),
    "u": np.array([[0], [255]], dtype=np.uint8),
    "b": np.array([[True], [False]]),
    "s": np.array([["ä".encode()], [b""]], dtype=object),
}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {n: (e.dtype, e.shape) for n, e in expected.items()}
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def http_inputs(names: str, *, binary: bool) -> list[triton_http.InferInput]:
    inputs = []
    for name in names:
        values = ARRAYS[name]
        given = triton_http.InferInput(name, list(values.shape), triton_http.np_to_triton_dtype(values.dtype))
        given.set_data_from_numpy(values, binary_data=binary)
        inputs.append(given)
    return inputs


@pytest.mark.parametrize(("names", "binary"), [("fhiubs", True), ("iubs", False)])
def test_what_tritons_http_client_sends_is_read(names: str, binary: bool) -> None:  # noqa: FBT001 - a column of the table
    """Binary tensors behind the JSON part, and lists within it."""
    body, length = triton_http.InferenceServerClient.generate_request_body(http_inputs(names, binary=binary))
    assert same(read_http(body, None if length is None else str(length)), {name: ARRAYS[name] for name in names})


def test_what_tritons_grpc_client_sends_is_read() -> None:
    """Raw contents beside the tensors' heads."""
    request = service_pb2.ModelInferRequest(model_name="m")
    for name, values in ARRAYS.items():
        each = triton_grpc.InferInput(name, list(values.shape), triton_http.np_to_triton_dtype(values.dtype))
        each.set_data_from_numpy(values)
        request.inputs.append(each._get_tensor())
        request.raw_input_contents.append(each._get_content())
    model, found = read_request(request.SerializeToString())
    assert (model, same(found, ARRAYS)) == ("m", True)


def test_typed_contents_are_read() -> None:
    """Numbers that come in the message's own lists."""
    request = service_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="X", datatype="INT32", shape=[2, 1])
    tensor.contents.int_contents.extend([3, -4])
    assert same(read_request(request.SerializeToString())[1], {"X": np.array([[3], [-4]], dtype=np.int32)})


def test_what_is_written_is_read_back() -> None:
    """Requests and answers, every type."""
    assert same(read_request(write_request("m", ARRAYS))[1], ARRAYS)
    assert same(read_answer(write_answer("m", ARRAYS)), ARRAYS)


def body(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}]}).encode()


@pytest.mark.parametrize(
    ("sent", "length", "why"),
    [
        (b"", None, "no inference request"),
        (b"[]", None, "no inference request"),
        (b'{"inputs": []}', None, "no rows"),
        (b"[" * 100_000, None, "no inference request"),
        (body(datatype="FP8"), None, "not known"),
        (body(datatype=["FP32"]), None, "not known"),
        (body(shape=[2, 2]), None, "2 values"),
        (body(shape=[-1, 2]), None, "shape"),
        (body(shape=[True, 2]), None, "shape"),
        (body(shape=[0, 2], data=[]), None, "empty"),
        (body(shape=[10**12, 0], data=[]), None, "empty"),
        (body(shape=[]), None, "shape"),
        (body(data="words"), None, "FP32"),
        (body(data=[[1], [2, 3]]), None, "FP32"),
        (body(datatype="BYTES", data=[1, 2]), None, "words"),
        (body(datatype="UINT8", data=[1, 300]), None, "UINT8"),
        (body(parameters={"binary_data_size": 8}), None, "leaves the body"),
        (body(parameters={"binary_data_size": True}), None, "leaves the body"),
        (body(parameters=3), None, "parameters"),
        (body(), "100000", "leaves the body"),
        (body(), "-1", "leaves the body"),
        (body(), "9" * 5000, "leaves the body"),
    ],
)
def test_what_does_not_agree_is_refused(sent: bytes, length: str | None, why: str) -> None:
    """Types, shapes and sizes are checked before an array is made."""
    with pytest.raises(Malformed, match=why):
        read_http(sent, length)


@pytest.mark.parametrize("data", [b"\x05\x00\x00\x00abc", b"\x01\x00", struct.pack("<I", 2**32 - 1)])
def test_words_stay_within_their_tensor(data: bytes) -> None:
    """A length that leaves the tensor is no length."""
    request = service_pb2.ModelInferRequest(model_name="m")
    request.inputs.add(name="X", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(data)
    with pytest.raises(Malformed, match="word"):
        read_request(request.SerializeToString())


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Whatever comes is read or refused, by each of the three readers."""
    for read in (read_http, read_request, read_answer):
        with contextlib.suppress(Malformed):
            assert read(data) is not None
