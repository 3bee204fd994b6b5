"""Starts one Triton server: from the wheel `nvidia-pytriton`, with the backend of `model.py` beside this file.

`delivery.triton` lets supervisord run it, the serving image starts with it, and the latency benchmark runs it for a private server, always
with the python of the environment `triton`. It prepares what the wheel lacks and then becomes the server (exec), so that its process id is
Triton's. It supervises nothing and chooses no ports. Standard library only.

Facts that shape it (found by trial with Triton 2.51): a backend folder that is not the wheel's own needs the wheel's libraries on
LD_LIBRARY_PATH; the stub embeds Python, so it needs a shared libpython of the same version and the environment's `python3` first on PATH;
a server that dies by SIGKILL leaves its regions in /dev/shm.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

SHM = Path("/dev/shm")  # noqa: S108 - where the kernel shows POSIX shared memory, not a place for our files
EXIT_CONFIG = 78  # EX_CONFIG in BSD's sysexits.h
EXIT_TIMEOUT_S = 5  # as long as the gateway gives a request; while any connection is open, idle or not, Triton waits until this ends
HERE = Path(__file__).resolve().parent


class NotRunnable(RuntimeError):
    """The environment cannot run Triton; the message says what to do."""


def main(argv: list[str]) -> None:
    """Becomes tritonserver, or ends with status 78 and a sentence on stderr. `--prepare` alone does what a start does first, for images."""
    if argv == ["--prepare"]:
        prepare_backends(backend_store(os.environ))
        return
    options = parse(argv)
    try:
        environment = server_environment(os.environ)
        backends = prepare_backends(backend_store(os.environ))
        command = server_command(options, backends, shm_prefix(options.name, os.environ))
    except NotRunnable as error:
        print(f"cannot start Triton: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from error
    remove_regions(shm_prefix(options.name, os.environ))
    print(f"starting Triton {options.name}", flush=True)  # `delivery.triton` looks for reasons after the last of these lines
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Start one Triton server on loopback.")
    parser.add_argument("--name", required=True, help="the server's name, for example digits--v3")
    parser.add_argument("--repository", required=True, type=Path, help="folder of model directories; all of them are loaded")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; a container's own network needs 0.0.0.0")
    for port in ("http", "grpc", "metrics"):
        parser.add_argument(f"--{port}", required=True, type=int, metavar="PORT")
    parser.add_argument("--keep-going", action="store_true", help="one model that does not load keeps none of the others from being served")
    return parser.parse_args(argv)


def server_command(options: argparse.Namespace, backends: Path, regions: str) -> list[str]:
    """The server's command line. Configurations are not completed: that costs a second stub process per model at each start."""
    if not options.repository.is_dir():
        raise NotRunnable(f"there is no model repository {options.repository}")
    addresses = [
        flag
        for name in ("http", "grpc", "metrics")
        for flag in (f"--{name}-address={options.host}", f"--{name}-port={getattr(options, name)}")
    ]
    return [
        str(wheel() / "bin" / "tritonserver"),
        f"--id={options.name}",
        f"--model-repository={options.repository}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={regions}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--allow-gpu-metrics=false",
        *(["--exit-on-error=false", "--strict-readiness=false"] if options.keep_going else []),
        *addresses,
    ]


def server_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: its libraries and its Python first, one thread per instance."""
    libraries = [str(wheel().parents[1] / "nvidia_pytriton.libs"), *python_library_folders()]
    inherited = [environ["LD_LIBRARY_PATH"]] if environ.get("LD_LIBRARY_PATH") else []
    return {
        **environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *inherited]),
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), environ.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def wheel() -> Path:
    """The folder `pytriton/tritonserver` of this environment."""
    folder = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver"
    if not folder.is_dir():
        raise NotRunnable(f"{sys.executable} has no nvidia-pytriton; run this with the python of the environment `triton`")
    return folder


def python_library_folders() -> list[str]:
    """Where the shared libpython of this interpreter lies; none is needed for 3.13, whose library is in the wheel."""
    library = f"libpython{_version()}.so.1.0"
    places = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", "/usr/local/lib"]
    found = [place for place in places if place and (Path(place) / library).exists()]
    if found or sys.version_info[:2] == (3, 13):
        return found[:1]
    raise NotRunnable(
        f"Python {_version()} at {sys.base_prefix} has no shared {library}, which Triton's Python backend embeds: "
        f"install it (Debian, Ubuntu: apt install libpython{_version()}), or set PENSTOCK_PYTHON to an interpreter that has one, "
        "and make the environments again"
    )


def prepare_backends(store: Path) -> Path:
    """A backend folder of the wheel's files and `model.py`; made once for these contents, by rename, so that starts may race."""
    stub = wheel() / "python_backend_stubs" / _version() / "triton_python_backend_stub"
    if not stub.exists():
        raise NotRunnable(f"the wheel has no Triton stub for Python {_version()}; it has {_stub_versions()}")
    backend = HERE / "model.py"
    target = store / _digest(str(stub), str(stub.stat().st_size), version("nvidia-pytriton"), backend.read_text())
    if not target.exists():
        store.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=store, prefix="draft-"))
        draft.chmod(0o755)  # an image is prepared by root and runs as somebody else
        _fill(draft, stub, backend)
        _settle(draft, target)
    return target


def backend_store(environ: Mapping[str, str]) -> Path:
    """Below the state folder; without one (a server started by hand) a fresh temporary folder."""
    state = environ.get("PENSTOCK_STATE")
    return Path(state) / "data" / "triton-backends" if state else Path(tempfile.mkdtemp(prefix="penstock-triton-"))


def shm_prefix(name: str, environ: Mapping[str, str]) -> str:
    """Name of the server's regions in /dev/shm: told apart by state folder, and closed by a dot so that v1 is no prefix of v10."""
    return f"penstock-{_digest(environ.get('PENSTOCK_STATE', ''))}-{name}."


def remove_regions(prefix: str) -> None:
    """Removes what a killed server of this name left behind. Regions of other users are not ours to remove."""
    for region in SHM.glob("*"):
        if region.name.startswith(prefix) and os.access(region, os.W_OK):
            region.unlink(missing_ok=True)


def _fill(folder: Path, stub: Path, backend: Path) -> None:
    """Hard links where the file system allows: Triton refuses a library that a symbolic link leads out of the backend folder."""
    python, own = folder / "python", folder / "onnxruntime"
    python.mkdir()
    own.mkdir()
    for part in [*(wheel() / "backends" / "python").glob("*.*"), stub]:
        _link_or_copy(part, python / part.name)
    shutil.copyfile(backend, own / backend.name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _settle(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError:  # another start was first, with the same content
        shutil.rmtree(draft)


def _stub_versions() -> str:
    return ", ".join(sorted(each.name for each in (wheel() / "python_backend_stubs").iterdir()))


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


if __name__ == "__main__":
    main(sys.argv[1:])
