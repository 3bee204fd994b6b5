"""Whether downloaded artifacts are what a model's files may be: plain files of a bounded size, and archives that do not explode.

`export` looks before it reads or loads any of them. Most model files are zip archives inside (Keras, PyTorch, skops, NumPy), and whoever
loads one unpacks it: what its directory promises is checked here, what it really holds is bounded by the sandbox's limits.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from delivery.findings import Refusal, refused

LIMIT_BYTES = 4 << 30  # of all files together, and of all that their archives unpack to
LIMIT_FILES = 10_000
LIMIT_NAME = 400
LOG_AGAIN = "log the model again, as plain files below one folder"


def insist_on_plain(folder: Path, model: str) -> None:
    """Raises `Refusal`, naming the file. Links are refused whatever they lead to, and nothing is opened before all names are known."""
    files = list(_files(folder))
    insist_on_bounded(len(files), sum(path.stat().st_size for path in files), model)
    unpacked = 0
    for path in files:
        unpacked += _unpacked(path, path.relative_to(folder).as_posix())
    if unpacked > LIMIT_BYTES:
        why = f"the archives of {model} unpack to {unpacked} bytes; the limit is {LIMIT_BYTES}"
        raise refused("artifacts", why, "deliver a smaller model")


def insist_on_bounded(files: int, size: int, model: str) -> None:
    """Raises `Refusal` when there are too many files or bytes."""
    if files > LIMIT_FILES:
        raise refused("artifacts", f"{model} has {files} files; the limit is {LIMIT_FILES}", LOG_AGAIN)
    if size > LIMIT_BYTES:
        raise refused("artifacts", f"{model} has {size} bytes; the limit is {LIMIT_BYTES}", "deliver a smaller model")


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        for path in (Path(place) / name for name in sorted([*folders, *names])):
            kind = path.lstat().st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise _strange(path.relative_to(folder).as_posix(), "is a link, a pipe or a device")
            if stat.S_ISREG(kind):
                yield path


def _unpacked(path: Path, name: str) -> int:
    """Bytes that a zip archive says it unpacks to; of other files none."""
    if not zipfile.is_zipfile(path):
        return 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _strange(name, f"is an archive that cannot be read: {error}") from error
    if len(members) > LIMIT_FILES:
        raise _strange(name, f"is an archive of {len(members)} files; the limit is {LIMIT_FILES}")
    for member in members:
        _insist_on_plain_member(name, member)
    return sum(member.file_size for member in members)


def _insist_on_plain_member(name: str, member: zipfile.ZipInfo) -> None:
    parts = PurePosixPath(member.filename).parts
    plain = len(member.filename) <= LIMIT_NAME and "\\" not in member.filename
    inside = plain and ".." not in parts and not member.filename.startswith("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if not inside or kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _strange(name, f"is an archive whose member {member.filename[:100]!r} leads out of it")


def _strange(name: str, why: str) -> Refusal:
    return refused("artifacts", f"the model's file {name[:100]!r} {why}", LOG_AGAIN)
