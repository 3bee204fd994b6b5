"""The task `package`: a verified bundle becomes what a Triton can serve.

Runs after the gates on the bundle's outputs. Where servers are local processes that is a folder of the local store, put in place by one
rename; where a container engine is, it is also an image, pushed to the container registry as a candidate. A serving configuration that
`tune_serving` chose makes it another bundle first, which later tasks get in the place of the exported one. It tags the registry's version
with its semantic version, its bundle's address and its image's digest. It promotes nothing: the serving tag is `promote`'s.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from delivery.findings import failed, passed
from delivery.registry import BUNDLE_SHA256, BUNDLE_URI, IMAGE, LICENCE, SEMANTIC_VERSION, Registry
from validation.bundle import BadBundle, Manifest, OpenBundle, read_bundle, write_bundle
from validation.contract import BadSpec, Bundle, Decision, Spec, sha256, upload
from validation.serving import NotTunable, Serving, configured

NO_IMAGE = "none: no engine"
Imaging = Callable[[OpenBundle, Bundle, Mapping[str, str]], str]  # bundle and more labels -> the pushed image, by digest


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    store = Path(os.environ["PENSTOCK_STATE"]) / "store" if os.environ.get("PENSTOCK_STATE") else None
    return package(spec, Registry.from_env(), store, _imaging if os.environ.get("DOCKER_HOST") else None)


def package(spec: Spec, registry: Registry, store: Path | None, imaging: Imaging | None = None) -> Decision:
    """Unpacks the bundle's model below `store`, and has its image made; done twice it leaves the same. One of the two is needed.

    A bundle that is not what it says is `failed`. Raises what is worth another try: `EngineTrouble`.
    """
    spec.need_bundle()
    if store is None and imaging is None:
        raise BadSpec("neither PENSTOCK_STATE (a local store) nor DOCKER_HOST (an engine) is set: there is no place for a package")
    try:
        spec = replace(spec, bundle=_as_tuned(spec, spec.need_bundle()))
        with read_bundle(spec.need_bundle()) as opened:
            manifest, outputs = opened.manifest, _packed(spec, registry, opened, store, imaging)
    except BadBundle as error:
        return Decision(findings=(failed("bundle", str(error), advice="deliver the version again: its bundle is then made anew"),))
    bundle = spec.need_bundle()
    _tag(spec, registry, bundle, manifest, outputs["image"])
    why = f"{manifest.semantic_version}: {len(manifest.files)} files agree with the manifest; {_in_place(outputs)}"
    return Decision(findings=(passed("bundle", why),), outputs={**outputs, "bundle_uri": bundle.uri, "bundle_sha256": bundle.sha256})


def _as_tuned(spec: Spec, bundle: Bundle) -> Bundle:
    """The same bundle, or where `tune_serving` chose a configuration another beside it, which holds that and is otherwise equal."""
    if "serving" not in spec.inputs:
        return bundle
    with read_bundle(bundle) as opened, tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        config, tar = opened.model_directory / "config.pbtxt", Path(folder) / "bundle.tar"
        try:
            config.write_text(configured(config.read_text(), Serving(**spec.inputs["serving"])))
        except (NotTunable, TypeError) as error:
            raise BadBundle(f"the configuration that tune_serving chose does not fit: {error}") from error
        tuned = Bundle(uri=f"{bundle.uri.removesuffix('.tar')}-tuned.tar", sha256=write_bundle(opened.root, tar))
        upload(tar, tuned.uri)
    return tuned


def _packed(spec: Spec, registry: Registry, opened: OpenBundle, store: Path | None, imaging: Imaging | None) -> dict[str, str]:
    """The image first: putting the folder in place takes the model out of the opened bundle."""
    _insist_on(spec, opened)
    version = registry.version(spec.model, spec.version)
    licence = {"org.opencontainers.image.licenses": version.tags[LICENCE]} if LICENCE in version.tags else {}
    image = imaging(opened, spec.need_bundle(), licence) if imaging else NO_IMAGE
    return {"image": image, **({"repository": str(_unpacked(spec, opened, store))} if store else {})}


def _imaging(opened: OpenBundle, bundle: Bundle, more: Mapping[str, str]) -> str:
    from delivery import image  # a place without an engine needs no SDK
    from delivery.engine import engine

    client, place = engine(), image.Place.from_env()
    built = image.build(client, place, opened, bundle, more)
    return image.push(client, place, built, opened.manifest.model, image.tags(opened.manifest, bundle)).reference


def _in_place(outputs: Mapping[str, str]) -> str:
    image = "no image: there is no engine" if outputs["image"] == NO_IMAGE else f"image {outputs['image']} is pushed"
    return f"the repository is in place, {image}" if "repository" in outputs else image


def place(source: Path, target: Path) -> None:
    """Copies a folder beside `target` and renames it there; an older one that differs is moved away first and then removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and _digests(target) == _digests(source):
        return
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (draft / "new").mkdir(mode=0o755)
        shutil.copytree(source, draft / "new", dirs_exist_ok=True)
        if target.exists():
            target.rename(draft / "old")
        (draft / "new").rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _insist_on(spec: Spec, opened: OpenBundle) -> None:
    found = (opened.manifest.model, opened.manifest.version)
    if found != (spec.model, spec.version):
        raise BadBundle(f"the bundle at {spec.need_bundle().uri} holds {found[0]} v{found[1]}, not {spec.model} v{spec.version}")


def _unpacked(spec: Spec, opened: OpenBundle, store: Path) -> Path:
    repository = store / spec.model / f"v{spec.version}"
    content = opened.root / "repository"
    content.mkdir()
    opened.model_directory.rename(content / spec.model)
    place(content, repository)
    return repository


def _tag(spec: Spec, registry: Registry, bundle: Bundle, manifest: Manifest, image: str) -> None:
    tags = {SEMANTIC_VERSION: manifest.semantic_version, BUNDLE_URI: bundle.uri, BUNDLE_SHA256: bundle.sha256}
    registry.tag(registry.version(spec.model, spec.version), tags if image == NO_IMAGE else {**tags, IMAGE: image})


def _digests(folder: Path) -> Mapping[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}
