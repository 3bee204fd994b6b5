"""The local stack's parts that need no running stack: configuration, processes, ports, environments, order."""

import base64
import configparser
import dataclasses
import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import xmlrpc.client
from collections.abc import Callable, Iterator
from importlib.metadata import PackagePath, distribution
from pathlib import Path

import httpx
import psutil
import pytest
from ports import free_port
from supervisor.xmlrpc import Faults

from stack import __main__ as stack_main
from stack import bootstrap, environments, processes, supervisor, up, variables, webhook
from stack.__main__ import main
from stack.down import take_down
from stack.environments import ENVIRONMENTS, NotInstalled, ensure, link_packages
from stack.keys import Keys
from stack.services import Service, table
from stack.settings import ROOT, Gateway, Settings, read_settings
from stack.up import (
    NotUp,
    Step,
    _ports_to_take,
    _unless_taken_away,
    addresses,
    check_policies,
    check_ports,
    clear_leftovers,
    make_folders,
    only_one,
    shared_memory_prefix,
    walk,
)
from stack.variables import spare_loopback

# Says that it is ready, then waits to be ended; with a port as argument it listens there first.
CHILD = """
import signal, socket, sys
if len(sys.argv) > 1:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def settings() -> Iterator[Settings]:
    """In a folder with a short name: pytest's own may be too deep for a socket."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        made = read_settings({"PENSTOCK_STATE": folder})
        make_folders(made)
        for name in ("postgres", "envoy"):
            (made.environment(name) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        yield made


@pytest.fixture
def services(settings: Settings) -> dict[str, Service]:
    return table(settings, Keys())


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process with the given environment variables, and ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, *arguments]
        process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def rendered(services: dict[str, Service], settings: Settings) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(supervisor.render(services.values(), settings))
    return parser


def test_every_service_is_supervised(services: dict[str, Service], settings: Settings):
    """A crashed one comes back; none starts before its turn; a stop reaches all that it started."""
    config = rendered(services, settings)
    for name, service in services.items():
        program = config[f"program:{name}"]
        assert (program["autostart"], program["autorestart"], program["killasgroup"]) == ("false", "true", "true")
        assert shlex.split(program["command"])[-3:] == ["stack", "run", name]
        assert program["stopsignal"] == service.stop_signal


def test_airflow_reads_the_policies_that_the_user_names(settings: Settings, tmp_path: Path):
    """Its DAGs and the webhook's receiver find them by the one variable, handed on through supervisord."""
    chosen = dataclasses.replace(settings, policies=tmp_path)
    assert variables.marked(chosen, "scheduler")["PENSTOCK_POLICIES"] == str(tmp_path)


def test_tasks_learn_where_the_gateway_is(settings: Settings):
    """Airflow hands the address on; the gate `integration` asks there."""
    assert variables.airflow(settings, Keys())["PENSTOCK_GATEWAY"] == settings.gateway_address


def test_a_missing_folder_of_policies_is_named(settings: Settings, tmp_path: Path):
    """Without policies no version would ever be delivered, and nobody would know why."""
    with pytest.raises(NotUp, match=r"there is no folder of policies at .*nowhere: make it, or set PENSTOCK_POLICIES"):
        check_policies(dataclasses.replace(settings, policies=tmp_path / "nowhere"))


def test_the_supervisors_file_holds_no_secret(settings: Settings):
    """Secrets are made environment in the program's own process; neither file nor command line shows one."""
    keys = Keys()
    services = table(settings, keys)
    shown = supervisor.render(services.values(), settings) + " ".join(word for each in services.values() for word in each.command)
    assert not [name for name, value in dataclasses.asdict(keys).items() if value in shown]


def test_only_the_owner_reaches_the_supervisor(services: dict[str, Service], settings: Settings):
    """Its socket starts programs: mode 0700, below a folder of mode 0700."""
    assert rendered(services, settings)["unix_http_server"]["chmod"] == "0700"
    assert settings.run.stat().st_mode & 0o777 == 0o700


def test_services_come_after_what_they_need(services: dict[str, Service]):
    """The order is part of the table: databases before what writes to them, the director before the gateway."""
    assert services["mlflow"].after == ("databases",)
    assert services["envoy"].after == ("director",)
    assert {services[name].after for name in ("api-server", "scheduler", "dag-processor", "triggerer")} == {("migrations",)}


def test_airflow_and_registry_listen_on_loopback_only(services: dict[str, Service]):
    """Nothing of the stack is reachable from elsewhere; the log servers, which would be, are off."""
    assert services["scheduler"].variables["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert all("--skip-serve-logs" in services[name].command for name in ("scheduler", "triggerer"))
    assert "127.0.0.1" in services["mlflow"].command
    assert "listen_addresses=127.0.0.1" in services["postgres"].command


def test_the_directors_time_outs_are_the_settings(settings: Settings):
    """What a request may take is the user's to say, in milliseconds; the director is told in seconds."""
    slower = dataclasses.replace(settings, gateway=Gateway(per_try_timeout_ms=2500, request_timeout_ms=20_000))
    words = table(slower, Keys())["director"].command
    assert words[words.index("--per-try-timeout-s") + 1] == "2.5"
    assert words[words.index("--timeout-s") + 1] == "20"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "a.example, localhost"}, "a.example,localhost,127.0.0.1"),
        ({"NO_PROXY": "a.example", "no_proxy": "b.example"}, "a.example,b.example,127.0.0.1,localhost"),
    ],
)
def test_loopback_is_reached_without_a_proxy(before: dict[str, str], after: str):
    """A user with a proxy and no exception for loopback would see every probe fail; the user's own exceptions stay."""
    environ = dict(before)
    spare_loopback(environ)
    assert environ == {"NO_PROXY": after, "no_proxy": after}


def test_every_command_spares_loopback_before_anything_else(monkeypatch: pytest.MonkeyPatch):
    """Also where the command then fails: children that were started earlier have it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "a.example")
    monkeypatch.setenv("PENSTOCK_STATE", "/a b")
    assert main(["status"]) == 1
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "a.example,127.0.0.1,localhost"


def test_programs_get_no_more_of_the_users_environment_than_listed(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A start is the same from every shell: a stray PYTHONPATH or AIRFLOW variable changes nothing."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "Other")
    given = variables.marked(settings, "scheduler")
    assert not {"PYTHONPATH", "AIRFLOW__CORE__EXECUTOR"} & set(given)
    assert (given[processes.MARKER], given[processes.SERVICE]) == (str(settings.state), "scheduler")


def test_a_taken_port_is_reported_with_its_holder(child: Callable[..., subprocess.Popen[str]]):
    """The message names port, service, pid and command, and where to change the port."""
    port = free_port()
    holder = child(str(port))
    with pytest.raises(NotUp, match=rf"port {port} \(mlflow\) is taken by pid {holder.pid} \(.*python.*\n.*stack/settings.toml") as raised:
        check_ports({"mlflow": port, "gateway": free_port()})
    assert "gateway" not in str(raised.value)


def write_server(settings: Settings, name: str, first: int) -> None:
    flags = f"--name {name} --repository /store --http {first} --grpc {first + 1} --metrics {first + 2}"
    (settings.servers / f"{name}.conf").write_text(f"[program:{name}]\ncommand=python serve.py {flags}\n")


def test_ports_of_stopped_servers_are_checked_too(services: dict[str, Service], settings: Settings):
    """A model's server keeps its ports; supervisord would start it in vain for ever where another program sits on one."""
    write_server(settings, "digits--v3", 18203)
    write_server(settings, "digits--v4", 18206)
    states = {**dict.fromkeys(services, "RUNNING"), "director": "STOPPED", "digits--v3": "BACKOFF", "digits--v4": "RUNNING"}
    own = {"digits--v3 http": 18203, "digits--v3 grpc": 18204, "digits--v3 metrics": 18205}
    assert _ports_to_take(services.values(), settings, states) == {"director_http": 18100, "director_grpc": 18101, **own}
    assert set(_ports_to_take(services.values(), settings, {})) == {
        *settings.ports.fixed(),
        *own,
        *(key.replace("v3", "v4") for key in own),
    }


@pytest.mark.parametrize(
    ("state", "told"),
    [("RUNNING", "digits is not ready at 127.0.0.1:1"), ("BACKOFF", "its log is digits--v3.log"), (None, "supervisord does not know it")],
)
def test_a_server_that_does_not_serve_is_trouble(
    settings: Settings, state: str | None, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The status of a stack whose models do not answer is not good, whatever its services say."""
    write_server(settings, "digits--v3", 1)
    monkeypatch.setattr(stack_main, "_services", lambda _: {})
    monkeypatch.setattr(supervisor, "is_alive", lambda _: True)
    row = {"statename": state, "description": "", "start": 0}
    monkeypatch.setattr(supervisor, "states", lambda _: {"digits--v3": row} if state else {})
    assert stack_main.status(settings, None) == 1
    assert told in capsys.readouterr().out


def test_a_server_that_is_taken_away_meanwhile_is_not_waited_for():
    """A delivery may stop its server while `up` looks at it; any other fault is told."""

    def fault(code: int) -> Callable[[], None]:
        def act() -> None:
            raise xmlrpc.client.Fault(code, "no")

        return act

    _unless_taken_away(fault(Faults.BAD_NAME))()
    with pytest.raises(xmlrpc.client.Fault):
        _unless_taken_away(fault(Faults.FAILED))()


def test_taking_down_reaches_the_stacks_below(settings: Settings, child: Callable[..., subprocess.Popen[str]]):
    """What a killed demo, bench or test run left goes with `make down`: processes and shared memory; another's stay."""
    inner = dataclasses.replace(settings, state=settings.state / "demo")
    orphan = child(**{processes.MARKER: str(inner.state)})
    other = child(**{processes.MARKER: f"{settings.state}-other"})
    region = Path("/dev/shm") / f"{shared_memory_prefix(inner)}digits--v1.x"
    region.touch()
    said: list[str] = []
    take_down(settings, said.append)
    assert (psutil.pid_exists(orphan.pid), region.exists(), other.poll()) == (False, False, None)
    assert said == [f"the stack is down; its data stays in {each.state}" for each in (inner, settings)]


def test_processes_are_ours_by_their_mark(settings: Settings, child: Callable[..., subprocess.Popen[str]]):
    """The kernel says whose a process is: another stack's, and a shell that only has the state folder set, are left alone."""
    mine = child(**{processes.MARKER: str(settings.state)})
    job = child(TASK_OUT=f"{settings.state}/jobs/x/out")
    child(**{processes.MARKER: f"{settings.state}-other"})
    child(PENSTOCK_STATE=str(settings.state))
    assert {each.pid for each in processes.ours(settings.state)} == {mine.pid, job.pid}


def test_leftovers_of_a_service_are_not_those_of_another(settings: Settings, child: Callable[..., subprocess.Popen[str]]):
    """A service that starts again ends its own old workers; a task's job, which has no service's mark, goes on."""
    mark = {processes.MARKER: str(settings.state)}
    worker = child(**mark, **{processes.SERVICE: "api-server"})
    child(**mark, **{processes.SERVICE: "scheduler"})
    child(**mark)
    assert [each.pid for each in processes.leftovers(settings.state, "api-server")] == [worker.pid]


def test_what_a_killed_stack_left_is_cleared(settings: Settings, child: Callable[..., subprocess.Popen[str]]):
    """Orphans end, and stale sockets, pid files and shared memory go, before anything new starts."""
    orphan = child(**{processes.MARKER: str(settings.state)})
    settings.supervisor_socket.touch()
    (settings.run / "supervisord.pid").write_text("1")
    region = Path("/dev/shm") / f"{shared_memory_prefix(settings)}digits--v1.x"
    region.touch()
    said: list[str] = []
    clear_leftovers(settings, said.append)
    assert not psutil.pid_exists(orphan.pid)
    assert said == ["ending 1 processes that a killed stack left behind"]
    assert not [path for path in (settings.supervisor_socket, settings.run / "supervisord.pid", region) if path.exists()]


def test_a_process_that_ignores_the_polite_signal_is_killed(child: Callable[..., subprocess.Popen[str]]):
    """SIGTERM first, SIGKILL after the grace."""
    polite = child()
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    stubborn = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert stubborn.stdout.readline() == "ready\n"
    assert processes.end([psutil.Process(stubborn.pid), psutil.Process(polite.pid)], grace_s=0.2) == []
    assert not [pid for pid in (stubborn.pid, polite.pid) if psutil.pid_exists(pid)]


def test_two_at_the_same_time_are_refused(settings: Settings):
    """Two `up`, or an `up` and a `down`, would tear at the same programs."""
    with only_one(settings), pytest.raises(NotUp, match="wait for it to end"), only_one(settings):
        pass


def test_steps_wait_for_those_before_them_and_for_no_other():
    """Independent steps run side by side: each of these two can only end while the other runs."""
    done: list[str] = []
    meeting = threading.Barrier(2, timeout=10)

    def meet(name: str) -> Callable[[], None]:
        return lambda: (meeting.wait(), done.append(name))

    steps = [
        Step(name="first", after=(), act=lambda: done.append("first")),
        Step(name="left", after=("first",), act=meet("left")),
        Step(name="right", after=("first",), act=meet("right")),
        Step(name="last", after=("left", "right"), act=lambda: done.append("last")),
    ]
    walk({step.name: step for step in steps}, lambda _: None)
    assert (done[0], set(done[1:3]), done[3]) == ("first", {"left", "right"}, "last")


def test_nothing_starts_after_a_step_that_failed():
    """What needs a failed step is not begun, and the reason is the first failure's."""
    begun: list[str] = []

    def fail() -> None:
        raise NotUp("no database")

    steps = {
        "databases": Step(name="databases", after=(), act=fail),
        "mlflow": Step(name="mlflow", after=("databases",), act=lambda: begun.append("mlflow")),
    }
    with pytest.raises(NotUp, match="no database"):
        walk(steps, lambda _: None)
    assert begun == []


def test_addresses_are_told_and_passwords_are_not(settings: Settings):
    """A person learns where the password lies."""
    told = addresses(settings)
    assert settings.airflow_url in told
    assert "secrets.json" in told


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_environment_has_a_lock_with_hashes_and_no_addresses(name: str):
    """Locks install from any index or mirror, and nothing that differs from what was locked."""
    lock = (ROOT / "docker" / name / "requirements.txt").read_text()
    pinned = [line for line in lock.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    assert pinned
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock


def test_environments_see_only_their_packages(tmp_path: Path):
    """Links that are missing are made, those that lead elsewhere corrected, those that are not allowed removed."""
    (tmp_path / "validation").symlink_to("/somewhere/else")
    (tmp_path / "operators").symlink_to(ROOT / "operators")
    link_packages(tmp_path, ("validation", "delivery"))
    assert {path.name: path.resolve() for path in tmp_path.iterdir()} == {name: ROOT / name for name in ("validation", "delivery")}


def test_modules_that_two_packages_bring_are_of_the_one_that_is_laid_on_top():
    """Which of two copies of a module stands in this environment is not left to the order in which uv happened to install."""
    files = distribution("opentelemetry-proto").files or []
    assert files
    wrong = [str(each) for each in files if each.hash and not _as_recorded(each)]
    assert wrong == []


def _as_recorded(file: PackagePath) -> bool:
    digest = hashlib.sha256(file.locate().read_bytes()).digest()
    return file.hash is not None and base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value


def test_import_rules_hold_for_environments_too():
    """A gate's environment cannot import operators or delivery, Airflow's cannot import delivery, foreign servers see nothing."""
    gates = ("golden_set", "distribution", "latency_benchmark", "integration")
    assert {ENVIRONMENTS[name] for name in gates} == {("validation",)}
    assert ENVIRONMENTS["airflow"] == ("operators", "validation")
    assert {ENVIRONMENTS[name] for name in ("postgres", "mlflow", "envoy", "triton")} == {()}


def test_an_unknown_environment_is_refused(tmp_path: Path):
    """A policy's typing error is told before anything is installed."""
    with pytest.raises(NotInstalled, match="unknown environment 'trainig'; known: "):
        ensure(["trainig"], tmp_path)


def test_an_environment_is_current_only_with_its_lock_and_its_python(tmp_path: Path):
    """Another lock, Python or place makes it again, a link to it does not; an interrupted installation has no stamp and is made again."""
    home = tmp_path / "envs" / "envoy"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").touch()
    assert not environments._is_current("envoy", tmp_path)
    (home / "python").write_text(environments._python(home))
    (home / "stamp").write_text(environments._digest(ROOT / "docker" / "envoy" / "requirements.txt"))
    assert environments._is_current("envoy", tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "envs").symlink_to(tmp_path / "envs")
    assert environments._is_current("envoy", tmp_path / "demo")
    (tmp_path / "other").mkdir()
    (tmp_path / "envs").rename(tmp_path / "other" / "envs")
    assert not environments._is_current("envoy", tmp_path / "other")
    (tmp_path / "other" / "envs" / "envoy" / "python").write_text("/other 3.11")
    assert not environments._is_current("envoy", tmp_path / "other")


def test_a_python_that_will_not_do_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Too old, without the shared library, or not there: the advice lists what was looked at."""
    monkeypatch.setenv("PENSTOCK_PYTHON", "/nowhere/python3.11")
    assert bootstrap.main(["running"]) == 1
    assert "/nowhere/python3.11: does not run" in capsys.readouterr().err
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 99))
    assert bootstrap.unfit(sys.executable) == f"is Python {sys.version_info.major}.{sys.version_info.minor}"


def test_the_python_that_runs_the_tests_will_do():
    """The same probe that chose it on a fresh machine."""
    assert bootstrap.unfit(sys.executable) is None


class FakeRegistry:
    """MLflow's webhook calls, in memory."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.calls: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request.method)
        if request.method == "GET":
            return httpx.Response(200, json={"webhooks": [{k: v for k, v in row.items() if k != "secret"} for row in self.rows]})
        if request.method == "DELETE":
            self.rows = [row for row in self.rows if row["webhook_id"] != request.url.path.rsplit("/", 1)[1]]
            return httpx.Response(200, json={})
        self.rows.append({**json.loads(request.content), "webhook_id": f"id{len(self.calls)}"})
        return httpx.Response(200, json={"webhook": self.rows[-1]})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry()
    real = httpx.Client
    monkeypatch.setattr(webhook.httpx, "Client", lambda **options: real(**options, transport=httpx.MockTransport(fake)))
    return fake


def test_the_webhook_is_registered_once(registry: FakeRegistry, settings: Settings):
    """The next start finds it right and changes nothing: MLflow needs a minute to notice a change."""
    keys = Keys()
    first = webhook.register(settings.mlflow_url, settings.airflow_url, keys)
    assert webhook.register(settings.mlflow_url, settings.airflow_url, keys) == first
    assert registry.calls == ["GET", "POST", "GET"]
    assert registry.rows[0]["url"] == f"{settings.airflow_url}/mlflow-webhook/"


def test_a_webhook_with_another_secret_or_address_is_replaced(registry: FakeRegistry, settings: Settings):
    """New secrets or ports leave no old webhook behind; other people's are not touched."""
    registry.rows.append({"name": "someone's", "webhook_id": "other"})
    webhook.register(settings.mlflow_url, settings.airflow_url, Keys())
    webhook.register(settings.mlflow_url, settings.airflow_url, Keys())
    assert [row["name"] for row in registry.rows] == ["someone's", "penstock"]


def test_a_registry_that_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch, settings: Settings):
    """A refused connection is asked again; one that stays refused is said, with the log to look at."""
    answers = iter([httpx.ConnectError("refused"), None])

    def register(*_):
        if error := next(answers):
            raise error

    monkeypatch.setattr(webhook, "register", register)
    up._register(settings, keys=None)
    monkeypatch.setattr(up, "WEBHOOK_S", -1.0)
    answers = iter([httpx.ConnectError("refused")])
    with pytest.raises(up.NotUp, match=r"refused\. See .*mlflow\.log"):
        up._register(settings, keys=None)


def test_who_listens_is_told_apart_from_who_answers() -> None:
    """A program holds a port itself or through a child; one that another process left behind holds is not its own."""
    code = "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    child = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}]))"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        port = int(program.stdout.readline())
        assert processes.listens(program.pid, port)
        assert not processes.listens(program.pid, port + 1)
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert not processes.listens(program.pid, other.getsockname()[1])
        program.stdin.close()
    assert not processes.listens(program.pid, port)
