"""delivery.container_check: what is wrong with a serving image is found by starting it, and nothing is left of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from engine_fixtures import BASE_IMAGE, REGISTRY, build, client_fixture  # noqa: F401 - a fixture
from made_bundles import MODEL, make_bundle

from delivery import image as images
from delivery.container_check import _container, _sized, _stopped, _unprivileged, _within, container_check
from delivery.container_servers import Place
from delivery.engine import EngineTrouble
from delivery.image_registry import ImageRegistry, Reference
from validation.bundle import read_bundle
from validation.contract import BadSpec, Bundle, Decision, Outcome, Spec
from validation.policy import ContainerCheck, section

FAKE = Path(__file__).with_name("fake_serving.py").read_bytes()
PLACE = Place(project="penstock-test", network="bridge", addresses=None, memory_mib=256, gpus=0)


def spec_of(image: str, bundle: Bundle, **limits: object) -> Spec:
    given = {"ready_seconds": 2.0, "stop_seconds": 2.0, "memory_mib": 128, **limits}
    inputs, checked = {"image": image}, section(ContainerCheck(**given))
    return Spec(
        task="container_check", model=MODEL, version=1, delivery="d", evidence_uri="file:///x", bundle=bundle, inputs=inputs, limits=checked
    )


@pytest.mark.parametrize("user", ["", "root", "0", "0:0", "nobody"])
def test_an_image_must_name_an_unprivileged_user_by_number(user: str):
    """A name could be root's in this very image; only a number above 0 is known not to be."""
    assert _unprivileged(user).outcome is Outcome.FAILED
    assert _unprivileged("65534:65534").outcome is Outcome.PASSED


def test_an_image_over_its_budget_is_refused_with_both_numbers():
    """Size and budget stand in the finding."""
    finding = _sized(500.1, ContainerCheck(size_mb=500))
    assert (finding.outcome, finding.observed, finding.limit) == (Outcome.FAILED, 500.1, 500)
    assert _sized(500.0, ContainerCheck(size_mb=500)).outcome is Outcome.PASSED


def test_without_an_image_by_digest_there_is_nothing_to_check(tmp_path: Path):
    """`package` of a place without an engine puts out words, which start nothing."""
    with pytest.raises(BadSpec, match="run `package` again"):
        container_check(spec_of("none: no engine", make_bundle(tmp_path)), None, PLACE)


# ---- with a real engine and a real registry


class Made:
    """One fake serving image, built on a base and pushed."""

    def __init__(self, client: DockerClient, folder: Path, dockerfile: str) -> None:
        name = folder.name.replace("_", "-").lower()[:60].strip("-")
        base = build(client, f"penstock-test/{name}", dockerfile, {"fake_serving.py": FAKE})
        self.place = images.Place(registry=f"{REGISTRY}/penstock-test/{name}", base=base)
        self.bundle = make_bundle(folder)
        with read_bundle(self.bundle) as opened:
            built = images.build(client, self.place, opened, self.bundle, {})
            self.pushed = images.push(client, self.place, built, MODEL, images.tags(opened.manifest, self.bundle))


def dockerfile(behaviour: str = "fine", *, user: str = "65534:65534", health: str = "HEALTHCHECK NONE") -> str:
    entry = 'ENTRYPOINT ["python3", "/fake_serving.py"]'
    return f"FROM {BASE_IMAGE}\nCOPY fake_serving.py /\nENV BEHAVIOUR={behaviour}\nUSER {user}\n{health}\n{entry}\n"


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test ends with no container of the check."""
    yield
    if "client" in request.fixturenames:
        client = request.getfixturevalue("client")
        assert client.containers.list(all=True, filters={"label": "penstock.project=penstock-test"}) == []


def last(decision: Decision) -> tuple[str, Outcome]:
    return decision.findings[-1].name, decision.findings[-1].outcome


@pytest.mark.engine
def test_a_server_that_answers_wrong_gets_as_far_as_its_answers(client: DockerClient, tmp_path: Path):
    """Digest, label, size, user, readiness and files are right of this one, and its answers are not: nothing after them is asked."""
    made = Made(client, tmp_path, dockerfile())
    decision = container_check(spec_of(made.pushed.reference, made.bundle), client, PLACE)
    names = [finding.name for finding in decision.findings]
    assert names == ["image", "size_mb", "label", "non_root", "ready_s", "chain", "probe_http"]
    assert last(decision) == ("probe_http", Outcome.FAILED)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("never_ready", "not ready after 6 s"), ("ends", "the file is no ONNX model"), ("hungry", "needs more memory than its 128 MiB")],
)
def test_a_server_that_does_not_come_up_is_the_images_fault(client: DockerClient, tmp_path: Path, behaviour: str, said: str):
    """Silence, an end over the model and an end over the memory are told apart, each with its numbers or the server's own words."""
    made = Made(client, tmp_path, dockerfile(behaviour))
    decision = container_check(spec_of(made.pushed.reference, made.bundle), client, PLACE)
    assert last(decision) == ("ready_s", Outcome.FAILED)
    assert said in decision.findings[-1].why


@pytest.mark.engine
def test_an_image_for_root_is_not_even_started(client: DockerClient, tmp_path: Path):
    """What the image says decides, though the container would be given another user."""
    made = Made(client, tmp_path, dockerfile(user="0"))
    assert last(container_check(spec_of(made.pushed.reference, made.bundle), client, PLACE)) == ("non_root", Outcome.FAILED)


@pytest.mark.engine
def test_an_image_whose_tag_names_another_digest_is_refused(client: DockerClient, tmp_path: Path):
    """Somebody pushed something else under the version's tag: the chain is broken, whatever the digest would serve."""
    made, other = Made(client, tmp_path, dockerfile()), tmp_path / "other"
    other.mkdir()
    stranger = Reference.parse(Made(client, other, dockerfile("rude")).pushed.reference)
    mine = Reference.parse(made.pushed.reference)
    client.images.get(str(stranger)).tag(f"{mine.host}/{mine.repository}", tag=made.pushed.tag)
    for line in client.images.push(f"{mine.host}/{mine.repository}", tag=made.pushed.tag, stream=True, decode=True):
        assert "error" not in line
    decision = container_check(spec_of(made.pushed.reference, made.bundle), client, PLACE)
    assert last(decision) == ("image", Outcome.FAILED)
    assert stranger.digest in decision.findings[-1].why


@pytest.mark.engine
def test_an_image_that_claims_another_bundle_is_refused(client: DockerClient, tmp_path: Path):
    """The label must name the bundle that the gates have judged."""
    made = Made(client, tmp_path, dockerfile())
    reference = Reference.parse(made.pushed.reference)
    ImageRegistry.of(REGISTRY, {}).tag(reference, "none")
    other = tmp_path / "other"
    other.mkdir()
    bundle = make_bundle(other, manifest={"source_run": "another run"})
    with read_bundle(bundle) as opened:
        ImageRegistry.of(REGISTRY, {}).tag(reference, images.tags(opened.manifest, bundle)[0])
    decision = container_check(spec_of(made.pushed.reference, bundle), client, PLACE)
    assert last(decision) == ("label", Outcome.FAILED)


@pytest.mark.engine
def test_an_image_that_is_gone_is_refused(client: DockerClient, tmp_path: Path):
    """A tag that names nothing any more is a broken chain, and nothing is started."""
    bundle = make_bundle(tmp_path)
    gone = f"{REGISTRY}/penstock-test/nowhere@sha256:{'0' * 64}"
    decision = container_check(spec_of(gone, bundle), client, PLACE)
    assert last(decision) == ("image", Outcome.FAILED)


@pytest.mark.engine
def test_a_gpu_where_there_is_none_is_an_error_that_says_so(client: DockerClient, tmp_path: Path):
    """Asked for a GPU, an engine without one refuses to start; nothing is left, and the sentence says what to do."""
    made = Made(client, tmp_path, dockerfile())
    place = Place(project="penstock-test", network="bridge", addresses=None, memory_mib=256, gpus=1)
    with pytest.raises(EngineTrouble, match="a GPU is asked for and this engine has none"):
        container_check(spec_of(made.pushed.reference, made.bundle), client, place)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("behaviour", "said"), [("stubborn", "still runs 2 s after SIGTERM"), ("rude", "exit code 7 upon SIGTERM"), ("fine", "")]
)
def test_a_server_must_end_by_itself_when_told(client: DockerClient, tmp_path: Path, behaviour: str, said: str):
    """One that ignores SIGTERM, or calls it a failure, would lose its last requests at every change."""
    made = Made(client, tmp_path, dockerfile(behaviour))
    spec = spec_of(made.pushed.reference, made.bundle)
    with _container(spec, client, PLACE, Reference.parse(made.pushed.reference), ContainerCheck(memory_mib=128)) as container:
        _within(10, lambda: b"behaviour" in container.logs())
        finding = _stopped(container, ContainerCheck(stop_seconds=2))
    assert (finding.outcome is Outcome.PASSED) == (behaviour == "fine")
    assert said in finding.why
