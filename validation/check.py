"""`penstock check <gate>`: runs a gate on loose files, without Airflow, MLflow, server or Docker. Also `python -m validation.check <gate>`.

It makes a bundle of the files in a temporary folder and sends it through the same gate, spec in and verdict out, as a delivery. It changes
nothing and uploads nothing.

| exit code | means                                                              |
|-----------|--------------------------------------------------------------------|
| 0         | passed                                                             |
| 1         | failed: the model's fault                                          |
| 2         | inconclusive: nobody's fault, too little was shown                 |
| 64        | a file, column or policy cannot be used; the sentence says which   |
| 70        | the gate itself broke                                              |
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from validation.__main__ import MODULES
from validation.contract import EXIT_BAD_SPEC, SOURCE_ABSENT, BadSpec, Finding, Outcome, Spec, Stable, Verdict, run_task, sha256
from validation.policy import BadPolicy, Distribution, GoldenSet, is_model_name, parse, section

EXIT_CODES = {Outcome.PASSED: 0, Outcome.FAILED: 1, Outcome.INCONCLUSIVE: 2}
EXIT_BROKEN = 70  # EX_SOFTWARE in BSD's sysexits.h
SECTIONS: Mapping[str, type[Any]] = {"golden_set": GoldenSet, "distribution": Distribution}
"""The gates that loose files can be sent through, each with its section of the policy."""

WIDTH = 120


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words if words[:1] == ["check"] else ["check", *words])
    try:
        return check(options)
    except (BadSpec, BadPolicy) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_BAD_SPEC
    except ModuleNotFoundError as error:
        print(f"penstock: {error}; install what a check needs: pip install 'penstock[check]'", file=sys.stderr)
        return EXIT_BAD_SPEC


def check(options: argparse.Namespace) -> int:
    """Runs the gate that the options name and prints its findings. Raises `BadSpec` or `BadPolicy` when the files cannot be used."""
    with tempfile.TemporaryDirectory(prefix="penstock-check-") as folder:
        spec = _spec(options, Path(folder))
        out = Path(folder) / "out"
        out.mkdir()
        code, said = _run(spec, out)
        if code:
            print(f"penstock: {said.strip()}", file=sys.stderr)
            return code if code == EXIT_BAD_SPEC else EXIT_BROKEN
        verdict = Verdict.from_bytes((out / "verdict.json").read_bytes(), spec)
        rows = json.loads((out / "evidence" / "findings.json").read_text())
        if options.evidence:
            shutil.copytree(out / "evidence", options.evidence, dirs_exist_ok=True)
    print(report(options.gate, [Finding.from_dict(row) for row in rows], verdict.outcome))
    return EXIT_CODES[verdict.outcome]


def report(gate: str, findings: Sequence[Finding], outcome: Outcome) -> str:
    """A table as plain text: outcome, name, reason, and advice below it; then the verdict."""
    names = max((len(each.name) for each in findings), default=0)
    lines = [line for each in findings for line in _lines(each, min(names, 45))]
    words = [_word(each) for each in findings]
    summary = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words)))
    return "\n".join([*lines, "", f"{gate}: {outcome.word.upper()} ({summary or 'no findings'})"])


def _lines(finding: Finding, names: int) -> list[str]:
    texts = [finding.why, *([f"advice: {finding.advice}"] if finding.advice else [])]
    head = f"{_word(finding):<12}  {finding.name:<{names}}  "
    indent = " " * (12 + 2 + names + 2)
    first, *rest = [line for text in texts for line in textwrap.wrap(text, max(WIDTH - len(indent), 40)) or [""]]
    return [f"{head}{first}", *(f"{indent}{line}" for line in rest)]


def _word(finding: Finding) -> str:
    """A comparison that had nothing to compare with is seen as such."""
    return "skipped" if finding.why.startswith("skipped:") else finding.outcome.word


def _run(spec: Spec, out: Path) -> tuple[int, str]:
    """The exit code and what the task said on either stream."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_task(MODULES, {"TASK_SPEC": spec.to_json(), "TASK_OUT": str(out)})
    return code, said.getvalue()


def _spec(options: argparse.Namespace, folder: Path) -> Spec:
    from validation.loose_files import make_bundle

    policy = _policy(options.policy)
    limits = parse(SECTIONS[options.gate], _section(policy, options.gate, options.policy), options.gate)
    name = policy["model"] if isinstance(policy.get("model"), str) and is_model_name(policy["model"]) else "model"
    files = _files(options, limits)
    stable = None
    if options.stable is not None:
        (folder / "stable").mkdir()
        stable = Stable(version=1, bundle=make_bundle(_as_stable(files, options.stable), name, folder / "stable"))
    (folder / "candidate").mkdir()
    return Spec(
        task=options.gate,
        model=name,
        version=2 if stable else 1,
        delivery="check",
        evidence_uri=(folder / "published").as_uri(),
        bundle=make_bundle(files, name, folder / "candidate"),
        stable=stable,
        limits=section(limits) | _suite(limits, options.policy),
        inputs={SOURCE_ABSENT: True} | _traffic(options, Path(folder)),
        seed=options.seed,
    )


def _traffic(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The sample's sketch as `claim` would put it out."""
    path: Path | None = getattr(options, "traffic", None)
    if path is None:
        return {"traffic_absent": "no --traffic was given"}
    from validation.traffic_sample import sketch_sample

    try:
        data = sketch_sample(path.read_bytes(), newest_unix_s=path.stat().st_mtime).to_json()
    except OSError as error:
        raise BadSpec(f"the sample of traffic {path} cannot be read: {error}") from error
    (folder / "traffic.json").write_bytes(data)
    return {"traffic_uri": (folder / "traffic.json").as_uri(), "traffic_sha256": sha256(data)}


def _suite(limits: Any, policy: Path) -> dict[str, Any]:
    """The user's suite of expectations, which lies beside the policy, as an operator would send it."""
    name = getattr(limits, "expectations", None)
    if name is None:
        return {}
    try:
        return {"suite": json.loads((policy.parent / name).read_bytes())}
    except (OSError, ValueError, RecursionError) as error:
        raise BadPolicy(f"{name} beside the policy cannot be read as JSON: {error}") from error


def _files(options: argparse.Namespace, limits: Any) -> Any:
    from validation.loose_files import LooseFiles

    named = [each.column for each in getattr(limits, "slices", ())] + [each.group for each in getattr(limits, "metrics", ()) if each.group]
    return LooseFiles(
        model=options.model,
        golden=options.golden,
        label=options.label,
        reference=options.reference,
        columns=(*named, *options.not_input),
        written_unix_s=options.written,
        logged=dict(options.logged),
    )


def _as_stable(files: Any, model: Path) -> Any:
    from dataclasses import replace

    return replace(files, model=model, reference=None)


def _policy(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise BadPolicy(f"policy {path}: {error}") from error


def _section(policy: Mapping[str, Any], gate: str, path: Path) -> Mapping[str, Any]:
    row = policy.get(gate)
    if not isinstance(row, Mapping):
        raise BadPolicy(f"policy {path} has no table [{gate}]")
    return row


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Wrong usage is no verdict: argparse's own exit status 2 would say `inconclusive`."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_BAD_SPEC, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="penstock", description="Gates for models, run on files. Exit status: 0 passed, 1 failed, 2 inconclusive.")
    checks = parser.add_subparsers(dest="command", required=True).add_parser("check", help="run one gate on loose files")
    gates = checks.add_subparsers(dest="gate", required=True, metavar="gate")
    for gate in SECTIONS:
        _add_files(gates.add_parser(gate, help=f"the gate {gate}"))
    gates.choices["golden_set"].add_argument("--traffic", type=Path, help="parquet: what users sent of late, a column for each input")
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--golden", type=Path, required=True, help="parquet: a column for each input, the label, and slices")
    parser.add_argument("--policy", type=Path, required=True, help="the model's policy (TOML); only the gate's own table is used")
    parser.add_argument("--label", default="label", help="the golden set's column with the truth (label)")
    parser.add_argument("--not-input", action="append", default=[], metavar="COLUMN", help="a column that is no input (say, a row's name)")
    parser.add_argument("--stable", type=Path, help="the ONNX file that serves now, to be compared with")
    parser.add_argument("--reference", type=Path, help="the source model's answers: a folder of <output>.npy, or an .npz")
    parser.add_argument("--logged", type=_logged, action="append", default=[], metavar="NAME=VALUE", help="a metric that training logged")
    parser.add_argument("--written", type=_date, metavar="YYYY-MM-DD", help="when the golden set was written, for its age")
    parser.add_argument("--evidence", type=Path, help="folder to keep metrics and mismatches in")
    parser.add_argument("--seed", type=int, default=0)


def _logged(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def _date(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


if __name__ == "__main__":
    sys.exit(main())
