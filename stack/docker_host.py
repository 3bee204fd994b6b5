"""The whole system on one Docker host, from outside: builds the images, and does around `docker compose` what compose cannot.

    python -m stack.docker_host images | up | down | clean | backup FOLDER | restore FOLDER

`up` is `docker compose up -d --wait`. Deliveries start containers of their own (tasks, Triton servers), which compose does not know: `down`
ends tasks and servers with it. Standard library
and the `docker` command only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT_LABEL = "penstock.project"
STAND_INS = ("postgres", "registry", "prometheus", "alertmanager")
VOLUMES = ("mlflow", "director", "recorder", "registry", "keys-setup")
"""What a backup holds beside the databases: artifacts, the gateway's state, kept requests, images, secrets."""

WRITERS = ("scheduler", "triggerer", "dag-processor", "api-server", "mlflow", "director", "recorder", "registry")
DATABASES = ("airflow", "mlflow")
UP_LIMIT_S, BUILD_LIMIT_S = 600, 3600
SAID_LIMIT = 2500
ADVICE = (
    (
        "No space left on device",
        "the engine's disk is full: `docker system df` shows what takes it, `docker builder prune` empties the build cache",
    ),
    (
        "no space left on device",
        "the engine's disk is full: `docker system df` shows what takes it, `docker builder prune` empties the build cache",
    ),
    ("pull access denied", "build the project's images first (`make images`); on a host without public registries also `make standins`"),
    ("Cannot connect to the Docker daemon", "start the Docker engine, or set DOCKER_HOST"),
    ("port is already allocated", "another program has that port: stop it, or set the variable of the port (docker-compose.yaml)"),
    (
        "Pool overlaps with other one",
        "another network has that subnet: set PENSTOCK_SUBNET, PENSTOCK_SUBNET_RANGE and PENSTOCK_SERVER_ADDRESSES",
    ),
)
"""What Docker says, and what one does about it."""


class HostTrouble(RuntimeError):
    """Docker on this host cannot do it; the message says what to do."""


class Host:
    """One project of docker-compose.yaml. `more`: further compose files; `environ`: variables for all of them."""

    def __init__(self, environ: Mapping[str, str], more: Iterable[Path] = ()) -> None:
        self.environ = dict(environ)
        self.project = environ.get("COMPOSE_PROJECT_NAME", "penstock")
        self.images_prefix = environ.get("PENSTOCK_IMAGES", "penstock/")
        self._files = [word for path in (ROOT / "docker-compose.yaml", *more) for word in ("-f", str(path))]

    def compose(self, *words: str, limit_s: float = UP_LIMIT_S, quiet: bool = False) -> str:
        return self.docker("compose", *self._files, *words, limit_s=limit_s, quiet=quiet)

    def docker(self, *words: str, limit_s: float = UP_LIMIT_S, quiet: bool = False) -> str:
        """What the command printed. Raises `HostTrouble` with its words."""
        command = ["docker", *words]
        output = subprocess.PIPE if quiet else None
        try:
            done = subprocess.run(command, check=False, env=self.environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=output, timeout=limit_s)
        except FileNotFoundError as error:
            raise HostTrouble("there is no `docker` command: install Docker 20.10 or newer with Compose 2.20 or newer") from error
        except subprocess.TimeoutExpired as error:
            raise HostTrouble(f"`docker {' '.join(words[:4])} ...` took more than {limit_s:g} s") from error
        if done.returncode != 0:
            said = (done.stderr or b"").decode(errors="replace").strip()[-SAID_LIMIT:]
            advice = next((f"\n{advice}" for sign, advice in ADVICE if sign in said), "")
            raise HostTrouble(f"`docker {' '.join(words)}` ended with status {done.returncode}" + (f": {said}" if said else "") + advice)
        return done.stdout.decode(errors="replace")

    def build_images(self) -> None:
        """All images of the project: the two that the others stand on, the serving image, then the rest side by side."""
        base = ["--build-arg", f"BASE_IMAGE={base}"] if (base := self.environ.get("BASE_IMAGE")) else []
        for stage in ("run", "build"):
            self._build(*base, "-f", "docker/base/Dockerfile", "--target", stage, "-t", f"{self.images_prefix}{stage}", ".")
        for names in (["triton"], []):  # the serving image first: another stands on it
            self.compose("--profile", "images", "--progress", "plain", "build", *names, quiet=True, limit_s=BUILD_LIMIT_S)

    def build_stand_ins(self) -> None:
        """In the place of public images, for hosts that reach no public registry; docker/standins/compose.env names them."""
        base = ["--build-arg", f"BASE_IMAGE={base}"] if (base := self.environ.get("BASE_IMAGE")) else []
        for name in STAND_INS:
            tag = f"{self.images_prefix}standin-{name}"
            self._build(*base, "-f", "docker/standins/Dockerfile", "--target", name, "-t", tag, "docker/standins")

    def _build(self, *words: str) -> None:
        """Quiet, unless it fails: then the words of the step that failed are told."""
        self.docker("build", "--progress", "plain", *words, quiet=True, limit_s=BUILD_LIMIT_S)

    def up(self) -> None:
        self.compose("--progress", "quiet", "up", "-d", "--wait", "--quiet-pull", "--remove-orphans", quiet=True)

    def down(self, *, with_data: bool = False) -> None:
        """Stops Airflow first, so that nothing new starts; then what deliveries have started; then the rest."""
        self.compose("stop", "-t", "10", "scheduler", "triggerer", quiet=True)
        self.end_containers()
        self.compose("down", "-t", "10", "--remove-orphans", *(("-v",) if with_data else ()), quiet=True)

    def end_containers(self) -> None:
        """Tasks and servers of this project."""
        known = self.docker("ps", "-aq", "--filter", f"label={PROJECT_LABEL}={self.project}", quiet=True).split()
        if known:
            self.docker("rm", "-f", "-v", *known, quiet=True)

    def secret(self, name: str) -> str:
        return self.compose("run", "--rm", "--no-deps", "-T", "keys", "show", *([name] if name else []), quiet=True).strip()

    def backup(self, folder: Path) -> None:
        """Databases and volumes into a fresh folder, readable by its owner only. Services that write are stopped meanwhile."""
        folder.mkdir(mode=0o700, parents=True)
        running = [name for name in self.compose("ps", "--services", quiet=True).split() if name in WRITERS]
        self.compose("stop", *running, quiet=True)
        try:
            for name in DATABASES:
                file = folder / f"{name}.dump"
                file.touch(mode=0o600)
                file.write_bytes(self._postgres("pg_dump", "-Fc", "-U", "penstock", name))
            for volume in VOLUMES:
                self._tar(volume, "c", folder / f"{volume}.tar")
        finally:
            self.compose("start", *running, quiet=True)

    def restore(self, folder: Path) -> None:
        """Puts a backup in the place of what is there: a stack that is down, on this host or another, or one that is up."""
        missing = [
            name for name in (*(f"{each}.dump" for each in DATABASES), *(f"{each}.tar" for each in VOLUMES)) if not (folder / name).exists()
        ]
        if missing:
            raise HostTrouble(f"{folder} is no backup: {missing[0]} is missing")
        self.down()
        self.compose("create", quiet=True)
        for volume in VOLUMES:
            self._tar(volume, "x", folder / f"{volume}.tar")
        self.compose("up", "-d", "--wait", "postgres", quiet=True)
        self._await_databases()
        for name in DATABASES:
            words = ("pg_restore", "--clean", "--if-exists", "-U", "penstock", "-d", name)
            self._postgres(*words, data=(folder / f"{name}.dump").read_bytes())
        self.up()

    def _await_databases(self) -> None:
        self.compose("up", "databases", "--exit-code-from", "databases", quiet=True)

    def _postgres(self, *words: str, data: bytes | None = None) -> bytes:
        command = ["docker", "compose", *self._files, "exec", "-T", "postgres", *words]
        done = subprocess.run(command, check=False, env=self.environ, cwd=ROOT, capture_output=True, input=data, timeout=UP_LIMIT_S)
        if done.returncode != 0:
            raise HostTrouble(f"{words[0]} ended with status {done.returncode}: {done.stderr.decode(errors='replace')[-1000:]}")
        return done.stdout

    def _tar(self, volume: str, way: str, file: Path) -> None:
        """`c` packs the volume into the file, `x` empties the volume and unpacks the file into it."""
        shell = "tar -C /volume -cf - ." if way == "c" else "find /volume -mindepth 1 -delete && tar -C /volume -xpf -"
        command = ["docker", "run", "--rm", "-i", "--network", "none", "--user", "0:0", "-v", f"{self.project}_{volume}:/volume"]
        command += ["--entrypoint", "sh", f"{self.images_prefix}run", "-c", shell]
        with file.open("wb" if way == "c" else "rb") as stream:
            given = {"stdout": stream} if way == "c" else {"stdin": stream}
            done = subprocess.run(command, check=False, env=self.environ, stderr=subprocess.PIPE, **given)  # type: ignore[call-overload]
        if way == "c":
            file.chmod(0o600)
        if done.returncode != 0:
            raise HostTrouble(f"volume {volume}: {done.stderr.decode(errors='replace')[-1000:]}")


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack.docker_host", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("images", "standins", "up", "down", "clean", "backup", "restore"))
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args(arguments)
    if given.what in ("backup", "restore") and given.folder is None:
        parser.error(f"{given.what} needs a folder")
    host, start = Host(environ), time.monotonic()
    acts: dict[str, Callable[[], None]] = {
        "images": host.build_images,
        "standins": host.build_stand_ins,
        "up": host.up,
        "down": host.down,
        "clean": lambda: host.down(with_data=True),
        "backup": lambda: host.backup(given.folder),
        "restore": lambda: host.restore(given.folder),
    }
    try:
        acts[given.what]()
    except (HostTrouble, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.what}: done after {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
