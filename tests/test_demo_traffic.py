"""The demo's client against a small gateway of our own that speaks both protocols: what it sends, and that it counts everything."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

from demo.traffic import Client, GrpcSender, HttpSender, Plan, new_scanner, read_switch

VERSION = "x-penstock-version"
GRPC_CODES = {404: grpc.StatusCode.UNIMPLEMENTED, 500: grpc.StatusCode.INTERNAL}


@dataclass
class FakeGateway(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers as `behave` says for each request: a status and headers; with status 200 `label` is what it puts into the answer."""

    behave: Callable[[int], Awaitable[tuple[int, dict[str, str]]]]
    label: int = 3
    users: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    protocols: list[str] = field(default_factory=list)

    async def infer_http(self, request: web.Request) -> web.Response:
        body = await request.read()
        split = int(request.headers["Inference-Header-Content-Length"])
        self._note("http", request.headers["x-user-id"], request.match_info["model"], body[split:])
        status, headers = await self.behave(len(self.users))
        if status != 200:
            return web.Response(status=status, headers=headers, text=json.dumps({"error": "fake trouble"}))
        outputs = [
            {"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [self.label]},
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 10], "data": [0.1] * 10},
        ]
        return web.json_response({"model_name": "digits", "outputs": outputs}, headers=headers)

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802 - the service's own name
        metadata = dict(context.invocation_metadata())
        self._note("grpc", metadata["x-user-id"], metadata["x-model"], request.raw_input_contents[0])
        status, headers = await self.behave(len(self.users))
        if status != 200:
            context.set_trailing_metadata(tuple(headers.items()))
            await context.abort(GRPC_CODES[status], "fake trouble")
        await context.send_initial_metadata(tuple(headers.items()))
        answer = service_pb2.ModelInferResponse(model_name="digits")
        answer.outputs.add(name="label", datatype="INT64", shape=[1, 1])
        answer.outputs.add(name="probabilities", datatype="FP32", shape=[1, 10])
        answer.raw_output_contents.extend([np.int64(self.label).tobytes(), np.full(10, 0.1, np.float32).tobytes()])
        return answer

    def _note(self, protocol: str, user: str, model: str, raw: bytes) -> None:
        self.protocols.append(protocol)
        self.users.append(user)
        self.models.append(model)
        self.pixels.append(np.frombuffer(raw, np.float32))


@asynccontextmanager
async def served(gateway: FakeGateway) -> AsyncIterator[tuple[str, str]]:
    """Both addresses of the gateway, HTTP and gRPC, on free ports."""
    app = web.Application()
    app.router.add_post("/v2/models/{model}/infer", gateway.infer_http)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await runner.cleanup()


def plan(folder: Path, address: str, rate_per_s: float = 200, timeout_s: float = 20) -> Plan:
    rows = np.tile(np.arange(64, dtype=np.float32) % 17, (5, 1))
    return Plan(
        gateway=address,
        model="digits",
        rows=rows,
        rate_per_s=rate_per_s,
        timeout_s=timeout_s,
        out=folder / "lines.jsonl",
        switch=folder / "switch",
    )


async def drive(folder: Path, gateway: FakeGateway, until: asyncio.Event, **options: float) -> list[dict[str, Any]]:
    """Runs the client against the gateway until the event; returns its lines."""
    async with served(gateway) as (http, grpc_address):
        senders = (HttpSender(plan(folder, http, **options)), GrpcSender(plan(folder, grpc_address, **options)))
        await Client(plan(folder, http, **options), senders).run(until)
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def total(lines: list[dict[str, Any]], count: str) -> int:
    return sum(line[count] for line in lines)


def answering(statuses: Callable[[int], int], stop: asyncio.Event, after: int, **headers: str) -> Callable[[int], Awaitable[Any]]:
    """A behaviour by the number of the request; says stop after so many."""

    async def behave(number: int) -> tuple[int, dict[str, str]]:
        if number >= after:
            stop.set()
        return statuses(number), {name.replace("_", "-"): value for name, value in headers.items()}

    return behave


async def test_every_request_is_counted_and_nothing_is_left_in_flight(tmp_path: Path) -> None:
    """The sum of the lines is what the gateway received, half by HTTP and half by gRPC, and the last line says that it is the end."""
    stop = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda _: 200, stop, 60, **{VERSION: "digits--v2--http"}))
    lines = await drive(tmp_path, gateway, stop)
    assert total(lines, "requests") == len(gateway.users) == total(lines, "ok")
    assert total(lines, "errors") == total(lines, "not_yet_served") == 0
    assert sum(line["by_version"].get("2", 0) for line in lines) == len(gateway.users)
    assert abs(gateway.protocols.count("http") - gateway.protocols.count("grpc")) <= 1
    assert [line["ended"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["in_flight"] == 0
    assert set(gateway.models) == {"digits"}


async def test_an_error_is_counted_once_and_not_retried(tmp_path: Path) -> None:
    """A failing answer is one error with a sample that names protocol and status; the request is not sent again."""
    stop = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda number: 500 if number % 4 == 0 else 200, stop, 60))
    lines = await drive(tmp_path, gateway, stop)
    samples = " ".join(sample for line in lines for sample in line["error_samples"])
    assert total(lines, "requests") == len(gateway.users)
    assert total(lines, "errors") == len(gateway.users) // 4
    assert "500" in samples or "INTERNAL" in samples


async def test_a_wrong_answer_is_an_error(tmp_path: Path) -> None:
    """Status 200 with an impossible label is an error, over both protocols."""
    stop = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda _: 200, stop, 30), label=12)
    lines = await drive(tmp_path, gateway, stop)
    assert total(lines, "errors") == len(gateway.users)
    assert all("WrongAnswer" in sample for line in lines for sample in line["error_samples"])


@pytest.mark.parametrize("reason", ["no-stable-version", "unknown-model"])
async def test_refusals_before_the_first_success_are_counted_apart(tmp_path: Path, reason: str) -> None:
    """Before anything is stable the gateway's refusal is no error, over HTTP and gRPC alike."""
    stop = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda _: 404, stop, 30, x_penstock=reason))
    lines = await drive(tmp_path, gateway, stop)
    assert total(lines, "not_yet_served") == len(gateway.users)
    assert total(lines, "errors") == total(lines, "ok") == 0


async def test_a_refusal_after_the_first_success_is_an_error(tmp_path: Path) -> None:
    """Once a version has answered, "nothing is stable" is an outage."""
    stop = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda number: 200 if number <= 10 else 404, stop, 200, x_penstock="no-stable-version"))
    lines = await drive(tmp_path, gateway, stop)
    assert total(lines, "ok") == 10
    assert total(lines, "errors") > 0
    assert total(lines, "errors") + total(lines, "not_yet_served") == len(gateway.users) - 10


async def test_a_refusal_without_the_gateways_word_is_an_error(tmp_path: Path) -> None:
    """A bare 404 says nothing about a first delivery: it counts as an error from the beginning."""
    stop = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda _: 404, stop, 20))
    lines = await drive(tmp_path, gateway, stop)
    assert total(lines, "errors") == len(gateway.users)


async def test_the_client_does_not_wait_for_answers(tmp_path: Path) -> None:
    """Open loop: thirty requests arrive although not one has been answered."""
    stop = asyncio.Event()

    async def nobody_before_the_thirtieth(number: int) -> tuple[int, dict[str, str]]:
        if number >= 30:
            stop.set()
        await stop.wait()
        return 200, {}

    lines = await drive(tmp_path, FakeGateway(behave=nobody_before_the_thirtieth), stop)
    assert total(lines, "ok") >= 30
    assert lines[-1]["in_flight"] == 0


async def test_no_answer_in_time_is_an_error(tmp_path: Path) -> None:
    """A request that is not answered within the client's patience counts as an error, over both protocols."""
    stop, never = asyncio.Event(), asyncio.Event()

    async def silent(number: int) -> tuple[int, dict[str, str]]:
        if number >= 10:
            stop.set()
        await never.wait()
        return 200, {}

    lines = await drive(tmp_path, FakeGateway(behave=silent), stop, timeout_s=0.3)
    assert total(lines, "errors") == total(lines, "requests") >= 10


async def test_the_switch_brings_the_new_scanner(tmp_path: Path) -> None:
    """With 1000 in the switch file every image gets pixels above 16 from the next second on; users are spread."""
    stop = asyncio.Event()
    (tmp_path / "switch").write_text("1000")

    async def until_bright(_: int) -> tuple[int, dict[str, str]]:
        if len(bright()) >= 20:
            stop.set()
        return 200, {}

    gateway = FakeGateway(behave=until_bright)

    def bright() -> list[np.ndarray]:
        return [each for each in gateway.pixels if each.max() > 16]

    lines = await drive(tmp_path, gateway, stop)
    assert lines[-1]["new_scanner_permille"] == 1000
    assert {each.max() for each in bright()} == {20.0}
    assert len(set(gateway.users)) > 10


def test_new_scanner_images_are_whole_numbers_up_to_twenty() -> None:
    """The new scanner maps 0..16 to 0..20 and invents nothing in between."""
    assert new_scanner(np.array([0, 8, 14, 16], np.float32)).tolist() == [0, 10, 18, 20]


def test_a_switch_that_holds_nonsense_is_refused(tmp_path: Path) -> None:
    """Anything but a whole number from 0 to 1000 raises with the file's name; no file means 0."""
    switch = tmp_path / "switch"
    assert read_switch(switch) == 0
    for word in ("1001", "-1", "half", ""):
        switch.write_text(word)
        with pytest.raises(ValueError, match="switch"):
            read_switch(switch)


async def test_sigterm_ends_the_process_with_everything_counted(tmp_path: Path) -> None:
    """As the demo ends it: status 0, a last line that says so, every received request in the sum."""
    received = asyncio.Event()
    gateway = FakeGateway(behave=answering(lambda _: 404, received, 20, x_penstock="no-stable-version"))
    np.save(tmp_path / "rows.npy", np.zeros((3, 64), np.float32))
    async with served(gateway) as (http, _):
        where = ["--gateway", http, "--model", "digits", "--rows", str(tmp_path / "rows.npy"), "--rate", "100"]
        files = ["--out", str(tmp_path / "lines.jsonl"), "--switch", str(tmp_path / "switch")]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "demo.traffic", *where, *files, cwd=tmp_path)
        await received.wait()
        process.send_signal(signal.SIGTERM)
        status = await process.wait()
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert status == 0
    assert lines[-1]["ended"]
    assert sum(line["by_protocol"].get("http", 0) for line in lines) == len(gateway.users)
