"""The task `registry_sweep`: finds versions that want a delivery and have none, because MLflow drops an event after seconds of trouble.

Runs every minute for all policies at once. It starts nothing: the DAG offers what it finds to Airflow, whose run ids make the same version
twice one delivery.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delivery.findings import passed
from delivery.registry import Registry
from validation.contract import BadSpec, Decision, Spec
from validation.policy import BadPolicy, Trigger, parse

MOST = 50  # per sweep: more would not fit a verdict, and the next sweep finds the rest


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    return sweep(_triggers(spec), Registry.from_env())


def sweep(triggers: Mapping[str, Trigger], registry: Registry) -> Decision:
    """Model and version of each, the longest registered first; a policy whose model is not registered yet wants nothing."""
    found = [each for model, trigger in triggers.items() for each in registry.wanted(model, trigger)]
    waiting = sorted(found, key=lambda each: (each.created_s, each.model, each.number))
    why = f"{len(waiting)} versions want a delivery and have none, in {len(triggers)} policies"
    wanted = [[each.model, each.number] for each in waiting[:MOST]]
    return Decision(findings=(passed("versions_waiting", why, observed=float(len(waiting))),), outputs={"wanted": wanted})


def _triggers(spec: Spec) -> dict[str, Trigger]:
    policies: Any = spec.limits.get("policies")
    if not isinstance(policies, Mapping):
        raise BadSpec("registry_sweep needs limits.policies, an object of trigger sections by model")
    try:
        return {model: parse(Trigger, row, f"policies.{model}") for model, row in policies.items()}
    except BadPolicy as error:
        raise BadSpec(str(error)) from error
