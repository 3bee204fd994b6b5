"""Parts are hit at different stages of one delivery under traffic; `make chaos` hits each at every stage, killed and frozen.

The scheduler is hit in `test_kills`, the api-server in `test_bad_input`: a stage is too short for a third blow, and a task is tried three
times.
"""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGKILL, SIGSTOP

import pytest

from bench.chaos import ENDS, PARTS, Blow, Chaos, Struck, quick_policy
from bench.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]
BLOWS = (
    Blow("gates", "task", SIGKILL),
    Blow("gates", "mlflow", SIGKILL),
    Blow("shadow", "recorder", SIGSTOP),
    Blow("shadow", "stable", SIGKILL),
    Blow("first step", "director", SIGSTOP),
    Blow("first step", "triggerer", SIGSTOP),
    Blow("half", "envoy", SIGKILL),
    Blow("half", "candidate", SIGKILL),
)


@pytest.fixture(scope="module")
def struck(world: World) -> Iterator[list[Struck]]:
    """What came of each blow; the policy is the demo's with a step less meanwhile."""
    chaos = Chaos(world)
    with world.policy_is(quick_policy(world.policy())):
        chaos.deliver(BLOWS)
        yield chaos.struck


def test_every_blow_is_struck(struck: list[Struck]) -> None:
    """A delivery that never came to a stage would prove nothing."""
    assert [each.blow for each in struck] == list(BLOWS)
    assert {each.blow.part for each in struck} == set(PARTS) - {"scheduler", "api-server"}


def test_nothing_that_dies_breaks_a_promise(struck: list[Struck]) -> None:
    """No error for users but at a dead gateway, no share above the acknowledged one, back or taken up within the lease, a defined end."""
    assert [f"{each.blow}: {fault}" for each in struck for fault in each.faults] == []
    assert {each.outcome for each in struck} <= ENDS


def test_a_candidate_that_dies_is_taken_back(struck: list[Struck]) -> None:
    """With half of the traffic on it."""
    assert [each.outcome for each in struck if each.blow.part == "candidate"] == ["rolled_back"]
