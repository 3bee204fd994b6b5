"""The task `start_candidate`: starts a Triton for the version, proves that it answers as the bundle says, and tells the director.

Runs after the gates. The proof is a real inference with golden rows over HTTP and over gRPC, because Triton calls a model ready whose
process is dead. It judges no quality (the gate golden_set did, on every row) and gives the candidate no traffic.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery import servers as places
from delivery.director_client import Director, Refused
from delivery.findings import Refusal, failed, passed, refused
from delivery.orders_watch import not_aborted
from delivery.servers import Servers
from delivery.triton import NotReady, Server, server_name
from validation.bundle import Manifest, OpenBundle, Tensor, read_bundle
from validation.contract import Decision, Finding, Outcome, Spec
from validation.served_rows import ATOL, MIN_ROWS, RTOL, rows_allowed, rows_outside

if TYPE_CHECKING:
    import numpy as np

READY_TIMEOUT_S = 120
ANSWER_TIMEOUT_S = 30
PROBE_ROWS = 64
BATCH = 64  # what `export` writes as the largest batch of a model
AGAIN = "deliver the version again: everything is then made anew from the registry's artifact"

Arrays = Mapping[str, "np.ndarray"]


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    return start_candidate(spec, places.from_env(), Director.from_env())


def start_candidate(spec: Spec, servers: Servers, director: Director) -> Decision:
    """Findings ready_s, chain, probe_http, probe_grpc, registered; the first that does not pass ends the task, and `restore` stops the
    server.

    Outputs http and grpc, each "address:port". Raises `BadSpec` for a source that `package` has not made, and what is worth another try:
    `triton.ServerTrouble`, `EngineTrouble`, `DirectorUnreachable`.
    """
    source = servers.source(spec)
    if (aborted := not_aborted(spec, director)) is not None:
        return Decision(findings=(aborted,))
    findings: list[Finding] = []
    try:
        server = _started(spec, servers, source, findings)
        _probed(spec, servers, server, findings)
        _registered(spec, server, director, findings)
    except Refusal as refusal:
        return Decision(findings=(*findings, refusal.finding))
    return Decision(findings=tuple(findings), outputs={"http": server.http, "grpc": server.grpc})


def chain(manifest: Manifest, loaded: Mapping[str, str], name: str) -> Finding:
    """Whether the server was given the very files that the bundle's manifest names, and no other; `loaded`: sha256 by file name."""
    promised = manifest.served
    wrong = sorted(file for file in {*promised, *loaded} if promised.get(file) != loaded.get(file))
    if wrong or not promised:
        is_what = f"{loaded.get(wrong[0], 'missing')}, by the bundle {promised.get(wrong[0], 'nothing')}" if wrong else "empty"
        return failed(
            "chain", f"{name} serves another {wrong[0] if wrong else 'model'} than the bundle holds: it is {is_what}", advice=AGAIN
        )
    return passed("chain", f"all {len(promised)} files that {name} serves have the digests of the bundle's manifest", n=len(promised))


def probe(bundle: OpenBundle, address: str, protocol: str, wanted: int = PROBE_ROWS, least: int = MIN_ROWS) -> Finding:
    """Asks the server at `address` about golden rows over "http" or "grpc" and compares with the bundle's reference, row by row.

    Of the `wanted` rows there must be `least`.
    """
    from validation.golden_rows import GoldenRows

    name, rows = f"probe_{protocol}", min(wanted, bundle.manifest.rows)
    if rows < least:
        why = f"the golden set has {rows} rows; a probe needs {least}"
        return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, n=rows, limit=least, advice="register a larger golden set")
    golden = GoldenRows(bundle).first(rows)
    try:
        outside = rows_outside(ask(protocol, address, bundle, golden.inputs), golden.reference)
    except Exception as error:  # tritonclient raises its own, gevent's and grpc's errors, and all of them mean: no right answer
        return failed(name, f"no answer to {rows} golden rows over {protocol}: {type(error).__name__}: {error}"[:500], n=rows)
    why = f"{outside} of {rows} golden rows answered otherwise than the source model (tolerances {ATOL:g} absolute, {RTOL:g} relative)"
    allowed = rows_allowed(rows)
    outcome = Outcome.FAILED if outside > allowed else Outcome.PASSED
    return Finding(name=name, outcome=outcome, why=why, observed=outside, limit=allowed, n=rows)


def ask(protocol: str, address: str, bundle: OpenBundle, rows: Arrays) -> dict[str, np.ndarray]:
    """Inferences of at most `BATCH` rows through tritonclient's client for `protocol`; the answers by output name, first axis = rows."""
    import numpy as np

    client: Any = importlib.import_module(f"tritonclient.{protocol}")
    wait: dict[str, float] = {"client_timeout": ANSWER_TIMEOUT_S} if protocol == "grpc" else {}
    limits: dict[str, float] = {"network_timeout": ANSWER_TIMEOUT_S} if protocol == "http" else {}
    with client.InferenceServerClient(address, **limits) as connection:
        wanted = [client.InferRequestedOutput(each.name) for each in bundle.manifest.outputs]
        answers = []
        for start in range(0, len(next(iter(rows.values()))), BATCH):
            given = [_given(client, each, rows[each.name][start : start + BATCH]) for each in bundle.manifest.inputs]
            answers.append(connection.infer(bundle.manifest.model, given, outputs=wanted, **wait))
        return {each.name: np.concatenate([answer.as_numpy(each.name) for answer in answers]) for each in bundle.manifest.outputs}


def _given(client: Any, tensor: Tensor, values: np.ndarray) -> Any:
    given = client.InferInput(tensor.name, list(values.shape), tensor.dtype)
    given.set_data_from_numpy(values)
    return given


def _slice_header(spec: Spec) -> str | None:
    """The request header by which the policy tells slices apart; the gateway logs it from now on."""
    slices = spec.limits.get("rollout", {}).get("slices")
    return slices["header"] if slices else None


def _started(spec: Spec, servers: Servers, source: str, findings: list[Finding]) -> Server:
    server = servers.start(server_name(spec.model, spec.version), source)
    try:
        waited_s = servers.wait_ready(server, spec.model, READY_TIMEOUT_S)
    except NotReady as error:
        raise refused("ready_s", str(error), advice="see the server's log; the model loads in Triton as it loads here") from error
    findings.append(passed("ready_s", f"ready after {waited_s:.2f} s", observed=round(waited_s, 3), limit=READY_TIMEOUT_S))
    return server


def _probed(spec: Spec, servers: Servers, server: Server, findings: list[Finding]) -> None:
    with read_bundle(spec.need_bundle()) as bundle:
        findings.append(chain(bundle.manifest, servers.files(server.name), server.name))
        if findings[-1].outcome is not Outcome.PASSED:
            raise Refusal(findings.pop())
        for protocol, address in (("http", server.http), ("grpc", server.grpc)):
            finding = probe(bundle, address, protocol)
            if finding.outcome is not Outcome.PASSED:
                raise Refusal(finding)
            findings.append(finding)


def _registered(spec: Spec, server: Server, director: Director, findings: list[Finding]) -> None:
    """A refusal is a finding; a director that does not answer is an error, and worth another try."""
    try:
        addresses = (server.http, server.grpc)
        director.put_candidate(spec.model, spec.version, *addresses, slice_header=_slice_header(spec), metrics=server.metrics)
    except Refused as error:
        raise refused("registered", f"the director does not take v{spec.version} as candidate: {error}") from error
    findings.append(passed("registered", f"the gateway reaches v{spec.version} at {server.http} and {server.grpc}; it has no traffic yet"))
