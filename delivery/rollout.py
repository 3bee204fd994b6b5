"""Watches a candidate under traffic: renews its lease, judges what the gateway saw, takes it back.

`shadow` and `rollback_sensor` call `watch`; `traffic_shift` only sets. The watch itself releases the split the moment that a finding is
`failed`, when the deadline passes without enough evidence, and when nobody waits for its verdict any more. It never widens a split.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from delivery.director_client import Director, DirectorUnreachable, LeaseLost, Refused, Row
from delivery.orders_watch import Steering
from delivery.registry import Registry
from delivery.rollout_evidence import FILE, RolloutLog
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.policy import BadPolicy, Rollout, Step, Trigger, parse, section
from validation.rollout_judge import PARTS, chance, judge_rollout

TICK_S = 0.5
BASELINE_S = 120.0  # how far back stable's own latencies count; at 100 % it answers nothing beside the candidate
BASELINE_ROWS = 20_000  # one page of the director's
_BEYOND = 2**53  # after a row that cannot exist yet: asks for the newest number and no rows
REGISTRY_LOOK_S = 5.0
PATIENCE_S = 20.0  # a director that does not answer has let the lease lapse by then; its supervisor restarts it in seconds
ENDINGS = 3
JUDGED = "judged.json"
START_GRACE_S = 12.0  # from the job's start until the triggerer beats for the first time; the watch judges meanwhile
RESUMPTIONS = 3  # a director that comes back without its leases is given the same share again, at most so often


class Abandoned(RuntimeError):
    """Nobody waits for the verdict: the candidate went back to no traffic, and there is no verdict."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a watch needs to know of the policy: how long, and when a newer version takes the place.

    `at` is the watch's place in the rollout as people's orders name it; with `approval` it passes only when a person says so.
    """

    min_seconds: float
    max_seconds: float
    rollout: Rollout
    trigger: Trigger
    at: str
    approval: bool = False


class Exposure(Protocol):
    """The kind of exposure being watched: a share of the traffic, or a mirror of it."""

    @property
    def director(self) -> Director:
        """Whom people's orders are asked from."""

    def begin(self) -> None:
        """Exposes the candidate, or confirms that it is."""

    def hold(self) -> None:
        """Renews what keeps the candidate exposed; called every tick."""

    def end(self) -> None:
        """Takes the candidate back; acknowledged by the gateway when it returns."""

    def findings(self) -> tuple[Finding, ...]:
        """What the evidence so far says."""

    def record(self, evidence: Path) -> None:
        """Writes the evidence from which the findings follow."""

    def outputs(self) -> dict[str, Any]:
        """Small figures for the registry and the report."""


def watch(spec: Spec, evidence: Path, exposure: Exposure, plan: Plan) -> Decision:
    """Begins, then looks every half second until findings or people decide or the deadline passes. Raises `Abandoned` without a verdict."""
    signal.signal(signal.SIGTERM, _stopped)
    superseded, waits, steering = _Superseded(spec=spec, plan=plan), _Waits(), _steering(spec, exposure, plan)
    if findings := _before(steering, waits):
        steering.record(evidence)
        return Decision(findings=findings, outputs={"seconds": 0.0})
    exposure.begin()
    try:
        while True:
            _hold(exposure, steering)
            judged = (*exposure.findings(), *superseded.findings())
            steering.tick(judged)
            findings = steering.applied(judged)
            if steering.over(findings) or _decided(findings, steering, plan):
                break
            waits.check()
            time.sleep(TICK_S)
    except BaseException:
        _end(exposure)
        raise
    if worst(each.outcome for each in findings) is not Outcome.PASSED:
        _end(exposure)
    exposure.record(evidence)
    steering.record(evidence)
    return Decision(findings=findings, outputs={"seconds": round(steering.elapsed_s, 1), **exposure.outputs()})


def _steering(spec: Spec, exposure: Exposure, plan: Plan) -> Steering:
    return Steering(
        spec=spec,
        director=exposure.director,
        at=plan.at,
        approval=plan.approval,
        pause_max_s=plan.rollout.pause_max_seconds,
        min_s=plan.min_seconds,
    )


def _before(steering: Steering, waits: _Waits) -> tuple[Finding, ...]:
    """A delivery that is paused between two tasks waits here, before it has more traffic. The findings that end it; none: it begins."""
    while True:
        steering.look()
        steering.tick(())
        findings = steering.applied(())
        ended = any(each.outcome is Outcome.FAILED for each in findings)
        if ended or steering.wanted.paused is None or steering.over(findings):
            return findings if ended or steering.wanted.paused else ()
        waits.check()
        time.sleep(TICK_S)


def _hold(exposure: Exposure, steering: Steering) -> None:
    """Where the director refuses because the delivery was aborted, that is what the watch finds."""
    try:
        exposure.hold()
    except Refused:
        steering.look(now=True)
        if steering.wanted.aborted is None:
            raise
    else:
        steering.look()


def _end(exposure: Exposure) -> None:
    """Takes the candidate back. A director that does not answer has lost the lease or lets it lapse: what was found is still told."""
    for _ in range(ENDINGS):
        try:
            return exposure.end()
        except DirectorUnreachable as error:
            print(f"the candidate's traffic could not be taken back by a call; its lease lapses: {error}")
            time.sleep(TICK_S)
    return None


def _decided(findings: Iterable[Finding], steering: Steering, plan: Plan) -> bool:
    """Failed decides at once, passed after the shortest dwell, anything at the deadline, unless a person holds the step."""
    outcome, elapsed_s = worst(each.outcome for each in findings), steering.elapsed_s
    passed = outcome is Outcome.PASSED and elapsed_s >= plan.min_seconds
    return outcome is Outcome.FAILED or passed or (elapsed_s >= plan.max_seconds and not steering.held)


@dataclass(kw_only=True)
class Split:
    """A share of the real traffic, held by a lease; judged by everything that the gateway saw since the candidate's first share."""

    spec: Spec
    step: Step
    rollout: Rollout
    director: Director
    log: RolloutLog = field(init=False)
    since_s: float = field(init=False)
    before: int = 0
    digest: str = ""
    resumed: int = 0
    ended_s: float | None = None
    held_s: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Takes or confirms the lease on this step's share, and goes on from what the step before has seen.

        Without one, the candidate's count begins at this step's shift, stable's some time before.
        """
        self._put()
        now_s = time.time()
        self.since_s = float(self.spec.inputs.get("shifted_unix_s") or now_s)
        if "observed_uri" in self.spec.inputs:
            self.log = RolloutLog.fetch(self.spec.inputs["observed_uri"], self.spec.inputs["observed_sha256"])
            self.before = len(self.log.of(self.spec.version))
            self._fetch()
            return
        self.log = RolloutLog(stable=self._stable_version, candidate=self.spec.version)
        newest = self.director.observations(self.spec.model, _BEYOND)
        self.log.last, self.log.epoch, self.log.gaps_told = max(0, newest.last - BASELINE_ROWS), newest.epoch, newest.gaps
        since_s = {self._stable_version: now_s - BASELINE_S, self.spec.version: self.since_s}
        self._fetch(lambda row: row.unix_s >= since_s.get(row.version, now_s))

    def hold(self) -> None:
        """Renews and takes in new rows. A lease that a restarted director lost is asked for again with the same share, a few times."""
        try:
            self._renew()
            self._fetch()
            self.held_s = time.monotonic()
        except DirectorUnreachable:
            if time.monotonic() - self.held_s > PATIENCE_S:
                raise

    def end(self) -> None:
        self.director.release(self.spec.model, self.spec.delivery)
        self.ended_s = time.time()

    def findings(self) -> tuple[Finding, ...]:
        return judge_rollout(self.log.evidence(self.since_s), self.rollout, self.step)

    def record(self, evidence: Path) -> None:
        """The rows, and what they were judged by: `penstock replay` decides again from these two files."""
        self.digest = self.log.write(evidence)
        limits = {"rollout": section(self.rollout), "step": section(self.step), "step_since_s": self.since_s}
        words = {"model": self.spec.model, "version": self.spec.version, "stable": self._stable_version, "delivery": self.spec.delivery}
        digests = {"spec": self.spec.digest, "requests": self.digest}
        budget = {name: chance(self.rollout, name) for name in PARTS}
        row = {**words, **limits, "chance_of_false_alarm": budget, "sha256": digests}
        (evidence / JUDGED).write_text(json.dumps(row, indent=1))

    def outputs(self) -> dict[str, Any]:
        rows = self.log.of(self.spec.version)[self.before :]
        failures = [row.unix_s for row in rows if not row.ok]
        figures: dict[str, Any] = {"requests": len(rows), "failures": len(failures), "permille": self.step.permille}
        if failures and self.ended_s:
            figures["first_failure_to_stable_s"] = round(self.ended_s - failures[0], 3)
        return figures | {"observed_uri": f"{self.spec.evidence_uri}/{FILE}", "observed_sha256": self.digest}

    def _renew(self) -> None:
        try:
            self.director.renew(self.spec.model, self.spec.delivery, self.rollout.lease_seconds)
        except LeaseLost:
            if self.resumed >= RESUMPTIONS:
                raise
            self._put()
            self.resumed += 1

    def _put(self) -> None:
        self.director.put_split(self.spec.model, self.spec.delivery, self.step.permille, self.rollout.lease_seconds)

    def _fetch(self, wanted: Callable[[Row], bool] = lambda _: True) -> None:
        """New rows, page by page; after a director's restart its count begins again, and nothing is counted twice."""
        more = True
        while more:
            seen = self.director.observations(self.spec.model, self.log.last)
            if seen.epoch != self.log.epoch:
                seen = self.director.observations(self.spec.model, 0)
            self.log.take(replace(seen, rows=tuple(row for row in seen.rows if wanted(row))))
            more = len(seen.rows) >= BASELINE_ROWS  # a full page: under traffic some rows are always new, and the watch has to judge

    @property
    def _stable_version(self) -> int:
        return self.spec.stable.version if self.spec.stable else 0


@dataclass(kw_only=True)
class _Superseded:
    """Under `newer = "supersedes"`, a newer wanted version ends this delivery; the registry is asked every few seconds."""

    spec: Spec
    plan: Plan
    looked_s: float = -REGISTRY_LOOK_S
    newer: int | None = None

    def findings(self) -> tuple[Finding, ...]:
        if self.plan.rollout.newer != "supersedes":
            return ()
        return (not_superseded(self.spec, self._look()),)

    def _look(self) -> int | None:
        if time.monotonic() - self.looked_s >= REGISTRY_LOOK_S:
            self.looked_s = time.monotonic()
            self.newer = Registry.from_env().newer_wanted(self.spec.model, self.spec.version, self.plan.trigger)
        return self.newer


def not_superseded(spec: Spec, newer: int | None) -> Finding:
    """Whether a newer version of the model is waiting for the place of this one."""
    if newer is None:
        return Finding(name="not_superseded", outcome=Outcome.PASSED, why=f"no version newer than v{spec.version} is waiting")
    why = f"v{newer} arrived and the policy says that a newer version supersedes v{spec.version}"
    return Finding(name="not_superseded", outcome=Outcome.FAILED, why=why, observed=float(newer))


def limit(spec: Spec, name: str, kind: type[Any]) -> Any:
    """A section of the policy from the spec's limits; raises `BadSpec` when it is missing or wrong."""
    try:
        return parse(kind, spec.limits[name], name)
    except KeyError:
        raise BadSpec(f"{spec.task} needs limits.{name}") from None
    except BadPolicy as error:
        raise BadSpec(str(error)) from error


@dataclass(kw_only=True)
class _Waits:
    """Whether somebody waits for the verdict: an operator's trigger touches a file each second. Without it for too long Airflow is gone."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    first_beat_s: float | None = None

    def check(self) -> None:
        """Raises `Abandoned`: nobody would promote what is found here, or take it back."""
        if (limit_s := self.environ.get("TASK_KEEPALIVE_S")) is None:
            return
        beat_s = self._beat_s()
        self.first_beat_s = self.first_beat_s or beat_s
        patience_s = START_GRACE_S if beat_s == self.first_beat_s else float(limit_s)
        if time.time() - beat_s > patience_s:
            raise Abandoned(f"nobody has waited for this verdict for {patience_s:g} s: the candidate's traffic went back to stable")

    def _beat_s(self) -> float:
        beat = Path(self.environ["TASK_OUT"]) / "keepalive"
        return beat.stat().st_mtime if beat.exists() else Path(f"/proc/{os.getpid()}").stat().st_mtime


def _stopped(number: int, frame: Any) -> None:
    del frame
    raise Abandoned(f"stopped by signal {number}")
