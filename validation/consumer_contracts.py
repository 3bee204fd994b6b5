"""What a consumer of the model relies on, and the first place where an answer does not keep to it. Pure: it asks nobody.

A contract is a JSON object, or a list of up to `MOST_PAIRS` of them, each with the body of an Open Inference Protocol request and one of:

| key             | the answer must                                                                                              |
|-----------------|--------------------------------------------------------------------------------------------------------------|
| response        | be the recorded one in names, datatypes and shapes of the outputs, and in the values where the recording has |
| response_schema | validate against this JSON Schema; references to other documents are not followed                            |

The gate `integration` reads contracts from its spec and asks the requests. NaN and infinity are no JSON and keep to no contract.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import SchemaError
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_PAIRS = 100
SHOWN_CHARACTERS = 120
NESTED = 32
REQUEST, RESPONSE, SCHEMA = "request", "response", "response_schema"


class BadContract(ValueError):
    """A contract, or a schema, that nothing can be held against: the fault of whoever wrote it, and no model's."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a recorded number may be missed. Without `values` only names, datatypes and shapes count."""

    atol: float
    rtol: float
    values: bool = True


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A request, and either the answer that was recorded or a schema of it."""

    request: Mapping[str, Any]
    response: Mapping[str, Any] | None = None
    schema: Schema | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where an answer is not as expected; `path` as in `outputs[0].data[3]`."""

    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


class Schema:
    """A JSON Schema of any draft that it names itself; without a word 2020-12. Raises `BadContract` when it is none."""

    def __init__(self, content: Any) -> None:
        if not isinstance(content, (Mapping, bool)):
            raise BadContract(f"no JSON Schema: {shown(content)}")
        try:
            kind = validator_for(content)
            kind.check_schema(content)
        except (SchemaError, RecursionError, TypeError) as error:
            raise BadContract(f"no JSON Schema: {getattr(error, 'message', str(error))[:SHOWN_CHARACTERS]}") from error
        self._validator = kind(content, registry=Registry())

    def difference(self, value: Any) -> Difference | None:
        """Raises `BadContract` for a schema that refers to what it does not hold, or to itself without end."""
        try:
            error = best_match(self._validator.iter_errors(value))
        except Unresolvable as unknown:
            raise BadContract(f"the schema refers to {unknown.ref!r}, which is not in it") from unknown
        except RecursionError as endless:
            raise BadContract("the schema refers to itself without end") from endless
        if error is None:
            return None
        path = error.json_path.removeprefix("$").removeprefix(".") or "the answer"
        return Difference(path=path, expected=f"{error.validator} {shown(error.validator_value)}", found=shown(error.instance))


def read_contract(content: Any) -> tuple[Pair, ...]:
    """The pairs of a contract's JSON. Raises `BadContract` that says which pair and what is wrong with it."""
    rows = content if isinstance(content, list) else [content]
    if not 1 <= len(rows) <= MOST_PAIRS:
        raise BadContract(f"{len(rows)} pairs of request and answer; expected 1 to {MOST_PAIRS}")
    return tuple(_pair(row, f"pair {number}" if isinstance(content, list) else "it") for number, row in enumerate(rows, 1))


def difference(pair: Pair, body: bytes, tolerance: Tolerance) -> Difference | None:
    """The first difference between the answer with this body and what the pair expects; None when there is none.

    Raises `BadContract` for a schema that refers to what it does not hold.
    """
    try:
        answer = json.loads(body)
        if (path := _unfinite(answer)) is not None:
            return Difference(path=path, expected="a finite number", found="NaN or infinity")
    except (ValueError, RecursionError):
        return Difference(path="the answer", expected="JSON", found=shown(body[:SHOWN_CHARACTERS].decode(errors="replace")))
    if pair.schema is not None:
        return pair.schema.difference(answer)
    return _from_recording(pair.response or {}, answer, tolerance)


def shown(value: Any) -> str:
    """A value as JSON, cut to what a sentence can hold."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _pair(row: Any, place: str) -> Pair:
    if not isinstance(row, Mapping):
        raise BadContract(f"{place} is {shown(row)}; expected an object")
    if unknown := sorted(set(row) - {REQUEST, RESPONSE, SCHEMA}):
        raise BadContract(f"{place} has the unknown key {unknown[0]!r}; known: {REQUEST}, {RESPONSE}, {SCHEMA}")
    if not isinstance(row.get(REQUEST), Mapping) or not isinstance(row[REQUEST].get("inputs"), list):
        raise BadContract(f"{place} has no {REQUEST} with a list of inputs")
    if (RESPONSE in row) == (SCHEMA in row):
        words = ("both", "and") if RESPONSE in row else ("neither", "nor")
        raise BadContract(f"{place} has {words[0]} {RESPONSE} {words[1]} {SCHEMA}; expected one of them")
    if SCHEMA in row:
        return Pair(request=row[REQUEST], schema=_schema(row[SCHEMA], place))
    return Pair(request=row[REQUEST], response=_recording(row[RESPONSE], place))


def _schema(content: Any, place: str) -> Schema:
    try:
        return Schema(content)
    except BadContract as error:
        raise BadContract(f"{place}: {SCHEMA} is {error}") from error


def _recording(row: Any, place: str) -> Mapping[str, Any]:
    """A recorded answer with nothing missing that is compared."""
    if not isinstance(row, Mapping) or not _tensors(row):
        raise BadContract(f"{place}: {RESPONSE} has no outputs, each with name, datatype and shape")
    for each in row["outputs"]:
        if "data" in each and len(_numbers(each["data"])) != math.prod(each["shape"]):
            raise BadContract(f"{place}: {RESPONSE} has {each['name']} with other values than its shape {each['shape']} asks for")
    return row


def _tensors(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The outputs of an answer; empty when it has none, or one of them is none, or two have one name."""
    outputs = row.get("outputs")
    if not isinstance(outputs, list) or not all(_is_tensor(each) for each in outputs):
        return []
    return outputs if len({each["name"] for each in outputs}) == len(outputs) else []


def _is_tensor(row: Any) -> bool:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not isinstance(row.get("datatype"), str):
        return False
    shape = row.get("shape")
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)


def _from_recording(recorded: Mapping[str, Any], answer: Any, tolerance: Tolerance) -> Difference | None:
    found = {each["name"]: each for each in _tensors(answer)} if isinstance(answer, Mapping) else {}
    names = [each["name"] for each in recorded["outputs"]]
    if sorted(names) != sorted(found):
        return Difference(path="outputs", expected=shown(sorted(names)), found=shown(sorted(found) or answer))
    differing = (_tensor(f"outputs[{place}]", each, found[each["name"]], tolerance) for place, each in enumerate(recorded["outputs"]))
    return next((each for each in differing if each is not None), None)


def _tensor(path: str, expected: Mapping[str, Any], found: Mapping[str, Any], tolerance: Tolerance) -> Difference | None:
    for key in ("datatype", "shape"):
        if expected[key] != found[key]:
            return Difference(path=f"{path}.{key}", expected=shown(expected[key]), found=shown(found[key]))
    values = _numbers(found.get("data"))
    if len(values) != math.prod(found["shape"]):
        return Difference(path=f"{path}.data", expected=f"{math.prod(found['shape'])} values", found=str(len(values)))
    if "data" not in expected or not tolerance.values:
        return None
    exact = not expected["datatype"].startswith(("FP", "BF"))
    for place, (wanted, got) in enumerate(zip(_numbers(expected["data"]), values, strict=True)):
        if not _equal(wanted, got, tolerance, exact=exact):
            return Difference(path=f"{path}.data[{place}]", expected=shown(wanted), found=shown(got))
    return None


def _equal(wanted: Any, got: Any, tolerance: Tolerance, *, exact: bool) -> bool:
    if exact or not _is_number(wanted) or not _is_number(got):
        return bool(wanted == got) and isinstance(wanted, bool) == isinstance(got, bool)
    return bool(abs(got - wanted) <= tolerance.atol + tolerance.rtol * abs(wanted))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(data: Any) -> list[Any]:
    """The values of a tensor's data, which may be nested by the shape; what is no list has none."""
    return list(_flat(data, NESTED)) if isinstance(data, list) else []


def _flat(data: list[Any], depth: int) -> Iterator[Any]:
    for each in data:
        if isinstance(each, list) and depth:
            yield from _flat(each, depth - 1)
        else:
            yield each


def _unfinite(value: Any, path: str = "") -> str | None:
    """Where a number that JSON does not know stands, if one does."""
    if isinstance(value, float) and not math.isfinite(value):
        return path or "the answer"
    rows = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in rows:
        place = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".removeprefix(".")
        if (found := _unfinite(each, place)) is not None:
            return found
    return None
