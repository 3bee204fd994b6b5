"""How fast traffic is back on stable when what watches the candidate dies in mid-canary."""

from __future__ import annotations

import time

from bench.figures import Figure
from bench.world import AIRFLOW, Unexpected, World

LEASE_GOAL = "<= 15"
ENDS = ("promoted", "rolled_back", "inconclusive", "error")


def measure(world: World) -> list[Figure]:
    """Airflow killed, then the director killed, each in mid-canary at 10 %, under the demo's traffic."""
    errors = world.client_errors()
    airflow_s, airflow_end = _revert_s(world, *AIRFLOW)
    director_s, director_end = _revert_s(world, "director")
    lost = world.client_errors() - errors
    how = f"SIGKILL of {{}} in mid-canary at 10 % to a share of 0; the delivery then ended as {{}}; {lost} client errors in both"
    return [
        Figure(name="lease_revert_s", value=airflow_s, unit="s", goal=LEASE_GOAL, how=how.format("all of Airflow", airflow_end)),
        Figure(name="director_revert_s", value=director_s, unit="s", goal=LEASE_GOAL, how=how.format("the director", director_end)),
    ]


def _revert_s(world: World, *victims: str) -> tuple[float, str]:
    number = world.deliver("retrain")
    world.until_share(100)
    world.until_answered_by(number, 10)
    killed_s = time.time()
    world.kill(*victims)
    world.until(lambda: world.share().permille == 0 or None, "all traffic on stable", 60)
    reverted_s = time.time() - killed_s
    outcome = world.outcome(number, 600)
    if outcome not in ENDS:
        raise Unexpected(f"v{number} ended as {outcome}")
    return round(reverted_s, 2), outcome
