"""The task `package`: a verified bundle becomes a model repository that a Triton can serve.

Runs after the gate on the bundle's outputs. In the process runtime that is a folder of the local store, put in place by one rename; an
image is built where a container engine is (not here yet). It tags the registry's version with its semantic version and its bundle's
address.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from delivery.findings import failed, passed
from delivery.registry import BUNDLE_SHA256, BUNDLE_URI, SEMANTIC_VERSION, Registry
from validation.bundle import BadBundle, Manifest, read_bundle
from validation.contract import Bundle, Decision, Spec, sha256

NO_IMAGE = "none: no engine in the process runtime"


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    return package(spec, Registry.from_env(), Path(os.environ["PENSTOCK_STATE"]) / "store")


def package(spec: Spec, registry: Registry, store: Path) -> Decision:
    """Unpacks the bundle's model below `store`; done twice it leaves the same folder. A bundle that is not what it says is `failed`."""
    bundle = spec.need_bundle()
    try:
        manifest, repository = _unpacked(spec, bundle, store)
    except BadBundle as error:
        return Decision(findings=(failed("bundle", str(error), advice="deliver the version again: its bundle is then made anew"),))
    _tag(spec, registry, bundle, manifest)
    why = f"{manifest.semantic_version}: {len(manifest.files)} files agree with the manifest; the repository is in place"
    return Decision(findings=(passed("bundle", why),), outputs={"repository": str(repository), "image": NO_IMAGE})


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


def _unpacked(spec: Spec, bundle: Bundle, store: Path) -> tuple[Manifest, Path]:
    repository = store / spec.model / f"v{spec.version}"
    with read_bundle(bundle) as opened:
        found = (opened.manifest.model, opened.manifest.version)
        if found != (spec.model, spec.version):
            raise BadBundle(f"the bundle at {bundle.uri} holds {found[0]} v{found[1]}, not {spec.model} v{spec.version}")
        content = opened.root / "repository"
        content.mkdir()
        opened.model_directory.rename(content / spec.model)
        place(content, repository)
        return opened.manifest, repository


def _tag(spec: Spec, registry: Registry, bundle: Bundle, manifest: Manifest) -> None:
    tags = {SEMANTIC_VERSION: manifest.semantic_version, BUNDLE_URI: bundle.uri, BUNDLE_SHA256: bundle.sha256}
    registry.tag(registry.version(spec.model, spec.version), tags)


def _digests(folder: Path) -> Mapping[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}
