"""Watches one model's traffic while parts of the system die: what the director acknowledged, what the gateway has in force, what users got.

`bench.chaos` asks it after each blow. It only reads, a few times a second, and a part that does not answer leaves a gap.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx

from bench.faults import gateway_runtime
from bench.world import MODEL, World
from delivery.traffic import PROTOCOLS, runtime_key
from demo.services import Director, NotNow
from stack.keys import read_keys

LOOK_EVERY_S, ANSWER_S = 0.2, 0.5
SIGMAS, ROOM = 6.0, 5.0
"""A share of n requests may be exceeded by so many standard deviations and so many requests before it counts as exceeded."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One moment; None for who did not answer. Shares in per mille: of the split that the director holds, of the gateway's weights."""

    unix_s: float
    acknowledged: int | None
    in_force: int | None


class Sentry:
    """Use as a context manager around one delivery of `version`; `looks` are in order."""

    def __init__(self, world: World, version: int) -> None:
        self._version = version
        self._director = Director(world.stage.settings.director_url, read_keys(world.state).director_token, timeout_s=ANSWER_S)
        self._runtime = gateway_runtime(world.stage.settings.gateway_admin_url)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sentry", daemon=True)
        self.looks: list[Look] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def note(self, permille: int) -> None:
        """A share that the director acknowledged to somebody else, perhaps between two looks."""
        self.looks.append(Look(unix_s=time.time(), acknowledged=permille, in_force=None))

    def settled_after(self, unix_s: float, *, resumed_counts: bool = True) -> float | None:
        """Seconds until the first look after this at which the gateway has no weight, or, if that counts, one that the director holds."""
        settled = (each.unix_s - unix_s for each in self.looks if each.unix_s > unix_s and _settled(each, resumed_counts=resumed_counts))
        return next(settled, None)

    def _watch(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            self.looks.append(Look(unix_s=time.time(), acknowledged=self._acknowledged(), in_force=self._in_force()))

    def _acknowledged(self) -> int | None:
        with suppress(NotNow):
            return int(self._director.share(MODEL, 0.0).permille)
        return None

    def _in_force(self) -> int | None:
        with suppress(httpx.HTTPError, ValueError):
            runtime = self._runtime()
            return max(int(runtime.get(runtime_key(MODEL, self._version, each)) or 0) for each in PROTOCOLS)
        return None


def _settled(look: Look, *, resumed_counts: bool) -> bool:
    return look.in_force == 0 or (resumed_counts and look.in_force is not None and look.acknowledged == look.in_force)


def exceeded(looks: Iterable[Look]) -> str:
    """Where the gateway had more weight for the candidate in force than the director ever acknowledged until then; empty if nowhere.

    A look asks the director first: a share that it acknowledges a moment later is in force already, so the look after counts as well.
    """
    most, before = 0, None
    for look in looks:
        most = max(most, look.acknowledged or 0)
        if look.in_force is None:
            continue
        if before is not None and before > most:
            return f"{before} per mille in force, {most} acknowledged"
        before = look.in_force
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
