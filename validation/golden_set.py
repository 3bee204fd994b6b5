"""The gate `golden_set`: is the exported model the model that was trained, and is it good enough on rows with known answers?

Runs the bundle's ONNX file on its golden rows and compares it with the source model's answers (made by `export`, they lie in the
bundle), with the labels, and with the stable version on the same rows. It starts no server and knows nothing of traffic. What the runtime
raises on these rows is the model's fault and a failed finding; a bundle that is not what its manifest says is an error.

| finding                          | claim                                                                                     |
|----------------------------------|-------------------------------------------------------------------------------------------|
| golden_rows                      | enough rows to say anything                                                               |
| loads, answers                   | the file is an ONNX model that takes the golden rows (only when it does not)              |
| output_names, _dtypes, _shapes   | the outputs have the form of the source model's and of the signature                      |
| finite                           | no NaN and no infinity, in the model's answers or the source model's                      |
| parity_rows, label_flips         | rows whose values leave atol and rtol, or whose answer changes, are within the policy's share |
| batch_of_one                     | a row alone gets the answer that it gets in a batch                                       |
| <metric>_at_least                | surely at least the policy's value                                                        |
| <metric>_within_training         | surely not worse than the source model by the policy's margin, paired                     |
| <metric>_not_worse_than_stable   | surely not worse than stable by the policy's margin, paired                               |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from validation.bundle import OpenBundle, Tensor, read_bundle
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec, Stable, worst
from validation.judges import accuracy_at_least, paired_not_worse
from validation.policy import BadPolicy, GoldenSet, Metric, parse

ERROR = 0.05
"""Chance that a metric's comparison errs, on either side."""

BATCH_ROWS = 64
SINGLE_ROWS = 8
SHOWN_ROWS = 20
SHOWN_VALUES = 50

Arrays = Mapping[str, np.ndarray]


def run(spec: Spec, evidence: Path) -> Decision:
    """Judges the spec's bundle; writes metrics.json and mismatches.json. Raises `BadSpec` when limits or bundle cannot be used."""
    limits = _limits(spec)
    with read_bundle(spec.need_bundle()) as bundle:
        golden = Golden(inputs=bundle.inputs(), labels=bundle.labels(), reference=bundle.reference(), outputs=bundle.manifest.outputs)
        report = Report()
        findings = tuple(_findings(golden, bundle, limits, spec, report))
    report.write(evidence)
    return Decision(findings=findings, outputs={"baselines": _baselines(findings, limits)})


def _baselines(findings: Iterable[Finding], limits: GoldenSet) -> dict[str, float]:
    """The metrics as they were found here, by name: what later versions and the registry compare with."""
    found = {each.name: each.observed for each in findings}
    named = {metric.name: found.get(f"{metric.name}_at_least") for metric in limits.metrics}
    return {name: value for name, value in named.items() if isinstance(value, float)}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden rows: inputs and reference by name with rows first, labels [rows], and the signature's outputs."""

    inputs: Arrays
    labels: np.ndarray
    reference: Arrays
    outputs: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return len(self.labels)


@dataclass(kw_only=True)
class Report:
    """What goes into the evidence: numbers by name, and the first rows that differ from the source model."""

    metrics: dict[str, Any] = field(default_factory=dict)
    mismatches: list[dict[str, Any]] = field(default_factory=list)

    def write(self, evidence: Path) -> None:
        (evidence / "metrics.json").write_text(json.dumps(_plain(self.metrics), indent=1))
        (evidence / "mismatches.json").write_text(json.dumps(_plain(self.mismatches), indent=1))


class ModelFault(Exception):
    """The model cannot be loaded or does not answer; `name` is the finding's."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


def run_model(path: Path, inputs: Arrays, batch_rows: int = BATCH_ROWS) -> dict[str, np.ndarray]:
    """All outputs of an ONNX file on all rows, computed in batches. Raises `ModelFault`."""
    session = _session(path)
    _same_inputs(session, inputs)
    names = [each.name for each in session.get_outputs()]
    parts = [_answer(session, names, inputs, slice(start, start + batch_rows)) for start in range(0, _rows(inputs), batch_rows)]
    with _fault("answers"):
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def predicted(outputs: Arrays) -> np.ndarray | None:
    """The label of each row: the one output with one whole number or word a row, else the place of the greatest in the one vector.

    None when neither exists once: then it is not known what the model says.
    """
    labels = [each for each in outputs.values() if not _is_float(each) and each.size == len(each)]
    vectors = [each for each in outputs.values() if _is_vector(each)]
    if len(labels) == 1:
        return np.asarray(labels[0].reshape(-1))
    if not labels and len(vectors) == 1:
        return np.asarray(vectors[0].argmax(axis=1))
    return None


def _findings(golden: Golden, bundle: OpenBundle, limits: GoldenSet, spec: Spec, report: Report) -> Iterator[Finding]:
    """In order; what follows a model that cannot answer, or answers in another form, has no meaning and is left out."""
    yield _golden_rows(golden.rows, limits.min_rows)
    if golden.rows == 0:
        return
    try:
        outputs = run_model(bundle.model_path, golden.inputs)
    except ModelFault as fault:
        yield _failed(fault.name, str(fault))
        return
    form = (_output_names(outputs, golden), *_output_forms(outputs, golden))
    yield from form
    if worst(each.outcome for each in form) is Outcome.PASSED:
        yield from _values(outputs, golden, limits, report)
        yield _batch_of_one(bundle.model_path, outputs, golden, limits, spec.seed)
        yield from _metrics(outputs, golden, limits, spec.stable, report)


def _golden_rows(rows: int, needed: int) -> Finding:
    if rows >= needed:
        return Finding(name="golden_rows", outcome=Outcome.PASSED, why=f"{rows} golden rows", observed=rows, limit=needed, n=rows)
    return Finding(
        name="golden_rows",
        outcome=Outcome.INCONCLUSIVE,
        why=f"the golden set has {rows} rows; the policy asks for {needed}",
        observed=rows,
        limit=needed,
        n=rows,
        advice=f"add {needed - rows} rows to the golden set",
    )


# Running the model


@contextmanager
def _fault(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's errors have no common type
        raise ModelFault(name, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}") from error


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with _fault("loads"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _same_inputs(session: onnxruntime.InferenceSession, inputs: Arrays) -> None:
    names = sorted(each.name for each in session.get_inputs())
    if names != sorted(inputs):
        raise ModelFault("answers", f"the model takes the inputs {names}, the golden set has {sorted(inputs)}")


def _answer(session: onnxruntime.InferenceSession, names: list[str], inputs: Arrays, rows: slice) -> list[np.ndarray]:
    batch = {name: values[rows] for name, values in inputs.items()}
    with _fault("answers"):
        answers = session.run(names, batch)
    for name, answer in zip(names, answers, strict=True):
        if not isinstance(answer, np.ndarray):
            raise ModelFault("answers", f"output {name!r} is a {type(answer).__name__}, not a tensor: export classifiers with zipmap off")
        if answer.ndim == 0 or len(answer) != _rows(batch):
            raise ModelFault("answers", f"output {name!r} has shape {list(answer.shape)} for {_rows(batch)} rows: rows must come first")
    return list(answers)


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


# The outputs' form


def _output_names(outputs: Arrays, golden: Golden) -> Finding:
    """Both ways: a missing output breaks clients, an extra one was compared with nothing."""
    signature = {each.name for each in golden.outputs}
    missing = sorted((signature | set(golden.reference)) - set(outputs))
    extra = sorted(set(outputs) - (signature & set(golden.reference)))
    if missing or extra:
        why = f"missing outputs {missing}, outputs without signature or reference {extra}"
        return _failed("output_names", why, observed=", ".join(sorted(outputs)), limit=", ".join(sorted(golden.reference)))
    return _passed("output_names", f"the outputs {sorted(outputs)} are those of the source model and the signature")


def _output_forms(outputs: Arrays, golden: Golden) -> Iterator[Finding]:
    common = [each for each in golden.outputs if each.name in outputs and each.name in golden.reference]
    strange = [each for each in common if len({_kind(outputs[each.name]), _kind(golden.reference[each.name]), _signed_kind(each)}) > 1]
    yield _form("output_dtypes", strange, {each.name: f"{outputs[each.name].dtype}, not {each.numpy_dtype}" for each in strange})
    other = [each for each in common if not _same_shape(outputs[each.name], golden.reference[each.name], each)]
    yield _form("output_shapes", other, {each.name: _shapes(outputs[each.name], golden.reference[each.name], each) for each in other})


def _form(name: str, strange: list[Tensor], words: Mapping[str, str]) -> Finding:
    if not strange:
        return _passed(name, "as the source model's and the signature's")
    return _failed(name, "; ".join(f"output {each.name!r} is {words[each.name]}" for each in strange))


def _kind(values: np.ndarray) -> str:
    """The dtype's name; all sorts of text are one."""
    return "text" if values.dtype.kind in "OSU" else values.dtype.name


def _signed_kind(tensor: Tensor) -> str:
    return _kind(np.empty(0, dtype=tensor.numpy_dtype))


def _same_shape(values: np.ndarray, reference: np.ndarray, tensor: Tensor) -> bool:
    """Equal to the reference's, and the signature's; there a row of one value may be written [1] where ONNX has none."""
    row = values.shape[1:] or (1,)
    sizes = tensor.shape or (1,)
    fits = len(row) == len(sizes) and all(size in {-1, each} for each, size in zip(row, sizes, strict=True))
    return values.shape == reference.shape and fits


def _shapes(values: np.ndarray, reference: np.ndarray, tensor: Tensor) -> str:
    return f"{list(values.shape)}; the source model's is {list(reference.shape)}, the signature's row {list(tensor.shape)}"


# The outputs' values


def _values(outputs: Arrays, golden: Golden, limits: GoldenSet, report: Report) -> Iterator[Finding]:
    yield _finite(outputs, golden.reference)
    outside = rows_outside(outputs, golden.reference, limits.atol, limits.rtol)
    flipped = rows_flipped(outputs, golden.reference)
    report.metrics |= {"rows": golden.rows, "rows_outside": int(outside.sum()), "label_flips": int(flipped.sum())}
    report.mismatches += _mismatches(outside | flipped, outputs, golden)
    tolerances = f"differ from the source model's by more than {limits.atol:g} + {limits.rtol:g} of the value"
    yield _share("parity_rows", outside, limits.rows_outside_permille, tolerances)
    yield _share("label_flips", flipped, limits.rows_outside_permille, "get another answer than from the source model")


def _finite(outputs: Arrays, reference: Arrays) -> Finding:
    sides = (("the model", outputs), ("the source model", reference))
    bad = [(who, name, _unfinite(values)) for who, side in sides for name, values in side.items() if _unfinite(values).size]
    if not bad:
        return _passed("finite", "no NaN and no infinity")
    why = "; ".join(f"{who} answers NaN or infinity in {name!r} on {len(rows)} rows, first row {rows[0]}" for who, name, rows in bad)
    return _failed("finite", why, observed=len(bad[0][2]), limit=0)


def _unfinite(values: np.ndarray) -> np.ndarray:
    """The rows that hold NaN or infinity."""
    if not _is_float(values):
        return np.empty(0, dtype=int)
    return np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))


def rows_outside(outputs: Arrays, reference: Arrays, atol: float, rtol: float) -> np.ndarray:
    """Mask [rows]: some number is further from the reference than atol + rtol |reference|, or something else than a number differs."""
    masks = [_far(outputs[name], reference[name], atol, rtol) if _is_float(outputs[name]) else _differs(outputs[name], reference[name])
             for name in outputs]  # fmt: skip
    return np.asarray(np.logical_or.reduce(masks))


def rows_flipped(outputs: Arrays, reference: Arrays) -> np.ndarray:
    """Mask [rows]: a label differs, or the greatest of a vector of scores is another."""
    masks = [np.zeros(_rows(outputs), dtype=bool)]
    for name, values in outputs.items():
        if _is_vector(values):
            masks.append(values.argmax(axis=1) != reference[name].argmax(axis=1))
        elif not _is_float(values):
            masks.append(_differs(values, reference[name]))
    return np.asarray(np.logical_or.reduce(masks))


def _far(values: np.ndarray, reference: np.ndarray, atol: float, rtol: float) -> np.ndarray:
    near = np.isclose(values.astype(float), reference.astype(float), rtol=rtol, atol=atol)
    return np.asarray(~near.reshape(len(values), -1).all(axis=1))


def _differs(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.asarray((_comparable(values) != _comparable(reference)).reshape(len(values), -1).any(axis=1))


def _comparable(values: np.ndarray) -> np.ndarray:
    return values.astype(str) if values.dtype.kind in "OSU" else values


def _is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"


def _is_vector(values: np.ndarray) -> bool:
    return _is_float(values) and values.ndim == 2 and values.shape[1] > 1


def _share(name: str, bad: np.ndarray, permille: int, what: str) -> Finding:
    """Counted, not estimated: the claim is about these very rows."""
    count, rows = int(bad.sum()), len(bad)
    share = 1000 * count / rows
    details: dict[str, Any] = {"observed": share, "limit": permille, "n": rows}
    if share <= permille:
        return _passed(name, f"{count} of {rows} rows {what}; {permille} per mille are allowed", **details)
    return _failed(name, f"{count} of {rows} rows {what}, first row {int(bad.argmax())}; {permille} per mille are allowed", **details)


def _batch_of_one(path: Path, outputs: Arrays, golden: Golden, limits: GoldenSet, seed: int) -> Finding:
    """Triton batches as it pleases, so an answer may not depend on its neighbours."""
    rows = np.sort(np.random.default_rng(seed).choice(golden.rows, size=min(SINGLE_ROWS, golden.rows), replace=False))
    try:
        alone = run_model(path, {name: values[rows] for name, values in golden.inputs.items()}, batch_rows=1)
    except ModelFault as fault:
        return _failed("batch_of_one", f"a row alone is not answered: {fault}")
    together = {name: values[rows] for name, values in outputs.items()}
    if any(alone[name].shape != together[name].shape for name in outputs):
        return _failed("batch_of_one", "a row alone gets an answer of another shape than in a batch")
    bad = rows_outside(alone, together, limits.atol, limits.rtol)
    if bad.any():
        return _failed("batch_of_one", f"row {rows[bad.argmax()]} alone gets another answer than in a batch", n=len(rows))
    return _passed("batch_of_one", f"{len(rows)} rows alone get the answers that they get in a batch", n=len(rows))


# Metrics on labels


@dataclass(frozen=True, kw_only=True)
class Right:
    """Which rows a version answers right; `rows` is None with the reason in `why` when that cannot be said."""

    rows: np.ndarray | None
    why: str = ""


def _metrics(outputs: Arrays, golden: Golden, limits: GoldenSet, stable: Stable | None, report: Report) -> Iterator[Finding]:
    """Accuracy is the one metric that a policy can name so far (`policy.METRICS`)."""
    candidate, reference = _right(outputs, golden.labels), _right(golden.reference, golden.labels)
    before = _stable_right(stable, golden) if stable else None
    for metric in limits.metrics:
        report.metrics[metric.name] = {
            "candidate": _accuracy(candidate),
            "source_model": _accuracy(reference),
            "stable": _accuracy(before) if before else None,
        }
        yield _at_least(metric, candidate)
        yield _paired(f"{metric.name}_within_training", candidate, reference, metric.within_training)
        yield _against_stable(metric, candidate, before)


def _at_least(metric: Metric, candidate: Right) -> Finding:
    name = f"{metric.name}_at_least"
    if candidate.rows is None:
        return _unknown(name, candidate.why)
    return accuracy_at_least(name=name, correct=int(candidate.rows.sum()), n=len(candidate.rows), limit=metric.limit, error=ERROR)


def _against_stable(metric: Metric, candidate: Right, stable: Right | None) -> Finding:
    name = f"{metric.name}_not_worse_than_stable"
    if stable is None:
        return _passed(name, "skipped: no version is stable yet, so there is nothing to be worse than")
    return _paired(name, candidate, stable, metric.not_worse_than_stable)


def _paired(name: str, candidate: Right, other: Right, margin: float) -> Finding:
    if candidate.rows is None or other.rows is None:
        return _unknown(name, candidate.why or other.why)
    wins, losses = int((candidate.rows & ~other.rows).sum()), int((other.rows & ~candidate.rows).sum())
    return paired_not_worse(name=name, wins=wins, losses=losses, n=len(candidate.rows), margin=margin, error=ERROR)


def _stable_right(stable: Stable, golden: Golden) -> Right:
    """Stable's own file on the candidate's golden rows: its own golden set may be another one."""
    with read_bundle(stable.bundle) as bundle:
        try:
            return _right(run_model(bundle.model_path, golden.inputs), golden.labels)
        except ModelFault as fault:
            return Right(rows=None, why=f"stable (v{stable.version}) does not answer the golden rows: {fault}")


def _right(outputs: Arrays, labels: np.ndarray) -> Right:
    answers = predicted(outputs)
    if answers is None:
        return Right(rows=None, why=f"none of the outputs {sorted(outputs)} can be read as the label")
    numbers = answers.dtype.kind in "biuf" and labels.dtype.kind in "biuf"
    return Right(rows=np.asarray(answers == labels if numbers else answers.astype(str) == labels.astype(str)))


def _accuracy(right: Right) -> float | None:
    return None if right.rows is None else float(right.rows.mean())


# Small things


def _mismatches(bad: np.ndarray, outputs: Arrays, golden: Golden) -> list[dict[str, Any]]:
    return [
        {
            "row": int(row),
            "label": golden.labels[row].tolist() if isinstance(golden.labels[row], np.generic) else str(golden.labels[row]),
            "model": {name: _shown(values[row]) for name, values in outputs.items()},
            "source_model": {name: _shown(golden.reference[name][row]) for name in outputs},
        }
        for row in np.flatnonzero(bad)[:SHOWN_ROWS]
    ]


def _shown(value: Any) -> Any:
    return np.ravel(value)[:SHOWN_VALUES].tolist()


def _plain(value: Any) -> Any:
    """As JSON can hold it: NaN and infinity as words."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _limits(spec: Spec) -> GoldenSet:
    try:
        return parse(GoldenSet, spec.limits, "golden_set")
    except BadPolicy as error:
        raise BadSpec(f"limits: {error}") from error


def _passed(name: str, why: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.PASSED, why=why, **details)


def _failed(name: str, why: str, **details: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.FAILED, why=why, **details)


def _unknown(name: str, why: str) -> Finding:
    return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, advice="give the model one output that holds the label")
