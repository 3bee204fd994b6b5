"""What one serving configuration bears: a private Triton serves the model with it, and its throughput within the p99 is measured.

`tune_serving` searches with it. One that breaks the p99 at the expected rate, or with one request at a time (where a queue delay costs its
full length), counts as bearing nothing. It chooses nothing.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from validation.judges import queries_needed
from validation.load_client import Answers, LoadClient, Target
from validation.policy import TuneServing
from validation.private_server import private_server
from validation.schedule import poisson
from validation.serving import Serving, Space, Spent, configured

AT_ONCE = 32
WARM_UP_QUERIES, ALONE_QUERIES = 200, 100
FULL_S = 1.0
SHARES = (0.95, 0.85, 0.75, 0.6, 0.45, 0.3)
"""Of the throughput of a full server; the first at which the p99 holds is what counts."""

QUERIES = queries_needed(over=0, quantile=0.99, error=0.01)


@dataclass(frozen=True, kw_only=True)
class Borne:
    """What one configuration showed: rates in requests a second, p99s in ms. `within_rps` is 0 where `broken` says which p99 it broke."""

    serving: Serving
    within_rps: float
    full_rps: float
    alone_p99_ms: float
    expected_p99_ms: float
    broken: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a p99 without a bound is none."""
        figures = {name: value for name, value in asdict(self).items() if name != "serving"}
        return {**asdict(self.serving), **{name: None if value == math.inf else value for name, value in figures.items()}}


@dataclass(kw_only=True)
class Tuning:
    """Measures one configuration after another on private servers of one model directory, with these ready-made HTTP requests."""

    client: LoadClient
    model: str
    directory: Path
    requests: tuple[bytes, ...]
    limits: TuneServing
    rng: np.random.Generator
    log: Path
    borne: list[Borne] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end_s = time.monotonic() + self.limits.max_seconds

    def measure(self, serving: Serving) -> float:
        """Requests a second within the p99. Raises `Spent` when the policy's time is over."""
        if time.monotonic() > self._end_s and self.borne:
            raise Spent
        with tempfile.TemporaryDirectory(prefix="tuning-") as name:
            directory = Path(name) / self.model
            shutil.copytree(self.directory, directory)
            config = directory / "config.pbtxt"
            config.write_text(configured(config.read_text(), serving))
            with private_server(self.model, directory, f"tuning--{self.model}", self.log) as server:
                self.client.open("tuned", Target(protocol="http", address=server.address("http"), requests=self.requests))
                try:
                    self.borne.append(self._borne(serving))
                finally:
                    self.client.close("tuned")
        return self.borne[-1].within_rps

    def _borne(self, serving: Serving) -> Borne:
        limit_ms, expected = self.limits.p99_ms, self.limits.rate_per_s
        self.client.send_closed("tuned", WARM_UP_QUERIES, AT_ONCE)
        alone_ms = _p99_ms(self.client.send_closed("tuned", ALONE_QUERIES, 1))
        expected_ms = _p99_ms(self._open_load(expected))
        full = self._full_rps()
        within, broken = 0.0, ""
        if not alone_ms <= limit_ms:
            broken = f"with one request at a time: {alone_ms:.1f} ms"
        elif not expected_ms <= limit_ms:
            broken = f"at {expected:g} requests a second: {expected_ms:.1f} ms"
        else:
            rates = (share * full for share in SHARES if share * full > expected)
            within = next((rate for rate in rates if _p99_ms(self._open_load(rate)) <= limit_ms), expected)
        return Borne(serving=serving, within_rps=within, full_rps=full, alone_p99_ms=alone_ms, expected_p99_ms=expected_ms, broken=broken)

    def _open_load(self, rate_per_s: float) -> Answers:
        queries = max(QUERIES, int(rate_per_s * FULL_S))
        return self.client.send("tuned", poisson(rate_per_s, queries, self.rng), self.rng.integers(len(self.requests), size=queries))

    def _full_rps(self) -> float:
        """Throughput with `AT_ONCE` requests under way, over about a second."""
        rate = _rate(self.client.send_closed("tuned", WARM_UP_QUERIES, AT_ONCE))
        return _rate(self.client.send_closed("tuned", max(WARM_UP_QUERIES, int(rate * FULL_S)), AT_ONCE))


def space_of(limits: TuneServing) -> Space:
    """The configurations that the policy lets be tried."""
    return Space(instances=limits.instances, threads=limits.threads, delay_us=limits.delay_us, preferred=limits.preferred)


def _p99_ms(answers: Answers) -> float:
    """The nearest-rank p99; infinite when more than one in a hundred failed."""
    return 1000 * float(np.sort(answers.latency_s)[int(np.ceil(0.99 * len(answers.latency_s))) - 1])


def _rate(answers: Answers) -> float:
    good = answers.done_s[np.isfinite(answers.done_s)]
    return len(good) / float(good.max()) if len(good) else 0.0
