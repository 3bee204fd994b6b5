"""Cases about what is shown: metrics against limits, the source model, training and stable; slices; and the golden set itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from conformance.cases import case
from conformance.cases_files import with_manifest
from conformance.material import Material, binary, healthy, regression
from made_bundles import CLASSES, answers, classifier, weights

from validation.drift import sketch_batches
from validation.traffic_sample import Traffic

METRICS, SLICES, GOLDEN = "Metrics", "Slices", "The golden set itself"
PLAIN = "Nothing wrong"


@case(PLAIN, "healthy", "nothing", "passed: accuracy_at_least")
def _healthy(material: Material) -> None:
    del material


@case(PLAIN, "healthy-beside-stable", "nothing; the candidate is as good as stable", "passed: accuracy_not_worse_than_stable")
def _healthy_beside_stable(material: Material) -> None:
    material.stable = material.twin()


@case(PLAIN, "better-than-stable", "nothing; the candidate is better than stable", "passed: accuracy_not_worse_than_stable")
def _better(material: Material) -> None:
    material.stable = material.twin()
    material.stable.model = classifier(weights(seed=3))


# Metrics


@case(METRICS, "accuracy-below", "accuracy is surely below the limit", "failed: accuracy_at_least")
def _below(material: Material) -> None:
    material.labels[:300] = (material.labels[:300] + 1) % CLASSES


@case(METRICS, "accuracy-at-the-limit", "accuracy is as good as the limit, on 1,000 rows: nobody knows", "inconclusive: accuracy_at_least")
def _at_limit(material: Material) -> None:
    material.metric["at_least"] = 0.95


@case(METRICS, "accuracy-limit-nearly-one", "every row is right, and 1,000 rows cannot show 99.9 %", "inconclusive: accuracy_at_least")
def _nearly_one(material: Material) -> None:
    material.labels[:] = material.reference["label"]
    material.metric["at_least"] = 0.999


@case(
    METRICS,
    "worse-than-source",
    "the export loses five rows of a hundred that the source model has right",
    "failed: accuracy_within_training",
)
def _worse_than_source(material: Material) -> None:
    material.reference["label"] = material.labels.copy()


@case(METRICS, "worse-than-stable", "the candidate is surely worse than stable on the same rows", "failed: accuracy_not_worse_than_stable")
def _worse_than_stable(material: Material) -> None:
    material.stable = material.twin()
    _spoilt(material, 0.15)


def _spoilt(material: Material, noise: float) -> None:
    """Another model, right on fewer rows; export and source model agree about it."""
    matrix = weights() + np.random.default_rng(5).normal(size=weights().shape).astype(np.float32) * np.float32(noise * 10)
    material.model, material.reference = classifier(matrix), answers(material.inputs["X"], matrix)
    material.metric["at_least"] = 0.1


@case(METRICS, "few-rows", "50 rows: every model would look like its source", "inconclusive: accuracy_within_training")
def _few_rows(material: Material) -> None:
    material.resize(50)
    material.limits["min_rows"] = 1


@case(METRICS, "fewer-rows-than-asked", "fewer rows than the policy asks for", "inconclusive: golden_rows")
def _fewer_rows(material: Material) -> None:
    material.limits["min_rows"] = 5000


@case(METRICS, "no-rows", "the golden set has no rows", "inconclusive: golden_rows")
def _no_rows(material: Material) -> None:
    material.resize(0)


@case(METRICS, "labels-of-another-kind", "the labels are words that the model never says", "failed: accuracy_at_least")
def _labels_of_another_kind(material: Material) -> None:
    material.labels = np.array([f"class {label}" for label in material.labels])


@case(METRICS, "labels-nan", "a label is NaN", "inconclusive: accuracy_at_least")
def _labels_nan(material: Material) -> None:
    material.labels = material.labels.astype(float)
    material.labels[7] = np.nan


@case(METRICS, "labels-shuffled", "the labels belong to other rows", "failed: accuracy_at_least")
def _labels_shuffled(material: Material) -> None:
    material.labels = np.random.default_rng(0).permutation(material.labels)


@case(METRICS, "stable-other-input", "stable takes another input: nothing can be compared", "inconclusive: accuracy_not_worse_than_stable")
def _stable_other_input(material: Material) -> None:
    material.stable = material.twin()
    material.stable.model = classifier(weights()).replace(b"\x01X", b"\x01Z")


@case(METRICS, "stable-no-model", "stable's model does not load: nothing can be compared", "inconclusive: accuracy_not_worse_than_stable")
def _stable_no_model(material: Material) -> None:
    material.stable = material.twin()
    material.stable.model = b"nothing"


def metric(material: Material, name: str, **more: Any) -> None:
    """The policy's one metric becomes another."""
    limits = (
        {"at_least": 0.5} if name in {"auc", "f1", "ndcg", "accuracy"} else {"at_most": 100.0 if name in {"rmse", "mae", "mape"} else 0.9}
    )
    material.limits["metrics"] = [{"name": name, "within_training": 0.02, "not_worse_than_stable": 0.02, **limits, **more}]


@case(METRICS, "auc-one-class", "AUC of rows that all have one label", "inconclusive: auc_at_least")
def _auc_one_class(material: Material) -> None:
    metric(material, "auc")
    material.labels[:] = 1


@case(METRICS, "auc-below", "AUC is surely below the limit", "failed: auc_at_least")
def _auc_below(material: Material) -> None:
    metric(material, "auc", at_least=0.9)
    material.labels = np.random.default_rng(0).permutation(material.labels)


@case(METRICS, "class-never-met", "a label that the model has no probability for", "inconclusive: log_loss_at_most")
def _class_never_met(material: Material) -> None:
    metric(material, "log_loss")
    material.labels[:10] = 9


@case(METRICS, "log-loss-of-scores", "log loss of scores that are no probabilities", "inconclusive: log_loss_at_most")
def _log_loss_of_scores(material: Material) -> None:
    metric(material, "log_loss")
    binary(material, probabilities=False)


@case(METRICS, "log-loss-above", "log loss is surely above the limit", "failed: log_loss_at_most")
def _log_loss_above(material: Material) -> None:
    metric(material, "log_loss", at_most=0.05)
    material.labels = np.random.default_rng(0).permutation(material.labels)


@case(METRICS, "calibration-off", "probabilities near 1 and right half of the time", "failed: calibration_error_at_most")
def _calibration_off(material: Material) -> None:
    metric(material, "calibration_error", at_most=0.1)
    material.model, material.reference = classifier(weights() * 30), answers(material.inputs["X"], weights() * 30)
    material.labels[::2] = (material.labels[::2] + 1) % CLASSES


@case(METRICS, "f1-below", "F1 is surely below the limit", "failed: f1_at_least")
def _f1_below(material: Material) -> None:
    metric(material, "f1", at_least=0.9)
    material.labels = np.random.default_rng(0).permutation(material.labels)


@case(METRICS, "mape-of-zero", "the relative error of a label that is zero", "inconclusive: mape_at_most")
def _mape_of_zero(material: Material) -> None:
    regression(material)
    metric(material, "mape")
    material.labels[3] = 0


@case(METRICS, "rmse-above", "RMSE is surely above the limit", "failed: rmse_at_most")
def _rmse_above(material: Material) -> None:
    regression(material)
    metric(material, "rmse", at_most=0.01)


@case(METRICS, "rmse-worse-than-stable", "RMSE is surely worse than stable's", "failed: rmse_not_worse_than_stable")
def _rmse_worse(material: Material) -> None:
    regression(material)
    material.stable = material.twin()
    regression(material, off=0.5)
    metric(material, "rmse")


@case(
    METRICS,
    "rmse-worse-in-millions",
    "the same with everything a million times as large: the unit is no excuse",
    "failed: rmse_not_worse_than_stable",
)
def _rmse_worse_in_millions(material: Material) -> None:
    regression(material, scale=1e6)
    material.stable = material.twin()
    regression(material, off=0.5, scale=1e6)
    metric(material, "rmse", at_most=1e9)
    material.limits["atol"] = 1.0


@case(METRICS, "mae-infinite-label", "a label is infinite", "inconclusive: mae_at_most")
def _mae_infinite(material: Material) -> None:
    regression(material)
    metric(material, "mae")
    material.labels[3] = np.inf


@case(METRICS, "ndcg-no-queries", "NDCG without the column that names the queries", "inconclusive: ndcg_at_least")
def _ndcg(material: Material) -> None:
    regression(material)
    metric(material, "ndcg", group="query")


@case(METRICS, "logged-missing", "training did not log the metric that the policy names", "inconclusive: accuracy_not_worse_than_logged")
def _logged_missing(material: Material) -> None:
    material.metric["logged_as"] = "validation_accuracy"


@case(METRICS, "logged-nan", "training logged NaN", "inconclusive: accuracy_not_worse_than_logged")
def _logged_nan(material: Material) -> None:
    material.metric["logged_as"] = "accuracy"
    material.repack = with_manifest(lambda row: row.update(training_metrics={"accuracy": float("nan")}))


@case(METRICS, "logged-percent", "training logged 95, for 95 %", "inconclusive: accuracy_not_worse_than_logged")
def _logged_percent(material: Material) -> None:
    material.metric["logged_as"] = "accuracy"
    material.manifest["training_metrics"] = {"accuracy": 95.0}


@case(METRICS, "logged-better", "training logged 99.9 % and 70 % are left", "failed: accuracy_not_worse_than_logged")
def _logged_better(material: Material) -> None:
    material.metric.update(logged_as="accuracy", at_least=0.1)
    material.manifest["training_metrics"] = {"accuracy": 0.999}
    material.labels[:250] = (material.reference["label"][:250] + 1) % CLASSES


# Slices


def sliced(material: Material, values: list[str], column: str = "region") -> None:
    material.slices = {"region": np.array(["north" if row % 2 else "south" for row in range(len(material.labels))])}
    material.limits["slices"] = [{"column": column, "values": values}]


@case(SLICES, "slice-good", "nothing; both slices are good", "passed: accuracy_at_least[region=north]")
def _slice_good(material: Material) -> None:
    sliced(material, ["north", "south"])


@case(SLICES, "slice-no-column", "the golden set has no column of the slice's name", "inconclusive: accuracy_at_least[country=north]")
def _slice_no_column(material: Material) -> None:
    sliced(material, ["north"], column="country")


@case(SLICES, "slice-no-rows", "no golden row belongs to the slice", "inconclusive: accuracy_at_least[region=west]")
def _slice_no_rows(material: Material) -> None:
    sliced(material, ["north", "west"])


@case(SLICES, "slice-few-rows", "three rows belong to the slice", "inconclusive: accuracy_at_least[region=east]")
def _slice_few_rows(material: Material) -> None:
    sliced(material, ["north", "east"])
    material.slices["region"] = material.slices["region"].astype(object)
    material.slices["region"][:3] = "east"


@case(SLICES, "slice-bad", "good on the whole, bad on one slice", "failed: accuracy_at_least[region=south]")
def _slice_bad(material: Material) -> None:
    sliced(material, ["north", "south"])
    material.metric["at_least"] = 0.7
    south = np.flatnonzero(material.slices["region"] == "south")[:200]
    material.labels[south] = (material.reference["label"][south] + 1) % CLASSES


@case(
    SLICES,
    "slice-worse-than-stable",
    "as good as stable on the whole, worse on one slice",
    "failed: accuracy_not_worse_than_stable[region=south]",
)
def _slice_worse(material: Material) -> None:
    sliced(material, ["south"])
    material.metric["at_least"] = 0.1
    material.stable = material.twin()
    _spoilt(material, 0.15)


@case(SLICES, "slice-empty-cells", "the slice's column is empty in every row", "inconclusive: accuracy_at_least[region=north]")
def _slice_empty(material: Material) -> None:
    sliced(material, ["north"])
    material.slices = {"region": np.array([None] * len(material.labels), dtype=object)}


# The golden set itself


@case(GOLDEN, "duplicates", "half of the golden rows stand there twice", "failed: golden_duplicates")
def _duplicates(material: Material) -> None:
    half = len(material.labels) // 2
    material.inputs["X"][half:] = material.inputs["X"][:half]
    material.labels[half:] = material.labels[:half]
    material.reference = answers(material.inputs["X"], weights())


@case(GOLDEN, "one-row", "the golden set is one row, a thousand times", "failed: golden_duplicates")
def _one_row(material: Material) -> None:
    material.inputs["X"][:] = material.inputs["X"][1]
    material.labels[:] = material.labels[1]
    material.reference = answers(material.inputs["X"], weights())


@case(GOLDEN, "leak", "a feature is the label", "failed: golden_leakage")
def _leak(material: Material) -> None:
    material.inputs["X"][:, 3] = material.labels
    material.reference = answers(material.inputs["X"], weights())


@case(GOLDEN, "leak-renamed", "a feature is the label under other numbers", "failed: golden_leakage")
def _leak_renamed(material: Material) -> None:
    material.inputs["X"][:, 3] = np.array([7.5, -2.0, 0.25], dtype=np.float32)[material.labels]
    material.reference = answers(material.inputs["X"], weights())


@case(GOLDEN, "leak-noisy", "a feature is the label with a little noise", "failed: golden_leakage")
def _leak_noisy(material: Material) -> None:
    noise = np.random.default_rng(0).normal(size=len(material.labels)) * 0.01
    material.inputs["X"][:, 3] = material.labels + noise
    material.reference = answers(material.inputs["X"], weights())


def aged(material: Material, days: float | None) -> None:
    material.limits["max_age_days"] = 30.0
    written = {} if days is None else {"written_unix_s": time.time() - days * 86_400}
    material.manifest["golden_set"] = {"uri": "file:///nowhere", "sha256": "0" * 64, "rows": len(material.labels), **written}


@case(GOLDEN, "age-young", "nothing; the golden set is a day old", "passed: golden_age")
def _young(material: Material) -> None:
    aged(material, 1)


@case(GOLDEN, "age-old", "the golden set is older than the policy allows", "failed: golden_age")
def _old(material: Material) -> None:
    aged(material, 90)


@case(GOLDEN, "age-unknown", "nobody knows how old the golden set is", "inconclusive: golden_age")
def _age_unknown(material: Material) -> None:
    aged(material, None)


@case(GOLDEN, "age-future", "the golden set will be written in a year", "inconclusive: golden_age")
def _age_future(material: Material) -> None:
    aged(material, -365)


@case(
    GOLDEN,
    "traffic-unknown",
    "the policy wants the golden set to be like recent traffic, which nobody recorded",
    "inconclusive: golden_traffic_drift",
)
def _traffic_unknown(material: Material) -> None:
    material.limits["traffic_drift"] = True


def traffic(material: Material, values: Any, *, days: float = 0.0, name: str = "X") -> None:
    """What users sent of late, as `claim` sketches it."""
    material.limits["traffic_drift"] = True
    sketches = sketch_batches([{name: values}])
    material.traffic = Traffic(rows=len(values), newest_unix_s=time.time() - days * 86_400, sketches=sketches).to_json()


@case(GOLDEN, "traffic-alike", "nothing; users send what the golden set has", "passed: golden_traffic_drift")
def _traffic_alike(material: Material) -> None:
    traffic(material, material.inputs["X"][::-1])


@case(GOLDEN, "traffic-moved", "users send other values than the golden set has", "failed: golden_traffic_drift")
def _traffic_moved(material: Material) -> None:
    traffic(material, material.inputs["X"] * 3 + 5)


@case(GOLDEN, "traffic-constant", "users leave a feature at one value that varies in the golden set", "failed: golden_traffic_drift")
def _traffic_constant(material: Material) -> None:
    values = material.inputs["X"].copy()
    values[:, 2] = 0.0
    traffic(material, values)


@case(GOLDEN, "traffic-few", "fifty rows of traffic were recorded", "inconclusive: golden_traffic_drift")
def _traffic_few(material: Material) -> None:
    traffic(material, material.inputs["X"][:50])


@case(GOLDEN, "traffic-old", "the newest recorded request is a month old", "inconclusive: golden_traffic_drift")
def _traffic_old(material: Material) -> None:
    traffic(material, material.inputs["X"], days=30)


@case(GOLDEN, "traffic-future", "the recorded requests come from next month", "inconclusive: golden_traffic_drift")
def _traffic_future(material: Material) -> None:
    traffic(material, material.inputs["X"], days=-30)


@case(GOLDEN, "traffic-renamed", "users send an input of another name", "failed: golden_traffic_drift")
def _traffic_renamed(material: Material) -> None:
    traffic(material, material.inputs["X"], name="Y")


@case(GOLDEN, "traffic-no-columns", "the sketch of traffic has rows and no column", "inconclusive: golden_traffic_drift")
def _traffic_no_columns(material: Material) -> None:
    material.limits["traffic_drift"] = True
    material.traffic = Traffic(rows=5000, newest_unix_s=time.time(), sketches={}).to_json()


@case(GOLDEN, "traffic-torn", "the sketch of traffic is cut off", "exit 64")
def _traffic_torn(material: Material) -> None:
    traffic(material, material.inputs["X"])
    material.traffic = (material.traffic or b"")[:-20]


__all__ = ["healthy"]
