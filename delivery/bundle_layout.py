"""Lays out and writes a bundle from what `export` has found out. The format itself is `validation.bundle`'s; no model is loaded here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery.findings import refused
from delivery.flavours import Flavour
from delivery.golden import Golden, write_golden, write_inputs
from delivery.registry import ModelVersion, SourceRun
from delivery.semantic_version import Subject
from delivery.triton_config import Port, render
from validation.bundle import BadBundle, Tensor, read_bundle, write_bundle
from validation.contract import Bundle, canonical_json, upload
from validation.drift import sketch_batches
from validation.onnx_file import Outline

if TYPE_CHECKING:
    import numpy as np

TOOLS = (
    *("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "xgboost-cpu", "lightgbm", "onnxmltools"),
    *("torch", "onnxscript", "tensorflow-cpu", "keras", "tf2onnx"),
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came out of the sandbox, checked: the ONNX file's bytes and outline, and the source model's answers by output name.

    `probes` are the probe rows that it answered; `probes_left_out` is how many it refused.
    """

    onnx: bytes
    outline: Outline
    answers: Mapping[str, np.ndarray]
    probes: Mapping[str, np.ndarray]
    probe_answers: Mapping[str, np.ndarray]
    probes_left_out: int

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """With every size known: ONNX leaves some open and the answers have them all."""
        return tuple(
            Tensor(name=each.name, dtype=each.dtype, shape=_row_shape(self.answers[each.name]), dynamic=each.open_axes)
            for each in self.outline.outputs
        )


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a bundle is made of, but for its semantic version. `kept` is a folder of the source model that goes along as it is."""

    version: ModelVersion
    source: SourceRun
    flavour: Flavour
    golden: Golden
    exported: Exported
    kept: Path | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """In the order of the golden set's inputs; which axes are open, the ONNX file says."""
        open_axes = {each.name: each.open_axes for each in self.exported.outline.inputs}
        return tuple(
            Tensor(name=each.name, dtype=each.dtype, shape=each.shape, dynamic=open_axes[each.name]) for each in self.golden.inputs
        )

    @property
    def baselines(self) -> dict[str, Any]:
        """Sketches by column of the golden inputs and of the source model's answers to them, to compare later samples with."""
        ways = {"inputs": self.golden.arrays, "outputs": self.exported.answers}
        return {way: {name: each.to_json() for name, each in sketch_batches([arrays]).items()} for way, arrays in ways.items()}

    @property
    def subject(self) -> Subject:
        return Subject(inputs=self.inputs, outputs=self.exported.outputs, source_run=self.source.run_id)


def publish(material: Material, semantic_version: str, uri: str) -> Bundle:
    """Packs the bundle, reads it back as every later task will, and only then puts it to `uri`. Equal material gives equal bytes."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        root, tar = Path(folder) / "content", Path(folder) / "bundle.tar"
        _lay_out(root, material, semantic_version)
        digest = write_bundle(root, tar)
        _read_back(Bundle(uri=tar.as_uri(), sha256=digest))
        upload(tar, uri)
    return Bundle(uri=uri, sha256=digest)


def manifest(material: Material, semantic_version: str) -> dict[str, Any]:
    """The content of `manifest.json`, but for what `write_bundle` fills in."""
    golden, sketch = material.golden, material.exported.outline
    return {
        "model": material.version.model,
        "version": material.version.number,
        "semantic_version": semantic_version,
        "signature": {"inputs": _rows(material.inputs), "outputs": _rows(material.exported.outputs)},
        "opset": sketch.opset,
        "ir_version": sketch.ir_version,
        "source_run": material.source.run_id,
        "git_commit": material.source.git_commit,
        "training_metrics": dict(material.source.metrics),
        "framework_versions": tools(material.flavour),
        "golden_set": _golden_set(golden, material.exported),
        "baselines": material.baselines,
    }


def _golden_set(golden: Golden, exported: Exported) -> dict[str, Any]:
    probes = len(next(iter(exported.probes.values())))
    row = {"uri": golden.address.uri, "sha256": golden.address.sha256, "rows": golden.rows}
    row |= {"probes": probes, "probes_left_out": exported.probes_left_out}
    return row if golden.written_unix_s is None else row | {"written_unix_s": golden.written_unix_s}


def tools(flavour: Flavour) -> dict[str, str]:
    """Versions of the tools here, and those that the model was trained with."""
    trained = {f"{name} (training)": version for name, version in flavour.trained_with.items()}
    return {name: version for name in TOOLS if (version := _installed(name))} | trained


def _lay_out(root: Path, material: Material, semantic_version: str) -> None:
    model = root / material.version.model
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(material.exported.onnx)
    (model / "config.pbtxt").write_text(_config(material))
    write_golden(material.golden, root / "golden")
    _write_answers(material.exported.answers, root / "reference")
    write_inputs(material.golden.inputs, material.exported.probes, root / "probes")
    _write_answers(material.exported.probe_answers, root / "probes" / "reference")
    if material.kept is not None:
        shutil.copytree(material.kept, root / "source" / material.kept.name)
    (root / "manifest.json").write_text(canonical_json(manifest(material, semantic_version)))


def _write_answers(answers: Mapping[str, np.ndarray], folder: Path) -> None:
    import numpy as np

    folder.mkdir()
    for name, answer in answers.items():
        np.save(folder / f"{name}.npy", answer, allow_pickle=False)


def _config(material: Material) -> str:
    flat = {name for name, answer in material.exported.answers.items() if answer.ndim == 1}
    inputs, outputs = ([_port(each, flat) for each in tensors] for tensors in (material.inputs, material.exported.outputs))
    return render(material.version.model, inputs, outputs)


def _port(tensor: Tensor, flat: Collection[str]) -> Port:
    return Port(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, scalar=tensor.name in flat, open_axes=tensor.dynamic)


def _row_shape(answer: np.ndarray) -> tuple[int, ...]:
    """The shape of one row as a server gives it: one plain value a row is [1]."""
    return tuple(answer.shape[1:]) or (1,)


def _rows(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    return [
        {"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} | ({"dynamic": list(each.dynamic)} if each.dynamic else {})
        for each in tensors
    ]


def _installed(name: str) -> str:
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return ""


def _read_back(bundle: Bundle) -> None:
    try:
        with read_bundle(bundle) as opened:
            opened.inputs(), opened.labels(), opened.reference()
    except BadBundle as error:
        raise refused("bundle", f"the model does not make a bundle that can be read back: {error}") from error
