"""The metrics: scikit-learn's values, contributions that carry their sampling error, and no value at all where nothing can be measured."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from whole_findings import expected, in_full

from bench.offline_judges import policy_metric
from validation.contract import Outcome
from validation.metrics import Answers, Unmeasurable, contributions, not_worse, not_worse_than_logged, within_limit
from validation.policy import HIGHER_IS_BETTER, UNBOUNDED, Metric

CLASSES = ("accuracy", "auc", "f1", "log_loss", "calibration_error")
NUMBERS = ("rmse", "mae", "mape")
EVERY = (*CLASSES, *NUMBERS, "ndcg")


def two_classes(rows=1000, seed=1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    chance = 1 / (1 + np.exp(-2 * rng.normal(2.0 * labels - 1, 1)))
    return Answers(labels=labels, predicted=(chance > 0.5).astype(int), scores=np.column_stack((1 - chance, chance)), classes=(0, 1))


def three_classes(rows=900, seed=2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    odds = rng.normal(size=(rows, 3)) + 1.5 * np.eye(3)[labels]
    chances = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    words = np.array(["ash", "birch", "cedar"])
    return Answers(labels=words[labels], predicted=words[chances.argmax(axis=1)], scores=chances, classes=tuple(words))


def numbers(rows=1000, seed=3, noise=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(1, 3, rows)
    return Answers(labels=labels, predicted=labels + rng.normal(0, noise, rows))


def queries(count=800, seed=4):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), rng.integers(2, 9, count))
    relevance = rng.integers(0, 4, len(groups)).astype(float)
    relevance[np.flatnonzero(np.diff(groups, prepend=-1))] += 1  # each query has a relevant row
    return Answers(labels=relevance, predicted=np.round(relevance + rng.normal(0, 2, len(groups))), groups=groups)


def answers(name, rows=1000):
    return queries() if name == "ndcg" else numbers(rows) if name in NUMBERS else two_classes(rows)


def value(name, said):
    return contributions(policy_metric(name), said).estimate


def limited(name, limit):
    key = "at_least" if HIGHER_IS_BETTER[name] else "at_most"
    return Metric(name=name, not_worse_than_stable=0.005, group="query" if name == "ndcg" else None, **{key: limit})


def judged(name, candidate, reference, margin=0.005):
    return not_worse(f"{name}_within_training", policy_metric(name), candidate, reference, margin=margin, error=0.05)


# Values


def test_values_of_two_classes_are_scikit_learns():
    """Accuracy, AUC, F1 of the second class and log loss are what scikit-learn says."""
    said = two_classes()
    expected = {
        "accuracy": sklearn.accuracy_score(said.labels, said.predicted),
        "auc": sklearn.roc_auc_score(said.labels, said.scores[:, 1]),
        "f1": sklearn.f1_score(said.labels, said.predicted),
        "log_loss": sklearn.log_loss(said.labels, said.scores),
    }
    assert {name: value(name, said) for name in expected} == pytest.approx(expected, rel=1e-12)


def test_values_of_several_classes_are_scikit_learns():
    """AUC is one against the rest and F1 macro, both the plain mean over the classes."""
    said = three_classes()
    expected = {
        "accuracy": sklearn.accuracy_score(said.labels, said.predicted),
        "auc": sklearn.roc_auc_score(said.labels, said.scores, multi_class="ovr", average="macro"),
        "f1": sklearn.f1_score(said.labels, said.predicted, average="macro"),
        "log_loss": sklearn.log_loss(said.labels, said.scores),
    }
    assert {name: value(name, said) for name in expected} == pytest.approx(expected, rel=1e-12)


def test_values_of_numbers_are_scikit_learns():
    """RMSE, MAE and MAPE are what scikit-learn says."""
    said = numbers()
    pair = said.labels, said.predicted
    expected = {
        "rmse": sklearn.root_mean_squared_error(*pair),
        "mae": sklearn.mean_absolute_error(*pair),
        "mape": sklearn.mean_absolute_percentage_error(*pair),
    }
    assert {name: value(name, said) for name in expected} == pytest.approx(expected, rel=1e-12)


def test_ndcg_is_scikit_learns_for_each_query():
    """Queries of any length, with ties in the scores: the mean of scikit-learn's value of each query."""
    said = queries(60)
    each = [sklearn.ndcg_score([said.labels[said.groups == q]], [said.predicted[said.groups == q]]) for q in range(60)]
    found = contributions(policy_metric("ndcg"), said)
    assert found.values == pytest.approx(each, rel=1e-12)
    assert (found.estimate, found.rows) == (pytest.approx(np.mean(each)), "queries")


def test_calibration_error_is_the_weighted_gap_of_ten_bins():
    """Two bins of known gaps: 0.25 said and 0.5 true on six rows in ten, 0.75 said and 0.75 true on the others."""
    chances = np.array([0.25] * 60 + [0.75] * 40)
    labels = np.array([1, 0] * 30 + [1, 1, 1, 0] * 10)
    assert value("calibration_error", Answers(labels=labels, scores=chances, classes=(0, 1))) == pytest.approx(0.6 * 0.25)


def test_calibration_error_of_several_classes_is_the_greatest_probabilitys():
    """A model that says 0.8 for its answer and is right in half of the rows is 0.3 off."""
    scores = np.tile([0.8, 0.1, 0.1], (100, 1))
    assert value("calibration_error", Answers(labels=np.array([0, 1] * 50), scores=scores, classes=(0, 1, 2))) == pytest.approx(0.3)


def test_auc_needs_no_probabilities():
    """Log odds rank the rows as their probabilities do, of two classes and of three."""
    for said in (two_classes(), three_classes()):
        assert value("auc", replace(said, scores=np.log(said.scores))) == pytest.approx(value("auc", said), abs=0.02)
    said = two_classes()
    odds = np.log(said.scores[:, 1] / said.scores[:, 0])
    assert value("auc", replace(said, scores=odds)) == pytest.approx(value("auc", said), rel=1e-12)


@pytest.mark.parametrize("shape", [(1000,), (1000, 1)])
def test_one_score_is_the_second_classes(shape):
    """A model of two classes may answer with the second class's probability alone."""
    said = two_classes()
    alone = replace(said, scores=said.scores[:, 1].reshape(shape))
    for name in ("auc", "log_loss", "calibration_error"):
        assert value(name, alone) == pytest.approx(value(name, said), rel=1e-9)


def test_words_and_numbers_are_the_same_labels():
    """Labels from a table of words and answers as numbers, or objects, agree where they say the same."""
    said = two_classes()
    words = replace(said, labels=said.labels.astype(str), predicted=said.predicted.astype(object), classes=("0", "1"))
    for name in CLASSES:
        assert value(name, words) == pytest.approx(value(name, said), rel=1e-12)


# Contributions


@pytest.mark.parametrize("name", EVERY)
def test_contributions_carry_the_sampling_error(name):
    """Their standard error is the one that values on other rows really have: 300 samples, to a quarter."""
    found = [contributions(policy_metric(name), sample(name, seed)) for seed in range(300)]
    stated = np.sqrt(np.mean([np.var(each.values, ddof=1) / len(each.values) for each in found]))
    assert stated == pytest.approx(np.std([each.estimate for each in found]), rel=0.25)


def sample(name, seed):
    if name == "calibration_error":  # away from 0, where the absolute value bends its distribution
        said = two_classes(300, seed)
        return replace(said, scores=said.scores**3 / (said.scores**3).sum(axis=1, keepdims=True))
    return queries(150, seed) if name == "ndcg" else numbers(300, seed) if name in NUMBERS else two_classes(300, seed)


@pytest.mark.parametrize("name", ["auc", "f1", "log_loss"])
def test_contributions_of_several_classes_carry_it_too(name):
    """One against the rest and macro means add up row by row."""
    found = [contributions(policy_metric(name), three_classes(300, seed)) for seed in range(300)]
    stated = np.sqrt(np.mean([np.var(each.values, ddof=1) / len(each.values) for each in found]))
    assert stated == pytest.approx(np.std([each.estimate for each in found]), rel=0.25)


def test_scales_say_what_a_lost_row_costs():
    """Of scores from 0 to 1 what a row can cost at most, or loses without any information; of losses the loss itself."""
    labels = np.array([1] * 10 + [0] * 90)
    scores = np.linspace(1, 0, 100)
    rare = Answers(labels=labels, predicted=np.array([1] * 8 + [0] * 90 + [1] * 2), scores=scores, classes=(0, 1))
    turned = replace(rare, labels=1 - labels, predicted=1 - rare.predicted)
    found = {name: contributions(policy_metric(name), rare) for name in CLASSES}
    assert found["auc"].scale == pytest.approx(0.5 / 0.1)
    assert contributions(policy_metric("auc"), turned).scale == pytest.approx(0.5 / 0.1)
    assert found["f1"].scale == pytest.approx((2 - 0.8) / 0.2)
    assert (found["accuracy"].scale, found["calibration_error"].scale) == (1, 1)
    assert found["log_loss"].scale == found["log_loss"].estimate
    assert {contributions(policy_metric(name), numbers()).scale / value(name, numbers()) for name in NUMBERS} == {1}
    assert contributions(policy_metric("ndcg"), queries()).scale == 1


def test_a_lost_row_of_several_classes_costs_two_of_them():
    """It is a hit less for one class and a false alarm more for another; AUC's scale is a class's, as one of three."""
    labels = np.repeat([0, 1, 2], 100)
    said = Answers(labels=labels, predicted=labels, scores=np.eye(3)[labels], classes=(0, 1, 2))
    assert contributions(policy_metric("f1"), said).scale == pytest.approx((1 / (2 / 3) + 1 / (2 / 3)) / 3)
    assert contributions(policy_metric("auc"), said).scale == pytest.approx(0.5 / (1 / 3) / 3)


def test_the_bias_of_calibration_error_is_bounded():
    """Of a calibrated model's estimate all is bias: on average as much as the bound says, to 2 %."""
    rng = np.random.default_rng(6)
    chances = rng.uniform(0, 1, (300, 500))
    found = [
        contributions(policy_metric("calibration_error"), Answers(labels=(rng.random(500) < each).astype(int), scores=each, classes=(0, 1)))
        for each in chances
    ]
    estimate, bound = np.mean([each.estimate for each in found]), np.mean([each.over for each in found])
    assert estimate == pytest.approx(bound, rel=0.02)


# Findings


@pytest.mark.parametrize("name", EVERY)
def test_the_same_answers_pass_on_a_thousand_rows(name):
    """A model that is exported without a change is not worse by half a point or half a per cent."""
    said = answers(name)
    finding = judged(name, said, replace(said))
    assert (finding.outcome, finding.n) == (Outcome.PASSED, 800 if name == "ndcg" else 1000)
    assert "at the margin <= 5 %" in finding.why or name == "calibration_error"


@pytest.mark.parametrize("name", [each for each in EVERY if each != "ndcg"])
def test_few_rows_say_how_many_are_needed(name):
    """The same answers on 200 rows show too little; with the advised number they pass."""
    said = answers(name, 200)
    finding = judged(name, said, said)
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert 590 <= 200 + int(finding.advice.split()[1]) <= 6000


@pytest.mark.parametrize("name", EVERY)
def test_a_broken_model_fails(name):
    """Answers that belong to other rows are surely worse than the margin, and surely beyond a strict limit."""
    said = answers(name)
    order = np.random.default_rng(9).permutation(len(said.labels))
    parts = {key: None if getattr(said, key) is None else getattr(said, key)[order] for key in ("predicted", "scores")}
    broken = replace(said, **parts)
    assert judged(name, broken, said).outcome is Outcome.FAILED
    middle = (value(name, broken) + value(name, said)) / 2
    assert within_limit(name, limited(name, middle), broken, error=0.05).outcome is Outcome.FAILED
    assert (
        not_worse_than_logged(name, policy_metric(name), broken, logged=value(name, said), margin=0.005, error=0.05).outcome
        is Outcome.FAILED
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_limit_is_kept_only_with_distance(name):
    """At the estimate itself the limit is on neither side; far enough on the good side it is surely kept."""
    said = answers(name)
    found, good = value(name, said), -1 if HIGHER_IS_BETTER[name] else 1
    loose = found + good * (0.5 * found if name in UNBOUNDED else 0.1)
    assert within_limit(name, limited(name, found), said, error=0.05).outcome is Outcome.INCONCLUSIVE
    assert within_limit(name, limited(name, loose), said, error=0.05).outcome is Outcome.PASSED


@pytest.mark.parametrize("name", EVERY)
def test_a_logged_metric_is_not_paired_and_pays_for_it(name):
    """The finding says that the rows are others, and its interval is 1.4 times as wide as that of the metric alone, or more."""
    said = answers(name)
    finding = not_worse_than_logged(name, policy_metric(name), said, logged=value(name, said), margin=0.005, error=0.05)
    alone = within_limit(name, limited(name, value(name, said)), said, error=0.05)
    whole = value(name, said) if name in UNBOUNDED else 1
    width, own = (upper - lower for lower, upper in (finding.interval, alone.interval))
    assert "not paired" in finding.why
    assert width >= math.sqrt(2) * own / whole * 0.99
    assert finding.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("name", "logged"), [("accuracy", 93.2), ("auc", -0.1), ("rmse", math.nan), ("mae", math.inf), ("f1", math.nan)])
def test_a_logged_value_that_the_metric_cannot_have_shows_nothing(name, logged):
    """An accuracy logged in per cent would fail or pass anything."""
    with pytest.raises(Unmeasurable, match="training logged"):
        not_worse_than_logged(name, policy_metric(name), answers(name), logged=logged, margin=0.005, error=0.05)


def test_the_ends_of_a_metrics_range_can_be_logged():
    """An accuracy of 0 or 1 is possible; of an error of 0 nothing is a share."""
    judge = {"margin": 0.005, "error": 0.05}
    assert not_worse_than_logged("a", policy_metric("accuracy"), two_classes(), logged=0, **judge).outcome is Outcome.PASSED
    assert not_worse_than_logged("a", policy_metric("accuracy"), two_classes(), logged=1, **judge).outcome is Outcome.FAILED
    assert not_worse_than_logged("a", policy_metric("rmse"), numbers(), logged=0, **judge).outcome is Outcome.INCONCLUSIVE
    assert not_worse_than_logged("a", policy_metric("rmse"), numbers(), logged=2, **judge).outcome is Outcome.PASSED


def test_numbers_in_an_array_of_objects_are_numbers():
    """Tables with gaps or mixed types come as objects."""
    said = numbers()
    objects = replace(said, labels=said.labels.astype(object), predicted=said.predicted.astype(object))
    assert value("rmse", objects) == pytest.approx(value("rmse", said), rel=1e-12)


def test_calibration_is_shown_by_either_way():
    """A much better calibrated version passes by its error, one that says nearly the same by how little the bins moved."""
    rng = np.random.default_rng(5)
    chance = rng.uniform(0.02, 0.98, 4000)
    labels = (rng.random(4000) < chance).astype(int)
    good, sure = Answers(labels=labels, scores=chance, classes=(0, 1)), Answers(labels=labels, scores=chance**4, classes=(0, 1))
    assert judged("calibration_error", good, sure).outcome is Outcome.PASSED
    assert "bins' gaps moved" in judged("calibration_error", good, good).why
    assert judged("calibration_error", sure, good).outcome is Outcome.FAILED


def test_no_chance_for_the_true_class_is_counted_and_said():
    """A probability of 0 on the true class is a loss of 15.9, whatever the dtype, and the finding says on how many rows."""
    said = two_classes()
    hit = said.scores.copy()
    hit[:7] = np.eye(2)[1 - said.labels[:7]]
    found = [contributions(policy_metric("log_loss"), replace(said, scores=hit.astype(kind))) for kind in (np.float32, np.float64)]
    assert found[0].values[:7] == found[1].values[:7] == pytest.approx([-math.log(np.finfo(np.float32).eps)] * 7)
    assert "7 rows" in judged("log_loss", replace(said, scores=hit), said).why


# Nothing to measure


def spoilt(name, **change):
    said = {"classes": two_classes(), "numbers": numbers(), "queries": queries()}[change.pop("of", "classes")]
    return name, replace(said, **{key: each(said) if callable(each) else each for key, each in change.items()})


def with_first(array, first):
    spoilt_array = array.astype(object if first is None else float)
    spoilt_array[0] = first
    return spoilt_array


MISSING = (
    "a NaN ranking",
    "a missing label",
    "a NaN label",
    "an infinite label",
    "a NaN among objects",
    "an infinity among objects",
    "a NaN answer",
)
UNMEASURABLE = {
    "no rows": spoilt("auc", labels=np.empty(0), predicted=np.empty(0), scores=np.empty((0, 2))),
    "a missing label": spoilt("f1", labels=lambda a: with_first(a.labels, None)),
    "a NaN label": spoilt("accuracy", labels=lambda a: with_first(a.labels, math.nan)),
    "an infinite label": spoilt("rmse", of="numbers", labels=lambda a: with_first(a.labels, math.inf)),
    "a NaN among objects": spoilt("f1", labels=lambda a: with_first(a.labels, math.nan).astype(object)),
    "an infinity among objects": spoilt("f1", labels=lambda a: with_first(a.labels, -math.inf).astype(object)),
    "one class": spoilt("auc", labels=np.zeros(1000, int)),
    "one class that is not said": spoilt("log_loss", labels=np.zeros(1000, int), classes=None),
    "an unknown label": spoilt("f1", labels=lambda a: with_first(a.labels, 7)),
    "an unknown answer": spoilt("f1", predicted=lambda a: with_first(a.predicted, 7)),
    "no answers": spoilt("accuracy", predicted=None),
    "a NaN answer": spoilt("accuracy", predicted=lambda a: with_first(a.predicted, math.nan)),
    "too few answers": spoilt("accuracy", predicted=lambda a: a.predicted[1:]),
    "answers in two columns": spoilt("f1", predicted=lambda a: a.scores),
    "no scores": spoilt("auc", scores=None),
    "a NaN score": spoilt("auc", scores=lambda a: with_first(a.scores, math.nan)),
    "an infinite score": spoilt("log_loss", scores=lambda a: with_first(a.scores, math.inf)),
    "scores of three classes": spoilt("auc", scores=np.full((1000, 3), 1 / 3)),
    "too few scores": spoilt("log_loss", scores=lambda a: a.scores[1:]),
    "logits": spoilt("log_loss", scores=lambda a: 5 * a.scores - 2),
    "probabilities that do not add up": spoilt("calibration_error", scores=lambda a: a.scores * 0.99),
    "no numbers": spoilt("rmse", predicted=None),
    "words for numbers": spoilt("mae", predicted=lambda a: a.predicted.astype(str)),
    "an infinite number": spoilt("mae", of="numbers", predicted=lambda a: with_first(a.predicted, math.inf)),
    "a label of zero": spoilt("mape", of="numbers", labels=lambda a: with_first(a.labels, 0.0)),
    "no error at all": spoilt("rmse", of="numbers", predicted=lambda a: a.labels),
    "no queries": spoilt("ndcg", of="queries", groups=None),
    "a row without query": spoilt("ndcg", of="queries", groups=lambda a: with_first(a.groups, None)),
    "a query without a relevant row": spoilt("ndcg", of="queries", labels=lambda a: np.where(a.groups == 3, 0, a.labels)),
    "a query of one row": spoilt("ndcg", of="queries", groups=lambda a: with_first(a.groups, 10_000)),
    "a relevance below zero": spoilt("ndcg", of="queries", labels=lambda a: with_first(a.labels, -1)),
    "a NaN ranking": spoilt("ndcg", of="queries", predicted=lambda a: with_first(a.predicted, math.nan)),
}


@pytest.mark.parametrize("case", UNMEASURABLE)
def test_what_cannot_be_measured_is_saidwith_advice(case):
    """Never a number that happens to compare well."""
    name, said = UNMEASURABLE[case]
    if case == "no rows":
        assert within_limit("accuracy", policy_metric("accuracy"), said, error=0.05).outcome is Outcome.INCONCLUSIVE
    with pytest.raises(Unmeasurable) as caught:
        within_limit(name, policy_metric(name), said, error=0.05)
    assert ("are missing or not finite, first row 0" in str(caught.value)) == (case in MISSING or case.startswith("an infinite number"))
    assert caught.value.advice


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_never_passes(name, bad):
    """NaN and infinity in labels, answers or scores, on either side of any comparison, pass nothing."""
    good = answers(name)
    for key in ("labels", "predicted", "scores"):
        if getattr(good, key) is None or (name in {"auc", "log_loss", "calibration_error"} and key == "predicted"):
            continue
        if name in {"accuracy", "f1"} and key == "scores":
            continue
        broken = replace(good, **{key: with_first(getattr(good, key), bad)})
        other = replace(good, labels=broken.labels)
        for judge in (
            lambda: within_limit(name, limited(name, 0.0 if HIGHER_IS_BETTER[name] else 1.0), broken, error=0.05),  # noqa: B023 - called here
            lambda: judged(name, broken, other, margin=0.9),  # noqa: B023
            lambda: judged(name, other, broken, margin=0.9),  # noqa: B023
            lambda: not_worse_than_logged(name, policy_metric(name), broken, logged=0.5, margin=0.9, error=0.05),  # noqa: B023
        ):
            with pytest.raises(Unmeasurable):
                judge()


def test_other_rows_are_no_pairs():
    """A comparison of versions on other labels is a mistake of the caller's."""
    with pytest.raises(ValueError, match="must answer the same rows"):
        judged("accuracy", two_classes(), two_classes(seed=8))


# What must not matter


@pytest.mark.parametrize("name", ["rmse", "mae", "mape"])
@given(exponent=st.integers(-6, 6), noise=st.floats(0.15, 0.3), margin=st.floats(0.005, 0.4))
@settings(max_examples=25, deadline=None)
def test_a_unit_changes_no_verdict(name, exponent, noise, margin):
    """Metres or micrometres: outcomes and worsening are the same, with margins as shares."""
    pair = numbers(200, noise=noise), numbers(200, noise=0.2)
    scaled = [replace(each, labels=each.labels * 10.0**exponent, predicted=each.predicted * 10.0**exponent) for each in pair]
    one, other = judged(name, *pair, margin), judged(name, *scaled, margin)
    assert one.outcome is other.outcome
    assert other.observed == pytest.approx(one.observed, rel=1e-6, abs=1e-9)
    logged = [
        not_worse_than_logged(name, policy_metric(name), a, logged=value(name, b), margin=margin, error=0.05) for a, b in (pair, scaled)
    ]
    assert logged[0].outcome is logged[1].outcome


@pytest.mark.parametrize("name", EVERY)
@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_the_order_of_rows_changes_nothing(name, seed):
    """The same rows in another order give the same finding, to rounding."""
    first = sample(name, 1)
    second = noisier(first)
    order = np.random.default_rng(seed).permutation(len(first.labels))
    moved = [shuffled(each, order) for each in (first, second)]
    one, other = judged(name, first, second), judged(name, *moved)
    assert (one.outcome, one.n) == (other.outcome, other.n)
    assert other.interval == pytest.approx(one.interval, rel=1e-9, abs=1e-12)
    assert value(name, moved[0]) == pytest.approx(value(name, first), rel=1e-12)


def noisier(said):
    """Other answers to the same rows."""
    order = np.arange(len(said.labels))
    order[:20] = order[:20][::-1]
    return replace(shuffled(said, order), labels=said.labels, groups=said.groups)


def shuffled(said, order):
    keys = ("labels", "predicted", "scores", "groups")
    return replace(said, **{key: None if getattr(said, key) is None else getattr(said, key)[order] for key in keys})


@pytest.mark.parametrize("name", EVERY)
def test_margins_are_monotone(name):
    """A wider margin never gives a worse outcome."""
    said = sample(name, 1)
    found = [judged(name, noisier(said), said, margin).outcome for margin in (0.001, 0.01, 0.1, 0.5, 0.9)]
    assert found == sorted(found, reverse=True)


# What a finding says


WHOLE = {
    **{f"{name} alone": lambda name=name: within_limit(name, limited(name, 0.5), answers(name), error=0.05) for name in EVERY},
    **{f"{name} beside another": lambda name=name: judged(name, noisier(answers(name)), answers(name)) for name in EVERY},
    **{f"{name} as logged": lambda name=name: as_logged(name, value(name, answers(name))) for name in EVERY},
    "several classes by auc": lambda: within_limit("auc", limited("auc", 0.5), three_classes(), error=0.05),
    "several classes by f1": lambda: within_limit("f1", limited("f1", 0.5), three_classes(), error=0.05),
    "no chance for a class": lambda: within_limit("log_loss", limited("log_loss", 0.5), hopeless(), error=0.05),
    "gaps that hardly moved": lambda: judged("calibration_error", slightly_surer(two_classes()), two_classes(), 0.02),
}


def as_logged(name, logged):
    return not_worse_than_logged(name, policy_metric(name), answers(name), logged=logged, margin=0.1, error=0.05)


def hopeless():
    said = two_classes()
    return replace(said, scores=np.where(np.arange(1000)[:, None] < 3, np.eye(2)[1 - said.labels], said.scores))


def slightly_surer(said):
    return replace(
        said,
        scores=said.scores
        + 0.001 * np.array([-1, 1]) * (said.scores[:, :1] > 0.01) * (said.scores[:, 1:] < 0.99) * (said.scores[:, 1:] > 0.01),
    )


@pytest.mark.parametrize(
    ("name", "logged", "told"),
    [
        ("auc", 1.5, ("training logged auc = 1.5, which must be from 0 to 1", "log auc as a number from 0 to 1")),
        ("auc", -0.1, ("training logged auc = -0.1, which must be from 0 to 1", "log auc as a number from 0 to 1")),
        ("mae", math.inf, ("training logged mae = inf, which must be from 0", "log mae as a number from 0")),
        ("mae", math.nan, ("training logged mae = nan, which must be from 0", "log mae as a number from 0")),
    ],
)
def test_a_logged_value_that_the_metric_cannot_have_is_refused(name, logged, told):
    """The refusal names the metric, the value and what is allowed."""
    with pytest.raises(Unmeasurable) as caught:
        as_logged(name, logged)
    assert (str(caught.value), caught.value.advice) == told


TOLD = {
    "no rows": ("no rows: nothing was shown", "give the golden set rows"),
    "a missing label": ("1 of 1000 labels are missing or not finite, first row 0", "label every golden row"),
    "a NaN label": ("1 of 1000 labels are missing or not finite, first row 0", "label every golden row"),
    "an infinite label": ("1 of 1000 labels are missing or not finite, first row 0", "label every golden row"),
    "a NaN among objects": ("1 of 1000 labels are missing or not finite, first row 0", "label every golden row"),
    "an infinity among objects": ("1 of 1000 labels are missing or not finite, first row 0", "label every golden row"),
    "one class": ("no golden row has the label '1'", "add rows of every class"),
    "one class that is not said": ("all 1000 labels are '0': one class cannot be told apart", "add rows of the other classes"),
    "an unknown label": ("1 labels are no known class, the first '7.0'", "the known classes are 0, 1"),
    "an unknown answer": ("1 predicted are no known class, the first '7.0'", "the known classes are 0, 1"),
    "no answers": ("the model's outputs hold no label or number", "give the model one output that holds it"),
    "a NaN answer": ("1 answers are missing or not finite, first row 0", "look at these rows' inputs"),
    "too few answers": ("the model's answer has shape [999] for 1000 rows", "give the model an output with one value a row"),
    "answers in two columns": ("the model's answer has shape [1000, 2] for 1000 rows", "give the model an output with one value a row"),
    "no scores": ("the model's outputs hold no scores", "export the model with its probabilities"),
    "a NaN score": ("1 rows have scores that are not finite, first row 0", "look at these rows' inputs"),
    "an infinite score": ("1 rows have scores that are not finite, first row 0", "look at these rows' inputs"),
    "scores of three classes": (
        "scores have shape [1000, 3] for 1000 rows of 2 classes",
        "give the model an output with one score a class",
    ),
    "too few scores": ("scores have shape [999, 2] for 1000 rows of 2 classes", "give the model an output with one score a class"),
    "logits": ("the scores of 896 rows are no probabilities, first row 0", "export the model with probabilities, not logits"),
    "probabilities that do not add up": (
        "the scores of 1000 rows are no probabilities, first row 0",
        "export the model with probabilities, not logits",
    ),
    "no numbers": ("the model's outputs hold no label or number", "give the model one output that holds it"),
    "words for numbers": ("labels or predictions are words where numbers are needed", "use a metric of classes"),
    "an infinite number": ("1 answers are missing or not finite, first row 0", "look at these rows' inputs"),
    "a label of zero": ("1 labels are 0: no error is a share of them", "use mae, or leave these rows out"),
    "no error at all": ("rmse is 0: not one row has any error", "look whether the label is among the inputs, or use accuracy"),
    "no queries": ("rows without a query cannot be ranked", "name the golden set's column of queries in the policy's `group`"),
    "a row without query": ("rows without a query cannot be ranked", "name the golden set's column of queries in the policy's `group`"),
    "a query without a relevant row": ("1 queries have no relevant row, the first '3'", "leave these queries out of the golden set"),
    "a query of one row": (
        "1 queries have one row, so nothing to order, the first '10000.0'",
        "leave these queries out of the golden set",
    ),
    "a relevance below zero": ("1 relevances are below 0", "label relevance from 0 (none) upwards"),
    "a NaN ranking": ("1 answers are missing or not finite, first row 0", "look at these rows' inputs"),
}


@pytest.mark.parametrize("case", TOLD)
def test_a_refusal_says_what_is_wrong_and_what_to_do(case):
    """Both sentences, whole."""
    name, said = UNMEASURABLE[case]
    with pytest.raises(Unmeasurable) as caught:
        within_limit(name, policy_metric(name), said, error=0.05)
    assert (str(caught.value), caught.value.advice) == TOLD[case]


@pytest.mark.parametrize("case", WHOLE)
def test_a_finding_is_whole(case):
    """Words, numbers, interval, size and advice: all that people and the registry read, in each outcome."""
    assert in_full(WHOLE[case]()) == expected("metrics", case)
