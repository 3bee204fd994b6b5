"""A real supervisord with a state folder of its own, for tests that start real Tritons; environments are those of the checkout."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_ports

from stack import processes, supervisor, variables
from stack.settings import Ports, Settings, read_settings, state_folder

PORTS = 12


@pytest.fixture(scope="module")
def local_supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a state folder whose supervisord runs; the variables of `delivery.triton` point there."""
    settings = scratch_settings(tmp_path_factory.mktemp("state"))
    for folder in (settings.run, settings.logs, settings.servers):
        folder.mkdir()
    supervisor.start_daemon((), settings)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**variables.triton(settings), "PENSTOCK_STATE": str(settings.state)}.items():
            patch.setenv(name, value)
        yield settings
    supervisor.shut_down(settings)
    assert processes.end(processes.ours(settings.state), grace_s=15) == []


def scratch_settings(state: Path) -> Settings:
    """The checkout's settings with another state folder and free Triton ports; skips where the environments are not made."""
    real = state_folder(os.environ)
    if missing := [name for name in ("stack", "triton") if not (real / "envs" / name / "bin" / "python").exists()]:
        pytest.skip(f"environment {missing[0]} is not made: `make test` makes it")
    (state / "envs").symlink_to(real / "envs")
    settings = read_settings({"PENSTOCK_STATE": str(state)})
    first = free_ports(PORTS)
    ports = Ports(**{**settings.ports.fixed(), "triton_first": first, "triton_last": first + PORTS - 1})
    return dataclasses.replace(settings, ports=ports)
