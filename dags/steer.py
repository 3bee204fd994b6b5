"""A form for people: pause, resume, promote, approve, abort, undo or retry a delivery. The command `penstock` gives the same orders."""

from __future__ import annotations

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param

from operators.notice import tell_failure
from operators.steer import Steer

ACTIONS = ["pause", "resume", "promote_now", "promote_fully", "approve", "abort", "undo", "retry"]
FORM = {
    "model": Param(type="string", minLength=1, maxLength=60, title="Model", description="The registered model's name."),
    "action": Param(
        "pause",
        enum=ACTIONS,
        title="Order",
        description="pause: the share stays and is judged on. promote_now: this step is over; promote_fully: all are. "
        "abort: traffic goes back and the delivery ends. undo: the version before is stable again, or the one named below. "
        "retry: a new delivery.",
    ),
    "version": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Version",
        description="Which version is meant; empty: the one that it can be about.",
    ),
    "to": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Back to",
        description="Only for an undo: the archived version that shall be stable; empty: the version before.",
    ),
    "why": Param(
        type="string", minLength=1, maxLength=500, title="Why", description="One line; it stands in the verdict and in the registry."
    ),
}

with DAG(
    dag_id="steer",
    description="Gives a person's order to a delivery.",
    schedule=None,
    catchup=False,
    max_active_runs=16,
    is_paused_upon_creation=False,
    params=FORM,
    tags=["people"],
    doc_md=__doc__,
):
    ordered = Steer(timeout_s=120)
    delivery = TriggerDagRunOperator.partial(task_id="delivery", skip_when_already_exists=True, on_failure_callback=tell_failure)
    delivery.expand_kwargs(ordered.output)
