"""delivery.serving_tag: the container registry's tags follow the stable version, by digest."""

import pytest

from delivery import serving_tag
from delivery.registry import ModelVersion

DIGEST = f"sha256:{'b' * 64}"


class FakeRegistry:
    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def tag(self, image: object, tag: str) -> None:
        self.tags[tag] = str(image)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry()
    monkeypatch.setattr(serving_tag.ImageRegistry, "of", lambda host, environ: fake)
    return fake


def version(**tags: str) -> ModelVersion:
    return ModelVersion(model="irises", number=3, run_id="r", tags={f"penstock.{name}": value for name, value in tags.items()})


def test_serving_and_the_semantic_version_name_the_stable_image(registry: FakeRegistry) -> None:
    """Both tags get the digest that the gates have checked."""
    image = f"registry/penstock/irises@{DIGEST}"
    serving_tag.follow_image(version(image=image, semantic_version="v1.2.0"))
    assert registry.tags == {"serving": image, "v1.2.0": image}


def test_a_version_without_an_image_moves_no_tag(registry: FakeRegistry) -> None:
    """A place without an engine has no images, and nothing to follow."""
    assert "has no image" in serving_tag.follow_image(version(semantic_version="v1.2.0"))
    assert registry.tags == {}


def test_words_in_the_place_of_a_digest_are_refused(registry: FakeRegistry) -> None:
    """Somebody wrote another word over the version's tag: no image is promoted by a name that can be moved."""
    with pytest.raises(ValueError, match="expected host/repository@sha256"):
        serving_tag.follow_image(version(image="registry/penstock/irises:latest"))
    assert registry.tags == {}
