"""Watches one model's traffic while parts of the system die: what the director acknowledged, what the gateway has in force, what users got.

`bench.chaos` asks it after each blow. It only reads, a few times a second, and a part that does not answer leaves a gap.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx

from bench.faults import gateway_runtime
from bench.world import MODEL, World
from delivery.traffic import PROTOCOLS, runtime_key
from stack.keys import read_keys

LOOK_EVERY_S, ANSWER_S = 0.2, 0.5
SIGMAS, ROOM = 6.0, 5.0
"""A share of n requests may be exceeded by so many standard deviations and so many requests before it counts as exceeded."""

LATER_S = 0.5
"""A lease that ends so much later than before was renewed; less is the clocks' and the answer's own time."""

LONGEST_BEYOND_S = 6.0
"""A split's time to live in the gateway, 5 s, and some looks: so long may a weight outlive the director that took it back."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One moment; None for who did not answer. Shares in per mille: of the split that the director holds, of the gateway's weights.

    `until_s`: when the lease on that split ends, Unix seconds; None without one.
    """

    unix_s: float
    acknowledged: int | None
    in_force: int | None
    until_s: float | None = None


class Sentry:
    """Use as a context manager around one delivery of `version`; `looks` are in order."""

    def __init__(self, world: World, version: int) -> None:
        settings = world.stage.settings
        self._version = version
        token = {"Authorization": f"Bearer {read_keys(world.state).director_token}"}
        self._director = httpx.Client(base_url=settings.director_url, headers=token, timeout=ANSWER_S, trust_env=False)
        self._runtime = gateway_runtime(settings.gateway_admin_url)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sentry", daemon=True)
        self.looks: list[Look] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._director.close()

    def note(self, permille: int) -> None:
        """A share that the director acknowledged to somebody else, perhaps between two looks."""
        self.looks.append(Look(unix_s=time.time(), acknowledged=permille, in_force=None))

    def _watch(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            unix_s, split = time.time(), self._split()
            held = {} if split is None else {"until_s": unix_s + split["expires_in_s"]} if split else {"until_s": None}
            acknowledged = None if split is None else int(split.get("permille", 0))
            self.looks.append(Look(unix_s=unix_s, acknowledged=acknowledged, in_force=self._in_force(), **held))

    def _split(self) -> dict[str, Any] | None:
        """The split that the director holds, empty for none; None when it does not answer."""
        with suppress(httpx.HTTPError, ValueError):
            return dict(self._director.get(f"/v1/models/{MODEL}").raise_for_status().json()["split"] or {})
        return None

    def _in_force(self) -> int | None:
        with suppress(httpx.HTTPError, ValueError):
            runtime = self._runtime()
            return max(int(runtime.get(runtime_key(MODEL, self._version, each)) or 0) for each in PROTOCOLS)
        return None


def settled_after(looks: Sequence[Look], unix_s: float) -> float | None:
    """Seconds until the first look after this at which the gateway has no weight, or the director holds a lease that was renewed since."""
    before = max((each.until_s for each in looks if each.unix_s <= unix_s and each.until_s is not None), default=-math.inf)
    settled = (each.unix_s - unix_s for each in looks if each.unix_s > unix_s and _settled(each, before))
    return next(settled, None)


def _settled(look: Look, before_s: float) -> bool:
    renewed = look.until_s is not None and look.until_s > before_s + LATER_S
    return look.in_force == 0 or (renewed and look.in_force is not None and look.acknowledged == look.in_force)


def exceeded(looks: Iterable[Look]) -> str:
    """Where the gateway had more weight for the candidate in force than was acknowledged; empty if nowhere.

    Never more than the greatest share acknowledged until then; and what the director took back no longer than a split lives without it.
    A look asks the director first: a share that it acknowledges a moment later is in force already, so the look after counts as well.
    """
    most = last = 0
    before: Look | None = None
    since_s: float | None = None
    for look in looks:
        most, last = max(most, look.acknowledged or 0), last if look.acknowledged is None else look.acknowledged
        if look.in_force is None:
            continue
        if before is not None and (before.in_force or 0) > most:
            return f"{before.in_force} per mille in force, {most} acknowledged"
        since_s = (since_s or look.unix_s) if look.in_force > last else None
        if since_s is not None and look.unix_s - since_s > LONGEST_BEYOND_S:
            return f"{look.in_force} per mille in force {look.unix_s - since_s:.1f} s after it was {last}"
        before = look
    return ""


def served_beyond(lines: Iterable[Mapping[str, Any]], version: int, looks: Iterable[Look]) -> str:
    """A second of the client's in which the version answered more than the greatest share acknowledged until then; empty if none."""
    steps = sorted((each.unix_s, each.acknowledged) for each in looks if each.acknowledged)
    for line in lines:
        end = line["second"] + line["span_s"] + 1
        share = max((permille for unix_s, permille in steps if unix_s <= end), default=0) / 1000
        answered, n = int(line["by_version"].get(str(version), 0)), sum(line["by_version"].values())
        if answered > n * share + (SIGMAS * math.sqrt(n * share * (1 - share)) + ROOM if share else 0):
            return f"v{version} answered {answered} of {n} requests in a second when {share:.1%} was the most ever acknowledged"
    return ""
