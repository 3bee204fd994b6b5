"""What a container adds to a task: the gate golden_set on one bundle, as a process and in its image, in turns.

    <environment airflow>/bin/python bench/container_tax.py SPEC        SPEC: JSON, see `main`

`bench.containers` runs it in Airflow's environment, which has the runtimes; prints the seconds of every run as JSON. Both kinds of run read
the same bundle from the same registry, each under the address by which it reaches it, and the verdict must pass.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from operators.runtimes import DockerRuntime, Job, ProcessRuntime, Runtime
from validation.contract import Bundle, Spec, Verdict
from validation.policy import read_policy, section

POLL_S = 0.02
LIMIT_S = 120


def main(given: dict[str, Any]) -> dict[str, list[float]]:
    """`given`: state, policy, project, images, network, rounds, bundle_sha256; bundle_uri, evidence_uri each by `process` and `docker`."""
    runtimes: dict[str, Runtime] = {
        "process": ProcessRuntime(state=Path(given["state"])),
        "docker": DockerRuntime(image_prefix=given["images"], network=given["network"], project=given["project"]),
    }
    spent: dict[str, list[float]] = {name: [] for name in runtimes}
    for number in range(int(given["rounds"]) + 1):  # the first of each warms the file cache
        for name, runtime in runtimes.items():
            spent[name].append(_run(runtime, name, number, given))
    return {name: seconds[1:] for name, seconds in spent.items()}


def _run(runtime: Runtime, name: str, number: int, given: dict[str, Any]) -> float:
    policy = read_policy(Path(given["policy"]))
    bundle = Bundle(uri=given["bundle_uri"][name], sha256=given["bundle_sha256"])
    spec = Spec(
        task="golden_set",
        model=policy.model,
        version=1,
        delivery=f"tax-{name}-{number}",
        evidence_uri=f"{given['evidence_uri'][name]}/tax-{name}-{number}",
        bundle=bundle,
        limits=section(policy.golden_set),
        inputs={"stable_version": 0},
    )
    job = Job(
        name=f"tax-{name}-{number}", environment="golden_set", package="validation", spec_json=spec.to_json(), timeout_s=LIMIT_S, environ={}
    )
    start = time.monotonic()
    runtime.start(job)
    try:
        while runtime.exit_code(job.name) is None:
            time.sleep(POLL_S)
        verdict = Verdict.from_bytes(runtime.verdict(job.name) or b"", spec)
        spent_s = time.monotonic() - start
    finally:
        log = runtime.log(job.name)
        runtime.remove(job.name)
    if verdict.outcome.word != "passed":
        raise RuntimeError(f"golden_set as {name}: {verdict.why}\n{log[-1000:]}")
    return spent_s


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
