"""Do both versions answer the same request alike? Judged by pairs of answers, from those that the recorder had made.

`delivery.shadow` brings the pairs, as rows of `delivery.pairs.Pair`; users saw none of the candidate's answers. Pure: it asks nobody.

| finding             | claim                                                                                                     |
|---------------------|-----------------------------------------------------------------------------------------------------------|
| paired_requests     | at least `min_pairs` requests were answered by both, or by stable alone                                   |
| paired_form         | every answer has stable's outputs, types and shapes                                                       |
| paired_finite       | no answer is NaN or infinite where stable's is a number                                                   |
| paired_disagreement | in at most `disagreement` of the requests a label flips, a number is further than `number_tolerance` from    |
|                     | stable's, or the candidate is silent                                                                      |
| paired_score_shift  | scores differ by at most `score_shift` on average (only when the policy has it)                           |

One answer of another form, or with NaN, fails whatever the limits: that is no matter of how often. Requests that stable did not answer
either say nothing of the candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from validation.contract import Finding
from validation.error_rates import disagreement_below, score_shift_within
from validation.findings import failed, inconclusive, passed
from validation.policy import Shadow

COMPARED, UNFINITE, OTHER_FORM = "compared", "unfinite", "other_form"
NO_STABLE, NO_CANDIDATE, NEITHER = "stable_silent", "candidate_silent", "both_silent"

Pair = Mapping[str, Any]


def paired_findings(pairs: Sequence[Pair], shadow: Shadow, *, false_alarm: float, miss: float) -> Iterator[Finding]:
    """`pairs` in the order in which they were made; the judges share the two chances. Where the policy wants no comparison, one says so."""
    if not shadow.min_pairs:
        yield passed("paired_requests", "skipped: the policy compares no answers (shadow.min_pairs = 0)")
        return
    told = [each for each in pairs if each["state"] not in {NO_STABLE, NEITHER}]
    yield _enough(told, pairs, shadow.min_pairs)
    yield _never("paired_form", told, OTHER_FORM, "has another form than stable's")
    yield _never("paired_finite", told, UNFINITE, "is NaN or infinite")
    judges = 1 if shadow.score_shift is None else 2
    chances = {"false_alarm": false_alarm / judges, "miss": miss}
    yield _disagreement(told, shadow, chances)
    if shadow.score_shift is not None and shadow.exclude_score_shift is not None:
        yield _shift(told, shadow.score_shift, shadow.exclude_score_shift, chances)


def _enough(told: Sequence[Pair], pairs: Sequence[Pair], least: int) -> Finding:
    name, states = "paired_requests", Counter(each["state"] for each in pairs)
    why = f"{len(told)} requests were answered by both versions, or by stable alone, of at least {least}"
    silent = states[NO_STABLE] + states[NEITHER]
    why += f"; {silent} more that stable did not answer" if silent else ""
    if len(told) >= least:
        return passed(name, why, observed=float(len(told)), limit=float(least), n=len(told))
    advice = "more traffic, a longer max_seconds in [shadow], a greater share for the recorder; min_pairs = 0 compares no answers"
    return inconclusive(name, why, advice, observed=float(len(told)), limit=float(least), n=len(told))


def _never(name: str, told: Sequence[Pair], state: str, what: str) -> Finding:
    found = [each for each in told if each["state"] == state]
    if found:
        return failed(name, f"{len(found)} of {len(told)} answers: {str(found[0]['why'])[:300]}", observed=float(len(found)), n=len(told))
    if not any(each["state"] == COMPARED for each in told):
        return inconclusive(name, "no answers of both versions: nothing was shown", "wait for pairs of answers", n=0)
    return passed(name, f"none of {len(told)} answers {what}", observed=0.0, n=len(told))


def _disagreement(told: Sequence[Pair], shadow: Shadow, chances: Mapping[str, float]) -> Finding:
    name, differs = "paired_disagreement", [_differs(each, shadow.number_tolerance) for each in told]
    if not any(each is not None for each in differs):
        why = f"of {len(told)} pairs none has an answer that could be called another: no label, no vector of scores"
        return inconclusive(name, why, "for a model that answers numbers set shadow.number_tolerance; else wait for pairs", n=0)
    flags = np.array([bool(each) for each in differs if each is not None])
    return disagreement_below(name=name, disagreed=flags, limit=shadow.disagreement, exclude=shadow.exclude_disagreement, **chances)


def _differs(pair: Pair, tolerance: float | None) -> bool | None:
    """None where it cannot be told."""
    if pair["state"] != COMPARED:
        return True
    far = None if tolerance is None or pair["difference"] is None else bool(abs(pair["difference"]) > tolerance)
    known = [each for each in (pair["flipped"], far) if each is not None]
    return any(known) if known else None


def _shift(told: Sequence[Pair], margin: float, exclude: float, chances: Mapping[str, float]) -> Finding:
    found = [each["difference"] for each in told if each["state"] == COMPARED and each["difference"] is not None]
    differences = np.array(found, dtype=np.float64)
    return score_shift_within(name="paired_score_shift", differences=differences, margin=margin, exclude=exclude, **chances)
