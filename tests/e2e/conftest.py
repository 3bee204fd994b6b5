"""The whole system once, for all tests of this folder: the real stack with a client that never stops, and v1 stable on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.world import BUSY, World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A stack on ports and data of its own; taken down whatever happens. Its logs stay for a look."""
    world = World(os.environ, "e2e", BUSY)
    try:
        world.open_with_traffic()
        yield world
    finally:
        world.close()


@pytest.fixture(autouse=True)
def _no_client_error(world: World) -> Iterator[None]:
    """Whatever a test does to the system: the client meets no error."""
    before = world.client_errors()
    yield
    after = world.client_errors()
    assert after == before, f"the client met {after - before} errors: {world.error_samples()}"
