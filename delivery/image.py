"""The serving image of a bundle: one thin layer of model files on the prebuilt Triton image, pushed to the container registry.

`package` calls it. The same bundle gives the same layer: the tar that the layer is made of has no times, owners or order of its own. An
image is built once for a bundle and a base; asked again, the one that is there is taken. What an image holds, `container_check` proves.

Environment: PENSTOCK_REGISTRY (host and path before the model's name, as the engine reaches it), PENSTOCK_SERVING_IMAGE (the base),
PENSTOCK_REGISTRY_USER and PENSTOCK_REGISTRY_PASSWORD where the registry asks for them.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import BuildError

from delivery.engine import EngineTrouble, image_of, told, trouble
from delivery.image_registry import Credentials
from validation.bundle import MANIFEST, Manifest, OpenBundle
from validation.contract import Bundle, canonical_json

MODELS = "/models"  # Triton's repository inside the image
PORTS: Mapping[str, int] = {"http": 8000, "grpc": 8001, "metrics": 8002}  # Triton's own defaults
OURS = "io.penstock."
BUNDLE_LABEL, BASE_LABEL, FILES_LABEL = f"{OURS}bundle.sha256", f"{OURS}base", f"{OURS}files"
TAG_LIMIT = 128  # of a tag, by the distribution specification
SHORT = 12


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where images come from and go to. `registry` is what stands before the model's name, like 127.0.0.1:5000/penstock."""

    registry: str
    base: str
    credentials: Credentials | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Place:
        if missing := [name for name in ("PENSTOCK_REGISTRY", "PENSTOCK_SERVING_IMAGE") if not environ.get(name)]:
            raise EngineTrouble(f"this place has an engine and {missing[0]} is not set: say where images go, or set no DOCKER_HOST")
        registry, base = environ["PENSTOCK_REGISTRY"], environ["PENSTOCK_SERVING_IMAGE"]
        return cls(registry=registry.rstrip("/"), base=base, credentials=Credentials.from_env(environ))

    def repository(self, model: str) -> str:
        return f"{self.registry}/{model}"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """An image in the registry: `reference` is by digest, `tag` one that people read."""

    reference: str
    tag: str


def build(client: DockerClient, place: Place, opened: OpenBundle, bundle: Bundle, more: Mapping[str, str]) -> Any:
    """The image of this bundle on the base's present image; `more` are labels beside the bundle's own. Raises `EngineTrouble`."""
    base = image_of(client, place.base)
    with told("the engine's images cannot be listed"):
        wanted = [f"{BUNDLE_LABEL}={bundle.sha256}", f"{BASE_LABEL}={base.id}"]
        known = client.images.list(filters={"label": wanted})
    if known:
        return known[0]
    given = labels(opened.manifest, bundle) | {BASE_LABEL: base.id} | dict(more)
    stream = io.BytesIO(context(opened, place.base))
    tag = f"{place.repository(opened.manifest.model)}:{tags(opened.manifest, bundle)[0]}"
    try:
        with told(f"the image {tag} cannot be built"):
            image, _ = client.images.build(fileobj=stream, custom_context=True, tag=tag, labels=given, rm=True, forcerm=True)
    except BuildError as error:
        raise trouble("the image cannot be built", error.msg) from error
    return image


def push(client: DockerClient, place: Place, image: Any, model: str, tags: Iterable[str]) -> Pushed:
    """Pushes the image under each tag; all of them have one digest. Raises `EngineTrouble` with the registry's words."""
    repository, digests, names = place.repository(model), set(), list(tags)
    auth = place.credentials.for_engine() if place.credentials else None
    for tag in names:
        with told(f"{repository}:{tag} cannot be pushed"):
            image.tag(repository, tag=tag)
            lines = client.images.push(repository, tag=tag, stream=True, decode=True, auth_config=auth)
            digests.add(_pushed_digest(lines, f"{repository}:{tag}"))
    if len(digests) != 1:
        raise EngineTrouble(f"{repository}: its tags {', '.join(names)} got {len(digests)} digests; push it again")
    return Pushed(reference=f"{repository}@{digests.pop()}", tag=names[0])


def tags(manifest: Manifest, bundle: Bundle) -> tuple[str, str]:
    """A tag that tells semantic version, git commit and bundle, and one that says that it is nobody's stable yet."""
    commit = manifest.git_commit[:SHORT] if re.fullmatch(r"[0-9a-f]{7,64}", manifest.git_commit) else "none"
    return f"{manifest.semantic_version}-g{commit}-b{bundle.sha256[:SHORT]}"[:TAG_LIMIT], f"candidate-v{manifest.version}"


def labels(manifest: Manifest, bundle: Bundle) -> dict[str, str]:
    """OCI's words where there are some (image-spec, annotations), ours for the rest."""
    signature = {kind: [[each.name, each.dtype, list(each.shape)] for each in getattr(manifest, kind)] for kind in ("inputs", "outputs")}
    return {
        "org.opencontainers.image.title": manifest.model,
        "org.opencontainers.image.version": manifest.semantic_version,
        "org.opencontainers.image.revision": manifest.git_commit,
        f"{OURS}model": manifest.model,
        f"{OURS}version": str(manifest.version),
        f"{OURS}run": manifest.source_run,
        f"{OURS}signature": canonical_json(signature),
        f"{OURS}training-metrics": canonical_json(dict(manifest.training_metrics)),
        BUNDLE_LABEL: bundle.sha256,
        FILES_LABEL: canonical_json(manifest.served),
    }


def context(opened: OpenBundle, base: str) -> bytes:
    """The build's context: a recipe of one layer, and below `layer/` model and manifest; equal bundles give equal bytes."""
    ports = [word for name, port in PORTS.items() for word in (f"--{name}", str(port))]
    name = f"{opened.manifest.model}--v{opened.manifest.version}"
    words = ["--name", name, "--repository", MODELS, "--host", "0.0.0.0", *ports]  # noqa: S104
    recipe = f"FROM {base}\nCOPY layer/ /\nCMD {json.dumps(words)}\n".encode()
    stream, root = io.BytesIO(), f"layer{MODELS}"
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(_plain("Dockerfile", size=len(recipe)), io.BytesIO(recipe))
        files = {f"{root}/{path.relative_to(opened.root).as_posix()}": path for path in opened.model_directory.rglob("*") if path.is_file()}
        for folder in sorted({parent.as_posix() for name in files for parent in Path(name).parents} - {"."}):
            tar.addfile(_plain(folder, folder=True))
        for name, path in sorted(files.items()):
            with path.open("rb") as file:
                tar.addfile(_plain(name, size=path.stat().st_size), file)
        manifest = (opened.root / MANIFEST).read_bytes()
        tar.addfile(_plain(f"layer/{MANIFEST}", size=len(manifest)), io.BytesIO(manifest))
    return stream.getvalue()


def _plain(name: str, *, size: int = 0, folder: bool = False) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.mode = size, tarfile.DIRTYPE if folder else tarfile.REGTYPE, 0o755 if folder else 0o644
    return member


def _pushed_digest(lines: Iterator[Mapping[str, Any]], what: str) -> str:
    digest = ""
    for line in lines:
        if "error" in line:
            raise trouble(f"{what} cannot be pushed", line["error"])
        digest = (line.get("aux") or {}).get("Digest", digest)
    if not digest:
        raise EngineTrouble(f"{what} cannot be pushed: the registry told no digest; push it again")
    return digest
