"""Starts and stops one Triton server per model version, as programs of the local supervisord.

`start_candidate`, `promote` and `restore` call it, and the local stack for its XML-RPC connection. A server's program file below
`servers/` is the durable wish that it runs: supervisord brings it back after a crash, and the whole stack after a restart. It decides
nothing about traffic, loads nothing into a running server, and does not look into answers: `start_candidate` probes.

Environment: PENSTOCK_STATE, PENSTOCK_SUPERVISOR (supervisord's unix socket), PENSTOCK_TRITON (command that starts a Triton, in shell
words), PENSTOCK_TRITON_PORTS ("first-last", three consecutive ports a server).
"""

from __future__ import annotations

import configparser
import fcntl
import os
import re
import shlex
import socket
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from supervisor.xmlrpc import Faults, SupervisorTransport

from delivery.gateway import write_by_rename

ARCHIVE = "archive"  # the one server that has many versions loaded, see `delivery.archive`
NAME = re.compile(rf"[a-z][a-z0-9]*(-[a-z0-9]+)*--v[1-9][0-9]*|{ARCHIVE}")
PORTS_PER_SERVER = 3  # http, grpc, metrics
POLL_S = 0.05
START_RETRIES = "1000"  # a stable version must come back from whatever goes by; who waits for a start gives up at the first failure
STOP_WAIT_S = 15  # well above the launcher's exit timeout
LOG_TAIL_BYTES = 20_000
REASON_LIMIT = 400
START_LINE = "starting Triton "  # the launcher's first words
ALIVE = frozenset({"STARTING", "RUNNING"})


class NotReady(RuntimeError):
    """The server cannot serve its model: the model's fault. The message is the reason from the server's own log."""


class ServerTrouble(RuntimeError):
    """No server to judge the model by: Triton cannot run here, its port was taken, or it took too long. Our fault, worth a retry."""


class NoFreePorts(RuntimeError):
    """All port slots are taken: stop a server, or widen the range in the settings."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A Triton server's name and its addresses, each "127.0.0.1:port"."""

    name: str
    http: str
    grpc: str
    metrics: str


def server_name(model: str, version: int) -> str:
    return f"{model}--v{version}"


def model_of(name: str) -> str:
    """The model that a server of this name has loaded; the archive's is empty."""
    return name.rpartition("--v")[0]


def ports_of(server: Server) -> dict[str, int]:
    """Its ports by what they are for: http, grpc, metrics."""
    return {kind: _port(getattr(server, kind)) for kind in ("http", "grpc", "metrics")}


def start_server(name: str, repository: Path) -> Server:
    """Lets supervisord run a Triton on `repository`; returns at once, see `wait_ready`. The same again changes nothing.

    Raises `ValueError` when a server of this name serves another repository, `NoFreePorts`, and `OSError` without supervisord.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"server name {name!r}: expected <model>--v<version>")
    with _one_at_a_time():
        known = _programs(_state()).get(name)
        if known and known.repository != str(repository):
            raise ValueError(f"{name} serves {known.repository} already; stop it before it can serve {repository}")
        server = known.server if known else _write_program(name, repository)
        _ensure_runs(name)
        return server


def stop_server(name: str) -> None:
    """Stops the server and forgets its program; stopping what is not there changes nothing. Take its traffic away first."""
    with _one_at_a_time():
        supervisor = supervisord(_socket())
        for step in (supervisor.stopProcessGroup, supervisor.removeProcessGroup):
            _forgiving(step, name, {Faults.BAD_NAME, Faults.NOT_RUNNING})
        _program_file(name).unlink(missing_ok=True)


def running() -> dict[str, Server]:
    """The servers that are meant to run, by name, whether or not they are ready."""
    return servers(_state())


def servers(state: Path) -> dict[str, Server]:
    """The same of a state folder; the local stack asks, without this module's environment variables."""
    return {name: program.server for name, program in _programs(state).items()}


def repository_of(name: str) -> Path:
    """The folder that this server was given. Raises `ServerTrouble` when there is no such server."""
    known = _programs(_state()).get(name)
    if known is None:
        raise ServerTrouble(f"there is no server {name}")
    return Path(known.repository)


def wait_ready(server: Server, model: str, timeout_s: float) -> float:
    """Waits until the server says that `model` is ready; returns the seconds it took.

    Raises `NotReady` as soon as the process ends over the model, `ServerTrouble` when it ends over something else or `timeout_s` is over.
    """
    start, first_pid = time.monotonic(), 0
    while (waited := time.monotonic() - start) < timeout_s:
        if answers_ready(server, model):
            return waited
        info = cast("Mapping[str, Any]", supervisord(_socket()).getProcessInfo(server.name))
        first_pid = first_pid or info["pid"]
        if info["statename"] not in ALIVE or info["pid"] not in {0, first_pid}:
            raise ended(server.name, model, _log_tail(server.name))
        time.sleep(POLL_S)
    raise ServerTrouble(f"{server.name} was not ready with {model} after {timeout_s:g} s: {reason_in(_log_tail(server.name))}")


def answers_ready(server: Server, model: str) -> bool:
    """Whether the server itself calls the model ready, or itself for no model. It says so too when the model's process is dead: probe with
    real rows.
    """
    ready = f"models/{model}/ready" if model else "health/ready"
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/{ready}", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def supervisord(path: str) -> Any:
    """Supervisord's XML-RPC methods over its unix socket. Made anew for each use: a connection is not shared between threads."""
    transport = SupervisorTransport("", "", f"unix://{path}")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=cast("Any", transport)).supervisor


def reason_in(log: str) -> str:
    """The sentence of a Triton log that says why it does not serve: the model table's status, else the last error line.

    Logs of earlier starts stand before it: only what follows the last start counts.
    """
    log = log.rpartition(START_LINE)[2]
    statuses = re.findall(r"UNAVAILABLE: ([^|\n]*?)\s*(?:\||$)", log, re.MULTILINE)
    errors = re.findall(r"^(?:error: |cannot start Triton: |E\d{4} \S+ \d+ \S+ )(.*)$", log, re.MULTILINE)
    lines = [line for line in log.splitlines() if line.strip()]
    found = statuses[-1:] or errors[-1:] or lines[-1:] or ["its log is empty"]
    return str(found[0]).strip(' "')[:REASON_LIMIT]


@dataclass(frozen=True, kw_only=True)
class _Program:
    server: Server
    repository: str


def _write_program(name: str, repository: Path) -> Server:
    slot = _free_slot({_port(program.server.http) for program in _programs(_state()).values()})
    ports = {"http": slot, "grpc": slot + 1, "metrics": slot + 2}
    flags = [word for kind, port in ports.items() for word in (f"--{kind}", str(port))]
    flags += ["--keep-going"] if name == ARCHIVE else []
    command = [*shlex.split(os.environ["PENSTOCK_TRITON"]), "--name", name, "--repository", str(repository), *flags]
    lines = {
        "command": shlex.join(command),
        "autorestart": "true",
        "startsecs": "2",
        "startretries": START_RETRIES,
        "stopwaitsecs": str(STOP_WAIT_S),
        "stopasgroup": "false",  # the server ends its stubs itself, after the requests that they still run
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": str(_state() / "logs" / f"{name}.log"),
        "stdout_logfile_maxbytes": "5MB",
        "stdout_logfile_backups": "1",
    }
    text = "".join(f"{key}={value.replace('%', '%%')}\n" for key, value in lines.items())
    file = _program_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_by_rename(file, f"[program:{name}]\n{text}".encode())
    return _addresses(name, ports)


def _ensure_runs(name: str) -> None:
    supervisor = supervisord(_socket())
    supervisor.reloadConfig()
    _forgiving(supervisor.addProcessGroup, name, {Faults.ALREADY_ADDED})
    state = supervisor.getProcessInfo(name)["statename"]
    if state == "BACKOFF":  # a fresh start now, and no verdict over the last one's log
        _forgiving(supervisor.stopProcess, name, {Faults.NOT_RUNNING})
    if state not in ALIVE:
        _forgiving(lambda program: supervisor.startProcess(program, False), name, {Faults.ALREADY_STARTED})


def _programs(state: Path) -> dict[str, _Program]:
    return {file.stem: _read_program(file) for file in sorted((state / "servers").glob("*.conf"))}


def _read_program(file: Path) -> _Program:
    parser = configparser.ConfigParser()  # its %% is supervisord's
    parser.read(file)
    words = shlex.split(parser[f"program:{file.stem}"]["command"])
    flags = dict(pairwise(words))
    ports = {kind: int(flags[f"--{kind}"]) for kind in ("http", "grpc", "metrics")}
    return _Program(server=_addresses(file.stem, ports), repository=flags["--repository"])


def _addresses(name: str, ports: Mapping[str, int]) -> Server:
    return Server(name=name, **{kind: f"127.0.0.1:{port}" for kind, port in ports.items()})


def _free_slot(taken: set[int]) -> int:
    first, last = (int(word) for word in os.environ["PENSTOCK_TRITON_PORTS"].split("-"))
    for slot in range(first, last - PORTS_PER_SERVER + 2, PORTS_PER_SERVER):
        if slot not in taken and all(_is_free(slot + i) for i in range(PORTS_PER_SERVER)):
            return slot
    raise NoFreePorts(f"no three free ports from {first} to {last}: {len(taken)} servers run; stop one, or widen the range in the settings")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def ended(name: str, model: str, log: str) -> NotReady | ServerTrouble:
    """Whose fault it is that a server ended: the model's where Triton's table of models says so."""
    kind = NotReady if "UNAVAILABLE: " in log.rpartition(START_LINE)[2] else ServerTrouble
    return kind(f"{name} ended while it loaded {model}: {reason_in(log)}")


def _log_tail(name: str) -> str:
    try:
        return str(supervisord(_socket()).tailProcessStdoutLog(name, 0, LOG_TAIL_BYTES)[0])
    except xmlrpc.client.Fault as fault:
        return fault.faultString


def _forgiving(call: Any, name: str, forgiven: set[int]) -> None:
    try:
        call(name)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode not in forgiven:
            raise


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Tasks of several deliveries start and stop servers at the same time; the port slots are theirs to share."""
    lock = _state() / "run" / "servers.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def _program_file(name: str) -> Path:
    return _state() / "servers" / f"{name}.conf"


def _state() -> Path:
    return Path(os.environ["PENSTOCK_STATE"])


def _socket() -> str:
    return os.environ["PENSTOCK_SUPERVISOR"]
