"""The mutation score of the decision code: of small faults put into it, how many make a test fail.

mutmut 3 makes a copy of `validation/` in which every function exists once per fault, runs the tests once to learn which of them reach
which function, and then, fault by fault, forks and runs the tests that reach it. Which faults are tried is drawn by chance, with a seed, so
that the figure comes in a quarter of an hour. Left out are the modules that read files and speak to people (`bundle`, `loose_files`,
`onnx_*`, `golden_rows`, `check`), Great Expectations' leaf, and the latency gate, whose tests start servers. mutmut lives in the
environment `tests`; whoever calls this needs no more than the stack's.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from bench.figures import Figure
from bench.world import Unexpected
from stack.environments import ensure
from stack.settings import ROOT, read_settings

MODULES = (
    "answers",
    "contract",
    "distribution",
    "drift",
    "error_rates",
    "findings",
    "golden_quality",
    "golden_set",
    "golden_walk",
    "invariances",
    "judges",
    "latencies",
    "metrics",
    "paired",
    "parity",
    "plan",
    "policy",
    "probes",
    "rollout_judge",
    "sampling",
    "scoring",
    "traffic_sample",
)
UNTESTED_BY_NAME = {"answers", "findings", "golden_walk", "traffic_sample"}
"""Modules without a test file of their own; the tests of the gates that use them count."""

COPIED = ("validation", "tests", "dags", "plugins", "pyproject.toml")
DRAWN = 400
SEED = 2
LIMIT_S = 3600.0

SURE = "validation.contract.x_worst__mutmut_1"
"""A fault that the tests must notice; where it goes unnoticed, it is not the mutated copy that they import."""

KILLED = {"1": "killed", "3": "killed"} | dict.fromkeys(("-24", "24", "36", "152", "255"), "timeout")
"""mutmut's exit statuses that count as noticed: a test failed, pytest broke, or the tests took far longer than without the fault."""

CONFIGURATION = """[mutmut]
source_paths = validation
only_mutate =
{modules}
also_copy =
{copied}
pytest_add_cli_args_test_selection =
{tests}
pytest_add_cli_args = --hypothesis-profile=mutation
timeout_multiplier = 5
timeout_constant = 5
"""

CONFTEST = """
import json
from pathlib import Path

from hypothesis import HealthCheck, settings

slow = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("mutation", max_examples=20, derandomize=True, database=None, **slow)

def pytest_collection_modifyitems(items):
    '''Quick tests first: most faults are found by one of them.'''
    stats = Path("mutmut-stats.json")
    spent = json.loads(stats.read_text())["duration_by_test"] if stats.exists() else {}
    items.sort(key=lambda item: spent.get(item.nodeid, 0))
"""


def measure() -> list[Figure]:
    """Tries the sample. Raises `Unexpected` when the tests fail without a fault, or do not notice one that they must."""
    settings = read_settings(os.environ)
    ensure(("tests",), settings.state)
    with tempfile.TemporaryDirectory(prefix="penstock-mutation-") as name:
        place = Path(name)
        lay_out(place)
        every, drawn = try_sample(place, settings.environment("tests") / "bin" / "mutmut", DRAWN, SEED)
    return [figure(every, drawn, SEED)]


def lay_out(place: Path) -> None:
    """Copies what is mutated and what tests it, and writes mutmut's configuration."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, place / name)
    (place / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text() + CONFTEST)
    named = {
        "modules": [f"validation/{module}.py" for module in MODULES],
        "copied": [name for name in COPIED if name not in {"validation", "tests"}],
        "tests": [f"tests/test_{module}.py" for module in MODULES if module not in UNTESTED_BY_NAME],
    }
    (place / "setup.cfg").write_text(CONFIGURATION.format(**{key: _lines(values) for key, values in named.items()}))


def _lines(values: Collection[str]) -> str:
    return "\n".join(f"    {value}" for value in values)


def try_sample(place: Path, mutmut: Path, size: int, seed: int) -> tuple[int, Mapping[str, str]]:
    """How many faults there are, and of the drawn ones, by name, what mutmut says of each."""
    _run(mutmut, place, [SURE])
    every = dict(_statuses(place))
    if every.get(SURE) not in KILLED:
        raise Unexpected(f"the fault {SURE} was not noticed (status {every.get(SURE)}): the tests do not import the mutated copy")
    sample = random.Random(seed).sample(sorted(every), min(size, len(every)))  # noqa: S311 - no secret
    _run(mutmut, place, sample)
    statuses = dict(_statuses(place))
    return len(every), {name: statuses[name] for name in sample}


def _run(mutmut: Path, place: Path, names: Collection[str]) -> None:
    command = [str(mutmut), "run", *names]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if done.returncode:
        raise Unexpected(f"mutmut ended with status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-1000:]}")


def _statuses(place: Path) -> Iterator[tuple[str, str]]:
    """Every fault and the exit status of its tests, as mutmut keeps them beside each mutated module."""
    for meta in sorted((place / "mutants" / "validation").glob("*.meta")):
        yield from ((name, str(status)) for name, status in json.loads(meta.read_text())["exit_code_by_key"].items())


def figure(every: int, drawn: Mapping[str, str], seed: int) -> Figure:
    """The share that was noticed, with its interval; what no test reaches, and what was not tried, counts as alive."""
    said = Counter(KILLED.get(status, "alive") for status in drawn.values())
    noticed = said["killed"] + said["timeout"]
    low, high = wilson(noticed, len(drawn))
    how = (
        f"{len(drawn)} of mutmut's {every:,} faults in {len(MODULES)} modules of `validation/`, drawn with seed {seed}: "
        f"{said['killed']} killed, {said['timeout']} by timeout, {said['alive']} alive (survived, or no test reaches them); "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    )
    return Figure(name="mutation_pct", value=round(100 * noticed / len(drawn), 1), unit="%", goal=">= 85", how=how)


def wilson(noticed: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, 1927)."""
    share, spread = noticed / n, z * math.sqrt(noticed / n * (1 - noticed / n) / n + z * z / (4 * n * n))
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    return (middle - spread) / scale, (middle + spread) / scale
