"""Reads `settings.toml`: ports and the few numbers of the local stack that a user may change; and finds the state folder.

Everything in `stack`, the demo and the bench asks here for an address. Unknown, missing and impossible values raise `BadSettings`, which
names the key. Nothing secret stands in settings: see `stack.keys`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the checkout; environments reach this file through a link
STATE = ".penstock"  # the state folder, relative to the checkout, unless PENSTOCK_STATE names another
STATE_PATH = re.compile(r"[A-Za-z0-9_./+@-]+")  # Triton starts its backends through a shell, without quoting their paths
SUBSTACKS = ("demo", "bench", "e2e")  # folders of whole stacks below a state folder, each with a state of its own
SOCKET_LIMIT = 107 - 8  # bytes of a unix socket's path, unix(7), less the ".<pid>" under which supervisord makes it


class BadSettings(ValueError):
    """Settings that cannot be used; the message names the file, the key and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """TCP ports on 127.0.0.1. `triton_first` to `triton_last` is a range, both included."""

    postgres: int
    mlflow: int
    airflow: int
    director_http: int
    director_grpc: int
    recorder_http: int
    recorder_grpc: int
    gateway: int
    gateway_admin: int
    triton_first: int
    triton_last: int

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _need(1024 <= getattr(self, each.name) <= 65535, f"ports.{each.name} must be from 1024 to 65535")
        _need(self.triton_last - self.triton_first >= 5, "ports.triton_first to triton_last must hold two servers: six ports at least")
        fixed = self.fixed()
        _need(len(set(fixed.values())) == len(fixed), "ports: two services have the same port")
        inside = [name for name, port in fixed.items() if self.triton_first <= port <= self.triton_last]
        _need(not inside, f"ports.{''.join(inside[:1])} lies in the range of Triton's ports")

    def fixed(self) -> dict[str, int]:
        """The ports of the services that always run, by name."""
        return {name: port for name, port in dataclasses.asdict(self).items() if not name.startswith("triton_")}


@dataclass(frozen=True, kw_only=True)
class Airflow:
    parallelism: int
    api_workers: int

    def __post_init__(self) -> None:
        _need(1 <= self.parallelism <= 64, "airflow.parallelism must be from 1 to 64")
        _need(2 <= self.api_workers <= 16, "airflow.api_workers must be from 2 to 16: the webhook plugin calls its own server")


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What a request may take, in milliseconds. The first holds only where another server can take over."""

    per_try_timeout_ms: int
    request_timeout_ms: int

    def __post_init__(self) -> None:
        # A server that is taken away is waited for so long: its last requests must be over before the director gives up.
        _need(10 <= self.request_timeout_ms <= 30_000, "gateway.request_timeout_ms must be from 10 to 30000")
        _need(10 <= self.per_try_timeout_ms <= self.request_timeout_ms, "gateway.per_try_timeout_ms must be from 10 to request_timeout_ms")


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """What is kept of users' requests, and how often both versions are asked; see `delivery.recorder`."""

    permille: int
    rows_kept: int
    days_kept: int
    pairs_per_s: int

    def __post_init__(self) -> None:
        _need(0 <= self.permille <= 1000, "recorder.permille must be from 0 to 1000")
        _need(1 <= self.rows_kept <= 1_000_000, "recorder.rows_kept must be from 1 to 1000000")
        _need(1 <= self.days_kept <= 366, "recorder.days_kept must be from 1 to 366")
        _need(1 <= self.pairs_per_s <= 1000, "recorder.pairs_per_s must be from 1 to 1000")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`state` and `policies` are absolute; the folder layout below `state` is fixed (see the properties)."""

    state: Path
    ports: Ports
    airflow: Airflow
    gateway: Gateway
    recorder: Recorder
    policies: Path = ROOT / "dags" / "policies"

    def __post_init__(self) -> None:
        _checked(self.state)
        below = 0 if self.state.name in SUBSTACKS else max(len(f"/{name}") for name in SUBSTACKS)
        over = len(str(self.supervisor_socket)) + below - SOCKET_LIMIT
        _need(over <= 0, f"the state folder {self.state} is {over} bytes too long for the sockets below it: set PENSTOCK_STATE")

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def data(self) -> Path:
        return self.state / "data"

    @property
    def servers(self) -> Path:
        return self.state / "servers"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.mlflow}"

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.airflow}"

    @property
    def director_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.director_http}"

    @property
    def recorder_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.recorder_http}"

    @property
    def gateway_address(self) -> str:
        """Host and port of the gateway, for HTTP and gRPC alike."""
        return f"127.0.0.1:{self.ports.gateway}"

    @property
    def gateway_admin_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.gateway_admin}"

    def environment(self, name: str) -> Path:
        return self.state / "envs" / name

    def python(self, environment: str) -> Path:
        return self.environment(environment) / "bin" / "python"


SECTIONS: Mapping[str, type[Any]] = {"ports": Ports, "airflow": Airflow, "gateway": Gateway, "recorder": Recorder}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings file that PENSTOCK_SETTINGS names, or the checkout's; folders from PENSTOCK_STATE and PENSTOCK_POLICIES if set."""
    path = Path(environ.get("PENSTOCK_SETTINGS") or ROOT / "stack" / "settings.toml")
    try:
        row = _read(path)
        _only(row, list(SECTIONS), "")
        sections = {name: _section(row, name, cls) for name, cls in SECTIONS.items()}
    except (BadSettings, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"{path}: {error}") from error
    policies = (ROOT / (environ.get("PENSTOCK_POLICIES") or Settings.policies)).absolute()
    return Settings(state=state_folder(environ), policies=policies, **sections)


def state_folder(environ: Mapping[str, str]) -> Path:
    """The state folder alone, absolute. The Makefile finds it by the same rule. Raises `BadSettings`."""
    return _checked((ROOT / (environ.get("PENSTOCK_STATE") or STATE)).absolute())


def _checked(state: Path) -> Path:
    advice = "set PENSTOCK_STATE to a path of A-Za-z0-9_./+@-"
    _need(STATE_PATH.fullmatch(str(state)) is not None, f"no Triton could start from the state folder {str(state)!r}: {advice}")
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}") from error


def _section(row: Mapping[str, Any], name: str, cls: type[Any]) -> Any:
    values = row[name]
    _need(isinstance(values, dict), f"{name} must be a table")
    _only(values, [each.name for each in dataclasses.fields(cls)], f"{name}.")
    for key, value in values.items():
        _need(type(value) is int, f"{name}.{key} is {value!r}; expected a whole number")
    return cls(**values)


def _only(row: Mapping[str, Any], known: list[str], place: str) -> None:
    if unknown := sorted(set(row) - set(known)):
        raise BadSettings(f"unknown key {place}{unknown[0]}; allowed here: {', '.join(known)}")
    if missing := [name for name in known if name not in row]:
        raise BadSettings(f"missing key {place}{missing[0]}")


def _need(holds: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise BadSettings(why)
