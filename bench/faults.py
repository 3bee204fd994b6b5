"""How fast traffic is back on stable when what watches the candidate dies in mid-canary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import httpx

from bench.figures import Figure
from bench.world import AIRFLOW, MODEL, Unexpected, World
from delivery.traffic import PROTOCOLS, runtime_key

LEASE_GOAL = "<= 15"
ENDS = ("promoted", "rolled_back", "inconclusive", "error")
LOOK_EVERY_S = 0.05
LIMIT_S = 60.0
NOTHING = ("", "0")


def measure(world: World) -> list[Figure]:
    """Airflow killed, then the director killed, each in mid-canary at 10 %, under the demo's traffic."""
    errors = world.client_errors()
    airflow_s, airflow_end = _revert_s(world, *AIRFLOW)
    director_s, director_end = _revert_s(world, "director")
    lost = world.client_errors() - errors
    how = "SIGKILL of {} in mid-canary at 10 % until the gateway itself has no weight for the candidate; "
    how += f"the delivery then ended as {{}}; {lost} client errors in both"
    return [
        Figure(name="lease_revert_s", value=airflow_s, unit="s", goal=LEASE_GOAL, how=how.format("all of Airflow", airflow_end)),
        Figure(name="director_revert_s", value=director_s, unit="s", goal=LEASE_GOAL, how=how.format("the director", director_end)),
    ]


def _revert_s(world: World, *victims: str) -> tuple[float, str]:
    """Seconds from the kill until the gateway has no weight for the candidate (its watch may put it back), and the delivery's end."""
    number = world.deliver("retrain")
    world.until_share(100)
    world.until_answered_by(number, 10)
    runtime = gateway_runtime(world.stage.settings.gateway_admin_url)
    if reverted(runtime(), number):
        raise Unexpected(f"the gateway has no weight for v{number} before anything was killed")
    killed_s = time.monotonic()
    world.kill(*victims)
    reverted_s = until_reverted(runtime, number) - killed_s
    outcome = world.outcome(number, 600)
    if outcome not in ENDS:
        raise Unexpected(f"v{number} ended as {outcome}")
    return round(reverted_s, 2), outcome


def until_reverted(runtime: Callable[[], Mapping[str, str]], version: int) -> float:
    """The monotonic time of the first look at which no weight of the version is left. Raises `Unexpected` after a minute."""
    deadline_s = time.monotonic() + LIMIT_S
    while not reverted(runtime(), version):
        if time.monotonic() > deadline_s:
            raise Unexpected(f"the gateway still sends traffic to v{version} after {LIMIT_S:.0f} s")
        time.sleep(LOOK_EVERY_S)
    return time.monotonic()


def reverted(runtime: Mapping[str, str], version: int) -> bool:
    """Whether neither protocol has a weight for the version: the routes' own weights give stable everything."""
    return all(runtime.get(runtime_key(MODEL, version, each), "") in NOTHING for each in PROTOCOLS)


def gateway_runtime(admin_url: str) -> Callable[[], Mapping[str, str]]:
    """Looks at the runtime values in force, as the gateway's admin interface shows them; the director is not asked."""

    def look() -> Mapping[str, str]:
        page = httpx.get(f"{admin_url}/runtime", timeout=5, trust_env=False).json()
        return {key: entry["final_value"] for key, entry in page.get("entries", {}).items()}

    return look
