"""What a watch wrote down of its judgement, read back so that it can be decided again: the mirror's, a step's, a bake's.

`delivery.replay` prints what this finds. Evidence is a folder whose manifest holds the digest of each file; `judged.json` says what was
watched and by which limits. Nothing is asked of anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from delivery.rollout import JUDGED
from delivery.rollout_evidence import FILE, RolloutLog
from delivery.shadow import COUNTS, PAIRS
from validation.contract import BadSpec, Finding, Outcome, sha256
from validation.paired import COMPARED
from validation.policy import BadPolicy, Rollout, Shadow, Step, parse
from validation.rollout_judge import Evidence, judge_rollout
from validation.shadow_judge import judge_shadow

FOUND, MANIFEST = "findings.json", "manifest.json"
STEPS = 40  # of the bisection of a margin


class NoEvidence(ValueError):
    """There is no evidence at that place, or it is not what its manifest says."""


class Judged(Protocol):
    """A judgement as its evidence tells it. `found` also holds what the requests do not show, like people's orders."""

    @property
    def found(self) -> tuple[Finding, ...]: ...

    @property
    def budget(self) -> Mapping[str, float]:
        """The chance of a false alarm over the whole rollout, by what is judged."""

    def again(self) -> tuple[Finding, ...]:
        """The findings that follow from the evidence now."""

    def heading(self) -> Iterator[str]:
        """What was watched, on how much, and what it had to show."""

    def turns(self, finding: Finding) -> Iterator[str]:
        """The smallest change that turns this finding."""


def files(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a replay reads beside `judged.json`, whose content is `row`."""
    return (COUNTS, PAIRS, FOUND) if "shadow" in row else (FILE, FOUND)


def read(folder: Path) -> Judged:
    """Raises `NoEvidence` naming the file."""
    try:
        digests = json.loads((folder / MANIFEST).read_bytes())
        row = json.loads(_checked(folder, JUDGED, digests))
        for name in files(row):
            _checked(folder, name, digests)
        known = {"found": _findings(folder), "budget": row["chance_of_false_alarm"], "rollout": parse(Rollout, row["rollout"], "rollout")}
        return JudgedMirror.of(folder, row, known) if "shadow" in row else JudgedStep.of(folder, row, known)
    except (OSError, KeyError, TypeError, ValueError, BadPolicy, BadSpec) as error:
        raise NoEvidence(f"{folder}: no evidence of a watch: {error}") from error


def differences(judged: Judged) -> list[str]:
    """What is found otherwise now than it was written down; nothing when they agree."""
    before = {each.name: each.to_dict() for each in judged.found}
    now = {each.name: each.to_dict() for each in judged.again()}
    return [f"{name}: {_short(before.get(name))} then, {_short(row)} now" for name, row in now.items() if before.get(name) != row]


def explanation(judged: Judged) -> Iterator[str]:
    """Plain sentences: what decided, what would have turned it, and what was missing."""
    worst = max((each.outcome for each in judged.found), default=Outcome.INCONCLUSIVE)
    yield from judged.heading()
    for each in judged.found:
        if each.outcome is worst or worst is Outcome.PASSED:
            yield f"{each.name}: {each.why}."
            yield from (f"  {sentence}" for sentence in _turns(judged, each))


def _turns(judged: Judged, finding: Finding) -> Iterator[str]:
    if finding.outcome is Outcome.INCONCLUSIVE:
        yield f"Missing: {finding.advice or 'evidence'}."
    elif finding.outcome is Outcome.FAILED:
        yield from judged.turns(finding)


@dataclass(frozen=True, kw_only=True)
class JudgedStep:
    """One watched step, or a bake."""

    evidence: Evidence
    rollout: Rollout
    step: Step
    found: tuple[Finding, ...]
    budget: Mapping[str, float]
    bake: bool = False

    @classmethod
    def of(cls, folder: Path, row: Mapping[str, Any], known: Mapping[str, Any]) -> JudgedStep:
        evidence = RolloutLog.read(folder / FILE).evidence(row["step_since_s"])
        return cls(evidence=evidence, step=parse(Step, row["step"], "step"), bake=row.get("bake", False), **known)

    def again(self) -> tuple[Finding, ...]:
        """Of a bake, which demands nothing more, only what failed then or fails now."""
        judged, known = judge_rollout(self.evidence, self.rollout, self.step), {each.name for each in self.found}
        return tuple(each for each in judged if not self.bake or each.outcome is Outcome.FAILED or each.name in known)

    def heading(self) -> Iterator[str]:
        margins, n, stable_n = self.rollout.margins(self.step), len(self.evidence.candidate), len(self.evidence.stable)
        what = "bake after the promotion" if self.bake else f"step at {self.step.permille} per mille"
        yield f"The {what} ended {_worst(self)}, on {n} requests of the candidate and {stable_n} of stable."
        yield f"It had to exclude {margins.error_rate:.3%} errors and {margins.latency_worse:.0%} more latency."

    def turns(self, finding: Finding) -> Iterator[str]:
        if finding.name.startswith("errors"):
            failures = int((~self.evidence.candidate.ok).sum())
            fewer = _first(lambda count: not _fails(self._healed(count), finding.name), failures)
            yield f"It would not have failed with {fewer} of its {failures} failures fewer (the latest ones)."
        elif finding.name.startswith("latency"):
            allowed, needed = self.rollout.latency_worse, self._least_margin(finding.name)
            yield f"It would not have failed had the policy allowed {needed:.0%} more latency instead of {allowed:.0%}."

    def _healed(self, count: int) -> JudgedStep:
        """With the latest failures answered."""
        candidate = self.evidence.candidate
        ok = candidate.ok.copy()
        ok[(~ok).nonzero()[0][-count:] if count else slice(0, 0)] = True
        return replace(self, evidence=replace(self.evidence, candidate=replace(candidate, ok=ok)))

    def _least_margin(self, name: str) -> float:
        low, high = self.rollout.latency_worse, self.rollout.latency_worse + 1
        while _fails(self._allowing(high), name) and high < 1e6:
            low, high = high, 2 * high
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if _fails(self._allowing(middle), name) else (low, middle)
        return math.ceil(100 * high) / 100

    def _allowing(self, worse: float) -> JudgedStep:
        steps = tuple(replace(each, exclude_latency_worse=2 * worse + 1) for each in self.rollout.steps)
        step = replace(self.step, exclude_latency_worse=2 * worse + 1)
        return replace(self, step=step, rollout=replace(self.rollout, latency_worse=worse, steps=steps))


@dataclass(frozen=True, kw_only=True)
class JudgedMirror:
    """A mirror: what the candidate's endpoints counted, and the pairs of answers in the order in which they were made."""

    requests: int
    failures: int
    pairs: tuple[Mapping[str, Any], ...]
    shadow: Shadow
    rollout: Rollout
    found: tuple[Finding, ...]
    budget: Mapping[str, float]

    @classmethod
    def of(cls, folder: Path, row: Mapping[str, Any], known: Mapping[str, Any]) -> JudgedMirror:
        last = json.loads((folder / COUNTS).read_bytes())[-1]
        pairs = tuple(json.loads(line) for line in (folder / PAIRS).read_text().splitlines())
        shadow = parse(Shadow, row["shadow"], "shadow")
        return cls(requests=int(last["requests"]), failures=int(last["failures"]), pairs=pairs, shadow=shadow, **known)

    def again(self) -> tuple[Finding, ...]:
        return judge_shadow(self.requests, self.failures, self.pairs, self.shadow, self.rollout)

    def heading(self) -> Iterator[str]:
        yield f"The mirror ended {_worst(self)}, on {self.requests} mirrored requests and {len(self.pairs)} pairs of answers."
        yield f"It had to exclude {self.shadow.exclude_error_rate:.3%} errors and {self.shadow.exclude_disagreement:.0%} other answers."

    def turns(self, finding: Finding) -> Iterator[str]:
        if finding.name == "mirrored_errors":
            fewer = _first(lambda count: not _fails(replace(self, failures=self.failures - count), finding.name), self.failures)
            yield f"It would not have failed with {fewer} of its {self.failures} failures fewer."
        elif finding.name.startswith("paired"):
            unlike = self._unlike()
            fewer = _first(lambda count: not _fails(self._likened(unlike, count), finding.name), len(unlike))
            yield f"It would not have failed with {fewer} of its {len(unlike)} other answers alike (the latest ones)."

    def _unlike(self) -> list[int]:
        """Places of the pairs that are not the same answer twice."""
        return [place for place, each in enumerate(self.pairs) if each != _alike(each)]

    def _likened(self, unlike: list[int], count: int) -> JudgedMirror:
        latest = set(unlike[len(unlike) - count :])
        return replace(self, pairs=tuple(_alike(each) if place in latest else each for place, each in enumerate(self.pairs)))


def _alike(pair: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pair had both versions given stable's answer; where stable gave none, the pair as it is."""
    if pair["state"] not in {COMPARED, "unfinite", "other_form", "candidate_silent"}:
        return pair
    nothing = {name: None if pair[name] is None else 0.0 for name in ("difference", "furthest", "mean")}
    return {**pair, **nothing, "state": COMPARED, "why": "", "flipped": None if pair["flipped"] is None else False}


def _worst(judged: Judged) -> str:
    return max((each.outcome for each in judged.found), default=Outcome.INCONCLUSIVE).word


def _fails(judged: Judged, name: str) -> bool:
    return any(each.name == name and each.outcome is Outcome.FAILED for each in judged.again())


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number up to `most` where it holds, which stays so once it is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _findings(folder: Path) -> tuple[Finding, ...]:
    return tuple(Finding.from_dict(each) for each in json.loads((folder / FOUND).read_bytes()))


def _checked(folder: Path, name: str, digests: Mapping[str, str]) -> bytes:
    """A file's bytes. One that the manifest does not name is refused as one that differs."""
    data = (folder / name).read_bytes()
    if sha256(data) != digests.get(name):
        raise NoEvidence(f"{name} is not what the manifest says")
    return data


def _short(row: Mapping[str, Any] | None) -> str:
    return "nothing" if row is None else f"{row.get('outcome')} ({row.get('why')})"
