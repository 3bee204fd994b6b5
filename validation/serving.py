"""How a model is served: instances, threads, dynamic batching; and a guided search for what serves most. Pure.

`tune_serving` measures what the search asks for, and `package` writes what it found into the bundle's config.pbtxt. The default, one
instance with batching and no delay, is `delivery.triton_config`'s: batching without a delay costs nothing, a delay costs its full length at
low load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

MIN_GAIN = 1.03
"""What a step must gain to be taken: less is noise, and the simpler configuration stays."""

PART, LEAST = 5, 3
"""A search measures one in so many of all configurations, but so many at least."""

INSTANCES = re.compile(r"^instance_group \[.*\]$", re.MULTILINE)
BATCHING = re.compile(r"^dynamic_batching \{.*\}\n?", re.MULTILINE)
THREADS = re.compile(r"^parameters \{ key: \"intra_op_thread_count\".*\}\n?", re.MULTILINE)


class NotTunable(ValueError):
    """A config.pbtxt in which the words to change are not where they are expected."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """`threads` are each instance's. `delay_us` and `preferred` are those of dynamic batching, which is off without `batching`."""

    instances: int = 1
    threads: int = 1
    batching: bool = True
    delay_us: int = 0
    preferred: int = 0

    def __str__(self) -> str:
        batching = "no batching"
        if self.batching:
            batching = f"batching, delay {self.delay_us} us" + (f", preferred {self.preferred}" if self.preferred else "")
        return f"{self.instances} instances, {self.threads} threads each, {batching}"


def configured(text: str, serving: Serving) -> str:
    """The same config.pbtxt, served so. Raises `NotTunable`."""
    if len(INSTANCES.findall(text)) != 1:
        raise NotTunable("config.pbtxt has no line `instance_group [ ... ]`, or more than one")
    rest = THREADS.sub("", BATCHING.sub("", text))
    lines = [f"instance_group [ {{ kind: KIND_CPU count: {serving.instances} }} ]"]
    if serving.batching:
        lines.append(f"dynamic_batching {{ {_batching(serving)}}}")
    lines.append(f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{serving.threads}" }} }}')
    return INSTANCES.sub("\n".join(lines), rest)


def _batching(serving: Serving) -> str:
    preferred = f"preferred_batch_size: [ {serving.preferred} ] " if serving.preferred else ""
    return preferred + (f"max_queue_delay_microseconds: {serving.delay_us} " if serving.delay_us else "")


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values that may be tried, each in the order of its size."""

    instances: tuple[int, ...]
    threads: tuple[int, ...]
    delay_us: tuple[int, ...]
    preferred: tuple[int, ...]
    batching: tuple[bool, ...] = (True, False)

    def all(self) -> Iterator[Serving]:
        """Every configuration once: without batching its own values mean nothing."""
        for instances in self.instances:
            for threads in self.threads:
                for batching in self.batching:
                    for delay_us in self.delay_us if batching else (0,):
                        for preferred in self.preferred if batching else (0,):
                            yield Serving(instances=instances, threads=threads, batching=batching, delay_us=delay_us, preferred=preferred)


def measurements(space: Space) -> int:
    """How many configurations are measured at most."""
    return max(LEAST, len(list(space.all())) // PART)


def search(space: Space, measure: Callable[[Serving], float], most: int) -> dict[Serving, float]:
    """What was measured, in order; the best of it is `best`. At most `most` measurements; `measure` may end it by raising `Spent`.

    From the default along one value at a time, upwards first and on as long as each step gains `MIN_GAIN`; again from there until no value
    gains anything. Servings are known to have one hill: more instances or threads help until the cores are taken, a longer delay until it
    costs more than its batches bring.
    """
    seen: dict[Serving, float] = {}

    def score(serving: Serving) -> float:
        if serving not in seen:
            if len(seen) >= most:
                raise Spent
            seen[serving] = measure(serving)
        return seen[serving]

    try:
        here = Serving()
        score(here)
        while (there := _climbed(space, here, score)) != here:
            here = there
    except Spent:
        pass
    return seen


def best(seen: dict[Serving, float]) -> Serving:
    """The first that nothing later beats by `MIN_GAIN`."""
    found = next(iter(seen))
    for each, score in seen.items():
        if score > MIN_GAIN * seen[found]:
            found = each
    return found


class Spent(Exception):
    """No measurement is left, or no time for one."""


def _climbed(space: Space, here: Serving, score: Callable[[Serving], float]) -> Serving:
    for name in (each.name for each in fields(Space)):
        if here.batching or name not in {"delay_us", "preferred"}:
            here = _along(name, getattr(space, name), here, score)
    return here


def _along(name: str, values: tuple[Any, ...], here: Serving, score: Callable[[Serving], float]) -> Serving:
    """As far up this value as each step gains, else as far down."""
    start = here
    for step in (1, -1):
        while 0 <= (place := values.index(getattr(here, name)) + step) < len(values):
            there = replace(here, **{name: values[place]})
            if not score(there) > MIN_GAIN * score(here):
                break
            here = there
        if here != start:
            break
    return here
