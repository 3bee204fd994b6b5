"""What is rendered for Envoy, and that Envoy itself takes it."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_fixtures import envoy_binary

from delivery import gateway
from delivery.gateway import Timeouts
from delivery.gateway_admin import Admin
from delivery.traffic import Backend, ModelTraffic


def backend(version: int) -> Backend:
    return Backend(version=version, http=f"127.0.0.1:{8000 + version}", grpc=f"127.0.0.1:{9000 + version}")


ROLLOUT = ModelTraffic(model="digits", stable=backend(1), candidate=backend(2))
ALONE = ModelTraffic(model="digits", stable=backend(1))


def routes(known: ModelTraffic) -> dict[str, dict]:
    return {each["name"]: each for each in gateway.render_routes(known, Timeouts())}


def clusters(known: ModelTraffic) -> dict[str, dict]:
    return {each["name"]: each for each in gateway.render_clusters(known)}


def test_clusters_are_named_after_versions():
    """Two clusters per version and two for who pins it, whatever its role: history stays with the version when roles swap."""
    kinds = ("http", "grpc", "http--pinned", "grpc--pinned")
    assert set(clusters(ROLLOUT)) == {f"digits--v{version}--{each}" for version in (1, 2) for each in kinds}
    assert gateway.version_clusters("digits", 2) == {f"digits--v2--{each}" for each in kinds}


def test_a_pinned_version_has_nobody_to_fall_back_to():
    """Who pins wants this version's own answer: one server, always asked, and no second try."""
    cluster, route = clusters(ROLLOUT)["digits--v2--http--pinned"], routes(ROLLOUT)["digits-http-v2"]["route"]
    assert gateway.expected_hosts([cluster]) == {"digits--v2--http--pinned": {("127.0.0.1:8002", 0)}}
    assert {"health_checks", "outlier_detection"} & set(cluster) == set()
    assert route == {"timeout": "5s", "cluster": "digits--v2--http--pinned"}


def test_pins_come_before_everybody_else():
    """The first route that matches is taken: each pinned version, then any other pin, which is refused, then the split."""
    known = replace(ROLLOUT, previous=backend(7))
    order = [name for name in routes(known) if "http" in name]
    assert order == ["digits-http-v1", "digits-http-v7", "digits-http-v2", "digits-http-unknown-version", "digits-http"]
    refused = routes(known)["digits-http-unknown-version"]
    assert refused["match"]["headers"] == [{"name": "x-model-version", "present_match": True}]
    assert refused["direct_response"]["status"] == 404


def test_a_slice_header_is_copied_and_cut():
    """Only with a slice header is there a copy; it is our own header, at most 40 characters."""
    copied = routes(ROLLOUT.with_slices("x-country"))["digits-http"]["typed_per_filter_config"][gateway.MUTATION]["mutations"]
    header = {"key": "x-penstock-slice", "value": "%REQ(x-country):40%"}
    assert copied["request_mutations"] == [{"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}]
    assert "typed_per_filter_config" not in routes(ROLLOUT)["digits-http"]


def test_stable_stands_first_and_has_everything():
    """Without a lease the candidate has no traffic: the routes' own weights are 1000 and 0, in this order."""
    weights = routes(ROLLOUT)["digits-http"]["route"]["weighted_clusters"]
    assert [(each["name"], each["weight"]) for each in weights["clusters"]] == [("digits--v1--http", 1000), ("digits--v2--http", 0)]
    assert weights["runtime_key_prefix"] == "split.digits"


def test_after_promotion_the_old_stable_stays_in_the_route():
    """Leased weights name the old stable until the lease is dropped; they must find it in the new route."""
    weights = routes(ROLLOUT.promoted(2))["digits-grpc"]["route"]["weighted_clusters"]["clusters"]
    assert [(each["name"], each["weight"]) for each in weights] == [("digits--v2--grpc", 1000), ("digits--v1--grpc", 0)]


def test_promotion_leaves_the_new_stables_cluster_as_it_was():
    """The candidate's fallback and the new stable's are the same server, so nothing is reconnected under full traffic."""
    assert clusters(ROLLOUT)["digits--v2--http"] == clusters(ROLLOUT.promoted(2))["digits--v2--http"]


def test_candidate_falls_back_to_stable():
    """Priority 1 of the candidate's cluster is the stable server, of the same protocol."""
    hosts = gateway.expected_hosts(gateway.render_clusters(ROLLOUT))
    assert hosts["digits--v2--grpc"] == {("127.0.0.1:9002", 0), ("127.0.0.1:9001", 1)}
    assert hosts["digits--v1--http"] == {("127.0.0.1:8001", 0)}


def test_a_server_without_fallback_is_never_ejected():
    """Ejecting the only server would turn some errors into only errors."""
    assert ["outlier_detection" in clusters(ROLLOUT)[f"digits--v{version}--http"] for version in (1, 2)] == [False, True]


def test_a_slow_model_that_stands_alone_is_not_cut():
    """The time-out of one try holds only where another server can take over."""
    policies = [routes(known)["digits-http"]["route"]["retry_policy"] for known in (ALONE, ROLLOUT)]
    assert [each.get("per_try_timeout") for each in policies] == [None, "1s"]


def test_mirror_is_there_only_with_a_share():
    """A share of 250 per mille is 250,000 per million; none is no mirror."""
    mirrored = replace(ROLLOUT, shadow_permille=250)
    policies = [routes(known)["digits-http"]["route"]["request_mirror_policies"] for known in (ROLLOUT, mirrored)]
    share = {"default_value": {"numerator": 250000, "denominator": "MILLION"}}
    assert policies == [[], [{"cluster": "digits--v2--http", "runtime_fraction": share}]]


def test_every_stable_model_is_recorded_by_the_setting():
    """The recorder's mirror stands on the routes of everybody, beside the candidate's, never on those of testers; 0 takes it off."""
    mirrors = {
        permille: {
            each["name"]: [mirror["cluster"] for mirror in each["route"].get("request_mirror_policies", [])]
            for each in gateway.render_routes(replace(ROLLOUT, shadow_permille=250), gateway.Timeouts(), permille)
            if "route" in each
        }
        for permille in (0, 100)
    }
    assert [mirrors[each]["digits-http"] for each in (0, 100)] == [["digits--v2--http"], ["digits--v2--http", "recorder-http"]]
    assert mirrors[100]["digits-grpc"][-1] == "recorder-grpc"
    assert mirrors[100]["digits-http-v2"] == []


def test_nothing_stable_is_said():
    """A model without a stable version answers 404 with the reason, and has a route to its candidate for those alone who pin it."""
    rendered = routes(ModelTraffic(model="digits", candidate=backend(1)))
    assert [name for name, each in rendered.items() if "direct_response" not in each] == ["digits-http-v1", "digits-grpc-v1"]
    assert {each["direct_response"]["status"] for each in rendered.values() if "direct_response" in each} == {404}
    assert rendered["digits-http"]["response_headers_to_add"][0]["header"] == {"key": "x-penstock", "value": "no-stable-version"}


def test_a_model_without_versions_has_no_route():
    """An empty model is an unknown one."""
    assert gateway.render_routes(ModelTraffic(model="digits"), Timeouts()) == []


def test_revision_follows_the_content():
    """The same clusters are the same revision; others are another."""
    first, again, other = (gateway.cds(gateway.render_clusters(known))["version_info"] for known in (ROLLOUT, ROLLOUT, ALONE))
    assert (first == again, first == other) == (True, False)


def test_writing_leaves_one_file_in_the_watched_directory(tmp_path):
    """Envoy watches the directory: drafts must not appear in it."""
    gateway.write_resources(tmp_path, "cds", gateway.cds([]))
    assert [each.name for each in (tmp_path / "cds").iterdir()] == ["cds.json"]


def test_no_layer_of_the_runtime_takes_orders_from_loopback():
    """With an admin layer, anybody there could move traffic past the lease."""
    layers = gateway.bootstrap(Path("/files"), port=1, admin_port=2, director_grpc_port=3)["layered_runtime"]["layers"]
    assert [key for each in layers for key in each if key.endswith("_layer")] == ["static_layer", "rtds_layer"]


def test_bootstrap_keeps_what_the_director_wrote(tmp_path):
    """A new start of Envoy does not empty routes that are there."""
    written = gateway.cds(gateway.render_clusters(ROLLOUT))
    gateway.write_resources(tmp_path, "cds", written)
    gateway.write_bootstrap(tmp_path / "envoy.json", files=tmp_path, port=1, admin_port=2, director_grpc_port=3)
    assert json.loads((tmp_path / "cds" / "cds.json").read_text()) == written


@pytest.mark.parametrize(
    "known", [ROLLOUT.with_slices("x-country"), ALONE, ROLLOUT.promoted(2), ModelTraffic(model="digits", candidate=backend(1))]
)
def test_envoy_takes_what_is_rendered(tmp_path, known):
    """Envoy's own check passes with clusters and routes put where it reads them: files behind CDS and RDS are not checked by it."""
    known = replace(known, shadow_permille=100 if known.candidate and known.stable else 0)
    gateway.write_bootstrap(
        tmp_path / "envoy.json", files=tmp_path, port=1, admin_port=2, director_grpc_port=3, access_log=tmp_path / "access.json"
    )
    config = json.loads((tmp_path / "envoy.json").read_text())
    config["static_resources"]["clusters"] += gateway.render_clusters(known)
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = gateway.rds(gateway.render_routes(known, Timeouts()))["resources"][0]
    del manager["route_config"]["@type"]
    (tmp_path / "whole.json").write_text(json.dumps(config))
    command = [envoy_binary(), "--mode", "validate", "-c", str(tmp_path / "whole.json"), "--disable-hot-restart"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout.strip()) == (0, f"configuration '{tmp_path}/whole.json' OK"), checked.stderr


def host(**counts: int) -> dict:
    stats = [{"name": name, "value": str(value)} for name, value in counts.items()]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 8001}}
    return {"address": address, "stats": stats, "health_status": {"eds_health_status": "HEALTHY"}}


async def endpoint(shown: dict):
    page = {"cluster_statuses": [{"name": "digits--v1--http", "host_statuses": [shown]}]}

    async def fetch(_path: str) -> bytes:
        return json.dumps(page).encode()

    return (await Admin(fetch).endpoints())[0]


async def test_an_attempt_that_did_not_succeed_failed():
    """Errors, time-outs and refused connections all count; attempts under way do not."""
    seen = await endpoint(host(rq_total=10, rq_success=6, rq_error=2, rq_timeout=1, rq_active=1, cx_connect_fail=4))
    assert (seen.requests, seen.failures, seen.active) == (14, 7, 1)


async def test_dropped_rows_of_the_log_are_counted():
    """Envoy's own counters of what it threw away and of what it could not send; before the first row there are none, which is 0."""
    log = b"access_logs.grpc_access_log"
    pages = iter([b"", b"%s.grpc_entries_flush_failed: 2\n%s.logs_dropped: 5\n" % (log, log)])

    async def fetch(_path: str) -> bytes:
        return next(pages)

    assert [await Admin(fetch).dropped_rows() for _ in range(2)] == [0, 7]


@pytest.mark.parametrize("trouble", ["failed_active_health_check", "failed_outlier_check", "pending_active_hc"])
async def test_any_trouble_is_not_healthy(trouble):
    """A server is healthy when Envoy reports no trouble at all, not even a first check that is still to come."""
    shown = host(rq_total=0, rq_success=0, rq_active=0, cx_connect_fail=0)
    healthy = await endpoint(shown)
    shown["health_status"][trouble] = True
    assert (healthy.healthy, (await endpoint(shown)).healthy) == (True, False)


def test_in_containers_envoy_looks_its_own_services_up_and_never_a_models_server() -> None:
    """Director and recorder may come back at another address; the addresses of servers are fixed, and a name as one is refused."""
    ports = {"port": 8000, "admin_port": 9901, "director_grpc_port": 8101, "recorder_ports": (8102, 8103)}
    config = gateway.bootstrap(Path("/gateway"), **ports, host="0.0.0.0", director_host="director", recorder_host="recorder")
    found = {each["name"]: (each["type"], each.get("respect_dns_ttl")) for each in config["static_resources"]["clusters"]}
    assert found == dict.fromkeys(("director", "recorder-http", "recorder-grpc"), ("STRICT_DNS", True))
    listens = [config["admin"]["address"], config["static_resources"]["listeners"][0]["address"]]
    assert [each["socket_address"]["address"] for each in listens] == ["0.0.0.0", "0.0.0.0"]
    local = gateway.bootstrap(Path("/gateway"), **ports)
    assert {each["type"] for each in local["static_resources"]["clusters"]} == {"STATIC"}
    with pytest.raises(ValueError, match="expected an IPv4 address"):
        Backend(version=1, http="digits--v1:8000", grpc="digits--v1:8001")
