"""The policy's metrics on the golden labels: absolute, against the source model, against a logged metric, against stable, and by slice.

The gate `golden_set` calls it with outputs on the sampled golden rows. `validation.metrics` measures and judges; here each comparison gets
its sides, its name and its share of the error. It runs no model.

| finding                        | claim                                                                               |
|--------------------------------|-------------------------------------------------------------------------------------|
| <metric>_at_least, _at_most    | surely within the policy's limit                                                    |
| <metric>_within_training       | surely not worse than the source model by the policy's margin, paired               |
| <metric>_not_worse_than_logged | surely not worse than what training logged, by the same margin, not paired          |
| <metric>_not_worse_than_stable | surely not worse than stable by the policy's margin, paired                         |
| ...[<column>=<value>]          | limit and stable on one slice; all slices together err no more often than one metric |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from validation.answers import read_answers
from validation.contract import Finding
from validation.findings import inconclusive, passed
from validation.judges import shared_error
from validation.metrics import Answers, Unmeasurable, not_worse, not_worse_than_logged, within_limit
from validation.policy import GoldenSet, Metric
from validation.sampling import Cut, Sample

Arrays = Mapping[str, np.ndarray]


class NoAnswers(ValueError):
    """A side of a comparison has no answers; says why."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The outputs of one model on the sampled rows; None with the reason in `why_not`. `skipped` where there is no such model."""

    outputs: Arrays | None
    why_not: str = ""
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Exam:
    """All that metrics are computed from. `labels` [sampled rows]; `logged` are the metrics that training logged, by name."""

    limits: GoldenSet
    sample: Sample
    rows: int
    labels: np.ndarray
    candidate: Side
    source: Side
    stable: Side
    logged: Mapping[str, float]

    def answers(self, metric: Metric, side: Side, places: np.ndarray) -> Answers:
        """Raises `NoAnswers` or `Unmeasurable`."""
        if side.outputs is None:
            raise NoAnswers(side.why_not)
        groups = None if metric.group is None else self.sample.groups.get(metric.group)
        if metric.group is not None and groups is None:
            raise NoAnswers(f"the golden set has no column {metric.group!r} that names queries")
        outputs = {name: values[places] for name, values in side.outputs.items()}
        return read_answers(metric.name, outputs, self.labels[places], None if groups is None else groups[places])


def metric_findings(exam: Exam) -> Iterator[Finding]:
    for metric in exam.limits.metrics:
        yield from (_noted(each, exam, len(exam.sample.whole), exam.rows) for each in _on_all_rows(exam, metric))
    comparisons = len(exam.limits.metrics) * sum(len(each.values) for each in exam.limits.slices) * (1 if exam.stable.skipped else 2)
    for metric in exam.limits.metrics:
        for each in exam.limits.slices:
            for value in each.values:
                yield from _on_slice(exam, metric, Cut(column=each.column, value=value), shared_error(exam.limits.error, comparisons))


def numbers(exam: Exam) -> dict[str, dict[str, float | None]]:
    """Each metric of each side, for the evidence; None where it cannot be said."""
    sides = {"candidate": exam.candidate, "source_model": exam.source, "stable": exam.stable}
    return {metric.name: {who: _number(exam, metric, side) for who, side in sides.items()} for metric in exam.limits.metrics}


def limit_name(metric: Metric) -> str:
    return f"{metric.name}_{'at_least' if metric.higher_is_better else 'at_most'}"


def _on_all_rows(exam: Exam, metric: Metric) -> Iterator[Finding]:
    places, error = exam.sample.whole, exam.limits.error
    yield _limit(exam, metric, places, limit_name(metric), error)
    yield _paired(exam, metric, places, f"{metric.name}_within_training", exam.source, metric.within_training, error)
    if metric.logged_as is not None:
        yield _logged(exam, metric, metric.logged_as, places)
    yield _paired(exam, metric, places, f"{metric.name}_not_worse_than_stable", exam.stable, metric.not_worse_than_stable, error)


def _on_slice(exam: Exam, metric: Metric, cut: Cut, error: float) -> Iterator[Finding]:
    places = exam.sample.cuts.get(cut)
    name = f"{limit_name(metric)}[{cut.words}]"
    if places is None:
        why = f"the golden set has no column {cut.column!r} to make slices by"
        yield inconclusive(name, why, "add the column to the golden set, or take the slice out of the policy", n=0)
        return
    if not len(places):
        why = f"no golden row has {cut.column} = {cut.value!r}: nothing was shown about this slice"
        yield inconclusive(name, why, "add such rows to the golden set, or take the value out of the policy", n=0)
        return
    findings = [_limit(exam, metric, places, name, error)]
    if not exam.stable.skipped:
        name = f"{metric.name}_not_worse_than_stable[{cut.words}]"
        findings.append(_paired(exam, metric, places, name, exam.stable, metric.not_worse_than_stable, error))
    yield from (_noted(each, exam, len(places), exam.sample.seen[cut]) for each in findings)


def _limit(exam: Exam, metric: Metric, places: np.ndarray, name: str, error: float) -> Finding:
    return _measured(name, lambda: within_limit(name, metric, exam.answers(metric, exam.candidate, places), error=error))


def _paired(exam: Exam, metric: Metric, places: np.ndarray, name: str, other: Side, margin: float, error: float) -> Finding:
    if other.skipped:
        return passed(name, f"skipped: {other.why_not}")

    def judged() -> Finding:
        here, there = (exam.answers(metric, side, places) for side in (exam.candidate, other))
        return not_worse(name, metric, here, there, margin=margin, error=error)

    return _measured(name, judged)


def _logged(exam: Exam, metric: Metric, logged_as: str, places: np.ndarray) -> Finding:
    name, logged = f"{metric.name}_not_worse_than_logged", exam.logged.get(logged_as)
    if not isinstance(logged, int | float) or not math.isfinite(logged):
        found = f"training logged {logged_as!r} as {logged!r}; it logged {', '.join(sorted(exam.logged)) or 'nothing'}"
        return inconclusive(name, found, "log the metric in the training run, or correct logged_as in the policy")

    def judged() -> Finding:
        answers = exam.answers(metric, exam.candidate, places)
        return not_worse_than_logged(name, metric, answers, logged=logged, margin=metric.within_training, error=exam.limits.error)

    return _measured(name, judged)


def _measured(name: str, judged: Callable[[], Finding]) -> Finding:
    """What cannot be measured is nobody's pass."""
    try:
        return judged()
    except NoAnswers as error:
        return inconclusive(name, str(error), "without these answers nothing can be compared: make them available")
    except Unmeasurable as error:
        return inconclusive(name, str(error), error.advice)


def _noted(finding: Finding, exam: Exam, kept: int, rows: int) -> Finding:
    """With a word about sampling where there was some."""
    del exam
    return finding if kept == rows else replace(finding, why=f"{finding.why}; measured on a random sample of {kept} of {rows} rows")


def _number(exam: Exam, metric: Metric, side: Side) -> float | None:
    try:
        answers = exam.answers(metric, side, exam.sample.whole)
        observed: Any = within_limit(limit_name(metric), metric, answers, error=exam.limits.error).observed
    except (NoAnswers, Unmeasurable):
        return None
    return observed if isinstance(observed, float) else None
