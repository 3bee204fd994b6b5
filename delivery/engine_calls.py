"""Which calls of the Docker API `delivery.engine_gate` passes on, with which parameters. Pure: it reads a request's line and no body.

A call that is not in the table is refused: among them exec, attach, commit, export, rename, update, volumes, prunes, swarm, plugins,
secrets. Of a call only what the table names goes on, written anew. What a call's body may say is in `delivery.engine_rules`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from delivery.engine_rules import DIGEST, LABEL, TAG, Refused, Rules, image_of, is_of_a_registry, name_of

LOWEST = (1, 41)  # Docker Engine 20.10; below 1.24 a start could still bring a HostConfig of its own
PREFIX = re.compile(r"/v([0-9])\.([0-9]{1,3})(?=/)")
CLEAN = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.:@-]+)+")
SERVICE_LIKE = (
    "a name with a hyphen and a digit, as jobs and servers have (digits-v3-golden-set-0f): others could answer in a service's name"
)
FILTERS = {
    "containers": ("id", "name", "label", "status", "ancestor", "health", "network", "exited"),
    "images": ("reference", "label", "dangling"),
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One query parameter: its pattern, and that in words."""

    pattern: str
    allowed: str
    repeats: bool = False


FLAG = Parameter(pattern="0|1|[Tt]rue|[Ff]alse", allowed="true or false")
OFF = Parameter(pattern="0|[Ff]alse", allowed="false")
NUMBER = Parameter(pattern=r"-?[0-9]{1,19}(?:\.[0-9]{1,9})?", allowed="a number")
TAIL = Parameter(pattern="all|[0-9]{1,9}", allowed="all or a number")
SIGNAL = Parameter(pattern="SIG[A-Z]{3,6}|[A-Z]{3,6}|[0-9]{1,2}", allowed="a signal")
ENDED = Parameter(pattern="not-running|next-exit|removed", allowed="not-running, next-exit or removed")
INSIDE = Parameter(pattern=r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.-]+)+/?", allowed="an absolute path without ..")
NAME = Parameter(pattern=r"(?=[^-]*-)(?=[^0-9]*[0-9])[A-Za-z0-9][A-Za-z0-9_.-]{1,127}", allowed=SERVICE_LIKE)
JSON = Parameter(pattern=r"(?s:\{.*\})", allowed="a JSON object")
TAGGED = Parameter(pattern=f"{TAG}|{DIGEST}", allowed="a tag or a digest")
IMAGE = Parameter(pattern=r"[a-z0-9][A-Za-z0-9._/:@-]*", allowed="an image's name")
IMAGES = Parameter(pattern=IMAGE.pattern, allowed=IMAGE.allowed, repeats=True)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One row of the table. `kind` is what the service does with it; `needed` names parameters that must be there."""

    kind: str
    method: str
    path: str
    query: Mapping[str, Parameter] = field(default_factory=dict)
    needed: tuple[str, ...] = ()

    def names(self, path: str) -> dict[str, str] | None:
        found = re.fullmatch(_PLACES.sub(lambda place: _NAMES[place[1]], self.path), path)
        return found.groupdict() if found else None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call of the table with what it was asked with. `version` is empty, or like `/v1.41`."""

    call: Call
    version: str
    names: Mapping[str, str]
    query: Sequence[tuple[str, str]]

    def path(self, **names: str) -> str:
        """The path to ask the engine for, with ids in place of the names that were given."""
        return self.version + _PLACES.sub(lambda place: {**self.names, **names}[place[1]], self.call.path)

    def __getitem__(self, parameter: str) -> str:
        return dict(self.query).get(parameter, "")


_PLACES = re.compile(r"\{([a-z]+)\}")
_NAMES = {
    "container": "(?P<container>[A-Za-z0-9][A-Za-z0-9_.-]{0,127})",
    "network": "(?P<network>[A-Za-z0-9][A-Za-z0-9_.-]{0,127})",
    "image": "(?P<image>[a-z0-9][A-Za-z0-9._/:@-]{0,511})",
}
_ARCHIVE = "/containers/{container}/archive"
_LOGS = dict.fromkeys(("follow", "stdout", "stderr", "timestamps", "details"), FLAG) | {"since": NUMBER, "until": NUMBER, "tail": TAIL}
_STOP = {"t": NUMBER, "signal": SIGNAL}
_BUILD = {
    "t": IMAGES,
    "dockerfile": Parameter(pattern="Dockerfile", allowed="Dockerfile, the context's first member"),
    **dict.fromkeys(("q", "nocache", "rm", "forcerm"), FLAG),
    "pull": OFF,
    "buildargs": JSON,
    "labels": JSON,
    "networkmode": Parameter(pattern="none", allowed="none"),
    "version": Parameter(pattern="1", allowed="1, the classic builder"),
}
CALLS = (
    *(Call(kind="plain", method=method, path="/_ping") for method in ("GET", "HEAD")),
    Call(kind="plain", method="GET", path="/version"),
    Call(kind="info", method="GET", path="/info"),
    Call(
        kind="containers",
        method="GET",
        path="/containers/json",
        query={"all": FLAG, "limit": NUMBER, "size": FLAG, "trunc_cmd": FLAG, "filters": JSON},
    ),
    Call(kind="create", method="POST", path="/containers/create", query={"name": NAME}),
    Call(kind="container", method="GET", path="/containers/{container}/json", query={"size": OFF}),
    Call(kind="container", method="GET", path="/containers/{container}/logs", query=_LOGS),
    Call(kind="container", method="GET", path="/containers/{container}/stats", query={"stream": OFF, "one-shot": FLAG}, needed=("stream",)),
    Call(kind="container", method="GET", path="/containers/{container}/top"),
    *(Call(kind="container", method=method, path=_ARCHIVE, query={"path": INSIDE}, needed=("path",)) for method in ("GET", "HEAD")),
    Call(kind="archive", method="PUT", path=_ARCHIVE, query={"path": INSIDE, "noOverwriteDirNonDir": FLAG}, needed=("path",)),
    Call(kind="container", method="POST", path="/containers/{container}/start"),
    Call(kind="container", method="POST", path="/containers/{container}/stop", query=_STOP),
    Call(kind="container", method="POST", path="/containers/{container}/restart", query=_STOP),
    Call(kind="container", method="POST", path="/containers/{container}/kill", query={"signal": SIGNAL}),
    Call(kind="container", method="POST", path="/containers/{container}/wait", query={"condition": ENDED}),
    Call(kind="container", method="DELETE", path="/containers/{container}", query={"v": FLAG, "force": FLAG, "link": OFF}),
    Call(kind="network", method="GET", path="/networks/{network}", query={"verbose": OFF}),
    Call(kind="connect", method="POST", path="/networks/{network}/connect"),
    Call(kind="connect", method="POST", path="/networks/{network}/disconnect"),
    Call(kind="build", method="POST", path="/build", query=_BUILD, needed=("t",)),
    Call(kind="images", method="GET", path="/images/json", query={"all": FLAG, "digests": FLAG, "only_ids": FLAG, "filters": JSON}),
    Call(kind="pull", method="POST", path="/images/create", query={"fromImage": IMAGE, "tag": TAGGED}, needed=("fromImage", "tag")),
    Call(kind="image", method="GET", path="/images/{image}/json"),
    Call(kind="push", method="POST", path="/images/{image}/push", query={"tag": TAGGED}, needed=("tag",)),
    Call(kind="tag", method="POST", path="/images/{image}/tag", query={"repo": IMAGE, "tag": TAGGED, "force": FLAG}, needed=("repo",)),
    Call(kind="untag", method="DELETE", path="/images/{image}", query={"force": FLAG, "noprune": FLAG}),
)


def read(method: str, path: str, query: Iterable[tuple[str, str]]) -> Asked:
    """The call of the table that is asked for; `path` as it came, `query` decoded. Raises `Refused`."""
    version, rest = _unversioned(path.replace("%40", "@"))  # clients quote the @ of a digest
    if not CLEAN.fullmatch(rest):
        raise Refused(f"{method} {path[:200]}: the path is not plain; allowed: /-separated names of letters, digits and _.:@- without ..")
    for call in (each for each in CALLS if each.method == method):
        names = call.names(rest)
        if names is not None:
            return Asked(call=call, version=version, names=names, query=_checked(call, list(query)))
    raise Refused(f"{method} {rest[:200]} is not passed on; allowed there: {_allowed_near(rest)}")


def writes(asked: Asked, rules: Rules) -> None:
    """Refuses a build, tag, push, pull or removal of a name that is not the callers' to write. An id can only be removed, after a look."""
    for place, name in _written(asked):
        (image_of if asked.call.kind == "untag" else name_of)(place, name, rules.writes)
        if asked.call.kind in {"pull", "push"} and not is_of_a_registry(name):
            allowed = "names that begin with a registry's address, as the engine would ask Docker Hub for any other"
            raise Refused(f"{place} is {json.dumps(name)}; allowed: {allowed}")


def container_filters(text: str, rules: Rules) -> str:
    """The filters of a list, with this service's label in them."""
    found = _filters(text, "containers")
    return json.dumps({**found, "label": [*found.get("label", []), f"{LABEL}={rules.project}"]})


def image_filters(text: str) -> str:
    return json.dumps(_filters(text, "images"))


def too_old(version: Any) -> bool:
    """Whether an engine's ApiVersion is below the lowest that is spoken here."""
    found = re.fullmatch(r"([0-9])\.([0-9]{1,3})", version) if isinstance(version, str) else None
    return found is None or (int(found[1]), int(found[2])) < LOWEST


def _unversioned(path: str) -> tuple[str, str]:
    found = PREFIX.match(path)
    if found is None:
        return "", path
    if (int(found[1]), int(found[2])) < LOWEST:
        raise Refused(f"{path[:200]} asks for API version {found[1]}.{found[2]}; allowed: {LOWEST[0]}.{LOWEST[1]} and later")
    return found[0], path[found.end() :]


def _checked(call: Call, query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    given = [name for name, _ in query]
    if missing := [name for name in call.needed if name not in given]:
        raise Refused(f"{call.method} {call.path}: the parameter {missing[0]} is missing; allowed: {call.query[missing[0]].allowed}")
    for name, value in query:
        known = call.query.get(name)
        if known is None:
            raise _wrong(call, name, value, f"the parameters {', '.join(call.query) or '(none)'}")
        if not re.fullmatch(known.pattern, value):
            raise _wrong(call, name, value, known.allowed)
        if not known.repeats and given.count(name) > 1:
            raise _wrong(call, name, value, "one value")
    return query


def _wrong(call: Call, name: str, value: str, allowed: str) -> Refused:
    return Refused(f"{call.method} {call.path}: the parameter {name[:60]} is {json.dumps(value[:120])}; allowed: {allowed}")


def _allowed_near(path: str) -> str:
    """The table's rows that begin like the path."""
    first = "/".join(path.split("/")[:2])
    near = [f"{each.method} {each.path}" for each in CALLS if each.path == first or each.path.startswith(f"{first}/")]
    return ", ".join(near) or "nothing"


def _written(asked: Asked) -> list[tuple[str, str]]:
    if asked.call.kind == "build":
        return [("t", value) for name, value in asked.query if name == "t"]
    names = {"pull": ("fromImage", asked["fromImage"]), "tag": ("repo", asked["repo"])}
    return [names.get(asked.call.kind, ("image", asked.names.get("image", "")))]


def _filters(text: str, of: str) -> dict[str, list[str]]:
    """Read as clients write them: each a list, or an object with the values as keys."""
    try:
        found = json.loads(text or "{}")
        read = {str(name): [str(each) for each in values] for name, values in found.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Refused(f"filters is {json.dumps(text[:120])}; allowed: a JSON object of lists") from None
    if wrong := [name for name in read if name not in FILTERS[of]]:
        raise Refused(f"filters has {wrong[0][:60]}; allowed: {', '.join(FILTERS[of])}")
    return read
