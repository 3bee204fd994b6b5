"""`kill -9` of each part of the stack: supervisord or `up` brings it back on the same data, and stable serves on."""

from __future__ import annotations

import pytest

from bench.world import MODEL, World
from delivery.triton import server_name

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
UNSEEN = ("postgres", "mlflow", "scheduler", "triggerer", "dag-processor", "director")
"""Parts behind the traffic: the client, which goes on meanwhile, must meet no error."""


@pytest.mark.parametrize("part", UNSEEN)
def test_a_part_behind_the_traffic_comes_back_unseen(world: World, part: str) -> None:
    """After SIGKILL `up` ends well, with another process in its place; users saw nothing."""
    stable, before = world.share().stable, world.pid(part)
    world.kill_pid(before)
    world.stage.up()
    assert world.pid(part) != before
    assert world.registry.alias(MODEL, "production") == stable
    assert world.share().stable == stable


@pytest.mark.parametrize("part", ["envoy", "stable", "supervisord"])
def test_a_part_that_carries_the_traffic_comes_back_with_stable(world: World, part: str) -> None:
    """Gateway, stable's own server, and the supervisor with all that it ran: `up` ends well and stable answers as before."""
    stable = world.share().stable
    program = server_name(MODEL, stable) if part == "stable" else part
    with world.client_away():
        before = world.pid(program)
        world.kill_pid(before)
        world.stage.up()
        assert world.pid(program) != before
    world.until_answered_by(stable, 20)
    assert world.share().stable == stable


@pytest.mark.full
def test_all_at_once_is_no_different(world: World) -> None:
    """SIGKILL of every process of the stack, as a machine that lost its power: `up` ends well and stable answers."""
    stable = world.share().stable
    with world.client_away():
        world.kill_everything()
        world.stage.up()
    world.until_answered_by(stable, 20)
    assert world.registry.alias(MODEL, "production") == world.share().stable == stable
