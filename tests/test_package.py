"""Package: a verified bundle becomes a model repository, once, by a rename."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from made_bundles import MODEL, make_bundle
from registry_fixtures import mlflow_address_fixture, register_any, registry_fixture, spec  # noqa: F401 - found by name

from delivery.package import package, place
from delivery.registry import BUNDLE_SHA256, BUNDLE_URI, SEMANTIC_VERSION, Registry
from validation.bundle import read_bundle
from validation.contract import BadSpec, Bundle, Decision, Outcome
from validation.serving import Serving, configured


@pytest.fixture(name="version")
def version_fixture(registry: Registry) -> Iterator[int]:
    """A version of the model that the made bundles hold; its number is 1, as theirs."""
    registry._client.create_registered_model(MODEL)
    yield register_any(registry, MODEL)
    registry._client.delete_registered_model(MODEL)


def run(registry: Registry, folder: Path, bundle: Bundle, version: int = 1) -> Decision:
    return package(spec("package", MODEL, version, folder, bundle=bundle), registry, folder / "store")


def test_a_bundle_becomes_a_repository(registry: Registry, version: int, tmp_path: Path) -> None:
    """The model's folder lies in the store as a server wants it, and the registry names version and bundle."""
    bundle = make_bundle(tmp_path)
    decision = run(registry, tmp_path, bundle)
    repository = tmp_path / "store" / MODEL / "v1"
    assert decision.outputs["repository"] == str(repository)
    assert sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()) == [
        f"{MODEL}/1/model.onnx",
        f"{MODEL}/config.pbtxt",
    ]
    tags = registry.version(MODEL, version).tags
    assert (tags[SEMANTIC_VERSION], tags[BUNDLE_URI], tags[BUNDLE_SHA256]) == ("v1.0.0", bundle.uri, bundle.sha256)


def test_packaging_twice_leaves_the_same_folder(registry: Registry, version: int, tmp_path: Path) -> None:
    """A repeated task moves nothing under a server that may be reading it, and leaves no drafts."""
    bundle = make_bundle(tmp_path)
    run(registry, tmp_path, bundle)
    before = (tmp_path / "store" / MODEL / "v1").stat().st_ino
    run(registry, tmp_path, bundle)
    assert (tmp_path / "store" / MODEL / "v1").stat().st_ino == before
    assert [path.name for path in (tmp_path / "store" / MODEL).iterdir()] == ["v1"]


def test_a_bundle_that_was_changed_is_refused(registry: Registry, version: int, tmp_path: Path) -> None:
    """A tar that has not its digest is a failed finding; nothing is put in place and nothing is tagged."""
    bundle = make_bundle(tmp_path)
    decision = run(registry, tmp_path, Bundle(uri=bundle.uri, sha256="0" * 64))
    assert decision.findings[0].outcome is Outcome.FAILED
    assert "refusing to read it" in decision.findings[0].why
    assert not (tmp_path / "store").exists()
    assert BUNDLE_URI not in registry.version(MODEL, version).tags


def test_the_bundle_of_another_version_is_refused(registry: Registry, version: int, tmp_path: Path) -> None:
    """What the manifest says must be what is being delivered."""
    decision = run(registry, tmp_path, make_bundle(tmp_path, manifest={"version": 2}))
    assert f"holds {MODEL} v2, not {MODEL} v1" in decision.findings[0].why


def test_a_tuned_configuration_makes_another_bundle(registry: Registry, version: int, tmp_path: Path) -> None:
    """What `tune_serving` chose stands in config.pbtxt of a bundle that is otherwise equal; it is served, tagged, and handed on."""
    exported = make_bundle(tmp_path)
    chosen = Serving(instances=2, delay_us=200)
    given = spec("package", MODEL, version, tmp_path, bundle=exported, inputs={"serving": asdict(chosen)})
    outputs = package(given, registry, tmp_path / "store").outputs
    tuned = Bundle(uri=outputs["bundle_uri"], sha256=outputs["bundle_sha256"])
    assert tuned.uri.endswith("-tuned.tar")
    assert registry.version(MODEL, version).tags[BUNDLE_SHA256] == tuned.sha256
    with read_bundle(exported) as before, read_bundle(tuned) as after:
        config = before.model_directory / "config.pbtxt"
        assert (after.model_directory / "config.pbtxt").read_text() == configured(config.read_text(), chosen)
        changed = {name for name, digest in after.manifest.files.items() if digest != before.manifest.files[name]}
    assert changed == {f"{MODEL}/config.pbtxt"}
    assert "count: 2" in (Path(outputs["repository"]) / MODEL / "config.pbtxt").read_text()
    assert package(given, registry, tmp_path / "store").outputs == outputs


def test_an_unknown_configuration_is_refused(registry: Registry, version: int, tmp_path: Path) -> None:
    """A word that this version does not know is no configuration, and nothing is packaged."""
    given = spec("package", MODEL, version, tmp_path, bundle=make_bundle(tmp_path), inputs={"serving": {"shards": 2}})
    (finding,) = package(given, registry, tmp_path / "store").findings
    assert (finding.outcome, "tune_serving chose does not fit" in finding.why) == (Outcome.FAILED, True)
    assert not (tmp_path / "store").exists()


def test_packaging_needs_a_bundle(registry: Registry, tmp_path: Path) -> None:
    """A spec without a bundle is a bad spec."""
    with pytest.raises(BadSpec, match="bundle"):
        package(spec("package", MODEL, 1, tmp_path), registry, tmp_path)


def test_other_content_replaces_a_folder_whole(tmp_path: Path) -> None:
    """A folder is the old one or the new one and never a mixture."""
    old, new, target = tmp_path / "old", tmp_path / "new", tmp_path / "store" / "v1"
    for folder, name in ((old, "a"), (new, "b")):
        folder.mkdir()
        (folder / name).write_text(name)
    place(old, target)
    place(new, target)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in target.parent.iterdir()] == ["v1"]
