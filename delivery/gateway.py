"""Envoy's configuration: the bootstrap, clusters and routes rendered from the traffic's state, and written.

`stack` calls `write_bootstrap` to start Envoy; the director renders clusters (CDS) and routes (RDS) and writes each into its own watched
directory by rename (a shared one would reload both on every rename). Whether they are in force, `delivery.gateway_admin` sees. Rendering
is pure. This module decides no share, and makes no connection.

`python -m delivery.gateway BOOTSTRAP --files DIR --port N --admin-port N --director-grpc-port N [--recorder-ports N N] [--access-log FILE]
[--host ADDRESS] [--director-host NAME] [--recorder-host NAME]`
writes a bootstrap.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delivery.traffic import (
    PROTOCOLS,
    WHOLE,
    Backend,
    ModelTraffic,
    cluster_name,
    host_and_port,
    pinned_name,
    runtime_prefix,
)
from validation.contract import canonical_json, sha256

Json = dict[str, Any]
Hosts = dict[str, frozenset[tuple[str, int]]]  # cluster -> its (address, priority) pairs

LOOPBACK = "127.0.0.1"
ROUTES_NAME = "models"
STAT_PREFIX = "gateway"
DIRECTOR_CLUSTER = "director"
RECORDER = "recorder"  # its clusters are recorder-http and recorder-grpc; a version's has two hyphens
RECORDER_REQUESTS = 32  # under way at once: a recorder that is frozen holds so many bodies in Envoy's memory and no more
SPLITS = "splits"  # the name of the runtime layer that the director serves
VERSION_HEADER = "x-penstock-version"
REASON_HEADER = "x-penstock"
USER_HEADER = "x-user-id"
MODEL_HEADER = "x-model"
PIN_HEADER = "x-model-version"  # a tester's: this version's own answer, or none
SLICE_HEADER = "x-penstock-slice"  # ours alone: what a client sends under this name is taken off
SLICE_CHARACTERS = 40
MUTATION = "envoy.filters.http.header_mutation"
_MUTATION_TYPE = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
BUFFER_BYTES = 16 << 20  # a request larger than this is neither mirrored nor tried again elsewhere
# Only what serves a model. Triton's other calls (load, unload, shared memory, trace and log settings) must not be reachable from clients.
HTTP_CALLS = r"/v2/models/{model}(/versions/[0-9]+)?(/(infer|generate|generate_stream|ready|config|stats))?"
GRPC_CALLS = r"/inference\.GRPCInferenceService/(ModelInfer|ModelStreamInfer|ModelReady|ModelMetadata|ModelConfig|ModelStatistics)"
# `5xx` also covers a per-try time-out; `cancelled` is what a server says of the calls that it ends with; gRPC's UNKNOWN (2) has no word
# among Envoy's conditions and is named by its header.
RETRY_ON = "5xx,connect-failure,refused-stream,reset,unavailable,internal,cancelled,retriable-headers"


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """What a request may take. `per_try_s` holds only where another server can take over: a lone slow model is not an error."""

    total_s: float = 5.0
    per_try_s: float = 1.0


def render_clusters(traffic: ModelTraffic) -> list[Json]:
    """Four clusters per version, two for each protocol: its share's, where the fallback is priority 1, and one for those who pin it.

    An archived version has the latter only.
    """
    rendered = [(_cluster(traffic, backend, each), _pinned_cluster(traffic, backend, each)) for backend, each in _served(traffic)]
    archived = [_pinned_cluster(traffic, backend, each) for backend in traffic.archived for each in PROTOCOLS]
    return [*(cluster for pair in rendered for cluster in pair), *archived]


def version_clusters(model: str, version: int) -> set[str]:
    """Names of all clusters of one version."""
    return {name(model, version, each) for name in (cluster_name, pinned_name) for each in PROTOCOLS}


def render_routes(traffic: ModelTraffic, timeouts: Timeouts, recorder_permille: int = 0) -> list[Json]:
    """Routes of pinned versions, and one for everybody else per protocol, whose own weights are what is left when a lease lapses: all to
    stable. Of everybody else's requests `recorder_permille` are mirrored to the recorder.
    """
    if traffic.empty:
        return []
    pinned = [_pinned_route(traffic.model, backend, each, timeouts) for backend, each in _served(traffic)]
    pinned += [_archived_route(traffic.model, backend, each, timeouts) for backend in traffic.archived for each in PROTOCOLS]
    open_to_all = [(_unknown_pin(traffic.model, each), _unpinned(traffic, each, timeouts, recorder_permille)) for each in PROTOCOLS]
    return [*pinned, *(route for pair in open_to_all for route in pair)]


def cds(clusters: Iterable[Json]) -> Json:
    typed = [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", **each} for each in clusters]
    return _versioned(typed)


def rds(routes: Iterable[Json]) -> Json:
    deny = _refusal("unknown-model", {"prefix": "/"}, "unknown-model")
    table = {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "virtual_hosts": [{"name": ROUTES_NAME, "domains": ["*"], "routes": [*routes, deny]}],
    }
    return _versioned([table])


def bootstrap(
    files: Path,
    *,
    port: int,
    admin_port: int,
    director_grpc_port: int,
    recorder_ports: tuple[int, int] | None = None,
    access_log: Path | None = None,
    host: str = LOOPBACK,
    director_host: str = LOOPBACK,
    recorder_host: str = LOOPBACK,
) -> Json:
    """Everything that Envoy must know at start. `files` holds the watched directories `cds` and `rds`.

    `recorder_ports`: where the recorder takes mirrored HTTP and gRPC. `host` is the address that Envoy listens on; director and recorder
    may have names, which Envoy looks up.
    """
    recorder = _recorder_clusters(recorder_host, *recorder_ports) if recorder_ports else []
    clusters = [_director_cluster(director_host, director_grpc_port), *recorder]
    return {
        "node": {"id": "gateway", "cluster": "penstock"},
        "admin": {"address": _socket(f"{host}:{admin_port}")},
        "stats_flush_interval": "1s",
        "layered_runtime": {"layers": _runtime_layers()},
        "static_resources": {"listeners": [_listener(files, f"{host}:{port}", access_log)], "clusters": clusters},
        "dynamic_resources": {"cds_config": _watched(files, "cds")},
    }


def write_bootstrap(path: Path, *, files: Path, **given: Any) -> None:
    """Writes Envoy's bootstrap (`given`: as `bootstrap` takes it), and empty cluster and route files where there are none yet, without
    which Envoy refuses to start.
    """
    for name, empty in (("cds", cds([])), ("rds", rds([]))):
        if not _file(files, name).exists():
            write_resources(files, name, empty)
    config = bootstrap(files.resolve(), **given)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_by_rename(path, json.dumps(config, indent=1).encode())


def write_resources(files: Path, name: str, resources: Json) -> None:
    """Puts `cds` or `rds` into its watched directory. The draft lies outside of it, so that Envoy sees one rename and nothing else."""
    target = _file(files, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_by_rename(target, json.dumps(resources, indent=1).encode(), draft=files / f"{name}.draft")


def write_by_rename(path: Path, data: bytes, *, draft: Path | None = None) -> None:
    """Replaces a file whole and durably; a crash leaves the old one or the new one."""
    draft = draft or path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_directory(path.parent)


def expected_hosts(clusters: Iterable[Json]) -> Hosts:
    """The hosts that `Admin.endpoints` must show for rendered clusters."""
    return {each["name"]: frozenset(_rendered_hosts(each)) for each in clusters}


def _served(traffic: ModelTraffic) -> list[tuple[Backend, str]]:
    return [(backend, each) for backend in traffic.backends for each in PROTOCOLS]


def _rendered_hosts(cluster: Json) -> Iterable[tuple[str, int]]:
    for locality in cluster["load_assignment"]["endpoints"]:
        for each in locality["lb_endpoints"]:
            address = each["endpoint"]["address"]["socket_address"]
            yield f"{address['address']}:{address['port_value']}", locality["priority"]


def _cluster(traffic: ModelTraffic, backend: Backend, protocol: str) -> Json:
    fallback = traffic.fallback(backend)
    servers = [backend] if fallback is None else [backend, fallback]
    limit = {"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000}
    return {
        **_servers(cluster_name(traffic.model, backend.version, protocol), servers, protocol),
        # A second try goes to another server, so it must never be refused: the budget is for storms at the same server.
        "circuit_breakers": {"thresholds": [{**limit, "retry_budget": {"budget_percent": {"value": 100}, "min_retry_concurrency": 100}}]},
        "health_checks": [_health_check(f"/v2/models/{traffic.model}/ready")],
        **({} if fallback is None else _leave_bad_servers()),
    }


def _pinned_cluster(traffic: ModelTraffic, backend: Backend, protocol: str) -> Json:
    """One server that is always asked, whatever its health: who pins a version wants its own answer, also when that is an error."""
    return _servers(pinned_name(traffic.model, backend.version, protocol), [backend], protocol)


def _servers(name: str, servers: list[Backend], protocol: str) -> Json:
    localities = [_locality(server, protocol, priority) for priority, server in enumerate(servers)]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": name, "endpoints": localities},
        "typed_extension_protocol_options": _protocol_options(protocol),
    }


def _locality(server: Backend, protocol: str, priority: int) -> Json:
    # Readiness is asked over HTTP for both protocols: one answer for one server.
    endpoint = {"address": _socket(server.address(protocol)), "health_check_config": {"port_value": host_and_port(server.http)[1]}}
    return {"priority": priority, "lb_endpoints": [{"endpoint": endpoint}]}


def _health_check(path: str) -> Json:
    times = {"timeout": "0.5s", "interval": "1s", "no_traffic_interval": "1s", "unhealthy_threshold": 2, "healthy_threshold": 1}
    return {**times, "http_health_check": {"path": path, "codec_client_type": "HTTP1"}}


def _leave_bad_servers() -> Json:
    """Outlier detection, for clusters that have somewhere else to go: ejecting a lone server would turn some errors into only errors.

    `successful_active_health_check_uneject_host: false` because Triton says "ready" while its model fails every request (measured:
    six returns to a dead model in one test).
    """
    ejection = {
        "consecutive_5xx": 3,
        "consecutive_gateway_failure": 3,
        "enforcing_consecutive_gateway_failure": 100,
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "interval": "0.5s",
        "base_ejection_time": "30s",
        "max_ejection_percent": 100,
        "always_eject_one_host": True,
        "successful_active_health_check_uneject_host": False,
    }
    return {"outlier_detection": ejection, "common_lb_config": {"healthy_panic_threshold": {"value": 0}}}


def _pinned_route(model: str, backend: Backend, protocol: str, timeouts: Timeouts) -> Json:
    return {
        "name": f"{model}-{protocol}-v{backend.version}",
        "match": _pinning(model, protocol, {"string_match": {"exact": str(backend.version)}}),
        "route": {"timeout": f"{timeouts.total_s:g}s", "cluster": pinned_name(model, backend.version, protocol)},
        "response_headers_to_add": [_header(VERSION_HEADER, cluster_name(model, backend.version, protocol))],
    }


def _archived_route(model: str, backend: Backend, protocol: str, timeouts: Timeouts) -> Json:
    """Where several share a server, it knows each by a name of its own. Paths are rewritten; a gRPC call has its model in the body, where
    the caller must say that name: under the model's own name such a server knows nothing, and answers so.
    """
    route = _pinned_route(model, backend, protocol, timeouts)
    if protocol == "http" and backend.name is not None:
        pattern = {"regex": rf"^/v2/models/{model}(?:/versions/[0-9]+)?(.*)$"}
        route["route"]["regex_rewrite"] = {
            "pattern": pattern,
            "substitution": rf"/v2/models/{backend.name}\1",
        }
    return route


def _unknown_pin(model: str, protocol: str) -> Json:
    return _refusal(f"{model}-{protocol}-unknown-version", _pinning(model, protocol, {"present_match": True}), "unknown-version")


def _pinning(model: str, protocol: str, version: Json) -> Json:
    match = _match(model, protocol)
    return {**match, "headers": [*match.get("headers", []), {"name": PIN_HEADER, **version}]}


def _unpinned(traffic: ModelTraffic, protocol: str, timeouts: Timeouts, recorder_permille: int) -> Json:
    if traffic.stable is None:
        return _refusal(f"{traffic.model}-{protocol}", _match(traffic.model, protocol), "no-stable-version")
    return _route(traffic, traffic.stable, protocol, timeouts, recorder_permille)


def _route(traffic: ModelTraffic, stable: Backend, protocol: str, timeouts: Timeouts, recorder_permille: int) -> Json:
    action: Json = {
        "timeout": f"{timeouts.total_s:g}s",
        "hash_policy": [{"header": {"header_name": USER_HEADER}, "terminal": True}],
        "weighted_clusters": _weights(traffic, stable, protocol),
        "retry_policy": _retries(timeouts, elsewhere=len(traffic.backends) > 1),
        "request_mirror_policies": [*_mirrors(traffic, protocol), *_recorded(recorder_permille, protocol)],
    }
    return {
        "name": f"{traffic.model}-{protocol}",
        "match": _match(traffic.model, protocol),
        "route": action,
        "response_headers_to_add": [_header(VERSION_HEADER, "%UPSTREAM_CLUSTER%")],
        **({} if traffic.slice_header is None else _slices(traffic.slice_header)),
    }


def _slices(header: str) -> Json:
    """Copies the header that tells slices apart into the one that is logged. Before the router: also what finds no server is told apart."""
    copied = {"append": _header(SLICE_HEADER, f"%REQ({header}):{SLICE_CHARACTERS}%")}
    kind = f"type.googleapis.com/{_MUTATION_TYPE}PerRoute"
    return {"typed_per_filter_config": {MUTATION: {"@type": kind, "mutations": {"request_mutations": [copied]}}}}


def _weights(traffic: ModelTraffic, stable: Backend, protocol: str) -> Json:
    # Stable stands first and the total is constant: with hashing, nobody falls back from the candidate while its share grows.
    other = traffic.candidate or traffic.previous
    shares = [(stable, WHOLE)] if other is None else [(stable, WHOLE), (other, 0)]
    clusters = [{"name": cluster_name(traffic.model, each.version, protocol), "weight": share} for each, share in shares]
    return {"clusters": clusters, "use_hash_policy": True, "runtime_key_prefix": runtime_prefix(traffic.model)}


def _retries(timeouts: Timeouts, *, elsewhere: bool) -> Json:
    kind = "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    return {
        "retry_on": RETRY_ON,
        "retriable_headers": [{"name": "grpc-status", "string_match": {"exact": "2"}}],
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
        "retry_priority": {"name": "envoy.retry_priorities.previous_priorities", "typed_config": {"@type": kind, "update_frequency": 1}},
        **({"per_try_timeout": f"{timeouts.per_try_s:g}s"} if elsewhere else {}),
    }


def _mirrors(traffic: ModelTraffic, protocol: str) -> list[Json]:
    if traffic.candidate is None or not traffic.shadow_permille:
        return []
    return [_mirror(cluster_name(traffic.model, traffic.candidate.version, protocol), traffic.shadow_permille)]


def _recorded(permille: int, protocol: str) -> list[Json]:
    return [_mirror(f"{RECORDER}-{protocol}", permille)] if permille else []


def _mirror(cluster: str, permille: int) -> Json:
    return {"cluster": cluster, "runtime_fraction": {"default_value": {"numerator": permille * 1000, "denominator": "MILLION"}}}


def _match(model: str, protocol: str) -> Json:
    if protocol == "http":
        return {"safe_regex": {"regex": HTTP_CALLS.format(model=model)}}
    header = {"name": MODEL_HEADER, "string_match": {"exact": model}}
    return {"safe_regex": {"regex": GRPC_CALLS}, "grpc": {}, "headers": [header]}


def _refusal(name: str, match: Json, reason: str) -> Json:
    return {"name": name, "match": match, "direct_response": {"status": 404}, "response_headers_to_add": [_header(REASON_HEADER, reason)]}


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _protocol_options(protocol: str) -> Json:
    spoken: Json = {"http": {"http_protocol_options": {}}, "grpc": {"http2_protocol_options": {}}}[protocol]
    return _http_options({"common_http_protocol_options": {"idle_timeout": "30s"}, "explicit_http_config": spoken})


def _http_options(options: Json) -> Json:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: {"@type": f"type.googleapis.com/{name}", **options}}


def _runtime_layers() -> list[Json]:
    director = _director_service()
    source = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "1s",  # Envoy waits for it at start and must come up without its director
        "api_config_source": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [director]},
    }
    # No admin layer: with one, anybody on loopback could move traffic past the lease. Reading the runtime needs none.
    return [{"name": "static", "static_layer": {}}, {"name": SPLITS, "rtds_layer": {"name": SPLITS, "rtds_config": source}}]


def _director_service() -> Json:
    # Without this Envoy waits up to 30 s before it tries a director again that was away for a while.
    again = {"retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"}}
    return {"envoy_grpc": {"cluster_name": DIRECTOR_CLUSTER, "retry_policy": again}}


def _director_cluster(host: str, port: int) -> Json:
    alive = {"connection_keepalive": {"interval": "1s", "timeout": "1s"}}
    lone = {"priority": 0, "lb_endpoints": [{"endpoint": {"address": _service(host, port)}}]}
    return {
        "name": DIRECTOR_CLUSTER,
        **_found(host),
        "connect_timeout": "0.25s",
        "load_assignment": {"cluster_name": DIRECTOR_CLUSTER, "endpoints": [lone]},
        "typed_extension_protocol_options": _http_options({"explicit_http_config": {"http2_protocol_options": alive}}),
    }


def _recorder_clusters(host: str, http_port: int, grpc_port: int) -> list[Json]:
    """A mirror costs the user nothing as long as Envoy does not pile up for it: few requests at once, none while the recorder is away."""
    limit = {"max_connections": RECORDER_REQUESTS, "max_pending_requests": RECORDER_REQUESTS, "max_requests": RECORDER_REQUESTS}
    return [
        {
            "name": f"{RECORDER}-{protocol}",
            **_found(host),
            "connect_timeout": "0.25s",
            "load_assignment": {"cluster_name": f"{RECORDER}-{protocol}", "endpoints": [_recorder_endpoint(host, port, http_port)]},
            "typed_extension_protocol_options": _protocol_options(protocol),
            "circuit_breakers": {"thresholds": [limit]},
            "health_checks": [_health_check("/health")],
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        }
        for protocol, port in zip(PROTOCOLS, (http_port, grpc_port), strict=True)
    ]


def _recorder_endpoint(host: str, port: int, http_port: int) -> Json:
    endpoint = {"address": _service(host, port), "health_check_config": {"port_value": http_port}}
    return {"priority": 0, "lb_endpoints": [{"endpoint": endpoint}]}


def _service(host: str, port: int) -> Json:
    """The address of one of our own services, which may have a name; models' servers never have."""
    return {"socket_address": {"address": host, "port_value": port}}


def _found(host: str) -> Json:
    """How Envoy finds it: a name is looked up again each time that it is about to be forgotten, so a container may come back elsewhere."""
    named = not host.replace(".", "").isdecimal()
    return {"type": "STRICT_DNS", "respect_dns_ttl": True, "dns_lookup_family": "V4_ONLY"} if named else {"type": "STATIC"}


def _listener(files: Path, address: str, access_log: Path | None) -> Json:
    connection_manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",
        "normalize_path": True,
        "rds": {"route_config_name": ROUTES_NAME, "config_source": _watched(files, "rds")},
        "access_log": [_streamed_log(), *([] if access_log is None else [_file_log(access_log)])],
        "http_filters": [_slice_remover(), _router()],
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}
    chains = [{"filters": [network]}]
    return {"name": "gateway", "address": _socket(address), "per_connection_buffer_limit_bytes": BUFFER_BYTES, "filter_chains": chains}


def _slice_remover() -> Json:
    removed = {"request_mutations": [{"remove": SLICE_HEADER}]}
    return {"name": MUTATION, "typed_config": {"@type": f"type.googleapis.com/{_MUTATION_TYPE}", "mutations": removed}}


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }


def _streamed_log() -> Json:
    common = {
        "log_name": "requests",
        "transport_api_version": "V3",
        "grpc_service": _director_service(),
        "buffer_flush_interval": "0.1s",
        "buffer_size_bytes": 16384,
    }
    config = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        "common_config": common,
        "additional_request_headers_to_log": [SLICE_HEADER],
        "additional_response_headers_to_log": ["grpc-status"],  # there when the answer is trailers only, as most errors are
        "additional_response_trailers_to_log": ["grpc-status"],
    }
    return {"name": "envoy.access_loggers.http_grpc", "typed_config": config}


def _file_log(path: Path) -> Json:
    columns = {
        "start": "%START_TIME(%s.%6f)%",
        "path": "%REQ(:PATH)%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "host": "%UPSTREAM_HOST%",
        "code": "%RESPONSE_CODE%",
        "grpc": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "ms": "%DURATION%",
    }
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    return {"name": "envoy.access_loggers.file", "typed_config": {"@type": kind, "path": str(path), "log_format": {"json_format": columns}}}


def _watched(files: Path, name: str) -> Json:
    source = {"path": str(_file(files, name)), "watched_directory": {"path": str(files / name)}}
    return {"resource_api_version": "V3", "path_config_source": source}


def _file(files: Path, name: str) -> Path:
    return files / name / f"{name}.json"


def _socket(address: str) -> Json:
    host, port = host_and_port(address)
    return {"socket_address": {"address": host, "port_value": port}}


def _versioned(resources: list[Json]) -> Json:
    """The revision is a digest of the content: writing the same again is the same revision."""
    return {"version_info": sha256(canonical_json(resources).encode())[:16], "resources": resources}


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m delivery.gateway", description="Writes Envoy's bootstrap.")
    parser.add_argument("bootstrap", type=Path)
    parser.add_argument("--files", type=Path, required=True, help="folder of the watched directories cds and rds")
    for name in ("--port", "--admin-port", "--director-grpc-port"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--recorder-ports", type=int, nargs=2, metavar=("HTTP", "GRPC"), help="where the recorder takes mirrored requests")
    parser.add_argument("--access-log", type=Path)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; a container's own network needs 0.0.0.0")
    for name in ("--director-host", "--recorder-host"):
        parser.add_argument(name, default=LOOPBACK, help="address or name")
    given = vars(parser.parse_args(arguments))
    write_bootstrap(given.pop("bootstrap"), **given)


if __name__ == "__main__":
    main()
