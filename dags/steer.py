"""A form for people: pause, resume, promote, approve, abort or undo a delivery. The same orders are given by the command `penstock`.

A version is delivered again by triggering `deliver_<model>` itself.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from operators.steer import Steer

ACTIONS = ["pause", "resume", "promote_now", "promote_fully", "approve", "abort", "undo"]
FORM = {
    "model": Param(type="string", minLength=1, maxLength=60, title="Model", description="The registered model's name."),
    "action": Param(
        "pause",
        enum=ACTIONS,
        title="Order",
        description="pause: the share stays and is judged on. promote_now: this step is over; promote_fully: all are. "
        "abort: traffic goes back and the delivery ends. undo: the version before is stable again.",
    ),
    "version": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Version",
        description="Which version is meant; empty: the one that it can be about.",
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
    Steer(timeout_s=120)
