"""Cases about bundle and spec: what must be refused before anything runs."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from conformance.cases import case
from conformance.material import Material, Member, graph_model
from made_bundles import MODEL
from onnx import TensorProto, helper

BUNDLE, MANIFEST, SPEC, POLICY = "The bundle's bytes", "The bundle's manifest and tables", "The spec", "The policy's section"
REFUSED = "exit 64"
MODEL_FILE = f"{MODEL}/1/model.onnx"


# The bundle's bytes


def bytes_case(id: str, wrong: str, change: Callable[[bytes], bytes]) -> None:  # noqa: A002
    def spoil(material: Material) -> None:
        material.tar = change

    case(BUNDLE, id, wrong, REFUSED)(spoil)


def members_case(id: str, wrong: str, change: Callable[[list[Member]], list[Member]]) -> None:  # noqa: A002
    def spoil(material: Material) -> None:
        material.repack = change

    case(BUNDLE, id, wrong, REFUSED)(spoil)


@case(BUNDLE, "digest", "the bytes have another sha256 than the spec says", REFUSED)
def _digest(material: Material) -> None:
    material.digest = "0" * 64


bytes_case("empty-file", "the bundle is an empty file", lambda _: b"")
bytes_case("no-tar", "the bundle is no tar", lambda _: b"no tar at all " * 1000)
bytes_case("truncated-tar", "the tar ends in the middle of a member", lambda data: data[: len(data) // 2])
bytes_case("gzipped-tar", "the tar is compressed: nobody knows what it grows to", gzip.compress)
bytes_case("tar-within-header", "the tar ends in the middle of a header", lambda data: data[:700])


def added(name: str, content: bytes = b"x", **fields: Any) -> Callable[[list[Member]], list[Member]]:
    def change(members: list[Member]) -> list[Member]:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        return [*members, (info, content)]

    return change


def without(name: str) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [each for each in members if each[0].name != name]


def changed(name: str) -> Callable[[list[Member]], list[Member]]:
    """One bit of the member's last byte is another."""

    def change(members: list[Member]) -> list[Member]:
        return [(info, data[:-1] + bytes([data[-1] ^ 1]) if info.name == name else data) for info, data in members]

    return change


members_case("parent-name", "a member's name climbs out: `../escaped`", added("../escaped"))
members_case("inner-parent-name", "a member's name climbs out in the middle", added("golden/../../escaped"))
members_case("absolute-name", "a member's name is absolute", added("/etc/penstock"))
members_case("dot-name", "a member's name has a dot for a folder", added("golden/./x"))
members_case("empty-part", "a member's name has an empty part", added("golden//x"))
members_case("backslash-name", "a member's name has a backslash", added("golden\\x"))
members_case("long-name", "a member's name has more than 200 characters", added("golden/" + "x" * 300))
members_case("symlink", "a member is a symbolic link", added("golden/x", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
members_case("hard-link", "a member is a hard link", added("golden/x", b"", type=tarfile.LNKTYPE, linkname="manifest.json"))
members_case("device", "a member is a device", added("golden/x", b"", type=tarfile.CHRTYPE))
members_case("fifo", "a member is a pipe", added("golden/x", b"", type=tarfile.FIFOTYPE))
members_case("folder", "a member is a folder", added("golden/x", b"", type=tarfile.DIRTYPE))
members_case("twice", "a member stands in the tar twice", lambda members: [*members, members[0]])
members_case("extra-file", "a file is in the tar and not in the manifest", added("golden/x"))
members_case("no-manifest", "the manifest is missing", without("manifest.json"))
for _name, _what in (
    (MODEL_FILE, "the model"),
    (f"{MODEL}/config.pbtxt", "Triton's configuration"),
    ("golden/inputs.parquet", "the golden rows"),
    ("golden/labels.parquet", "the labels"),
    ("reference/probabilities.npy", "the source model's answers"),
):
    members_case(f"lost-{Path(_name).name}", f"{_what} stand in the manifest and not in the tar", without(_name))
    members_case(f"changed-{Path(_name).name}", f"one bit of {_what} is another than the manifest's digest says", changed(_name))


# Manifest and tables


def with_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[list[Member]], list[Member]]:
    """Changes the manifest after the files got their digests."""
    return lambda members: [(info, _manifest(data, change) if info.name == "manifest.json" else data) for info, data in members]


def manifest_case(id: str, wrong: str, change: Callable[[dict[str, Any]], None]) -> None:  # noqa: A002

    def spoil(material: Material) -> None:
        material.repack = with_manifest(change)

    case(MANIFEST, id, wrong, REFUSED)(spoil)


def _manifest(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    row = json.loads(data)
    change(row)
    return json.dumps(row).encode()


@case(MANIFEST, "manifest-no-json", "the manifest is no JSON", REFUSED)
def _no_json(material: Material) -> None:
    material.repack = lambda members: [(info, b"{" if info.name == "manifest.json" else data) for info, data in members]


manifest_case("manifest-format", "the manifest has a format that nobody knows", lambda row: row.update(format=99))
manifest_case("manifest-unknown-key", "the manifest has an unknown key", lambda row: row.update(surprise=1))
manifest_case("manifest-no-signature", "the manifest has no signature", lambda row: row.pop("signature"))
manifest_case("manifest-no-outputs", "the signature has no outputs", lambda row: row["signature"].update(outputs=[]))
manifest_case(
    "manifest-dtype", "the signature names a type that does not exist", lambda row: row["signature"]["inputs"][0].update(dtype="FP12")
)
manifest_case("manifest-shape", "the signature has half a dimension", lambda row: row["signature"]["inputs"][0].update(shape=[2.5]))
manifest_case(
    "manifest-axis", "the signature opens an axis that is not there", lambda row: row["signature"]["inputs"][0].update(dynamic=[7])
)
manifest_case("manifest-rows-negative", "the golden set has -1 rows", lambda row: row["golden_set"].update(rows=-1))
manifest_case("manifest-rows-text", "the number of golden rows is a word", lambda row: row["golden_set"].update(rows="1000"))
manifest_case(
    "manifest-rows-more", "the manifest promises more golden rows than there are", lambda row: row["golden_set"].update(rows=5000)
)
manifest_case(
    "manifest-rows-fewer", "the manifest promises fewer golden rows than there are", lambda row: row["golden_set"].update(rows=10)
)


def file_case(id: str, wrong: str, change: Callable[[Path], Any]) -> None:  # noqa: A002
    """Changes the files before they get their digests: everything fits the manifest, and is wrong."""

    def spoil(material: Material) -> None:
        material.spoil.append(change)

    case(MANIFEST, id, wrong, REFUSED)(spoil)


def _strange_file(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/cron").write_bytes(b"* * * * *")


def _many_files(root: Path) -> None:
    for number in range(1001):
        (root / "golden" / f"{number}").write_bytes(b"")


def _half(name: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-100])


def _table(name: str, columns: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda root: pq.write_table(pa.table(columns), root / name)


def _external(root: Path) -> None:
    model = onnx.load_from_string((root / MODEL_FILE).read_bytes())
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../../etc/passwd")
    (root / MODEL_FILE).write_bytes(model.SerializeToString())


def _external_in_branch(root: Path) -> None:
    """The weight lies in a constant of a branch, where a look at the graph's own weights does not find it."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/shadow")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [helper.make_tensor_value_info("c", 1, [1])]
    )
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [1])
    (root / MODEL_FILE).write_bytes(graph_model([node], [condition], [helper.make_tensor_value_info("y", 1, [1])]))


file_case("strange-folder", "the bundle holds a folder that no bundle has", _strange_file)
file_case("many-files", "the bundle holds more than 1,000 files", _many_files)
file_case("external-weights", "the model keeps its weights in a file outside the bundle", _external)
file_case("external-weights-in-branch", "a branch of the model keeps a weight in a file outside the bundle", _external_in_branch)
file_case("inputs-half", "the table of golden rows is cut off", _half("golden/inputs.parquet"))
file_case("labels-half", "the table of labels is cut off", _half("golden/labels.parquet"))
file_case(
    "inputs-other-column",
    "the golden rows have another column than the model takes",
    _table("golden/inputs.parquet", {"Y": list(range(1000))}),
)
file_case("inputs-text", "the golden rows are words where the model takes numbers", _table("golden/inputs.parquet", {"X": ["word"] * 1000}))
file_case(
    "inputs-narrow",
    "a golden row has three numbers where the model takes four",
    _table("golden/inputs.parquet", {"X": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3000, np.float32)), 3)}),
)
file_case(
    "inputs-empty-cells",
    "golden rows have empty cells where the signature has numbers",
    _table("golden/inputs.parquet", {"X": pa.array([None] * 1000, pa.list_(pa.float32(), 4))}),
)
file_case("labels-empty-cells", "a label is an empty cell", _table("golden/labels.parquet", {"label": [None, *[1] * 999]}))
file_case("labels-other-column", "the labels' column has another name", _table("golden/labels.parquet", {"target": [1] * 1000}))
file_case(
    "labels-two-columns", "there are two columns of labels", _table("golden/labels.parquet", {"label": [1] * 1000, "other": [1] * 1000})
)
file_case("labels-fewer-rows", "there are fewer labels than golden rows", _table("golden/labels.parquet", {"label": [1] * 10}))
file_case("reference-half", "the source model's answers are cut off", _half("reference/probabilities.npy"))


@case(MANIFEST, "reference-pickle", "the source model's answers are a pickle, which would run code", REFUSED)
def _pickle(material: Material) -> None:
    material.reference["label"] = material.reference["label"].astype(object)


@case(MANIFEST, "reference-fewer-rows", "the source model answered fewer rows than there are", REFUSED)
def _fewer(material: Material) -> None:
    material.reference = {name: values[:-1] for name, values in material.reference.items()}


@case(MANIFEST, "slices-fewer-rows", "the table of slices has fewer rows than the golden set", REFUSED)
def _slices(material: Material) -> None:
    material.slices = {"region": ["north"] * 10}
    material.limits["slices"] = [{"column": "region", "values": ["north"]}]


# The spec


def spec_case(id: str, wrong: str, change: Callable[[dict[str, Any]], Any], answer: str = REFUSED) -> None:  # noqa: A002
    def raw(row: dict[str, Any]) -> str:
        changed = change(row)
        return json.dumps(row if changed is None else changed)

    def spoil(material: Material) -> None:
        material.spec["raw"] = raw

    case(SPEC, id, wrong, answer)(spoil)


def text_case(id: str, wrong: str, text: str) -> None:  # noqa: A002
    def spoil(material: Material) -> None:
        material.spec["raw"] = text

    case(SPEC, id, wrong, REFUSED)(spoil)


text_case("spec-empty", "the spec is empty", "")
text_case("spec-no-json", "the spec is no JSON", "{")
text_case("spec-list", "the spec is a list", "[]")
spec_case("spec-contract", "the spec speaks a version of the contract that the gate does not", lambda row: row.update(contract=2))
spec_case("spec-unknown-key", "the spec has an unknown key", lambda row: row.update(surprise=1))
spec_case("spec-no-model", "the spec names no model", lambda row: _dropped(row, "model"))
spec_case("spec-other-task", "the spec asks for a task that nobody knows", lambda row: row.update(task="rubber_stamp"))
spec_case("spec-no-bundle", "the spec names no bundle", lambda row: row.update(bundle=None))
spec_case("spec-no-digest", "the spec gives the bundle no digest", lambda row: _dropped(row["bundle"], "sha256"))
spec_case("spec-version-text", "the version is a word", lambda row: row.update(version="two"))
spec_case(
    "spec-scheme", "the bundle's address has a scheme that nobody reads", lambda row: row["bundle"].update(uri="ftp://nowhere/bundle.tar")
)
spec_case(
    "spec-nothing-there",
    "nothing is at the bundle's address: perhaps not yet",
    lambda row: row["bundle"].update(uri="file:///nowhere/bundle.tar"),
    "exit 1",
)
spec_case("spec-stable-no-bundle", "the stable version has no bundle", lambda row: row.update(stable={"version": 1}))


def _dropped(row: dict[str, Any], key: str) -> None:
    del row[key]


@case(SPEC, "stable-changed", "stable's bundle has another digest than the spec says", REFUSED)
def _stable_changed(material: Material) -> None:
    material.stable = material.twin()
    material.stable.digest = "0" * 64


# The policy's section


def number_case(id: str, wrong: str, change: Callable[[dict[str, Any]], Any]) -> None:  # noqa: A002
    """Puts a number into the section that JSON does not have and Python's reader takes."""

    def raw(row: dict[str, Any]) -> str:
        change(row["limits"])
        return json.dumps(row)

    def spoil(material: Material) -> None:
        material.spec["raw"] = raw

    case(POLICY, id, wrong, REFUSED)(spoil)


def policy_case(id: str, wrong: str, change: Callable[[dict[str, Any]], Any]) -> None:  # noqa: A002
    def spoil(material: Material) -> None:
        change(material.limits)

    case(POLICY, id, wrong, REFUSED)(spoil)


def _set(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda limits: limits.update(values)


def _metric(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda limits: limits["metrics"][0].update(values)


policy_case("policy-missing-key", "a limit is missing", lambda limits: limits.pop("min_rows"))
policy_case("policy-unknown-key", "a limit is misspelt", lambda limits: limits.update(min_row=limits["min_rows"]))
number_case("policy-nan", "a tolerance is NaN, which nothing exceeds", _set(atol=float("nan")))
number_case("policy-infinite", "a tolerance is infinite, which nothing exceeds", _set(rtol=float("inf")))
number_case("policy-metric-limit-nan", "the limit is NaN, below which nothing lies", _metric(at_least=float("nan")))
policy_case("policy-negative", "a tolerance is negative", _set(atol=-1e-4))
policy_case("policy-permille", "more than all rows may leave the tolerances", _set(rows_outside_permille=1001))
policy_case("policy-rows-text", "the least number of rows is a word", _set(min_rows="600"))
policy_case("policy-rows-true", "the least number of rows is `true`, which counts as 1", _set(min_rows=True))
policy_case("policy-rows-zero", "no rows at all would be enough", _set(min_rows=0))
policy_case("policy-no-metrics", "no metric is named, so nothing would be shown about the labels", _set(metrics=[]))
policy_case("policy-metric-unknown", "the metric does not exist", _metric(name="goodness"))
policy_case("policy-metric-twice", "the metric is named twice", lambda limits: limits["metrics"].append(dict(limits["metrics"][0])))
policy_case(
    "policy-metric-direction",
    "accuracy has an upper limit only",
    lambda limits: limits["metrics"][0].update(at_most=limits["metrics"][0].pop("at_least")),
)
policy_case("policy-metric-no-limit", "the metric has no limit", lambda limits: limits["metrics"][0].pop("at_least"))
policy_case("policy-metric-percent", "the limit is 85, for 85 %", _metric(at_least=85))
policy_case("policy-margin-one", "the margin is 1: every model would pass", _metric(within_training=1.0))
policy_case("policy-margin-zero", "the margin is 0: no number of rows could show it", _metric(not_worse_than_stable=0.0))
policy_case("policy-error-zero", "no error is allowed, which no test can keep", _set(error=0.0))
policy_case("policy-error-half", "the error is that of a coin", _set(error=0.5))
policy_case("policy-slice-empty", "a slice has no values", _set(slices=[{"column": "region", "values": []}]))
policy_case("policy-slice-twice", "a slice names a value twice", _set(slices=[{"column": "region", "values": ["north", "north"]}]))
policy_case(
    "policy-tolerance-twice",
    "an output has two tolerances",
    _set(tolerances=[{"output": "label", "atol": 0.1, "rtol": 0.1, "rows_outside_permille": 1}] * 2),
)
policy_case("policy-narrow-unknown", "serving narrows to a type that the gate does not know", _set(narrowed_to=["float4"]))
policy_case("policy-group", "accuracy is given queries to group by", _metric(group="region"))
policy_case("policy-age", "the golden set may be -1 days old", _set(max_age_days=-1.0))
