"""What people may order of a delivery, and what each order means in each state. Pure: no clock, no input or output.

The director keeps the orders (`delivery.order_book`) and asks here whether one makes sense; watches ask here what the orders of their
delivery add up to (`delivery.orders_watch`). Orders belong to one delivery of one version: what was ordered of an earlier delivery of the
same version does not bind a later one.

| where      | what that is                                                | what can be ordered                                       |
|------------|-------------------------------------------------------------|-----------------------------------------------------------|
| idle       | no delivery is under way                                    | undo, retry                                               |
| gates      | a delivery before its server is known to the gateway        | pause, resume, abort                                      |
| loaded     | the candidate is loaded and has no traffic                  | pause, resume, promote_fully, abort                       |
| shadow     | traffic is mirrored to it                                   | pause, resume, promote_now, promote_fully, abort          |
| split      | it has a share                                              | pause, resume, promote_now, promote_fully, approve, abort |
| bake       | it is stable, and its delivery still watches it             | promote_now, promote_fully, undo                          |

`retry` of another version than the one under way is always possible: its delivery waits for its turn. While a delivery is paused it can
only be resumed, approved or aborted; once it is aborted, only an undo is left. A pause that came when the last step had passed was too late
and does not bind the bake, and `promote_fully` given before it does not shorten it. An undo leads to the previous version or, where that is
said, to an archived one, and never back to what was undone last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from delivery.traffic import Backend, Lease, ModelTraffic, NotAllowed, checked_model

PAUSE, RESUME, PROMOTE_NOW, PROMOTE_FULLY = "pause", "resume", "promote_now", "promote_fully"
APPROVE, ABORT, UNDO, RETRY = "approve", "abort", "undo", "retry"
ACTIONS = (PAUSE, RESUME, PROMOTE_NOW, PROMOTE_FULLY, APPROVE, ABORT, UNDO, RETRY)
IDLE, GATES, LOADED, SHADOW, SPLIT, BAKE = "idle", "gates", "loaded", "shadow", "split", "bake"
SENSIBLE = {
    IDLE: (UNDO,),
    GATES: (PAUSE, RESUME, ABORT),
    LOADED: (PAUSE, RESUME, PROMOTE_FULLY, ABORT),
    SHADOW: (PAUSE, RESUME, PROMOTE_NOW, PROMOTE_FULLY, ABORT),
    SPLIT: (PAUSE, RESUME, PROMOTE_NOW, PROMOTE_FULLY, APPROVE, ABORT),
    BAKE: (PROMOTE_NOW, PROMOTE_FULLY, UNDO),
}
WHILE_PAUSED = (RESUME, APPROVE, ABORT)
MOST = 200  # orders of one delivery; people give a handful, a program gone wrong must not fill the disk
ID = re.compile(r"[A-Za-z0-9_.:+-]{8,250}")  # a random word, or a run's id
LONGEST_WHO, LONGEST_WHY = 250, 500


@dataclass(frozen=True, kw_only=True)
class Order:
    """One order. `id` is made by who sends it, so that sending it again changes nothing; `unix_s`, `at`, `delivery` by who takes it.

    `at` is the place in the rollout that it was given at (see `place`): an order about "this step" means that step and no later one.
    `back_to` is the version that an undo leads back to, and 0 for any other order.
    """

    id: str
    model: str
    version: int
    action: str
    who: str
    why: str
    unix_s: float = 0.0
    at: str = ""
    delivery: str = ""
    back_to: int = 0

    def __post_init__(self) -> None:
        checked_model(self.model)
        _need(bool(ID.fullmatch(self.id)), f"id {self.id[:40]!r}: expected 8 to 250 letters, digits and _ . : + -")
        _need(self.version >= 1, f"version is {self.version}; versions count from 1")
        _need(not self.back_to or self.action == UNDO, f"{self.action[:40]} leads back to no version; only an undo does")
        _need(self.action in ACTIONS, f"action is {self.action[:40]!r}; allowed: {', '.join(ACTIONS)}")
        _need(_is_line(self.who, LONGEST_WHO), f"who must be one line of 1 to {LONGEST_WHO} characters")
        _need(_is_line(self.why, LONGEST_WHY), f"why must be one line of 1 to {LONGEST_WHY} characters: it is what others will read")

    @property
    def said(self) -> str:
        """Who and why, as it stands in findings and in the registry."""
        return f"{self.who}: {self.why}"

    def same_as(self, other: Order) -> bool:
        """Whether the other asks for this too, whenever it was taken; an undo that does not say where to leads where this one does."""
        return self == replace(other, unix_s=self.unix_s, at=self.at, delivery=self.delivery, back_to=other.back_to or self.back_to)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The delivery of a model that is under way, or was last; the name is Airflow's run id."""

    model: str
    version: int
    name: str
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the orders of one delivery add up to; each is the order that says so."""

    aborted: Order | None = None
    paused: Order | None = None
    fully: Order | None = None
    undone: Order | None = None
    now: tuple[Order, ...] = ()
    approvals: tuple[Order, ...] = ()

    def promoted(self, at: str) -> Order | None:
        """The order by which the step at this place is over."""
        return self.fully or next((each for each in self.now if each.at == at), None)

    def approved(self, at: str) -> Order | None:
        """The order that approves the step at this place; whoever promotes it has approved it."""
        return self.promoted(at) or next((each for each in self.approvals if each.at == at), None)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Where a model stands when an order comes."""

    model: str
    where: str
    at: str
    delivery: Delivery | None
    stable: int | None
    previous: int | None
    wanted: Wanted
    archived: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        if self.delivery is None or self.delivery.ended:
            return f"no delivery of {self.model} is under way" + (f"; v{self.stable} is stable" if self.stable else "")
        state = "aborted" if self.wanted.aborted else "paused" if self.wanted.paused else ""
        return f"the delivery of {self.model} v{self.delivery.version} is at {self.at}" + (f", {state}" if state else "")

    @property
    def allowed(self) -> tuple[str, ...]:
        """What can be ordered of the delivery under way, or of stable; `retry` stands beside it, see `check`."""
        if self.wanted.aborted:
            found: tuple[str, ...] = (UNDO,)
        elif self.wanted.paused:
            found = tuple(each for each in SENSIBLE[self.where] if each in WHILE_PAUSED)
        else:
            found = tuple(each for each in SENSIBLE[self.where] if each != RESUME)
        return tuple(each for each in found if each != UNDO or self.loaded)

    @property
    def loaded(self) -> tuple[int, ...]:
        """The versions that an undo can lead back to."""
        return (*((self.previous,) if self.previous is not None else ()), *self.archived)

    def version_for(self, action: str) -> int | None:
        """The version that is meant when none is named: the one under way, for an undo the stable one; for a retry the last one."""
        if action == UNDO:
            return self.stable
        return self.delivery.version if self.delivery else None


def situation(
    traffic: ModelTraffic, lease: Lease | None, delivery: Delivery | None, orders: Iterable[Order], undo: Order | None = None
) -> Situation:
    """`lease` is the one alive now; `orders` are those of the delivery; `undo` is the model's latest, which no second one takes back."""
    where, stable, previous = _where(traffic, lease, delivery), _number(traffic.stable), _number(traffic.previous)
    return Situation(
        model=traffic.model,
        where=where,
        at=place(lease.permille if lease else None) if where == SPLIT else where,
        delivery=delivery,
        stable=stable,
        previous=None if undo and (undo.back_to, undo.version) == (stable, previous) else previous,
        wanted=binding(wanted(orders), where),
        archived=tuple(each.version for each in traffic.archived),
    )


def binding(ordered: Wanted, at: str) -> Wanted:
    """What of it counts at this place: the bake is no step, and is held by nothing and ended only by an order of its own."""
    if at != BAKE:
        return ordered
    return replace(ordered, paused=None, fully=ordered.fully if ordered.fully and ordered.fully.at == BAKE else None)


def place(permille: int | None) -> str:
    """The place of a step in the rollout, as orders and watches name it: a share, or the mirror."""
    return SHADOW if permille is None else f"{permille} per mille"


def wanted(orders: Iterable[Order]) -> Wanted:
    """Orders in the order in which they were taken; a `resume` ends the `pause` before it, nothing ends an `abort`."""
    given = list(orders)
    last = {each.action: each for each in given}
    pauses = [each for each in given if each.action in (PAUSE, RESUME)]
    return Wanted(
        aborted=last.get(ABORT),
        paused=pauses[-1] if pauses and pauses[-1].action == PAUSE else None,
        fully=last.get(PROMOTE_FULLY),
        undone=last.get(UNDO),
        now=tuple(each for each in given if each.action == PROMOTE_NOW),
        approvals=tuple(each for each in given if each.action == APPROVE),
    )


def check(order: Order, here: Situation) -> None:
    """Raises `NotAllowed` with the state and what is allowed in it, unless the order makes sense."""
    if order.action == RETRY:
        return _check_retry(order, here)
    if order.action not in here.allowed:
        raise NotAllowed(f"{here.sentence}: {order.action} makes no sense there; {_possible(here)}")
    if (meant := here.version_for(order.action)) != order.version:
        raise NotAllowed(f"{here.sentence}: {order.action} is about v{meant} there and not about v{order.version}; name v{meant} or none")
    if order.action == UNDO and (order.back_to or here.previous) not in here.loaded:
        loaded = ", ".join(f"v{number}" for number in here.loaded)
        wished = f"to v{order.back_to}" if order.back_to else "to the version before, which was undone itself,"
        raise NotAllowed(f"{here.sentence}: an undo {wished} is not possible; loaded are {loaded}: name one of them (--to)")
    return None


def _check_retry(order: Order, here: Situation) -> None:
    if order.version == here.stable:
        raise NotAllowed(f"{here.model} v{order.version} is stable already: there is nothing to retry; deliver another version")
    if here.delivery and not here.delivery.ended and here.delivery.version == order.version:
        raise NotAllowed(f"{here.sentence}: retry makes no sense there; {_possible(here)}")


def _possible(here: Situation) -> str:
    if here.allowed:
        return f"allowed: {', '.join(here.allowed)}"
    if here.where == IDLE:
        return "allowed: retry (no earlier version is loaded, so there is nothing to undo)"
    return "allowed: nothing, it is being taken back"


def _where(traffic: ModelTraffic, lease: Lease | None, delivery: Delivery | None) -> str:
    if delivery is None or delivery.ended:
        return IDLE
    if traffic.stable and traffic.stable.version == delivery.version:
        return BAKE
    if traffic.candidate is None or traffic.candidate.version != delivery.version:
        return GATES
    if lease is not None:
        return SPLIT
    return SHADOW if traffic.shadow_permille else LOADED


def _number(backend: Backend | None) -> int | None:
    return backend.version if backend else None


def _is_line(text: str, longest: int) -> bool:
    return bool(text.strip()) and len(text) <= longest and text.isprintable()


def _need(holds: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence: need this, or say why
    if not holds:
        raise ValueError(why)
