"""Semantic versions: which step a new version is."""

from __future__ import annotations

import pytest

from delivery.semantic_version import Subject, next_version, parsed
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
OTHER_RUN = Subject(inputs=(PIXELS,), outputs=(LABEL,), source_run="b")
OTHER_OUTPUT = Subject(inputs=(PIXELS,), outputs=(PIXELS,), source_run="a")


@pytest.mark.parametrize(("subject", "number"), [(SUBJECT, "1.2.4"), (OTHER_RUN, "1.3.0"), (OTHER_OUTPUT, "2.0.0")])
def test_the_step_says_what_changed(subject: Subject, number: str) -> None:
    """The same run again is a patch, another run a minor step, another signature a major one."""
    assert next_version(subject, STABLE, taken=()) == number


def test_the_first_is_one() -> None:
    """Without a stable version the count begins at 1.0.0."""
    assert next_version(SUBJECT, None, taken=()) == "1.0.0"


def test_a_number_is_given_once() -> None:
    """A number that a refused version got is passed over, so that a number names one version."""
    assert next_version(OTHER_RUN, STABLE, taken={"1.3.0", "1.4.0"}) == "1.5.0"
    assert next_version(SUBJECT, None, taken={"1.0.0"}) == "1.1.0"


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "1.0.0-rc1", ""])
def test_other_texts_are_no_versions(text: str) -> None:
    """Only three whole numbers are read."""
    with pytest.raises(ValueError, match="three whole numbers"):
        parsed(text)
