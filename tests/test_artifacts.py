"""Downloaded artifacts: what may lie in a model's folder, and what an archive among them may promise."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from delivery import artifacts
from delivery.artifacts import insist_on_bounded, insist_on_plain
from delivery.findings import Refusal


def lay(folder: Path) -> Path:
    """A model's folder as MLflow leaves it."""
    model = folder / "model"
    (model / "data").mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {}")
    with zipfile.ZipFile(model / "data" / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("weights/a", bytes(100))
    return model


def archived(model: Path, name: str, data: bytes = b"x", mode: int = 0) -> None:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(model / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)


def promises(model: Path, size: int) -> None:
    """A small archive whose directory promises `size` bytes."""
    archived(model, "weights", bytes(10))
    data = bytearray((model / "a.zip").read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", size)
    (model / "a.zip").write_bytes(bytes(data))


def test_plain_files_pass(tmp_path: Path) -> None:
    """Files, folders and a small archive are what a model consists of."""
    assert insist_on_plain(lay(tmp_path), "digits v1") is None  # it raises otherwise


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "link out": (lambda model: (model / "l").symlink_to("/etc/passwd"), "'l' is a link"),
    "link inside": (lambda model: (model / "data" / "l").symlink_to("model.keras"), "'data/l' is a link"),
    "linked folder": (lambda model: (model / "l").symlink_to("/etc"), "'l' is a link"),
    "pipe": (lambda model: os.mkfifo(model / "p"), "a pipe or a device"),
    "archive that climbs": (lambda model: archived(model, "../../etc/cron.d/x"), "leads out of it"),
    "archive with a root": (lambda model: archived(model, "/etc/cron.d/x"), "leads out of it"),
    "archive of another system": (lambda model: archived(model, "..\\x"), "leads out of it"),
    "archive with a link": (lambda model: archived(model, "l", b"/etc/passwd", stat.S_IFLNK | 0o777), "leads out of it"),
    "archive that is cut off": (
        lambda model: (model / "a.zip").write_bytes((model / "data/model.keras").read_bytes()[-80:]),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_strange_files_are_refused(tmp_path: Path, case: str) -> None:
    """By name, before anything opens them."""
    spoil, reason = SPOILT[case]
    model = lay(tmp_path)
    spoil(model)
    with pytest.raises(Refusal) as caught:
        insist_on_plain(model, "digits v1")
    assert reason in caught.value.finding.why
    assert caught.value.finding.advice


def test_an_archive_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that promise to unpack to more than the limit; all archives together count."""
    monkeypatch.setattr(artifacts, "LIMIT_BYTES", 1 << 30)
    model = lay(tmp_path)
    promises(model, 1 << 30)
    with pytest.raises(Refusal, match="unpack to 1073741926 bytes; the limit is 1073741824"):
        insist_on_plain(model, "digits v1")


def test_an_archive_of_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking a million empty files is an attack too."""
    monkeypatch.setattr(artifacts, "LIMIT_FILES", 1)
    with pytest.raises(Refusal, match="limit is 1"):
        insist_on_plain(lay(tmp_path), "digits v1")


@pytest.mark.parametrize(("files", "size"), [(artifacts.LIMIT_FILES + 1, 0), (1, artifacts.LIMIT_BYTES + 1)])
def test_too_much_is_refused_before_it_is_downloaded(files: int, size: int) -> None:
    """What the server lists is counted first."""
    with pytest.raises(Refusal, match="the limit is"):
        insist_on_bounded(files, size, "digits v1")
