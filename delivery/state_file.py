"""The director's state on disk: who serves each model, and the lock that keeps a second director away from it.

`delivery.director` opens it, `delivery.switchboard` reads it at start and writes it with every change that must survive. It knows no lease:
those end with the director.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from delivery import gateway, traffic
from delivery.traffic import ModelTraffic


class Taken(RuntimeError):
    """Another director works on this state. Worth a retry when that one has ended."""


class StateFile:
    """The durable traffic of every model."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, ModelTraffic]:
        """Raises `ValueError` on a file that cannot be understood: better no director than one that forgets what is stable."""
        if not self._path.exists():
            return {}
        return traffic.load(json.loads(self._path.read_bytes()))

    def write(self, models: dict[str, ModelTraffic]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        gateway.write_by_rename(self._path, json.dumps(traffic.dump(models), indent=1).encode())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else has the folder inside the block. The kernel gives it free when the process ends, however it ends.

        Raises `Taken` with the other's process id.
        """
        lock = self._path.with_name("lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a+") as file:
            _take(file.fileno(), lock)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _take(descriptor: int, lock: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read_text() or "that has just begun"
        raise Taken(f"the state in {lock.parent} is in the hands of another director, process {holder}; stop that one first") from None
