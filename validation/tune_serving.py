"""The task `tune_serving`: the serving configuration that bears most within the p99, found by measuring.

A guided search (`validation.serving`) asks which configuration to measure next, `validation.tuning` says what it bears within the p99, at
the expected rate and alone. The bundle is left as it is: `package` writes the chosen configuration into it.

What was found is no promise: `latency_benchmark` judges the packaged model after it. Evidence: curve.json, triton.log of the last server.

| finding | claim                                                                                     |
|---------|-------------------------------------------------------------------------------------------|
| loads   | Triton loads the model as exported (only when Triton itself says that it does not)        |
| tuned   | a configuration holds the p99 at the expected rate and alone; the best of those is chosen |

What the best of them bears must lie well below what the load client itself manages: else it is the client that was tuned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from validation.bundle import read_bundle
from validation.client_limits import client_limits
from validation.contract import BadSpec, Decision, Spec
from validation.findings import failed, inconclusive, passed
from validation.golden_requests import golden_requests
from validation.latency_judge import HEADROOM
from validation.load_client import load_client
from validation.policy import BadPolicy, TuneServing, parse
from validation.private_server import DoesNotLoad
from validation.serving import NotTunable, Serving, best, measurements, search
from validation.tuning import Borne, Tuning, space_of


def run(spec: Spec, evidence: Path) -> Decision:
    """Searches for at most the policy's time. Raises `BadSpec`, or `ServerTrouble` and `ClientTrouble` (retry)."""
    limits = _limits(spec)
    space = space_of(limits)
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
            seen = search(space, tuning.measure, measurements(space))
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


def _limits(spec: Spec) -> TuneServing:
    try:
        return parse(TuneServing, spec.limits, "tune_serving")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error
