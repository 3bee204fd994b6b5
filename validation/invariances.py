"""Does a row get the same answer whoever its neighbours are? Triton batches, pads and reorders as it pleases.

The gate `golden_set` calls it with a few golden rows. No reference is needed: the model is compared with itself.

| finding       | claim                                                                                                      |
|---------------|------------------------------------------------------------------------------------------------------------|
| batch_of_one  | a row alone gets the answer that it gets in a batch                                                        |
| padded_batch  | copies of a row, or empty rows where the model takes them, change nothing for the rows before them         |
| row_order     | the same rows in another order get the same answers                                                        |
| repeatable    | the same input twice gets exactly the same answer, also from the file loaded anew                          |
| dynamic_axes  | with every open axis at 1, at half and at all of the golden set's size, rows are answered alike in any batch |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from validation.bundle import Tensor
from validation.contract import Finding
from validation.findings import failed, passed
from validation.onnx_model import ModelFault, OnnxModel, row_count
from validation.parity import is_float, is_text, rows_outside, same
from validation.policy import GoldenSet

ROWS = 32
"""Golden rows that are asked again in other company."""

SINGLE_ROWS = 8
Arrays = Mapping[str, np.ndarray]


def invariance_findings(
    model: OnnxModel, again: Callable[[], OnnxModel], rows: Arrays, limits: GoldenSet, tensors: Sequence[Tensor]
) -> Iterator[Finding]:
    """`rows` are inputs by name, at most `ROWS` of them; `again` loads the same file anew, `tensors` are the signature's inputs."""
    try:
        together = model.answer(rows)
    except ModelFault as fault:
        yield failed("batch_of_one", f"{row_count(rows)} golden rows are not answered as one batch: {fault}")
        return
    n = row_count(rows)
    yield _checked("batch_of_one", n, "alone", lambda: alone(model, rows, together, limits))
    yield _checked("padded_batch", n, "in a padded batch", lambda: _padded(model, rows, together, limits))
    yield _checked("row_order", n, "in another order", lambda: _reordered(model, rows, together, limits))
    yield _checked("repeatable", n, "asked again", lambda: _repeated(model, again, rows, together))
    yield _dynamic_axes(model, rows, tensors, limits)


def alone(model: OnnxModel, rows: Arrays, together: Arrays, limits: GoldenSet) -> str | None:
    """What is wrong when rows are asked one by one; None when nothing is."""
    few = min(SINGLE_ROWS, row_count(rows))
    parts = [model.answer(_part(rows, slice(row, row + 1))) for row in range(few)]
    if any(part[name].shape[1:] != together[name].shape[1:] for part in parts for name in together):
        return "a row alone gets an answer of another shape than in a batch"
    single = {name: np.concatenate([part[name] for part in parts]) for name in together}
    return _unlike(single, _part(together, slice(few)), limits, "alone gets another answer than in a batch")


def _padded(model: OnnxModel, rows: Arrays, together: Arrays, limits: GoldenSet) -> str | None:
    n = row_count(rows)
    copies = {name: values[:1].repeat(n, axis=0) for name, values in rows.items()}
    empty = {name: np.full_like(values, "" if is_text(values) else 0) for name, values in rows.items()}
    for what, padding in {"copies of a row": copies, "empty rows": empty}.items():
        if what == "empty rows" and not _answers(model, padding):
            continue  # a model may refuse a word or a number that is none of its own
        longer = model.answer({name: np.concatenate([values, padding[name]]) for name, values in rows.items()})
        if wrong := _unlike(_part(longer, slice(n)), together, limits, f"gets another answer when {what} stand behind it"):
            return wrong
    return None


def _answers(model: OnnxModel, rows: Arrays) -> bool:
    try:
        model.answer(rows)
    except ModelFault:
        return False
    return True


def _reordered(model: OnnxModel, rows: Arrays, together: Arrays, limits: GoldenSet) -> str | None:
    backwards = model.answer({name: np.ascontiguousarray(values[::-1]) for name, values in rows.items()})
    return _unlike(_part(backwards, slice(None, None, -1)), together, limits, "gets another answer when the rows are turned round")


def _repeated(model: OnnxModel, again: Callable[[], OnnxModel], rows: Arrays, together: Arrays) -> str | None:
    for what, found in (("asked twice", model.answer(rows)), ("loaded anew", again().answer(rows))):
        if strange := sorted(name for name in together if not same(found[name], together[name])):
            return f"{what}, the model gives other values in {', '.join(strange)}"
    return None


def _dynamic_axes(model: OnnxModel, rows: Arrays, tensors: Sequence[Tensor], limits: GoldenSet) -> Finding:
    name = "dynamic_axes"
    axes = open_axes(model, tensors)
    if not axes:
        return passed(name, "no axis but the batch's is open")
    tried = []
    for axis, places in axes.items():
        for size in _sizes(rows, places):
            if wrong := _tried(model, _shortened(rows, places, size), limits):
                return failed(
                    name, f"with the open axis {axis} at {size}: {wrong}", advice="fix the axis when exporting, or mend the model"
                )
            tried.append(f"{axis} at {size}")
    return passed(name, f"rows are answered alike in any batch with {', '.join(tried)}", n=row_count(rows))


def open_axes(model: OnnxModel, tensors: Sequence[Tensor]) -> dict[str, list[tuple[str, int]]]:
    """The axes that the signature leaves open, as (input, axis of its array); those that the model gives one name belong together."""
    axes: dict[str, list[tuple[str, int]]] = {}
    for each in tensors:
        for axis in (place + 1 for place in each.dynamic):
            shape = model.inputs.get(each.name, ())
            word = shape[axis] if axis < len(shape) else None
            axes.setdefault(word if isinstance(word, str) and word else f"{each.name}[{axis}]", []).append((each.name, axis))
    return axes


def _sizes(rows: Arrays, places: list[tuple[str, int]]) -> list[int]:
    """The golden set is stored in one size, so its own is the greatest that it shows."""
    whole = max(rows[name].shape[axis] for name, axis in places)
    return sorted({1, (whole + 1) // 2, whole})


def _shortened(rows: Arrays, places: list[tuple[str, int]], size: int) -> dict[str, np.ndarray]:
    short = dict(rows)
    for name, axis in places:
        short[name] = np.ascontiguousarray(short[name].take(range(size), axis=axis))
    return short


def _tried(model: OnnxModel, rows: Arrays, limits: GoldenSet) -> str | None:
    try:
        together = model.answer(rows)
        if strange := sorted(name for name, values in together.items() if is_float(values) and not np.isfinite(values).all()):
            return f"NaN or infinity in {', '.join(strange)}"
        return alone(model, rows, together, limits)
    except ModelFault as fault:
        return str(fault)


def _checked(name: str, rows: int, how: str, check: Callable[[], str | None]) -> Finding:
    try:
        wrong = check()
    except ModelFault as fault:
        return failed(name, f"rows {how} are not answered: {fault}", n=rows)
    if wrong:
        return failed(name, wrong, n=rows)
    return passed(name, f"{rows} golden rows {how} get the answers that they get together", n=rows)


def _unlike(outputs: Arrays, expected: Arrays, limits: GoldenSet, what: str) -> str | None:
    if any(outputs[name].shape != expected[name].shape for name in expected):
        return f"a row {what}, of another shape"
    bad = rows_outside(outputs, expected, limits)
    return f"row {int(bad.argmax())} of {len(bad)} {what}" if bad.any() else None


def _part(arrays: Arrays, part: slice) -> dict[str, np.ndarray]:
    return {name: values[part] for name, values in arrays.items()}
