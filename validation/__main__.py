"""`python -m validation`: runs the gate that the spec in `TASK_SPEC` names. Started by a runtime, never imported."""

from __future__ import annotations

import sys

from validation.contract import run_task

GATES = ("golden_set", "distribution", "tune_serving", "latency_benchmark", "integration")
MODULES = {gate: f"validation.{gate}" for gate in GATES}

if __name__ == "__main__":
    sys.exit(run_task(MODULES))
