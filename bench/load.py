"""Clients of the lone gateway, on bare sockets: one that asks at a fixed rate, one that asks as fast as it can, one that asks one by one.

    python -m bench.load ADDRESS PER_S

is the first as a process of its own: it asks until its standard input ends, and prints the requests as JSON lists: asked, answered
(monotonic seconds, the same clock in every process), version. Version 0 is an error: no answer, or another than a version's. Nothing is
retried.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bench.lone_gateway import CANDIDATE, MODEL, STABLE, answer_of
from stack.settings import ROOT

CONNECTIONS = 32
AT_ONCE = 64  # requests that are sent before their answers are read
BODY = b'{"inputs": [{"name": "pixels", "shape": [1, 16], "datatype": "FP32", "data": [' + b"0.5, " * 15 + b"0.5]}]}"
REQUEST = b"POST /v2/models/%s/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n%s" % (MODEL.encode(), len(BODY), BODY)
ANSWERS = {STABLE: answer_of(STABLE), CANDIDATE: answer_of(CANDIDATE)}
PATIENCE_S = 10.0


class Asked(NamedTuple):
    """One request; `version` 0 is an error."""

    asked_s: float
    answered_s: float
    version: int


class Steady:
    """A client process that asks until `stop`, which returns what it asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> list[Asked]:
        out, _ = self._process.communicate(timeout=60)
        return [Asked(*row) for row in json.loads(out)]


@contextmanager
def steady(address: str, per_s: float) -> Iterator[Steady]:
    command = [sys.executable, "-m", "bench.load", address, str(per_s)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Steady(process)
    finally:
        process.kill()
        process.wait()


def counted(address: str, requests: int) -> dict[int, int]:
    """How many of so many requests each version answered. Raises when any answer is another than a version's."""
    found = asyncio.run(_counted(address, requests))
    if sum(found.values()) != requests:
        raise RuntimeError(f"of {requests} requests {requests - sum(found.values())} have another answer than a version's")
    return found


async def _counted(address: str, requests: int) -> dict[int, int]:
    each, rest = divmod(requests, CONNECTIONS)
    found = await asyncio.gather(*(_count(address, each + (number < rest)) for number in range(CONNECTIONS)))
    return {version: sum(one[version] for one in found) for version in ANSWERS}


async def _count(address: str, requests: int) -> dict[int, int]:
    reader, writer = await _connected(address)
    total = dict.fromkeys(ANSWERS, 0)
    for start in range(0, requests, AT_ONCE):
        sent = min(AT_ONCE, requests - start)
        writer.write(REQUEST * sent)
        got = await asyncio.wait_for(_read(reader, sent), PATIENCE_S)
        total = {version: number + got.count(ANSWERS[version]) for version, number in total.items()}
    writer.close()
    return total


async def _read(reader: asyncio.StreamReader, answers: int) -> bytes:
    """So many answers, none of which is longer than its first read; an answer's body follows its headers' end."""
    got = b""
    while sum(got.count(b"\r\n\r\n" + each) for each in ANSWERS.values()) < answers:
        more = await reader.read(1 << 20)
        if not more or b"HTTP/1.1 5" in more or b"HTTP/1.1 4" in more:
            return got
        got += more
    return got


async def _connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    return await asyncio.open_connection(host, int(port))


def waits_ms(addresses: list[str], rounds: int) -> list[list[float]]:
    """Milliseconds that one request waits at each address, asked by turns on one connection each."""
    sockets = [_socket(address) for address in addresses]
    waits: list[list[float]] = [[] for _ in addresses]
    for _ in range(rounds):
        for each, found in zip(sockets, waits, strict=True):
            found.append(_wait_ms(each))
    for each in sockets:
        each.close()
    return waits


def _socket(address: str) -> socket.socket:
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _wait_ms(connection: socket.socket) -> float:
    begun_s = time.perf_counter()
    connection.sendall(REQUEST)
    got = b""
    while not got.endswith(ANSWERS[STABLE]):
        more = connection.recv(65536)
        if not more:
            raise RuntimeError("the connection was closed in the middle of an answer")
        got += more
    return (time.perf_counter() - begun_s) * 1000


class _Asker:
    """Asks at a fixed rate over several connections, by turns; an answer that is late makes its connection late, not the others."""

    def __init__(self, address: str, per_s: float) -> None:
        self._address = address
        self._per_s = per_s
        self._begun_s = time.monotonic()
        self.asked: list[Asked] = []

    async def ask_all(self) -> None:
        await asyncio.gather(*(self._ask_by_turns(number) for number in range(CONNECTIONS)))

    async def _ask_by_turns(self, number: int) -> None:
        connection = await _connected(self._address)
        while True:
            await asyncio.sleep(self._begun_s + number / self._per_s - time.monotonic())
            asked_s = time.monotonic()
            version = await _version(*connection)
            self.asked.append(Asked(asked_s, time.monotonic(), version))
            if version == 0:
                connection = await _connected(self._address)
            number += CONNECTIONS


async def _version(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    try:
        writer.write(REQUEST)
        got = await asyncio.wait_for(_read(reader, 1), PATIENCE_S)
    except (OSError, TimeoutError):
        return 0
    return next((version for version, answer in ANSWERS.items() if got.endswith(answer)), 0)


async def _until_input_ends(asker: _Asker) -> None:
    asking = asyncio.create_task(asker.ask_all())
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
    if asking.done():
        asking.result()
    asking.cancel()


def main(arguments: list[str]) -> int:
    asker = _Asker(arguments[0], float(arguments[1]))
    asyncio.run(_until_input_ends(asker))
    print(json.dumps(asker.asked))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
