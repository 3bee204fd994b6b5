"""Processes that a gate starts: sessions of their own, gone with everything they started when the gate ends.

When the gate is killed the kernel ends them, and what they have started is theirs to end (Triton's stubs notice and end themselves).

The private server, the load client and the null server are such. It supervises nothing and knows no protocol.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOP_TIMEOUT_S = 8.0  # shorter than the 10 s after which a task that is told to end is killed
PARENT_DEATH_SIGNAL = 1  # prctl(2)

_libc = ctypes.CDLL(None, use_errno=True)  # loaded here, because nothing may be loaded between fork and exec


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command meanwhile; `options` are `subprocess.Popen`'s. When the gate is killed, the kernel ends the child too."""
    process = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=functools.partial(_die_with, os.getpid()),  # noqa: PLW1509 - one system call, and gates start children before threads
        **{"stdin": subprocess.DEVNULL, **options},
    )
    try:
        yield process
    finally:
        _stop(process)


def _die_with(parent: int) -> None:
    """Runs between fork and exec, and holds through the child's own exec; the parent may have died before the call."""
    _libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, then ends its whole process group: a Python backend's stubs are processes of their own."""
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
