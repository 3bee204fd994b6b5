"""The local stack's parts that need no running stack: configuration, processes, ports, environments, order."""

import configparser
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from local_supervisor import free_ports

from stack import bootstrap, environments, processes, supervisor, variables, webhook
from stack.environments import ENVIRONMENTS, NotInstalled, ensure, link_packages
from stack.keys import Keys
from stack.services import Service, table
from stack.settings import ROOT, Settings, read_settings
from stack.up import NotUp, Step, addresses, check_ports, clear_leftovers, make_folders, only_one, shared_memory_prefix, walk

# Says that it is ready, then waits to be ended; with a port as argument it listens there first.
CHILD = """
import signal, socket, sys
if len(sys.argv) > 1:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = read_settings({"PENSTOCK_STATE": str(tmp_path / "state")})
    make_folders(made)
    for name in ("postgres", "envoy"):
        (made.environment(name) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    return made


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


def test_a_state_folder_with_strange_characters_survives_the_supervisors_file(tmp_path: Path):
    """Spaces and percent signs are ordinary in folder names."""
    strange = read_settings({"PENSTOCK_STATE": str(tmp_path / "50% of it")})
    for name in ("postgres", "envoy"):
        (strange.environment(name) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    config = rendered(table(strange, Keys()), strange)
    assert config["supervisord"]["logfile"] == str(strange.logs / "supervisord.log")
    assert shlex.split(config["program:mlflow"]["command"])[0] == str(strange.python("stack"))


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


def test_programs_get_no_more_of_the_users_environment_than_listed(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A start is the same from every shell: a stray PYTHONPATH or AIRFLOW variable changes nothing."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "Other")
    given = variables.marked(settings, "scheduler")
    assert not {"PYTHONPATH", "AIRFLOW__CORE__EXECUTOR"} & set(given)
    assert (given[processes.MARKER], given[processes.SERVICE]) == (str(settings.state), "scheduler")


def test_a_taken_port_is_reported_with_its_holder(
    services: dict[str, Service], settings: Settings, child: Callable[..., subprocess.Popen[str]]
):
    """The message names port, service, pid and command, and where to change the port."""
    port = free_ports(1)
    holder = child(str(port))
    elsewhere = dataclasses.replace(settings, ports=dataclasses.replace(settings.ports, mlflow=port))
    with pytest.raises(NotUp, match=rf"port {port} \(mlflow\) is taken by pid {holder.pid} \(.*python.*\n.*stack/settings.toml") as raised:
        check_ports([services["mlflow"]], elsewhere)
    assert "gateway" not in str(raised.value)


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


def test_import_rules_hold_for_environments_too():
    """A gate's environment cannot import operators or delivery, Airflow's cannot import delivery, foreign servers see nothing."""
    assert ENVIRONMENTS["golden_set"] == ENVIRONMENTS["latency_benchmark"] == ("validation",)
    assert ENVIRONMENTS["airflow"] == ("operators", "validation")
    assert {ENVIRONMENTS[name] for name in ("postgres", "mlflow", "envoy", "triton")} == {()}


def test_an_unknown_environment_is_refused(tmp_path: Path):
    """A policy's typing error is told before anything is installed."""
    with pytest.raises(NotInstalled, match="unknown environment 'trainig'; known: "):
        ensure(["trainig"], tmp_path)


def test_an_environment_is_current_only_with_its_lock_and_its_python(tmp_path: Path):
    """Another lock or another Python makes it again; an interrupted installation has no stamp and is made again."""
    home = tmp_path / "envs" / "envoy"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").touch()
    assert not environments._is_current("envoy", tmp_path)
    (home / "python").write_text(environments._python())
    (home / "stamp").write_text(environments._digest(ROOT / "docker" / "envoy" / "requirements.txt"))
    assert environments._is_current("envoy", tmp_path)
    (home / "python").write_text("/other 3.11")
    assert not environments._is_current("envoy", tmp_path)


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
    first = webhook.register(settings, keys)
    assert webhook.register(settings, keys) == first
    assert registry.calls == ["GET", "POST", "GET"]
    assert registry.rows[0]["url"] == f"{settings.airflow_url}/mlflow-webhook/"


def test_a_webhook_with_another_secret_or_address_is_replaced(registry: FakeRegistry, settings: Settings):
    """New secrets or ports leave no old webhook behind; other people's are not touched."""
    registry.rows.append({"name": "someone's", "webhook_id": "other"})
    webhook.register(settings, Keys())
    webhook.register(settings, Keys())
    assert [row["name"] for row in registry.rows] == ["someone's", "penstock"]
