"""The gate `golden_set`: is the exported model the model that was trained, and is it good enough on rows with known answers?

Runs the bundle's ONNX file on its golden rows, batch by batch, and holds it against the source model's answers (made by `export`, they lie
in the bundle), against itself in other company, against the labels, and against the stable version on the same rows. It starts no server
and knows nothing of traffic. What the runtime raises on these rows is the model's fault and a failed finding; a bundle that is not what its
manifest says is an error. The findings are listed where they are made: `golden_quality`, `parity`, `invariances`, `scoring`, and here:

| finding          | claim                                                                                                   |
|------------------|---------------------------------------------------------------------------------------------------------|
| loads, answers   | the file is an ONNX model that takes the golden rows (only when it does not)                            |
| feature_extremes | on probes at the edges of each feature (`probes`), and missing ones, it answers as the source model did |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from validation import golden_quality
from validation.bundle import OpenBundle, read_bundle
from validation.contract import SOURCE_ABSENT, BadSpec, Decision, Finding, Spec, download
from validation.findings import failed, inconclusive, passed
from validation.golden_rows import GoldenRows, read_probes
from validation.golden_walk import Seen, walk
from validation.invariances import invariance_findings
from validation.onnx_model import ModelFault, OnnxModel, row_count
from validation.parity import Count, form_findings, holds, names_classes, rows_flipped, rows_outside, rows_unfinite, share
from validation.policy import BadPolicy, GoldenSet, parse
from validation.scoring import Exam, limit_name, metric_findings, numbers
from validation.traffic_sample import LIMIT_BYTES, NO_STABLE, Traffic

PROBE_ROWS = 1024
BATCH_ANSWER_BYTES = 64 << 20
"""What the answers to one batch may take."""

Arrays = Mapping[str, np.ndarray]


def run(spec: Spec, evidence: Path) -> Decision:
    """Judges the spec's bundle; writes metrics.json and mismatches.json. Raises `BadSpec` when limits or bundle cannot be used."""
    limits = _limits(spec)
    with read_bundle(spec.need_bundle()) as bundle:
        report = Report()
        findings = tuple(_findings(bundle, limits, spec, report))
        digest = bundle.manifest.golden_set.get("sha256")
    report.write(evidence)
    return Decision(findings=findings, outputs={"baselines": _baselines(findings, limits), "golden_set_sha256": digest})


def _baselines(findings: Iterable[Finding], limits: GoldenSet) -> dict[str, float]:
    """The metrics as they were found here, by name: what later versions and the registry compare with."""
    found = {each.name: each.observed for each in findings}
    named = {metric.name: found.get(limit_name(metric)) for metric in limits.metrics}
    return {name: value for name, value in named.items() if isinstance(value, float) and math.isfinite(value)}


@dataclass(kw_only=True)
class Report:
    """What goes into the evidence: numbers by name, and the first rows that differ from the source model."""

    metrics: dict[str, Any] = field(default_factory=dict)
    mismatches: list[dict[str, Any]] = field(default_factory=list)

    def write(self, evidence: Path) -> None:
        (evidence / "metrics.json").write_text(json.dumps(_plain(self.metrics), indent=1))
        (evidence / "mismatches.json").write_text(json.dumps(_plain(self.mismatches), indent=1))


def _findings(bundle: OpenBundle, limits: GoldenSet, spec: Spec, report: Report) -> Iterator[Finding]:
    """In order; what follows a model that cannot answer, or answers in another form, has no meaning and is left out."""
    golden = GoldenRows(bundle)
    yield golden_quality.enough_rows(golden.rows, limits.min_rows)
    yield from _about_the_set(bundle, golden, limits, spec)
    if golden.rows == 0:
        return
    try:
        model = OnnxModel(bundle.model_path)
        model.insist_on_inputs([each.name for each in golden.tensors])
        case = Case(model=model, golden=golden, bundle=bundle, limits=limits, spec=spec)
        yield from case.form()
        if case.formed:
            yield from case.findings(report)
    except ModelFault as fault:
        yield failed(fault.name, str(fault))


def _about_the_set(bundle: OpenBundle, golden: GoldenRows, limits: GoldenSet, spec: Spec) -> Iterator[Finding]:
    if limits.max_age_days is not None:
        yield golden_quality.young_enough(bundle.manifest.golden_set, limits.max_age_days)
    if limits.traffic_drift:
        yield from _about_traffic(golden, spec)


def _about_traffic(golden: GoldenRows, spec: Spec) -> Iterator[Finding]:
    absent = str(spec.inputs.get("traffic_absent", ""))[:200]
    if spec.stable is None and absent == NO_STABLE:
        yield passed("golden_traffic_drift", "skipped: no version is stable yet, so nobody's traffic can be like the golden set")
        return
    inputs = (each.inputs for each in golden.batches(golden.batch_rows))
    yield from golden_quality.like_traffic(_traffic(spec.inputs), inputs, absent=absent)


def _traffic(inputs: Mapping[str, Any]) -> Traffic | None:
    """The sketch whose address `claim` put out, if it made one."""
    uri, digest = inputs.get("traffic_uri"), inputs.get("traffic_sha256")
    if not uri:
        return None
    try:
        return Traffic.from_json(download(str(uri), str(digest), limit_bytes=LIMIT_BYTES))
    except ValueError as error:
        raise BadSpec(f"inputs: {error}") from error


@dataclass(kw_only=True)
class Case:
    """A model that was loaded, and what it is asked about."""

    model: OnnxModel
    golden: GoldenRows
    bundle: OpenBundle
    limits: GoldenSet
    spec: Spec
    formed: bool = False

    @property
    def without_source(self) -> bool:
        """Only where nobody expects the source model's answers; a bundle of a delivery must have them."""
        return bool(self.spec.inputs.get(SOURCE_ABSENT)) and not self.golden.reference_names

    @cached_property
    def batch_rows(self) -> int:
        """Found with one row, before many are asked: a model whose answers are large is asked fewer at once."""
        row = next(self.golden.batches(1))
        size = sum(each.nbytes for each in self.model.answer(row.inputs).values())
        return max(1, min(self.golden.batch_rows, BATCH_ANSWER_BYTES // max(size, 1)))

    def form(self) -> Iterator[Finding]:
        if self.without_source:
            self.formed = True
            return
        first = next(self.golden.batches(self.batch_rows))
        findings = form_findings(self.model.answer(first.inputs), first.reference, self.bundle.manifest.outputs)
        self.formed = holds(findings)
        yield from findings

    def findings(self, report: Report) -> Iterator[Finding]:
        seen = walk(self.model, self.golden, self.limits, self.spec, self.batch_rows, absent=self.without_source)
        exam = self._exam(seen)
        report.metrics = seen.parity.numbers | numbers(exam)
        report.mismatches = _labelled(seen.parity.mismatches, self.golden)
        yield from seen.parity.findings(with_source=not self.without_source)
        yield _feature_extremes(self.model, self.bundle, self.limits, skip=bool(self.spec.inputs.get(SOURCE_ABSENT)))
        yield from invariance_findings(self.model, self._again, seen.few, self.limits, self.golden.tensors)
        yield golden_quality.few_duplicates(seen.duplicates, seen.hashes[seen.sample.whole], self.limits.duplicates_permille)
        yield golden_quality.no_leakage(seen.inputs, self.golden.labels(seen.leak_rows))
        yield from metric_findings(exam)

    def _again(self) -> OnnxModel:
        return OnnxModel(self.bundle.model_path)

    def _exam(self, seen: Seen) -> Exam:
        return Exam(
            limits=self.limits,
            sample=seen.sample,
            rows=self.golden.rows,
            labels=self.golden.labels(seen.sample.rows),
            candidate=seen.candidate,
            source=seen.source,
            stable=seen.stable,
            logged=self.bundle.manifest.training_metrics,
        )


def _feature_extremes(model: OnnxModel, bundle: OpenBundle, limits: GoldenSet, *, skip: bool) -> Finding:
    name, probes = "feature_extremes", read_probes(bundle)
    if probes is None and skip:
        return passed(name, "skipped: the source model is not at hand to answer probes")
    refused = bundle.manifest.golden_set.get("probes_left_out", 0)
    if probes is None or not row_count(probes.inputs):
        why = f"the bundle has no probes ({refused} were refused by the source model): the edges of the features' ranges are not known"
        return inconclusive(name, why, "export the version again: export makes probes and has the source model answer them", n=0)
    try:
        outputs = model.answer_in_batches(probes.inputs, PROBE_ROWS)
    except ModelFault as fault:
        return failed(name, f"what the source model answers at the edges of the features' ranges is not answered: {fault}")
    form = form_findings(outputs, probes.reference, bundle.manifest.outputs)
    if not holds(form):
        return failed(name, f"on probes: {max(form, key=lambda each: each.outcome).why}", n=row_count(outputs))
    what = "at the edges of the features' ranges are answered other than by the source model"
    return share(
        name, _differing(outputs, probes.reference, limits), row_count(outputs), limits.rows_outside_permille, _with(what, refused)
    )


def _differing(outputs: Arrays, reference: Arrays, limits: GoldenSet) -> Count:
    flipped = rows_flipped(outputs, reference, of_classes=names_classes(limits))
    count = Count()
    count.add(rows_outside(outputs, reference, limits) | flipped | rows_unfinite(outputs) | rows_unfinite(reference), 0)
    return count


def _with(what: str, refused: Any) -> str:
    return f"{what} ({refused} more it refused to answer itself)" if refused else what


def _labelled(mismatches: list[dict[str, Any]], golden: GoldenRows) -> list[dict[str, Any]]:
    labels = golden.labels(np.array([each["row"] for each in mismatches], dtype=np.int64))
    return [{**each, "label": label.item() if isinstance(label, np.generic) else str(label)}
            for each, label in zip(mismatches, labels, strict=True)]  # fmt: skip


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
