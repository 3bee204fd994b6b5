"""Replay and explain: a watch decided again from its evidence, and why it was decided so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from airflow_home import ROOT
from fakes import pair

from delivery.director_client import Row
from delivery.judged import JudgedMirror, JudgedStep, NoEvidence, read
from delivery.paired import Paired
from delivery.replay import main
from delivery.rollout import Split
from delivery.rollout_evidence import RolloutLog
from delivery.shadow import Mirror
from validation.contract import Bundle, Decision, Finding, Outcome, Spec, Stable, seal_evidence, worst
from validation.policy import read_policy

POLICY = read_policy(ROOT / "dags" / "policies" / "digits.toml")
ROLLOUT = replace(POLICY.rollout, indifferent_below_ms=10.0)  # the answers made up here take 20 ms
STEP_FILES, MIRROR_FILES = (
    ("requests.parquet", "judged.json", "findings.json"),
    ("mirrored.json", "paired.jsonl", "judged.json", "findings.json"),
)
BUNDLE = Bundle(uri="file:///b", sha256="0")
SPEC = Spec(
    task="rollback_sensor",
    model="digits",
    version=2,
    delivery="deliver__digits__v2",
    evidence_uri="file:///e",
    stable=Stable(version=1, bundle=BUNDLE),
)


def watched(folder: Path, *, fails: int = 0, times: float = 1.0, rows: int = 2000) -> Outcome:
    """Evidence as the sensor writes it, of a step with so many requests on each side; returns its outcome."""
    log = RolloutLog(stable=1, candidate=2)
    log.add(
        Row(2 * n + side, 1000 + n / 50, 1 + side, side == 0 or n % 100 >= fails, (20 + n % 7) * (times if side else 1))
        for n in range(rows)
        for side in (0, 1)
    )
    split = Split(spec=SPEC, step=ROLLOUT.steps[2], rollout=ROLLOUT, director=None)  # type: ignore[arg-type] -- nothing is asked of it
    split.log, split.since_s = log, 1000.0
    folder.mkdir(exist_ok=True)
    findings = split.findings()
    split.record(folder)
    seal_evidence(folder, Decision(findings=findings))
    return worst(each.outcome for each in findings)


def mirrored(folder: Path, *, requests: int = 400, failures: int = 0, other: int = 0, nan: int = 0) -> Outcome:
    """Evidence as the mirror writes it, of so many requests and of 90 pairs, the last of which differ or are no numbers."""
    rows = [pair(number) for number in range(90 - other - nan)]
    rows += [pair(flipped=True, difference=0.4)] * other + [pair(state="unfinite", why="'scores' has NaN", flipped=None)] * nan
    paired = Paired(recorder=None, model="digits", stable=1, candidate=2, rows=rows)
    mirror = Mirror(spec=SPEC, shadow=POLICY.shadow, rollout=ROLLOUT, director=None, paired=paired)  # type: ignore[arg-type] -- not asked
    mirror.looks.append((requests, failures))
    folder.mkdir(exist_ok=True)
    findings = mirror.findings()
    mirror.record(folder)
    seal_evidence(folder, Decision(findings=findings))
    return worst(each.outcome for each in findings)


MIRRORS = [
    ({}, Outcome.PASSED, "90 pairs of answers"),
    ({"failures": 40}, Outcome.FAILED, "of its 40 failures fewer"),
    ({"other": 60}, Outcome.FAILED, "of its 60 other answers alike"),
    ({"nan": 2}, Outcome.FAILED, "with 2 of its 2 other answers alike"),
    ({"requests": 20}, Outcome.INCONCLUSIVE, "Missing: more traffic"),
    ({"requests": -3}, Outcome.INCONCLUSIVE, "the gateway's counters fell"),
]


@pytest.mark.parametrize(("case", "outcome", "words"), MIRRORS)
def test_a_mirror_is_decided_again_and_explained(tmp_path: Path, case, outcome, words, capsys: pytest.CaptureFixture[str]):
    """Whatever the outcome was, the same findings follow from counts and pairs, and the change that turns them is named."""
    assert mirrored(tmp_path / "e", **case) is outcome
    assert main(["replay", (tmp_path / "e").as_uri()]) == 0
    assert "the same findings as were written down" in capsys.readouterr().out
    assert main(["explain", str(tmp_path / "e")]) == 0
    assert words in capsys.readouterr().out


def test_so_many_answers_alike_and_no_fewer_turn_a_mirror(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The number that is named is the smallest."""
    mirrored(tmp_path / "e", other=60)
    main(["explain", str(tmp_path / "e")])
    fewer = int(capsys.readouterr().out.split("failed with ")[1].split()[0])
    assert isinstance(read(tmp_path / "e"), JudgedMirror)
    found = [mirrored(tmp_path / f"{n}", other=60 - n) for n in (fewer - 1, fewer)]
    assert found[0] is Outcome.FAILED
    assert found[1] is not Outcome.FAILED


@pytest.mark.parametrize("case", [{}, {"fails": 5}, {"times": 1.6}, {"rows": 40}])
def test_a_step_is_decided_again_bit_for_bit(tmp_path: Path, case, capsys: pytest.CaptureFixture[str]):
    """Whatever the outcome was, the same findings follow from the evidence."""
    watched(tmp_path / "e", **case)
    assert main(["replay", str(tmp_path / "e")]) == 0
    assert "the same findings as were written down" in capsys.readouterr().out


def test_evidence_by_its_address_is_read_as_well(tmp_path: Path):
    """As MLflow's artifacts are, file by file."""
    watched(tmp_path / "e")
    assert main(["replay", (tmp_path / "e").as_uri()]) == 0


def test_findings_that_were_changed_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Someone rewrote a finding and its digest: the requests say otherwise."""
    watched(tmp_path / "e", fails=5)
    path = tmp_path / "e" / "findings.json"
    changed = tuple(Finding.from_dict({**each, "outcome": "passed"}) for each in json.loads(path.read_text()))
    seal_evidence(tmp_path / "e", Decision(findings=changed))
    assert main(["replay", str(tmp_path / "e")]) == 1
    assert "errors: passed" in capsys.readouterr().out


EVERY_FILE = [*((watched, name) for name in STEP_FILES), *((mirrored, name) for name in MIRROR_FILES)]


@pytest.mark.parametrize(("made", "name"), EVERY_FILE)
def test_evidence_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path, made, name, capsys: pytest.CaptureFixture[str]):
    """A byte more in any file."""
    made(tmp_path / "e")
    with (tmp_path / "e" / name).open("ab") as file:
        file.write(b" ")
    assert main(["replay", str(tmp_path / "e")]) == 64
    assert f"{name} is not what the manifest says" in capsys.readouterr().err


@pytest.mark.parametrize(("made", "name"), EVERY_FILE)
def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path, made, name, capsys: pytest.CaptureFixture[str]):
    """Nothing is read that nobody vouches for."""
    made(tmp_path / "e")
    path = tmp_path / "e" / "manifest.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))
    assert main(["replay", str(tmp_path / "e")]) == 64
    assert f"{name} is not what the manifest says" in capsys.readouterr().err


def test_no_evidence_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """An empty folder."""
    assert main(["explain", str(tmp_path)]) == 64
    assert "no evidence of a watch" in capsys.readouterr().err
    assert issubclass(NoEvidence, ValueError)


def test_an_explanation_names_the_smallest_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """How many failures fewer, how much more latency allowed, or how much evidence was missing."""
    for case, words in (
        ({"fails": 5}, "of its 100 failures fewer"),
        ({"times": 1.6}, "more latency instead of 10%"),
        ({"rows": 40}, "Missing: about"),
    ):
        watched(tmp_path / "e", **case)
        assert main(["explain", str(tmp_path / "e")]) == 0
        assert words in capsys.readouterr().out


def test_the_change_that_is_named_turns_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With the latency that it names allowed the same requests do not fail, with two hundredths less they still do."""
    watched(tmp_path / "e", times=1.6)
    main(["explain", str(tmp_path / "e")])
    sentence = next(each for each in capsys.readouterr().out.splitlines() if "more latency instead of" in each)
    allowed = float(sentence.split("allowed ")[1].split("%")[0]) / 100
    name, judged = explained_first(tmp_path / "e"), read(tmp_path / "e")
    assert isinstance(judged, JudgedStep)
    steps = tuple(replace(each, exclude_latency_worse=9.0) for each in ROLLOUT.steps)
    for worse, fails in ((allowed, False), (allowed - 0.02, True)):
        rollout = replace(ROLLOUT, latency_worse=worse, steps=steps)
        found = {each.name: each.outcome for each in replace(judged, rollout=rollout, step=steps[2]).again()}
        assert (found[name] is Outcome.FAILED) is fails


def explained_first(folder: Path) -> str:
    """The finding of latency that is explained first."""
    return next(each.name for each in read(folder).found if each.name.startswith("latency") and each.outcome is Outcome.FAILED)
