"""Writes docs/conformance.md from the table of cases: `.penstock/envs/tests/bin/python tests/conformance/write_document.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPENING = """# What the offline gates promise

Each row is a test: healthy material is spoilt in one way, and the gate, run through its public contract (spec in, verdict out), must
answer as the last column says. `exit 64`: the spec or the bundle is refused before anything runs, no verdict, no retry. `exit 1`: no
verdict, tried again. Otherwise the verdict's outcome, and the finding that has it. Missing, NaN, infinite, empty or unknown is never
`passed`.
"""


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    import conformance.cases_distribution
    import conformance.cases_files
    import conformance.cases_judgement
    import conformance.cases_model  # noqa: F401
    from conformance.cases import CASES, rows

    (HERE.parents[1] / "docs" / "conformance.md").write_text(OPENING + "\n".join(rows(CASES)) + "\n")


if __name__ == "__main__":
    main()
