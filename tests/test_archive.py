"""The warm archive: a real Triton with many versions loaded, of which none is touched when another comes or goes."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from fakes import FakeDirector
from local_supervisor import local_supervisor  # noqa: F401 - a fixture
from onnx import TensorProto, helper, numpy_helper

from delivery.archive import Archive, follow, keep_servers, local_archive, stand_alone
from delivery.registry import IMAGE, OUTCOME, ModelVersion
from delivery.triton import ARCHIVE, Server, ServerTrouble, stop_server, wait_ready
from stack import supervisor
from stack.settings import Settings
from validation.private_server import private_server

MODEL = "sum"
CONFIG = f"""name: "{MODEL}"
backend: "onnxruntime"
max_batch_size: 8
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def adds(number: float) -> bytes:
    """ONNX bytes: Y = X + number."""
    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("X", "Y")]
    constant = numpy_helper.from_array(np.array([number], dtype=np.float32), "C")
    graph = helper.make_graph([helper.make_node("Add", ["X", "C"], ["Y"])], MODEL, port[:1], port[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def archive(local_supervisor: Settings) -> Iterator[Archive]:  # noqa: F811
    yield local_archive(local_supervisor.state)
    stop_server(ARCHIVE)


@pytest.fixture(autouse=True)
def empty_afterwards(archive: Archive) -> Iterator[None]:
    yield
    for number in archive.kept(MODEL):
        archive.unload(MODEL, number)
    shutil.rmtree(archive.packaged(MODEL, 1).parents[1], ignore_errors=True)


def package(archive: Archive, version: int, content: bytes | None = None) -> Path:
    """The model directory that `package` leaves; of version 3 a model that adds 3."""
    folder = archive.packaged(MODEL, version)
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.onnx").write_bytes(content or adds(version))
    return folder


def loaded(archive: Archive, *versions: int) -> None:
    for number in versions:
        archive.load(MODEL, number, package(archive, number))


def answer(archive: Archive, version: int) -> float:
    return asked(archive.server().grpc, f"{MODEL}--v{version}")


def asked(address: str, name: str) -> float:
    with tritonclient.grpc.InferenceServerClient(address) as client:
        given = tritonclient.grpc.InferInput("X", [1, 1], "FP32")
        given.set_data_from_numpy(np.zeros((1, 1), dtype=np.float32))
        return float(client.infer(name, [given]).as_numpy("Y")[0, 0])


def processes(settings: Settings) -> dict[str, int]:
    """The process of each loaded version, by the name that the archive gave it."""
    server = psutil.Process(supervisor.state_of(settings, ARCHIVE)["pid"])
    words = {each.pid: each.cmdline() for each in server.children(recursive=True)}
    return {
        name: pid
        for pid, row in words.items()
        for name in {f"{MODEL}--v{number}" for number in range(10)}
        if any(name in word for word in row)
    }


def test_versions_come_and_go_and_no_other_is_touched(archive: Archive, local_supervisor: Settings):  # noqa: F811
    """One that is loaded, loaded anew with other content, or unloaded leaves the others' processes as they are."""
    loaded(archive, 1, 2)
    first = processes(local_supervisor)
    loaded(archive, 3)
    archive.load(MODEL, 2, package(archive, 2, adds(20)))
    assert (answer(archive, 1), answer(archive, 2), answer(archive, 3)) == (1, 20, 3)
    gone = psutil.Process(processes(local_supervisor)[f"{MODEL}--v3"])
    archive.unload(MODEL, 3)
    gone.wait(60)
    last = processes(local_supervisor)
    assert (set(first), set(last)) == ({f"{MODEL}--v1", f"{MODEL}--v2"},) * 2
    assert (first[f"{MODEL}--v1"] == last[f"{MODEL}--v1"], first[f"{MODEL}--v2"] == last[f"{MODEL}--v2"]) == (True, False)


def test_loading_what_is_loaded_changes_nothing(archive: Archive, local_supervisor: Settings):  # noqa: F811
    """A task that is tried again finds it there."""
    loaded(archive, 1)
    before = processes(local_supervisor)
    loaded(archive, 1)
    assert processes(local_supervisor) == before
    archive.unload(MODEL, 1)
    archive.unload(MODEL, 1)
    assert archive.kept(MODEL) == set()


def test_a_broken_version_is_refused_and_the_others_serve_on(archive: Archive):
    """Triton's own reason is told."""
    loaded(archive, 1)
    with pytest.raises(ServerTrouble, match=f"does not load model {MODEL}--v2: .*Protobuf parsing failed"):
        archive.load(MODEL, 2, package(archive, 2, b"no model"))
    assert answer(archive, 1) == 1


def test_a_killed_archive_comes_back_with_all_that_can_be_loaded(archive: Archive, local_supervisor: Settings):  # noqa: F811
    """Nobody loads anything again; a version that broke meanwhile keeps none of the others away."""
    loaded(archive, 1, 2)
    (archive.repository / f"{MODEL}--v2" / "1" / "model.onnx").write_bytes(b"no model")
    killed = supervisor.state_of(local_supervisor, ARCHIVE)["pid"]
    os.kill(killed, signal.SIGKILL)
    while supervisor.state_of(local_supervisor, ARCHIVE)["pid"] in {0, killed}:
        pass
    wait_ready(archive.server(), f"{MODEL}--v1", 60)
    assert answer(archive, 1) == 1


def test_a_server_reports_to_nobody(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime's wheel would keep an identity of the machine in its user's home, and tell its maker of each model."""
    for name in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with private_server(MODEL, package(archive, 1), f"{MODEL}--home", tmp_path / "log") as server:
        assert asked(server.address("grpc"), MODEL) == 1
    assert list(home.rglob("*")) == []


# ---- which versions


class Registry:
    """One model's versions with their outcomes."""

    def __init__(self, *outcomes: str, images: tuple[int, ...] = ()) -> None:
        self._tags = [
            {OUTCOME: each, **({IMAGE: f"{MODEL}@{number}"} if number in images else {})} for number, each in enumerate(outcomes, start=1)
        ]

    def versions(self, model: str) -> list[ModelVersion]:
        return [ModelVersion(model=model, number=number, run_id="r", tags=tags) for number, tags in enumerate(self._tags, start=1)]


def followed(archive: Archive, director: FakeDirector, versions: int, *outcomes: str) -> str:
    return follow(MODEL, versions, Registry(*outcomes), director, archive)  # type: ignore[arg-type]


def test_the_latest_promoted_versions_without_a_role_are_kept(archive: Archive):
    """Not those that were refused or taken back, nor stable and the one before it, which have servers of their own; fewer, when so said."""
    director, outcomes = FakeDirector(), ("promoted", "refused", "promoted", "promoted", "rolled_back", "promoted", "promoted")
    director.serves(MODEL, stable=7, previous=6)
    for number in range(1, 8):
        package(archive, number)
    assert followed(archive, director, 2, *outcomes) == "archived: v3, v4"
    assert [each.version for each in director.model(MODEL).archived] == [3, 4]
    assert {each.http for each in director.model(MODEL).archived} == {archive.server().http}
    assert followed(archive, director, 1, *outcomes) == "archived: v4"
    assert (archive.kept(MODEL), answer(archive, 4)) == ({4}, 4)
    assert followed(archive, director, 0, *outcomes) == "archived: none"
    assert (archive.kept(MODEL), director.model(MODEL).archived) == (set(), ())


def test_the_gateway_forgets_a_version_before_it_is_unloaded(archive: Archive):
    """Whoever pins it meanwhile has an answer; a director that does not take it keeps the version loaded."""
    director = FakeDirector()
    director.serves(MODEL, stable=3)
    for number in (1, 2):
        package(archive, number)
    followed(archive, director, 1, "promoted")
    director.broken.add("put_archived")
    with pytest.raises(Exception, match="put_archived"):
        followed(archive, director, 1, "promoted", "promoted")
    assert (answer(archive, 1), answer(archive, 2)) == (1, 2)


def test_a_version_that_shall_be_stable_gets_a_server_of_its_own(archive: Archive):
    """It answers there under the model's own name; the others stay where they are, and twice is once."""
    director = FakeDirector()
    director.serves(MODEL, stable=4)
    for number in (1, 2):
        package(archive, number)
    followed(archive, director, 2, "promoted", "promoted")
    try:
        for _ in range(2):
            stand_alone(MODEL, 1, director, archive)
        first, second = director.model(MODEL).archived
        assert (first.version, first.alone, second.version, second.alone) == (1, True, 2, False)
        assert asked(first.grpc, MODEL) == 1
        assert director.model(MODEL).with_servers == {4, 1}
    finally:
        stop_server(f"{MODEL}--v1")


class OwnServers:
    """Of containers: started by image, each for itself."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        self.ready: list[str] = []

    def start(self, name: str, source: str) -> Server:
        self.started.append((name, source))
        return Server(name=name, http="10.0.0.7:8000", grpc="10.0.0.7:8001", metrics="10.0.0.7:8002")

    def wait_ready(self, server: Server, model: str, timeout_s: float) -> float:
        del model
        self.ready.append(server.name)
        return timeout_s


def test_where_each_version_has_a_server_it_goes_on():
    """Those without an image cannot; the gateway knows each by the model's own name."""
    director, servers = FakeDirector(), OwnServers()
    director.serves(MODEL, stable=5, previous=4)
    registry = Registry("promoted", "promoted", "rolled_back", "promoted", "promoted", images=(2, 3, 4, 5))
    assert keep_servers(MODEL, 2, registry, director, servers) == "archived: v2"  # type: ignore[arg-type]
    assert (servers.started, servers.ready) == ([("sum--v2", "sum@2")], ["sum--v2"])
    (kept,) = director.model(MODEL).archived
    assert (kept.version, kept.alone, kept.http, kept.metrics) == (2, True, "10.0.0.7:8000", "10.0.0.7:8002")
    assert keep_servers(MODEL, 0, registry, director, servers) == "archived: none"  # type: ignore[arg-type]
    assert director.model(MODEL).archived == ()
    assert keep_servers(MODEL, 0, registry, director, servers) == f"no version of {MODEL} is archived"  # type: ignore[arg-type]


def test_where_nothing_is_archived_no_server_is_started(tmp_path: Path):
    """A policy without the section costs nothing, and a version whose package is gone cannot be kept."""

    def never() -> None:
        raise AssertionError("started")

    archive, director = Archive(tmp_path / "archive", tmp_path / "store", never), FakeDirector()  # type: ignore[arg-type]
    director.serves(MODEL, stable=2)
    assert followed(archive, director, 0, "promoted", "promoted") == f"no version of {MODEL} is archived"
    assert followed(archive, director, 5, "promoted", "promoted") == f"no version of {MODEL} is archived"
