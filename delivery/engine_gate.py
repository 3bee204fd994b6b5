"""The engine gate: the narrow service in front of a Docker engine's socket. Whoever may use the socket is root on its host; here nobody is.

Airflow's workers and a few tasks speak to it as to an engine (`DOCKER_HOST=tcp://engine:2375`). It passes on the calls of
`delivery.engine_calls`, with bodies made anew by `delivery.engine_rules`; containers that it made carry its label, and nobody reaches
another one through it. Everything else is answered 403 with what is allowed. It asks nobody who they are: whoever reaches its port may do
all that it allows, so it belongs on a network of its own.

    python -m delivery.engine_gate --port N --images penstock/ --writes 127.0.0.1:5000/penstock/ --network penstock_core

What a build may do is in `delivery.engine_build`. The services' own images, this one's above all, must lie outside of `--writes`: whoever
may write them runs as they do when they are next started.

| status | means                                                                | again?                |
|--------|----------------------------------------------------------------------|-----------------------|
| 400    | the body is no JSON, or too long                                     | no                    |
| 403    | the call, or a field of it, is not allowed; the message says what is | no                    |
| 503    | the engine does not answer, or is too old                            | when that has changed |

All other answers are the engine's own.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import logging
import re
import secrets
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

from delivery.engine_build import HEADER_BYTES, base_image, dockerfile_bytes, member, padded
from delivery.engine_calls import Asked, container_filters, image_filters, read, writes
from delivery.engine_rules import (
    LABEL,
    NO_NETWORK,
    Refused,
    Rules,
    canonical,
    connect_body,
    container_body,
    image_of,
    is_looked_up,
    named_within,
)
from delivery.engine_socket import LOOK_UP_S, BadBody, Engine, EngineAway, EngineSaid, body, bounded, exactly, json_body
from delivery.gateway import LOOPBACK

BUILD_LIMIT_BYTES = 8 << 30
LINE_LIMIT_BYTES = 64 << 10  # a build's labels and arguments ride in its address
GRACE_S = 2.0  # for what is under way at the end; a log that is followed has none
MESSAGE_LIMIT = 1000
EXIT_USAGE = 64
CREDENTIALS = "X-Registry-Auth"
TAR = {"Content-Type": "application/x-tar"}
INFO = ("ServerVersion", "OSType", "Architecture", "NCPU", "MemTotal", "CgroupVersion", "SecurityOptions")
NOBODYS_NETWORKS = ("host", "default", NO_NETWORK)
Found = dict[str, Any]
log = logging.getLogger("engine_gate")


class Gate:
    """Answers one request: read its line, apply the rules of its kind, pass on what is left of it."""

    def __init__(self, engine: Engine, rules: Rules) -> None:
        self._engine = engine
        self._rules = rules
        self._creating = asyncio.Lock()
        self._secret = secrets.token_bytes(32)
        self._kinds: Mapping[str, Callable[[web.BaseRequest, Asked], Awaitable[web.StreamResponse]]] = {
            "plain": self._plain,
            "info": self._info,
            "containers": self._containers,
            "create": self._create,
            "container": self._container,
            "archive": self._archive,
            "network": self._network,
            "connect": self._connect,
            "build": self._build,
            "images": self._images,
            "image": self._image,
            "pull": self._pull,
            "push": self._push,
            "tag": self._tag,
            "untag": self._untag,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/health":
            return await self._health()
        path, _, query = request.raw_path.partition("?")
        try:
            asked = read(request.method, path, parse_qsl(query, keep_blank_values=True))
            await self._engine.check()
            return await self._kinds[asked.call.kind](request, asked)
        except (Refused, BadBody, EngineAway, EngineSaid) as error:
            reason = _printable(str(error))
            log.info("%d %s %s: %s", error.status, request.method, _printable(path), reason)
            return web.json_response({"message": reason}, status=error.status)

    async def _health(self) -> web.Response:
        try:
            await self._engine.check(again=True)
        except (EngineAway, EngineSaid) as error:
            log.info("503 /health: %s", _printable(str(error)))
            return web.json_response({"status": "no engine"}, status=503)
        return web.json_response({"status": "ok"})

    async def _plain(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        return await self._engine.relay(request, asked.path(), asked.query)

    async def _info(self, _request: web.BaseRequest, _asked: Asked) -> web.StreamResponse:
        found = await self._engine.look_up("/info")
        return web.json_response({key: found[key] for key in INFO if key in found})

    async def _containers(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        query = [pair for pair in asked.query if pair[0] != "filters"]
        return await self._engine.relay(request, asked.path(), [*query, ("filters", container_filters(asked["filters"], self._rules))])

    async def _create(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        asked_for = container_body(await json_body(request), self._rules)
        asked_for["Image"] = await self._allowed_image(asked_for["Image"])
        async with self._creating:
            await self._count()
            return await self._engine.relay(request, asked.path(), asked.query, json=asked_for)

    async def _container(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        return await self._engine.relay(request, asked.path(container=await self._own(asked.names["container"])), asked.query)

    async def _archive(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        path = asked.path(container=await self._own(asked.names["container"]))
        return await self._engine.relay(request, path, asked.query, data=await body(request), headers=TAR)

    async def _network(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        return await self._engine.relay(request, asked.path(network=await self._allowed_network(asked.names["network"])), asked.query)

    async def _connect(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        connection = connect_body(await json_body(request), self._rules)
        network = await self._allowed_network(asked.names["network"])
        connection["Container"] = await self._own(connection["Container"])
        return await self._engine.relay(request, asked.path(network=network), asked.query, json=connection)

    async def _build(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        writes(asked, self._rules)
        dockerfile = await self._dockerfile(request)
        name = f".dockerfile-{hmac.new(self._secret, dockerfile, 'sha256').hexdigest()}"
        query = [pair for pair in asked.query if pair[0] not in {"networkmode", "dockerfile"}]
        query += [("networkmode", NO_NETWORK), ("dockerfile", name)]
        context = bounded(request, BUILD_LIMIT_BYTES, first=member(name, dockerfile))
        return await self._engine.relay(request, asked.path(), query, data=context, headers=TAR)

    async def _dockerfile(self, request: web.BaseRequest) -> bytes:
        """The first member of a build's context. Its base must be here already: what is fetched is fetched by a pull, under its rules."""
        size = dockerfile_bytes(await exactly(request, HEADER_BYTES))
        dockerfile = (await exactly(request, padded(size)))[:size]
        base = base_image(dockerfile, self._rules)
        await self._engine.look_up(f"/images/{base}/json")
        return dockerfile

    async def _images(self, _request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        query = [pair for pair in asked.query if pair[0] not in {"filters", "only_ids"}]
        found = await self._engine.look_up("/images/json", [*query, ("filters", image_filters(asked["filters"]))])
        return web.json_response([_only_allowed(each, self._rules.images) for each in found if _carries(each, self._rules.images)])

    async def _image(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        return await self._engine.relay(request, asked.path(image=await self._allowed_image(asked.names["image"])), asked.query)

    async def _pull(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        writes(asked, self._rules)
        return await self._engine.relay(request, asked.path(), asked.query, headers=_credentials(request))

    async def _push(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """Without credentials in the header Engine 20.10 reads them from the body: there are none."""
        writes(asked, self._rules)
        return await self._engine.relay(request, asked.path(), asked.query, data=b"{}", headers=_credentials(request))

    async def _tag(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        writes(asked, self._rules)
        return await self._image(request, asked)

    async def _untag(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        writes(asked, self._rules)
        name = asked.names["image"]
        if is_looked_up(name):
            found = await self._engine.look_up(f"/images/{name}/json")
            if foreign := [each for each in _names(found) if not named_within(each, self._rules.writes)]:
                raise Refused(f"image {name} also carries the name {foreign[0]}; allowed: {' or '.join(self._rules.writes)}")
        return await self._engine.relay(request, asked.path(), asked.query)

    async def _own(self, name: str) -> str:
        """The id of a container that this service made."""
        found = await self._engine.look_up(f"/containers/{name}/json")
        if (found["Config"].get("Labels") or {}).get(LABEL) != self._rules.project:
            raise Refused(f"container {name} was not made here; allowed: containers with the label {LABEL}={self._rules.project}")
        return str(found["Id"])

    async def _allowed_network(self, name: str) -> str:
        found = await self._engine.look_up(f"/networks/{name}")
        if found["Name"] not in self._rules.networks:
            raise Refused(f"network {name} is {found['Name']}; allowed: {', '.join(self._rules.networks) or '(none)'}")
        return str(found["Id"])

    async def _allowed_image(self, reference: str) -> str:
        """The reference, a short id made whole. An id or a digest is asked after: it must carry an allowed name."""
        image_of("image", reference, self._rules.images)
        if not is_looked_up(reference):
            return reference
        found = await self._engine.look_up(f"/images/{reference}/json")
        if not _carries(found, self._rules.images):
            raise Refused(f"image {reference} carries no allowed name; allowed: names that begin with {' or '.join(self._rules.images)}")
        return reference if "@" in reference else str(found["Id"])

    async def _count(self) -> None:
        own = await self._engine.look_up("/containers/json", [("all", "1"), ("filters", container_filters("", self._rules))])
        if len(own) >= self._rules.containers:
            advice = "remove those that have ended, or raise --containers"
            raise Refused(f"there are {len(own)} containers; allowed: {self._rules.containers}; {advice}")


def _credentials(request: web.BaseRequest) -> dict[str, str]:
    return {CREDENTIALS: request.headers[CREDENTIALS]} if CREDENTIALS in request.headers else {}


def _names(image: Found) -> list[str]:
    return [*(image.get("RepoTags") or []), *(image.get("RepoDigests") or [])]


def _carries(image: Found, prefixes: Sequence[str]) -> bool:
    return any(named_within(each, prefixes) for each in _names(image))


def _only_allowed(image: Found, prefixes: Sequence[str]) -> Found:
    """An image's row in the list, without the names that are not the callers' to know."""
    kept = {key: [each for each in image.get(key) or [] if named_within(each, prefixes)] for key in ("RepoTags", "RepoDigests")}
    return {**image, **kept}


def _printable(text: str) -> str:
    """One line, of bounded length, whatever a caller wrote."""
    return "".join(each if each.isprintable() else "?" for each in text[:MESSAGE_LIMIT])


@dataclass(frozen=True, kw_only=True)
class Place:
    host: str
    port: int
    socket: str


async def serve(place: Place, rules: Rules, stop: asyncio.Event) -> None:
    """Serves until `stop` is set."""
    connector = aiohttp.UnixConnector(path=place.socket, force_close=True, limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=LOOK_UP_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers={"Accept-Encoding": "identity"}) as session:
        gate = Gate(Engine(session, place.socket), rules)
        server = web.Server(
            gate.answer,
            handler_cancellation=True,  # whoever follows a log and leaves must not leave the engine's end open
            access_log=None,
            auto_decompress=False,  # what is looked at is what came
            max_line_size=LINE_LIMIT_BYTES,
            max_field_size=LINE_LIMIT_BYTES,
        )
        runner = web.ServerRunner(server, shutdown_timeout=GRACE_S)
        await runner.setup()
        await web.TCPSite(runner, place.host, place.port).start()
        await stop.wait()
        await runner.cleanup()


async def run(place: Place, rules: Rules) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    await serve(place, rules, stop)


def probe(port: int) -> int:
    """0 if the service on this machine answers that all is well: a container's HEALTHCHECK."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{LOOPBACK}:{port}/health", timeout=5):
            return 0
    except (OSError, urllib.error.URLError) as error:
        print(f"engine_gate: {error}", file=sys.stderr)
        return 1


def rules_of(given: argparse.Namespace) -> Rules:
    """Raises ValueError for a rule that would allow more than it seems to, OSError for a profile that cannot be read."""
    if wrong := [each for each in (*given.images, *given.writes) if not re.fullmatch(r"[a-z0-9][a-z0-9._:/-]*/", each)]:
        raise ValueError(f"the prefix {wrong[0]!r} does not end in a slash: it would allow other people's names too")
    if wrong := [each for each in given.writes if not each.startswith(tuple(given.images))]:
        raise ValueError(f"--writes {wrong[0]} lies outside of --images {' '.join(given.images)}: what is built could not be run")
    if wrong := [each for each in given.network if each in NOBODYS_NETWORKS or ":" in each]:
        raise ValueError(f"--network {wrong[0]}: expected a network of the engine's own, not the host's or another container's")
    return Rules(
        project=given.project,
        images=tuple(given.images),
        writes=tuple(given.writes),
        networks=tuple(given.network),
        memory_bytes=int(given.memory_limit_gib * (1 << 30)),
        containers=given.containers,
        seccomp=frozenset(canonical(path.read_text()) for path in given.seccomp_profile),
    )


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m delivery.engine_gate", description="Passes on to a Docker engine what is allowed.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default=LOOPBACK, help="the address to listen at; 0.0.0.0 in a container of its own network")
    parser.add_argument("--socket", default="/var/run/docker.sock", help="the engine's")
    parser.add_argument("--project", default="penstock", help=f"value of the label {LABEL}")
    parser.add_argument("--images", action="append", default=[], metavar="PREFIX", help="of images that may be run; repeatable")
    parser.add_argument(
        "--writes", action="append", default=[], metavar="PREFIX", help="of images that may be built, pushed, ...; repeatable"
    )
    parser.add_argument("--network", action="append", default=[], metavar="NAME", help="that containers may be in; repeatable")
    parser.add_argument("--memory-limit-gib", type=float, default=8.0, help="of one container")
    parser.add_argument("--containers", type=int, default=200, help="at most, ended ones included")
    parser.add_argument("--seccomp-profile", action="append", default=[], type=Path, metavar="FILE", help="that may be used; repeatable")
    parser.add_argument("--probe", action="store_true", help="asks the service on this port whether all is well, and ends")
    return parser.parse_args(given)


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    if given.probe:
        return probe(given.port)
    try:
        rules = rules_of(given)
    except (ValueError, OSError) as error:
        print(f"engine_gate: {error}", file=sys.stderr)
        return EXIT_USAGE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(run(Place(host=given.host, port=given.port, socket=given.socket), rules))
    return 0


if __name__ == "__main__":
    sys.exit(main())
