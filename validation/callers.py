"""Asks one pinned version through the gateway, as callers do: JSON and binary over HTTP, gRPC. And dependent services, for checking.

The gate `integration` calls it. Requests are made and answers read by `tritonclient`, the library that callers use; only the sending is
done here, because its clients do not show the headers in which the gateway says who answered. What is the candidate's fault is `NoAnswer`;
what says nothing about it is `Trouble`, and worth another try. It compares nothing.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2_grpc

from validation.bundle import Tensor
from validation.payloads import HEADER_LENGTH, grpc_message, http_body

GATEWAY = "PENSTOCK_GATEWAY"
VERSION_HEADER = "x-penstock-version"  # the cluster that answered
REASON_HEADER = "x-penstock"  # why the gateway refused
MODEL_HEADER = "x-model"
PIN_HEADER = "x-model-version"
UNKNOWN_VERSION = "unknown-version"

TIMEOUT_S = 30.0
"""Longer than the gateway itself lets a request wait: when this ends, it is the gateway that does not answer."""

ANSWER_BYTES = 64 << 20
SERVICE_BYTES = 1 << 20
SHOWN_BYTES = 300

Arrays = Mapping[str, np.ndarray]
Result = TypeVar("Result")


class Trouble(RuntimeError):
    """Something between here and the candidate, or beyond it, is not there; nothing is said about the candidate."""


class NoAnswer(Exception):
    """The candidate, or the service that depends on it, gave no answer that counts; the message says what came instead."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What is given and what comes back."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"status {self.status}: {self.body[:SHOWN_BYTES].decode(errors='replace')}"


@dataclass(frozen=True, kw_only=True)
class GrpcReply:
    """An answer, or `words` on why there is none; names of headers in lower case."""

    headers: Mapping[str, str]
    answer: Any = None
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks this version of a model and no other, behind the gateway at `address` (host:port, HTTP and gRPC alike)."""

    address: str
    model: str
    version: int

    @classmethod
    def from_env(cls, model: str, version: int) -> Caller:
        if not os.environ.get(GATEWAY):
            raise Trouble(f"{GATEWAY} is not set: the place where tasks run must say where the gateway is (host:port)")
        return cls(address=os.environ[GATEWAY], model=model, version=version)

    def infer_http(self, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """The candidate's own good answer. Raises `NoAnswer` or `Trouble`."""
        reply = self.post(body, headers)
        self._insist_known(reply.headers)
        if reply.status != 200:
            raise NoAnswer(str(reply))
        self._insist_own(reply.headers, "http")
        return reply

    def infer_grpc(self, message: Any) -> Any:
        """The same over gRPC: a `ModelInferResponse`."""
        reply = self.call(message)
        self._insist_known(reply.headers)
        if reply.answer is None:
            raise NoAnswer(reply.words)
        self._insist_own(reply.headers, "grpc")
        return reply.answer

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """What the gateway gives, whatever it is. Raises `Trouble` when it gives nothing."""
        sent = {PIN_HEADER: str(self.version), "Content-Type": "application/json", **(headers or {})}
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", f"/v2/models/{self.model}/infer", body, sent)
            return _reply(connection.getresponse(), ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def call(self, message: Any) -> GrpcReply:
        """The same over gRPC. Whatever comes through the gateway has headers."""
        metadata = ((MODEL_HEADER, self.model), (PIN_HEADER, str(self.version)))
        options = (("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0), ("grpc.max_receive_message_length", ANSWER_BYTES))
        with grpc.insecure_channel(self.address, options=options) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            try:
                answer, call = infer.with_call(message, metadata=metadata, timeout=TIMEOUT_S)
                return GrpcReply(answer=answer, headers=_headers(call.initial_metadata()))
            except grpc.RpcError as error:
                return self._grpc_fault(error)

    def _grpc_fault(self, error: Any) -> GrpcReply:
        headers = _headers(error.initial_metadata()) | _headers(error.trailing_metadata())
        if not headers and error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise self._unreachable(error.details()) from error
        return GrpcReply(headers=headers, words=f"gRPC status {error.code().name}: {str(error.details())[:SHOWN_BYTES]}")

    def _insist_known(self, headers: Mapping[str, str]) -> None:
        if reason := headers.get(REASON_HEADER):
            raise Trouble(
                f"the gateway does not know v{self.version} of {self.model} ({reason}): the candidate was taken away, or the director did "
                "not tell the gateway of it; clear the whole run to deliver it again"
            )

    def _insist_own(self, headers: Mapping[str, str], protocol: str) -> None:
        own, found = f"{self.model}--v{self.version}--{protocol}", headers.get(VERSION_HEADER)
        if found != own:
            raise NoAnswer(f"{VERSION_HEADER} says {found or 'nothing'} and not {own}: another version answered")

    def _unreachable(self, error: Any) -> Trouble:
        return Trouble(f"the gateway at {self.address} does not answer: {str(error)[:SHOWN_BYTES] or type(error).__name__}")


def ask_json(caller: Caller, signature: Signature, rows: Arrays) -> Arrays:
    return _ask_http(caller, signature, rows, binary=False)


def ask_binary(caller: Caller, signature: Signature, rows: Arrays) -> Arrays:
    return _ask_http(caller, signature, rows, binary=True)


def ask_grpc(caller: Caller, signature: Signature, rows: Arrays) -> Arrays:
    answer = caller.infer_grpc(grpc_message(caller.model, signature.inputs, signature.outputs, rows))
    return _read(lambda: tritonclient.grpc.InferResult(answer), signature.outputs)


def _ask_http(caller: Caller, signature: Signature, rows: Arrays, *, binary: bool) -> Arrays:
    reply = caller.infer_http(*http_body(signature.inputs, signature.outputs, rows, binary=binary))
    length = reply.headers.get(HEADER_LENGTH.lower())
    read = tritonclient.http.InferenceServerClient.parse_response_body
    return _read(lambda: read(reply.body, header_length=None if length is None else int(length)), signature.outputs)


def _read(parse: Callable[[], Any], outputs: Iterable[Tensor]) -> Arrays:
    """The outputs by name. The client raises whatever a malformed answer makes it stumble over, and all of it means: no right answer."""
    try:
        answer = parse()
        return {each.name: answer.as_numpy(each.name) for each in outputs}
    except Exception as error:
        raise NoAnswer(f"an answer that tritonclient cannot read: {type(error).__name__}: {error}"[:SHOWN_BYTES]) from error


def call_service(url: str, *, method: str, body: str | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
    """What a dependent service answers, of whatever status; redirects are not followed.

    Raises `NoAnswer` when none comes in time, or none that ends; `Trouble` when there is no service at all.
    """
    kind = {} if body is None else {"Content-Type": "application/json"}
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data=data, headers={**kind, **headers}, method=method)
    return _within(timeout_s, lambda: _fetch(request, timeout_s))


def without_query(url: str) -> str:
    """For people's eyes: a query may hold what is not meant for them."""
    return url.partition("?")[0]


def _fetch(request: urllib.request.Request, timeout_s: float) -> Reply:
    try:
        with _opened(request, timeout_s) as answer:
            return _reply(answer, SERVICE_BYTES)
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise NoAnswer(f"no connection within {timeout_s:g} s") from error
        words = f"{without_query(request.full_url)} cannot be reached: {error.reason}"
        raise Trouble(f"{words}; start the service, or mend the policy's url") from error
    except TimeoutError as error:
        raise NoAnswer(f"no answer within {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"no HTTP answer: {type(error).__name__}: {error}"[:SHOWN_BYTES]) from error


def _opened(request: urllib.request.Request, timeout_s: float) -> Any:
    """The answer, of whatever status."""
    try:
        return urllib.request.build_opener(_Unmoved, urllib.request.ProxyHandler({})).open(request, timeout=timeout_s)
    except urllib.error.HTTPError as answer:
        return answer


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """A redirect could lead anywhere; whoever names the call knows the address that answers it."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _reply(answer: Any, limit_bytes: int) -> Reply:
    try:
        body = answer.read(limit_bytes + 1)
    except TimeoutError:  # for the caller to say what that means
        raise
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"the answer broke off: {type(error).__name__}: {error}"[:SHOWN_BYTES]) from error
    if len(body) > limit_bytes:
        raise NoAnswer(f"an answer of more than {limit_bytes} bytes")
    if answer.length:  # what the header promised and did not come; `read` with a limit does not say so
        raise NoAnswer(f"the answer broke off: {answer.length} bytes more were promised")
    return Reply(status=answer.status, headers={name.lower(): value for name, value in answer.headers.items()}, body=body)


def _within(timeout_s: float, work: Callable[[], Result]) -> Result:
    """The work's result, or `NoAnswer` when its time is over: a socket's own limit begins anew with every byte."""
    done: list[Result | Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:
            done.append(error)

    begun = time.monotonic()
    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(timeout_s)
    if not done:
        raise NoAnswer(f"no whole answer within {time.monotonic() - begun:.1f} s")
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def _headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    return {name: value for name, value in metadata or () if isinstance(value, str)}
