"""The demo's surroundings: a state folder of its own, the stack (local, or in containers), and the programs that the demo starts beside it.

`demo.run` uses it and nobody else. The state folder is `demo/` in the usual one, made anew for every demo; virtual environments are shared
by link. Every program gets a session of its own, so that Ctrl-C reaches the demo alone and it can end them in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from stack.docker_host import Host, HostTrouble
from stack.keys import Keys, keys_file
from stack.settings import ROOT, Settings, read_settings

SHARED = ("envs", "uv")
UP_LIMIT_S = 300.0
DOWN_LIMIT_S = 90.0
DRAIN_LIMIT_S = 20.0
OVERRIDE = ROOT / "demo" / "compose.yaml"
BESIDE_AIRFLOW = {"REGISTRY": 420, "PROMETHEUS": 1010, "ALERTMANAGER": 1013}  # ports that the local stack does not have
SUBNETS = {"SUBNET": "0/24", "SUBNET_RANGE": "0/25", "SERVER_ADDRESSES": "128/25"}  # another for each project on one engine
Value = TypeVar("Value")


class DemoFailed(RuntimeError):
    """The demo cannot go on; the message says what was waited for and where to look."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """Something that was started; `out` is its standard output, `errors` the other."""

    name: str
    process: subprocess.Popen[bytes]
    out: Path
    errors: Path

    def succeeded(self) -> bool:
        """False while it runs; raises `DemoFailed` when it failed."""
        status = self.process.poll()
        if status is not None and status != 0:
            raise DemoFailed(f"{self.name} ended with status {status}: {_last_line(self.errors)} (all of it: {self.errors})")
        return status == 0

    def finish(self, limit_s: float) -> None:
        """Waits for it; raises `DemoFailed` when it failed or takes longer."""
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"{self.name} took more than {limit_s:.0f} s; see {self.errors}") from error
        self.succeeded()

    def stop(self) -> None:
        """Asks it to end and waits; a program that does not listen is killed."""
        self.process.terminate()
        try:
            self.process.wait(DRAIN_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stage:
    """Files and programs of one run, below the folder `folder` of the usual state folder."""

    def __init__(self, environ: Mapping[str, str], folder: str = "demo") -> None:
        usual = read_settings(environ)
        self.settings: Settings = dataclasses.replace(usual, state=usual.state / folder)
        self.state = self.settings.state
        self.logs = self.settings.logs
        self.rows = self.state / "rows.npy"
        self.client_lines = self.state / "client.jsonl"
        self.switch = self.state / "new-scanner-permille"
        self._environ = {**environ, "PENSTOCK_STATE": str(self.state)}
        self._running: list[Program] = []

    def fresh(self) -> None:
        """Stops what an earlier demo left running, deletes its data and links the virtual environments in."""
        if self.settings.run.exists():
            self.down()
        if self.state.exists():
            shutil.rmtree(self.state)  # removes links, never what they lead to
        self.logs.mkdir(parents=True)
        self._link_environments()

    def _link_environments(self) -> None:
        for name in SHARED:
            if (self.state.parent / name).exists():
                (self.state / name).symlink_to(self.state.parent / name, target_is_directory=True)

    def up(self) -> None:
        self._stack("up", UP_LIMIT_S)

    def down(self) -> None:
        self._stack("down", DOWN_LIMIT_S)

    def train(self, name: str, *arguments: str) -> Program:
        """`demo.train` in the environment `training`, with the registry's address."""
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "ORT_DISABLE_TELEMETRY": "1"}
        address = {"MLFLOW_TRACKING_URI": self.settings.mlflow_url, **quiet}
        return self._start(name, [str(self.settings.python("training")), "-m", "demo.train", *arguments], address)

    def client(self, model: str) -> Program:
        """`demo.traffic` in this environment."""
        files = ["--rows", str(self.rows), "--out", str(self.client_lines), "--switch", str(self.switch)]
        where = ["--gateway", self.settings.gateway_address, "--model", model]
        return self._start("client", [sys.executable, "-m", "demo.traffic", *where, *files], {})

    def use_new_scanner(self, permille: int) -> None:
        """From now on the client sends this share of its requests from a scanner that only production has."""
        draft = self.switch.with_suffix(".draft")
        draft.write_text(str(permille))
        draft.replace(self.switch)

    def stop_programs(self) -> None:
        for program in self._running:
            program.stop()
        self._running.clear()

    def _start(self, name: str, command: list[str], more: Mapping[str, str]) -> Program:
        out, errors = self.logs / f"demo-{name}.out", self.logs / f"demo-{name}.err"
        with out.open("wb") as to_out, errors.open("wb") as to_errors:
            process = subprocess.Popen(
                command, env={**self._environ, **more}, stdout=to_out, stderr=to_errors, cwd=self.state, start_new_session=True
            )
        program = Program(name=name, process=process, out=out, errors=errors)
        self._running.append(program)
        return program

    def _stack(self, command: str, limit_s: float) -> None:
        """`up` or `down` of the local stack; its words go straight to the screen."""
        process = subprocess.Popen([sys.executable, "-m", "stack", command], env=self._environ, start_new_session=True)
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"`python -m stack {command}` took more than {limit_s:.0f} s; logs: {self.logs}") from error
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if status != 0:
            raise DemoFailed(f"`python -m stack {command}` ended with status {status}; logs: {self.logs}")


class ContainerStage(Stage):
    """The same on docker-compose.yaml, as a project of its own on fresh volumes; the client and the training stay on the host."""

    def __init__(self, environ: Mapping[str, str], folder: str = "demo") -> None:
        super().__init__(environ, folder)
        ports = self.settings.ports
        published = {"AIRFLOW": ports.airflow, "MLFLOW": ports.mlflow, "GATEWAY": ports.gateway, "DIRECTOR": ports.director_http}
        published |= {name: ports.airflow + above for name, above in BESIDE_AIRFLOW.items()}
        number = 1 + crc32(folder.encode()) % 250
        variables = {f"PENSTOCK_{name}_PORT": str(port) for name, port in published.items()}
        variables |= {f"PENSTOCK_{name}": f"10.213.{number}.{part}" for name, part in SUBNETS.items()}
        known = {name: value for name, value in environ.items() if name != "PENSTOCK_STATE"}
        policies = {"PENSTOCK_POLICIES": str(self.settings.policies)}
        self.host = Host({**known, **variables, **policies, "COMPOSE_PROJECT_NAME": f"penstock-{folder}"}, more=[OVERRIDE])

    def fresh(self) -> None:
        self._on_host(lambda: self.host.down(with_data=True))
        if self.state.exists():
            shutil.rmtree(self.state)
        self.logs.mkdir(parents=True)
        self._link_environments()

    def up(self) -> None:
        self._on_host(self.host.up)
        row = json.loads(self._on_host(lambda: self.host.secret("")))
        names = {each.name for each in dataclasses.fields(Keys)}
        path = keys_file(self.state)
        path.touch(mode=0o600)
        path.write_text(json.dumps({name: value for name, value in row.items() if name in names}))

    def down(self) -> None:
        """What the services and tasks said stays beside the report."""
        with contextlib.suppress(DemoFailed):
            (self.logs / "compose.log").write_text(self._on_host(lambda: self.host.compose("logs", "--no-color", "-t", quiet=True)))
        self._on_host(lambda: self.host.down(with_data=True))

    @staticmethod
    def _on_host(act: Callable[[], Value]) -> Value:
        try:
            return act()
        except HostTrouble as error:
            raise DemoFailed(str(error)) from error


def stage_for(environ: Mapping[str, str]) -> Stage:
    """Where PENSTOCK_RUNTIME says: `process` (the local stack) or `docker`. Raises `DemoFailed` for another word."""
    kinds = {"process": Stage, "docker": ContainerStage}
    kind = environ.get("PENSTOCK_RUNTIME") or "process"
    if kind not in kinds:
        raise DemoFailed(f"RUNTIME is {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind](environ)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
