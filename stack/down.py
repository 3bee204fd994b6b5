"""Takes the local stack down, gracefully first; leaves no process and no shared memory of it. Data and logs stay.

With it go the stacks whose state folders lie directly below its own: those of the demo, the bench and the whole-system tests.

`make down`, the demo and the tests call `take_down`. Doing it twice, or with nothing up, is fine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from stack import processes, supervisor
from stack.settings import SUBSTACKS, Settings
from stack.up import NotUp, Say, make_folders, only_one, shared_memory_prefix

WAIT_S = 40  # above every program's own time to stop
LAST = "postgres"  # the others still write to it while they stop


def take_down(settings: Settings, say: Say = print) -> None:
    """Raises `NotUp` when a process will not end."""
    for inner in _stacks_below(settings):
        take_down(inner, say)
    make_folders(settings)
    with only_one(settings):
        if supervisor.is_alive(settings):
            _stop_programs(settings)
            supervisor.shut_down(settings)
            _wait(lambda: not supervisor.is_alive(settings), 10)
        left = processes.ours(settings.state)
        if stubborn := processes.end(left, grace_s=5):
            raise NotUp(f"pid {stubborn[0].pid} does not end, not even by SIGKILL: restart the machine")
        for name in (settings.supervisor_socket, settings.run / "supervisord.pid"):
            name.unlink(missing_ok=True)
        processes.remove_shared_memory(shared_memory_prefix(settings))
    say(f"the stack is down; its data stays in {settings.state}")


def _stacks_below(settings: Settings) -> list[Settings]:
    """Those that have a process or shared memory; only their folder tells them from this one, whatever ports they were given."""
    inner = [dataclasses.replace(settings, state=settings.state / name) for name in SUBSTACKS if settings.state.name not in SUBSTACKS]
    return [each for each in inner if processes.ours(each.state) or processes.shared_memory(shared_memory_prefix(each))]


def _stop_programs(settings: Settings) -> None:
    """All at once, so that it takes as long as the slowest; the database last."""
    alive = [name for name, row in supervisor.states(settings).items() if row["statename"] in supervisor.ALIVE]
    for name in alive:
        if name != LAST:
            supervisor.stop(settings, name, wait=False)
    _wait(lambda: all(name == LAST for name in _not_stopped(settings)), WAIT_S)
    supervisor.stop(settings, LAST, wait=True)


def _not_stopped(settings: Settings) -> list[str]:
    gone = {"STOPPED", "EXITED", "FATAL"}
    return [name for name, row in supervisor.states(settings).items() if row["statename"] not in gone]


def _wait(holds: Callable[[], bool], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.1)
