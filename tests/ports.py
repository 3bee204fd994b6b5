"""Ports of this machine for the servers of tests."""

import contextlib
import itertools
import os
import secrets
import socket
from collections.abc import Iterator

FIRST, LAST = 20_000, 32_000
"""Below the ports that the kernel gives to connections: another test's load could be given a port that was free a moment ago."""


def _of_this_process() -> Iterator[int]:
    """Round and round this worker's own share, so that no two workers name one port, nor one worker the same port twice in a row. It begins
    anywhere in it: another suite may run on this machine.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (LAST - FIRST) // workers
    begin = FIRST + worker * share
    at = secrets.randbelow(share)
    return itertools.cycle([*range(begin + at, begin + share), *range(begin, begin + at)])


_ports = _of_this_process()


def free_port() -> int:
    return next(port for port in _ports if _is_free(port))


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    while True:
        found = [free_port() for _ in range(count)]
        if found[-1] - found[0] == count - 1:
            return found[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
