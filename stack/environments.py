"""Creates the virtual environments, each from its own hashed lock in `docker/<name>/requirements.txt`.

`stack.bootstrap` runs it on a fresh machine and `python -m stack environments` later: nothing here needs more than the standard
library. An environment is made again only when its lock, its Python or its place changed; the code of this checkout is linked in, package
by package, so that each environment sees what the import rules allow it and no more. It never touches the Python it runs on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stack.settings import ROOT, BadSettings, state_folder

PACKAGES = ("validation", "delivery", "operators", "stack", "demo", "bench")
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {  # environment -> packages of this checkout that it may import
    "stack": ("stack", "demo", "delivery", "validation", "bench"),
    "airflow": ("operators", "validation"),
    "mlflow": (),
    "postgres": (),
    "director": ("delivery", "validation"),
    "engine_gate": ("delivery", "validation"),
    "envoy": (),
    "triton": (),
    "export": ("delivery", "validation"),
    "export_boosting": ("delivery", "validation"),
    "export_torch": ("delivery", "validation"),
    "export_tensorflow": ("delivery", "validation"),
    "golden_set": ("validation",),
    "distribution": ("validation",),
    "latency_benchmark": ("validation",),
    "latency_benchmark_gpu": ("validation",),
    "integration": ("validation",),
    "rollout": ("delivery", "validation"),
    "training": ("demo",),
    "tests": PACKAGES,
}
EXTRAS = ("export_boosting", "export_torch", "export_tensorflow")  # heavy frameworks: installed only where a policy asks for them
OPTIONAL = (*EXTRAS, "latency_benchmark_gpu")  # which brings CUDA with it, and is of use only where there is a GPU
CONTAINERS_ONLY = ("engine_gate",)  # what only a stack of containers runs: installed in its image
ALWAYS = tuple(name for name in ENVIRONMENTS if name not in (*OPTIONAL, *CONTAINERS_ONLY))
RUNNING = tuple(name for name in ALWAYS if name != "tests")  # what the stack needs
COMPILED = (
    "airflow",
    "mlflow",
    "export",
    "rollout",
    "golden_set",
    "distribution",
    "latency_benchmark",
    "integration",
    "training",
    *OPTIONAL,
)
"""Big servers and programs that live for seconds start much faster from bytecode; uv does not compile by itself."""

ELSEWHERE = {
    "export_torch": "PyPI has no build of torch for CPUs; say in UV_EXTRA_INDEX_URL where PyTorch's index of those is, or in UV_FIND_LINKS "
    "which folder holds its wheel; the lock has that of Python 3.11 on x86_64"
}
"""What to do where an environment's packages are not all found."""

INSTALLED_LAST = {"tests": ("opentelemetry-proto",)}
"""xds-protos ships an old copy of these modules. uv installs in parallel, so which copy stays would be chance: these are laid on top."""

AT_ONCE = 3  # installing is downloading and unpacking: more at once only queues up on a small machine


class NotInstalled(RuntimeError):
    """An environment could not be made; the message names it and says what to do."""


def ensure(names: Iterable[str], state: Path) -> dict[str, float]:
    """Makes the named environments below `state`, as far as they are not current. Returns seconds spent by name."""
    names = list(names)
    if unknown := sorted(set(names) - set(ENVIRONMENTS)):
        raise NotInstalled(f"unknown environment {unknown[0]!r}; known: {', '.join(ENVIRONMENTS)}")
    stale = [name for name in names if not _is_current(name, state)]
    uv = find_uv(state) if stale else Path()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        spent = list(pool.map(lambda name: _make(name, state, uv), stale))
    for name in names:
        link_packages(site_packages(state / "envs" / name), ENVIRONMENTS[name])
    return dict(zip(stale, spent, strict=True))


def find_uv(state: Path) -> Path:
    """`uv` from PATH, or the locked one in an environment of its own below `state`."""
    if on_path := shutil.which("uv"):
        return Path(on_path)
    own = state / "uv" / "bin" / "uv"
    lock = ROOT / "docker" / "uv" / "requirements.txt"
    if not _stamped(state / "uv", _digest(lock)):
        _install_uv(state / "uv", lock)
        (state / "uv" / "stamp").write_text(_digest(lock))
    return own


def link_packages(folder: Path, packages: Iterable[str]) -> None:
    """Makes `folder` hold links to exactly these packages of the checkout; corrects links that lead elsewhere."""
    for name in PACKAGES:
        link, target = folder / name, ROOT / name
        if link.is_symlink() and (name not in packages or link.resolve() != target):
            link.unlink()
        if name in packages and not link.exists():
            link.symlink_to(target, target_is_directory=True)


def site_packages(environment: Path) -> Path:
    found = sorted(environment.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise NotInstalled(f"{environment} is no virtual environment: delete the folder and run this again")
    return found[0]


def _make(name: str, state: Path, uv: Path) -> float:
    start = time.monotonic()
    home, lock = state / "envs" / name, ROOT / "docker" / name / "requirements.txt"
    if not _same_python(home):
        shutil.rmtree(home, ignore_errors=True)
        _run([str(uv), "venv", "-q", "--no-project", "--python", sys.executable, str(home)], name)
    (home / "stamp").unlink(missing_ok=True)
    compiled = ["--compile-bytecode"] if name in COMPILED else []
    sync = [str(uv), "pip", "sync", "-q", "--require-hashes", *compiled, "--python", str(home / "bin" / "python"), str(lock)]
    _run(sync, f"{name} ({ELSEWHERE[name]})" if name in ELSEWHERE else name)
    for package in INSTALLED_LAST.get(name, ()):
        _run([*sync, "--reinstall-package", package], name)
    (home / "python").write_text(_python(home))
    (home / "stamp").write_text(_digest(lock))
    return time.monotonic() - start


def _is_current(name: str, state: Path) -> bool:
    home = state / "envs" / name
    return _same_python(home) and _stamped(home, _digest(ROOT / "docker" / name / "requirements.txt"))


def _same_python(home: Path) -> bool:
    """Whether the environment runs where it is, and on the Python that runs this: locks and Triton's stub depend on its version."""
    return (home / "bin" / "python").exists() and (home / "python").exists() and (home / "python").read_text() == _python(home)


def _python(home: Path) -> str:
    """An environment cannot move: the scripts in it name its path. Links to it, as the demo has, are no other place."""
    return f"{sys.base_prefix} {sys.version_info.major}.{sys.version_info.minor} {home.resolve()}"


def _stamped(folder: Path, digest: str) -> bool:
    stamp = folder / "stamp"
    return stamp.exists() and stamp.read_text() == digest


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _install_uv(home: Path, lock: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    wanted = ["-q", "--require-hashes", "--disable-pip-version-check", "-r", str(lock)]
    try:
        venv.create(home, with_pip=True)
        _run([str(home / "bin" / "python"), "-m", "pip", "install", *wanted], "uv")
    except subprocess.CalledProcessError:  # Debian's python3 comes without ensurepip; its pip can still install into a folder
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "pip", "install", *wanted, "--target", str(home)], "uv (put uv on PATH, or install python3-venv)")


def _run(command: list[str], name: str) -> None:
    """Runs an installer; its own words are the reason when it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}}
    if "PIP_FIND_LINKS" in os.environ:  # a machine's folder of wheels, which uv does not know by pip's name
        environment.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-2000:]
        raise NotInstalled(f"{name}: `{' '.join(command[:3])} ...` ended with status {done.returncode}:\n{words}")


def resolve_locks(state: Path) -> None:
    """Writes every `docker/<name>/requirements.txt` anew from its `requirements.in`: versions and hashes, no addresses."""
    options = [
        "--universal",
        "--generate-hashes",
        "--no-emit-index-url",
        "--no-emit-find-links",
        "--no-header",
        "--upgrade",
        "--python-version",
        "3.11",
    ]
    uv = str(find_uv(state))
    for path in sorted((ROOT / "docker").glob("*/requirements.in"), key=lambda path: (path.parent.name in ELSEWHERE, path)):
        wanted = path.relative_to(ROOT)  # the lock quotes this path
        _run([uv, "pip", "compile", "-q", *options, str(wanted), "-o", str(wanted.with_suffix(".txt"))], path.parent.name)


def main(arguments: list[str]) -> int:
    """Names of environments; `running` is every one that the stack needs, `all` those and the tests', `extras` the optional ones.

    `--lock` resolves the locks instead.
    """
    groups = {"all": ALWAYS, "running": RUNNING, "extras": EXTRAS}
    names = [name for word in arguments for name in groups.get(word, (word,))]
    start = time.monotonic()
    try:
        if names == ["--lock"]:
            resolve_locks(state_folder(os.environ))
            return 0
        spent = ensure(dict.fromkeys(names), state_folder(os.environ))
    except (NotInstalled, BadSettings) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if spent:
        print(f"environments made in {time.monotonic() - start:.1f} s: " + ", ".join(f"{name} {s:.1f} s" for name, s in spent.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
