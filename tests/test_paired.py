"""Two versions' answers to the same request: how they are held against each other, and what many such pairs show."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from airflow_home import ROOT
from fakes import pair
from whole_findings import expected, in_full

from delivery.pairs import Asked, Pairs, Silence, compare
from validation.contract import Outcome
from validation.paired import paired_findings
from validation.policy import BadPolicy, read_policy

SHADOW = read_policy(ROOT / "dags" / "policies" / "digits.toml").shadow
LABELS, SCORES = np.array([1, 0]), np.array([[0.2, 0.8], [0.6, 0.4]], dtype=np.float32)
ANSWER = {"label": LABELS, "scores": SCORES}


def compared(stable: Any, candidate: Any, *, rows: int = 2, row: int = 0) -> Any:
    return compare(Asked(unix_s=1.0, stable=1, candidate=2, rows=rows, row=row), stable, candidate)


def test_equal_answers_agree() -> None:
    """The same answer flips nothing and differs by nothing."""
    found = compared(ANSWER, ANSWER)
    assert (found.state, found.flipped, found.difference, found.furthest) == ("compared", False, 0.0, 0.0)


@pytest.mark.parametrize(("row", "flipped"), [(0, True), (1, False)])
def test_only_the_row_that_is_looked_at_flips(row: int, flipped: bool) -> None:  # noqa: FBT001 - a column of the table
    """Rows of one request are no independent evidence: one of them counts."""
    assert compared(ANSWER, {**ANSWER, "label": np.array([2, 0])}, row=row).flipped is flipped


def test_the_place_of_the_greatest_score_is_a_label() -> None:
    """A model without a label flips where another score is the greatest, and the distance is told."""
    found = compared({"scores": SCORES}, {"scores": SCORES[:, ::-1]})
    assert (found.flipped, found.difference) == (True, pytest.approx(0.6))


def test_single_numbers_have_a_signed_difference_and_no_flip() -> None:
    """Whether a regression's answer is another depends on a tolerance that the pair does not know."""
    found = compared({"y": np.array([[2.0], [1.0]])}, {"y": np.array([[1.5], [1.0]])})
    assert (found.flipped, found.difference, found.mean) == (None, -0.5, -0.25)


@pytest.mark.parametrize(
    ("candidate", "state", "why"),
    [
        ({**ANSWER, "scores": SCORES * np.nan}, "unfinite", "'scores'"),
        ({**ANSWER, "scores": np.array([[np.inf, 0], [0, 1]], dtype=np.float32)}, "unfinite", "'scores'"),
        ({"label": LABELS}, "other_form", "'scores' is missing"),
        ({**ANSWER, "more": LABELS}, "other_form", "'more' is extra"),
        ({**ANSWER, "scores": SCORES.astype(np.float64)}, "other_form", "float64"),
        ({**ANSWER, "scores": SCORES[:, :1]}, "other_form", "[2, 1]"),
        (Silence(why="UNAVAILABLE"), "candidate_silent", "candidate: UNAVAILABLE"),
    ],
)
def test_what_cannot_be_compared_says_why(candidate: Any, state: str, why: str) -> None:
    """NaN, infinity, missing and extra outputs, other types and shapes and no answer at all are states of their own."""
    found = compared(ANSWER, candidate)
    assert (found.state, why in found.why) == (state, True)


def test_nan_of_both_is_stables_way() -> None:
    """Where stable has no number, the candidate need not have one."""
    unknown = {"y": np.array([[np.nan], [1.0]])}
    assert compared(unknown, unknown).state == "compared"


def test_old_pairs_leave_the_ring_and_the_gap_is_seen() -> None:
    """Numbers go on; the first row after a gap tells how many went."""
    pairs = Pairs(kept=3, per_answer=2)
    for _ in range(5):
        pairs.add("m", compared(ANSWER, ANSWER))
    first = pairs.after("m", 0)
    assert ([each["number"] for each in first["rows"]], first["last"]) == ([3, 4], 4)
    assert [each["number"] for each in pairs.after("m", 4)["rows"]] == [5]
    assert (pairs.after("m", 10**15)["last"], pairs.after("other", 0)["last"]) == (5, 0)


def judged(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Outcome]:
    findings = paired_findings(rows, replace(SHADOW, **changes), false_alarm=1e-3, miss=0.05)
    return {each.name: each.outcome for each in findings}


def test_numbers_need_a_tolerance() -> None:
    """Without one, answers that are single numbers never pass; with one they agree within it and disagree beyond it."""
    rows = [pair(flipped=None, difference=0.2) for _ in range(100)]
    found = [judged(rows, number_tolerance=each)["paired_disagreement"] for each in (None, 0.3, 0.1)]
    assert found == [Outcome.INCONCLUSIVE, Outcome.PASSED, Outcome.FAILED]


def test_scores_that_move_together_fail() -> None:
    """A shift of every score beyond the margin fails though no label flips; scores outside of -1 to 1 show nothing."""
    found = [
        judged([pair(difference=each) for _ in range(2000)], score_shift=0.05, exclude_score_shift=0.15)["paired_score_shift"]
        for each in (0.0, 0.3, 7.0)
    ]
    assert found == [Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE]


@pytest.mark.parametrize("state", ["stable_silent", "both_silent"])
def test_what_stable_did_not_answer_says_nothing(state: str) -> None:
    """However many such requests there are, nothing is shown by them."""
    found = judged([pair(state=state, why="stable: CANCELLED")] * 500)
    assert set(found.values()) == {Outcome.INCONCLUSIVE}


def test_no_pairs_are_judged_when_the_policy_wants_none() -> None:
    """Only `min_pairs = 0` turns the comparison off, and that is said."""
    assert judged([], min_pairs=0) == {"paired_requests": Outcome.PASSED}
    assert Outcome.PASSED not in judged([]).values()


@pytest.mark.parametrize(
    "changes",
    [
        {"min_pairs": -1},
        {"disagreement": 0.0},
        {"disagreement": 0.3},
        {"exclude_disagreement": 1.0},
        {"number_tolerance": -1.0},
        {"score_shift": 0.1},
        {"score_shift": 0.2, "exclude_score_shift": 0.2},
    ],
)
def test_limits_that_decide_nothing_are_refused(changes: dict[str, Any]) -> None:
    """Every limit has a margin above it, and a score's limits come together."""
    with pytest.raises(BadPolicy, match=r"shadow\."):
        replace(SHADOW, **changes)


SHIFT: dict[str, Any] = {"score_shift": 0.05, "exclude_score_shift": 0.15}
MISSING = pair(state="other_form", why="'scores' is missing")
UNFINITE = pair(state="unfinite", why="'scores' has NaN")
QUIET = pair(state="candidate_silent", why="candidate: UNAVAILABLE")
WHOLE: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "alike": ([pair()] * 200, {}),
    "none": ([], {}),
    "not asked for": ([], {"min_pairs": 0}),
    "few": ([pair()] * 20, {}),
    "stable silent": ([pair()] * 60 + [pair(state="stable_silent", why="stable: CANCELLED")] * 7, {}),
    "candidate silent": ([pair()] * 60 + [QUIET] * 20, {}),
    "other form": ([pair()] * 60 + [MISSING], {}),
    "unfinite": ([pair()] * 60 + [UNFINITE] * 2, {}),
    "flips": ([pair(flipped=True)] * 30 + [pair()] * 30, {}),
    "numbers without tolerance": ([pair(flipped=None, difference=0.2)] * 60, {}),
    "numbers within": ([pair(flipped=None, difference=0.2)] * 60, {"number_tolerance": 0.3}),
    "shift": ([pair(difference=0.3)] * 900, SHIFT),
    "no shift": ([pair()] * 900, SHIFT),
    "no scores": ([pair(difference=None)] * 60, SHIFT),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case: str) -> None:
    """Every word and number of the findings is what people were promised."""
    rows, changes = WHOLE[case]
    found = paired_findings(rows, replace(SHADOW, **changes), false_alarm=1e-3, miss=0.05)
    assert in_full(found) == expected("paired", case)
