"""Lays out and writes a bundle from what `export` has found out. The format itself is `validation.bundle`'s; no model is loaded here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery.findings import refused
from delivery.flavours import Flavour
from delivery.golden import Golden, write_golden
from delivery.registry import ModelVersion, SourceRun
from delivery.semantic_version import Subject
from delivery.triton_config import Port, render
from validation.bundle import BadBundle, Tensor, read_bundle, write_bundle
from validation.contract import Bundle, canonical_json, upload
from validation.onnx_file import Outline

if TYPE_CHECKING:
    import numpy as np

TOOLS = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came out of the sandbox, checked: the ONNX file's bytes and outline, and the source model's answers by output name."""

    onnx: bytes
    outline: Outline
    answers: Mapping[str, np.ndarray]

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """With every size known: ONNX leaves some open and the answers have them all."""
        return tuple(Tensor(name=each.name, dtype=each.dtype, shape=_row_shape(self.answers[each.name])) for each in self.outline.outputs)


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a bundle is made of, but for its semantic version."""

    version: ModelVersion
    source: SourceRun
    flavour: Flavour
    golden: Golden
    exported: Exported

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(Tensor(name=each.name, dtype=each.dtype, shape=each.shape) for each in self.golden.inputs)

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
        "golden_set": {"uri": golden.address.uri, "sha256": golden.address.sha256, "rows": golden.rows},
        "baselines": {},
    }


def tools(flavour: Flavour) -> dict[str, str]:
    """Versions of the tools here, and those that the model was trained with."""
    trained = {f"{name} (training)": version for name, version in flavour.trained_with.items()}
    return {name: version for name in TOOLS if (version := _installed(name))} | trained


def _lay_out(root: Path, material: Material, semantic_version: str) -> None:
    import numpy as np

    model = root / material.version.model
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(material.exported.onnx)
    (model / "config.pbtxt").write_text(_config(material))
    write_golden(material.golden, root / "golden")
    (root / "reference").mkdir()
    for name, answer in material.exported.answers.items():
        np.save(root / "reference" / f"{name}.npy", answer, allow_pickle=False)
    (root / "manifest.json").write_text(canonical_json(manifest(material, semantic_version)))


def _config(material: Material) -> str:
    inputs = [Port(name=each.name, dtype=each.dtype, shape=each.shape) for each in material.inputs]
    flat = {name for name, answer in material.exported.answers.items() if answer.ndim == 1}
    outputs = [Port(name=each.name, dtype=each.dtype, shape=each.shape, scalar=each.name in flat) for each in material.exported.outputs]
    return render(material.version.model, inputs, outputs)


def _row_shape(answer: np.ndarray) -> tuple[int, ...]:
    """The shape of one row as a server gives it: one plain value a row is [1]."""
    return tuple(answer.shape[1:]) or (1,)


def _rows(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    return [{"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} for each in tensors]


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
