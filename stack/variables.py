"""Environment variables of the services: how Airflow, MLflow and the director are configured.

`stack.services` asks for them when a program starts, so that secrets pass from the secrets file into the program and nowhere else. The
values were found by trial; where one looks strange, the reason stands beside it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import MutableMapping
from pathlib import Path

from stack import postgres
from stack.keys import Keys
from stack.processes import MARKER, SERVICE
from stack.settings import ROOT, Settings

INHERITED = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "http_proxy", "https_proxy")
LOOPBACK = ("127.0.0.1", "localhost")
NO_PROXY = ("NO_PROXY", "no_proxy")  # programs differ in which of the two they read
WEBHOOK_USER = "webhook"
ADMIN_USER = "admin"


def spare_loopback(environ: MutableMapping[str, str]) -> None:
    """Adds loopback to what is reached without a proxy; every program that starts or asks the stack begins with it."""
    known = dict.fromkeys(word.strip() for name in NO_PROXY for word in environ.get(name, "").split(",") if word.strip())
    environ.update(dict.fromkeys(NO_PROXY, ",".join([*known, *(each for each in LOOPBACK if each not in known)])))


def base(settings: Settings) -> dict[str, str]:
    """What every process of the stack gets; of the caller's environment only what is listed, so that a start is repeatable."""
    kept = {name: os.environ[name] for name in (*INHERITED, *NO_PROXY) if name in os.environ}
    spare_loopback(kept)
    return {
        **kept,
        "PATH": os.environ.get("PATH", os.defpath),
        "PENSTOCK_STATE": str(settings.state),
        "PENSTOCK_POLICIES": str(settings.policies),  # supervisord hands it on to each program's start, which reads the settings again
        **({"PENSTOCK_SETTINGS": str(Path(os.environ["PENSTOCK_SETTINGS"]).absolute())} if os.environ.get("PENSTOCK_SETTINGS") else {}),
        MARKER: str(settings.state),
        "PYTHONSAFEPATH": "1",  # with the checkout on the path, its folder `docker` would pass for the SDK
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",  # Airflow renames its processes; without this it overwrites the environment by which they are found
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def marked(settings: Settings, service: str) -> dict[str, str]:
    return {**base(settings), SERVICE: service}


def triton(settings: Settings) -> dict[str, str]:
    """How tasks start a Triton and where its ports lie."""
    return {
        "PENSTOCK_TRITON": shlex.join([str(settings.python("triton")), str(ROOT / "docker" / "triton" / "serve.py")]),
        "PENSTOCK_TRITON_PORTS": f"{settings.ports.triton_first}-{settings.ports.triton_last}",
        "PENSTOCK_SUPERVISOR": str(settings.supervisor_socket),
    }


def mlflow(settings: Settings, keys: Keys) -> dict[str, str]:
    """The registry's server: webhooks may go to loopback over plain HTTP, their secrets survive a restart, no job processes."""
    return {
        "MLFLOW_BACKEND_STORE_URI": postgres.address(settings, keys, "mlflow", "psycopg2"),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": keys.mlflow_fernet_key,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that nothing here uses
    }


def director(keys: Keys) -> dict[str, str]:
    return {"PENSTOCK_DIRECTOR_TOKEN": keys.director_token}


def recorder(settings: Settings, keys: Keys) -> dict[str, str]:
    return {"PENSTOCK_DIRECTOR_URL": settings.director_url, **director(keys)}


def airflow(settings: Settings, keys: Keys) -> dict[str, str]:
    """All four components of Airflow share one environment; `penstock` variables in it reach operators and plugins."""
    sections = {**_airflow_core(settings), **airflow_timing(), **_airflow_secrets(settings, keys)}
    return {
        "AIRFLOW_HOME": str(settings.data / "airflow"),
        **{f"AIRFLOW__{name}": value for name, value in sections.items()},
        **triton(settings),
        **_engine(),
        "PENSTOCK_RUNTIME": "process",
        "PENSTOCK_RECORDER_URL": settings.recorder_url,
        "PENSTOCK_GATEWAY": settings.gateway_address,
        "PENSTOCK_AIRFLOW_URL": settings.airflow_url,
        "PENSTOCK_AIRFLOW_USER": WEBHOOK_USER,
        "PENSTOCK_AIRFLOW_PASSWORD": keys.airflow_webhook_password,
        "PENSTOCK_WEBHOOK_SECRET": keys.mlflow_webhook_secret,
        "AIRFLOW_CONN_MLFLOW": connection("127.0.0.1", settings.ports.mlflow),
        "AIRFLOW_CONN_DIRECTOR": connection("127.0.0.1", settings.ports.director_http, password=keys.director_token),
    }


def _engine() -> dict[str, str]:
    """The local stack needs no engine; with PENSTOCK_ENGINE set when it starts, `package` makes images too and `container_check` runs."""
    names = ("PENSTOCK_ENGINE", "PENSTOCK_REGISTRY", "PENSTOCK_SERVING_IMAGE", "PENSTOCK_SERVING_NETWORK", "PENSTOCK_PROJECT")
    return {name: os.environ[name] for name in names if name in os.environ}


def _airflow_core(settings: Settings) -> dict[str, str]:
    url = settings.airflow_url
    return {
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__PARALLELISM": str(settings.airflow.parallelism),
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN_USER}:admin,{WEBHOOK_USER}:user",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(settings.data / "airflow" / "passwords.json"),
        "API__HOST": "127.0.0.1",
        "API__PORT": str(settings.ports.airflow),
        "API__WORKERS": str(settings.airflow.api_workers),
        "API__BASE_URL": url,
        "LOGGING__BASE_LOG_FOLDER": str(settings.logs / "airflow"),
        "USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def airflow_timing() -> dict[str, str]:
    """Quick to start a task, and quick to notice what a killed component left; measured defaults take minutes."""
    return {
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # a worker that misses its task's exit sleeps this long; 5 s by default, on most tasks
        "TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "1",  # else a policy mended within half a minute is read by workers long before
        "CORE__MIN_SERIALIZED_DAG_FETCH_INTERVAL": "1",
    }


def _airflow_secrets(settings: Settings, keys: Keys) -> dict[str, str]:
    return {
        "DATABASE__SQL_ALCHEMY_CONN": postgres.address(settings, keys, "airflow", "psycopg2"),
        "API__SECRET_KEY": keys.airflow_api_secret,
        "API_AUTH__JWT_SECRET": keys.airflow_jwt_secret,
        "CORE__FERNET_KEY": keys.airflow_fernet_key,
    }


def connection(host: str, port: int, *, login: str | None = None, password: str | None = None) -> str:
    """An Airflow connection over plain HTTP, as its environment variable holds it."""
    fields = {"conn_type": "http", "host": host, "port": port, "schema": "http", "login": login, "password": password}
    return json.dumps({name: value for name, value in fields.items() if value is not None})
