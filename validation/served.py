"""What a version made of its requests, as columns: the evidence that the judges of a rollout look at.

The watch fills it from what the gateway saw; the judges read it, the evidence file holds it, a replay reads it back. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version's requests in order of their beginning, a row each.

    `unix_s`: float64, when it began. `ok`: bool, whether the version's own server answered without a fault of its own. `latency_ms`:
    float64, what the client waited. Raises `ValueError` when the columns differ in length.
    """

    unix_s: NDArray[np.float64]
    ok: NDArray[np.bool_]
    latency_ms: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.unix_s) == len(self.ok) == len(self.latency_ms):
            raise ValueError(f"columns of {len(self.unix_s)}, {len(self.ok)} and {len(self.latency_ms)} rows are no table")

    def __len__(self) -> int:
        return len(self.unix_s)

    @classmethod
    def of(cls, rows: Iterable[tuple[float, bool, float]]) -> Served:
        """Rows of (unix time in s, ok, latency in ms), in any order."""
        table = sorted(rows)
        columns = list(zip(*table, strict=True)) or [(), (), ()]
        return cls(unix_s=np.array(columns[0], float), ok=np.array(columns[1], bool), latency_ms=np.array(columns[2], float))

    @property
    def readable(self) -> bool:
        """Whether every time and latency is a finite number and every latency above zero; else nobody may pass what is here."""
        times = np.isfinite(self.unix_s).all() and np.isfinite(self.latency_ms).all()
        return bool(times and (self.latency_ms > 0).all() and (np.diff(self.unix_s) >= 0).all())

    def where(self, kept: NDArray[np.bool_]) -> Served:
        return replace(self, unix_s=self.unix_s[kept], ok=self.ok[kept], latency_ms=self.latency_ms[kept])
