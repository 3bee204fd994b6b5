"""What the drift statistics cost and what they are worth: CPU seconds and memory for a large table, false alarms, and what is always found.

No stack is needed. Each cost is measured in a process of its own, so that nothing that ran before counts.
"""

from __future__ import annotations

import json
import subprocess
import sys

from bench.figures import Figure

COLUMNS, ROWS = 10, 1_000_000
RUNS, FEATURES, SAMPLE = 1000, 20, 1000

COST = f"""
import json, resource, time
import numpy as np
from validation.drift import drift, sketch_batches

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

random = np.random.default_rng(0)
reference = sketch_batches([{{f"f{{i}}": random.normal(size=10_000) for i in range({COLUMNS})}}])
table = random.normal(size=({ROWS}, {COLUMNS}))
before_mib, before_s = peak_mib(), time.process_time()
findings = drift(reference, sketch_batches([{{f"f{{i}}": table[:, i] for i in range({COLUMNS})}}], reference))
compared_s, before_s = time.process_time() - before_s, time.process_time()
made = sketch_batches([{{f"f{{i}}": table[:, i] for i in range({COLUMNS})}}])
made_s = time.process_time() - before_s
print(json.dumps({{"compared_s": compared_s, "made_s": made_s, "peak_mib": peak_mib() - before_mib, "findings": len(findings)}}))
"""


def measure() -> list[Figure]:
    """Cost, false alarms and finds, in about half a minute."""
    return [*_cost(), _false_alarms(), _missing_found()]


def _cost() -> list[Figure]:
    done = subprocess.run([sys.executable, "-c", COST], check=True, capture_output=True, text=True)
    cost = json.loads(done.stdout)
    table = f"{ROWS:,} x {COLUMNS} float64"
    seconds = max(cost["compared_s"], cost["made_s"])
    both = f"to sketch and compare it {cost['compared_s']:.2f} s, to make a reference of it {cost['made_s']:.2f} s"
    return [
        Figure(name="drift_cpu_s", value=round(seconds, 2), unit="s", goal="<= 1", how=f"CPU time of {table}: {both}; the larger counts"),
        Figure(
            name="drift_peak_mib", value=round(cost["peak_mib"]), unit="MiB", goal="<= 200", how=f"peak memory beyond the table, {table}"
        ),
    ]


def _false_alarms() -> Figure:
    """A run that says anything but `passed` counts, also one that finds too little evidence."""
    import numpy as np

    from validation.contract import Outcome
    from validation.drift import drift, sketch_batches

    random, alarms = np.random.default_rng(1), 0
    for _ in range(RUNS):
        tables = [{f"f{i}": random.normal(size=SAMPLE) for i in range(FEATURES)} for _ in range(2)]
        reference = sketch_batches(tables[:1])
        findings = drift(reference, sketch_batches(tables[1:], reference))
        alarms += any(each.outcome is not Outcome.PASSED for each in findings)
    how = f"of {RUNS:,} runs without drift, {FEATURES} features, {SAMPLE:,} rows on each side: runs not passed in every finding"
    return Figure(name="drift_false_alarm_pct", value=100 * alarms / RUNS, unit="%", goal="<= 5", how=how)


def _missing_found() -> Figure:
    import numpy as np

    from validation.contract import Outcome
    from validation.drift import drift, sketch

    random, found = np.random.default_rng(2), 0
    for _ in range(RUNS):
        values = random.normal(size=SAMPLE)
        reference = sketch(values)
        holed = np.where(random.random(SAMPLE) < 0.9, np.nan, random.permutation(values))
        findings = {each.name: each.outcome for each in drift({"x": reference}, {"x": sketch(holed, reference)})}
        found += findings["x_missing"] is Outcome.FAILED
    how = f"of {RUNS:,} samples of {SAMPLE:,} rows with 90 % missing: failed by the finding about missing values"
    return Figure(name="drift_missing_found_pct", value=100 * found / RUNS, unit="%", goal="= 100", how=how)
