"""The engine behind the socket, as `delivery.engine_gate` asks it: look things up, or hand a request on and its answer back.

It also reads callers' bodies, each up to a limit. It knows no rule: what it is told to ask, it asks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from yarl import URL

from delivery.engine_calls import too_old

LOOK_UP_S = 10.0
BODY_LIMIT_BYTES = 1 << 20
PASSED_DOWN = ("Content-Type", "Content-Length", "Api-Version", "Docker-Experimental", "Ostype", "X-Docker-Container-Path-Stat")
Query = Sequence[tuple[str, str]]


class BadBody(ValueError):
    """A body that is too long, too short, or no JSON; sending it again does not help."""

    status = 400


class EngineAway(RuntimeError):
    """Nothing was done, as far as the engine said. Worth a retry when there is an engine."""

    status = 503


class EngineSaid(RuntimeError):
    """The engine answered a look-up with an error: the caller gets that answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """Makes sure once that the engine is recent enough, and again after it was away."""

    def __init__(self, session: aiohttp.ClientSession, socket: str) -> None:
        self._session = session
        self._socket = socket
        self._version = ""

    async def check(self, *, again: bool = False) -> None:
        """Raises `EngineAway` if no engine answers, or one that is too old."""
        if self._version and not again:
            return
        version = (await self._json("/version")).get("ApiVersion")
        if too_old(version):
            raise EngineAway(f"engine too old: it speaks API version {version}, 1.41 is needed: install Docker Engine 20.10 or later")
        self._version = f"/v{version}"

    async def look_up(self, path: str, query: Query = ()) -> Any:
        """What the engine says of something. Raises `EngineSaid` if it has no such thing."""
        await self.check()
        return await self._json(self._version + path, query)

    async def relay(self, request: web.BaseRequest, path: str, query: Query, **more: Any) -> web.StreamResponse:
        """Asks for `path` and hands the answer on as it comes, for as long as it comes."""
        try:
            async with self._ask(request.method, path, query, **more) as answer:
                headers = {name: answer.headers[name] for name in PASSED_DOWN if name in answer.headers}
                reply = web.StreamResponse(status=answer.status, headers=headers)
                await _copy(answer, reply, request)
                return reply
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, BadBody):  # our own word about the body that was being sent
                raise error.__cause__ from None
            raise self._away(error) from error

    async def _json(self, path: str, query: Query = ()) -> Any:
        try:
            async with asyncio.timeout(LOOK_UP_S), self._ask("GET", path, query) as answer:
                found = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._away(error) from error
        if answer.status >= 400:
            raise EngineSaid(answer.status, str(found.get("message", "no reason")))
        return found

    def _ask(self, method: str, path: str, query: Query, **more: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url = URL(f"http://engine{path}{'?' if query else ''}{urlencode(query)}", encoded=True)
        return self._session.request(method, url, allow_redirects=False, **more)

    def _away(self, error: BaseException) -> EngineAway:
        self._version = ""
        advice = "start it, and see that its socket is mounted here and that this service's group may use it"
        return EngineAway(f"the Docker engine does not answer at {self._socket} ({error or type(error).__name__}): {advice}")


async def _copy(answer: aiohttp.ClientResponse, reply: web.StreamResponse, request: web.BaseRequest) -> None:
    """An answer that breaks off breaks off at the caller too: it must not look whole."""
    try:
        await reply.prepare(request)
        async for chunk in answer.content.iter_any():
            await reply.write(chunk)
        await reply.write_eof()
    except aiohttp.ClientError:
        if request.transport is not None:
            request.transport.abort()


async def bounded(request: web.BaseRequest, limit: int, *, first: bytes = b"") -> AsyncIterator[bytes]:
    """What is left of a body, behind `first`. Raises `BadBody` over the limit."""
    size = len(first)
    if first:
        yield first
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise BadBody(f"the body has more than {limit} bytes; allowed: {limit}")
        yield chunk


async def body(request: web.BaseRequest) -> bytes:
    return b"".join([chunk async for chunk in bounded(request, BODY_LIMIT_BYTES)])


async def exactly(request: web.BaseRequest, size: int) -> bytes:
    """The next bytes of a body."""
    try:
        return await request.content.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise BadBody(f"the body ends {size - len(error.partial)} bytes early; send it whole") from None


async def json_body(request: web.BaseRequest) -> Any:
    try:
        return json.loads(await body(request))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadBody(f"the body is no JSON ({error}); send one object") from None
