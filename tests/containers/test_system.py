"""The whole system in containers: one delivery, one rollback, and who can reach what. Needs an engine and the project's images.

With FULL=1 also the archive, what dies in mid-canary, and the way back after a `down` and from a backup.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.container_world import ContainerWorld
from bench.world import MODEL
from demo.services import NotNow
from stack.docker_host import HostTrouble

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
DEFINED = ("promoted", "rolled_back", "inconclusive", "error")
ONLOOKERS = ("prometheus", "alertmanager", "recorder", "dag-processor", "registry")
OTHERS = ("director", "scheduler", "triggerer", "api-server", "engine", "mlflow", "postgres")

CHECKED = ("image", "size_mb", "label", "non_root", "ready_s", "chain", "probe_http", "probe_grpc", "health", "memory_mib", "stop_s")


@pytest.fixture(scope="module", name="world")
def world_fixture() -> Iterator[ContainerWorld]:
    """v1 is stable and the client runs."""
    world = ContainerWorld(os.environ, "containers")
    try:
        world.open_with_traffic()
        yield world
    finally:
        world.close()


def image_named(world: ContainerWorld, tag: str) -> str | None:
    """The digest that a tag of the model's repository names."""
    port, password = world.host.environ["PENSTOCK_REGISTRY_PORT"], world.host.secret("registry_password")
    answer = httpx.get(
        f"http://127.0.0.1:{port}/v2/penstock/{MODEL}/manifests/{tag}",
        auth=("penstock", password),
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"},
    )
    return answer.headers["docker-content-digest"] if answer.status_code == 200 else None


def test_a_version_goes_to_production_in_containers(world: ContainerWorld) -> None:
    """Every task ran in its image, the checked digest is the one that serves and the one that the serving tag names."""
    number = world.deliver("v2")
    assert world.outcome(number) == "promoted", world.why(number)
    assert tuple(world.findings(number, "container_check")) == CHECKED
    image = world.version(number).tags["penstock.image"]
    assert image_named(world, "serving") == image.partition("@")[2]
    (server,) = json.loads(world.host.docker("inspect", world.server(number), quiet=True))
    assert server["Config"]["Image"] == image
    assert (server["HostConfig"]["ReadonlyRootfs"], server["HostConfig"]["CapDrop"], server["Config"]["User"]) == (
        True,
        ["ALL"],
        "65534:65534",
    )
    assert [each for each in world.containers("penstock.job") if f"-{MODEL}-v{number}-" in each] == []
    assert world.client_errors() == 0, world.error_samples()


@pytest.mark.full
def test_what_was_stable_two_promotions_ago_is_archived(world: ContainerWorld) -> None:
    """Its own container goes on, and answers those who pin it; no other traffic gets there."""
    first = world.director.previous(MODEL)
    number = world.deliver("v2")
    assert world.outcome(number) == "promoted", world.why(number)
    assert world.director.archived(MODEL) == {first}
    assert world.server(first) in world.containers("penstock.server")
    assert pinned(world, first)


def pinned(world: ContainerWorld, number: int) -> bool:
    """Whether the gateway has this very version's own answer for who pins it."""
    url = f"http://127.0.0.1:{world.host.environ['PENSTOCK_GATEWAY_PORT']}/v2/models/{MODEL}/infer"
    pixels = {"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}
    answer = httpx.post(url, headers={"x-model-version": str(number)}, json={"inputs": [pixels]}, timeout=10)
    return answer.status_code == 200 and answer.headers["x-penstock-version"] == f"{MODEL}--v{number}--http"


def test_an_undo_by_hand_moves_gateway_registry_and_images(world: ContainerWorld) -> None:
    """The version before is stable again, with no delivery and no client error, and the serving tag names its image."""
    stable, previous = world.share().stable, world.director.previous(MODEL)
    assert world.command("undo", MODEL, "--why", "wrong numbers in the report") == 0
    assert (world.share().stable, world.registry.alias(MODEL, "production")) == (previous, previous)
    assert image_named(world, "serving") == world.version(previous).tags["penstock.image"].partition("@")[2]
    assert "undone by ada: wrong numbers in the report" in world.why(stable)
    world.until_answered_more(200)
    assert world.client_errors() == 0, world.error_samples()


@pytest.mark.full
def test_an_undo_leads_further_back_to_an_archived_version(world: ContainerWorld) -> None:
    """It is loaded, so one change of the routes makes it stable; images and aliases follow, and no client saw an error."""
    (first,) = world.director.archived(MODEL)
    assert world.command("undo", MODEL, "--why", "again") == 1
    assert world.command("undo", MODEL, "--to", str(first), "--why", "both were wrong") == 0
    assert (world.share().stable, world.registry.alias(MODEL, "production")) == (first, first)
    assert image_named(world, "serving") == world.version(first).tags["penstock.image"].partition("@")[2]
    world.until_answered_more(200)
    assert world.client_errors() == 0, world.error_samples()


def test_a_version_that_fails_on_new_inputs_is_rolled_back(world: ContainerWorld) -> None:
    """The watch takes it back, its server is removed, the serving tag has not moved, and no client saw an error."""
    before = image_named(world, "serving")
    number = world.deliver("v4")
    world.until_share(100)
    world.stage.use_new_scanner(200)
    assert world.outcome(number) == "rolled_back", world.why(number)
    assert world.server(number) not in world.containers("penstock.server")
    assert image_named(world, "serving") == before
    assert world.client_errors() == 0, world.error_samples()
    world.stage.use_new_scanner(0)


@pytest.mark.full
def test_services_that_only_look_on_may_die_in_mid_canary(world: ContainerWorld) -> None:
    """One after another is killed and comes back; the delivery goes on to its own end, and no client saw an error."""
    number = world.deliver("v2")
    world.until_share(100)
    for service in ONLOOKERS:
        with world.killed(service):
            world.until_answered_more(200)
    assert world.outcome(number) in ("promoted", "inconclusive"), world.why(number)
    assert world.client_errors() == 0, world.error_samples()


@pytest.mark.full
@pytest.mark.parametrize("service", OTHERS)
def test_a_service_that_dies_in_mid_canary_costs_no_user_anything(world: ContainerWorld, service: str) -> None:
    """Meanwhile the candidate's share lapses or stays under its watch; once the service is back, the delivery ends as defined, and the
    gateway serves what the registry calls production.
    """
    number, before = world.deliver("v2"), world.share().stable
    world.until_share(100)
    with world.killed(service):
        world.until_answered_more(1000)
    assert world.outcome(number) in DEFINED, world.why(number)
    assert world.share().stable in (before, number)
    assert world.registry.alias(MODEL, "production") == world.share().stable
    assert world.client_errors() == 0, world.error_samples()


@pytest.mark.full
def test_the_gateway_dies_in_mid_canary(world: ContainerWorld) -> None:
    """Nobody is answered meanwhile; once it is back it serves what the registry calls production, and the delivery ends as defined."""
    number, before = world.deliver("v2"), world.share().stable
    world.until_share(100)
    with world.client_away(), world.killed("envoy"):
        pass
    assert world.outcome(number) in DEFINED, world.why(number)
    assert world.registry.alias(MODEL, "production") == world.share().stable in (before, number)
    world.until_answered_more(200)
    assert world.client_errors() == 0, world.error_samples()


@pytest.mark.full
def test_a_candidate_that_crashes_is_taken_back_and_costs_no_user_anything(world: ContainerWorld) -> None:
    """The engine starts its server again, stable answers meanwhile, and the watch knows that it failed."""
    number, before = world.deliver("v2"), world.share().stable
    world.until_share(500)
    world.crash_server(number)
    assert world.outcome(number) in ("rolled_back", "inconclusive", "promoted"), world.why(number)
    assert world.registry.alias(MODEL, "production") == world.share().stable in (before, number)
    assert world.client_errors() == 0, world.error_samples()


@pytest.mark.full
def test_a_stable_server_that_crashes_is_started_again(world: ContainerWorld) -> None:
    """The version before answers for as long as the engine takes to start it, and then it answers itself again."""
    stable, previous = world.share().stable, world.director.previous(MODEL)
    assert previous
    before = world.started_at(stable)
    world.crash_server(stable)
    world.until(lambda: world.started_at(stable) != before or None, "the engine to start it again", 60)
    world.until(lambda: world.answers_now(stable) or None, "its answers", 120)
    assert world.share().stable == stable
    assert world.client_errors() == 0, world.error_samples()


def test_gates_reach_no_engine(world: ContainerWorld) -> None:
    """From the network of a gate neither the engine's service nor a socket is to be found."""
    tried = "import socket, os; assert not os.path.exists('/var/run/docker.sock'); socket.create_connection(('engine', 2375), timeout=5)"
    words = ("run", "--rm", "--network", f"{world.host.project}_core", f"{world.host.images_prefix}golden_set", "python", "-c", tried)
    with pytest.raises(HostTrouble, match="gaierror"):
        world.host.docker(*words, quiet=True)


def test_no_secret_shows_in_what_the_engine_tells_of_a_service(world: ContainerWorld) -> None:
    """Neither the compose file nor `docker inspect` shows one: services read them from volumes of their own."""
    ids = world.host.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={world.host.project}", quiet=True).split()
    told = world.host.docker("inspect", *ids, quiet=True)
    secrets = json.loads(world.host.secret(""))
    assert secrets
    assert [name for name, value in secrets.items() if value in told] == []


def test_only_gateway_uis_and_registry_are_published_and_on_loopback_only(world: ContainerWorld) -> None:
    """Nothing listens on another address of the host; the director only because the tests' override says so."""
    ids = world.host.docker("ps", "-q", "--filter", f"label=com.docker.compose.project={world.host.project}", quiet=True).split()
    published = {}
    for row in json.loads(world.host.docker("inspect", *ids, quiet=True)):
        bindings = [each for each in (row["NetworkSettings"]["Ports"] or {}).values() if each]
        if bindings:
            published[row["Config"]["Labels"]["com.docker.compose.service"]] = {each["HostIp"] for binding in bindings for each in binding}
    assert set(published) == {"envoy", "api-server", "mlflow", "registry", "prometheus", "alertmanager", "director"}
    assert set().union(*published.values()) == {"127.0.0.1"}


@pytest.mark.full
def test_servers_come_back_after_a_down(world: ContainerWorld) -> None:
    """`down` ends the servers too; `up` starts those that the gateway points at, from their images by digest, at their addresses."""
    with world.client_away():
        world.host.down()
        assert world.containers("penstock.server") == []
        world.host.up()

        def stable() -> int | None:
            try:
                share = world.share()
            except NotNow:
                return None
            return share.stable or None

        number = world.until(stable, "the director to know its stable version", 60)
        assert world.server(number) in world.containers("penstock.server")
    seen = world.answered(number)
    world.until(lambda: world.answered(number) > seen or None, "answers of the stable version", 60)


@pytest.mark.full
def test_a_backup_brings_everything_back_on_an_empty_host(world: ContainerWorld, tmp_path: Path) -> None:
    """Versions, aliases, images, secrets and the gateway's state are as they were, and the stable version answers again."""
    stable, image = world.share().stable, image_named(world, "serving")
    with world.client_away():
        world.host.backup(tmp_path / "backup")
        world.host.down(with_data=True)
        world.host.restore(tmp_path / "backup")
    assert (world.share().stable, image_named(world, "serving")) == (stable, image)
    assert world.registry.alias(MODEL, "production") == stable
    world.until_answered_more(200)
