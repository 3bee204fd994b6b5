"""Metrics on the golden labels: how outputs are read as answers, and what each comparison is held against."""

from dataclasses import replace

import numpy as np
import pytest
from whole_findings import expected, in_full

from validation.answers import read_answers
from validation.contract import Outcome
from validation.golden_walk import NO_STABLE
from validation.judges import accuracy_at_least
from validation.metrics import Unmeasurable
from validation.policy import GoldenSet, Metric, Slice
from validation.sampling import Cut, Sample
from validation.scoring import Exam, Side, metric_findings, numbers

ACCURACY = Metric(name="accuracy", at_least=0.8, not_worse_than_stable=0.05)
ROWS = 2000
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, ROWS)
SCORES = np.eye(3)[np.where(RANDOM.random(ROWS) < 0.9, LABELS, (LABELS + 1) % 3)] * 0.7 + 0.1
GOOD = {"label": SCORES.argmax(axis=1), "p": SCORES.astype(np.float32)}
BAD = {"label": (LABELS + 1) % 3, "p": np.roll(SCORES, 1, axis=1).astype(np.float32)}


def exam(*metrics, slices=(), cuts=None, labels=LABELS, candidate=GOOD, source=GOOD, stable=None, logged=None, groups=None, rows=ROWS):
    limits = GoldenSet(min_rows=1, atol=0, rtol=0, rows_outside_permille=0, metrics=metrics or (ACCURACY,), slices=slices)
    everything = np.arange(ROWS)
    cuts = cuts or {}
    sample = Sample(rows=everything, whole=everything, cuts=cuts, seen={cut: len(each) for cut, each in cuts.items()}, groups=groups or {})
    return Exam(
        limits=limits,
        sample=sample,
        rows=rows,
        labels=labels,
        candidate=Side(outputs=candidate),
        source=Side(outputs=source),
        stable=NO_STABLE if stable is None else stable if isinstance(stable, Side) else Side(outputs=stable),
        logged=logged or {},
    )


def findings(*args, **kwargs):
    return {each.name: each for each in metric_findings(exam(*args, **kwargs))}


def outcomes(found):
    return {name: each.outcome for name, each in found.items()}


def test_each_metric_is_held_against_limit_source_and_stable():
    """A model like its source and like stable passes all three."""
    assert outcomes(findings(stable=GOOD)) == dict.fromkeys(
        ("accuracy_at_least", "accuracy_within_training", "accuracy_not_worse_than_stable"), Outcome.PASSED
    )


@pytest.mark.parametrize(
    ("sides", "wrong"),
    [
        ({"candidate": BAD, "source": BAD}, {"accuracy_at_least"}),
        ({"candidate": BAD, "source": GOOD}, {"accuracy_at_least", "accuracy_within_training"}),
        ({"candidate": BAD, "source": BAD, "stable": GOOD}, {"accuracy_at_least", "accuracy_not_worse_than_stable"}),
        ({"stable": BAD}, set()),
    ],
)
def test_a_worse_model_fails_against_what_is_better(sides, wrong):
    """Each relation has a finding of its own."""
    assert {name for name, each in findings(**sides).items() if each.outcome is Outcome.FAILED} == wrong


@pytest.mark.parametrize(
    ("metric", "limit"),
    [("auc", {"at_least": 0.8}), ("f1", {"at_least": 0.8}), ("log_loss", {"at_most": 0.6}), ("calibration_error", {"at_most": 0.35})],
)
def test_metrics_of_classes_are_measured_by_name(metric, limit):
    """Direction is in the finding's name; a model like its source passes, and its evidence has a number for each side."""
    held = Metric(name=metric, not_worse_than_stable=0.1, within_training=0.2, **limit)
    found = findings(held)
    way = next(iter(limit))
    assert outcomes(found)[f"{metric}_{way}"] is Outcome.PASSED
    assert outcomes(found)[f"{metric}_within_training"] is Outcome.PASSED
    shown = numbers(exam(held))[metric]
    assert isinstance(shown["candidate"], float)
    assert shown["candidate"] == pytest.approx(shown["source_model"])
    assert shown["stable"] is None


@pytest.mark.parametrize(("metric", "most"), [("rmse", 0.3), ("mae", 0.3), ("mape", 0.1)])
def test_metrics_of_numbers_read_the_one_number_a_row(metric, most):
    """A single float a row, flat or as a column, is the prediction."""
    truth = RANDOM.uniform(5, 10, ROWS)
    said = {"variable": (truth + RANDOM.normal(scale=0.1, size=ROWS)).astype(np.float32).reshape(-1, 1)}
    held = Metric(name=metric, at_most=most, not_worse_than_stable=0.1)
    assert outcomes(findings(held, labels=truth, candidate=said, source=said))[f"{metric}_at_most"] is Outcome.PASSED
    wrong = {"variable": said["variable"] + 5}
    assert outcomes(findings(held, labels=truth, candidate=wrong, source=said)) == {
        f"{metric}_at_most": Outcome.FAILED,
        f"{metric}_within_training": Outcome.FAILED,
        f"{metric}_not_worse_than_stable": Outcome.PASSED,
    }


def test_ranking_needs_its_queries():
    """NDCG orders the rows of each query; without the column nothing is known."""
    held = Metric(name="ndcg", at_least=0.5, not_worse_than_stable=0.1, group="query")
    relevance, queries = np.tile([0, 1, 2, 3], ROWS // 4), np.repeat(np.arange(ROWS // 4), 4).astype(str)
    said = {"score": relevance + RANDOM.normal(scale=0.1, size=ROWS)}
    found = findings(held, labels=relevance, candidate=said, source=said, groups={"query": queries})
    assert outcomes(found)["ndcg_at_least"] is Outcome.PASSED
    found = findings(held, labels=relevance, candidate=said, source=said)
    assert found["ndcg_at_least"].outcome is Outcome.INCONCLUSIVE
    assert "no column 'query'" in found["ndcg_at_least"].why


def test_a_logged_metric_is_compared_without_pairs():
    """What training logged on other rows costs width; what it did not log is not passed."""
    held = replace(ACCURACY, logged_as="val_accuracy", within_training=0.05)
    name = "accuracy_not_worse_than_logged"
    assert findings(held, logged={"val_accuracy": 0.9})[name].outcome is Outcome.PASSED
    assert findings(held, logged={"val_accuracy": 0.999})[name].outcome is Outcome.FAILED
    assert "it logged nothing" in findings(held)[name].why
    assert "it logged loss" in findings(held, logged={"loss": 1.0})[name].why
    for logged in ({}, {"val_accuracy": float("nan")}, {"val_accuracy": "0.9"}, {"val_accuracy": True}):
        assert findings(held, logged=logged)[name].outcome is Outcome.INCONCLUSIVE
    assert name not in findings(ACCURACY)


def cut(value, places):
    return {Cut(column="region", value=value): np.asarray(places)}


def test_every_slice_has_its_findings_and_shares_the_error():
    """A slice that is worse fails though the whole passes; the same slice alone needs less to be judged."""
    spoilt = {name: np.where(np.arange(ROWS) < 100, BAD["label"], GOOD["label"]) for name in ("label",)}
    cuts = cut("EU", range(100)) | cut("US", range(100, ROWS))
    found = findings(slices=(Slice(column="region", values=("EU", "US")),), cuts=cuts, candidate=spoilt, source=spoilt, stable=GOOD)
    assert outcomes(found)["accuracy_at_least"] is Outcome.PASSED
    assert outcomes(found)["accuracy_at_least[region=EU]"] is Outcome.FAILED
    assert outcomes(found)["accuracy_not_worse_than_stable[region=EU]"] is Outcome.FAILED
    assert outcomes(found)["accuracy_at_least[region=US]"] is Outcome.PASSED
    widths = [upper - lower for lower, upper in (found[f"accuracy_at_least{each}"].interval for each in ("", "[region=US]"))]
    assert widths[1] > widths[0]


@pytest.mark.parametrize(("stable", "comparisons"), [(None, 4), (GOOD, 8)])
def test_the_error_is_shared_over_metrics_slices_and_relations(stable, comparisons):
    """Two metrics on two slices are four comparisons, with stable eight; each gets its share of the policy's error."""
    metrics = (ACCURACY, Metric(name="f1", at_least=0.5, not_worse_than_stable=0.05))
    cuts = cut("EU", range(400)) | cut("US", range(400, ROWS))
    found = findings(*metrics, slices=(Slice(column="region", values=("EU", "US")),), cuts=cuts, stable=stable)
    right = int((GOOD["label"][:400] == LABELS[:400]).sum())
    alone = accuracy_at_least(name="alone", correct=right, n=400, limit=0.8, error=0.05 / comparisons)
    assert found["accuracy_at_least[region=EU]"].interval == alone.interval


def test_a_slice_without_rows_or_column_is_not_passed():
    """A slice that lost its rows is noticed by its name."""
    found = findings(slices=(Slice(column="region", values=("EU", "US")),), cuts=cut("EU", []))
    assert {name: each.outcome for name, each in found.items() if "region" in name} == {
        "accuracy_at_least[region=EU]": Outcome.INCONCLUSIVE,
        "accuracy_at_least[region=US]": Outcome.INCONCLUSIVE,
    }
    assert all(each.advice and each.n == 0 for name, each in found.items() if "region" in name)


def test_a_sample_is_said():
    """What was not measured on all rows says on how many of how many."""
    assert findings(rows=10 * ROWS)["accuracy_at_least"].why.endswith("on a random sample of 2000 of 20000 rows")


def test_a_side_without_answers_is_inconclusive():
    """When stable cannot answer it is not known whether the candidate is worse."""
    finding = findings(stable=Side(outputs=None, why_not="stable is gone"))["accuracy_not_worse_than_stable"]
    assert (finding.outcome, finding.why) == (Outcome.INCONCLUSIVE, "stable is gone")


WORDS = np.array(["bird", "cat", "dog"])


@pytest.mark.parametrize(
    ("outputs", "labels", "predicted", "classes"),
    [
        ({"label": LABELS}, LABELS, LABELS, None),
        ({"p": SCORES.astype(np.float32)}, LABELS, SCORES.argmax(axis=1), (0, 1, 2)),
        ({"p": SCORES.astype(np.float32)}, WORDS[LABELS], WORDS[SCORES.argmax(axis=1)], tuple(WORDS)),
        ({"p": SCORES.astype(np.float32)}, LABELS + 1, SCORES.argmax(axis=1) + 1, (1, 2, 3)),
        (GOOD, LABELS.astype(float), GOOD["label"], (0, 1, 2)),
        ({"label": WORDS[GOOD["label"]], "p": GOOD["p"]}, WORDS[LABELS], WORDS[GOOD["label"]], tuple(WORDS)),
        ({"label": GOOD["label"], "p": np.roll(GOOD["p"], 1, axis=1)}, LABELS, GOOD["label"], None),
        ({"chance": SCORES[:, 1].astype(np.float32)}, (LABELS == 1).astype(int), (SCORES[:, 1] >= 0.5).astype(int), (0, 1)),
        ({"chance": SCORES[:, 1].astype(np.float32)}, LABELS == 1, (SCORES[:, 1] >= 0.5).astype(int), (0, 1)),
        ({"label": GOOD["label"].astype(str)}, LABELS, GOOD["label"].astype(str), None),
    ],
    ids=["label", "vector", "words", "from 1", "floats", "named", "other order", "chance", "truth", "text of numbers"],
)
def test_outputs_are_read_by_their_form(outputs, labels, predicted, classes):
    """One word or whole number a row is the label; scores have the order of the labels, unless the label says otherwise."""
    answers = read_answers("accuracy", outputs, labels)
    assert answers.predicted.tolist() == predicted.tolist()
    assert answers.classes == classes
    assert (answers.scores is None) == (classes is None)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels"),
    [
        ("accuracy", {"a": LABELS, "b": LABELS}, LABELS),
        ("accuracy", {"score": SCORES[:, 0] * 9}, LABELS),
        ("accuracy", {"p": SCORES}, LABELS * 100),
        ("accuracy", {"p": SCORES, "q": SCORES}, LABELS),
        ("rmse", {"a": SCORES[:, 0], "b": SCORES[:, 1]}, SCORES[:, 0]),
        ("rmse", {"p": SCORES}, SCORES[:, 0]),
        ("mae", {"word": WORDS[LABELS]}, SCORES[:, 0]),
    ],
)
def test_what_can_be_read_in_two_ways_is_not_read(metric, outputs, labels):
    """Two labels, a score without meaning, columns without names: the reader says what is missing. Codes that skip are names in order."""
    if metric == "accuracy" and labels.max() > 10:
        assert read_answers(metric, outputs, labels).classes == (0, 100, 200)
        return
    with pytest.raises(Unmeasurable) as error:
        read_answers(metric, outputs, labels)
    assert error.value.advice


# What a finding says


SLICES = (Slice(column="region", values=("EU", "US", "UK")),)
CUTS = cut("EU", range(400)) | cut("US", [])
LOGGED = replace(ACCURACY, logged_as="val_accuracy", within_training=0.05)
NO_QUERY = Metric(name="ndcg", at_least=0.5, not_worse_than_stable=0.1, group="query")
WHOLE = {
    "like source and stable": lambda: findings(stable=GOOD).values(),
    "the first version": lambda: findings().values(),
    "a stable version that is gone": lambda: findings(stable=Side(outputs=None, why_not="stable is gone")).values(),
    "slices": lambda: findings(slices=SLICES, cuts=CUTS, stable=GOOD).values(),
    "slices of the first version": lambda: findings(slices=SLICES, cuts=CUTS).values(),
    "a sample": lambda: findings(rows=10 * ROWS).values(),
    "as logged": lambda: findings(LOGGED, logged={"val_accuracy": 0.9}).values(),
    "not logged": lambda: findings(LOGGED, logged={"loss": 0.9, "auc": 1.0}).values(),
    "no queries": lambda: findings(NO_QUERY).values(),
    "two labels": lambda: findings(candidate={"a": LABELS, "b": LABELS}).values(),
    "classes without names": lambda: findings(
        candidate={"p": SCORES}, labels=LABELS * 2 % 5 % 3 + (LABELS == 1) * 7.0 * (np.arange(ROWS) % 2)
    ).values(),
    "two numbers": lambda: findings(
        Metric(name="mae", at_most=1, not_worse_than_stable=0.1), candidate={"a": SCORES[:, 0], "b": SCORES[:, 1]}
    ).values(),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Words, numbers, interval, size and advice: all that people and the registry read, in each outcome."""
    assert in_full(WHOLE[case]()) == expected("scoring", case)
