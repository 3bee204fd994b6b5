"""A model measured without a server: ONNX Runtime in the load client's process, with the execution provider that the policy names.

The third kind of thing that `validation.load_client` asks, beside HTTP and gRPC. One worker answers, first come, first served, so that a
load meets a queue as it would before a server with one instance; it has the usual priority, because the client's own is higher.

ONNX Runtime falls back to the CPU in silence when a provider cannot start. That would be a CPU's latency under a GPU's name: it is refused.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validation.load_client import Load, Target

PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
SHOWN_CHARACTERS = 300


class NoProvider(RuntimeError):
    """ONNX Runtime cannot run this model with the provider that was asked for; the message says which there are."""


class DoesNotRun(Exception):
    """ONNX Runtime does not load this model; the message is its own reason."""


class InProcessSender:
    """Asks a session of its own. The target's address is the model's file, its requests are inputs by name."""

    def __init__(self, target: Target) -> None:
        self._path = target.address
        self._provider = target.provider
        self._worker = ThreadPoolExecutor(1, initializer=_usual_priority)
        self._session: Any = None

    async def open(self) -> None:
        """Raises `NoProvider` or `DoesNotRun`."""
        self._session = await asyncio.get_running_loop().run_in_executor(self._worker, session, self._path, self._provider)

    async def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def ask(self, load: Load, number: int, request: Any) -> None:
        loop = asyncio.get_running_loop()
        load.sent(number, loop.time())
        self._worker.submit(self._answer, loop, load, number, request)

    def _answer(self, loop: asyncio.AbstractEventLoop, load: Load, number: int, request: Any) -> None:
        error = ""
        try:
            self._session.run(None, request)
        except Exception as trouble:  # whatever the runtime raises is its answer
            error = f"{type(trouble).__name__}: {str(trouble)[:SHOWN_CHARACTERS]}"
        loop.call_soon_threadsafe(load.answer, number, loop.time(), error)


def session(path: str, provider: str) -> Any:
    """An ONNX Runtime session that surely uses the provider, on one thread. Raises `NoProvider` or `DoesNotRun`."""
    import onnxruntime

    if provider != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries from their own wheels, where there are such
    word, there = PROVIDERS[provider], onnxruntime.get_available_providers()
    if word not in there:
        raise NoProvider(f"provider {provider!r} is not there; this ONNX Runtime has {', '.join(there)}: install onnxruntime-gpu for a GPU")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        made = onnxruntime.InferenceSession(path, options, providers=[word])
    except Exception as trouble:  # whatever the runtime raises is its answer
        raise DoesNotRun(f"{type(trouble).__name__}: {str(trouble)[:SHOWN_CHARACTERS]}") from trouble
    if made.get_providers()[0] != word:
        raise NoProvider(
            f"provider {provider!r} did not start; ONNX Runtime fell back to {made.get_providers()[0]}: see its log for the reason"
        )
    return made


def _usual_priority() -> None:
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
