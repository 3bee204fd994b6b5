"""An ONNX file that answers rows. The gate `golden_set` runs the candidate and stable with it; the one leaf that imports onnxruntime there.

It runs on the CPU, on one thread, so that the same rows give the same numbers everywhere. Whatever the runtime raises is the model's fault
(`ModelFault`), also when an operator asks for more memory than a gate gives. It compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from validation.onnx_file import BadModel, check_onnx

MEMORY_BYTES = 4 << 30
"""What ONNX Runtime may take for weights and values of one process; an operator that wants more is refused by its allocator."""

ANSWER_BYTES = 64 << 20
"""What the answer to one row may take: a row that grows beyond it would take the server's memory at any batch size."""

Arrays = Mapping[str, np.ndarray]


class ModelFault(Exception):
    """The model cannot be loaded or does not answer; `name` is the finding's."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output as the file declares it: ONNX Runtime's word for the type, and the axes: sizes, words or None for open ones."""

    name: str
    kind: str
    axes: tuple[int | str | None, ...]


class OnnxModel:
    """A loaded model. `ports` are what its file declares, `outputs` the outputs' names in order."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelFault` named `loads`."""
        self._session = _session(path)
        self.ports = {"inputs": _ports(self._session.get_inputs()), "outputs": _ports(self._session.get_outputs())}
        self.inputs = {each.name: each.axes for each in self.ports["inputs"]}
        self.outputs = tuple(each.name for each in self.ports["outputs"])

    def insist_on_inputs(self, names: list[str]) -> None:
        """Raises `ModelFault` unless the model takes these inputs and no others: nothing is run on guesses."""
        if sorted(names) != sorted(self.inputs):
            raise ModelFault("answers", f"the model takes the inputs {sorted(self.inputs)}, the golden set has {sorted(names)}")

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs by name for one batch, rows first. Raises `ModelFault` named `answers`."""
        with _fault("answers"):
            answers = self._session.run(list(self.outputs), dict(inputs))
        rows = row_count(inputs)
        for name, answer in zip(self.outputs, answers, strict=True):
            _insist_on_rows(name, answer, rows)
        return dict(zip(self.outputs, answers, strict=True))

    def answer_in_batches(self, inputs: Arrays, batch_rows: int) -> dict[str, np.ndarray]:
        """The outputs for all rows, computed in batches of at most so many. Raises `ModelFault`, also when batches differ in shape."""
        starts = range(0, row_count(inputs), batch_rows)
        parts = [self.answer({name: values[at : at + batch_rows] for name, values in inputs.items()}) for at in starts]
        with _fault("answers"):
            return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}


def row_count(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _ports(arguments: Iterable[Any]) -> tuple[Port, ...]:
    return tuple(Port(name=each.name, kind=each.type, axes=tuple(each.shape)) for each in arguments)


def _insist_on_rows(name: str, answer: object, rows: int) -> None:
    if not isinstance(answer, np.ndarray):
        raise ModelFault("answers", f"output {name!r} is a {type(answer).__name__}, not a tensor: export classifiers with zipmap off")
    if answer.ndim == 0 or len(answer) != rows:
        raise ModelFault("answers", f"output {name!r} has shape {list(answer.shape)} for {rows} rows: rows must come first")
    if answer.nbytes > ANSWER_BYTES * rows:
        size = f"{answer.nbytes / rows / 2**20:.0f} MiB a row"
        raise ModelFault("answers", f"output {name!r} takes {size}; the limit is {ANSWER_BYTES >> 20} MiB: give the model smaller outputs")


@contextmanager
def _fault(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's errors have no common type
        raise ModelFault(name, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}") from error


def _session(path: Path) -> onnxruntime.InferenceSession:
    """What `onnx_file` refuses never reaches the runtime."""
    try:
        check_onnx(path)
    except BadModel as error:
        raise ModelFault("loads", f"{error}: {error.advice}") from error
    _bound_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    with _fault("loads"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@cache
def _bound_memory() -> None:
    """Once a process: sessions that use the environment's allocators share this one."""
    onnxruntime.set_default_logger_severity(4)
    place = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg(
        {"max_mem": MEMORY_BYTES, "arena_extend_strategy": 1}
    )  # 1: take what is asked for, not the next power of two
    onnxruntime.create_and_register_allocator(place, arena)
