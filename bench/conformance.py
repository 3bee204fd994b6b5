"""The adversarial cases of `tests/conformance`: how many there are, and how many the gates answer otherwise than the table promises."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

from bench.figures import Figure
from bench.world import Unexpected
from stack.environments import ensure
from stack.settings import ROOT, read_settings

CASES = "test_the_gate_answers_as_the_table_says"
LIMIT_S = 900.0


def measure() -> list[Figure]:
    """Runs each case through the public contract. Raises `Unexpected` when the cases cannot be run."""
    settings = read_settings(os.environ)
    ensure(("tests",), settings.state)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        report = Path(name) / "report.xml"
        command = [str(settings.environment("tests") / "bin" / "pytest"), "-q", "-k", CASES, f"--junitxml={report}", "tests/conformance"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        if done.returncode not in (0, 1):
            raise Unexpected(f"the conformance cases ended with status {done.returncode}: {done.stdout[-2000:]}")
        cases, wrong = _counted(report)
    how = "each through the public contract, spec in, verdict out; see docs/conformance.md"
    return [
        Figure(name="conformance_cases", value=cases, unit="cases", goal=">= 120", how=how),
        Figure(name="conformance_wrong", value=wrong, unit="cases", goal="= 0", how="answered otherwise than the table promises"),
    ]


def _counted(report: Path) -> tuple[int, int]:
    """Cases, and those that failed, broke or were skipped; from pytest's own report."""
    suites = list(ET.parse(report).iter("testsuite"))  # noqa: S314 - written by the process above
    wrong = sum(int(suite.get(word, "0")) for suite in suites for word in ("failures", "errors", "skipped"))
    return sum(int(suite.get("tests", "0")) for suite in suites), wrong
