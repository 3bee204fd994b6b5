"""The task `rollback_sensor`: watches one step's share and takes the candidate back the moment that it is surely bad."""

from __future__ import annotations

from pathlib import Path

from delivery.director_client import Director
from delivery.orders import place
from delivery.rollout import Plan, Split, limit, watch
from validation.contract import BadSpec, Decision, Spec
from validation.policy import Rollout, Step, Trigger


def run(spec: Spec, evidence: Path) -> Decision:
    """Returns when the step is decided; the split stays in force only if the verdict is `passed`."""
    if spec.stable is None:
        raise BadSpec("rollback_sensor needs a stable version to compare with")
    step, rollout, trigger = limit(spec, "step", Step), limit(spec, "rollout", Rollout), limit(spec, "trigger", Trigger)
    split = Split(spec=spec, step=step, rollout=rollout, director=Director.from_env())
    plan = Plan(
        min_seconds=step.min_seconds,
        max_seconds=step.max_seconds,
        rollout=rollout,
        trigger=trigger,
        at=place(step.permille),
        approval=step.approval,
    )
    return watch(spec, evidence, split, plan)
