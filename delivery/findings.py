"""Short ways to say a finding, and `Refusal`, with which a task ends early because of one. Used by the tasks of this package.

It holds no rule about models: what is a failure stands in the task that finds it.
"""

from __future__ import annotations

from typing import Any

from validation.contract import Decision, Finding, Outcome


class Refusal(Exception):
    """A finding after which the rest of the task has no meaning; the task's `run` turns it into its decision."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.why)
        self.finding = finding

    @property
    def decision(self) -> Decision:
        return Decision(findings=(self.finding,))


def passed(name: str, why: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.PASSED, why=why, **details)


def failed(name: str, why: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.FAILED, why=why, **details)


def refused(name: str, why: str, advice: str | None = None) -> Refusal:
    """To be raised: a failed finding that ends the task."""
    return Refusal(failed(name, why, advice=advice))
