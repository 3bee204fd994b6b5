"""The bundle's format: what is written is read back, and nothing else is."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_bundles import MODEL, SIZE, answers, classifier, golden_rows, make_bundle, weights
from onnx import TensorProto, helper

from validation import bundle as bundle_module
from validation.bundle import BadBundle, Manifest, read_array, read_bundle, write_bundle
from validation.contract import BadSpec, Bundle, sha256


def repacked(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Bundle:
    """A tar of exactly these members, with its right digest: what only reading can find."""
    target = tmp_path / "repacked.tar"
    with tarfile.open(target, "w") as tar:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return Bundle(uri=target.as_uri(), sha256=sha256(target.read_bytes()))


def members_of(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


def test_a_bundle_reads_back_as_it_was_written(tmp_path):
    """Inputs, labels and reference come back with their values, dtypes and shapes."""
    rows = golden_rows(50)
    with read_bundle(make_bundle(tmp_path, rows=rows)) as bundle:
        assert (bundle.manifest.model, bundle.manifest.rows) == (MODEL, 50)
        assert bundle.inputs()["X"].dtype == np.float32
        assert (bundle.inputs()["X"] == rows.inputs).all()
        assert (bundle.labels() == rows.labels).all()
        assert bundle.reference().keys() == {"label", "probabilities"}
        assert (bundle.reference()["probabilities"] == answers(rows.inputs, weights())["probabilities"]).all()
        assert bundle.model_path.read_bytes() == classifier(weights())


def test_leaving_a_bundle_removes_its_directory(tmp_path):
    """An open bundle lives in a directory of its own, which is gone afterwards."""
    with read_bundle(make_bundle(tmp_path)) as bundle:
        assert bundle.model_directory.is_dir()
    assert not bundle.root.exists()


def test_equal_content_gives_equal_bytes(tmp_path):
    """Names are sorted and times, owners and modes are fixed, so that the digest speaks of the content only."""
    first = make_bundle(tmp_path / "a")
    second = make_bundle(
        tmp_path / "b", change=lambda root: (os.utime(root / "golden/inputs.parquet", (1, 1)), (root / MODEL).chmod(0o700))
    )
    assert first.sha256 == second.sha256
    with tarfile.open(tmp_path / "a/bundle.tar") as tar:
        members = tar.getmembers()
    assert [each.name for each in members] == sorted(each.name for each in members)
    assert {(each.mtime, each.uid, each.gid, each.mode, each.uname) for each in members} == {(0, 0, 0, 0o644, "")}


def test_another_digest_is_refused(tmp_path):
    """Bytes that do not have the spec's digest are not looked at, and the error ends the task without a retry."""
    bundle = make_bundle(tmp_path)
    with pytest.raises(BadBundle, match="refusing to read it") as caught:
        read_bundle(Bundle(uri=bundle.uri, sha256="0" * 64))
    assert isinstance(caught.value, BadSpec)


def test_a_missing_bundle_is_worth_a_retry(tmp_path):
    """An address that cannot be read is an error of the moment, not of the bundle."""
    with pytest.raises(OSError, match="nowhere"):
        read_bundle(Bundle(uri=(tmp_path / "nowhere.tar").as_uri(), sha256="0" * 64))


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", f"{MODEL}/../../up", "./manifest.json", f"{MODEL}//x", "a\\b", "x" * 201])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    """Absolute names, dots, empty parts and overlong names never reach the disk."""
    make_bundle(tmp_path)
    with pytest.raises(BadBundle, match="not a plain relative name"):
        read_bundle(repacked(tmp_path, [*members_of(tmp_path / "bundle.tar"), (tarfile.TarInfo(name), b"x")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_plain_files_are_unpacked(tmp_path, kind):
    """Links, folders and devices are refused by name."""
    make_bundle(tmp_path)
    member = tarfile.TarInfo(f"{MODEL}/odd")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(BadBundle, match=f"{MODEL}/odd: not a plain file"):
        read_bundle(repacked(tmp_path, [*members_of(tmp_path / "bundle.tar"), (member, b"")]))


def test_a_name_twice_is_refused(tmp_path):
    """Of two members with one name, which one counts is a reader's whim."""
    make_bundle(tmp_path)
    members = members_of(tmp_path / "bundle.tar")
    with pytest.raises(BadBundle, match="twice"):
        read_bundle(repacked(tmp_path, [*members, members[-1]]))


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    """The number of members is bounded."""
    monkeypatch.setattr(bundle_module, "LIMIT_FILES", 3)
    with pytest.raises(BadBundle, match="more than 3 files"):
        read_bundle(make_bundle(tmp_path))


def test_too_many_bytes_are_refused(tmp_path, monkeypatch):
    """The size is bounded before anything is unpacked."""
    monkeypatch.setattr(bundle_module, "LIMIT_BYTES", 100)
    with pytest.raises(BadBundle, match="larger than 100 bytes"):
        read_bundle(make_bundle(tmp_path))


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\x1f\x8b" + b"\0" * 600])
def test_what_is_no_tar_is_refused(tmp_path, data):
    """Empty, foreign and compressed bytes are no bundle."""
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(BadBundle):
        read_bundle(Bundle(uri=(tmp_path / "b").as_uri(), sha256=sha256(data)))


def test_a_changed_file_is_found(tmp_path):
    """Every member must have the digest that the manifest gives it."""
    make_bundle(tmp_path)
    members = [(each, data + b" " if each.name.endswith("config.pbtxt") else data) for each, data in members_of(tmp_path / "bundle.tar")]
    with pytest.raises(BadBundle, match=r"config\.pbtxt has sha256"):
        read_bundle(repacked(tmp_path, members))


def test_manifest_and_files_agree_both_ways(tmp_path):
    """A promised file that is missing and a file that nobody promised are both refused by name."""
    make_bundle(tmp_path)
    members = members_of(tmp_path / "bundle.tar")
    with pytest.raises(BadBundle, match=r"reference/label\.npy: in the manifest and not in the bundle"):
        read_bundle(repacked(tmp_path, [each for each in members if each[0].name != "reference/label.npy"]))
    with pytest.raises(BadBundle, match="golden/extra: in the bundle and not in the manifest"):
        read_bundle(repacked(tmp_path, [*members, (tarfile.TarInfo("golden/extra"), b"x")]))


@pytest.mark.parametrize("name", [f"{MODEL}/1/model.onnx", f"{MODEL}/config.pbtxt", "golden/labels.parquet"])
def test_a_bundle_has_all_its_parts(tmp_path, name):
    """A bundle without model, configuration or golden rows is refused, even when its manifest agrees."""
    with pytest.raises(BadBundle, match=f"{name} is missing"):
        read_bundle(make_bundle(tmp_path, change=lambda root: (root / name).unlink()))


def test_a_bundle_has_no_other_parts(tmp_path):
    """Whatever lies elsewhere than the format says is refused."""
    with pytest.raises(BadBundle, match=r"setup\.py: a bundle holds"):
        read_bundle(make_bundle(tmp_path, change=lambda root: (root / "setup.py").write_text("")))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"unknown": 1}, "unknown"),
        ({"signature": {"inputs": [], "outputs": []}}, "at least one input"),
        ({"signature": {"inputs": [{"name": "X", "dtype": "FLOAT", "shape": [4]}], "outputs": []}}, "FLOAT"),
        ({"golden_set": {"uri": "x", "sha256": "y", "rows": "600"}}, "whole number"),
        ({"golden_set": {}}, "rows"),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path, change, word):
    """Unknown keys, dtypes and row counts of another kind are errors that name them."""
    with pytest.raises(BadBundle, match=word):
        read_bundle(make_bundle(tmp_path, manifest=change))


@given(st.binary() | st.text().map(str.encode) | st.dictionaries(st.text(), st.integers()).map(lambda row: json.dumps(row).encode()))
def test_any_bytes_as_manifest_are_refused_in_one_way(data):
    """Whatever stands in manifest.json, reading it ends in a manifest or in `BadBundle`."""
    with pytest.raises(BadBundle, match=r"manifest\.json"):
        Manifest.from_json(data)


def spoil(tmp_path, name, table):
    return read_bundle(make_bundle(tmp_path, change=lambda root: pq.write_table(table, root / name)))


def test_row_counts_must_agree(tmp_path):
    """Labels, inputs and reference have the manifest's number of rows, or are refused by name."""
    with spoil(tmp_path, "golden/labels.parquet", pa.table({"label": [1, 2]})) as bundle, pytest.raises(BadBundle, match="2 rows"):
        bundle.labels()
    short = {name: values[:-1] for name, values in answers(golden_rows().inputs, weights()).items()}
    with (
        read_bundle(make_bundle(tmp_path / "b", reference=short)) as bundle,
        pytest.raises(BadBundle, match=r"label\.npy has shape \[599\]"),
    ):
        bundle.reference()


def test_empty_cells_are_refused(tmp_path):
    """A missing label or input is no value."""
    table = pa.table({"label": pa.array([None, *range(599)])})
    with spoil(tmp_path, "golden/labels.parquet", table) as bundle, pytest.raises(BadBundle, match="empty cells"):
        bundle.labels()


@pytest.mark.parametrize(
    "column", [pa.array([0.5] * 600), pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 1800), 3), pa.array(["a"] * 600)]
)
def test_inputs_must_fit_the_signature(tmp_path, column):
    """A column of another size or kind than the signature's input is refused, not reshaped by guess."""
    with spoil(tmp_path, "golden/inputs.parquet", pa.table({"X": column})) as bundle, pytest.raises(BadBundle, match="does not fit"):
        bundle.inputs()


def test_other_columns_are_refused(tmp_path):
    """The golden inputs have the model's inputs as columns, no fewer and no more."""
    with spoil(tmp_path, "golden/inputs.parquet", pa.table({"Y": [0.5] * 600})) as bundle, pytest.raises(BadBundle, match=r"\['Y'\]"):
        bundle.inputs()


def test_a_reference_is_never_unpickled(tmp_path):
    """Arrays of objects would run code when read; they are refused."""
    reference = {"label": np.array([print] * 600, dtype=object)}
    with read_bundle(make_bundle(tmp_path, reference=reference)) as bundle, pytest.raises(BadBundle, match=r"reference/label\.npy"):
        bundle.reference()


def header(shape: str, dtype: str = "<f4") -> bytes:
    """The start of an .npy file of format 1.0."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        header("(600, 1099511627776)"),
        header("(600, 3)") + bytes(600 * 3 * 4 - 1),
        header("(600, 3)") + bytes(600 * 3 * 4 + 1),
        header("(600, -3)"),
        header("(600,)", "|O") + pickle.dumps(1),
        header("(600, 3)")[:40],
        b"",
    ],
)
def test_an_array_holds_what_its_header_says(tmp_path, data):
    """A few bytes that promise terabytes are refused before numpy makes room for them."""
    bundle = make_bundle(tmp_path, change=lambda root: (root / "reference/label.npy").write_bytes(data))
    with read_bundle(bundle) as opened, pytest.raises(BadBundle, match=r"reference/label\.npy"):
        opened.reference()


@pytest.mark.parametrize("values", [np.arange(6), np.zeros((3, 0)), np.array(["a", "äö"]), np.ones((1, 1)), np.ones((2, 2), order="F")])
def test_honest_arrays_are_read(values):
    """Every shape, order and text."""
    sink = io.BytesIO()
    np.save(sink, values)
    size = sink.tell()
    sink.seek(0)
    assert np.array_equal(read_array(sink, size), values)


def test_rows_are_counted_before_they_are_unpacked(tmp_path):
    """Parquet packs millions of equal rows into a few bytes."""
    many = pa.table({"label": pa.array(np.zeros(5_000_000, np.int64))})
    with spoil(tmp_path, "golden/labels.parquet", many) as opened, pytest.raises(BadBundle, match="5000000 rows"):
        opened.labels()


def test_a_manifest_without_end_is_refused():
    """Brackets in brackets would fill the stack of the reader."""
    with pytest.raises(BadBundle, match="RecursionError"):
        Manifest.from_json(b'{"a":' + b"[" * 200_000)


def external(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../secrets"
    return tensor


def hidden_models():
    """Models with external weights as initializer, as a node's attribute, inside a branch, and in a function."""
    plain = onnx.load_from_string(classifier(weights()))
    weight = external(helper.make_tensor("E", TensorProto.FLOAT, [SIZE], np.zeros(SIZE, np.float32).tobytes(), raw=True))
    constant = helper.make_node("Constant", [], ["c"], value=weight)
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [SIZE])])
    function = helper.make_function("own", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    for place in ("initializer", "attribute", "branch", "function"):
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        if place == "initializer":
            model.graph.initializer.append(weight)
        elif place == "attribute":
            model.graph.node.append(constant)
        elif place == "branch":
            model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
        else:
            model.functions.append(function)
        yield place, model.SerializeToString()


@pytest.mark.parametrize(("place", "model"), list(hidden_models()))
def test_weights_outside_the_file_are_refused(tmp_path, place, model):
    """External data could name any file of the machine that loads the model; it is found wherever tensors can stand."""
    with pytest.raises(BadBundle, match="external data"):
        read_bundle(make_bundle(tmp_path, model=model))


def test_a_group_does_not_hide_external_weights(tmp_path):
    """Parsers skip groups, so a model must not get past the check by having one before its graph."""
    model = b"\xa3\x06\xa4\x06" + dict(hidden_models())["initializer"]  # field 100, start and end of a group
    with pytest.raises(BadBundle, match="external data"):
        read_bundle(make_bundle(tmp_path, model=model))


@given(st.binary())
def test_bytes_that_are_no_onnx_are_left_to_the_gate(data):
    """Searching any bytes ends: found, not found, or no protobuf; never otherwise."""
    try:
        found = bundle_module._has_external_data(memoryview(data), "model")
    except ValueError:
        found = False
    assert found in {True, False}


def test_writing_fills_in_the_digests(tmp_path):
    """`write_bundle` counts the files itself, so that a manifest cannot promise what is not there."""
    make_bundle(tmp_path)
    (tmp_path / "root/reference/label.npy").unlink()
    digest = write_bundle(tmp_path / "root", tmp_path / "again.tar")
    with read_bundle(Bundle(uri=(tmp_path / "again.tar").as_uri(), sha256=digest)) as bundle:
        assert "reference/label.npy" not in bundle.manifest.files
