"""delivery.triton and docker/triton: a real Triton from its wheel, under a real supervisord."""

import importlib.util
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from local_supervisor import local_supervisor  # noqa: F401 - a fixture
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from delivery.triton import (
    NoFreePorts,
    NotReady,
    Server,
    ServerTrouble,
    reason_in,
    running,
    server_name,
    start_server,
    stop_server,
    supervisord,
    wait_ready,
)
from stack import supervisor
from stack.settings import ROOT, Settings
from stack.up import shared_memory_prefix

READY_S = 60
MODEL = "lookup"
CONFIG = f"""name: "{MODEL}"
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "X" data_type: TYPE_INT64 dims: [ 1 ] }} ]
output [ {{ name: "value" data_type: TYPE_FP32 dims: [ 1 ] }}, {{ name: "word" data_type: TYPE_STRING dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ }}
"""


def lookup_model() -> bytes:
    """ONNX bytes: X [N, 1] picks a number and a word out of three, both flat; a number beyond 2 raises at run time."""
    tables = [
        helper.make_tensor("values", TensorProto.FLOAT, [3], [0.5, 1.5, 2.5]),
        helper.make_tensor("words", TensorProto.STRING, [3], [b"low", b"middle", b"high"]),
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
    ]
    nodes = [
        helper.make_node("Reshape", ["X", "flat"], ["index"]),
        helper.make_node("Gather", ["values", "index"], ["value"]),
        helper.make_node("Gather", ["words", "index"], ["word"]),
    ]
    outputs = [
        helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("word", TensorProto.STRING, ["N"]),
    ]
    graph = helper.make_graph(nodes, "lookup", [helper.make_tensor_value_info("X", TensorProto.INT64, ["N", 1])], outputs, tables)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def repository(folder: Path, model: bytes | None = None, config: str = CONFIG) -> Path:
    (folder / MODEL / "1").mkdir(parents=True)
    (folder / MODEL / "config.pbtxt").write_text(config)
    (folder / MODEL / "1" / "model.onnx").write_bytes(model or lookup_model())
    return folder


def ask(client, address: str, values: list[int]):
    with client.InferenceServerClient(address) as connection:
        given = client.InferInput("X", [len(values), 1], "INT64")
        given.set_data_from_numpy(np.array(values, dtype=np.int64).reshape(-1, 1))
        return connection.infer(MODEL, [given])


@pytest.fixture(scope="module")
def server(local_supervisor: Settings, tmp_path_factory: pytest.TempPathFactory) -> Server:  # noqa: F811
    """One good server that the tests share."""
    started = start_server(server_name(MODEL, 1), repository(tmp_path_factory.mktemp("store")))
    wait_ready(started, MODEL, READY_S)
    return started


@pytest.mark.parametrize(("client", "protocol"), [(tritonclient.http, "http"), (tritonclient.grpc, "grpc")])
def test_a_model_answers_over_both_protocols(server: Server, client, protocol: str):
    """Values are ONNX Runtime's; flat outputs come as [N, 1], strings as bytes."""
    answer = ask(client, getattr(server, protocol), [0, 2])
    assert answer.as_numpy("value").tolist() == [[0.5], [2.5]]
    assert answer.as_numpy("word").tolist() == [[b"low"], [b"high"]]


@pytest.mark.parametrize(
    ("client", "protocol", "status"), [(tritonclient.http, "http", "500"), (tritonclient.grpc, "grpc", "StatusCode.INTERNAL")]
)
def test_a_model_that_raises_is_a_fault_of_the_server(server: Server, client, protocol: str, status: str):
    """Only HTTP 500 and gRPC INTERNAL make the gateway ask another version; a client's error would reach the user."""
    with pytest.raises(InferenceServerException, match="out of data bounds") as raised:
        ask(client, getattr(server, protocol), [0, 9])
    assert raised.value.status() == status


def test_starting_what_runs_changes_nothing(server: Server, local_supervisor: Settings):  # noqa: F811
    """A task that is tried again finds the same server: same ports, same process."""
    before = supervisor.state_of(local_supervisor, server.name)["pid"]
    again = start_server(server.name, repository_of(server))
    assert (again, supervisor.state_of(local_supervisor, server.name)["pid"]) == (server, before)


def repository_of(server: Server) -> Path:
    words = (Path(os.environ["PENSTOCK_STATE"]) / "servers" / f"{server.name}.conf").read_text().split()
    return Path(words[words.index("--repository") + 1])


def test_a_server_is_started_again_whatever_happens(server: Server, local_supervisor: Settings):  # noqa: F811
    """Supervisord's own three tries would leave a stable version down for good after a port was taken for some seconds."""
    conf = (local_supervisor.servers / f"{server.name}.conf").read_text()
    assert "startretries=1000\n" in conf


def test_a_name_serves_one_repository(server: Server, tmp_path: Path):
    """A server is not turned to other content under the same name."""
    with pytest.raises(ValueError, match=r"serves .* already"):
        start_server(server.name, tmp_path)


def test_a_killed_server_comes_back_and_leaves_no_shared_memory(server: Server, local_supervisor: Settings):  # noqa: F811
    """After SIGKILL supervisord starts it again on the same ports, and the start removes the dead one's regions."""
    killed = supervisor.state_of(local_supervisor, server.name)["pid"]
    regions = set(regions_of(local_supervisor))
    os.kill(killed, signal.SIGKILL)
    while supervisor.state_of(local_supervisor, server.name)["pid"] in {0, killed}:
        pass
    wait_ready(server, MODEL, READY_S)
    assert regions
    assert regions.isdisjoint(regions_of(local_supervisor))
    assert ask(tritonclient.http, server.http, [1]).as_numpy("value").tolist() == [[1.5]]


def regions_of(settings: Settings) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{shared_memory_prefix(settings)}*")]


def test_servers_share_no_port_and_stop_for_good(server: Server, local_supervisor: Settings, tmp_path: Path):  # noqa: F811
    """The next server takes the next slot; stopped, it leaves no program file, and stopping again is fine."""
    second = start_server(server_name(MODEL, 2), repository(tmp_path))
    wait_ready(second, MODEL, READY_S)
    assert {second.http, second.grpc, second.metrics}.isdisjoint({server.http, server.grpc, server.metrics})
    assert set(running()) == {server.name, second.name}
    stop_server(second.name)
    stop_server(second.name)
    assert (set(running()), set(supervisor.states(local_supervisor))) == ({server.name}, {server.name})


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        (b"no model", CONFIG, "Protobuf parsing failed"),
        (None, CONFIG.replace('"value"', '"values"'), "config.pbtxt names the output 'values'; the ONNX file has"),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_does_not_load_is_not_ready_and_says_why(tmp_path: Path, model: bytes | None, config: str, reason: str):
    """The reason comes out of the server's own log, long before the time is over."""
    broken = start_server(server_name(MODEL, 3), repository(tmp_path, model, config))
    try:
        with pytest.raises(NotReady, match=reason):
            wait_ready(broken, MODEL, READY_S)
    finally:
        stop_server(broken.name)


@pytest.mark.usefixtures("server")
def test_a_server_that_cannot_run_here_is_our_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A launcher that finds no Triton says nothing about the model: an error, worth a retry, and no verdict."""
    monkeypatch.setenv("PENSTOCK_TRITON", f"{sys.executable} {ROOT / 'docker' / 'triton' / 'serve.py'}")
    nowhere = start_server(server_name(MODEL, 5), repository(tmp_path))
    try:
        with pytest.raises(ServerTrouble, match="environment `triton`"):
            wait_ready(nowhere, MODEL, READY_S)
    finally:
        stop_server(nowhere.name)


@pytest.mark.usefixtures("server")
def test_a_server_that_takes_too_long_is_our_fault(tmp_path: Path):
    """Time over is no evidence against the model."""
    slow = start_server(server_name(MODEL, 6), repository(tmp_path))
    try:
        with pytest.raises(ServerTrouble, match="not ready with lookup after 0 s"):
            wait_ready(slow, MODEL, 0)
    finally:
        stop_server(slow.name)


@pytest.mark.usefixtures("server")
def test_a_full_range_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When no three ports are left, nothing is started and the message says what to do."""
    first = int(os.environ["PENSTOCK_TRITON_PORTS"].split("-")[0])
    monkeypatch.setenv("PENSTOCK_TRITON_PORTS", f"{first}-{first + 4}")
    with pytest.raises(NoFreePorts, match="stop one, or widen the range"):
        start_server(server_name(MODEL, 4), repository(tmp_path))
    assert server_name(MODEL, 4) not in running()


@pytest.mark.parametrize("name", ["../x--v1", "x", "x--v0", "X--v1", "x--v1;y"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str, tmp_path: Path):
    """Names become file names and program names."""
    with pytest.raises(ValueError, match="expected <model>--v<version>"):
        start_server(name, tmp_path)


def test_without_supervisord_nothing_is_pretended(tmp_path: Path):
    """No socket, no answer: an error of ours, worth a retry."""
    with pytest.raises(OSError, match="No such file"):
        supervisord(str(tmp_path / "supervisor.sock")).getState()


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("| m | 1 | UNAVAILABLE: Internal: bad model  |\nerror: creating server: Internal", "Internal: bad model"),
        ("| m | 1 | UNAVAILABLE: Internal: two\nlines |", "Internal: two"),
        ('E1122 06:13:55.333432 7455 server.cc:241] "no driver"\nerror: creating server: port in use', "creating server: port in use"),
        ("cannot start Triton: no shared libpython", "no shared libpython"),
        ("something\n\n", "something"),
        ("| m | 1 | UNAVAILABLE: old |\nstarting Triton m--v1\n| m | 1 | UNAVAILABLE: new |", "new"),
        ("", "its log is empty"),
    ],
)
def test_the_reason_is_found_in_the_log(log: str, reason: str):
    """Triton's table of models says it best, then its last error, then its last words."""
    assert reason_in(log) == reason


@pytest.fixture
def launcher():
    spec = importlib.util.spec_from_file_location("serve", ROOT / "docker" / "triton" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_python_without_shared_library_is_told_what_to_do(launcher, monkeypatch: pytest.MonkeyPatch):
    """Triton's stub embeds Python; without the library it would fail deep inside with no hint."""
    monkeypatch.setattr(launcher.sysconfig, "get_config_var", lambda _: "/nowhere")
    monkeypatch.setattr(launcher.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(launcher.sys, "version_info", (3, 12))
    monkeypatch.setattr(launcher, "_version", lambda: "3.12")
    with pytest.raises(launcher.NotRunnable, match=r"has no shared libpython3\.12\.so.*PENSTOCK_PYTHON"):
        launcher.python_library_folders()


def test_an_environment_without_the_wheel_is_told_what_to_do(launcher):
    """The tests' own environment has no Triton; starting it there names the right one."""
    with pytest.raises(launcher.NotRunnable, match="environment `triton`"):
        launcher.wheel()


def test_regions_are_told_apart_by_version_and_state(launcher, tmp_path: Path):
    """v1 is no prefix of v10, and the stack knows the launcher's names by their beginning."""
    one, ten = (launcher.shm_prefix(server_name(MODEL, n), {"PENSTOCK_STATE": str(tmp_path)}) for n in (1, 10))
    assert not ten.startswith(one)
    assert one != launcher.shm_prefix(server_name(MODEL, 1), {"PENSTOCK_STATE": str(tmp_path / "other")})


class FakeRequest:
    def __init__(self, values: list[int]) -> None:
        self.values = np.array(values, dtype=np.int64).reshape(-1, 1)

    def as_numpy(self) -> np.ndarray:
        return self.values


def test_a_bad_request_spoils_no_other_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Triton joins requests of different users; only the one that makes the model raise gets the error."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_backend_utils())
    backend = load_backend(tmp_path)
    good, bad, other = backend.execute([FakeRequest([0]), FakeRequest([9]), FakeRequest([1, 2])])
    assert (good["value"].tolist(), other["value"].tolist()) == ([[0.5]], [[1.5], [2.5]])
    assert bad == "INTERNAL"


def test_a_request_that_cannot_be_read_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes that are no text are their sender's fault (INVALID_ARG); the rest of the batch is answered, in order."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_backend_utils())
    backend = load_backend(tmp_path)
    unreadable = FakeRequest([0])
    unreadable.values = np.array([[b"\xff"]], dtype=np.object_)
    answers = backend.execute([FakeRequest([0]), unreadable, FakeRequest([2]), FakeRequest([1])])
    assert answers[1] == "INVALID_ARG"
    assert [answers[each]["value"].tolist() for each in (0, 2, 3)] == [[[0.5]], [[2.5]], [[1.5]]]
    assert backend.execute([unreadable]) == ["INVALID_ARG"]


def fake_backend_utils() -> types.ModuleType:
    """Triton's module as far as the backend uses it; a response is a dict of arrays, or the code of its error."""
    utils = types.ModuleType("triton_python_backend_utils")
    utils.triton_string_to_numpy = {"TYPE_FP32": np.float32, "TYPE_STRING": np.object_}.get
    utils.get_input_tensor_by_name = lambda request, _: request
    utils.Tensor = lambda name, values: (name, values)
    utils.TritonError = lambda _, code: code
    utils.TritonError.INTERNAL = "INTERNAL"
    utils.TritonError.INVALID_ARG = "INVALID_ARG"
    utils.InferenceResponse = lambda output_tensors=(), error=None: error or dict(output_tensors)
    utils.Logger = types.SimpleNamespace(log_warn=lambda _: None)
    return utils


def load_backend(folder: Path):
    repository(folder)
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", ROOT / "docker" / "triton" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = (
        '{"max_batch_size": 64, "input": [{"name": "X"}], "output": '
        '[{"name": "value", "data_type": "TYPE_FP32"}, {"name": "word", "data_type": "TYPE_STRING"}]}'
    )
    backend = module.TritonPythonModel()
    backend.initialize({"model_config": config, "model_repository": str(folder / MODEL), "model_version": "1"})
    return backend
