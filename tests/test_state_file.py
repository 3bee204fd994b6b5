"""The director's state on disk has one director at a time."""

import os
import subprocess
import sys

import pytest

from delivery.state_file import StateFile, Taken

HOLD = """
import sys
from pathlib import Path
from delivery.state_file import StateFile
with StateFile(Path(sys.argv[1])).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_is_refused_and_told_who_is_first(tmp_path):
    """The first one's process id stands in the message; when it is done, the next may begin."""
    file = StateFile(tmp_path / "director" / "state.json")
    with file.alone(), pytest.raises(Taken, match=f"process {os.getpid()}; stop that one first"), file.alone():
        pass
    with file.alone():
        assert (tmp_path / "director" / "lock").read_text() == str(os.getpid())


def test_the_kernel_frees_it_after_a_kill(tmp_path):
    """No file has to be removed by hand: what a killed director leaves behind is not a lock."""
    file = StateFile(tmp_path / "state.json")
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "state.json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(Taken, match=f"process {first.pid};"), file.alone():
            pass
        first.kill()
        first.wait()
        with file.alone():
            assert (tmp_path / "lock").read_text() == str(os.getpid())
