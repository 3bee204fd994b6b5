"""The sweep: what lost its event is found, and what needs no delivery is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import mlflow_address_fixture, model_fixture, register_any, registry_fixture, spec  # noqa: F401 - found by name

from delivery import registry_sweep
from delivery.registry import DELIVERY, OUTCOME, ModelVersion, Registry
from delivery.registry_sweep import MOST, sweep
from validation.contract import BadSpec, Outcome
from validation.policy import Trigger, section

TRIGGER = Trigger(on=("created", "tag", "alias"), marker="candidate")


def test_versions_without_a_delivery_are_found(registry: Registry, model: str) -> None:
    """Marked versions that no delivery has claimed are listed; a model that is not registered yet wants nothing."""
    register_any(registry, model, candidate="yes")
    register_any(registry, model, **{"candidate": "yes", DELIVERY: "d"})
    register_any(registry, model)
    register_any(registry, model, candidate="yes")
    decision = sweep({model: TRIGGER, "not-registered": TRIGGER}, registry)
    assert decision.outputs == {"wanted": [[model, 1], [model, 4]]}
    assert [each.outcome for each in decision.findings] == [Outcome.PASSED]


def test_one_sweep_offers_a_bounded_number() -> None:
    """A verdict is small: more than fifty wait for the next sweep; the longest registered come first, whatever their model is called."""

    class Full:
        def wanted(self, model: str, trigger: Trigger) -> list[ModelVersion]:
            first_s = {"a": 1000.0, "b": 0.0}[model]
            return [ModelVersion(model=model, number=n, run_id="r", tags={}, created_s=first_s + n) for n in range(1, 60)]

    decision = sweep({"a": TRIGGER, "b": TRIGGER}, Full())  # type: ignore[arg-type]
    assert decision.outputs["wanted"] == [["b", n] for n in range(1, MOST + 1)]
    assert decision.findings[0].observed == 118.0


@pytest.mark.parametrize("outcome", ["promoted", "refused", "rolled_back", "inconclusive", "superseded", "error"])
def test_a_version_with_an_outcome_is_never_offered(registry: Registry, model: str, outcome: str) -> None:
    """Verdicts are not rolled again: one that ended is left alone, even when nobody knows by which delivery."""
    register_any(registry, model, **{"candidate": "yes", OUTCOME: outcome})
    register_any(registry, model, **{"candidate": "yes", OUTCOME: outcome, DELIVERY: "d"})
    assert sweep({model: TRIGGER}, registry).outputs == {"wanted": []}


def test_the_task_reads_the_policies_from_its_spec(registry: Registry, model: str, tmp_path: Path) -> None:
    """Run as a task, with the triggers as they travel in a spec."""
    register_any(registry, model, candidate="yes")
    limits = {"policies": {model: section(TRIGGER)}}
    assert registry_sweep.run(spec("registry_sweep", "-", 0, tmp_path, limits=limits), tmp_path).outputs == {"wanted": [[model, 1]]}


@pytest.mark.parametrize(
    "limits", [{}, {"policies": []}, {"policies": {"m": {"on": ["created"]}}}, {"policies": {"m": {"on": ["x"], "marker": "c"}}}]
)
def test_policies_that_cannot_be_read_are_a_bad_spec(limits: dict[str, Any], tmp_path: Path, mlflow_address: str) -> None:
    """Missing or unknown words are never an empty sweep."""
    with pytest.raises(BadSpec, match=r"policies|trigger"):
        registry_sweep.run(spec("registry_sweep", "-", 0, tmp_path, limits=limits), tmp_path)
