"""Sends the policy's load to servers that the load client knows, until its figures decide. `latency_benchmark` and the figures use it."""

from __future__ import annotations

import numpy as np

from validation import gpu, machine
from validation.contract import Outcome, worst
from validation.latency_judge import (
    CANDIDATE,
    FULL_PAIRS,
    STABLE,
    WARM_UP_SECONDS,
    Measured,
    at_rate,
    block_queries,
    judge_full,
    judge_load,
    judge_turns,
    pairs_at,
    queries_at,
    rung,
)
from validation.load_client import Answers, LoadClient
from validation.policy import LatencyBenchmark
from validation.schedule import ARRIVALS, queries_within
from validation.warm_up import LEAST, steady_from

FULL_AT_ONCE, FULL_BLOCK_S = 32, 0.5
"""A full server has so many queries at once; a block has as many as the wanted throughput brings in so long a time."""

PICKS = 1 << 16
"""Requests are drawn from so many numbers; the client takes them round the ones that it has."""


class LoadRun:
    """A client, the policy's limits, and what is drawn at random. The client must know the servers as `CANDIDATE` and `STABLE`."""

    def __init__(self, client: LoadClient, limits: LatencyBenchmark, rng: np.random.Generator) -> None:
        self.client = client
        self.limits = limits
        self.rng = rng

    def measure_load(self, measured: Measured) -> None:
        """Sends up to each look in turn, until its figures decide; an unfit measurement goes on too, in the hope of quieter seconds."""
        measured.warm_up = self.warm_up(CANDIDATE)
        self._until_decided(measured, self.limits)

    def measure_throughput(self, measured: Measured) -> None:
        """The same at the rate that the policy wants borne, if it names one."""
        if self.limits.throughput_rps:
            full = measured.at_throughput = Measured(client=measured.client, warm_up=measured.warm_up)
            self._until_decided(full, at_rate(self.limits, self.limits.throughput_rps))

    def _until_decided(self, measured: Measured, limits: LatencyBenchmark) -> None:
        """What the machine gave is looked at for these seconds alone: what it took from the load is not thinned by quiet ones before."""
        before = machine.look()
        for queries in queries_at(limits):
            after_s = float(measured.due_s[-1]) if measured.queries else 0.0
            with gpu.watched(gpu.visible_device() if limits.device != "cpu" else None) as seen:
                measured.add(self.send(CANDIDATE, queries - measured.queries, limits.rate_per_s), after_s)
                measured.saw(seen())
            measured.taken = machine.taken(before, machine.look())
            if measured.warm_up is None or worst(each.outcome for each in judge_load(measured, limits)) is not Outcome.INCONCLUSIVE:
                return

    def measure_curve(self, measured: Measured, name: str) -> None:
        """Latencies at the policy's other rates, lowest first; nothing is judged by them."""
        rates = sorted(self.limits.curve_rps)
        measured.curve[name] = [rung(rate, self.send(name, self.limits.min_queries, rate)) for rate in rates]

    def measure_turns(self, measured: Measured) -> None:
        """Pairs of blocks until they decide."""
        if self.warm_up(STABLE) is None:
            measured.stable_trouble = f"its latencies were not steady after {WARM_UP_SECONDS:g} s of warm-up"
            return
        for pairs in pairs_at(self.limits):
            self.measure_pairs(measured, pairs)
            if worst(each.outcome for each in judge_turns(measured, self.limits)) is not Outcome.INCONCLUSIVE:
                return

    def measure_full(self, measured: Measured) -> None:
        """Pairs of blocks in which the server always has queries waiting, until they decide; if the policy names a throughput at all."""
        for pairs in FULL_PAIRS if self.limits.throughput_rps else ():
            while len(measured.full[STABLE]) < pairs:
                for name in self.rng.permutation([CANDIDATE, STABLE]):
                    measured.add_full(str(name), self._full_block(str(name)))
            if judge_full(measured, self.limits).outcome is not Outcome.INCONCLUSIVE:
                return

    def _full_block(self, name: str) -> Answers:
        return self.client.send_closed(name, max(FULL_AT_ONCE, int(self.limits.throughput_rps * FULL_BLOCK_S)), FULL_AT_ONCE)

    def measure_pairs(self, measured: Measured, pairs: int) -> None:
        """Goes on until there are so many pairs of blocks; which of a pair comes first is drawn."""
        while len(measured.blocks[STABLE]) < pairs:
            for name in self.rng.permutation([CANDIDATE, STABLE]):
                measured.add_block(str(name), self.send(str(name), block_queries(self.limits)))

    def warm_up(self, name: str) -> int | None:
        """Queries until latencies were steady, or None when they never were."""
        latencies = np.empty(0)
        most = max(LEAST, queries_within(self.limits.rate_per_s, WARM_UP_SECONDS))
        while len(latencies) < most:
            latencies = np.concatenate([latencies, self.send(name, LEAST).latency_s])
            if steady_from(latencies) is not None:
                return len(latencies)
        return None

    def send(self, name: str, queries: int, rate_per_s: float = 0.0) -> Answers:
        """At the policy's rate, unless another is given."""
        limits, rate_per_s = self.limits, rate_per_s or self.limits.rate_per_s
        if limits.arrivals == "closed_loop":
            return self.client.send_closed(name, queries, limits.concurrency)
        due_s = ARRIVALS[limits.arrivals](rate_per_s, queries, self.rng)
        return self.client.send(name, due_s, self.rng.integers(PICKS, size=queries))
