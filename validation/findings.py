"""The three ways in which a gate words a finding that needs no statistics. Gates and their leaf modules call it; it decides nothing."""

from __future__ import annotations

from typing import Any

from validation.contract import Finding, Outcome


def passed(name: str, why: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.PASSED, why=why, **details)


def failed(name: str, why: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.FAILED, why=why, **details)


def inconclusive(name: str, why: str, advice: str, **details: Any) -> Finding:
    """Nobody's fault: too little is known; `advice` says what would settle it."""
    return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, advice=advice, **details)
