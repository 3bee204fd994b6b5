"""The semantic version of a model version: what a client must know about the step from stable to it. Pure; used by `export`.

Major: a request that stable answers may fail, or its answer may not fit. Minor: another training run, or something new that breaks nobody.
Patch: the same run delivered again. The first is v1.0.0; versions written without the `v`, as before, are read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from validation.bundle import Manifest, Tensor

FIRST = (1, 0, 0)
MAJOR, MINOR, PATCH = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What decides the step: the signature and the source run."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    source_run: str


def next_version(candidate: Subject, stable: Manifest | None, taken: Collection[str]) -> str:
    """The step from `stable`; when another version has that number already (it was refused or taken back), the next one of its kind."""
    part, version = MINOR, FIRST
    if stable is not None:
        part = _part(candidate, stable)
        version = _step(parsed(stable.semantic_version), part)
    others = set(_readable(taken))
    while version in others:
        version = _step(version, part)
    return "v" + ".".join(map(str, version))


def parsed(text: str) -> tuple[int, int, int]:
    """Raises `ValueError` unless it is three whole numbers with dots, with or without a `v` before them."""
    found = re.fullmatch(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})", text, re.ASCII)
    if not found:
        raise ValueError(f"semantic version {text!r}: expected three whole numbers like v1.0.0")
    return int(found[1]), int(found[2]), int(found[3])


def breaks_callers(candidate: Subject, stable: Manifest) -> bool:
    """Whether a client of stable can notice: an input or output gone, renamed or retyped, a new input to fill, a shape it does not know."""
    taken, given = {each.name: each for each in candidate.inputs}, {each.name: each for each in candidate.outputs}
    same_inputs = set(taken) == {each.name for each in stable.inputs} and all(_fits(each, taken[each.name]) for each in stable.inputs)
    return not same_inputs or not all(each.name in given and _fits(given[each.name], each) for each in stable.outputs)


def _part(candidate: Subject, stable: Manifest) -> int:
    if breaks_callers(candidate, stable):
        return MAJOR
    return PATCH if candidate == Subject(inputs=stable.inputs, outputs=stable.outputs, source_run=stable.source_run) else MINOR


def _fits(value: Tensor, place: Tensor) -> bool:
    """Whether every value of the one shape is a value of the other: a fixed size fits an open one, an open size no fixed one."""
    if value.dtype != place.dtype or len(value.shape) != len(place.shape):
        return False
    return all(axis in place.dynamic or (axis not in value.dynamic and size == value.shape[axis]) for axis, size in enumerate(place.shape))


def _step(version: tuple[int, int, int], part: int) -> tuple[int, int, int]:
    major, minor, patch = version
    return ((major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1))[part]


def _readable(texts: Collection[str]) -> Iterator[tuple[int, int, int]]:
    """A tag that somebody wrote by hand and that is no version takes no number away."""
    for text in texts:
        with contextlib.suppress(ValueError):
            yield parsed(text)
