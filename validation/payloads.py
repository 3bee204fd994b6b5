"""Requests as Triton takes them, made of arrays: messages of gRPC's ModelInfer, bodies and whole requests of HTTP's infer.

Callers behind the gateway and the load client send them. `tritonclient`, the library that callers use, makes the bodies. Nothing is sent
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from validation.bundle import Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
Arrays = Mapping[str, np.ndarray]


def grpc_message(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], rows: Arrays) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=model)
    for each in inputs:
        message.inputs.add(name=each.name, datatype=each.dtype, shape=rows[each.name].shape)
        message.raw_input_contents.append(_packed(rows[each.name]))
    for each in outputs:
        message.outputs.add(name=each.name)
    return message


def http_body(inputs: Sequence[Tensor], outputs: Sequence[Tensor], rows: Arrays, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """The body, and the headers that say how to read it."""
    client = tritonclient.http
    given = [client.InferInput(each.name, list(rows[each.name].shape), each.dtype) for each in inputs]
    for each in given:
        each.set_data_from_numpy(rows[each.name()], binary_data=binary)
    wanted = [client.InferRequestedOutput(each.name, binary_data=binary) for each in outputs]
    body, cut = client.InferenceServerClient.generate_request_body(given, outputs=wanted)
    kind = {"Content-Type": "application/json"}
    if cut is not None:
        kind = {HEADER_LENGTH: str(cut), "Content-Type": "application/octet-stream"}
    return body if isinstance(body, bytes) else body.encode(), kind


def http_request(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], rows: Arrays) -> bytes:
    """A whole request with a binary body, as it goes over the wire."""
    body, headers = http_body(inputs, outputs, rows, binary=True)
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: triton", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _packed(values: np.ndarray) -> bytes:
    if values.dtype.hasobject:
        packed = serialize_byte_tensor(values)
        return bytes(packed.item()) if packed.size else b""
    return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
