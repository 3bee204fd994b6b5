"""How long it takes from a version's marker in the registry to the first task of its delivery running."""

from __future__ import annotations

import statistics
import time

from bench.figures import Figure
from bench.world import DELIVER, MODEL, World

VERSIONS = 11


def measure(world: World) -> list[Figure]:
    """Marks versions that `claim` refuses at once (nothing stands behind them), one after the other; median of the delays."""
    world.mlflow("POST", "registered-models/create", json={"name": MODEL})
    delays = sorted(_delay_s(world) for _ in range(VERSIONS))
    span = f"{delays[0]:.2f} to {delays[-1]:.2f} s"
    how = f"tag set (request sent) to `claim` running, by Airflow's clock; {VERSIONS} versions on an idle stack, {span}"
    return [Figure(name="event_to_task_s", value=round(statistics.median(delays), 2), unit="s (median)", goal="<= 1", how=how)]


def _delay_s(world: World) -> float:
    body = {"name": MODEL, "source": "s3://nowhere/model"}
    number = int(world.mlflow("POST", "model-versions/create", json=body)["model_version"]["version"])
    marked_s = time.time()
    world.mlflow("POST", "model-versions/set-tag", json={"name": MODEL, "version": str(number), "key": "candidate", "value": "true"})
    world.outcome(number)
    (claim,) = [each for each in world.airflow.tasks(DELIVER, f"deliver__{MODEL}__v{number}") if each.task == "claim"]
    return (claim.started_unix_s or float("inf")) - marked_s
