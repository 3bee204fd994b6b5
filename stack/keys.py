"""The secrets of the local stack: made on first start, kept in `secrets.json` of the state folder, readable by its owner only.

`stack.services` hands each program the ones it needs as environment variables; none ever stands on a command line, in a setting or in a
log. (The module is not called `secrets`: that is the standard library's.)
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path


class BadKeys(ValueError):
    """The secrets file cannot be used; the message says what to do."""


def _token() -> str:
    return secrets.token_urlsafe(24)  # 192 bits, and no character that an address would need to quote


def _fernet() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()  # the form of cryptography.fernet.Fernet.generate_key


@dataclass(frozen=True, kw_only=True, repr=False)
class Keys:
    """One string each; `repr` is the object's own, so that no secret gets into a traceback."""

    airflow_admin_password: str = field(default_factory=_token)
    airflow_webhook_password: str = field(default_factory=_token)
    airflow_jwt_secret: str = field(default_factory=_token)
    airflow_api_secret: str = field(default_factory=_token)
    airflow_fernet_key: str = field(default_factory=_fernet)
    mlflow_webhook_secret: str = field(default_factory=_token)
    mlflow_fernet_key: str = field(default_factory=_fernet)
    director_token: str = field(default_factory=_token)
    postgres_password: str = field(default_factory=_token)


def keys_file(state: Path) -> Path:
    return state / "secrets.json"


def read_or_make_keys(state: Path) -> Keys:
    """The state folder's keys; on first start fresh ones are written, mode 0600. Raises `BadKeys`."""
    path = keys_file(state)
    if not path.exists():
        _write_new(path, Keys())
    return read_keys(state)


def read_keys(state: Path) -> Keys:
    """Refuses a file that others can read, and one with a key missing, unknown or empty."""
    path = keys_file(state)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        row = json.loads(path.read_text())
    except OSError as error:
        raise BadKeys(f"cannot read {path}: {error.strerror}; `make up` makes it") from error
    except ValueError as error:
        raise BadKeys(f"{path} is not JSON: {error}") from error
    if mode & 0o077:
        raise BadKeys(f"{path} has mode {mode:04o}: others can read it. Run `chmod 600 {path}`, or better, `make clean` for new keys")
    return _checked(path, row)


def _checked(path: Path, row: object) -> Keys:
    names = {each.name for each in dataclasses.fields(Keys)}
    if not isinstance(row, dict) or set(row) != names:
        different = sorted(names ^ set(row if isinstance(row, dict) else {}))
        raise BadKeys(f"{path}: {different[0]} is missing or unknown; it was written by another version: `make clean` starts anew")
    if empty := [name for name, value in row.items() if not (isinstance(value, str) and value)]:
        raise BadKeys(f"{path}: {empty[0]} must be a non-empty string")
    return Keys(**row)


def _write_new(path: Path, keys: Keys) -> None:
    """Linked into place: of two first starts one wins, and no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(dataclasses.asdict(keys), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
