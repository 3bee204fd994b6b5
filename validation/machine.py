"""Whether the machine gave what it has: CPU time taken away meanwhile by a hypervisor, a control group's quota, or heat.

`latency_benchmark` looks before and after its load. Linux only; what the kernel does not tell counts as nothing taken. Judges no model.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
CPUS = Path("/sys/devices/system/cpu")
QUOTAS = (("/sys/fs/cgroup/cpu.stat", "throttled_usec", 1e-6), ("/sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1e-9))
"""Control groups of version 2 and 1: file, word, and seconds in its unit."""

STEAL = 7  # place of the stolen time among the numbers of /proc/stat's first line (proc(5))


@dataclass(frozen=True, kw_only=True)
class Look:
    """Counters at one moment: seconds of stolen and of all CPU time, seconds in which a quota held us up, counts of overheating."""

    at_s: float
    stolen_s: float
    all_s: float
    held_up_s: float
    too_hot: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was taken away between two looks: shares of CPU time and of wall time, and how often a core was slowed down for its heat."""

    stolen: float
    held_up: float
    too_hot: int

    def trouble(self, share: float) -> str | None:
        """Why latencies of this time say little, when more than `share` was taken."""
        if not self.stolen <= share:
            return f"the hypervisor took {self.stolen:.1%} of the CPU time; {share:.1%} are allowed"
        if not self.held_up <= share:
            return f"the container's CPU quota held it up for {self.held_up:.1%} of the time; {share:.1%} are allowed"
        return f"the processor was slowed down {self.too_hot} times for its heat" if self.too_hot else None


def look() -> Look:
    ticks = _ticks()
    hertz = os.sysconf("SC_CLK_TCK")
    return Look(
        at_s=time.monotonic(), stolen_s=ticks[STEAL] / hertz, all_s=sum(ticks) / hertz, held_up_s=_held_up_s(), too_hot=_overheatings()
    )


def _ticks() -> list[int]:
    try:
        return [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return [0] * (STEAL + 1)


def taken(before: Look, after: Look) -> Taken:
    return Taken(
        stolen=_share(after.stolen_s - before.stolen_s, after.all_s - before.all_s),
        held_up=_share(after.held_up_s - before.held_up_s, after.at_s - before.at_s),
        too_hot=after.too_hot - before.too_hot,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _held_up_s() -> float:
    for path, word, unit in QUOTAS:
        try:
            rows = dict(line.split() for line in Path(path).read_text().splitlines())
        except OSError:
            continue
        return float(rows.get(word, 0)) * unit
    return 0.0


def _overheatings() -> int:
    return sum(int(path.read_text()) for path in CPUS.glob("cpu*/thermal_throttle/core_throttle_count"))
