"""delivery.servers, delivery.container_servers, delivery.bring_back: one server per version, wherever servers run."""

import io
import ipaddress
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from docker import DockerClient
from docker.errors import NotFound
from docker.types import IPAMConfig, IPAMPool
from engine_fixtures import BASE_IMAGE, build, client_fixture  # noqa: F401 - a fixture
from fakes import FakeDirector

from delivery import servers
from delivery.bring_back import bring
from delivery.container_servers import ContainerServers, Place, _Stream, died
from delivery.engine import EngineTrouble
from delivery.registry import IMAGE, OUTCOME, ModelVersion
from delivery.servers import LocalServers
from delivery.traffic import Backend
from delivery.triton import NotReady, ServerTrouble
from validation.contract import BadSpec, Spec

FAKE = Path(__file__).with_name("fake_serving.py").read_bytes()
DIGEST = f"sha256:{'a' * 64}"


def spec(image: str | None) -> Spec:
    return Spec(task="start_candidate", model="irises", version=1, delivery="d", evidence_uri="file:///x", inputs={"image": image})


def test_a_supervisord_means_local_servers(tmp_path: Path) -> None:
    """A place that names one keeps its servers there, engine or not."""
    found = servers.from_env({"PENSTOCK_SUPERVISOR": "/s", "PENSTOCK_STATE": str(tmp_path), "DOCKER_HOST": "unix:///nowhere"})
    assert isinstance(found, LocalServers)


def test_without_supervisord_and_engine_there_is_no_place_for_a_server() -> None:
    """Said with the variable's name, and no traceback of a client."""
    with pytest.raises(EngineTrouble, match="DOCKER_HOST is not set"):
        servers.from_env({})


@pytest.mark.parametrize(
    "image", [None, "none: no engine", "registry/penstock/irises:tag", f"registry/penstock/other@{DIGEST}", f"elsewhere/irises@{DIGEST}"]
)
def test_only_a_digest_of_this_models_repository_is_served(monkeypatch: pytest.MonkeyPatch, image: str | None) -> None:
    """A spec cannot make a server run another model's image, one of another registry, or whatever a tag names today."""
    monkeypatch.setenv("PENSTOCK_REGISTRY", "registry/penstock")
    monkeypatch.setenv("PENSTOCK_SERVING_IMAGE", "penstock/triton")
    source = ContainerServers(None, Place.from_env({})).source
    with pytest.raises(BadSpec, match="package"):
        source(spec(image))
    assert source(spec(f"registry/penstock/irises@{DIGEST}")) == f"registry/penstock/irises@{DIGEST}"


class Container:
    def __init__(self, *, restarts: int = 0, **state: object) -> None:
        self.attrs = {"State": {"Status": "running", **state}, "RestartCount": restarts, "HostConfig": {"Memory": 64 << 20}}


def test_a_container_that_the_engine_has_begun_again_has_ended() -> None:
    """It looks as if it ran; memory is told by its limit, everything else by the exit code."""
    assert died(Container()) is None
    assert died(Container(restarts=1)) == "ended with exit code None"
    assert died(Container(Status="exited", ExitCode=3)) == "ended with exit code 3"
    assert died(Container(Status="exited", OOMKilled=True)) == "was killed because it needs more memory than its 64 MiB"


def test_an_archive_is_read_in_pieces_of_any_size() -> None:
    """The engine cuts its stream where it likes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.size = 5000
        tar.addfile(member, io.BytesIO(b"x" * 5000))
    raw = data.getvalue()
    with tarfile.open(fileobj=_Stream(raw[i : i + 7] for i in range(0, len(raw), 7)), mode="r|") as tar:
        assert [tar.extractfile(each).read() for each in tar] == [b"x" * 5000]


# ---- with a real engine


@pytest.fixture(name="world")
def world_fixture(client: DockerClient) -> Iterator[ContainerServers]:
    """A network of its own with a fixed subnet, of which the upper half is the servers'."""
    name, number = f"penstock-test-{os.getpid()}", os.getpid() % 200
    pool = IPAMPool(subnet=f"10.214.{number}.0/24", iprange=f"10.214.{number}.0/25")
    network = client.networks.create(name, internal=True, ipam=IPAMConfig(pool_configs=[pool]))
    block = ipaddress.IPv4Network(f"10.214.{number}.128/30")
    world = ContainerServers(client, Place(project=name, network=name, addresses=block, memory_mib=128, gpus=0))
    yield world
    for each in world.running():
        world.stop(each)
    network.remove()


def image(client: DockerClient, behaviour: str = "fine") -> str:
    entry = 'ENTRYPOINT ["python3", "/fake_serving.py"]'
    recipe = f"FROM {BASE_IMAGE}\nCOPY fake_serving.py /\nRUN mkdir -p /models/irises && echo x > /models/irises/config.pbtxt\n"
    recipe += f"ENV BEHAVIOUR={behaviour}\nUSER 65534:65534\n{entry}\n"
    return build(client, f"penstock-test/serving-{behaviour.replace('_', '-')}", recipe, {"fake_serving.py": FAKE})


@pytest.mark.engine
def test_a_server_keeps_its_address_over_a_restart_and_is_gone_when_stopped(client: DockerClient, world: ContainerServers) -> None:
    """The gateway looks no names up; the same start again changes nothing; stopping what is not there changes nothing."""
    server = world.start("irises--v1", image(client))
    assert ipaddress.IPv4Address(server.http.partition(":")[0]) in world._place.addresses
    assert world.wait_ready(server, "irises", 20) < 20
    client.containers.get(f"{world._place.project}-irises--v1").restart(timeout=1)
    world.wait_ready(server, "irises", 20)
    assert world.start("irises--v1", image(client)) == server
    assert world.running() == {"irises--v1": server}
    assert list(world.files("irises--v1")) == ["irises/config.pbtxt"]
    for _ in range(2):
        world.stop("irises--v1")
    assert world.running() == {}


@pytest.mark.engine
def test_a_server_runs_unprivileged_and_bounded(client: DockerClient, world: ContainerServers) -> None:
    """A foreign model can write nowhere but /tmp, has no capability, and the engine brings it back when it crashes."""
    world.start("irises--v1", image(client))
    wish = client.containers.get(f"{world._place.project}-irises--v1").attrs["HostConfig"]
    assert (wish["ReadonlyRootfs"], wish["CapDrop"], wish["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges"])
    assert (wish["Memory"], wish["MemorySwap"], wish["PidsLimit"]) == (128 << 20, 128 << 20, 1024)
    assert wish["RestartPolicy"]["Name"] == "unless-stopped"
    assert not wish["Binds"]


@pytest.mark.engine
def test_two_servers_have_two_addresses_and_the_third_finds_none(client: DockerClient, world: ContainerServers) -> None:
    """The block of the test holds two; a full one is told, with what to do, and no container is left of the try."""
    first, second = world.start("irises--v1", image(client)), world.start("irises--v2", image(client))
    assert first.http != second.http
    with pytest.raises(EngineTrouble, match="stop a server, or widen PENSTOCK_SERVER_ADDRESSES"):
        world.start("irises--v3", image(client))
    with pytest.raises(NotFound):
        client.containers.get(f"{world._place.project}-irises--v3")


@pytest.mark.engine
def test_a_server_of_another_image_is_not_replaced_under_its_name(client: DockerClient, world: ContainerServers) -> None:
    """Whoever wants another image under a running version's name has mixed something up."""
    world.start("irises--v1", image(client))
    with pytest.raises(ValueError, match="stop it before it can run"):
        world.start("irises--v1", image(client, "rude"))


@pytest.mark.engine
def test_a_server_that_ends_over_its_model_is_the_models_fault(client: DockerClient, world: ContainerServers) -> None:
    """Triton's own words are the reason; memory over the limit is the model's fault too; silence is ours."""
    with pytest.raises(NotReady, match="the file is no ONNX model"):
        world.wait_ready(world.start("irises--v1", image(client, "ends")), "irises", 20)
    world.stop("irises--v1")
    with pytest.raises(NotReady, match="needs more memory than its 128 MiB"):
        world.wait_ready(world.start("irises--v1", image(client, "hungry")), "irises", 60)
    world.stop("irises--v1")
    with pytest.raises(ServerTrouble, match="was not ready with irises after 1 s"):
        world.wait_ready(world.start("irises--v1", image(client, "never_ready")), "irises", 1)


@pytest.mark.engine
def test_an_archived_version_keeps_its_server_or_gets_one(client: DockerClient, world: ContainerServers) -> None:
    """What was stable two promotions ago goes on as it is; the gateway is told where it answers."""
    source, director = image(client), FakeDirector()
    director.serves("irises", stable=3, previous=2)
    tags = {OUTCOME: "promoted", IMAGE: source}
    registry = SimpleNamespace(versions=lambda model: [ModelVersion(model=model, number=n, run_id="r", tags=tags) for n in (1, 2, 3)])
    for _ in range(2):
        assert world.archive("irises", 5, registry, director) == "archived: v1"  # type: ignore[arg-type]
    (kept,) = director.model("irises").archived
    assert (kept.alone, kept.http) == (True, world.running()["irises--v1"].http)


class Versions:
    """A registry that knows the images of some versions."""

    def __init__(self, **images: str) -> None:
        self.images = images

    def version(self, model: str, number: int) -> object:
        tags = {"penstock.image": self.images[f"v{number}"]} if f"v{number}" in self.images else {}
        return type("Version", (), {"tags": tags})()


@pytest.mark.engine
def test_what_the_gateway_points_at_is_brought_back_at_its_address(client: DockerClient, world: ContainerServers) -> None:
    """After a `down` a server comes back where the gateway looks for it; a version without an image is told and the others go on."""
    address = str(list(world._place.addresses.hosts())[1])
    backend = Backend(version=1, http=f"{address}:8000", grpc=f"{address}:8001")
    assert bring("irises", backend, Versions(v1=image(client)), world) is None
    assert world.running()["irises--v1"].http == f"{address}:8000"
    lost = Backend(version=2, http=f"{address}:8000", grpc=f"{address}:8001")
    assert "no image of it" in bring("irises", lost, Versions(), world)
