"""The director: the service that programs the gateway and holds the leases on its splits.

Tasks of a delivery call its HTTP API (client: `delivery.director_client`), Envoy its gRPC side (`delivery.splits`). This module is the API
and the process; what a call does is in `delivery.switchboard`, what is allowed in `delivery.traffic`. Without --host everything is
bound to loopback; every call but `/health` needs the token.

    PENSTOCK_STATE=... PENSTOCK_DIRECTOR_TOKEN=... python -m delivery.director --http-port N --grpc-port N --gateway-admin 127.0.0.1:N

| status | means                                                             | again?                  |
|--------|-------------------------------------------------------------------|-------------------------|
| 400    | the request is wrong: key, type, range, JSON                      | no                      |
| 401    | the token is missing or wrong                                     | no                      |
| 404    | no such candidate, or no such call                                | no                      |
| 409    | another holds the lease (`holder`), or the state does not allow it | when that has changed   |
| 410    | the lease is over                                                 | no: all is on stable    |
| 500    | a fault of the director, like a full disk                         | yes                     |
| 503    | the gateway is not there; nothing was changed                     | yes                     |
| 504    | the gateway did not confirm; what was set is taken back           | yes                     |
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hmac
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from delivery.gateway import LOOPBACK, Timeouts
from delivery.gateway_admin import Admin, GatewayAway, NotConfirmed
from delivery.order_book import Journal, OrderBook
from delivery.orders import ABORT, BAKE, UNDO, Order, Situation
from delivery.splits import AccessLog, serve
from delivery.state_file import StateFile, Taken
from delivery.switchboard import Settings, Switchboard
from delivery.traffic import Backend, Held, NotAllowed, checked_model
from validation.policy import parse

BODY_LIMIT_BYTES = 64 << 10
ADMIN_TIMEOUT_S = 1.0
EXIT_USAGE = 64
EXIT_TAKEN = 75  # another director has the state folder: worth a try when that has ended
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = TypeVar("Body")
log = logging.getLogger("director")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Body of PUT candidate; without a `slice_header` the model's requests are not told apart, without `metrics` it is no target."""

    version: int
    http: str
    grpc: str
    metrics: str | None = None
    slice_header: str | None = None


@dataclass(frozen=True, kw_only=True)
class Archived:
    """Body of PUT archived: all versions of the model that the archive serves; `http` and `grpc` are each the archive's."""

    versions: tuple[Backend, ...]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Body of PUT shadow; a share above 0 needs a time to live, from 2 to 600 s."""

    permille: int
    ttl_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """Body of PUT split."""

    holder: str
    permille: int
    ttl_s: float


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """Body of POST split/renew."""

    holder: str
    ttl_s: float


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Body of PUT stable and of POST undo: the version that shall be stable."""

    version: int


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Body of PUT delivery: a delivery of this version is under way; `delivery` is its run id."""

    version: int
    delivery: str


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """Body of POST orders. Without a version, the one that the order can be about is meant; without `to` an undo leads to previous."""

    id: str
    action: str
    who: str
    why: str
    version: int | None = None
    to: int | None = None


class Api:
    """The calls of the HTTP API; every one answers JSON."""

    def __init__(self, switchboard: Switchboard, orders: OrderBook) -> None:
        self._switchboard = switchboard
        self._orders = orders

    def routes(self) -> list[web.RouteDef]:
        model = "/v1/models/{model}"
        return [
            web.get("/health", self.health),
            web.get("/v1/targets", self.get_targets),
            web.get("/v1/models", self.get_models),
            web.get(model, self.get_model),
            web.put(f"{model}/candidate", self.put_candidate),
            web.delete(f"{model}/candidate", self.delete_candidate),
            web.put(f"{model}/shadow", self.put_shadow),
            web.put(f"{model}/split", self.put_split),
            web.post(f"{model}/split/renew", self.renew),
            web.delete(f"{model}/split", self.delete_split),
            web.put(f"{model}/stable", self.put_stable),
            web.post(f"{model}/undo", self.undo),
            web.delete(f"{model}/previous", self.delete_previous),
            web.put(f"{model}/archived", self.put_archived),
            web.get(f"{model}/observations", self.observations),
            web.get(f"{model}/mirrored", self.mirrored),
            web.put(f"{model}/delivery", self.put_delivery),
            web.delete(f"{model}/delivery", self.delete_delivery),
            web.get(f"{model}/orders", self.get_orders),
            web.post(f"{model}/orders", self.post_order),
            web.get(f"{model}/health", self.get_health),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        state = "connected" if self._switchboard.splits.connected else "waiting"
        return web.json_response({"status": "ok", "gateway": state})

    async def get_targets(self, _request: web.Request) -> web.Response:
        """What Prometheus shall scrape: a list, unlike every other answer, for Prometheus sets its form."""
        return web.json_response(self._switchboard.targets())

    async def get_models(self, _request: web.Request) -> web.Response:
        return web.json_response({"models": self._switchboard.models})

    async def get_model(self, request: web.Request) -> web.Response:
        return self._described(_model(request))

    async def put_candidate(self, request: web.Request) -> web.Response:
        body = await _body(request, Candidate)
        backend = Backend(version=body.version, http=body.http, grpc=body.grpc, metrics=body.metrics)
        self._orders.refuse_aborted(_model(request), backend.version)
        await self._switchboard.put_candidate(_model(request), backend, slice_header=body.slice_header)
        return self._described(_model(request))

    async def delete_candidate(self, request: web.Request) -> web.Response:
        await self._switchboard.delete_candidate(_model(request), _number(request, "version"))
        return self._described(_model(request))

    async def put_shadow(self, request: web.Request) -> web.Response:
        share = await _body(request, Share)
        if share.permille:
            self._refuse_aborted_candidate(_model(request))
        await self._switchboard.put_shadow(_model(request), permille=share.permille, ttl_s=share.ttl_s)
        return self._described(_model(request))

    async def put_split(self, request: web.Request) -> web.Response:
        split = await _body(request, Split)
        self._refuse_aborted_candidate(_model(request))
        await self._switchboard.put_split(_model(request), holder=split.holder, permille=split.permille, ttl_s=split.ttl_s)
        return self._described(_model(request))

    async def renew(self, request: web.Request) -> web.Response:
        renewal = await _body(request, Renewal)
        lease = self._switchboard.renew(_model(request), holder=renewal.holder, ttl_s=renewal.ttl_s)
        return web.json_response({"permille": lease.permille})

    async def delete_split(self, request: web.Request) -> web.Response:
        await self._switchboard.release(_model(request), _word(request, "holder"))
        return self._described(_model(request))

    async def put_stable(self, request: web.Request) -> web.Response:
        promotion = await _body(request, Promotion)
        self._orders.refuse_aborted(_model(request), promotion.version)
        await self._switchboard.put_stable(_model(request), promotion.version)
        return self._described(_model(request))

    async def undo(self, request: web.Request) -> web.Response:
        await self._switchboard.undo(_model(request), (await _body(request, Promotion)).version)
        return self._described(_model(request))

    async def put_archived(self, request: web.Request) -> web.Response:
        await self._switchboard.put_archived(_model(request), (await _body(request, Archived)).versions)
        return self._described(_model(request))

    async def delete_previous(self, request: web.Request) -> web.Response:
        await self._switchboard.delete_previous(_model(request))
        return self._described(_model(request))

    async def observations(self, request: web.Request) -> web.Response:
        return web.json_response(await self._switchboard.seen_after(_model(request), _number(request, "after")))

    async def mirrored(self, request: web.Request) -> web.Response:
        return web.json_response(await self._switchboard.mirrored(_model(request)))

    async def put_delivery(self, request: web.Request) -> web.Response:
        begun = await _body(request, Begun)
        self._orders.begin(_model(request), begun.version, begun.delivery)
        return self._ordered(_model(request))

    async def delete_delivery(self, request: web.Request) -> web.Response:
        self._orders.end(_model(request), _word(request, "delivery"))
        return self._ordered(_model(request))

    async def get_orders(self, request: web.Request) -> web.Response:
        return self._ordered(_model(request))

    async def post_order(self, request: web.Request) -> web.Response:
        """Kept first, then carried out: whatever comes after sees it. The same order again is carried out again, and changes nothing."""
        order = self._order(_model(request), await _body(request, Ordered))
        order = self._orders.find(order) or self._orders.take(order, self._situation(order.model))
        await self._carry_out(order)
        return self._ordered(order.model)

    def _order(self, model: str, ordered: Ordered) -> Order:
        """An id that is known needs no version to be found again."""
        known = next((each.version for each in self._orders.orders(model) if each.id == ordered.id), None)
        version = ordered.version or known or self._situation(model).version_for(ordered.action)
        if version is None:
            raise NotAllowed(f"{self._situation(model).sentence}: {ordered.action[:40]} of which version? Name one")
        return Order(
            id=ordered.id,
            model=model,
            version=version,
            action=ordered.action,
            who=ordered.who,
            why=ordered.why,
            back_to=ordered.to or 0,
        )

    async def _carry_out(self, order: Order) -> None:
        """What the director does itself; all else is obeyed by the delivery's watch, which asks for its orders each second."""
        if order.action == ABORT:
            await self._abort(order)
        elif order.action == UNDO:
            await self._undo(order)

    async def _abort(self, order: Order) -> None:
        """A promotion that was under way when it came has won; then only an undo leads back."""
        if self._orders.delivery(order.model) is None or order not in self._orders.of_delivery(order.model):
            return  # of a delivery that is over
        await self._switchboard.take_back(order.model)
        if self._situation(order.model).where == BAKE:
            self._orders.withdraw(order)
            raise NotAllowed(f"{order.model} v{order.version} became stable while it was being aborted: order an undo")

    async def _undo(self, order: Order) -> None:
        """The order names the version that is to go; a split that is under way goes with it."""
        known = self._switchboard.traffic(order.model)
        if known.stable is None or known.stable.version != order.version:
            return  # done already
        try:
            await self._switchboard.take_back(order.model)
            await self._switchboard.undo(order.model, order.back_to)
        except Exception:
            self._orders.withdraw(order)
            raise

    def _refuse_aborted_candidate(self, model: str) -> None:
        candidate = self._switchboard.traffic(model).candidate
        if candidate is not None:
            self._orders.refuse_aborted(model, candidate.version)

    def _situation(self, model: str) -> Situation:
        return self._orders.situation(self._switchboard.traffic(model), self._switchboard.lease(model))

    def _ordered(self, model: str) -> web.Response:
        """The API's view of a model's orders: the delivery they are about, where it is, what may be ordered, and all that is remembered."""
        here = self._situation(model)
        delivery = here.delivery and dataclasses.asdict(here.delivery)
        orders = [dataclasses.asdict(each) for each in self._orders.orders(model)]
        row = {"model": model, "delivery": delivery, "at": here.at, "sentence": here.sentence, "allowed": list(here.allowed)}
        return web.json_response({**row, "orders": orders})

    async def get_health(self, request: web.Request) -> web.Response:
        return web.json_response(await self._switchboard.health(_model(request)))

    def _described(self, model: str) -> web.Response:
        return web.json_response(self._switchboard.describe(model))


def application(switchboard: Switchboard, orders: OrderBook, token: str) -> web.Application:
    """The API behind its token. Bodies above 64 KiB are refused unread."""
    app = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_errors_as_json, _authenticated(token)])
    app.add_routes(Api(switchboard, orders).routes())
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, error.reason or "refused")
    except Held as error:
        return _error(error.status, str(error), holder=error.holder)
    except (NotAllowed, GatewayAway, NotConfirmed) as error:
        return _error(error.status, str(error))
    except ValueError as error:
        return _error(400, str(error))
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return _error(500, f"the director failed and took back what it had set: {error!r}; its log says more")


def _authenticated(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path != "/health" and not hmac.compare_digest(shown, expected):
            return _error(401, "the token is missing or wrong; send it as `Authorization: Bearer ...`")
        return await handler(request)

    return check


async def _body(request: web.Request, kind: type[Body]) -> Body:
    """Raises `ValueError` naming the key that is unknown, missing or wrong."""
    row = json.loads(await request.read() or b"null")
    if not isinstance(row, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 -- it is the caller's value, not a type of ours
    return parse(kind, row)


def _model(request: web.Request) -> str:
    return checked_model(request.match_info["model"])


def _word(request: web.Request, name: str) -> str:
    if set(request.query) != {name}:
        raise ValueError(f"the query must have `{name}` and nothing else, not {sorted(request.query)}")
    return request.query[name]


def _number(request: web.Request, name: str) -> int:
    word = _word(request, name)
    if not word.isdecimal() or len(word) > 18:
        raise ValueError(f"`{name}` is {word[:40]!r}; expected a whole number from 0")
    return int(word)


def _error(status: int, sentence: str, **more: Any) -> web.Response:
    return web.json_response({"error": sentence, **more}, status=status)


@contextlib.asynccontextmanager
async def gateway_admin(address: str) -> AsyncIterator[Admin]:
    """Envoy's admin interface at `host:port`."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ADMIN_TIMEOUT_S)) as session:

        async def fetch(path: str) -> bytes:
            try:
                async with session.get(f"http://{address}{path}") as answer:
                    answer.raise_for_status()
                    return await answer.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise GatewayAway(f"the gateway's admin interface at {address} does not answer: {error!r}") from error

        yield Admin(fetch)


async def run(
    switchboard: Switchboard, orders: OrderBook, *, http_port: int, grpc_port: int, token: str, settings: Settings, host: str = LOOPBACK
) -> None:
    """Serves until SIGTERM or SIGINT; then takes the splits back, and stops."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    grpc_server = await serve(switchboard.splits, AccessLog(switchboard.see, switchboard.observations.interrupted), grpc_port, host)
    runner = web.AppRunner(application(switchboard, orders, token), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, host, http_port).start()
    log.info("serving HTTP on %d, gRPC on %d", http_port, grpc_port)
    lapsing = asyncio.create_task(_lapse_for_ever(switchboard, settings.lapse_every_s))
    await asyncio.wait({asyncio.create_task(stop.wait()), lapsing}, return_when=asyncio.FIRST_COMPLETED)
    await switchboard.end_splits()
    if stop.is_set():
        lapsing.cancel()
    await runner.cleanup()
    await grpc_server.stop(0.5)
    if not stop.is_set():
        lapsing.result()  # leases that nobody ends are worse than no director: say why, and let the supervisor start another


async def _lapse_for_ever(switchboard: Switchboard, every_s: float) -> None:
    while True:
        switchboard.lapse()
        await asyncio.sleep(every_s)


async def _serve(given: argparse.Namespace, state: Path, token: str) -> None:
    settings = Settings(
        split_ttl_s=given.split_ttl_s,
        heartbeat_s=min(1.0, given.split_ttl_s / 4),
        timeouts=Timeouts(total_s=given.timeout_s, per_try_s=given.per_try_timeout_s),
        recorder_permille=given.recorder_permille,
    )
    data = state / "data"
    file = StateFile(data / "director" / "state.json")
    with file.alone():
        async with gateway_admin(given.gateway_admin) as admin:
            switchboard = Switchboard(state=file, files=data / "envoy", admin=admin, settings=settings)
            orders = OrderBook(Journal(data / "director" / "orders.jsonl"))
            ports = {"http_port": given.http_port, "grpc_port": given.grpc_port}
            await run(switchboard, orders, **ports, token=token, settings=settings, host=given.host)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m delivery.director", description="Programs the gateway and holds the leases.")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; a container's own network needs 0.0.0.0")
    parser.add_argument("--gateway-admin", required=True, help="Envoy's admin interface, like 127.0.0.1:18001")
    parser.add_argument("--split-ttl-s", type=float, default=Settings.split_ttl_s, help="how long Envoy keeps a split unheard")
    parser.add_argument("--timeout-s", type=float, default=Timeouts.total_s, help="what a request may take in all")
    parser.add_argument("--per-try-timeout-s", type=float, default=Timeouts.per_try_s, help="after this long the fallback is asked")
    parser.add_argument("--recorder-permille", type=int, choices=range(1001), metavar="0-1000", default=0, help="mirrored to the recorder")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    arguments = _arguments(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if missing := [name for name in ("PENSTOCK_STATE", "PENSTOCK_DIRECTOR_TOKEN") if not os.environ.get(name)]:
        print(f"set {' and '.join(missing)} in the environment", file=sys.stderr)
        return EXIT_USAGE
    try:
        asyncio.run(_serve(arguments, Path(os.environ["PENSTOCK_STATE"]), os.environ["PENSTOCK_DIRECTOR_TOKEN"]))
    except Taken as error:
        print(error, file=sys.stderr)
        return EXIT_TAKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
