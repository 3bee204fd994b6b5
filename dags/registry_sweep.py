"""Every minute: registered versions that want a delivery and have none are offered again. MLflow drops events after seconds of trouble."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG

from operators.notice import tell_failure
from operators.registry_sweep import RegistrySweep
from validation.policy import read_policies

FOLDER = Path(os.environ.get("PENSTOCK_POLICIES") or Path(__file__).parent / "policies")

with DAG(
    dag_id="registry_sweep",
    description="Offers again what the registry's webhook lost.",
    schedule="* * * * *",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    tags=["registry"],
    doc_md=__doc__,
):
    found = RegistrySweep(policies=read_policies(FOLDER)[0], timeout_s=120, retries=0)
    offer = TriggerDagRunOperator.partial(task_id="offer", skip_when_already_exists=True, on_failure_callback=tell_failure)
    offer.expand_kwargs(found.output)
