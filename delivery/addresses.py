"""Where a person's command finds the stack: the environment first, then the local stack's own settings and secrets.

`delivery.orders_command` asks here; tasks are given their addresses and never do. It reads two files at most and writes none.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the checkout, whose local stack is meant when nothing else is said


class NoAddress(RuntimeError):
    """An address or a secret is not known; the message says what to set."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Addresses:
    """Of director, Airflow and registry; `repr` is the object's own, so that no secret gets into a traceback."""

    director_url: str
    director_token: str
    airflow_url: str
    airflow_user: str
    airflow_password: str
    registry_url: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Addresses:
        """PENSTOCK_DIRECTOR_URL and PENSTOCK_DIRECTOR_TOKEN (and the like for Airflow, see the code); what is not set is the local stack's.

        The local stack's secrets lie in the state folder (PENSTOCK_STATE, or `.penstock` in the checkout), its ports in PENSTOCK_SETTINGS
        or the checkout's settings. Raises `NoAddress`.
        """
        local = _Local(environ)
        return cls(
            director_url=environ.get("PENSTOCK_DIRECTOR_URL") or local.url("director_http"),
            director_token=environ.get("PENSTOCK_DIRECTOR_TOKEN") or local.secret("director_token"),
            airflow_url=environ.get("PENSTOCK_AIRFLOW_URL") or local.url("airflow", ""),
            airflow_user=environ.get("PENSTOCK_AIRFLOW_USER") or "admin",
            airflow_password=environ.get("PENSTOCK_AIRFLOW_PASSWORD") or local.secret("airflow_admin_password", ""),
            registry_url=environ.get("MLFLOW_TRACKING_URI") or local.url("mlflow", ""),
        )


class _Local:
    """The local stack's files. A default stands for what a command may not need."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._secrets = (ROOT / (environ.get("PENSTOCK_STATE") or ".penstock")) / "secrets.json"
        self._settings = Path(environ.get("PENSTOCK_SETTINGS") or ROOT / "stack" / "settings.toml")

    def secret(self, name: str, default: str | None = None) -> str:
        return self._found(lambda: json.loads(self._secrets.read_bytes())[name], f"{name} in {self._secrets}", default)

    def url(self, port: str, default: str | None = None) -> str:
        found = self._found(lambda: tomllib.loads(self._settings.read_text())["ports"][port], f"ports.{port} in {self._settings}", default)
        return f"http://127.0.0.1:{found}" if found else found

    def _found(self, read: Any, what: str, default: str | None) -> str:
        try:
            return str(read())
        except (OSError, ValueError, KeyError, TypeError) as error:
            if default is not None:
                return default
            advice = "start the stack (make up), name its state folder in PENSTOCK_STATE, or set PENSTOCK_DIRECTOR_URL and _TOKEN"
            raise NoAddress(f"there is no {what} ({type(error).__name__}): {advice}") from error
