"""A server that answers every request at once, and for one second in five answers none: what closed loops leave out of their tails.

`bench.latency_gate` runs it as a process. It speaks as much HTTP as loads need, and prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from validation.null_server import Connection

PERIOD_S, STALL_S = 5.0, 1.0


class Gate:
    """Open, but for the last second of each period."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def swing(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.time()
        while True:
            for pause, act in ((PERIOD_S - STALL_S, self.open.clear), (STALL_S, self.open.set)):
                turn += pause
                await asyncio.sleep(turn - loop.time())
                act()


class Stalling(Connection):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._tasks: set[asyncio.Task[None]] = set()

    def on_message_complete(self) -> None:
        if self._gate.open.is_set():
            super().on_message_complete()
        else:
            task = asyncio.get_running_loop().create_task(self._answer_later())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_later(self) -> None:
        await self._gate.open.wait()
        super().on_message_complete()


async def serve() -> None:
    gate = Gate()
    server = await asyncio.get_running_loop().create_server(lambda: Stalling(gate), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await gate.swing()


def main(arguments: Sequence[str]) -> None:
    del arguments
    asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
