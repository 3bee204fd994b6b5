"""Semantic versions: which step a new version is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from delivery.semantic_version import Subject, breaks_callers, next_version, parsed
from validation.bundle import Manifest, Tensor

PIXELS = Tensor(name="pixels", dtype="FP32", shape=(64,))
LABEL = Tensor(name="label", dtype="INT64", shape=(1,))
SUBJECT = Subject(inputs=(PIXELS,), outputs=(LABEL,), source_run="a")
STABLE = Manifest(
    model="digits",
    version=1,
    semantic_version="1.2.3",
    files={},
    inputs=(PIXELS,),
    outputs=(LABEL,),
    opset=17,
    ir_version=8,
    source_run="a",
    git_commit="",
    training_metrics={},
    framework_versions={},
    golden_set={"uri": "file:///g", "sha256": "00", "rows": 1},
    baselines={},
)


def subject(**changes: Any) -> Subject:
    return replace(SUBJECT, **changes)


def sized(*shape: int, dynamic: tuple[int, ...] = (), name: str = "pixels", dtype: str = "FP32") -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape, dynamic=dynamic)


OTHER_RUN = subject(source_run="b")
EXTRA = sized(10, name="scores")


@pytest.mark.parametrize(
    ("candidate", "number"),
    [
        (SUBJECT, "v1.2.4"),
        (OTHER_RUN, "v1.3.0"),
        (subject(outputs=(LABEL, EXTRA)), "v1.3.0"),
        (subject(inputs=(sized(64, dynamic=(0,)),)), "v1.3.0"),
        (subject(outputs=(EXTRA, LABEL), source_run="b"), "v1.3.0"),
        (subject(outputs=(EXTRA,)), "v2.0.0"),
        (subject(outputs=(sized(1, name="label"),)), "v2.0.0"),
        (subject(outputs=(sized(1, dynamic=(0,), name="label", dtype="INT64"),)), "v2.0.0"),
        (subject(inputs=(sized(64, name="bright"),)), "v2.0.0"),
        (subject(inputs=(sized(64, dtype="FP64"),)), "v2.0.0"),
        (subject(inputs=(sized(32),)), "v2.0.0"),
        (subject(inputs=(sized(8, 8),)), "v2.0.0"),
        (subject(inputs=(PIXELS, EXTRA)), "v2.0.0"),
        (subject(inputs=(EXTRA,)), "v2.0.0"),
    ],
)
def test_the_step_says_what_changed(candidate: Subject, number: str) -> None:
    """Major when a caller of stable can break, minor for another run or a compatible addition, patch for the same again."""
    assert next_version(candidate, STABLE, taken=()) == number


def test_an_open_axis_that_closes_breaks_callers() -> None:
    """Who sends rows of any length must be told; for outputs it is the other way round."""
    stable = replace(STABLE, inputs=(sized(64, dynamic=(0,)),), outputs=(sized(3, dynamic=(0,), name="scores"),))
    narrower = Subject(inputs=(PIXELS,), outputs=stable.outputs, source_run="b")
    fixed = Subject(inputs=stable.inputs, outputs=(sized(3, name="scores"),), source_run="b")
    assert breaks_callers(narrower, stable)
    assert not breaks_callers(fixed, stable)
    assert next_version(fixed, stable, taken=()) == "v1.3.0"


def test_the_first_is_one() -> None:
    """Without a stable version the count begins at 1.0.0."""
    assert next_version(SUBJECT, None, taken=()) == "v1.0.0"


def test_a_number_is_given_once() -> None:
    """A number that a refused version got is passed over, so that a number names one version; how it was written does not matter."""
    assert next_version(OTHER_RUN, STABLE, taken={"v1.3.0", "1.4.0"}) == "v1.5.0"
    assert next_version(SUBJECT, None, taken={"1.0.0"}) == "v1.1.0"
    assert next_version(SUBJECT, None, taken={"the best", "v1.0"}) == "v1.0.0"


def test_both_spellings_are_read() -> None:
    """Registries hold versions from before the `v`."""
    assert parsed("v2.30.1") == parsed("2.30.1") == (2, 30, 1)
    assert next_version(OTHER_RUN, replace(STABLE, semantic_version="v1.2.3"), taken=()) == "v1.3.0"


@pytest.mark.parametrize("text", ["1.0", "vv1.0.0", "1.0.0-rc1", "", "V1.0.0", "1.0.0\n", "-1.0.0"])
def test_other_texts_are_no_versions(text: str) -> None:
    """Only three whole numbers are read."""
    with pytest.raises(ValueError, match="three whole numbers"):
        parsed(text)
