"""One Triton server per model version, wherever servers run: local processes under supervisord, or containers of an engine.

Tasks ask `from_env` and never know which. Where PENSTOCK_SUPERVISOR names a supervisord, servers are its programs (`delivery.triton`);
where it does not, they are containers (`delivery.container_servers`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from delivery import triton
from delivery.triton import Server
from validation.contract import BadSpec, Spec, sha256

if TYPE_CHECKING:
    from delivery.director_client import Director
    from delivery.registry import Registry


class Servers(Protocol):
    """What tasks do with servers. A source is what a server is started from: a repository's folder, or an image by digest."""

    def source(self, spec: Spec) -> str: ...

    def start(self, name: str, source: str) -> Server: ...

    def stop(self, name: str) -> None: ...

    def running(self) -> dict[str, Server]: ...

    def wait_ready(self, server: Server, model: str, timeout_s: float) -> float: ...

    def files(self, name: str) -> dict[str, str]: ...

    def archive(self, model: str, versions: int, registry: Registry, director: Director) -> str: ...


class LocalServers:
    """Servers of the local supervisord, from folders of the local store."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._store = state / "store"

    def source(self, spec: Spec) -> str:
        """Only the place where `package` puts this version: a spec cannot make Triton load another folder. Raises `BadSpec`."""
        expected = self._store / spec.model / f"v{spec.version}"
        if spec.inputs.get("repository") != str(expected):
            raise BadSpec(f"inputs.repository is {spec.inputs.get('repository')!r}; only {expected} is served, and `package` fills it")
        if not expected.is_dir():
            raise BadSpec(f"there is no folder {expected}: run `package` again")
        return str(expected)

    def start(self, name: str, source: str) -> Server:
        return triton.start_server(name, Path(source))

    def stop(self, name: str) -> None:
        triton.stop_server(name)

    def running(self) -> dict[str, Server]:
        return triton.running()

    def wait_ready(self, server: Server, model: str, timeout_s: float) -> float:
        return triton.wait_ready(server, model, timeout_s)

    def files(self, name: str) -> dict[str, str]:
        """The sha256 of each file that the server was given, by its name below the repository."""
        folder = triton.repository_of(name)
        return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}

    def archive(self, model: str, versions: int, registry: Registry, director: Director) -> str:
        """See `delivery.archive.follow`."""
        from delivery.archive import follow, local_archive

        return follow(model, versions, registry, director, local_archive(self._state))


def from_env(environ: Mapping[str, str] = os.environ) -> Servers:
    """Raises `EngineTrouble` when servers are containers and no engine answers."""
    if environ.get("PENSTOCK_SUPERVISOR"):
        return LocalServers(Path(environ["PENSTOCK_STATE"]))
    from delivery.container_servers import ContainerServers  # an environment without containers needs no SDK

    return ContainerServers.from_env(environ)
