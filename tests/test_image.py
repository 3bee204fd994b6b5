"""delivery.image and delivery.image_registry: a bundle becomes one thin layer, and the registry's tags move by digest only."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import httpx
import pytest
from docker import DockerClient
from engine_fixtures import BASE_IMAGE, REGISTRY, build, client_fixture  # noqa: F401 - a fixture
from made_bundles import MODEL, make_bundle

from delivery import engine as engines
from delivery import image as images
from delivery.engine import EngineTrouble, engine, image_of, trouble
from delivery.image import BASE_LABEL, BUNDLE_LABEL, Place, context, labels, tags
from delivery.image_registry import Credentials, DigestChanged, ImageRegistry, Reference, RegistryTrouble
from validation.bundle import read_bundle

DIGEST = f"sha256:{'a' * 64}"


def test_equal_bundles_give_equal_contexts(tmp_path: Path):
    """A build is given the served files and the manifest, and nothing of when or by whom they were made."""
    layers = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        with read_bundle(make_bundle(folder)) as opened:
            layers.append(context(opened, "base"))
    assert layers[0] == layers[1]
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as tar:
        members = tar.getmembers()
    names = [each.name for each in members if each.isreg()]
    assert names == ["Dockerfile", f"layer/models/{MODEL}/1/model.onnx", f"layer/models/{MODEL}/config.pbtxt", "layer/manifest.json"]
    assert {(each.mtime, each.uid, each.gid, each.uname) for each in members} == {(0, 0, 0, "")}


def test_an_image_says_what_it_is_and_where_it_came_from(tmp_path: Path):
    """Labels carry model, version, commit, run, signature, training metrics, and the bundle's digest; the tag tells three of them."""
    bundle = make_bundle(tmp_path, manifest={"git_commit": "0123456789abcdef0123"})
    with read_bundle(bundle) as opened:
        said, (tag, candidate) = labels(opened.manifest, bundle), tags(opened.manifest, bundle)
        assert json.loads(said["io.penstock.files"]) == opened.manifest.served
        assert json.loads(said["io.penstock.signature"])["inputs"][0][0] == opened.manifest.inputs[0].name
    assert (said[BUNDLE_LABEL], said["org.opencontainers.image.version"]) == (bundle.sha256, "v1.0.0")
    assert (said["org.opencontainers.image.revision"], said["io.penstock.version"]) == ("0123456789abcdef0123", "1")
    assert (tag, candidate) == (f"v1.0.0-g0123456789ab-b{bundle.sha256[:12]}", "candidate-v1")


def test_a_version_without_a_commit_has_a_tag_all_the_same(tmp_path: Path):
    """Whatever stands where a commit is expected never gets into a tag."""
    bundle = make_bundle(tmp_path, manifest={"git_commit": "main; rm -rf"})
    with read_bundle(bundle) as opened:
        assert tags(opened.manifest, bundle)[0] == f"v1.0.0-gnone-b{bundle.sha256[:12]}"


@pytest.mark.parametrize(
    "text", ["", "host/name", "host/name:tag", f"name@{DIGEST}", "host/name@sha256:short", f"host/name@{DIGEST}0", "None"]
)
def test_only_an_image_by_digest_is_a_reference(text: str):
    """A tag can be moved under us; only a digest names an image."""
    with pytest.raises(ValueError, match="expected host/repository@sha256"):
        Reference.parse(text)


def test_a_place_with_an_engine_and_no_registry_says_so():
    """Images go somewhere on purpose or not at all."""
    with pytest.raises(EngineTrouble, match="PENSTOCK_REGISTRY is not set"):
        Place.from_env({"DOCKER_HOST": "unix:///x"})


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path):
    """The address and what to do stand in the sentence."""
    with pytest.raises(EngineTrouble, match=r"no Docker engine answers at unix://.*: start one"):
        engine({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    with pytest.raises(EngineTrouble, match="DOCKER_HOST is not set"):
        engine({})


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("write /var/lib/docker/tmp: no space left on device", "the engine's disk is full"),
        ('could not select device driver "" with capabilities: [[gpu]]', "leave the GPU out"),
        ("unauthorized: authentication required", "PENSTOCK_REGISTRY_PASSWORD"),
        ("denied: requested access to the resource is denied", "give it the right to"),
        ("dial tcp 127.0.0.1:5000: connect: connection refused", "the registry does not answer: start it"),
        ("exec user process caused: exec format error", "build it for this one"),
        ("something never heard of", "see the engine's own log"),
    ],
)
def test_an_engines_words_are_told_with_what_to_do(said: str, advice: str):
    """What was tried, the engine's own sentence, and the way out."""
    told = str(trouble("the image cannot be pushed", said))
    assert told.startswith(f"the image cannot be pushed: {said}; ")
    assert advice in told


class FakeEngine:
    """An engine that only tells its version, and has one image."""

    def __init__(self, api: str = "1.41", architecture: str = "amd64") -> None:
        self.api, self.architecture = api, architecture
        self.images = self

    def version(self) -> dict[str, str]:
        return {"ApiVersion": self.api, "Arch": "amd64"}

    def get(self, reference: str) -> object:
        return type("Image", (), {"attrs": {"Architecture": self.architecture}})()


@pytest.mark.parametrize(("api", "enough"), [("1.40", False), ("0.0", False), ("1.41", True), ("1.51", True), ("2.0", True)])
def test_an_engine_that_is_too_old_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch, *, api: str, enough: bool):
    """Before anything is asked of it."""
    monkeypatch.setattr(engines, "DockerClient", lambda **_: FakeEngine(api))
    if enough:
        assert engine({"DOCKER_HOST": "unix:///x"}).version()["ApiVersion"] == api
    else:
        with pytest.raises(EngineTrouble, match=rf"speaks API {api}; 1\.41 is needed: install Docker 20\.10"):
            engine({"DOCKER_HOST": "unix:///x"})


def test_an_image_of_another_architecture_is_refused():
    """It would start and end with no word that anybody understands."""
    with pytest.raises(EngineTrouble, match="is for arm64 and this engine runs amd64: build it for amd64"):
        image_of(FakeEngine(architecture="arm64"), "penstock/triton")


class FakeImages:
    """A registry of one manifest; `answers` replaces what it says to a method and path."""

    def __init__(self) -> None:
        self.manifest = json.dumps(
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"size": 7}, "layers": [{"size": 5}]}
        )
        self.digest = f"sha256:{hashlib.sha256(self.manifest.encode()).hexdigest()}"
        self.tags: dict[str, str] = {}
        self.answers: dict[tuple[str, str], httpx.Response] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if (request.method, name) in self.answers:
            return self.answers[request.method, name]
        if request.method == "PUT":
            self.tags[name] = f"sha256:{hashlib.sha256(request.content).hexdigest()}"
            return httpx.Response(201)
        found = name == self.digest or name in self.tags
        return httpx.Response(200, text=self.manifest) if found else httpx.Response(404)

    def client(self) -> ImageRegistry:
        return ImageRegistry("http://registry", transport=httpx.MockTransport(self))

    @property
    def reference(self) -> Reference:
        return Reference(host="registry", repository="penstock/irises", digest=self.digest)


def test_a_tag_is_moved_by_digest_and_looked_at_again():
    """The very bytes of the manifest get the new name, so the digest stays; sizes are of all that a machine downloads."""
    fake = FakeImages()
    fake.client().tag(fake.reference, "serving")
    assert fake.tags == {"serving": fake.digest}
    assert fake.client().size_bytes(fake.reference) == 12
    assert fake.client().digest("penstock/irises", "nowhere") is None


def test_a_manifest_of_another_digest_is_refused():
    """A registry that gives other bytes than was asked for moves no tag."""
    fake = FakeImages()
    fake.answers["GET", fake.digest] = httpx.Response(200, text=fake.manifest + " ")
    with pytest.raises(DigestChanged, match="with bytes of digest"):
        fake.client().tag(fake.reference, "serving")
    assert fake.tags == {}


def test_a_tag_that_somebody_else_moves_meanwhile_is_noticed():
    """What the tag names is read back."""
    fake = FakeImages()
    fake.answers["GET", "serving"] = httpx.Response(200, text="{}")
    with pytest.raises(DigestChanged, match="who else pushes"):
        fake.client().tag(fake.reference, "serving")


@pytest.mark.parametrize(("status", "advice"), [(401, "PENSTOCK_REGISTRY_PASSWORD"), (403, "PENSTOCK_REGISTRY_USER"), (500, "answers 500")])
def test_a_registry_that_refuses_is_told_with_what_to_do(status: int, advice: str):
    """A wrong password is no fault of the model."""
    fake = FakeImages()
    fake.answers["PUT", "serving"] = httpx.Response(status)
    with pytest.raises(RegistryTrouble, match=advice):
        fake.client().tag(fake.reference, "serving")


def test_a_registry_that_is_down_is_told():
    """The sentence names its address."""
    down = ImageRegistry("http://127.0.0.1:9", None)
    with pytest.raises(RegistryTrouble, match=r"127\.0\.0\.1:9 does not answer"):
        down.digest("penstock/irises", "serving")


def test_a_password_is_never_shown():
    """Not in a traceback's repr either."""
    assert "secret" not in repr(Credentials(user="u", password="secret"))


# ---- with a real engine and a real registry


@pytest.fixture(name="place")
def place_fixture(client: DockerClient, request: pytest.FixtureRequest) -> Place:
    base = build(client, "penstock-test/base", f"FROM {BASE_IMAGE}\nUSER 65534:65534\n")
    return Place(registry=f"{REGISTRY}/penstock-test-{abs(hash(request.node.name)) % 10**8}", base=base)


def layers(client: DockerClient, image) -> list[str]:
    return list(client.images.get(image.id).attrs["RootFS"]["Layers"])


@pytest.mark.engine
def test_the_same_bundle_is_built_once_and_has_the_same_layers_when_built_anew(client: DockerClient, place: Place, tmp_path: Path):
    """Asked again, the image that is there is taken; deleted and built anew its layers have the same digests."""
    bundle = make_bundle(tmp_path)
    with read_bundle(bundle) as opened:
        first = images.build(client, place, opened, bundle, {})
        again = images.build(client, place, opened, bundle, {})
        before = layers(client, first)
        client.images.remove(first.id, force=True)
        anew = images.build(client, place, opened, bundle, {"org.opencontainers.image.licenses": "MIT"})
    assert first.id == again.id
    assert layers(client, anew) == before
    assert len(before) == len(client.images.get(place.base).attrs["RootFS"]["Layers"]) + 1
    assert anew.labels[BASE_LABEL] == client.images.get(place.base).id
    assert anew.labels["org.opencontainers.image.licenses"] == "MIT"


@pytest.mark.engine
def test_a_pushed_image_is_promoted_by_its_digest(client: DockerClient, place: Place, tmp_path: Path):
    """All tags of a push have one digest, and the serving tag gets that very one."""
    bundle = make_bundle(tmp_path)
    with read_bundle(bundle) as opened:
        built = images.build(client, place, opened, bundle, {})
        pushed = images.push(client, place, built, MODEL, tags(opened.manifest, bundle))
    reference, registry = Reference.parse(pushed.reference), ImageRegistry.of(REGISTRY, {})
    assert registry.digest(reference.repository, pushed.tag) == registry.digest(reference.repository, "candidate-v1") == reference.digest
    registry.tag(reference, "serving")
    assert registry.digest(reference.repository, "serving") == reference.digest


@pytest.mark.engine
def test_what_the_engine_cannot_do_is_told_with_what_to_do(client: DockerClient, tmp_path: Path):
    """A base that is missing, and a registry that is down: each names itself."""
    bundle = make_bundle(tmp_path)
    with read_bundle(bundle) as opened:
        nowhere = Place(registry=f"{REGISTRY}/penstock-test", base="penstock-test/nowhere")
        with pytest.raises(EngineTrouble, match=r"no image penstock-test/nowhere: build the project's images"):
            images.build(client, nowhere, opened, bundle, {})
        base = build(client, "penstock-test/base", f"FROM {BASE_IMAGE}\nUSER 65534:65534\n")
        down = Place(registry="127.0.0.1:9/penstock-test", base=base)
        built = images.build(client, down, opened, bundle, {})
        with pytest.raises(EngineTrouble, match=r"cannot be pushed: .*the registry does not answer: start it"):
            images.push(client, down, built, MODEL, ["v1"])
