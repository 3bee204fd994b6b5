"""The table of adversarial cases: what is wrong with a delivery's material, and what the gate must answer. `test_conformance` runs them.

An answer is `<outcome>: <finding>` (the verdict has this outcome, and so has the finding) or `exit 64` (the spec or the bundle is refused
before anything runs, no verdict, no retry) or `exit 1` (no verdict: tried again). Each case spoils healthy material in one way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conformance.material import Material

Spoil = Callable[[Material], None]
CASES: dict[str, Case] = {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table: `group` is its heading, `wrong` what is wrong in words."""

    id: str
    group: str
    gate: str
    wrong: str
    answer: str
    spoil: Spoil


def case(group: str, id: str, wrong: str, answer: str, *, gate: str = "golden_set") -> Callable[[Spoil], Spoil]:  # noqa: A002 - a table's word
    """Adds the decorated function to the table."""

    def add(spoil: Spoil) -> Spoil:
        if id in CASES:
            raise ValueError(f"the case {id!r} stands twice")
        CASES[id] = Case(id=id, group=group, gate=gate, wrong=wrong, answer=answer, spoil=spoil)
        return spoil

    return add


def rows(cases: dict[str, Case]) -> Iterator[str]:
    """The table in Markdown, by group."""
    for group in dict.fromkeys(each.group for each in cases.values()):
        yield f"\n## {group}\n\n| case | gate | what is wrong | what the gate answers |\n|---|---|---|---|"
        for each in (each for each in cases.values() if each.group == group):
            yield f"| {each.id} | {each.gate} | {each.wrong} | {each.answer} |"
