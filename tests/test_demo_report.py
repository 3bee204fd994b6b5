"""What the demo makes of what it saw: its exit status, its figures, its table, its page. One good run is made up here and then spoilt."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from demo import report
from demo.display import client_words, share_words, story_table
from demo.expected import STORY, Ending, Expected, Record, Seen, Share, TaskRun, deviations, result
from demo.services import Airflow, Director, NotNow, Registry
from demo.watch import Watch

START = 1_800_000_000.0
EACH_S = 60.0
ENDED_AT = {"promote": "promote", "golden_set": "golden_set", "rollback_sensor_": "rollback_sensor_100"}


def line(second: int, **changes: Any) -> dict[str, Any]:
    row = {"second": second, "span_s": 1.0, "requests": 160, "ok": 160, "errors": 0, "not_yet_served": 0, "p50_ms": 3.0, "p99_ms": 9.0}
    return {**row, "error_samples": [], "ended": False, "new_scanner_permille": 0, **changes}


def ending(expected: Expected, begin: float) -> Ending:
    return Ending(
        version=expected.version,
        registered_unix_s=begin,
        ended_unix_s=begin + EACH_S - 10,
        outcome=expected.outcome,
        ended_at=ENDED_AT[expected.ended_at],
        why=f"why of v{expected.version} <b>&</b>",
        production=expected.production,
        tasks=(
            TaskRun(task="claim", state="success", started_unix_s=begin + 0.4, ended_unix_s=begin + 1),
            TaskRun(task="restore", state="running"),
        ),
    )


def seen(expected: Expected, begin: float) -> Seen:
    counts = Seen()
    if expected.meets_traffic:
        counts.add(begin + 20, ok=True)
    if expected.outcome == "rolled_back":
        counts.add(begin + 30, ok=False)
        counts.add(begin + 31.25, ok=True)
    return counts


def good() -> Record:
    record = Record(started_unix_s=START, stack_up_s=30, ended_unix_s=START + 400)
    for number, expected in enumerate(STORY):
        begin = START + 40 + number * EACH_S
        record.endings[expected.version] = ending(expected, begin)
        if expected.meets_traffic:
            record.seen[expected.version] = seen(expected, begin)
    record.lines = [line(int(START) + 35 + n) for n in range(332)]
    record.lines[0].update(ok=0, not_yet_served=160, p50_ms=None, p99_ms=None)
    record.lines[-1].update(ended=True)
    record.shares = [Share(unix_s=START + n, stable=1, candidate=2, permille=min(n, 1000), shadow_permille=0) for n in range(0, 400, 10)]
    record.marks = [(START + 250, "new scanner")]
    return record


def changed(record: Record, version: int, **fields: Any) -> None:
    record.endings[version] = dataclasses.replace(record.endings[version], **fields)


def test_a_run_that_went_as_said_has_no_deviation() -> None:
    """All five as expected, no client error, rate kept: exit status 0."""
    assert deviations(good()) == []


SPOILT: dict[str, Callable[[Record], Any]] = {
    "v1 has no outcome": lambda record: record.endings.pop(1),
    "v1 ended as refused": lambda record: changed(record, 1, outcome="refused", ended_at="golden_set"),
    "v2 ended as inconclusive": lambda record: changed(record, 2, outcome="inconclusive", ended_at="rollback_sensor_10"),
    "after v2 the alias production named 1; expected 2": lambda record: changed(record, 2, production=1),
    "v3 ended as promoted": lambda record: changed(record, 3, outcome="promoted", ended_at="promote"),
    "v3 ended at latency_benchmark; expected golden_set": lambda record: changed(record, 3, ended_at="latency_benchmark"),
    "v3 met 1 requests; it should have met none": lambda record: record.seen.update({3: Seen(answered=1)}),
    "v4 ended as refused": lambda record: changed(record, 4, outcome="refused", ended_at="golden_set"),
    "v4 ended at shadow; expected rollback_sensor_": lambda record: changed(record, 4, ended_at="shadow"),
    "v4 failed no request": lambda record: record.seen.update({4: Seen(answered=50)}),
    "after v4 the alias production named 4; expected 2": lambda record: changed(record, 4, production=4),
    "v5 ended as superseded": lambda record: changed(record, 5, outcome="superseded"),
    "after v5 the alias production named nothing; expected 5": lambda record: changed(record, 5, production=0),
    "v5 met no request": lambda record: record.seen.pop(5),
    "the client met 1 errors; expected 0. First: http: 503": lambda record: record.lines[3].update(errors=1, error_samples=["http: 503"]),
    "the client did not end as told": lambda record: record.lines.pop(),
    "the client got no answer at all": lambda record: [each.update(ok=0) for each in record.lines],
    "the client sent 50 requests a second": lambda record: [each.update(requests=50) for each in record.lines],
    "waited in vain": lambda record: record.trouble.append("waited in vain"),
}


@pytest.mark.parametrize("sentence", SPOILT)
def test_each_deviation_makes_the_demo_fail(sentence: str) -> None:
    """Whatever does not go as said is named in a sentence, and any sentence is exit status 1."""
    record = good()
    SPOILT[sentence](record)
    assert [each for each in deviations(record) if each.startswith(sentence)]
    assert result(record)["as_expected"] is False


def test_an_empty_record_is_a_failure() -> None:
    """Nothing seen is nothing shown: five missing outcomes and a client that said nothing."""
    assert len(deviations(Record(started_unix_s=START))) == 7


def test_result_holds_the_figures() -> None:
    """`result.json` has the figures that the bench takes: seconds, requests, rate, errors, event to task, breach to stable."""
    figures = result(good())
    assert figures["total_s"] == 400
    assert figures["requests"] == 332 * 160
    assert figures["rps"] == 160
    assert figures["client_errors"] == 0
    assert figures["not_yet_served"] == 160
    assert figures["event_to_task_s"] == pytest.approx(0.4)
    assert figures["breach_to_stable_s"] == pytest.approx(1.25)
    assert [row["outcome"] for row in figures["versions"]] == ["promoted", "promoted", "refused", "rolled_back", "promoted"]
    assert figures["versions"][3] | {"tasks": None} == {
        "version": 4,
        "story": "fails on a new scanner",
        "expected": "rolled_back",
        "answered": 2,
        "failed": 1,
        "outcome": "rolled_back",
        "ended_at": "rollback_sensor_100",
        "why": "why of v4 <b>&</b>",
        "registered_unix_s": START + 220,
        "registration_to_outcome_s": 50.0,
        "event_to_task_s": 0.4,
        "breach_to_stable_s": 1.25,
        "client_errors": 0,
        "tasks": None,
    }


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    """The report has its plots inside, loads nothing and runs nothing; reasons stand in it in full and escaped."""
    report.write(good(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1
    assert not re.search(r"<script|<link|<img|@import|\bsrc=|href=\"http|url\(http", page)
    assert "why of v3 &lt;b&gt;&amp;&lt;/b&gt;" in page
    assert "new scanner" in page
    assert "Everything went as said." in page
    assert json.loads((tmp_path / "result.json").read_text())["as_expected"] is True


@pytest.mark.parametrize("versions", [0, 2])
def test_the_page_can_be_made_of_half_a_run(tmp_path: Path, versions: int) -> None:
    """A demo that broke off still gets its report, with what was missing said in it."""
    record = good() if versions else Record(started_unix_s=START)
    for number in range(versions + 1, 6):
        record.endings.pop(number, None)
    report.write(record, tmp_path)
    assert "v5 has no outcome; expected promoted" in (tmp_path / "report.html").read_text()


def test_the_table_has_a_row_for_each_version() -> None:
    """The closing table shows outcome, task, reason, seconds, requests answered and client errors, whatever stands in the reason."""
    record = good()
    changed(record, 3, why="rows [3, 4] differ")
    shown = io.StringIO()
    Console(width=200, file=shown).print(story_table(record, STORY))
    words = shown.getvalue()
    assert "rows [3, 4] differ" in words
    assert re.search(r"v4, fails on a new scanner.*rolled_back.*rollback_sensor_100.*50.*2.*0", words)


def test_the_status_says_whose_traffic_it_is() -> None:
    """Share and client in words, also while nothing is stable."""
    canary = Share(unix_s=0, stable=1, candidate=2, permille=100, shadow_permille=1000)
    assert share_words(canary) == "v1 90 %, v2 10 % + mirror 100 %"
    assert share_words(dataclasses.replace(canary, candidate=0)) == "v1 100 %"
    assert share_words(dataclasses.replace(canary, stable=0)) == "nothing stable"
    assert client_words(good()) == "160 requests/s, 0 errors, p99 9.0 ms"


class FakeStack:
    """Director and Airflow behind one transport; `broken` makes both answer 503."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []
        self.epoch = "a"
        self.broken = False
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        if self.broken:
            return httpx.Response(503)
        return httpx.Response(200, json=self._answer(request))

    def _answer(self, request: httpx.Request) -> dict[str, Any]:
        if request.url.path == "/auth/token":
            return {"access_token": "t"}
        if request.url.path.endswith("/observations"):
            rows = [row for row in self.rows if row[0] > int(request.url.params["after"])]
            return {"epoch": self.epoch, "last": rows[-1][0] if rows else 0, "rows": rows}
        if request.url.path.endswith("/taskInstances"):
            return {"task_instances": [{"task_id": "claim", "state": "running", "start_date": "2026-11-22T06:00:00.5Z", "end_date": None}]}
        return {"stable": {"version": 1}, "candidate": None, "split": None, "shadow_permille": 0}


def watch_of(stack: FakeStack, record: Record, lines: Path) -> Watch:
    transport = httpx.MockTransport(stack)
    director, airflow = Director("http://director", "token", transport), Airflow("http://airflow", "password", transport)
    return Watch(record, model="digits", director=director, airflow=airflow, client_lines=lines)


def test_observations_are_counted_once_and_a_restarted_director_begins_anew(tmp_path: Path) -> None:
    """Looking twice counts nothing twice; a new epoch starts its numbers over and its rows are all new."""
    stack, record = FakeStack(), Record(started_unix_s=START)
    watch = watch_of(stack, record, tmp_path / "none")
    stack.rows = [[1, START, 1, 1, 2.0], [2, START + 1, 2, 0, 2.0]]
    watch.look()
    stack.epoch, stack.rows = "b", [[1, START + 2, 1, 1, 2.0]]
    watch.look()
    assert {version: (each.answered, each.failed) for version, each in record.seen.items()} == {1: (2, 0), 2: (0, 1)}
    assert [share.stable for share in record.shares] == [1, 1]


def test_half_a_line_of_the_client_waits_for_its_other_half(tmp_path: Path) -> None:
    """The client may be in the middle of a line: it is read when it is whole."""
    lines, record = tmp_path / "lines", Record(started_unix_s=START)
    watch = watch_of(FakeStack(), record, lines)
    whole = json.dumps(line(1)) + "\n"
    lines.write_text(whole + whole[:20])
    watch.look()
    assert len(record.lines) == 1
    lines.write_text(whole + whole)
    watch.look()
    assert len(record.lines) == 2


def test_a_service_that_does_not_answer_is_looked_at_again(tmp_path: Path) -> None:
    """Trouble of a moment stops no look; the record goes on when the service is back."""
    stack, record = FakeStack(), Record(started_unix_s=START)
    watch = watch_of(stack, record, tmp_path / "none")
    watch.follow("deliver__digits__v1")
    stack.broken = True
    watch.look()
    assert record.shares == []
    stack.broken = False
    watch.follow("deliver__digits__v1")
    watch.look()
    assert len(record.shares) == 1
    assert [each.task for each in watch.tasks] == ["claim"]


def test_airflow_is_asked_with_a_token_that_is_renewed() -> None:
    """A token that is no longer taken is thrown away, and the next question signs in again."""
    answers = {"/auth/token": httpx.Response(201, json={"access_token": "t"}), "/api/v2/dags/d": httpx.Response(401)}
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return answers[request.url.path]

    airflow = Airflow("http://airflow", "password", httpx.MockTransport(handle))
    with pytest.raises(NotNow):
        airflow.knows("d")
    answers["/api/v2/dags/d"] = httpx.Response(404)
    assert airflow.knows("d") is False
    assert asked == ["/auth/token", "/api/v2/dags/d", "/auth/token", "/api/v2/dags/d"]


def test_a_version_that_is_not_there_is_none_and_trouble_is_not() -> None:
    """404 means there is none; anything else that is no answer is trouble, never a version without tags."""
    status = [404]
    registry = Registry("http://registry", httpx.MockTransport(lambda _: httpx.Response(status[0], json={})))
    assert registry.version("digits", 1) is None
    status[0] = 500
    with pytest.raises(NotNow):
        registry.version("digits", 1)
