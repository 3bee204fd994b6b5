"""One DAG per policy file: the way of a registered model version to production."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from airflow.sdk import DAG, BaseOperator, Param, chain

from operators.bake import Bake
from operators.broken_policy import BrokenPolicy
from operators.claim import Claim
from operators.container_check import ContainerCheck
from operators.distribution import Distribution
from operators.export import Export
from operators.golden_set import GoldenSet
from operators.integration import Integration
from operators.latency_benchmark import LatencyBenchmark
from operators.package import Package
from operators.promote import Promote
from operators.restore import Restore
from operators.rollback_sensor import RollbackSensor
from operators.shadow import Shadow
from operators.start_candidate import StartCandidate
from operators.traffic_shift import TrafficShift
from operators.tune_serving import TuneServing
from validation.policy import STRATEGIES, Policy, is_model_name, read_policies

FOLDER = Path(os.environ.get("PENSTOCK_POLICIES") or Path(__file__).parent / "policies")
log = logging.getLogger(__name__)


def form(strategy: str) -> dict[str, Param]:
    """What a person is asked for who triggers a delivery by hand; an event leaves all but the version as it stands here."""
    return {
        "version": Param(type="integer", minimum=1, title="Version", description="The model version to deliver, as numbered by MLflow."),
        "strategy": Param(
            strategy,
            enum=list(STRATEGIES),
            title="Strategy",
            description="shadow: a mirror; alone, it promotes nothing. canary: the policy's steps. blue_green: all at once, watched.",
        ),
        "dry_run": Param(False, type="boolean", title="Dry run", description="Runs the gates only: no server, no traffic, no promotion."),
    }


def deliver(policy: Policy) -> DAG:
    """The delivery of one model; a second one waits until the first has ended."""
    dag = DAG(
        dag_id=f"deliver_{policy.model}",
        description=f"Delivers a version of {policy.model} to production, or says why not.",
        schedule=None,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        params=form(policy.rollout.strategy),
        tags=["deliver", policy.owner],
        default_args={"owner": policy.owner},
        doc_md=__doc__,
    )
    with dag:
        chain(*_way(policy), Restore(policy=policy).as_teardown())
    return dag


def _way(policy: Policy) -> Iterator[BaseOperator]:
    """From the claim to production. A task that takes the policy's time gets that, a person's pause, and what comes before and after it."""
    pause_s = policy.rollout.pause_max_seconds
    yield Claim(policy=policy)
    yield Export(policy=policy)
    yield GoldenSet(policy=policy)
    yield Distribution(policy=policy, folder=FOLDER)
    if policy.tune_serving:
        yield TuneServing(policy=policy, timeout_s=policy.tune_serving.max_seconds + 120)
    yield Package(policy=policy)
    yield ContainerCheck(policy=policy)
    yield LatencyBenchmark(policy=policy, timeout_s=3 * policy.latency_benchmark.max_seconds + 300)
    yield StartCandidate(policy=policy)
    yield Integration(policy=policy, folder=FOLDER, timeout_s=policy.integration.calls_seconds + 600)
    yield Shadow(policy=policy, timeout_s=policy.shadow.max_seconds + pause_s + 60)
    for step in policy.rollout.steps:
        yield TrafficShift(policy=policy, step=step)
        yield RollbackSensor(policy=policy, step=step, timeout_s=step.max_seconds + pause_s + 60)
    yield Promote(policy=policy)
    if policy.rollout.bake_seconds:
        yield Bake(policy=policy, timeout_s=policy.rollout.bake_seconds + 60)


def refuse(model: str, why: str) -> DAG:
    """Stands in for a model whose policy cannot be read: its deliveries wait and say why; the other models go on.

    Airflow brings a run to what its DAG is now: a delivery that was under way loses its tasks, its watch takes the traffic back within
    seconds, and once the policy is mended the run has all its tasks again and begins anew.
    """
    dag = DAG(
        dag_id=f"deliver_{model}",
        description=why,
        schedule=None,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        params=form(STRATEGIES[0]),
    )
    with dag:
        BrokenPolicy(why=why)
    return dag


good, bad = read_policies(FOLDER)
for policy in good.values():
    globals()[f"deliver_{policy.model}"] = deliver(policy)
for model, why in bad.items():
    if is_model_name(model):
        globals()[f"deliver_{model}"] = refuse(model, why)
    else:
        log.warning("no DAG is made of a file whose name is no model's: %s", why)
