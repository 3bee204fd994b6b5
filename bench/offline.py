"""What the offline gates are worth, measured without a stack: each module in the environment of the gate that it measures.

`python -m bench offline` starts `python -m bench.offline <module>` for each, which prints the figures of the module's `measure()` as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module

from bench.figures import Figure
from stack.settings import ROOT, read_settings

MODULES: Mapping[str, str] = {"offline_judges": "golden_set"}
"""Module of this package -> environment that it runs in."""

LIMIT_S = 900.0


def measure() -> list[Figure]:
    """Figures of all modules, one after the other: they would disturb each other's times."""
    return [figure for module, environment in MODULES.items() for figure in _elsewhere(module, environment)]


def _elsewhere(module: str, environment: str) -> list[Figure]:
    command = [str(read_settings(os.environ).python(environment)), "-m", "bench.offline", module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"bench.{module} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return [Figure(**row) for row in json.loads(done.stdout)]


def main(arguments: list[str]) -> int:
    found: Callable[[], list[Figure]] = import_module(f"bench.{arguments[0]}").measure
    print(json.dumps([asdict(figure) for figure in found()]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
