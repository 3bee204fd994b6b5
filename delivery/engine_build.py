"""What an image may be built of through `delivery.engine_gate`: files, laid on an image of the callers' own. Pure: bytes in, bytes out.

A build's files come as a tar stream that is not kept here. So its first member must be the Dockerfile: it is read, and goes on under a
name that nobody can guess, so that no later member can take its place. It has one stage, runs nothing (that would be root) and fetches
nothing (that would be the engine, with the host's network).
"""

from __future__ import annotations

import re
import tarfile

from delivery.engine_rules import Refused, Rules, name_of

DOCKERFILE = "Dockerfile"
DOCKERFILE_LIMIT_BYTES = 64 << 10
HEADER_BYTES = tarfile.BLOCKSIZE
PLAIN = ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "STOPSIGNAL", "USER", "WORKDIR")
FLAG = re.compile(r"--(?:chown|chmod)=[A-Za-z0-9:]+")


def dockerfile_bytes(header: bytes) -> int:
    """The size of a context's first member, by its header. Raises `Refused` unless that is the Dockerfile."""
    allowed = f"a tar stream, not compressed, that begins with a plain file {DOCKERFILE} of 1 to {DOCKERFILE_LIMIT_BYTES} bytes"
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.TarError, UnicodeError):
        raise Refused(f"the build's context begins with no tar header; allowed: {allowed}") from None
    plain = member.name == DOCKERFILE and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    if not plain or not 0 < member.size <= DOCKERFILE_LIMIT_BYTES:
        raise Refused(f"the build's context begins with {member.name[:100]} of {member.size} bytes; allowed: {allowed}")
    return member.size


def padded(size: int) -> int:
    """What so many bytes take in a tar stream."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def member(name: str, data: bytes) -> bytes:
    """A plain file as a tar stream has it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(padded(len(data)), b"\0")


def base_image(dockerfile: bytes, rules: Rules) -> str:
    """The image that a Dockerfile builds on. Raises `Refused` for one that could do more than lay files on it."""
    try:
        lines = [line.rstrip("\r") for line in dockerfile.decode().split("\n")]
    except UnicodeDecodeError:
        raise Refused("the Dockerfile is no UTF-8 text; allowed: UTF-8") from None
    said = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    bases = [_instruction(number, line, rules) for number, line in said]
    found = [base for base in bases if base]
    if len(found) != 1:
        raise Refused(f"the Dockerfile has {len(found)} lines FROM; allowed: one")
    return found[0]


def _instruction(number: int, line: str, rules: Rules) -> str:
    """The image that the line names, if it is a FROM."""
    place = f"line {number} of the Dockerfile"
    word, _, rest = line.partition(" ")
    if line.rstrip().endswith(("\\", "`")):
        raise Refused(f"{place} goes on in the next; allowed: one instruction a line")
    if word == "FROM":
        return name_of(place, rest.strip(" "), rules.images)
    if word not in PLAIN:
        raise Refused(f"{place} begins with {word[:40]!r}; allowed: FROM, {', '.join(PLAIN)}")
    if word == "COPY" and (wrong := [each for each in rest.split() if each.startswith("--") and not FLAG.fullmatch(each)]):
        raise Refused(f"{place} has the flag {wrong[0][:80]}; allowed: --chown, --chmod")
    return ""
