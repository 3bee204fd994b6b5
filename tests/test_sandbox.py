"""The sandbox: what a hostile module can reach, and what its leavings may be."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from delivery import sandbox
from delivery.sandbox import NEEDED, Limits, MissingWalls, NoResult, SandboxBroken, Workplace, needed_walls
from validation.contract import BadSpec

SHORT = Limits(wall_s=20, cpu_s=10, memory_bytes=1 << 30, file_bytes=1 << 20, open_files=64)
CHILD = "delivery.export_child"


@pytest.fixture(name="place")
def place_fixture() -> Iterator[Workplace]:
    with sandbox.workplace() as place:
        yield place


@pytest.fixture(autouse=True)
def lenient_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of single walls run on any kernel; what a missing one means has tests of its own."""
    monkeypatch.setenv("PENSTOCK_SANDBOX", "lenient")


@pytest.fixture(name="strict")
def strict_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that says nothing, on a kernel that cannot build one of the walls that are needed."""
    monkeypatch.delenv("PENSTOCK_SANDBOX")
    monkeypatch.setattr(sandbox, "NEEDED", ("moat",))


def hostile(place: Workplace, code: str, limits: Limits = SHORT) -> sandbox.Ended:
    """Runs code in the sandbox the way it would come in: hidden in a pickled model that is loaded there."""
    body = textwrap.dedent(code)
    reduced = f"cbuiltins\nexec\n(V{body.encode('raw_unicode_escape').decode().replace(chr(10), chr(92) + 'u000a')}\ntR."
    (place.inputs / "model").mkdir()
    (place.inputs / "model" / "model.pkl").write_bytes(reduced.encode())
    job = '{"kind": "sklearn", "file": "model.pkl", "format": "pickle", "code": null, "frame": false, "inputs": []}'
    (place.inputs / "job.json").write_text(job)
    return sandbox.run(CHILD, place, limits)


LOADERS = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "skops", "marshal", "shelve"),
    *("torch", "tensorflow", "keras", "xgboost", "lightgbm"),
}
FAMILIES = ("sklearn", "onnx", "boosting", "torch", "tensorflow")
BEHIND_THE_WALLS = {"export_child.py", "source.py", *(f"source_{family}.py" for family in FAMILIES)}
CODE = ("validation", "delivery", "operators", "stack", "demo", "bench", "dags", "plugins", "docker")


def strange_loads(path: Path) -> list[str]:
    """Places where a file imports what can run a stranger's objects, or lets numpy or pandas do it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        lenient = isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", None) is not False
        called = isinstance(node, ast.Attribute) and node.attr in {"read_pickle", "load_model", "unsafe_load", "full_load"}
        if lenient or called or {name.split(".")[0] for name in names} & LOADERS:
            found.append(f"{path.name}:{getattr(node, 'lineno', 0)}")
    return found


def test_nothing_else_unpickles() -> None:
    """What can run a model's own code is imported behind the walls only, and nowhere is numpy allowed to unpickle."""
    root = Path(__file__).parent.parent
    files = [path for folder in CODE for path in (root / folder).rglob("*.py") if path.name not in BEHIND_THE_WALLS]
    assert len(files) > 50
    assert [place for path in files for place in strange_loads(path)] == []
    assert strange_loads(root / "delivery" / "source.py") != []


def test_nothing_else_imports_what_is_behind_the_walls() -> None:
    """The modules that load models are named by the child's table, as text; no other of ours imports them."""
    root = Path(__file__).parent.parent
    inside = re.compile(r"(?:from|import) delivery\.(?:source|export_child)")
    files = [path for folder in CODE for path in (root / folder).rglob("*.py") if path.name not in BEHIND_THE_WALLS]
    assert [path.name for path in files if inside.search(path.read_text())] == []


def needs_walls(*names: str) -> None:
    """Skips where the kernel grants no namespaces; the report about missing walls has a test of its own."""
    with sandbox.workplace() as place:
        missing = set(hostile(place, "pass").missing_walls) & set(names)
    if missing:
        pytest.skip(f"this kernel refuses the walls {sorted(missing)}")


def test_code_runs_and_leaves_what_it_writes(place: Workplace) -> None:
    """The outputs folder is where a module leaves its results, and its prints are in the log."""
    ended = hostile(place, f"print('hello'); open({str(place.outputs / 'x')!r}, 'w').write('y')")
    assert "hello" in ended.log
    assert sandbox.read_result(place, "x", 10) == b"y"


def test_sets_have_one_order(place: Workplace) -> None:
    """Converters walk through sets: with a seed of its own in every process, equal exports would give other bytes."""
    ended = hostile(place, "import sys; print('random', sys.flags.hash_randomization, hash('a'), sys.flags.safe_path)")
    told = [sys.executable, "-c", "print(hash('a'))"]
    seeded = subprocess.run(told, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True)
    assert f"random 0 {seeded.stdout.strip()} True" in ended.log


def test_a_strict_umask_does_not_close_the_sandbox_to_itself() -> None:
    """Under a supervisor whose files nobody else may read, the sandbox's own user still finds the interpreter and its code."""
    before = os.umask(0o077)
    try:
        with sandbox.workplace() as place:
            ended = hostile(place, "print('hello')")
    finally:
        os.umask(before)
    assert "hello" in ended.log


def test_the_network_is_out_of_reach(place: Workplace) -> None:
    """A model cannot open a connection, not even to this machine."""
    needs_walls("network")
    ended = hostile(place, "import socket; socket.create_connection(('127.0.0.1', 9), 1)")
    assert "unreachable" in ended.log


def test_credentials_in_the_environment_do_not_come_along(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment of the task nor that of the process above holds a secret that code in the sandbox can read."""
    monkeypatch.setenv("PENSTOCK_DIRECTOR_TOKEN", "a-secret")
    code = """
        import os, pathlib
        print(dict(os.environ))
        for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
            try: print(path.read_bytes())
            except OSError: pass
    """
    assert "a-secret" not in hostile(place, code).log


def test_files_of_the_machine_are_out_of_sight(place: Workplace, tmp_path: Path) -> None:
    """Other files can be neither read nor written, whoever owns them."""
    needs_walls("files")
    secret = tmp_path / "secret"
    secret.write_text("a-secret")
    code = f"""
        import pathlib
        for path in ({str(secret)!r}, '/etc/passwd'):
            try: print(path, pathlib.Path(path).read_text())
            except OSError as error: print(error.strerror)
        try: pathlib.Path({str(tmp_path / "new")!r}).write_text('x')
        except OSError as error: print(error.strerror)
    """
    ended = hostile(place, code)
    assert "a-secret" not in ended.log
    assert ended.log.count("No such file or directory") == 3
    assert not (tmp_path / "new").exists()


def test_inputs_and_interpreter_cannot_be_changed(place: Workplace) -> None:
    """A model cannot plant code for a later run."""
    needs_walls("files")
    code = f"""
        import os, pathlib, sys
        for folder in ({str(place.inputs)!r}, sys.prefix, sys.base_prefix, '/'):
            try: pathlib.Path(folder, 'planted').write_text('x')
            except OSError as error: print(error.strerror)
    """
    assert hostile(place, code).log.count("Read-only file system") == 4


def test_sockets_of_the_stack_are_out_of_reach(place: Workplace, tmp_path: Path) -> None:
    """A unix socket needs no network; supervisord's would start any program."""
    import socket

    needs_walls("files")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        ended = hostile(place, f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})")
    assert "No such file or directory" in ended.log


def test_no_privilege_is_left(place: Workplace) -> None:
    """Code in the sandbox is not root, cannot mount, and cannot get privileges from a set-uid program."""
    needs_walls("user")
    code = """
        import ctypes, os, re
        print('uid0', os.getuid() == 0)
        status = open('/proc/self/status').read() if os.path.exists('/proc/self/status') else ''
        print(re.findall('(CapEff|CapPrm|NoNewPrivs):\\\\t(.*)', status))
        print('mounted', ctypes.CDLL(None).mount(b'tmpfs', b'/usr', b'tmpfs', 0, b'') == 0)
    """
    log = hostile(place, code).log
    assert "uid0 False" in log
    assert "mounted False" in log
    if "NoNewPrivs" in log:
        assert "[('CapPrm', '0000000000000000'), ('CapEff', '0000000000000000'), ('NoNewPrivs', '1')]" in log


def test_an_endless_loop_is_stopped(place: Workplace) -> None:
    """The time limit ends the module, and the way it ended is said."""
    ended = hostile(place, "while True: pass", Limits(wall_s=1.0))
    assert ended.exit_code is None
    assert ended.how == "was stopped at its time limit"


def test_processor_time_is_limited(place: Workplace) -> None:
    """A module that burns more processor seconds than it has is killed by the kernel."""
    ended = hostile(place, "while True: pass", Limits(wall_s=30, cpu_s=2))
    assert ended.how == "was ended by signal SIGKILL"


def test_what_it_started_ends_with_it(place: Workplace) -> None:
    """A process that hides in a session of its own is gone when the sandbox is: its writes stop."""
    needs_walls("processes")
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print('hidden', flush=True)
                time.sleep(1000)
        time.sleep(1)
        print('left', os.listdir('/proc') and 'x')
    """
    hostile(place, code, Limits(wall_s=3.0))
    inside = str(place.root).encode()
    assert [pid for pid in filter(str.isdigit, os.listdir("/proc")) if inside in _command(pid)] == []


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_memory_is_limited(place: Workplace) -> None:
    """An allocation beyond the limit fails inside instead of starving the machine."""
    ended = hostile(place, "bytearray(3 << 30)")
    assert "MemoryError" in ended.log


def test_files_are_limited_in_size(place: Workplace) -> None:
    """A file that grows beyond the limit ends the module."""
    code = f"f = open({str(place.outputs / 'big')!r}, 'wb')\nfor i in range(64): f.write(bytes(1 << 20)); f.flush()"
    ended = hostile(place, code)
    assert "File too large" in ended.log
    assert (place.outputs / "big").stat().st_size <= SHORT.file_bytes


def test_our_own_fault_is_no_finding(place: Workplace) -> None:
    """When the module cannot even be imported, the sandbox is broken: that is worth a retry and says nothing of a model."""
    with pytest.raises(SandboxBroken, match="no_such_module"):
        sandbox.run("delivery.no_such_module", place, SHORT)


def test_leaving_without_a_result_is_seen(place: Workplace) -> None:
    """Exit code 0 proves nothing: the result that is not there is missed."""
    ended = hostile(place, "import os; os._exit(0)")
    assert ended.exit_code == 0
    with pytest.raises(NoResult, match=r"model\.onnx"):
        sandbox.read_result(place, "model.onnx", 10)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.symlink('/etc/passwd', path)", "plain file"),
        ("os.mkfifo(path)", "plain file"),
        ("os.mkdir(path)", "plain file"),
        ("open(path, 'w').write('x' * 11)", "11 bytes; the limit is 10"),
    ],
)
def test_only_small_plain_files_are_results(place: Workplace, code: str, reason: str) -> None:
    """Links would lead out, pipes would hang, large files would fill memory: all are refused by name."""
    hostile(place, f"import os; path = {str(place.outputs / 'r')!r}; {code}")
    with pytest.raises(NoResult, match=reason):
        sandbox.read_result(place, "r", 10)


def test_missing_walls_are_named() -> None:
    """Whoever reads the report sees which walls the kernel refused."""
    ended = sandbox.Ended(exit_code=0, walls=("user",), log="")
    assert ended.missing_walls == ("network", "files", "processes")


def test_a_module_cannot_claim_walls(place: Workplace) -> None:
    """The report is closed before foreign code runs, so nothing that it writes is taken for the report."""
    code = "import os\nfor n in range(3, 30):\n    try: os.write(n, b'network files processes user moat')\n    except OSError: pass"
    assert "moat" not in hostile(place, code).walls


def test_without_a_needed_wall_nothing_is_loaded(place: Workplace, strict: None) -> None:
    """A kernel that refuses a needed wall ends the run before foreign code; no retry helps, and the message names wall and remedy."""
    with pytest.raises(MissingWalls, match=r"walls moat .*PENSTOCK_SANDBOX=lenient") as caught:
        hostile(place, f"open({str(place.outputs / 'x')!r}, 'w').write('y')")
    assert isinstance(caught.value, BadSpec)
    assert not (place.outputs / "x").exists()


def test_a_lenient_place_runs_with_what_there_is(place: Workplace, strict: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says that the place is wall enough gets the run, and the report of what stood."""
    monkeypatch.setenv("PENSTOCK_SANDBOX", "lenient")
    assert "hello" in hostile(place, "print('hello')").log


@pytest.mark.parametrize(
    ("environ", "needed"),
    [({}, NEEDED), ({"PENSTOCK_SANDBOX": "lenient"}, ()), ({"PENSTOCK_SANDBOX": "Lenient"}, NEEDED), ({"PENSTOCK_SANDBOX": ""}, NEEDED)],
)
def test_only_one_word_is_lenient(environ: dict[str, str], needed: tuple[str, ...]) -> None:
    """A typo keeps the walls; network and files are the ones that no delivery goes without."""
    assert needed_walls(environ) == needed
    assert NEEDED == ("network", "files")


def test_an_end_without_a_report_is_our_own_fault(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody said which walls stood, something of ours broke: a retry, and no word about kernel or model."""
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(SandboxBroken, match="before its walls stood"):
        hostile(place, "pass")


def test_a_killed_task_leaves_no_foreign_code(tmp_path: Path) -> None:
    """When the task dies without a word, the kernel ends everything behind the walls."""
    with sandbox.workplace() as place:
        code = f"""
            import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r})
            import test_sandbox; from delivery.sandbox import Limits, Workplace
            place = Workplace(root=Path({str(place.root)!r}))
            test_sandbox.hostile(place, "import os, time; os.fork(); open(os.environ['HOME'] + '/up', 'w'); time.sleep(600)")
        """
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as task:
            _wait_for(place.outputs / "up", task)
            inside = psutil.Process(task.pid).children(recursive=True)
            task.kill()
    assert len(inside) >= 4  # the outer process, the warden, the worker, and what it started
    assert psutil.wait_procs(inside, timeout=10)[1] == []


def _wait_for(path: Path, task: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert task.poll() is None
