"""What containers cost: images from nothing and again, a model's layer, `up`, memory, and a task in its image beside the same as a process.

Empties the engine's build cache, because nothing else is "from nothing". Needs an engine; COMPOSE_ENV_FILES and BASE_IMAGE count as ever.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from bench.container_world import ContainerWorld
from bench.figures import Figure
from bench.world import MODEL
from demo.services import NotNow
from stack.docker_host import Host
from stack.settings import ROOT

IDLE_S, LOOKS = 60.0, 6
ROUNDS = 7


def measure() -> list[Figure]:
    """Builds, starts the system on fresh data, delivers v1, and measures on it."""
    figures = _images(Host(os.environ))
    world = ContainerWorld(os.environ, "bench")
    try:
        world.open()
        figures += [*_idle(world)]
        world.stage.train("rows", "--rows", str(world.stage.rows)).finish(120)
        number = world.deliver("v1")
        if (outcome := world.outcome(number)) != "promoted":
            raise RuntimeError(f"v1 ended as {outcome}: {world.why(number)}")
        figures += [_serving_image(world, number), _packaging(world), _tax(world, number)]
        figures.append(_up(world))
    finally:
        world.close()
    return figures


def _images(host: Host) -> list[Figure]:
    host.docker("builder", "prune", "-af", quiet=True)
    cold_s, warm_s = _timed(host.build_images), _timed(host.build_images)
    how = "`make images` on 2 cores"
    return [
        Figure(name="images_cold_s", value=round(cold_s), unit="s", goal="<= 360", how=f"{how}, build cache and package cache empty"),
        Figure(name="images_warm_s", value=round(warm_s, 1), unit="s", goal="<= 15", how=f"{how} again, nothing changed"),
    ]


def _up(world: ContainerWorld) -> Figure:
    up_s = world.timed_up()
    how = "`docker compose up -d --wait` with images and data present, v1's server brought back with it"
    return Figure(name="compose_up_s", value=round(up_s, 1), unit="s", goal="<= 90", how=how)


def _idle(world: ContainerWorld) -> list[Figure]:
    sizes = []
    for _ in range(LOOKS):
        time.sleep(IDLE_S / LOOKS)
        sizes.append(world.memory_gib())
    how = f"memory of all containers by `docker stats`, median of {LOOKS} looks in {IDLE_S:.0f} s after `up`"
    return [Figure(name="compose_gib", value=round(statistics.median(sizes), 2), unit="GiB", goal="<= 6", how=how)]


def _serving_image(world: ContainerWorld, number: int) -> Figure:
    size = world.findings(number, "container_check")["size_mb"]["observed"]
    how = "v1's serving image with its base, compressed as a machine without any of it downloads it"
    return Figure(name="image_mb", value=size, unit="MB", goal="<= 250", how=how)


def _packaging(world: ContainerWorld) -> Figure:
    """`delivery.image` in the environment `rollout`, on the engine itself, with a bundle of 20 MB."""
    given = {"registry": world.host.environ["PENSTOCK_REGISTRY_PORT"], "password": world.host.secret("registry_password")}
    spent = _elsewhere(world, "rollout", "bench/package_time.py", given | {"images": world.host.images_prefix, "rounds": ROUNDS})
    how = f"a bundle of 20 MB becomes an image on the warm base and is pushed, median of {ROUNDS} different bundles"
    return Figure(name="package_s", value=round(statistics.median(spent["seconds"]), 2), unit="s", goal="<= 5", how=how)


def _tax(world: ContainerWorld, number: int) -> Figure:
    version = world.version(number)
    if version is None:
        raise NotNow(f"v{number} is not there")
    uri, inside, outside = version.tags["penstock.bundle.uri"], "http://mlflow:5000", world.stage.settings.mlflow_url
    evidence = f"{inside}/api/2.0/mlflow-artifacts/artifacts/bench"
    given = {
        "state": str(world.state),
        "policy": str(world.policies / f"{MODEL}.toml"),
        "project": world.host.project,
        "images": world.host.images_prefix,
        "network": f"{world.host.project}_*",
        "bundle_sha256": version.tags["penstock.bundle.sha256"],
        "bundle_uri": {"docker": uri, "process": uri.replace(inside, outside)},
        "evidence_uri": {"docker": evidence, "process": evidence.replace(inside, outside)},
        "rounds": ROUNDS,
    }
    spent = _elsewhere(world, "airflow", "bench/container_tax.py", given)
    process_s, docker_s = (statistics.median(spent[name]) for name in ("process", "docker"))
    how = f"the gate golden_set: {docker_s:.2f} s in its image, {process_s:.2f} s as a process; medians of {ROUNDS}, in turns"
    return Figure(name="container_tax_s", value=round(docker_s - process_s, 2), unit="s", goal="<= 1.5", how=how, peer="ProcessRuntime")


def _elsewhere(world: ContainerWorld, environment: str, script: str, given: Mapping[str, Any]) -> dict[str, list[float]]:
    command = [str(world.stage.settings.python(environment)), str(ROOT / script), json.dumps(given)]
    environ = {"DOCKER_HOST": "unix:///var/run/docker.sock", **os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environ, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{script} ended with status {done.returncode}: {done.stderr[-2000:]}")
    row: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return row


def _timed(act: Any) -> float:
    start = time.monotonic()
    act()
    return time.monotonic() - start
