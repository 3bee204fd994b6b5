"""What a container may be made of when it is asked for through `delivery.engine_gate`. Pure: no clock, no input or output.

Every key of a body is known by its name here or must be left out. What is sent on to the engine is made anew from the known keys, so
nothing reaches it that was not looked at: Go's JSON takes `privileged` for `Privileged`, and the later of two. The rules keep a container
away from the host; they do not tell one task from another, and they do not look into images.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LABEL = "penstock.gate"
LABELS = "penstock."  # what a caller's own labels begin with
NO_NETWORK = "none"
PIDS_MOST = 4096
UNSET: tuple[Any, ...] = (None, "", 0, [], {})  # what a client writes for a key that it does not use; False equals 0
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
TAG, DIGEST = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", r"sha256:[0-9a-f]{64}"
REPOSITORY = re.compile(rf"{COMPONENT}(?::[0-9]{{1,5}}(?=/))?(?:/{COMPONENT})*")
REFERENCE = re.compile(rf"(?P<repository>{REPOSITORY.pattern})(?::{TAG})?(?:@{DIGEST})?")
IMAGE_ID = re.compile(rf"{DIGEST}|[0-9a-f]{{12,64}}")
PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.-]+)+")
USER = re.compile(r"([1-9][0-9]{0,9}):([1-9][0-9]{0,9})")  # without a group it would be root's
PORT = re.compile(r"[0-9]{1,5}/tcp")
TMPFS_WORD = re.compile(r"size=[0-9]+[kmg]?|mode=[0-7]{3,4}|uid=[0-9]+|gid=[0-9]+|rw|ro|noexec|exec|nosuid|nodev")
DEVICE = re.compile(r"[A-Za-z0-9-]{1,64}")  # a number or a GPU's UUID; no name of the Container Device Interface


class Refused(ValueError):
    """The call is not passed on; asking again does not help."""

    status = 403


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one service allows. `seccomp` holds profiles as `canonical` writes them; image prefixes end in a slash."""

    project: str
    images: tuple[str, ...]
    writes: tuple[str, ...]
    networks: tuple[str, ...]
    memory_bytes: int
    containers: int
    seccomp: frozenset[str] = frozenset()


Check = Callable[[str, Any, Rules], Any]  # place, value, rules -> what is sent on


def container_body(asked: Any, rules: Rules) -> dict[str, Any]:
    """The body of `containers/create` as the engine gets it, with this service's label. Raises `Refused`."""
    body = _object("body", asked, CONTAINER, rules, needed=("Image", "User", "HostConfig"))
    return {**body, "Labels": {**body.get("Labels", {}), LABEL: rules.project}}


def connect_body(asked: Any, rules: Rules) -> dict[str, Any]:
    """The body of `networks/{id}/connect` and `disconnect`; the caller looks up whose container it is."""
    known: dict[str, Check] = {"Container": _container, "EndpointConfig": _endpoint, "Force": _flag}
    return _object("body", asked, known, rules, needed=("Container",))


def image_of(place: str, reference: Any, prefixes: Iterable[str]) -> str:
    """A name with one of the prefixes, or an image's id, which says nothing yet: see `is_looked_up`."""
    return reference if isinstance(reference, str) and IMAGE_ID.fullmatch(reference) else name_of(place, reference, prefixes)


def name_of(place: str, reference: Any, prefixes: Iterable[str]) -> str:
    if isinstance(reference, str) and len(reference) <= 512 and named_within(reference, prefixes):
        return reference
    raise _not_allowed(
        place, reference, f"names of images that begin with {' or '.join(prefixes) or '(none: no prefix is given for this)'}"
    )


def named_within(reference: str, prefixes: Iterable[str]) -> bool:
    found = REFERENCE.fullmatch(reference)
    return found is not None and found["repository"].startswith(tuple(prefixes))


def is_looked_up(reference: str) -> bool:
    """An id or a digest names bytes, not an owner: the engine has to say which names those bytes carry."""
    return "@" in reference or IMAGE_ID.fullmatch(reference) is not None


def is_of_a_registry(reference: str) -> bool:
    """Whether the name begins with a registry's address; the engine takes any other for one of Docker Hub."""
    host, slash, _ = reference.partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")


def canonical(profile: str) -> str:
    """A seccomp profile's JSON, written one way. Raises ValueError."""
    return json.dumps(json.loads(profile), sort_keys=True, separators=(",", ":"))


def _not_allowed(place: str, value: Any, allowed: str) -> Refused:
    return Refused(f"{place} is {_shown(value)}; allowed: {allowed}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _object(place: str, value: Any, known: Mapping[str, Check], rules: Rules, *, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Known keys pass their check, a needed one that is missing as null; an unknown one is dropped if it sets nothing, else refused."""
    if not isinstance(value, dict):
        raise Refused(f"{place} is no JSON object; allowed: {', '.join(known)}")
    spelt = {key.lower(): key for key in known}
    for key, each in value.items():
        if key not in known and key.lower() in spelt:
            raise Refused(f"{place}.{key} is misspelt; allowed: {spelt[key.lower()]}")
        if key not in known and each not in UNSET:
            raise _not_allowed(f"{place}.{key}", each, "nothing, leave it out")
    checked = [key for key in known if key in needed or value.get(key) not in (None, "")]
    return {key: known[key](f"{place}.{key}", value.get(key), rules) for key in checked}


def _pattern(pattern: re.Pattern[str], allowed: str) -> Check:
    def check(place: str, value: Any, _rules: Rules) -> Any:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _not_allowed(place, value, allowed)
        return value

    return check


def _one_of(*allowed: Any) -> Check:
    def check(place: str, value: Any, _rules: Rules) -> Any:
        if not any(value == each and type(value) is type(each) for each in allowed):
            raise _not_allowed(place, value, " or ".join(json.dumps(each) for each in allowed))
        return value

    return check


def _number(low: int, high: int, why: str = "") -> Check:
    def check(place: str, value: Any, _rules: Rules) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise _not_allowed(place, value, f"{low} to {high}{why}")
        return value

    return check


def _memory(place: str, value: Any, rules: Rules) -> Any:
    return _number(1, rules.memory_bytes, " bytes, this service's limit for one container")(place, value, rules)


def _texts(place: str, value: Any, _rules: Rules) -> Any:
    """Environment and arguments may hold secrets: neither is repeated."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Refused(f"{place} is no list of texts; allowed: a list of texts")
    return value


def _list(each_one: Check) -> Check:
    def check(place: str, value: Any, rules: Rules) -> Any:
        if not isinstance(value, list):
            raise _not_allowed(place, value, "a list")
        return [each_one(f"{place}[{at}]", each, rules) for at, each in enumerate(value)]

    return check


def _map(key_pattern: re.Pattern[str], allowed: str, each_one: Check) -> Check:
    def check(place: str, value: Any, rules: Rules) -> Any:
        if not isinstance(value, dict):
            raise _not_allowed(place, value, "an object")
        if wrong := [key for key in value if not key_pattern.fullmatch(key)]:
            raise _not_allowed(f"a key of {place}", wrong[0], allowed)
        return {key: each_one(f"{place}.{key}", each, rules) for key, each in value.items()}

    return check


def _nested(known: Mapping[str, Check], *needed: str) -> Check:
    return lambda place, value, rules: _object(place, value, known, rules, needed=needed)


def _image(place: str, value: Any, rules: Rules) -> Any:
    return image_of(place, value, rules.images)


def _user(place: str, value: Any, _rules: Rules) -> Any:
    found = USER.fullmatch(value) if isinstance(value, str) else None
    if found is None or max(int(each) for each in found.groups()) >= 1 << 31:
        raise _not_allowed(place, value, "numbers of a user and a group that are not root's, like 65534:65534")
    return value


def _labels(place: str, value: Any, rules: Rules) -> Any:
    given: dict[str, Any] = _map(re.compile(rf"{re.escape(LABELS)}.{{1,200}}"), f"keys that begin with {LABELS}", _text)(
        place, value, rules
    )
    if given.get(LABEL, rules.project) != rules.project:
        raise _not_allowed(f"{place}.{LABEL}", given[LABEL], rules.project)
    return given


def _network(place: str, value: Any, rules: Rules) -> Any:
    return _one_of(NO_NETWORK, *rules.networks)(place, value, rules)


def _endpoints(place: str, value: Any, rules: Rules) -> Any:
    if not isinstance(value, dict):
        raise _not_allowed(place, value, "an object")
    for name in value:
        _network(f"a key of {place}", name, rules)
    return {name: {} if each is None else _endpoint(f"{place}.{name}", each, rules) for name, each in value.items()}


def _endpoint(place: str, value: Any, rules: Rules) -> Any:
    """No aliases, links or hardware addresses: with an alias a container could answer in a service's name."""
    return _object(place, value, {"IPAMConfig": _nested({"IPv4Address": _ipv4})}, rules)


def _ipv4(place: str, value: Any, _rules: Rules) -> Any:
    try:
        return str(ipaddress.IPv4Address(value if isinstance(value, str) else ""))
    except ValueError:
        raise _not_allowed(place, value, "an IPv4 address") from None


def _dropped(place: str, value: Any, _rules: Rules) -> Any:
    if not isinstance(value, list) or "ALL" not in value or not all(isinstance(each, str) for each in value):
        raise _not_allowed(place, value, 'a list with "ALL" in it')
    return ["ALL"]


def _security(place: str, value: Any, rules: Rules) -> Any:
    """`no-new-privileges`, and a seccomp profile only if it is one of the service's own."""
    options = _texts(place, value, rules)
    profiles = [each for each in options if each.startswith("seccomp=")]
    allowed = {"no-new-privileges", "no-new-privileges:true", "apparmor=docker-default"}
    if profiles:
        allowed.add("apparmor=unconfined")
    if wrong := [each for each in options if each not in allowed and each not in profiles]:
        advice = "" if profiles else "; apparmor=unconfined only together with one of this service's seccomp profiles"
        raise _not_allowed(place, wrong[0], f"{', '.join(sorted(allowed))}{advice}")
    if not {"no-new-privileges", "no-new-privileges:true"} & set(options):
        raise _not_allowed(place, [each[:60] for each in options], "a list with no-new-privileges in it")
    if len(profiles) > 1:
        raise Refused(f"{place} holds {len(profiles)} seccomp profiles; allowed: one")
    return [f"seccomp={_profile(place, each, rules)}" if each in profiles else each for each in options]


def _profile(place: str, option: str, rules: Rules) -> str:
    try:
        profile = canonical(option.removeprefix("seccomp="))
    except (ValueError, RecursionError):
        raise _not_allowed(place, option, "one of this service's seccomp profiles as JSON text") from None
    if profile not in rules.seccomp:
        raise _not_allowed(place, option, f"one of this service's {len(rules.seccomp)} seccomp profiles (--seccomp-profile)")
    return profile


def _tmpfs(place: str, value: Any, _rules: Rules) -> Any:
    words = value.split(",") if isinstance(value, str) and value else []
    if not isinstance(value, str) or not all(TMPFS_WORD.fullmatch(each) for each in words):
        raise _not_allowed(place, value, "size=, mode=, uid=, gid=, rw, ro, exec, noexec, nosuid, nodev")
    return value


_text = _pattern(re.compile(r"[^\x00]{0,4096}", re.DOTALL), "a text of at most 4096 characters")
_flag = _one_of(False, True)
_size = _number(0, 1 << 62)
_path = _pattern(PATH, "an absolute path of letters, digits and _.- without ..")
_container = _pattern(re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"), "a container's name or id")
_empty = _one_of({}, None)

MOUNT: Mapping[str, Check] = {
    "Type": _one_of("tmpfs"),
    "Target": _path,
    "ReadOnly": _flag,
    "TmpfsOptions": _nested({"SizeBytes": _memory, "Mode": _number(0, 0o7777)}),
}
GPU: Mapping[str, Check] = {
    "Driver": _one_of("nvidia"),
    "Count": _number(-1, 64),
    "DeviceIDs": _list(_pattern(DEVICE, "a GPU's number or UUID")),
    "Capabilities": _list(_list(_one_of("gpu", "nvidia", "compute", "utility"))),
}
HEALTH: Mapping[str, Check] = {
    "Test": _texts,
    "Interval": _size,
    "Timeout": _size,
    "StartPeriod": _size,
    "StartInterval": _size,
    "Retries": _number(0, 1000),
}
LOGS: Mapping[str, Check] = {
    "Type": _one_of("json-file", "local"),
    "Config": _nested(dict.fromkeys(("max-size", "max-file"), _pattern(re.compile(r"[0-9]{1,9}[kmg]?"), "a number"))),
}
HOST: Mapping[str, Check] = {
    "NetworkMode": _network,
    "Memory": _memory,
    "MemorySwap": _memory,
    "MemoryReservation": _memory,
    "PidsLimit": _number(1, PIDS_MOST),
    "ReadonlyRootfs": _one_of(True),
    "CapDrop": _dropped,
    "SecurityOpt": _security,
    "Tmpfs": _map(PATH, "absolute paths", _tmpfs),
    "Mounts": _list(_nested(MOUNT, "Type", "Target")),
    "Binds": _list(_pattern(PATH, "a path in the container, for a volume without a name; nothing of the host")),
    "Init": _flag,
    "ShmSize": _memory,
    "NanoCpus": _size,
    "CpuShares": _size,
    "CpuQuota": _size,
    "CpuPeriod": _size,
    "CpusetCpus": _pattern(re.compile(r"[0-9,-]{0,200}"), "numbers of CPUs"),
    "RestartPolicy": _nested({"Name": _one_of("no", "unless-stopped")}),
    "LogConfig": _nested(LOGS),
    "DeviceRequests": _list(_nested(GPU, "Capabilities")),
    "IpcMode": _one_of("private", "none"),
    "CgroupnsMode": _one_of("private"),
}
NEEDED = ("NetworkMode", "Memory", "PidsLimit", "ReadonlyRootfs", "CapDrop", "SecurityOpt")
CONTAINER: Mapping[str, Check] = {
    "Image": _image,
    "User": _user,
    "Cmd": _texts,
    "Entrypoint": _texts,
    "Env": _texts,
    "Labels": _labels,
    "Volumes": _map(PATH, "absolute paths in the container", _empty),
    "WorkingDir": _path,
    "ExposedPorts": _map(PORT, "ports like 8000/tcp", _empty),
    "Healthcheck": _nested(HEALTH),
    "StopSignal": _pattern(re.compile(r"SIG[A-Z]{3,6}|[0-9]{1,2}"), "a signal"),
    "StopTimeout": _number(0, 600),
    "AttachStdout": _flag,
    "AttachStderr": _flag,
    "NetworkDisabled": _flag,
    "HostConfig": _nested(HOST, *NEEDED),
    "NetworkingConfig": _nested({"EndpointsConfig": _endpoints}),
}
