"""What the stack costs when nobody uses it: memory and CPU of all its processes, the minute's sweep included."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from bench.figures import Figure
from bench.world import World
from stack import processes

WINDOW_S = 120.0  # two sweeps
LOOKS = 12


def measure(world: World) -> list[Figure]:
    """Proportional set size (median of looks) and CPU seconds per second, summed over the stack's processes."""
    sizes, before, started_s = [], cpu_s(world.state), time.monotonic()
    for _ in range(LOOKS):
        time.sleep(WINDOW_S / LOOKS)
        sizes.append(pss_gib(world.state))
    used = 100 * (cpu_s(world.state) - before) / (time.monotonic() - started_s)
    how = f"all processes of the stack after `make up`, over {WINDOW_S:.0f} s"
    return [
        Figure(name="idle_pss_gib", value=round(sorted(sizes)[len(sizes) // 2], 2), unit="GiB", goal="<= 3", how=f"PSS of {how}"),
        Figure(name="idle_cpu_pct", value=round(used, 1), unit="% of one core", goal="<= 25", how=f"CPU time of {how}, sweep included"),
    ]


def pss_gib(state: Path) -> float:
    return sum(_pss_kib(process) for process in processes.ours(state)) / 2**20


def cpu_s(state: Path) -> float:
    """CPU seconds so far of the processes that live, and of their children that have ended."""
    total = 0.0
    for process in processes.ours(state):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _pss_kib(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
