"""Who may have which share of a model's traffic: backends, the split's lease, and every change that is allowed.

The director keeps these values, and asks here before it changes anything; the gateway's files are rendered from them. Pure: no input or
output, no clock of its own (the caller passes monotonic seconds), nothing that sleeps. It does not know Envoy beyond a cluster's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from validation.policy import MODEL_NAME, parse

WHOLE = 1000  # per mille; a split is the candidate's part of it and stable has the rest, so the two cannot fail to sum
PROTOCOLS = ("http", "grpc")
STATE_FORMAT = 1
LONGEST_TTL_S = 600.0
SHORTEST_MIRROR_TTL_S = 2.0  # setting and ending a mirror renders routes anew
LONGEST_NAME = 250  # Airflow's limit for a run id, which is what a holder is
HEADER_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
SHARED_NAME = re.compile(rf"{MODEL_NAME.pattern}--v[1-9][0-9]*")
CLUSTER_NAME = re.compile(rf"(?P<model>{MODEL_NAME.pattern})--v(?P<version>[1-9][0-9]*)--(?P<protocol>http|grpc)")


class NotAllowed(ValueError):
    """A change that the state of a model does not allow; `status` is the HTTP status that says so. Never worth a plain retry."""

    status = 409


class Unknown(NotAllowed):
    """What the change is about is not there."""

    status = 404


class Lapsed(NotAllowed):
    """The lease is over: it ran out, or was released."""

    status = 410


class Held(NotAllowed):
    """Another holder has the lease."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"the split is held by {holder!r}; wait until it is released or lapses")
        self.holder = holder


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The server of one model version: `http` and `grpc` are addresses like 127.0.0.1:8000.

    `metrics` is where it tells its own figures; nothing routes there, so two backends that differ in it alone are equal. `name`: what the
    server calls the model, where it has others beside it and so not by the model's own name; only an archived version may.
    """

    version: int
    http: str
    grpc: str
    metrics: str | None = field(default=None, compare=False)
    name: str | None = None

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError(f"version is {self.version}; versions count from 1")
        if self.name is not None and not SHARED_NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name[:80]!r}; expected <model>--v<version>")
        for address in (self.http, self.grpc, self.metrics):
            if address is not None:
                host_and_port(address)

    @property
    def alone(self) -> bool:
        """Whether the server is this version's own, and so can have a role."""
        return self.name is None

    def address(self, protocol: str) -> str:
        return self.http if protocol == "http" else self.grpc


@dataclass(frozen=True, kw_only=True)
class ModelTraffic:
    """What must survive a restart: who serves a model. With every lease gone, `stable` has all of its traffic.

    `previous` is the stable before this one, kept for the undo and as fallback. `shadow_permille` is the share of requests that are
    mirrored to the candidate; it holds as long as it is renewed, and does not survive a restart. `slice_header` is the request header that
    says which slice a request belongs to; none means that requests are not told apart. `archived` versions have no role: they answer those
    who pin them, each from a server of its own or from one that has several (`archived_name`).
    """

    model: str
    stable: Backend | None = None
    previous: Backend | None = None
    candidate: Backend | None = None
    shadow_permille: int = 0
    slice_header: str | None = None
    archived: tuple[Backend, ...] = ()

    def __post_init__(self) -> None:
        checked_model(self.model)
        _permille(self.shadow_permille)
        _header(self.slice_header)
        versions = [each.version for each in (*self.backends, *self.archived)]
        if len(versions) != len(set(versions)):
            raise ValueError(f"{self.model}: one version cannot have two roles: {versions}")
        if shared := [each.version for each in self.backends if not each.alone]:
            raise ValueError(f"{self.model} v{shared[0]} shares a server with others and can have no role")

    @property
    def backends(self) -> tuple[Backend, ...]:
        return tuple(each for each in (self.stable, self.previous, self.candidate) if each is not None)

    @property
    def empty(self) -> bool:
        return not self.backends

    def fallback(self, backend: Backend) -> Backend | None:
        """Who answers when `backend` fails: stable for a candidate, previous for stable."""
        others = {self.candidate: self.stable, self.stable: self.previous}
        return others.get(backend)

    def with_candidate(self, backend: Backend, lease: Lease | None) -> ModelTraffic:
        """The same backend again changes no traffic. Raises `Held` when another has a share, `NotAllowed` for stable's version."""
        if self.candidate == backend:
            return replace(self, candidate=backend)
        if self.stable is not None and self.stable.version == backend.version:
            raise NotAllowed(f"{self.model} v{backend.version} is stable already; deliver another version")
        if lease is not None:
            raise Held(lease.holder)
        previous = None if self.previous and self.previous.version == backend.version else self.previous
        archived = tuple(each for each in self.archived if each.version != backend.version)
        return replace(self, candidate=backend, previous=previous, archived=archived, shadow_permille=0)

    def without_candidate(self, version: int) -> ModelTraffic:
        """Changes nothing when `version` is not the candidate, so that it can be asked for twice."""
        if self.candidate is None or self.candidate.version != version:
            return self
        return replace(self, candidate=None, shadow_permille=0)

    def with_shadow(self, permille: int) -> ModelTraffic:
        """Mirrors a share of stable's requests to the candidate. Needs both, unless the share is 0."""
        _permille(permille)
        if permille:
            self.split_versions()
        return replace(self, shadow_permille=permille)

    def with_slices(self, header: str | None) -> ModelTraffic:
        """Requests are told apart by `header` from now on. Raises `ValueError` for what is no plain header's name in lower case."""
        return replace(self, slice_header=header)

    def promoted(self, version: int) -> ModelTraffic:
        """The candidate becomes stable and stable becomes previous. Changes nothing when `version` is stable."""
        if self.stable is not None and self.stable.version == version:
            return self
        if self.candidate is None or self.candidate.version != version:
            raise Unknown(f"{self.model} v{version} is not the candidate; put it there first")
        return replace(self, stable=self.candidate, previous=self.stable, candidate=None, shadow_permille=0)

    def undone(self, version: int, lease: Lease | None) -> ModelTraffic:
        """`version` is stable again, and stable becomes previous; a candidate stays. Changes nothing when it is stable already.

        Back to the previous version both change places; back to an archived one, previous is archived in its place. Raises `NotAllowed`
        when `version` is neither or shares its server, `Held` while a split is held: its weights name the stable of now.
        """
        if self.stable is not None and self.stable.version == version:
            return self
        back = next((each for each in (self.previous, *self.archived) if each and each.version == version), None)
        if back is None:
            kept = f"v{self.previous.version} is" if self.previous else "no version is"
            raise NotAllowed(f"{self.model} cannot go back to v{version}: {kept} kept as previous; deliver v{version} again")
        if not back.alone:
            raise NotAllowed(
                f"{self.model} v{version} shares the archive's server; order it from the DAG `steer`, which starts it one of its own"
            )
        if lease is not None:
            raise Held(lease.holder)
        archived = self.archived
        if back is not self.previous:
            archived = tuple(each for each in (self.previous, *archived) if each is not None and each is not back)
        return replace(self, stable=back, previous=self.stable, archived=tuple(sorted(archived, key=lambda each: each.version)))

    def with_archived(self, backends: Iterable[Backend]) -> ModelTraffic:
        """These answer those who pin them, and no others of the archive do. Raises `NotAllowed` for a version that has a role."""
        archived = tuple(sorted(backends, key=lambda each: each.version))
        if roles := {each.version for each in self.backends} & {each.version for each in archived}:
            raise NotAllowed(f"{self.model} v{min(roles)} has a server of its own; the archive is for versions without a role")
        return replace(self, archived=archived)

    def without_previous(self) -> ModelTraffic:
        return replace(self, previous=None)

    def split_versions(self) -> tuple[int, int]:
        """Versions of stable and candidate. Raises `Unknown` without a candidate, `NotAllowed` while nothing is stable."""
        if self.candidate is None:
            raise Unknown(f"{self.model} has no candidate; register one first")
        if self.stable is None:
            raise NotAllowed(f"{self.model} has no stable version to share traffic with; make v{self.candidate.version} stable instead")
        return self.stable.version, self.candidate.version


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A split and the time until which it holds; `expires_at_s` is on the director's monotonic clock."""

    holder: str
    permille: int
    expires_at_s: float
    stable: int
    candidate: int

    def alive(self, now_s: float) -> bool:
        return now_s < self.expires_at_s

    def weights(self, model: str) -> dict[str, int]:
        """Runtime keys of the gateway with their weights, for both protocols; they sum to 1000 for each."""
        shares = {self.stable: WHOLE - self.permille, self.candidate: self.permille}
        return {runtime_key(model, version, each): share for version, share in shares.items() for each in PROTOCOLS}


def taken(traffic: ModelTraffic, lease: Lease | None, *, holder: str, permille: int, ttl_s: float, now_s: float) -> Lease:
    """The lease after `holder` sets a split; the holder's own lease is replaced. `lease` is the one alive now, if any."""
    _held_by(lease, holder)
    stable, candidate = traffic.split_versions()
    _permille(permille)
    return Lease(holder=holder, permille=permille, expires_at_s=now_s + _ttl(ttl_s), stable=stable, candidate=candidate)


def renewed(lease: Lease | None, *, holder: str, ttl_s: float, now_s: float) -> Lease:
    """The lease with its time begun anew. Raises `Lapsed` when there is none, `Held` when it is another's."""
    _held_by(lease, holder)
    if lease is None:
        raise Lapsed("the lease is over, all traffic is on stable; set the split again if it should move")
    return replace(lease, expires_at_s=now_s + _ttl(ttl_s))


def mirror_ttl(permille: int, ttl_s: float | None) -> float:
    """Seconds for which a mirror holds unrenewed; 0 for none. Raises `ValueError` for a share without a time that is allowed."""
    _permille(permille)
    if not permille:
        return 0.0
    if ttl_s is None or not SHORTEST_MIRROR_TTL_S <= ttl_s <= LONGEST_TTL_S:
        raise ValueError(f"ttl_s is {ttl_s}; a mirror needs one from {SHORTEST_MIRROR_TTL_S:g} to {LONGEST_TTL_S:g}")
    return ttl_s


def may_release(lease: Lease | None, holder: str) -> None:
    """Raises `Held` when the lease is another's; no lease at all is released already."""
    _held_by(lease, holder)


def checked_model(model: str) -> str:
    """Model names become parts of cluster names and paths. Raises `ValueError` with the rule."""
    if not MODEL_NAME.fullmatch(model) or len(model) > 60:
        raise ValueError(f"model {model!r}: lower-case letters, digits and single hyphens, at most 60")
    return model


def host_and_port(address: str) -> tuple[str, int]:
    """Splits 127.0.0.1:8000. Raises `ValueError` unless it is an IPv4 address with a port: the gateway looks no names up."""
    host, _, port = address.rpartition(":")
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ValueError(f"address {address!r}: expected an IPv4 address and a port, like 127.0.0.1:8000") from error
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise ValueError(f"address {address!r}: the port must lie between 1 and 65535")
    return host, int(port)


def cluster_name(model: str, version: int, protocol: str) -> str:
    """Clusters are named after versions, never after roles: history stays with the version when roles swap."""
    return f"{model}--v{version}--{protocol}"


def pinned_name(model: str, version: int, protocol: str) -> str:
    """The cluster of those who ask for this very version. `parse_cluster` does not know it: no such request is evidence of a rollout."""
    return f"{cluster_name(model, version, protocol)}--pinned"


def archived_name(model: str, version: int) -> str:
    """What the archive's server calls this version: a model of its own, so that none is touched when another comes or goes."""
    return f"{model}--v{version}"


def parse_cluster(name: str) -> tuple[str, int, str] | None:
    """Model, version and protocol of a cluster of ours; `None` for any other name."""
    found = CLUSTER_NAME.fullmatch(name)
    return (found["model"], int(found["version"]), found["protocol"]) if found else None


def runtime_key(model: str, version: int, protocol: str) -> str:
    return f"{runtime_prefix(model)}.{cluster_name(model, version, protocol)}"


def runtime_prefix(model: str) -> str:
    return f"split.{model}"


def dump(models: Mapping[str, ModelTraffic]) -> dict[str, Any]:
    """The durable state as JSON values; what is empty is left out."""
    rows = {name: asdict(each, dict_factory=_filled) for name, each in sorted(models.items())}
    return {"format": STATE_FORMAT, "models": rows}


def load(state: Mapping[str, Any]) -> dict[str, ModelTraffic]:
    """Reads what `dump` wrote, without mirrors: who asked for them has lost them, and asks again. Raises `ValueError` naming the key."""
    if set(state) != {"format", "models"} or state["format"] != STATE_FORMAT:
        found = f"keys {sorted(state)} and format {state.get('format')!r}"
        raise ValueError(f"the director's state has {found}; expected format {STATE_FORMAT} and models")
    models = {name: parse(ModelTraffic, row, f"models.{name}") for name, row in state["models"].items()}
    if wrong := [name for name, each in models.items() if each.model != name]:
        raise ValueError(f"the director's state files {models[wrong[0]].model!r} under {wrong[0]!r}")
    return {name: replace(each, shadow_permille=0) for name, each in models.items()}


def _filled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if value not in (None, ())}


def _held_by(lease: Lease | None, holder: str) -> None:
    if not 0 < len(holder) <= LONGEST_NAME:
        raise ValueError(f"holder must have 1 to {LONGEST_NAME} characters")
    if lease is not None and lease.holder != holder:
        raise Held(lease.holder)


def _header(name: str | None) -> None:
    if name is not None and not HEADER_NAME.fullmatch(name):
        raise ValueError(f"slice_header is {name!r}; expected a header's name: lower-case letters, digits and hyphens, at most 64")


def _permille(permille: int) -> None:
    if not 0 <= permille <= WHOLE:
        raise ValueError(f"permille is {permille}; allowed: from 0 to {WHOLE}")


def _ttl(ttl_s: float) -> float:
    if not 0 < ttl_s <= LONGEST_TTL_S:
        raise ValueError(f"ttl_s is {ttl_s}; allowed: above 0 to {LONGEST_TTL_S:g}")
    return ttl_s
