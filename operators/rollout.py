"""What the operators of a rollout share: when they have nothing to do, and what they are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from operators.task import TaskOperator, verdicts
from validation.policy import Step, parts, section


class RolloutOperator(TaskOperator):
    """A task that touches servers or traffic: not in a dry run, only in its strategies, mostly only beside a stable version."""

    connections: ClassVar[tuple[str, ...]] = ("mlflow", "director")
    needs_stable: ClassVar[bool] = True
    strategies: ClassVar[tuple[str, ...]] = ("canary", "blue_green")

    def skip_reason(self, context: Mapping[str, Any]) -> str | None:
        params = context["params"]
        if params.get("dry_run"):
            return "a dry run ends after the gates"
        if not set(parts(params["strategy"])) & set(self.strategies):
            return f"not part of the strategy {params['strategy']}"
        if self.needs_stable and self.inputs(context)["stable_version"] == 0:
            return "nothing is stable yet: there is no traffic to share"
        return None

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        del context
        return {"rollout": section(self.policy.rollout), "trigger": section(self.policy.trigger)}


class StepOperator(RolloutOperator):
    """A task that belongs to one step of the rollout; its task id carries the share in per mille."""

    def __init__(self, *, step: Step, **kwargs: Any) -> None:
        super().__init__(task_id=f"{self.noun}_{step.permille}", **kwargs)
        self.step = step

    def skip_reason(self, context: Mapping[str, Any]) -> str | None:
        if "blue_green" in parts(context["params"]["strategy"]) and self.step.permille < 1000:
            return "blue_green shifts all traffic at once"
        return super().skip_reason(context)

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().limits(context), "step": section(self.step)}


def delivery_verdicts(dag: Any, context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Task, outcome, reason and baselines of each task of this run that ended; a task that failed without a verdict has outcome `error`."""
    names = tuple(task.task_id for task in dag.topological_sort() if not task.is_teardown)
    told = {row["task"]: row for row in verdicts(context, names)}
    states = context["ti"].get_task_states(dag_id=dag.dag_id, run_ids=[context["run_id"]]).get(context["run_id"], {})
    rows = [_row(name, told.get(name), states.get(name)) for name in names]
    return [row for row in rows if row]


def _row(task_id: str, verdict: Mapping[str, Any] | None, state: str | None) -> dict[str, Any] | None:
    """A verdict counts only of a task that ended: one of an earlier attempt, before the run was cleared, says nothing of this one."""
    if verdict and state in ("success", "failed"):
        baselines = verdict["outputs"].get("baselines", {})
        return {"task": task_id, "outcome": verdict["outcome"], "why": verdict["why"][:500], "baselines": baselines}
    if state == "failed":
        return {"task": task_id, "outcome": "error", "why": f"{task_id} ended without a verdict on every try; its log says why"}
    return None
