"""Parity: names, dtypes and shapes both ways, values by tolerance and output, NaN and infinity, flips, and overflow in narrow types."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from whole_findings import expected, in_full

from validation.bundle import Tensor
from validation.contract import Outcome
from validation.parity import Parity, form_findings, holds, outside, overflowing, rows_flipped, tolerance
from validation.policy import GoldenSet, Metric, Tolerance

METRIC = Metric(name="accuracy", at_least=0.5, not_worse_than_stable=0.02)
SIGNATURE = (Tensor(name="label", dtype="INT64", shape=(1,)), Tensor(name="p", dtype="FP32", shape=(3,)))
VALUES = hnp.arrays(np.float32, (6, 3), elements=st.floats(-100, 100, width=32))
BROKEN = st.sampled_from([np.nan, np.inf, -np.inf])


def limits(**more):
    row = {"min_rows": 1, "atol": 1e-3, "rtol": 1e-3, "rows_outside_permille": 0, "metrics": (METRIC,), **more}
    return GoldenSet(**row)


def answers(rows=6):
    return {"label": np.arange(rows) % 3, "p": np.eye(3, dtype=np.float32)[np.arange(rows) % 3]}


def parity(outputs, reference, inputs=None, **more):
    """The findings after one batch, by name."""
    count = Parity(limits=limits(**more))
    count.add(0, inputs or {"X": np.zeros((6, 2), np.float32)}, outputs, reference)
    return {each.name: each for each in count.findings()}


def bad(findings):
    return {name for name, each in findings.items() if each.outcome is not Outcome.PASSED}


@pytest.mark.parametrize(
    ("outputs", "reference", "signature", "wrong"),
    [
        ({}, {}, SIGNATURE, set()),
        ({"p": None}, {}, SIGNATURE, {"output_names"}),
        ({}, {"p": None}, SIGNATURE, {"output_names"}),
        ({"extra": np.zeros(6)}, {}, SIGNATURE, {"output_names"}),
        ({"extra": np.zeros(6)}, {"extra": np.zeros(6)}, SIGNATURE, {"output_names"}),
        ({}, {}, SIGNATURE[:1], {"output_names"}),
        ({"p": None, "q": answers()["p"]}, {}, SIGNATURE, {"output_names"}),
        ({"p": answers()["p"].astype(np.float64)}, {}, SIGNATURE, {"output_dtypes"}),
        ({}, {"p": answers()["p"].astype(np.float64)}, SIGNATURE, {"output_dtypes"}),
        ({"label": answers()["label"].astype(str)}, {}, SIGNATURE, {"output_dtypes"}),
        ({"p": answers()["p"][:, :2]}, {}, SIGNATURE, {"output_shapes"}),
        ({}, {"label": answers()["label"].reshape(-1, 1)}, SIGNATURE, {"output_shapes"}),
        ({}, {}, (SIGNATURE[0], Tensor(name="p", dtype="FP32", shape=(4,))), {"output_shapes"}),
        ({}, {}, (SIGNATURE[0], Tensor(name="p", dtype="FP32", shape=(-1,))), set()),
    ],
)
def test_form_is_compared_by_name_both_ways(outputs, reference, signature, wrong):
    """Missing, extra and renamed outputs, other dtypes and shapes: each against source model and signature. None drops it."""
    sides = [{name: each for name, each in {**answers(), **change}.items() if each is not None} for change in (outputs, reference)]
    findings = form_findings(*sides, signature)
    assert {each.name for each in findings if each.outcome is Outcome.FAILED} == wrong
    assert holds(findings) == (not wrong)


@given(VALUES)
def test_equal_answers_pass_and_no_row_differs(values):
    """A faithful export has nothing to explain."""
    found = parity({"p": values}, {"p": values.copy()})
    assert bad(found) == set()
    assert found["parity_rows"].observed == 0


@given(VALUES, st.integers(0, 5), st.integers(0, 2), BROKEN)
def test_a_number_that_is_none_is_never_passed(values, row, column, broken):
    """NaN or infinity in one cell of either side, or alike in both, fails."""
    spoilt = values.copy()
    spoilt[row, column] = broken
    for sides in ((spoilt, values), (values, spoilt), (spoilt, spoilt)):
        found = parity({"p": sides[0]}, {"p": sides[1]})
        assert {"finite", "parity_rows"} <= bad(found)
        assert f"first row {row}" in found["finite"].why


@given(VALUES, st.floats(0.01, 10), st.permutations(range(6)))
def test_a_larger_difference_is_never_better_and_order_does_not_matter(values, step, order):
    """Rows outside grow with the difference and are the same rows in any order."""
    rule = tolerance(limits(), "p")
    near, far = (outside(values + np.float32(size), values, rule) for size in (step, 2 * step))
    assert (near <= far).all()
    assert (outside(values[order] + np.float32(step), values[order], rule) == near[order]).all()


@pytest.mark.parametrize(("allowed", "outcome"), [(500, Outcome.PASSED), (499, Outcome.FAILED)])
def test_the_share_of_rows_outside_is_bounded(allowed, outcome):
    """Three of six rows are 500 per mille: allowed up to and with the bound."""
    moved = answers()["p"] + np.float32(0.1) * (np.arange(6) < 3)[:, None].astype(np.float32)
    finding = parity({"p": moved}, {"p": answers()["p"]}, rows_outside_permille=allowed)["parity_rows"]
    assert (finding.outcome, finding.observed) == (outcome, 500)


def test_an_output_may_have_tolerances_of_its_own():
    """They hold for it alone, and the others keep the section's; a name that no output has fails."""
    moved = {"p": answers()["p"] + np.float32(0.1), "q": answers()["p"]}
    wide = Tolerance(output="p", atol=1, rtol=0, rows_outside_permille=0)
    assert bad(parity(moved, {"p": answers()["p"], "q": answers()["p"]}, tolerances=(wide,))) == set()
    found = parity(moved, {"p": answers()["p"], "q": answers()["p"] + 1}, tolerances=(wide,))
    assert bad(found) == {"parity_rows"}
    strict = Tolerance(output="p", atol=0, rtol=0, rows_outside_permille=0)
    assert bad(parity(moved, {"p": answers()["p"], "q": answers()["p"]}, tolerances=(strict,))) == {"parity_rows[p]"}
    nobody = Tolerance(output="r", atol=1, rtol=1, rows_outside_permille=1000)
    assert bad(parity(answers(), answers(), tolerances=(nobody,))) == {"parity_rows[r]"}


def test_tolerances_are_absolute_and_relative():
    """The bound is atol + rtol |reference|: a thousandth of a thousand is one."""
    rule = Tolerance(output="p", atol=0.5, rtol=1e-3, rows_outside_permille=0)
    there = np.array([[1000.0], [1000.0], [0.0], [0.0]])
    assert outside(there + np.array([[1.4], [1.6], [0.4], [0.6]]), there, rule).tolist() == [False, True, False, True]


def test_a_difference_of_just_the_tolerance_is_within():
    """The bound belongs to what is allowed: with tolerances of nothing equal numbers pass."""
    rule = Tolerance(output="p", atol=0.5, rtol=0, rows_outside_permille=0)
    assert outside(np.array([[1.5], [1.75]]), np.array([[1.0], [1.0]]), rule).tolist() == [False, True]
    exact = Tolerance(output="p", atol=0, rtol=0, rows_outside_permille=0)
    assert outside(np.array([[1.0]]), np.array([[1.0]]), exact).tolist() == [False]


def test_the_largest_difference_is_kept_for_the_evidence():
    """Over all batches, by output; one that is no number stays."""
    count = Parity(limits=limits())
    for step in (0.25, 0.75, 0.5):
        count.add(0, {"X": np.zeros((6, 1))}, {"p": answers()["p"] + np.float32(step)}, {"p": answers()["p"]})
    assert count.numbers == {"rows": 18, "rows_outside": 18, "label_flips": 0, "largest_difference": {"p": 0.75}}
    count.add(0, {"X": np.zeros((6, 1))}, {"p": answers()["p"] * np.float32(np.nan)}, {"p": answers()["p"]})
    assert np.isnan(count.numbers["largest_difference"]["p"])


def test_findings_carry_their_numbers():
    """Observed, limit and n stand in the finding, not in its words alone."""
    spoilt = answers()["p"].copy()
    spoilt[:2] = np.nan
    found = parity({"p": spoilt}, {"p": answers()["p"]})
    assert (found["finite"].observed, found["finite"].limit, found["finite"].n) == (2, 0, 6)
    large = {"p": answers()["p"] * np.float32(1e6)}
    found = parity(large, large, narrowed_to=("float16", "int8"))
    assert [(found[name].observed, found[name].limit) for name in ("narrowed_float16", "narrowed_int8")] == [(6, 0), (6, 0)]
    hundreds = {"p": answers()["p"] * np.float32(1e3)}
    found = parity(hundreds, hundreds, narrowed_to=("float16", "int8"))
    assert bad(found) == {"narrowed_int8"}


def test_two_classes_flip_too():
    """A vector of two scores has a greatest; a single column has none."""
    here, there = {"p": np.array([[0.4, 0.6]])}, {"p": np.array([[0.6, 0.4]])}
    assert rows_flipped(here, there).tolist() == [True]
    assert rows_flipped({"p": here["p"][:, :1]}, {"p": there["p"][:, :1]}).tolist() == [False]


def test_the_evidence_shows_some_rows_and_not_all():
    """Twenty rows and fifty values of each are enough to see what is wrong."""
    wide = np.zeros((60, 70), np.float32)
    count = Parity(limits=limits())
    count.add(0, {"X": np.zeros((60, 1))}, {"p": wide + 1}, {"p": wide})
    assert len(count.mismatches) == 20
    assert len(count.mismatches[0]["model"]["p"]) == 50


def test_a_greatest_score_that_changes_is_a_flip_even_within_tolerance():
    """Two nearly equal scores may swap without leaving the tolerances; the answer is another one."""
    here = {"p": np.array([[0.5, 0.5001]], np.float32)}
    there = {"p": np.array([[0.5001, 0.5]], np.float32)}
    assert rows_flipped(here, there).tolist() == [True]
    assert bad(parity(here, there, inputs={"X": np.zeros((1, 2), np.float32)})) == {"label_flips"}


def test_numbers_side_by_side_are_no_classes():
    """Of a model that is judged by its numbers the greatest output is no answer that could flip."""
    here, there = {"y": np.array([[0.5, 0.5001]], np.float32)}, {"y": np.array([[0.5001, 0.5]], np.float32)}
    numbers = (Metric(name="rmse", at_most=1, not_worse_than_stable=0.1),)
    assert bad(parity(here, there, inputs={"X": np.zeros((1, 2), np.float32)}, metrics=numbers)) == set()


@pytest.mark.parametrize(("kind", "most"), [("float16", 65504.0), ("int8", 127.0)])
def test_narrow_types_overflow_at_their_ends(kind, most):
    """The greatest number of the type is in, the next one out, on either side; NaN and infinity are other findings' business."""
    values = np.array([[most], [np.nextafter(most, np.inf)], [-most], [-most * 1.1], [np.inf], [np.nan]])
    assert overflowing(values, kind).tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_numbers_that_a_narrow_type_cannot_hold_fail(where):
    """Inputs and outputs are looked at when the policy serves the type, and only then."""
    large = {"p": answers()["p"] + np.float32(1e5 * (where == "outputs"))}
    inputs = {"X": np.full((6, 2), 1e5 * (where == "inputs"), np.float32)}
    assert bad(parity(large, large, inputs, narrowed_to=("float16",))) == {"narrowed_float16"}
    assert bad(parity(large, large, inputs)) == set()


def test_no_rows_show_nothing():
    """A count over nothing is no pass."""
    assert {"parity_rows", "label_flips"} <= {each.name for each in Parity(limits=limits()).findings() if each.outcome is Outcome.FAILED}


def test_batches_count_as_one_set():
    """The number of the first bad row and the evidence run through all batches."""
    count = Parity(limits=limits())
    for start in (0, 6, 12):
        moved = answers()["p"] + np.float32(0.1 * (start == 12))
        count.add(start, {"X": np.zeros((6, 2), np.float32)}, {"p": moved}, {"p": answers()["p"]})
    finding = next(each for each in count.findings() if each.name == "parity_rows")
    assert (finding.n, finding.observed) == (18, pytest.approx(1000 / 3))
    assert "first row 12" in finding.why
    assert [each["row"] for each in count.mismatches] == list(range(12, 18))


# What a finding says


def moved(name, rows_):
    """The answers, the first rows of one output another number."""
    spoilt = answers()
    spoilt[name] = np.where(np.arange(6) < rows_, spoilt[name].T + 1, spoilt[name].T).T.astype(spoilt[name].dtype)
    return spoilt


def spoiling(number):
    return {**answers(), "p": np.where(np.arange(6)[:, None] >= 4, np.float32(number), answers()["p"])}


OWN = {
    "tolerances": (
        Tolerance(output="p", atol=0.5, rtol=0.25, rows_outside_permille=20),
        Tolerance(output="r", atol=1, rtol=1, rows_outside_permille=9),
    )
}
NARROW = {"narrowed_to": ("float16", "int8")}


def counted(**more):
    count = Parity(limits=limits(**more))
    count.add(0, {"X": np.zeros((6, 2), np.float32)}, answers(), answers())
    return count


def form(outputs, reference, signature=SIGNATURE):
    return form_findings({**answers(), **outputs}, {**answers(), **reference}, signature)


WHOLE = {
    "equal": lambda: parity(answers(), answers()).values(),
    "moved numbers": lambda: parity(moved("p", 2), answers()).values(),
    "other labels": lambda: parity(moved("label", 3), answers()).values(),
    "not finite": lambda: parity(spoiling(np.nan), answers()).values(),
    "not finite in the source": lambda: parity(answers(), spoiling(np.inf)).values(),
    "tolerances of its own": lambda: parity(moved("p", 2), answers(), **OWN).values(),
    "narrowed": lambda: parity(answers(), answers(), **NARROW).values(),
    "too large to be narrowed": lambda: parity(spoiling(1e5), spoiling(1e5), **NARROW).values(),
    "narrowed once": lambda: counted(**NARROW).findings(),
    "without a source model": lambda: counted(**NARROW).findings(with_source=False),
    "the same form": lambda: form({}, {}),
    "another name": lambda: form({"q": answers()["p"]}, {}),
    "a name of the source model's": lambda: form({}, {"q": answers()["p"]}),
    "not in the signature": lambda: form({}, {}, SIGNATURE[:1]),
    "another dtype": lambda: form({"p": answers()["p"].astype(np.float64)}, {}),
    "another dtype of the source model's": lambda: form({}, {"p": answers()["p"].astype(np.float64)}),
    "another shape": lambda: form({"p": answers()["p"][:, :2]}, {}),
    "another shape in the signature": lambda: form({}, {}, (SIGNATURE[0], Tensor(name="p", dtype="FP32", shape=(4,)))),
}


def test_evidence_of_a_mismatch_is_whole():
    """The row's number and both sides' answers, by output."""
    count = Parity(limits=limits())
    count.add(10, {"X": np.zeros((6, 2), np.float32)}, moved("p", 1), answers())
    assert count.mismatches == [
        {"row": 10, "model": {"label": [0], "p": [2.0, 1.0, 1.0]}, "source_model": {"label": [0], "p": [1.0, 0.0, 0.0]}}
    ]


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Words, numbers, interval, size and advice: all that people and the registry read, in each outcome."""
    assert in_full(WHOLE[case]()) == expected("parity", case)


def test_no_rows_at_all_pass_nothing() -> None:
    """An account that saw no row has nothing to say for the model, in any of its findings."""
    limits = GoldenSet(
        min_rows=1,
        atol=1e-4,
        rtol=1e-3,
        rows_outside_permille=1,
        metrics=(Metric(name="accuracy", at_least=0.8, not_worse_than_stable=0.02),),
        narrowed_to=("float16",),
    )
    findings = tuple(Parity(limits=limits).findings())
    assert {each.name for each in findings} >= {"finite", "parity_rows", "label_flips", "narrowed_float16"}
    assert {each.outcome for each in findings} == {Outcome.FAILED}
