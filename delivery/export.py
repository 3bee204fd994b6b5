"""The task `export`: turns a registered model into a bundle, the one thing that all later tasks see of it.

Downloads model and golden set, lets `delivery.export_child` load, question and convert the model behind the sandbox's walls, looks at what
was left there as at a stranger's data, and writes the bundle to the source run's artifacts. The model itself is never loaded in this
process. The same version exported twice gives the same bytes. A framework that is heavy has an environment of its own (`Export` in
`validation.policy`); a flavour that this environment cannot load is refused by name.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from delivery import sandbox
from delivery.artifacts import insist_on_bounded, insist_on_plain
from delivery.bundle_layout import Exported, Material, publish, tools
from delivery.findings import Refusal, failed, passed, refused
from delivery.flavours import Flavour, read_flavour
from delivery.golden import Golden, read_golden
from delivery.registry import SEMANTIC_VERSION, ModelVersion, NoGoldenSet, NotRegistered, Registry
from delivery.semantic_version import next_version
from validation.bundle import Manifest, Tensor, read_array, read_bundle
from validation.contract import BadSpec, Decision, Finding, Spec
from validation.onnx_file import LIMIT_BYTES, UNKNOWN, BadModel, OnnxTensor, Outline, check_onnx_bytes
from validation.probes import Arrays, probe_rows

if TYPE_CHECKING:
    import numpy as np

CHILD = "delivery.export_child"
ANSWER_LIMIT_BYTES = 1 << 30
OUTPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")  # becomes a file name in the bundle
STAGES = {
    "load": ("the model cannot be loaded", "log it with versions like those of the environment that the policy names in [export]"),
    "answer": ("the model cannot answer the golden rows", "check signature and golden set against the model"),
    "convert": (
        "the model cannot be written as ONNX",
        "replace what the converter does not know, or log the model as ONNX yourself",
    ),
}


def run(spec: Spec, evidence: Path) -> Decision:
    return export(spec, evidence, Registry.from_env(), sandbox.Limits())


def export(spec: Spec, evidence: Path, registry: Registry, limits: sandbox.Limits) -> Decision:
    """Needs claim's outputs. What is wrong with model or golden set is a failed finding; what is wrong around them raises.

    `BadSpec` is raised when claim's outputs are missing, and as `sandbox.MissingWalls` when this place cannot wall a model in.
    """
    if not spec.inputs.get("artifacts_uri"):
        raise BadSpec("export needs inputs.artifacts_uri, which claim puts out")
    with sandbox.workplace() as place:
        try:
            return _export(spec, evidence, registry, place, limits)
        except Refusal as refusal:
            return refusal.decision
        except BadModel as error:
            return Decision(findings=(failed("onnx", str(error), advice=error.advice),))
        except (NotRegistered, NoGoldenSet) as error:
            return Decision(findings=(failed("source", str(error), advice="the registry must name run, files and golden set"),))


def _export(spec: Spec, evidence: Path, registry: Registry, place: sandbox.Workplace, limits: sandbox.Limits) -> Decision:
    version = registry.version(spec.model, spec.version)
    source, flavour = registry.run(version.run_id), read_flavour(_fetched(version, registry, place))
    golden = read_golden(registry.golden_set(spec.model), flavour.inputs, _named(spec))
    golden = replace(golden, written_unix_s=registry.golden_set_written(spec.model))
    _insist_on_rows(golden)
    probes = probe_rows(golden.arrays)
    _lay_in(flavour, golden, probes, place)
    ended = _sandboxed(flavour, place, limits, evidence)
    kept = _kept(place, flavour, version)
    exported = _exported(place, golden, probes)
    material = Material(version=version, source=source, flavour=flavour, golden=golden, exported=exported, kept=kept)
    semantic_version = next_version(material.subject, _stable_manifest(spec), _taken(version, registry))
    bundle = publish(material, semantic_version, f"{spec.inputs['artifacts_uri']}/bundle.tar")
    why = (
        f"{flavour.kind} model as ONNX opset {exported.outline.opset}; the source model answered {golden.rows} golden rows "
        f"and {_count(exported.probes)} of {_count(probes)} probes"
    )
    outputs = {"bundle_uri": bundle.uri, "bundle_sha256": bundle.sha256, "semantic_version": semantic_version}
    return Decision(findings=(passed("exported", why), _walls(ended)), outputs=outputs)


def _fetched(version: ModelVersion, registry: Registry, place: sandbox.Workplace) -> Path:
    """The model's files below the sandbox's inputs."""
    files, size = registry.size(version)
    if not files:
        raise refused("artifacts", f"{version.name} has no artifacts", "log the model again and register that")
    insist_on_bounded(files, size, version.name)
    with tempfile.TemporaryDirectory(prefix="download-", dir=place.root) as folder:
        fetched = registry.download(version, Path(folder))
        shutil.move(fetched, place.inputs / "model")
    model = place.inputs / "model"
    if not model.is_dir() or model.is_symlink():
        raise refused("artifacts", f"the artifact of {version.name} is a single file and not a model", "register what log_model wrote")
    insist_on_plain(model, version.name)
    return model


def _named(spec: Spec) -> tuple[str, ...]:
    """Columns of the golden set that the policy names and the gate will need."""
    columns = spec.limits.get("columns", [])
    if not isinstance(columns, (list, tuple)) or not all(isinstance(each, str) for each in columns):
        raise BadSpec(f"limits.columns is {columns!r}; expected a list of names")
    return tuple(columns)


def _kept(place: sandbox.Workplace, flavour: Flavour, version: ModelVersion) -> Path | None:
    """The folder that goes into the bundle; looked at once more, because a lenient place may have let the model at it."""
    if flavour.kept is None:
        return None
    insist_on_plain(place.inputs / "model" / flavour.kept, version.name)
    return place.inputs / "model" / flavour.kept


def _insist_on_rows(golden: Golden) -> None:
    for each in golden.inputs:
        if not each.shape:
            advice = "give it a second dimension: servers take [rows, values]"
            raise refused("signature", f"input {each.name} has shape [rows] only", advice)


def _sandboxed(flavour: Flavour, place: sandbox.Workplace, limits: sandbox.Limits, evidence: Path) -> sandbox.Ended:
    """Runs the child; its log and the tools' versions are evidence whatever comes of it."""
    ended = sandbox.run(CHILD, place, limits)
    (evidence / "sandbox.log").write_text(ended.log)
    (evidence / "tools.json").write_text(json.dumps(tools(flavour), indent=1))
    _insist_on_end(ended, place)
    return ended


def _exported(place: sandbox.Workplace, golden: Golden, probes: Arrays) -> Exported:
    """What the child left, looked at as a stranger's data."""
    try:
        data = sandbox.read_result(place, "model.onnx", LIMIT_BYTES)
        sketch = check_onnx_bytes(data)
        answers = {each.name: _answer(place, f"{number}.npy", each, golden.rows) for number, each in enumerate(sketch.outputs)}
        probed = _places(place, _count(probes))
        edges = {each.name: _answer(place, f"probe-{number}.npy", each, len(probed)) for number, each in enumerate(sketch.outputs)}
    except sandbox.NoResult as error:
        raise refused("exported", f"the model's own code left no result: {error}", "the evidence holds the sandbox's log") from error
    _insist_on_inputs(sketch, golden)
    asked = {name: values[probed] for name, values in probes.items()}
    left_out = _count(probes) - len(probed)
    return Exported(onnx=data, outline=sketch, answers=answers, probes=asked, probe_answers=edges, probes_left_out=left_out)


def _lay_in(flavour: Flavour, golden: Golden, probes: Arrays, place: sandbox.Workplace) -> None:
    import numpy as np

    signed = {each.name: each.shape for each in flavour.inputs}
    job = {**asdict(flavour), "inputs": [asdict(each) | {"open_shape": signed[each.name]} for each in golden.inputs]}
    (place.inputs / "job.json").write_text(json.dumps(job))
    for folder, arrays in (("golden", golden.arrays), ("probes", probes)):
        (place.inputs / folder).mkdir()
        for number, each in enumerate(golden.inputs):
            np.save(place.inputs / folder / f"{number}.npy", arrays[each.name], allow_pickle=False)


def _insist_on_end(ended: sandbox.Ended, place: sandbox.Workplace) -> None:
    if ended.exit_code != 0:
        advice = "the evidence holds its log; a model that needs more time or memory than the sandbox has cannot be delivered"
        raise refused("exported", f"loading and converting the model {ended.how}", advice)
    if trouble := _trouble(place):
        what, advice = STAGES[trouble[0]]
        raise refused("exported", f"{what}: {trouble[1]}", advice)


def _trouble(place: sandbox.Workplace) -> tuple[str, str] | None:
    """What the sandboxed module says that went wrong; anything odd in its words counts as no words."""
    try:
        row = json.loads(sandbox.read_result(place, "trouble.json", 10_000))
        stage, why = str(row["stage"]), "".join(letter for letter in str(row["why"])[:400] if letter.isprintable())
    except (sandbox.NoResult, ValueError, KeyError, TypeError):
        return None
    return (stage, why) if stage in STAGES else None


def _places(place: sandbox.Workplace, probes: int) -> np.ndarray:
    """Which probes the source model answered, in their order."""
    import numpy as np

    places = _array(place, "probes.npy", "the answered probes")
    ordered = places.ndim == 1 and places.dtype == np.int64 and bool((np.diff(places) > 0).all())
    if not ordered or not ((places >= 0) & (places < probes)).all():
        raise sandbox.NoResult(f"the answered probes are {places.dtype} {list(places.shape)}; expected places below {probes}, in order")
    return places


def _array(place: sandbox.Workplace, file: str, what: str) -> np.ndarray:
    data = sandbox.read_result(place, file, ANSWER_LIMIT_BYTES)
    try:
        return read_array(io.BytesIO(data), len(data))
    except (ValueError, EOFError, OSError) as error:
        raise sandbox.NoResult(f"{what} cannot be read: {error}") from error


def _answer(place: sandbox.Workplace, file: str, output: OnnxTensor, rows: int) -> np.ndarray:
    """The source model's answers for one output: data of the right kind, one row for each row asked. Never a pickle."""
    import numpy as np

    if not OUTPUT_NAME.fullmatch(output.name):
        raise refused("onnx", f"output {output.name[:100]!r} cannot be a file name", f"rename it to match {OUTPUT_NAME.pattern}")
    answer = _array(place, file, f"the answers for output {output.name}")
    wanted = Tensor(name=output.name, dtype=output.dtype, shape=()).numpy_dtype
    same = answer.dtype.kind == "U" if wanted == "object" else answer.dtype == np.dtype(wanted)
    if not same or answer.shape[:1] != (rows,) or not _same_shape(answer.shape[1:], output.row_shape):
        found = f"{answer.dtype} {list(answer.shape)}"
        raise sandbox.NoResult(f"the answers for output {output.name} are {found}; expected {output.dtype} for {rows} rows")
    return answer


def _count(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _same_shape(found: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(found) == len(declared) and all(size in {UNKNOWN, each} for each, size in zip(found, declared, strict=True))


def _insist_on_inputs(sketch: Outline, golden: Golden) -> None:
    found = {each.name: (each.dtype, each.row_shape) for each in sketch.inputs}
    for each in golden.inputs:
        dtype, shape = found.pop(each.name, ("nothing", ()))
        if dtype != each.dtype or not _same_shape(each.shape, shape):
            why = f"the ONNX file takes {dtype} {list(shape)} as {each.name}; the golden set has {each.dtype} {list(each.shape)}"
            raise refused("onnx", why)
    if found:
        raise refused("onnx", f"the ONNX file takes inputs that nothing feeds: {', '.join(found)[:200]}")


def _walls(ended: sandbox.Ended) -> Finding:
    """Which walls stood. In a lenient place some may be missing: no fault of the model, and said, so that the place can be made better."""
    stood = ", ".join(sandbox.WALLS[name] for name in ended.walls) or "no walls"
    if not ended.missing_walls:
        return passed("sandbox", f"the model was loaded with {stood}")
    why = (
        f"the kernel refused the walls {', '.join(ended.missing_walls)}; the model was loaded with limits, an empty environment and {stood}"
    )
    return passed("sandbox", why, advice="allow unprivileged user namespaces, or run export in a container without network")


def _stable_manifest(spec: Spec) -> Manifest | None:
    if spec.stable is None:
        return None
    with read_bundle(spec.stable.bundle) as opened:
        return opened.manifest


def _taken(version: ModelVersion, registry: Registry) -> set[str]:
    """Semantic versions that other versions of the model have; its own from an earlier delivery does not count."""
    others = [each for each in registry.versions(version.model) if each.number != version.number]
    return {each.tags[SEMANTIC_VERSION] for each in others if SEMANTIC_VERSION in each.tags}
