"""What an image may be built of through the engine gate: one stage of files on an allowed image, read before anything goes on."""

from __future__ import annotations

import io
import tarfile

import pytest
from docker.utils.build import mkbuildcontext
from test_engine_rules import RULES

from delivery.engine_build import DOCKERFILE_LIMIT_BYTES, HEADER_BYTES, base_image, dockerfile_bytes, member, padded
from delivery.engine_rules import Refused

MODEL = """# a model's image
ARG VERSION=1
FROM 127.0.0.1:5000/penstock/triton:2.60
LABEL penstock.model=digits penstock.version="3"
COPY --chown=65534:65534 models/ /models/

ENV A=b
USER 65534:65534
WORKDIR /models
EXPOSE 8000
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s CMD ["true"]
ENTRYPOINT ["tritonserver"]
CMD ["--model-repository=/models"]
"""


def test_a_models_image_is_files_on_an_allowed_image() -> None:
    """What a package writes passes, with either line end, and says what it builds on."""
    assert base_image(MODEL.encode(), RULES) == "127.0.0.1:5000/penstock/triton:2.60"
    assert base_image(MODEL.replace("\n", "\r\n").encode(), RULES) == "127.0.0.1:5000/penstock/triton:2.60"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 lines FROM; allowed: one"),
        ("FROM penstock/a\nFROM penstock/b", "has 2 lines FROM"),
        ("FROM postgres", 'line 1 of the Dockerfile is "postgres"; allowed: names of images that begin with penstock/ or '),
        ("FROM scratch", "line 1"),
        ("FROM ${BASE}", "line 1"),
        ("FROM --platform=linux/amd64 penstock/a", "line 1"),
        ("FROM penstock/a AS b", "line 1"),
        ("FROM 0123456789ab", "line 1"),
        ("from penstock/a", "line 1 of the Dockerfile begins with 'from'"),
        ("FROM\tpenstock/a", "line 1"),
        (" FROM penstock/a", "line 1"),
        ("\ufeffFROM penstock/a", "line 1"),
        ("FROM penstock/a\nRUN id", "line 2 of the Dockerfile begins with 'RUN'; allowed: FROM, ARG, CMD, COPY"),
        ("FROM penstock/a\n\trun id", "line 2"),
        ("FROM penstock/a\nADD http://10.0.0.1/x /x", "'ADD'"),
        ("FROM penstock/a\nONBUILD RUN id", "'ONBUILD'"),
        ("FROM penstock/a\nVOLUME /x", "'VOLUME'"),
        ('FROM penstock/a\nSHELL ["x"]', "'SHELL'"),
        ("FROM penstock/a\nCOPY --from=postgres / /x", "has the flag --from=postgres; allowed: --chown, --chmod"),
        ("FROM penstock/a\nCOPY --chown=1 --from=postgres / /x", "--from"),
        ("FROM penstock/a\nCOPY --link a /x", "--link"),
        ("FROM penstock/a\nLABEL a=b \\\nRUN id", "line 2 of the Dockerfile goes on in the next"),
        ("FROM penstock/a\nLABEL a=b \\ \t\nRUN id", "goes on in the next"),
        ("# escape=`\nFROM penstock/a\nLABEL a=b `\nRUN id", "line 3 of the Dockerfile goes on in the next"),
        ("FROM penstock/a\nCOPY <<X /x\nRUN id\nX", "line 3"),
    ],
)
def test_what_runs_or_fetches_or_hides_is_refused_by_its_line(text: str, message: str) -> None:
    """An instruction that would run as root, fetch with the host's network or read another image is an error that names its line."""
    with pytest.raises(Refused) as refused:
        base_image(text.encode(), RULES)
    assert message in str(refused.value)


def test_a_dockerfile_is_text() -> None:
    """Bytes that are no UTF-8 are not guessed at."""
    with pytest.raises(Refused, match="UTF-8"):
        base_image(b"FROM penstock/a\xff", RULES)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 3000])
def test_the_first_member_is_measured_and_written_again(size: int) -> None:
    """Its size is read from the header that the SDK writes, and a plain tar reader finds it under its new name."""
    stream = mkbuildcontext(io.BytesIO(b"x" * size)).read()
    assert dockerfile_bytes(stream[:HEADER_BYTES]) == size
    assert stream[HEADER_BYTES:][:size] == b"x" * size
    written = member(".dockerfile-0f", b"x" * size) + stream[HEADER_BYTES + padded(size) :]
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        assert [(each.name, each.size) for each in archive] == [(".dockerfile-0f", size)]


def header(name: str = "Dockerfile", size: int = 1, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)[:HEADER_BYTES]


@pytest.mark.parametrize(
    "first",
    [
        header("model.onnx"),
        header("./Dockerfile"),
        header("a/Dockerfile"),
        header(size=0),
        header(size=DOCKERFILE_LIMIT_BYTES + 1),
        header(kind=tarfile.SYMTYPE),
        header(kind=tarfile.LNKTYPE),
        header(kind=tarfile.DIRTYPE),
        header(kind=tarfile.GNUTYPE_SPARSE),
        header(kind=tarfile.XHDTYPE),
        header(kind=tarfile.GNUTYPE_LONGNAME),
        b"\0" * HEADER_BYTES,
        b"\x1f\x8b" * 256,
        header()[:-1] + b"x",
    ],
)
def test_a_context_that_does_not_begin_with_its_dockerfile_is_refused(first: bytes) -> None:
    """A link, an extended header, a compressed stream or another file first: none of them can be looked at in passing."""
    with pytest.raises(
        Refused, match="allowed: a tar stream, not compressed, that begins with a plain file Dockerfile of 1 to 65536 bytes"
    ):
        dockerfile_bytes(first)
