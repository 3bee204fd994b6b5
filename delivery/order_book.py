"""What people ordered, kept so that a restarted director still knows it: a journal of JSON lines, and the current delivery of each model.

Only `delivery.director` uses it. Each entry is on the disk before it counts. The journal is bounded: at each start and when it has grown it
is written anew, with the current delivery of each model, all of its orders, and the latest orders before that. What an order means stands
in `delivery.orders`; nothing is carried out here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from delivery.gateway import write_by_rename
from delivery.orders import MOST, RETRY, UNDO, Delivery, Order, Situation, check, situation, wanted
from delivery.traffic import Lease, ModelTraffic, NotAllowed, checked_model
from validation.policy import parse

REMEMBERED = 100  # orders of deliveries that are over, for each model
LINES = 2000  # the journal is written anew when it has more


class Journal:
    """Lines of JSON objects, readable by the owner only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = 0

    def read(self) -> list[dict[str, Any]]:
        """A last line without its end is of a write that never returned, and counts for nothing. Raises `ValueError` on any other fault."""
        if not self._path.exists():
            return []
        whole = self._path.read_bytes().split(b"\n")[:-1]
        return [_object(line, self._path, number) for number, line in enumerate(whole, 1)]

    def append(self, entry: dict[str, Any]) -> None:
        """On the disk when it returns."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, json.dumps(entry).encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
        self.lines += 1

    def rewrite(self, entries: list[dict[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.chmod(0o600)
        write_by_rename(self._path, b"".join(json.dumps(each).encode() + b"\n" for each in entries), draft=draft)
        self.lines = len(entries)


class OrderBook:
    """The orders of every model, oldest first. Raises `ValueError` on a journal that it cannot understand."""

    def __init__(self, journal: Journal, now_s: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._now_s = now_s
        self._deliveries: dict[str, Delivery] = {}
        self._orders: dict[str, list[Order]] = {}
        for entry in journal.read():
            self._apply(entry)
        self._tidy()

    def delivery(self, model: str) -> Delivery | None:
        """The delivery that is under way, or was the last."""
        return self._deliveries.get(model)

    def orders(self, model: str) -> tuple[Order, ...]:
        """All that are remembered, those of earlier deliveries first."""
        return tuple(self._orders.get(model, ()))

    def of_delivery(self, model: str) -> tuple[Order, ...]:
        """The orders of the delivery that is under way."""
        delivery = self.delivery(model)
        if delivery is None or delivery.ended:
            return ()
        return tuple(each for each in self.orders(model) if each.delivery == delivery.name)

    def situation(self, traffic: ModelTraffic, lease: Lease | None) -> Situation:
        undos = [each for each in self.orders(traffic.model) if each.action == UNDO]
        return situation(traffic, lease, self.delivery(traffic.model), self.of_delivery(traffic.model), undos[-1] if undos else None)

    def begin(self, model: str, version: int, name: str) -> None:
        """A delivery begins. Asked for again while it is under way, nothing changes; after its end it begins anew, without its orders."""
        wished = Delivery(model=checked_model(model), version=version, name=name)
        if self.delivery(model) != wished:
            self._write({"event": "begun", **dataclasses.asdict(wished)})

    def end(self, model: str, name: str) -> None:
        """The delivery of that name is over, and its orders with it; any other goes on."""
        delivery = self.delivery(model)
        if delivery is not None and delivery.name == name and not delivery.ended:
            self._write({"event": "ended", **dataclasses.asdict(dataclasses.replace(delivery, ended=True))})

    def find(self, order: Order) -> Order | None:
        """The order of that id, if it was taken before. Raises `NotAllowed` when it was another one."""
        found = next((each for each in self.orders(order.model) if each.id == order.id), None)
        if found is not None and not found.same_as(order):
            raise NotAllowed(f"the id {order.id} belongs to another order: {found.action} of v{found.version}; make a new id")
        return found

    def take(self, order: Order, here: Situation) -> Order:
        """Checks and keeps it; returns it with time and place. Raises `NotAllowed`."""
        check(order, here)
        if len(self.of_delivery(order.model)) >= MOST:
            raise NotAllowed(f"{here.sentence}, and had {MOST} orders already; no more are taken")
        under_way = here.delivery is not None and not here.delivery.ended and order.action != RETRY
        name = here.delivery.name if here.delivery and under_way else ""
        back_to = (order.back_to or here.previous or 0) if order.action == UNDO else 0
        taken = dataclasses.replace(order, unix_s=round(self._now_s(), 3), at=here.at, delivery=name, back_to=back_to)
        self._write({"event": "order", **dataclasses.asdict(taken)})
        return taken

    def withdraw(self, order: Order) -> None:
        """It could not be carried out: it never was."""
        self._write({"event": "withdrawn", "model": order.model, "id": order.id})

    def refuse_aborted(self, model: str, version: int) -> None:
        """Raises `NotAllowed` when the delivery under way is of this version and was aborted."""
        aborted = wanted(self.of_delivery(model)).aborted
        if aborted is not None and aborted.version == version:
            raise NotAllowed(f"{model} v{version} was aborted by {aborted.said}; it gets no traffic in this delivery")

    def _write(self, entry: dict[str, Any]) -> None:
        self._journal.append(entry)
        self._apply(entry)
        if self._journal.lines > LINES:
            self._tidy()

    def _apply(self, entry: dict[str, Any]) -> None:
        fields = {key: value for key, value in entry.items() if key != "event"}
        if entry["event"] in ("begun", "ended"):
            self._under_way(parse(Delivery, fields, "delivery"))
        elif entry["event"] == "order":
            order = parse(Order, fields, "order")
            self._orders.setdefault(order.model, []).append(order)
        else:
            kept = self._orders.get(fields["model"], [])
            self._orders[fields["model"]] = [each for each in kept if each.id != fields["id"]]

    def _under_way(self, delivery: Delivery) -> None:
        """Orders keep the name of their delivery; one that begins anew must not find those of before."""
        if not delivery.ended:
            before = self._orders.get(delivery.model, [])
            self._orders[delivery.model] = [_detached(each) if each.delivery == delivery.name else each for each in before]
        self._deliveries[delivery.model] = delivery

    def _tidy(self) -> None:
        """Begins with the deliveries, as the orders of one that begins are detached from it."""
        for model, known in self._orders.items():
            own = self.of_delivery(model)
            before = [each for each in known if each not in own]
            self._orders[model] = [*before[-REMEMBERED:], *own]
        begun = [{"event": "ended" if each.ended else "begun", **dataclasses.asdict(each)} for each in self._deliveries.values()]
        self._journal.rewrite([*begun, *({"event": "order", **dataclasses.asdict(each)} for row in self._orders.values() for each in row)])


def _detached(order: Order) -> Order:
    return dataclasses.replace(order, delivery=f"{order.delivery} (before)")


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path.name}, line {number} is no JSON: {error}; move the file away to begin without orders") from error
    if not isinstance(entry, dict) or entry.get("event") not in ("begun", "ended", "order", "withdrawn"):
        raise ValueError(f"{path.name}, line {number} is no entry of an order book; move the file away to begin without orders")
    return entry
