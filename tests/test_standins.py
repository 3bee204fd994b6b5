"""The stand-ins for public images do what docker-compose.yaml asks of the public ones: they serve, keep, and refuse."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import psycopg2
import pytest

ROOT = Path(__file__).parent.parent
STANDINS = ROOT / "docker" / "standins"
PASSWORD = "a-password-of-the-tests"
HTPASSWD = "penstock:$2y$05$penstockPenstockPenst.eTxFl0Jo29iZrN8z.a6mqlQ3Jndinfe\n"  # bcrypt of PASSWORD
SECRET = "run/secrets/password"
DATABASE = {"POSTGRES_USER": "penstock", "POSTGRES_DB": "airflow", "POSTGRES_PASSWORD_FILE": f"/{SECRET}"}
PATIENCE_S = 30.0

Image = Callable[[str], str]


@pytest.fixture(scope="module")
def engine() -> Any:
    from docker import from_env
    from docker.errors import DockerException

    try:
        engine = from_env(timeout=60)
        engine.ping()
    except DockerException as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Docker engine: {error}")
    return engine


@pytest.fixture(scope="module")
def image(engine: Any) -> Image:
    """Builds a stand-in, or finds it built, and gives its name. By the command line, whose cache Compose shares."""

    def built(target: str) -> str:
        tag, base = f"penstock-test/standin-{target}", os.environ.get("BASE_IMAGE", "python:3.11-slim-bookworm")
        command = ["docker", "build", "--quiet", "--target", target, "--build-arg", f"BASE_IMAGE={base}", "--tag", tag, str(STANDINS)]
        environ = {**os.environ, "DOCKER_BUILDKIT": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        assert done.returncode == 0, done.stderr
        return tag

    return built


@pytest.fixture
def volume(engine: Any) -> Iterator[str]:
    name = f"penstock-test-{uuid4().hex}"
    engine.volumes.create(name)
    yield name
    engine.volumes.get(name).remove(force=True)


@contextlib.contextmanager
def running(engine: Any, image: str, port: int, files: Mapping[str, str] | None = None, *, mode: int = 0o600, **more: Any) -> Iterator[Any]:
    """A container with root's `files` in it, and `port` published where the engine likes."""
    published = {f"{port}/tcp": ("127.0.0.1", None)}
    container = engine.containers.create(image, name=f"penstock-test-{uuid4().hex}", ports=published, **more)
    try:
        container.put_archive("/", archive(files or {}, mode))
        container.start()
        yield container
    finally:
        container.remove(force=True, v=True)


def archive(files: Mapping[str, str], mode: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), mode
            tar.addfile(entry, io.BytesIO(text.encode()))
    return made.getvalue()


def address(container: Any, port: int) -> tuple[str, int]:
    container.reload()
    published = container.ports[f"{port}/tcp"][0]
    return published["HostIp"], int(published["HostPort"])


def said(container: Any) -> str:
    return str(container.logs().decode(errors="replace"))


def patiently(ask: Callable[[], Any], container: Any, *errors: type[Exception]) -> Any:
    """The first answer; an error of these types is not one, as long as the container runs."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except errors as error:
            container.reload()
            if container.status != "running" or time.monotonic() > deadline:
                raise AssertionError(f"{error!r}: {said(container)[-2000:]}") from error
            time.sleep(0.1)


# ---- PostgreSQL


def query(container: Any, statement: str, password: str = PASSWORD) -> list[tuple[Any, ...]]:
    """Rows of one statement, over the network, as Airflow and MLflow ask."""
    host, port = address(container, 5432)
    connection = psycopg2.connect(host=host, port=port, user="penstock", password=password, dbname="airflow", connect_timeout=5)
    with contextlib.closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def query_soon(container: Any, statement: str) -> list[tuple[Any, ...]]:
    return patiently(lambda: query(container, statement), container, psycopg2.OperationalError, KeyError, IndexError)


def exit_status(container: Any) -> int:
    return int(container.wait(timeout=PATIENCE_S)["StatusCode"])


@pytest.mark.engine
def test_postgres_serves_who_knows_the_password(engine: Any, image: Image) -> None:
    """User, database and password are the variables'; a wrong password is refused; the server does not run as root."""
    with running(engine, image("postgres"), 5432, {SECRET: f"{PASSWORD}\n"}, environment=DATABASE) as container:
        assert query_soon(container, "select current_user, current_database()") == [("penstock", "airflow")]
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            query(container, "select 1", password="another")
        assert container.exec_run(["pg_isready", "-U", "penstock", "-d", "airflow"]).exit_code == 0
        assert container.exec_run(["stat", "-c", "%U", "/proc/1"]).output == b"postgres\n"


@pytest.mark.engine
def test_postgres_keeps_its_data_in_the_volume(engine: Any, image: Image, volume: str) -> None:
    """Another container with the same volume has the data and the password, and needs no password's file; a stop is an orderly one."""
    where = {"volumes": {volume: {"bind": "/var/lib/postgresql/data", "mode": "rw"}}}
    with running(engine, image("postgres"), 5432, {SECRET: PASSWORD}, environment=DATABASE, **where) as container:
        query_soon(container, "create table kept as select 42 as answer")
        container.stop(timeout=20)
        assert exit_status(container) == 0
        assert "database system is shut down" in said(container)
    with running(engine, image("postgres"), 5432, **where) as container:
        assert query_soon(container, "select answer from kept") == [(42,)]
        assert "was not properly shut down" not in said(container)


@pytest.mark.engine
def test_a_killed_first_start_leaves_nothing_behind(engine: Any, image: Image, volume: str) -> None:
    """What a killed start had made of the cluster is a draft, and the next start makes it whole."""
    where = {"volumes": {volume: {"bind": "/var/lib/postgresql/data", "mode": "rw"}}}
    files = {SECRET: PASSWORD, "var/lib/postgresql/data/cluster.draft/PG_VERSION": "15\n"}
    with running(engine, image("postgres"), 5432, files, environment=DATABASE, **where) as container:
        assert query_soon(container, "select 1") == [(1,)]
        assert container.exec_run(["ls", "/var/lib/postgresql/data"]).output == b"cluster\n"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "POSTGRES_PASSWORD_FILE is /run/secrets/password, which cannot be read"),
        ({SECRET: "x", "var/lib/postgresql/data/PG_VERSION": "17\n"}, "holds a cluster of the public image"),
    ],
)
def test_postgres_does_not_begin_what_it_cannot_do(engine: Any, image: Image, files: Mapping[str, str], sentence: str) -> None:
    """No password, or a volume of the public image: it ends with a sentence, and makes nothing."""
    with running(engine, image("postgres"), 5432, files, environment=DATABASE) as container:
        assert exit_status(container) == 78
        assert sentence in said(container)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("standin_postgres", STANDINS / "postgres.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_database_is_named_like_its_user_unless_said_otherwise(entry: ModuleType) -> None:
    """The public image's own defaults."""
    found = [entry.first_start({"POSTGRES_PASSWORD": "x", **more}) for more in ({}, {"POSTGRES_USER": "a"}, {"POSTGRES_DB": "b"})]
    assert [(each.user, each.database) for each in found] == [("postgres", "postgres"), ("a", "a"), ("postgres", "b")]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, "POSTGRES_PASSWORD_FILE"),
        ({"POSTGRES_PASSWORD": "x", "POSTGRES_PASSWORD_FILE": "/x"}, "not both"),
        ({"POSTGRES_PASSWORD": "\n"}, "POSTGRES_PASSWORD must be one line"),
        ({"POSTGRES_PASSWORD": "x\ny"}, "one line"),
        ({"POSTGRES_PASSWORD": "x", "POSTGRES_USER": 'a"b'}, "POSTGRES_USER"),
        ({"POSTGRES_PASSWORD": "x", "POSTGRES_DB": "Air flow"}, "POSTGRES_DB"),
    ],
)
def test_a_wrong_variable_is_named(entry: ModuleType, environ: Mapping[str, str], named: str) -> None:
    """Nothing is guessed: the message says which variable, and what it should be."""
    with pytest.raises(entry.NotRunnable, match=named):
        entry.first_start(environ)


# ---- the others, asked over HTTP

ON_ITS_WAY = (httpx.TransportError, KeyError, IndexError)


def ask(container: Any, port: int, method: str, path: str, **more: Any) -> httpx.Response:
    host, published = address(container, port)
    return httpx.request(method, f"http://{host}:{published}{path}", **more)


def ready(container: Any, port: int) -> httpx.Response:
    return ask(container, port, "GET", "/-/ready").raise_for_status()


def runs_as_nobody(container: Any) -> bool:
    return bool(container.exec_run(["stat", "-c", "%u", "/proc/1"]).output == b"65534\n")


@pytest.mark.engine
def test_the_registry_asks_for_the_password(engine: Any, image: Image) -> None:
    """Without one, or with a wrong one, nothing; with it the API, deletions included."""
    environ = {
        "REGISTRY_AUTH": "htpasswd",
        "REGISTRY_AUTH_HTPASSWD_REALM": "penstock",
        "REGISTRY_AUTH_HTPASSWD_PATH": "/auth/htpasswd",
        "REGISTRY_STORAGE_DELETE_ENABLED": "true",
    }
    own, wrong = ("penstock", PASSWORD), ("penstock", "another")
    with running(engine, image("registry"), 5000, {"auth/htpasswd": HTPASSWD}, environment=environ) as container:
        refusal = patiently(lambda: ask(container, 5000, "GET", "/v2/"), container, *ON_ITS_WAY)
        statuses = [ask(container, 5000, "GET", "/v2/", auth=each).status_code for each in (wrong, own)]
        assert ([refusal.status_code, *statuses], refusal.headers["www-authenticate"]) == ([401, 401, 200], 'Basic realm="penstock"')
        assert ask(container, 5000, "POST", "/v2/m/blobs/uploads/", auth=own).status_code == 202
        gone = ask(container, 5000, "DELETE", f"/v2/m/manifests/sha256:{'0' * 64}", auth=own)
        assert gone.status_code == 404  # 405 where deletions are off


def configuration(folder: str) -> dict[str, str]:
    return {f"etc/{folder}/{file.name}": file.read_text() for file in (ROOT / "docker" / folder).glob("*.yml")}


DIRECTOR = f"""
import http.server, json
class Targets(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = (self.path, self.headers["Authorization"]) == ("/v1/targets", "Bearer {PASSWORD}")
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.end_headers()
        self.wfile.write(json.dumps([{{"targets": ["10.213.0.130:8002"], "labels": {{"model": "digits"}}}}]).encode())
http.server.HTTPServer(("", 8100), Targets).serve_forever()
"""


@pytest.fixture
def network(engine: Any) -> Iterator[Any]:
    """A network on which something called `director` tells who knows the token of one server."""
    made = engine.networks.create(f"penstock-test-{uuid4().hex}")
    base = os.environ.get("BASE_IMAGE", "python:3.11-slim-bookworm")
    director = engine.containers.create(base, ["python3", "-c", DIRECTOR], name=f"penstock-test-{uuid4().hex}")
    try:
        made.connect(director, aliases=["director"])
        director.start()
        yield made
    finally:
        director.remove(force=True, v=True)
        made.remove()


def watched(container: Any) -> set[tuple[str, str]]:
    """Job and address of each target; Prometheus begins with them some seconds after it is ready."""
    rows = ask(container, 9090, "GET", "/api/v1/targets").json()["data"]["activeTargets"]
    found = {(each["labels"]["job"], each["labels"]["instance"]) for each in rows}
    if "triton" not in dict(found):
        raise LookupError(f"Prometheus has {found} and not yet the director's servers")
    return found


@pytest.mark.engine
def test_prometheus_is_ready_with_our_configuration(engine: Any, image: Image, network: Any) -> None:
    """Rules and scrapes are read, the director's servers are found with the token, and all of it as nobody."""
    command = ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus", "--storage.tsdb.retention.time=15d"]
    files = {**configuration("prometheus"), "keys/director_token": f"{PASSWORD}\n"}
    with running(engine, image("prometheus"), 9090, files, mode=0o644, command=command, network=network.name) as container:
        patiently(lambda: ready(container, 9090), container, *ON_ITS_WAY, httpx.HTTPStatusError)
        groups = ask(container, 9090, "GET", "/api/v1/rules").json()["data"]["groups"]
        named = {each["name"] for group in groups for each in group["rules"] if each["type"] == "alerting"}
        assert named == {"GatewayDown", "DirectorDown", "TritonDown", "ModelErrors"}
        assert patiently(lambda: watched(container), container, LookupError) == {
            ("gateway", "envoy:9901"),
            ("triton", "10.213.0.130:8002"),
            ("prometheus", "localhost:9090"),
            ("alertmanager", "alertmanager:9093"),
        }
        assert "prometheus_sd_http_failures_total" in ask(container, 9090, "GET", "/metrics").text
        assert runs_as_nobody(container)


@pytest.mark.engine
def test_alertmanager_shows_what_it_is_told(engine: Any, image: Image) -> None:
    """An alert is seen there with our configuration, which sends it to nobody; it runs as nobody, too."""
    command = ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager", "--cluster.listen-address="]
    files = configuration("alertmanager")
    with running(engine, image("alertmanager"), 9093, files, mode=0o644, command=command) as container:
        patiently(lambda: ready(container, 9093), container, *ON_ITS_WAY, httpx.HTTPStatusError)
        told = ask(container, 9093, "POST", "/api/v2/alerts", json=[{"labels": {"alertname": "GatewayDown", "severity": "critical"}}])
        assert told.status_code == 200
        seen = ask(container, 9093, "GET", "/api/v2/alerts").json()
        assert [(each["labels"]["alertname"], each["receivers"]) for each in seen] == [("GatewayDown", [{"name": "pages"}])]
        assert runs_as_nobody(container)
