"""`python -m delivery`: runs the delivery task that the spec in `TASK_SPEC` names. Started by a runtime, never imported."""

from __future__ import annotations

import sys

from validation.contract import run_task

TASKS = (
    "claim",
    "export",
    "package",
    "container_check",
    "start_candidate",
    "shadow",
    "traffic_shift",
    "rollback_sensor",
    "promote",
    "bake",
    "restore",
    "registry_sweep",
    "retrain",
    "steer",
)
MODULES = {task: f"delivery.{task}" for task in TASKS}

if __name__ == "__main__":
    sys.exit(run_task(MODULES))
