"""The gate `integration`: a candidate on a server of its own, a real Envoy before it, and what callers and dependent services need."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from gateway_fixtures import Stack, running
from made_bundles import golden_rows, make_bundle
from ports import free_port
from served_model import Arrays, Fails, ServedModel, honest, serving
from tritonclient.grpc import service_pb2

from delivery import gateway as delivery_gateway
from delivery.traffic import cluster_name
from validation import callers, integration
from validation.bundle import read_bundle
from validation.callers import Caller, NoAnswer, Signature, Trouble, ask_binary, ask_grpc, ask_json
from validation.contract import BadSpec, Bundle, Decision, Outcome, Spec

FORMATS = ("http_json", "http_binary", "grpc")
REQUEST = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [0.5, 1.0, -1.0, 0.25]}]}
PASSED, INCONCLUSIVE, FAILED = Outcome.PASSED, Outcome.INCONCLUSIVE, Outcome.FAILED
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(Stack(tmp_path_factory.mktemp("gateway"))) as stack:
        yield stack


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def judged(gateway: Stack, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Decision]:
    """Judges a served model as v2 of a model of its own, known to the gateway as candidate unless `known` is unset."""

    def judge(served: ServedModel, *, rows: Bundle = bundle, known: bool = True, **limits: Any) -> Decision:
        model = f"irises-{next(_numbers)}"
        if known:
            gateway.client.put_candidate(model, 2, served.http, served.grpc)
        monkeypatch.setenv(callers.GATEWAY, gateway.gateway_address)
        spec = Spec(task="integration", model=model, version=2, delivery="d", evidence_uri="file:///x", bundle=rows, limits=limits)
        return integration.run(spec, tmp_path)

    return judge


@pytest.fixture
def served() -> Iterator[ServedModel]:
    with serving(ServedModel()) as model:
        yield model


def outcomes(decision: Decision) -> dict[str, Outcome]:
    return {each.name: each.outcome for each in decision.findings}


def why(decision: Decision, name: str) -> str:
    return next(each.why for each in decision.findings if each.name == name)


def contract(consumer: str = "billing", **more: Any) -> dict[str, Any]:
    return {"consumer": consumer, "file": f"contracts/{consumer}.json", **more}


def recording(rows: list[list[float]] | None = None) -> dict[str, Any]:
    inputs = np.array(rows or [[0.5, 1.0, -1.0, 0.25]], dtype=np.float32)
    found = {name: values.tolist() for name, values in honest({"X": inputs}).items()}
    label = {"name": "label", "datatype": "INT64", "shape": [len(inputs), 1], "data": found["label"]}
    shares = {"name": "probabilities", "datatype": "FP32", "shape": [len(inputs), 3], "data": found["probabilities"]}
    request = {"inputs": [{"name": "X", "datatype": "FP32", "shape": list(inputs.shape), "data": inputs.ravel().tolist()}]}
    return {"request": request, "response": {"model_name": "irises", "outputs": [label, shares]}}


# Formats


def test_a_candidate_that_answers_right_in_every_format_passes(judged, served: ServedModel) -> None:
    """Without a section of the policy the formats and the refusal of unknown versions are judged, on rows alone and in batches."""
    decision = judged(served)
    assert outcomes(decision) == dict.fromkeys((*FORMATS, "unknown_version"), PASSED)
    assert [each.n for each in decision.findings] == [100, 100, 100, 2]
    assert served.asked == ["http"] * 22 + ["http binary"] * 22 + ["grpc"] * 22


def test_the_candidate_is_asked_beside_a_stable_version(judged, gateway: Stack, served: ServedModel) -> None:
    """Who pins the candidate gets the candidate, whatever serves everybody else."""
    with serving(ServedModel(answer=lambda inputs: {})) as stable:
        model = f"irises-{next(_numbers) + 1}"
        gateway.client.put_candidate(model, 1, stable.http, stable.grpc)
        gateway.client.put_stable(model, 1)
        assert set(outcomes(judged(served)).values()) == {PASSED}
        assert stable.asked == []


def test_a_model_that_is_served_otherwise_than_it_was_judged_fails(judged, served: ServedModel) -> None:
    """Values decide in each format; one row in 64 may fall either way."""
    served.answer = lambda inputs: {**honest(inputs), "label": honest(inputs)["label"] + 1}
    decision = judged(served)
    assert outcomes(decision) == {**dict.fromkeys(FORMATS, FAILED), "unknown_version": PASSED}
    assert why(decision, "grpc").startswith("100 of 100 golden rows were answered otherwise than by the source model")


def test_a_row_that_is_answered_otherwise_alone_counts(judged, served: ServedModel) -> None:
    """A model that is right in batches only is not right for those who ask one row."""
    served.answer = lambda inputs: {**honest(inputs), "label": honest(inputs)["label"] + (len(inputs["X"]) == 1)}
    decision = judged(served)
    assert outcomes(decision)["http_binary"] is FAILED
    assert why(decision, "http_binary").startswith("20 of 100 golden rows")


def fails(inputs: Arrays) -> Arrays:
    raise Fails("onnxruntime: index out of range")


def nan(inputs: Arrays) -> Arrays:
    return {**honest(inputs), "probabilities": np.full((len(inputs["X"]), 3), np.nan, dtype=np.float32)}


def no_label(inputs: Arrays) -> Arrays:
    return {"probabilities": honest(inputs)["probabilities"]}


@pytest.mark.parametrize(
    ("answer", "words"), [(fails, "index out of range"), (nan, "100 of 100 golden rows"), (no_label, "label has shape")]
)
def test_errors_nan_and_missing_outputs_fail(judged, served: ServedModel, answer: Callable[[Arrays], Arrays], words: str) -> None:
    """No format passes, and each finding says what came."""
    served.answer = answer
    decision = judged(served)
    assert [outcomes(decision)[name] for name in FORMATS] == [FAILED] * 3
    assert all(words in why(decision, name) for name in FORMATS)


def test_a_candidate_whose_server_is_dead_fails(judged, gateway: Stack) -> None:
    """The gateway knows it and cannot reach it: that is no answer, and no other version's answer is taken for it."""
    with serving(ServedModel()) as model:
        model_name = f"irises-{next(_numbers) + 1}"
        gateway.client.put_candidate(model_name, 2, model.http, model.grpc)
    decision = judged(model, known=False)
    assert [outcomes(decision)[name] for name in FORMATS] == [FAILED] * 3
    assert "status 503: upstream connect error" in why(decision, "http_json")
    assert "gRPC status UNAVAILABLE: upstream connect error" in why(decision, "grpc")


def test_too_few_golden_rows_show_nothing(judged, served: ServedModel, tmp_path: Path) -> None:
    """Below twenty rows the formats are inconclusive."""
    decision = judged(served, rows=make_bundle(tmp_path, rows=golden_rows(19)))
    assert [outcomes(decision)[name] for name in FORMATS] == [INCONCLUSIVE] * 3


def test_large_rows_are_asked_in_smaller_numbers(judged, served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch, and all rows together, have a limit in bytes; twenty rows are asked whatever their size."""
    monkeypatch.setattr(integration, "BATCH_BYTES", 10 * (4 * 4 + 8 + 3 * 4))
    monkeypatch.setattr(integration, "ROWS_BYTES", 30 * 4 * 4)
    assert [each.n for each in judged(served).findings] == [30, 30, 30, 2]
    assert served.asked.count("grpc") == 3 + 20
    monkeypatch.setattr(integration, "ROWS_BYTES", 1)
    assert [each.n for each in judged(served).findings] == [20, 20, 20, 2]


def test_rows_with_a_missing_number_go_in_every_format(judged, served: ServedModel, tmp_path: Path) -> None:
    """Triton and its clients know NaN in JSON too."""
    served.answer = lambda inputs: honest({"X": np.nan_to_num(inputs["X"])})
    rows = golden_rows(100)
    rows.inputs[:90, 0] = np.nan
    reference = honest({"X": np.nan_to_num(rows.inputs)})
    decision = judged(served, rows=make_bundle(tmp_path, rows=rows, reference=reference, probes=False))
    assert [(each.outcome, each.n) for each in decision.findings] == [(PASSED, 100), (PASSED, 100), (PASSED, 100), (PASSED, 2)]


def test_half_precision_is_not_asked_in_json(judged, served: ServedModel, tmp_path: Path) -> None:
    """The protocol's JSON does not carry it; the skip is told, and the other formats are asked."""
    outputs = [{"name": "label", "dtype": "INT64", "shape": [1]}, {"name": "probabilities", "dtype": "FP16", "shape": [3]}]
    signature = {"inputs": [{"name": "X", "dtype": "FP32", "shape": [4]}], "outputs": outputs}
    served.answer = lambda inputs: {**honest(inputs), "probabilities": honest(inputs)["probabilities"].astype(np.float16)}
    decision = judged(served, rows=make_bundle(tmp_path, manifest={"signature": signature}))
    assert [(each.outcome, each.n) for each in decision.findings] == [(PASSED, 0), (PASSED, 100), (PASSED, 100), (PASSED, 2)]
    assert why(decision, "http_json").startswith("skipped: probabilities is FP16")


# Who answered


@pytest.mark.parametrize("ask", [ask_json, ask_binary, ask_grpc])
def test_an_answer_that_does_not_say_who_gave_it_is_none(served: ServedModel, bundle: Bundle, ask: Callable[..., Arrays]) -> None:
    """Without the gateway's word nobody knows which version answered, however right the values."""
    with read_bundle(bundle) as opened:
        signature = Signature(inputs=opened.manifest.inputs, outputs=opened.manifest.outputs)
    caller = Caller(address=served.grpc if ask is ask_grpc else served.http, model="irises", version=2)
    with pytest.raises(NoAnswer, match=r"x-penstock-version says nothing and not irises--v2--(http|grpc): another version answered"):
        ask(caller, signature, {"X": golden_rows(3).inputs})


def test_a_fallbacks_answer_never_passes(served: ServedModel) -> None:
    """Another version's name in the header is no answer of the candidate's."""
    served.headers = {callers.VERSION_HEADER: "irises--v1--http"}
    with pytest.raises(NoAnswer, match="says irises--v1--http and not irises--v2--http"):
        Caller(address=served.http, model="irises", version=2).infer_http(json.dumps(REQUEST).encode())


def test_a_version_that_there_is_none_of_must_be_refused(served: ServedModel) -> None:
    """A gateway that asks somebody else instead would hide a missing candidate."""

    class Lenient(Caller):
        def call(self, message: Any) -> Any:
            return callers.GrpcReply(headers={callers.REASON_HEADER: "unknown-version"})

    finding = integration._unknown_version(Lenient(address=served.http, model="irises", version=2))
    assert (finding.outcome, "is not refused over HTTP: status 400" in finding.why) == (FAILED, True)


def test_the_gate_and_the_gateway_use_the_same_words() -> None:
    """Validation does not import delivery, so the words stand twice; here they are held together."""
    words = ("VERSION_HEADER", "REASON_HEADER", "MODEL_HEADER", "PIN_HEADER")
    assert {name: getattr(callers, name) for name in words} == {name: getattr(delivery_gateway, name) for name in words}
    assert cluster_name("irises", 2, "grpc") == "irises--v2--grpc"


# Errors


def test_a_gateway_that_is_away_is_an_error_and_no_failed_model(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no verdict, so Airflow tries again; the address stands in the message, or that there is none."""
    spec = Spec(task="integration", model="irises", version=2, delivery="d", evidence_uri="file:///x", bundle=bundle)
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(callers.GATEWAY, address)
    with pytest.raises(Trouble, match=f"the gateway at {address} does not answer: .*refused"):
        integration.run(spec, tmp_path)
    with pytest.raises(Trouble, match=f"the gateway at {address} does not answer"):
        Caller.from_env("irises", 2).call(service_pb2.ModelInferRequest())
    monkeypatch.delenv(callers.GATEWAY)
    with pytest.raises(Trouble, match="PENSTOCK_GATEWAY is not set"):
        integration.run(spec, tmp_path)


def test_a_candidate_that_the_gateway_does_not_know_is_an_error(judged, gateway: Stack, served: ServedModel) -> None:
    """It was taken away, or never told of: nothing is said about the model, and the message says what to do."""
    with pytest.raises(Trouble, match=r"does not know v2 of irises-\d+ \(unknown-model\).*clear the whole run"):
        judged(served, known=False)
    model = f"irises-{next(_numbers)}"
    gateway.client.put_candidate(model, 1, served.http, served.grpc)
    caller = Caller(address=gateway.gateway_address, model=model, version=2)
    with pytest.raises(Trouble, match="unknown-version"):
        caller.infer_grpc(service_pb2.ModelInferRequest(model_name=model))


def test_trouble_after_a_failure_does_not_undo_it(judged, served: ServedModel) -> None:
    """A refusal gets no second chance because a service was away afterwards; without a failure the service is an error."""
    call = {"name": "store", "url": f"http://127.0.0.1:{free_port()}/check?token=secret"}
    with pytest.raises(Trouble, match=r"http://127\.0\.0\.1:\d+/check cannot be reached: .*refused; start the service"):
        judged(served, calls=[call])
    served.answer = fails
    assert outcomes(judged(served, calls=[call])) == {**dict.fromkeys(FORMATS, FAILED), "unknown_version": PASSED}


# Contracts


def test_recorded_answers_are_compared_and_the_difference_is_told(judged, served: ServedModel, tmp_path: Path) -> None:
    """The finding names consumer, file and place; the evidence has the answers."""
    good, bad = recording(), recording([[1, 2, 3, 4], [4, 3, 2, 1]])
    bad["response"]["outputs"][1]["data"][1][2] += 0.5
    files = {"contracts/billing.json": good, "contracts/search.json": [good, bad]}
    decision = judged(served, contracts=[contract("billing"), contract("search")], files=files)
    assert (outcomes(decision)["contract_billing"], outcomes(decision)["contract_search"]) == (PASSED, FAILED)
    words = "search cannot read what the candidate answers: request 2 of 2 in contracts/search.json: outputs[1].data[5]: expected "
    assert why(decision, "contract_search").startswith(words)
    exchanges = json.loads((tmp_path / "exchanges.json").read_text())
    assert [each["status"] for each in exchanges] == [200, 200, 200]
    assert ["outputs[1].data[5]" in str(each["fault"]) for each in exchanges] == [False, False, True]
    loose = judged(served, contracts=[contract("search", ignore_values=True)], files=files)
    assert outcomes(loose)["contract_search"] is PASSED


def test_a_schema_holds_for_any_version(judged, served: ServedModel) -> None:
    """What is described and not recorded outlives a better model; a request that the candidate refuses breaks it."""
    schema = {"properties": {"outputs": {"minItems": 2}}}
    files = {"contracts/billing.json": {"request": REQUEST, "response_schema": schema}}
    assert outcomes(judged(served, contracts=[contract()], files=files))["contract_billing"] is PASSED
    files["contracts/billing.json"]["response_schema"] = {"properties": {"outputs": {"minItems": 3}}}
    found = why(judged(served, contracts=[contract()], files=files), "contract_billing")
    assert "contracts/billing.json: outputs: expected minItems 3, found [" in found
    served.answer = fails
    found = why(judged(served, contracts=[contract()], files=files), "contract_billing")
    assert found.endswith("contracts/billing.json: status 400: onnxruntime: index out of range")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"contracts": [contract()]}, "files must be an object with what the policy names; missing: contracts/billing.json"),
        ({"contracts": [contract()], "files": {"contracts/billing.json": {}}}, "contracts/billing.json: it has no request"),
        ({"calls": [{"name": "a", "url": "http://a", "expect_schema": "a.json"}], "files": {"a.json": 3}}, "a.json: no JSON Schema: 3"),
        ({"row": 3}, "unknown key integration.row"),
        ({"files": []}, "files must be an object with what the policy names"),
    ],
)
def test_what_the_policy_gets_wrong_is_a_bad_spec(judged, served: ServedModel, limits: dict[str, Any], words: str) -> None:
    """It is not tried again and nobody is asked."""
    with pytest.raises(BadSpec, match=words):
        judged(served, **limits)
    assert served.asked == []


def test_a_schema_that_refers_to_nothing_is_a_bad_spec(judged, served: ServedModel) -> None:
    """Found only when it is used, and the policy's fault all the same."""
    files = {"contracts/billing.json": {"request": REQUEST, "response_schema": {"$ref": "#/nowhere"}}}
    with pytest.raises(BadSpec, match=r"contracts/billing\.json: the schema refers to"):
        judged(served, contracts=[contract()], files=files)


# Dependent services


class Service(BaseHTTPRequestHandler):
    """A dependent service with a check of each kind."""

    def do_GET(self) -> None:
        version = self.headers["x-model-version"]
        if self.path == "/slow":
            time.sleep(1)
        if self.path == "/trickle":
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b" ")
                time.sleep(0.05)
            return
        status = {"/moved": 302, "/broken": 503}.get(self.path, 200)
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            return
        body = b"x" * (1 << 20) + b"x" if self.path == "/large" else json.dumps({"told": version, "score": 0.5}).encode()
        self.send_response(status)
        self.send_header("Location", "/fine")
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asks does not read all of `/large`
            self.wfile.write(b"" if self.path == "/cut" else body)

    def do_POST(self) -> None:
        self.send_response(201)
        self.end_headers()
        self.wfile.write(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    with contextlib.closing(server.socket):
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def called(service: str, path: str, **more: Any) -> dict[str, Any]:
    return {"name": "store", "url": service + path, "timeout_seconds": 0.3, **more}


def test_a_dependent_service_is_told_the_version_and_believed(judged, served: ServedModel, service: str) -> None:
    """It gets the header that it can pass on; status and schema must be what the policy says."""
    schema = {"properties": {"told": {"const": "2"}, "score": {"maximum": 1}}, "required": ["told"]}
    posted = called(service, "/score", name="post", method="POST", body='{"a": 1}', expect_status=201, expect_schema="post.json")
    calls = [called(service, "/fine", expect_schema="store.json"), posted]
    decision = judged(served, calls=calls, files={"store.json": schema, "post.json": {"required": ["a"]}})
    assert (outcomes(decision)["call_store"], outcomes(decision)["call_post"]) == (PASSED, PASSED)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/moved", "expected status 200, found status 302"),
        ("/broken", "expected status 200, found status 503"),
        ("/slow", "no (whole )?answer within 0.3 s"),
        ("/trickle", "no whole answer within 0.3 s"),
        ("/short", "the answer broke off: 100 bytes more were promised"),
        ("/large", "an answer of more than 1048576 bytes"),
        ("/fine", "score: expected maximum 0.1, found 0.5"),
        ("/cut", 'the answer: expected JSON, found ""'),
    ],
)
def test_a_check_that_does_not_hold_fails_with_the_reason(judged, served: ServedModel, service: str, path: str, words: str) -> None:
    """Another status, a redirect, no answer in time, too much of one, or one that the schema does not take."""
    schema = {"properties": {"score": {"maximum": 0.1}}}
    decision = judged(served, calls=[called(service, path, expect_schema="s.json")], files={"s.json": schema})
    assert outcomes(decision)["call_store"] is FAILED
    found = next(each for each in decision.findings if each.name == "call_store")
    assert re.match(rf"GET {service}{path}: {words}", found.why)
    assert found.advice == "ask store's owner, or try the call with the header x-model-version: 2"
