"""The task `restore`: the teardown of every delivery. Whatever happened, stable has the traffic and the registry says how it ended.

It tries every part even when another fails, and only then raises `NotRestored`, so that Airflow runs it again: each part can be done twice.
It touches nothing of a version that belongs to another delivery, and never undoes a promotion: one that crashed half way is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delivery import servers
from delivery.director_client import Director, LeaseHeld
from delivery.findings import passed
from delivery.promote import PROMOTED, finish
from delivery.registry import DELIVERY, ENDED_AT, OUTCOME, PROMOTING, UNDONE_BY, ModelVersion, NotRegistered, Registry
from delivery.triton import server_name
from delivery.undo import follow
from validation.contract import BadSpec, Decision, Finding, Spec

FINDING_TAG = "penstock.finding."  # + task: the outcome word of each task that gave a verdict
BASELINE_TAG = "penstock.baseline."  # + metric: what the gates measured (accuracy, p50_ms, p99_ms), for later versions to be compared with
IN_TRAFFIC = (
    "shadow",
    "traffic_shift",
    "rollback_sensor",
    "promote",
    "bake",
)  # a candidate that fails here had met traffic and was taken back


class NotRestored(RuntimeError):
    """Some part could not be restored; the message names each. Worth a retry: the parts that were done are not harmed by it."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a delivery ended: the registry's outcome word, the task where, and why in a sentence."""

    outcome: str
    at: str
    why: str


@dataclass(kw_only=True)
class _Parts:
    """The parts tried so far: what was done, and what failed."""

    done: list[Finding] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def attempt(self, name: str, part: Callable[[], str]) -> None:
        try:
            self.done.append(passed(name, part()))
        except Exception as error:
            self.failed.append(f"{name}: {error or type(error).__name__}")


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    return restore(spec, Registry.from_env(), Director.from_env(), lambda name: servers.from_env().stop(name))


def restore(spec: Spec, registry: Registry, director: Director, stop: Callable[[str], None]) -> Decision:
    """Restores traffic, server and registry, each for itself. Raises `NotRestored` at the end when a part failed."""
    ending, parts = ended(_rows(spec), dry_run=spec.inputs.get("dry_run") is True, strategy=str(spec.inputs.get("strategy"))), _Parts()
    version = _version(spec, registry, parts)
    if not _ours(spec, version):
        return Decision(findings=(passed("restore", f"v{spec.version} was never this delivery's: nothing was touched"),))
    if not spec.inputs.get("promoted"):
        parts.attempt("split", lambda: _release(spec, director))
        parts.attempt("candidate", lambda: _remove(spec, director))
        parts.attempt("server", lambda: _stop(spec, director, stop))
    if spec.inputs.get("promoted"):
        parts.attempt("undo", lambda: follow(spec.model, registry, director))
    if version is not None:
        parts.attempt("registry", lambda: _record(spec, version, ending, registry, director))
    if not parts.failed:
        parts.attempt("orders", lambda: _end_orders(spec, director))
    if parts.failed:
        raise NotRestored(f"{spec.model} v{spec.version}: " + "; ".join(parts.failed))
    return Decision(findings=tuple(parts.done), outputs={"outcome": ending.outcome, "at": ending.at, "why": ending.why[:500]})


def ended(rows: Iterable[Mapping[str, Any]], *, dry_run: bool, strategy: str = "shadow then canary") -> Ending:
    """The ending that the verdicts of a delivery add up to; the first that did not pass decides. Rows: task, outcome, why."""
    told = list(rows)
    if first := next((row for row in told if row.get("outcome") != "passed"), None):
        return Ending(outcome=_word(first), at=str(first["task"]), why=str(first.get("why") or "no reason was given"))
    last = str(told[-1]["task"]) if told else "-"
    if last in ("promote", "bake"):
        return Ending(outcome="promoted", at=last, why=str(told[-1]["why"]))
    if strategy == "shadow" and last == "integration":
        return Ending(outcome="inconclusive", at="shadow", why="nothing is stable yet: there was no traffic to mirror")
    if (dry_run and last == "latency_benchmark") or (strategy == "shadow" and last == "shadow"):
        return Ending(outcome="dry_run", at=last, why="everything that was asked for passed; no traffic was asked for")
    return Ending(outcome="error", at=last, why=f"the delivery stopped after {last} without a verdict of the next task")


def _word(row: Mapping[str, Any]) -> str:
    if row.get("outcome") == "inconclusive":
        return "inconclusive"
    if row.get("outcome") != "failed":
        return "error"
    if str(row.get("why", "")).startswith("not_superseded:"):
        return "superseded"
    return "rolled_back" if str(row["task"]).startswith(IN_TRAFFIC) else "refused"


def _rows(spec: Spec) -> list[Mapping[str, Any]]:
    rows = spec.inputs.get("verdicts")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("task") for row in rows):
        raise BadSpec("restore needs inputs.verdicts, a list of {task, outcome, why}")
    return rows


def _version(spec: Spec, registry: Registry, parts: _Parts) -> ModelVersion | None:
    """The registry's word on the version; None when it is not registered or (noted as failed) the registry does not answer."""
    try:
        return registry.version(spec.model, spec.version)
    except NotRegistered:
        return None
    except Exception as error:
        parts.failed.append(f"registry: {error}")
        return None


def _ours(spec: Spec, version: ModelVersion | None) -> bool:
    """The registry knows; without it, this delivery's own claim verdict does."""
    if version is not None:
        return version.tags.get(DELIVERY) == spec.delivery
    return any(row["task"] == "claim" and row.get("outcome") == "passed" for row in _rows(spec))


def _release(spec: Spec, director: Director) -> str:
    try:
        director.release(spec.model, spec.delivery)
    except LeaseHeld as error:
        return f"the split is {error.holder}'s and not ours"
    return "the split is released: stable has all traffic"


def _remove(spec: Spec, director: Director) -> str:
    """The mirror ends with the candidate; turning it off first keeps the last copies from meeting a closing server."""
    candidate = director.model(spec.model).candidate
    if candidate is None or candidate.version != spec.version:
        return f"v{spec.version} is not the gateway's candidate"
    director.put_shadow(spec.model, 0)
    director.delete_candidate(spec.model, spec.version)
    return f"v{spec.version} is the gateway's candidate no longer"


def _stop(spec: Spec, director: Director, stop: Callable[[str], None]) -> str:
    """Asks the gateway again: a server that anything points at goes on, whatever this delivery thinks of it."""
    if spec.version in director.model(spec.model).with_servers:
        return f"the server of v{spec.version} goes on: the gateway uses it"
    stop(server_name(spec.model, spec.version))
    return f"no server of v{spec.version} runs"


def _record(spec: Spec, version: ModelVersion, ending: Ending, registry: Registry, director: Director) -> str:
    """Writes outcome and gate results once; what stands already (a promotion, an undo, an earlier try of this task) stays."""
    not_run = {f"{FINDING_TAG}{task}": str(why) for task, why in dict(spec.inputs.get("not_run") or {}).items()}
    words = not_run | {f"{FINDING_TAG}{row['task']}": str(row.get("outcome") or "error") for row in _rows(spec)}
    measured = {f"{BASELINE_TAG}{name}": f"{value:.6g}" for row in _rows(spec) for name, value in row.get("baselines", {}).items()}
    registry.tag(version, words | measured)
    written = (version.tags.get(OUTCOME), version.tags.get(ENDED_AT))
    if written[0] == PROMOTED or UNDONE_BY in version.tags or written == (ending.outcome, ending.at):
        return f"the outcome stands already: {version.tags[OUTCOME]}"
    evidence = spec.evidence_uri.rsplit("/", 1)[0]
    if PROMOTING in version.tags and _serves(spec, director):
        finish(registry, version, why="promoted; its promotion was stopped half way and finished by the teardown", evidence=evidence)
        return "a promotion that was stopped half way is finished"
    registry.end(version, outcome=ending.outcome, at=ending.at, why=ending.why, evidence=evidence)
    registry.untag(version, PROMOTING)
    return f"outcome {ending.outcome} is written"


def _end_orders(spec: Spec, director: Director) -> str:
    """Last, and only when all else is done: until then an abort keeps its force."""
    director.end_delivery(spec.model, spec.delivery)
    return "the delivery is over for the director: a later one has orders of its own"


def _serves(spec: Spec, director: Director) -> bool:
    stable = director.model(spec.model).stable
    return stable is not None and stable.version == spec.version
