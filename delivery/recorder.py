"""The recorder: keeps a sample of the requests that the gateway mirrors to it, and has both versions answer the same request.

Envoy sends it a share of every model's requests (`delivery.gateway`); the tasks `shadow` and `claim` read what came of them (client:
`delivery.recorder_client`). This module is the service; what is kept is in `delivery.sample`, what is compared in `delivery.pairs`. It
answers no user, moves no traffic, and judges nothing. Without --host everything is bound to loopback; what is read needs the director's
token.

    PENSTOCK_STATE=... PENSTOCK_DIRECTOR_URL=... PENSTOCK_DIRECTOR_TOKEN=... python -m delivery.recorder --http-port N --grpc-port N

What it was shown and what it could not take in is counted in `GET /health`. Over its own limits it drops requests rather than hold them.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
from aiohttp import web

from delivery.gateway import BUFFER_BYTES, LOOPBACK, MODEL_HEADER
from delivery.inference import HEADER_LENGTH, INFER, Malformed, read_answer, read_http, read_request, write_request
from delivery.pairs import Asked, Pairs, Silence, compare
from delivery.sample import DAYS_KEPT, ROWS_KEPT, Sample, parquet
from delivery.traffic import Backend, checked_model

ANSWER_WITHIN_S = 5.0
PAIRS_AT_ONCE = 8
VIEW_S = 1.0
FORGET_EVERY_S = 600.0
BEHIND = 64  # requests taken in and not done with; more than these are dropped
CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 500),  # by default a candidate that was once away would look dead for minutes
]
EXIT_USAGE = 64
Arrays = Mapping[str, np.ndarray]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger("recorder")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who serves a model just now."""

    stable: Backend | None = None
    candidate: Backend | None = None


class Bucket:
    """Tokens that grow by `per_s` up to one second's worth, at least one."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = self._most = max(1.0, per_s)
        self._filled_s = time.monotonic()

    def take(self) -> bool:
        now_s = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Views:
    """What the director says of each model, asked at most once in `VIEW_S`; nothing while it is away."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._known: dict[str, tuple[float, asyncio.Task[Roles]]] = {}

    async def roles(self, model: str) -> Roles:
        asked_s, task = self._known.get(model, (-VIEW_S, None))
        if task is None or time.monotonic() - asked_s >= VIEW_S:
            task = asyncio.create_task(self._ask(model))
            self._known[model] = (time.monotonic(), task)
        return await asyncio.shield(task)

    async def _ask(self, model: str) -> Roles:
        try:
            async with self._session.get(f"{self._url}/v1/models/{model}", headers=self._headers) as answer:
                row = await answer.json()
                return Roles(**{name: Backend(**row[name]) if row[name] else None for name in ("stable", "candidate")})
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            log.warning("what the director says of %s is not known: %r", model, error)
            return Roles()


class Servers:
    """Asks servers of versions over gRPC, one channel a server."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[Backend, grpc.aio.Channel]] = {}

    async def ask_both(self, model: str, servers: tuple[Backend, Backend], body: bytes) -> tuple[Arrays | Silence, Arrays | Silence]:
        """At the same time. Channels to servers that the model had before are closed."""
        channels = self._channels.setdefault(model, {})
        for each in set(channels) - set(servers):
            await channels.pop(each).close()
        for each in set(servers) - set(channels):
            channels[each] = grpc.aio.insecure_channel(each.grpc, options=CHANNEL)
        first, second = await asyncio.gather(*(_answer(channels[each], body) for each in servers))
        return first, second

    async def close(self) -> None:
        for each in (channel for known in self._channels.values() for channel in known.values()):
            await each.close()


async def _answer(channel: grpc.aio.Channel, body: bytes) -> Arrays | Silence:
    try:
        return read_answer(await channel.unary_unary(INFER)(body, timeout=ANSWER_WITHIN_S))
    except grpc.aio.AioRpcError as error:
        return Silence(why=error.code().name)
    except Malformed as error:
        return Silence(why=f"an answer that cannot be read: {error}")


class Recorder:
    """What becomes of a mirrored request: its inputs are kept, and while there is a candidate both versions answer some of them."""

    def __init__(self, *, views: Views, sample: Sample, pairs: Pairs, servers: Servers, pairs_per_s: float) -> None:
        self._views = views
        self._sample = sample
        self._pairs = pairs
        self._servers = servers
        self._pairs_per_s = pairs_per_s
        self._buckets: dict[str, Bucket] = {}
        self._asking = 0
        self.counts: Counter[str] = Counter()

    async def take(self, model: str, inputs: Arrays) -> None:
        """Returns when the request is kept and, if both were asked, answered. Of a model without a stable version nothing is kept."""
        roles = await self._views.roles(model)
        if roles.stable is None:
            self.counts["unknown_model"] += 1
            return
        self._keep(model, inputs)
        if roles.candidate is not None and self._may_ask(model):
            await self._pair(model, inputs, roles.stable, roles.candidate)

    def _keep(self, model: str, inputs: Arrays) -> None:
        try:
            self._sample.add(model, inputs, time.time())
            self.counts["kept"] += 1
        except OSError as error:
            self.counts["not_kept"] += 1
            log.warning("a request of %s could not be kept: %s", model, error)

    def _may_ask(self, model: str) -> bool:
        bucket = self._buckets.setdefault(model, Bucket(self._pairs_per_s))
        return self._asking < PAIRS_AT_ONCE and bucket.take()

    async def _pair(self, model: str, inputs: Arrays, stable: Backend, candidate: Backend) -> None:
        rows = len(next(iter(inputs.values())))
        row = random.randrange(rows)  # noqa: S311 - a choice that nobody gains by guessing
        asked = Asked(unix_s=time.time(), stable=stable.version, candidate=candidate.version, rows=rows, row=row)
        body = write_request(model, inputs)
        self._asking += 1
        try:
            answers = await self._servers.ask_both(model, (stable, candidate), body)
        finally:
            self._asking -= 1
        self._pairs.add(model, compare(asked, *answers))
        self.counts["paired"] += 1


class Mirrored:
    """Where Envoy sends its copies, HTTP and gRPC. Answers at once: Envoy drops the answer, and a held request takes one of its places."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._taking: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        model = "/v2/models/{model}"
        return [web.post(f"{model}/infer", self.http), web.post(model + "/versions/{version}/infer", self.http)]

    async def http(self, request: web.Request) -> web.Response:
        body, length = await request.read(), request.headers.get(HEADER_LENGTH)
        self._take(request.match_info["model"], lambda: read_http(body, length))
        return web.Response()

    async def grpc(self, body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        words = dict(context.invocation_metadata() or ())
        self._take(str(words.get(MODEL_HEADER, "")), lambda: read_request(body)[1])
        return b""

    def _take(self, model: str, read: Callable[[], Arrays]) -> None:
        if len(self._taking) >= BEHIND:
            self._recorder.counts["dropped"] += 1
            return
        task = asyncio.create_task(self._taken(model, read))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _taken(self, model: str, read: Callable[[], Arrays]) -> None:
        try:
            await self._recorder.take(checked_model(model), read())
        except ValueError as error:  # Malformed among them
            self._recorder.counts["unreadable"] += 1
            log.info("a request that cannot be read: %s", error)
        except Exception:
            self._recorder.counts["faults"] += 1
            log.exception("a mirrored request of %s", model[:60])


class Api:
    """What tasks read."""

    def __init__(self, recorder: Recorder, sample: Sample, pairs: Pairs) -> None:
        self._recorder = recorder
        self._sample = sample
        self._pairs = pairs

    def routes(self) -> list[web.RouteDef]:
        model = "/v1/models/{model}"
        return [web.get("/health", self.health), web.get(f"{model}/pairs", self.pairs), web.get(f"{model}/sample", self.sample)]

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", **self._recorder.counts})

    async def pairs(self, request: web.Request) -> web.Response:
        return web.json_response(self._pairs.after(checked_model(request.match_info["model"]), _number(request, "after")))

    async def sample(self, request: web.Request) -> web.Response:
        """Parquet, a column an input; 404 when nothing is kept."""
        model, rows = checked_model(request.match_info["model"]), _number(request, "rows")
        found = await asyncio.to_thread(self._sample.last, model, min(rows, ROWS_KEPT)) if rows else None
        if found is None:
            return web.json_response({"error": f"no request of {model} is kept"}, status=404)
        return web.Response(body=await asyncio.to_thread(parquet, found), content_type="application/vnd.apache.parquet")


def application(mirrored: Mirrored, api: Api, token: str) -> web.Application:
    """Mirrored requests come without a token, whatever is read needs it."""
    app = web.Application(client_max_size=BUFFER_BYTES + 1, middlewares=[_errors_as_json, _authenticated(token)])
    app.add_routes([*mirrored.routes(), *api.routes()])
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)


def _authenticated(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path.startswith("/v1/") and not hmac.compare_digest(shown, expected):
            return web.json_response({"error": "the token is missing or wrong; send it as `Authorization: Bearer ...`"}, status=401)
        return await handler(request)

    return check


def _number(request: web.Request, name: str) -> int:
    word = request.query.get(name, "")
    if not word.isdecimal() or not word.isascii() or len(word) > 18:
        raise ValueError(f"`{name}` is {word[:40]!r}; expected a whole number from 0")
    return int(word)


async def run(given: argparse.Namespace, state: Path, director_url: str, token: str) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    sample = Sample(state / "data" / "recorder", rows_kept=given.rows_kept, days_kept=given.days_kept)
    pairs, servers = Pairs(), Servers()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        views = Views(session, director_url, token)
        recorder = Recorder(views=views, sample=sample, pairs=pairs, servers=servers, pairs_per_s=given.pairs_per_s)
        mirrored = Mirrored(recorder)
        server = await _serve_grpc(mirrored, f"{given.host}:{given.grpc_port}")
        runner = web.AppRunner(application(mirrored, Api(recorder, sample, pairs), token), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, given.host, given.http_port).start()
        forgetting = asyncio.create_task(_forget(sample))
        await stop.wait()
        forgetting.cancel()
        await runner.cleanup()
        await server.stop(0.5)
        await servers.close()


async def _forget(sample: Sample) -> None:
    """At once and then every ten minutes: what is too old goes, also of models that nobody asks any more. A failure is told."""
    while True:
        try:
            sample.forget(time.time())
        except OSError:
            log.exception("rows that are too old could not be deleted")
        await asyncio.sleep(FORGET_EVERY_S)


async def _serve_grpc(mirrored: Mirrored, address: str) -> grpc.aio.Server:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", BUFFER_BYTES), ("grpc.so_reuseport", 0)])
    service, method = INFER.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(mirrored.grpc)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    server.add_insecure_port(address)
    await server.start()
    return server


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m delivery.recorder", description="Keeps a sample of mirrored requests.")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; a container's own network needs 0.0.0.0")
    parser.add_argument("--rows-kept", type=int, default=ROWS_KEPT, help="of each model's requests, at least so many once they came")
    parser.add_argument("--days-kept", type=float, default=DAYS_KEPT, help="after which rows are deleted; 0 deletes what there is")
    parser.add_argument("--pairs-per-s", type=float, default=10.0, help="requests of a model that both versions are asked about")
    return parser.parse_args(given)


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    names = ("PENSTOCK_STATE", "PENSTOCK_DIRECTOR_URL", "PENSTOCK_DIRECTOR_TOKEN")
    if missing := [name for name in names if not os.environ.get(name)]:
        print(f"recorder: {' and '.join(missing)} must be set", file=sys.stderr)
        return EXIT_USAGE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    state, url, token = (os.environ[name] for name in names)
    os.umask(0o077)  # whatever it writes is users' data
    asyncio.run(run(given, Path(state), url, token))
    return 0


if __name__ == "__main__":
    sys.exit(main())
