"""Runs one task of a delivery somewhere, insists on a verdict, obeys it. Every operator of this package is a small subclass.

An operator says which task it runs, in which environment, with which limits and which earlier outputs. A verdict that does not pass fails
the Airflow task for good (a verdict is never retried); a task without a verdict raises an ordinary exception, so Airflow's retries apply.
Deferrable operators leave the worker while the task runs; their trigger tells the task once a second that somebody still waits for it.

Airflow's `ResumableJobMixin` is not used: it remembers a job's id across tries, and here the id is the job's name, made from the delivery
and the task, which the runtime joins by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from operators.notice import tell_failure
from operators.runtimes import Job, runtime_from_environ
from validation.contract import EXIT_BAD_SPEC, Bundle, NoVerdict, Outcome, Spec, Stable, Verdict
from validation.policy import Policy

POLL_S = 0.2
BEAT_S = 1.0
KEEPALIVE_S = 6.0  # a watch nobody waited for this long takes its candidate back
PLACE = (
    "PENSTOCK_SUPERVISOR",
    "PENSTOCK_TRITON",
    "PENSTOCK_TRITON_PORTS",
    "PENSTOCK_SANDBOX",
    "PENSTOCK_RECORDER_URL",
    "PENSTOCK_GATEWAY",
)


class TaskOperator(BaseOperator):
    """One task of a delivery. Class attributes say what and where; subclasses override `limits` and `skip_reason`.

    Raises `AirflowFailException` on a verdict that is not `passed` and on a bad spec, `AirflowException` when there is no verdict.
    """

    noun: ClassVar[str]
    package: ClassVar[str] = "delivery"
    environment: ClassVar[str] = "rollout"
    connections: ClassVar[tuple[str, ...]] = ("mlflow",)
    deferrable: ClassVar[bool] = False
    tries_again: ClassVar[int] = 2
    follows_claim: ClassVar[bool] = True
    reaches: ClassVar[tuple[str, ...]] = ("core",)  # networks of its container
    uses_engine: ClassVar[bool] = False  # whether it may start containers and push images, where there is an engine
    moves_tags: ClassVar[bool] = False  # whether it may have the container registry's tags follow an undo, and no more
    ui_color = "#d7e8f4"

    def __init__(self, *, policy: Policy | None = None, timeout_s: float = 600, **kwargs: Any) -> None:
        kwargs.setdefault("task_id", self.noun)
        kwargs.setdefault("retries", self.tries_again)
        kwargs.setdefault("retry_delay", timedelta(seconds=5))
        kwargs.setdefault("retry_exponential_backoff", 2)
        kwargs.setdefault("max_retry_delay", timedelta(minutes=1))
        kwargs.setdefault("trigger_rule", "none_failed")
        kwargs.setdefault("on_failure_callback", tell_failure)
        super().__init__(**kwargs)
        self._policy = policy
        self.timeout_s = timeout_s

    @property
    def policy(self) -> Policy:
        """The model's policy; tasks that belong to no model have none and do not ask."""
        if self._policy is None:
            raise AirflowFailException(f"{self.task_id} belongs to no model and has no policy")
        return self._policy

    def limits(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What the task is measured against: the policy's section for it."""
        del context
        return {}

    def skip_reason(self, context: Mapping[str, Any]) -> str | None:
        """Why this task has nothing to do in this delivery, or None."""
        del context
        return None

    def execute(self, context: Mapping[str, Any]) -> Any:
        if reason := self.skip_reason(context):
            raise AirflowSkipException(reason)
        spec = self.spec(context)
        job = self.job(spec)
        runtime_from_environ().start(job)
        self.log.info("%s runs as job %s", self.noun, job.name)
        if self.deferrable:
            runtime_from_environ().keep_alive(job.name)
            trigger = VerdictTrigger(name=job.name, timeout_s=self.timeout_s)
            self.defer(trigger=trigger, method_name="resume", kwargs={"spec_json": job.spec_json, "name": job.name})
        self._wait(job.name)
        return self.obey(context, spec, job.name)

    def resume(self, context: Mapping[str, Any], event: Mapping[str, Any], *, spec_json: str, name: str) -> dict[str, Any]:
        """Called by Airflow when the trigger has seen the job's end."""
        self.log.info("%s: %s", name, event.get("status"))
        return self.obey(context, Spec.from_json(spec_json), name)

    def obey(self, context: Mapping[str, Any], spec: Spec, name: str) -> dict[str, Any]:
        """Reads the verdict, records it for later tasks, and passes, fails or raises as it says.

        A job whose verdict does not pass is left where it is until `restore`: whoever asks for it again, a worker that died here included,
        gets the same verdict.
        """
        runtime = runtime_from_environ()
        self.log.info("what %s printed:\n%s", self.noun, runtime.log(name))
        try:
            verdict = self._verdict(spec, runtime.exit_code(name), runtime.verdict(name))
        except AirflowException:
            runtime.remove(name)
            raise
        row = {"task": self.task_id, "outcome": verdict.outcome.word, "why": verdict.why, "outputs": dict(verdict.outputs)}
        context["ti"].xcom_push(key="verdict", value=row)
        if verdict.outcome is not Outcome.PASSED:
            raise AirflowFailException(f"{self.task_id} says {verdict.outcome.word} of {spec.model} v{spec.version}: {verdict.why}")
        runtime.remove(name)
        return dict(verdict.outputs)

    def on_kill(self) -> None:
        if name := getattr(self, "_running", None):
            runtime_from_environ().remove(name)

    def spec(self, context: Mapping[str, Any]) -> Spec:
        """The spec of this task for this delivery, from the run's parameters and what earlier tasks put out."""
        inputs = self.inputs(context)
        spec = Spec(
            task=self.noun,
            model=self._model,
            version=int(context["params"].get("version") or 0),
            delivery=context["run_id"],
            evidence_uri=self._evidence_uri(context, inputs),
            bundle=_bundle(inputs, "bundle"),
            limits=self.limits(context),
            inputs=inputs,
        )
        stable = _bundle(inputs, "stable_bundle")
        return replace(spec, stable=Stable(version=inputs["stable_version"], bundle=stable)) if stable else spec

    def inputs(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of the tasks that came before, merged in order."""
        merged: dict[str, Any] = {}
        for row in verdicts(context, ("claim", "export", "tune_serving", "package", "start_candidate")):
            merged |= row["outputs"]
        if self.follows_claim and "stable_version" not in merged:
            raise AirflowFailException(f"{self.task_id} has nothing of `claim` in this run: clear the whole run, from `claim` on")
        return merged

    def job(self, spec: Spec) -> Job:
        return Job(
            name=job_name(spec, self.task_id),
            environment=self.environment,
            package=self.package,
            spec_json=spec.to_json(),
            timeout_s=self.timeout_s,
            environ=self._environ(),
            reaches=(*self.reaches, *(("engine",) if self.uses_engine else ())),
        )

    @property
    def _model(self) -> str:
        return self._policy.model if self._policy else "-"

    def _environ(self) -> dict[str, str]:
        environ: dict[str, str] = {"TASK_KEEPALIVE_S": str(KEEPALIVE_S)} if self.deferrable else {}
        for name in self.connections:
            environ |= _CONNECTION_ENVIRON[name](BaseHook.get_connection(name))
        return environ | place_environ() | (engine_environ() if self.uses_engine else registry_environ() if self.moves_tags else {})

    def _wait(self, name: str) -> None:
        runtime, end = runtime_from_environ(), time.monotonic() + self.timeout_s + 30
        self._running = name
        while runtime.exit_code(name) is None and time.monotonic() < end:
            time.sleep(POLL_S)

    def _verdict(self, spec: Spec, exit_code: int | None, data: bytes | None) -> Verdict:
        if exit_code == EXIT_BAD_SPEC:
            raise AirflowFailException(f"{self.noun} refused its spec (exit {EXIT_BAD_SPEC}); its log says which field")
        if exit_code != 0 or data is None:
            raise AirflowException(f"{self.noun} ended with exit code {exit_code} and no verdict; it is tried again")
        try:
            return Verdict.from_bytes(data, spec)
        except NoVerdict as error:
            raise AirflowException(f"{error}; it is tried again") from error

    def _evidence_uri(self, context: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
        delivery = re.sub(r"[^A-Za-z0-9._-]", "_", context["run_id"])
        root = inputs.get("artifacts_uri") or f"{_artifact_root()}/penstock/{self._model.strip('-') or 'all'}"
        return f"{root}/{delivery}/{self.task_id}"


class VerdictTrigger(BaseTrigger):
    """Waits in the triggerer for a job's end, and tells the job each second that somebody waits."""

    def __init__(self, *, name: str, timeout_s: float) -> None:
        super().__init__()
        self.name = name
        self.timeout_s = timeout_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.task.VerdictTrigger", {"name": self.name, "timeout_s": self.timeout_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        runtime, end = runtime_from_environ(), time.monotonic() + self.timeout_s + 30
        while await asyncio.to_thread(runtime.exit_code, self.name) is None:
            if time.monotonic() > end:
                yield TriggerEvent({"status": f"still running after {self.timeout_s} s"})
                return
            await asyncio.to_thread(runtime.keep_alive, self.name)
            await asyncio.sleep(BEAT_S)
        yield TriggerEvent({"status": "ended"})


def forget(name: str) -> None:
    """Removes a job of that name, if there is one."""
    runtime_from_environ().remove(name)


def verdicts(context: Mapping[str, Any], task_ids: tuple[str, ...]) -> list[dict[str, Any]]:
    """The verdict rows (task, outcome, why, outputs) that these tasks of this run have pushed, in order."""
    rows = context["ti"].xcom_pull(task_ids=list(task_ids), key="verdict")
    return [row for row in rows or [] if row]


def job_name(spec: Spec, task_id: str) -> str:
    """One name per delivery and task, the same on every try; fits a container's and a pod's name."""
    return f"{spec.model.strip('-') or 'all'}-v{spec.version}-{task_id}-{hashlib.sha256(spec.delivery.encode()).hexdigest()[:10]}".replace(
        "_", "-"
    )


def place_environ() -> dict[str, str]:
    """What a task needs to know about the place that it runs in; set for Airflow by the stack or the deployment."""
    return {name: os.environ[name] for name in PLACE if name in os.environ}


def has_engine() -> bool:
    """Whether this place has a container engine, whether or not it answers."""
    return bool(os.environ.get("PENSTOCK_ENGINE"))


def engine_environ() -> dict[str, str]:
    """How a task that may use the engine reaches it and the container registry; empty in a place without an engine."""
    if not has_engine():
        return {}
    known = {name: os.environ[name] for name in _ENGINE_ENVIRON if name in os.environ}
    return {"DOCKER_HOST": os.environ["PENSTOCK_ENGINE"]} | known | registry_environ()


def registry_environ() -> dict[str, str]:
    """Where the container registry is and how one signs in; empty in a place without an engine."""
    if not has_engine():
        return {}
    known = {name: os.environ[name] for name in ("PENSTOCK_REGISTRY", "PENSTOCK_REGISTRY_URL") if name in os.environ}
    if "AIRFLOW_CONN_CONTAINER_REGISTRY" not in os.environ:
        return known
    connection = BaseHook.get_connection("container_registry")
    return known | {"PENSTOCK_REGISTRY_USER": connection.login or "", "PENSTOCK_REGISTRY_PASSWORD": connection.password or ""}


_ENGINE_ENVIRON = (
    "PENSTOCK_PROJECT",
    "PENSTOCK_SERVING_IMAGE",
    "PENSTOCK_SERVING_NETWORK",
    "PENSTOCK_SERVER_ADDRESSES",
    "PENSTOCK_SERVER_MEMORY_MIB",
    "PENSTOCK_SERVER_GPUS",
)


def _bundle(inputs: Mapping[str, Any], prefix: str) -> Bundle | None:
    uri, digest = inputs.get(f"{prefix}_uri"), inputs.get(f"{prefix}_sha256")
    return Bundle(uri=uri, sha256=digest) if uri and digest else None


def _address(connection: Any) -> str:
    return f"{connection.schema or 'http'}://{connection.host}:{connection.port}"


def _artifact_root() -> str:
    return f"{_address(BaseHook.get_connection('mlflow'))}/api/2.0/mlflow-artifacts/artifacts"


_CONNECTION_ENVIRON = {
    "mlflow": lambda connection: {"MLFLOW_TRACKING_URI": _address(connection)},
    "director": lambda connection: {
        "PENSTOCK_DIRECTOR_URL": _address(connection),
        "PENSTOCK_DIRECTOR_TOKEN": connection.password or "",
    },
}
