"""The process and the Docker runtime behind one interface: a job is started once, found again by name, and never leaves anything behind."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from operators.runtimes import CannotStart, DockerRuntime, Job, ProcessRuntime, Runtime, runtime_from_environ

TASK = """
    import os, pathlib, signal, sys, time
    out = pathlib.Path(os.environ["TASK_OUT"])
    kind = os.environ["TASK_SPEC"]
    print("started", kind, flush=True)
    with (out / "starts").open("a") as file:
        file.write("x")
    if kind == "leave":
        import subprocess
        left = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
        (out / "left").write_text(str(left.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        signal.pause()
    if kind == "until_kept_alive":
        while not (out / "keepalive").exists():
            time.sleep(0.02)
    if kind == "crash":
        sys.exit(3)
    if kind == "environment":
        print(sorted(os.environ), os.environ.get("CUDA_VISIBLE_DEVICES"))
    (out / "verdict.json").write_bytes(b"v" * (5000 if kind == "huge" else 10))
"""


@pytest.fixture
def runtime(tmp_path: Path) -> ProcessRuntime:
    (tmp_path / "fake_task.py").write_text(textwrap.dedent(TASK))
    python = tmp_path / "envs" / "here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return ProcessRuntime(state=tmp_path)


def job(state: Path, spec: str, *, name: str = "job", environment: str = "here", timeout_s: float = 60) -> Job:
    environ = {"PYTHONPATH": str(state), "SECRET": "for the task"}
    return Job(name=name, environment=environment, package="fake_task", spec_json=spec, timeout_s=timeout_s, environ=environ)


def wait(runtime: Runtime, name: str = "job", *, limit_s: float = 30) -> int:
    end = time.monotonic() + limit_s
    while (code := runtime.exit_code(name)) is None:
        assert time.monotonic() < end, "the job did not end"
        time.sleep(0.02)
    return code


def test_a_job_ends_with_its_verdict_and_log(runtime: ProcessRuntime) -> None:
    """A job that wrote a verdict ends with exit code 0, its verdict's bytes and what it printed."""
    runtime.start(job(runtime.state, "good"))
    assert wait(runtime) == 0
    assert runtime.verdict("job") == b"v" * 10
    assert "started good" in runtime.log("job")


def test_starting_a_running_name_joins_it(runtime: ProcessRuntime) -> None:
    """A worker that comes back finds the job that runs; it never starts a second one beside it."""
    runtime.start(job(runtime.state, "until_kept_alive"))
    runtime.start(job(runtime.state, "until_kept_alive"))
    runtime.keep_alive("job")
    assert wait(runtime) == 0
    assert (runtime.state / "jobs" / "job" / "out" / "starts").read_text() == "x"


def test_a_finished_verdict_is_joined_not_repeated(runtime: ProcessRuntime) -> None:
    """A verdict that was written before the worker died is read after it; the task does not run again."""
    runtime.start(job(runtime.state, "good"))
    wait(runtime)
    runtime.start(job(runtime.state, "good"))
    assert (runtime.state / "jobs" / "job" / "out" / "starts").read_text() == "x"


def test_a_crashed_job_is_started_anew(runtime: ProcessRuntime) -> None:
    """A retry after an error runs the task again from nothing."""
    runtime.start(job(runtime.state, "crash"))
    assert wait(runtime) == 3
    assert runtime.verdict("job") is None
    runtime.start(job(runtime.state, "crash"))
    assert wait(runtime) == 3
    assert (runtime.state / "jobs" / "job" / "out" / "starts").read_text() == "x"


def test_another_spec_replaces_the_job(runtime: ProcessRuntime) -> None:
    """A job of the same name that answers another spec is stopped and replaced, never joined."""
    runtime.start(job(runtime.state, "hang"))
    runtime.start(job(runtime.state, "good"))
    assert wait(runtime) == 0
    assert "started good" in runtime.log("job")


def test_remove_stops_the_whole_group(runtime: ProcessRuntime) -> None:
    """After `remove` no process of the job is left and its name is free."""
    runtime.start(job(runtime.state, "hang"))
    pid = int((runtime.state / "jobs" / "job" / "pid").read_text())
    runtime.remove("job")
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    assert all(each.startswith("Z") for each in states)
    assert not (runtime.state / "jobs" / "job").exists()


def test_nothing_that_a_killed_job_started_outlives_it(runtime: ProcessRuntime) -> None:
    """Also what has a session of its own is ended with it; a job of another stack that has the same name is not."""
    other = subprocess.Popen(["sleep", "600"], env={"TASK_OUT": "/elsewhere/jobs/job/out", "PENSTOCK_JOB": "job"})
    try:
        runtime.start(job(runtime.state, "leave"))
        wait(runtime)
        left = psutil.Process(int((runtime.state / "jobs" / "job" / "out" / "left").read_text()))
        runtime.remove("job")
        psutil.wait_procs([left], timeout=10)
        assert (left.is_running(), other.poll()) == (False, None)
    finally:
        other.kill()
        other.wait()


def test_a_killed_job_has_no_verdict(runtime: ProcessRuntime) -> None:
    """SIGKILL of a whole job reads as a lost job, not as one that runs for ever."""
    runtime.start(job(runtime.state, "hang"))
    os.killpg(int((runtime.state / "jobs" / "job" / "pid").read_text()), 9)
    assert wait(runtime) == 137
    assert runtime.verdict("job") is None


def test_a_job_past_its_time_is_ended(runtime: ProcessRuntime) -> None:
    """A task that hangs is ended by its own time limit, even when nobody asks for it."""
    runtime.start(job(runtime.state, "hang", timeout_s=0.5))
    assert wait(runtime) == 124


def test_a_task_does_not_see_the_workers_environment(runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of Airflow itself never reach a task; what the operator hands over does."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "secret")
    runtime.start(job(runtime.state, "environment"))
    wait(runtime)
    assert "AIRFLOW__DATABASE" not in runtime.log("job")
    assert "SECRET" in runtime.log("job")


def test_a_task_with_a_gpu_sees_no_other(runtime: ProcessRuntime) -> None:
    """CUDA is told the one device; a task without one is told nothing."""
    runtime.start(replace(job(runtime.state, "environment"), gpu=3))
    wait(runtime)
    assert runtime.log("job").rstrip().endswith("] 3")
    assert DockerRuntime._devices(job(runtime.state, "x")) == {}
    (request,) = DockerRuntime._devices(replace(job(runtime.state, "x"), gpu=3))["device_requests"]
    assert (request.device_ids, request.count) == (["3"], 0)


def test_a_missing_environment_is_named(runtime: ProcessRuntime) -> None:
    """An environment that is not installed is an error that says its name and what to do."""
    with pytest.raises(CannotStart, match=r"'nowhere' is not installed .*make up"):
        runtime.start(job(runtime.state, "good", environment="nowhere"))


def test_an_oversized_verdict_is_read_one_byte_over_the_limit(runtime: ProcessRuntime) -> None:
    """A verdict over the limit is seen as too long without being read whole."""
    runtime.start(job(runtime.state, "huge"))
    wait(runtime)
    assert len(runtime.verdict("job") or b"") == 4097


def test_an_unknown_runtime_is_refused() -> None:
    """A misspelt runtime is an error that lists the known ones."""
    with pytest.raises(CannotStart, match="known runtimes: process, docker"):
        runtime_from_environ({"PENSTOCK_RUNTIME": "dokcer"})


IMAGE = "penstock-test/here"


@pytest.fixture(scope="module")
def docker_runtime() -> DockerRuntime:
    """A small image with the fake task in it, on a real engine."""
    from docker import from_env
    from docker.errors import DockerException

    try:
        engine = from_env(timeout=60)
        engine.ping()
    except DockerException as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Docker engine: {error}")
    base = os.environ.get("BASE_IMAGE", "python:3.11-slim-bookworm")
    dockerfile = (
        f"FROM {base}\nRUN mkdir /out && chown 65534 /out\nWORKDIR /app\nRUN echo {textwrap.dedent(TASK).encode().hex()} | "
        'python3 -c \'import sys; open("/app/fake_task.py", "wb").write(bytes.fromhex(sys.stdin.read().strip()))\'\n'
    )
    engine.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=IMAGE, rm=True)
    return DockerRuntime(image_prefix="penstock-test/", network="none")


@pytest.fixture
def docker_job(docker_runtime: DockerRuntime, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"penstock-test-{os.getpid()}-{request.node.name[-20:].strip('[]').replace('[', '-')}"
    yield name
    docker_runtime.remove(name)


@pytest.mark.engine
def test_a_container_ends_with_its_verdict(docker_runtime: DockerRuntime, docker_job: str) -> None:
    """The Docker runtime fetches the verdict out of a hardened container, and leaves no container behind."""
    docker_runtime.start(job(Path("/app"), "good", name=docker_job))
    assert wait(docker_runtime, docker_job) == 0
    assert docker_runtime.verdict(docker_job) == b"v" * 10
    assert "started good" in docker_runtime.log(docker_job)
    docker_runtime.remove(docker_job)
    assert docker_runtime.exit_code(docker_job) == 137


@pytest.mark.engine
def test_a_running_container_is_joined_and_kept_alive(docker_runtime: DockerRuntime, docker_job: str) -> None:
    """Starting twice runs one container; the keep-alive reaches it."""
    docker_runtime.start(job(Path("/app"), "until_kept_alive", name=docker_job))
    docker_runtime.start(job(Path("/app"), "until_kept_alive", name=docker_job))
    assert docker_runtime.exit_code(docker_job) is None
    docker_runtime.keep_alive(docker_job)
    assert wait(docker_runtime, docker_job) == 0
    assert docker_runtime.log(docker_job).count("started") == 1


@pytest.mark.engine
def test_a_crashed_container_has_no_verdict(docker_runtime: DockerRuntime, docker_job: str) -> None:
    """A container that ends without a verdict reads as an exit code and nothing else."""
    docker_runtime.start(job(Path("/app"), "crash", name=docker_job))
    assert wait(docker_runtime, docker_job) == 3
    assert docker_runtime.verdict(docker_job) is None


@pytest.mark.engine
def test_an_image_that_is_missing_is_named(docker_runtime: DockerRuntime, docker_job: str) -> None:
    """A container that cannot be created is an error with the engine's reason."""
    with pytest.raises(CannotStart, match="nowhere"):
        docker_runtime.start(job(Path("/app"), "good", name=docker_job, environment="nowhere"))
    assert docker_runtime.exit_code(docker_job) == 137
