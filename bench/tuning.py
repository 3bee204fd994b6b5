"""What `tune_serving` finds for a model of matrix products, beside what was exported without batching and beside an exhaustive search.

A quarter of an hour: the exhaustive search measures every configuration once. One measurement has noise, and the best of many looks better
than it is: the three configurations compared are therefore measured again, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.figures import Figure
from bench.latency_gate import NAME, let_triton_run, made, request
from validation.load_client import load_client
from validation.policy import TuneServing
from validation.serving import Serving, best, measurements, search
from validation.tuning import Tuning, space_of

LAYERS, WIDTH = 4, 1024
P99_MS, RATE_PER_S = 50.0, 50.0
ROUNDS = 5
UNBATCHED = Serving(batching=False)


def measure() -> list[Figure]:
    let_triton_run()
    limits = TuneServing(p99_ms=P99_MS, rate_per_s=RATE_PER_S, max_seconds=3600.0)
    space = space_of(limits)
    every = list(space.all())
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name, load_client() as client:
        folder = Path(name)
        tuning = Tuning(
            client=client,
            model=NAME,
            directory=made(folder, LAYERS, WIDTH),
            requests=(request(WIDTH),),
            limits=limits,
            rng=np.random.default_rng(0),
            log=folder / "triton.log",
        )
        seen = search(space, tuning.measure, measurements(space))
        tuned = best(seen)
        exhaustive = {each: tuning.measure(each) for each in every}
        top = max(exhaustive, key=lambda each: exhaustive[each])
        rates = _in_turns(tuning, (UNBATCHED, tuned, top))
    return _figures(rates, tuned, top, len(seen), len(every))


def _in_turns(tuning: Tuning, servings: Sequence[Serving]) -> dict[Serving, float]:
    """Requests a second within the p99 of each, the median of several rounds."""
    chosen = list(dict.fromkeys(servings))
    rounds = [[tuning.measure(each) for each in chosen] for _ in range(ROUNDS)]
    return dict(zip(chosen, np.median(rounds, axis=0).tolist(), strict=True))


def _figures(rates: dict[Serving, float], tuned: Serving, top: Serving, measured: int, every: int) -> list[Figure]:
    model = f"{LAYERS} products with {WIDTH} x {WIDTH} matrices, within a p99 of {P99_MS:g} ms"
    return [
        Figure(
            name="tuned_speedup",
            value=round(rates[tuned] / rates[UNBATCHED], 2),
            unit="times",
            goal=">= 3",
            how=f"{model}: {rates[tuned]:,.0f} requests/s with {tuned}; {rates[UNBATCHED]:,.0f} with one instance and no batching",
        ),
        Figure(
            name="tuned_of_exhaustive",
            value=round(rates[tuned] / rates[top], 3),
            unit="of the best",
            goal=">= 0.95",
            how=f"the best of all {every} configurations: {rates[top]:,.0f} requests/s with {top}; medians of {ROUNDS} in turns",
        ),
        Figure(
            name="tuned_measurements",
            value=round(measured / every, 3),
            unit="of all",
            goal="<= 0.2",
            how=f"{measured} of {every} configurations measured by the search",
        ),
    ]
