"""The task `start_candidate`: starts a Triton for the version, proves that it answers as the bundle says, and tells the director.

Runs after the gates. The proof is a real inference with golden rows over HTTP and over gRPC, because Triton calls a model ready whose
process is dead. It judges no quality (the gate golden_set did, on every row) and gives the candidate no traffic.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from delivery.director_client import Director, Refused
from delivery.findings import Refusal, failed, passed, refused
from delivery.orders_watch import not_aborted
from delivery.triton import NotReady, Server, server_name, start_server, wait_ready
from validation.bundle import OpenBundle, Tensor, read_bundle
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec

if TYPE_CHECKING:
    import numpy as np

READY_TIMEOUT_S = 120
ANSWER_TIMEOUT_S = 30
PROBE_ROWS = 64
MIN_ROWS = 20
ATOL = RTOL = 1e-3  # the server computes in single precision, the reference perhaps not
ROWS_OUTSIDE = 1  # of 64: a row on the edge of two classes may fall either way; golden_set has counted such rows with its own limit

Arrays = Mapping[str, "np.ndarray"]


class Servers(Protocol):
    """What this task does with servers; `delivery.triton` in earnest."""

    def start(self, name: str, repository: Path) -> Server: ...

    def wait_ready(self, server: Server, model: str, timeout_s: float) -> float: ...


@dataclass(frozen=True)
class LocalServers:
    """Servers of the local supervisord."""

    def start(self, name: str, repository: Path) -> Server:
        return start_server(name, repository)

    def wait_ready(self, server: Server, model: str, timeout_s: float) -> float:
        return wait_ready(server, model, timeout_s)


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    return start_candidate(spec, LocalServers(), Director.from_env(), Path(os.environ["PENSTOCK_STATE"]) / "store")


def start_candidate(spec: Spec, servers: Servers, director: Director, store: Path) -> Decision:
    """Findings ready_s, probe_http, probe_grpc, registered; the first that does not pass ends the task, and `restore` stops the server.

    Outputs http and grpc, each "127.0.0.1:port". Raises `BadSpec` for a repository outside of the store, and what is worth another try:
    `triton.ServerTrouble`, `DirectorUnreachable`.
    """
    repository = _repository(spec, store)
    if (aborted := not_aborted(spec, director)) is not None:
        return Decision(findings=(aborted,))
    findings: list[Finding] = []
    try:
        server = _started(spec, servers, repository, findings)
        _probed(spec, server, findings)
        _registered(spec, server, director, findings)
    except Refusal as refusal:
        return Decision(findings=(*findings, refusal.finding))
    return Decision(findings=tuple(findings), outputs={"http": server.http, "grpc": server.grpc})


def probe(bundle: OpenBundle, address: str, protocol: str) -> Finding:
    """Asks the server at `address` about golden rows over "http" or "grpc" and compares with the bundle's reference, row by row."""
    from validation.golden_rows import GoldenRows

    name, rows = f"probe_{protocol}", min(PROBE_ROWS, bundle.manifest.rows)
    if rows < MIN_ROWS:
        why = f"the golden set has {rows} rows; a probe needs {MIN_ROWS}"
        return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, n=rows, limit=MIN_ROWS, advice="register a larger golden set")
    golden = GoldenRows(bundle).first(rows)
    try:
        outside = rows_outside(ask(protocol, address, bundle, golden.inputs), golden.reference)
    except Exception as error:  # tritonclient raises its own, gevent's and grpc's errors, and all of them mean: no right answer
        return failed(name, f"no answer to {rows} golden rows over {protocol}: {type(error).__name__}: {error}"[:500], n=rows)
    why = f"{outside} of {rows} golden rows answered otherwise than the source model (tolerances {ATOL:g} absolute, {RTOL:g} relative)"
    outcome = Outcome.FAILED if outside > ROWS_OUTSIDE else Outcome.PASSED
    return Finding(name=name, outcome=outcome, why=why, observed=outside, limit=ROWS_OUTSIDE, n=rows)


def ask(protocol: str, address: str, bundle: OpenBundle, rows: Arrays) -> dict[str, np.ndarray]:
    """One inference through tritonclient's client for `protocol`; the answers by output name, first axis = rows."""
    client: Any = importlib.import_module(f"tritonclient.{protocol}")
    wait: dict[str, float] = {"client_timeout": ANSWER_TIMEOUT_S} if protocol == "grpc" else {}
    limits: dict[str, float] = {"network_timeout": ANSWER_TIMEOUT_S} if protocol == "http" else {}
    with client.InferenceServerClient(address, **limits) as connection:
        given = [_given(client, each, rows[each.name]) for each in bundle.manifest.inputs]
        wanted = [client.InferRequestedOutput(each.name) for each in bundle.manifest.outputs]
        answer = connection.infer(bundle.manifest.model, given, outputs=wanted, **wait)
        return {each.name: answer.as_numpy(each.name) for each in bundle.manifest.outputs}


def rows_outside(answers: Arrays, reference: Arrays) -> int:
    """Rows with any output outside of the tolerances; a NaN is outside. Raises `ValueError` for outputs or shapes that differ."""
    import numpy as np

    if set(answers) != set(reference) or not reference:
        raise ValueError(f"the server answers {sorted(answers)}, the reference has {sorted(reference)}")
    inside = [_inside(name, answers[name], expected) for name, expected in reference.items()]
    return int(np.sum(~np.logical_and.reduce(inside)))


def _inside(name: str, answer: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Which rows agree, shape [rows]. Triton gives [rows, 1] where a model gives [rows]."""
    import numpy as np

    if answer is None or answer.shape[:1] != expected.shape[:1] or answer.size != expected.size:
        raise ValueError(f"{name} has shape {list(getattr(answer, 'shape', []))}, the reference {list(expected.shape)}")
    answer, expected = answer.reshape(len(answer), -1), expected.reshape(len(expected), -1)
    if expected.dtype.kind in "fc":
        return np.asarray(np.isclose(answer, expected, atol=ATOL, rtol=RTOL).all(axis=1))
    return np.asarray((_plain(answer) == expected).all(axis=1))


def _plain(answer: np.ndarray) -> np.ndarray:
    """Triton's clients give strings as bytes."""
    import numpy as np

    if answer.dtype.kind != "O":
        return answer
    texts = [each.decode() if isinstance(each, bytes) else each for each in answer.ravel()]
    return np.array(texts).reshape(answer.shape)


def _given(client: Any, tensor: Tensor, values: np.ndarray) -> Any:
    given = client.InferInput(tensor.name, list(values.shape), tensor.dtype)
    given.set_data_from_numpy(values)
    return given


def _slice_header(spec: Spec) -> str | None:
    """The request header by which the policy tells slices apart; the gateway logs it from now on."""
    slices = spec.limits.get("rollout", {}).get("slices")
    return slices["header"] if slices else None


def _repository(spec: Spec, store: Path) -> Path:
    """Only the place where `package` puts this version: a spec cannot make Triton load another folder."""
    expected = store / spec.model / f"v{spec.version}"
    if spec.inputs.get("repository") != str(expected):
        raise BadSpec(f"inputs.repository is {spec.inputs.get('repository')!r}; only {expected} is served, and `package` fills it")
    if not expected.is_dir():
        raise BadSpec(f"there is no folder {expected}: run `package` again")
    return expected


def _started(spec: Spec, servers: Servers, repository: Path, findings: list[Finding]) -> Server:
    server = servers.start(server_name(spec.model, spec.version), repository)
    try:
        waited_s = servers.wait_ready(server, spec.model, READY_TIMEOUT_S)
    except NotReady as error:
        raise refused("ready_s", str(error), advice="see the server's log; the model loads in Triton as it loads here") from error
    findings.append(passed("ready_s", f"ready after {waited_s:.2f} s", observed=round(waited_s, 3), limit=READY_TIMEOUT_S))
    return server


def _probed(spec: Spec, server: Server, findings: list[Finding]) -> None:
    with read_bundle(spec.need_bundle()) as bundle:
        for protocol, address in (("http", server.http), ("grpc", server.grpc)):
            finding = probe(bundle, address, protocol)
            if finding.outcome is not Outcome.PASSED:
                raise Refusal(finding)
            findings.append(finding)


def _registered(spec: Spec, server: Server, director: Director, findings: list[Finding]) -> None:
    """A refusal is a finding; a director that does not answer is an error, and worth another try."""
    try:
        director.put_candidate(spec.model, spec.version, server.http, server.grpc, slice_header=_slice_header(spec))
    except Refused as error:
        raise refused("registered", f"the director does not take v{spec.version} as candidate: {error}") from error
    findings.append(passed("registered", f"the gateway reaches v{spec.version} at {server.http} and {server.grpc}; it has no traffic yet"))
