"""The task `tune_serving`: the serving configuration that bears most within the p99, found by measuring.

For each configuration that the search asks for (`validation.serving`) a private Triton serves the bundle's model with it, and its
throughput within the p99 is measured. One that breaks the p99 at the expected rate, or with one request at a time (where a queue delay
costs its full length), counts as bearing nothing. The bundle is left as it is: `package` writes the chosen configuration into it.

What was found is no promise: `latency_benchmark` judges the packaged model after it. Evidence: curve.json, triton.log of the last server.

| finding | claim                                                                                     |
|---------|-------------------------------------------------------------------------------------------|
| loads   | Triton loads the model as exported (only when Triton itself says that it does not)        |
| tuned   | a configuration holds the p99 at the expected rate and alone; the best of those is chosen |

What the best of them bears must lie well below what the load client itself manages: else it is the client that was tuned.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from validation.bundle import read_bundle
from validation.client_limits import client_limits
from validation.contract import BadSpec, Decision, Spec
from validation.findings import failed, inconclusive, passed
from validation.golden_requests import golden_requests
from validation.judges import queries_needed
from validation.latency_judge import HEADROOM
from validation.load_client import Answers, LoadClient, Target, load_client
from validation.policy import BadPolicy, TuneServing, parse
from validation.private_server import DoesNotLoad, private_server
from validation.schedule import poisson
from validation.serving import NotTunable, Serving, Space, Spent, best, configured, search

PART = 5
"""The search measures one in so many of all configurations."""

LEAST = 3
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


def run(spec: Spec, evidence: Path) -> Decision:
    """Searches for at most the policy's time. Raises `BadSpec`, or `ServerTrouble` and `ClientTrouble` (retry)."""
    limits = _limits(spec)
    space = Space(instances=limits.instances, threads=limits.threads, delay_us=limits.delay_us, preferred=limits.preferred)
    every = len(list(space.all()))
    with read_bundle(spec.need_bundle()) as bundle, load_client() as client:
        if bundle.manifest.rows == 0:
            return Decision(findings=(inconclusive("tuned", "the golden set has no rows to send", "give it rows"),))
        rng = np.random.default_rng(spec.seed)
        ceiling_rps = client_limits(client, "http", limits.rate_per_s, rng).ceiling_rps
        requests = golden_requests(bundle, "http", limits.batch_sizes, (), rng)
        tuning = Tuning(
            client=client,
            model=bundle.manifest.model,
            directory=bundle.model_directory,
            requests=requests,
            limits=limits,
            rng=rng,
            log=evidence / "triton.log",
        )
        try:
            seen = search(space, tuning.measure, max(LEAST, every // PART))
        except NotTunable as reason:
            return Decision(findings=(failed("tuned", str(reason), advice="take tune_serving out of the policy"),))
        except DoesNotLoad as reason:
            return Decision(findings=(failed("loads", f"does not load: {reason}"),))
    (evidence / "curve.json").write_text(json.dumps([each.to_dict() for each in tuning.borne], indent=1))
    return _decided(seen, every, tuning.borne, limits, ceiling_rps)


def _decided(seen: dict[Serving, float], every: int, borne: Sequence[Borne], limits: TuneServing, ceiling_rps: float) -> Decision:
    measured = f"{len(seen)} of {every} configurations were measured"
    if not seen or not seen[chosen := best(seen)] > 0:
        broken = f"; the default breaks it {borne[0].broken}" if borne else ""
        why = f"no configuration holds a p99 of {limits.p99_ms:g} ms{broken}; {measured}"
        return Decision(findings=(inconclusive("tuned", why, "raise p99_ms or max_seconds, or lower rate_per_s"),))
    if not HEADROOM * seen[chosen] <= ceiling_rps:
        why = f"the load client manages {ceiling_rps:,.0f} requests a second here; {HEADROOM:g} times {seen[chosen]:,.0f} are needed"
        advice = "run it where a core is faster, or take tune_serving out of the policy"
        return Decision(findings=(inconclusive("tuned", f"{why}; {measured}", advice),))
    default = next(iter(seen.values()))
    gain = f"; the default: {default:,.0f}" if chosen != Serving() else ", which is the default"
    why = f"{chosen}: {seen[chosen]:,.0f} requests a second within a p99 of {limits.p99_ms:g} ms{gain}; {measured}"
    details: dict[str, Any] = {"observed": seen[chosen], "n": len(seen)}
    return Decision(findings=(passed("tuned", why, **details),), outputs={"serving": asdict(chosen)})


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


def _p99_ms(answers: Answers) -> float:
    """The nearest-rank p99; infinite when more than one in a hundred failed."""
    return 1000 * float(np.sort(answers.latency_s)[int(np.ceil(0.99 * len(answers.latency_s))) - 1])


def _rate(answers: Answers) -> float:
    good = answers.done_s[np.isfinite(answers.done_s)]
    return len(good) / float(good.max()) if len(good) else 0.0


def _limits(spec: Spec) -> TuneServing:
    try:
        return parse(TuneServing, spec.limits, "tune_serving")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error
