"""The contract between an operator and the task that it runs: a spec goes in, a verdict comes out.

Every task of `validation` and `delivery` is started with a spec in the environment and answers through files below `TASK_OUT`;
`operators.task` writes the spec and reads the verdict. This module imports the standard library only, so that any image can carry it.
It runs no task by itself and knows nothing of what a task does.

| exit code | means                                          | what the operator does        |
|-----------|------------------------------------------------|-------------------------------|
| 0         | a verdict was written, whatever it says        | obeys it; never retries it    |
| 64        | the spec is bad                                | fails at once, no retry       |
| other     | no verdict: crash, time-out, lost connection   | lets Airflow's retries apply  |
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import os
import signal
import sys
import traceback
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

CONTRACT_VERSION = 1
VERDICT_LIMIT_BYTES = 4096  # what Kubernetes carries as a pod's termination message
TEXT_LIMIT_BYTES = 500  # of one text in a verdict's finding: an error message of a library must not crowd out the verdict
PIECE_BYTES = 1 << 20
SOURCE_ABSENT = "source_model_absent"
"""Key of a spec's inputs, set by `penstock check` alone: the model's source is not at hand, so what needs it is skipped in sight."""
EXIT_BAD_SPEC = 64  # EX_USAGE in BSD's sysexits.h


class BadSpec(ValueError):
    """The spec cannot be run as it stands; a retry would meet the same spec."""


class NoVerdict(RuntimeError):
    """The task ended without a verdict that answers its spec: our fault, worth a retry."""


class Outcome(IntEnum):
    """What a comparison says; the worst of several is their maximum."""

    PASSED = 0
    INCONCLUSIVE = 1
    FAILED = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison. `observed`, `limit` and `interval` carry the unit that `name` says (for example `p99_ms`)."""

    name: str
    outcome: Outcome
    why: str
    observed: float | str | None = None
    limit: float | str | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: empty fields left out, numbers that JSON lacks (NaN, infinity) as words."""
        row = {key: _plain(value) for key, value in asdict(self).items() if value is not None}
        return {**row, "outcome": self.outcome.word}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        _only_known(row, cls, "finding")
        interval = row.get("interval")
        return cls(**{**row, "outcome": _outcome(row["outcome"]), "interval": tuple(interval) if interval else None})


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Where a bundle lies (`file:` or `http(s):` address of one tar file) and the sha256 that its bytes must have."""

    uri: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Stable:
    """The version that serves now."""

    version: int
    bundle: Bundle


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one task is asked to do. Carries no secrets: credentials come as ordinary environment variables."""

    task: str
    model: str
    version: int
    delivery: str
    evidence_uri: str
    bundle: Bundle | None = None
    stable: Stable | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    contract: int = CONTRACT_VERSION

    def to_json(self) -> str:
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        return sha256(self.to_json().encode())

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Raises `BadSpec` naming the field that is missing, unknown or of the wrong kind."""
        row = _json_object(text)
        if row.get("contract") != CONTRACT_VERSION:
            raise BadSpec(f"contract is {row.get('contract')!r}; this task speaks version {CONTRACT_VERSION}")
        try:
            _only_known(row, cls, "spec")
            return cls(**{**row, "bundle": _bundle(row.get("bundle")), "stable": _stable(row.get("stable"))})._checked()  # noqa: SLF001 - its own
        except (TypeError, KeyError, ValueError) as error:
            raise BadSpec(str(error)) from error

    def need_bundle(self) -> Bundle:
        if self.bundle is None:
            raise BadSpec(f"{self.task} needs a bundle and the spec names none")
        return self.bundle

    def _checked(self) -> Spec:
        words = {"task": self.task, "model": self.model, "delivery": self.delivery, "evidence_uri": self.evidence_uri}
        for name, value in words.items():
            if not isinstance(value, str) or not value:
                raise BadSpec(f"{name} must be a non-empty string, not {value!r}")
        if type(self.version) is not int or self.version < 0:
            raise BadSpec(f"version must be a whole number from 0, not {self.version!r}")
        if not isinstance(self.limits, Mapping) or not isinstance(self.inputs, Mapping):
            raise BadSpec("limits and inputs must be JSON objects")
        return self


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a task function returns: its findings, and small plain values that later tasks need."""

    findings: tuple[Finding, ...]
    outputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one spec. `findings_total` counts all findings, also those that did not fit and stand in the evidence only."""

    task: str
    spec_digest: str
    evidence_digest: str
    findings: tuple[Finding, ...]
    findings_total: int
    outputs: Mapping[str, Any] = field(default_factory=dict)
    contract: int = CONTRACT_VERSION

    @property
    def outcome(self) -> Outcome:
        return worst(finding.outcome for finding in self.findings)

    @property
    def why(self) -> str:
        """One sentence for people: the worst finding, with its advice."""
        if not self.findings:
            return "no findings: nothing was shown, so nothing is passed"
        finding = max(self.findings, key=lambda each: each.outcome)
        advice = f" ({finding.advice})" if finding.advice else ""
        return f"{finding.name}: {finding.why}{advice}"

    def to_dict(self) -> dict[str, Any]:
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**row, "outputs": dict(self.outputs), "findings": [finding.to_dict() for finding in self.findings]}

    @classmethod
    def from_bytes(cls, data: bytes, spec: Spec) -> Verdict:
        """Reads a verdict and checks that it answers `spec`; raises `NoVerdict` with the reason otherwise."""
        if len(data) > VERDICT_LIMIT_BYTES:
            raise NoVerdict(f"{spec.task} wrote a verdict of {len(data)} bytes; the limit is {VERDICT_LIMIT_BYTES}")
        try:
            row = _json_object(data.decode())
            _only_known(row, cls, "verdict")
            verdict = cls(**{**row, "findings": tuple(Finding.from_dict(each) for each in row["findings"])})
        except (ValueError, TypeError, KeyError) as error:
            raise NoVerdict(f"{spec.task} wrote a verdict that cannot be read: {error}") from error
        verdict._answers(spec)
        return verdict

    def _answers(self, spec: Spec) -> None:
        expected = (CONTRACT_VERSION, spec.task, spec.digest)
        if (self.contract, self.task, self.spec_digest) != expected:
            raise NoVerdict(f"the verdict of {self.task!r} answers spec {self.spec_digest[:12]}, not {spec.task!r} {spec.digest[:12]}")


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst outcome; of none at all it is inconclusive, because nothing was shown."""
    return max(outcomes, default=Outcome.INCONCLUSIVE)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes. Refuses NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_verdict(decision: Decision, *, spec: Spec, evidence_digest: str, out: Path) -> Verdict:
    """Writes `verdict.json` below `out`, last and by rename; cuts long texts and drops the mildest findings until it fits."""
    ranked = tuple(_cut(each) for each in sorted(decision.findings, key=lambda each: -each.outcome))
    for kept in range(len(ranked), -1, -1):
        verdict = Verdict(
            task=spec.task,
            spec_digest=spec.digest,
            evidence_digest=evidence_digest,
            findings=ranked[:kept],
            findings_total=len(ranked),
            outputs=decision.outputs,
        )
        data = canonical_json(verdict.to_dict()).encode()
        if len(data) <= VERDICT_LIMIT_BYTES and (kept or not ranked):
            _write_by_rename(out / "verdict.json", data)
            return verdict
    raise ValueError(f"{spec.task}: outputs and worst finding alone pass {VERDICT_LIMIT_BYTES} bytes")


def seal_evidence(directory: Path, decision: Decision) -> str:
    """Writes findings and manifest into the evidence directory; returns the manifest's sha256."""
    rows = [finding.to_dict() for finding in decision.findings]
    (directory / "findings.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    files = [path for path in directory.rglob("*") if path.is_file() and path != directory / "manifest.json"]
    names = sorted(str(path.relative_to(directory)) for path in files)
    manifest = canonical_json({name: sha256((directory / name).read_bytes()) for name in names}).encode()
    (directory / "manifest.json").write_bytes(manifest)
    return sha256(manifest)


def upload_evidence(directory: Path, uri: str) -> None:
    """Copies a sealed evidence directory to its address, the manifest last: where a manifest lies, the rest does too."""
    names = [*json.loads((directory / "manifest.json").read_text()), "manifest.json"]
    for name in names:
        upload(directory / name, f"{uri}/{name}")


def download(uri: str, expected_sha256: str | None = None, *, limit_bytes: int = 4 << 30, timeout_s: float = 60) -> bytes:
    """Reads a `file:` or `http(s):` address whole; raises `ValueError` on a digest that differs or too many bytes."""
    file = io.BytesIO()
    download_into(file, uri, expected_sha256, limit_bytes=limit_bytes, timeout_s=timeout_s)
    return file.getvalue()


def download_into(
    file: BinaryIO, uri: str, expected_sha256: str | None = None, *, limit_bytes: int = 4 << 30, timeout_s: float = 60
) -> None:
    """Like `download`, into an open file piece by piece: what is large need not fit into memory."""
    _known_scheme(uri)
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(uri, timeout=timeout_s) as answer:
        while piece := answer.read(PIECE_BYTES):
            size += len(piece)
            if size > limit_bytes:
                raise ValueError(f"{uri} is larger than {limit_bytes} bytes")
            digest.update(piece)
            file.write(piece)
    if expected_sha256 is not None and digest.hexdigest() != expected_sha256:
        raise ValueError(f"{uri} has sha256 {digest.hexdigest()}, expected {expected_sha256}: refusing to read it")


def upload(path: Path, uri: str, *, timeout_s: float = 60) -> None:
    """Copies a file to a `file:` address or puts it to an `http(s):` one."""
    if _known_scheme(uri) == "file":
        target = Path(urllib.request.url2pathname(urllib.parse.urlsplit(uri).path))
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_by_rename(target, path.read_bytes())
        return
    request = urllib.request.Request(uri, data=path.read_bytes(), method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    urllib.request.urlopen(request, timeout=timeout_s).close()


def run_task(modules: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> int:
    """Runs the task that the spec names and returns the exit code; `modules` maps task names to modules with `run`."""
    signal.signal(signal.SIGTERM, _stopped)
    try:
        spec = Spec.from_json(environ.get("TASK_SPEC", ""))
        task = _task_function(modules, spec.task)
        out = Path(environ["TASK_OUT"])
        _answer(spec, task, out)
    except BadSpec as error:
        print(f"bad spec: {error}", file=sys.stderr)
        return EXIT_BAD_SPEC
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _stopped(number: int, frame: Any) -> None:
    """A stop unwinds like an error, so that a task's servers and children end with it."""
    del frame
    raise SystemExit(128 + number)


def _answer(spec: Spec, task: Callable[[Spec, Path], Decision], out: Path) -> None:
    evidence = out / "evidence"
    evidence.mkdir(parents=True, exist_ok=True)
    decision = task(spec, evidence)
    digest = seal_evidence(evidence, decision)
    try:
        upload_evidence(evidence, spec.evidence_uri)
    except OSError as error:
        if worst(finding.outcome for finding in decision.findings) is Outcome.PASSED:
            raise  # nothing is promoted on evidence that nobody can read; a refusal must not get a second chance by that
        print(f"the evidence could not be uploaded to {spec.evidence_uri}: {error}", file=sys.stderr)
    verdict = write_verdict(decision, spec=spec, evidence_digest=digest, out=out)
    print(f"{spec.task} {spec.model} v{spec.version}: {verdict.outcome.word}: {verdict.why}")


def _task_function(modules: Mapping[str, str], task: str) -> Callable[[Spec, Path], Decision]:
    if task not in modules:
        raise BadSpec(f"unknown task {task!r}; known here: {', '.join(sorted(modules))}")
    function: Callable[[Spec, Path], Decision] = importlib.import_module(modules[task]).run
    return function


def _write_by_rename(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _known_scheme(uri: str) -> str:
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme not in {"file", "http", "https"}:
        raise ValueError(f"{uri!r}: expected a file:, http: or https: address")
    return scheme


def _cut(finding: Finding) -> Finding:
    """The finding with texts that a verdict can carry; the evidence has them whole."""
    values: dict[str, Any] = {each.name: getattr(finding, each.name) for each in fields(finding)}
    cut: dict[str, Any] = {name: _short(value) if isinstance(value, str) else value for name, value in values.items()}
    return Finding(**cut)


def _short(text: str) -> str:
    short = text
    while (size := len(canonical_json(_plain(short)).encode())) > TEXT_LIMIT_BYTES:
        short = short[: len(short) * TEXT_LIMIT_BYTES // size - 1]
    return text if short == text else f"{short} ..."


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate, as file names may hold, is no UTF-8
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _json_object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise BadSpec(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadSpec("not a JSON object")
    return row


def _only_known(row: Mapping[str, Any], cls: type, what: str) -> None:
    known = {each.name for each in fields(cls)}
    if unknown := sorted(set(row) - known):
        raise ValueError(f"{what} has unknown keys {unknown}; known: {sorted(known)}")


def _outcome(word: str) -> Outcome:
    try:
        return Outcome[word.upper()]
    except (KeyError, AttributeError) as error:
        raise ValueError(f"outcome {word!r}: expected passed, inconclusive or failed") from error


def _bundle(row: Mapping[str, Any] | None) -> Bundle | None:
    return None if row is None else Bundle(**row)


def _stable(row: Mapping[str, Any] | None) -> Stable | None:
    if row is None:
        return None
    return Stable(version=row["version"], bundle=Bundle(**row["bundle"]))
