"""Findings as people and the registry read them, whole: every word, number, size and advice, in `whole_findings.json` by module and case.

The tests of the modules call it. A number counts to six digits. Where a sentence changes on purpose, its row here changes with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from validation.contract import Finding

FILE = Path(__file__).parent / "whole_findings.json"


def expected(module: str, case: str) -> list[dict[str, Any]]:
    """The findings that this case must have, in order."""
    rows: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))[module][case]
    return rows


def in_full(findings: Finding | Iterable[Finding]) -> list[dict[str, Any]]:
    """One finding or several in the form of that file."""
    several = [findings] if isinstance(findings, Finding) else findings
    return [{key: _rounded(value) for key, value in each.to_dict().items()} for each in several]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
