"""A real engine and a real container registry for tests; without an engine they skip, except where CI says that there is one.

The registry is the one of this machine, at PENSTOCK_TEST_REGISTRY (127.0.0.1:5000).
"""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping

import httpx
import pytest
from docker import DockerClient
from docker.errors import DockerException

BASE_IMAGE = os.environ.get("BASE_IMAGE", "python:3.11-slim-bookworm")
REGISTRY = os.environ.get("PENSTOCK_TEST_REGISTRY", "127.0.0.1:5000")
ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


@pytest.fixture(scope="session", name="client")
def client_fixture() -> Iterator[DockerClient]:
    try:
        client = DockerClient(base_url=ENGINE, timeout=60)
        client.ping()
        httpx.get(f"http://{REGISTRY}/v2/", timeout=5).raise_for_status()
    except (DockerException, httpx.HTTPError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Docker engine, or no container registry at {REGISTRY}: {error}")
    yield client
    client.close()


def build(client: DockerClient, tag: str, dockerfile: str, files: Mapping[str, bytes] | None = None) -> str:
    """Builds a small image from text; returns its tag."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in {"Dockerfile": dockerfile.encode(), **(files or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    stream.seek(0)
    client.images.build(fileobj=stream, custom_context=True, tag=tag, rm=True, forcerm=True)
    return tag
