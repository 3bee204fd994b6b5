"""Watches a candidate under traffic: renews its lease, judges what the gateway saw, takes it back.

`shadow` and `rollback_sensor` call `watch`; `traffic_shift` only sets. The watch itself releases the split the moment that a finding is
`failed`, when the deadline passes without enough evidence, and when nobody waits for its verdict any more. It never widens a split.
"""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from delivery.director_client import Director, DirectorUnreachable, LeaseLost, Row
from delivery.registry import Registry
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.judges import errors_below, log_blocks, not_slower
from validation.policy import BadPolicy, Rollout, Step, Trigger, parse

TICK_S = 0.5
BASELINE_S = 120.0  # how far back stable's own latencies count; at 100 % it answers nothing beside the candidate
BASELINE_ROWS = 20_000  # one page of the director's
_BEYOND = 2**53  # after a row that cannot exist yet: asks for the newest number and no rows
REGISTRY_LOOK_S = 5.0
PATIENCE_S = 20.0  # a director that does not answer has let the lease lapse by then; its supervisor restarts it in seconds
ENDINGS = 3
START_GRACE_S = 12.0  # from the job's start until the triggerer beats for the first time; the watch judges meanwhile
RESUMPTIONS = 3  # a director that comes back without its leases is given the same share again, at most so often


class Abandoned(RuntimeError):
    """Nobody waits for the verdict: the candidate went back to no traffic, and there is no verdict."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a watch needs to know of the policy: how long, and when a newer version takes the place."""

    min_seconds: float
    max_seconds: float
    rollout: Rollout
    trigger: Trigger


class Exposure(Protocol):
    """The kind of exposure being watched: a share of the traffic, or a mirror of it."""

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
    """Looks every half second until the findings decide or the deadline passes. Raises `Abandoned` without a verdict."""
    signal.signal(signal.SIGTERM, _stopped)
    started_s, superseded, waits = time.monotonic(), _Superseded(spec=spec, plan=plan), _Waits()
    try:
        while True:
            exposure.hold()
            findings = (*exposure.findings(), *superseded.findings())
            elapsed_s = time.monotonic() - started_s
            if _decided(findings, elapsed_s, plan):
                break
            waits.check()
            time.sleep(TICK_S)
    except BaseException:
        _end(exposure)
        raise
    if worst(each.outcome for each in findings) is not Outcome.PASSED:
        _end(exposure)
    exposure.record(evidence)
    return Decision(findings=findings, outputs={"seconds": round(elapsed_s, 1), **exposure.outputs()})


def _end(exposure: Exposure) -> None:
    """Takes the candidate back. A director that does not answer has lost the lease or lets it lapse: what was found is still told."""
    for _ in range(ENDINGS):
        try:
            return exposure.end()
        except DirectorUnreachable as error:
            print(f"the candidate's traffic could not be taken back by a call; its lease lapses: {error}")
            time.sleep(TICK_S)
    return None


def _decided(findings: Iterable[Finding], elapsed_s: float, plan: Plan) -> bool:
    """Failed decides at once, passed after the shortest dwell, anything at the deadline."""
    outcome = worst(each.outcome for each in findings)
    passed = outcome is Outcome.PASSED and elapsed_s >= plan.min_seconds
    return outcome is Outcome.FAILED or passed or elapsed_s >= plan.max_seconds


@dataclass(kw_only=True)
class Split:
    """A share of the real traffic, held by a lease; judged by what the gateway saw of each request."""

    spec: Spec
    step: Step
    rollout: Rollout
    looks: int
    director: Director
    candidate: list[Row] = field(default_factory=list)
    stable: list[Row] = field(default_factory=list)
    last: int = 0
    epoch: str = ""
    resumed: int = 0
    ended_s: float | None = None
    held_s: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Takes or confirms the lease on this step's share. The candidate's count begins at the step's shift, stable's some time before."""
        self._put()
        now_s = time.time()
        shifted_s = float(self.spec.inputs.get("shifted_unix_s") or now_s)
        self.last = max(0, self.director.observations(self.spec.model, _BEYOND).last - BASELINE_ROWS)
        since_s = {self._stable_version: now_s - BASELINE_S, self.spec.version: shifted_s}
        self._take_in(row for row in self._fetch() if row.unix_s >= since_s.get(row.version, now_s))

    def hold(self) -> None:
        """Renews and takes in new rows. A lease that a restarted director lost is asked for again with the same share, a few times."""
        try:
            self._renew()
            self._take_in(self._fetch())
            self.held_s = time.monotonic()
        except DirectorUnreachable:
            if time.monotonic() - self.held_s > PATIENCE_S:
                raise

    def _take_in(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.version == self.spec.version:
                self.candidate.append(row)
            elif row.version == self._stable_version:
                self.stable.append(row)

    def end(self) -> None:
        self.director.release(self.spec.model, self.spec.delivery)
        self.ended_s = time.time()

    def findings(self) -> tuple[Finding, ...]:
        return (self._errors(), self._latency())

    def record(self, evidence: Path) -> None:
        with (evidence / "observations.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "unix_s", "version", "ok", "latency_ms", "slice"])
            writer.writerows([*self.stable, *self.candidate])

    def outputs(self) -> dict[str, Any]:
        failures = [row.unix_s for row in self.candidate if not row.ok]
        figures: dict[str, Any] = {"requests": len(self.candidate), "failures": len(failures), "permille": self.step.permille}
        if failures and self.ended_s:
            figures["first_failure_to_stable_s"] = round(self.ended_s - failures[0], 3)
        return figures

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

    def _fetch(self) -> tuple[Row, ...]:
        """New rows; after a director's restart its count begins again, and nothing is counted twice."""
        seen = self.director.observations(self.spec.model, self.last)
        if seen.epoch != self.epoch and self.epoch:
            seen = self.director.observations(self.spec.model, 0)
        self.epoch, self.last = seen.epoch, seen.last
        return seen.rows

    @property
    def _stable_version(self) -> int:
        return self.spec.stable.version if self.spec.stable else 0

    def _errors(self) -> Finding:
        return errors_below(
            name=f"errors_at_{self.step.permille}_permille",
            failures=sum(not row.ok for row in self.candidate),
            n=len(self.candidate),
            limit=self.rollout.error_limit,
            exclude=self.step.exclude_error_rate,
            false_alarm=self.rollout.false_alarm / self.looks,
            miss=self.rollout.miss,
        )

    def _latency(self) -> Finding:
        return not_slower(
            name=f"latency_at_{self.step.permille}_permille",
            candidate=self._blocks(self.candidate),
            stable=self._blocks(self.stable),
            worse=self.rollout.latency_worse,
            exclude=self.step.exclude_latency_worse,
            false_alarm=self.rollout.false_alarm / self.looks,
            miss=self.rollout.miss,
        )

    def _blocks(self, rows: list[Row]) -> list[Any]:
        return log_blocks(((row.unix_s, row.latency_ms) for row in rows), self.rollout.indifferent_below_ms)


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


def judgements(rollout: Rollout) -> int:
    """How many judgements share the one false-alarm budget (union bound): the mirror's errors, errors and latency of each step."""
    return 1 + 2 * len(rollout.steps)


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
