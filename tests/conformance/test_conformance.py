"""The promise of the offline gates: each case is answered through the public contract, spec in, verdict out, as the table says."""

from __future__ import annotations

import itertools
from pathlib import Path

import conformance.cases_distribution
import conformance.cases_files
import conformance.cases_judgement
import conformance.cases_model  # noqa: F401
import pytest
from conformance.cases import CASES, Case, rows
from conformance.material import healthy, run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
LEAST = 120


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_gate_answers_as_the_table_says(case: Case, tmp_path: Path) -> None:
    """Spoilt in one way, the material gets the answer that the table promises; healthy material passes."""
    material = healthy(case.gate)
    case.spoil(material)
    answer = run(material, tmp_path)
    if case.answer.startswith("exit"):
        assert answer.code == case.answer
        return
    outcome, _, finding = case.answer.partition(": ")
    assert answer.code == "exit 0"
    assert answer.findings.get(finding) == outcome, answer.told
    assert answer.outcome == outcome, answer.told


def test_the_table_is_long_enough() -> None:
    """The promise is at least 120 cases, most of them about what must not pass."""
    assert len(CASES) >= LEAST
    assert sum(not each.answer.startswith("passed") for each in CASES.values()) >= LEAST


def test_the_document_is_the_table() -> None:
    """What users read is what is tested; `python tests/conformance/write_document.py` writes it anew."""
    table = "\n".join(itertools.chain.from_iterable(each.splitlines() for each in rows(CASES)))
    assert table.strip() in DOCUMENT.read_text()
