"""A model's policy: limits, rollout steps, triggers, read from TOML into frozen dataclasses.

DAGs and operators read a policy to wire and to fill specs; tasks read their own section of it back from `spec.limits`. Nothing has a
silent default: a key that is missing, unknown or out of range raises `BadPolicy`, which names the place and what is allowed there.
This module reads no file beyond the one it is given and decides nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

MODEL_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # part of cluster, DAG and file names; `--` separates there
TRIGGERS = ("created", "tag", "alias")
HIGHER_IS_BETTER: Mapping[str, bool] = {
    **dict.fromkeys(("accuracy", "auc", "f1", "ndcg"), True),
    **dict.fromkeys(("log_loss", "calibration_error", "rmse", "mae", "mape"), False),
}
UNBOUNDED = ("log_loss", "rmse", "mae", "mape")  # margins of these are shares of the value: a unit must not change a verdict
EXPORT_ENVIRONMENTS = ("export", "export_boosting", "export_torch", "export_tensorflow")
NARROWED = ("float16", "int8")
OWNER = re.compile(r"\w[\w .,@+/-]{0,79}")  # shown in the UI and in notices: a name, a team or an address
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json")
CONTRACT_FILE = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._-]{{0,99}}/)?{FILE_NAME.pattern}")
DEVICE = re.compile(r"cpu|gpu[0-7]")
WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
URL = re.compile(r"https?://([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?([/?][!-\"$-~]{0,2000})?")
CALL_BODY_CHARACTERS = 16_384
MOST_CONTRACTS = 50
HEADER = re.compile(r"[a-z][a-z0-9-]{0,63}")
SLICE_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,39}")  # the gateway logs so many characters of a header
MOST_ERRORS = 0.5  # a step excludes this rate at least, whatever little damage it could do at the next share
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
    """A metric on the golden labels, and what it is held against.

    Exactly one of `at_least` (higher is better) and `at_most` (lower is better) stands, by the metric's direction. Margins are absolute
    differences of the metric (0.005 = half a point of accuracy), for `UNBOUNDED` metrics shares of the value compared with. Against the
    source model (`within_training`) and stable the comparison is paired on the golden rows; against `logged_as`, a metric that training
    logged on rows of its own, it cannot be. `group` is the golden set's column that holds a query's name: only `ndcg` has and needs it.
    """

    name: str
    not_worse_than_stable: float
    within_training: float = 0.005
    at_least: float | None = None
    at_most: float | None = None
    logged_as: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        _one_of((self.name,), tuple(HIGHER_IS_BETTER), "golden_set.metrics.name")
        self._limited()
        for name in ("within_training", "not_worse_than_stable"):  # a margin of 1 would let every model pass
            _within(getattr(self, name), 0, 1, f"golden_set.metrics.{name}", open_low=True, open_high=True)
        _need(self.logged_as != "", "golden_set.metrics.logged_as must name a logged metric")
        _need(
            (self.name == "ndcg") == bool(self.group),
            "golden_set.metrics.group: ndcg needs the column of its queries, no other metric has one",
        )

    def _limited(self) -> None:
        right, wrong = ("at_least", "at_most") if HIGHER_IS_BETTER[self.name] else ("at_most", "at_least")
        _need(getattr(self, wrong) is None, f"golden_set.metrics.{wrong} does not fit {self.name}: use {right}")
        _need(getattr(self, right) is not None, f"missing key golden_set.metrics.{right} for {self.name}")
        _within(self.limit, 0, math.inf if self.name in UNBOUNDED else 1, f"golden_set.metrics.{right}")

    @property
    def higher_is_better(self) -> bool:
        return HIGHER_IS_BETTER[self.name]

    @property
    def relative(self) -> bool:
        """Whether margins are shares of the value compared with."""
        return self.name in UNBOUNDED

    @property
    def limit(self) -> float:
        limit = self.at_least if self.at_least is not None else self.at_most
        if limit is None:
            raise BadPolicy(f"golden_set.metrics: {self.name} has no limit")
        return limit


@dataclass(frozen=True, kw_only=True)
class Export:
    """Where the model is exported: `export` for scikit-learn and ONNX, an environment of its own for each family of heavy frameworks."""

    environment: str = "export"

    def __post_init__(self) -> None:
        _one_of((self.environment,), EXPORT_ENVIRONMENTS, "export.environment")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far one output may be from the source model's, and on how many rows; the others keep the section's own numbers."""

    output: str
    atol: float
    rtol: float
    rows_outside_permille: int

    def __post_init__(self) -> None:
        _need(bool(self.output), "golden_set.tolerances.output must name an output")
        _tolerances(self, "golden_set.tolerances")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows by the values of one golden-set column. The values are listed, so that a slice that lost its rows is noticed."""

    column: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        _need(bool(self.column), "golden_set.slices.column must name a column")
        _need(bool(self.values) and len(set(self.values)) == len(self.values), "golden_set.slices.values: one value or more, none twice")


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    """`error` is each comparison's chance to err on either side; over slices it is shared. `narrowed_to`: types that serving narrows to.

    `duplicates_permille` and `max_age_days` are about the golden set itself; with `traffic_drift` it must also resemble recent traffic.
    """

    min_rows: int
    atol: float
    rtol: float
    rows_outside_permille: int
    metrics: tuple[Metric, ...]
    tolerances: tuple[Tolerance, ...] = ()
    slices: tuple[Slice, ...] = ()
    narrowed_to: tuple[str, ...] = ()
    error: float = 0.05
    duplicates_permille: int = 10
    max_age_days: float | None = None
    traffic_drift: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the golden set that the gate needs beside inputs and label: of slices, and of a ranking's queries."""
        return tuple(sorted({*(each.column for each in self.slices), *(each.group for each in self.metrics if each.group)}))

    def __post_init__(self) -> None:
        _within(self.min_rows, 1, math.inf, "golden_set.min_rows")
        _tolerances(self, "golden_set")
        _need(bool(self.metrics), "golden_set.metrics: at least one metric, or nothing is shown about the labels")
        _unique([each.name for each in self.metrics], "golden_set.metrics.name")
        _unique([each.output for each in self.tolerances], "golden_set.tolerances.output")
        _unique([each.column for each in self.slices], "golden_set.slices.column")
        _one_of(self.narrowed_to, NARROWED, "golden_set.narrowed_to")
        _within(self.error, 0, 0.5, "golden_set.error", open_low=True, open_high=True)
        _within(self.duplicates_permille, 0, 1000, "golden_set.duplicates_permille")
        if self.max_age_days is not None:
            _within(self.max_age_days, 0, math.inf, "golden_set.max_age_days", open_low=True)


@dataclass(frozen=True, kw_only=True)
class Range:
    """What one column of inputs or outputs may be, ends included: `probabilities` stands for all of its numbers, `pixels[3]` for one."""

    column: str
    low: float
    high: float

    def __post_init__(self) -> None:
        _need(bool(self.column), "distribution.ranges.column must name a column")
        _need(self.low < self.high, f"distribution.ranges: low {self.low} must lie below high {self.high}")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What the answers on the golden rows may look like, and how far they may be from stable's.

    `majority_share` and `entropy_bits` are about each output's answers, which of a vector is the place of its greatest number. `sigmas`,
    `psi`, `ks`, `missing`, `unseen` and `error` are `validation.drift.Limits`. Outputs named in `constant` may be the same in every row.
    `expectations` is a file beside the policy with a suite of Great Expectations, run on the golden set after the generated one.
    """

    majority_share: float
    entropy_bits: float
    sigmas: float
    psi: float
    ks: float = 0.25
    missing: float = 0.05
    unseen: float = 0.01
    error: float = 0.05
    ranges: tuple[Range, ...] = ()
    constant: tuple[str, ...] = ()
    expectations: str | None = None

    def __post_init__(self) -> None:
        _within(self.majority_share, 0, 1, "distribution.majority_share", open_low=True, open_high=True)
        _within(self.entropy_bits, 0, 64, "distribution.entropy_bits", open_low=True)
        for name in ("sigmas", "psi"):
            _within(getattr(self, name), 0, math.inf, f"distribution.{name}", open_low=True)
        _within(self.ks, 0, 1, "distribution.ks", open_low=True, open_high=True)
        for name in ("missing", "unseen"):
            _within(getattr(self, name), 0, 1, f"distribution.{name}", open_high=True)
        _within(self.error, 0, 0.5, "distribution.error", open_low=True, open_high=True)
        _unique([each.column for each in self.ranges], "distribution.ranges.column")
        plain = self.expectations is None or FILE_NAME.fullmatch(self.expectations)
        _need(bool(plain), f"distribution.expectations {self.expectations!r}: expected the plain name of a .json file beside the policy")


@dataclass(frozen=True, kw_only=True)
class LatencyBenchmark:
    """What the candidate must show under load, on a server of its own.

    `arrivals`: `poisson`, `fixed_rate`, or `closed_loop` with so many at a time. A query sent more than `late_ms` after it was due is late.
    `worse_than_stable` is a share of stable's median and p99, which count as `indifferent_below_ms` when they are faster than that.
    `protocol` is how a private Triton is asked, or `in_process`: ONNX Runtime alone, with the `provider` and the `device` named (`cpu`, or
    `gpu0` and so on). `taken_share` of its CPU time may be taken from the machine meanwhile. Batch sizes, and lengths of open axes, are
    drawn from those here. The p99 must hold at `throughput_rps`, too, if that is not 0; the report has a curve at the rates of `curve_rps`.
    """

    rate_per_s: float
    min_queries: int
    max_seconds: float
    p50_ms: float
    p99_ms: float
    worse_than_stable: float = 0.20
    indifferent_below_ms: float = 0.0
    late_ms: float = 1.0
    taken_share: float = 0.01
    arrivals: str = "poisson"
    concurrency: int = 4
    protocol: str = "http"
    provider: str = "cpu"
    device: str = "cpu"
    batch_sizes: tuple[int, ...] = (1,)
    sequence_lengths: tuple[int, ...] = ()
    throughput_rps: float = 0.0
    curve_rps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "min_queries", "max_seconds", "p50_ms", "p99_ms", "worse_than_stable", "late_ms"):
            _within(getattr(self, name), 0, math.inf, f"latency_benchmark.{name}", open_low=True)
        _within(self.indifferent_below_ms, 0, math.inf, "latency_benchmark.indifferent_below_ms")
        _within(self.throughput_rps, 0, 100_000, "latency_benchmark.throughput_rps")
        open_loop = self.arrivals != "closed_loop"
        _need(open_loop or not (self.throughput_rps or self.curve_rps), "latency_benchmark.arrivals: a closed loop has no rate of its own")
        for rate in self.curve_rps:
            _within(rate, 0, 100_000, "latency_benchmark.curve_rps", open_low=True)
        _within(self.taken_share, 0, 1, "latency_benchmark.taken_share")
        _within(self.concurrency, 1, 256, "latency_benchmark.concurrency")
        _one_of((self.arrivals,), ARRIVALS, "latency_benchmark.arrivals")
        _one_of((self.protocol,), PROTOCOLS, "latency_benchmark.protocol")
        _one_of((self.provider,), PROVIDERS, "latency_benchmark.provider")
        _need(
            self.provider == "cpu" or self.protocol == "in_process", "latency_benchmark.provider: Triton is told by its own configuration"
        )
        _need(bool(DEVICE.fullmatch(self.device)), f"latency_benchmark.device is {self.device!r}; expected cpu, or gpu0 to gpu7")
        _need(
            (self.device == "cpu") == (self.provider == "cpu"), "latency_benchmark.device: a provider for GPUs needs one, and no other does"
        )
        _need(len(self.batch_sizes) > 0, "latency_benchmark.batch_sizes: expected at least one")
        for size in self.batch_sizes:
            _within(size, 1, 64, "latency_benchmark.batch_sizes")
        for length in self.sequence_lengths:
            _within(length, 1, 1 << 20, "latency_benchmark.sequence_lengths")


@dataclass(frozen=True, kw_only=True)
class TuneServing:
    """Which serving configurations may be tried, and what they must hold: a p99 in ms, at the expected rate and with one request at a time.

    `delay_us` and `preferred` are dynamic batching's; 0 means none. The search ends after `max_seconds`.
    """

    p99_ms: float
    rate_per_s: float
    max_seconds: float = 300.0
    instances: tuple[int, ...] = (1, 2)
    threads: tuple[int, ...] = (1, 2)
    delay_us: tuple[int, ...] = (0, 200, 500, 2000)
    preferred: tuple[int, ...] = (0, 16)
    batch_sizes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("p99_ms", "rate_per_s", "max_seconds"):
            _within(getattr(self, name), 0, math.inf, f"tune_serving.{name}", open_low=True)
        for name in ("instances", "threads"):
            self._rising(name, least=1, most=64)
        self._rising("delay_us", least=0, most=1_000_000)
        self._rising("preferred", least=0, most=64)
        for size in self.batch_sizes or (0,):
            _within(size, 1, 64, "tune_serving.batch_sizes")

    def _rising(self, name: str, *, least: int, most: int) -> None:
        values = getattr(self, name)
        place = f"tune_serving.{name}"
        _need(
            list(values) == sorted(set(values)) and values[:1] == (least,), f"{place}: expected rising numbers from {least} on, the default"
        )
        _within(values[-1], least, most, place)


@dataclass(frozen=True, kw_only=True)
class ContainerCheck:
    """What the serving image must show before a server is started from it. Sizes: megabytes (10^6) as downloaded, mebibytes of memory.

    `required` refuses versions in a place without a container engine; without it the delivery goes on there and says that nothing was
    checked.
    """

    size_mb: float = 500.0
    ready_seconds: float = 5.0
    stop_seconds: float = 10.0
    memory_mib: int = 1024
    rows: int = 100
    required: bool = False

    def __post_init__(self) -> None:
        _within(self.size_mb, 0, 100_000, "container_check.size_mb", open_low=True)
        _within(self.ready_seconds, 0, 600, "container_check.ready_seconds", open_low=True)
        _within(self.stop_seconds, 0, 600, "container_check.stop_seconds", open_low=True)
        _within(self.memory_mib, 64, 1 << 20, "container_check.memory_mib")
        _within(self.rows, 20, 100_000, "container_check.rows")


@dataclass(frozen=True, kw_only=True)
class ConsumerContract:
    """What one consumer relies on: a JSON file in the policies' folder, or one folder below, that the consumer's team may write.

    It holds recorded requests and answers, or requests and a JSON Schema of the answer (`validation.consumer_contracts`). Recorded numbers
    may be missed by `atol` plus the share `rtol`; with `ignore_values` only names, types and shapes count.
    """

    consumer: str
    file: str
    atol: float = 1e-3
    rtol: float = 1e-3
    ignore_values: bool = False

    def __post_init__(self) -> None:
        place = "integration.contracts"
        known = "1 to 40 lower-case letters, digits, _ and -, the first a letter or digit"
        _need(bool(WORD.fullmatch(self.consumer)), f"{place}.consumer {self.consumer!r}: expected {known}")
        plain = bool(CONTRACT_FILE.fullmatch(self.file))
        _need(plain, f"{place}.file {self.file!r}: expected a file beside the policy, as name.json or folder/name.json")
        _within(self.atol, 0, math.inf, f"{place}.atol")
        _within(self.rtol, 0, 1, f"{place}.rtol")


@dataclass(frozen=True, kw_only=True)
class ServiceCall:
    """A call that a dependent service offers for checking; it is told the candidate's version in the header `x-model-version`.

    `body` is JSON as a string. `expect_schema` is a file with a JSON Schema of the answer, found as a contract's file is.
    """

    name: str
    url: str
    method: str = "GET"
    body: str | None = None
    expect_status: int = 200
    expect_schema: str | None = None
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        place = "integration.calls"
        known = "1 to 40 lower-case letters, digits, _ and -, the first a letter or digit"
        _need(bool(WORD.fullmatch(self.name)), f"{place}.name {self.name!r}: expected {known}")
        found = URL.fullmatch(self.url)
        right = found is not None and 0 < int(found["port"] or 80) < 65_536
        _need(right, f"{place}.url {self.url!r}: expected http(s)://host[:port][/path], without user, password or fragment")
        _one_of((self.method,), ("GET", "POST"), f"{place}.method")
        _need(self.body is None or self.method == "POST", f"{place}.body: only POST has one")
        _need(self.body is None or _is_json(self.body), f"{place}.body: expected JSON of at most {CALL_BODY_CHARACTERS} characters")
        _within(self.expect_status, 200, 599, f"{place}.expect_status")
        plain = self.expect_schema is None or bool(CONTRACT_FILE.fullmatch(self.expect_schema))
        _need(plain, f"{place}.expect_schema {self.expect_schema!r}: expected a .json file, named as contracts.file is")
        _within(self.timeout_seconds, 0, 60, f"{place}.timeout_seconds", open_low=True)


@dataclass(frozen=True, kw_only=True)
class Integration:
    """What must hold between the candidate, the gateway and who calls it, before it has traffic. `rows` golden rows go each way."""

    rows: int = 100
    contracts: tuple[ConsumerContract, ...] = ()
    calls: tuple[ServiceCall, ...] = ()

    def __post_init__(self) -> None:
        _within(self.rows, 20, 1000, "integration.rows")
        _unique([each.consumer for each in self.contracts], "integration.contracts.consumer")
        _unique([each.name for each in self.calls], "integration.calls.name")
        for name in ("contracts", "calls"):
            _need(len(getattr(self, name)) <= MOST_CONTRACTS, f"integration.{name}: at most {MOST_CONTRACTS}")

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the section refers to, each once."""
        schemas = (each.expect_schema for each in self.calls if each.expect_schema is not None)
        return tuple(dict.fromkeys((*(each.file for each in self.contracts), *schemas)))

    @property
    def calls_seconds(self) -> float:
        """What all calls together may take."""
        return sum(each.timeout_seconds for each in self.calls)


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A mirror of so much of the traffic, and what its answers must show.

    Of the requests that both versions answered at most the share `disagreement` may differ, and `exclude_disagreement` must be excluded;
    labels and greatest scores flip, numbers differ beyond `number_tolerance`. `score_shift`: how far scores from -1 to 1 may move on
    average. `min_pairs` = 0 compares no answers.
    """

    permille: int
    min_seconds: float
    max_seconds: float
    min_requests: int
    exclude_error_rate: float
    min_pairs: int = 50
    disagreement: float = 0.1
    exclude_disagreement: float = 0.3
    number_tolerance: float | None = None
    score_shift: float | None = None
    exclude_score_shift: float | None = None

    def __post_init__(self) -> None:
        _within(self.permille, 1, 1000, "shadow.permille")
        _dwell(self.min_seconds, self.max_seconds, "shadow")
        _within(self.min_requests, 1, math.inf, "shadow.min_requests")
        _within(self.exclude_error_rate, 0, 1, "shadow.exclude_error_rate", open_low=True)
        self._compared()

    def _compared(self) -> None:
        _within(self.min_pairs, 0, 1_000_000, "shadow.min_pairs")
        _within(self.disagreement, 0, 1, "shadow.disagreement", open_low=True, open_high=True)
        _within(self.exclude_disagreement, self.disagreement, 1, "shadow.exclude_disagreement", open_low=True, open_high=True)
        if self.number_tolerance is not None:
            _within(self.number_tolerance, 0, math.inf, "shadow.number_tolerance")
        both = (self.score_shift is None) == (self.exclude_score_shift is None)
        _need(both, "shadow.score_shift and shadow.exclude_score_shift: give both or none")
        if self.score_shift is not None and self.exclude_score_shift is not None:
            _within(self.score_shift, 0, 1, "shadow.score_shift", open_low=True, open_high=True)
            _within(self.exclude_score_shift, self.score_shift, 1, "shadow.exclude_score_shift", open_low=True, open_high=True)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One share of the traffic: how long it lasts, and what must surely be excluded before it is passed.

    Margins that are left out follow from the rollout's damage budgets: `Rollout.margins`. With `approval` it then waits until a person
    approves it, for at most `rollout.pause_max_seconds`. `blind` says that it is meant to see nothing (`penstock plan`).
    """

    permille: int
    min_seconds: float
    max_seconds: float
    min_requests: int = 0
    exclude_error_rate: float | None = None
    exclude_latency_worse: float | None = None
    approval: bool = False
    blind: bool = False

    def __post_init__(self) -> None:
        _within(self.permille, 1, 1000, "rollout.steps.permille")
        _dwell(self.min_seconds, self.max_seconds, "rollout.steps")
        _within(self.min_requests, 0, math.inf, "rollout.steps.min_requests")
        if self.exclude_error_rate is not None:
            _within(self.exclude_error_rate, 0, 1, "rollout.steps.exclude_error_rate", open_low=True)
        if self.exclude_latency_worse is not None:
            _within(self.exclude_latency_worse, 0, math.inf, "rollout.steps.exclude_latency_worse", open_low=True)


@dataclass(frozen=True, kw_only=True)
class TrafficSlices:
    """Requests by the value of one header; the values are listed, so that a slice without requests is noticed."""

    header: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        known = bool(HEADER.fullmatch(self.header))
        _need(known, f"rollout.slices.header {self.header!r}: expected the name of an HTTP header in lower case")
        _need(bool(self.values), "rollout.slices.values: one value or more")
        _unique(list(self.values), "rollout.slices.values")
        plain = all(SLICE_VALUE.fullmatch(each) for each in self.values)
        _need(plain, "rollout.slices.values: each of 1 to 40 letters, digits and . _ : -")


@dataclass(frozen=True, kw_only=True)
class Margins:
    """What a step must surely exclude: an error rate, and latency worse than stable's by a share of it."""

    error_rate: float
    latency_worse: float
    final: bool


ARRIVALS = ("poisson", "fixed_rate", "closed_loop")
PROTOCOLS = ("http", "grpc", "in_process")
PROVIDERS = ("cpu", "cuda", "tensorrt")
STRATEGIES = ("shadow then canary", "shadow then blue_green", "canary", "blue_green", "shadow")
"""What a rollout may consist of, in this order: a mirror first, then the policy's steps or all traffic at once. A mirror alone promotes
nothing.
"""


def parts(strategy: str) -> tuple[str, ...]:
    """The parts of a strategy: of `shadow then canary` the mirror and the steps."""
    return tuple(strategy.split(" then "))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Shares and what they must show. `false_alarm` is the chance to take back a good candidate over the whole rollout.

    Taken back: an error rate surely above `error_limit`, or surely above stable's by more than `error_rise`; latency (mean, median or
    99th percentile) surely worse than stable's by more than the share `latency_worse`. A step is passed when it excludes whatever would
    do more than the damage budgets at the next share: `damage_errors` (share of all requests that fail) and `damage_latency` (rise of
    latency, averaged over all requests). Requests of the candidate's first `warmup_seconds` say nothing about latency. For `bake_seconds`
    after its promotion a version is judged on. A pause, and the wait for an approval, end after `pause_max_seconds`. `strategy` is what a
    delivery does that nobody gave another one.
    """

    newer: str
    lease_seconds: float
    false_alarm: float
    miss: float
    error_limit: float
    latency_worse: float
    indifferent_below_ms: float
    steps: tuple[Step, ...]
    error_rise: float = 0.001
    damage_errors: float = 0.005
    damage_latency: float = 0.20
    warmup_seconds: float = 2.0
    bake_seconds: float = 0.0
    pause_max_seconds: float = 86_400.0
    slices: TrafficSlices | None = None
    strategy: str = "shadow then canary"

    def __post_init__(self) -> None:
        _one_of((self.newer,), ("waits", "supersedes"), "rollout.newer")
        _one_of((self.strategy,), STRATEGIES, "rollout.strategy")
        _within(self.lease_seconds, 2, 600, "rollout.lease_seconds")
        for name in ("false_alarm", "miss", "error_limit", "error_rise", "damage_errors"):
            _within(getattr(self, name), 0, 0.5, f"rollout.{name}", open_low=True)
        for name in ("latency_worse", "damage_latency"):
            _within(getattr(self, name), 0, math.inf, f"rollout.{name}", open_low=True)
        for name in ("indifferent_below_ms", "warmup_seconds"):
            _within(getattr(self, name), 0, math.inf, f"rollout.{name}")
        _within(self.bake_seconds, 0, 86_400, "rollout.bake_seconds")
        _within(self.pause_max_seconds, 1, 604_800, "rollout.pause_max_seconds")
        shares = [step.permille for step in self.steps]
        _need(bool(shares) and shares == sorted(set(shares)), "rollout.steps: shares must grow from step to step")
        _need(shares[-1:] == [1000], "rollout.steps: the last step must be 1000 per mille, or nothing is shown about full traffic")
        self._margins_beyond_limits()

    def _margins_beyond_limits(self) -> None:
        """Between what takes a candidate back and what a step must exclude lies an indifference zone: without one nothing is decidable."""
        for step in self.steps:
            margins, place = self.margins(step), f"of the step at {step.permille} per mille"
            errors = f"rollout.steps: exclude_error_rate must lie above error_limit and error_rise; {place} it is {margins.error_rate:g}"
            _need(margins.error_rate > max(self.error_limit, self.error_rise), f"{errors}: raise it, or damage_errors")
            slower = f"rollout.steps: exclude_latency_worse must lie above latency_worse; {place} it is {margins.latency_worse:g}"
            _need(margins.latency_worse > self.latency_worse, f"{slower}: raise it, or damage_latency")

    def margins(self, step: Step) -> Margins:
        """What this step must exclude: its own numbers, else the damage budgets divided by the next step's share of the traffic."""
        share = self.next_permille(step) / 1000
        errors = min(self.damage_errors / share, MOST_ERRORS) if step.exclude_error_rate is None else step.exclude_error_rate
        slower = self.damage_latency / share if step.exclude_latency_worse is None else step.exclude_latency_worse
        return Margins(error_rate=errors, latency_worse=slower, final=share == 1)

    def next_permille(self, step: Step) -> int:
        """The share that follows when this step is passed; after the last it is all of the traffic, for good."""
        return min((each.permille for each in self.steps if each.permille > step.permille), default=1000)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """How many promoted versions that have no role any more stay loaded, for whoever asks for one by its number."""

    versions: int = 0

    def __post_init__(self) -> None:
        _within(self.versions, 0, 50, "archive.versions")


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
    distribution: Distribution
    latency_benchmark: LatencyBenchmark
    shadow: Shadow
    rollout: Rollout
    export: Export = field(default_factory=Export)
    container_check: ContainerCheck = field(default_factory=ContainerCheck)
    integration: Integration = field(default_factory=Integration)
    archive: Archive = field(default_factory=Archive)
    retrain: Retrain | None = None
    tune_serving: TuneServing | None = None

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
    needed = [name for name, each in known.items() if each.default is each.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in row]:
        raise BadPolicy(f"missing key {_at(place, missing[0])}")
    return cls(**{name: _value(hints[name], row[name], _at(place, name)) for name in row})


def section(value: Any) -> dict[str, Any]:
    """A section as plain JSON values, to travel in a spec's `limits`; `parse` reads it back."""
    return dataclasses.asdict(value)


def _value(hint: Any, value: Any, place: str) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None and type(None) in typing.get_args(hint):  # TOML has no null; the same section as JSON in a spec has
            return None
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


def _tolerances(section: Tolerance | GoldenSet, place: str) -> None:
    _within(section.atol, 0, math.inf, f"{place}.atol")
    _within(section.rtol, 0, 1, f"{place}.rtol")
    _within(section.rows_outside_permille, 0, 1000, f"{place}.rows_outside_permille")


def _unique(values: list[str], place: str) -> None:
    _need(len(set(values)) == len(values), f"{place}: {', '.join(values)} names one twice")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return len(text) <= CALL_BODY_CHARACTERS


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
