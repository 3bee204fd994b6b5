"""The Docker engine as tasks use it: one way in, and its troubles as sentences that say what to do.

`image`, `container_servers` and `container_check` call it. Where the engine is, `DOCKER_HOST` says; a stack without one does not set it,
and nothing here is asked. It knows no models and judges nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from docker import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound
from requests.exceptions import RequestException

OLDEST_API = (1, 41)  # Docker 20.10; older engines know no fixed addresses next to the limits that are used here
TIMEOUT_S = 120
WORDS = (
    ("no space left on device", "the engine's disk is full: free some (`docker system df` shows what takes it)"),
    (
        "could not select device driver",
        "a GPU is asked for and this engine has none: leave the GPU out, or install NVIDIA's container toolkit",
    ),
    ("exec format error", "the image is of another architecture than this machine: build it for this one"),
    ("manifest for", "the registry does not have it: package the version again"),
    ("pull access denied", "build the project's images first (`make images`)"),
    ("unauthorized", "the registry refuses the password: check PENSTOCK_REGISTRY_USER and PENSTOCK_REGISTRY_PASSWORD"),
    ("authentication required", "the registry refuses the password: check PENSTOCK_REGISTRY_USER and PENSTOCK_REGISTRY_PASSWORD"),
    ("denied", "the registry does not let this user push: give it the right to"),
    ("connection refused", "the registry does not answer: start it"),
    ("no such host", "the registry's name is not known to the engine: check PENSTOCK_REGISTRY"),
)
"""What an engine says, and what one does about it; the first that is found counts."""


class EngineTrouble(RuntimeError):
    """The engine, its registry or its disk: our fault and no model's, worth another try. The message says what to do."""


def engine(environ: Mapping[str, str] = os.environ) -> DockerClient:
    """A client of the engine. Raises `EngineTrouble` when none answers or it is too old."""
    address = environ.get("DOCKER_HOST")
    if not address:
        raise EngineTrouble("DOCKER_HOST is not set: this place has no engine")
    try:
        client = DockerClient(base_url=address, timeout=TIMEOUT_S, version="auto")
        known = str(client.version().get("ApiVersion", "0.0"))
    except (DockerException, RequestException) as error:
        raise EngineTrouble(f"no Docker engine answers at {address} ({short(error)}): start one") from error
    if tuple(int(part) for part in known.split(".")[:2]) < OLDEST_API:
        raise EngineTrouble(f"the engine at {address} speaks API {known}; 1.41 is needed: install Docker 20.10 or newer")
    return client


def has_engine(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this place has an engine at all, whether or not it answers."""
    return bool(environ.get("DOCKER_HOST"))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turns whatever the engine raises in the block into `EngineTrouble`: `what` is the sentence's beginning."""
    try:
        yield
    except (DockerException, RequestException) as error:
        raise trouble(what, error) from error


def trouble(what: str, error: object) -> EngineTrouble:
    words = short(error)
    advice = next((advice for sign, advice in WORDS if sign in words.lower()), "see the engine's own log")
    return EngineTrouble(f"{what}: {words}; {advice}")


def short(error: object) -> str:
    """The engine's own words, in one line of at most 400 characters."""
    words = error.explanation if isinstance(error, APIError) and error.explanation else error
    return " ".join(str(words).split())[:400]


def image_of(client: DockerClient, reference: str) -> Any:
    """The image of that reference on this engine. Raises `EngineTrouble` when it is not there, or of another architecture."""
    try:
        image = client.images.get(reference)
    except ImageNotFound as error:
        raise EngineTrouble(f"the engine has no image {reference}: build the project's images first (`make images`)") from error
    mine, theirs = client.version().get("Arch"), image.attrs.get("Architecture")
    if theirs and mine and theirs != mine:
        raise EngineTrouble(f"image {reference} is for {theirs} and this engine runs {mine}: build it for {mine}")
    return image
