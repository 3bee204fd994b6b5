"""A model's policy: limits, rollout steps, triggers, read from TOML into frozen dataclasses.

DAGs and operators read a policy to wire and to fill specs; tasks read their own section of it back from `spec.limits`. Nothing has a
silent default: a key that is missing, unknown or out of range raises `BadPolicy`, which names the place and what is allowed there.
This module reads no file beyond the one it is given and decides nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

MODEL_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # part of cluster, DAG and file names; `--` separates there
TRIGGERS = ("created", "tag", "alias")
METRICS = ("accuracy",)
OWNER = re.compile(r"\w[\w .,@+/-]{0,79}")  # shown in the UI and in notices: a name, a team or an address
BY_HAND = "none"
PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
CRON_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}

Section = TypeVar("Section")


class BadPolicy(ValueError):
    """A policy that cannot be obeyed; the message names the key and the allowed values."""


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """Which registry event asks for a delivery: the marker as a tag at creation, as a tag set later, or as an alias."""

    on: tuple[str, ...]
    marker: str

    def __post_init__(self) -> None:
        _one_of(self.on, TRIGGERS, "trigger.on")
        _need(bool(self.on) and bool(self.marker), "trigger needs at least one `on` and a `marker`")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric on the golden labels. Margins are absolute differences of the metric (0.005 = half a point of accuracy)."""

    name: str
    at_least: float
    within_training: float
    not_worse_than_stable: float

    def __post_init__(self) -> None:
        _one_of((self.name,), METRICS, "golden_set.metrics.name")
        _within(self.at_least, 0, 1, "golden_set.metrics.at_least")
        for name in ("within_training", "not_worse_than_stable"):  # a margin of 1 would let every model pass
            _within(getattr(self, name), 0, 1, f"golden_set.metrics.{name}", open_low=True, open_high=True)


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    min_rows: int
    atol: float
    rtol: float
    rows_outside_permille: int
    metrics: tuple[Metric, ...]

    def __post_init__(self) -> None:
        _within(self.min_rows, 1, math.inf, "golden_set.min_rows")
        _within(self.atol, 0, math.inf, "golden_set.atol")
        _within(self.rtol, 0, 1, "golden_set.rtol")
        _within(self.rows_outside_permille, 0, 1000, "golden_set.rows_outside_permille")
        _need(bool(self.metrics), "golden_set.metrics: at least one metric, or nothing is shown about the labels")


@dataclass(frozen=True, kw_only=True)
class LatencyBenchmark:
    rate_per_s: float
    min_queries: int
    max_seconds: float
    p50_ms: float
    p99_ms: float

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _within(getattr(self, each.name), 0, math.inf, f"latency_benchmark.{each.name}", open_low=True)


@dataclass(frozen=True, kw_only=True)
class Shadow:
    permille: int
    min_seconds: float
    max_seconds: float
    min_requests: int
    exclude_error_rate: float

    def __post_init__(self) -> None:
        _within(self.permille, 1, 1000, "shadow.permille")
        _dwell(self.min_seconds, self.max_seconds, "shadow")
        _within(self.min_requests, 1, math.inf, "shadow.min_requests")
        _within(self.exclude_error_rate, 0, 1, "shadow.exclude_error_rate", open_low=True)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One share of the traffic; passed only when `exclude_error_rate` and `exclude_latency_worse` are surely excluded."""

    permille: int
    min_seconds: float
    max_seconds: float
    exclude_error_rate: float
    exclude_latency_worse: float

    def __post_init__(self) -> None:
        _within(self.permille, 1, 1000, "rollout.steps.permille")
        _dwell(self.min_seconds, self.max_seconds, "rollout.steps")
        _within(self.exclude_error_rate, 0, 1, "rollout.steps.exclude_error_rate", open_low=True)
        _within(self.exclude_latency_worse, 0, math.inf, "rollout.steps.exclude_latency_worse", open_low=True)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Shares and what they must show. `false_alarm` is the chance to take back a good candidate over the whole rollout."""

    newer: str
    lease_seconds: float
    false_alarm: float
    miss: float
    error_limit: float
    latency_worse: float
    indifferent_below_ms: float
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        _one_of((self.newer,), ("waits", "supersedes"), "rollout.newer")
        _within(self.lease_seconds, 2, 600, "rollout.lease_seconds")
        for name in ("false_alarm", "miss", "error_limit"):
            _within(getattr(self, name), 0, 0.5, f"rollout.{name}", open_low=True)
        _within(self.latency_worse, 0, math.inf, "rollout.latency_worse", open_low=True)
        _within(self.indifferent_below_ms, 0, math.inf, "rollout.indifferent_below_ms")
        shares = [step.permille for step in self.steps]
        _need(bool(shares) and shares == sorted(set(shares)), "rollout.steps: shares must grow from step to step")
        _need(shares[-1:] == [1000], "rollout.steps: the last step must be 1000 per mille, or nothing is shown about full traffic")
        _need(
            all(s.exclude_error_rate > self.error_limit for s in self.steps), "rollout.steps: exclude_error_rate must lie above error_limit"
        )


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """The user's own training module, run in the named environment with the registry's address; it registers a marked version.

    `schedule` is a cron expression of five fields of numbers, one of `PRESETS`, or `none` for a training that is started by hand only.
    """

    schedule: str
    environment: str
    module: str
    timeout_seconds: float

    def __post_init__(self) -> None:
        known = self.schedule in (BY_HAND, *PRESETS) or _is_cron(self.schedule)
        expected = f'five numeric cron fields ("0 3 * * 1"), {", ".join(PRESETS)}, or {BY_HAND}'
        _need(known, f"retrain.schedule {self.schedule!r}: expected {expected}")
        _need(bool(re.fullmatch(r"[a-z][a-z0-9_]*", self.environment)), f"retrain.environment {self.environment!r}: expected a plain name")
        _within(self.timeout_seconds, 1, math.inf, "retrain.timeout_seconds")


@dataclass(frozen=True, kw_only=True)
class Policy:
    model: str
    owner: str
    trigger: Trigger
    golden_set: GoldenSet
    latency_benchmark: LatencyBenchmark
    shadow: Shadow
    rollout: Rollout
    retrain: Retrain | None = None

    def __post_init__(self) -> None:
        self._named()
        least, found = self.rollout.error_limit, self.shadow.exclude_error_rate
        _need(found > least, f"shadow.exclude_error_rate {found} must lie above rollout.error_limit {least}")

    def _named(self) -> None:
        _need(bool(MODEL_NAME.fullmatch(self.model)), f"model {self.model!r}: lower-case letters, digits and single hyphens, at most 60")
        _need(len(self.model) <= 60, f"model {self.model!r} is longer than 60 characters")
        allowed = "1 to 80 letters, digits, spaces and . , @ + / _ -, the first a letter or digit"
        _need(bool(OWNER.fullmatch(self.owner)), f"owner {self.owner!r}: expected {allowed}")


def read_policy(path: Path) -> Policy:
    """Reads `<model>.toml`; raises `BadPolicy` with the file's name, the key and the allowed values."""
    try:
        policy = parse(Policy, tomllib.loads(path.read_text(encoding="utf-8")), "")
        _need(policy.model == path.stem, f"model {policy.model!r} stands in a file named {path.name}; they must agree")
    except (BadPolicy, tomllib.TOMLDecodeError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise BadPolicy(f"{path.name}: {error}") from error
    return policy


def read_policies(folder: Path) -> tuple[dict[str, Policy], dict[str, str]]:
    """A folder's policies by model, and the reason for each file that cannot be read: one bad file must not stop the other models.

    A bad file's key is its stem, which need not be a model's name (`digits copy`); `is_model_name` tells.
    """
    good: dict[str, Policy] = {}
    bad: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            good[path.stem] = read_policy(path)
        except BadPolicy as error:
            bad[path.stem] = str(error)
    return good, bad


def is_model_name(text: str) -> bool:
    return bool(MODEL_NAME.fullmatch(text)) and len(text) <= 60


def parse(cls: type[Section], row: Mapping[str, Any], place: str = "") -> Section:
    """Turns a JSON or TOML object into a section's dataclass: every key known, none missing, numbers finite."""
    hints = typing.get_type_hints(cls)
    known = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(row) - set(known)):
        raise BadPolicy(f"unknown key {_at(place, unknown[0])}; allowed here: {', '.join(known)}")
    needed = [name for name, each in known.items() if each.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in row]:
        raise BadPolicy(f"missing key {_at(place, missing[0])}")
    return cls(**{name: _value(hints[name], row[name], _at(place, name)) for name in row})


def section(value: Any) -> dict[str, Any]:
    """A section as plain JSON values, to travel in a spec's `limits`; `parse` reads it back."""
    return dataclasses.asdict(value)


def _value(hint: Any, value: Any, place: str) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    if dataclasses.is_dataclass(hint):
        _need(isinstance(value, Mapping), f"{place} must be a table")
        return parse(typing.cast(Any, hint), value, place)
    if typing.get_origin(hint) is tuple:
        _need(isinstance(value, (list, tuple)), f"{place} must be a list")
        return tuple(_value(typing.get_args(hint)[0], each, f"{place}[{i}]") for i, each in enumerate(value))
    return _scalar(hint, value, place)


def _scalar(hint: type, value: Any, place: str) -> Any:
    allowed = (int, float) if hint is float else (hint,)
    _need(type(value) in allowed, f"{place} is {value!r}; expected {hint.__name__}")
    _need(hint is not float or math.isfinite(value), f"{place} is {value!r}; expected a finite number")
    return float(value) if hint is float else value


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _need(holds: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence: need this, or say why
    if not holds:
        raise BadPolicy(why)


def _one_of(values: tuple[str, ...], allowed: tuple[str, ...], place: str) -> None:
    for value in values:
        _need(value in allowed, f"{place} is {value!r}; allowed: {', '.join(allowed)}")


def _within(value: float, low: float, high: float, place: str, *, open_low: bool = False, open_high: bool = False) -> None:
    holds = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
    _need(holds, f"{place} is {value!r}; allowed: {'above' if open_low else 'from'} {low} to {'below ' if open_high else ''}{high}")


def _dwell(shortest: float, longest: float, place: str) -> None:
    _need(0 <= shortest < longest, f"{place}: min_seconds {shortest} must lie below max_seconds {longest}")


def _is_cron(text: str) -> bool:
    """Five fields; in each a list of `*`, numbers and ranges, the first and last with an optional step. Names of days are not taken."""
    fields = text.split(" ")
    return len(fields) == len(CRON_FIELDS) and all(
        _is_cron_part(part, *bounds) for field, bounds in zip(fields, CRON_FIELDS.values(), strict=True) for part in field.split(",")
    )


def _is_cron_part(text: str, low: int, high: int) -> bool:
    match = re.fullmatch(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?", text, re.ASCII)
    if not match:
        return False
    first, last, step = (int(each) if each else None for each in match.groups())
    if step is not None and (not 1 <= step <= high or (first is not None and last is None)):
        return False
    start = low if first is None else first
    return low <= start <= (start if last is None else last) <= high
