"""What clients lived through, one row per request: read from Envoy's access log stream, kept in a ring for the watch task to fetch.

The director feeds `Observations` and serves its rows. A row judges the version that the request was sent to, not what the client got:
retries and fallbacks hide a failing candidate from clients and from its cluster's 5xx counter alike. No version is judged here.
"""

from __future__ import annotations

import secrets
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from delivery.gateway import SLICE_HEADER
from delivery.traffic import parse_cluster

ROWS_KEPT = 200_000
ROWS_PER_ANSWER = 20_000
SERVER_FAULTS = frozenset({"2", "4", "13", "14"})  # gRPC: unknown, deadline exceeded, internal, unavailable
UPSTREAM_TROUBLE = (
    "no_healthy_upstream",
    "upstream_request_timeout",
    "local_reset",
    "upstream_remote_reset",
    "upstream_connection_failure",
    "upstream_connection_termination",
    "upstream_overflow",
    "upstream_retry_limit_exceeded",
    "upstream_max_stream_duration_reached",
    "upstream_protocol_error",
    "stream_idle_timeout",
    "duration_timeout",
    "no_cluster_found",
)

Row = tuple[int, float, int, int, float, str]  # sequence number, Unix seconds, version, ok (0 or 1), latency in ms, slice


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request at the gateway; `ok` says that the version's own server answered it at the first attempt, without a fault of its own.

    `slice` is what the model's slice header said, empty without one.
    """

    model: str
    version: int
    started_unix_s: float
    ok: bool
    latency_ms: float
    slice: str = ""


def read_entry(entry: Any, addresses: Mapping[str, str]) -> Request | None:
    """A request from an `HTTPAccessLogEntry`; `None` when it was sent to no version, or to a pinned one: who pins is no random sample.

    `addresses` maps clusters to their own servers.

    Missing is never a pass: no status (the client gave up before there was one) and no `grpc-status` both count against the version.
    """
    common = entry.common_properties
    sent_to = parse_cluster(common.upstream_cluster)
    if sent_to is None:
        return None
    model, version, protocol = sent_to
    own = common.upstream_request_attempt_count <= 1 and _address(common.upstream_remote_address) == addresses.get(common.upstream_cluster)
    answered = _grpc_answered(entry.response) if protocol == "grpc" else True
    return Request(
        model=model,
        version=version,
        started_unix_s=common.start_time.ToMicroseconds() / 1e6,
        ok=own and answered and 0 < entry.response.response_code.value < 500 and not _troubled(common.response_flags),
        latency_ms=_waited_ms(common),
        slice=sys.intern(entry.request.request_headers.get(SLICE_HEADER, "")),
    )


class Observations:
    """A ring of rows per model. `epoch` changes with every start of the director: sequence numbers begin anew then.

    `gaps` grows whenever rows of any model may have been lost on their way here.
    """

    def __init__(self, *, kept: int = ROWS_KEPT, per_answer: int = ROWS_PER_ANSWER) -> None:
        self.epoch = secrets.token_hex(8)
        self.gaps = 0
        self._kept = kept
        self._per_answer = per_answer
        self._rings: dict[str, deque[Row]] = {}
        self._last: dict[str, int] = {}

    def add(self, request: Request) -> None:
        number = self._last[request.model] = self._last.get(request.model, 0) + 1
        ring = self._rings.setdefault(request.model, deque(maxlen=self._kept))
        ring.append((number, request.started_unix_s, request.version, int(request.ok), request.latency_ms, request.slice))

    def interrupted(self, times: int = 1) -> None:
        """Rows may be missing from here on: a log stream ended, or Envoy dropped some."""
        self.gaps += times

    def after(self, model: str, number: int) -> dict[str, Any]:
        """Rows after `number`, oldest first. `last` is where to go on: the number of the last row here, or of the newest one if none is.

        `lost` counts the rows after `number` that have left the ring unseen.
        """
        ring = self._rings.get(model, deque())
        newest = self._last.get(model, 0)
        skipped = max(0, number - (newest - len(ring)))
        rows = list(islice(ring, skipped, skipped + self._per_answer))
        lost = max(0, newest - len(ring) - number)
        return {"epoch": self.epoch, "last": rows[-1][0] if rows else newest, "lost": lost, "gaps": self.gaps, "rows": rows}


def _grpc_answered(response: Any) -> bool:
    status = response.response_trailers.get("grpc-status") or response.response_headers.get("grpc-status")
    return bool(status) and status not in SERVER_FAULTS


def _troubled(flags: Any) -> bool:
    return any(getattr(flags, name) for name in UPSTREAM_TROUBLE)


def _address(address: Any) -> str:
    return f"{address.socket_address.address}:{address.socket_address.port_value}"


def _waited_ms(common: Any) -> float:
    """What the client waited, from the first byte of its request to the last byte of the answer."""
    waited = common.time_to_last_downstream_tx_byte if common.HasField("time_to_last_downstream_tx_byte") else common.duration
    return float(waited.ToMicroseconds()) / 1000
