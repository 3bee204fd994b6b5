"""The engine gate as its callers see it: in front of a made-up engine, and in front of a real one through Docker's own SDK."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
from aiohttp import web
from ports import free_port
from test_engine_rules import PROFILE, RULES, job
from test_runtimes import TASK, wait
from test_runtimes import job as runtime_job

from delivery import engine_gate
from delivery.engine_build import member
from delivery.engine_gate import Place, main, rules_of, serve
from operators.runtimes import CannotStart, DockerRuntime

OWN, FOREIGN = "a" * 64, "b" * 64
NETWORK_ID = "c" * 64
IMAGE_ID = f"sha256:{'d' * 64}"
OTHER_IMAGE_ID = f"sha256:{'e' * 64}"
CONTAINERS = {
    "own-1": {"Id": OWN, "Config": {"Labels": {"penstock.gate": "penstock"}}},
    "foreign-1": {"Id": FOREIGN, "Config": {"Labels": {"penstock.gate": "another"}}},
    "bare-1": {"Id": FOREIGN, "Config": {"Labels": None}},
}
IMAGES = [
    {"Id": IMAGE_ID, "RepoTags": ["penstock/triton:1", "secret/name:1"], "RepoDigests": None},
    {"Id": OTHER_IMAGE_ID, "RepoTags": ["postgres:17"], "RepoDigests": []},
]


class MadeUpEngine:
    """Answers look-ups from the tables above, and everything else with what it was asked."""

    def __init__(self) -> None:
        self.version = "1.41"
        self.asked: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.listed: list[dict[str, Any]] = []
        self.named: dict[str, dict[str, Any]] = {}
        self.goes_on = asyncio.Event()
        self.left = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        body = await self._body(request)
        self.asked.append((request.method, request.raw_path, body))
        self.headers.append(dict(request.headers))
        if path.endswith("/version"):
            return web.json_response({"ApiVersion": self.version, "Name": "host"})
        if path.endswith("/logs"):
            return await self._log(request)
        return self._look_up(request.method, path.removeprefix("/v1.41"))

    async def _body(self, request: web.BaseRequest) -> bytes:
        return b"".join([chunk async for chunk in request.content.iter_any()])

    async def _log(self, request: web.BaseRequest) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await reply.prepare(request)
        await reply.write(b"first")
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        if "until=1" in request.raw_path:
            request.transport.abort()
        else:
            await reply.write(b"second")
        return reply

    def _look_up(self, method: str, path: str) -> web.StreamResponse:
        kind, _, name = path.strip("/").removesuffix("/json").partition("/")
        found: Any = None
        if method != "GET" or path.endswith(("/archive", "/stats", "/top")):
            return web.json_response({"Id": "new", "Warnings": []}, status=201, headers={"X-Docker-Container-Path-Stat": "e30="})
        if path == "/containers/json":
            found = self.listed
        elif path == "/images/json":
            found = IMAGES
        elif path == "/info":
            found = {"ServerVersion": "20.10", "Name": "host", "RegistryConfig": {}, "DockerRootDir": "/var/lib/docker"}
        elif kind == "containers":
            found = CONTAINERS.get(name) or {each["Id"]: each for each in CONTAINERS.values()}.get(name)
        elif kind == "networks":
            names = {"penstock_core": "penstock_core", NETWORK_ID: "penstock_core", "bridge": "bridge"}
            found = {"Id": NETWORK_ID, "Name": names[name]} if name in names else None
        elif kind == "images":
            by_id = (each for each in IMAGES if each["Id"].removeprefix("sha256:").startswith(name.removeprefix("sha256:")))
            found = self.named.get(name) or next(by_id, None)
        if found is None:
            return web.json_response({"message": f"No such thing: {name}"}, status=404)
        return web.json_response(found, headers={"Api-Version": "1.41", "X-Unknown": "x"})


class Caller:
    """A client of the gate, and what the engine behind it was asked."""

    def __init__(self, session: aiohttp.ClientSession, url: str, engine: MadeUpEngine) -> None:
        self.session = session
        self.url = url
        self.engine = engine

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, **more) as answer:
            text = await answer.text()
            with contextlib.suppress(ValueError):
                return answer.status, json.loads(text)
            return answer.status, text

    def asked(self, method: str, part: str) -> list[tuple[str, str, bytes]]:
        return [each for each in self.engine.asked if each[0] == method and part in each[1]]


def context(files: Mapping[str, bytes]) -> bytes:
    """A build's context, as an SDK's caller makes it in memory: the Dockerfile first."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@contextlib.asynccontextmanager
async def gate(socket_path: str, rules: Any = RULES) -> AsyncIterator[str]:
    place = Place(host="127.0.0.1", port=free_port(), socket=socket_path)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(place, rules, stop))
    try:
        while not serving.done():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(place.host, place.port)
                writer.close()
                break
            await asyncio.sleep(0.01)
        yield f"http://{place.host}:{place.port}"
    finally:
        stop.set()
        await serving


@contextlib.asynccontextmanager
async def made_up_engine(path: Path) -> AsyncIterator[MadeUpEngine]:
    engine = MadeUpEngine()
    runner = web.ServerRunner(web.Server(engine.answer, handler_cancellation=True, auto_decompress=False), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield engine
    finally:
        await runner.cleanup()


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    path = tmp_path / "engine.sock"
    async with made_up_engine(path) as engine, gate(str(path)) as url, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Caller(session, url, engine)


async def test_a_container_is_created_with_the_label_and_of_what_was_looked_at(caller: Caller) -> None:
    """The engine gets the body that the rules made, under the version that the caller speaks, and its answer comes back."""
    status, answer = await caller.ask("POST", "/v1.41/containers/create?name=digits-v3", json=job())
    assert (status, answer["Id"]) == (201, "new")
    [(_, path, body)] = caller.asked("POST", "/create")
    assert path == "/v1.41/containers/create?name=digits-v3"
    assert json.loads(body)["Labels"] == {"penstock.job": "digits-v3", "penstock.gate": "penstock"}


async def test_a_key_given_twice_is_one(caller: Caller) -> None:
    """The last of two is looked at and the last of two is sent: the engine cannot read the other."""
    text = json.dumps(job()).replace('"ReadonlyRootfs": true', '"ReadonlyRootfs": false, "ReadonlyRootfs": true')
    assert (await caller.ask("POST", "/containers/create", data=text))[0] == 201
    [(_, _, body)] = caller.asked("POST", "/create")
    assert body.count(b"ReadonlyRootfs") == 1
    text = json.dumps(job()).replace('"ReadonlyRootfs": true', '"ReadonlyRootfs": true, "ReadonlyRootfs": false')
    assert (await caller.ask("POST", "/containers/create", data=text))[0] == 403


async def test_what_is_refused_is_said_and_logged_on_one_line(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns the field, the value and what is allowed; the log has the call and the reason, no body and no credentials."""
    caplog.set_level(logging.INFO)
    asked = {**job(Privileged=True, **{"Odd\nkey": 0}), "Env": ["PASSWORD=word"]}
    status, answer = await caller.ask("POST", "/containers/create?name=x-1", json=asked, headers={"X-Registry-Auth": "c2VjcmV0"})
    assert (status, answer) == (403, {"message": "body.HostConfig.Privileged is true; allowed: nothing, leave it out"})
    await caller.ask("POST", "/containers/create", json=job(**{"Odd\nkey": 1}))
    lines = [each.getMessage() for each in caplog.records if each.name == "engine_gate"]
    assert lines[0] == "403 POST /containers/create: body.HostConfig.Privileged is true; allowed: nothing, leave it out"
    assert not any(word in each for each in lines for word in ("PASSWORD", "word", "c2VjcmV0", "\n"))
    assert not caller.asked("POST", "/create")


@pytest.mark.parametrize("image", [IMAGE_ID, "d" * 12])
async def test_an_image_that_is_named_by_its_id_must_carry_an_allowed_name(caller: Caller, image: str) -> None:
    """The id is asked after and sent whole; one whose names are all foreign is refused, one that is not there is the engine's own 404."""
    assert (await caller.ask("POST", "/containers/create", json={**job(), "Image": image}))[0] == 201
    assert json.loads(caller.asked("POST", "/create")[0][2])["Image"] == IMAGE_ID
    status, answer = await caller.ask("POST", "/containers/create", json={**job(), "Image": OTHER_IMAGE_ID})
    assert (status, "carries no allowed name" in answer["message"]) == (403, True)
    assert await caller.ask("GET", f"/images/{'f' * 12}/json") == (404, {"message": f"No such thing: {'f' * 12}"})


async def test_there_are_at_most_so_many_containers(caller: Caller) -> None:
    """Ended ones count too: they take room until they are removed."""
    caller.engine.listed = [{"Id": str(n)} for n in range(RULES.containers)]
    status, answer = await caller.ask("POST", "/containers/create", json=job())
    assert (status, answer["message"].split(";")[:2]) == (403, ["there are 3 containers", " allowed: 3"])
    [(_, path, _)] = caller.asked("GET", "/containers/json")
    assert "all=1" in path
    assert "penstock.gate%3Dpenstock" in path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/containers/{}/json"),
        ("GET", "/containers/{}/logs"),
        ("GET", "/containers/{}/top"),
        ("GET", "/containers/{}/stats?stream=0"),
        ("GET", "/containers/{}/archive?path=/out"),
        ("HEAD", "/containers/{}/archive?path=/out"),
        ("PUT", "/containers/{}/archive?path=/out"),
        ("POST", "/containers/{}/start"),
        ("POST", "/containers/{}/stop"),
        ("POST", "/containers/{}/kill"),
        ("POST", "/containers/{}/restart"),
        ("POST", "/containers/{}/wait"),
        ("DELETE", "/containers/{}"),
    ],
)
async def test_only_own_containers_are_reached(caller: Caller, method: str, path: str) -> None:
    """Whatever is done to a container, a foreign one is refused, and an own one is named to the engine by its id."""
    caller.engine.goes_on.set()
    for name in ("foreign-1", "bare-1", FOREIGN):
        assert (await caller.ask(method, path.format(name)))[0] == 403
    assert not [each for each in caller.engine.asked if each[0] != "GET"]
    assert (await caller.ask(method, path.format("nowhere-1")))[0] == 404
    assert (await caller.ask(method, path.format("own-1")))[0] in {200, 201}
    assert (caller.engine.asked[-1][0], unquote(caller.engine.asked[-1][1])) == (method, path.format(OWN))


async def test_networks_are_reached_by_their_names_and_ids(caller: Caller) -> None:
    """A container of the callers' is connected to an allowed network; a foreign container, and a foreign network, are not."""
    assert (await caller.ask("GET", f"/networks/{NETWORK_ID}"))[0] == 200
    assert (await caller.ask("GET", "/networks/bridge"))[0] == 403
    assert (await caller.ask("POST", "/networks/penstock_core/connect", json={"Container": "own-1"}))[0] == 201
    assert caller.engine.asked[-1] == ("POST", f"/networks/{NETWORK_ID}/connect", json.dumps({"Container": OWN}).encode())
    assert (await caller.ask("POST", "/networks/penstock_core/connect", json={"Container": "foreign-1"}))[0] == 403
    assert (await caller.ask("POST", "/networks/bridge/connect", json={"Container": "own-1"}))[0] == 403
    assert (await caller.ask("POST", "/networks/penstock_core/disconnect", json={"Container": "foreign-1"}))[0] == 403


async def test_images_are_listed_without_foreign_names(caller: Caller) -> None:
    """A list shows what the callers may use, and of that only the names that are theirs to know."""
    status, answer = await caller.ask("GET", "/images/json")
    assert (status, [(each["Id"], each["RepoTags"]) for each in answer]) == (200, [(IMAGE_ID, ["penstock/triton:1"])])


async def test_an_image_is_removed_by_id_only_if_all_its_names_may_be(caller: Caller) -> None:
    """Removing by id takes every name with it."""
    status, answer = await caller.ask("DELETE", f"/images/{IMAGE_ID}?force=1")
    assert (status, "also carries the name penstock/triton:1" in answer["message"]) == (403, True)


BUILD = "/v1.41/build?t=127.0.0.1%3A5000%2Fpenstock%2Fdigits%3A1&rm=True"


async def test_a_build_is_of_the_dockerfile_that_was_read(caller: Caller) -> None:
    """It goes on under a name that no later member can have, the rest as it came, without a network and without credentials."""
    later = context({"Dockerfile": b"FROM postgres\nRUN id\n", "model.onnx": b"x" * 3_000_000})
    sent = member("Dockerfile", b"FROM penstock/triton:1\n") + later
    headers = {"X-Registry-Config": "c2VjcmV0", "X-Registry-Auth": "c2VjcmV0", "Content-Type": "application/tar"}
    caller.engine.named["penstock/triton:1"] = IMAGES[0]
    assert (await caller.ask("POST", BUILD, data=sent, headers=headers))[0] == 201
    [(_, asked, body)] = caller.asked("POST", "/build")
    name = asked.rpartition("dockerfile=")[2]
    assert asked == f"{BUILD}&networkmode=none&dockerfile={name}"
    assert body == member(name, b"FROM penstock/triton:1\n") + later
    assert not [header for header in caller.engine.headers[-1] if header.startswith("X-")]


async def test_a_build_on_what_is_not_here_is_the_engines_404(caller: Caller) -> None:
    """The engine would fetch a missing base by itself, and a name without an address from Docker Hub."""
    sent = context({"Dockerfile": b"FROM penstock/triton:2\n"})
    assert await caller.ask("POST", BUILD, data=sent) == (404, {"message": "No such thing: penstock/triton:2"})


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"", 400, "the body ends 512 bytes early"),
        (b"x" * 100, 400, "the body ends 412 bytes early"),
        (b"x" * 1000, 403, "begins with no tar header"),
        (b"\x1f\x8b" + b"x" * 1000, 403, "not compressed"),
        (member("model.onnx", b"x"), 403, "begins with model.onnx of 1 bytes"),
        (member("Dockerfile", b"FROM postgres"), 403, 'line 1 of the Dockerfile is "postgres"'),
        (member("Dockerfile", b"FROM postgres")[:600], 400, "the body ends"),
    ],
)
async def test_a_context_that_cannot_be_looked_at_is_refused(caller: Caller, sent: bytes, status: int, message: str) -> None:
    """A build begins with its Dockerfile, or not at all."""
    got, answer = await caller.ask("POST", BUILD, data=sent)
    assert (got, message in answer["message"]) == (status, True)
    assert not caller.asked("POST", "/build")


async def test_credentials_of_a_registry_go_on_where_they_are_needed(caller: Caller) -> None:
    """A push and a pull hand them to the engine; other calls do not."""
    headers = {"X-Registry-Auth": "c2VjcmV0"}
    await caller.ask("POST", "/images/127.0.0.1:5000/penstock/digits/push?tag=1", headers=headers)
    assert caller.engine.headers[-1]["X-Registry-Auth"] == "c2VjcmV0"
    await caller.ask("POST", "/images/create?fromImage=127.0.0.1:5000/penstock/digits&tag=1", headers=headers)
    assert caller.engine.headers[-1]["X-Registry-Auth"] == "c2VjcmV0"
    await caller.ask("GET", "/version", headers=headers)
    assert "X-Registry-Auth" not in caller.engine.headers[-1]


async def test_bodies_are_bounded(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body over its limit is refused with the limit, also when nobody said its length beforehand."""

    async def chunks(size: int) -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield b" " * (1 << 16)

    for path, method in (("/containers/create", "POST"), ("/containers/own-1/archive?path=/out", "PUT")):
        status, answer = await caller.ask(method, path, data=chunks((1 << 20) + (1 << 16)))
        assert (status, answer["message"]) == (400, "the body has more than 1048576 bytes; allowed: 1048576")
    monkeypatch.setattr(engine_gate, "BUILD_LIMIT_BYTES", 1 << 17)
    caller.engine.named["penstock/triton:1"] = IMAGES[0]

    async def begun() -> AsyncIterator[bytes]:
        yield member("Dockerfile", b"FROM penstock/triton:1")
        async for chunk in chunks(1 << 18):
            yield chunk

    for body in (b"".join([chunk async for chunk in begun()]), begun()):
        status, answer = await caller.ask("POST", BUILD, data=body)
        assert (status, answer["message"].endswith("allowed: 131072")) == (400, True)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_json_is_refused(caller: Caller, body: bytes) -> None:
    """Whatever cannot be read cannot be looked at."""
    assert (await caller.ask("POST", "/containers/create", data=body))[0] == 400


@pytest.mark.parametrize(
    "line",
    [
        "GET /containers/../info HTTP/1.1",
        "GET /v1.41/containers/%2e%2e/info HTTP/1.1",
        "GET /containers/own-1%2fjson HTTP/1.1",
        "GET //info HTTP/1.1",
        "GET http://engine/info HTTP/1.1",
        "GET /info#/_ping HTTP/1.1",
        "POST /containers/own-1/exec HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ],
)
async def test_tricks_with_the_request_line_are_refused(caller: Caller, line: str) -> None:
    """What is not written plainly is not interpreted here, so it cannot be interpreted differently there."""
    host, port = caller.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{line}\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.split(b" ")[1] in {b"400", b"403"}
    assert not [each for each in caller.engine.asked if "/version" not in each[1]]


async def test_a_stream_is_handed_on_as_it_comes(caller: Caller) -> None:
    """A log that is followed is read line by line, long before it ends."""
    async with caller.session.get(f"{caller.url}/containers/own-1/logs?follow=1") as answer:
        assert await asyncio.wait_for(answer.content.readany(), 5) == b"first"
        caller.engine.goes_on.set()
        assert await answer.content.read() == b"second"


async def test_a_stream_that_breaks_off_does_not_look_whole(caller: Caller) -> None:
    """An archive or a log that was cut short is an error at the caller."""
    caller.engine.goes_on.set()
    with pytest.raises(aiohttp.ClientError):
        await caller.ask("GET", "/containers/own-1/logs?follow=1&until=1")


async def test_whoever_leaves_leaves_nothing_open(caller: Caller) -> None:
    """A caller that stops following a log ends the engine's side of it too."""
    async with caller.session.get(f"{caller.url}/containers/own-1/logs?follow=1") as answer:
        await answer.content.readany()
    assert await asyncio.wait_for(caller.engine.left.wait(), 5)


async def test_of_the_engine_little_is_told(caller: Caller) -> None:
    """Its version negotiates; its host's name and folders stay with it, and health says one word."""
    assert await caller.ask("GET", "/v1.41/info") == (200, {"ServerVersion": "20.10"})
    assert await caller.ask("GET", "/health") == (200, {"status": "ok"})
    async with caller.session.head(f"{caller.url}/containers/own-1/archive?path=/out") as answer:
        assert answer.headers["X-Docker-Container-Path-Stat"] == "e30="
    async with caller.session.get(f"{caller.url}/containers/own-1/json") as answer:
        assert ("X-Unknown" in answer.headers, answer.headers["Api-Version"]) == (False, "1.41")


async def test_an_engine_that_is_too_old_is_named(caller: Caller) -> None:
    """Rules are written for the API from 1.41 on: an older engine is not asked at all."""
    caller.engine.version = "1.40"
    status, answer = await caller.ask("GET", "/info")
    assert (status, answer["message"].split(":")[0]) == (503, "engine too old")
    assert (await caller.ask("GET", "/health"))[0] == 503


async def test_an_engine_that_is_away_is_named_and_found_again(tmp_path: Path) -> None:
    """Without an engine every call says where it was looked for and what to do; when it comes back it is asked for its version."""
    path = tmp_path / "engine.sock"
    async with gate(str(path)) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/_ping") as answer:
            said = (await answer.json())["message"]
            assert answer.status == 503
        assert said.startswith(f"the Docker engine does not answer at {path} (")
        assert said.endswith("start it, and see that its socket is mounted here and that this service's group may use it")
        async with made_up_engine(path) as engine:
            async with session.get(f"{url}/info") as answer:
                assert answer.status == 200
            engine.version = "1.40"
        async with session.get(f"{url}/version") as answer:
            assert answer.status == 503
        path.unlink(missing_ok=True)
        async with made_up_engine(path) as engine:
            engine.version = "1.40"
            async with session.get(f"{url}/info") as answer:
                assert "engine too old" in (await answer.json())["message"]


def given(**changed: Any) -> argparse.Namespace:
    named = {"images": ["penstock/"], "writes": [], "network": ["core"], "seccomp_profile": []}
    return argparse.Namespace(project="p", memory_limit_gib=0.5, containers=1, **{**named, **changed})


def test_rules_are_made_of_the_arguments(tmp_path: Path) -> None:
    """A profile counts by what it says, not by how its file is written."""
    (tmp_path / "seccomp.json").write_text(json.dumps(json.loads(PROFILE), indent=4))
    rules = rules_of(given(seccomp_profile=[tmp_path / "seccomp.json"]))
    assert (rules.memory_bytes, rules.seccomp) == (1 << 29, RULES.seccomp)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": ["penstock"]}, "'penstock' does not end in a slash"),
        ({"images": [""]}, "does not end in a slash"),
        ({"writes": ["registry:5000/penstock/"]}, "lies outside of --images"),
        ({"network": ["host"]}, "--network host"),
        ({"network": ["container:x"]}, "--network container:x"),
    ],
)
def test_rules_that_allow_more_than_they_seem_to_are_refused(changed: dict[str, Any], message: str) -> None:
    """The service does not start with a prefix that names other people's images, or with the host's network."""
    with pytest.raises(ValueError, match=message):
        rules_of(given(**changed))


def test_the_command_ends_cleanly_and_its_probe_tells(tmp_path: Path) -> None:
    """The probe is 0 only while the service and its engine answer, SIGTERM ends the service with 0, and a wrong argument with 64."""
    port = free_port()
    command = [sys.executable, "-m", "delivery.engine_gate", "--port", str(port), "--socket", str(tmp_path / "none.sock")]
    assert main([*command[3:], "--images", "penstock"]) == 64
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        assert subprocess.run([*command[:5], "--probe"], check=False).returncode == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()


# From here on, the real thing: the gate as a process in front of the machine's engine, and Docker's own SDK in front of the gate.


BASE = os.environ.get("BASE_IMAGE", "python:3.11-slim-bookworm")
HERE = "penstock-gate-test/here"
REGISTRY = "127.0.0.1:5000/penstock-gate-test/"
SUBNET = "10.213.177.0/24"


def docker_socket() -> str:
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The engine itself, past the gate, with the task's image; skips where there is none."""
    from docker import from_env
    from docker.errors import DockerException

    try:
        found = from_env(timeout=60)
        found.ping()
    except DockerException as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Docker engine: {error}")
    if not docker_socket().startswith("/"):
        pytest.skip(f"the engine is at {docker_socket()}, not behind a socket of this machine")
    dockerfile = f"FROM {BASE}\nRUN mkdir /out && chown 65534 /out\nWORKDIR /app\nCOPY fake_task.py /app/\n"
    files = {"Dockerfile": dockerfile.encode(), "fake_task.py": textwrap.dedent(TASK).encode()}
    found.images.build(fileobj=io.BytesIO(context(files)), custom_context=True, tag=HERE, rm=True)
    yield found
    found.images.remove(HERE, force=True)


@pytest.fixture(scope="module")
def through(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The SDK through the gate."""
    from docker import DockerClient
    from docker.types import IPAMConfig, IPAMPool

    profile = tmp_path_factory.mktemp("gate") / "seccomp.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    pool = IPAMConfig(pool_configs=[IPAMPool(subnet=SUBNET)])  # fixed addresses need a subnet that was chosen
    networks = [engine.networks.create(f"penstock-gate-{os.getpid()}-{n}", internal=True, ipam=ipam) for n, ipam in ((1, pool), (2, None))]
    port = free_port()
    command = [sys.executable, "-m", "delivery.engine_gate", "--port", str(port), "--socket", docker_socket(), "--project", "gate-test"]
    command += ["--images", "penstock-gate-test/", "--images", REGISTRY, "--writes", "penstock-gate-test/", "--writes", REGISTRY]
    command += [word for network in networks for word in ("--network", network.name)]
    process = subprocess.Popen([*command, "--memory-limit-gib", "2.5", "--containers", "5", "--seccomp-profile", str(profile)])
    try:
        end = time.monotonic() + 20
        while engine_gate.probe(port) != 0:
            assert time.monotonic() < end
            time.sleep(0.1)
        client = DockerClient(base_url=f"tcp://127.0.0.1:{port}", timeout=60)
        client.gate_networks = [each.name for each in networks]
        yield client
    finally:
        for each in engine.containers.list(all=True, filters={"label": "penstock.gate=gate-test"}):
            each.remove(force=True, v=True)
        for network in networks:
            network.remove()
        process.terminate()
        assert process.wait(10) == 0


@pytest.fixture
def runtime(through: Any, monkeypatch: pytest.MonkeyPatch) -> DockerRuntime:
    monkeypatch.setenv("DOCKER_HOST", through.api.base_url.replace("http://", "tcp://"))
    return DockerRuntime(image_prefix="penstock-gate-test/", network=through.gate_networks[0])


@pytest.fixture
def name(request: pytest.FixtureRequest, engine: Any) -> Iterator[str]:
    from docker.errors import NotFound

    chosen = f"gate-test-{os.getpid()}-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    yield chosen
    with contextlib.suppress(NotFound):
        engine.containers.get(chosen).remove(force=True, v=True)


def hardened(network: str, **more: Any) -> dict[str, Any]:
    asked = {"network": network, "user": "65534:65534", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
    return {**asked, "mem_limit": "256m", "pids_limit": 64, "init": True, **more}


@pytest.mark.engine
def test_a_task_runs_through_the_gate(runtime: DockerRuntime, name: str) -> None:
    """Started twice it runs once; it is kept alive, its log and its verdict come back, and nothing of it is left."""
    asked = runtime_job(Path("/app"), "until_kept_alive", name=name)
    runtime.start(asked)
    runtime.start(asked)
    assert runtime.exit_code(name) is None
    runtime.keep_alive(name)
    assert wait(runtime, name) == 0
    assert runtime.verdict(name) == b"v" * 10
    assert runtime.log(name).count("started until_kept_alive") == 1
    runtime.remove(name)
    assert runtime.exit_code(name) == 137


@pytest.mark.engine
def test_a_task_that_crashes_hangs_or_is_missing_reads_the_same_through_the_gate(runtime: DockerRuntime, name: str) -> None:
    """A crash has no verdict, another spec replaces a task that hangs, and a missing image is named."""
    runtime.start(runtime_job(Path("/app"), "crash", name=name))
    assert (wait(runtime, name), runtime.verdict(name)) == (3, None)
    runtime.start(runtime_job(Path("/app"), "hang", name=name))
    runtime.start(runtime_job(Path("/app"), "good", name=name))
    assert wait(runtime, name) == 0
    runtime.remove(name)
    with pytest.raises(CannotStart, match="penstock-gate-test/nowhere"):
        runtime.start(runtime_job(Path("/app"), "good", name=name, environment="nowhere"))


@pytest.mark.engine
def test_a_server_lives_through_the_gate(through: Any, engine: Any, name: str) -> None:
    """A fixed address, restarts, shared memory, a health check, a second network, figures and processes: all that a server needs."""
    from docker.types import EndpointConfig, Healthcheck

    first, second = through.gate_networks
    address = SUBNET.replace(".0/24", ".77")
    health = Healthcheck(test=["CMD", "true"], interval=500_000_000)
    container = through.containers.create(
        HERE,
        ["sleep", "60"],
        name=name,
        healthcheck=health,
        restart_policy={"Name": "unless-stopped"},
        shm_size="64m",
        tmpfs={"/tmp": "size=16m"},
        **hardened(first, mem_limit="512m"),
    )
    through.networks.get(second).connect(container)
    container.start()
    container.reload()
    assert set(container.attrs["NetworkSettings"]["Networks"]) == {first, second}
    assert container.stats(stream=False)["memory_stats"]["limit"] == 512 << 20
    assert ["sleep" in line[-1] for line in container.top()["Processes"]].count(True) >= 1
    through.networks.get(second).disconnect(container)
    container.restart(timeout=1)
    container.kill()
    assert container.wait(timeout=20)["StatusCode"] == 137
    container.remove(v=True)
    body = {
        "Image": HERE,
        "Cmd": ["sleep", "60"],
        "User": "65534:65534",
        "HostConfig": through.api.create_host_config(
            read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"], mem_limit="256m", pids_limit=64, network_mode=first
        ),
        "NetworkingConfig": {"EndpointsConfig": {first: EndpointConfig("1.41", ipv4_address=address)}},
    }
    fixed = through.containers.get(through.api.create_container_from_config(body, name)["Id"])
    assert fixed.attrs["NetworkSettings"]["Networks"][first]["IPAMConfig"] == {"IPv4Address": address}
    fixed.start()
    fixed.reload()
    assert fixed.attrs["NetworkSettings"]["Networks"][first]["IPAddress"] == address


@pytest.mark.engine
def test_a_followed_log_comes_through_the_gate(through: Any, name: str) -> None:
    """The SDK reads a log's frames as they are printed."""
    command = ["python3", "-uc", "import time\nfor n in range(3): print(n); time.sleep(0.3)"]
    container = through.containers.create(HERE, command, name=name, **hardened("none"))
    container.start()
    assert b"".join(container.logs(stream=True, follow=True)) == b"0\n1\n2\n"


@pytest.mark.engine
def test_the_exports_seccomp_profile_is_the_only_one(through: Any, name: str) -> None:
    """The profile that the service was given applies, with AppArmor's unconfined; another is refused."""
    from docker.errors import APIError

    options = ["no-new-privileges", 'seccomp={ "defaultAction": "SCMP_ACT_ALLOW" }', "apparmor=unconfined"]
    container = through.containers.create(HERE, ["true"], name=name, **hardened("none", security_opt=options))
    assert any("SCMP_ACT_ALLOW" in each for each in container.attrs["HostConfig"]["SecurityOpt"])
    container.start()
    assert container.wait()["StatusCode"] == 0
    container.remove()
    options[1] = "seccomp=unconfined"
    with pytest.raises(APIError, match="one of this service's seccomp profiles"):
        through.containers.create(HERE, ["true"], name=name, **hardened("none", security_opt=options))


@pytest.mark.engine
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"volumes": {"/": {"bind": "/host", "mode": "rw"}}}, "Binds"),
        ({"privileged": True}, "Privileged"),
        ({"network": "host"}, "NetworkMode"),
        ({"network": "bridge"}, "NetworkMode"),
        ({"pid_mode": "host"}, "PidMode"),
        ({"cap_add": ["SYS_ADMIN"]}, "CapAdd"),
        ({"devices": ["/dev/null:/dev/x:rwm"]}, "Devices"),
        ({"user": "0:0"}, "User"),
        ({"ports": {"80/tcp": 8080}}, "PortBindings"),
        ({"mem_limit": "100g"}, "Memory"),
    ],
)
def test_the_host_is_out_of_reach(through: Any, engine: Any, name: str, more: dict[str, Any], message: str) -> None:
    """What the SDK would ask for to reach the host is refused by the field's name, and no container is left."""
    from docker.errors import APIError, NotFound

    with pytest.raises(APIError, match=message) as refused:
        through.containers.create(HERE, ["true"], name=name, **{**hardened("none"), **more})
    assert refused.value.status_code == 403
    with pytest.raises(NotFound):
        engine.containers.get(name)


@pytest.mark.engine
def test_a_foreign_container_is_out_of_reach(through: Any, engine: Any, name: str) -> None:
    """One that was started past the gate is not listed, shown, stopped or removed, and nobody gets a shell even in an own one."""
    from docker.errors import APIError

    foreign = engine.containers.run(HERE, ["sleep", "60"], name=name, detach=True)
    own = through.containers.create(HERE, ["sleep", "60"], name=f"{name}-own", **hardened("none"))
    try:
        assert [each.id for each in through.containers.list(all=True)] == [own.id]
        for call in (through.api.inspect_container, through.api.stop, through.api.kill, through.api.remove_container, through.api.logs):
            with pytest.raises(APIError, match="was not made here"):
                call(name)
        own.start()
        with pytest.raises(APIError, match="not passed on"):
            own.exec_run(["id"])
        foreign.reload()
        assert foreign.status == "running"
    finally:
        own.remove(force=True)


@pytest.mark.engine
def test_there_is_an_end_to_containers(through: Any, name: str) -> None:
    """The fifth container is made, the sixth is refused."""
    from docker.errors import APIError

    made: list[Any] = []
    try:
        for n in range(5):
            made.append(through.containers.create(HERE, ["true"], name=f"{name}-{n}", **hardened("none")))  # noqa: PERF401
        with pytest.raises(APIError, match="there are 5 containers; allowed: 5"):
            through.containers.create(HERE, ["true"], name=name, **hardened("none"))
    finally:
        for each in made:
            each.remove(force=True)


@pytest.mark.engine
def test_an_image_is_built_tagged_listed_and_removed_through_the_gate(through: Any, engine: Any) -> None:
    """What a package does with images works within its prefix; a second Dockerfile replaces nothing, no other image is touched."""
    from docker.errors import APIError, ImageNotFound

    name = f"{REGISTRY}digits"
    dockerfile = f"FROM {HERE}\nCOPY --chown=65534:65534 model.onnx /models/\nLABEL a=b\n"
    later = context({"model.onnx": b"model", "Dockerfile": f"FROM {HERE}\nRUN id\nLABEL a=c\n".encode()})
    sent = io.BytesIO(member("Dockerfile", dockerfile.encode()) + later)
    built, _ = through.images.build(fileobj=sent, custom_context=True, tag=f"{name}:1.0.2", rm=True)
    assert built.labels["a"] == "b"
    assert built.tag(name, tag="1.0.3")
    assert {f"{HERE}:latest", f"{name}:1.0.3"} <= {tag for each in through.images.list() for tag in each.tags}
    assert all(tag.startswith(("penstock-gate-test/", REGISTRY)) for each in through.api.images() for tag in each["RepoTags"])
    for tag in ("1.0.2", "1.0.3"):
        through.images.remove(f"{name}:{tag}")
    with pytest.raises(ImageNotFound):
        through.images.get(f"{name}:1.0.3")
    for call in (lambda: through.images.get(BASE), lambda: built.tag("python", tag="3.11"), lambda: through.images.remove(BASE)):
        with pytest.raises(APIError) as refused:
            call()
        assert refused.value.status_code == 403
    with pytest.raises(APIError, match="begins with 'RUN'"):
        through.images.build(fileobj=io.BytesIO(f"FROM {HERE}\nRUN id\n".encode()), tag=HERE)
    with pytest.raises(APIError, match="networkmode"):
        through.images.build(fileobj=io.BytesIO(f"FROM {HERE}\n".encode()), tag=HERE, network_mode="host")
    assert engine.images.get(BASE)


@pytest.mark.engine
def test_an_image_is_pushed_and_pulled_by_digest_through_the_gate(through: Any, engine: Any, name: str) -> None:
    """The push's last word is the digest, and a container runs by it. Needs a registry at 127.0.0.1:5000."""
    try:
        socket.create_connection(("127.0.0.1", 5000), timeout=1).close()
    except OSError as error:
        pytest.skip(f"no registry at 127.0.0.1:5000: {error}")
    repository = f"{REGISTRY}digits"
    through.images.get(HERE).tag(repository, tag="1.0.4")
    said = list(through.images.push(repository, tag="1.0.4", stream=True, decode=True))
    digest = next(each["aux"]["Digest"] for each in reversed(said) if "aux" in each)
    engine.images.remove(f"{repository}:1.0.4")
    pulled = through.images.pull(repository, tag=digest)
    assert f"{repository}@{digest}" in pulled.attrs["RepoDigests"]
    container = through.containers.create(f"{repository}@{digest}", ["true"], name=name, **hardened("none"))
    container.start()
    assert container.wait()["StatusCode"] == 0
    container.remove()
    through.images.remove(f"{repository}@{digest}")
