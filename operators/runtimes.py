"""Where a task runs: as a local process, in a Docker container; later in a Kubernetes pod.

`operators.task` starts a job here and asks for its end and its verdict. A job is found again by its name: starting a name that is running,
or that ended with an exit code of 0, joins that job, so a worker that was killed never runs a task twice at the same time. Nothing here
knows what a task does or what its verdict means.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from validation.contract import VERDICT_LIMIT_BYTES

STOP_GRACE_S = 10.0
LOST_EXIT_CODE = 137  # what a shell reports of a process that SIGKILL ended
PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PENSTOCK_STATE", "PENSTOCK_STACK")  # of the worker's environment to a process
LOG_LIMIT_BYTES = 256 * 1024


class CannotStart(RuntimeError):
    """The runtime could not start the job; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one task. `environment` names a virtual environment or an image; `environ` holds addresses and credentials.

    Containers are joined to the networks that `reaches` names, and to no others. `sandboxed` jobs put up walls of their own inside, for
    which a container must let them. `gpu` is the number of the one device that it sees.
    """

    name: str
    environment: str
    package: str
    spec_json: str
    timeout_s: float
    environ: Mapping[str, str]
    reaches: tuple[str, ...] = ("core",)
    sandboxed: bool = False
    gpu: int | None = None


class Runtime(Protocol):
    """The extension point: five questions about a job that is found by its name."""

    def start(self, job: Job) -> None:
        """Starts the job, or joins the one of that name. Raises `CannotStart`."""

    def exit_code(self, name: str) -> int | None:
        """The exit code, or None while the job runs."""

    def verdict(self, name: str) -> bytes | None:
        """The verdict's bytes (at most one more than the limit), or None when none was written."""

    def log(self, name: str) -> str:
        """The tail of what the job printed."""

    def keep_alive(self, name: str) -> None:
        """Tells a job that asks for it that somebody is still waiting for its verdict."""

    def remove(self, name: str) -> None:
        """Stops the job if it runs, and forgets it."""


def runtime_from_environ(environ: Mapping[str, str] = os.environ) -> Runtime:
    """The runtime that `PENSTOCK_RUNTIME` names: `process` (default) or `docker`."""
    kind = environ.get("PENSTOCK_RUNTIME", "process")
    if kind == "process":
        return ProcessRuntime(state=Path(environ["PENSTOCK_STATE"]))
    if kind == "docker":
        return DockerRuntime.from_environ(environ)
    raise CannotStart(f"PENSTOCK_RUNTIME is {kind!r}; known runtimes: process, docker")


# The shell notes its own pid and its child's exit code by rename, so that any later process can tell how the job stands.
_RECORD = 'echo $$ >pid.draft && mv pid.draft pid; "$@" >log 2>&1; echo $? >exit.draft && mv exit.draft exit'


@dataclass(frozen=True, kw_only=True)
class ProcessRuntime:
    """Each task in a virtual environment of its own, below `<state>/envs`; jobs are folders below `<state>/jobs`."""

    state: Path

    def start(self, job: Job) -> None:
        folder = self._folder(job.name)
        if folder.exists() and not self._joins(job):
            self.remove(job.name)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            self._spawn(job, folder)

    def exit_code(self, name: str) -> int | None:
        folder = self._folder(name)
        if self._alive(name):
            return None
        with contextlib.suppress(FileNotFoundError):
            return int((folder / "exit").read_text())
        return LOST_EXIT_CODE

    def verdict(self, name: str) -> bytes | None:
        try:
            with (self._folder(name) / "out" / "verdict.json").open("rb") as file:
                return file.read(VERDICT_LIMIT_BYTES + 1)
        except FileNotFoundError:
            return None

    def log(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder(name) / "log").read_bytes()[-LOG_LIMIT_BYTES:].decode(errors="replace")
        return ""

    def keep_alive(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder(name) / "out" / "keepalive").touch()

    def remove(self, name: str) -> None:
        self._stop(name)
        _end_all_with(f"TASK_OUT={self._folder(name) / 'out'}")
        shutil.rmtree(self._folder(name), ignore_errors=True)

    def _folder(self, name: str) -> Path:
        return self.state / "jobs" / name

    def _joins(self, job: Job) -> bool:
        spec = self._folder(job.name) / "spec.json"
        same = spec.exists() and spec.read_text() == job.spec_json
        return same and self.exit_code(job.name) in (None, 0)

    def _spawn(self, job: Job, folder: Path) -> None:
        python = self.state / "envs" / job.environment / "bin" / "python"
        if not python.exists():
            advice = f"run `make up` once, or `make extras EXTRAS={job.environment}` for an optional one"
            raise CannotStart(f"environment {job.environment!r} is not installed ({python} is missing): {advice}")
        (folder / "out").mkdir()
        (folder / "spec.json").write_text(job.spec_json)
        command = ["/bin/sh", "-c", _RECORD, "penstock-job", "timeout", "--foreground", "--kill-after=10"]
        command += [str(job.timeout_s), str(python), "-m", job.package]
        process = subprocess.Popen(
            command, cwd=folder, env=_task_environ(job, folder / "out"), start_new_session=True, stdin=subprocess.DEVNULL, close_fds=True
        )
        _wait_for(lambda: (folder / "pid").exists() or process.poll() is not None, timeout_s=10)

    def _alive(self, name: str) -> bool:
        """A pid alone may have been given to somebody else since: the process must also carry the job's name."""
        try:
            pid = int((self._folder(name) / "pid").read_text())
            marks = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            dead = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
        except (OSError, ValueError):
            return False
        return f"PENSTOCK_JOB={name}".encode() in marks and not dead

    def _stop(self, name: str) -> None:
        for sign, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, STOP_GRACE_S)):
            if not self._alive(name):
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int((self._folder(name) / "pid").read_text()), sign)
            _wait_for(lambda: not self._alive(name), timeout_s=grace_s)


def _end_all_with(variable: str) -> None:
    """Ends every process with this in its environment. A task that was killed may have left children in sessions of their own: the kernel
    ends the Triton of a benchmark, but not always the stubs that Triton has started.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _task_environ(job: Job, out: Path) -> dict[str, str]:
    """A task sees nothing of Airflow's environment beyond what it needs to run at all and what its operator hands over."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    own = {"TASK_SPEC": job.spec_json, "TASK_OUT": str(out), "PENSTOCK_JOB": job.name, "PYTHONUNBUFFERED": "1"}
    device = {} if job.gpu is None else {"CUDA_VISIBLE_DEVICES": str(job.gpu)}
    return {**kept, **job.environ, **device, **own}


def _wait_for(holds: Any, *, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)


@dataclass(frozen=True, kw_only=True)
class DockerRuntime:
    """Each task in a hardened container of its image; the verdict is fetched from `/out`, so nothing of the host is mounted.

    `network` is a network's name; a `*` in it stands for each of the words that a job reaches. `project` tells stacks on one engine apart.
    `sandbox_profile` is a seccomp profile (JSON) for jobs that put up walls of their own; without one they get the engine's own.
    """

    image_prefix: str
    network: str
    project: str = "penstock"
    memory: str = "2g"
    sandbox_profile: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> DockerRuntime:
        profile = environ.get("PENSTOCK_SANDBOX_PROFILE")
        return cls(
            image_prefix=environ.get("PENSTOCK_IMAGES", "penstock/"),
            network=environ.get("PENSTOCK_NETWORK", "bridge"),
            project=environ.get("PENSTOCK_PROJECT", "penstock"),
            memory=environ.get("PENSTOCK_TASK_MEMORY", "2g"),
            sandbox_profile=Path(profile).read_text() if profile else "",
        )

    def start(self, job: Job) -> None:
        container = self._find(job.name)
        if container is not None and not self._joins(container, job):
            self.remove(job.name)
            container = None
        if container is None:
            self._create(job)

    def exit_code(self, name: str) -> int | None:
        container = self._find(name)
        if container is None:
            return LOST_EXIT_CODE
        state = container.attrs["State"]
        return None if state["Status"] in {"running", "restarting"} else int(state["ExitCode"])

    def verdict(self, name: str) -> bytes | None:
        from docker.errors import NotFound

        container = self._find(name)
        if container is None:
            return None
        try:
            chunks, _ = container.get_archive("/out/verdict.json")
        except NotFound:
            return None
        return _only_file(_bounded(chunks))

    def log(self, name: str) -> str:
        container = self._find(name)
        if container is None:
            return ""
        text: str = container.logs(tail=2000)[-LOG_LIMIT_BYTES:].decode(errors="replace")
        killed = f"killed: it needs more than {self.memory} of memory; raise PENSTOCK_TASK_MEMORY\n"
        return text + killed if container.attrs["State"].get("OOMKilled") else text

    def keep_alive(self, name: str) -> None:
        container = self._find(name)
        if container is not None:
            container.put_archive("/out", _empty_file("keepalive"))

    def remove(self, name: str) -> None:
        from docker.errors import APIError

        container = self._find(name)
        if container is None:
            return
        with contextlib.suppress(APIError):
            container.stop(timeout=int(STOP_GRACE_S))
        container.remove(v=True, force=True)

    def _create(self, job: Job) -> None:
        from docker.errors import DockerException

        engine, container = self._engine(), None
        try:
            container = engine.containers.create(f"{self.image_prefix}{job.environment}", **self._hardened(job))
            for network in self._networks(job)[1:]:
                engine.networks.get(network).connect(container)
            container.start()
        except DockerException as error:
            if container is not None:
                container.remove(v=True, force=True)  # the SDK leaves the created container behind
            raise CannotStart(f"the container of {job.name} does not start: {_advised(error)}") from error

    def _networks(self, job: Job) -> list[str]:
        return list(dict.fromkeys(self.network.replace("*", each) for each in job.reaches))

    def _hardened(self, job: Job) -> dict[str, Any]:
        return {
            "command": ["timeout", "--kill-after=10", str(job.timeout_s), "python", "-m", job.package],
            "name": f"{self.project}-{job.name}",
            "environment": {**job.environ, "TASK_SPEC": job.spec_json, "TASK_OUT": "/out", "PENSTOCK_JOB": job.name},
            "labels": {"penstock.job": job.name, "penstock.project": self.project},
            "network": self._networks(job)[0],
            "volumes": ["/out"],
            "tmpfs": {"/tmp": "size=2g"},  # noqa: S108 - the container's own; it counts as the container's memory
            "read_only": True,
            "user": "65534:65534",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges", *self._walls(job)],
            "mem_limit": self.memory,
            "memswap_limit": self.memory,
            "pids_limit": 256,
            "init": True,
            **self._devices(job),
        }

    def _walls(self, job: Job) -> list[str]:
        """The profile lets the job leave its namespaces, as an unprivileged user and for nothing but to put up walls."""
        return [f"seccomp={self.sandbox_profile}", "apparmor=unconfined"] if job.sandboxed and self.sandbox_profile else []

    @staticmethod
    def _devices(job: Job) -> dict[str, Any]:
        if job.gpu is None:
            return {}
        from docker.types import DeviceRequest

        return {"device_requests": [DeviceRequest(device_ids=[str(job.gpu)], capabilities=[["gpu"]])]}

    def _joins(self, container: Any, job: Job) -> bool:
        same = f"TASK_SPEC={job.spec_json}" in container.attrs["Config"]["Env"]
        return same and self.exit_code(job.name) in (None, 0) and container.attrs["State"]["Status"] != "created"

    def _find(self, name: str) -> Any | None:
        from docker.errors import NotFound

        try:
            return self._engine().containers.get(f"{self.project}-{name}")
        except NotFound:
            return None

    def _engine(self) -> Any:
        from docker import from_env  # `import docker` alone would find this checkout's folder of that name
        from docker.errors import DockerException

        try:
            return from_env(timeout=30)
        except DockerException as error:
            raise CannotStart(f"no Docker engine answers ({error}): start one, or set PENSTOCK_RUNTIME=process") from error


def _advised(error: object) -> str:
    """The engine's words, and what to do about the usual ones."""
    words = " ".join(str(error).split())[:600]
    return words + next((f": {advice}" for sign, advice in _ADVICE if sign in words.lower()), "")


_ADVICE = (
    ("no such image", "build the project's images (`make images`)"),
    ("pull access denied", "build the project's images (`make images`)"),
    ("could not select device driver", "this engine has no GPU: leave the GPU override out, or install NVIDIA's container toolkit"),
    ("no space left", "the engine's disk is full: `docker system df` shows what takes it"),
)


def _bounded(chunks: Any) -> bytes:
    """At most the verdict's limit and tar's own blocks: a task must not fill the worker's memory."""
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > VERDICT_LIMIT_BYTES + 20 * tarfile.RECORDSIZE:
            return b""
    return data


def _only_file(data: bytes) -> bytes | None:
    """The one regular file of a tar stream, cut one byte above the limit; None for anything else (a link, a folder)."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            member = archive.next()
            file = archive.extractfile(member) if member and member.isreg() else None
            return file.read(VERDICT_LIMIT_BYTES + 1) if file else None
    except tarfile.TarError:
        return b"\0" * (VERDICT_LIMIT_BYTES + 1)


def _empty_file(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.mtime = int(time.time())
        member.mode = 0o666
        archive.addfile(member, io.BytesIO())
    return stream.getvalue()
