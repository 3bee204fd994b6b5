"""Is the exported model's answer the source model's? Names, dtypes, shapes, then values, batch by batch, both ways.

The gate `golden_set` feeds it every golden row. It counts and does not estimate: its claims are about these very rows. It runs no model.

| finding                        | claim                                                                                       |
|--------------------------------|---------------------------------------------------------------------------------------------|
| output_names, _dtypes, _shapes | the outputs have the form of the source model's and of the signature                        |
| finite                         | no NaN and no infinity, in the model's answers or the source model's                        |
| parity_rows                    | rows that leave atol and rtol in some output are within the policy's share                  |
| parity_rows[<output>]          | the same for one output that has tolerances of its own                                      |
| label_flips                    | rows whose label, or whose greatest score, is another are within the policy's share         |
| narrowed_<type>                | no number of inputs and outputs overflows in a type that serving narrows to                 |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from validation.bundle import Tensor
from validation.contract import Finding, Outcome, worst
from validation.findings import failed, passed
from validation.policy import GoldenSet, Tolerance

SHOWN_ROWS = 20
SHOWN_VALUES = 50

RANGES: Mapping[str, tuple[float, float]] = {
    "float16": (-65504.0, 65504.0),  # IEEE 754 binary16
    "int8": (-128.0, 127.0),
}

NUMBERS = ("rmse", "mae", "mape")
RANKING = ("ndcg",)
"""Metrics of models whose float outputs are no scores of classes: the greatest of several is no answer there."""

Arrays = Mapping[str, np.ndarray]


# Form


def form_findings(outputs: Arrays, reference: Arrays, signature: tuple[Tensor, ...]) -> tuple[Finding, ...]:
    """Names, dtypes and shapes of the answers to some rows, compared with the source model's on the same rows and the signature's."""
    common = [each for each in signature if each.name in outputs and each.name in reference]
    strange = {each.name: _dtypes(outputs, reference, each) for each in common if _other_dtype(outputs, reference, each)}
    other = {each.name: _shapes(outputs, reference, each) for each in common if not _same_shape(outputs, reference, each)}
    return (_names(outputs, reference, signature), _form("output_dtypes", strange), _form("output_shapes", other))


def holds(findings: Iterable[Finding]) -> bool:
    return worst(each.outcome for each in findings) is Outcome.PASSED


def _names(outputs: Arrays, reference: Arrays, signature: tuple[Tensor, ...]) -> Finding:
    """Both ways: a missing output breaks clients, an extra one was compared with nothing."""
    signed = {each.name for each in signature}
    missing = sorted((signed | set(reference)) - set(outputs))
    extra = sorted(set(outputs) - (signed & set(reference)))
    if missing or extra:
        why = f"missing outputs {missing}, outputs without signature or reference {extra}"
        return failed("output_names", why, observed=", ".join(sorted(outputs)), limit=", ".join(sorted(reference)))
    return passed("output_names", f"the outputs {sorted(outputs)} are those of the source model and the signature")


def _form(name: str, words: Mapping[str, str]) -> Finding:
    if not words:
        return passed(name, "as the source model's and the signature's")
    return failed(name, "; ".join(f"output {output!r} is {what}" for output, what in words.items()))


def _other_dtype(outputs: Arrays, reference: Arrays, tensor: Tensor) -> bool:
    return len({_kind(outputs[tensor.name]), _kind(reference[tensor.name]), _kind(np.empty(0, dtype=tensor.numpy_dtype))}) > 1


def _kind(values: np.ndarray) -> str:
    """The dtype's name; all sorts of text are one."""
    return "text" if is_text(values) else values.dtype.name


def _dtypes(outputs: Arrays, reference: Arrays, tensor: Tensor) -> str:
    found, wanted = _kind(outputs[tensor.name]), _kind(reference[tensor.name])
    return f"{found}; the source model's is {wanted}, the signature's {_kind(np.empty(0, dtype=tensor.numpy_dtype))}"


def _same_shape(outputs: Arrays, reference: Arrays, tensor: Tensor) -> bool:
    """Equal to the reference's, and the signature's; there a row of one value may be written [1] where ONNX has none."""
    values = outputs[tensor.name]
    row, sizes = values.shape[1:] or (1,), tensor.shape or (1,)
    fits = len(row) == len(sizes) and all(size in {-1, each} for each, size in zip(row, sizes, strict=True))
    return values.shape == reference[tensor.name].shape and fits


def _shapes(outputs: Arrays, reference: Arrays, tensor: Tensor) -> str:
    found, wanted = list(outputs[tensor.name].shape), list(reference[tensor.name].shape)
    return f"{found}; the source model's is {wanted}, the signature's row {list(tensor.shape)}"


# Values


@dataclass(kw_only=True)
class Count:
    """Rows that break a rule, and the first of them."""

    bad: int = 0
    first: int | None = None

    def add(self, mask: np.ndarray, start: int) -> None:
        found = int(np.count_nonzero(mask))
        if found and self.first is None:
            self.first = start + int(mask.argmax())
        self.bad += found


@dataclass(kw_only=True)
class Parity:
    """Counts over batches; `findings` closes the account. `mismatches` are the first rows that differ, for the evidence."""

    limits: GoldenSet
    rows: int = 0
    outside: Count = field(default_factory=Count)
    flips: Count = field(default_factory=Count)
    own: dict[str, Count] = field(default_factory=dict)
    unfinite: dict[tuple[str, str], Count] = field(default_factory=dict)
    narrow: dict[tuple[str, str], Count] = field(default_factory=dict)
    furthest: dict[str, float] = field(default_factory=dict)
    mismatches: list[dict[str, Any]] = field(default_factory=list)

    def add(self, start: int, inputs: Arrays, outputs: Arrays, reference: Arrays) -> None:
        """One batch of rows, the first of them golden row number `start`; outputs and reference have the same form."""
        masks = {name: outside(outputs[name], reference[name], tolerance(self.limits, name)) for name in outputs}
        flipped = rows_flipped(outputs, reference, of_classes=names_classes(self.limits))
        self._count(start, masks, flipped)
        self._widen(outputs, reference)
        self._count_unfinite(start, outputs, reference)
        self._count_narrow(start, inputs, outputs)
        self._show(start, np.logical_or.reduce([*masks.values(), flipped]), outputs, reference)
        self.rows += len(flipped)

    def findings(self, *, with_source: bool = True) -> Iterator[Finding]:
        """Without a source model (its answers were the model's own) what compares with it is skipped in sight."""
        yield self._finite()
        yield from self._against_source() if with_source else (passed("parity_rows", "skipped: the source model is not at hand"),)
        yield from (self._narrowed(kind) for kind in self.limits.narrowed_to)

    def _against_source(self) -> Iterator[Finding]:
        yield from self._parity()
        yield share(
            "label_flips", self.flips, self.rows, self.limits.rows_outside_permille, "get another answer than from the source model"
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """For the evidence."""
        return {
            "rows": self.rows,
            "rows_outside": self.outside.bad + sum(each.bad for each in self.own.values()),
            "label_flips": self.flips.bad,
            "largest_difference": self.furthest,
        }

    def _count(self, start: int, masks: Mapping[str, np.ndarray], flipped: np.ndarray) -> None:
        own = {each.output for each in self.limits.tolerances}
        shared = [mask for name, mask in masks.items() if name not in own]
        if shared:
            self.outside.add(np.logical_or.reduce(shared), start)
        for name in own & set(masks):
            self.own.setdefault(name, Count()).add(masks[name], start)
        self.flips.add(flipped, start)

    def _widen(self, outputs: Arrays, reference: Arrays) -> None:
        for name in (each for each, values in outputs.items() if is_float(values) and values.size):
            with np.errstate(all="ignore"):
                gap = float(np.abs(outputs[name] - reference[name]).max())
            self.furthest[name] = float(np.maximum(self.furthest.get(name, 0.0), gap))  # NaN stays

    def _count_unfinite(self, start: int, outputs: Arrays, reference: Arrays) -> None:
        sides = {"the model": outputs, **({} if reference is outputs else {"the source model": reference})}
        for who, side in sides.items():
            for name, values in side.items():
                if is_float(values) and not np.isfinite(values).all():
                    self.unfinite.setdefault((who, name), Count()).add(unfinite(values), start)

    def _count_narrow(self, start: int, inputs: Arrays, outputs: Arrays) -> None:
        for kind in self.limits.narrowed_to:
            for name, values in (*inputs.items(), *outputs.items()):
                if is_float(values):
                    self.narrow.setdefault((kind, name), Count()).add(overflowing(values, kind), start)

    def _show(self, start: int, bad: np.ndarray, outputs: Arrays, reference: Arrays) -> None:
        for row in np.flatnonzero(bad)[: SHOWN_ROWS - len(self.mismatches)]:
            sides = {"model": outputs, "source_model": reference}
            shown = {who: {name: _shown(side[name][row]) for name in outputs} for who, side in sides.items()}
            self.mismatches.append({"row": start + int(row), **shown})

    def _finite(self) -> Finding:
        if not self.rows:
            return _nothing_seen("finite")
        if not self.unfinite:
            return passed("finite", "no NaN and no infinity", n=self.rows)
        words = [
            f"{who} answers NaN or infinity in {name!r} on {each.bad} rows, first row {each.first}"
            for (who, name), each in self.unfinite.items()
        ]
        return failed("finite", "; ".join(words), observed=max(each.bad for each in self.unfinite.values()), limit=0, n=self.rows)

    def _parity(self) -> Iterator[Finding]:
        limits = self.limits
        what = f"differ from the source model's by more than {limits.atol:g} + {limits.rtol:g} of the value"
        yield share("parity_rows", self.outside, self.rows, limits.rows_outside_permille, what)
        for each in limits.tolerances:
            yield self._own_parity(each)

    def _own_parity(self, rule: Tolerance) -> Finding:
        name = f"parity_rows[{rule.output}]"
        if rule.output not in self.own:
            return failed(name, f"the policy gives tolerances for output {rule.output!r}, which the model does not have")
        what = f"differ in {rule.output!r} by more than {rule.atol:g} + {rule.rtol:g} of the value"
        return share(name, self.own[rule.output], self.rows, rule.rows_outside_permille, what)

    def _narrowed(self, kind: str) -> Finding:
        name, (low, high) = f"narrowed_{kind}", RANGES[kind]
        if not self.rows:
            return _nothing_seen(name)
        broken = {where: count for (which, where), count in self.narrow.items() if which == kind and count.bad}
        if not broken:
            return passed(
                name, f"every number of inputs and outputs lies within {low:g} to {high:g}; what lies between is not seen", n=self.rows
            )
        words = [f"{where!r} leaves {low:g} to {high:g} on {count.bad} rows, first row {count.first}" for where, count in broken.items()]
        return failed(
            name, f"{kind} overflows: {'; '.join(words)}", observed=max(each.bad for each in broken.values()), limit=0, n=self.rows
        )


def _nothing_seen(name: str) -> Finding:
    return failed(name, "no rows were answered: nothing was shown", n=0)


def tolerance(limits: GoldenSet, output: str) -> Tolerance:
    """The output's own tolerances, or the section's."""
    own = next((each for each in limits.tolerances if each.output == output), None)
    return own or Tolerance(output=output, atol=limits.atol, rtol=limits.rtol, rows_outside_permille=limits.rows_outside_permille)


def outside(values: np.ndarray, reference: np.ndarray, rule: Tolerance) -> np.ndarray:
    """Mask [rows]: some number is further from the reference than atol + rtol |reference|, or something else than a number differs.

    NaN is far from everything, infinity from itself too.
    """
    if not is_float(values):
        return _differs(values, reference)
    there = reference.astype(np.float64)
    with np.errstate(all="ignore"):
        gap = np.abs(values - there)
        near = (gap <= rule.atol + rule.rtol * np.abs(there)) & (gap < np.inf)  # an infinite reference would allow any gap
    return np.asarray(~near.reshape(len(values), -1).all(axis=1))


def rows_outside(outputs: Arrays, reference: Arrays, limits: GoldenSet) -> np.ndarray:
    """Mask [rows]: some output is `outside` its tolerances."""
    return np.asarray(np.logical_or.reduce([outside(outputs[name], reference[name], tolerance(limits, name)) for name in outputs]))


def names_classes(limits: GoldenSet) -> bool:
    """Whether some metric of the policy takes the model's answers as classes."""
    return any(each.name not in (*NUMBERS, *RANKING) for each in limits.metrics)


def rows_flipped(outputs: Arrays, reference: Arrays, *, of_classes: bool = True) -> np.ndarray:
    """Mask [rows]: a label differs, or (`of_classes`) the greatest of a vector of scores is another."""
    masks = [np.zeros(len(next(iter(outputs.values()))), dtype=bool)]
    for name, values in outputs.items():
        if not is_float(values):
            masks.append(_differs(values, reference[name]))
        elif of_classes and is_vector(values):
            masks.append(values.argmax(axis=1) != reference[name].argmax(axis=1))
    return np.asarray(np.logical_or.reduce(masks))


def same(values: np.ndarray, other: np.ndarray) -> bool:
    """Bit by bit alike but for the sign of zero; NaN is like NaN."""
    if values.shape != other.shape:
        return False
    return bool(np.array_equal(comparable(values), comparable(other), equal_nan=is_float(values)))


def unfinite(values: np.ndarray) -> np.ndarray:
    """Mask [rows]: the row holds NaN or infinity."""
    return np.asarray(~np.isfinite(values).reshape(len(values), -1).all(axis=1))


def rows_unfinite(arrays: Arrays) -> np.ndarray:
    """Mask [rows]: some float output holds NaN or infinity."""
    rows = len(next(iter(arrays.values())))
    return np.asarray(np.logical_or.reduce([np.zeros(rows, dtype=bool), *(unfinite(each) for each in arrays.values() if is_float(each))]))


def overflowing(values: np.ndarray, kind: str) -> np.ndarray:
    """Mask [rows]: a finite number of the row lies beyond the narrow type's range."""
    low, high = RANGES[kind]
    beyond = np.isfinite(values) & ((values < low) | (values > high))
    return np.asarray(beyond.reshape(len(values), -1).any(axis=1))


def share(name: str, count: Count, rows: int, permille: int, what: str) -> Finding:
    """Whether the counted rows are within their allowed share; of no rows at all it is nothing that could pass."""
    details: dict[str, Any] = {"observed": 1000 * count.bad / rows if rows else None, "limit": permille, "n": rows}
    words = f"{count.bad} of {rows} rows {what}"
    if rows and 1000 * count.bad <= permille * rows:
        return passed(name, f"{words}; {permille} per mille are allowed", **details)
    return failed(name, f"{words}, first row {count.first}; {permille} per mille are allowed", **details)


def is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"


def is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "OSU"


def is_vector(values: np.ndarray) -> bool:
    return is_float(values) and values.ndim == 2 and values.shape[1] > 1


def comparable(values: np.ndarray) -> np.ndarray:
    return values.astype(str) if is_text(values) else values


def _differs(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.asarray((comparable(values) != comparable(reference)).reshape(len(values), -1).any(axis=1))


def _shown(value: Any) -> Any:
    return np.ravel(value)[:SHOWN_VALUES].tolist()
