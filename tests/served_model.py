"""A small server of the Open Inference Protocol: JSON and binary tensors over HTTP, and gRPC, on a thread. It answers as it is told to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
import numpy as np
from made_bundles import answers, weights

from delivery.inference import HEADER_LENGTH, TRITON_DTYPES, read_http, read_request, write_answer

Arrays = Mapping[str, np.ndarray]


def honest(inputs: Arrays) -> Arrays:
    """As the bundles of `made_bundles` say."""
    found = answers(inputs["X"], weights())
    return {**found, "label": found["label"].reshape(-1, 1)}


class Fails(Exception):
    """To be raised by an `answer`: an error of the server."""


@dataclass(kw_only=True)
class ServedModel:
    """`answer` makes outputs of inputs; `headers` go with every HTTP answer."""

    answer: Callable[[Arrays], Arrays] = honest
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    http_port: int = 0
    grpc_port: int = 0

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@contextlib.contextmanager
def serving(model: ServedModel) -> Iterator[ServedModel]:
    """Runs it for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(model))
    server.daemon_threads = True
    model.http_port = server.server_address[1]
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    listener = grpc.server(futures.ThreadPoolExecutor(4))
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: _infer_grpc(model, request, context))
    listener.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})])
    model.grpc_port = listener.add_insecure_port("127.0.0.1:0")
    listener.start()
    try:
        yield model
    finally:
        listener.stop(0)
        server.shutdown()
        server.server_close()


def _infer_grpc(model: ServedModel, request: bytes, context: Any) -> bytes:
    name, inputs = read_request(request)
    model.asked.append("grpc")
    try:
        return write_answer(name, model.answer(inputs))
    except Fails as error:
        context.abort(grpc.StatusCode.INTERNAL, str(error))
        raise


def _handler(model: ServedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(200, b"")

        def do_POST(self) -> None:
            body, cut = self.rfile.read(int(self.headers["Content-Length"])), self.headers.get(HEADER_LENGTH)
            model.asked.append("http" if cut is None else "http binary")
            row = json.loads(body if cut is None else body[: int(cut)])
            try:
                outputs = model.answer(read_http(body, cut))
            except (Fails, ValueError) as error:
                return self._send(400, str(error).encode())
            return self._answer(row, outputs)

        def _answer(self, row: Mapping[str, Any], outputs: Arrays) -> None:
            binary = any(each.get("parameters", {}).get("binary_data") for each in row.get("outputs", ()))
            heads, parts = [], []
            for name, values in outputs.items():
                head = {"name": name, "datatype": TRITON_DTYPES[values.dtype.name], "shape": list(values.shape)}
                data = values.tobytes()
                heads.append(
                    {**head, "parameters": {"binary_data_size": len(data)}} if binary else {**head, "data": values.ravel().tolist()}
                )
                parts.append(data if binary else b"")
            text = json.dumps({"model_name": "irises", "model_version": "1", "outputs": heads}).encode()
            self._send(200, text + b"".join(parts), {HEADER_LENGTH: str(len(text))} if binary else {})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**model.headers, **(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    return Handler
