"""Requests made of arrays are read back as the arrays, by the reader that takes whatever clients send."""

import json
from types import SimpleNamespace

import httptools
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from delivery.inference import TRITON_DTYPES, read_http, read_request
from validation.bundle import Tensor
from validation.payloads import HEADER_LENGTH, grpc_message, http_body, http_request

ROWS = {
    "f": np.array([[1.5, -2.0], [0.0, np.inf]], dtype=np.float32),
    "h": np.array([[1.5], [2.5]], dtype=np.float16),
    "i": np.array([[1], [-(2**62)]], dtype=np.int64),
    "u": np.array([[0], [255]], dtype=np.uint8),
    "b": np.array([[True], [False]]),
    "s": np.array([["ä".encode()], [b""]], dtype=object),
}
OUTPUTS = [Tensor(name="Y", dtype="FP32", shape=(1,)), Tensor(name="label", dtype="BYTES", shape=(1,))]


def tensors(rows):
    return [Tensor(name=name, dtype=TRITON_DTYPES[values.dtype.name], shape=values.shape[1:]) for name, values in rows.items()]


def same(found, expected):
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {n: (e.dtype, e.shape) for n, e in expected.items()}
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def parsed(request):
    """The request as a server's parser sees it."""
    seen = SimpleNamespace(url=b"", headers={}, body=b"", complete=0)
    calls = SimpleNamespace(
        on_url=lambda url: setattr(seen, "url", seen.url + url),
        on_header=lambda name, value: seen.headers.update({name.decode(): value.decode()}),
        on_body=lambda body: setattr(seen, "body", seen.body + body),
        on_message_complete=lambda: setattr(seen, "complete", seen.complete + 1),
    )
    parser = httptools.HttpRequestParser(calls)
    parser.feed_data(request)
    return SimpleNamespace(**vars(seen), method=parser.get_method(), keeps=parser.should_keep_alive())


def test_an_http_request_is_one_whole_request():
    """A server's parser finds its end, keeps the connection, and asks the model that was meant."""
    seen = parsed(http_request("digits", tensors(ROWS), OUTPUTS, ROWS))
    assert (seen.method, seen.url, seen.complete, seen.keeps) == (b"POST", b"/v2/models/digits/infer", 1, True)


def test_two_http_requests_in_a_row_stay_two():
    """The length that is told is the body's: nothing of one leaks into the next."""
    request = http_request("digits", tensors(ROWS), OUTPUTS, ROWS)
    assert parsed(request * 2).complete == 2


def test_an_http_request_carries_its_arrays():
    """Binary tensors of every type behind the JSON part, at the place that the header tells."""
    seen = parsed(http_request("digits", tensors(ROWS), OUTPUTS, ROWS))
    assert same(read_http(seen.body, seen.headers[HEADER_LENGTH]), ROWS)


@pytest.mark.parametrize(("names", "binary"), [("fhiubs", True), ("iubs", False)])
def test_an_http_body_carries_its_arrays_with_headers_that_say_how(names, binary):  # the library has no JSON form of half floats
    """Binary, or as lists within the JSON part."""
    rows = {name: ROWS[name] for name in names}
    body, headers = http_body(tensors(rows), OUTPUTS, rows, binary=binary)
    assert headers["Content-Type"] == ("application/octet-stream" if binary else "application/json")
    assert same(read_http(body, headers.get(HEADER_LENGTH)), rows)


@pytest.mark.parametrize("binary", [True, False])
def test_an_http_body_asks_for_its_outputs(binary):
    """By name, in the form in which the inputs come; without names the server gives what it has."""
    rows = {"i": ROWS["i"]}
    body, headers = http_body(tensors(rows), OUTPUTS, rows, binary=binary)
    head = json.loads(body[: int(headers.get(HEADER_LENGTH, len(body)))])
    assert [(each["name"], each["parameters"]["binary_data"]) for each in head["outputs"]] == [("Y", binary), ("label", binary)]
    assert "outputs" not in json.loads(http_body(tensors(rows), (), rows, binary=False)[0])


def test_a_grpc_message_carries_its_arrays():
    """Model, inputs of every type and the names of outputs survive the wire."""
    sent = grpc_message("digits", tensors(ROWS), OUTPUTS, ROWS).SerializeToString()
    model, found = read_request(sent)
    assert (model, same(found, ROWS)) == ("digits", True)
    assert [each.name for each in service_pb2.ModelInferRequest.FromString(sent).outputs] == ["Y", "label"]


@pytest.mark.parametrize("values", [np.arange(12, dtype=np.float32)[::2].reshape(2, 3).T, np.arange(6, dtype=">f4").reshape(3, 2)])
def test_a_grpc_message_packs_arrays_however_they_lie_in_memory(values):
    """Strides, turned axes and the other byte order change nothing of the values."""
    tensor = Tensor(name="X", dtype="FP32", shape=values.shape[1:])
    _, found = read_request(grpc_message("m", [tensor], (), {"X": values}).SerializeToString())
    assert found["X"].tolist() == values.tolist()


def test_words_travel_as_utf8_in_both_protocols():
    """Text and bytes alike, empty ones too."""
    words = np.array([["ä", b"\x00\xff"], ["", "long" * 99]], dtype=object)
    expected = [["ä".encode(), b"\x00\xff"], [b"", b"long" * 99]]
    tensor = Tensor(name="s", dtype="BYTES", shape=(2,))
    body, headers = http_body([tensor], (), {"s": words}, binary=True)
    assert read_http(body, headers[HEADER_LENGTH])["s"].tolist() == expected
    assert read_request(grpc_message("m", [tensor], (), {"s": words}).SerializeToString())[1]["s"].tolist() == expected


def test_no_words_are_no_bytes():
    """A tensor of words with no rows packs to nothing instead of failing."""
    message = grpc_message("m", [Tensor(name="s", dtype="BYTES", shape=(1,))], (), {"s": np.empty((0, 1), dtype=object)})
    assert (list(message.inputs[0].shape), list(message.raw_input_contents)) == ([0, 1], [b""])
