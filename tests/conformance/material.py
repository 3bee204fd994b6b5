"""A healthy delivery's material, to be spoilt in one way by each case: model, golden rows, reference, manifest, limits, stable, spec.

The healthy model is a linear classifier of four numbers into three classes that is right on 95 of 100 rows; every gate passes it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from made_bundles import CONFIG, MANIFEST, MODEL, answered, answers, classifier, golden_rows, weights

from validation import __main__ as gates
from validation.bundle import write_bundle
from validation.contract import EXIT_BAD_SPEC, Bundle, Outcome, Spec, Stable, Verdict, run_task, sha256
from validation.probes import probe_rows

ROWS = 1000
ACCURACY = {"name": "accuracy", "at_least": 0.85, "within_training": 0.005, "not_worse_than_stable": 0.02}
GOLDEN_SET = {"min_rows": 600, "atol": 1e-4, "rtol": 1e-3, "rows_outside_permille": 1, "metrics": [ACCURACY]}
BAD_SPEC = "exit 64"
Member = tuple[tarfile.TarInfo, bytes]


@dataclass(kw_only=True)
class Material:
    """What one run of a gate is made of. `inputs`, `labels`, `slices` become parquet, `reference` and `probes` arrays of the bundle.

    `spoil` changes the laid-out files before they get their digests, `repack` the tar's members after; `spec` are fields of the spec.
    """

    gate: str
    limits: dict[str, Any]
    inputs: dict[str, Any]
    labels: Any
    reference: dict[str, np.ndarray]
    model: bytes
    slices: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, np.ndarray] | None = None  # None: as export makes them from the inputs
    probes_reference: dict[str, np.ndarray] | None = None  # None: what the model itself answers on the probes
    without_probes: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)
    stable: Material | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    spoil: list[Callable[[Path], Any]] = field(default_factory=list)
    repack: Callable[[list[Member]], list[Member]] | None = None
    tar: Callable[[bytes], bytes] | None = None
    digest: str | None = None

    @property
    def metric(self) -> dict[str, Any]:
        """The one metric of the healthy policy, to be changed."""
        row: dict[str, Any] = self.limits["metrics"][0]
        return row

    def answers_as(self, outputs: dict[str, np.ndarray]) -> None:
        """The source model's answers."""
        self.reference = outputs

    def set_signature(self, way: str, rows: list[dict[str, Any]]) -> None:
        signature = self.manifest.setdefault("signature", json.loads(json.dumps(MANIFEST["signature"])))
        signature[way] = rows


def healthy(gate: str = "golden_set", rows: int = ROWS, seed: int = 1) -> Material:
    """Passes its gate in every finding."""
    made = golden_rows(rows, seed=seed)
    limits = {"golden_set": GOLDEN_SET}[gate]
    return Material(
        gate=gate,
        limits=json.loads(json.dumps(limits)),
        inputs={"X": made.inputs},
        labels=made.labels,
        reference=answers(made.inputs, weights()),
        model=classifier(weights()),
    )


def run(material: Material, folder: Path) -> tuple[str, dict[str, Outcome], Outcome | None]:
    """Runs the gate through its public contract: a spec in the environment, a verdict from the file.

    Returns the exit code in words, the outcome of each finding by name (all of them, from the evidence) and the verdict's outcome.
    """
    spec = _spec(material, folder)
    out = folder / "out"
    out.mkdir()
    text = spec if isinstance(spec, str) else spec.to_json()
    code = run_task(gates.MODULES, {"TASK_SPEC": text, "TASK_OUT": str(out)})
    if code != 0 or isinstance(spec, str):
        return (BAD_SPEC if code == EXIT_BAD_SPEC else f"exit {code}"), {}, None
    verdict = Verdict.from_bytes((out / "verdict.json").read_bytes(), spec)
    rows = json.loads((out / "evidence" / "findings.json").read_text())
    return "exit 0", {row["name"]: Outcome[row["outcome"].upper()] for row in rows}, verdict.outcome


def _spec(material: Material, folder: Path) -> Spec | str:
    fields: dict[str, Any] = {
        "task": material.gate,
        "model": MODEL,
        "version": 2,
        "delivery": "conformance",
        "evidence_uri": (folder / "published").as_uri(),
        "bundle": _bundle(material, folder / "candidate"),
        "limits": material.limits,
    }
    if material.stable is not None:
        fields["stable"] = Stable(version=1, bundle=_bundle(material.stable, folder / "stable"))
    raw = material.spec.get("raw")
    if raw is None:
        return Spec(**{**fields, **material.spec})
    return raw(json.loads(Spec(**fields).to_json())) if callable(raw) else str(raw)


def _bundle(material: Material, folder: Path) -> Bundle:
    root, target = folder / "root", folder / "bundle.tar"
    _lay_out(root, material)
    for spoil in material.spoil:
        spoil(root)
    digest = write_bundle(root, target)
    data = target.read_bytes()
    if material.repack:
        data = packed(material.repack(members(data)))
    if material.tar:
        data = material.tar(data)
    target.write_bytes(data)
    digest = material.digest or sha256(data)
    return Bundle(uri=target.as_uri(), sha256=digest)


def members(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def packed(rows: list[Member]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in rows:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _lay_out(root: Path, material: Material) -> None:
    for name in (f"{MODEL}/1", "golden", "reference"):
        (root / name).mkdir(parents=True)
    golden_set = {**MANIFEST["golden_set"], "rows": len(material.labels)}
    (root / "manifest.json").write_text(json.dumps({**MANIFEST, "golden_set": golden_set, **material.manifest}))
    (root / MODEL / "config.pbtxt").write_text(CONFIG)
    (root / MODEL / "1" / "model.onnx").write_bytes(material.model)
    pq.write_table(table(material.inputs), root / "golden/inputs.parquet")
    pq.write_table(table({"label": material.labels}), root / "golden/labels.parquet")
    if material.slices:
        pq.write_table(table(material.slices), root / "golden/slices.parquet")
    _save(root / "reference", material.reference)
    if not material.without_probes:
        _lay_out_probes(root / "probes", material)


def _lay_out_probes(folder: Path, material: Material) -> None:
    """A case with inputs of which no probes can be made, or a model that does not answer them, has none unless it names them."""
    arrays = {name: values for name, values in material.inputs.items() if isinstance(values, np.ndarray) and len(values)}
    probes = material.probes if material.probes is not None else probe_rows(arrays) if arrays else None
    reference = material.probes_reference if material.probes_reference is not None else probes and answered(material.model, probes)
    if probes is not None and reference is not None:
        folder.mkdir()
        pq.write_table(table(probes), folder / "inputs.parquet")
        _save(folder / "reference", reference)


def _save(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=values.dtype == object)


def table(columns: dict[str, Any]) -> pa.Table:
    """One column a name: scalars as they are, tensors of a row as flat lists of fixed size."""
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Any) -> Any:
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), int(np.prod(values.shape[1:])))


def graph_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None, **more: Any) -> bytes:
    """ONNX bytes of a graph, unchecked: cases need broken ones."""
    graph = onnx.helper.make_graph(nodes, "case", inputs, outputs, weights or [])
    opsets = more.pop("opset_imports", None) or [onnx.helper.make_opsetid("", 17)]
    data: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8, **more).SerializeToString()
    return data
