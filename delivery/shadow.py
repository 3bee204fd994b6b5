"""The task `shadow`: mirrors traffic to the candidate and judges what its own server made of it. Users see stable's answers only."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delivery.director_client import Director, DirectorUnreachable
from delivery.orders import place
from delivery.paired import Paired
from delivery.recorder_client import Recorder
from delivery.rollout import JUDGED, PATIENCE_S, Plan, limit, watch
from validation.contract import BadSpec, Decision, Finding, Spec, sha256
from validation.policy import Rollout, Shadow, Trigger, section
from validation.shadow_judge import chances, judge_shadow

COUNTS, PAIRS = "mirrored.json", "paired.jsonl"


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
        return judge_shadow(*self.looks[-1], self.paired.rows, self.shadow, self.rollout)

    def record(self, evidence: Path) -> None:
        """Counts at each look, the pairs, and what they were judged by: `penstock replay` decides again from these."""
        rows = [{"requests": requests, "failures": failures} for requests, failures in self.looks]
        (evidence / COUNTS).write_text(json.dumps(rows))
        (evidence / PAIRS).write_text("".join(json.dumps(each) + "\n" for each in self.paired.rows))
        words = {"model": self.spec.model, "version": self.spec.version, "stable": self.paired.stable, "delivery": self.spec.delivery}
        limits = {"shadow": section(self.shadow), "rollout": section(self.rollout)}
        digests = {"spec": self.spec.digest, **{name: sha256((evidence / name).read_bytes()) for name in (COUNTS, PAIRS)}}
        row = {**words, **limits, "chance_of_false_alarm": chances(self.rollout), "sha256": digests}
        (evidence / JUDGED).write_text(json.dumps(row, indent=1))

    def outputs(self) -> dict[str, Any]:
        requests, failures = self.looks[-1]
        return {"mirrored": requests, "mirrored_failures": failures, "pairs": len(self.paired.rows)}

    def _put(self) -> None:
        self.director.put_shadow(self.spec.model, self.shadow.permille, ttl_s=self.rollout.lease_seconds)

    def _counters(self) -> tuple[int, int]:
        seen = self.director.mirrored(self.spec.model)
        return seen.requests, seen.failures
