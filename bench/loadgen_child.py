"""MLPerf's own load generator on an HTTP server: what `bench.latency_gate` compares ours with.

    python -m bench.loadgen_child <port> <queries a second> <seconds> <folder for its log>

Scenario Server: Poisson arrivals, latency from when a query was scheduled. Requests go through aiohttp and not through our client. Prints
the p99 in ms, as the generator's own summary has it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import mlperf_loadgen as loadgen

SAMPLES = 256
SUMMARY = "mlperf_log_summary.txt"
BODY = b"\0" * 256


class Asker:
    """Sends what the generator issues, in an event loop of its own thread."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v2/models/m/infer"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        self._tasks: set[asyncio.Task[None]] = set()

    def issue(self, samples: Sequence[Any]) -> None:
        for each in samples:
            self._loop.call_soon_threadsafe(self._begin, each.id)

    def _begin(self, query: int) -> None:
        task = self._loop.create_task(self._ask(query))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, query: int) -> None:
        async with self._session.post(self._url, data=BODY) as answer:
            await answer.read()
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query, 0, 0)])

    @staticmethod
    async def _open() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()


def p99_ms(port: int, rate_per_s: float, seconds: float, folder: Path) -> float:
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate_per_s
    settings.server_target_latency_ns = 50_000_000
    settings.min_duration_ms = int(1000 * seconds)
    settings.min_query_count = 1
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    log = loadgen.LogSettings()
    log.log_output = output
    asker = Asker(port)
    under_test = loadgen.ConstructSUT(asker.issue, lambda: None)
    library = loadgen.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
    loadgen.StartTestWithLogSettings(under_test, library, settings, log)
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(under_test)
    asker.close()
    found = re.search(r"99\.00 percentile latency \(ns\)\s*:\s*(\d+)", (folder / SUMMARY).read_text())
    if not found:
        raise RuntimeError(f"no p99 in {folder / SUMMARY}")
    return int(found[1]) / 1e6


def main(arguments: Sequence[str]) -> None:
    port, rate, seconds, folder = arguments
    print(p99_ms(int(port), float(rate), float(seconds), Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
