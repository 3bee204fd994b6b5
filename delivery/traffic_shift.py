"""The task `traffic_shift`: gives the candidate one step's share, and verifies that the gateway obeys. Judges nothing."""

from __future__ import annotations

import time
from pathlib import Path

from delivery.director_client import Director
from delivery.findings import failed, passed
from delivery.orders import wanted
from delivery.registry import Registry
from delivery.rollout import limit, not_superseded
from validation.contract import Decision, Finding, Outcome, Spec
from validation.policy import Rollout, Step, Trigger


def run(spec: Spec, evidence: Path) -> Decision:
    """Puts the split under the delivery's name; raises (and is retried) when the gateway does not confirm it.

    While a person has paused the delivery no share grows: the step's watch, which can wait, sets it when the pause is over.
    """
    del evidence
    step, rollout, trigger = limit(spec, "step", Step), limit(spec, "rollout", Rollout), limit(spec, "trigger", Trigger)
    superseded = _superseded(spec, rollout, trigger)
    if superseded and superseded.outcome is not Outcome.PASSED:
        return Decision(findings=(superseded,))
    director, shifted_unix_s = Director.from_env(), time.time()
    ordered = wanted(director.orders(spec.model).of(spec.delivery))
    if ordered.aborted is not None:
        return Decision(findings=(failed("not_aborted", f"aborted by {ordered.aborted.said}"),))
    if ordered.paused is not None:
        return Decision(findings=(passed("not_shifted", f"paused by {ordered.paused.said}: the watch shifts when it is resumed"),))
    director.put_split(spec.model, spec.delivery, step.permille, rollout.lease_seconds)
    split = director.model(spec.model).split
    found = _in_force(split.permille if split and split.holder == spec.delivery else None, step.permille)
    return Decision(findings=(found,), outputs={"shifted_unix_s": shifted_unix_s})


def _superseded(spec: Spec, rollout: Rollout, trigger: Trigger) -> Finding | None:
    if rollout.newer != "supersedes":
        return None
    return not_superseded(spec, Registry.from_env().newer_wanted(spec.model, spec.version, trigger))


def _in_force(observed: int | None, wanted: int) -> Finding:
    holds = observed == wanted
    return Finding(
        name="split_permille",
        outcome=Outcome.PASSED if holds else Outcome.FAILED,
        why=f"the gateway confirmed {wanted} per mille" if holds else f"the split reads {observed} per mille instead of {wanted}",
        observed=None if observed is None else float(observed),
        limit=float(wanted),
    )
