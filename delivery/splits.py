"""The director's gRPC side: serves the splits to Envoy as a runtime layer with a time to live, and takes Envoy's access log.

The layer is sent at once when it changes and again every second. Each sending lets Envoy keep it for `ttl_s`: when the director is killed
or frozen, Envoy itself drops the layer and the routes' own weights hold, which give stable everything. (Over REST the time to live has no
effect; it must be gRPC.) The weights are asked from the caller at the moment of sending, so that no lease outlives its time here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import grpc
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.runtime.v3 import rtds_pb2, rtds_pb2_grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from delivery.gateway import LOOPBACK, SPLITS

RUNTIME_TYPE = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
log = logging.getLogger("director")


class SplitStreams(rtds_pb2_grpc.RuntimeDiscoveryServiceServicer):  # type: ignore[misc]
    """Every Envoy that listens to the splits. `weights` is called at each sending and gives runtime keys with their values."""

    def __init__(self, weights: Callable[[], Mapping[str, int]], *, ttl_s: float, heartbeat_s: float) -> None:
        self._weights = weights
        self._ttl_s = ttl_s
        self._heartbeat_s = heartbeat_s
        self._revision = 0
        self._streams: set[_Stream] = set()

    @property
    def connected(self) -> bool:
        return any(stream.subscribed.is_set() for stream in self._streams)

    def push(self) -> int:
        """Sends the weights of this moment to every Envoy; returns the revision that `acknowledged` knows them by."""
        self._revision += 1
        for stream in self._streams:
            stream.due.set()
        return self._revision

    def acknowledged(self, revision: int) -> bool:
        return any(stream.acknowledged >= revision for stream in self._streams)

    async def StreamRuntime(  # noqa: N802 -- the protocol's name
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        """One Envoy's stream, until either side ends it."""
        stream = _Stream()
        self._streams.add(stream)
        reading = asyncio.create_task(stream.read(requests))
        try:
            await stream.subscribed.wait()
            while not reading.done():
                yield self._layer()
                await stream.wait_due(self._heartbeat_s)
        finally:
            reading.cancel()
            self._streams.discard(stream)

    def _layer(self) -> discovery_pb2.DiscoveryResponse:
        layer = Struct()
        layer.update(dict(self._weights()))
        lease = Duration()
        lease.FromMilliseconds(round(self._ttl_s * 1000))
        version = str(self._revision)
        runtime = _packed(rtds_pb2.Runtime(name=SPLITS, layer=layer))
        resource = _packed(discovery_pb2.Resource(name=SPLITS, version=version, ttl=lease, resource=runtime))
        return discovery_pb2.DiscoveryResponse(version_info=version, nonce=version, type_url=RUNTIME_TYPE, resources=[resource])


class AccessLog(als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]
    """Hands every log entry of every Envoy to `see`. A stream that ends may have lost rows: each end is told to `ended`."""

    def __init__(self, see: Callable[[Any], None], ended: Callable[[], None]) -> None:
        self._see = see
        self._ended = ended

    async def StreamAccessLogs(  # noqa: N802 -- the protocol's name
        self, messages: AsyncIterator[als_pb2.StreamAccessLogsMessage], _context: grpc.aio.ServicerContext
    ) -> als_pb2.StreamAccessLogsResponse:
        try:
            async for message in messages:
                self._see_all(message.http_logs.log_entry)
        finally:
            self._ended()
        return als_pb2.StreamAccessLogsResponse()

    def _see_all(self, entries: Iterable[Any]) -> None:
        for entry in entries:
            self._see(entry)


class _Stream:
    """What one Envoy has asked for and taken. The nonce of an answer is the revision of its weights."""

    def __init__(self) -> None:
        self.subscribed = asyncio.Event()
        self.due = asyncio.Event()
        self.acknowledged = -1

    async def read(self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]) -> None:
        try:
            async for request in requests:
                self._note(request)
        finally:
            self.subscribed.set()  # whoever waits for a subscription must see the end as well

    def _note(self, request: discovery_pb2.DiscoveryRequest) -> None:
        self.subscribed.set()
        if request.HasField("error_detail"):
            log.error("the gateway refused the splits: %s", request.error_detail.message)
        elif request.response_nonce:
            self.acknowledged = max(self.acknowledged, int(request.response_nonce))

    async def wait_due(self, heartbeat_s: float) -> None:
        try:
            await asyncio.wait_for(self.due.wait(), heartbeat_s)
        except TimeoutError:
            return
        self.due.clear()


async def serve(streams: SplitStreams, access_log: AccessLog, port: int, host: str = LOOPBACK) -> grpc.aio.Server:
    """Starts the gRPC server; the caller stops it. Raises `RuntimeError` when the port is taken."""
    server = grpc.aio.server()
    rtds_pb2_grpc.add_RuntimeDiscoveryServiceServicer_to_server(streams, server)
    als_pb2_grpc.add_AccessLogServiceServicer_to_server(access_log, server)
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server


def _packed(message: Any) -> Packed:
    packed = Packed()
    packed.Pack(message)
    return packed
