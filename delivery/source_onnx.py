"""A source model that was logged as ONNX: ONNX Runtime answers, and converting is taking weights from other files in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from delivery.source import Rows, in_batches


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    model: onnx.ModelProto
    session: Any

    def answer(self, rows: Rows) -> list[np.ndarray]:
        return in_batches(self._answer, rows)

    def convert(self) -> onnx.ModelProto:
        return self.model

    def _answer(self, rows: Rows) -> list[np.ndarray]:
        return [np.asarray(each) for each in self.session.run(None, dict(rows))]


def load(job: dict[str, Any], folder: Path) -> OnnxSource:
    """ONNX itself refuses weights outside of the model's folder, as `validation.onnx_file` did before."""
    import onnxruntime

    model = onnx.load(folder / job["file"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return OnnxSource(model=model, session=session)
