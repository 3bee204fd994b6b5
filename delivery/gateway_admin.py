"""Envoy's admin interface, as far as it shows what is in force: revisions, weights, servers, lost rows of the access log.

The director asks it before it calls a change done. It makes no connection: the caller brings a function that fetches an admin page. It
changes nothing at Envoy, which has no layer of the runtime that could be written to from there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from delivery.gateway import ROUTES_NAME, STAT_PREFIX, Hosts


class GatewayAway(RuntimeError):
    """Envoy is not connected or does not answer, so nothing can be changed. Worth a retry."""

    status = 503


class NotConfirmed(RuntimeError):
    """Envoy did not show in time what was asked for. Worth a retry."""

    status = 504


class Admin:
    """Envoy's admin interface, as far as it shows what is in force. `fetch` gets a path and returns the page, or raises `GatewayAway`."""

    def __init__(self, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        self._fetch = fetch

    async def versions(self) -> dict[str, str]:
        """The revisions of `cds` and `rds` that Envoy has taken."""
        page = (await self._fetch("/stats?filter=version_text$")).decode()
        texts = dict(line.split(": ", 1) for line in page.splitlines() if ": " in line)
        names = {"cds": "cluster_manager.cds.version_text", "rds": f"http.{STAT_PREFIX}.rds.{ROUTES_NAME}.version_text"}
        return {key: texts.get(name, "").strip('"') for key, name in names.items()}

    async def refusals(self) -> str:
        """Envoy's counters of configuration that it did not take, for the message of an error."""
        page = (await self._fetch("/stats?usedonly&filter=(cds|rds).*update_(rejected|failure)$")).decode()
        return ", ".join(page.split("\n")).strip(", ") or "nothing was refused"

    async def weights(self) -> dict[str, str]:
        """The runtime values in force, by key."""
        page = json.loads(await self._fetch("/runtime"))
        return {key: entry["final_value"] for key, entry in page.get("entries", {}).items()}

    async def dropped_rows(self) -> int:
        """Rows of the access log that Envoy threw away or could not send since its start: the director did not take them in time."""
        page = (await self._fetch("/stats?filter=^access_logs.grpc_access_log.(logs_dropped|grpc_entries_flush_failed)$")).decode()
        return sum(int(line.rsplit(": ", 1)[1]) for line in page.splitlines() if ": " in line)

    async def endpoints(self) -> list[Endpoint]:
        page = json.loads(await self._fetch("/clusters?format=json"))
        return [_endpoint(each["name"], host) for each in page.get("cluster_statuses", []) for host in each.get("host_statuses", [])]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server as a cluster sees it. The counters begin when the cluster is added and count attempts, not client requests."""

    cluster: str
    address: str
    priority: int
    healthy: bool
    requests: int
    failures: int
    active: int


def shown_hosts(endpoints: Iterable[Endpoint]) -> Hosts:
    shown: dict[str, set[tuple[str, int]]] = {}
    for each in endpoints:
        shown.setdefault(each.cluster, set()).add((each.address, each.priority))
    return {name: frozenset(hosts) for name, hosts in shown.items()}


def _endpoint(cluster: str, host: Mapping[str, Any]) -> Endpoint:
    address = host["address"]["socket_address"]
    counts = {each["name"]: int(each.get("value", 0)) for each in host.get("stats", [])}
    health = dict(host.get("health_status", {}))
    attempts, unreached = counts["rq_total"], counts["cx_connect_fail"]  # a request that found no connection is in no rq_ counter
    return Endpoint(
        cluster=cluster,
        address=f"{address['address']}:{address['port_value']}",
        priority=host.get("priority", 0),
        healthy=health.pop("eds_health_status", "HEALTHY") == "HEALTHY" and not any(health.values()),
        requests=attempts + unreached,
        failures=max(0, attempts - counts["rq_success"] - counts["rq_active"]) + unreached,
        active=counts["rq_active"],
    )
