"""Shows live what the demo is doing: a table that redraws itself on a terminal, plain lines everywhere else.

`demo.run` calls `show` at every look and `say` for what happened. It reads the record and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from demo.expected import STORY, Expected, Record, Seen, Share, version_row
from demo.services import running_tasks
from demo.watch import Watch

PLAIN_EVERY_S = 2.0
PLAIN_WIDTH = 150
RECENT_LINES = 5  # seconds of traffic that the figures are taken over
COLOURS = {"promoted": "green", "refused": "yellow", "rolled_back": "yellow"}


class Display(Protocol):
    """Where the demo shows itself."""

    def say(self, sentence: str) -> None:
        """Something happened."""

    def show(self, doing: str, watch: Watch | None) -> None:
        """What is going on now; may be called as often as one likes."""

    def close(self) -> None:
        """Nothing more is shown live."""


class PlainLines:
    """For logs and pipes: a line every two seconds."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._shown_unix_s = 0.0

    def say(self, sentence: str) -> None:
        print(f"{clock(self._record)} {sentence}", flush=True)

    def show(self, doing: str, watch: Watch | None) -> None:
        if time.time() - self._shown_unix_s >= PLAIN_EVERY_S:
            self._shown_unix_s = time.time()
            self.say(status(doing, watch, self._record))

    def close(self) -> None:
        """Lines need no ending."""


class LiveTable:
    """For terminals: the story with its figures, and one line of what is happening."""

    def __init__(self, record: Record, screen: Console) -> None:
        self._record = record
        self._live = Live(console=screen, refresh_per_second=4, auto_refresh=False)
        self._live.start()

    def say(self, sentence: str) -> None:
        self._live.console.print(f"{clock(self._record)} {sentence}", markup=False, highlight=False)

    def show(self, doing: str, watch: Watch | None) -> None:
        table = story_table(self._record, STORY)
        table.caption = f"{clock(self._record)} {status(doing, watch, self._record)}"
        self._live.update(table, refresh=True)

    def close(self) -> None:
        self._live.stop()


def console() -> Console:
    """The screen; logs and pipes have no width of their own, and reasons are sentences."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=PLAIN_WIDTH)


def display_for(record: Record) -> Display:
    screen = console()
    return LiveTable(record, screen) if screen.is_terminal else PlainLines(record)


def clock(record: Record) -> str:
    return f"[{time.time() - record.started_unix_s:5.0f} s]"


def status(doing: str, watch: Watch | None, record: Record) -> str:
    """One line: what, which task, whose traffic, and how the client fares."""
    tasks = running_tasks(watch.tasks) if watch else ""
    share = share_words(record.shares[-1]) if record.shares else ""
    return " | ".join(part for part in (doing, tasks, share, client_words(record)) if part)


def share_words(share: Share) -> str:
    if not share.stable:
        return "nothing stable"
    if not share.candidate:
        return f"v{share.stable} 100 %"
    mirror = f" + mirror {share.shadow_permille / 10:g} %" if share.shadow_permille else ""
    return f"v{share.stable} {100 - share.permille / 10:g} %, v{share.candidate} {share.permille / 10:g} %{mirror}"


def client_words(record: Record) -> str:
    recent = record.lines[-RECENT_LINES:]
    if not recent:
        return ""
    span_s = sum(line["span_s"] for line in recent) or 1.0
    slowest = [line["p99_ms"] for line in recent if line["p99_ms"] is not None]
    waiting = f", {record.sum('not_yet_served')} not yet served" if not slowest else f", p99 {max(slowest):.1f} ms"
    return f"{sum(line['requests'] for line in recent) / span_s:.0f} requests/s, {record.sum('errors')} errors{waiting}"


def story_table(record: Record, story: Sequence[Expected]) -> Table:
    """The closing table: one row a version."""
    table = Table(title="Five versions on their way to production", expand=False, title_justify="left")
    for column in ("version", "outcome", "ended at", "why"):
        table.add_column(column, overflow="fold")
    for column in ("seconds", "answered", "client errors"):
        table.add_column(column, justify="right")
    for expected in story:
        table.add_row(*_cells(version_row(expected, record), record.seen.get(expected.version)))
    return table


def _cells(row: dict[str, Any], seen: Seen | None) -> tuple[str, ...]:
    answered = f"{seen.answered:,}" if seen else "0"
    name = f"v{row['version']}, {row['story']}"
    if row["outcome"] is None:
        return name, "", "", "", "", answered, ""
    colour = COLOURS.get(row["outcome"], "red")
    seconds, why = f"{row['registration_to_outcome_s']:.0f}", escape(row["why"])
    return name, f"[{colour}]{row['outcome']}[/]", row["ended_at"], why, seconds, answered, str(row["client_errors"])
