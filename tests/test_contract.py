"""The contract between operators and tasks: specs in, verdicts out, and nothing that only looks like one."""

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation import contract
from validation.contract import (
    EXIT_BAD_SPEC,
    VERDICT_LIMIT_BYTES,
    BadSpec,
    Bundle,
    Decision,
    Finding,
    NoVerdict,
    Outcome,
    Spec,
    Stable,
    Verdict,
    canonical_json,
    run_task,
    seal_evidence,
    upload_evidence,
    worst,
    write_verdict,
)

BUNDLE = Bundle(uri="file:///bundle.tar", sha256="0" * 64)
SPEC = Spec(
    task="golden_set",
    model="digits",
    version=3,
    delivery="deliver__digits__v3",
    evidence_uri="file:///evidence",
    bundle=BUNDLE,
    stable=Stable(version=2, bundle=BUNDLE),
    limits={"min_rows": 500},
    inputs={"a": [1, None]},
    seed=7,
)
FINDINGS = st.builds(
    Finding,
    name=st.text(),
    outcome=st.sampled_from(Outcome),
    why=st.text(max_size=100),
    observed=st.none() | st.text(max_size=100) | st.floats(allow_nan=False, allow_infinity=False),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    interval=st.none() | st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
    n=st.none() | st.integers(0, 10**9),
    advice=st.none() | st.text(),
)


def finding(name="errors", outcome=Outcome.PASSED, why="because", **details):
    return Finding(name=name, outcome=outcome, why=why, **details)


def written(tmp_path, *findings, outputs=None):
    decision = Decision(findings=findings, outputs=outputs or {})
    return write_verdict(decision, spec=SPEC, evidence_digest="e" * 64, out=tmp_path)


def read(tmp_path, spec=SPEC):
    return Verdict.from_bytes((tmp_path / "verdict.json").read_bytes(), spec)


def verdict_bytes(**changes):
    row = {
        "task": "golden_set",
        "spec_digest": SPEC.digest,
        "evidence_digest": "e",
        "findings": [],
        "findings_total": 0,
        "outputs": {},
        "contract": 1,
    }
    return json.dumps(row | changes).encode()


# Specs


def test_a_spec_reads_back_equal():
    """What an operator writes is what the task reads, to the digest."""
    again = Spec.from_json(SPEC.to_json())
    assert (again, again.digest) == (SPEC, SPEC.digest)


def test_a_spec_without_bundle_and_stable_reads_back_equal():
    """The first task has no bundle yet, and the first version has no stable one."""
    spec = Spec(task="claim", model="digits", version=1, delivery="d", evidence_uri="file:///e")
    assert Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"contract": 2}, "this task speaks version 1"),
        ({"secret": "x"}, r"unknown keys \['secret'\]"),
        ({"task": ""}, "task must be a non-empty string"),
        ({"model": 3}, "model must be"),
        ({"version": -1}, "version must be a whole number"),
        ({"version": True}, "version must be"),
        ({"version": "3"}, "version must be"),
        ({"limits": []}, "limits and inputs"),
        ({"bundle": {"uri": "x"}}, "sha256"),
        ({"bundle": "x"}, "mapping"),
        ({"stable": {"version": 1}}, "bundle"),
    ],
)
def test_a_bad_spec_names_what_is_wrong(change, words):
    """Unknown keys, other versions and values of another kind are a bad spec."""
    with pytest.raises(BadSpec, match=words):
        Spec.from_json(json.dumps(json.loads(SPEC.to_json()) | change))


@pytest.mark.parametrize("key", ["task", "model", "version", "delivery", "evidence_uri", "contract"])
def test_a_missing_key_is_a_bad_spec(key):
    """Nothing that identifies a task has a default when read."""
    row = json.loads(SPEC.to_json())
    del row[key]
    with pytest.raises(BadSpec):
        Spec.from_json(json.dumps(row))


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_spec_or_a_bad_one(text):
    """Reading anything that is no spec ends in `BadSpec`."""
    with pytest.raises(BadSpec):
        Spec.from_json(text)


def test_a_task_that_needs_a_bundle_says_so():
    """A spec without the bundle that its task needs is a bad spec."""
    with pytest.raises(BadSpec, match="needs a bundle"):
        Spec(task="golden_set", model="m", version=1, delivery="d", evidence_uri="file:///e").need_bundle()


# Verdicts


@given(FINDINGS)
def test_findings_read_back_equal(each):
    """A finding survives its JSON form."""
    assert Finding.from_dict(json.loads(canonical_json(each.to_dict()))) == each


def test_numbers_that_json_lacks_travel_as_words():
    """NaN and infinity in a finding become text, because JSON has neither."""
    row = finding(observed=math.nan, interval=(-math.inf, 1.0)).to_dict()
    assert (row["observed"], row["interval"]) == ("nan", ["-inf", 1.0])


def test_a_verdict_reads_back_equal(tmp_path):
    """What a task writes is what its operator reads."""
    verdict = written(tmp_path, finding(n=3), finding("latency", Outcome.FAILED), outputs={"version": 3})
    assert read(tmp_path) == verdict
    assert (verdict.outcome, verdict.outputs, verdict.findings_total) == (Outcome.FAILED, {"version": 3}, 2)


def test_no_findings_are_inconclusive(tmp_path):
    """Nothing was shown, so nothing is passed."""
    assert written(tmp_path).outcome is Outcome.INCONCLUSIVE
    assert "nothing was shown" in read(tmp_path).why


@given(st.lists(st.sampled_from(Outcome), min_size=1))
def test_the_worst_outcome_counts(outcomes):
    """Passed < inconclusive < failed, and of several the worst holds."""
    assert worst(outcomes) is max(outcomes, key=lambda each: ["passed", "inconclusive", "failed"].index(each.word))


def test_why_speaks_of_the_worst_finding(tmp_path):
    """The sentence for people is the worst finding's, with its advice."""
    verdict = written(tmp_path, finding(), finding("rows", Outcome.INCONCLUSIVE, "too few", advice="add 3"))
    assert verdict.why == "rows: too few (add 3)"


@given(st.lists(FINDINGS, min_size=1, max_size=40).map(lambda some: [replace(each, why=each.why * 50) for each in some]))
def test_a_verdict_always_fits_and_keeps_the_worst(tmp_path_factory, findings):
    """However many findings there are: at most 4,096 bytes, the worst among them, and the count of all."""
    out = tmp_path_factory.mktemp("out")
    written(out, *findings)
    verdict = read(out)
    assert (out / "verdict.json").stat().st_size <= VERDICT_LIMIT_BYTES
    assert (verdict.outcome, verdict.findings_total) == (worst(each.outcome for each in findings), len(findings))


def test_trimming_drops_the_mildest(tmp_path):
    """What does not fit are passed findings; they stand in the evidence."""
    verdict = written(tmp_path, *[finding(f"fine_{i}", why="x" * 100) for i in range(60)], finding("bad", Outcome.FAILED))
    assert verdict.findings[0].name == "bad"
    assert len(verdict.findings) < verdict.findings_total == 61


def test_a_long_sentence_is_cut_to_fit(tmp_path):
    """One finding with a very long sentence still reaches the operator, with its outcome."""
    verdict = written(tmp_path, finding("loads", Outcome.FAILED, "é" * 9000, advice="a" * 9000))
    assert (read(tmp_path).outcome, verdict.findings[0].name) == (Outcome.FAILED, "loads")


def test_text_that_is_no_utf8_is_replaced(tmp_path):
    """A message with half of a character pair, as broken file names give, does not cost the verdict."""
    written(tmp_path, finding("loads", Outcome.FAILED, "file \udcff"))
    assert read(tmp_path).why == "loads: file ?"


def test_outputs_that_do_not_fit_are_an_error(tmp_path):
    """Outputs are never dropped in silence: later tasks need them."""
    with pytest.raises(ValueError, match="4096 bytes"):
        written(tmp_path, finding(), outputs={"big": "x" * 5000})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no JSON",
        b"[]",
        b"\xff\xfe",
        b'{"task": "golden_set"}',
        verdict_bytes(extra=1),
        verdict_bytes(findings=None),
        verdict_bytes(findings=["x"]),
        verdict_bytes(findings=[{"name": "a", "outcome": "fine", "why": "b"}]),
        verdict_bytes(findings=[{"name": "a", "outcome": "passed", "why": "b", "extra": 1}]),
        verdict_bytes(findings=[{"outcome": "passed"}]),
        verdict_bytes(findings=[{"name": "a", "outcome": 0, "why": "b"}]),
    ],
)
def test_what_cannot_be_read_is_no_verdict(data):
    """Bytes that are no verdict are the absence of one: an error of ours, never an outcome."""
    with pytest.raises(NoVerdict, match="golden_set"):
        Verdict.from_bytes(data, SPEC)


def test_an_oversized_verdict_is_no_verdict():
    """More than 4,096 bytes would be cut off on the way, so they are refused everywhere."""
    with pytest.raises(NoVerdict, match="the limit is 4096"):
        Verdict.from_bytes(verdict_bytes(outputs={"x": "y" * 4096}), SPEC)


@pytest.mark.parametrize("change", [{"spec_digest": "0" * 64}, {"task": "package"}, {"contract": 2}])
def test_a_verdict_for_another_spec_is_no_verdict(change):
    """A verdict counts only for the spec that it quotes."""
    with pytest.raises(NoVerdict, match="answers spec"):
        Verdict.from_bytes(verdict_bytes(**change), SPEC)


# Evidence and addresses


def test_evidence_is_published_with_the_manifest_that_the_verdict_quotes(tmp_path):
    """Every evidence file and the findings are uploaded, and the digest covers them all."""
    evidence = tmp_path / "evidence"
    (evidence / "deep").mkdir(parents=True)
    (evidence / "deep" / "rows.csv").write_text("1,2")
    digest = seal_evidence(evidence, Decision(findings=(finding(),)))
    upload_evidence(evidence, (tmp_path / "away").as_uri())
    manifest = (tmp_path / "away/manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == digest
    assert json.loads(manifest) == {
        name: hashlib.sha256((tmp_path / "away" / name).read_bytes()).hexdigest() for name in ("deep/rows.csv", "findings.json")
    }


def test_sealing_again_says_the_same(tmp_path):
    """A task that is run again in the same place, after a crash, seals the same digest."""
    decision = Decision(findings=(finding(),))
    assert seal_evidence(tmp_path, decision) == seal_evidence(tmp_path, decision)


TASK = """
import os, pathlib, signal
from validation.contract import Decision, Finding, Outcome
def run(spec, evidence):
    if os.environ.get("STOP"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            (evidence / "unwound").touch()
    return Decision(findings=(Finding(name="f", outcome=Outcome[os.environ["OUTCOME"]], why="w"),))
"""


def run_made_task(tmp_path, **environ):
    (tmp_path / "made_task.py").write_text(TASK)
    spec = replace(SPEC, task="made", evidence_uri=environ.pop("uri", (tmp_path / "away").as_uri()))
    code = "import sys; from validation.contract import run_task; sys.exit(run_task({'made': 'made_task'}))"
    known = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "TASK_OUT": str(tmp_path / "out"),
        "TASK_SPEC": spec.to_json(),
        **environ,
    }
    return subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=False).returncode


@pytest.mark.parametrize(("outcome", "code", "written"), [("FAILED", 0, True), ("INCONCLUSIVE", 0, True), ("PASSED", 1, False)])
def test_a_refusal_does_not_need_the_artifact_store(tmp_path, outcome, code, written):
    """Evidence that cannot be uploaded costs a pass its verdict, but never gives a refusal a second chance."""
    assert run_made_task(tmp_path, OUTCOME=outcome, uri="http://127.0.0.1:1/nothing") == code
    assert (tmp_path / "out" / "verdict.json").exists() is written


def test_a_stopped_task_unwinds(tmp_path):
    """SIGTERM ends a task like an error: its `finally` blocks run, there is no verdict, and the exit code says which signal."""
    assert run_made_task(tmp_path, OUTCOME="PASSED", STOP="1") == 143
    assert (tmp_path / "out" / "evidence" / "unwound").exists()
    assert not (tmp_path / "out" / "verdict.json").exists()


@pytest.fixture
def web():
    """A web server that keeps what is put to it."""
    kept = {}

    class Shelf(BaseHTTPRequestHandler):
        def do_PUT(self):
            kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.send_response(200 if self.path in kept else 404)
            self.end_headers()
            self.wfile.write(kept.get(self.path, b""))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Shelf)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_travel_over_http(tmp_path, web):
    """A file put to an http address is read back with its digest."""
    (tmp_path / "a").write_bytes(b"content")
    contract.upload(tmp_path / "a", f"{web}/x/a")
    assert contract.download(f"{web}/x/a", hashlib.sha256(b"content").hexdigest()) == b"content"


def test_downloads_are_checked(tmp_path, web):
    """Another digest, too many bytes and other schemes are refused."""
    (tmp_path / "a").write_bytes(b"content")
    uri = (tmp_path / "a").as_uri()
    with pytest.raises(ValueError, match="refusing to read it"):
        contract.download(uri, "0" * 64)
    with pytest.raises(ValueError, match="larger than 3 bytes"):
        contract.download(uri, limit_bytes=3)
    with pytest.raises(ValueError, match="expected a file:, http: or https: address"):
        contract.download("ftp://somewhere/a")
    with pytest.raises(OSError, match="404"):
        contract.download(f"{web}/absent")


# Running a task


def task_module(tmp_path, monkeypatch, body):
    (tmp_path / "own_task.py").write_text(f"from validation.contract import *\ndef run(spec, evidence):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_task", raising=False)
    return {"golden_set": "own_task"}


def environment(tmp_path, spec=SPEC):
    local = json.loads(spec.to_json()) | {"evidence_uri": (tmp_path / "away").as_uri()}
    return {"TASK_SPEC": json.dumps(local), "TASK_OUT": str(tmp_path / "out")}


def test_a_decision_becomes_a_verdict(tmp_path, monkeypatch):
    """A task that decides exits 0, whatever it decided."""
    body = 'return Decision(findings=(Finding(name="a", outcome=Outcome.FAILED, why="b"),))'
    environ = environment(tmp_path)
    assert run_task(task_module(tmp_path, monkeypatch, body), environ) == 0
    assert read(tmp_path / "out", Spec.from_json(environ["TASK_SPEC"])).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("body", "code"), [("raise RuntimeError('crash')", 1), ("raise BadSpec('limits')", EXIT_BAD_SPEC), ("return None", 1)]
)
def test_no_decision_is_no_verdict(tmp_path, monkeypatch, capsys, body, code):
    """A crash is worth a retry, a bad spec is not, and neither leaves a verdict."""
    assert run_task(task_module(tmp_path, monkeypatch, body), environment(tmp_path)) == code
    assert not (tmp_path / "out/verdict.json").exists()
    assert capsys.readouterr().err


def test_evidence_that_cannot_be_published_is_no_verdict(tmp_path, monkeypatch):
    """A verdict without its evidence could not be checked by anybody: the task ends without one."""
    environ = environment(tmp_path)
    environ["TASK_SPEC"] = environ["TASK_SPEC"].replace("file://", "ftp://")
    assert run_task(task_module(tmp_path, monkeypatch, "return Decision(findings=())"), environ) == 1
    assert not (tmp_path / "out/verdict.json").exists()


def program(**environ):
    left = {key: value for key, value in os.environ.items() if not key.startswith("TASK_")}
    return subprocess.run(
        [sys.executable, "-m", "validation"], env=left | environ, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )


def test_the_program_refuses_a_bad_spec_with_64(tmp_path):
    """`python -m validation` without a spec it can read exits 64 and says why."""
    ended = program(TASK_SPEC="{}", TASK_OUT=str(tmp_path))
    assert (ended.returncode, "bad spec: contract is None" in ended.stderr) == (EXIT_BAD_SPEC, True)


def test_the_program_knows_its_tasks(tmp_path):
    """A task that this image does not carry is a bad spec that names the known ones."""
    ended = program(TASK_SPEC=SPEC.to_json().replace("golden_set", "promote"), TASK_OUT=str(tmp_path))
    assert (ended.returncode, "known here: distribution, golden_set, integration, latency_benchmark" in ended.stderr) == (
        EXIT_BAD_SPEC,
        True,
    )


def test_the_program_without_an_output_folder_is_our_error():
    """A runtime that forgot TASK_OUT made a mistake of ours: no verdict, exit 1."""
    assert program(TASK_SPEC=SPEC.to_json()).returncode == 1


# Whole sentences and bytes

SPEC_KEYS = "['bundle', 'contract', 'delivery', 'evidence_uri', 'inputs', 'limits', 'model', 'seed', 'stable', 'task', 'version']"
FINDING_KEYS = "['advice', 'interval', 'limit', 'n', 'name', 'observed', 'outcome', 'why']"
VERDICT_KEYS = "['contract', 'evidence_digest', 'findings', 'findings_total', 'outputs', 'spec_digest', 'task']"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"contract": 2}, "contract is 2; this task speaks version 1"),
        ({"secret": "x"}, f"spec has unknown keys ['secret']; known: {SPEC_KEYS}"),
        ({"task": ""}, "task must be a non-empty string, not ''"),
        ({"model": 3}, "model must be a non-empty string, not 3"),
        ({"delivery": None}, "delivery must be a non-empty string, not None"),
        ({"evidence_uri": []}, "evidence_uri must be a non-empty string, not []"),
        ({"version": -1}, "version must be a whole number from 0, not -1"),
        ({"limits": []}, "limits and inputs must be JSON objects"),
        ({"inputs": []}, "limits and inputs must be JSON objects"),
    ],
)
def test_a_bad_spec_is_one_whole_sentence(change, words):
    """What is wrong, with what stood there and what is expected."""
    with pytest.raises(BadSpec) as caught:
        Spec.from_json(json.dumps(json.loads(SPEC.to_json()) | change))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "not a JSON object"), ("{", "not JSON: Expecting property name enclosed in double quotes")]
)
def test_what_is_no_object_is_named(text, words):
    """Whether it is no JSON, or JSON of another kind."""
    with pytest.raises(BadSpec) as caught:
        Spec.from_json(text)
    assert str(caught.value).startswith(words)


def test_a_version_may_be_zero():
    """The first number that a version can have."""
    assert Spec.from_json(replace(SPEC, version=0).to_json()).version == 0


def test_a_task_without_its_bundle_is_named():
    """The sentence is the whole reason that the operator sees."""
    with pytest.raises(BadSpec) as caught:
        replace(SPEC, bundle=None).need_bundle()
    assert str(caught.value) == "golden_set needs a bundle and the spec names none"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[]", "golden_set wrote a verdict that cannot be read: not a JSON object"),
        (
            verdict_bytes(extra=1),
            f"golden_set wrote a verdict that cannot be read: verdict has unknown keys ['extra']; known: {VERDICT_KEYS}",
        ),
        (
            verdict_bytes(findings=[{"name": "a", "outcome": "passed", "why": "b", "extra": 1}]),
            f"golden_set wrote a verdict that cannot be read: finding has unknown keys ['extra']; known: {FINDING_KEYS}",
        ),
        (
            verdict_bytes(findings=[{"name": "a", "outcome": "fine", "why": "b"}]),
            "golden_set wrote a verdict that cannot be read: outcome 'fine': expected passed, inconclusive or failed",
        ),
        (verdict_bytes(task="package"), f"the verdict of 'package' answers spec {SPEC.digest[:12]}, not 'golden_set' {SPEC.digest[:12]}"),
        (
            verdict_bytes(spec_digest="0" * 64),
            f"the verdict of 'golden_set' answers spec 000000000000, not 'golden_set' {SPEC.digest[:12]}",
        ),
        (b"x" * 4097, "golden_set wrote a verdict of 4097 bytes; the limit is 4096"),
    ],
)
def test_no_verdict_is_one_whole_sentence(data, words):
    """Who wrote it, and why it does not count."""
    with pytest.raises(NoVerdict) as caught:
        Verdict.from_bytes(data, SPEC)
    assert str(caught.value) == words


def test_a_verdict_of_just_the_limit_is_read():
    """4,096 bytes are what a pod's message carries."""
    short = len(verdict_bytes(outputs={"x": ""}))
    assert Verdict.from_bytes(verdict_bytes(outputs={"x": "y" * (4096 - short)}), SPEC).outputs["x"].startswith("y")


def test_why_of_no_findings_is_one_sentence():
    """Nothing was shown, and that is what it says."""
    assert Verdict.from_bytes(verdict_bytes(), SPEC).why == "no findings: nothing was shown, so nothing is passed"


def test_canonical_json_has_one_form():
    """Sorted keys, no spaces, letters as they are; what JSON lacks is refused."""
    assert canonical_json({"ü": [1, 2.5], "a": None}) == '{"a":null,"ü":[1,2.5]}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


def test_findings_in_the_evidence_are_for_people(tmp_path):
    """Indented, letters as they are, each as in the verdict but whole."""
    seal_evidence(tmp_path, Decision(findings=(finding(why="größer"),)))
    text = '[\n {\n  "name": "errors",\n  "outcome": "passed",\n  "why": "größer"\n }\n]'
    assert (tmp_path / "findings.json").read_text() == text


@pytest.mark.parametrize(("size", "text"), [(498, "a" * 498), (499, f"{'a' * 497} ...")])
def test_a_text_is_cut_beyond_its_limit(tmp_path, size, text):
    """With its quotation marks it may take 500 bytes; a cut is seen."""
    assert written(tmp_path, finding(why="a" * size)).findings[0].why == text


def test_a_stop_ends_as_shells_say_it():
    """128 and the signal's number."""
    with pytest.raises(SystemExit) as caught:
        contract._stopped(15, None)
    assert caught.value.code == 143


def test_outputs_that_do_not_fit_are_named(tmp_path):
    """The task is named, and the limit."""
    with pytest.raises(ValueError, match=r"^golden_set: outputs and worst finding alone pass 4096 bytes$"):
        written(tmp_path, finding(), outputs={"big": "x" * 5000})


@pytest.mark.parametrize("uri", ["ftp://a/b", "/a/b", ""])
def test_an_address_of_another_kind_is_refused(uri):
    """Whole, for reading and for writing."""
    for act in (contract.download, lambda uri: contract.upload(Path(__file__), uri)):
        with pytest.raises(ValueError, match=r"expected") as caught:
            act(uri)
        assert str(caught.value) == f"{uri!r}: expected a file:, http: or https: address"


def test_what_is_too_large_or_another_is_refused(tmp_path):
    """Just the limit is read; a byte more is not, and neither are other bytes than those that were promised."""
    file, digest = tmp_path / "a", hashlib.sha256(b"12345").hexdigest()
    file.write_bytes(b"12345")
    assert contract.download(file.as_uri(), digest, limit_bytes=5) == b"12345"
    with pytest.raises(ValueError, match="larger") as caught:
        contract.download(file.as_uri(), limit_bytes=4)
    assert str(caught.value) == f"{file.as_uri()} is larger than 4 bytes"
    with pytest.raises(ValueError, match="sha256") as caught:
        contract.download(file.as_uri(), "0" * 64)
    assert str(caught.value) == f"{file.as_uri()} has sha256 {digest}, expected {'0' * 64}: refusing to read it"
