"""The kill matrix: which blows there are, in which deliveries, and what counts as a broken promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from signal import SIGKILL, SIGSTOP
from typing import Any

import pytest
from airflow_home import ROOT

from bench.chaos import PARTS, STAGES, Blow, Struck, every_blow, figures, matrix, quick_policy, rounds
from bench.sentry import Look, exceeded, served_beyond, settled_after
from validation.policy import read_policy


def look(unix_s: float, acknowledged: int | None, in_force: int | None, until_s: float | None = None) -> Look:
    return Look(unix_s=unix_s, acknowledged=acknowledged, in_force=in_force, until_s=until_s)


def line(second: int, **by_version: int) -> dict[str, Any]:
    return {"second": second, "span_s": 1.0, "by_version": {name.removeprefix("v"): count for name, count in by_version.items()}}


def test_every_part_is_hit_at_every_stage_in_both_ways() -> None:
    """A hundred blows, none twice."""
    blows = every_blow()
    assert len(blows) == len(set(blows)) == len(PARTS) * len(STAGES) * 2 == 100


def test_the_deliveries_give_each_blow_once_and_in_order() -> None:
    """What comes later in a delivery comes later in its list; a candidate that is hit before its promotion is hit alone."""
    given = list(rounds(every_blow()))
    assert sorted(blow for blows in given for blow in blows) == sorted(every_blow())
    for blows in given:
        places = [STAGES.index(each.stage) for each in blows]
        assert all(one <= other for one, other in pairwise(places))
        ends = [each for each in blows if each.part == "candidate" and each.stage != "promoted"]
        assert not ends or blows == ends


def test_the_shorter_policy_is_the_demos_without_a_step(tmp_path: Any) -> None:
    """It can be read, and what is left of it is as it was, but for the time that two blows take."""
    text = (ROOT / "dags" / "policies" / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(quick_policy(text))
    before, after = read_policy(ROOT / "dags" / "policies" / "digits.toml"), read_policy(tmp_path / "digits.toml")
    kept = [each for each in before.rollout.steps if each.permille != 100]
    longer = [replace(each, min_seconds=20.0) if each.permille in {10, 500} else each for each in kept]
    assert (after.shadow.min_seconds, after.rollout.steps) == (20.0, tuple(longer))


@pytest.mark.parametrize(
    ("looks", "broken"),
    [
        ([look(1, 0, 0), look(2, 10, 10), look(3, None, 10), look(4, 0, 0)], False),
        ([look(1, 0, 10), look(2, 10, 10)], False),
        ([look(1, 10, 500), look(1.1, 500, None), look(2, None, 500)], False),
        ([look(1, 0, 10), look(2, 0, 10)], True),
        ([look(1, 10, 10), look(2, 10, 500), look(3, 10, 0)], True),
        ([look(1, 500, 500), look(2, 0, 500), look(7, 0, 500), look(7.5, 0, 0)], False),
        ([look(1, 500, 500), look(2, 0, 500), look(9, 0, 500)], True),
        ([look(1, 500, 500), *(look(each, None, 500) for each in range(2, 20))], False),
        ([], False),
    ],
)
def test_more_in_force_than_was_acknowledged_is_seen(looks: list[Look], broken: bool) -> None:  # noqa: FBT001 - a column of the table
    """A share may be in force a moment before the director says so, and no longer."""
    assert bool(exceeded(looks)) is broken


@pytest.mark.parametrize(
    ("looks", "settled_s"),
    [
        ([look(9, 10, 10, 18.9), look(11, 10, 10, 18.9), look(12, 10, 10, 19.1)], None),
        ([look(9, 10, 10, 18.9), look(11, 10, 10, 18.9), look(12, 10, 10, 21.9)], 2),
        ([look(9, 10, 10, 18.9), look(11, None, 10), look(14, None, None), look(15, None, 0)], 5),
        ([look(9, 10, 10, 18.9), look(12, 10, 0, 21.9)], 2),
        ([look(9, 10, 10, 18.9), look(12, 10, 500, 21.9)], None),
        ([look(9, 0, 0), look(10.2, 0, 0)], 0.2),
        ([look(9, 10, 10, 18.9)], None),
    ],
)
def test_a_share_is_settled_when_it_is_gone_or_held_anew(looks: list[Look], settled_s: float | None) -> None:
    """A lease that only has not ended yet says nothing of who renews it; nor does a weight that the director does not hold."""
    assert settled_after(looks, 10) == (None if settled_s is None else pytest.approx(settled_s))


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        ([line(10, v1=100)], False),
        ([line(10, v1=99, v2=1)], True),
        ([line(20, v1=90, v2=10)], False),
        ([line(20, v1=50, v2=50)], True),
        ([line(40, v1=50, v2=50)], False),
    ],
)
def test_a_version_that_answers_more_than_its_share_is_seen(lines: list[dict[str, Any]], broken: bool) -> None:  # noqa: FBT001
    """None before the first share, and no more than chance allows of the greatest until then."""
    looks = [look(5, 0, 0), look(20, 100, 100), look(25, 0, 0), look(30, 500, 500)]
    assert bool(served_beyond(lines, 2, looks)) is broken


def test_figures_count_what_was_broken() -> None:
    """Kills, errors that nobody excuses, and blows after which a promise was not kept; the matrix marks them."""
    struck = [
        Struck(blow=Blow("gates", "director", SIGKILL), version=2, settled_s=0.2, outcome="promoted"),
        Struck(blow=Blow("half", "envoy", SIGSTOP), version=3, excused=9, settled_s=0.4, outcome="promoted"),
        Struck(blow=Blow("half", "task", SIGSTOP), version=4, errors=2, outcome="", faults=["2 client errors"]),
    ]
    values = {each.name: each.value for each in figures(struck, 2, 1.0)}
    assert values == {"chaos_kills": 3, "chaos_minutes": 1.0, "chaos_client_errors": 2, "chaos_undefined": 1}
    drawn = matrix(struck)
    assert "| director | SIGKILL | promoted 0.2 s | - |" in drawn
    assert "9 excused" in drawn
    assert drawn.count("**broken**") == 1
