"""The task `steer`: gives the director a person's order that was filled in at the Airflow UI. Whether it makes sense, the director says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from delivery.director_client import Director, Refused
from delivery.findings import failed, passed
from delivery.orders import RETRY, UNDO
from delivery.registry import Registry
from delivery.undo import follow
from validation.contract import BadSpec, Decision, Spec


def run(spec: Spec, evidence: Path) -> Decision:
    """Finding `ordered`; `failed` with what is allowed instead when the director refuses. Raises `DirectorUnreachable`."""
    del evidence
    return steer(spec, Director.from_env())


def steer(spec: Spec, director: Director) -> Decision:
    """Inputs: action, who, why, order (its id); for an undo that leads further than to the previous version also `to`. Version 0 is the one
    that the order can be about. After an undo the registry follows.

    Outputs of a retry: `retry`, the version whose delivery the DAG begins.
    """
    try:
        action, who, why, order_id = (str(spec.inputs[name]) for name in ("action", "who", "why", "order"))
    except KeyError as error:
        raise BadSpec(f"steer needs inputs.{error.args[0]}") from error
    to = _to(spec)
    try:
        if action == UNDO and to:
            _stand_alone(spec.model, to, director)
        seen = director.order(spec.model, order_id=order_id, action=action, who=who, why=why, version=spec.version or None, to=to)
    except Refused as error:
        return Decision(findings=(failed("ordered", str(error)),))
    followed = follow(spec.model, Registry.from_env(), director) if action == UNDO else ""
    outputs = {"retry": next(each.version for each in seen.orders if each.id == order_id)} if action == RETRY else {}
    return Decision(findings=(passed("ordered", f"{action} by {who}: {why}; {seen.sentence}; {followed}".rstrip("; ")),), outputs=outputs)


def _to(spec: Spec) -> int | None:
    to: Any = spec.inputs.get("to")
    if to is not None and (type(to) is not int or to < 1):
        raise BadSpec(f"inputs.to is {to!r}; expected a version, which counts from 1")
    return to


def _stand_alone(model: str, version: int, director: Director) -> None:
    """A version that shares the archive's server gets one of its own first; only local servers are shared."""
    if any(each.version == version and not each.alone for each in director.model(model).archived):
        from delivery.archive import local_archive, stand_alone  # imports a Triton client, which no other order needs

        stand_alone(model, version, director, local_archive(Path(os.environ["PENSTOCK_STATE"])))
