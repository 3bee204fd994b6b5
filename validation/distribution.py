"""The gate `distribution`: are the model's answers on the golden rows reasonable, and like stable's on the same rows?

Runs the bundle's ONNX file and stable's on the candidate's golden rows; looks at the answers' range, spread and shares; holds them against
stable's and against the baselines in the bundle (`validation.drift`); and has Great Expectations check the golden set as a table
(`validation.expectations`). It knows no labels and no metric: whether the answers are right is `golden_set`'s question.

| finding                     | claim                                                                                            |
|-----------------------------|--------------------------------------------------------------------------------------------------|
| golden_rows                 | enough rows to speak of a distribution                                                           |
| loads, answers              | the file is an ONNX model that takes the golden rows (only when it does not)                     |
| finite                      | no answer is NaN or infinite                                                                     |
| constant_outputs            | no number of an output is the same in every row, but for those that the policy names             |
| <column>_range              | every value lies in the policy's range                                                           |
| <output>_majority_share     | the most frequent answer has at most the policy's share of the rows                              |
| <output>_entropy_bits       | the answers' entropy is at least the policy's                                                    |
| from_stable, stable_<...>   | the answers have not drifted from stable's on the same rows                                      |
| from_source, source_<...>   | nor from the source model's, by the sketch in the bundle                                         |
| from_inputs                 | the golden rows are those that the bundle's sketch is of                                         |
| generated, generated_<n>    | the golden set meets the suite that signature, baselines and policy imply                        |
| own, own_<n>                | and the user's own suite                                                                         |
| others                      | what a wide table gives beyond the worst `FINDINGS`                                              |

Of comparisons and expectations those that do not pass are findings of their own; the others are one together. `drift.json` has them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from validation.bundle import OpenBundle, read_bundle
from validation.contract import SOURCE_ABSENT, BadSpec, Decision, Finding, Outcome, Spec, Stable
from validation.drift import BadSketch, Limits, Sketch, components, drift, read_sketches, sketch_batches
from validation.expectations import BadSuite, Ran, covers, generated, read_suite, run_suite
from validation.findings import failed, inconclusive, passed
from validation.golden_rows import GoldenRows
from validation.onnx_model import ModelFault, OnnxModel
from validation.policy import BadPolicy, Distribution, Range, parse

MIN_ROWS = 30
"""Below it nothing is said about a distribution."""

BATCH_ROWS = 64
JUDGED_ROWS, JUDGED_BYTES = 100_000, 256 << 20
"""Of a golden set with more rows or bytes of input so much, evenly spread, is judged."""

PAGE_BYTES = 4 << 20
"""Of one page of Data Docs in the evidence; a longer one is cut."""

FINDINGS = 200
"""Findings of one decision; a verdict carries fewer still."""

RANK_ERROR = 0.005
"""Share of rows by which edges may be off; the sketch's own bound is far below."""

LABEL = "label"
SUITE = "suite"
"""The key in a spec's limits that holds the user's suite; the other keys are the policy's section."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the spec asks for: the policy's section and the user's suite, if there is one.

    `without_source`: loose files, of which nobody made baselines; a bundle of a delivery must have them.
    """

    limits: Distribution
    suite: list[Mapping[str, Any]] | None
    without_source: bool

    @property
    def drift(self) -> Limits:
        names = ("sigmas", "psi", "ks", "missing", "unseen", "error")
        return Limits(**{name: getattr(self.limits, name) for name in names})


@dataclass(kw_only=True)
class Report:
    """What goes into the evidence: all comparisons by what was compared with, and the pages for people by name."""

    drift: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)

    def write(self, evidence: Path) -> None:
        (evidence / "drift.json").write_text(json.dumps(self.drift, indent=1, ensure_ascii=False))
        (evidence / "outputs.json").write_text(json.dumps(self.outputs, ensure_ascii=False))
        for name, page in self.pages.items():
            (evidence / f"{name}.html").write_bytes(page.encode()[:PAGE_BYTES])


def run(spec: Spec, evidence: Path) -> Decision:
    """Judges the spec's bundle; writes drift.json, outputs.json and pages of Data Docs. Raises `BadSpec` for limits, suite or bundle."""
    asked, report = _asked(spec), Report()
    with read_bundle(spec.need_bundle()) as bundle:
        findings = tuple(_findings(bundle, asked, spec, report))
    report.write(evidence)
    return Decision(findings=tuple(_bounded(findings)))


def _bounded(findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """The worst ones when a wide table gives thousands, and one for the others."""
    ranked = sorted(findings, key=lambda each: -each.outcome) if len(findings) > FINDINGS else list(findings)
    yield from ranked[:FINDINGS]
    if others := ranked[FINDINGS:]:
        why = f"{len(others)} more findings, none worse than {others[0].outcome.word}; drift.json and the pages have all"
        yield Finding(name="others", outcome=others[0].outcome, why=why, n=len(others), advice="mend the ones above first")


def _asked(spec: Spec) -> Asked:
    rows = {key: value for key, value in spec.limits.items() if key != SUITE}
    try:
        limits = parse(Distribution, rows, "distribution")
        if (SUITE in spec.limits) != (limits.expectations is not None):
            raise BadSpec(
                f"limits: expectations names {limits.expectations!r} and {SUITE} is {spec.limits.get(SUITE)!r}: give both or none"
            )
        suite = read_suite(spec.limits[SUITE]) if SUITE in spec.limits else None
        return Asked(limits=limits, suite=suite, without_source=bool(spec.inputs.get(SOURCE_ABSENT)))
    except (BadPolicy, BadSuite) as error:
        raise BadSpec(f"limits: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The golden rows that are judged: `inputs` by name, `labels` [rows], and the sketches of all golden rows by column."""

    inputs: Arrays
    labels: np.ndarray
    sketches: Mapping[str, Sketch]


def _rows(bundle: OpenBundle, like: Mapping[str, Sketch]) -> Rows:
    """Reads all rows once, batch by batch, and keeps of a large golden set evenly spread ones: they tell as much of a distribution."""
    golden = GoldenRows(bundle)
    every = -(-golden.rows // max(MIN_ROWS, min(JUDGED_ROWS, JUDGED_BYTES // golden.input_bytes)))
    kept: list[Arrays] = []

    def batches() -> Iterator[Arrays]:
        for batch in golden.batches(golden.batch_rows):
            kept.append({name: values[-batch.start % every :: every].copy() for name, values in batch.inputs.items()})
            yield batch.inputs

    sketches = sketch_batches(batches(), like)
    inputs = {each.name: np.concatenate([part[each.name] for part in kept]) for each in golden.tensors}
    return Rows(inputs=inputs, labels=golden.labels(np.arange(0, golden.rows, every)), sketches=sketches)


def _findings(bundle: OpenBundle, asked: Asked, spec: Spec, report: Report) -> Iterator[Finding]:
    """In order; of a model that does not answer nothing more is said about answers."""
    total = bundle.manifest.rows
    if total < MIN_ROWS:
        yield inconclusive(
            "golden_rows", f"{total} golden rows are no distribution", f"add {MIN_ROWS - total} rows", n=total, limit=MIN_ROWS
        )
        return
    stored = _baseline("from_inputs", bundle, "inputs")
    rows = _rows(bundle, {} if isinstance(stored, Finding) else stored)
    judged = len(rows.labels)
    yield passed("golden_rows", f"{judged} of {total} golden rows are judged", observed=judged, limit=MIN_ROWS, n=total)
    yield from _about_answers(rows, bundle, asked, spec, report)
    if asked.without_source:
        yield passed("from_inputs", "skipped: loose files have no stored sketches of their inputs")
    else:
        yield stored if isinstance(stored, Finding) else _from_inputs(rows.sketches, stored)
    known = rows.sketches if asked.without_source else stored
    yield from _expected(rows, None if isinstance(known, Finding) else known, bundle, asked, report)


def _about_answers(rows: Rows, bundle: OpenBundle, asked: Asked, spec: Spec, report: Report) -> Iterator[Finding]:
    try:
        outputs = _answered(bundle.model_path, rows.inputs)
    except ModelFault as fault:
        yield failed(fault.name, str(fault))
        return
    report.outputs |= {name: each.to_json() for name, each in sketch_batches([outputs]).items()}
    yield from _reasonable(outputs, rows.inputs, asked.limits)
    yield from _from_stable(outputs, rows.inputs, spec.stable, asked.drift, report)
    if asked.without_source:
        yield passed("from_source", "skipped: the source model is not at hand")
    else:
        yield from _from_source(outputs, bundle, asked.drift, report)


def _answered(path: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    model = OnnxModel(path)
    model.insist_on_inputs(list(inputs))
    return model.answer_in_batches(inputs, BATCH_ROWS)


# The answers by themselves


def _reasonable(outputs: Arrays, inputs: Arrays, limits: Distribution) -> Iterator[Finding]:
    yield _finite(outputs)
    yield _constant(outputs, limits.constant)
    for each in limits.ranges:
        yield from _ranged(each, outputs, inputs)
    for name, values in outputs.items():
        chosen = answers(values)
        if chosen is not None:
            yield from _spread(name, chosen, limits)


def _ranged(wanted: Range, outputs: Arrays, inputs: Arrays) -> Iterator[Finding]:
    """An output's range is counted here, an input's by the generated suite; a name that is neither is not passed over."""
    name = f"{wanted.column}_range"
    columns = {each: values for each, values in components(outputs) if covers(wanted.column, each)}
    if columns:
        yield _in_range(name, columns, wanted.low, wanted.high)
    elif not any(covers(wanted.column, each) for each, _ in components(inputs)):
        yield inconclusive(name, f"no input and no output is named {wanted.column}", f"known are {', '.join([*inputs, *outputs])}")


def _finite(outputs: Arrays) -> Finding:
    bad = {name: int((~np.isfinite(values)).sum()) for name, values in outputs.items() if values.dtype.kind == "f"}
    strange = {name: count for name, count in bad.items() if count}
    if not strange:
        return passed("finite", "no answer is NaN or infinite")
    words = "; ".join(f"{count} numbers of {name!r} are NaN or infinite" for name, count in strange.items())
    return failed("finite", words, observed=sum(strange.values()), limit=0)


def _constant(outputs: Arrays, allowed: tuple[str, ...]) -> Finding:
    """Number by number, of large tensors too."""
    columns = [column for name, values in outputs.items() for column in _constants(name, values)]
    strange = [name for name in columns if not any(covers(each, name) for each in allowed)]
    if not strange:
        return passed("constant_outputs", "every output differs between rows" + (f", but {', '.join(columns)}" if columns else ""))
    advice = "name it in the policy's distribution.constant if it is meant to be"
    return failed("constant_outputs", f"the same in every row: {', '.join(strange)}", observed=len(strange), limit=0, advice=advice)


def _constants(name: str, values: np.ndarray) -> list[str]:
    flat = values.reshape(len(values), -1)
    same = np.asarray(flat == flat[0]).all(axis=0)
    return [name] if flat.shape[1] == 1 and same.all() else [f"{name}[{i}]" for i in np.flatnonzero(same)] if flat.shape[1] > 1 else []


def _in_range(name: str, columns: Arrays, low: float, high: float) -> Finding:
    """NaN lies in no range. Counted, not estimated: the claim is about these very rows."""
    outside = {column: int((~((values >= low) & (values <= high))).sum()) for column, values in columns.items() if _is_number(values)}
    rows = sum(len(values) for values in columns.values())
    if not outside:
        return failed(name, f"{', '.join(columns)} holds no numbers")
    bad = {column: count for column, count in outside.items() if count}
    if not bad:
        return passed(name, f"all values lie in {low:g} to {high:g}", observed=0, limit=0, n=rows)
    words = ", ".join(f"{count} of {column}" for column, count in list(bad.items())[:5])
    return failed(name, f"values outside {low:g} to {high:g}: {words}", observed=sum(bad.values()), limit=0, n=rows)


def answers(values: np.ndarray) -> np.ndarray | None:
    """One answer a row: the value where there is one, the place of the greatest in a vector of scores, else None."""
    if values.size == len(values):
        return values.reshape(-1)
    return np.asarray(values.argmax(axis=1)) if is_vector(values) else None


def is_vector(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and values.ndim == 2 and values.shape[1] > 1


def _spread(name: str, chosen: np.ndarray, limits: Distribution) -> Iterator[Finding]:
    values, counts = np.unique(chosen.astype(str) if chosen.dtype.kind == "O" else chosen, return_counts=True)
    shares = counts / counts.sum()
    share, bits = float(shares.max()), float((shares * np.log2(1 / shares)).sum())
    most = f"{values[counts.argmax()]} is the answer on {counts.max()} of {len(chosen)} rows"
    held = passed if share <= limits.majority_share else failed
    yield held(f"{name}_majority_share", most, observed=share, limit=limits.majority_share, n=len(chosen))
    held = passed if bits >= limits.entropy_bits else failed
    why = f"{len(values)} different answers with an entropy of {bits:.3f} bits"
    yield held(f"{name}_entropy_bits", why, observed=bits, limit=limits.entropy_bits, n=len(chosen))


def _is_number(values: np.ndarray) -> bool:
    return values.dtype.kind in "biuf"


# The answers and rows beside others


def _from_stable(outputs: Arrays, inputs: Arrays, stable: Stable | None, limits: Limits, report: Report) -> Iterator[Finding]:
    """Stable's own file on the candidate's golden rows: only then is a difference the model's. A new output has nothing to drift from."""
    if stable is None:
        yield passed("from_stable", "skipped: no version is stable yet, so there is nothing to drift from")
        return
    with read_bundle(stable.bundle) as bundle:
        try:
            before = _answered(bundle.model_path, inputs)
        except ModelFault as fault:
            why = f"stable (v{stable.version}) does not answer the golden rows: {fault}"
            yield inconclusive(
                "from_stable", why, "callers of stable would not be answered either: deliver another signature under another name"
            )
            return
    judged, scores = judged_columns(before)
    reference = sketch_batches([judged])
    current = sketch_batches([{name: values for name, values in judged_columns(outputs)[0].items() if name in judged}], reference)
    yield from _summed("stable", drift(reference, current, limits, scores), report)


def judged_columns(outputs: Arrays) -> tuple[dict[str, np.ndarray], set[str]]:
    """Outputs, and of each vector of scores also which is best and how good that is; with the names of columns that are scores.

    How small scores order among themselves below a hundredth says nothing, and differs widely between equally good models: of scores the
    mean is judged, of the winner the distribution.
    """
    columns, scores = dict(outputs), set()
    for name, values in outputs.items():
        if is_vector(values):
            columns |= {f"{name}:winner": values.argmax(axis=1), f"{name}:best": values.max(axis=1)}
            scores |= {f"{name}:best", *(each for each, _ in components({name: values}))}
    return columns, scores


def _from_source(outputs: Arrays, bundle: OpenBundle, limits: Limits, report: Report) -> Iterator[Finding]:
    reference = _baseline("from_source", bundle, "outputs")
    if isinstance(reference, Finding):
        yield reference
    else:
        current = sketch_batches([outputs], reference)
        yield from _summed("source", drift(reference, current, limits, judged_columns(outputs)[1]), report)


def _from_inputs(current: Mapping[str, Sketch], stored: Mapping[str, Sketch]) -> Finding:
    """No statistics: these are the very rows that the sketch is of, or they are not."""
    strange = sorted({*stored, *current} - {name for name in current if name in stored and _same(stored[name], current[name])})
    if strange:
        return failed("from_inputs", f"the stored sketches are not of the golden rows: {', '.join(strange[:5])}", observed=len(strange))
    rows = max(each.rows for each in current.values())
    return passed("from_inputs", f"the stored sketches of {len(stored)} columns are of the golden rows", n=rows)


def _same(before: Sketch, now: Sketch) -> bool:
    """Equal in what a sketch has exactly, and within the rank error that its edges may have."""
    exact = [(e.rows, e.missing, e.plus_infinite, e.minus_infinite, e.low, e.high, e.categories, e.others) for e in (before, now)]
    apart = np.abs(np.cumsum(before.counts) - np.cumsum(now.counts)) if before.kind == now.kind == "number" else np.zeros(1)
    return exact[0] == exact[1] and before.kind == now.kind and float(apart.max()) <= RANK_ERROR * before.rows


def _baseline(name: str, bundle: OpenBundle, key: str) -> dict[str, Sketch] | Finding:
    """The stored sketches. Absent ones are nobody's fault and no pass; unreadable ones are no evidence either."""
    advice = "export the version again with an export that keeps baselines"
    try:
        sketches = read_sketches(bundle.manifest.baselines.get(key, {}))
    except BadSketch as error:
        return inconclusive(name, f"the bundle's baseline of {key} cannot be read: {error}", advice)
    return sketches or inconclusive(name, f"the bundle holds no baseline of its {key}", advice)


def _summed(what: str, findings: tuple[Finding, ...], report: Report) -> Iterator[Finding]:
    """Those that do not pass, named after what was compared with, and one for all that do: a verdict is small."""
    report.drift[what] = [each.to_dict() for each in findings]
    held = [each for each in findings if each.outcome is Outcome.PASSED]
    yield from (replace(each, name=f"{what}_{each.name}") for each in findings if each.outcome is not Outcome.PASSED)
    if held:
        yield passed(f"from_{what}", f"{len(held)} of {len(findings)} comparisons pass; {_nearest(held)}", n=held[0].n)


def _nearest(findings: Iterable[Finding]) -> str:
    """The comparison that came nearest to its limit."""

    def part(each: Finding) -> float:
        return each.observed / each.limit if isinstance(each.observed, float) and isinstance(each.limit, float) and each.limit else 0.0

    nearest = max(findings, key=part)
    return f"nearest to its limit is {nearest.name}: {nearest.why}"


# The golden set as a table


def _expected(rows: Rows, known: Mapping[str, Sketch] | None, bundle: OpenBundle, asked: Asked, report: Report) -> Iterator[Finding]:
    """The generated suite needs sketches, whose absence is a finding already; the user's own does not."""
    table = pd.DataFrame({**dict(components(rows.inputs)), LABEL: rows.labels})
    if known is not None:
        yield from _ran("generated", run_suite("generated", generated(_types(bundle), known, asked.limits), table), report)
    if asked.suite is not None:
        try:
            yield from _ran("own", run_suite("own", asked.suite, table), report)
        except BadSuite as error:
            raise BadSpec(f"limits: {asked.limits.expectations}: {error}") from error


def _ran(name: str, ran: Ran, report: Report) -> Iterator[Finding]:
    report.pages[f"data_docs_{name}"] = ran.page
    yield from ran.findings


def _types(bundle: OpenBundle) -> dict[str, str | None]:
    """The signature's types by column of the table; the label's is anybody's."""
    empty = {each.name: np.empty((0, *each.shape), dtype=each.numpy_dtype) for each in bundle.manifest.inputs}
    return {**{name: values.dtype.name for name, values in components(empty)}, LABEL: None}
