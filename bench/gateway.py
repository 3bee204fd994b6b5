"""What the gateway does to requests: how fast a share is taken back, whether shares are exact, what it costs.

All figures come from a real Envoy programmed by a real director; only the servers behind it are without a model (`bench.lone_gateway`).
"""

from __future__ import annotations

import bisect
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from bench.figures import Figure
from bench.load import Asked, counted, steady, waits_ms
from bench.lone_gateway import CANDIDATE, MODEL, LoneGateway
from bench.world import Unexpected
from stack.settings import read_settings

HOLDER = "bench"
LEASE_S = 60.0
PER_S = 600.0  # asked for; at least `LEAST_PER_S` must come, or the figure is none
LEAST_PER_S = 500.0
REVERTS, GAP_S = 300, 0.05
CHANGES = 1000
SHARES = (0, 1, 10, 50, 100, 500, 990, 1000)  # per mille
REQUESTS_PER_SHARE = 100_000
ROUNDS, WARM_UP = 5000, 200
SEED = 4
Span = tuple[float, float]  # monotonic seconds


def measure() -> list[Figure]:
    """Each figure on the same gateway, one after the other: they would disturb each other's times."""
    with LoneGateway(read_settings(os.environ)).running() as lone:
        return [overhead(lone), *reverts(lone), weight_changes(lone), *shares(lone)]


def overhead(lone: LoneGateway) -> Figure:
    """p50 through the gateway minus p50 at the server, one request at a time, by turns."""
    direct, through = (sorted(each[WARM_UP:]) for each in waits_ms([lone.stable, lone.gateway], WARM_UP + ROUNDS))
    medians = statistics.median(direct), statistics.median(through)
    how = f"p50 through the gateway ({medians[1]:.3f} ms) minus p50 at the server ({medians[0]:.3f} ms), {ROUNDS} requests each, by turns"
    return Figure(name="gateway_p50_ms", value=round(medians[1] - medians[0], 3), unit="ms", goal="<= 0.3", how=how)


def reverts(lone: LoneGateway) -> list[Figure]:
    """p99 of the time from the decision (the call is sent) until Envoy shows that the candidate has no share; and what it served later."""
    reverts_ms: list[float] = []
    quiet: list[Span] = []

    def revert_often() -> None:
        for _ in range(REVERTS):
            lone.director.put_split(MODEL, HOLDER, 500, LEASE_S)
            time.sleep(GAP_S)
            decided_s = time.monotonic()
            lone.director.release(MODEL, HOLDER)
            acknowledged_s = time.monotonic()
            time.sleep(GAP_S)
            reverts_ms.append((acknowledged_s - decided_s) * 1000)
            quiet.append((acknowledged_s, time.monotonic()))

    asked = _under_load(lone, revert_often)
    served, late = sum(each.version == CANDIDATE for each in asked), served_within(asked, quiet)
    if not served:
        raise Unexpected("the candidate served nothing, so nothing was taken back from it")
    p99_ms = sorted(reverts_ms)[math.ceil(0.99 * REVERTS) - 1]
    how = f"DELETE split sent until Envoy shows it, {REVERTS} reverts from 50 % at {_rate(asked):.0f} requests/s; "
    how += f"median {statistics.median(reverts_ms):.1f} ms; {late} of {served} requests that the candidate served were sent after it"
    kept = f"of {served} requests that the candidate served, those sent after an acknowledged revert and before the next split"
    return [
        Figure(name="revert_p99_ms", value=round(p99_ms, 1), unit="ms", goal="<= 200", how=how),
        Figure(name="revert_served_late", value=late, unit="requests", goal="= 0", how=f"{kept}; {REVERTS} reverts"),
    ]


def served_within(asked: Iterable[Asked], spans: Sequence[Span]) -> int:
    """Requests that the candidate answered and that were sent inside of any of the spans, which are in order and apart."""
    begins = [begin_s for begin_s, _ in spans]
    held = [(each.asked_s, bisect.bisect_right(begins, each.asked_s) - 1) for each in asked if each.version == CANDIDATE]
    return sum(span >= 0 and asked_s < spans[span][1] for asked_s, span in held)


def weight_changes(lone: LoneGateway) -> Figure:
    """Client errors while the share changes a thousand times."""
    chance = random.Random(SEED)  # noqa: S311 -- shares, not secrets

    def change() -> None:
        for _ in range(CHANGES):
            lone.director.put_split(MODEL, HOLDER, chance.randrange(1001), LEASE_S)

    asked = _under_load(lone, change)
    lone.director.release(MODEL, HOLDER)
    errors = sum(each.version == 0 for each in asked)
    how = f"{CHANGES} acknowledged changes (seed {SEED}) within {_span_s(asked):.0f} s at {_rate(asked):.0f} requests/s; "
    how += f"{len(asked)} requests, none retried by the client"
    return Figure(name="weight_change_errors", value=errors, unit="errors", goal="= 0", how=how)


def shares(lone: LoneGateway) -> list[Figure]:
    """Whether the candidate's part of many requests is what a binomial draw of the share gives, and exactly none and all at the ends."""
    found = {permille: _served_at(lone, permille) for permille in SHARES}
    between = {permille: chi2_p(served, REQUESTS_PER_SHARE, permille / 1000) for permille, served in found.items() if 0 < permille < 1000}
    ends_wrong = found[0] + REQUESTS_PER_SHARE - found[1000]
    told = ", ".join(f"{permille / 10:g} %: {served}" for permille, served in found.items())
    how = f"least p-value of chi-square over the shares; served by the candidate of {REQUESTS_PER_SHARE} requests at each share: {told}"
    wrong = "requests at the wrong version with the candidate's share at 0 % and at 100 %"
    return [
        Figure(name="weights_chi2_worst_p", value=round(min(between.values()), 4), unit="p-value", goal=">= 0.001", how=how),
        Figure(name="weights_ends_wrong", value=ends_wrong, unit="requests", goal="= 0", how=f"{wrong}, {REQUESTS_PER_SHARE} each"),
    ]


def chi2_p(served: int, requests: int, share: float) -> float:
    """p-value of Pearson's chi-square with one degree of freedom, for two cells: the candidate's and stable's."""
    expected = requests * share
    statistic = (served - expected) ** 2 / expected + (served - expected) ** 2 / (requests - expected)
    return math.erfc(math.sqrt(statistic / 2))


def _served_at(lone: LoneGateway, permille: int) -> int:
    lone.director.put_split(MODEL, HOLDER, permille, 600)
    served = counted(lone.gateway, REQUESTS_PER_SHARE)[CANDIDATE]
    lone.director.release(MODEL, HOLDER)
    return served


def _under_load(lone: LoneGateway, work: Callable[[], object]) -> list[Asked]:
    """What a client process lived through while `work` was done. Raises `Unexpected` when it asked too slowly to say anything."""
    with steady(lone.gateway, PER_S) as client:
        time.sleep(1)
        work()
        asked = client.stop()
    if _rate(asked) < LEAST_PER_S:
        raise Unexpected(f"the client asked {_rate(asked):.0f} times a second, not {LEAST_PER_S:.0f}: the machine is too busy to measure")
    return asked


def _rate(asked: Sequence[Asked]) -> float:
    return len(asked) / _span_s(asked) if asked else 0.0


def _span_s(asked: Sequence[Asked]) -> float:
    return max(each.answered_s for each in asked) - min(each.asked_s for each in asked)
