"""What the load client itself costs, on a server that does nothing: printed with every result, so that nobody takes it for the model.

`latency_benchmark` asks for it before its load. A floor far below the model's latency, a slip far below a millisecond and a ceiling far
above the policy's rate are what makes the result one of the model.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass

import numpy as np
from tritonclient.grpc import service_pb2

from validation.child import child
from validation.load_client import ClientTrouble, LoadClient, Target
from validation.schedule import poisson

REQUESTS = {
    "http": b"POST /v2/models/null/infer HTTP/1.1\r\nHost: null\r\nContent-Length: 256\r\n\r\n" + bytes(256),
    "grpc": service_pb2.ModelInferRequest(model_name="null", raw_input_contents=[bytes(256)]).SerializeToString(),
}
"""Of a small model's size."""

QUERIES = 500
MOST_SECONDS = 1.0
CEILING_QUERIES = 2000
CONCURRENCY = 16


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """Latency on the null server at the policy's rate; how late requests were sent there; the most requests a second of one core."""

    floor_p50_ms: float
    floor_p99_ms: float
    slip_p99_ms: float
    ceiling_rps: float

    def __str__(self) -> str:
        return (
            f"client: floor {self.floor_p50_ms:.2f} ms (p99 {self.floor_p99_ms:.2f}), sent {self.slip_p99_ms:.2f} ms late (p99), "
            f"at most {self.ceiling_rps:,.0f} requests a second and core"
        )

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def client_limits(client: LoadClient, protocol: str, rate_per_s: float, rng: np.random.Generator) -> ClientLimits:
    """Takes about two seconds. What is asked in process is measured over HTTP here: slip and ceiling are the same process's there.

    Raises `ClientTrouble`.
    """
    protocol = protocol if protocol in REQUESTS else "http"
    command = [sys.executable, "-m", "validation.null_server", protocol]
    with child(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = server.stdout.readline().decode().strip()
        if not port:
            raise ClientTrouble("the null server did not start; the machine may be short of memory")
        client.open("null", Target(protocol=protocol, address=f"127.0.0.1:{port}", requests=(REQUESTS[protocol],)))
        try:
            return _measured(client, rate_per_s, rng)
        finally:
            client.close("null")


def _measured(client: LoadClient, rate_per_s: float, rng: np.random.Generator) -> ClientLimits:
    n = max(1, min(QUERIES, int(rate_per_s * MOST_SECONDS)))
    client.send_closed("null", CONCURRENCY, CONCURRENCY)
    open_load = client.send("null", poisson(rate_per_s, n, rng), np.zeros(n, dtype=int))
    closed_load = client.send_closed("null", CEILING_QUERIES, CONCURRENCY)
    if errors := [*open_load.errors.values(), *closed_load.errors.values()]:
        raise ClientTrouble(f"the null server failed: {errors[0]}")
    p50, p99 = np.quantile(open_load.latency_s, [0.5, 0.99])
    return ClientLimits(
        floor_p50_ms=1000 * float(p50),
        floor_p99_ms=1000 * float(p99),
        slip_p99_ms=1000 * float(np.quantile(open_load.late_s, 0.99)),
        ceiling_rps=CEILING_QUERIES / closed_load.cpu_s,
    )
