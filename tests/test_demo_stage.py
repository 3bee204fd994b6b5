"""The demo's surroundings: state of its own, made anew, and programs whose failure is told with their last words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from demo.stage import DemoFailed, Program, Stage
from demo.traffic import read_switch


def stage_in(folder: Path) -> Stage:
    (folder / "envs" / "stack").mkdir(parents=True)
    return Stage({"PENSTOCK_STATE": str(folder)})


def test_the_demo_has_a_state_of_its_own_and_shares_the_environments(tmp_path: Path) -> None:
    """Data of the usual stack are never touched; the virtual environments are linked, not made again."""
    stage = stage_in(tmp_path)
    stage.fresh()
    assert stage.state == tmp_path / "demo"
    assert (stage.state / "envs").resolve() == tmp_path / "envs"
    assert stage.logs.is_dir()


def test_a_demo_begins_without_an_earlier_ones_data(tmp_path: Path) -> None:
    """What an earlier demo left is deleted; what its links lead to stays."""
    stage = stage_in(tmp_path)
    stage.fresh()
    stage.rows.write_text("old")
    stage.use_new_scanner(200)
    stage.fresh()
    assert not stage.rows.exists()
    assert not stage.switch.exists()
    assert (tmp_path / "envs" / "stack").is_dir()


def test_the_switch_is_written_as_the_client_reads_it(tmp_path: Path) -> None:
    """What the driver switches on, the client finds."""
    stage = stage_in(tmp_path)
    stage.fresh()
    stage.use_new_scanner(200)
    assert read_switch(stage.switch) == 200


def program(stage: Stage, code: str) -> Program:
    return stage._start("trial", [sys.executable, "-c", code], {})


def test_a_program_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    """A failed program ends the demo with its name, its status and the last line of what it said."""
    stage = stage_in(tmp_path)
    stage.fresh()
    with pytest.raises(DemoFailed, match="trial ended with status 1: no registry"):
        program(stage, "raise SystemExit('no registry')").finish(30)


def test_stopping_ends_every_program(tmp_path: Path) -> None:
    """Nothing that the demo started is left when it ends; stopping twice is fine."""
    stage = stage_in(tmp_path)
    stage.fresh()
    running = program(stage, "import time; time.sleep(600)")
    stage.stop_programs()
    stage.stop_programs()
    assert running.process.poll() is not None
