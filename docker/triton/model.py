"""A Triton backend named `onnxruntime`, written against Triton's Python backend.

The wheel that carries Triton without Docker has the Python backend only. Under this name a model directory (config.pbtxt and
`<version>/model.onnx`) is the same that the C++ backend of Triton's image takes. `serve.py` puts this file where the server finds it,
and one stub process per model instance imports it. It serves CPU models, batches what Triton hands it, and does not complete
configurations: names, types and shapes come from config.pbtxt.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is imported: its wheels report to their maker otherwise

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

Array = np.ndarray
Feed = dict[str, Array]  # input name -> [rows, *shape]


class TritonPythonModel:
    """The class that Triton's Python backend looks for; one object per instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the version's ONNX file; what this raises is the reason that Triton gives for not being ready."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / (config.get("default_model_filename") or "model.onnx")
        self.batches = config.get("max_batch_size", 0) > 0
        self.inputs = [each["name"] for each in config["input"]]
        self.outputs = {each["name"]: pb_utils.triton_string_to_numpy(each["data_type"]) for each in config["output"]}
        self.session = onnxruntime.InferenceSession(str(path), _options(config), providers=["CPUExecutionProvider"])
        self._insist_on_names()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs the requests that can be read as one batch; should that raise, one by one: a bad request spoils no other's answer."""
        read = [self._read(request) for request in requests]
        answers = iter(self._answers([each for each in read if isinstance(each, dict)]))
        return [next(answers) if isinstance(each, dict) else each for each in read]

    def finalize(self) -> None:
        self.session = None

    def _insist_on_names(self) -> None:
        for kind, wanted, have in (
            ("input", self.inputs, self.session.get_inputs()),
            ("output", self.outputs, self.session.get_outputs()),
        ):
            known = [each.name for each in have]
            if missing := sorted(set(wanted) - set(known)):
                raise ValueError(f"config.pbtxt names the {kind} {missing[0]!r}; the ONNX file has {known}")

    def _read(self, request: Any) -> Feed | Any:
        """The request's rows, or its answer when it cannot be read: the client's fault, which no other version would answer better."""
        try:
            return self._feed(request)
        except Exception as error:
            fault = pb_utils.TritonError(f"onnxruntime: the request cannot be read: {error}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=fault)

    def _answers(self, feeds: list[Feed]) -> list[Any]:
        if self.batches and len(feeds) > 1:
            try:
                return self._together(feeds)
            except Exception as error:
                pb_utils.Logger.log_warn(f"a batch of {len(feeds)} requests failed, running them one by one: {error}")
        return [self._alone(feed) for feed in feeds]

    def _feed(self, request: Any) -> Feed:
        return {name: _readable(pb_utils.get_input_tensor_by_name(request, name).as_numpy()) for name in self.inputs}

    def _together(self, feeds: list[Feed]) -> list[Any]:
        sizes = [_rows(feed) for feed in feeds]
        batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        results = self._run(batch)
        ends = np.cumsum(sizes)
        return [self._response([each[end - size : end] for each in results]) for size, end in zip(sizes, ends, strict=True)]

    def _alone(self, feed: Feed) -> Any:
        try:
            return self._response(self._run(feed))
        except Exception as error:  # INTERNAL: a fault of the model, HTTP 500 or gRPC 13, which the gateway sends to another version
            fault = pb_utils.TritonError(f"onnxruntime: {error}", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=fault)

    def _run(self, feed: Feed) -> list[Array]:
        results = [np.asarray(each) for each in self.session.run(list(self.outputs), feed)]
        if not self.batches:
            return results
        return [_by_row(name, each, _rows(feed)) for name, each in zip(self.outputs, results, strict=True)]

    def _response(self, results: list[Array]) -> Any:
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(each).astype(dtype, copy=False))
            for (name, dtype), each in zip(self.outputs.items(), results, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _options(config: dict[str, Any]) -> Any:
    """Thread counts are the C++ backend's parameters; one thread unless the configuration says otherwise."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "1"))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "1"))
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "0") == "1"
    options.log_severity_level = 4  # a failing request is answered with its reason; a line for each in the log says it twice
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle servers must not burn a core
    return options


def _by_row(name: str, result: Array, rows: int) -> Array:
    """A flat output of N values becomes [N, 1]; one that does not keep the row count cannot be cut into answers."""
    if result.ndim == 0 or result.shape[0] != rows:
        raise ValueError(f"output {name!r} has shape {list(result.shape)} for {rows} rows: the model does not keep the batch axis")
    return result.reshape(-1, 1) if result.ndim == 1 else result


def _rows(feed: Feed) -> int:
    return next(iter(feed.values())).shape[0]


def _readable(array: Array) -> Array:
    """Triton hands strings as bytes, ONNX Runtime takes text."""
    if array.dtype != np.object_:
        return array
    texts = [each.decode() if isinstance(each, bytes) else each for each in array.ravel()]
    return np.array(texts, dtype=np.object_).reshape(array.shape)
