"""The figures that the issues ask for: one entry each in `docs/benchmarks.json`, and the README's table made from it.

The measuring modules of this package return `Figure`s; `python -m bench` writes them. An entry that was not measured this time stays as it
was, with the machine and the commit that it was measured on.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stack.settings import ROOT

FILE = ROOT / "docs" / "benchmarks.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number. `goal` is a bound with its direction (`<= 3`); `peer` what it is compared with, if anything."""

    name: str
    value: float
    unit: str
    goal: str
    how: str
    peer: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the value meets its goal; a value that is no number meets none."""
        word, bound = self.goal.split()
        return {"<=": self.value <= float(bound), ">=": self.value >= float(bound), "=": self.value == float(bound)}[word]


def write(figures: Iterable[Figure], file: Path = FILE) -> list[dict[str, Any]]:
    """Merges the figures into the file by name and returns all entries."""
    rows = {row["name"]: row for row in (json.loads(file.read_text()) if file.exists() else [])}
    for figure in figures:
        rows[figure.name] = {**asdict(figure), "holds": figure.holds, "machine": _machine(), "commit": _commit()}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(list(rows.values()), indent=1, ensure_ascii=False) + "\n")
    return list(rows.values())


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The README's table."""
    lines = ["| figure | value | goal | holds | how |", "|---|---|---|---|---|"]
    lines += [
        f"| `{r['name']}` | {r['value']:g} {r['unit']} | {r['goal']} | {'yes' if r['holds'] else '**no**'} | {r['how']} |" for r in rows
    ]
    return "\n".join(lines)


def into_readme(rows: Iterable[dict[str, Any]], readme: Path = README) -> None:
    """Replaces what stands between the two marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


def _machine() -> str:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
