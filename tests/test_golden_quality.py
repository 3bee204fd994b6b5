"""The golden set as a finding: doubles, leaked labels, age. What cannot be known is never passed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from whole_findings import expected, in_full

from validation import golden_quality
from validation.contract import Outcome
from validation.drift import sketch_batches
from validation.golden_quality import (
    DAY_S,
    Duplicates,
    determined,
    enough_rows,
    few_duplicates,
    is_numeric,
    no_leakage,
    row_hashes,
    telling_places,
    young_enough,
)
from validation.traffic_sample import Traffic

TABLES = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(0, 3).map(float))


def duplicates(hashes, sample=None, limit=10):
    found = Duplicates()
    for part in np.array_split(hashes, 7):
        found.add(part)
    return few_duplicates(found, hashes if sample is None else sample, limit)


@given(TABLES)
def test_rows_that_stood_there_before_are_counted_exactly(values):
    """Of a small set the share is counted, whatever the order and the batches."""
    distinct = len({tuple(row) for row in values.tolist()})
    finding = duplicates(row_hashes({"X": values}))
    assert finding.observed == pytest.approx(1000 * (len(values) - distinct) / len(values))
    assert duplicates(row_hashes({"X": values[::-1]})).observed == finding.observed


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, bool, object, str])
def test_hashes_tell_rows_apart_in_every_dtype(dtype):
    """Whole numbers below 256 in two columns: 256 different rows, 256 hashes; the same rows, the same hashes."""
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2)
    values = grid.astype(str).astype(dtype) if dtype in {object, str} else grid.astype(dtype)
    expected = 4 if dtype is bool else 256
    assert len(set(row_hashes({"X": values}).tolist())) == expected
    assert (row_hashes({"X": values}) == row_hashes({"X": values.copy()})).all()


def test_hashes_tell_inputs_apart():
    """A value in one input is not the same value in another; zero has no sign."""
    one, two = np.array([[1.0]]), np.array([[2.0]])
    assert row_hashes({"a": one, "b": two}) != row_hashes({"a": two, "b": one})
    assert row_hashes({"a": np.array([[0.0]])}) == row_hashes({"a": np.array([[-0.0]])})


@pytest.mark.parametrize(("copies", "outcome"), [(10, Outcome.PASSED), (11, Outcome.FAILED)])
def test_more_doubles_than_allowed_fail(copies, outcome):
    """Ten of a thousand are ten per mille."""
    hashes = np.arange(1000, dtype=np.uint64)
    hashes[:copies] = 999
    assert duplicates(hashes).outcome is outcome


def test_large_sets_are_estimated_in_flat_memory(monkeypatch):
    """Beyond the limit a share of all hashes is kept, and the estimate is near the truth and says that it is one."""
    monkeypatch.setattr(golden_quality, "DISTINCT", 2000)
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 50_000).astype(np.uint64)
    hashes[:10_000] = hashes[10_000:20_000]
    found = Duplicates()
    for part in np.array_split(hashes, 20):
        found.add(part)
    assert len(found._hashes) <= 2000
    finding = few_duplicates(found, hashes[::50], 10)
    assert finding.observed == pytest.approx(200, rel=0.2)
    assert "estimated" in finding.why


def test_one_row_of_very_many_copies_is_seen_in_a_large_set(monkeypatch):
    """The kept hashes may lack it; a uniform sample of rows does not."""
    monkeypatch.setattr(golden_quality, "DISTINCT", 1000)
    for repeated in range(8):
        hashes = np.random.default_rng(1).integers(0, 2**63, 50_000).astype(np.uint64)
        hashes[::2] = repeated
        found = Duplicates()
        found.add(hashes)
        assert few_duplicates(found, hashes[:1000], 400).outcome is Outcome.FAILED


def test_just_enough_rows_are_enough():
    """The policy's number is the least that passes; one fewer says how many are missing."""
    enough, few = enough_rows(500, 500), enough_rows(499, 500)
    assert (enough.outcome, enough.observed, enough.limit, enough.n) == (Outcome.PASSED, 500, 500, 500)
    assert (few.outcome, few.advice) == (Outcome.INCONCLUSIVE, "add 1 rows to the golden set")


TENS = np.repeat(np.arange(10), 10)
HUNDRED = np.arange(100)


@pytest.mark.parametrize(
    ("values", "labels", "share"),
    [
        (HUNDRED, HUNDRED // 50, 1.0),
        (HUNDRED, np.where(HUNDRED == 10, 1, HUNDRED // 50), 1 - 1 / 49),
        (HUNDRED, np.zeros(100, int), 0.0),
        (np.zeros(100, int), HUNDRED // 50, 0.0),
        (TENS, TENS % 2, 1.0),
        (TENS, np.where(HUNDRED == 0, 1, TENS % 2), 1 - 1 / 49),
        (np.repeat(np.arange(10), 9), np.repeat(np.arange(10) % 2, 9), 1 - 4 / 45),
        (TENS, HUNDRED % 2, 0.0),
    ],
    ids=["threshold", "one stray", "one label", "constant", "codes", "one wrong", "too rare to be codes", "nothing"],
)
def test_what_a_value_tells_is_the_share_of_errors_that_it_spares(values, labels, share):
    """Against always naming the commonest label; values of ten rows or more stand for themselves, others for their order."""
    assert determined(values, labels) == pytest.approx(share)


def test_a_constant_orders_nothing():
    """A column without differences is no leak of a measured label, and breaks nothing."""
    assert no_leakage({"X": np.ones((300, 1))}, np.linspace(0, 1, 300)).outcome is Outcome.PASSED


@pytest.mark.parametrize(("rows_", "classes"), [(20, 2), (100, 5), (2000, 100), (100_000, 100)])
def test_as_many_classes_as_rows_can_show(rows_, classes):
    """Whole numbers are classes up to one for twenty rows, two at least and a hundred at most."""
    assert not is_numeric(np.arange(rows_) % classes)
    assert is_numeric(np.arange(rows_) % (classes + 1))


def rows(n=600, seed=0):
    random = np.random.default_rng(seed)
    values = random.normal(size=(n, 3)).astype(np.float32)
    return values, (values.sum(axis=1) + random.normal(size=n) > 0).astype(np.int64), random


@pytest.mark.parametrize(
    "leak",
    [
        lambda labels, random: labels,
        lambda labels, random: 1 - labels,
        lambda labels, random: labels * 1000.0 - 7,
        lambda labels, random: labels + random.uniform(0, 0.5, len(labels)),
        lambda labels, random: np.where(np.arange(len(labels)) == 5, 1 - labels, labels),
        lambda labels, random: random.integers(0, 5, len(labels)) * 2 + labels,
    ],
    ids=["copy", "turned", "scaled", "noisy", "one wrong", "codes"],
)
def test_an_input_that_gives_the_label_away_fails(leak):
    """A copy, a bijection, a threshold, also with a stray row: the finding names the input."""
    values, labels, random = rows()
    spoilt = values.astype(np.float64)
    spoilt[:, 1] = leak(labels, random)
    finding = no_leakage({"X": spoilt}, labels)
    assert finding.outcome is Outcome.FAILED
    assert finding.why.startswith("X[1] alone determines the label")


def test_words_leak_too():
    """A column of words that names the class, and labels that are words."""
    values, labels, _ = rows()
    words = np.array(["no", "yes"])[labels]
    inputs = {"X": values, "answer": np.array(["n", "y"], dtype=object)[labels].reshape(-1, 1)}
    assert no_leakage(inputs, words).why.startswith("answer[0] alone")


def test_numbers_leak_by_rank():
    """A label that is measured is given away by anything that orders the rows alike."""
    values, _, random = rows()
    target = values.sum(axis=1) + random.normal(size=len(values))
    assert no_leakage({"X": values}, target).outcome is Outcome.PASSED
    assert no_leakage({"X": np.column_stack([values, np.exp(target)])}, target).why.startswith("X[3] alone")


def test_a_good_input_is_no_leak():
    """What tells much of the label is what models are for; names that are never repeated tell nothing."""
    values, labels, random = rows()
    strong = labels + random.normal(scale=0.4, size=len(labels))
    names = np.arange(len(labels)).astype(str).astype(object)
    assert no_leakage({"X": np.column_stack([values, strong])}, labels).outcome is Outcome.PASSED
    assert no_leakage({"id": random.permutation(names)}, labels).outcome is Outcome.PASSED


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_noise_determines_nothing(seed):
    """Random values never look like a leak."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 400)
    assert determined(np.unique(random.normal(size=400), return_inverse=True)[1], labels) < 0.8
    assert determined(random.integers(0, 8, 400), labels) < 0.8


@pytest.mark.parametrize("labels", [np.zeros(0, int), np.zeros(600, int), np.r_[np.ones(19, int), np.zeros(581, int)]])
def test_too_few_labels_are_inconclusive(labels):
    """With one label, or a few rows of the other, chance separates as well as a leak."""
    values = np.zeros((len(labels), 1))
    finding = no_leakage({"X": values}, labels)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert finding.advice


def test_rare_labels_are_looked_at_first():
    """Of a million rows with twenty frauds the twenty are among the few that are looked at; numbers are spread evenly."""
    labels = np.zeros(100_000, int)
    labels[::5000] = 1
    places = telling_places(labels, 1000)
    assert labels[places].sum() == 20
    assert len(places) <= 1000
    assert (np.diff(places) > 0).all()
    assert telling_places(np.linspace(0, 1, 101), 3).tolist() == [0, 50, 100]
    assert telling_places(np.empty(0), 3).tolist() == []


def test_labels_are_classes_or_numbers():
    """Fractions and many different values are measured; a few whole numbers, words and truth values are classes."""
    assert is_numeric(np.array([0.5, 1.5]))
    assert is_numeric(np.arange(1000))
    assert not is_numeric(np.arange(1000) % 10)
    assert not is_numeric(np.array([1.0, 0.0, 1.0]))
    assert not is_numeric(np.array(["a", "b"]))
    assert not is_numeric(np.array([True, False]))


@pytest.mark.parametrize(
    ("written", "outcome"),
    [
        (100 * DAY_S, Outcome.PASSED),
        (70 * DAY_S, Outcome.PASSED),
        (69 * DAY_S, Outcome.FAILED),
        (102 * DAY_S, Outcome.INCONCLUSIVE),
        (None, Outcome.INCONCLUSIVE),
        ("yesterday", Outcome.INCONCLUSIVE),
        (float("nan"), Outcome.INCONCLUSIVE),
        (True, Outcome.INCONCLUSIVE),
    ],
)
def test_the_age_is_known_and_within_its_limit_or_not_passed(written, outcome):
    """Unknown, unreadable and future ages are inconclusive; one day of clock skew is forgiven."""
    assert young_enough({"written_unix_s": written}, 30, now_unix_s=100 * DAY_S).outcome is outcome


def test_an_age_that_the_manifest_lacks_is_inconclusive():
    """No key is no age."""
    assert young_enough({}, 30).outcome is Outcome.INCONCLUSIVE


# What a finding says


def doubled(rows_, copies, level=0):
    """So many rows of which some are copies, counted, or estimated from a share of their hashes."""
    found, hashes = Duplicates(), np.arange(rows_, dtype=np.uint64) * np.uint64(4)
    hashes[:copies] = hashes[-1]
    found.level = level
    found.add(hashes)
    return few_duplicates(found, hashes[:100], 10)


def leaking(leak):
    values, labels, _ = rows()
    return no_leakage({"X": np.column_stack([values, leak(labels)])}, labels)


def aged(days, limit=30.0):
    return young_enough({"written_unix_s": -days * DAY_S}, limit, now_unix_s=0)


NORMAL = np.random.default_rng(0).normal(size=(3000, 1))


def traffic(rows):
    """A sample whose rows are normal and came at 0."""
    return Traffic(rows=rows, newest_unix_s=0.0, sketches=sketch_batches([{"X": np.random.default_rng(1).normal(size=(rows, 1))}]))


WHOLE = {
    "enough rows": lambda: enough_rows(500, 500),
    "a row too few": lambda: enough_rows(499, 500),
    "no duplicates": lambda: doubled(1000, 0),
    "too many duplicates": lambda: doubled(1000, 100),
    "too many duplicates by estimate": lambda: doubled(1000, 100, level=2),
    "no leak": lambda: leaking(lambda labels: 0 * labels),
    "a leak": lambda: leaking(lambda labels: 1 - labels),
    "one label": lambda: no_leakage({"X": np.zeros((30, 1))}, np.zeros(30, int)),
    "a rare label": lambda: no_leakage({"X": np.zeros((30, 1))}, np.r_[np.ones(7, int), np.zeros(23, int)]),
    "young": lambda: aged(12.3456),
    "of just the age": lambda: aged(30.0),
    "old": lambda: aged(30.5),
    "of tomorrow": lambda: aged(-1.0),
    "of the future": lambda: aged(-1.5),
    "of no known age": lambda: young_enough({"written_unix_s": None}, 30.5),
    "like traffic": lambda: golden_quality.like_traffic(None, ()),
    "like few rows of traffic": lambda: golden_quality.like_traffic(traffic(99), (), now_unix_s=0.0),
    "like old traffic": lambda: golden_quality.like_traffic(traffic(5000), (), now_unix_s=7.5 * 86_400),
    "like traffic that is like it": lambda: golden_quality.like_traffic(traffic(5000), [{"X": NORMAL}], now_unix_s=0.0),
    "like traffic that is not": lambda: golden_quality.like_traffic(traffic(5000), [{"X": 3 * NORMAL}], now_unix_s=0.0),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Words, numbers, interval, size and advice: all that people and the registry read, in each outcome."""
    assert in_full(WHOLE[case]()) == expected("golden_quality", case)


def test_no_place_is_spread_over_none():
    """At most so many of no places, or none of many, are none."""
    assert golden_quality.spread(np.arange(5), 0).tolist() == []
    assert golden_quality.spread(np.empty(0, np.int64), 3).tolist() == []
    assert golden_quality.spread(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert golden_quality.spread(np.arange(3), 4).tolist() == [0, 1, 2]


def test_duplicates_of_no_rows_are_no_pass() -> None:
    """An empty set has no doubles, and nothing else either."""
    assert few_duplicates(Duplicates(), np.empty(0, np.uint64), 10).outcome is Outcome.FAILED
