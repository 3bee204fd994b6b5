"""Looks at the running stack and fills the demo's record: client's lines, shares, what the gateway saw, tasks.

`demo.run` calls `look` about every half second while it waits for anything. A service that does not answer just now is looked at again the
next time: the demo's own patience is bounded in `demo.run`, not here.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from demo.expected import Record, Seen, TaskRun
from demo.services import Airflow, Director, NotNow

TASKS_EVERY_S = 1.0


class Watch:
    """Everything below is state of the last look; the history is in the record."""

    def __init__(self, record: Record, *, model: str, director: Director, airflow: Airflow, client_lines: Path) -> None:
        self._record = record
        self._model = model
        self._director = director
        self._airflow = airflow
        self._lines = client_lines
        self._lines_at = 0
        self._epoch, self._after = "", 0
        self._tasks_unix_s = 0.0
        self.run_id = ""  # the delivery to follow, empty for none
        self.tasks: tuple[TaskRun, ...] = ()

    def look(self) -> None:
        self._read_client()
        for part in (self._read_share, self._read_observations, self._read_tasks):
            try:
                part()
            except NotNow:
                continue

    def follow(self, run_id: str) -> None:
        """The delivery whose tasks are shown from now on."""
        self.run_id, self.tasks, self._tasks_unix_s = run_id, (), 0.0

    def _read_client(self) -> None:
        """Whole lines only: the client may be in the middle of writing one."""
        if not self._lines.exists():
            return
        with self._lines.open("rb") as file:
            file.seek(self._lines_at)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._lines_at += len(whole)
        self._record.lines += [json.loads(line) for line in whole.splitlines()]

    def _read_share(self) -> None:
        self._record.shares.append(self._director.share(self._model, time.time()))

    def _read_observations(self) -> None:
        answer = self._director.observations(self._model, self._after)
        if answer["epoch"] != self._epoch:  # the director began anew, and so do its numbers
            self._epoch, self._after = answer["epoch"], 0
            answer = self._director.observations(self._model, 0)
        for _, unix_s, version, ok, *_ in answer["rows"]:
            self._record.seen.setdefault(version, Seen()).add(unix_s, ok=bool(ok))
        self._after = answer["last"]

    def _read_tasks(self) -> None:
        if self.run_id and time.time() - self._tasks_unix_s >= TASKS_EVERY_S:
            self._tasks_unix_s = time.time()
            self.tasks = self._airflow.tasks(f"deliver_{self._model}", self.run_id)
