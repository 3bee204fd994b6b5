"""The pairs of answers that a recorder makes while a mirror lasts, gathered page by page. `shadow` holds one; it judges nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from delivery.recorder_client import Recorder, RecorderUnreachable

NEWEST = 10**15
"""A number that no pair reaches: what comes after it is nothing, and the answer says where the pairs end now."""


@dataclass(kw_only=True)
class Paired:
    """Pairs of one candidate and its stable. A recorder that is away only means that no pairs come; None where a place has none."""

    recorder: Recorder | None
    model: str
    stable: int
    candidate: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    _epoch: str = ""
    _last: int = 0

    def begin(self) -> None:
        """Pairs that are there already belong to an earlier try: they are left out."""
        if self.recorder is None:
            return
        with contextlib.suppress(RecorderUnreachable):
            page = self.recorder.pairs(self.model, NEWEST)
            self._epoch, self._last = page.epoch, page.last

    def gather(self) -> None:
        """All that came since."""
        if self.recorder is None:
            return
        with contextlib.suppress(RecorderUnreachable):
            while self._page(self.recorder):
                pass

    def _page(self, recorder: Recorder) -> bool:
        """Whether there may be more."""
        page = recorder.pairs(self.model, self._last)
        if page.epoch != self._epoch:
            self._epoch, self._last = page.epoch, 0
            return True
        self._last = page.last
        self.rows += [each for each in page.rows if (each["stable"], each["candidate"]) == (self.stable, self.candidate)]
        return bool(page.rows)
