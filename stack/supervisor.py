"""supervisord, which keeps the stack's programs running: its configuration, its start, and what one asks of it.

`stack.up`, `stack.down` and the commands in `stack.__main__` use it. The configuration is rendered from the table of services and holds no
secret; the program files of Tritons are included from `servers/`. It knows no order and no readiness: that is `stack.up`.
"""

from __future__ import annotations

import getpass
import shlex
import subprocess
import xmlrpc.client
from collections.abc import Iterable, Mapping
from typing import Any, cast

from supervisor.xmlrpc import Faults

from delivery.triton import supervisord
from stack import variables
from stack.services import Service
from stack.settings import Settings

LOG_BYTES = "10MB"
ALIVE = frozenset({"STARTING", "RUNNING", "BACKOFF"})


class NotStarted(RuntimeError):
    """The supervisor itself does not start; the message holds its own words."""


def render(services: Iterable[Service], settings: Settings) -> str:
    """The whole configuration. Programs do not start by themselves at first: `stack.up` starts them in order."""
    sections = {
        "unix_http_server": {"file": settings.supervisor_socket, "chmod": "0700"},
        "supervisord": _daemon(settings),
        "rpcinterface:supervisor": {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        **{f"program:{service.name}": _program(service, settings) for service in services},
    }
    # The pattern is relative: supervisord splits it at spaces, and a state folder may have one.
    return "".join(map(_section, sections.items())) + "[include]\nfiles = ../servers/*.conf\n"


def start_daemon(services: Iterable[Service], settings: Settings) -> None:
    """Writes the configuration and starts supervisord as a daemon. Raises `NotStarted`."""
    file = settings.run / "supervisord.conf"
    file.touch(mode=0o600)
    file.write_text(render(services, settings))
    command = [str(settings.python("stack")), "-m", "supervisor.supervisord", "-c", str(file)]
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=variables.base(settings), cwd=settings.run
    )
    if done.returncode != 0:
        raise NotStarted(f"supervisord does not start: {(done.stderr or done.stdout).strip()[-1000:]}")


def is_alive(settings: Settings) -> bool:
    """Whether a supervisord answers on this state folder's socket."""
    try:
        return bool(_rpc(settings).getState()["statename"] == "RUNNING")
    except (OSError, xmlrpc.client.Error):
        return False


def states(settings: Settings) -> dict[str, Mapping[str, Any]]:
    """Supervisord's own rows of all programs by name: statename, pid, start (unix seconds), description, ..."""
    rows = cast("list[dict[str, Any]]", _rpc(settings).getAllProcessInfo())
    return {row["name"]: row for row in rows}


def state_of(settings: Settings, name: str) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", _rpc(settings).getProcessInfo(name))


def start(settings: Settings, name: str) -> None:
    """Asks for a start and returns at once; a program that runs is left alone."""
    _unless(Faults.ALREADY_STARTED, lambda: _rpc(settings).startProcess(name, False))


def stop(settings: Settings, name: str, *, wait: bool) -> None:
    """Stops a program, gracefully first; one that does not run is left alone."""
    _unless(Faults.NOT_RUNNING, lambda: _rpc(settings).stopProcess(name, wait))


def shut_down(settings: Settings) -> None:
    """Asks supervisord to end, with whatever it still runs; returns at once."""
    _rpc(settings).shutdown()


def log_tail(settings: Settings, name: str, lines: int = 15) -> str:
    """The end of a program's log, for an error message."""
    log = settings.logs / f"{name}.log"
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace")[-20_000:].splitlines()[-lines:])


def _daemon(settings: Settings) -> dict[str, Any]:
    return {
        "logfile": settings.logs / "supervisord.log",
        "logfile_maxbytes": LOG_BYTES,
        "logfile_backups": 1,
        "pidfile": settings.run / "supervisord.pid",
        "childlogdir": settings.logs,
        "umask": "077",
        "user": getpass.getuser(),
        "identifier": "penstock",
    }


def _program(service: Service, settings: Settings) -> dict[str, Any]:
    return {
        "command": shlex.join([str(settings.python("stack")), "-m", "stack", "run", service.name]),
        "autostart": "false",
        "autorestart": "true",
        "startsecs": 2,
        "startretries": 10,  # with pauses of 1, 2, 3, ... s: long enough for a database that recovers from a crash
        "stopsignal": service.stop_signal,
        "stopwaitsecs": service.stop_wait_s,
        "stopasgroup": str(service.stops_group).lower(),
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": settings.logs / f"{service.name}.log",
        "stdout_logfile_maxbytes": LOG_BYTES,
        "stdout_logfile_backups": 2,
    }


def _section(item: tuple[str, Mapping[str, Any]]) -> str:
    name, values = item
    lines = [f"{key} = {str(value).replace('%', '%%')}\n" for key, value in values.items()]
    return f"[{name}]\n{''.join(lines)}\n"


def _rpc(settings: Settings) -> Any:
    return supervisord(str(settings.supervisor_socket))


def _unless(forgiven: int, call: Any) -> None:
    try:
        call()
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != forgiven:
            raise
