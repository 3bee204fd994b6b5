"""The load client, what it costs, and the processes that it and the null server are: against the null server and servers that misbehave."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from types import SimpleNamespace

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2

from validation import child as children
from validation import client_limits as limits
from validation import load_client as clients
from validation.child import child
from validation.client_limits import client_limits
from validation.load_client import GRPC_METHOD, Answers, ClientTrouble, Process, Target, load_client
from validation.null_server import BODY, HTTP_ANSWER

pytestmark = pytest.mark.timeout(60)  # for waits on what never comes

REQUEST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n"
MESSAGE = service_pb2.ModelInferRequest(model_name="m").SerializeToString()
REQUESTS = {"http": REQUEST, "grpc": MESSAGE}
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def client():
    with load_client() as running:
        yield running


@pytest.fixture(scope="module")
def ports():
    """Of a null server for each protocol."""
    with ExitStack() as stack:
        commands = {protocol: [sys.executable, "-m", "validation.null_server", protocol] for protocol in REQUESTS}
        servers = {name: stack.enter_context(child(command, stdout=subprocess.PIPE)) for name, command in commands.items()}
        yield {name: int(server.stdout.readline()) for name, server in servers.items()}


def null(ports, protocol):
    return Target(protocol=protocol, address=f"127.0.0.1:{ports[protocol]}", requests=(REQUESTS[protocol],))


@pytest.fixture(params=["http", "grpc"])
def nothing(client, ports, request):
    """The name under which the client knows a null server."""
    client.open(request.param, null(ports, request.param))
    yield request.param
    client.close(request.param)


def same_request(n):
    return np.zeros(n, dtype=int)


# In the client's own process, on the null server


def test_an_open_load_is_answered_in_full(client, nothing):
    """One entry a query in order of the due times, none sent before it was due or answered before it was sent."""
    due_s = np.arange(100) / 1000
    answers = client.send(nothing, due_s, same_request(100))
    assert (answers.due_s.tolist(), answers.errors) == (due_s.tolist(), {})
    assert (answers.late_s >= -1e-6).all()  # a loop's clock may be early by its resolution
    assert (answers.done_s > answers.sent_s).all()
    assert answers.latency_s.tolist() == (answers.done_s - due_s).tolist()
    assert answers.cpu_s > 0


def test_a_closed_load_is_answered_in_full(client, nothing):
    """Every query is due when it is sent, also when fewer are asked than may be under way."""
    for queries, concurrency in ((50, 4), (2, 16)):
        answers = client.send_closed(nothing, queries, concurrency)
        assert (len(answers.due_s), answers.errors) == (queries, {})
        assert (answers.sent_s >= answers.due_s).all()
        assert (answers.done_s > answers.sent_s).all()


@pytest.mark.parametrize("protocol", REQUESTS)
def test_a_name_can_be_closed_twice_and_opened_again(client, ports, protocol):
    """What is hung up is forgotten, and what was never there is hung up already."""
    for _ in range(2):
        client.open("again", null(ports, protocol))
        assert client.send("again", np.zeros(3), same_request(3)).errors == {}
        client.close("again")
        client.close("again")


@contextmanager
def silent_port():
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_an_address_where_nobody_listens_is_trouble(client, nothing):
    """Said with the address; the client goes on with its other servers."""
    with silent_port() as address, pytest.raises(ClientTrouble, match=f"cannot connect to {address}"):
        client.open("nobody", Target(protocol="http", address=address, requests=(REQUEST,)))
    assert client.send(nothing, np.zeros(1), same_request(1)).errors == {}


async def test_a_grpc_address_where_nobody_listens_is_trouble(monkeypatch):
    """A channel that does not become ready in the time for an answer."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.05)
    with silent_port() as address, pytest.raises(ClientTrouble, match=f"cannot connect to {address} within 0.05 s"):
        await Process().open("nobody", Target(protocol="grpc", address=address, requests=(MESSAGE,)))


# Servers that misbehave


class Desk:
    """An HTTP server's answers, held until `release` is set; `enough` is set when that many requests have come."""

    def __init__(self, enough=1):
        self._enough = enough
        self.came = self.connections = self.under_way = self.most_under_way = 0
        self.enough, self.release = asyncio.Event(), asyncio.Event()
        self.served = {}

    async def __call__(self, reader, writer):
        self.connections += 1
        self.served[asyncio.current_task()] = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                await self._hold()
                if not await self.answer(request, writer):
                    break
        writer.close()

    async def _hold(self):
        self.came += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.came == self._enough:
            self.enough.set()
        await self.release.wait()
        self.under_way -= 1

    async def answer(self, request, writer):
        """Whether the connection is kept."""
        writer.write(GOOD)
        await writer.drain()
        return True


@asynccontextmanager
async def served(desk, requests=(REQUEST,)):
    """The desk's address, as a target."""
    server = await asyncio.start_server(desk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Target(protocol="http", address=f"127.0.0.1:{port}", requests=requests)
    finally:
        desk.release.set()
        server.close()
        for writer in desk.served.values():
            writer.close()
        await asyncio.gather(*desk.served)


class Here:
    """The client process's work, done in the test's own loop, where its constants can be changed."""

    def __init__(self):
        self._process = Process()

    async def open(self, target):
        await self._process.open("it", target)

    async def close(self):
        await self._process.close("it")

    async def send(self, due_s, picks=None):
        return Answers(**await self._process.send("it", due_s, same_request(len(due_s)) if picks is None else picks))

    async def send_closed(self, queries, concurrency):
        return Answers(**await self._process.send_closed("it", queries, concurrency))


@asynccontextmanager
async def here(desk, requests=(REQUEST,)):
    async with served(desk, requests) as target:
        asks = Here()
        await asks.open(target)
        yield asks
        await asks.close()


class Worded(Desk):
    """Answers with a status and words."""

    async def answer(self, request, writer):
        words = b"out of memory on " + request.split()[1]
        status = b"500 Internal Server Error" if b"bad" in words else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(words), words))
        return True


async def test_a_bad_status_is_an_error_with_its_words(client):
    """Of exactly the queries whose requests were picked; their latency is infinite, and the others' is not."""
    desk = Worded()
    desk.release.set()
    requests = tuple(REQUEST.replace(b"/v2/models/m/infer", path) for path in (b"/good", b"/bad", b"/bad2"))
    async with served(desk, requests) as target:
        await asyncio.to_thread(client.open, "worded", target)
        answers = await asyncio.to_thread(client.send, "worded", np.arange(5) / 1000, np.array([0, 2, 0, 1, 0]))
        await asyncio.to_thread(client.close, "worded")
    assert answers.errors == {1: "status 500: out of memory on /bad2", 3: "status 500: out of memory on /bad"}
    assert np.isinf(answers.latency_s).tolist() == [False, True, False, True, False]


async def test_long_words_are_cut():
    """An answer of megabytes that tells of an error does not end up in the evidence."""

    class Talking(Desk):
        async def answer(self, request, writer):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
            return True

    desk = Talking()
    desk.release.set()
    async with here(desk) as asks:
        answers = await asks.send(np.zeros(2))
    assert set(answers.errors.values()) == {"status 400: " + "x" * clients.SHOWN_BYTES}


class Breaking(Desk):
    """Hangs up in the middle of every second answer."""

    answers = 0

    async def answer(self, request, writer):
        self.answers += 1
        broken = self.answers % 2 == 1
        writer.write(GOOD[:-9] if broken else GOOD)
        await writer.drain()
        return not broken


async def test_a_connection_that_breaks_is_an_error_and_the_next_query_goes(monkeypatch):
    """The one query on it has failed; for the next one a new connection is made."""
    monkeypatch.setattr(clients, "CONNECTIONS", 1)
    desk = Breaking()
    desk.release.set()
    async with here(desk) as asks:
        answers = await asks.send_closed(6, 1)
    assert answers.errors == dict.fromkeys((0, 2, 4), "the connection broke: closed by the server")
    assert desk.connections == 4


async def test_what_is_no_http_is_an_error():
    """A server of something else fails each query, with the parser's words."""

    class Other(Desk):
        async def answer(self, request, writer):
            writer.write(b"220 mail.example ESMTP\r\n")
            return True

    desk = Other()
    desk.release.set()
    async with here(desk) as asks:
        answers = await asks.send_closed(3, 1)
    assert set(answers.errors) == {0, 1, 2}
    assert all(each.startswith("no HTTP answer: ") for each in answers.errors.values())


async def test_an_answer_that_ends_its_connection_is_good():
    """A server that keeps nothing alive is answered for all the same."""

    class Closing(Desk):
        async def answer(self, request, writer):
            writer.write(GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            return False

    desk = Closing()
    desk.release.set()
    async with here(desk) as asks:
        assert (await asks.send_closed(20, 3)).errors == {}
    assert desk.connections >= 20


async def test_a_stall_makes_every_query_late_that_was_due_meanwhile(client):
    """A latency counts from the due time: no answer came before the last was sent, so each was late at least by the rest of the load."""
    desk, due_s = Desk(enough=40), np.arange(40) / 1000
    async with served(desk) as target:
        await asyncio.to_thread(client.open, "stalled", target)
        load = asyncio.create_task(asyncio.to_thread(client.send, "stalled", due_s, same_request(40)))
        await desk.enough.wait()
        desk.release.set()
        answers = await load
        await asyncio.to_thread(client.close, "stalled")
    assert answers.errors == {}
    assert answers.done_s.min() >= answers.sent_s.max()
    assert (answers.latency_s >= due_s[-1] - due_s).all()


async def test_late_answers_hold_no_later_query_back():
    """All queries of an open load are sent although none was answered: more connections are opened as they are needed."""
    queries = 3 * clients.CONNECTIONS
    desk = Desk(enough=queries)
    async with here(desk) as asks:
        load = asyncio.create_task(asks.send(np.arange(queries) / 2000))
        await desk.enough.wait()
        assert (desk.came, desk.under_way, load.done()) == (queries, queries, False)
        desk.release.set()
        assert (await load).errors == {}


async def test_more_queries_than_connections_wait_and_are_answered(monkeypatch):
    """Beyond the most connections, those opened before the clock ran included, a query waits, and its wait counts as latency."""
    monkeypatch.setattr(clients, "MOST_CONNECTIONS", 12)
    desk = Desk(enough=12)
    async with here(desk) as asks:
        load = asyncio.create_task(asks.send(np.zeros(60)))
        await desk.enough.wait()
        desk.release.set()
        answers = await load
    assert (answers.errors, desk.came) == ({}, 60)
    assert desk.connections <= 12
    assert answers.late_s[-1] >= answers.done_s.min()


async def test_a_server_that_never_answers_gives_errors(monkeypatch):
    """After the time for an answer, whether the load is open or closed, sent or still waiting."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(clients, "MOST_CONNECTIONS", 4)
    async with here(Desk()) as asks:
        for load in (asks.send(np.zeros(30)), asks.send_closed(30, 4)):
            answers = await load
            assert answers.errors == dict.fromkeys(range(30), "no answer within 0.05 s")
            assert np.isinf(answers.done_s).all()


async def test_an_answer_after_its_time_does_not_count_for_the_next_load(monkeypatch):
    """The first word on a query counts: what comes when its load was given up changes nothing."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.05)
    desk = Desk()
    async with here(desk) as asks:
        first = await asks.send(np.zeros(3))
        monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 30.0)
        desk.release.set()
        second = await asks.send(np.zeros(3))
    assert (set(first.errors), second.errors) == ({0, 1, 2}, {})
    assert np.isinf(first.done_s).all()


async def test_a_closed_load_never_has_more_under_way_than_it_may():
    """The server counts: three at once, and of twenty never a fourth."""
    desk = Desk(enough=3)
    async with here(desk) as asks:
        load = asyncio.create_task(asks.send_closed(20, 3))
        await desk.enough.wait()
        desk.release.set()
        assert (await load).errors == {}
    assert (desk.came, desk.most_under_way) == (20, 3)


@asynccontextmanager
async def grpc_server(infer):
    """The target of a server that answers ModelInfer with `infer`."""
    server = grpc.aio.server()
    service, method = GRPC_METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(infer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asks = Here()
    await asks.open(Target(protocol="grpc", address=f"127.0.0.1:{port}", requests=(MESSAGE, b"bad")))
    yield asks
    await asks.close()
    await server.stop(None)


async def test_a_grpc_status_is_an_error_with_its_words():
    """The code's name and what the server says, of the queries that it refused."""

    async def infer(request, context):
        if request == b"bad":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        return b""

    async with grpc_server(infer) as asks:
        answers = await asks.send(np.zeros(4), np.array([0, 1, 0, 1]))
    assert answers.errors == dict.fromkeys((1, 3), "RESOURCE_EXHAUSTED: the queue is full")


async def test_a_grpc_server_that_never_answers_gives_errors(monkeypatch):
    """After the time for an answer, and none of the queries held another back."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.1)

    async def infer(request, context):
        await asyncio.Event().wait()

    async with grpc_server(infer) as asks:
        answers = await asks.send(np.zeros(10))
    assert set(answers.errors) == set(range(10))
    assert not np.isnan(answers.sent_s).any()


# A client that is gone


def running_clients():
    alive = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    return {each.pid for each in alive if "validation.load_client" in each.cmdline()}


async def test_a_client_that_is_killed_is_trouble():
    """In the middle of a load, and at every order after it."""
    desk, others = Desk(), running_clients()
    async with served(desk) as target:
        with load_client() as doomed:
            (pid,) = running_clients() - others
            await asyncio.to_thread(doomed.open, "it", target)
            load = asyncio.create_task(asyncio.to_thread(doomed.send, "it", np.zeros(1), same_request(1)))
            await desk.enough.wait()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ClientTrouble, match="ended in the middle of 'send'"):
                await load
            with pytest.raises(ClientTrouble, match="ended in the middle of 'close'"):
                doomed.close("it")


def test_a_client_ends_with_its_block():
    """Nothing of it is left, and what it was told to do is over."""
    others = running_clients()
    with load_client():
        assert len(running_clients() - others) == 1
    assert running_clients() == others


# What the client costs


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_clients_limits_are_measured(client, monkeypatch, protocol):
    """Numbers above nothing, in order, and a line for people; the null server is gone from the client afterwards."""
    monkeypatch.setattr(limits, "CEILING_QUERIES", 100)
    monkeypatch.setattr(limits, "MOST_SECONDS", 0.05)
    found = client_limits(client, protocol, 1000.0, np.random.default_rng(1))
    assert 0 < found.floor_p50_ms <= found.floor_p99_ms
    assert found.slip_p99_ms <= found.floor_p99_ms
    assert found.ceiling_rps > 0
    assert f"floor {found.to_dict()['floor_p50_ms']:.2f} ms" in str(found)


def test_a_null_server_that_does_not_start_is_trouble(client, monkeypatch):
    """The measurement cannot be had; no number is made up."""
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ClientTrouble, match="null server did not start"):
        client_limits(client, "http", 1000.0, np.random.default_rng(1))


@pytest.mark.parametrize("load", ["send", "send_closed"])
def test_a_null_server_that_fails_is_trouble(load):
    """An error of a server that cannot err says that the client or the machine is at fault."""
    column = np.ones(2)
    good, bad = (Answers(due_s=column, sent_s=column, done_s=column, errors=errors, cpu_s=1.0) for errors in ({}, {1: "broke"}))
    fake = SimpleNamespace(**{name: lambda *_, answers=bad if name == load else good: answers for name in ("send", "send_closed")})
    with pytest.raises(ClientTrouble, match="the null server failed: broke"):
        limits._measured(fake, 2.0, np.random.default_rng(1))


def test_the_null_server_answers_each_whole_request_once(ports):
    """Two requests in a row, in pieces that end nowhere in particular, are two answers of the same few bytes."""
    body = b"x" * 1000
    request = REQUEST.replace(b"Content-Length: 0", b"Content-Length: 1000") + body
    with socket.create_connection(("127.0.0.1", ports["http"])) as connection:
        sent = request * 2
        for place in range(0, len(sent), 300):
            connection.sendall(sent[place : place + 300])
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            assert answers.read() == HTTP_ANSWER * 2
    assert HTTP_ANSWER.endswith(BODY)


def test_the_null_server_speaks_tritons_grpc(ports):
    """Its answer is a ModelInferResponse."""
    with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        answer = channel.unary_unary(GRPC_METHOD)(MESSAGE, timeout=30)
    assert service_pb2.ModelInferResponse.FromString(answer).model_name == "null"


# Processes that a gate starts


def test_a_child_has_a_session_of_its_own_and_no_input():
    """A terminal's interrupt does not reach it, and it waits for nobody to type."""
    with child(["cat"], stdout=subprocess.PIPE) as process:
        assert os.getsid(process.pid) == process.pid
        assert process.stdout.read() == b""


FAMILY = "sleep 1000 & echo ready; wait"  # all hold the pipe: it ends when the last of them has


@pytest.mark.parametrize("ends", [FAMILY, "sleep 1000 & echo ready", f"trap '' TERM; {FAMILY}"], ids=["living", "ended", "stubborn"])
def test_a_childs_whole_group_ends_with_the_block(monkeypatch, ends):
    """What it started goes with it: also when it had ended before, and when it does not listen."""
    monkeypatch.setattr(children, "STOP_TIMEOUT_S", 0.1)
    with child(["sh", "-c", ends], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
    assert process.stdout.read() == b""
    assert process.returncode is not None


def test_a_child_may_end_in_order():
    """It is asked before it is made to."""
    with child(["sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; sleep 1000 & wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
    assert (process.stdout.read(), process.returncode) == (b"bye\n", 3)


def test_a_child_ends_when_its_block_raises():
    """Trouble is no reason to leave something behind."""
    with pytest.raises(ClientTrouble), child(["sleep", "1000"]) as process:
        raise ClientTrouble("of any kind")
    assert process.returncode == -signal.SIGTERM


GATE = """
import signal, sys
from validation.child import child
with child([sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]):
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_a_gate_that_is_killed(number):
    """Whatever ends the gate, also what it cannot see coming: the kernel ends the child, and with it the pipe that both hold."""
    with subprocess.Popen([sys.executable, "-c", GATE], stdout=subprocess.PIPE) as gate:
        assert gate.stdout.readline() == b"ready\n"
        gate.send_signal(number)
        assert gate.stdout.read() == b""
    assert gate.returncode == -number


def test_a_child_of_a_parent_that_is_gone_never_runs():
    """Had the gate died between fork and exec, no signal would come any more: the child ends by itself."""
    code = "import os; from validation.child import _die_with; _die_with(os.getpid()); print('runs')"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert (found.returncode, found.stdout) == (1, b"")


def test_the_clients_loop_is_exact():
    """Timers go through select(2): the loop that the client runs in is not the usual one."""
    loop = clients.exact_loop()
    try:
        assert type(loop._selector).__name__ == "SelectSelector"
    finally:
        loop.close()


def test_the_client_obeys_until_the_gate_hangs_up():
    """Its orders end with the connection; no signal is needed."""
    ours, theirs = clients.Pipe()
    served = threading.Thread(target=lambda: asyncio.run(clients.serve(theirs)))
    served.start()
    clients.LoadClient(ours).close("what was never opened")
    ours.close()
    served.join(30)
    assert not served.is_alive()


class Closing(Desk):
    """Hangs up after each answer, as it announces."""

    async def answer(self, request, writer):
        writer.write(GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        return False


async def test_queries_that_wait_survive_connections_that_end(monkeypatch):
    """A connection that ends makes room for a new one, which takes those that wait."""
    monkeypatch.setattr(clients, "MOST_CONNECTIONS", 12)
    desk = Closing(enough=12)
    async with here(desk) as asks:
        load = asyncio.create_task(asks.send(np.zeros(60)))
        await desk.enough.wait()
        desk.release.set()
        assert (await load).errors == {}


async def test_what_was_given_up_is_not_sent_any_more(monkeypatch):
    """The next load has no ghosts of the one before."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(clients, "MOST_CONNECTIONS", 0)
    desk = Desk()
    async with here(desk) as asks:
        await asks.send(np.zeros(30))
        monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 30.0)
        came = desk.came
        desk.release.set()
        await asks.send(np.zeros(1))
        assert desk.came <= came + 1


async def test_an_answer_that_comes_too_late_is_none(monkeypatch):
    """Each query has its own limit, however long the load goes on."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.05)
    desk = Desk(enough=8)
    async with here(desk) as asks:
        load = asyncio.create_task(asks.send(np.arange(8) / 20))
        await desk.enough.wait()
        desk.release.set()
        assert set((await load).errors) >= {0, 1, 2, 3, 4, 5}


async def test_a_closed_load_without_answers_has_infinite_latencies(monkeypatch):
    """Also for queries that were never sent."""
    monkeypatch.setattr(clients, "ANSWER_TIMEOUT_S", 0.05)
    async with here(Desk()) as asks:
        assert np.isinf((await asks.send_closed(30, 4)).latency_s).all()


async def test_times_count_from_the_start():
    """No query of a closed load is sent before the load begins."""
    desk = Desk()
    desk.release.set()
    async with here(desk) as asks:
        assert ((await asks.send_closed(30, 4)).sent_s >= 0).all()
