"""Runs one of our modules on foreign files in a process that can harm nobody: the only place where a foreign model is loaded.

`export` calls it. The module's `main(inputs, outputs)` runs behind the walls of `delivery.walls`: no network, no file but its own inputs,
outputs and the interpreter, no other process in sight, no privilege, limits on memory, time and file size. Where the kernel refuses the
walls of `NEEDED`, nothing is loaded, unless `PENSTOCK_SANDBOX=lenient` says that the place itself is wall enough. What it leaves is data
from a stranger: `read_result` opens plain files of a bounded size only, and nothing here unpickles anything. It does not judge what was
left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

from delivery.walls import BROKEN, REPORT
from validation.contract import BadSpec

LOG_TAIL_BYTES = 65_536
GONE_S = 10.0
NOBODY = 65534  # the unprivileged user of a sandbox that root starts

WALLS = {
    "network": "no network",
    "files": "no files but its own",
    "processes": "no other process in sight",
    "user": "no privileges",
}
"""The walls that the kernel may or may not grant; limits and the stripped environment stand always."""

NEEDED = ("network", "files")  # without these a foreign model reads credentials and sends them away


class MissingWalls(BadSpec):
    """The kernel refuses walls that are needed: no fault of the model, and no retry builds them. Nothing of the model was loaded."""


class SandboxBroken(RuntimeError):
    """Our own part of the sandbox failed before foreign code ran: no fault of the model, worth a retry."""


class NoResult(ValueError):
    """The sandboxed module did not leave the file, or left something else in its place."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of the sandboxed process. `file_bytes` holds for each file, `wall_s` for all of its processes together."""

    memory_bytes: int = 8 << 30
    cpu_s: int = 600
    wall_s: float = 300
    file_bytes: int = 2 << 30
    open_files: int = 1024


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How it ended. `exit_code` is None when the time limit ended it, 128 + n when signal n did; `walls` names those that stood."""

    exit_code: int | None
    walls: tuple[str, ...]
    log: str

    @property
    def missing_walls(self) -> tuple[str, ...]:
        return tuple(name for name in WALLS if name not in self.walls)

    @property
    def how(self) -> str:
        """A sentence's end for people: "ended with exit code 1", "was stopped at its time limit"."""
        if self.exit_code is None:
            return "was stopped at its time limit"
        if self.exit_code > 128:
            return f"was ended by signal {_signal_name(self.exit_code - 128)}"
        return f"ended with exit code {self.exit_code}"


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Folders of one run: `inputs` is read-only inside, `outputs` is all that can be written; both have the same path inside."""

    root: Path

    @property
    def inputs(self) -> Path:
        return self.root / "in"

    @property
    def outputs(self) -> Path:
        return self.root / "out"


@contextlib.contextmanager
def workplace() -> Iterator[Workplace]:
    """Fresh folders, removed at the end."""
    place = Workplace(root=Path(mkdtemp(prefix="sandbox-")))
    try:
        place.root.chmod(0o711)
        for folder in (place.inputs, place.outputs, place.root / "root"):
            folder.mkdir()
            folder.chmod(0o755)  # whatever the caller's umask: another user must pass
        yield place
    finally:
        shutil.rmtree(place.root, ignore_errors=True)


def run(module: str, place: Workplace, limits: Limits) -> Ended:
    """Runs `module.main(inputs, outputs)` and returns when it and all that it started is gone.

    Raises `MissingWalls` before the module runs, and `SandboxBroken` when our own part failed.
    """
    _open_to_nobody(place)
    needed = needed_walls()
    read_end, write_end = os.pipe()
    words = {"module": module, "root": str(place.root), "needed": needed, "parent": os.getpid()}
    job = {**words, "report": write_end, "nobody": NOBODY, "limits": asdict(limits)}
    command = [sys.executable, "-s", "-P", "-m", "delivery.walls", json.dumps(job)]  # not -I: that ignores PYTHONHASHSEED
    log = place.root / "log"
    with log.open("wb") as output, os.fdopen(read_end, "rb") as report:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=_environ(place),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o022,  # the folders that it makes to mount on must be passable for its own user
            pass_fds=(write_end,),
        )
        os.close(write_end)
        code = _wait(process, limits.wall_s)
        walls = _walls(report.read(1000))
    if walls is None:
        raise SandboxBroken(f"it ended before its walls stood: {_tail(log)[-500:]}")
    if missing := [name for name in needed if name not in walls]:
        raise MissingWalls(_refused(missing))
    if code == BROKEN:
        raise SandboxBroken(_tail(log)[-500:])
    return Ended(exit_code=code, walls=walls, log=_tail(log))


def needed_walls(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """None in a place that says `PENSTOCK_SANDBOX=lenient`; with any other word, or none, all of `NEEDED`."""
    return () if environ.get("PENSTOCK_SANDBOX") == "lenient" else NEEDED


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the group that this process leads and returns when nothing of it is left: a kill is on its way when it was sent, not done.

    Behind the process walls the first process of the group leaves as the last of all that it started. Raises `SandboxBroken`.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + GONE_S
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise SandboxBroken(f"processes of group {process.pid} are still there {GONE_S:g} s after they were killed")


def read_result(place: Workplace, name: str, limit_bytes: int) -> bytes:
    """The bytes of a file that the module left in its outputs. Raises `NoResult`: missing, a link, no plain file, too large."""
    try:
        handle = os.open(place.outputs / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NoResult(f"{name} was not left as a plain file: {error.strerror}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NoResult(f"{name} was not left as a plain file")
        if status.st_size > limit_bytes:
            raise NoResult(f"{name} has {status.st_size} bytes; the limit is {limit_bytes}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(limit_bytes)
    finally:
        os.close(handle)


def _wait(process: subprocess.Popen[bytes], wall_s: float) -> int | None:
    """Kills the whole group at the end: with the process walls the first process takes all others with it."""
    code: int | None = None
    try:
        code = process.wait(wall_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        end_group(process)
    return 128 - code if code is not None and code < 0 else code


def _environ(place: Workplace) -> dict[str, str]:
    """Nothing of the task's own environment: that holds addresses and may hold credentials. One thread, one seed: results repeat."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(place.outputs),
        "TMPDIR": "/tmp",  # noqa: S108 - a file system of its own behind the walls
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        **threads,
        **kept,
    }


def _open_to_nobody(place: Workplace) -> None:
    """Inputs readable for everybody; outputs for the sandbox's user, or our own group where the kernel lets nobody be that user."""
    for path in [place.inputs, *place.inputs.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.chown(place.outputs, NOBODY, -1)
            place.outputs.chmod(0o775)


def _walls(report: bytes) -> tuple[str, ...] | None:
    """None without a report: then nobody knows what stood."""
    names = report.decode(errors="replace").split()
    return tuple(name for name in WALLS if name in names) if names[:1] == [REPORT] else None


def _refused(missing: Iterable[str]) -> str:
    walls = " and ".join(f"{name} ({WALLS.get(name, 'unknown')})" for name in missing)
    return (
        f"the kernel refused the sandbox's walls {walls}, and a foreign model is not loaded without them: allow user namespaces for this "
        "user or container, or, where export already runs in a container of its own that reaches nothing of worth, "
        "set PENSTOCK_SANDBOX=lenient"
    )


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read(LOG_TAIL_BYTES).decode(errors="replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
