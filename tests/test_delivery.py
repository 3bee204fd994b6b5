"""The entry `python -m delivery`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from delivery.__main__ import MODULES
from validation.contract import EXIT_BAD_SPEC, Spec, run_task


@pytest.mark.parametrize("task", sorted(MODULES))
def test_every_task_has_a_module(task: str) -> None:
    """A task that a DAG can name is a module with `run`."""
    assert callable(importlib.import_module(MODULES[task]).run)


def test_an_unknown_task_is_a_bad_spec(tmp_path: Path) -> None:
    """The exit code tells the operator not to retry."""
    spec = Spec(task="nothing", model="m", version=1, delivery="d", evidence_uri=tmp_path.as_uri())
    assert run_task(MODULES, {"TASK_SPEC": spec.to_json(), "TASK_OUT": str(tmp_path)}) == EXIT_BAD_SPEC
