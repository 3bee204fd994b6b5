"""The null server: answers every request at once with the same few bytes. What a load client measures on it is the client's own.

A process of its own, started by `validation.client_limits`. It prints the port that it listens on. It reads no request beyond its end.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence

import grpc
import httptools
from tritonclient.grpc import service_pb2

BODY = b'{"model_name":"null","model_version":"1","outputs":[]}'
HTTP_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
GRPC_ANSWER: bytes = service_pb2.ModelInferResponse(model_name="null", model_version="1").SerializeToString()
SERVICE, METHOD = "inference.GRPCInferenceService", "ModelInfer"


class Connection(asyncio.Protocol):
    """Answers each whole request. A server that is slower on purpose overrides `on_message_complete`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(HTTP_ANSWER)


async def _http() -> int:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _grpc() -> int:
    async def infer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        del request, context
        return GRPC_ANSWER

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(SERVICE, {METHOD: grpc.unary_unary_rpc_method_handler(infer)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _kept.append(server)
    return int(port)


_kept: list[grpc.aio.Server] = []  # a server that nobody holds ends


async def serve(protocol: str) -> None:
    print(await {"http": _http, "grpc": _grpc}[protocol](), flush=True)
    await asyncio.Event().wait()


def main(arguments: Sequence[str]) -> None:
    gc.disable()
    asyncio.run(serve(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
