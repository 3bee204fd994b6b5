"""The judge of a rollout: everything that was seen of a candidate so far, held against what its step must show.

The watch asks it at every look, a replay asks it again: a pure function of evidence and policy. One budget of false alarms (`false_alarm`)
covers the whole rollout: all looks, because each judge is always valid; all steps, because the evidence goes on from step to step; all
metrics and slices, because each has its part (union bound).

| finding                     | failed                                              | demanded for a pass                  |
|-----------------------------|-----------------------------------------------------|--------------------------------------|
| errors                      | rate surely above `error_limit`                     | at every step                        |
| errors_against_stable       | rate surely above stable's plus `error_rise`        | at every step                        |
| latency_mean                | surely `latency_worse` worse than stable's          | at every step                        |
| latency_median, latency_p99 | the same                                            | before and at 100 % (a p99 takes 300 |
|                             |                                                     | requests, whatever the margin)       |
| errors[header=value]        | as errors, of one slice                             | before and at 100 %                  |
| latency_mean[header=value]  | as latency_mean, of one slice on both sides         | before and at 100 %                  |
| requests                    | never                                               | `min_requests` since the step began  |
| evidence_whole              | never                                               | nothing was lost on the way, or as   |
|                             |                                                     | much was shown since                 |

What is not demanded yet and not failed is no finding. Evidence from before a gap (rows lost, a clock set back) counts against a candidate
and never for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validation.contract import Finding, Outcome
from validation.error_rates import error_rate_below, error_rate_not_above
from validation.findings import inconclusive, passed
from validation.latencies import Statistic, latency_not_worse
from validation.policy import Margins, Rollout, Step
from validation.served import Served

SHADOW_PART = 0.05
"""Part of the false-alarm budget that the shadow has."""

PARTS = {"errors": 0.45, "errors_against_stable": 0.08, "latency_mean": 0.14, "latency_median": 0.14, "latency_p99": 0.14}
"""Parts of the budget. Most goes to errors: they hurt most, and each request counts. Together with the shadow's they make 1."""

SLICED = 0.5
"""With slices, errors and mean latency of the whole keep this part of their parts, and the slices share the rest."""

SHARED = frozenset({"errors", "latency_mean"})
"""What is judged of each slice too."""

Flags = NDArray[np.bool_]
STATISTICS: tuple[Statistic, ...] = ("mean", "median", "p99")
_MORE = "wait for more requests"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the gateway saw since the candidate's first share, both versions' requests in order.

    `slices` and `stable_slices`: str, a row a request: the value of the policy's header. `whole_since_s`: Unix seconds of the last gap,
    before which rows count against the candidate only; minus infinity without one. `step_since_s`: when the step's share was set.
    """

    candidate: Served
    stable: Served
    slices: NDArray[np.str_]
    stable_slices: NDArray[np.str_]
    step_since_s: float
    whole_since_s: float = -np.inf

    @property
    def gapless(self) -> bool:
        return self.whole_since_s == -np.inf

    @property
    def whole(self) -> Evidence:
        """What was seen since the last gap; a row whose time cannot be read stays, so that nobody passes it."""
        kept, stable_kept = (~(each.unix_s < self.whole_since_s) for each in (self.candidate, self.stable))
        return self._where(kept, stable_kept, whole_since_s=-np.inf)

    def slice(self, value: str) -> Evidence:
        """Both versions' requests with this value of the header."""
        return self._where(self.slices == value, self.stable_slices == value, whole_since_s=self.whole_since_s)

    def warm(self, warmup_s: float) -> Evidence:
        """Without the candidate's first seconds after its first request; what cannot be read stays, so that nobody passes it."""
        if not len(self.candidate) or not self.candidate.readable:
            return self
        warm = self.candidate.unix_s >= self.candidate.unix_s[0] + warmup_s
        return self._where(warm, np.ones(len(self.stable), bool), whole_since_s=self.whole_since_s)

    def _where(self, kept: Flags, stable_kept: Flags, whole_since_s: float) -> Evidence:
        return Evidence(
            candidate=self.candidate.where(kept),
            stable=self.stable.where(stable_kept),
            slices=self.slices[kept],
            stable_slices=self.stable_slices[stable_kept],
            step_since_s=self.step_since_s,
            whole_since_s=whole_since_s,
        )


def judge_rollout(evidence: Evidence, rollout: Rollout, step: Step) -> tuple[Finding, ...]:
    """The findings of this moment, named as in the table above."""
    findings = tuple(_findings(evidence, rollout, step))
    if evidence.gapless:
        return findings
    since = {each.name: each for each in _findings(evidence.whole, rollout, step)}
    judged = tuple(each if each.outcome is Outcome.FAILED else since.get(each.name, each) for each in findings)
    known = {each.name for each in judged}
    return (*judged, *(each for name, each in since.items() if name not in known))


def chance(rollout: Rollout, name: str) -> float:
    """The false-alarm budget of one metric over the whole rollout."""
    return rollout.false_alarm * PARTS[name] * (SLICED if rollout.slices and name in SHARED else 1.0)


def slice_chance(rollout: Rollout, name: str) -> float:
    """The part of one slice in it; the policy must have slices."""
    slices = len(rollout.slices.values) if rollout.slices else 0
    return rollout.false_alarm * PARTS[name] * (1 - SLICED) / slices


def _findings(evidence: Evidence, rollout: Rollout, step: Step) -> Iterator[Finding]:
    margins = rollout.margins(step)
    yield from _requests(evidence, step)
    yield _errors(evidence.candidate, rollout, margins, "errors", chance(rollout, "errors"))
    yield error_rate_not_above(
        name="errors_against_stable",
        candidate=evidence.candidate,
        stable=evidence.stable,
        rise=rollout.error_rise,
        exclude=margins.error_rate,
        false_alarm=chance(rollout, "errors_against_stable"),
        miss=rollout.miss,
    )
    yield from _demanded(_latencies(evidence, rollout, margins), margins, always=("latency_mean",))
    yield from _demanded(_slices(evidence, rollout, margins), margins)


def _requests(evidence: Evidence, step: Step) -> Iterator[Finding]:
    if not step.min_requests:
        return
    n = int((evidence.candidate.unix_s >= evidence.step_since_s).sum())
    why = f"{n} of at least {step.min_requests} requests were answered at this step"
    details = {"observed": float(n), "limit": float(step.min_requests), "n": n}
    yield passed("requests", why, **details) if n >= step.min_requests else inconclusive("requests", why, _MORE, **details)


def _errors(candidate: Served, rollout: Rollout, margins: Margins, name: str, false_alarm: float) -> Finding:
    if not candidate.readable:
        return inconclusive(name, "a time or latency is missing, not finite or not in order", "look for the cause in the access log")
    return error_rate_below(
        name=name,
        failed=~candidate.ok,
        limit=rollout.error_limit,
        exclude=margins.error_rate,
        false_alarm=false_alarm,
        miss=rollout.miss,
    )


def _latencies(evidence: Evidence, rollout: Rollout, margins: Margins) -> Iterator[Finding]:
    warm = evidence.warm(rollout.warmup_seconds)
    for statistic in STATISTICS:
        name = f"latency_{statistic}"
        yield _latency(warm, rollout, margins, statistic=statistic, name=name, false_alarm=chance(rollout, name))


def _latency(evidence: Evidence, rollout: Rollout, margins: Margins, *, statistic: Statistic, name: str, false_alarm: float) -> Finding:
    return latency_not_worse(
        name=name,
        statistic=statistic,
        candidate=evidence.candidate,
        stable=evidence.stable,
        worse=rollout.latency_worse,
        exclude=margins.latency_worse,
        indifferent_below_ms=rollout.indifferent_below_ms,
        false_alarm=false_alarm,
        miss=rollout.miss,
    )


def _slices(evidence: Evidence, rollout: Rollout, margins: Margins) -> Iterator[Finding]:
    if rollout.slices is None:
        return
    warm = evidence.warm(rollout.warmup_seconds)
    for value in rollout.slices.values:
        part, words = evidence.slice(value), f"[{rollout.slices.header}={value}]"
        yield _errors(part.candidate, rollout, margins, f"errors{words}", slice_chance(rollout, "errors"))
        part_chance = slice_chance(rollout, "latency_mean")
        yield _latency(warm.slice(value), rollout, margins, statistic="mean", name=f"latency_mean{words}", false_alarm=part_chance)


def _demanded(findings: Iterator[Finding], margins: Margins, always: tuple[str, ...] = ()) -> Iterator[Finding]:
    """At a share whose next one is not all of the traffic, most findings are only heard when they are `failed`."""
    for each in findings:
        if margins.final or each.name in always or each.outcome is Outcome.FAILED:
            yield each
