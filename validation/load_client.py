"""The load client: sends ready-made requests when they are due, and notes when each was due, sent and answered.

Python's own limits must not become the model's latency. So the client is a process of its own that does nothing else: what it sends are
bytes made before the clock runs; answers are not looked into beyond their status; no garbage is collected meanwhile; timers go through
select(2), which knows microseconds (asyncio's usual epoll rounds up to whole milliseconds); and where the machine lets it (root), it has a
higher priority. What is left of its limits is measured on a null server beside every result (`validation.client_limits`).

The load is open unless said otherwise: late answers hold no later request back, and a latency counts from when the request was *due*.
`latency_benchmark` and `tune_serving` use it through `LoadClient`. It knows no models, limits or verdicts.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import os
import resource
import selectors
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any, Protocol

import grpc
import httptools
import numpy as np

from validation.child import child
from validation.in_process import DoesNotRun, InProcessSender, NoProvider

ANSWER_TIMEOUT_S = 10.0
"""A query without an answer for so long has failed."""

PRIORITY = 1  # of sched(7)'s real-time class: it waits for no other program; where the machine does not allow it, the usual one
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
CHANNELS = 2
CONNECTIONS = 8  # opened before the clock runs; more are opened as they are needed,
MOST_CONNECTIONS = 256  # up to so many: select(2) knows 1,024 files
SHOWN_BYTES = 300
HEAD_START_S = 0.01  # between an order and the moment from which due times count


class ClientTrouble(RuntimeError):
    """The client did not do its work; nothing is said about the server. Worth a retry."""


TROUBLES: Mapping[str, type[Exception]] = {each.__name__: each for each in (ClientTrouble, DoesNotRun, NoProvider)}
"""By name: the process knows this module as `__main__`, and its classes are others there."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server at host:port, and the requests for it: whole HTTP requests, or messages of gRPC's ModelInfer, as bytes.

    In process (`validation.in_process`) the address is a model's file, requests are inputs by name, and `provider` says what runs it.
    """

    protocol: str
    address: str
    requests: tuple[Any, ...]
    provider: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One entry a query, in the order in which they were due; seconds from the load's start.

    `done_s` is infinite where `errors` (by the query's place) says why there was no good answer. `cpu_s` is what the client itself took.
    """

    due_s: np.ndarray
    sent_s: np.ndarray
    done_s: np.ndarray
    errors: Mapping[int, str]
    cpu_s: float

    @property
    def late_s(self) -> np.ndarray:
        """How long after its due time each query was sent."""
        late_s: np.ndarray = self.sent_s - self.due_s
        return late_s

    @property
    def latency_s(self) -> np.ndarray:
        """From when each query was due to its answer; infinite where there is none."""
        latency_s: np.ndarray = np.where(np.isinf(self.done_s), np.inf, self.done_s - self.due_s)
        return latency_s


class LoadClient:
    """A running client process. Its methods raise `ClientTrouble` when that process is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self, name: str, target: Target) -> None:
        """Connects to a server under a name. Raises `ClientTrouble` when it does not answer; in process `NoProvider` and `DoesNotRun`."""
        self._ask("open", name, target)

    def close(self, name: str) -> None:
        """Hangs up; done twice it is done once."""
        self._ask("close", name)

    def send(self, name: str, due_s: np.ndarray, picks: np.ndarray) -> Answers:
        """An open load: at `due_s[i]` seconds from now request number `picks[i]`, counted round, whatever became of those before."""
        return self._answers("send", name, due_s, picks)

    def send_closed(self, name: str, queries: int, concurrency: int) -> Answers:
        """A closed load: so many at a time, each sent when one before it was answered; due and sent are the same moment then."""
        return self._answers("send_closed", name, queries, concurrency)

    def _answers(self, *order: Any) -> Answers:
        columns = self._ask(*order)
        return Answers(**columns)

    def _ask(self, *order: Any) -> Any:
        try:
            self._connection.send(order)
            trouble, what = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ClientTrouble(f"the load client ended in the middle of {order[0]!r}; the machine may be short of memory") from error
        if trouble:
            raise TROUBLES[trouble](what)
        return what


@contextmanager
def load_client() -> Iterator[LoadClient]:
    """A client process meanwhile."""
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "validation.load_client", str(theirs.fileno())]
    with ours, child(command, pass_fds=[theirs.fileno()]):
        theirs.close()
        yield LoadClient(ours)


# The process


class Sender(Protocol):
    """Asks one server. `ask` returns at once; the answer is noted in the load that it is given."""

    async def open(self) -> None:
        """Raises `ClientTrouble` when the server is not there."""

    async def close(self) -> None: ...

    def ask(self, load: Load, number: int, request: Any) -> None: ...


@dataclass(kw_only=True)
class Load:
    """What is noted of a load under way; `finished` is set when each query has its answer, or has failed."""

    queries: int
    began_cpu_s: float
    start_s: float
    due_s: list[float]
    sent_s: list[float]
    done_s: list[float]
    finished: asyncio.Future[None]
    errors: dict[int, str] = field(default_factory=dict)
    answered: int = 0

    def sent(self, number: int, at_s: float) -> None:
        self.sent_s[number] = at_s - self.start_s

    def answer(self, number: int, at_s: float, error: str = "") -> None:
        """The first word on a query counts."""
        if not math.isnan(self.done_s[number]):
            return
        if not error and at_s - self.start_s - self.due_s[number] > ANSWER_TIMEOUT_S:
            error = _no_answer()
        self.done_s[number] = math.inf if error else at_s - self.start_s
        if error:
            self.errors[number] = error
        self.answered += 1
        if self.answered == self.queries and not self.finished.done():
            self.finished.set_result(None)

    def give_up(self) -> None:
        for number in range(self.queries):
            self.answer(number, math.inf, _no_answer())


def _no_answer() -> str:
    return f"no answer within {ANSWER_TIMEOUT_S:g} s"


class HttpSender:
    """Connections that are kept alive, each with one request at a time."""

    def __init__(self, target: Target) -> None:
        self._host, _, port = target.address.rpartition(":")
        self._port = int(port)
        self._connections: set[_HttpConnection] = set()
        self._idle: list[_HttpConnection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[Load, int, bytes]] = deque()

    async def open(self) -> None:
        try:
            for _ in range(CONNECTIONS):
                self._idle.append(await self._connect())
        except OSError as error:
            await self.close()
            raise ClientTrouble(f"cannot connect to {self._host}:{self._port}: {error}") from error

    async def close(self) -> None:
        self._waiting.clear()
        for each in self._connections:
            each.transport.abort()
        await asyncio.sleep(0)  # the loop ends them in its next turn; waiting for orders, it takes none
        await asyncio.sleep(0)

    def ask(self, load: Load, number: int, request: bytes) -> None:
        if self._idle:
            self._idle.pop().ask(load, number, request)
        else:
            self._waiting.append((load, number, request))
            self._grow()

    def free(self, connection: _HttpConnection) -> None:
        """Called by a connection that has nothing to do."""
        while self._waiting:
            load, number, request = self._waiting.popleft()
            if not load.finished.done():
                connection.ask(load, number, request)
                return
        self._idle.append(connection)

    def lost(self, connection: _HttpConnection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting:
            self._grow()

    def _grow(self) -> None:
        if len(self._connections) + len(self._opening) < MOST_CONNECTIONS:
            task = asyncio.get_running_loop().create_task(self._connect_one_more())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect_one_more(self) -> None:
        try:
            self.free(await self._connect())
        except OSError as error:
            if self._waiting:
                load, number, _ = self._waiting.popleft()
                load.answer(number, math.inf, f"cannot connect: {error}")

    async def _connect(self) -> _HttpConnection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _HttpConnection(self), self._host, self._port)
        self._connections.add(connection)
        return connection


class _HttpConnection(asyncio.Protocol):
    """One connection; the callbacks named `on_...` are httptools'."""

    transport: asyncio.Transport

    def __init__(self, sender: HttpSender) -> None:
        self._sender = sender
        self._clock = asyncio.get_running_loop().time
        self._query: tuple[Load, int] | None = None
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, load: Load, number: int, request: bytes) -> None:
        self._query = load, number
        load.sent(number, self._clock())
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._note(f"no HTTP answer: {error}")
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        if len(self._body) < SHOWN_BYTES:
            self._body += body[:SHOWN_BYTES]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            return
        if self._query is None:
            self.transport.abort()  # an answer that nobody asked for would be taken for the next one's
            return
        self._note("" if status == 200 else f"status {status}: {self._body[:SHOWN_BYTES].decode(errors='replace')}")
        self._body = b""
        if self._parser.should_keep_alive():
            self._sender.free(self)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sender.lost(self)
        self._note(f"the connection broke: {exc or 'closed by the server'}")

    def _note(self, error: str) -> None:
        if self._query:
            load, number = self._query
            self._query = None
            load.answer(number, self._clock(), error)


class GrpcSender:
    """Multiplexed over a few channels."""

    def __init__(self, target: Target) -> None:
        self._address = target.address
        self._next = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0))
        self._channels = [grpc.aio.insecure_channel(self._address, options=options) for _ in range(CHANNELS)]
        self._calls = [each.unary_unary(GRPC_METHOD) for each in self._channels]  # bytes in, bytes out
        try:
            for each in self._channels:
                await asyncio.wait_for(each.channel_ready(), ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            await self.close()
            raise ClientTrouble(f"cannot connect to {self._address} within {ANSWER_TIMEOUT_S:g} s") from error

    async def close(self) -> None:
        for each in self._channels:
            await each.close()

    def ask(self, load: Load, number: int, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        load.sent(number, loop.time())
        task = loop.create_task(self._call(load, number, request, loop.time))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, load: Load, number: int, request: bytes, clock: Any) -> None:
        error = ""
        try:
            await self._calls[next(self._next) % CHANNELS](request, timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError as trouble:
            error = f"{trouble.code().name}: {str(trouble.details())[:SHOWN_BYTES]}"
        load.answer(number, clock(), error)


SENDERS: Mapping[str, Callable[[Target], Sender]] = {"http": HttpSender, "grpc": GrpcSender, "in_process": InProcessSender}


class Process:
    """What the client process does: one order at a time."""

    def __init__(self) -> None:
        self._targets: dict[str, tuple[Sender, tuple[Any, ...]]] = {}

    async def open(self, name: str, target: Target) -> None:
        sender = SENDERS[target.protocol](target)
        await sender.open()
        self._targets[name] = sender, target.requests

    async def close(self, name: str) -> None:
        if name in self._targets:
            sender, _ = self._targets.pop(name)
            await sender.close()

    async def send(self, name: str, due_s: np.ndarray, picks: np.ndarray) -> dict[str, Any]:
        sender, requests = self._targets[name]
        chosen = [requests[pick % len(requests)] for pick in picks.tolist()]
        load = _begin(due_s.tolist(), HEAD_START_S)
        loop = asyncio.get_running_loop()
        due_at = [load.start_s + each for each in load.due_s]

        def fire(number: int) -> None:
            """Sends one; a client that is behind reads what came in before it sends the next."""
            sender.ask(load, number, chosen[number])
            if number + 1 == load.queries:
                loop.call_at(due_at[number] + ANSWER_TIMEOUT_S, load.give_up)
            elif due_at[number + 1] > loop.time():
                loop.call_at(due_at[number + 1], fire, number + 1)
            else:
                loop.call_soon(fire, number + 1)

        loop.call_at(due_at[0], fire, 0)
        return await _finish(load)

    async def send_closed(self, name: str, queries: int, concurrency: int) -> dict[str, Any]:
        sender, requests = self._targets[name]
        load = _begin([math.nan] * queries)
        loop = asyncio.get_running_loop()
        numbers: Iterator[int] = iter(range(queries))
        answer = load.answer

        def ask_next() -> None:
            if (number := next(numbers, None)) is not None:
                load.due_s[number] = loop.time() - load.start_s
                sender.ask(load, number, requests[number % len(requests)])

        def answered(number: int, at_s: float, error: str = "") -> None:
            answer(number, at_s, error)
            loop.call_soon(ask_next)

        load.answer = answered  # type: ignore[method-assign]
        for _ in range(min(concurrency, queries)):
            loop.call_soon(ask_next)
        while not load.finished.done():
            seen = load.answered
            await asyncio.wait([load.finished], timeout=ANSWER_TIMEOUT_S)
            if load.answered == seen:
                numbers = iter(())
                load.give_up()
        return await _finish(load)


def _begin(due_s: list[float], head_start_s: float = 0.0) -> Load:
    gc.collect()
    loop = asyncio.get_running_loop()
    blank = [math.nan] * len(due_s)
    return Load(
        queries=len(due_s),
        began_cpu_s=_cpu_s(),
        start_s=loop.time() + head_start_s,
        due_s=due_s,
        sent_s=list(blank),
        done_s=list(blank),
        finished=loop.create_future(),
    )


async def _finish(load: Load) -> dict[str, Any]:
    await load.finished
    columns = {name: np.array(getattr(load, name)) for name in ("due_s", "sent_s", "done_s")}
    return {**columns, "errors": load.errors, "cpu_s": _cpu_s() - load.began_cpu_s}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def serve(connection: Connection) -> None:
    """Orders until the gate hangs up. Waiting for the next one blocks the loop: nothing else is to be done then."""
    process = Process()
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("", await getattr(process, name)(*arguments)))
        except tuple(TROUBLES.values()) as trouble:
            connection.send((type(trouble).__name__, str(trouble)))


def main(arguments: Sequence[str]) -> None:
    """Becomes the client process; the argument is the number of the file through which orders come."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    gc.disable()
    with Connection(int(arguments[0])) as connection, asyncio.Runner(loop_factory=exact_loop) as runner:
        runner.run(serve(connection))


def exact_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are exact to the microsecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    main(sys.argv[1:])
