"""`penstock replay` and `penstock explain`: decides a watched step again from its evidence, and says in plain words what decided.

Evidence is a folder or an address that holds what a `rollback_sensor` wrote: the requests, what they were judged by, and the findings.
Every file is held against the manifest's digests first. A replay must give the same findings, bit for bit; people's orders and newer
versions, which are not in the requests, are shown as they were found. Nothing is asked of the stack, but for the address of a run's
evidence: `explain deliver__digits__v4` asks the registry for it.

| exit status | means                                                   |
|-------------|---------------------------------------------------------|
| 0           | the same findings again; an explanation was given       |
| 1           | other findings than those that were written down        |
| 64          | no evidence there, or it is not what its manifest says  |
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from delivery.addresses import Addresses, NoAddress
from delivery.rollout import JUDGED
from delivery.rollout_evidence import FILE, RolloutLog
from validation.contract import BadSpec, Finding, Outcome, download, download_into, sha256
from validation.policy import BadPolicy, Rollout, Step, parse
from validation.rollout_judge import Evidence, judge_rollout

EXIT_OTHER, EXIT_USAGE = 1, 64
RUN = re.compile(r"(?:deliver|retry)__(?P<model>[a-z0-9-]+)__v(?P<version>[0-9]+).*")
FOUND, MANIFEST = "findings.json", "manifest.json"
STEPS = 40  # of the bisection of a margin


class NoEvidence(ValueError):
    """There is no evidence at that place, or it is not what its manifest says."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One watched step as its evidence tells it."""

    evidence: Evidence
    rollout: Rollout
    step: Step
    found: tuple[Finding, ...]
    budget: dict[str, float]
    bake: bool = False

    @classmethod
    def read(cls, folder: Path) -> Judged:
        """Raises `NoEvidence` naming the file."""
        try:
            _insist_on_digests(folder)
            row = json.loads((folder / JUDGED).read_bytes())
            found = tuple(Finding.from_dict(each) for each in json.loads((folder / FOUND).read_bytes()))
            rollout, step = parse(Rollout, row["rollout"], "rollout"), parse(Step, row["step"], "step")
            evidence = RolloutLog.read(folder / FILE).evidence(row["step_since_s"])
        except (OSError, KeyError, ValueError, BadPolicy, BadSpec) as error:
            raise NoEvidence(f"{folder}: no evidence of a watched step: {error}") from error
        budget, bake = row["chance_of_false_alarm"], row.get("bake", False)
        return cls(evidence=evidence, rollout=rollout, step=step, found=found, budget=budget, bake=bake)

    def again(self) -> tuple[Finding, ...]:
        """Of a bake, which demands nothing more, only what failed then or fails now."""
        judged, known = judge_rollout(self.evidence, self.rollout, self.step), {each.name for each in self.found}
        return tuple(each for each in judged if not self.bake or each.outcome is Outcome.FAILED or each.name in known)


def differences(judged: Judged) -> list[str]:
    """What a replay finds otherwise than it was written down; nothing when they agree."""
    before = {each.name: each.to_dict() for each in judged.found}
    return [f"{each.name}: {_short(before.get(each.name))} then, {_short(each.to_dict())} now"
            for each in judged.again() if before.get(each.name) != each.to_dict()]  # fmt: skip


def explanation(judged: Judged) -> Iterator[str]:
    """Plain sentences: what decided, what would have turned it, and what was missing."""
    worst = max((each.outcome for each in judged.found), default=Outcome.INCONCLUSIVE)
    margins = judged.rollout.margins(judged.step)
    n, stable_n = len(judged.evidence.candidate), len(judged.evidence.stable)
    what = "bake after the promotion" if judged.bake else f"step at {judged.step.permille} per mille"
    yield f"The {what} ended {worst.word}, on {n} requests of the candidate and {stable_n} of stable."
    yield f"It had to exclude {margins.error_rate:.3%} errors and {margins.latency_worse:.0%} more latency."
    for each in judged.found:
        if each.outcome is worst or worst is Outcome.PASSED:
            yield f"{each.name}: {each.why}."
            yield from (f"  {sentence}" for sentence in _turns(judged, each))


def _turns(judged: Judged, finding: Finding) -> Iterator[str]:
    """The smallest change that turns this finding."""
    if finding.outcome is Outcome.INCONCLUSIVE:
        yield f"Missing: {finding.advice or 'evidence'}."
    elif finding.outcome is Outcome.FAILED and finding.name.startswith("errors"):
        failures = int((~judged.evidence.candidate.ok).sum())
        fewer = _first(lambda count: not _fails(_healed(judged, count), finding.name), failures)
        yield f"It would not have failed with {fewer} of its {failures} failures fewer (the latest ones)."
    elif finding.outcome is Outcome.FAILED and finding.name.startswith("latency"):
        allowed, needed = judged.rollout.latency_worse, _least_margin(judged, finding.name)
        yield f"It would not have failed had the policy allowed {needed:.0%} more latency instead of {allowed:.0%}."


def _healed(judged: Judged, count: int) -> Judged:
    """With the latest failures answered."""
    candidate = judged.evidence.candidate
    ok = candidate.ok.copy()
    ok[(~ok).nonzero()[0][-count:] if count else slice(0, 0)] = True
    return replace(judged, evidence=replace(judged.evidence, candidate=replace(candidate, ok=ok)))


def _least_margin(judged: Judged, name: str) -> float:
    low, high = judged.rollout.latency_worse, judged.rollout.latency_worse + 1
    while _fails(_allowing(judged, high), name) and high < 1e6:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _fails(_allowing(judged, middle), name) else (low, middle)
    return math.ceil(100 * high) / 100


def _allowing(judged: Judged, worse: float) -> Judged:
    steps = tuple(replace(each, exclude_latency_worse=2 * worse + 1) for each in judged.rollout.steps)
    step = replace(judged.step, exclude_latency_worse=2 * worse + 1)
    return replace(judged, step=step, rollout=replace(judged.rollout, latency_worse=worse, steps=steps))


def _fails(judged: Judged, name: str) -> bool:
    return any(each.name == name and each.outcome is Outcome.FAILED for each in judged.again())


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number up to `most` where it holds, which stays so once it is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _insist_on_digests(folder: Path) -> None:
    """Of the three files that a replay reads; one that the manifest does not name is refused as one that differs."""
    digests = json.loads((folder / MANIFEST).read_bytes())
    for name in (FILE, JUDGED, FOUND):
        if sha256((folder / name).read_bytes()) != digests.get(name):
            raise NoEvidence(f"{name} is not what the manifest says")


def _fetched(place: str, folder: Path) -> Path:
    """A folder as it is; of an address the files that are needed."""
    if "://" not in place:
        return Path(place)
    for name in (MANIFEST, JUDGED, FOUND):
        (folder / name).write_bytes(download(f"{place}/{name}", limit_bytes=1 << 24))
    with (folder / FILE).open("wb") as file:
        download_into(file, f"{place}/{FILE}")
    return folder


def _place(words: str, addresses: Callable[[], Addresses]) -> str:
    """Where the evidence of a run's last watched step lies; anything else is the place itself."""
    run = RUN.fullmatch(words)
    if run is None:
        return words
    query = {"name": run["model"], "version": run["version"]}
    answer = httpx.get(f"{addresses().registry_url}/api/2.0/mlflow/model-versions/get", params=query, trust_env=False, timeout=10)
    tags = {each["key"]: each["value"] for each in answer.json().get("model_version", {}).get("tags", [])}
    ended_at, evidence = tags.get("penstock.ended_at", ""), tags.get("penstock.evidence", "")
    steps = [key.removeprefix("penstock.finding.") for key in tags if key.startswith("penstock.finding.rollback_sensor_")]
    last = ended_at if ended_at.startswith("rollback_sensor_") else max(steps, key=_share, default="")
    if not evidence or not last:
        why = tags.get("penstock.why", "the registry knows no such delivery")
        raise NoEvidence(f"{words} ended {tags.get('penstock.outcome', 'nowhere')} at {ended_at or '-'} without a watched step: {why}")
    return f"{evidence}/{last}"


def _share(task: str) -> int:
    return int(task.rsplit("_", 1)[1])


def _short(row: dict[str, Any] | None) -> str:
    return "nothing" if row is None else f"{row.get('outcome')} ({row.get('why')})"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            judged = Judged.read(_fetched(_place(options.evidence, Addresses.from_env), Path(folder)))
    except (NoEvidence, NoAddress, OSError, ValueError, httpx.HTTPError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_USAGE
    if options.word == "explain":
        print("\n".join(explanation(judged)))
        return 0
    for each in judged.again():
        print(f"{each.outcome.word:12} {each.name}: {each.why}")
    for name, spent in judged.budget.items():
        print(f"             budget of {name}: {spent:.3%} over the whole rollout")
    other = differences(judged)
    print("\n".join(other) if other else "the same findings as were written down")
    return EXIT_OTHER if other else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock", description="Decides again from evidence, or says why it was decided so.")
    words = parser.add_subparsers(dest="word", required=True)
    for word, what in (
        ("replay", "decide a watched step again and compare"),
        ("explain", "say what decided and what would have turned it"),
    ):
        words.add_parser(word, help=what).add_argument("evidence", help="folder or address of a rollback_sensor's evidence, or a run's id")
    return parser


if __name__ == "__main__":
    sys.exit(main())
