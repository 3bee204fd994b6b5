"""The task `steer`: gives the director a person's order that was filled in at the Airflow UI. Whether it makes sense, the director says."""

from __future__ import annotations

from pathlib import Path

from delivery.director_client import Director, Refused
from delivery.findings import failed, passed
from delivery.orders import UNDO
from delivery.registry import Registry
from delivery.undo import follow
from validation.contract import BadSpec, Decision, Spec


def run(spec: Spec, evidence: Path) -> Decision:
    """Finding `ordered`; `failed` with what is allowed instead when the director refuses. Raises `DirectorUnreachable`."""
    del evidence
    return steer(spec, Director.from_env())


def steer(spec: Spec, director: Director) -> Decision:
    """Inputs: action, who, why, order (its id). Version 0 is the one that the order can be about. After an undo the registry follows."""
    try:
        action, who, why, order_id = (str(spec.inputs[name]) for name in ("action", "who", "why", "order"))
    except KeyError as error:
        raise BadSpec(f"steer needs inputs.{error.args[0]}") from error
    try:
        seen = director.order(spec.model, order_id=order_id, action=action, who=who, why=why, version=spec.version or None)
    except Refused as error:
        return Decision(findings=(failed("ordered", str(error)),))
    followed = follow(spec.model, Registry.from_env(), director) if action == UNDO else ""
    return Decision(findings=(passed("ordered", f"{action} by {who}: {why}; {seen.sentence}; {followed}".rstrip("; ")),))
