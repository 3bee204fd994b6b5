"""The one walk over all golden rows: each batch is answered, compared, counted and, for the sampled rows, kept.

The gate `golden_set` calls it. Three batches are under way at once, each in a thread of its own: one is read, one answered, one counted.
Stable answers the sampled rows in passing. Memory does not grow with the number of rows: what is kept is bounded by `SAMPLE_BYTES` for
each side. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from validation.bundle import read_bundle
from validation.contract import Spec, Stable
from validation.golden_quality import LEAK_ROWS, Duplicates, row_hashes, spread, telling_places
from validation.golden_rows import Batch, GoldenRows, ahead
from validation.invariances import ROWS
from validation.onnx_model import ModelFault, OnnxModel
from validation.parity import Parity
from validation.policy import GoldenSet
from validation.sampling import SAMPLE_ROWS, Sample, choose
from validation.scoring import Side

SAMPLE_BYTES = 64 << 20
"""What the sampled rows may take in memory: of outputs for each side, and of inputs for the look at leaks."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the walk found: `inputs` of `leak_rows`, `few` of them; sides and `hashes` [sampled rows] follow `sample.rows`."""

    parity: Parity
    duplicates: Duplicates
    sample: Sample
    hashes: np.ndarray
    leak_rows: np.ndarray
    inputs: Arrays
    candidate: Side
    source: Side
    stable: Side

    @property
    def few(self) -> dict[str, np.ndarray]:
        """At most `ROWS` rows of input, spread over the set."""
        places = spread(np.arange(len(self.leak_rows)), ROWS)
        return {name: values[places] for name, values in self.inputs.items()}


@dataclass(kw_only=True)
class Kept:
    """Parts of some rows, batch by batch; `why_not` ends the keeping."""

    parts: list[Arrays] = field(default_factory=list)
    why_not: str = ""

    def joined(self) -> dict[str, np.ndarray]:
        """Raises `ModelFault` when the batches differ in shape."""
        try:
            return {name: np.concatenate([each[name] for each in self.parts]) for name in self.parts[0]} if self.parts else {}
        except (ValueError, KeyError) as error:
            raise ModelFault("answers", f"the shape of a row's answer differs between batches: {error}") from error

    def side(self) -> Side:
        return Side(outputs=None, why_not=self.why_not) if self.why_not else Side(outputs=self.joined())


def walk(model: OnnxModel, golden: GoldenRows, limits: GoldenSet, spec: Spec, batch_rows: int, *, absent: bool) -> Seen:
    """Raises `ModelFault` when the candidate does not answer; a stable that does not is a side without answers."""
    sample = choose(golden, limits, spec.seed, most=_sample_rows(golden))
    whole = sample.rows[sample.whole]
    leak_rows = whole[telling_places(golden.labels(whole), _leak_rows(golden))]
    with ExitStack() as stack:
        steps = _Steps(stable=_stable(spec.stable, golden, stack), sample=sample, leak_rows=leak_rows, limits=limits)
        answered = ahead((batch, model.answer(batch.inputs)) for batch in golden.batches(batch_rows))
        for batch, outputs in answered:
            steps.take(batch, outputs, absent=absent)
    return steps.seen(spec.stable, absent=absent)


@dataclass(kw_only=True)
class _Steps:
    stable: OnnxModel | ModelFault | None
    sample: Sample
    leak_rows: np.ndarray
    limits: GoldenSet
    parity: Parity = field(init=False)
    duplicates: Duplicates = field(default_factory=Duplicates)
    hashes: list[np.ndarray] = field(default_factory=list)
    inputs: Kept = field(default_factory=Kept)
    sides: dict[str, Kept] = field(default_factory=lambda: {"candidate": Kept(), "source": Kept(), "stable": Kept()})

    def __post_init__(self) -> None:
        self.parity = Parity(limits=self.limits)

    def take(self, batch: Batch, outputs: Arrays, *, absent: bool) -> None:
        reference = outputs if absent else batch.reference
        _insist_on_form(outputs, reference)
        self.parity.add(batch.start, batch.inputs, outputs, reference)
        hashes = row_hashes(batch.inputs)
        self.duplicates.add(hashes)
        kept = _within(self.sample.rows, batch)
        self.hashes.append(hashes[kept])
        self._keep(batch, kept, outputs, reference)

    def _keep(self, batch: Batch, kept: np.ndarray, outputs: Arrays, reference: Arrays) -> None:
        self.inputs.parts.append(_part(batch.inputs, _within(self.leak_rows, batch)))
        self.sides["candidate"].parts.append(_part(outputs, kept))
        self.sides["source"].parts.append(_part(reference, kept))
        if self.stable is not None and len(kept):
            self._ask_stable(self.stable, _part(batch.inputs, kept))

    def _ask_stable(self, stable: OnnxModel | ModelFault, inputs: Arrays) -> None:
        side = self.sides["stable"]
        if side.why_not:
            return
        try:
            if isinstance(stable, ModelFault):
                raise stable
            side.parts.append(stable.answer(inputs))
        except ModelFault as fault:
            side.why_not = str(fault)

    def seen(self, stable: Stable | None, *, absent: bool) -> Seen:
        return Seen(
            parity=self.parity,
            duplicates=self.duplicates,
            sample=self.sample,
            hashes=np.concatenate(self.hashes),
            leak_rows=self.leak_rows,
            inputs=self.inputs.joined(),
            candidate=self.sides["candidate"].side(),
            source=SOURCE_ABSENT if absent else self.sides["source"].side(),
            stable=_stable_side(stable, self.sides["stable"]),
        )


SOURCE_ABSENT = Side(outputs=None, why_not="the source model is not at hand", skipped=True)
NO_STABLE = Side(outputs=None, why_not="no version is stable yet, so there is nothing to be worse than", skipped=True)


def _stable(stable: Stable | None, golden: GoldenRows, stack: ExitStack) -> OnnxModel | ModelFault | None:
    """Stable's own file, to be asked the candidate's golden rows: its own golden set may be another one."""
    if stable is None:
        return None
    bundle = stack.enter_context(read_bundle(stable.bundle))
    try:
        model = OnnxModel(bundle.model_path)
        model.insist_on_inputs([each.name for each in golden.tensors])
    except ModelFault as fault:
        return fault
    return model


def _stable_side(stable: Stable | None, kept: Kept) -> Side:
    if stable is None:
        return NO_STABLE
    try:
        side = kept.side()
    except ModelFault as fault:
        side = Side(outputs=None, why_not=str(fault))
    return (
        side if side.outputs else Side(outputs=None, why_not=f"stable (v{stable.version}) does not answer the golden rows: {side.why_not}")
    )


def _insist_on_form(outputs: Arrays, reference: Arrays) -> None:
    for name, values in outputs.items():
        if values.shape != reference[name].shape:
            why = f"output {name!r} is {list(values.shape)} in one batch; the source model's is {list(reference[name].shape)}"
            raise ModelFault("answers", why)


def _sample_rows(golden: GoldenRows) -> int:
    return max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // golden.answer_bytes))


def _leak_rows(golden: GoldenRows) -> int:
    return max(1, min(LEAK_ROWS, SAMPLE_BYTES // golden.input_bytes))


def _within(rows: np.ndarray, batch: Batch) -> np.ndarray:
    """The places in the batch of those of the rows (in order) that lie in it."""
    first, last = np.searchsorted(rows, (batch.start, batch.start + batch.rows))
    return np.asarray(rows[first:last] - batch.start)


def _part(arrays: Arrays, places: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[places] for name, values in arrays.items()}
