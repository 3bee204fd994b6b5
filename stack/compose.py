"""What docker-compose.yaml needs once at each start: secrets, databases, and MLflow's webhook. Runs in the image `setup`.

    python -m stack.compose keys | databases | webhook | show NAME

`keys` makes the secrets on the first start (`stack.keys`) and writes for each service what it needs and no more into that service's own
volume below /keys, readable by its user only; with them goes the configuration that the local stack's services have too. It starts
nothing and waits for nothing: compose does.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import hmac
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stack import variables, webhook
from stack.keys import Keys, read_keys, read_or_make_keys

KEYS = Path("/keys")
NOBODY, ROOT_USER = 65534, 0
DATABASES = ("airflow", "mlflow")
REGISTRY_USER = "penstock"
AIRFLOW_URL, MLFLOW_URL = "http://api-server:8080", "http://mlflow:5000"
DIRECTOR_PORT, RECORDER_PORT, GATEWAY_PORT = 8100, 8102, 8000
BCRYPT_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class File:
    """A secret file of one service: below /keys, by path, with the user that may read it."""

    path: str
    content: str
    owner: int


def files(keys: Keys, environ: Mapping[str, str]) -> list[File]:
    """Every service's files. `environ`: the few words of the compose file that configurations depend on."""
    return [
        File(path="postgres/password", content=keys.postgres_password, owner=ROOT_USER),
        File(path="registry/htpasswd", content=f"{REGISTRY_USER}:{_bcrypt(registry_password(keys))}\n", owner=ROOT_USER),
        File(path="prometheus/director_token", content=keys.director_token, owner=NOBODY),
        File(path="director/environment", content=_lines(variables.director(keys)), owner=NOBODY),
        File(path="mlflow/environment", content=_lines(mlflow(keys)), owner=NOBODY),
        File(path="airflow/environment", content=_lines(airflow(keys, environ)), owner=NOBODY),
        File(path="people/environment", content=_lines(people(keys)), owner=NOBODY),
        File(path="servers/environment", content=_lines(servers(keys)), owner=NOBODY),
        File(path="airflow/passwords.json", content=json.dumps(_passwords(keys)), owner=NOBODY),
    ]


def registry_password(keys: Keys) -> str:
    """Of the container registry's one user; made from the director's token, so that there is one file of secrets for both stacks."""
    return hmac.new(keys.director_token.encode(), b"container registry", hashlib.sha256).hexdigest()


def database(keys: Keys, name: str) -> str:
    return f"postgresql+psycopg2://penstock:{keys.postgres_password}@postgres:5432/{name}"


def mlflow(keys: Keys) -> dict[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": database(keys, "mlflow"),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": keys.mlflow_fernet_key,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def people(keys: Keys) -> dict[str, str]:
    """For the command `penstock`, whose orders say themselves who gave them."""
    airflow = {"PENSTOCK_AIRFLOW_USER": variables.ADMIN_USER, "PENSTOCK_AIRFLOW_PASSWORD": keys.airflow_admin_password}
    return {**variables.director(keys), **airflow, **_registry_login(keys)}


def servers(keys: Keys) -> dict[str, str]:
    return {**variables.director(keys), **_registry_login(keys)}


def _registry_login(keys: Keys) -> dict[str, str]:
    return {"PENSTOCK_REGISTRY_USER": REGISTRY_USER, "PENSTOCK_REGISTRY_PASSWORD": registry_password(keys)}


def airflow(keys: Keys, environ: Mapping[str, str]) -> dict[str, str]:
    """Configuration and secrets of Airflow's four components."""
    sections = {
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__DAGS_FOLDER": "/airflow/dags",
        "CORE__PLUGINS_FOLDER": "/airflow/plugins",
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__PARALLELISM": environ.get("AIRFLOW_PARALLELISM", "8"),
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__EXECUTION_API_SERVER_URL": f"{AIRFLOW_URL}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{variables.ADMIN_USER}:admin,{variables.WEBHOOK_USER}:user",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(KEYS / "passwords.json"),
        "API__HOST": "0.0.0.0",  # noqa: S104 - the container's own network; compose publishes it on loopback
        "API__PORT": "8080",
        "API__WORKERS": "2",  # the webhook plugin calls its own server
        "LOGGING__BASE_LOG_FOLDER": "/airflow/logs",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
        "DATABASE__SQL_ALCHEMY_CONN": database(keys, "airflow"),
        "API__SECRET_KEY": keys.airflow_api_secret,
        "API_AUTH__JWT_SECRET": keys.airflow_jwt_secret,
        "CORE__FERNET_KEY": keys.airflow_fernet_key,
        **variables.airflow_timing(),
    }
    return {
        **{f"AIRFLOW__{name}": value for name, value in sections.items()},
        "PENSTOCK_AIRFLOW_URL": AIRFLOW_URL,
        "PENSTOCK_AIRFLOW_USER": variables.WEBHOOK_USER,
        "PENSTOCK_AIRFLOW_PASSWORD": keys.airflow_webhook_password,
        "PENSTOCK_WEBHOOK_SECRET": keys.mlflow_webhook_secret,
        "AIRFLOW_CONN_MLFLOW": variables.connection("mlflow", 5000),
        "AIRFLOW_CONN_DIRECTOR": variables.connection("director", DIRECTOR_PORT, password=keys.director_token),
        "AIRFLOW_CONN_CONTAINER_REGISTRY": variables.connection("registry", 5000, login=REGISTRY_USER, password=registry_password(keys)),
    }


def _passwords(keys: Keys) -> dict[str, str]:
    return {variables.ADMIN_USER: keys.airflow_admin_password, variables.WEBHOOK_USER: keys.airflow_webhook_password}


def _lines(environment: Mapping[str, str]) -> str:
    """NAME=value lines, as /start.py reads them; a value with a line's end would become another variable."""
    if bad := [name for name, value in environment.items() if "\n" in value]:
        raise ValueError(f"{bad[0]} has a line's end in it")
    return "".join(f"{name}={value}\n" for name, value in environment.items())


def _bcrypt(password: str) -> str:
    import bcrypt

    return str(bcrypt.hashpw(password.encode(), bcrypt.gensalt(BCRYPT_ROUNDS)).decode())


def write_keys(root: Path, environ: Mapping[str, str]) -> None:
    """Makes the secrets if there are none, and writes every service's files; what stands already is written over, whole."""
    keys = read_or_make_keys(root / "setup")
    for file in files(keys, environ):
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(file.content)
        os.chown(draft, file.owner, file.owner)
        os.chown(path.parent, file.owner, file.owner)
        path.parent.chmod(0o700)
        draft.replace(path)


def make_databases(keys: Keys) -> None:
    """Creates the databases that are missing."""
    import psycopg2

    connection = psycopg2.connect(host="postgres", user="penstock", password=keys.postgres_password, dbname="postgres", connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select datname from pg_database")
            known = {name for (name,) in cursor.fetchall()}
            for name in DATABASES:
                if name not in known:
                    cursor.execute(f'create database "{name}"')
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack.compose")
    parser.add_argument("what", choices=("keys", "databases", "webhook", "show"))
    parser.add_argument("name", nargs="?", help="show: the secret's name, like airflow_admin_password")
    given = parser.parse_args(arguments)
    if given.what == "keys":
        write_keys(KEYS, os.environ)
        return 0
    keys = read_keys(KEYS / "setup")
    if given.what == "databases":
        make_databases(keys)
    elif given.what == "webhook":
        webhook.register(MLFLOW_URL, AIRFLOW_URL, keys)
    else:
        known = dataclasses.asdict(keys) | {"registry_password": registry_password(keys)}
        if given.name and given.name not in known:
            print(f"there is no secret {given.name}; known: {', '.join(known)}", file=sys.stderr)
            return 1
        print(known[given.name] if given.name else json.dumps(known))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
