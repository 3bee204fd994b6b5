"""One DAG per policy with a `[retrain]` section: trains on schedule or by hand; the registry's event delivers what it registers."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import DAG

from operators.retrain import RetrainModel
from validation.policy import BY_HAND, Policy, Retrain, read_policies

FOLDER = Path(os.environ.get("PENSTOCK_POLICIES") or Path(__file__).parent / "policies")


def retrain(policy: Policy, settings: Retrain) -> DAG:
    """The retraining of one model, never twice at the same time."""
    dag = DAG(
        dag_id=f"retrain_{policy.model}",
        description=f"Trains {policy.model} again and registers the result.",
        schedule=None if settings.schedule == BY_HAND else settings.schedule,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        tags=["retrain", policy.owner],
        default_args={"owner": policy.owner},
        doc_md=__doc__,
    )
    with dag:
        # longer than the task's own limit, so that a training that takes too long ends in a verdict; one training is enough
        RetrainModel(policy=policy, timeout_s=settings.timeout_seconds + 60, retries=0)
    return dag


for policy in read_policies(FOLDER)[0].values():
    if policy.retrain:
        globals()[f"retrain_{policy.model}"] = retrain(policy, policy.retrain)
