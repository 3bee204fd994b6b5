"""Starts and stops one Triton container per model version, through the Docker engine; what `delivery.triton` is without Docker.

A server's container is the durable wish that it runs: the engine brings it back after a crash and after its own restart. It is joined to
the network of the servers under its own name, at a fixed address, because the gateway looks no names up and an address must outlive a
restart. It is read-only, unprivileged and bounded. It decides nothing about traffic and does not look into answers.

Environment: DOCKER_HOST, PENSTOCK_PROJECT (told apart by it: several stacks on one engine), PENSTOCK_SERVING_NETWORK,
PENSTOCK_SERVER_ADDRESSES (a part of that network's subnet, like 10.213.0.128/25, that the engine gives to nobody else),
PENSTOCK_SERVER_MEMORY_MIB, PENSTOCK_SERVER_GPUS (0, or how many each server is given).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound
from docker.types import DeviceRequest, LogConfig

from delivery.engine import EngineTrouble, engine, image_of, short, told
from delivery.image import MODELS, PORTS
from delivery.image import Place as ImagePlace
from delivery.image_registry import Credentials, Reference
from delivery.triton import NAME, POLL_S, NotReady, Server, ServerTrouble, answers_ready, ended, reason_in
from validation.contract import BadSpec, Spec

if TYPE_CHECKING:
    from delivery.director_client import Director
    from delivery.registry import Registry

SERVER_LABEL, PROJECT_LABEL, ADDRESS_LABEL = "penstock.server", "penstock.project", "penstock.address"
STOP_WAIT_S = 15
SHARED_MEMORY = "256m"  # Triton hands rows to its backends through /dev/shm
LOG_LINES = 200
PIECE_BYTES = 1 << 20
LIMIT_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the containers of servers live; see the module's environment."""

    project: str
    network: str
    addresses: ipaddress.IPv4Network | None
    memory_mib: int
    gpus: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Place:
        block = environ.get("PENSTOCK_SERVER_ADDRESSES")
        return cls(
            project=environ.get("PENSTOCK_PROJECT", "penstock"),
            network=environ.get("PENSTOCK_SERVING_NETWORK", "bridge"),
            addresses=ipaddress.IPv4Network(block) if block else None,
            memory_mib=int(environ.get("PENSTOCK_SERVER_MEMORY_MIB", "2048")),
            gpus=int(environ.get("PENSTOCK_SERVER_GPUS", "0")),
        )

    def container(self, name: str) -> str:
        return f"{self.project}-{name}"


class ContainerServers:
    """`delivery.servers.Servers` on an engine; a source is an image by digest."""

    def __init__(self, client: DockerClient, place: Place) -> None:
        self._client = client
        self._place = place

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ContainerServers:
        return cls(engine(environ), Place.from_env(environ))

    def source(self, spec: Spec) -> str:
        """Only an image of this model, by digest, from the registry that `package` pushes to. Raises `BadSpec`."""
        image, repository = str(spec.inputs.get("image")), ImagePlace.from_env().repository(spec.model)
        try:
            Reference.parse(image)
        except ValueError as error:
            raise BadSpec(f"inputs.{error}: run `package` again") from error
        if not image.startswith(f"{repository}@"):
            raise BadSpec(f"inputs.image is {image}; only images of {repository} are served, and `package` pushes them")
        return image

    def start(self, name: str, source: str, address: str | None = None) -> Server:
        """Lets the engine run `source` under this name; returns at once, see `wait_ready`. The same again changes nothing.

        `address`: the one that it must have, else a free one.

        Raises `ValueError` when a server of this name runs another image, `EngineTrouble`.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"server name {name!r}: expected <model>--v<version>")
        with told(f"the server {name} cannot be started"):
            container = self._find(name)
            if container is not None and container.attrs["Config"]["Image"] != source:
                raise ValueError(f"{name} runs {container.attrs['Config']['Image']} already; stop it before it can run {source}")
            if container is None:
                return self._server(name, self._created(name, source, address))
            if container.attrs["State"]["Status"] not in ("running", "restarting"):
                container.start()
            return self._server(name, self._find(name))

    def stop(self, name: str) -> None:
        """Stops and removes the server; stopping what is not there changes nothing. Take its traffic away first."""
        with told(f"the server {name} cannot be stopped"):
            container = self._find(name)
            if container is not None:
                with contextlib.suppress(APIError):
                    container.stop(timeout=STOP_WAIT_S)
                with contextlib.suppress(NotFound):
                    container.remove(v=True, force=True)

    def running(self) -> dict[str, Server]:
        """The servers that are meant to run, by name, whether or not they are ready."""
        with told("the servers cannot be listed"):
            return {each.labels[SERVER_LABEL]: self._server(each.labels[SERVER_LABEL], each) for each in self._all()}

    def wait_ready(self, server: Server, model: str, timeout_s: float) -> float:
        """Waits until the server says that `model` is ready; returns the seconds it took.

        Raises `NotReady` as soon as the container ends over the model, `ServerTrouble` over anything else or when time is over.
        """
        start = time.monotonic()
        while (waited := time.monotonic() - start) < timeout_s:
            if answers_ready(server, model):
                return waited
            with told(f"{server.name} cannot be looked at"):
                container = self._find(server.name)
            if container is None:
                raise ServerTrouble(f"the container of {server.name} was removed while {model} was loaded")
            if why := died(container):
                raise why_of(server.name, model, why, log_of(container))
            time.sleep(POLL_S)
        raise ServerTrouble(f"{server.name} was not ready with {model} after {timeout_s:g} s: {reason_in(log_of(self._find(server.name)))}")

    def files(self, name: str) -> dict[str, str]:
        """The sha256 of each file that the server was given, by its name below the repository: read out of the container itself."""
        with told(f"the files of {name} cannot be read"):
            container = self._find(name)
            if container is None:
                raise ServerTrouble(f"there is no container of {name}")
            return files_in(container)

    def archive(self, model: str, versions: int, registry: Registry, director: Director) -> str:
        """See `delivery.archive.keep_servers`."""
        from delivery.archive import keep_servers  # only one task needs what it imports

        return keep_servers(model, versions, registry, director, self)

    def _created(self, name: str, source: str, wanted: str | None) -> Any:
        self._insist_on_image(source)
        taken = {each.labels.get(ADDRESS_LABEL) for each in self._all()}
        refused = "no address is left"
        for address in [wanted] if wanted else self._addresses(taken):
            container = self._client.containers.create(source, **self._wish(name, address))
            try:
                container.start()
            except DockerException as error:
                container.remove(v=True, force=True)  # the SDK leaves the created container behind
                if "address already in use" not in short(error).lower():
                    raise
                refused = short(error)
                continue
            return self._find(name)
        raise EngineTrouble(
            f"no address of {self._place.addresses} is free for {name}: {refused}; stop a server, or widen PENSTOCK_SERVER_ADDRESSES"
        )

    def _addresses(self, taken: set[str | None]) -> Iterator[str | None]:
        """Free ones of the fixed block, or once the engine's own choice where there is no block."""
        if self._place.addresses is None:
            yield None
            return
        yield from (str(each) for each in self._place.addresses.hosts() if str(each) not in taken)

    def _wish(self, name: str, address: str | None) -> dict[str, Any]:
        place = self._place
        endpoint = self._client.api.create_endpoint_config(ipv4_address=address)
        labels = {SERVER_LABEL: name, PROJECT_LABEL: place.project, **({ADDRESS_LABEL: address} if address else {})}
        return {
            **hardened(place.memory_mib, place.gpus),
            "name": place.container(name),
            "labels": labels,
            "network": place.network,
            "networking_config": {place.network: endpoint},
            "restart_policy": {"Name": "unless-stopped"},
        }

    def _insist_on_image(self, source: str) -> None:
        """On this engine, pulled by its digest where it is not there yet, and of this engine's architecture."""
        try:
            self._client.images.get(source)
        except NotFound:
            credentials = Credentials.from_env()
            with told(f"{source} cannot be pulled"):
                self._client.images.pull(source, auth_config=credentials.for_engine() if credentials else None)
        image_of(self._client, source)

    def _find(self, name: str) -> Any | None:
        try:
            return self._client.containers.get(self._place.container(name))
        except NotFound:
            return None

    def _all(self) -> list[Any]:
        label = [SERVER_LABEL, f"{PROJECT_LABEL}={self._place.project}"]
        return cast("list[Any]", self._client.containers.list(all=True, filters={"label": label}, ignore_removed=True))

    def _server(self, name: str, container: Any) -> Server:
        address = container.labels.get(ADDRESS_LABEL) or address_in(container, self._place.network)
        return Server(name=name, **{kind: f"{address}:{port}" for kind, port in PORTS.items()})


def hardened(memory_mib: int, gpus: int = 0) -> dict[str, Any]:
    """How every container with a foreign model in it runs: unprivileged, read-only, bounded."""
    wish: dict[str, Any] = {
        "user": "65534:65534",
        "read_only": True,
        "tmpfs": {"/tmp": "size=256m"},  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "mem_limit": f"{memory_mib}m",
        "memswap_limit": f"{memory_mib}m",
        "pids_limit": 1024,
        "shm_size": SHARED_MEMORY,
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "5m", "max-file": "2"}),
    }
    if gpus:
        wish["device_requests"] = [DeviceRequest(count=gpus, capabilities=[["gpu"]])]
    return wish


def address_in(container: Any, network: str) -> str:
    """The container's address there. Raises `EngineTrouble` when it has none: it has ended, or is not joined."""
    address = (container.attrs["NetworkSettings"]["Networks"].get(network) or {}).get("IPAddress")
    if not address:
        state = container.attrs["State"]["Status"]
        raise EngineTrouble(f"{container.name} ({state}) has no address on network {network}: is there such a network?")
    return str(address)


def died(container: Any) -> str | None:
    """How the container ended since it was started, or None; one that the engine has begun again has ended too."""
    state = container.attrs["State"]
    if state.get("OOMKilled"):
        limit_mib = container.attrs["HostConfig"]["Memory"] >> 20
        return f"was killed because it needs more memory than its {limit_mib} MiB"
    if state["Status"] in ("exited", "dead", "restarting") or container.attrs.get("RestartCount", 0) > 0:
        return f"ended with exit code {state.get('ExitCode')}"
    return None


def why_of(name: str, model: str, how: str, log: str) -> NotReady | ServerTrouble:
    """Whose fault it is: memory is the model's, for it was given a limit and told so; else what the log says."""
    if "memory" in how:
        return NotReady(f"{name} {how}")
    return ended(name, model, log)


def log_of(container: Any | None) -> str:
    if container is None:
        return ""
    with contextlib.suppress(DockerException):
        return bytes(container.logs(tail=LOG_LINES)).decode(errors="replace")
    return ""


def files_in(container: Any, folder: str = MODELS) -> dict[str, str]:
    """The sha256 of each plain file below `folder`, by its name below it; a link or device counts as a file of no known digest."""
    chunks, _ = container.get_archive(folder)
    found: dict[str, str] = {}
    with tarfile.open(fileobj=cast("IO[bytes]", _Stream(chunks)), mode="r|") as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isdir():
                continue
            file = tar.extractfile(member) if member.isreg() else None
            found[name] = _sha256(file) if file else "not a plain file"
    return found


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


class _Stream:
    """A reader of an iterator's pieces, of bounded length."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""
        self._left = LIMIT_BYTES

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
            self._left -= len(piece)
            if self._left < 0:
                raise EngineTrouble(f"the container's files have more than {LIMIT_BYTES} bytes")
        head, self._rest = self._rest[:size], self._rest[size:]
        return head
