"""The gateway and its director without the rest of the stack, before two servers that only answer: what the gateway itself costs and does.

`bench.gateway` measures on it. The servers are a second Envoy whose answers stand in its configuration, so that nothing slow stands behind
the gateway; each answer says which version it comes from. Everything is on free ports of loopback, in a folder that is made anew.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from bench.world import Unexpected
from delivery.director_client import Director
from delivery.gateway import write_bootstrap
from stack.environments import site_packages
from stack.settings import Settings
from validation.private_server import free_ports

MODEL = "echo"
STABLE, CANDIDATE = 1, 2
PATIENCE_S = 30.0
_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
_STRICT = ("--reject-unknown-dynamic-fields", "--log-level", "warning", "--concurrency", "1", "--disable-hot-restart")


class LoneGateway:
    """Addresses of the gateway and of the servers by version, and the director's client; the candidate is registered, without a share."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.state / "bench_gateway"
        self._ports = free_ports("gateway", "admin", "http", "grpc", "v1", "v2")
        self._token = secrets.token_hex(16)
        self.gateway, self.stable = (f"127.0.0.1:{self._ports[name]}" for name in ("gateway", "v1"))
        self.director = Director(f"http://127.0.0.1:{self._ports['http']}", self._token)

    @contextmanager
    def running(self) -> Iterator[LoneGateway]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        with ExitStack() as programs:
            for name, command in (("servers", self._servers()), ("director", self._director()), ("gateway", self._gateway())):
                programs.enter_context(self._program(name, command))
            self._register()
            yield self

    def health(self) -> str:
        try:
            return str(httpx.get(f"http://127.0.0.1:{self._ports['http']}/health", trust_env=False).json()["gateway"])
        except httpx.TransportError:
            return "not there"

    def _register(self) -> None:
        until(lambda: self.health() == "connected", "director and gateway find each other")
        for number in (STABLE, CANDIDATE):
            address = f"127.0.0.1:{self._ports[f'v{number}']}"
            self.director.put_candidate(MODEL, number, address, address)
            if number == STABLE:
                self.director.put_stable(MODEL, STABLE)

    def _gateway(self) -> list[str]:
        port, admin_port, director_grpc_port = (self._ports[name] for name in ("gateway", "admin", "grpc"))
        files = self._folder / "data" / "envoy"
        path = self._folder / "gateway.json"
        write_bootstrap(path, files=files, port=port, admin_port=admin_port, director_grpc_port=director_grpc_port)
        return [*self._envoy(), "-c", str(path)]

    def _servers(self) -> list[str]:
        config = {"static_resources": {"listeners": [_answering(number, self._ports[f"v{number}"]) for number in (STABLE, CANDIDATE)]}}
        (self._folder / "servers.json").write_text(json.dumps(config))
        return [*self._envoy(), "-c", str(self._folder / "servers.json")]

    def _envoy(self) -> list[str]:
        return [str(site_packages(self._settings.environment("envoy")) / "envoy" / "_bin" / "envoy"), *_STRICT]

    def _director(self) -> list[str]:
        ports = ["--http-port", str(self._ports["http"]), "--grpc-port", str(self._ports["grpc"])]
        python = str(self._settings.python("director"))
        return [python, "-m", "delivery.director", *ports, "--gateway-admin", f"127.0.0.1:{self._ports['admin']}"]

    @contextmanager
    def _program(self, name: str, command: list[str]) -> Iterator[None]:
        environ = {**os.environ, "PENSTOCK_STATE": str(self._folder), "PENSTOCK_DIRECTOR_TOKEN": self._token}
        with (self._folder / f"{name}.log").open("wb") as log:
            program = subprocess.Popen(command, stdout=log, stderr=log, env=environ, cwd=self._folder)
            try:
                yield
            finally:
                program.kill()
                program.wait()


def until(holds: Callable[[], bool], what: str) -> None:
    """Raises `Unexpected` when it does not hold in time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline_s:
            raise Unexpected(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(0.02)


def answer_of(version: int) -> bytes:
    """The whole body of a version's answers."""
    return b"answer of v%d" % version


def _answering(version: int, port: int) -> Mapping[str, Any]:
    answer = {"status": 200, "body": {"inline_string": answer_of(version).decode()}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": answer}]}]
    whole_body = {
        "name": "envoy.filters.http.buffer",
        "typed_config": {"@type": f"{_EXTENSIONS}.http.buffer.v3.Buffer", "max_request_bytes": 65536},
    }
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_EXTENSIONS}.http.router.v3.Router"}}
    manager = {
        "@type": f"{_EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"v{version}",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [whole_body, router],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": f"v{version}", "address": address, "filter_chains": [chain]}
