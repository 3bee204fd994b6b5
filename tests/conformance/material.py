"""A healthy delivery's material, to be spoilt in one way by each case: model, golden rows, reference, manifest, limits, stable, spec.

The healthy model is a linear classifier of four numbers into three classes that is right on 95 of 100 rows; every gate passes it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from made_bundles import CONFIG, MANIFEST, MODEL, SIZE, answered, answers, classifier, golden_rows, weights
from onnx import numpy_helper

from validation import __main__ as gates
from validation.bundle import write_bundle
from validation.contract import EXIT_BAD_SPEC, Bundle, Spec, Stable, Verdict, run_task, sha256
from validation.drift import sketch_batches
from validation.probes import probe_rows

ROWS = 1000
ACCURACY = {"name": "accuracy", "at_least": 0.85, "within_training": 0.005, "not_worse_than_stable": 0.02}
GOLDEN_SET = {"min_rows": 600, "atol": 1e-4, "rtol": 1e-3, "rows_outside_permille": 1, "metrics": [ACCURACY]}
DISTRIBUTION = {"majority_share": 0.8, "entropy_bits": 1.0, "sigmas": 2.0, "psi": 0.25}
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
    traffic: bytes | None = None  # the sketch that `claim` put out
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

    def answers_as_the_model(self) -> None:
        """The source model answers what the exported one does to all golden rows at once."""
        self.reference = _answered(self.model, {name: np.asarray(values) for name, values in self.inputs.items()})

    def own_probes(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The probes that export would make, and what the model answers on them."""
        probes = probe_rows(self.inputs)
        return probes, _answered(self.model, probes)

    def twin(self) -> Material:
        """A version with the same model, rows and answers, to be stable."""
        return replace(self, limits={}, stable=None, spec={}, spoil=[], inputs=dict(self.inputs), reference=dict(self.reference))

    def resize(self, rows: int) -> None:
        """Only the first so many golden rows."""
        self.inputs = {name: values[:rows] for name, values in self.inputs.items()}
        self.labels = self.labels[:rows]
        self.reference = {name: values[:rows] for name, values in self.reference.items()}

    def set_signature(self, way: str, rows: list[dict[str, Any]]) -> None:
        signature = self.manifest.setdefault("signature", json.loads(json.dumps(MANIFEST["signature"])))
        signature[way] = rows


def healthy(gate: str = "golden_set", rows: int = ROWS, seed: int = 1) -> Material:
    """Passes its gate in every finding."""
    made = golden_rows(rows, seed=seed)
    limits = {"golden_set": GOLDEN_SET, "distribution": DISTRIBUTION}[gate]
    reference = answers(made.inputs, weights())
    return Material(
        gate=gate,
        limits=json.loads(json.dumps(limits)),
        inputs={"X": made.inputs},
        labels=made.labels,
        reference=reference,
        model=classifier(weights()),
        manifest={"baselines": baselines({"X": made.inputs}, reference)},
    )


def baselines(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The sketches that `export` keeps of the golden inputs and of the source model's answers."""
    sides = {"inputs": inputs, "outputs": outputs}
    return {side: {name: each.to_json() for name, each in sketch_batches([arrays]).items()} for side, arrays in sides.items()}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a gate said: its exit in words, the verdict's outcome, each finding's outcome by name, and all of it in sentences."""

    code: str
    outcome: str = ""
    findings: dict[str, str] = field(default_factory=dict)
    told: str = ""


def run(material: Material, folder: Path) -> Answer:
    """Runs the gate through its public contract: a spec in the environment, a verdict from the file, all findings from the evidence."""
    spec = _spec(material, folder)
    out = folder / "out"
    out.mkdir()
    text = spec if isinstance(spec, str) else spec.to_json()
    code = run_task(gates.MODULES, {"TASK_SPEC": text, "TASK_OUT": str(out)})
    if code != 0 or isinstance(spec, str):
        return Answer(code=BAD_SPEC if code == EXIT_BAD_SPEC else f"exit {code}")
    verdict = Verdict.from_bytes((out / "verdict.json").read_bytes(), spec)
    rows = json.loads((out / "evidence" / "findings.json").read_text())
    told = "\n".join(f"{row['outcome']}: {row['name']}: {row['why']}" for row in rows)
    return Answer(code="exit 0", outcome=verdict.outcome.word, findings={row["name"]: row["outcome"] for row in rows}, told=told)


def binary(material: Material, *, probabilities: bool) -> None:
    """One score a row for two classes: a probability, or a number of any size."""
    matrix = weights()[:, :1] * 3
    kind = "Sigmoid" if probabilities else "Identity"
    nodes = [onnx.helper.make_node("MatMul", ["X", "W"], ["raw"]), onnx.helper.make_node(kind, ["raw"], ["score"])]
    _one_number(material, "score", nodes, {"W": matrix})
    material.labels = (material.reference["score"][:, 0] > (0.5 if probabilities else 0.0)).astype(np.int64)


def regression(material: Material, *, off: float = 0.0, scale: float = 1.0) -> None:
    """One number a row, in units of `scale`, right but for a little noise; `off` is added to every answer."""
    matrix = weights()[:, :1] * np.float32(scale)
    nodes = [onnx.helper.make_node("MatMul", ["X", "W"], ["raw"]), onnx.helper.make_node("Add", ["raw", "off"], ["number"])]
    _one_number(material, "number", nodes, {"W": matrix, "off": np.float32(off * scale)})
    noise = np.random.default_rng(2).normal(size=len(material.labels)) * 0.1 * scale
    material.labels = (material.inputs["X"] @ matrix)[:, 0].astype(np.float64) + noise


def _one_number(material: Material, output: str, nodes: list[Any], constants: dict[str, np.ndarray]) -> None:
    """The model is another, and so is its source: four numbers in, one float called `output` out."""
    given, made = (onnx.helper.make_tensor_value_info(name, 1, ["N", size]) for name, size in (("X", SIZE), (output, 1)))
    material.model = graph_model(
        nodes, [given], [made], [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()]
    )
    material.set_signature("outputs", [{"name": output, "dtype": "FP32", "shape": [1]}])
    material.answers_as_the_model()


def _answered(model: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = answered(model, inputs)
    if found is None:
        raise ValueError("the model of this case must answer")
    return found


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
    if material.traffic is not None:
        (folder / "traffic.json").write_bytes(material.traffic)
        fields["inputs"] = {"traffic_uri": (folder / "traffic.json").as_uri(), "traffic_sha256": sha256(material.traffic)}
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
