"""What people may order in each state, and what their orders add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import backend

from delivery.orders import (
    ABORT,
    ACTIONS,
    APPROVE,
    BAKE,
    PAUSE,
    PROMOTE_FULLY,
    PROMOTE_NOW,
    RESUME,
    RETRY,
    UNDO,
    Delivery,
    Order,
    Situation,
    binding,
    check,
    situation,
    wanted,
)
from delivery.traffic import Lease, ModelTraffic, NotAllowed

RUN = "deliver__m__v2"
BEFORE = ModelTraffic(model="m", stable=backend(1), previous=None)
LOADED = replace(BEFORE, candidate=backend(2))
BAKING = ModelTraffic(model="m", stable=backend(2), previous=backend(1))
LEASE = Lease(holder=RUN, permille=100, stable=1, candidate=2, expires_at_s=10.0)
DELIVERY = Delivery(model="m", version=2, name=RUN)
PLACES: dict[str, tuple[ModelTraffic, Lease | None, Delivery | None]] = {
    "nothing": (ModelTraffic(model="m"), None, None),
    "idle": (BAKING, None, replace(DELIVERY, ended=True)),
    "gates": (BEFORE, None, DELIVERY),
    "loaded": (LOADED, None, DELIVERY),
    "shadow": (replace(LOADED, shadow_permille=1000), None, DELIVERY),
    "100 per mille": (LOADED, LEASE, DELIVERY),
    "bake": (BAKING, None, DELIVERY),
}
ALLOWED = {
    "nothing": {RETRY},
    "idle": {UNDO},
    "gates": {PAUSE, ABORT},
    "loaded": {PAUSE, PROMOTE_FULLY, ABORT},
    "shadow": {PAUSE, PROMOTE_NOW, PROMOTE_FULLY, ABORT},
    "100 per mille": {PAUSE, PROMOTE_NOW, PROMOTE_FULLY, APPROVE, ABORT},
    "bake": {PROMOTE_NOW, PROMOTE_FULLY, UNDO},
}
PAUSED = {
    "gates": {RESUME, ABORT},
    "loaded": {RESUME, ABORT},
    "shadow": {RESUME, ABORT},
    "100 per mille": {RESUME, APPROVE, ABORT},
    "bake": {PROMOTE_NOW, PROMOTE_FULLY, UNDO},
}


def order(action: str, *, version: int = 2, at: str = "", **fields: object) -> Order:
    return Order(id=f"{action}-of-a-test", model="m", version=version, action=action, who="ada", why="because", at=at, **fields)  # type: ignore[arg-type]


def here(place: str, *orders: Order) -> Situation:
    return situation(*PLACES[place], orders)


def taken(place: Situation, action: str, version: int) -> bool:
    try:
        check(order(action, version=version), place)
    except NotAllowed:
        return False
    return True


def possible(place: Situation) -> set[str]:
    """Every order that would be taken now, about the version that it can be about there."""
    return {action for action in ACTIONS if taken(place, action, place.version_for(action) or 2)}


@pytest.mark.parametrize("place", PLACES)
def test_each_state_has_its_orders(place: str) -> None:
    """What is taken in each state is what the table of the module says, and no more."""
    assert possible(here(place)) == ALLOWED[place]


@pytest.mark.parametrize("place", PAUSED)
def test_a_paused_delivery_is_resumed_approved_or_aborted(place: str) -> None:
    """Nothing else is taken until then; a pause that came too late does not bind the bake."""
    assert possible(here(place, order(PAUSE))) == PAUSED[place]


@pytest.mark.parametrize("place", ["gates", "loaded", "shadow", "100 per mille"])
def test_an_abort_is_final(place: str) -> None:
    """After it the delivery is taken back, whatever else is ordered; the refusal says so."""
    aborted = here(place, order(ABORT), order(RESUME))
    assert possible(aborted) == set()
    with pytest.raises(NotAllowed, match="allowed: nothing, it is being taken back"):
        check(order(PROMOTE_NOW), aborted)


@pytest.mark.parametrize(
    ("place", "action", "version", "said"),
    [
        ("100 per mille", RESUME, 2, "the delivery of m v2 is at 100 per mille: resume makes no sense there; allowed: pause, promote_now"),
        ("100 per mille", PAUSE, 1, "pause is about v2 there and not about v1; name v2 or none"),
        ("idle", ABORT, 2, "no delivery of m is under way; v2 is stable: abort makes no sense there; allowed: undo"),
        ("idle", UNDO, 1, "undo is about v2 there and not about v1"),
        ("idle", RETRY, 2, "m v2 is stable already: there is nothing to retry"),
        ("nothing", UNDO, 2, "allowed: retry"),
        ("gates", RETRY, 2, "the delivery of m v2 is at gates: retry makes no sense there; allowed: pause, abort"),
    ],
)
def test_a_refusal_names_the_state_and_what_is_allowed(place: str, action: str, version: int, said: str) -> None:
    """Whoever is refused knows what to order instead."""
    with pytest.raises(NotAllowed) as refused:
        check(order(action, version=version), here(place))
    assert said in str(refused.value)


def test_another_version_can_be_retried_at_any_time() -> None:
    """Its delivery waits for its turn; the one under way is not touched."""
    assert all(taken(here(place), RETRY, 7) for place in PLACES)


def test_no_undo_leads_back_to_what_was_undone() -> None:
    """Two people who press the button bring the bad version back neither; a later delivery makes it an honest previous version again."""
    undo = order(UNDO, version=2, back_to=1)
    swapped = ModelTraffic(model="m", stable=backend(1), previous=backend(2))
    later = ModelTraffic(model="m", stable=backend(3), previous=backend(2))
    ended = replace(DELIVERY, ended=True)
    assert UNDO not in situation(swapped, None, ended, (), undo).allowed
    assert UNDO in situation(later, None, ended, (), undo).allowed


def test_an_undo_may_name_a_version_that_is_loaded() -> None:
    """Any of those in the archive, and no other; also when the version before was undone itself, and then one must be named."""
    undo = order(UNDO, version=2, back_to=1)
    known = ModelTraffic(model="m", stable=backend(1), previous=backend(2), archived=(backend(5), backend(6)))
    after = situation(known, None, replace(DELIVERY, ended=True), (), undo)
    assert (check(order(UNDO, version=1, back_to=5), after), check(order(UNDO, version=1, back_to=6), after)) == (None, None)
    for to, said in (
        (0, "an undo to the version before, which was undone itself, is not"),
        (2, "an undo to v2 is not"),
        (7, "to v7 is not"),
    ):
        with pytest.raises(NotAllowed) as refused:
            check(order(UNDO, version=1, back_to=to), after)
        assert said in str(refused.value)
        assert "loaded are v5, v6: name one of them (--to)" in str(refused.value)
    with pytest.raises(ValueError, match="pause leads back to no version"):
        order(PAUSE, back_to=5)


def test_the_same_undo_again_is_the_same() -> None:
    """One that does not say where it leads, leads where it led at first; another place makes it another order."""
    kept = order(UNDO, version=2, back_to=1, unix_s=1.0, at="idle")
    assert kept.same_as(order(UNDO, version=2))
    assert kept.same_as(order(UNDO, version=2, back_to=1))
    assert not kept.same_as(order(UNDO, version=2, back_to=5))


def test_the_last_word_on_a_pause_counts() -> None:
    """Paused, resumed, paused again is paused."""
    assert wanted([order(PAUSE), order(RESUME)]).paused is None
    assert wanted([order(PAUSE), order(RESUME), order(PAUSE)]).paused == order(PAUSE)


def test_an_order_about_a_step_means_that_step() -> None:
    """`promote_now` and `approve` count at the place that they were given at; `promote_fully` at all that follow."""
    now, approval = order(PROMOTE_NOW, at="10 per mille"), order(APPROVE, at="500 per mille")
    found = wanted([now, approval])
    assert (found.promoted("10 per mille"), found.promoted("100 per mille")) == (now, None)
    assert (found.approved("500 per mille"), found.approved("10 per mille"), found.approved("1000 per mille")) == (approval, now, None)
    fully = order(PROMOTE_FULLY, at="10 per mille")
    assert wanted([fully]).promoted("1000 per mille") == fully


def test_a_bake_is_ended_by_orders_of_its_own() -> None:
    """A `promote_fully` of before does not shorten it; one that is given during the bake does."""
    before, during = order(PROMOTE_FULLY, at="10 per mille"), order(PROMOTE_FULLY, at=BAKE)
    assert binding(wanted([before, order(PAUSE)]), BAKE) == replace(wanted([]), fully=None)
    assert binding(wanted([during]), BAKE).promoted(BAKE) == during


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"who": ""}, "who must be one line"),
        ({"why": " "}, "why must be one line"),
        ({"why": "two\nlines"}, "why must be one line"),
        ({"why": "x" * 501}, "500 characters"),
        ({"id": "short"}, "8 to 250"),
        ({"id": "a/../../b"}, "expected 8 to 250 letters"),
        ({"version": 0}, "versions count from 1"),
        ({"action": "destroy"}, "allowed: pause, resume"),
        ({"model": "../m"}, "model"),
    ],
)
def test_an_order_that_nobody_could_read_is_none(fields: dict[str, object], said: str) -> None:
    """Who and why are one printable line each; all else has its form; the refusal says which is wrong."""
    with pytest.raises(ValueError, match=said):
        replace(order(PAUSE), **fields)  # type: ignore[arg-type]
