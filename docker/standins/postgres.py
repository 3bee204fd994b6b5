"""Entry point of the stand-in for the public image of PostgreSQL: a cluster on first start, then the server itself.

It obeys what docker-compose.yaml asks of the public image: POSTGRES_USER (default: postgres), POSTGRES_DB (default: the user's name) and
POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD, which count on first start only. Everybody on the network needs the password (scram-sha-256);
the socket inside of the container is open, as in the public image. Started as root it gives the folder to the user postgres and goes on as
that user. It runs no files of /docker-entrypoint-initdb.d and takes no cluster over from another version. Standard library only.

The cluster is made beside its place and moved there by one rename: a start that was killed leaves a draft, which the next one removes.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USER = "postgres"
SOCKETS = Path("/var/run/postgresql")
NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # what SQL takes without quotes
EXIT_CONFIG = 78  # EX_CONFIG in BSD's sysexits.h
AUTHENTICATION = ("--auth-local=trust", "--auth-host=scram-sha-256")
SETTINGS = {"postgresql.conf": "listen_addresses = '*'\n", "pg_hba.conf": "host all all all scram-sha-256\n"}


class NotRunnable(RuntimeError):
    """The container cannot serve; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class FirstStart:
    """What a new cluster gets: its superuser, the superuser's password, its database."""

    user: str
    password: str
    database: str


def main(words: list[str]) -> None:
    """Never returns: becomes the server, or the program that was asked for instead, or ends with status 78 and a sentence on stderr."""
    command = words if words and not words[0].startswith("-") else [USER, *words]
    if command[0] == "postgres":
        try:
            prepare(Path(os.environ["PGDATA"]))
        except NotRunnable as error:
            print(f"cannot start PostgreSQL: {error}", file=sys.stderr)
            raise SystemExit(EXIT_CONFIG) from error
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


def prepare(data: Path) -> None:
    """The process is the user postgres after it, and the cluster is there."""
    if (data.parent / "PG_VERSION").exists():
        raise NotRunnable(f"{data.parent} holds a cluster of the public image: start that, or give this one a volume of its own")
    wanted = None if data.exists() else first_start(os.environ)
    become_postgres(data.parent)
    if wanted is not None:
        make_cluster(data, wanted)


def first_start(environ: Mapping[str, str]) -> FirstStart:
    """Raises `NotRunnable` naming the variable that is missing or wrong."""
    user = _name(environ, "POSTGRES_USER", USER)
    return FirstStart(user=user, password=_password(environ), database=_name(environ, "POSTGRES_DB", user))


def become_postgres(volume: Path) -> None:
    """Root gives volume and socket folder away and leaves; anybody else stays who he is."""
    if os.geteuid() != 0:
        return
    account = pwd.getpwnam(USER)
    SOCKETS.mkdir(parents=True, exist_ok=True)
    for path in (SOCKETS, volume, *volume.rglob("*")):
        if path.lstat().st_uid != account.pw_uid:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    os.initgroups(USER, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = account.pw_dir


def make_cluster(data: Path, wanted: FirstStart) -> None:
    """Whole or not at all."""
    draft = data.with_name(f"{data.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    options = [f"--username={wanted.user}", "--pwfile=/dev/stdin", *AUTHENTICATION, "--encoding=UTF8", "--no-instructions"]
    _run(["initdb", f"--pgdata={draft}", *options], f"{wanted.password}\n")
    if wanted.database != "postgres":
        _run(["postgres", "--single", "-D", str(draft), "-c", "exit_on_error=on", "postgres"], f'CREATE DATABASE "{wanted.database}";\n')
    for name, line in SETTINGS.items():
        _append(draft / name, line)
    draft.rename(data)
    _sync(data.parent)


def _name(environ: Mapping[str, str], variable: str, default: str) -> str:
    name = environ.get(variable) or default
    if not NAME.fullmatch(name):
        raise NotRunnable(f"{variable} is {name!r}; expected lower-case letters, digits and underscores, at most 63")
    return name


def _password(environ: Mapping[str, str]) -> str:
    plain, file = environ.get("POSTGRES_PASSWORD", ""), environ.get("POSTGRES_PASSWORD_FILE", "")
    if bool(plain) == bool(file):
        raise NotRunnable("set POSTGRES_PASSWORD_FILE to a file with the superuser's password, or POSTGRES_PASSWORD, and not both")
    password = (_read(Path(file)) if file else plain).rstrip("\n")
    if not password or "\n" in password:
        raise NotRunnable(f"the superuser's password in {file or 'POSTGRES_PASSWORD'} must be one line that is not empty")
    return password


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise NotRunnable(f"POSTGRES_PASSWORD_FILE is {file}, which cannot be read: {error.strerror}") from error


def _run(command: list[str], given: str) -> None:
    done = subprocess.run(command, input=given, text=True, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise NotRunnable(f"{command[0]} ended with status {done.returncode}; its own words stand above")


def _append(file: Path, line: str) -> None:
    with file.open("a") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
