"""Fakes that several tests share. Each keeps the rules of the thing it stands for, and can be told to be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from delivery.director_client import (
    DirectorUnreachable,
    LeaseHeld,
    LeaseLost,
    Mirrored,
    ModelView,
    NotThere,
    OrdersView,
    Refused,
    Row,
    Rows,
    SplitView,
)
from delivery.order_book import Journal, OrderBook
from delivery.orders import Order
from delivery.paired import NEWEST
from delivery.pairs import Pair
from delivery.recorder_client import Page
from delivery.traffic import Backend, Held, Lapsed, Lease, ModelTraffic, NotAllowed, Unknown, may_release, mirror_ttl, renewed, taken
from delivery.triton import Server, ServerTrouble
from validation.paired import COMPARED

NEVER_S = 0.0  # the fake's clock stands still: leases end only when they are released


class NoJournal(Journal):
    """A journal that remembers nothing, for order books that live as long as their test."""

    def __init__(self) -> None:
        self.lines = 0

    def read(self) -> list[dict[str, Any]]:
        return []

    def append(self, entry: dict[str, Any]) -> None:
        self.lines += 1

    def rewrite(self, entries: list[dict[str, Any]]) -> None:
        self.lines = len(entries)


@dataclass(kw_only=True)
class FakeDirector:
    """The director's client without director and gateway, over the same pure rules. `broken` names methods that do not answer."""

    traffic: dict[str, ModelTraffic] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    counters: Mirrored = field(default_factory=lambda: Mirrored(requests=0, failures=0))
    broken: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    book: OrderBook = field(default_factory=lambda: OrderBook(NoJournal()))

    def serves(self, model: str, *, stable: int | None = None, previous: int | None = None, candidate: int | None = None) -> None:
        """Sets who serves a model."""
        first, second, third = (backend(number) if number else None for number in (stable, previous, candidate))
        self.traffic[model] = ModelTraffic(model=model, stable=first, previous=second, candidate=third)

    def model(self, model: str) -> ModelView:
        self._called("model")
        return self._view(model)

    def put_candidate(
        self, model: str, version: int, http: str, grpc: str, slice_header: str | None = None, *, metrics: str | None = None
    ) -> ModelView:
        self._called("put_candidate")
        wanted = Backend(version=version, http=http, grpc=grpc, metrics=metrics)
        self.traffic[model] = self._of(model).with_candidate(wanted, self.leases.get(model)).with_slices(slice_header)
        return self._view(model)

    def delete_candidate(self, model: str, version: int) -> ModelView:
        self._called("delete_candidate")
        self.leases.pop(model, None)
        self.traffic[model] = self._of(model).without_candidate(version)
        return self._view(model)

    def put_shadow(self, model: str, permille: int, ttl_s: float | None = None) -> ModelView:
        self._called("put_shadow")
        mirror_ttl(permille, ttl_s)
        self.traffic[model] = self._of(model).with_shadow(permille)
        return self._view(model)

    def put_split(self, model: str, holder: str, permille: int, ttl_s: float) -> ModelView:
        self._called("put_split")
        try:
            lease = taken(self._of(model), self.leases.get(model), holder=holder, permille=permille, ttl_s=ttl_s, now_s=NEVER_S)
        except Held as error:
            raise LeaseHeld(str(error), error.holder) from error
        except Unknown as error:
            raise NotThere(str(error)) from error
        self.leases[model] = lease
        return self._view(model)

    def renew(self, model: str, holder: str, ttl_s: float) -> int:
        self._called("renew")
        try:
            self.leases[model] = renewed(self.leases.get(model), holder=holder, ttl_s=ttl_s, now_s=NEVER_S)
        except Held as error:
            raise LeaseHeld(str(error), error.holder) from error
        except Lapsed as error:
            raise LeaseLost(str(error)) from error
        return self.leases[model].permille

    def release(self, model: str, holder: str) -> ModelView:
        self._called("release")
        try:
            may_release(self.leases.get(model), holder)
        except Held as error:
            raise LeaseHeld(str(error), error.holder) from error
        self.leases.pop(model, None)
        return self._view(model)

    def put_archived(self, model: str, backends: Iterable[Backend]) -> ModelView:
        self._called("put_archived")
        self.traffic[model] = self._of(model).with_archived(backends)
        return self._view(model)

    def put_stable(self, model: str, version: int) -> ModelView:
        self._called("put_stable")
        self.leases.pop(model, None)
        self.traffic[model] = self._of(model).promoted(version)
        return self._view(model)

    def undo(self, model: str, version: int) -> ModelView:
        self._called("undo")
        try:
            self.traffic[model] = self._of(model).undone(version, self.leases.get(model))
        except Held as error:
            raise LeaseHeld(str(error), error.holder) from error
        except NotAllowed as error:
            raise Refused(str(error)) from error
        return self._view(model)

    def delete_previous(self, model: str) -> ModelView:
        self._called("delete_previous")
        self.traffic[model] = self._of(model).without_previous()
        return self._view(model)

    def observations(self, model: str, after: int = 0) -> Rows:
        self._called("observations")
        last = self.rows[-1].number if self.rows else 0
        return Rows(epoch="1", last=last, rows=tuple(row for row in self.rows if row.number > after))

    def mirrored(self, model: str) -> Mirrored:
        self._called("mirrored")
        return self.counters

    def begin_delivery(self, model: str, version: int, delivery: str) -> OrdersView:
        self._called("begin_delivery")
        self.book.begin(model, version, delivery)
        return self._orders(model)

    def end_delivery(self, model: str, delivery: str) -> OrdersView:
        self._called("end_delivery")
        self.book.end(model, delivery)
        return self._orders(model)

    def orders(self, model: str) -> OrdersView:
        self._called("orders")
        return self._orders(model)

    def order(
        self, model: str, *, order_id: str, action: str, who: str, why: str, version: int | None = None, to: int | None = None
    ) -> OrdersView:
        self._called("order")
        here = self.book.situation(self._of(model), self.leases.get(model))
        known = next((each.version for each in self.book.orders(model) if each.id == order_id), None)
        meant = version or known or here.version_for(action) or 1
        try:
            wished = Order(id=order_id, model=model, version=meant, action=action, who=who, why=why, back_to=to or 0)
            order = self.book.find(wished) or self.book.take(wished, here)
        except NotAllowed as error:
            raise Refused(str(error)) from error
        if action == "abort":
            self.leases.pop(model, None)
        traffic = self._of(model)
        if action == "undo" and traffic.stable and traffic.stable.version == order.version:
            self.traffic[model] = traffic.undone(order.back_to, None)
        return self._orders(model)

    def _orders(self, model: str) -> OrdersView:
        here = self.book.situation(self._of(model), self.leases.get(model))
        return OrdersView(
            model=model,
            delivery=here.delivery,
            at=here.at,
            sentence=here.sentence,
            allowed=here.allowed,
            orders=self.book.orders(model),
        )

    def _called(self, method: str) -> None:
        if method in self.broken:
            raise DirectorUnreachable(f"{method}: the director does not answer")
        if method != "model":
            self.calls.append(method)

    def _of(self, model: str) -> ModelTraffic:
        return self.traffic.get(model, ModelTraffic(model=model))

    def _view(self, model: str) -> ModelView:
        traffic, lease = self._of(model), self.leases.get(model)
        split = SplitView(holder=lease.holder, permille=lease.permille, expires_in_s=lease.expires_at_s) if lease else None
        return ModelView(
            model=model,
            stable=traffic.stable,
            previous=traffic.previous,
            candidate=traffic.candidate,
            shadow_permille=traffic.shadow_permille,
            split=split,
            archived=traffic.archived,
        )


@dataclass(kw_only=True)
class FakeServers:
    """The local Triton servers without processes; `broken` says that supervisord does not answer."""

    names: set[str] = field(default_factory=set)
    broken: bool = False
    broken_archive: bool = False
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def running(self) -> dict[str, Server]:
        return {name: Server(name=name, http="127.0.0.1:18200", grpc="127.0.0.1:18201", metrics="127.0.0.1:18202") for name in self.names}

    def stop(self, name: str) -> None:
        if self.broken:
            raise OSError("supervisord does not answer")
        self.names.discard(name)

    def start(self, names: Iterable[str]) -> None:
        self.names |= set(names)

    def archive(self, model: str, versions: int, registry: Any, director: Any) -> str:
        del registry, director
        if self.broken_archive:
            raise ServerTrouble("the archive was not ready")
        self.events += [("archive", model, versions, frozenset(self.names))]
        return f"{versions} asked for"


def backend(version: int) -> Backend:
    """A made-up server of a version, with addresses that no other version has."""
    return Backend(version=version, http=f"127.0.0.1:{20_000 + 2 * version}", grpc=f"127.0.0.1:{20_001 + 2 * version}")


def pair(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A row as the recorder tells it: v1 and v2 agree, unless `changes` say otherwise."""
    made = Pair(**{"unix_s": 0.0, "stable": 1, "candidate": 2, "state": COMPARED, "flipped": False, "difference": 0.0, **changes})
    return {"number": number, **asdict(made)}


@dataclass(kw_only=True)
class FakeRecorder:
    """The recorder's client without a recorder: every call brings `per_look` more pairs. `restarts_at` begins anew with that pair."""

    makes: Callable[[int], dict[str, Any]] = pair
    per_look: int = 30
    restarts_at: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    made: int = 0

    def pairs(self, model: str, after: int = 0) -> Page:
        page = Page(epoch=self._epoch, last=len(self.rows), rows=tuple(row for row in self.rows if row["number"] > after))
        if not page.rows and after < NEWEST:
            self._more()
        return page

    @property
    def _epoch(self) -> str:
        return "after" if self.restarts_at is not None and self.made >= self.restarts_at else "before"

    def _more(self) -> None:
        for _ in range(self.per_look):
            self.made += 1
            if self.made == self.restarts_at:
                self.rows.clear()
            self.rows.append({**self.makes(self.made), "number": len(self.rows) + 1})
