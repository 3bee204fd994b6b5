"""Brings the local stack up, in order, and says where everything is; a stack that is up is checked and left alone.

`make up`, the demo, the bench and the whole-system tests call `bring_up`. What a killed supervisor left behind ends first; Tritons of
earlier deliveries come back with the rest. Programs that crash later are supervisord's business.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import subprocess
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from supervisor.xmlrpc import Faults

from delivery import triton
from stack import postgres, processes, supervisor, variables, webhook
from stack.environments import RUNNING, ensure
from stack.keys import Keys, keys_file, read_or_make_keys
from stack.services import Service, airflow_command, servers, table
from stack.settings import ROOT, Settings

POLL_S = 0.1
WEBHOOK_S = 60.0
POOLS = ROOT / "docker" / "airflow" / "pools.json"
GLIBC_NEEDED = (2, 35)  # Triton's wheel is built for it


class NotUp(RuntimeError):
    """The stack cannot come up; the message names the part and says what to do."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One part of the way up, done once all of `after` is done."""

    name: str
    after: tuple[str, ...]
    act: Callable[[], None]


Say = Callable[[str], None]


def bring_up(settings: Settings, say: Say = print) -> None:
    """Everything running and ready, or `NotUp` with the reason; then what already runs stays up, for its logs to be read."""
    check_machine()
    check_policies(settings)
    make_folders(settings)
    with only_one(settings):
        ensure(RUNNING, settings.state)
        keys = read_or_make_keys(settings.state)
        services = table(settings, keys)
        alive = supervisor.is_alive(settings)
        if not alive:
            clear_leftovers(settings, say)
        check_ports(_ports_to_take(services.values(), settings, _states(settings) if alive else {}))
        if not alive:
            supervisor.start_daemon(services.values(), settings)
        walk({**_steps(services, settings, keys), **_server_steps(settings)}, say)


def addresses(settings: Settings) -> str:
    """Where a person finds things."""
    return "\n".join(
        [
            f"Airflow   {settings.airflow_url}   user {variables.ADMIN_USER}",
            f"          password: airflow_admin_password in {keys_file(settings.state)}",
            f"MLflow    {settings.mlflow_url}",
            f"models    http://{settings.gateway_address}/v2/models/<model>/infer   (gRPC on the same port, with header x-model: <model>)",
            f"director  {settings.director_url}   gateway admin {settings.gateway_admin_url}",
            f"logs      {settings.logs}",
        ]
    )


def check_machine() -> None:
    """Raises `NotUp` on a machine whose system cannot run the wheels."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NotUp(f"this is {platform.system()} on {platform.machine()}; Triton's and Envoy's wheels need Linux on x86_64")
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < GLIBC_NEEDED:
        raise NotUp(f"the C library is {library or 'not glibc'} {version}; Triton needs glibc 2.35 (Ubuntu 22.04, Debian 12)")


def check_policies(settings: Settings) -> None:
    """Raises `NotUp` without a folder of policies: no version could ever be delivered. Bad files in it are their own models' trouble."""
    if not settings.policies.is_dir():
        raise NotUp(f"there is no folder of policies at {settings.policies}: make it, or set PENSTOCK_POLICIES to yours")


def make_folders(settings: Settings) -> None:
    """The state folder's own folders, closed to other users."""
    settings.state.mkdir(parents=True, exist_ok=True)
    for folder in (settings.run, settings.logs, settings.data, settings.servers, settings.state / "store", settings.state / "jobs"):
        folder.mkdir(mode=0o700, exist_ok=True)


def check_ports(wanted: Mapping[str, int]) -> None:
    """Raises `NotUp` naming every one of these ports that is taken, by whom, and where to change it."""
    taken = {name: processes.holder_of(port) for name, port in wanted.items()}
    lines = [f"port {wanted[name]} ({name}) is taken by {who}" for name, who in taken.items() if who]
    if lines:
        raise NotUp("\n".join([*lines, "stop it; the port of a service can be changed in stack/settings.toml under [ports]"]))


def _ports_to_take(services: Iterable[Service], settings: Settings, states: Mapping[str, str]) -> dict[str, int]:
    """Ports by name of what does not run now, services and Tritons; `states` are supervisord's words by program, none when it is down."""
    fixed = {
        name: settings.ports.fixed()[name] for each in services if states.get(each.name) not in supervisor.ALIVE for name in each.ports
    }
    stopped = [server for name, server in triton.servers(settings.state).items() if states.get(name) not in triton.ALIVE]
    return fixed | {f"{server.name} {kind}": port for server in stopped for kind, port in triton.ports_of(server).items()}


def clear_leftovers(settings: Settings, say: Say) -> None:
    """Ends processes of this state folder that no supervisor looks after, and removes what they left in the file system."""
    orphans = processes.ours(settings.state)
    if orphans:
        say(f"ending {len(orphans)} processes that a killed stack left behind")
    if stubborn := processes.end(orphans, grace_s=5):
        raise NotUp(f"pid {stubborn[0].pid} of an earlier stack does not end, not even by SIGKILL: restart the machine")
    for name in (settings.supervisor_socket, settings.run / "supervisord.pid"):
        name.unlink(missing_ok=True)
    processes.remove_shared_memory(shared_memory_prefix(settings))


def shared_memory_prefix(settings: Settings) -> str:
    """How the names of this stack's regions in /dev/shm begin; docker/triton/serve.py names them."""
    return f"penstock-{hashlib.sha256(str(settings.state).encode()).hexdigest()[:10]}-"


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Of two `up` or `down` at the same time, the second is refused."""
    with (settings.run / "stack.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotUp(f"another `stack up` or `stack down` works on {settings.state}: wait for it to end") from error
        yield


def walk(steps: Mapping[str, Step], say: Say) -> None:
    """Acts on each step as soon as those before it are done, side by side; raises the first failure after all have ended."""
    done: dict[str, Future[None]] = {}

    def act(step: Step) -> None:
        for name in step.after:
            done[name].result()
        start = time.monotonic()
        step.act()
        say(f"  {step.name:<14} {time.monotonic() - start:5.1f} s")

    with ThreadPoolExecutor(len(steps)) as pool:
        for step in steps.values():
            done[step.name] = pool.submit(act, step)
    for future in done.values():
        future.result()


def wait_ready(service: Service, settings: Settings) -> None:
    """Returns once the service runs and its probe is content. Raises `NotUp` with the end of its log."""
    end = time.monotonic() + service.ready_within_s
    while (why := trouble(service, settings, row := supervisor.state_of(settings, service.name))) is not None:
        if row["statename"] == "FATAL" or time.monotonic() > end:
            log = supervisor.log_tail(settings, service.name)
            raise NotUp(f"{service.name} is {row['statename']} and not ready: {why}. The end of {settings.logs / service.name}.log:\n{log}")
        time.sleep(POLL_S)


def trouble(service: Service, settings: Settings, row: Mapping[str, Any]) -> str | None:
    """Why the service is not ready, or None; `row` is supervisord's of it. What a killed run left behind may answer at its ports: it must
    hold them itself.
    """
    if row["statename"] not in {"STARTING", "RUNNING"}:
        return f"does not run: its log is {service.name}.log"
    foreign = [name for name in service.ports if not processes.listens(row["pid"], settings.ports.fixed()[name])]
    return f"does not listen on its port `{foreign[0]}` yet" if foreign else service.probe(row["start"])


def _steps(services: Mapping[str, Service], settings: Settings, keys: Keys) -> dict[str, Step]:
    """Each after those that it needs; what is not a service is done once and is quick when nothing is to do."""
    start = {name: Step(name=name, after=each.after, act=_starter(each, settings)) for name, each in services.items()}
    databases = Step(name="databases", after=("postgres",), act=lambda: postgres.make_databases(settings, keys))
    migrations = Step(name="migrations", after=("databases",), act=lambda: migrate(settings, keys))
    events = Step(name="webhook", after=("mlflow",), act=lambda: _register(settings, keys))
    return {"postgres": start.pop("postgres"), "databases": databases, "migrations": migrations, **start, "webhook": events}


def _server_steps(settings: Settings) -> dict[str, Step]:
    """One for each Triton that supervisord knows: it has started them by itself, or gave one up, which starts again here."""
    known = supervisor.states(settings)
    return {
        name: Step(name=name, after=(), act=_unless_taken_away(_starter(each, settings)))
        for name, each in servers(settings).items()
        if name in known
    }


def _unless_taken_away(act: Callable[[], None]) -> Callable[[], None]:
    """A delivery may stop its server while `up` waits for it: then nothing is missing."""

    def forgiving() -> None:
        try:
            act()
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.BAD_NAME:
                raise

    return forgiving


def _states(settings: Settings) -> dict[str, str]:
    return {name: row["statename"] for name, row in supervisor.states(settings).items()}


def _starter(service: Service, settings: Settings) -> Callable[[], None]:
    def act() -> None:
        if supervisor.state_of(settings, service.name)["statename"] not in supervisor.ALIVE:
            supervisor.start(settings, service.name)
        wait_ready(service, settings)

    return act


def migrate(settings: Settings, keys: Keys) -> None:
    """Airflow's tables, made or brought to this lock's version, and its pools; skipped when all are as the last migration left them."""
    stamp = settings.data / "airflow" / "migrated"
    if stamp.exists() and stamp.read_text() == _migration(settings, keys):
        return
    environment = {**variables.marked(settings, "migrations"), **variables.airflow(settings, keys)}
    log = settings.logs / "migrations.log"
    with log.open("w") as file:
        for words in (("db", "migrate"), ("pools", "import", str(POOLS))):
            command = airflow_command(settings, *words)
            done = subprocess.run(command, check=False, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=settings.data)
            if done.returncode != 0:
                raise NotUp(f"Airflow cannot prepare its database. The end of {log}:\n{supervisor.log_tail(settings, 'migrations')}")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(_migration(settings, keys))


def _migration(settings: Settings, keys: Keys) -> str:
    lock = hashlib.sha256((ROOT / "docker" / "airflow" / "requirements.txt").read_bytes() + POOLS.read_bytes()).hexdigest()
    try:
        revision = postgres.query(settings, keys, "airflow", "select version_num from alembic_version").strip()
    except postgres.DatabaseFailed:  # no such table yet
        revision = "none"
    return f"{lock} {revision}"


def _register(settings: Settings, keys: Keys) -> None:
    """Waits for what comes in its place: a registry killed a moment ago may have answered with its last breath that it is ready."""
    end_s = time.monotonic() + WEBHOOK_S
    while True:
        try:
            webhook.register(settings.mlflow_url, settings.airflow_url, keys)
        except httpx.TransportError as error:
            if time.monotonic() > end_s:
                raise _no_webhook(settings, error) from error
            time.sleep(POLL_S)
        except httpx.HTTPError as error:
            raise _no_webhook(settings, error) from error
        else:
            return


def _no_webhook(settings: Settings, error: Exception) -> NotUp:
    return NotUp(f"MLflow does not take the webhook: {error}. See {settings.logs / 'mlflow.log'}")
