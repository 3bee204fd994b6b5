"""The first step on a fresh machine: finds a Python that can run everything, and hands over to `stack.environments`.

The Makefile runs it with whatever `python3` is, so it keeps to the syntax of Python 3.7 and to the standard library. It looks at
PENSTOCK_PYTHON, then at itself, then at the usual names on PATH. It installs nothing: `stack.environments` does, into the state folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)  # Triton's wheel has no stub for a newer Python
NAMES = ("python3.11", "python3.12", "python3.13", "python3")
# Prints the version and whether Triton's stub can embed this Python; 3.13's library is in Triton's wheel.
PROBE = """
import os, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
places = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
shared = any(os.path.exists(os.path.join(place, name)) for place in places)
print(sys.version_info[0], sys.version_info[1], int(shared or sys.version_info[:2] == (3, 13)))
"""
ADVICE = """error: no usable Python found. Penstock needs CPython 3.11, 3.12 or 3.13 with a shared libpython (Triton embeds it).
Looked at:
{}
Install one (Debian, Ubuntu: apt install python3.11 libpython3.11 python3.11-venv), or name one: make PENSTOCK_PYTHON=<path> ...
"""


def main(arguments: list[str]) -> int:
    """Becomes `<python> -m stack.environments <arguments>`; ends with status 1 and advice when no Python will do."""
    looked = []
    for python in candidates():
        reason = unfit(python)
        if reason is None:
            os.chdir(Path(__file__).resolve().parents[1])
            os.execv(python, [python, "-m", "stack.environments", *arguments])  # noqa: S606 - no shell is wanted
        looked.append(f"  {python}: {reason}")
    sys.stderr.write(ADVICE.format("\n".join(looked)))
    return 1


def candidates() -> list[str]:
    """Paths to try, best first. A named one is tried alone: who names a Python does not want another."""
    named = os.environ.get("PENSTOCK_PYTHON")
    if named:
        return [shutil.which(named) or named]
    found = [sys.executable, *(shutil.which(name) for name in NAMES)]
    return list(dict.fromkeys(path for path in found if path))


def unfit(python: str) -> str | None:
    """Why this interpreter will not do, or None when it will."""
    try:
        answer = subprocess.check_output([python, "-I", "-c", PROBE], stderr=subprocess.DEVNULL)
        major, minor, shared = (int(word) for word in answer.split())
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return f"does not run ({error})"
    if not OLDEST <= (major, minor) <= NEWEST:
        return f"is Python {major}.{minor}"
    return None if shared else "has no shared libpython"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
