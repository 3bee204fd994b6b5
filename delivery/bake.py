"""The task `bake`: the judge goes on for a while after the promotion, and leads back to the version before if the new one turns out bad.

Follows `promote` where the policy has `bake_seconds`. The evidence of the rollout's steps goes on, so what was seen after the promotion is
judged within the same budget of false alarms. There is no lease any more: the version is stable, and stays so unless it is surely bad or a
person orders an undo; a watch that dies or sees too little takes nothing back. The undo itself is an order to the director, in the name of
`penstock`: the version before is still loaded, so it is one change of the routes. Then the registry's aliases follow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from delivery.director_client import Director
from delivery.orders import BAKE, UNDO
from delivery.registry import Registry
from delivery.rollout import JUDGED, Plan, Split, limit, watch
from delivery.undo import follow
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.findings import inconclusive, passed
from validation.policy import Rollout, Trigger

JUDGE = "penstock"  # who orders the undo when nobody else did


def run(spec: Spec, evidence: Path) -> Decision:
    """Returns when the bake is over. With a `failed` verdict the version before is stable again, in the gateway and in the registry.

    Raises `DirectorUnreachable` and what the registry raises; tried again, it finds what was done and does the rest.
    """
    return bake(spec, evidence, Director.from_env(), Registry.from_env())


def bake(spec: Spec, evidence: Path, director: Director, registry: Registry) -> Decision:
    if spec.stable is None:
        raise BadSpec("bake needs the version that was stable before: without one there is nothing to go back to")
    rollout, trigger = limit(spec, "rollout", Rollout), limit(spec, "trigger", Trigger)
    settled = replace(rollout, newer="waits")  # a version that is promoted already is superseded by a delivery of its own
    times = {"min_seconds": rollout.bake_seconds, "max_seconds": rollout.bake_seconds}
    baked = Baked(spec=spec, step=replace(rollout.steps[-1], min_requests=0), rollout=rollout, director=director)
    decision = watch(spec, evidence, baked, Plan(**times, rollout=settled, trigger=trigger, at=BAKE))
    if worst(each.outcome for each in decision.findings) is not Outcome.FAILED:
        return decision
    baked.undo(decision.findings)
    return replace(decision, findings=(*decision.findings, passed("registry", follow(spec.model, registry, director))))


@dataclass(kw_only=True)
class Baked(Split):
    """The new stable version with all of the traffic and no lease, judged by its own requests and by those of the steps before."""

    def end(self) -> None:
        """Called when the watch ends in anything but `passed`; only what is surely bad leads back."""
        self.undo(self.findings())

    def findings(self) -> tuple[Finding, ...]:
        """What is surely bad; else whether it was seen at work since its promotion. Its last step has shown the rest, once and for all."""
        bad = tuple(each for each in super().findings() if each.outcome is Outcome.FAILED)
        return bad or (self._at_work(),)

    def record(self, evidence: Path) -> None:
        """As of a step, and that what is not failed was no finding: a replay knows it by that."""
        super().record(evidence)
        row = json.loads((evidence / JUDGED).read_bytes())
        (evidence / JUDGED).write_text(json.dumps(row | {"bake": True}, indent=1))

    def outputs(self) -> dict[str, Any]:
        return {name: value for name, value in super().outputs().items() if name != "permille"}

    def undo(self, findings: Iterable[Finding]) -> None:
        """Ordered once, whoever asks and however often; where another undo came first there is nothing to do."""
        bad = next((each for each in findings if each.outcome is Outcome.FAILED), None)
        stable = self.director.model(self.spec.model).stable
        if bad is None or stable is None or stable.version != self.spec.version:
            return
        order = hashlib.sha256(f"{self.spec.delivery} {UNDO}".encode()).hexdigest()[:16]
        why = f"{bad.name}: {bad.why}"[:300]
        self.director.order(self.spec.model, order_id=order, action=UNDO, who=JUDGE, why=why, version=self.spec.version)

    def _put(self) -> None:
        """Nothing to set: all traffic is its own."""

    def _renew(self) -> None:
        """Nothing to renew: there is no lease."""

    def _at_work(self) -> Finding:
        n, seconds = len(self.log.of(self.spec.version)) - self.before, self.rollout.bake_seconds
        if n:
            return passed("baked", f"{n} requests since the last step, and nothing is surely worse than the policy allows", n=n)
        return inconclusive("baked", f"no request reached it in {seconds:g} s of bake", "send traffic, or a longer bake_seconds", n=0)
