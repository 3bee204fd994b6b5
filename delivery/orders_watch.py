"""How a watch obeys what people ordered of its delivery: it asks the director each second and changes time and findings accordingly.

`delivery.rollout.watch` has one `Steering` for each watch; tasks that only act ask `not_aborted` before they do. A person can end a wait,
hold it, or end the delivery. Nobody can order away a finding that is `failed`: what is surely bad is taken back, paused or not.

| order         | what the watch makes of it                                                                                       |
|---------------|------------------------------------------------------------------------------------------------------------------|
| pause         | the share stays and is judged, time stands still, nothing passes; after the longest pause it is taken back        |
| promote_now   | this step is over: what is not shown yet is set aside and named, in the verdict and in the evidence               |
| promote_fully | the same, for this step and all that follow                                                                       |
| approve       | a step that asks for it passes                                                                                    |
| abort, undo   | failed, with who and why                                                                                          |
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from delivery.director_client import DirectorUnreachable, OrdersView
from delivery.orders import Order, Wanted, wanted
from validation.contract import Finding, Outcome, Spec

LOOK_S = 1.0
WHY_SHORT = 300  # characters of what was set aside; a finding's reason is a sentence


class Orders(Protocol):
    """What is asked of the director."""

    def orders(self, model: str) -> OrdersView: ...


@dataclass(kw_only=True)
class Steering:
    """What people want of one watch. `at` is its place in the rollout, `approval` whether it waits for a person, times in seconds."""

    spec: Spec
    director: Orders
    at: str
    approval: bool
    pause_max_s: float
    min_s: float
    now_s: Callable[[], float] = time.monotonic
    looked_s: float = float("-inf")
    ticked_s: float | None = None
    elapsed_s: float = 0.0
    held_s: float = 0.0
    given: tuple[Order, ...] = ()
    set_aside: tuple[Finding, ...] = ()
    shown: bool = False

    def look(self, *, now: bool = False) -> None:
        """Asks for the orders, once a second. A director that does not answer leaves those that are known."""
        if not now and self.now_s() - self.looked_s < LOOK_S:
            return
        self.looked_s = self.now_s()
        try:
            self.given = self.director.orders(self.spec.model).of(self.spec.delivery)
        except DirectorUnreachable as error:
            print(f"people's orders could not be asked for: {error}")

    def tick(self, judged: Iterable[Finding]) -> None:
        """Time goes on, or stands still while a person holds the step."""
        self.shown = all(each.outcome is Outcome.PASSED for each in judged)
        passed_s = 0.0 if self.ticked_s is None else self.now_s() - self.ticked_s
        self.ticked_s = self.now_s()
        if self.held:
            self.held_s += passed_s
        else:
            self.elapsed_s += passed_s

    def applied(self, judged: Iterable[Finding]) -> tuple[Finding, ...]:
        """The watch's findings with those of the orders; what a person's promotion overrules is set aside and named in its finding."""
        found = tuple(judged)
        promoted = self._promoted(found)
        self.set_aside = tuple(each for each in found if each.outcome is Outcome.INCONCLUSIVE) if promoted else ()
        kept = tuple(each for each in found if each not in self.set_aside)
        return (*kept, *self._ended(), *self._held(), *((self._by_hand(promoted),) if promoted else ()), *self._approved())

    def over(self, findings: Iterable[Finding]) -> bool:
        """Whether a person ended the step, or held it for too long."""
        found = tuple(findings)
        return self.held_s >= self.pause_max_s or self._promoted(found) is not None

    @property
    def wanted(self) -> Wanted:
        return wanted(self.given)

    @property
    def held(self) -> bool:
        """Paused; or all is shown and only the approval is missing."""
        return self.wanted.paused is not None or (self._waits and self.shown and self.elapsed_s >= self.min_s)

    def record(self, evidence: Path) -> None:
        """Writes the orders that the verdict follows, and what one of them set aside."""
        if self.given:
            row = {
                "orders": [dataclasses.asdict(each) for each in self.given],
                "set_aside": [each.to_dict() for each in self.set_aside],
                "held_s": round(self.held_s, 3),
            }
            (evidence / "orders.json").write_text(json.dumps(row, indent=1))

    @property
    def _waits(self) -> bool:
        return self.approval and self.wanted.approved(self.at) is None

    def _promoted(self, findings: Iterable[Finding]) -> Order | None:
        order = None if self.wanted.paused or self.wanted.aborted or self.wanted.undone else self.wanted.promoted(self.at)
        return order if all(each.outcome is not Outcome.FAILED for each in findings) else None

    def _by_hand(self, order: Order) -> Finding:
        missing = ", ".join(each.name for each in self.set_aside) or "nothing"
        why = f"{order.action} by {order.said}; not shown until then: {missing}"
        return Finding(name="promoted_by_hand", outcome=Outcome.PASSED, why=why[:WHY_SHORT])

    def _ended(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(name=name, outcome=Outcome.FAILED, why=f"{word} by {order.said}")
            for name, word, order in (("not_aborted", "aborted", self.wanted.aborted), ("not_undone", "undone", self.wanted.undone))
            if order is not None
        )

    def _held(self) -> tuple[Finding, ...]:
        if (order := self.wanted.paused) is None:
            return ()
        why = f"paused by {order.said}; held for {self.held_s:.0f} s of at most {self.pause_max_s:g}"
        return (Finding(name="not_paused", outcome=Outcome.INCONCLUSIVE, why=why, advice=f"penstock resume {self.spec.model}"),)

    def _approved(self) -> tuple[Finding, ...]:
        if not self.approval:
            return ()
        if (order := self.wanted.approved(self.at)) is not None:
            return (Finding(name="approved", outcome=Outcome.PASSED, why=f"{order.action} by {order.said}"),)
        why = f"the policy wants a person's approval at {self.at}; waited for {self.held_s:.0f} s of at most {self.pause_max_s:g}"
        return (Finding(name="approved", outcome=Outcome.INCONCLUSIVE, why=why, advice=f"penstock approve {self.spec.model}"),)


def not_aborted(spec: Spec, director: Orders) -> Finding | None:
    """The failed finding of a delivery that a person aborted; None of any other. Raises `DirectorUnreachable`."""
    order = wanted(director.orders(spec.model).of(spec.delivery)).aborted
    return None if order is None else Finding(name="not_aborted", outcome=Outcome.FAILED, why=f"aborted by {order.said}")
