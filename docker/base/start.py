"""Starts a service of docker-compose.yaml: adds the secrets of its own volume to the environment and becomes the command.

    python /start.py COMMAND...

Secrets lie in /keys/environment (NAME=value lines, readable by this user only), so that neither the compose file, an image nor
`docker inspect` shows them. Without that file nothing is added: tasks get theirs from the runtime. Standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

KEYS = Path("/keys/environment")
EXIT_USAGE = 64


def main(command: list[str]) -> None:
    """Never returns."""
    if not command:
        print("usage: start.py COMMAND...", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    secrets = dict(line.split("=", 1) for line in KEYS.read_text().splitlines()) if KEYS.exists() else {}
    os.execvpe(command[0], command, {**secrets, **os.environ})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
