"""The gate `integration`: does the candidate answer as its callers need it to, where they will reach it?

The candidate runs on its own server and has no traffic; this gate reaches it through the gateway, by pinning its version, as testers do.
It asks golden rows in every format that callers use, what the policy's consumers recorded or described, and the checks that dependent
services offer. It judges no quality and no speed: other gates did. It moves no traffic and does not know the director.

| finding              | claim                                                                                                          |
|----------------------|----------------------------------------------------------------------------------------------------------------|
| http_json            | golden rows as JSON over HTTP, alone and in batches, are answered by the candidate, as the source model did     |
| http_binary          | the same with binary tensors                                                                                   |
| grpc                 | the same over gRPC                                                                                             |
| unknown_version      | the gateway refuses a version that there is none of, over both protocols, and asks no other one instead        |
| contract_<consumer>  | every recorded request of this consumer is answered as was recorded, or as the schema says                     |
| call_<name>          | this dependent service answers its check as the policy says, told the candidate's version                      |

A gateway that is away, one that does not know the candidate, and a service that is not there are errors, not failures: nothing was shown.
Once something has failed they change nothing: the verdict stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from validation.bundle import OpenBundle, read_bundle
from validation.callers import (
    PIN_HEADER,
    REASON_HEADER,
    UNKNOWN_VERSION,
    VERSION_HEADER,
    Arrays,
    Caller,
    NoAnswer,
    Reply,
    Signature,
    Trouble,
    ask_binary,
    ask_grpc,
    ask_json,
    call_service,
    without_query,
)
from validation.consumer_contracts import BadContract, Difference, Pair, Schema, Tolerance, difference, read_contract
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, worst
from validation.findings import failed, inconclusive, passed
from validation.golden_rows import Batch, GoldenRows
from validation.policy import BadPolicy, ConsumerContract, Integration, ServiceCall, parse
from validation.served_rows import ATOL, MIN_ROWS, RTOL, rows_allowed, rows_inside

FILES = "files"
"""The key in a spec's limits that holds the contents of the policy's files, by name; the other keys are the policy's section."""

BATCH_ROWS, BATCH_BYTES = 64, 4 << 20
"""A batch has so many rows or bytes of inputs and answers, whichever is less; exported models take 64 rows at once."""

ROWS_BYTES = 64 << 20
"""Of input; where rows are large fewer are asked, but never fewer than `MIN_ROWS`."""

ALONE = 20
"""So many of the rows are also asked one by one."""

ABSENT_VERSION = 999_999_999
EVIDENCE_CHARACTERS = 16_384  # of one answer

Ask = Callable[[Caller, Signature, Arrays], Arrays]
FORMATS: Mapping[str, Ask] = {"http_json": ask_json, "http_binary": ask_binary, "grpc": ask_grpc}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the spec asks for: the policy's section, and what its files say."""

    limits: Integration
    contracts: Mapping[str, tuple[Pair, ...]]
    schemas: Mapping[str, Schema]


@dataclass(kw_only=True)
class Report:
    """What goes into the evidence: each exchange with a consumer's contract and a dependent service."""

    exchanges: list[dict[str, Any]] = field(default_factory=list)

    def add(self, finding: str, reply: Reply | None, fault: Any) -> None:
        status, body = (reply.status, reply.body.decode(errors="replace")[:EVIDENCE_CHARACTERS]) if reply else (None, None)
        self.exchanges.append({"finding": finding, "status": status, "answer": body, "fault": None if fault is None else str(fault)})

    def write(self, evidence: Path) -> None:
        (evidence / "exchanges.json").write_text(json.dumps(self.exchanges, indent=1))


def run(spec: Spec, evidence: Path) -> Decision:
    """Judges the spec's version behind the gateway; writes exchanges.json.

    Raises `BadSpec` for limits, a contract, a schema or a bundle that cannot be used, and `Trouble` (retry).
    """
    asked, caller, report = _asked(spec), Caller.from_env(spec.model, spec.version), Report()
    findings: list[Finding] = []
    try:
        with read_bundle(spec.need_bundle()) as bundle:
            for each in _findings(caller, bundle, asked, report):
                findings.append(each)  # noqa: PERF402 - what was found before a trouble must stand
    except BadContract as error:
        raise BadSpec(f"limits: {error}") from error
    except Trouble as trouble:
        if worst(each.outcome for each in findings) is not Outcome.FAILED:
            raise
        print(f"after a failure, which stands: {trouble}")
    report.write(evidence)
    return Decision(findings=tuple(findings))


def _findings(caller: Caller, bundle: OpenBundle, asked: Asked, report: Report) -> Iterator[Finding]:
    yield from _formats(caller, bundle, asked.limits.rows)
    yield _unknown_version(caller)
    for contract in asked.limits.contracts:
        yield _contract(caller, contract, asked.contracts[contract.file], report)
    for call in asked.limits.calls:
        yield _call(caller, call, asked.schemas.get(call.expect_schema or ""), report)


def _formats(caller: Caller, bundle: OpenBundle, rows: int) -> Iterator[Finding]:
    signature = Signature(inputs=bundle.manifest.inputs, outputs=bundle.manifest.outputs)
    if (known := bundle.manifest.rows) < MIN_ROWS:
        why, advice = f"the golden set has {known} rows; at least {MIN_ROWS} are asked", "register a larger golden set"
        yield from (inconclusive(name, why, advice, n=known, limit=MIN_ROWS) for name in FORMATS)
        return
    all_rows = GoldenRows(bundle)
    golden = all_rows.first(min(rows, known, max(MIN_ROWS, ROWS_BYTES // all_rows.input_bytes)))
    for name, ask in FORMATS.items():
        yield _in_json(caller, signature, golden) if ask is ask_json else _format(name, ask, caller, signature, golden)


def _in_json(caller: Caller, signature: Signature, golden: Batch) -> Finding:
    """Triton reads and writes NaN in JSON, as tritonclient does; half precision it takes in binary only."""
    if half := [each.name for each in (*signature.inputs, *signature.outputs) if each.dtype == "FP16"]:
        return passed("http_json", f"skipped: {half[0]} is FP16, which JSON does not carry in this protocol: nobody can ask so", n=0)
    return _format("http_json", ask_json, caller, signature, golden)


def _format(name: str, ask: Ask, caller: Caller, signature: Signature, golden: Batch) -> Finding:
    """All rows in batches, and the first ones alone; a row that is answered otherwise in either way counts once."""
    alone = min(ALONE, golden.rows)
    try:
        inside = np.concatenate([_inside(ask, caller, signature, part) for part in _parts(golden, _batch_rows(golden))])
        inside[:alone] &= np.concatenate([_inside(ask, caller, signature, part) for part in _parts(golden, 1, alone)])
    except (NoAnswer, ValueError) as error:
        return failed(name, f"no right answer to {golden.rows} golden rows: {error}"[:500], n=golden.rows)
    outside, allowed = int((~inside).sum()), rows_allowed(golden.rows)
    why = (
        f"{outside} of {golden.rows} golden rows were answered otherwise than by the source model, in batches or, the first {alone}, alone "
        f"(tolerances {ATOL:g} absolute, {RTOL:g} relative; {allowed} may be)"
    )
    outcome = Outcome.FAILED if outside > allowed else Outcome.PASSED
    advice = "the version's own server answered right before: look at what lies between, the gateway first" if outside > allowed else None
    return Finding(name=name, outcome=outcome, why=why, observed=outside, limit=allowed, n=golden.rows, advice=advice)


def _inside(ask: Ask, caller: Caller, signature: Signature, part: Batch) -> np.ndarray:
    return rows_inside(ask(caller, signature, part.inputs), part.reference)


def _parts(golden: Batch, size: int, stop: int | None = None) -> Iterator[Batch]:
    for start in range(0, golden.rows if stop is None else stop, size):
        yield _chosen(golden, slice(start, start + size))


def _chosen(golden: Batch, rows: Any) -> Batch:
    inputs, reference = ({name: values[rows] for name, values in arrays.items()} for arrays in (golden.inputs, golden.reference))
    return replace(golden, rows=len(next(iter(inputs.values()))), inputs=inputs, reference=reference)


def _batch_rows(golden: Batch) -> int:
    size = sum(each.nbytes for each in (*golden.inputs.values(), *golden.reference.values())) // golden.rows
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(size, 1)))


def _unknown_version(caller: Caller) -> Finding:
    """Asked without inputs: the gateway refuses before it looks at any."""
    other = replace(caller, version=ABSENT_VERSION)
    http, grpc = other.post(b'{"inputs": []}'), other.call(service_pb2.ModelInferRequest(model_name=caller.model))
    for protocol, headers, words in (("HTTP", http.headers, str(http)), ("gRPC", grpc.headers, grpc.words or "an answer")):
        if headers.get(REASON_HEADER) != UNKNOWN_VERSION:
            who = headers.get(VERSION_HEADER, "nobody who says so")
            why = f"v{ABSENT_VERSION}, which there is none of, is not refused over {protocol}: {words} by {who}"
            return failed("unknown_version", why[:500], observed=headers.get(REASON_HEADER), limit=UNKNOWN_VERSION, n=2)
    return passed(
        "unknown_version", f"v{ABSENT_VERSION} is refused over HTTP and gRPC", observed=UNKNOWN_VERSION, limit=UNKNOWN_VERSION, n=2
    )


def _contract(caller: Caller, contract: ConsumerContract, pairs: tuple[Pair, ...], report: Report) -> Finding:
    """All pairs are asked; the first difference is told, and how many there are."""
    name = f"contract_{contract.consumer}"
    faults = [_asked_pair(caller, contract, pair, report) for pair in pairs]
    differing = [(number, fault) for number, fault in enumerate(faults, 1) if fault is not None]
    if not differing:
        return passed(name, f"{len(pairs)} requests of {contract.file} are answered as agreed", observed=0, limit=0, n=len(pairs))
    number, fault = differing[0]
    why = f"{contract.consumer} cannot read what the candidate answers: request {number} of {len(pairs)} in {contract.file}: {fault}"
    advice = "deliver a version that keeps to the contract, or agree on another one with the consumer"
    return failed(name, why, observed=len(differing), limit=0, n=len(pairs), advice=advice)


def _asked_pair(caller: Caller, contract: ConsumerContract, pair: Pair, report: Report) -> Difference | NoAnswer | None:
    tolerance = Tolerance(atol=contract.atol, rtol=contract.rtol, values=not contract.ignore_values)
    reply: Reply | None = None
    fault: Difference | NoAnswer | None
    try:
        reply = caller.infer_http(json.dumps(pair.request).encode())
        fault = difference(pair, reply.body, tolerance)
    except NoAnswer as error:
        fault = error
    except BadContract as error:
        raise BadContract(f"{contract.file}: {error}") from error
    report.add(f"contract_{contract.consumer}", reply, fault)
    return fault


def _call(caller: Caller, call: ServiceCall, schema: Schema | None, report: Report) -> Finding:
    name, reply, headers = f"call_{call.name}", None, {PIN_HEADER: str(caller.version)}
    fault: Difference | NoAnswer | str | None
    try:
        reply = call_service(call.url, method=call.method, body=call.body, headers=headers, timeout_s=call.timeout_seconds)
        fault = _fault(call, reply, schema)
    except NoAnswer as error:
        fault = error
    except BadContract as error:
        raise BadContract(f"{call.expect_schema}: {error}") from error
    report.add(name, reply, fault)
    observed, address = reply.status if reply else None, f"{call.method} {without_query(call.url)}"
    if fault is None:
        why = f"{address} is answered as agreed, told v{caller.version}"
        return passed(name, why, observed=observed, limit=call.expect_status, n=1)
    advice = f"ask {call.name}'s owner, or try the call with the header {PIN_HEADER}: {caller.version}"
    return failed(name, f"{address}: {fault}", observed=observed, limit=call.expect_status, n=1, advice=advice)


def _fault(call: ServiceCall, reply: Reply, schema: Schema | None) -> Difference | str | None:
    if reply.status != call.expect_status:
        return f"expected status {call.expect_status}, found {reply}"
    if schema is None:
        return None
    return difference(Pair(request={}, schema=schema), reply.body, Tolerance(atol=0, rtol=0))


def _asked(spec: Spec) -> Asked:
    rows = {key: value for key, value in spec.limits.items() if key != FILES}
    try:
        limits = parse(Integration, rows, "integration")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error
    files = spec.limits.get(FILES, {})
    missing = set(limits.files) - (set(files) if isinstance(files, Mapping) else set())
    if missing or not isinstance(files, Mapping):
        raise BadSpec(f"limits: {FILES} must be an object with what the policy names; missing: {', '.join(sorted(missing))}")
    contracts = {each.file: _content(files, each.file, read_contract) for each in limits.contracts}
    schemas = {name: _content(files, name, Schema) for call in limits.calls if (name := call.expect_schema)}
    return Asked(limits=limits, contracts=contracts, schemas=schemas)


def _content(files: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(files[name])
    except BadContract as error:
        raise BadSpec(f"limits: {name}: {error}") from error
