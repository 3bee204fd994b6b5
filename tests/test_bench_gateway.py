"""bench.gateway: what counts as late, as an error and as an exact share."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from gateway_fixtures import wait_until
from scipy.stats import chisquare

from bench import gateway, load
from bench.load import Asked
from bench.lone_gateway import answer_of


def asked(asked_s: float, version: int) -> Asked:
    return Asked(asked_s, asked_s + 0.01, version)


def test_what_the_candidate_serves_after_the_acknowledgement_is_late():
    """Sent inside of a quiet span counts, also with an answer after it; before, between and by stable does not."""
    requests = [asked(0.5, 2), asked(1.0, 2), asked(1.999, 2), asked(2.0, 2), asked(1.5, 1), asked(3.5, 0), asked(3.5, 2), asked(9, 2)]
    assert gateway.served_within(requests, [(1.0, 2.0), (3.0, 4.0)]) == 3


@pytest.mark.parametrize(("served", "requests", "share"), [(100, 100_000, 0.001), (131, 100_000, 0.001), (49_500, 100_000, 0.5)])
def test_the_test_of_shares_is_pearsons(served, requests, share):
    """The p-value of two cells, as scipy has it."""
    expected = [requests * share, requests * (1 - share)]
    assert gateway.chi2_p(served, requests, share) == pytest.approx(chisquare([served, requests - served], expected).pvalue)


@pytest.fixture
def server() -> Iterator[tuple[str, list[bytes]]]:
    """Answers each request with the next of the given bodies, cut in the middle; the last one for ever."""
    bodies: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=_serve, args=(listener, bodies), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", bodies


def _serve(listener: socket.socket, bodies: list[bytes]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, bodies), daemon=True).start()


def _answer(connection: socket.socket, bodies: list[bytes]) -> None:
    with closing(connection), suppress(ConnectionError):
        _answer_all(connection, bodies)


def _answer_all(connection: socket.socket, bodies: list[bytes]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting = b""
    while more := connection.recv(65536):
        waiting += more
        for _ in range(waiting.count(load.REQUEST)):
            body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
            status = b"200 OK" if body in load.ANSWERS.values() else b"503 Unavailable"
            answer = b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
            connection.sendall(answer[:30])
            connection.sendall(answer[30:])
        waiting = waiting[waiting.count(load.REQUEST) * len(load.REQUEST) :]


def test_every_answer_is_counted_for_its_version(server):
    """Whole batches, wherever the packets are cut."""
    address, bodies = server
    bodies += [answer_of(2)] * 30 + [answer_of(1)]
    assert load.counted(address, 1000) == {1: 970, 2: 30}


def test_an_answer_that_is_no_versions_is_no_count(server):
    """A refusal ends the measurement; nothing is counted around it."""
    address, bodies = server
    bodies += [answer_of(1)] * 10 + [b"no"]
    with pytest.raises(RuntimeError, match="another answer than a version's"):
        load.counted(address, 1000)


def test_the_steady_client_counts_errors_and_answers(server):
    """An answer of no version is an error of version 0, asked once and not again; the rest is timed."""
    address, bodies = server
    bodies += [answer_of(1), b"no", b"no", *[answer_of(2)] * 200]
    with load.steady(address, 1000) as client:
        wait_until(lambda: len(bodies) == 1, "200 requests")
        rows = client.stop()
    assert [sum(each.version == version for each in rows) for version in (0, 1)] == [2, 1]
    assert all(each.asked_s < each.answered_s for each in rows)


def test_waiting_is_measured_by_turns(server):
    """As many waits for each address as rounds."""
    address, bodies = server
    bodies.append(answer_of(1))
    assert [len(each) for each in load.waits_ms([address, address], 5)] == [5, 5]
