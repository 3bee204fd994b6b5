"""Finds processes: which are this stack's, and who holds a port. Ends what a killed supervisor left behind.

Every program of the stack carries PENSTOCK_STACK=<state folder> in its environment, and what it starts inherits it; so a process is ours
by what the kernel says of it, not by a pid file that may be stale. `stack.up`, `stack.down` and `stack.services` call it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

MARKER = "PENSTOCK_STACK"
SERVICE = "PENSTOCK_SERVICE"
LOOPBACK = frozenset({"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"})  # noqa: S104 - addresses to look for, not to listen on
SHM = Path("/dev/shm")  # noqa: S108 - where the kernel shows POSIX shared memory, not a place for our files


def ours(state: Path) -> list[psutil.Process]:
    """Processes of the stack with this state folder and all that they started, never the caller or one of its parents.

    A job counts too when only its TASK_OUT tells: it lies below the state folder. PostgreSQL's workers are known by their parent only:
    they write their state over their environment.
    """
    jobs = f"{state}/jobs/"
    marked = _those(lambda environ: environ.get(MARKER) == str(state) or environ.get("TASK_OUT", "").startswith(jobs))
    return list({each.pid: each for root in marked for each in (root, *_started_by(root))}.values())


def leftovers(state: Path, service: str) -> list[psutil.Process]:
    """What an earlier, killed run of one service left behind: its workers, which still hold its port and its memory.

    Jobs of tasks are not among them: the runtime does not hand them the service's mark, and their operator finds them again.
    """
    return _those(lambda environ: environ.get(MARKER) == str(state) and environ.get(SERVICE) == service)


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> list[psutil.Process]:
    """SIGTERM, then after `grace_s` SIGKILL. Returns those that are still there."""
    victims = list(processes)
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5)):
        for process in victims:
            _signal(process, number)
        victims = psutil.wait_procs(victims, timeout=patience_s)[1]
    return [each for each in victims if _is_alive(each)]


def holder_of(port: int) -> str | None:
    """Who listens on a TCP port of loopback, as a phrase with pid and command; None when nobody does."""
    for connection in psutil.net_connections(kind="tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr
        if listens and listens.port == port and listens.ip in LOOPBACK:
            return _describe(connection.pid)
    return None


def listens(pid: int, port: int) -> bool:
    """Whether this process, or one that it started, listens on a TCP port. What a killed run left behind may still answer there."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return any(_listens(each, port) for each in (root, *_started_by(root)))
    return False


def remove_shared_memory(prefix: str) -> list[str]:
    """Removes regions in /dev/shm whose name starts so; returns their names."""
    found = shared_memory(prefix)
    for region in found:
        region.unlink(missing_ok=True)
    return [each.name for each in found]


def shared_memory(prefix: str) -> list[Path]:
    """Regions in /dev/shm that this user may remove and whose name starts so."""
    return [each for each in SHM.glob("*") if each.name.startswith(prefix) and os.access(each, os.W_OK)]


def _those(holds: Callable[[dict[str, str]], bool]) -> list[psutil.Process]:
    family = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [each for each in psutil.process_iter() if each.pid not in family and holds(_environ(each))]


def _started_by(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _listens(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in process.net_connections(kind="tcp"))
    return False


def _environ(process: psutil.Process) -> dict[str, str]:
    """Empty for other users' processes, kernel threads and zombies: none of them is ours to end."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        words = " ".join(psutil.Process(pid).cmdline()).split()
        return f"pid {pid} ({' '.join(words)[:160]})"
    except psutil.Error:
        return f"pid {pid}"


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
