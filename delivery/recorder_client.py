"""A small client of the recorder's HTTP API, for the tasks `shadow` and `claim`. It repeats no call by itself and decides nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(2.0, connect=1.0)  # who asks for pairs holds a lease: a frozen recorder must not outlast it
SAMPLE_TIMEOUT = httpx.Timeout(30.0, connect=1.0)  # thousands of rows are read from disk and packed


class RecorderUnreachable(RuntimeError):
    """No answer, or one that cannot be understood. Worth a retry: every call only reads."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Go on with `after=last`. Another `epoch` than before means that the recorder was restarted: begin again with `after=0`.

    `rows` are those of `delivery.pairs.Pair`, each with its `number`.
    """

    epoch: str
    last: int
    rows: tuple[dict[str, Any], ...]


class Recorder:
    """The recorder at `url`. Every method raises `RecorderUnreachable`."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT, trust_env=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Recorder | None:
        """None where the place has no recorder: PENSTOCK_RECORDER_URL is not set."""
        url = environ.get("PENSTOCK_RECORDER_URL")
        return cls(url, environ["PENSTOCK_DIRECTOR_TOKEN"]) if url else None

    def pairs(self, model: str, after: int = 0) -> Page:
        answer = self._get(f"/v1/models/{model}/pairs", after=after)
        try:
            row = answer.json()
            return Page(epoch=row["epoch"], last=row["last"], rows=tuple(row["rows"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RecorderUnreachable(f"{answer.url} answered something else than pairs: {error!r}") from error

    def sample(self, model: str, rows: int) -> bytes | None:
        """The last `rows` rows of inputs as Parquet (`delivery.sample.parquet`); None when nothing is kept."""
        answer = self._get(f"/v1/models/{model}/sample", SAMPLE_TIMEOUT, rows=rows)
        return None if answer.status_code == httpx.codes.NOT_FOUND else answer.content

    def _get(self, path: str, timeout: httpx.Timeout = TIMEOUT, **query: int) -> httpx.Response:
        try:
            answer = self._http.get(path, params=query, timeout=timeout)
        except httpx.TransportError as error:
            raise RecorderUnreachable(f"the recorder at {self._http.base_url} does not answer: {error!r}; is it running?") from error
        if not answer.is_success and answer.status_code != httpx.codes.NOT_FOUND:
            raise RecorderUnreachable(f"{answer.url} answered {answer.status_code}: {answer.text[:200]}")
        return answer
