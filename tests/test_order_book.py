"""The journal of orders: durable before it counts, readable after a crash, bounded, and each delivery's own."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from fakes import backend

from delivery import order_book
from delivery.order_book import Journal, OrderBook
from delivery.orders import ABORT, PAUSE, UNDO, Order, wanted
from delivery.traffic import ModelTraffic, NotAllowed

RUN = "deliver__m__v2"
LOADED = ModelTraffic(model="m", stable=backend(1), candidate=backend(2))
BAKING = ModelTraffic(model="m", stable=backend(2), previous=backend(1))


def order(action: str, number: int = 1, **fields: object) -> Order:
    row = {"id": f"order-{number:04}", "model": "m", "version": 2, "action": action, "who": "ada", "why": "because"} | fields
    return Order(**row)  # type: ignore[arg-type]


def book(folder: Path) -> OrderBook:
    """As a director that was started now reads it."""
    return OrderBook(Journal(folder / "orders.jsonl"), now_s=lambda: 1000.0)


def take(orders: OrderBook, action: str, number: int = 1, traffic: ModelTraffic = LOADED) -> Order:
    return orders.take(order(action, number), orders.situation(traffic, None))


def test_a_restarted_director_knows_the_orders(tmp_path: Path) -> None:
    """Who, why, when and where come back; the journal is readable by its owner only."""
    first = book(tmp_path)
    first.begin("m", 2, RUN)
    taken = take(first, PAUSE)
    assert (taken.unix_s, taken.at, taken.delivery) == (1000.0, "loaded", RUN)
    assert book(tmp_path).of_delivery("m") == (taken,)
    assert stat.S_IMODE((tmp_path / "orders.jsonl").stat().st_mode) == 0o600


def test_the_same_order_again_is_found(tmp_path: Path) -> None:
    """An id stands for one order: sent again it is that one, with other words it is refused."""
    orders = book(tmp_path)
    orders.begin("m", 2, RUN)
    taken = take(orders, PAUSE)
    assert book(tmp_path).find(order(PAUSE)) == taken
    with pytest.raises(NotAllowed, match="belongs to another order"):
        orders.find(order(ABORT))


def test_a_line_that_was_never_finished_counts_for_nothing(tmp_path: Path) -> None:
    """A crash in the middle of a write leaves half a line; what stood before is known."""
    orders = book(tmp_path)
    orders.begin("m", 2, RUN)
    taken = take(orders, PAUSE)
    with (tmp_path / "orders.jsonl").open("ab") as file:
        file.write(b'{"event": "order", "id"')
    assert book(tmp_path).orders("m") == (taken,)


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b'{"event": "party"}\n', b'{"event": "order", "id": "12345678"}\n'])
def test_a_journal_that_was_tampered_with_is_no_journal(tmp_path: Path, line: bytes) -> None:
    """The director does not start with orders that it may have misread."""
    (tmp_path / "orders.jsonl").write_bytes(line)
    with pytest.raises(ValueError, match=r"line 1|order"):
        book(tmp_path)


def test_orders_end_with_their_delivery(tmp_path: Path) -> None:
    """A later delivery of the same version, even one of the same name, has no orders; what was ordered is remembered."""
    orders = book(tmp_path)
    for _ in range(2):
        orders.begin("m", 2, RUN)
    take(orders, ABORT)
    with pytest.raises(NotAllowed, match="was aborted by ada: because"):
        orders.refuse_aborted("m", 2)
    orders.end("m", "another")
    assert wanted(orders.of_delivery("m")).aborted is not None
    orders.end("m", RUN)
    orders.begin("m", 2, RUN)
    for each in (orders, book(tmp_path)):
        assert (each.of_delivery("m"), [row.action for row in each.orders("m")]) == ((), [ABORT])
        each.refuse_aborted("m", 2)


def test_what_could_not_be_done_was_never_ordered(tmp_path: Path) -> None:
    """A withdrawn order is gone, after a restart too."""
    orders = book(tmp_path)
    orders.withdraw(take(orders, UNDO, traffic=BAKING))
    assert orders.orders("m") == book(tmp_path).orders("m") == ()


def test_an_undo_remembers_where_it_leads(tmp_path: Path) -> None:
    """So that nobody leads back to what was undone, restart or not."""
    assert take(book(tmp_path), UNDO, traffic=BAKING).back_to == 1
    swapped = ModelTraffic(model="m", stable=backend(1), previous=backend(2))
    assert book(tmp_path).situation(swapped, None).allowed == ()


def test_the_journal_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many deliveries there were, it keeps the latest orders, and all of the delivery under way."""
    monkeypatch.setattr(order_book, "LINES", 30)
    monkeypatch.setattr(order_book, "REMEMBERED", 5)
    orders = book(tmp_path)
    for number in range(1, 40):
        orders.begin("m", 2, f"run-{number}")
        take(orders, PAUSE, number)
        orders.end("m", f"run-{number}")
    orders.begin("m", 2, RUN)
    mine = take(orders, PAUSE, 40)
    assert len((tmp_path / "orders.jsonl").read_bytes().splitlines()) <= 31
    again = book(tmp_path)
    assert again.of_delivery("m") == (mine,)
    assert [each.id for each in again.orders("m")] == [f"order-{number:04}" for number in range(35, 41)]
