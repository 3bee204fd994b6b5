"""What the demo must show, and whether it did: pure, no I/O.

`demo.run` fills a `Record` while it goes and asks `deviations` at the end; any sentence in the answer is exit status 1. Nothing missing
counts as fine: no outcome, no requests, a client that did not end properly are deviations like a wrong outcome.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST_RPS = 100.0


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How one version must end. `ended_at` is the task's name or, with a trailing underscore, the start of it."""

    version: int
    recipe: str
    story: str
    outcome: str
    ended_at: str
    production: int
    meets_traffic: bool = True


STORY = (
    Expected(version=1, recipe="v1", story="the first", outcome="promoted", ended_at="promote", production=1),
    Expected(version=2, recipe="v2", story="better", outcome="promoted", ended_at="promote", production=2),
    Expected(
        version=3,
        recipe="v3",
        story="trained on broken labels",
        outcome="refused",
        ended_at="golden_set",
        production=2,
        meets_traffic=False,
    ),
    Expected(version=4, recipe="v4", story="fails on a new scanner", outcome="rolled_back", ended_at="rollback_sensor_", production=2),
    Expected(version=5, recipe="retrain", story="made by the retraining DAG", outcome="promoted", ended_at="promote", production=5),
)


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """One task of a delivery; times in Unix seconds, `None` where it has not begun or ended."""

    task: str
    state: str
    started_unix_s: float | None = None
    ended_unix_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a version's delivery ended, as the registry tells it. `production` is the version that the alias named then, 0 for none."""

    version: int
    registered_unix_s: float
    ended_unix_s: float
    outcome: str
    ended_at: str
    why: str
    production: int
    tasks: tuple[TaskRun, ...] = ()

    @property
    def registration_to_outcome_s(self) -> float:
        return self.ended_unix_s - self.registered_unix_s

    @property
    def event_to_task_s(self) -> float | None:
        """From the version's creation to the first moment of the task `claim`."""
        started = next((each.started_unix_s for each in self.tasks if each.task == "claim"), None)
        return None if started is None else started - self.registered_unix_s


@dataclass
class Seen:
    """What the gateway saw of one version: requests that it answered, and those that its server failed (saved or not)."""

    answered: int = 0
    failed: int = 0
    first_unix_s: float | None = None
    first_failed_unix_s: float | None = None
    last_unix_s: float | None = None

    def add(self, unix_s: float, *, ok: bool) -> None:
        self.answered += ok
        self.failed += not ok
        self.first_unix_s = unix_s if self.first_unix_s is None else min(unix_s, self.first_unix_s)
        self.last_unix_s = unix_s if self.last_unix_s is None else max(unix_s, self.last_unix_s)
        if not ok:
            self.first_failed_unix_s = unix_s if self.first_failed_unix_s is None else min(unix_s, self.first_failed_unix_s)

    @property
    def breach_to_stable_s(self) -> float | None:
        """From the first request that it failed to the last one that was sent to it."""
        if self.first_failed_unix_s is None or self.last_unix_s is None:
            return None
        return self.last_unix_s - self.first_failed_unix_s


@dataclass(frozen=True, kw_only=True)
class Share:
    """Where the traffic went at one moment: the candidate's version (0: none), its share and its mirror in per mille."""

    unix_s: float
    stable: int
    candidate: int
    permille: int
    shadow_permille: int


@dataclass
class Record:
    """Everything that was seen. `lines` are the client's, one a second; `marks` are moments worth a line in the plots."""

    started_unix_s: float
    stack_up_s: float = 0.0
    ended_unix_s: float = 0.0
    trouble: list[str] = field(default_factory=list)
    endings: dict[int, Ending] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    @property
    def total_s(self) -> float:
        return self.ended_unix_s - self.started_unix_s

    def sum(self, count: str) -> int:
        return sum(int(line[count]) for line in self.lines)

    @property
    def rps(self) -> float:
        """Requests a second over the client's whole time."""
        span_s = sum(float(line["span_s"]) for line in self.lines)
        return self.sum("requests") / span_s if span_s > 0 else 0.0


def deviations(record: Record, story: Sequence[Expected] = STORY) -> list[str]:
    """A sentence for each thing that did not go as said; empty when all did."""
    versions = [sentence for expected in story for sentence in _version(expected, record)]
    return [*record.trouble, *versions, *_client(record)]


def result(record: Record, story: Sequence[Expected] = STORY) -> dict[str, Any]:
    """All figures as plain JSON values; seconds in `_s`, `None` where a thing was not seen."""
    events = [each.event_to_task_s for each in record.endings.values() if each.event_to_task_s is not None]
    wrong = deviations(record, story)
    return {
        "as_expected": not wrong,
        "deviations": wrong,
        "total_s": round(record.total_s, 1),
        "stack_up_s": round(record.stack_up_s, 1),
        "requests": record.sum("requests"),
        "rps": round(record.rps, 1),
        "client_errors": record.sum("errors"),
        "not_yet_served": record.sum("not_yet_served"),
        "event_to_task_s": round(statistics.median(events), 3) if events else None,
        "breach_to_stable_s": _breach_to_stable_s(record, story),
        "versions": [version_row(expected, record) for expected in story],
    }


def version_row(expected: Expected, record: Record) -> dict[str, Any]:
    """One version's figures, also when its delivery never ended."""
    ending, seen = record.endings.get(expected.version), record.seen.get(expected.version, Seen())
    row: dict[str, Any] = {"version": expected.version, "story": expected.story, "expected": expected.outcome}
    row |= {"answered": seen.answered, "failed": seen.failed}
    if ending is None:
        return {**row, "outcome": None}
    return row | {
        "outcome": ending.outcome,
        "ended_at": ending.ended_at,
        "why": ending.why,
        "registered_unix_s": ending.registered_unix_s,
        "registration_to_outcome_s": round(ending.registration_to_outcome_s, 1),
        "event_to_task_s": _rounded(ending.event_to_task_s),
        "breach_to_stable_s": _rounded(seen.breach_to_stable_s),
        "client_errors": _client_errors(record, ending),
        "tasks": [{"task": each.task, "state": each.state, "seconds": _seconds(each)} for each in ending.tasks],
    }


def as_said(expected: Expected, ending: Ending) -> bool:
    """Whether this version ended as the story says; the rest of the story makes no sense otherwise."""
    return not _ending(expected, ending)


def _version(expected: Expected, record: Record) -> list[str]:
    ending, seen = record.endings.get(expected.version), record.seen.get(expected.version, Seen())
    if ending is None:
        return [f"v{expected.version} has no outcome; expected {expected.outcome}"]
    wrong = _ending(expected, ending)
    if expected.meets_traffic and not seen.answered + seen.failed:
        wrong.append(f"v{expected.version} met no request; it should have")
    if not expected.meets_traffic and seen.answered + seen.failed:
        wrong.append(f"v{expected.version} met {seen.answered + seen.failed} requests; it should have met none")
    if expected.outcome == "rolled_back" and not seen.failed:
        wrong.append(f"v{expected.version} failed no request; it should have been taken back for failing")
    return wrong


def _ending(expected: Expected, ending: Ending) -> list[str]:
    name, wrong = f"v{expected.version}", []
    if ending.outcome != expected.outcome:
        wrong.append(f"{name} ended as {ending.outcome} at {ending.ended_at}; expected {expected.outcome}. {ending.why}")
    elif not _at(expected.ended_at, ending.ended_at):
        wrong.append(f"{name} ended at {ending.ended_at or 'no task'}; expected {expected.ended_at}. {ending.why}")
    if ending.production != expected.production:
        wrong.append(f"after {name} the alias production named {ending.production or 'nothing'}; expected {expected.production}")
    return wrong


def _at(expected: str, task: str) -> bool:
    return task.startswith(expected) if expected.endswith("_") else task == expected


def _client(record: Record) -> list[str]:
    wrong = []
    if not record.lines or not record.lines[-1].get("ended"):
        wrong.append("the client did not end as told: its last requests are not counted")
    if not record.sum("ok"):
        wrong.append("the client got no answer at all")
    if errors := record.sum("errors"):
        samples = [sample for line in record.lines for sample in line["error_samples"]]
        wrong.append(f"the client met {errors} errors; expected 0. First: {'; '.join(samples[:3])}")
    if record.lines and record.rps < LEAST_RPS:
        wrong.append(f"the client sent {record.rps:.0f} requests a second; expected {LEAST_RPS:.0f} or more")
    return wrong


def _breach_to_stable_s(record: Record, story: Sequence[Expected]) -> float | None:
    rolled_back = [record.seen.get(each.version, Seen()) for each in story if each.outcome == "rolled_back"]
    return _rounded(next((seen.breach_to_stable_s for seen in rolled_back), None))


def _client_errors(record: Record, ending: Ending) -> int:
    """Errors at the client while this version was being delivered."""
    during: Sequence[Mapping[str, Any]] = [
        line for line in record.lines if ending.registered_unix_s - 1 < line["second"] <= ending.ended_unix_s
    ]
    return sum(int(line["errors"]) for line in during)


def _seconds(task: TaskRun) -> float | None:
    if task.started_unix_s is None or task.ended_unix_s is None:
        return None
    return round(task.ended_unix_s - task.started_unix_s, 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
