"""The same world in containers: `World` on docker-compose.yaml, with what one does to containers in the place of processes.

The container tests and `bench.containers` use it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bench.world import BUSY, MODEL, World
from demo.stage import ContainerStage
from stack.docker_host import HostTrouble


class ContainerWorld(World):
    """One compose project. Its policy is for a busy machine, and archives two versions."""

    delivery_s = 720.0  # each task is a container that starts

    def __init__(self, environ: Mapping[str, str], name: str) -> None:
        super().__init__(environ, name, (*BUSY, ("\n[retrain]", "\n[archive]\nversions = 2\n\n[retrain]")), ContainerStage)
        stage = self.stage
        assert isinstance(stage, ContainerStage)
        self.host = stage.host

    @contextmanager
    def killed(self, service: str) -> Iterator[None]:
        """SIGKILL for a service, which nobody starts again meanwhile; then `up`."""
        self.host.compose("kill", service, quiet=True)
        try:
            yield
        finally:
            self.host.compose("up", "-d", "--wait", "--no-recreate", quiet=True)

    def command(self, *words: str) -> int:
        """`docker compose run --rm penstock ...`, given by a user called ada; 0 or 1."""
        try:
            self.host.compose("run", "--rm", "-T", "penstock", *words, "--who", "ada", quiet=True)
        except HostTrouble:
            return 1
        return 0

    def server(self, number: int) -> str:
        """Name of the container that serves a version."""
        return f"{self.host.project}-{MODEL}--v{number}"

    def crash_server(self, number: int) -> None:
        """SIGKILL for the server's process, as the kernel does it for want of memory: the engine was not asked to stop anything."""
        os.kill(self._state(number)["Pid"], signal.SIGKILL)

    def started_at(self, number: int) -> str:
        """When the engine last started the version's server."""
        return str(self._state(number)["StartedAt"])

    def _state(self, number: int) -> dict[str, Any]:
        (row,) = json.loads(self.host.docker("inspect", self.server(number), quiet=True))
        state: dict[str, Any] = row["State"]
        return state

    def until_answered_more(self, count: int) -> None:
        """Waits until the client, which no part of the system carries, has had so many more answers."""
        seen = self._answers()
        self.until(lambda: self._answers() >= seen + count or None, f"{count} more answers", 60)

    def _answers(self) -> int:
        return sum(int(line["ok"]) for line in self.client_lines())

    def containers(self, label: str) -> list[str]:
        """Names of the project's containers, ended ones too, that carry a label."""
        words = ("--filter", f"label=penstock.project={self.host.project}", "--filter", f"label={label}", "--format", "{{.Names}}")
        return self.host.docker("ps", "-a", *words, quiet=True).split()

    def memory_gib(self) -> float:
        """Of all containers of the project now, as the engine's `stats` tells it."""
        own = self.host.docker("ps", "-q", "--filter", f"label=com.docker.compose.project={self.host.project}", quiet=True).split()
        started = self.host.docker("ps", "-q", "--filter", f"label=penstock.project={self.host.project}", quiet=True).split()
        lines = self.host.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", *own, *started, quiet=True).splitlines()
        return sum(_gib(line.partition("/")[0].strip()) for line in lines)

    def timed_up(self) -> float:
        """Seconds that `up` takes with all data and images present, after a `down` that keeps them."""
        self.host.down()
        start = time.monotonic()
        self.host.up()
        return time.monotonic() - start


UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _gib(text: str) -> float:
    number = text.rstrip("BKMGi")
    return float(number) * UNITS[text[len(number) :]] / 2**30
