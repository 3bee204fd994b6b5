"""The whole system to try things on: starts it beside any other stack, registers versions, follows deliveries, kills parts of it.

`bench` measures on it and the tests in `tests/e2e` judge it. It waits by looking, with deadlines that only a fault reaches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from demo.services import WRITE_TIMEOUT_S, Airflow, Director, NotNow, Registry, Version
from demo.stage import Stage
from stack import processes, supervisor
from stack.keys import read_keys
from stack.services import servers, table
from stack.settings import ROOT, state_folder
from stack.up import shared_memory_prefix, trouble

MODEL = "digits"
DELIVER = f"deliver_{MODEL}"
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")
PORT_SHIFT = 2000  # away from a stack that a developer may have up
Changes = tuple[tuple[str, str], ...]
BUSY: Changes = (
    ("rate_per_s = 100\n", "rate_per_s = 400\n"),  # as many queries in less time
    ("p50_ms = 25\n", "p50_ms = 250\n"),
    ("p99_ms = 100\n", "p99_ms = 1000\n"),
    ("indifferent_below_ms = 50 ", "indifferent_below_ms = 1000 "),
    ("late_ms = 10 ", "late_ms = 200 "),
    ("taken_share = 0.1 ", "taken_share = 0.5 "),
)
"""The policy's words in another's place, for who tries where things run and not how fast, on a machine that is busy with it."""
Found = TypeVar("Found")


class Unexpected(AssertionError):
    """The system did not do what was waited for; the message says what, and where the logs are."""


class World:
    """One stack in the folder `name` of the state folder, on ports of its own, with the demo's client."""

    delivery_s = 420.0  # what a delivery may take

    def __init__(self, environ: Mapping[str, str], name: str, changes: Changes = (), stage: type[Stage] = Stage) -> None:
        """`changes` to the policy's words, from the start. `stage`: its place."""
        self._changes = changes
        settings = shifted_settings(state_folder(environ))
        self.policies = state_folder(environ) / name / "policies"
        environ = {**environ, "PENSTOCK_SETTINGS": str(settings), "PENSTOCK_POLICIES": str(self.policies)}
        self.stage = stage(environ, folder=name)
        self.state = self.stage.state
        self.excused_errors = 0  # of the client's, while what it needs was itself dead

    def open(self) -> None:
        """The stack up on fresh data, its DAGs loaded."""
        self.stage.fresh()
        self._copy_policies()
        self._link_each_environment()
        self.stage.up()
        settings, keys = self.stage.settings, read_keys(self.state)
        self.registry = Registry(settings.mlflow_url)
        self.airflow = Airflow(settings.airflow_url, keys.airflow_admin_password)
        self.director = Director(settings.director_url, keys.director_token)
        self.until(lambda: self.airflow.knows(DELIVER) or None, "the DAG to be loaded", 120)

    def open_with_traffic(self) -> None:
        """The same, with the client running and v1 stable."""
        self.open()
        self.stage.train("rows", "--rows", str(self.stage.rows)).finish(120)
        self.stage.client(MODEL)
        if (outcome := self.outcome(self.deliver("v1"))) != "promoted":
            raise Unexpected(f"v1 ended as {outcome}: {self.why(1)}")

    def close(self) -> None:
        self.stage.stop_programs()
        self.stage.down()

    def _copy_policies(self) -> None:
        shutil.copytree(ROOT / "dags" / "policies", self.policies)
        file = self.policies / f"{MODEL}.toml"
        file.write_text(_changed(file.read_text(), self._changes))

    def _link_each_environment(self) -> None:
        """A folder of links in place of one link, so that one environment can be another for a while."""
        envs = self.state / "envs"
        shared = envs.resolve()
        envs.unlink()
        envs.mkdir()
        for each in shared.iterdir():
            (envs / each.name).symlink_to(each, target_is_directory=True)

    @contextmanager
    def environment_runs(self, name: str, script: str) -> Iterator[None]:
        """Meanwhile tasks of this environment are run by a shell script; it knows the real interpreter as `$REAL`."""
        link, fake = self.state / "envs" / name, self.state / "fakes" / name
        real = link.resolve()
        python = fake / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\nREAL={real}/bin/python\n{script}\n")
        python.chmod(0o700)
        _relink(link, fake)
        try:
            yield
        finally:
            _relink(link, real)

    def write_policy(self, model: str, text: str) -> None:
        """By rename, and Airflow's DAG processor is asked to read its DAGs again at once."""
        draft = self.policies / f"{model}.draft"
        draft.write_text(text)
        draft.replace(self.policies / f"{model}.toml")
        self.airflow.reparse(DELIVER)
        self.airflow.reparse("registry_sweep")

    @contextmanager
    def policy_with(self, *changes: tuple[str, str]) -> Iterator[None]:
        """Meanwhile the policy has other words; each must stand in it."""
        with self.policy_is(_changed(self.policy(), changes)):
            yield

    @contextmanager
    def policy_is(self, text: str) -> Iterator[None]:
        """Meanwhile this is the policy."""
        before = self.policy()
        self.write_policy(MODEL, text)
        try:
            yield
        finally:
            self.write_policy(MODEL, before)

    def policy(self, model: str = MODEL) -> str:
        return (self.policies / f"{model}.toml").read_text()

    def deliver(self, recipe: str) -> int:
        """Trains and registers a version; its event starts the delivery. Returns the version's number."""
        program = self.stage.train(f"train-{recipe}", "--recipe", recipe, "--model", MODEL)
        program.finish(120)
        return self.newest()

    def register(self, source: str, model: str = MODEL, **more: Any) -> int:
        """A version made through MLflow's REST API, marked unless `tags` say otherwise, whatever stands behind it. Returns its number."""
        body = {"name": model, "source": source, "tags": [{"key": "candidate", "value": "true"}], **more}
        return int(self.mlflow("POST", "model-versions/create", json=body)["model_version"]["version"])

    def newest(self) -> int:
        answer = self.mlflow("GET", "model-versions/search", params={"filter": f"name='{MODEL}'"})
        return max(int(each["version"]) for each in answer["model_versions"])

    def version(self, number: int, model: str = MODEL) -> Version | None:
        return self.registry.version(model, number)

    def register_again(self, number: int) -> int:
        """The same model once more, without the marker, so that no event delivers it. Returns the new number."""
        row = self.mlflow("GET", "model-versions/get", params={"name": MODEL, "version": str(number)})["model_version"]
        body = {"name": MODEL, "source": row["source"], "run_id": row["run_id"], "model_id": row["source"].removeprefix("models:/")}
        return int(self.mlflow("POST", "model-versions/create", json=body)["model_version"]["version"])

    def ended(self, number: int, run: str, limit_s: float | None = None) -> str:
        """Waits for the end of a run that a person started; the version's outcome then."""
        self.until(
            lambda: self.airflow.run_state(DELIVER, run) in ("success", "failed") or None, f"the end of {run}", limit_s or self.delivery_s
        )
        version = self.version(number)
        return version.outcome if version else ""

    def outcome(self, number: int, limit_s: float | None = None) -> str:
        """Waits for the delivery's outcome and for its run to be over."""
        self.until(
            lambda: found if (found := self.version(number)) and found.outcome else None, f"v{number}'s outcome", limit_s or self.delivery_s
        )
        self.until(lambda: self.run_state(number) in ("success", "failed") or None, f"the end of v{number}'s run", 120)
        return self.until(lambda: self.version(number), f"v{number}", 30).outcome  # a bake may have undone what was promoted

    def why(self, number: int) -> str:
        version = self.version(number)
        return version.tags.get("penstock.why", "") if version else ""

    def findings(self, number: int, task: str) -> dict[str, dict[str, Any]]:
        """What a task of the version's ended delivery found, by name, as its evidence in the registry holds it."""
        version = self.version(number)
        place = version.tags.get("penstock.evidence", "") if version else ""
        place = place.replace("http://mlflow:5000", self.stage.settings.mlflow_url)  # as containers call the registry
        answer = httpx.get(f"{place}/{task}/findings.json", timeout=10, trust_env=False).raise_for_status()
        return {row["name"]: row for row in answer.json()}

    def run_of(self, number: int) -> str:
        """The id of the run that this version's event makes."""
        return f"deliver__{MODEL}__v{number}"

    def run_state(self, number: int) -> str:
        return self.airflow.run_state(DELIVER, self.run_of(number))

    def share(self) -> Any:
        return self.director.share(MODEL, time.time())

    def until_share(self, permille: int, limit_s: float = 300) -> None:
        self.until(lambda: self.share().permille == permille or None, f"a share of {permille} per mille", limit_s)

    def until_answered_by(self, number: int, count: int) -> None:
        """Waits until the gateway has seen so many requests of this version."""
        self.until(lambda: self.answered(number) >= count or None, f"{count} requests at v{number}", 120)

    def answered(self, number: int) -> int:
        rows: list[Any] = []
        answer = self.director.observations(MODEL, max(0, self.director.observations(MODEL, 2**53)["last"] - 20_000))
        rows += answer["rows"]
        return sum(row[2] == number for row in rows)

    def answers_now(self, number: int, rows: int = 50) -> bool:
        """Whether the latest requests that the gateway saw were this version's."""
        last = self.director.observations(MODEL, 2**53)["last"]
        latest = self.director.observations(MODEL, max(0, last - rows))["rows"]
        return len(latest) > 0 and all(row[2] == number for row in latest)

    def command(self, *words: str) -> int:
        """Exit status of `penstock`, given by a user called ada."""
        python = self.state / "envs" / "rollout" / "bin" / "python"
        settings, keys = self.stage.settings, read_keys(self.state)
        environ = {
            "PENSTOCK_DIRECTOR_URL": settings.director_url,
            "PENSTOCK_DIRECTOR_TOKEN": keys.director_token,
            "PENSTOCK_AIRFLOW_URL": settings.airflow_url,
            "PENSTOCK_AIRFLOW_PASSWORD": keys.airflow_admin_password,
        }
        return subprocess.run([python, "-m", "delivery.command", *words, "--who", "ada"], env=environ, check=False).returncode

    def client_errors(self) -> int:
        """What the client met and nobody excused."""
        return sum(int(line["errors"]) for line in self.client_lines()) - self.excused_errors

    def error_samples(self) -> list[str]:
        return [sample for line in self.client_lines() for sample in line["error_samples"]][-5:]

    def restart(self) -> None:
        """The stack down and up again on the same data; the client is away meanwhile."""
        with self.client_away():
            self.stage.down()
            self.expect_nothing_left()
            self.stage.up()

    @contextmanager
    def client_away(self) -> Iterator[None]:
        """No client meanwhile, for what no gateway can hide; it goes on in the same file."""
        self.stage.stop_programs()
        yield
        self.stage.client(MODEL)

    def expect_nothing_left(self) -> None:
        """Raises `Unexpected` naming a process or a piece of shared memory of this stack."""
        if left := processes.ours(self.state):
            raise Unexpected(f"`down` left pid {left[0].pid} behind: {left[0].cmdline()}")
        if regions := processes.shared_memory(shared_memory_prefix(self.stage.settings)):
            raise Unexpected(f"`down` left {regions[0]} behind")

    def mlflow(self, method: str, path: str, **what: Any) -> dict[str, Any]:
        url = f"{self.stage.settings.mlflow_url}/api/2.0/mlflow/{path}"
        answer = httpx.request(method, url, timeout=WRITE_TIMEOUT_S, trust_env=False, **what)
        answer.raise_for_status()
        row: dict[str, Any] = answer.json()
        return row

    def pid(self, program: str) -> int:
        """Of a program that supervisord runs, or of supervisord itself."""
        if program == "supervisord":
            return int((self.stage.settings.run / "supervisord.pid").read_text())
        return int(supervisor.state_of(self.stage.settings, program)["pid"])

    def kill(self, *names: str) -> None:
        """SIGKILL for every process of these services, children included, as `kill -9` on each would."""
        victims = [each for name in names for each in processes.leftovers(self.state, name)]
        if not victims:
            raise Unexpected(f"nothing runs of {names}")
        _kill(victims)

    def kill_everything(self) -> None:
        """The same for every process of the stack at once, supervisord first: as a machine that lost its power."""
        _kill([psutil.Process(self.pid("supervisord"))])
        _kill(processes.ours(self.state))

    def kill_pid(self, pid: int) -> None:
        """SIGKILL for one process; returns when it is gone."""
        _kill([psutil.Process(pid)])

    def is_ready(self, program: str) -> bool:
        """Whether this program, a service or a server, runs and answers as `up` would have it."""
        settings = self.stage.settings
        service = (table(settings, read_keys(self.state)) | servers(settings)).get(program)
        row = supervisor.states(settings).get(program)
        return service is not None and row is not None and trouble(service, settings, row) is None

    def programs(self) -> list[str]:
        """What supervisord knows, by name."""
        return list(supervisor.states(self.stage.settings))

    def client_lines(self) -> list[dict[str, Any]]:
        """Whole lines only: the client may be in the middle of writing one."""
        text = self.stage.client_lines.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def until(self, look: Callable[[], Found | None], what: str, limit_s: float) -> Found:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                if (found := look()) is not None:
                    return found
            except NotNow:
                pass
            time.sleep(0.2)
        raise Unexpected(f"waited {limit_s} s for {what}; logs: {self.stage.logs}")


def _changed(policy: str, changes: Iterable[tuple[str, str]]) -> str:
    """The policy's text with other words; each must stand in it."""
    for old, new in changes:
        if old not in policy:
            raise Unexpected(f"the policy has no {old!r}")
        policy = policy.replace(old, new)
    return policy


def _kill(victims: list[psutil.Process]) -> None:
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    psutil.wait_procs(victims, timeout=10)


def _relink(link: Path, target: Path) -> None:
    draft = link.with_name(f"{link.name}.draft")
    draft.symlink_to(target, target_is_directory=True)
    draft.replace(link)


def shifted_settings(state: Path) -> Path:
    """The checkout's settings on other ports."""
    before, ports, rest = (ROOT / "stack" / "settings.toml").read_text().partition("[ports]\n")
    ports_alone, after, others = rest.partition("\n[")
    path = state / "shifted-settings.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + ports + "\n".join(_shifted(line) for line in ports_alone.splitlines()) + "\n" + after + others)
    return path


def _shifted(line: str) -> str:
    name, _, rest = line.partition(" = ")
    number = rest.split("#")[0].strip()
    return f"{name} = {int(number) + PORT_SHIFT}" if number.isdecimal() else line
