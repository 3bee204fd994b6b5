"""The table of the stack's programs: what each runs, what it needs first, how one knows that it is ready.

`stack.supervisor` renders it, `stack.up` walks it, and supervisord starts each program through `python -m stack run <name>`, which ends in
`become`: there the environment, secrets included, is made, so that the supervisor's file holds none. Tritons are not in the table, for they
come and go with `delivery.triton`: `servers` lists those of now.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delivery import triton
from delivery.gateway import write_bootstrap, write_by_rename
from stack import postgres, processes, variables
from stack.environments import site_packages
from stack.keys import Keys
from stack.settings import Settings

_STRICT = ("--reject-unknown-dynamic-fields", "--log-level", "warning")  # a misspelt field is an error, not a setting that is not there
Probe = Callable[[float], str | None]  # unix time of the program's start -> what is not ready yet, or None


@dataclass(frozen=True, kw_only=True)
class Service:
    """One program. `after` names what must be ready first; `prepare` runs in the program's own process before each start."""

    name: str
    command: tuple[str, ...]
    probe: Probe
    ports: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    variables: Mapping[str, str]
    prepare: Callable[[], None] = lambda: None
    stop_signal: str = "TERM"
    stop_wait_s: int = 10
    stops_group: bool = True
    ready_within_s: float = 180  # a two-core machine that did much else took 45 s for Airflow


def table(settings: Settings, keys: Keys) -> dict[str, Service]:
    """All services by name, each after those it needs."""
    airflow = _airflow(settings, keys)
    services = (
        _postgres(settings, keys),
        _mlflow(settings, keys),
        *airflow,
        _director(settings, keys),
        _recorder(settings, keys),
        _envoy(settings),
    )
    return {service.name: service for service in services}


def servers(settings: Settings) -> dict[str, Service]:
    """The Tritons that are meant to run, as services: supervisord starts them by itself, from the files of `delivery.triton`."""
    return {name: _server(server) for name, server in triton.servers(settings.state).items()}


def become(service: Service, settings: Settings) -> None:
    """Turns this process into the service's program; what a killed run of it left behind ends first. Never returns."""
    processes.end(processes.leftovers(settings.state, service.name), grace_s=2)
    service.prepare()
    folder = settings.data / "work" / service.name
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    environment = {**variables.marked(settings, service.name), **service.variables}
    os.execvpe(service.command[0], service.command, environment)  # noqa: S606 - no shell is wanted


def _server(server: triton.Server) -> Service:
    model = triton.model_of(server.name)
    return Service(
        name=server.name,
        command=(),
        variables={},
        probe=lambda _: None if triton.answers_ready(server, model) else f"{model or server.name} is not ready at {server.http}",
    )


def airflow_command(settings: Settings, *words: str) -> tuple[str, ...]:
    return (str(settings.python("airflow")), "-m", "airflow", *words)


def _postgres(settings: Settings, keys: Keys) -> Service:
    return Service(
        name="postgres",
        command=postgres.server_command(settings),
        ports=("postgres",),
        variables={},
        prepare=lambda: postgres.prepare_data(settings, keys),
        probe=lambda _: None if postgres.is_ready(settings, keys) else "takes no query yet",
        stop_signal="INT",  # fast shutdown; TERM would wait for every client
        stop_wait_s=30,
        stops_group=False,  # its processes are its own to stop
    )


def _mlflow(settings: Settings, keys: Keys) -> Service:
    address = ("--host", "127.0.0.1", "--port", str(settings.ports.mlflow), "--workers", "1")
    artifacts = ("--serve-artifacts", "--artifacts-destination", str(settings.data / "mlartifacts"))
    return Service(
        name="mlflow",
        command=(str(settings.python("mlflow")), "-m", "mlflow", "server", *address, *artifacts),
        ports=("mlflow",),
        after=("databases",),
        variables=variables.mlflow(settings, keys),
        probe=lambda _: _not_ok(f"{settings.mlflow_url}/health"),
    )


def _airflow(settings: Settings, keys: Keys) -> tuple[Service, ...]:
    common: dict[str, Any] = {"variables": variables.airflow(settings, keys), "after": ("migrations",)}
    # Their log servers would listen on all interfaces; the api-server reads the same log folder.
    no_log_server = "--skip-serve-logs"
    return (
        Service(
            name="api-server",
            command=airflow_command(settings, "api-server"),
            ports=("airflow",),
            probe=lambda _: _not_ok(f"{settings.airflow_url}/api/v2/version"),
            prepare=lambda: write_passwords(settings, keys),
            **common,
        ),
        *(
            Service(name=name, command=airflow_command(settings, name, *flags), probe=_heartbeat(settings, name), **common)
            for name, flags in (("scheduler", (no_log_server,)), ("dag-processor", ()), ("triggerer", (no_log_server,)))
        ),
    )


def _director(settings: Settings, keys: Keys) -> Service:
    ports = ("--http-port", str(settings.ports.director_http), "--grpc-port", str(settings.ports.director_grpc))
    gateway = ("--gateway-admin", f"127.0.0.1:{settings.ports.gateway_admin}")
    limits = settings.gateway
    times = ("--timeout-s", f"{limits.request_timeout_ms / 1000:g}", "--per-try-timeout-s", f"{limits.per_try_timeout_ms / 1000:g}")
    mirrored = ("--recorder-permille", str(settings.recorder.permille))
    return Service(
        name="director",
        command=(str(settings.python("director")), "-m", "delivery.director", *ports, *gateway, *times, *mirrored),
        ports=("director_http", "director_grpc"),
        variables=variables.director(keys),
        probe=lambda _: _not_ok(f"{settings.director_url}/health"),
    )


def _recorder(settings: Settings, keys: Keys) -> Service:
    ports = ("--http-port", str(settings.ports.recorder_http), "--grpc-port", str(settings.ports.recorder_grpc))
    kept = settings.recorder
    days = kept.days_kept if kept.permille else 0
    limits = ("--rows-kept", str(kept.rows_kept), "--days-kept", str(days), "--pairs-per-s", str(kept.pairs_per_s))
    return Service(
        name="recorder",
        command=(str(settings.python("rollout")), "-m", "delivery.recorder", *ports, *limits),
        ports=("recorder_http", "recorder_grpc"),
        variables=variables.recorder(settings, keys),
        probe=lambda _: _not_ok(f"{settings.recorder_url}/health"),
    )


def _envoy(settings: Settings) -> Service:
    bootstrap = settings.data / "envoy" / "bootstrap.json"
    binary = site_packages(settings.environment("envoy")) / "envoy" / "_bin" / "envoy"
    return Service(
        name="envoy",
        command=(str(binary), "-c", str(bootstrap), "--concurrency", "1", "--disable-hot-restart", *_STRICT),
        ports=("gateway", "gateway_admin"),
        after=("director",),
        variables={},
        prepare=lambda: _write_bootstrap(settings, bootstrap),
        probe=lambda _: _not_ok(f"{settings.gateway_admin_url}/ready"),
    )


def _write_bootstrap(settings: Settings, path: Path) -> None:
    ports = settings.ports
    write_bootstrap(
        path,
        files=settings.data / "envoy",
        port=ports.gateway,
        admin_port=ports.gateway_admin,
        director_grpc_port=ports.director_grpc,
        recorder_ports=(ports.recorder_http, ports.recorder_grpc),
    )


def write_passwords(settings: Settings, keys: Keys) -> None:
    """Airflow's simple auth manager reads plain passwords from this file."""
    path = settings.data / "airflow" / "passwords.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {variables.ADMIN_USER: keys.airflow_admin_password, variables.WEBHOOK_USER: keys.airflow_webhook_password}
    path.touch(mode=0o600)
    path.chmod(0o600)
    write_by_rename(path, json.dumps(words).encode(), draft=path)


def _heartbeat(settings: Settings, name: str) -> Probe:
    """Airflow tells of its components over the api-server; a heartbeat from before this start is a dead one's."""
    key = name.replace("-", "_")

    def probe(started_unix_s: float) -> str | None:
        row = _json(f"{settings.airflow_url}/api/v2/monitor/health").get(key) or {}
        latest = row.get(f"latest_{key}_heartbeat")
        if row.get("status") != "healthy" or not latest:
            return f"Airflow calls it {row.get('status') or 'unknown'}"
        fresh = dt.datetime.fromisoformat(latest).timestamp() >= started_unix_s
        return None if fresh else "no heartbeat since its start"

    return probe


def _not_ok(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=3):
            return None
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except (urllib.error.URLError, OSError) as error:
        return f"{url} does not answer ({getattr(error, 'reason', error)})"


def _json(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            row = json.load(answer)
            return row if isinstance(row, dict) else {}
    except (urllib.error.URLError, OSError, ValueError):
        return {}
