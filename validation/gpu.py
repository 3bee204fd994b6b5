"""What a GPU did meanwhile: how busy it was, its memory, its clocks, and whether it was slowed down; asked of NVIDIA's library NVML.

`validation.load_run` watches the device during a load that runs on one. A GPU that was slowed down for its heat or its power supply
measures its cooling and not the model; one whose state cannot be read is not known to be fit. Judges no model.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

EVERY_S = 0.1
MIB = 1 << 20
SLOWED: Mapping[int, str] = {
    0x08: "by its hardware, for heat or power",
    0x20: "by its driver, for its heat",
    0x40: "by its hardware, for its heat",
    0x80: "by its power supply",
}
"""NVML's reasons for lower clocks that make a measurement unfit (nvml.h, nvmlClocksEventReason*). A power cap is how the device is sold."""


@dataclass(frozen=True, kw_only=True)
class GpuSeen:
    """A device over the time that it was watched. Shares of time busy from 0 to 1, memory and clocks in MiB and MHz; NaN: not told.

    `mig` says whether it is cut into parts that other programs may use. `unknown` is why nothing could be read.
    """

    name: str = ""
    mig: bool = False
    busy: float = math.nan
    memory_mib: float = math.nan
    clock_mhz: float = math.nan
    most_clock_mhz: float = math.nan
    slowed: tuple[str, ...] = ()
    unknown: str = ""

    def trouble(self) -> str | None:
        """Why latencies of this time say little."""
        if self.unknown:
            return f"the state of the GPU cannot be read: {self.unknown}"
        return f"the GPU was slowed down {', '.join(self.slowed)}" if self.slowed else None

    def __str__(self) -> str:
        cut = ", cut into parts (MIG)" if self.mig else ""
        return (
            f"{self.name}{cut}: busy {self.busy:.0%} of the time, {self.memory_mib:,.0f} MiB in use, "
            f"{self.clock_mhz:,.0f} of {self.most_clock_mhz:,.0f} MHz"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(self).items()}


class Watch:
    """Looks at a device again and again, until it is told to end."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="gpu", daemon=True)
        self._seen = GpuSeen(unknown="nothing was read yet")

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> GpuSeen:
        self._ended.set()
        self._thread.join()
        return self._seen

    def _look(self) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            try:
                self._seen = self._watched(nvml)
            finally:
                nvml.nvmlShutdown()
        except Exception as trouble:  # no library, no driver, no such device: whatever it is, nothing is known
            self._seen = GpuSeen(unknown=f"{type(trouble).__name__}: {trouble}"[:200])

    def _watched(self, nvml: Any) -> GpuSeen:
        device = nvml.nvmlDeviceGetHandleByIndex(self._index)
        rows, reasons, ended = [], 0, False
        while not ended:
            ended = self._ended.wait(EVERY_S)
            reasons |= nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)
            rows.append(_row(nvml, device))
        busy, memory, clock = np.array(rows).T
        return GpuSeen(
            name=_text(nvml.nvmlDeviceGetName(device)),
            mig=_told(nvml, lambda: nvml.nvmlDeviceGetMigMode(device)[0]) == 1,
            busy=float(busy.mean()),
            memory_mib=float(memory.max()),
            clock_mhz=float(clock.mean()),
            most_clock_mhz=_told(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM)),
            slowed=tuple(words for bit, words in SLOWED.items() if reasons & bit),
        )


@contextmanager
def watched(index: int | None) -> Iterator[Callable[[], GpuSeen | None]]:
    """Watches the device of this number until what is given here is called, or the block ends; without a device there is nothing to see."""
    if index is None:
        yield lambda: None
        return
    watch = Watch(index)
    watch.begin()
    try:
        yield watch.end
    finally:
        watch.end()


def visible_device(environ: Mapping[str, str] = os.environ) -> int:
    """The one GPU that this task may use, by NVML's number: a container sees no other, a process is told by CUDA's variable."""
    first = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _row(nvml: Any, device: Any) -> tuple[float, float, float]:
    return (
        _told(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100,
        _told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(device).used) / MIB,
        _told(nvml, lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
    )


def _told(nvml: Any, ask: Callable[[], float]) -> float:
    """NaN where this device does not tell: a part of one (MIG) has no utilisation."""
    try:
        return float(ask())
    except nvml.NVMLError:
        return math.nan


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
