"""The container registry over its own API (OCI distribution specification): what a tag names, how large it is, and a tag moved by digest.

`package`, `container_check` and `promote` call it. A manifest is believed only when its bytes have the digest that it was asked by. It
pushes and pulls no layers: that is the engine's.

Environment: PENSTOCK_REGISTRY_URL where tasks reach the registry under another address than the engine does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx

TIMEOUT_S = 15.0
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
LIMIT_BYTES = 4 << 20  # of a manifest, by the distribution specification


class RegistryTrouble(RuntimeError):
    """The container registry does not answer or refuses: our fault, worth another try. The message says what to do."""


class DigestChanged(ValueError):
    """The registry gives other bytes than the digest promises, or a tag names another image than the one that was checked."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Credentials:
    user: str
    password: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Credentials | None:
        user, password = environ.get("PENSTOCK_REGISTRY_USER"), environ.get("PENSTOCK_REGISTRY_PASSWORD")
        return cls(user=user, password=password) if user and password else None

    def for_engine(self) -> dict[str, str]:
        return {"username": self.user, "password": self.password}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image by digest, in its parts: registry host, repository and `sha256:...`."""

    host: str
    repository: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads host/repository@sha256:hex; raises `ValueError` for anything else."""
        name, _, digest = text.partition("@")
        host, _, repository = name.partition("/")
        if not (host and repository) or not digest.startswith("sha256:") or len(digest) != 71:
            raise ValueError(f"image {text!r}: expected host/repository@sha256:<64 hex digits>")
        return cls(host=host, repository=repository, digest=digest)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}@{self.digest}"


class ImageRegistry:
    """One registry. Every method raises `RegistryTrouble` when it does not answer as it should."""

    def __init__(self, url: str, credentials: Credentials | None = None, transport: httpx.BaseTransport | None = None) -> None:
        auth = (credentials.user, credentials.password) if credentials else None
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, auth=auth, transport=transport)

    @classmethod
    def of(cls, host: str, environ: Mapping[str, str] = os.environ) -> ImageRegistry:
        """The registry that the engine calls `host`: loopback speaks HTTP, as engines assume too, everything else HTTPS."""
        plain = host.partition(":")[0] in ("127.0.0.1", "localhost")
        url = environ.get("PENSTOCK_REGISTRY_URL") or f"{'http' if plain else 'https'}://{host}"
        return cls(url, Credentials.from_env(environ))

    def size_bytes(self, image: Reference) -> int:
        """What a machine without any of it downloads: all layers as they are compressed, and the configuration."""
        row = json.loads(self._manifest(image))
        return sum(int(part["size"]) for part in (row["config"], *row["layers"]))

    def tag(self, image: Reference, tag: str) -> None:
        """Lets `tag` name this very image. Raises `DigestChanged` when the registry then says otherwise."""
        data = self._manifest(image)
        kind = json.loads(data).get("mediaType") or MANIFESTS.partition(",")[0]
        answer = self._ask("PUT", f"/v2/{image.repository}/manifests/{tag}", content=data, headers={"Content-Type": kind})
        self._insist(answer, (201,), f"tag {tag} of {image.repository} cannot be set")
        if (named := self.digest(image.repository, tag)) != image.digest:
            raise DigestChanged(
                f"{image.repository}:{tag} names {named} and not {image.digest}, which was set a moment ago: who else pushes?"
            )

    def digest(self, repository: str, tag: str) -> str | None:
        """What the tag names, or None when there is no such tag."""
        answer = self._ask("GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFESTS})
        if answer.status_code == 404:
            return None
        self._insist(answer, (200,), f"{repository}:{tag} cannot be read")
        return _digest(answer.content)

    def _manifest(self, image: Reference) -> bytes:
        answer = self._ask("GET", f"/v2/{image.repository}/manifests/{image.digest}", headers={"Accept": MANIFESTS})
        self._insist(answer, (200,), f"{image} is not to be had")
        if len(answer.content) > LIMIT_BYTES or _digest(answer.content) != image.digest:
            raise DigestChanged(f"the registry answers for {image} with bytes of digest {_digest(answer.content)}")
        return answer.content

    def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **what)
        except httpx.HTTPError as error:
            raise RegistryTrouble(f"the container registry at {self._http.base_url} does not answer ({error}): start it") from error

    @staticmethod
    def _insist(answer: httpx.Response, good: tuple[int, ...], what: str) -> None:
        if answer.status_code in (401, 403):
            advice = "check PENSTOCK_REGISTRY_USER and PENSTOCK_REGISTRY_PASSWORD"
            raise RegistryTrouble(f"{what}: the container registry answers {answer.status_code}: {advice}")
        if answer.status_code not in good:
            raise RegistryTrouble(f"{what}: the container registry answers {answer.status_code}: {answer.text[:200]}")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
