"""TEMPORARY stand-in until branch `judges` is merged: accuracy alone, behind the agreed names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from validation.contract import Finding
from validation.judges import accuracy_at_least, paired_not_worse
from validation.policy import Metric


class Unmeasurable(ValueError):
    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.advice = advice


@dataclass(frozen=True, kw_only=True)
class Answers:
    labels: np.ndarray
    predicted: np.ndarray | None = None
    scores: np.ndarray | None = None
    groups: np.ndarray | None = None
    classes: tuple[object, ...] | None = None


def shared_error(error: float, comparisons: int) -> float:
    return error / comparisons


def _right(answers: Answers) -> np.ndarray:
    if answers.predicted is None:
        raise Unmeasurable("no output can be read as the label", "")
    return np.asarray(answers.predicted == answers.labels)


def within_limit(name: str, metric: Metric, answers: Answers, error: float) -> Finding:
    right = _right(answers)
    return accuracy_at_least(name=name, correct=int(right.sum()), n=len(right), limit=metric.limit, error=error)


def not_worse(name: str, metric: Metric, candidate: Answers, reference: Answers, margin: float, error: float) -> Finding:
    here, there = _right(candidate), _right(reference)
    wins, losses = int((here & ~there).sum()), int((there & ~here).sum())
    return paired_not_worse(name=name, wins=wins, losses=losses, n=len(here), margin=margin, error=error)


def not_worse_than_logged(name: str, metric: Metric, answers: Answers, logged: float, margin: float, error: float) -> Finding:
    raise Unmeasurable("not here yet", "")
