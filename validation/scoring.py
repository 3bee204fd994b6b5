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
    """All comparisons on all rows, then those on slices."""
    limits, whole = exam.limits, exam.sample.whole
    for metric in limits.metrics:
        question = Question(exam=exam, metric=metric, places=whole, error=limits.error, seen=exam.rows)
        yield from question.on_all_rows()
    cuts = [Cut(column=each.column, value=value) for each in limits.slices for value in each.values]
    comparisons = len(limits.metrics) * len(cuts) * (1 if exam.stable.skipped else 2)
    for metric in limits.metrics:
        yield from (each for cut in cuts for each in _on_slice(exam, metric, cut, shared_error(limits.error, comparisons)))


def numbers(exam: Exam) -> dict[str, dict[str, float | None]]:
    """Each metric of each side, for the evidence; None where it cannot be said."""
    sides = {"candidate": exam.candidate, "source_model": exam.source, "stable": exam.stable}
    return {metric.name: {who: _number(exam, metric, side) for who, side in sides.items()} for metric in exam.limits.metrics}


def limit_name(metric: Metric) -> str:
    return f"{metric.name}_{'at_least' if metric.higher_is_better else 'at_most'}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One metric on some rows (`places` among the sampled, of `seen` before sampling), with the error that each comparison may make."""

    exam: Exam
    metric: Metric
    places: np.ndarray
    error: float
    seen: int
    suffix: str = ""

    def on_all_rows(self) -> Iterator[Finding]:
        metric, exam = self.metric, self.exam
        yield self.limit()
        yield self.paired("within_training", exam.source, metric.within_training)
        if metric.logged_as is not None:
            yield self.logged(metric.logged_as)
        yield self.paired("not_worse_than_stable", exam.stable, metric.not_worse_than_stable)

    def limit(self) -> Finding:
        name = f"{limit_name(self.metric)}{self.suffix}"
        return self._measured(name, lambda: within_limit(name, self.metric, self._answers(self.exam.candidate), error=self.error))

    def paired(self, claim: str, other: Side, margin: float) -> Finding:
        name = f"{self.metric.name}_{claim}{self.suffix}"
        if other.skipped:
            return passed(name, f"skipped: {other.why_not}")

        def judged() -> Finding:
            here, there = self._answers(self.exam.candidate), self._answers(other)
            return not_worse(name, self.metric, here, there, margin=margin, error=self.error)

        return self._measured(name, judged)

    def logged(self, logged_as: str) -> Finding:
        name, logged = f"{self.metric.name}_not_worse_than_logged", self.exam.logged.get(logged_as)
        if isinstance(logged, bool) or not isinstance(logged, int | float) or not math.isfinite(logged):
            found = f"training logged {logged_as!r} as {logged!r}; it logged {', '.join(sorted(self.exam.logged)) or 'nothing'}"
            return inconclusive(name, found, "log the metric in the training run, or correct logged_as in the policy")
        margin = self.metric.within_training
        return self._measured(
            name,
            lambda: not_worse_than_logged(
                name, self.metric, self._answers(self.exam.candidate), logged=logged, margin=margin, error=self.error
            ),
        )

    def _answers(self, side: Side) -> Answers:
        return self.exam.answers(self.metric, side, self.places)

    def _measured(self, name: str, judged: Callable[[], Finding]) -> Finding:
        """What cannot be measured is nobody's pass; what was measured on a sample says so."""
        try:
            finding = judged()
        except NoAnswers as error:
            return inconclusive(name, str(error), "without these answers nothing can be compared: make them available")
        except Unmeasurable as error:
            return inconclusive(name, str(error), error.advice)
        if len(self.places) == self.seen:
            return finding
        return replace(finding, why=f"{finding.why}; on a random sample of {len(self.places)} of {self.seen} rows")


def _on_slice(exam: Exam, metric: Metric, cut: Cut, error: float) -> Iterator[Finding]:
    places, suffix = exam.sample.cuts.get(cut), f"[{cut.words}]"
    if places is None:
        why = f"the golden set has no column {cut.column!r} to make slices by"
        yield inconclusive(
            f"{limit_name(metric)}{suffix}", why, "add the column to the golden set, or take the slice out of the policy", n=0
        )
    elif not len(places):
        why = f"no golden row has {cut.column} = {cut.value!r}: nothing was shown about this slice"
        yield inconclusive(
            f"{limit_name(metric)}{suffix}", why, "add such rows to the golden set, or take the value out of the policy", n=0
        )
    else:
        question = Question(exam=exam, metric=metric, places=places, error=error, seen=exam.sample.seen[cut], suffix=suffix)
        yield question.limit()
        if not exam.stable.skipped:
            yield question.paired("not_worse_than_stable", exam.stable, metric.not_worse_than_stable)


def _number(exam: Exam, metric: Metric, side: Side) -> float | None:
    try:
        answers = exam.answers(metric, side, exam.sample.whole)
        observed: Any = within_limit(limit_name(metric), metric, answers, error=exam.limits.error).observed
    except (NoAnswers, Unmeasurable):
        return None
    return observed if isinstance(observed, float) else None
