"""Finds registered versions that want a delivery and have none, so that no lost event loses a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from operators.task import TaskOperator
from validation.contract import Spec
from validation.policy import Policy, section


class RegistrySweep(TaskOperator):
    """Puts out one keyword dictionary for `TriggerDagRunOperator` for each version found."""

    noun = "registry_sweep"
    follows_claim = False

    def __init__(self, *, policies: Mapping[str, Policy], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.policies = policies

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {"policies": {name: section(policy.trigger) for name, policy in self.policies.items()}}

    def spec(self, context: Mapping[str, Any]) -> Spec:
        """Its evidence has one place, written over each minute."""
        spec = super().spec(context)
        return replace(spec, evidence_uri=f"{spec.evidence_uri.rsplit('/', 2)[0]}/{self.noun}")

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {}

    def execute(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [offer(model, version) for model, version in super().execute(context)["wanted"]]


def offer(model: str, version: int) -> dict[str, Any]:
    """The delivery of one version: its DAG, its form and its one run id, by which the database makes it happen once."""
    return {
        "trigger_dag_id": f"deliver_{model}",
        "trigger_run_id": f"deliver__{model}__v{version}",
        "conf": {"version": version},
    }
