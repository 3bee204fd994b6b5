"""The demo as a newcomer runs it, timed: from a bare clone with an empty package cache, and again with everything installed."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Figure
from bench.world import Unexpected
from stack.settings import ROOT


def measure() -> list[Figure]:
    """Two runs in a fresh clone. Raises `Unexpected` when one does not end as said."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        environ = {**_bare_environ(), "UV_CACHE_DIR": str(Path(folder) / "uv-cache"), "PIP_CACHE_DIR": str(Path(folder) / "pip-cache")}
        cold_s, _ = _demo(clone, environ)
        warm_s, warm = _demo(clone, environ)
    return [
        Figure(name="demo_cold_s", value=round(cold_s), unit="s", goal="<= 720", how="`make demo` in a fresh clone, empty package cache"),
        Figure(name="demo_warm_s", value=round(warm_s), unit="s", goal="<= 420", how="`make demo` again, everything installed"),
        Figure(
            name="demo_client_errors",
            value=warm["client_errors"],
            unit="errors",
            goal="= 0",
            how=f"of {warm['requests']:,} requests in the warm demo",
        ),
        Figure(name="demo_rps", value=round(warm["rps"]), unit="requests/s", goal=">= 100", how="HTTP and gRPC, over the whole warm demo"),
        Figure(
            name="breach_to_stable_s",
            value=warm["breach_to_stable_s"],
            unit="s",
            goal="<= 3",
            how="v4 of the warm demo at 10 %: first failed request to the last request at the candidate, 20 % of its requests failing",
        ),
    ]


def _demo(clone: Path, environ: dict[str, str]) -> tuple[float, dict[str, Any]]:
    start = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=clone, env=environ, check=False, stdin=subprocess.DEVNULL)
    spent_s = time.monotonic() - start
    if done.returncode != 0:
        raise Unexpected(f"`make demo` ended with status {done.returncode} in {clone}")
    row: dict[str, Any] = json.loads((clone / ".penstock" / "demo" / "result.json").read_text())
    return spent_s, row


def _bare_environ() -> dict[str, str]:
    """The caller's environment without what points into this checkout."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "VIRTUAL_ENV", "PYTHON", "MAKE", "MFLAGS"))
    }
