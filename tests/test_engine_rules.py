"""What the engine gate passes on: each field that reaches out of a container is refused by its name, what this system uses passes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery.engine_calls import CALLS, container_filters, image_filters, read, too_old, writes
from delivery.engine_rules import (
    HOST,
    Refused,
    Rules,
    canonical,
    connect_body,
    container_body,
    image_of,
    is_looked_up,
    is_of_a_registry,
    name_of,
)

PROFILE = '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}'
DIGEST = "sha256:" + "0" * 64
REGISTRY = "127.0.0.1:5000/penstock/"
RULES = Rules(
    project="penstock",
    images=("penstock/", REGISTRY),
    writes=(REGISTRY,),
    networks=("penstock_core", "penstock_serving"),
    memory_bytes=8 << 30,
    containers=3,
    seccomp=frozenset({canonical(PROFILE)}),
)


def job(**host: Any) -> dict[str, Any]:
    """As the SDK writes it for `DockerRuntime`."""
    return {
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": False,
        "User": "65534:65534",
        "Env": ["TASK_SPEC={}", "SECRET=word"],
        "Cmd": ["timeout", "60", "python", "-m", "validation"],
        "Image": "penstock/golden_set",
        "Volumes": {"/out": {}},
        "Labels": {"penstock.job": "digits-v3"},
        "NetworkingConfig": {"penstock_core": None},
        "HostConfig": {
            "NetworkMode": "penstock_core",
            "Memory": 2 << 30,
            "PidsLimit": 256,
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Tmpfs": {"/tmp": "size=512m"},
            "Binds": ["/out"],
            "Init": True,
            **host,
        },
    }


def test_a_jobs_body_goes_on_with_the_label_and_without_what_sets_nothing() -> None:
    """What a task needs reaches the engine as it was asked for, with the service's label beside its own."""
    asked = job()
    sent = container_body(asked, RULES)
    assert sent["Labels"] == {"penstock.job": "digits-v3", "penstock.gate": "penstock"}
    assert sent["HostConfig"] == asked["HostConfig"]
    assert {key: sent[key] for key in ("User", "Env", "Cmd", "Image", "Volumes")} == {
        key: asked[key] for key in ("User", "Env", "Cmd", "Image", "Volumes")
    }
    assert sent["NetworkingConfig"] == {}
    assert not {"Tty", "OpenStdin", "StdinOnce", "AttachStdin"} & set(sent)


GPUS = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]], "DeviceIDs": [], "Options": {}}]
TMPFS = {"Type": "tmpfs", "Target": "/scratch", "Source": None, "ReadOnly": False, "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777}}


@pytest.mark.parametrize(
    "host",
    [
        {"NetworkMode": "none"},
        {"NetworkMode": "penstock_serving", "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}, "ShmSize": 1 << 28},
        {"DeviceRequests": GPUS},
        {"DeviceRequests": [{"Count": 1, "Capabilities": [["gpu", "utility"]]}]},
        {"DeviceRequests": [{"DeviceIDs": ["0", "GPU-7e5c2f1a"], "Capabilities": [["gpu"]]}]},
        {"SecurityOpt": ["no-new-privileges:true", "apparmor=docker-default"]},
        {"SecurityOpt": ["no-new-privileges", f"seccomp={PROFILE}", "apparmor=unconfined"]},
        {"Mounts": [TMPFS]},
        {"Tmpfs": {"/tmp": "", "/run": "size=1m,mode=1777,uid=1000,noexec,nosuid,nodev"}},
        {"LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}},
        {"NanoCpus": 2 * 10**9, "CpuShares": 512, "CpusetCpus": "0-3", "MemoryReservation": 1 << 20, "MemorySwap": 2 << 30},
        {"IpcMode": "private", "CgroupnsMode": "private", "CapDrop": ["ALL"]},
        {"Privileged": False, "CapAdd": None, "Devices": [], "PortBindings": {}, "PidMode": "", "Sysctls": {}, "OomScoreAdj": 0},
    ],
)
def test_what_tasks_and_servers_need_passes(host: dict[str, Any]) -> None:
    """Networks, limits, GPUs, tmpfs, restarts and the export's seccomp profile are asked for by this system; unset keys ask for nothing."""
    assert container_body(job(**host), RULES)["HostConfig"] == {**job()["HostConfig"], **_as_sent(host)}


def _as_sent(host: dict[str, Any]) -> dict[str, Any]:
    """Known keys as they are, but for the values in the table above that are not sent word for word."""
    written = {key: value for key, value in host.items() if key in HOST}
    if host.get("DeviceRequests") is GPUS:
        written["DeviceRequests"] = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]], "DeviceIDs": []}]
    if "Mounts" in host:
        written["Mounts"] = [{key: value for key, value in TMPFS.items() if key != "Source"}]
    if "RestartPolicy" in host:
        written["RestartPolicy"] = {"Name": "unless-stopped"}
    if any("seccomp" in each for each in host.get("SecurityOpt", [])):
        written["SecurityOpt"] = ["no-new-privileges", f"seccomp={canonical(PROFILE)}", "apparmor=unconfined"]
    return written


HOST_REFUSED: list[tuple[str, Any, str]] = [
    ("Privileged", True, "HostConfig.Privileged is true; allowed: nothing, leave it out"),
    ("CapAdd", ["SYS_ADMIN"], 'CapAdd is ["SYS_ADMIN"]'),
    ("CapDrop", None, 'CapDrop is null; allowed: a list with "ALL"'),
    ("CapDrop", ["NET_RAW"], '"ALL" in it'),
    ("Binds", ["/:/host"], 'Binds[0] is "/:/host"'),
    ("Binds", ["/out", "data:/data"], 'Binds[1] is "data:/data"'),
    ("Binds", ["/out:ro"], "Binds[0]"),
    ("Binds", ["/../etc"], "Binds[0]"),
    ("Binds", [{"Source": "/"}], "Binds[0]"),
    ("Mounts", [{"Type": "bind", "Source": "/", "Target": "/host"}], 'Mounts[0].Source is "/"'),
    ("Mounts", [{"Type": "bind", "Target": "/host"}], 'Mounts[0].Type is "bind"; allowed: "tmpfs"'),
    ("Mounts", [{"Type": "volume", "Target": "/host"}], "Mounts[0].Type"),
    ("Mounts", [{"Target": "/host"}], "Mounts[0].Type is null"),
    ("Mounts", [{"Type": "tmpfs", "Target": "/t", "VolumeOptions": {"DriverConfig": {"Name": "local"}}}], "Mounts[0].VolumeOptions"),
    ("Mounts", [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 40}}], "TmpfsOptions.SizeBytes"),
    ("Tmpfs", {"/tmp": "suid"}, 'Tmpfs./tmp is "suid"'),
    ("Tmpfs", {"/tmp": "size=1m,dev"}, "Tmpfs./tmp"),
    ("Tmpfs", {"/tmp/../proc": ""}, "a key of body.HostConfig.Tmpfs"),
    ("NetworkMode", None, "NetworkMode is null; allowed:"),
    ("NetworkMode", "host", 'NetworkMode is "host"; allowed: "none" or "penstock_core" or "penstock_serving"'),
    ("NetworkMode", "default", "NetworkMode"),
    ("NetworkMode", "container:postgres", "NetworkMode"),
    ("NetworkMode", "penstock_engine", "NetworkMode"),
    ("PidMode", "host", "PidMode"),
    ("IpcMode", "host", "IpcMode"),
    ("IpcMode", "shareable", "IpcMode"),
    ("IpcMode", "container:x", "IpcMode"),
    ("UTSMode", "host", "UTSMode"),
    ("UsernsMode", "host", "UsernsMode"),
    ("CgroupnsMode", "host", "CgroupnsMode"),
    ("CgroupParent", "/", "CgroupParent"),
    ("Devices", [{"PathOnHost": "/dev/mem"}], "Devices"),
    ("DeviceCgroupRules", ["a *:* rwm"], "DeviceCgroupRules"),
    (
        "DeviceRequests",
        [{"Driver": "cdi", "DeviceIDs": ["vendor.com/x=y"], "Capabilities": [["gpu"]]}],
        'DeviceRequests[0].Driver is "cdi"',
    ),
    ("DeviceRequests", [{"DeviceIDs": ["nvidia.com/gpu=all"], "Capabilities": [["gpu"]]}], "DeviceRequests[0].DeviceIDs[0]"),
    ("DeviceRequests", [{"Count": 1}], "DeviceRequests[0].Capabilities"),
    ("DeviceRequests", [{"Count": 1, "Capabilities": [["display"]]}], "DeviceRequests[0].Capabilities[0][0]"),
    ("DeviceRequests", [{"Count": 1, "Capabilities": [["gpu"]], "Options": {"x": "y"}}], "DeviceRequests[0].Options"),
    ("VolumesFrom", ["postgres"], "VolumesFrom"),
    ("VolumeDriver", "local", "VolumeDriver"),
    ("Links", ["postgres:db"], "Links"),
    ("Sysctls", {"kernel.shmmax": "1"}, "Sysctls"),
    ("Runtime", "other", "Runtime"),
    ("GroupAdd", ["0"], "GroupAdd"),
    ("PortBindings", {"80/tcp": [{"HostPort": "80"}]}, "PortBindings"),
    ("PublishAllPorts", True, "PublishAllPorts"),
    ("ExtraHosts", ["mlflow:10.0.0.1"], "ExtraHosts"),
    ("Dns", ["10.0.0.1"], "Dns"),
    ("Ulimits", [{"Name": "nofile", "Soft": 1, "Hard": 1}], "Ulimits"),
    ("OomKillDisable", True, "OomKillDisable"),
    ("OomScoreAdj", -1000, "OomScoreAdj"),
    ("AutoRemove", True, "AutoRemove"),
    ("StorageOpt", {"size": "1T"}, "StorageOpt"),
    ("MaskedPaths", ["/proc/x"], "MaskedPaths"),
    ("ReadonlyPaths", ["/proc/x"], "ReadonlyPaths"),
    ("Annotations", {"x": "y"}, "Annotations"),
    ("ReadonlyRootfs", False, "ReadonlyRootfs is false; allowed: true"),
    ("ReadonlyRootfs", 1, "ReadonlyRootfs is 1"),
    ("ReadonlyRootfs", None, "ReadonlyRootfs is null"),
    ("readonlyrootfs", False, "readonlyrootfs is misspelt; allowed: ReadonlyRootfs"),
    ("Memory", None, "Memory is null; allowed: 1 to 8589934592 bytes"),
    ("Memory", 0, "Memory is 0"),
    ("Memory", -1, "Memory is -1"),
    ("Memory", (8 << 30) + 1, "Memory is 8589934593"),
    ("Memory", True, "Memory is true"),
    ("MemorySwap", -1, "MemorySwap is -1"),
    ("ShmSize", 1 << 40, "ShmSize"),
    ("PidsLimit", None, "PidsLimit is null; allowed: 1 to 4096"),
    ("PidsLimit", 0, "PidsLimit is 0"),
    ("PidsLimit", -1, "PidsLimit is -1"),
    ("PidsLimit", 5000, "PidsLimit is 5000"),
    ("SecurityOpt", None, "SecurityOpt is no list"),
    ("SecurityOpt", [], "no-new-privileges in it"),
    ("SecurityOpt", ["no-new-privileges:false"], 'SecurityOpt is "no-new-privileges:false"'),
    ("SecurityOpt", ["no-new-privileges", "no-new-privileges:false"], "no-new-privileges:false"),
    ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"], "seccomp profiles"),
    ("SecurityOpt", ["no-new-privileges", "seccomp:unconfined"], "seccomp:unconfined"),
    ("SecurityOpt", ["no-new-privileges", 'seccomp={"defaultAction": "SCMP_ACT_ALLOW"}'], "one of this service's 1 seccomp profiles"),
    ("SecurityOpt", ["no-new-privileges", f"seccomp={PROFILE}", f"seccomp={PROFILE} "], "2 seccomp profiles; allowed: one"),
    ("SecurityOpt", ["no-new-privileges", "apparmor=unconfined"], "only together with"),
    ("SecurityOpt", ["no-new-privileges", "apparmor=other"], "apparmor=other"),
    ("SecurityOpt", ["no-new-privileges", "label=disable"], "label=disable"),
    ("SecurityOpt", ["no-new-privileges", "systempaths=unconfined"], "systempaths=unconfined"),
    ("RestartPolicy", {"Name": "always"}, "RestartPolicy.Name"),
    ("LogConfig", {"Type": "syslog", "Config": {"syslog-address": "tcp://10.0.0.1:1"}}, "LogConfig.Type"),
    ("LogConfig", {"Type": "json-file", "Config": {"labels": "x"}}, "LogConfig.Config.labels"),
]


@pytest.mark.parametrize(("key", "value", "message"), HOST_REFUSED, ids=lambda each: str(each)[:40])
def test_what_reaches_out_of_a_container_is_refused_by_its_name(key: str, value: Any, message: str) -> None:
    """Each way to the host, to another container or past a limit is an error that names the field, its value and what is allowed."""
    with pytest.raises(Refused) as refused:
        container_body(job(**{key: value}), RULES)
    assert message in str(refused.value)
    assert f"HostConfig.{key}" in str(refused.value)


CONFIG_REFUSED: list[tuple[str, Any, str]] = [
    ("Image", None, "body.Image is null; allowed: names of images that begin with penstock/ or 127.0.0.1:5000/penstock/"),
    ("Image", "postgres", "Image"),
    ("Image", "penstock", "Image"),
    ("Image", "evil/penstock/x", "Image"),
    ("Image", "penstock/../postgres", "Image"),
    ("Image", "penstock//x", "Image"),
    ("Image", "penstock/x:", "Image"),
    ("Image", "penstock/x@sha256:00", "Image"),
    ("Image", "127.0.0.1:5001/penstock/x", "Image"),
    ("Image", "penstock/" + "x" * 600, "Image"),
    ("User", None, "body.User is null; allowed: numbers of a user and a group that are not root's"),
    ("User", "", "User"),
    ("User", "root", "User"),
    ("User", "0", "User"),
    ("User", "0:0", "User"),
    ("User", "65534", "User"),
    ("User", "65534:0", "User"),
    ("User", "nobody:nogroup", "User"),
    ("User", "4294967296:65534", "User"),
    ("User", 65534, "User"),
    ("Labels", {"com.docker.compose.project": "penstock"}, "a key of body.Labels"),
    ("Labels", {"penstock.gate": "another"}, "penstock.gate"),
    ("Volumes", {"/a/../b": {}}, "a key of body.Volumes"),
    ("Volumes", {"data:/x": {}}, "a key of body.Volumes"),
    ("Volumes", {"/x": {"driver": "local"}}, "body.Volumes./x"),
    ("Hostname", "mlflow", "body.Hostname"),
    ("Domainname", "x", "body.Domainname"),
    ("MacAddress", "02:42:ac:11:00:02", "body.MacAddress"),
    ("Runtime", "other", "body.Runtime"),
    ("Tty", True, "body.Tty"),
    ("OpenStdin", True, "body.OpenStdin"),
    ("Shell", ["sh"], "body.Shell"),
    ("OnBuild", ["RUN x"], "body.OnBuild"),
    ("hostconfig", {"Privileged": True}, "body.hostconfig is misspelt; allowed: HostConfig"),
    ("HostConfig", None, "body.HostConfig is no JSON object"),
    ("HostConfig", [], "body.HostConfig is no JSON object"),
    ("NetworkingConfig", {"EndpointsConfig": {"bridge": {}}}, 'a key of body.NetworkingConfig.EndpointsConfig is "bridge"'),
    ("NetworkingConfig", {"EndpointsConfig": {"penstock_core": {"Aliases": ["mlflow"]}}}, "penstock_core.Aliases"),
    ("NetworkingConfig", {"EndpointsConfig": {"penstock_core": {"Links": ["postgres:db"]}}}, "penstock_core.Links"),
    ("NetworkingConfig", {"EndpointsConfig": {"penstock_core": {"DriverOpts": {"x": "y"}}}}, "penstock_core.DriverOpts"),
    ("NetworkingConfig", {"EndpointsConfig": {"penstock_core": {"IPAMConfig": {"IPv4Address": "x"}}}}, "IPAMConfig.IPv4Address"),
    ("NetworkingConfig", {"EndpointsConfig": {"penstock_core": {"IPAMConfig": {"LinkLocalIPs": ["x"]}}}}, "IPAMConfig.LinkLocalIPs"),
    ("Healthcheck", {"Test": "curl x"}, "Healthcheck.Test"),
    ("Healthcheck", {"Test": ["CMD", "true"], "Interval": -1}, "Healthcheck.Interval"),
    ("StopSignal", "SIGKILL; x", "StopSignal"),
    ("WorkingDir", "relative", "WorkingDir"),
    ("ExposedPorts", {"80/udp": {}}, "ExposedPorts"),
    ("Anything", "new", "body.Anything"),
]


@pytest.mark.parametrize(("key", "value", "message"), CONFIG_REFUSED, ids=lambda each: str(each)[:40])
def test_whose_image_which_user_and_which_name_is_not_the_callers_choice(key: str, value: Any, message: str) -> None:
    """Foreign images, root, other services' names and unknown keys are errors that name the field."""
    with pytest.raises(Refused) as refused:
        container_body({**job(), key: value}, RULES)
    assert message in str(refused.value)


@pytest.mark.parametrize("value", ["SECRET=word", {"SECRET": "word"}, [["SECRET", "word"]]])
def test_the_environment_is_never_repeated(value: Any) -> None:
    """It holds credentials: what is wrong with it is said without its words."""
    for key in ("Env", "env"):
        with pytest.raises(Refused) as refused:
            container_body({**job(), key: value}, RULES)
        assert "word" not in str(refused.value)


def test_a_server_has_a_fixed_address_a_health_check_and_a_working_folder() -> None:
    """What a serving container needs beyond a task passes."""
    address = {"EndpointsConfig": {"penstock_serving": {"IPAMConfig": {"IPv4Address": "10.213.0.140"}, "Links": None, "Aliases": None}}}
    health = {"Test": ["CMD", "curl", "x"], "Interval": 10**9, "Timeout": 10**9, "Retries": 3, "StartPeriod": None}
    asked = {**job(), "NetworkingConfig": address, "Healthcheck": health, "WorkingDir": "/code", "ExposedPorts": {"8000/tcp": {}}}
    sent = container_body(asked, RULES)
    assert sent["NetworkingConfig"] == {"EndpointsConfig": {"penstock_serving": {"IPAMConfig": {"IPv4Address": "10.213.0.140"}}}}
    assert sent["Healthcheck"] == {"Test": ["CMD", "curl", "x"], "Interval": 10**9, "Timeout": 10**9, "Retries": 3}
    assert (sent["WorkingDir"], sent["ExposedPorts"]) == ("/code", {"8000/tcp": {}})


def test_an_entrypoint_can_be_emptied() -> None:
    """An empty list says something else than none: the image's own entrypoint is not to run."""
    assert container_body({**job(), "Entrypoint": []}, RULES)["Entrypoint"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(host=st.dictionaries(st.sampled_from([*HOST, "Privileged", "PRIVILEGED", "Devices", "CapAdd", "PidMode"]), JSON), top=JSON)
def test_whatever_is_asked_for_what_is_sent_is_confined(host: dict[str, Any], top: Any) -> None:
    """Any body is refused or ends in one that is read-only, without capabilities, privileges, host paths or unknown keys."""
    try:
        sent = container_body({**job(**host), **(top if isinstance(top, dict) else {})}, RULES)
    except Refused:
        return
    confined = sent["HostConfig"]
    assert set(confined) <= set(HOST)
    assert (confined["ReadonlyRootfs"], confined["CapDrop"]) == (True, ["ALL"])
    assert 0 < confined["Memory"] <= RULES.memory_bytes
    assert not any(":" in each for each in confined.get("Binds", []))
    assert sent["Labels"]["penstock.gate"] == "penstock"


def test_a_connection_is_of_a_container_and_at_most_an_address() -> None:
    """`connect` and `disconnect` take a container and its address; an alias could be a service's name."""
    body = {"Container": "abc", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.213.0.141"}}}
    assert connect_body(body, RULES) == body
    assert connect_body({"Container": "abc", "Force": True}, RULES) == {"Container": "abc", "Force": True}
    for wrong in (
        {},
        {"Container": "../x"},
        {"Container": "abc", "EndpointConfig": {"Aliases": ["mlflow"]}},
        {"Container": "a", "X": 1},
        [],
    ):
        with pytest.raises(Refused, match="allowed: "):
            connect_body(wrong, RULES)


@pytest.mark.parametrize(
    ("reference", "looked_up", "of_a_registry"),
    [
        ("penstock/golden_set", False, False),
        ("penstock/golden_set:v1", False, False),
        ("127.0.0.1:5000/penstock/models/digits:1.0.3", False, True),
        (f"127.0.0.1:5000/penstock/digits@{DIGEST}", True, True),
        (DIGEST, True, False),
        ("0123456789ab", True, False),
    ],
)
def test_images_are_named_within_a_prefix_or_looked_up(reference: str, looked_up: bool, of_a_registry: bool) -> None:  # noqa: FBT001
    """A name says whose image it is; an id or a digest has to be asked after."""
    assert image_of("image", reference, RULES.images) == reference
    assert (is_looked_up(reference), is_of_a_registry(reference)) == (looked_up, of_a_registry)


def test_an_id_is_no_name() -> None:
    """What is built or tagged must carry an allowed name: one that looks like an id could stand in for another's."""
    with pytest.raises(Refused, match="names of images"):
        name_of("t", "0123456789ab", RULES.writes)


PASSED = [
    ("GET", "/_ping", ""),
    ("HEAD", "/_ping", ""),
    ("GET", "/version", ""),
    ("GET", "/v1.41/info", ""),
    ("GET", "/v1.50/containers/json", "limit=-1&all=1&size=0&trunc_cmd=0"),
    ("POST", "/v1.41/containers/create", "name=digits-v3-golden-set-0f"),
    ("POST", "/v1.41/containers/create", ""),
    ("GET", "/containers/digits-v3/json", ""),
    ("GET", "/v1.41/containers/digits-v3/logs", "stderr=1&stdout=1&timestamps=0&follow=0&tail=2000"),
    ("GET", "/v1.41/containers/digits-v3/stats", "stream=False"),
    ("GET", "/v1.41/containers/digits-v3/top", ""),
    ("GET", "/v1.41/containers/digits-v3/archive", "path=/out/verdict.json"),
    ("HEAD", "/v1.41/containers/digits-v3/archive", "path=/out"),
    ("PUT", "/v1.41/containers/digits-v3/archive", "path=/out"),
    ("POST", "/v1.41/containers/digits-v3/start", ""),
    ("POST", "/v1.41/containers/digits-v3/stop", "t=10"),
    ("POST", "/v1.41/containers/digits-v3/restart", "t=10"),
    ("POST", "/v1.41/containers/digits-v3/kill", "signal=SIGKILL"),
    ("POST", "/v1.41/containers/digits-v3/wait", "condition=removed"),
    ("DELETE", "/v1.41/containers/digits-v3", "v=True&link=False&force=True"),
    ("GET", "/v1.41/networks/penstock_core", ""),
    ("POST", "/v1.41/networks/penstock_core/connect", ""),
    ("POST", "/v1.41/networks/penstock_core/disconnect", ""),
    ("POST", "/v1.41/build", f"t={REGISTRY}digits:1.0.3&q=False&nocache=False&rm=True&forcerm=False&pull=False"),
    ("POST", "/v1.41/build", f't={REGISTRY}a&t={REGISTRY}b&dockerfile=Dockerfile&buildargs={{"A":"b"}}&labels={{"a":"b"}}'),
    ("GET", "/v1.41/images/json", "only_ids=0&all=0"),
    ("GET", f"/v1.41/images/{REGISTRY}digits:1/json", ""),
    ("GET", f"/v1.41/images/{REGISTRY}digits%40{DIGEST}/json", ""),
    ("POST", f"/v1.41/images/{REGISTRY}digits/push", "tag=1.0.3"),
    ("POST", "/v1.41/images/penstock/triton/tag", f"tag=1&repo={REGISTRY}digits&force=0"),
    ("POST", "/v1.41/images/create", f"tag={DIGEST}&fromImage={REGISTRY}digits"),
    ("DELETE", f"/v1.41/images/{REGISTRY}digits:1", "force=False&noprune=False"),
]


def pairs(query: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (each.partition("=") for each in query.split("&") if each)]


@pytest.mark.parametrize(("method", "path", "query"), PASSED)
def test_calls_that_the_system_makes_are_known(method: str, path: str, query: str) -> None:
    """Each call of tasks, servers and packages is read, and asked of the engine as it was given."""
    asked = read(method, path, pairs(query))
    assert asked.path() == path.replace("%40", "@")
    assert list(asked.query) == pairs(query)
    if asked.call.kind in {"build", "pull", "push", "tag", "untag"}:
        writes(asked, RULES)


def test_every_row_of_the_table_is_tried() -> None:
    """The table above leaves out no call that is passed on."""
    assert {id(read(method, path, pairs(query)).call) for method, path, query in PASSED} == {id(call) for call in CALLS}


REFUSED_CALLS = [
    ("POST", "/containers/x/exec", "", r"POST /containers/x/exec is not passed on; allowed there: GET /containers/json, "),
    ("POST", "/exec/x/start", "", "allowed there: nothing"),
    ("POST", "/containers/x/attach", "", "not passed on"),
    ("GET", "/containers/x/attach/ws", "", "not passed on"),
    ("POST", "/commit", "container=x", "not passed on"),
    ("GET", "/containers/x/export", "", "not passed on"),
    ("GET", "/containers/x/changes", "", "not passed on"),
    ("POST", "/containers/x/rename", "name=y", "not passed on"),
    ("POST", "/containers/x/update", "", "not passed on"),
    ("POST", "/containers/x/pause", "", "not passed on"),
    ("POST", "/containers/prune", "", "not passed on"),
    ("POST", "/images/prune", "", "not passed on"),
    ("POST", "/build/prune", "", "not passed on"),
    ("POST", "/images/load", "", "not passed on"),
    ("GET", "/images/search", "", "not passed on"),
    ("GET", "/images/penstock/x/get", "", "not passed on"),
    ("POST", "/session", "", "not passed on"),
    ("POST", "/grpc", "", "not passed on"),
    ("POST", "/auth", "", "not passed on"),
    ("GET", "/events", "", "not passed on"),
    ("GET", "/system/df", "", "not passed on"),
    ("GET", "/volumes", "", "not passed on"),
    ("POST", "/volumes/create", "", "not passed on"),
    ("GET", "/networks", "", "not passed on"),
    ("POST", "/networks/create", "", "not passed on"),
    ("DELETE", "/networks/penstock_core", "", "not passed on"),
    ("POST", "/swarm/init", "", "not passed on"),
    ("GET", "/secrets", "", "not passed on"),
    ("GET", "/configs", "", "not passed on"),
    ("GET", "/nodes", "", "not passed on"),
    ("POST", "/plugins/pull", "", "not passed on"),
    ("PATCH", "/containers/x/json", "", "not passed on"),
    ("GET", "/v1.24/containers/x/json", "", r"API version 1\.24; allowed: 1\.41"),
    ("GET", "/v1.40/info", "", r"API version 1\.40"),
    ("GET", "/containers/../info", "", "the path is not plain"),
    ("GET", "/containers/./json", "", "the path is not plain"),
    ("GET", "/containers/%2e%2e/json", "", "the path is not plain"),
    ("GET", "/containers/x%2fjson", "", "the path is not plain"),
    ("GET", "//containers/json", "", "the path is not plain"),
    ("GET", "/containers//json", "", "the path is not plain"),
    ("GET", "/containers/json/", "", "the path is not plain"),
    ("GET", "/containers/a b/json", "", "the path is not plain"),
    ("GET", "/containers/x;y/json", "", "the path is not plain"),
    ("GET", "/containers/ü/json", "", "the path is not plain"),
    ("GET", "http://engine/info", "", "the path is not plain"),
    ("OPTIONS", "*", "", "the path is not plain"),
    ("GET", "/containers/x:y/json", "", "not passed on"),
    ("GET", "/v1.41/v1.41/info", "", "not passed on"),
    ("POST", "/containers/create", "name=mlflow", "the parameter name is .* allowed: a name with a hyphen and a digit"),
    ("POST", "/containers/create", "name=api-server", "allowed: a name with a hyphen and a digit"),
    ("POST", "/containers/create", "name=/x-1", "parameter name"),
    ("POST", "/containers/create", "name=x-1&name=y-1", "allowed: one value"),
    ("POST", "/containers/create", "platform=linux", "parameter platform is .* allowed: the parameters name"),
    ("GET", "/containers/x/stats", "", "the parameter stream is missing; allowed: false"),
    ("GET", "/containers/x/stats", "stream=1", "allowed: false"),
    ("GET", "/containers/x/top", "ps_args=-ef", "parameter ps_args"),
    ("GET", "/containers/x/archive", "", "path is missing"),
    ("GET", "/containers/x/archive", "path=/out/../etc", "an absolute path without"),
    ("PUT", "/containers/x/archive", "path=out", "an absolute path without"),
    ("DELETE", "/containers/x", "link=True", "parameter link"),
    ("POST", "/containers/x/start", "detachKeys=a", "parameter detachKeys"),
    ("POST", "/build", "", "the parameter t is missing"),
    ("POST", "/build", "t=a&remote=https://x/y.git", "parameter remote"),
    ("POST", "/build", "t=a&networkmode=host", "networkmode is .* allowed: none"),
    ("POST", "/build", "t=a&extrahosts=x:1", "parameter extrahosts"),
    ("POST", "/build", "t=a&version=2", "the classic builder"),
    ("POST", "/build", "t=a&session=x", "parameter session"),
    ("POST", "/build", "t=a&outputs=x", "parameter outputs"),
    ("POST", "/build", "t=a&cachefrom=[]", "parameter cachefrom"),
    ("POST", "/build", "t=a&memory=0", "parameter memory"),
    ("POST", "/build", "t=a&cgroupparent=/", "parameter cgroupparent"),
    ("POST", "/build", "t=a&ulimits=[]", "parameter ulimits"),
    ("POST", "/build", "t=a&securityopt=x", "parameter securityopt"),
    ("POST", "/build", "t=a&squash=1", "parameter squash"),
    ("POST", "/build", "t=a&dockerfile=other", "allowed: Dockerfile, the context's first member"),
    ("POST", "/build", "t=a&target=x", "parameter target"),
    ("POST", "/build", "t=a&pull=1", "pull is .* allowed: false"),
    ("POST", "/images/create", "fromSrc=http://x&repo=y", "fromImage is missing"),
    ("POST", "/images/create", "fromImage=x&tag=1&fromSrc=-", "parameter fromSrc"),
    ("POST", "/images/create", "fromImage=x", "tag is missing"),
    ("POST", "/images/x/push", "", "tag is missing"),
]


@pytest.mark.parametrize(("method", "path", "query", "message"), REFUSED_CALLS)
def test_every_other_call_is_refused_with_what_is_allowed(method: str, path: str, query: str, message: str) -> None:
    """What is not in the table, or not written plainly, is not passed on, and the message says what would be."""
    with pytest.raises(Refused, match=message):
        read(method, path, pairs(query))


@pytest.mark.parametrize(
    ("method", "path", "query", "message"),
    [
        ("POST", "/build", "t=penstock/engine_gate", r'^t is "penstock/engine_gate"; allowed: names of images that begin with 127'),
        ("POST", "/build", f"t={REGISTRY}a&t=postgres", '^t is "postgres"'),
        ("POST", "/build", "t=0123456789ab", "^t is"),
        ("POST", "/images/create", "fromImage=postgres&tag=1", "^fromImage is"),
        ("POST", f"/images/{REGISTRY}digits/tag", "repo=python", '^repo is "python"'),
        ("POST", "/images/penstock/golden_set/push", "tag=1", "^image is"),
        ("POST", "/images/0123456789ab/push", "tag=1", "^image is"),
        ("DELETE", "/images/python:3.11", "", "^image is"),
    ],
)
def test_only_names_that_are_the_callers_are_written(method: str, path: str, query: str, message: str) -> None:
    """A build, tag, pull, push or removal never touches the name of a service's own image."""
    with pytest.raises(Refused, match=message):
        writes(read(method, path, pairs(query)), RULES)


def test_nothing_is_fetched_from_or_sent_to_a_registry_by_default() -> None:
    """The engine takes a name without an address for one of Docker Hub: there anybody may own it."""
    rules = Rules(project="p", images=("penstock/",), writes=("penstock/",), networks=(), memory_bytes=1, containers=1)
    for method, path, query in (("POST", "/images/create", "fromImage=penstock/x&tag=1"), ("POST", "/images/penstock/x/push", "tag=1")):
        with pytest.raises(Refused, match="Docker Hub"):
            writes(read(method, path, pairs(query)), rules)


def test_a_list_is_of_own_containers_only() -> None:
    """The label is laid on whatever was asked for, in either way in which clients write filters."""
    own = "penstock.gate=penstock"
    assert json.loads(container_filters("", RULES)) == {"label": [own]}
    assert json.loads(container_filters('{"label": ["a=b"], "status": ["exited"]}', RULES)) == {"label": ["a=b", own], "status": ["exited"]}
    assert json.loads(container_filters('{"label": {"a=b": true}}', RULES)) == {"label": ["a=b", own]}
    assert json.loads(image_filters('{"reference": {"penstock/*": true}}')) == {"reference": ["penstock/*"]}


@pytest.mark.parametrize("text", ["[]", "x", '{"label": 1}', '{"volume": ["x"]}', '{"before": ["x"]}', '"label"'])
def test_a_filter_that_is_not_known_is_refused(text: str) -> None:
    """A filter that asks after other things, or that cannot be read, is an error and never an unfiltered list."""
    with pytest.raises(Refused, match="allowed: "):
        container_filters(text, RULES)


@pytest.mark.parametrize(
    ("version", "expected"), [("1.40", True), ("1.41", False), ("1.50", False), ("0.99", True), (None, True), ("x", True)]
)
def test_an_engine_is_recent_enough_or_too_old(version: Any, expected: bool) -> None:  # noqa: FBT001
    """Docker Engine 20.10 speaks 1.41; what does not say its version is not trusted to be newer."""
    assert too_old(version) == expected
