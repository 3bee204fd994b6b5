"""Drift: sketches that are small and exact, and claims that are never passed without evidence."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from whole_findings import expected, in_full

from validation.contract import Outcome, worst
from validation.drift import (
    COMPONENTS,
    POINTS,
    BadSketch,
    Limits,
    Look,
    Sketch,
    _chi_square_above,
    _column,
    _discoveries,
    components,
    drift,
    read_sketches,
    sketch,
    sketch_batches,
)

ROWS = 1000
NUMBERS = st.floats(-1e6, 1e6, width=32)


def normal(rows=ROWS, seed=0, mean=0.0, std=1.0):
    return np.random.default_rng(seed).normal(mean, std, rows)


def compared(reference, current, limits=None, **more):
    """Findings by claim for one column `x`, sketched as they must be."""
    before = sketch(np.asarray(reference))
    findings = drift({"x": before}, {"x": sketch(np.asarray(current), before)}, limits or Limits(), **more)
    return {each.name.removeprefix("x_"): each for each in findings}


def outcomes(findings):
    return {name: each.outcome for name, each in findings.items()}


def overall(findings):
    return worst(each.outcome for each in findings.values())


# Sketches


def test_counts_moments_and_range_are_exact():
    """A sketch says of a column what numpy says of it, whatever the batches."""
    values = normal(3 * POINTS + 17)
    made = sketch_batches({"x": part} for part in np.array_split(values, 7))["x"]
    assert (made.rows, made.missing, made.infinite, made.finite) == (len(values), 0, 0, len(values))
    assert (made.low, made.high) == (values.min(), values.max())
    assert (made.mean, made.std) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert made.kurtosis == pytest.approx(np.mean((values - values.mean()) ** 4) / values.std() ** 4)
    assert sum(made.counts) == len(values)


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=30), min_size=2, max_size=5))
def test_moments_of_unlike_batches_are_those_of_the_whole(batches):
    """Batches of other sizes, means and spreads merge into the moments of all rows."""
    made, rows = sketch_batches({"x": np.array(part)} for part in batches)["x"], np.concatenate(batches)
    spread = rows.std()
    assert (made.mean, made.std or 0.0) == (pytest.approx(rows.mean(), abs=1e-9), pytest.approx(spread, abs=1e-6))
    if spread > 1e-3:
        assert made.kurtosis == pytest.approx(np.mean((rows - rows.mean()) ** 4) / spread**4, rel=1e-6)


def test_edges_are_percentiles_of_a_long_stream():
    """Beyond what is kept whole, edges stay within a thousandth of the rank they stand for, also when the stream is in order."""
    values = np.sort(normal(1_000_000))
    made = sketch_batches({"x": part} for part in np.array_split(values, 40))["x"]
    true = np.searchsorted(values, made.edges, side="right")
    assert np.abs(true - np.cumsum(made.counts)[:-1]).max() < 0.001 * len(values)
    assert 90 <= len(made.edges) <= 110


def test_memory_does_not_grow_with_the_stream():
    """A sketch's JSON is as small after a million rows as after a thousand."""
    sizes = [len(json.dumps(sketch(normal(rows)).to_json())) for rows in (1000, 1_000_000)]
    assert max(sizes) < 4096


@given(st.lists(NUMBERS, min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_show(rows, random):
    """A shuffled column has the same sketch, to the last bit."""
    shuffled = random.sample(rows, len(rows))
    assert sketch(np.array(rows)) == sketch(np.array(shuffled))


@given(st.lists(NUMBERS, min_size=2, max_size=200), st.integers(1, 6))
def test_batches_do_not_show_in_what_is_counted(rows, pieces):
    """Whether the rows come at once or in parts, edges and counts are the same."""
    parts = np.array_split(np.array(rows), pieces)
    whole, pieced = sketch(np.array(rows)), sketch_batches({"x": part} for part in parts)["x"]
    assert (whole.edges, whole.counts, whole.low, whole.high) == (pieced.edges, pieced.counts, pieced.low, pieced.high)


@given(
    st.one_of(
        st.lists(st.one_of(NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf])), max_size=200).map(np.array),
        st.lists(st.integers(-(2**40), 2**40), max_size=200).map(lambda rows: np.array(rows, dtype=np.int64)),
        st.lists(st.one_of(st.text(max_size=3), st.none()), max_size=200).map(lambda rows: np.array(rows, dtype=object)),
    )
)
def test_a_sketch_survives_json(values):
    """What is stored is what is read back, for numbers, whole numbers and words, with missing and infinite values."""
    made = sketch(values)
    assert Sketch.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made


def test_missing_and_infinite_values_are_counted_apart():
    """NaN, plus and minus infinity have counts of their own and touch no moment."""
    made = sketch(np.array([1.0, 3.0, np.nan, np.inf, np.inf, -np.inf]))
    assert (made.rows, made.missing, made.plus_infinite, made.minus_infinite) == (6, 1, 2, 1)
    assert (made.mean, made.std, made.low, made.high) == (2.0, 1.0, 1.0, 3.0)


def test_a_value_that_many_rows_share_has_a_bin_of_its_own():
    """Sixty of a hundred zeros that move a little are seen, in either direction."""
    values = np.concatenate((np.zeros(600), normal(400)))
    for step in (1e-9, -1e-9):
        moved = np.where(values == 0, step, values)
        assert outcomes(compared(values, moved))["ks"] is Outcome.FAILED


def test_words_keep_the_most_frequent_and_count_the_others():
    """Free text does not make a sketch grow: rare values are counted together, long ones shortened."""
    words = np.array(["often"] * 500 + [f"once {i}" for i in range(500)] + ["x" * 10_000], dtype=object)
    made = sketch(words)
    assert (made.kind, made.categories["often"], len(made.categories), made.others) == ("category", 500, 100, 402)
    assert max(map(len, made.categories)) <= 80


@pytest.mark.parametrize("rows", [np.arange(50_000).astype(str), [f"{i % 30_000}" for i in range(90_000)]])
def test_a_stream_of_ever_new_words_is_bounded(rows):
    """Beyond what is tracked, words are counted together, and none is lost."""
    made = sketch_batches({"x": part} for part in np.array_split(np.array(rows, dtype=object), 9))["x"]
    assert made.others + sum(made.categories.values()) == len(rows)


def test_whole_numbers_with_few_values_are_categories():
    """Codes are no quantities; a float that holds them, because a row is missing, is compared with them all the same."""
    codes = np.random.default_rng(0).integers(0, 5, ROWS)
    made = sketch(codes)
    assert (made.kind, list(made.categories)) == ("category", sorted("01234", key=lambda each: -int((codes == int(each)).sum())))
    assert overall(compared(codes, codes.astype(float))) is Outcome.PASSED
    assert sketch(np.arange(21)).kind == "number"


def test_tensors_become_columns():
    """A number a row keeps its name, a vector has one column a number, a picture three."""
    arrays = {"a": np.zeros(2), "b": np.zeros((2, 1)), "c": np.zeros((2, 2, 2)), "d": np.zeros((2, COMPONENTS + 1))}
    assert [name for name, _ in components(arrays)] == ["a", "b", "c[0]", "c[1]", "c[2]", "c[3]", "d:mean", "d:low", "d:high"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": -1}, "counts must be whole numbers"),
        ({"rows": 5}, "do not add up"),
        ({"counts": [1.5]}, "counts must be whole numbers"),
        ({"mean": math.nan}, "must be finite"),
        ({"std": -1.0}, "std must not be negative"),
        ({"std": 0.0}, "std must be 0 just where"),
        ({"edges": [2.0, 1.0]}, "edges must grow"),
        ({"counts": []}, "one more than edges"),
        ({"kind": "anything"}, "kind 'anything' is not known"),
        ({"mean": "1"}, "wrong kind"),
        ({"more": 1}, "has the keys"),
    ],
)
def test_a_stored_sketch_that_cannot_be_one_is_refused(change, words):
    """Every number in a stored sketch is checked; the message names the column and the key."""
    row = sketch(normal(10)).to_json()
    with pytest.raises(BadSketch, match=f"^x: .*{words}"):
        read_sketches({"x": row | change})


def test_stored_sketches_are_an_object():
    """Anything else in their place is refused."""
    with pytest.raises(BadSketch, match="an object by column, not list"):
        read_sketches([])


# Drift


def test_equal_distributions_pass_every_claim():
    """Two samples of one distribution pass, and each claim says what was seen."""
    findings = compared(normal(seed=1), normal(seed=2))
    assert outcomes(findings) == dict.fromkeys(("missing", "infinite", "shift", "ks", "psi"), Outcome.PASSED)
    assert findings["shift"].why.endswith("2 is excluded")


@pytest.mark.parametrize(
    ("current", "failed"),
    [
        (normal(mean=3.0), {"shift", "ks", "psi"}),
        (normal(mean=1.0), {"ks", "psi"}),
        (normal(std=9.0), {"ks", "psi"}),
        (normal() * 0 + 0.1, {"ks", "psi"}),
        (np.where(np.arange(ROWS) < 900, np.nan, normal()), {"missing"}),
        (np.where(np.arange(ROWS) == 7, np.nan, normal()), {"missing"}),
        (np.where(np.arange(ROWS) == 7, np.inf, normal()), {"infinite"}),
        (np.where(np.arange(ROWS) == 7, -np.inf, normal()), {"infinite"}),
    ],
)
def test_each_drift_is_found_by_name(current, failed):
    """Moved, spread, collapsed, missing, infinite: the finding that is about it fails."""
    found = {name for name, outcome in outcomes(compared(normal(seed=5), current)).items() if outcome is Outcome.FAILED}
    assert found == failed


def test_categories_are_compared_by_their_shares():
    """Another mixture fails by the stability index, a value that the reference never had by its share."""
    before = np.array(["a", "b", "c", "d"] * 250, dtype=object)
    mixed = np.array(["a"] * 700 + ["b", "c", "d"] * 100, dtype=object)
    new = np.array([*before[:900], *["e"] * 100], dtype=object)
    assert outcomes(compared(before, before)) == dict.fromkeys(("missing", "infinite", "unseen", "psi"), Outcome.PASSED)
    assert outcomes(compared(before, mixed))["psi"] is Outcome.FAILED
    unseen = compared(before, new)["unseen"]
    assert (unseen.outcome, unseen.observed, "of the reference's: e;" in unseen.why) == (Outcome.FAILED, 0.1, True)


def test_no_unseen_value_is_allowed_when_the_limit_is_none():
    """A limit of 0 is counted: one new value fails."""
    before = np.array(["a", "b"] * 500, dtype=object)
    finding = compared(before, np.array([*before, "c"], dtype=object), Limits(unseen=0))["unseen"]
    assert (finding.outcome, finding.observed, finding.n) == (Outcome.FAILED, 1 / 1001, 1001)
    assert compared(before, before, Limits(unseen=0))["unseen"].outcome is Outcome.PASSED


def test_missing_values_may_come_as_often_as_before():
    """A column that always lacked a fifth of its values passes with a fifth, and fails with half or with none."""
    values, number = normal(seed=3), np.arange(ROWS)
    before = np.where(number % 5 == 0, np.nan, values)
    assert overall(compared(before, before)) is Outcome.PASSED
    assert outcomes(compared(before, np.where(number % 2 == 0, np.nan, values)))["missing"] is Outcome.FAILED
    assert outcomes(compared(before, values))["missing"] is Outcome.FAILED


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        (normal(), np.empty(0)),
        (np.empty(0), normal()),
        (normal(), np.full(ROWS, np.nan)),
        (np.full(ROWS, np.nan), np.full(ROWS, np.nan)),
        (np.full(ROWS, np.inf), np.full(ROWS, np.inf)),
        (normal(), normal().astype(str)),
        (np.array(["a"] * ROWS), np.zeros(ROWS)),
        (normal(), normal().astype(complex)),
        (normal().astype("datetime64[s]"), normal().astype("datetime64[s]")),
        (np.ones(ROWS), np.full(ROWS, 1.0000001)),
        (normal(), np.ones(ROWS)),
        (normal(5), normal(5, seed=1)),
        (normal() * 1e300, normal() * 1e300),
        (normal() * 1e-200, normal() * 1e-200),
    ],
)
def test_what_cannot_be_compared_is_never_passed(reference, current):
    """No rows, only NaN, only infinity, other types, a constant that moved, too few rows, too large or small: none of them passes."""
    assert overall(compared(reference, current)) is not Outcome.PASSED


def test_a_constant_that_stays_the_same_has_not_drifted():
    """A column that never varied passes with the same value in every row, when there are rows enough."""
    assert overall(compared(np.ones(ROWS), np.ones(ROWS))) is Outcome.PASSED
    assert overall(compared(np.ones(10), np.ones(10))) is Outcome.INCONCLUSIVE


def test_a_spread_that_is_rounding_is_none():
    """Shares that add up to 1 have the mean that rounding gives them; another rounding is no drift."""
    before = np.full(ROWS, 0.001, dtype=np.float32)
    before[::2] = np.nextafter(before[::2], np.float32(1))
    after = before[::-1] + np.float32(2e-10)
    assert outcomes(compared(before, after))["shift"] is Outcome.PASSED


def test_absent_references_and_columns_are_findings():
    """No reference at all, none for a column, a column that is gone, other edges: each is said and none passes."""
    made = sketch(normal())
    assert [(each.name, each.outcome) for each in drift({}, {"x": made})] == [("reference_sketch", Outcome.INCONCLUSIVE)]
    found = {each.name: each.outcome for each in drift({"x": made, "y": made}, {"x": sketch(normal(seed=1)), "z": made})}
    assert found == {"x_sketch": Outcome.INCONCLUSIVE, "y_sketch": Outcome.FAILED, "z_sketch": Outcome.INCONCLUSIVE}


def test_too_few_rows_say_how_many_would_do():
    """What a small sample leaves open is inconclusive, with the number of rows that would settle it."""
    finding = compared(normal(50, seed=1), normal(50, seed=2))["ks"]
    assert (finding.outcome, "times as many rows like these" in finding.advice) == (Outcome.INCONCLUSIVE, True)


def test_more_rows_do_not_help_beyond_the_limit():
    """An estimate beyond the limit that is not sure says that more of the same would not pass."""
    finding = compared(normal(30, seed=1), normal(30, seed=2, mean=0.75))["ks"]
    assert (finding.outcome, finding.advice[:32]) == (Outcome.INCONCLUSIVE, "more of the same would not help:")


def test_scores_may_be_judged_by_their_mean_only():
    """Columns named so get no claim about their order."""
    findings = compared(normal(), normal(std=9.0), shift_only={"x"})
    assert outcomes(findings) == dict.fromkeys(("missing", "infinite", "shift"), Outcome.PASSED)


def test_an_unreadable_number_passes_nothing():
    """A NaN that reaches a comparison is above and below nothing."""
    before = sketch(normal())
    findings = drift({"x": before}, {"x": replace(sketch(normal(), before), mean=math.nan)})
    assert worst(each.outcome for each in findings) is not Outcome.PASSED


@settings(max_examples=50)
@given(st.integers(0, ROWS - 1), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 1000))
def test_one_value_that_is_no_number_is_never_passed(row, value, seed):
    """Wherever NaN or infinity stands, a column that had none before does not pass."""
    current = normal(seed=seed)
    current[row] = value
    assert overall(compared(normal(seed=1), current)) is Outcome.FAILED


@settings(max_examples=50)
@given(st.integers(-20, 20), st.integers(0, 100), st.floats(0, 1.5))
def test_units_do_not_matter(power, seed, mean):
    """Metres or millimetres: the same findings with the same numbers."""
    before, after, unit = normal(seed=seed), normal(seed=seed + 1, mean=mean), 10.0**power
    plain, scaled = compared(before, after), compared(before * unit, after * unit)
    assert outcomes(plain) == outcomes(scaled)
    assert [each.observed for each in plain.values()] == pytest.approx([each.observed for each in scaled.values()], abs=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(seed, random):
    """A shuffled sample gets the same findings."""
    before, after = normal(seed=seed), normal(seed=seed + 1, rows=100).tolist()
    assert compared(before, after) == compared(before, random.sample(after, len(after)))


@settings(max_examples=50)
@given(st.floats(0, 3), st.floats(0, 3), st.integers(0, 100))
def test_more_drift_is_never_a_better_outcome(one, other, seed):
    """Moved further in the same direction, a column is judged the same or worse."""
    near, far = sorted((one, other))
    base = np.sort(normal(seed=seed))
    judged = [outcomes(compared(base, base + moved)) for moved in (near, far)]
    assert all(judged[1][name] >= judged[0][name] for name in ("shift", "ks"))


@pytest.mark.parametrize("freedom", [1, 2, 9, 50])
@pytest.mark.parametrize("apart", [0.0, 1.0, 75.0, 1000.0])
def test_the_chi_square_law_is_close_to_the_exact_one(freedom, apart):
    """Tail chances are within a hundredth of those that scipy integrates, the lower ones where a limit is looked at from below."""
    law = stats.ncx2(freedom, apart) if apart else stats.chi2(freedom)
    for tail in (0.05, 0.001, *((0.99, 0.95) if apart >= 75 else ())):
        assert _chi_square_above(law.isf(tail), freedom, apart) == pytest.approx(tail, abs=0.011)


def test_the_index_is_the_sum_over_tenths():
    """By hand: a column of which the current lacks the upper half has twice the share in the lower tenths and next to none above."""
    before = np.arange(1000.0)
    finding = compared(before, np.repeat(before[:500], 2))["psi"]
    shares, halves = np.full(10, 0.1), np.array([200.5] * 5 + [0.5] * 5) / 1005
    assert finding.observed == pytest.approx(((shares - halves) * np.log(shares / halves)).sum())
    assert "over 10 groups" in finding.why


@pytest.mark.parametrize(("rows", "outcome"), [(360, Outcome.INCONCLUSIVE), (361, Outcome.PASSED)])
def test_no_unseen_value_excludes_a_share_from_some_rows_on(rows, outcome):
    """With a limit of 1 %, none of 361 rows shows that fewer are unseen, none of 360 does not; the exact binomial bound needs 299."""
    values = np.array(["a", "b"] * 200, dtype=object)[:rows]
    assert outcomes(compared(values, values))["unseen"] is outcome


def words(random, rows, names):
    """Half of the rows say the same word, the others one of so many."""
    return random.choice([f"w{i}" for i in range(names)] + ["often"] * names, rows).astype(object)


@pytest.mark.parametrize("names", [10, 60, 1000])
def test_rare_words_are_no_drift(names):
    """However many words there are, two samples of them seldom fail, also where either has words that the other never met."""
    random = np.random.default_rng(names)
    judged = [overall(compared(words(random, 500, names), words(random, 500, names))) for _ in range(60)]
    assert judged.count(Outcome.FAILED) <= 3


def test_a_new_word_among_rare_ones_is_found():
    """What the reference cannot have seen is allowed for, and no more."""
    random = np.random.default_rng(1)
    before, after = words(random, 2000, 1000), words(random, 2000, 1000)
    after[:600] = "new"
    found = compared(before, after)["unseen"]
    assert (found.outcome, found.why[:41]) == (Outcome.FAILED, "600 of 2000 values are new, which the ref")
    few = words(random, 2000, 90)
    assert compared(few, np.where(np.arange(2000) < 100, "new", few))["unseen"].outcome is Outcome.FAILED


def test_what_is_absent_is_missing_and_what_is_odd_is_a_word():
    """None, NaN and what pandas puts in their place are missing; lists, numbers and bytes among words are named by their text."""
    values = np.empty(9, dtype=object)
    values[:] = [None, math.nan, pd.NA, pd.NaT, "a", b"a", 2, [1], [1]]
    made = sketch(values)
    assert (made.missing, made.categories) == (4, {"[1]": 2, "a": 2, "2": 1})
    plain = sketch(np.array([None, math.nan, pd.NA, pd.NaT, "a", b"a", 2], dtype=object))
    assert (plain.missing, plain.categories) == (4, {"a": 2, "2": 1})


def looked(reference, current):
    """The comparisons of one column before judgement, by claim, with both sketches."""
    before = sketch(np.asarray(reference))
    now = sketch(np.asarray(current), before)
    looks = {each.name.removeprefix("x_"): each for each in _column("x", before, now, Limits()) if isinstance(each, Look)}
    return looks, before, now


def test_a_shift_has_the_errors_of_both_means_and_of_its_unit():
    """By hand: the variances of two means and, by the delta method, of the standard deviation that is the unit."""
    looks, before, now = looked(normal(40), normal(60, seed=1, mean=1.5, std=2))
    shift = abs(now.mean - before.mean) / before.std
    variance = 1 / 40 + (now.std / before.std) ** 2 / 60 + 2**2 * (before.kurtosis - 1) / (4 * 40)
    apart = (shift - 2) / math.sqrt(variance)
    look = looks["shift"]
    assert (look.observed, look.n, look.limit) == (pytest.approx(shift), 60, 2.0)
    assert (look.above, look.below, look.below_with(4)) == pytest.approx(stats.norm.cdf([-apart, apart, 2 * apart]).tolist())


def test_the_distance_has_kolmogorovs_tail_on_either_side_of_its_limit():
    """By hand: 2 exp(-2 n m / (n + m) d^2) for a distance that is d beyond the limit, or short of it."""
    far, *_ = looked(normal(40), normal(60, seed=1, mean=3.0))
    near, *_ = looked(normal(40), normal(60, seed=1))
    for look, beyond in ((far["ks"], far["ks"].observed - 0.25), (near["ks"], 0.25 - near["ks"].observed)):
        assert beyond > 0
        chances = (look.above, look.below) if look is far["ks"] else (look.below, look.above)
        assert chances == (pytest.approx(min(1, 2 * math.exp(-2 * 24 * beyond**2))), 1.0)


def test_shares_that_were_missing_before_are_compared_by_agresti_and_caffo():
    """By hand: one missing and one present row added to each side."""
    before, after = (np.where(np.arange(n) < k, np.nan, normal(n)) for n, k in ((50, 10), (80, 30)))
    looks, *_ = looked(before, after)
    shares = [(11 / 52, 52), (31 / 82, 82)]
    deviation = math.sqrt(sum(share * (1 - share) / n for share, n in shares))
    look = looks["missing"]
    assert look.observed == pytest.approx(30 / 80 - 10 / 50)
    assert look.above == pytest.approx(stats.norm.cdf((0.05 - look.observed) / deviation))


def test_what_the_reference_met_once_widens_the_limit_of_unseen_values():
    """By hand: two of a hundred values were met once, so two in a hundred unseen ones are to be expected."""
    before = np.array(["a"] * 98 + ["b", "c"], dtype=object)
    after = np.array(["a"] * 190 + ["d"] * 10, dtype=object)
    look = looked(before, after)[0]["unseen"]
    deviation = math.sqrt(0.03 * 0.97 / 200 + 2 / 100**2)
    assert (look.observed, look.limit) == (0.05, pytest.approx(0.03))
    assert look.above == pytest.approx(stats.norm.cdf(-(0.05 - 0.03 - 0.5 / 200) / deviation))
    assert look.below == pytest.approx(stats.norm.cdf((0.05 - 0.03 + 0.5 / 200) / deviation))


@pytest.mark.parametrize(
    ("chances", "largest"),
    [
        ([0.01, 0.04, 0.03, 0.5], 0.01),
        ([0.01, 0.02, 0.03, 0.5], 0.03),
        ([0.05], 0.05),
        ([0.06], -1.0),
        ([0.02, 0.051, 0.051], -1.0),
        ([0.0166, 0.9, 0.9], 0.0166),
        ([], -1.0),
    ],
)
def test_discoveries_are_those_of_benjamini_and_hochberg(chances, largest):
    """The largest p-value at or below its rank's share of the error, and all below it; of none at all, none."""
    assert _discoveries(chances, 0.05) == largest


# What the error rates are worth


def simulated(runs, *, rows, columns=1, mean=0.0, seed=11):
    """The overall outcome of each run of `columns` columns whose mean has moved."""
    random = np.random.default_rng(seed)
    for _ in range(runs):
        before = sketch_batches([{f"f{i}": random.normal(size=rows) for i in range(columns)}])
        after = sketch_batches([{f"f{i}": random.normal(mean, 1, rows) for i in range(columns)}], before)
        yield drift(before, after)


def test_twenty_columns_without_drift_pass():
    """Of runs with twenty columns and no drift, at most one in twenty says anything but passed."""
    judged = [worst(each.outcome for each in findings) for findings in simulated(60, rows=600, columns=20)]
    assert sum(each is not Outcome.PASSED for each in judged) <= 3


@pytest.mark.parametrize(("claim", "mean"), [("shift", 2.0), ("psi", 0.513), ("ks", 0.6373)])
def test_a_column_exactly_at_the_limit_is_rarely_passed_or_failed(claim, mean):
    """Two bell curves exactly as far apart as the limit are passed in at most 5 % of draws, and failed in at most 5 %."""
    runs = 600
    judged = [each.outcome for found in simulated(runs, rows=600, mean=mean) for each in found if each.name == f"f0_{claim}"]
    most = 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)
    assert (len(judged), max(judged.count(Outcome.PASSED), judged.count(Outcome.FAILED)) <= most) == (runs, True)


def test_nine_tenths_missing_are_always_found():
    """Whatever the column and the sample, 90 % missing values fail."""
    random = np.random.default_rng(3)
    for rows in (20, 100, 1000) * 20:
        values = random.normal(size=rows)
        assert compared(values, np.where(random.permutation(rows) < 0.9 * rows, np.nan, values))["missing"].outcome is Outcome.FAILED


# What a finding says


CODES = np.array(["a", "b", "c", "d"] * 250, dtype=object)
HOLED = np.where(np.arange(ROWS) % 5 == 0, np.nan, normal(seed=3))
ENDLESS = np.where(np.arange(ROWS) % 5 == 0, np.inf, normal(seed=3))
MANY = np.array([f"w{i % 150}" for i in range(ROWS)], dtype=object)


def replaced(values, *places, by):
    changed = values.copy()
    changed[list(places)] = by
    return changed


def both(before, after, **more):
    return compared(before, after, **more).values()


WHOLE = {
    "equal": lambda: both(normal(seed=1), normal(seed=2)),
    "moved": lambda: both(normal(seed=1), normal(seed=2, mean=3.0)),
    "moved a little": lambda: both(normal(60, seed=1), normal(70, seed=2, mean=0.4)),
    "holes": lambda: both(normal(seed=1), replaced(normal(seed=2), 7, 9, by=np.nan)),
    "infinities": lambda: both(normal(seed=1), replaced(normal(seed=2), 7, by=-np.inf)),
    "as many holes": lambda: both(HOLED, HOLED),
    "fewer holes": lambda: both(HOLED, normal(seed=3)),
    "some more infinities": lambda: both(ENDLESS, replaced(ENDLESS, *range(1, 90), by=np.inf)),
    "all missing": lambda: both(normal(seed=1), np.full(9, np.nan)),
    "the same constant": lambda: both(np.full(ROWS, 2.5), np.full(ROWS, 2.5)),
    "another constant": lambda: both(np.full(ROWS, 2.5), np.full(ROWS, 3.5)),
    "too large": lambda: both(normal() * 1e300, normal() * 1e300),
    "equal words": lambda: both(CODES, CODES),
    "a new word": lambda: both(CODES, replaced(CODES, *range(100), by="e")),
    "a new word where none may be": lambda: both(CODES, replaced(CODES, 5, by="e"), limits=Limits(unseen=0)),
    "no new word where none may be": lambda: both(CODES, CODES, limits=Limits(unseen=0)),
    "more words than are named": lambda: both(MANY, MANY),
    "a frequent word that is not named": lambda: both(MANY, replaced(MANY, *range(300), by="new")),
    "words for numbers": lambda: both(normal(), normal().astype(str)),
    "no rows": lambda: both(normal(), np.empty(0)),
    "no rows before": lambda: both(np.empty(0), normal()),
    "no reference at all": lambda: drift({}, {"x": sketch(normal())}),
    "no reference for the column": lambda: drift({"y": sketch(normal())}, {"x": sketch(normal())}),
    "other edges": lambda: drift({"x": sketch(normal())}, {"x": sketch(normal(seed=1))}),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "anything"}, "kind 'anything' is not known"),
        ({"rows": -1}, "counts must be whole numbers from 0"),
        ({"mean": math.inf}, "moments and edges must be finite"),
        ({"std": -1.0}, "std must not be negative"),
        ({"std": 0.0}, "std must be 0 just where low and high are equal"),
        ({"edges": [2.0, 1.0]}, "edges must grow"),
        ({"counts": [1]}, "counts must be one more than edges"),
        ({"missing": 1}, "the counts do not add up to rows"),
    ],
)
def test_a_refusal_of_a_sketch_is_one_sentence(change, words):
    """It is what people read beside the column's name, whole."""
    with pytest.raises(BadSketch) as caught:
        read_sketches({"x": sketch(normal(10)).to_json() | change})
    assert str(caught.value) == f"x: {words}"


@pytest.mark.parametrize("values", [np.array([1.0, 2.0]), np.array(["a"], dtype=object), np.array([1j]), np.array([1, 2])])
def test_each_kind_of_sketch_is_read_back(values):
    """Numbers, words, codes, and what is none of these."""
    made = sketch(values)
    assert read_sketches({"x": made.to_json()}) == {"x": made}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Words, numbers, interval, size and advice: all that people and the registry read, in each outcome."""
    assert in_full(WHOLE[case]()) == expected("drift", case)


def test_a_sketch_of_two_hundred_numbers_is_known_by_hand():
    """Every second number is a percentile, and one edge lies just below the least."""
    made = sketch(np.arange(200.0))
    assert made.edges == (np.nextafter(0.0, -math.inf), *np.arange(1.0, 200.0, 2.0))
    assert made.counts == (0, *[2] * 100, 0)
    assert (made.kind, made.dtype, made.rows, made.low, made.high, made.mean) == ("number", "float64", 200, 0.0, 199.0, 99.5)
    assert (made.categories, made.others, made.most_other, made.examples) == ({}, 0, 0, ())
    assert made.std == pytest.approx(math.sqrt((200**2 - 1) / 12))
    assert made.kurtosis == pytest.approx(3 - 6 / 5 * (200**2 + 1) / (200**2 - 1))


def test_a_sketch_of_words_is_known_by_hand():
    """The most frequent by name, those without a name counted together; of the same number by letters."""
    rows = np.array(["b", "a", None, *(f"w{i:03}" for i in range(103)), "a", "w102", "w102"], dtype=object)
    made = sketch(rows)
    assert list(made.categories.items())[:3] == [("w102", 3), ("a", 2), ("b", 1)]
    assert (made.kind, made.dtype, made.rows, made.missing) == ("category", "text", 109, 1)
    assert (len(made.categories), made.others, made.most_other) == (100, 5, 1)
    assert made.examples == ("w097", "w098", "w099", "w100", "w101")
    assert (made.edges, made.counts, made.mean, made.std, made.low, made.high) == ((), (), None, None, None, None)


@pytest.mark.parametrize(("length", "shown"), [(80, 80), (81, 79)])
def test_a_long_word_keeps_a_name_of_its_own(length, shown):
    """Beyond eighty letters sixty stand for it, and a digest that tells it from others."""
    (one,), (other,) = (sketch(np.array(["x" * (length - 1) + end], dtype=object)).categories for end in "ab")
    assert (len(one), one != other) == (shown, True)


def test_columns_of_several_types_are_of_an_unknown_kind():
    """Words and numbers in one column are compared with nothing; all types are named."""
    made = sketch_batches([{"x": np.array([1.0])}, {"x": np.array(["a"], dtype=object)}, {"x": np.array([2], dtype=np.int8)}])["x"]
    assert (made.kind, made.dtype, made.rows) == ("unknown", "float64, text, int8", 3)
    assert (sketch_batches([{"x": np.empty(0)}])["x"].kind, sketch_batches([]), sketch(np.empty(0)).dtype) == ("number", {}, "float64")


def test_tensors_columns_hold_their_values():
    """A vector's places in order, of a picture mean, least and greatest of each row."""
    found = dict(components({"v": np.array([[1, 2], [3, 4]]), "p": np.arange(2.0 * (COMPONENTS + 1)).reshape(2, -1)}))
    assert {name: values.tolist() for name, values in found.items() if name[0] == "v"} == {"v[0]": [1, 3], "v[1]": [2, 4]}
    last = COMPONENTS + 1.0
    assert found["p:mean"].tolist() == [(last - 1) / 2, last + (last - 1) / 2]
    assert (found["p:low"].tolist(), found["p:high"].tolist()) == ([0.0, last], [last - 1, 2 * last - 1])
    assert len(dict(components({"w": np.zeros((2, COMPONENTS))}))) == COMPONENTS


def test_a_sketch_along_another_has_its_edges_and_names():
    """Counted where the reference counted, so that the two can be compared."""
    before = sketch(np.arange(200.0))
    now = sketch(np.array([-5.0, 0.0, 2.5, 500.0]), before)
    assert (now.edges, sum(now.counts), now.counts[0], now.counts[1], now.counts[2], now.counts[-1]) == (before.edges, 4, 1, 1, 1, 1)
    words_before = sketch(np.array(["a", "b", "b"], dtype=object))
    words_now = sketch(np.array(["c", "b", "c"], dtype=object), words_before)
    assert (words_now.categories, words_now.others, words_now.most_other, words_now.examples) == ({"b": 1, "a": 0}, 2, 2, ("c",))
