"""The semantic version of a model version: what a client must know about the step from stable to it. Pure; used by `export`.

Major: inputs or outputs are others. Minor: another training run. Patch: the same run delivered again. The first is 1.0.0.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from validation.bundle import Manifest, Tensor

FIRST = (1, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What decides the step: the signature and the source run."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    source_run: str


def next_version(candidate: Subject, stable: Manifest | None, taken: Collection[str]) -> str:
    """The step from `stable`; when another version has that number already (it was refused or taken back), the next one of its kind."""
    part, version = 1, FIRST
    if stable is not None:
        part = _part(candidate, stable)
        version = _step(parsed(stable.semantic_version), part)
    while ".".join(map(str, version)) in taken:
        version = _step(version, part)
    return ".".join(map(str, version))


def parsed(text: str) -> tuple[int, int, int]:
    """Raises `ValueError` unless it is three whole numbers with dots."""
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text)
    if not found:
        raise ValueError(f"semantic version {text!r}: expected three whole numbers like 1.0.0")
    return int(found[1]), int(found[2]), int(found[3])


def _part(candidate: Subject, stable: Manifest) -> int:
    if (candidate.inputs, candidate.outputs) != (stable.inputs, stable.outputs):
        return 0
    return 2 if candidate.source_run == stable.source_run else 1


def _step(version: tuple[int, int, int], part: int) -> tuple[int, int, int]:
    major, minor, patch = version
    return ((major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1))[part]
