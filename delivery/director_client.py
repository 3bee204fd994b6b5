"""A small client of the director's HTTP API, for the tasks that move traffic.

Tasks make one with `Director.from_env()`; errors say by their type whether to try again. It runs in the tasks' environment, so it needs
httpx and nothing of the director's own. It repeats no call by itself and decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import httpx

from delivery.orders import Delivery, Order
from delivery.traffic import Backend

TIMEOUT = httpx.Timeout(10.0, connect=1.0)
CHANGE_TIMEOUT = httpx.Timeout(60.0, connect=1.0)  # clusters and routes: health of the candidate, requests in flight, confirmations


class DirectorUnreachable(RuntimeError):
    """No answer, or the gateway behind it is away or did not confirm (503, 504). Worth a retry: every call may be repeated."""


class Refused(RuntimeError):
    """The director will not do it, and will not when asked again (400, 401, 409 for another reason than a lease, ...)."""


class NotThere(Refused):
    """There is no such candidate (404)."""


class LeaseLost(Refused):
    """The lease lapsed or was released; all traffic is on stable (410)."""


class LeaseHeld(Refused):
    """Another holds the lease (409)."""

    def __init__(self, sentence: str, holder: str) -> None:
        super().__init__(sentence)
        self.holder = holder


@dataclass(frozen=True, kw_only=True)
class SplitView:
    holder: str
    permille: int
    expires_in_s: float


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """What the director says about a model; a model that it does not know has nothing."""

    model: str
    stable: Backend | None
    previous: Backend | None
    candidate: Backend | None
    shadow_permille: int
    split: SplitView | None
    archived: tuple[Backend, ...] = ()

    @property
    def roles(self) -> set[int]:
        """The versions that are stable, previous or candidate."""
        return {each.version for each in (self.stable, self.previous, self.candidate) if each}

    @property
    def with_servers(self) -> set[int]:
        """The versions whose own server the gateway points at: those with a role, and of the archived those that share none."""
        return self.roles | {each.version for each in self.archived if each.alone}


class Row(NamedTuple):
    """One request at the gateway. `ok` judges the version's own server, even where a retry or the fallback saved the client.

    `unix_s` is the gateway's wall clock, which may be set back: only `number` tells the order. `slice` is empty without a slice header.
    """

    number: int
    unix_s: float
    version: int
    ok: bool
    latency_ms: float
    slice: str = ""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Go on with `after=last`. Another `epoch` than before means that the director was restarted: begin again with `after=0`.

    `lost` rows after the number that was asked for are gone for good: the reader was too slow. `gaps` counts since the director's start how
    often rows may have been lost before they had a number: when it has grown, the rows of the two answers are not all there were.
    """

    epoch: str
    last: int
    rows: tuple[Row, ...]
    lost: int = 0
    gaps: int = 0


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """Attempts at the candidate's own servers since it was registered; after a restart of the gateway they begin at 0 again."""

    requests: int
    failures: int


@dataclass(frozen=True, kw_only=True)
class OrdersView:
    """The orders of a model: which delivery they are about, where it is, in a sentence too, and what may be ordered now."""

    model: str
    delivery: Delivery | None
    at: str
    sentence: str
    allowed: tuple[str, ...]
    orders: tuple[Order, ...]

    def of(self, delivery: str) -> tuple[Order, ...]:
        """The orders of one delivery, in the order in which they were taken."""
        return tuple(each for each in self.orders if each.delivery == delivery)


class Director:
    """The director at `url`. Every method raises `DirectorUnreachable`, or a kind of `Refused`."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT, trust_env=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Director:
        """Raises `KeyError` naming PENSTOCK_DIRECTOR_URL or PENSTOCK_DIRECTOR_TOKEN when it is missing."""
        return cls(environ["PENSTOCK_DIRECTOR_URL"], environ["PENSTOCK_DIRECTOR_TOKEN"])

    def close(self) -> None:
        self._http.close()

    def model(self, model: str) -> ModelView:
        return _view(self._ask("GET", f"/v1/models/{model}"))

    def put_candidate(
        self, model: str, version: int, http: str, grpc: str, slice_header: str | None = None, *, metrics: str | None = None
    ) -> ModelView:
        """Returns once the gateway reaches the candidate and finds it ready; it has no share yet. `http`, `grpc`: like 127.0.0.1:8000.

        `slice_header` names the request header that is copied into the rows' `slice`; it stays until another candidate is put. `metrics`
        is where Prometheus shall find the server's own figures; without it Prometheus is not told of the server.
        """
        optional = {"slice_header": slice_header, "metrics": metrics}
        body = {"version": version, "http": http, "grpc": grpc, **{key: value for key, value in optional.items() if value is not None}}
        return _view(self._ask("PUT", f"/v1/models/{model}/candidate", body, timeout=CHANGE_TIMEOUT))

    def delete_candidate(self, model: str, version: int) -> ModelView:
        return _view(self._ask("DELETE", f"/v1/models/{model}/candidate", version=version, timeout=CHANGE_TIMEOUT))

    def put_shadow(self, model: str, permille: int, ttl_s: float | None = None) -> ModelView:
        """Returns once the gateway has the mirror. A share above 0 needs `ttl_s` (2 to 600) and lapses unless it is put again in time."""
        body = {"permille": permille, **({} if ttl_s is None else {"ttl_s": ttl_s})}
        return _view(self._ask("PUT", f"/v1/models/{model}/shadow", body))

    def put_split(self, model: str, holder: str, permille: int, ttl_s: float) -> ModelView:
        """Returns once the gateway has shown the split. Raises `LeaseHeld` or `NotThere`."""
        return _view(self._ask("PUT", f"/v1/models/{model}/split", {"holder": holder, "permille": permille, "ttl_s": ttl_s}))

    def renew(self, model: str, holder: str, ttl_s: float) -> int:
        """The share in per mille that goes on for another `ttl_s`. Raises `LeaseLost` or `LeaseHeld`."""
        return int(self._ask("POST", f"/v1/models/{model}/split/renew", {"holder": holder, "ttl_s": ttl_s})["permille"])

    def release(self, model: str, holder: str) -> ModelView:
        """All traffic to stable; may be asked for twice. Raises `LeaseHeld` when the lease is another's."""
        return _view(self._ask("DELETE", f"/v1/models/{model}/split", holder=holder))

    def put_stable(self, model: str, version: int) -> ModelView:
        return _view(self._ask("PUT", f"/v1/models/{model}/stable", {"version": version}, timeout=CHANGE_TIMEOUT))

    def undo(self, model: str, version: int) -> ModelView:
        """`version`, the stable before this one, is stable again; may be asked for twice. Raises `Refused` when it is not there any more,
        `LeaseHeld` while a split is held, `DirectorUnreachable` when it is not healthy.
        """
        return _view(self._ask("POST", f"/v1/models/{model}/undo", {"version": version}, timeout=CHANGE_TIMEOUT))

    def delete_previous(self, model: str) -> ModelView:
        return _view(self._ask("DELETE", f"/v1/models/{model}/previous", timeout=CHANGE_TIMEOUT))

    def put_archived(self, model: str, backends: Iterable[Backend]) -> ModelView:
        """These versions and no others answer those who pin them, from the archive; returns once the gateway shows it. Raises `Refused`
        for a version that has a role.
        """
        rows = [{key: value for key, value in asdict(each).items() if value is not None} for each in backends]
        return _view(self._ask("PUT", f"/v1/models/{model}/archived", {"versions": rows}, timeout=CHANGE_TIMEOUT))

    def observations(self, model: str, after: int = 0) -> Rows:
        """At most 20,000 rows after number `after`, oldest first."""
        answer = self._ask("GET", f"/v1/models/{model}/observations", after=after)
        rows = tuple(_row(each) for each in answer["rows"])
        return Rows(epoch=answer["epoch"], last=answer["last"], rows=rows, lost=answer["lost"], gaps=answer["gaps"])

    def mirrored(self, model: str) -> Mirrored:
        return Mirrored(**self._ask("GET", f"/v1/models/{model}/mirrored"))

    def models(self) -> tuple[str, ...]:
        """The models that have a server."""
        return tuple(self._ask("GET", "/v1/models")["models"])

    def begin_delivery(self, model: str, version: int, delivery: str) -> OrdersView:
        """From now on people's orders are about this delivery. Asked for again while it is under way, nothing changes."""
        return _orders(self._ask("PUT", f"/v1/models/{model}/delivery", {"version": version, "delivery": delivery}))

    def end_delivery(self, model: str, delivery: str) -> OrdersView:
        """The delivery is over, and its orders with it; nothing happens when another is under way."""
        return _orders(self._ask("DELETE", f"/v1/models/{model}/delivery", delivery=delivery))

    def orders(self, model: str) -> OrdersView:
        return _orders(self._ask("GET", f"/v1/models/{model}/orders"))

    def order(
        self, model: str, *, order_id: str, action: str, who: str, why: str, version: int | None = None, to: int | None = None
    ) -> OrdersView:
        """Gives an order; returns when the director has kept it and, where it acts itself (abort, undo), the gateway obeys.

        Without a version the one is meant that it can be about; `to` is where an undo leads, else to the previous version. Raises `Refused`
        with what is allowed when it makes no sense now.
        """
        optional = {name: number for name, number in (("version", version), ("to", to)) if number is not None}
        body = {"id": order_id, "action": action, "who": who, "why": why, **optional}
        return _orders(self._ask("POST", f"/v1/models/{model}/orders", body, timeout=CHANGE_TIMEOUT))

    def health(self, model: str) -> dict[int, bool]:
        """Whether each version of the model that the gateway knows is ready; nothing else is asked of it."""
        return {int(version): bool(healthy) for version, healthy in self._ask("GET", f"/v1/models/{model}/health").items()}

    def _ask(self, method: str, path: str, body: Any = None, timeout: httpx.Timeout = TIMEOUT, **query: str | int) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body, params=query or None, timeout=timeout)
        except httpx.TransportError as error:
            raise DirectorUnreachable(f"the director at {self._http.base_url} does not answer: {error!r}; is it running?") from error
        return _checked(answer)


def _checked(answer: httpx.Response) -> dict[str, Any]:
    try:
        row: dict[str, Any] = answer.json()
    except ValueError as error:
        raise DirectorUnreachable(f"{answer.url} answered {answer.status_code} without JSON") from error
    if answer.is_success:
        return row
    raise _refusal(answer.status_code, row)


def _refusal(status: int, row: Mapping[str, Any]) -> Exception:
    sentence = str(row.get("error", f"status {status} without a reason"))
    if status >= 500:
        return DirectorUnreachable(sentence)
    if status == 409 and "holder" in row:
        return LeaseHeld(sentence, row["holder"])
    return {404: NotThere, 410: LeaseLost}.get(status, Refused)(sentence)


def _view(answer: Mapping[str, Any]) -> ModelView:
    roles = {name: Backend(**answer[name]) if answer[name] else None for name in ("stable", "previous", "candidate")}
    split = SplitView(**answer["split"]) if answer["split"] else None
    archived = tuple(Backend(**each) for each in answer["archived"])
    return ModelView(model=answer["model"], shadow_permille=answer["shadow_permille"], split=split, archived=archived, **roles)


def _orders(answer: Mapping[str, Any]) -> OrdersView:
    return OrdersView(
        model=answer["model"],
        delivery=Delivery(**answer["delivery"]) if answer["delivery"] else None,
        at=answer["at"],
        sentence=answer["sentence"],
        allowed=tuple(answer["allowed"]),
        orders=tuple(Order(**each) for each in answer["orders"]),
    )


def _row(values: Sequence[Any]) -> Row:
    number, unix_s, version, ok, latency_ms, slice_ = values
    return Row(number, unix_s, version, bool(ok), latency_ms, slice_)
