"""A private Triton for one model: started on a copy of its directory with the command in PENSTOCK_TRITON, gone afterwards.

The command (shell words) is given `--name`, `--repository`, `--http`, `--grpc` and `--metrics`. `latency_benchmark` uses it. It knows whose
fault it is when the server does not come up, and measures no load.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from validation.child import child

READY_TIMEOUT_S = 60.0
LOOK_S = 0.02
TROUBLE_OF_THE_PLACE = re.compile(r"already in use|no space left on device|cannot allocate memory|shm-size", re.IGNORECASE)


class ServerTrouble(RuntimeError):
    """The private server did not come up, or was killed, and nothing says that the model is at fault; worth a retry."""


class DoesNotLoad(Exception):
    """Triton itself says that it cannot load this model; the message is its own reason."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A private server that is ready: loopback ports, its process, and the seconds from its start until then."""

    http: int
    grpc: int
    metrics: int
    pid: int
    cold_start_s: float

    def address(self, protocol: str) -> str:
        return f"127.0.0.1:{getattr(self, protocol)}"

    def begin_end(self) -> None:
        """Asks it to end, and does not wait: Triton takes seconds for that."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def memory_mib(self) -> float:
        """Of the server with all its processes now, shared pages by each one's share (PSS); NaN where the kernel does not tell."""
        return sum(map(_pss_mib, _session(self.pid))) or float("nan")


@contextmanager
def private_server(model: str, model_directory: Path, name: str, log: Path) -> Iterator[Server]:
    """Serves this model only. Raises `DoesNotLoad` or `ServerTrouble`, the latter also when it was killed meanwhile."""
    ports = free_ports("http", "grpc", "metrics")
    flags = [word for kind, value in {"name": name, **ports}.items() for word in (f"--{kind}", str(value))]
    with tempfile.TemporaryDirectory(prefix="private-") as folder, log.open("wb") as output:
        shutil.copytree(model_directory, Path(folder) / model)
        start = time.monotonic()
        with child([*_launcher(), "--repository", folder, *flags], stdout=output, stderr=subprocess.STDOUT) as process:
            _wait_ready(process, ports, model, log)
            yield Server(**ports, pid=process.pid, cold_start_s=time.monotonic() - start)
            _insist_not_killed(process)


def _launcher() -> list[str]:
    words = shlex.split(os.environ.get("PENSTOCK_TRITON", ""))
    if not words:
        raise ServerTrouble("PENSTOCK_TRITON is not set: it must hold the command that starts a Triton")
    return words


def free_ports(*names: str) -> dict[str, int]:
    """Ports that were free just now, all taken at once so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: int(each.getsockname()[1]) for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def _wait_ready(process: subprocess.Popen[bytes], ports: Mapping[str, int], model: str, log: Path) -> None:
    """Raises `DoesNotLoad` when Triton's own log refuses the model, `ServerTrouble` for every other end or silence."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if _is_ready(ports["grpc"], model) and _listens(ports["http"]):
            return
        if process.poll() is not None:
            raise _trouble(f"ended with status {process.returncode} before it was ready", model, log)
        time.sleep(LOOK_S)
    raise _trouble(f"was not ready after {READY_TIMEOUT_S:g} s", model, log)


def _is_ready(port: int, model: str) -> bool:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        try:
            return bool(client.is_model_ready(model, client_timeout=1))
        except InferenceServerException:
            return False


def _listens(port: int) -> bool:
    """Triton opens HTTP after gRPC."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _trouble(how: str, model: str, log: Path) -> Exception:
    """Whose fault it is that the server is not ready: the model's only in Triton's own words about it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    refusal = _refusal(lines, model)
    if refusal and not TROUBLE_OF_THE_PLACE.search(refusal):
        return DoesNotLoad(refusal)
    return ServerTrouble(f"the private Triton {how}: {refusal or _last_complaint(lines)}")


def _refusal(lines: Sequence[str], model: str) -> str | None:
    """Triton's reason for not loading the model: its row in the table of models, else what it says of its configuration."""
    name = re.escape(model)
    for pattern in (rf"\|\s*{name}\s*\|[^|]*\|\s*UNAVAILABLE: ([^|]+)", rf"Poll failed for model directory '{name}': ([^\"]+)"):
        if found := next((match[1] for line in lines if (match := re.search(pattern, line))), None):
            return _short(found)
    return None


def _last_complaint(lines: Sequence[str]) -> str:
    complaints = [line for line in lines if re.search(r"error|fail|cannot|in use", line, re.IGNORECASE)]
    return _short((complaints or lines or ["its log is empty"])[-1])


def _short(text: str) -> str:
    return " ".join(text.split())[:400]


def _insist_not_killed(process: subprocess.Popen[bytes]) -> None:
    """A model may crash its server, and then its queries failed; SIGKILL comes from the machine, mostly for want of memory."""
    if process.poll() == -signal.SIGKILL:
        raise ServerTrouble("the private Triton was killed during the load; the machine may be short of memory")


def _session(leader: int) -> list[int]:
    """The processes of the session that this process leads."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                if os.getsid(int(path.name)) == leader:
                    found.append(int(path.name))
            except (ProcessLookupError, PermissionError):
                continue
    return found


def _pss_mib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
