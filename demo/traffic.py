"""The demo's client: steady traffic through the gateway, HTTP and gRPC by turns, every error and every latency counted.

`demo.run` starts it as a process of its own in the environment `stack` before the first delivery and ends it with SIGTERM after the last:

    python -m demo.traffic --gateway 127.0.0.1:18000 --model digits --rows rows.npy --out seconds.jsonl --switch new-scanner

Open loop: request number k is due at start + k / rate, whatever became of the ones before it, and its latency counts from then. Nothing is
retried. Each second appends one JSON line to `--out`; the last line says `"ended": true` and leaves nothing in flight. The file named by
`--switch` holds the per-mille of requests that carry pixels of a new scanner (0 without the file); it is read once a second.

The gateway's refusals "nothing is stable yet", to requests sent before the first success, are counted apart as `not_yet_served`; later
they are errors.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

PIXELS = 64
BRIGHTEST = 16  # of the known scanner
NEW_SCANNER_BRIGHTEST = 20
USERS = 2000  # enough that 1 % of them is a crowd: stickiness moves users, not requests
ERROR_SAMPLES = 5  # a second
UNKNOWN = "unknown"
NOTHING_STABLE = {"unknown-model", "no-stable-version"}  # the gateway's words before and during the first delivery
GRPC_OPTIONS = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Rows = npt.NDArray[np.float32]
Headers = Mapping[str, str]

_answer_headers: contextvars.ContextVar[Headers] = contextvars.ContextVar("answer_headers")  # tritonclient keeps them to itself


class WrongAnswer(Exception):
    """An answer arrived that is not what the model's signature promises."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send where. `rows` has shape (any, 64) float32; `rate_per_s` is the sum over both protocols."""

    gateway: str
    model: str
    rows: Rows
    rate_per_s: float
    timeout_s: float
    out: Path
    switch: Path
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one request. `error` is empty for a good answer."""

    protocol: str
    sent_before_first_success: bool
    latency_ms: float
    version: str = UNKNOWN
    error: str = ""
    no_stable_version: bool = False

    @property
    def not_yet_served(self) -> bool:
        return self.no_stable_version and self.sent_before_first_success


class Sender(Protocol):
    """One protocol: sends one row (1, 64) for one user and returns when the answer is checked; raises what went wrong."""

    protocol: str

    async def send(self, pixels: Rows, user: str) -> None: ...

    async def close(self) -> None: ...


class HttpSender:
    """Open Inference Protocol over HTTP through tritonclient; `HttpClient` only listens in on the answer's headers."""

    protocol = "http"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._client = _HttpClient(plan.gateway, conn_timeout=plan.timeout_s, conn_limit=200)

    async def send(self, pixels: Rows, user: str) -> None:
        given = triton_http.InferInput("pixels", [1, PIXELS], "FP32").set_data_from_numpy(pixels)
        answer = await self._client.infer(self._plan.model, [given], headers={"x-user-id": user})
        _check(answer)

    async def close(self) -> None:
        await self._client.close()


class GrpcSender:
    """Open Inference Protocol over gRPC through tritonclient, gRPC's own retries switched off."""

    protocol = "grpc"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._client = triton_grpc.InferenceServerClient(plan.gateway, channel_args=GRPC_OPTIONS)
        self._client._client_stub = _ListeningStub(self._client._client_stub)  # noqa: SLF001 - no public way to an answer's metadata

    async def send(self, pixels: Rows, user: str) -> None:
        given = triton_grpc.InferInput("pixels", [1, PIXELS], "FP32").set_data_from_numpy(pixels)
        headers = {"x-user-id": user, "x-model": self._plan.model}
        answer = await self._client.infer(self._plan.model, [given], headers=headers, client_timeout=self._plan.timeout_s)
        _check(answer)

    async def close(self) -> None:
        await self._client.close()


class _HttpClient(triton_http.InferenceServerClient):  # type: ignore[misc]
    async def _post(self, *args: Any, **kwargs: Any) -> Any:
        answer = await super()._post(*args, **kwargs)
        _answer_headers.set({name.lower(): value for name, value in answer.headers.items()})
        return answer


class _ListeningStub:
    """Stands before the gRPC stub and keeps the answer's metadata, where the gateway says which version answered."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def ModelInfer(self, **kwargs: Any) -> Any:  # noqa: N802 - the service's own name
        call = self._stub.ModelInfer(**kwargs)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            _answer_headers.set(_metadata(error.initial_metadata(), error.trailing_metadata()))
            raise
        _answer_headers.set(_metadata(await call.initial_metadata()))
        return answer


@dataclass
class Tally:
    """Counts of one line."""

    started: float
    requests: int = 0
    not_yet_served: int = 0
    errors: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    by_version: Counter[str] = field(default_factory=Counter)
    by_protocol: Counter[str] = field(default_factory=Counter)
    error_samples: list[str] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        self.requests += 1
        self.by_protocol[answer.protocol] += 1
        if answer.not_yet_served:
            self.not_yet_served += 1
        elif answer.error:
            self._add_error(answer)
        else:
            self.latencies_ms.append(answer.latency_ms)
            self.by_version[answer.version] += 1

    def line(self, now: float) -> dict[str, Any]:
        """One line of the client's record: counts of the answers that arrived, latencies of the good ones in ms."""
        return {
            "second": int(self.started),
            "span_s": round(now - self.started, 3),
            "requests": self.requests,
            "ok": len(self.latencies_ms),
            "errors": self.errors,
            "not_yet_served": self.not_yet_served,
            "p50_ms": _percentile(self.latencies_ms, 50),
            "p99_ms": _percentile(self.latencies_ms, 99),
            "max_ms": _percentile(self.latencies_ms, 100),
            "by_version": dict(self.by_version),
            "by_protocol": dict(self.by_protocol),
            "error_samples": self.error_samples,
        }

    def _add_error(self, answer: Answer) -> None:
        self.errors += 1
        if len(self.error_samples) < ERROR_SAMPLES:
            self.error_samples.append(f"{answer.protocol}: {answer.error}"[:300])


class Client:
    """Sends by the clock until told to stop, then waits for what is in flight and writes the last line."""

    def __init__(self, plan: Plan, senders: Sequence[Sender]) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)  # noqa: S311 - traffic, not secrets
        self._senders = senders
        self._in_flight: set[asyncio.Task[None]] = set()
        self._tally = Tally(started=time.time())
        self._served = False
        self._new_scanner_permille = 0

    async def run(self, stop: asyncio.Event) -> None:
        with self._plan.out.open("a", encoding="utf-8") as out:
            lines = asyncio.create_task(self._write_lines(out, stop))
            await self._send_by_the_clock(stop)
            await lines
            await asyncio.gather(*self._in_flight)
            self._write(out, ended=True)
        await asyncio.gather(*(sender.close() for sender in self._senders))

    async def _send_by_the_clock(self, stop: asyncio.Event) -> None:
        start, sent = time.perf_counter(), 0
        while not stop.is_set():
            due = start + sent / self._plan.rate_per_s
            if (ahead := due - time.perf_counter()) > 0 and await _set_within(stop, ahead):
                return
            task = asyncio.create_task(self._request(self._senders[sent % len(self._senders)], due))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
            sent += 1

    async def _request(self, sender: Sender, due: float) -> None:
        early = not self._served
        user = f"user-{self._random.randrange(USERS):04d}"
        error = ""
        try:
            await sender.send(self._next_row(), user)
            self._served = True
        except InferenceServerException as refusal:
            error = f"{refusal.status()}: {refusal.message()}"
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        headers = _answer_headers.get({})
        self._tally.add(
            Answer(
                protocol=sender.protocol,
                sent_before_first_success=early,
                latency_ms=(time.perf_counter() - due) * 1e3,
                version=_version(headers),
                error=error,
                no_stable_version=bool(error) and _says_no_stable_version(headers),
            )
        )

    def _next_row(self) -> Rows:
        row = self._plan.rows[self._random.randrange(len(self._plan.rows))].reshape(1, PIXELS)
        bright = self._random.randrange(1000) < self._new_scanner_permille
        return new_scanner(row) if bright else row

    async def _write_lines(self, out: Any, stop: asyncio.Event) -> None:
        parent = os.getppid()
        try:
            while os.getppid() == parent:  # once whoever started this client is gone, nobody would stop it
                if await _set_within(stop, 1 - time.time() % 1):
                    return
                self._new_scanner_permille = read_switch(self._plan.switch)
                self._write(out, ended=False)
        finally:
            stop.set()

    def _write(self, out: Any, *, ended: bool) -> None:
        now = time.time()
        tally, self._tally = self._tally, Tally(started=now)
        state = {"in_flight": len(self._in_flight), "new_scanner_permille": self._new_scanner_permille, "ended": ended}
        out.write(json.dumps(tally.line(now) | state) + "\n")
        out.flush()


def new_scanner(pixels: Rows) -> Rows:
    """The same image as a scanner with 21 grey levels would send it: whole numbers from 0 to 20."""
    return np.round(pixels * (NEW_SCANNER_BRIGHTEST / BRIGHTEST)).astype(np.float32)


def read_switch(path: Path) -> int:
    """Per-mille of requests from the new scanner; 0 while the file does not exist. Raises `ValueError` on anything but 0..1000."""
    if not path.exists():
        return 0
    word = path.read_text().strip()
    if not word.isdecimal() or int(word) > 1000:
        raise ValueError(f"{path} holds {word!r}; expected a whole number from 0 to 1000")
    return int(word)


def _check(answer: Any) -> None:
    label, probabilities = answer.as_numpy("label"), answer.as_numpy("probabilities")
    if label is None or label.size != 1 or not 0 <= label.flat[0] <= 9:
        raise WrongAnswer(f"label is {label!r}, expected one from 0 to 9")
    if probabilities is None or probabilities.shape != (1, 10) or not np.isfinite(probabilities).all():
        raise WrongAnswer(f"probabilities are {probabilities!r}, expected ten finite numbers")


def _metadata(*parts: Any) -> Headers:
    return {str(name).lower(): str(value) for part in parts for name, value in part or ()}


def _version(headers: Headers) -> str:
    """The version behind the cluster's name, `<model>--v<version>--<protocol>`."""
    found = re.search(r"--v(\d+)--", headers.get("x-penstock-version", ""))
    return found[1] if found else UNKNOWN


def _says_no_stable_version(headers: Headers) -> bool:
    return headers.get("x-penstock") in NOTHING_STABLE


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 3) if values else None


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _until_told(plan: Plan) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Client(plan, (HttpSender(plan), GrpcSender(plan))).run(stop)


def _plan(words: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m demo.traffic", description="Steady traffic through the gateway.")
    parser.add_argument("--gateway", required=True, metavar="HOST:PORT")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True, type=Path, help=".npy file, (any, 64) float32")
    parser.add_argument("--out", required=True, type=Path, help="one JSON line a second is appended here")
    parser.add_argument("--switch", required=True, type=Path, help="file with the per-mille of requests from the new scanner")
    parser.add_argument("--rate", type=float, default=130, help="requests a second, both protocols together")
    parser.add_argument("--timeout", type=float, default=10, help="seconds after which a request counts as an error")
    given = parser.parse_args(words)
    rows = np.load(given.rows).astype(np.float32)
    if rows.ndim != 2 or rows.shape[1] != PIXELS or not len(rows):
        parser.error(f"{given.rows} has shape {rows.shape}; expected rows of {PIXELS} pixels")
    return Plan(
        gateway=given.gateway,
        model=given.model,
        rows=rows,
        rate_per_s=given.rate,
        timeout_s=given.timeout,
        out=given.out,
        switch=given.switch,
    )


if __name__ == "__main__":
    asyncio.run(_until_told(_plan(sys.argv[1:])))
