"""`make bench`: measures, writes `docs/benchmarks.json` and the README's table. `FULL=1` adds what takes a quarter of an hour.

Names on the command line choose, those of `ON_A_STACK`, `WITH_TRAFFIC` and `ALONE`. Exit status 1 when a figure misses its goal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from bench import (
    archive,
    chaos,
    conformance,
    containers,
    error_rates,
    events,
    faults,
    figures,
    gateway,
    golden_set,
    idle,
    latencies,
    latency_gate,
    mutation,
    offline,
    tuning,
    whole,
)
from bench.figures import Figure
from bench.world import World
from stack.variables import spare_loopback

ON_A_STACK: dict[str, Callable[[World], list[Figure]]] = {"idle": idle.measure, "events": events.measure}
WITH_TRAFFIC: dict[str, Callable[[World], list[Figure]]] = {"faults": faults.measure, "chaos": chaos.measure}
ALONE: dict[str, Callable[[], list[Figure]]] = {
    "offline": offline.measure,
    "error_rates": error_rates.measure,
    "latencies": latencies.measure,
    "latencies_aa": latencies.measure_long,
    "golden_set": golden_set.measure,
    "conformance": conformance.measure,
    "latency_gate": latency_gate.measure,
    "latency_like": latency_gate.measure_like,
    "latency_slower": latency_gate.measure_slower,
    "tuning": tuning.measure,
    "archive": archive.measure,
    "gateway": gateway.measure,
    "whole": whole.measure,
    "containers": containers.measure,
    "golden_10m": golden_set.measure_long,
    "mutation": mutation.measure,
}
SHORT = ("offline", "error_rates", "latencies", "golden_set", "conformance", "latency_gate", "archive", "gateway", "idle", "events")
FULL = (*SHORT, "faults", "whole", "containers", "golden_10m", "latency_like", "latency_slower", "tuning", "latencies_aa", "mutation")


def main(arguments: Sequence[str]) -> int:
    spare_loopback(os.environ)
    names = arguments or (FULL if os.environ.get("FULL") == "1" else SHORT)
    measured: list[Figure] = []
    try:
        measured += _on_a_stack([name for name in names if name in ON_A_STACK])
        measured += _with_traffic([name for name in names if name in WITH_TRAFFIC])
        for name in (name for name in names if name in ALONE):
            measured += ALONE[name]()
    finally:
        rows = figures.write(measured)
        figures.into_readme(rows)
        print(figures.table(rows))
    return 0 if all(figure.holds for figure in measured) else 1


def _on_a_stack(names: Sequence[str]) -> list[Figure]:
    """Measures what needs a stack without traffic."""
    if not names:
        return []
    world = World(os.environ, "bench")
    try:
        world.open()
        return [figure for name in names for figure in ON_A_STACK[name](world)]
    finally:
        world.close()


def _with_traffic(names: Sequence[str]) -> list[Figure]:
    """Measures what needs v1 stable and a client."""
    if not names:
        return []
    world = World(os.environ, "bench")
    try:
        world.open_with_traffic()
        return [figure for name in names for figure in WITH_TRAFFIC[name](world)]
    finally:
        world.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
