"""The warm archive: older promoted versions that stay loaded, for whoever asks for one of them by name, and for an undo that leads further.

`promote` has it follow what the policy's section `[archive]` says, once the candidate is stable: the latest versions that were promoted and
have no role any more. The gateway leads those who pin such a version there; no share of other traffic reaches it, until an undo to it.

Local servers are one Triton for all (`follow`), where a Triton of its own costs each version most of its memory. Each is loaded as a model
of its own (`digits--v3`), so that no version is touched when another comes, goes or is loaded anew, and two versions may differ in their
inputs. Before an undo such a version gets a server of its own (`stand_alone`): whoever is stable shares a process with nobody. Loads and
unloads go over gRPC: over HTTP a load takes one of Triton's few HTTP threads for as long as it lasts.

Containers stay as they are (`keep_servers`): each version has its own image, whose digest was checked, and its own limits.

Every step may be done again.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from delivery import triton
from delivery.director_client import Director, ModelView
from delivery.registry import IMAGE, OUTCOME, ModelVersion, Registry
from delivery.traffic import Backend, archived_name
from delivery.triton import ARCHIVE, Server, ServerTrouble, server_name
from validation.contract import sha256

if TYPE_CHECKING:
    from delivery.servers import Servers

PROMOTED = "promoted"
NAME_LINE = re.compile(r'^name: ".*"\n', re.MULTILINE)
START_S = 60
LOAD_S = 120.0


class Archive:
    """The archive's server, and the folder of what it has loaded, which it loads again whenever it starts.

    `store` is where `package` puts each version's model repository.
    """

    def __init__(self, repository: Path, store: Path, start: Callable[[], Server]) -> None:
        self.repository = repository
        self._store = store
        self._start = start

    def packaged(self, model: str, version: int) -> Path:
        """The model directory of a version, as its own server has it."""
        return self._store / model / f"v{version}" / model

    def server(self) -> Server:
        """The server, started if it is not there. Raises `ServerTrouble`."""
        self.repository.mkdir(parents=True, exist_ok=True)
        return self._start()

    def start_alone(self, model: str, version: int) -> Server:
        """A server with this version only, ready. Raises `ServerTrouble`."""
        server = triton.start_server(server_name(model, version), self.packaged(model, version).parent)
        triton.wait_ready(server, model, START_S)
        return server

    def kept(self, model: str) -> set[int]:
        """The versions of a model that lie in its folder."""
        prefix = archived_name(model, 0)[:-1]
        words = [each.name.removeprefix(prefix) for each in self.repository.glob(f"{prefix}*")]
        return {int(word) for word in words if word.isdecimal()}

    def load(self, model: str, version: int, directory: Path) -> None:
        """Loads the model of this directory as `version`, in place of what was there under that number; the same again is no reload.

        Raises `ServerTrouble` with Triton's reason.
        """
        self.repository.mkdir(parents=True, exist_ok=True)
        target = self.repository / archived_name(model, version)
        if not _same(directory, target):
            with tempfile.TemporaryDirectory(dir=self.repository.parent, prefix="archive-") as folder:
                draft = Path(folder) / target.name
                shutil.copytree(directory, draft)
                config = draft / "config.pbtxt"
                config.write_text(NAME_LINE.sub("", config.read_text()))  # the folder's name is the model's
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
        self._ask("load_model", target.name)

    def unload(self, model: str, version: int) -> None:
        """Unloads and forgets it; what is not there is unloaded already."""
        name = archived_name(model, version)
        self._ask("unload_model", name)
        shutil.rmtree(self.repository / name, ignore_errors=True)

    def _ask(self, call: str, name: str) -> None:
        with tritonclient.grpc.InferenceServerClient(self.server().grpc) as client:
            try:
                getattr(client, call)(name, client_timeout=LOAD_S)
            except InferenceServerException as error:
                raise ServerTrouble(f"the archive does not {call.replace('_', ' ')} {name}: {error.message()}") from error


def local_archive(state: Path) -> Archive:
    """The archive of a local stack: one more program of its supervisord."""
    repository = state / "archive"
    return Archive(repository, state / "store", lambda: _started(repository))


def follow(model: str, versions: int, registry: Registry, director: Director, archive: Archive) -> str:
    """Keeps the latest so many promoted versions without a role loaded, and no others of the model; says in a sentence what there is.

    The gateway learns of a version after it is loaded, and forgets it before it is unloaded. Raises `ServerTrouble`, and what registry and
    director raise.
    """
    view = director.model(model)
    promoted = [each.number for each in _promoted(view, registry)]
    wanted = [number for number in promoted if archive.packaged(model, number).is_dir()][-versions:] if versions else []
    gone = archive.kept(model) - set(wanted)
    if not wanted and not gone and not view.archived:
        return f"no version of {model} is archived"
    for number in wanted:
        archive.load(model, number, archive.packaged(model, number))
    director.put_archived(model, _shared(model, wanted, archive) if wanted else ())
    for number in sorted(gone):
        archive.unload(model, number)
    return _told(wanted)


def keep_servers(model: str, versions: int, registry: Registry, director: Director, servers: Servers) -> str:
    """The same where each version has a server of its own, which goes on; says in a sentence what there is. `promote` stops the others."""
    view = director.model(model)
    wanted = [each for each in _promoted(view, registry) if IMAGE in each.tags][-versions:] if versions else []
    if not wanted and not view.archived:
        return f"no version of {model} is archived"
    kept = [servers.start(server_name(model, each.number), each.tags[IMAGE]) for each in wanted]
    for server in kept:
        servers.wait_ready(server, model, START_S)
    director.put_archived(model, [_own(each.number, server) for each, server in zip(wanted, kept, strict=True)])
    return _told([each.number for each in wanted])


def stand_alone(model: str, version: int, director: Director, archive: Archive) -> None:
    """Gives an archived version that shares its server one of its own, so that it can be stable.

    Raises `ServerTrouble` and what the director raises.
    """
    server = archive.start_alone(model, version)
    director.put_archived(model, [_own(version, server) if each.version == version else each for each in director.model(model).archived])


def _promoted(view: ModelView, registry: Registry) -> list[ModelVersion]:
    """The versions that were promoted, were not taken back since, and have no role; the oldest first."""
    return [each for each in registry.versions(view.model) if each.tags.get(OUTCOME) == PROMOTED and each.number not in view.roles]


def _shared(model: str, numbers: Iterable[int], archive: Archive) -> list[Backend]:
    server = archive.server()
    return [Backend(version=number, http=server.http, grpc=server.grpc, name=archived_name(model, number)) for number in numbers]


def _own(version: int, server: Server) -> Backend:
    return Backend(version=version, http=server.http, grpc=server.grpc, metrics=server.metrics)


def _told(numbers: Iterable[int]) -> str:
    return f"archived: {', '.join(f'v{number}' for number in numbers) or 'none'}"


def _started(repository: Path) -> Server:
    server = triton.start_server(ARCHIVE, repository)
    triton.wait_ready(server, "", START_S)
    return server


def _same(directory: Path, target: Path) -> bool:
    """Whether the archive has these very files already, but for the name in the configuration."""
    return target.is_dir() and _digests(directory) == _digests(target)


def _digests(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    files["config.pbtxt"] = NAME_LINE.sub("", files.get("config.pbtxt", b"").decode()).encode()
    return {name: sha256(content) for name, content in files.items()}
