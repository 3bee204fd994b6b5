"""The task `shadow`: mirrors traffic to the candidate and judges what its own server made of it. Users see stable's answers only."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delivery.director_client import Director, DirectorUnreachable
from delivery.orders import place
from delivery.paired import Paired
from delivery.recorder_client import Recorder
from delivery.rollout import PATIENCE_S, Plan, limit, watch
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec
from validation.judges import errors_below
from validation.paired import paired_findings
from validation.policy import Rollout, Shadow, Trigger
from validation.rollout_judge import SHADOW_PART


def run(spec: Spec, evidence: Path) -> Decision:
    """Returns when the mirror is decided; the mirror is off again whatever the verdict."""
    if spec.stable is None:
        raise BadSpec("shadow needs a stable version whose traffic is mirrored")
    shadow, rollout, trigger = limit(spec, "shadow", Shadow), limit(spec, "rollout", Rollout), limit(spec, "trigger", Trigger)
    paired = Paired(recorder=Recorder.from_env(), model=spec.model, stable=spec.stable.version, candidate=spec.version)
    mirror = Mirror(spec=spec, shadow=shadow, rollout=rollout, director=Director.from_env(), paired=paired)
    plan = Plan(min_seconds=shadow.min_seconds, max_seconds=shadow.max_seconds, rollout=rollout, trigger=trigger, at=place(None))
    decision = watch(spec, evidence, mirror, plan)
    with contextlib.suppress(DirectorUnreachable):  # then it lapses by itself, and the verdict stands
        mirror.end()
    return decision


@dataclass(kw_only=True)
class Mirror:
    """A copy of the traffic, held like a lease; judged by the counters of the candidate's own endpoints, since its answers are dropped, and
    by the pairs of answers that the recorder has made.
    """

    spec: Spec
    shadow: Shadow
    rollout: Rollout
    director: Director
    paired: Paired
    before: tuple[int, int] = (0, 0)
    looks: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    held_s: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Notes the counters' state, then sets the mirror and has it confirmed."""
        self.before = self._counters()
        self.paired.begin()
        self._put()

    def hold(self) -> None:
        """Renews the mirror, or sets it again if it had lapsed, and counts. A director that is away for a moment is waited for."""
        try:
            self._put()
            requests, failures = self._counters()
        except DirectorUnreachable:
            if time.monotonic() - self.held_s > PATIENCE_S:
                raise
            return
        self.held_s = time.monotonic()
        self.paired.gather()
        self.looks.append((requests - self.before[0], failures - self.before[1]))

    def end(self) -> None:
        self.director.put_shadow(self.spec.model, 0)

    def findings(self) -> tuple[Finding, ...]:
        requests, failures = self.looks[-1]
        if min(requests, failures) < 0:
            return (Finding(name="mirrored_errors", outcome=Outcome.INCONCLUSIVE, why="the gateway's counters fell: it was restarted"),)
        return (self._enough(requests), self._errors(requests, failures), *self._alike())

    def record(self, evidence: Path) -> None:
        rows = [{"requests": requests, "failures": failures} for requests, failures in self.looks]
        (evidence / "mirrored.json").write_text(json.dumps(rows))
        (evidence / "paired.jsonl").write_text("".join(json.dumps(each) + "\n" for each in self.paired.rows))

    def outputs(self) -> dict[str, Any]:
        requests, failures = self.looks[-1]
        return {"mirrored": requests, "mirrored_failures": failures, "pairs": len(self.paired.rows)}

    def _put(self) -> None:
        self.director.put_shadow(self.spec.model, self.shadow.permille, ttl_s=self.rollout.lease_seconds)

    def _counters(self) -> tuple[int, int]:
        seen = self.director.mirrored(self.spec.model)
        return seen.requests, seen.failures

    def _enough(self, requests: int) -> Finding:
        least = self.shadow.min_requests
        return Finding(
            name="mirrored_requests",
            outcome=Outcome.PASSED if requests >= least else Outcome.INCONCLUSIVE,
            why=f"{requests} mirrored requests of at least {least}",
            observed=float(requests),
            limit=float(least),
            advice=None if requests >= least else "more traffic, or a longer max_seconds in [shadow]",
        )

    def _errors(self, requests: int, failures: int) -> Finding:
        return errors_below(
            name="mirrored_errors",
            failures=min(failures, requests),
            n=requests,
            limit=self.rollout.error_limit,
            exclude=self.shadow.exclude_error_rate,
            false_alarm=self.rollout.false_alarm * SHADOW_PART / 2,
            miss=self.rollout.miss,
        )

    def _alike(self) -> Iterator[Finding]:
        false_alarm = self.rollout.false_alarm * SHADOW_PART / 2
        return paired_findings(self.paired.rows, self.shadow, false_alarm=false_alarm, miss=self.rollout.miss)
