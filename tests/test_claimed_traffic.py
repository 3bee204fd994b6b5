"""The sample of traffic on its way: kept by the recorder, sketched by `claim`, read by the gate."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delivery.claimed_traffic import traffic_outputs
from delivery.recorder_client import RecorderUnreachable
from delivery.sample import Sample, parquet
from validation.contract import BadSpec, Spec, download
from validation.traffic_sample import NO_STABLE, Traffic, sketch_sample

ROWS = {"X": np.arange(12, dtype=np.float32).reshape(3, 4), "word": np.array([b"a", b"b", b"\xff"], dtype=object)}


class Kept:
    """A recorder's client that has this sample, or does not answer."""

    def __init__(self, data: bytes | Exception | None) -> None:
        self.data = data

    def sample(self, model: str, rows: int) -> bytes | None:
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


def claim_spec(folder: Path, *, asked: bool = True) -> Spec:
    fields: dict[str, Any] = {"task": "claim", "model": "digits", "version": 2, "delivery": "d"}
    return Spec(**fields, evidence_uri=folder.as_uri(), limits={"traffic_drift": asked})


def kept(folder: Path, requests: int = 1, **limits: Any) -> Sample:
    sample = Sample(folder, **limits)
    for number in range(requests):
        sample.add("digits", ROWS, 1000.0 + number)
    return sample


def data_of(sample: Sample, rows: int = 100) -> bytes:
    found = sample.last("digits", rows)
    assert found is not None
    return parquet(found)


def test_what_is_kept_arrives_as_a_sketch(tmp_path: Path) -> None:
    """The gate finds at the address, under the digest, what users sent: columns, rows and the newest request's time."""
    outputs = traffic_outputs(claim_spec(tmp_path), tmp_path, Kept(data_of(kept(tmp_path / "s", 5))), stable=True)  # type: ignore[arg-type]
    traffic = Traffic.from_json(download(outputs["traffic_uri"], outputs["traffic_sha256"]))
    assert (traffic.rows, traffic.newest_unix_s) == (15, 1004.0)
    assert sorted(traffic.sketches) == ["X[0]", "X[1]", "X[2]", "X[3]", "word"]
    assert traffic.sketches["word"].categories == {"a": 5, "b": 5, "\ufffd": 5}


@pytest.mark.parametrize(
    ("recorder", "stable", "why"),
    [
        (Kept(b"no parquet"), True, "cannot be read"),
        (Kept(None), True, "kept no request"),
        (Kept(RecorderUnreachable("away")), True, "away"),
        (None, True, "PENSTOCK_RECORDER_URL"),
        (Kept(None), False, NO_STABLE),
    ],
)
def test_without_a_sample_the_reason_is_handed_on(tmp_path: Path, recorder: Any, stable: bool, why: str) -> None:  # noqa: FBT001 - a column
    """A claim does not fail for it; the gate says what it means."""
    outputs = traffic_outputs(claim_spec(tmp_path), tmp_path, recorder, stable=stable)
    assert list(outputs) == ["traffic_absent"]
    assert why in outputs["traffic_absent"]


def test_a_policy_that_does_not_ask_costs_nothing(tmp_path: Path) -> None:
    """The recorder is not asked, and nothing is put out."""
    assert traffic_outputs(claim_spec(tmp_path, asked=False), tmp_path, Kept(ValueError()), stable=True) == {}  # type: ignore[arg-type]


def test_a_sample_is_bounded_and_keeps_the_last_rows(tmp_path: Path) -> None:
    """Two segments are kept, and of them the last rows are told."""
    sample = kept(tmp_path, 100, rows_kept=30)
    found = sample.last("digits", 30)
    assert found is not None
    assert (len(found), found.newest_unix_s, len(list((tmp_path / "digits").iterdir()))) == (30, 1099.0, 2)
    everything = sample.last("digits", 10_000)
    assert everything is not None
    assert len(everything) <= 60


def test_no_row_is_older_than_the_days_kept(tmp_path: Path) -> None:
    """However few rows come, so that no segment is ever full: each is kept for half of the days at least, and never longer than all."""
    day_s, sample = 86_400.0, Sample(tmp_path, days_kept=4)
    for day in range(30):
        sample.add("digits", ROWS, day * day_s)
        sample.forget(day * day_s)
        found = sample.last("digits", 10_000)
        assert found is not None
        assert found.newest_unix_s == day * day_s
        assert day - 4 < found.oldest_unix_s / day_s <= max(0, day - 1)


def test_what_nobody_asks_any_more_is_forgotten_too(tmp_path: Path) -> None:
    """Of every model, also of an earlier run and of torn files; what comes after is kept in a new segment."""
    kept(tmp_path, 100, rows_kept=30)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "1.rows").write_bytes(b"x")
    sample = Sample(tmp_path, days_kept=1)
    sample.forget(1000.0 + 86_399)
    assert [each.parent.name for each in tmp_path.glob("*/*")] == ["digits", "digits"]
    sample.forget(1200.0 + 86_400)
    assert list(tmp_path.glob("*/*")) == []
    assert sample.last("digits", 10) is None
    sample.add("digits", ROWS, 2000.0)
    found = sample.last("digits", 10)
    assert found is not None
    assert found.newest_unix_s == 2000.0


def test_nothing_is_kept_for_no_days(tmp_path: Path) -> None:
    """With `permille = 0` the recorder is started so: what there was goes at once."""
    kept(tmp_path, 3)
    Sample(tmp_path, days_kept=0).forget(1010.0)
    assert list(tmp_path.glob("*/*")) == []


def test_a_sample_is_bounded_in_bytes(tmp_path: Path) -> None:
    """Files never grow beyond the limit, and a request larger than a segment is not kept."""
    sample = kept(tmp_path, 100, bytes_kept=2000)
    sample.add("digits", {"X": np.zeros((1, 10_000))}, 5000.0)
    assert sum(each.stat().st_size for each in (tmp_path / "digits").iterdir()) <= 2000
    found = sample.last("digits", 10)
    assert found is not None
    assert found.newest_unix_s == 1099.0


@pytest.mark.parametrize("tail", [b"\x00", struct.pack("<dII", 1.0, 1, 500) + b"torn"])
def test_a_torn_record_is_left_out(tmp_path: Path, tail: bytes) -> None:
    """What a crash left half written ends its segment; the next recorder goes on in a new one."""
    kept(tmp_path, 2)
    (path,) = (tmp_path / "digits").iterdir()
    path.write_bytes(path.read_bytes() + tail)
    sample = kept(tmp_path, 1)
    found = sample.last("digits", 100)
    assert found is not None
    assert len(found) == 9


def test_requests_of_another_form_are_left_out(tmp_path: Path) -> None:
    """One client that sends other columns does not spoil the sample."""
    sample = kept(tmp_path, 3)
    sample.add("digits", {"Y": np.zeros((1, 2))}, 2000.0)
    found = sample.last("digits", 100)
    assert found is not None
    assert (set(found.inputs), len(found)) == ({"X", "word"}, 9)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"rows": -1, "newest_unix_s": 0, "sketches": {}}', b'{"rows": 1, "newest_unix_s": NaN, "sketches": {}}']
)
def test_a_sketch_that_cannot_be_one_is_refused(data: bytes) -> None:
    """Torn or forged: the gate takes nothing for granted."""
    with pytest.raises(BadSpec, match="traffic"):
        Traffic.from_json(data)


def test_a_sample_without_a_time_is_no_sample() -> None:
    """How old it is must be known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"X": [1.0]}), sink)
    with pytest.raises(BadSpec, match="when it was taken"):
        sketch_sample(sink.getvalue().to_pybytes())
