"""Golden rows as requests for a load, drawn at random, so that inputs have their real distribution.

`latency_benchmark` and `tune_serving` use it. It sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from validation.bundle import Manifest, OpenBundle
from validation.golden_rows import GoldenRows
from validation.payloads import grpc_message, http_request

IN_PROCESS = "in_process"
DRAWN = 256


def golden_requests(
    bundle: OpenBundle, protocol: str, batch_sizes: Sequence[int], sequence_lengths: Sequence[int], rng: np.random.Generator
) -> tuple[Any, ...]:
    """Ready-made, each of one of the batch sizes, its open axes of one of the lengths (none: the golden set's own).

    Whole HTTP requests or gRPC messages as bytes; for `in_process` inputs by name.
    """
    manifest = bundle.manifest
    sizes = rng.choice(batch_sizes, size=DRAWN)
    lengths = rng.choice(sequence_lengths, size=DRAWN) if sequence_lengths else [0] * DRAWN
    columns = GoldenRows(bundle).inputs(rng.integers(manifest.rows, size=int(sizes.sum())))
    stops = np.cumsum(sizes)
    return tuple(
        _request(manifest, protocol, {name: values[stop - size : stop] for name, values in columns.items()}, int(length))
        for size, stop, length in zip(sizes, stops, lengths, strict=True)
    )


def _request(manifest: Manifest, protocol: str, rows: Mapping[str, np.ndarray], length: int) -> Any:
    rows = {each.name: rows[each.name].reshape(-1, 1) if rows[each.name].ndim == 1 else rows[each.name] for each in manifest.inputs}
    if length:
        rows = {each.name: of_length(rows[each.name], [1 + axis for axis in each.dynamic], length) for each in manifest.inputs}
    if protocol == IN_PROCESS:
        return rows
    if protocol == "http":
        return http_request(manifest.model, manifest.inputs, (), rows)
    return grpc_message(manifest.model, manifest.inputs, (), rows).SerializeToString()


def of_length(values: np.ndarray, axes: Sequence[int], length: int) -> np.ndarray:
    """The same with each of these axes cut, or repeated, to this length."""
    for axis in axes:
        values = np.take(values, np.arange(length) % values.shape[axis], axis=axis)
    return values
