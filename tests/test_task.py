"""Operators run a task somewhere and obey its verdict: passed passes, failed and inconclusive fail for good, no verdict is retried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskDeferred
from airflow_home import ROOT

from operators import task as task_module
from operators.bake import Bake
from operators.broken_policy import BrokenPolicy, tell_once
from operators.claim import Claim
from operators.container_check import ContainerCheck
from operators.distribution import SUITE_BYTES, Distribution
from operators.export import Export
from operators.golden_set import GoldenSet
from operators.integration import Integration
from operators.latency_benchmark import LatencyBenchmark
from operators.package import Package
from operators.promote import Promote
from operators.restore import Restore
from operators.retrain import RetrainModel
from operators.rollback_sensor import RollbackSensor
from operators.runtimes import Job
from operators.shadow import Shadow
from operators.start_candidate import StartCandidate
from operators.steer import Steer
from operators.task import TaskOperator, VerdictTrigger, job_name
from operators.traffic_shift import TrafficShift
from validation.consumer_contracts import read_contract
from validation.contract import Decision, Finding, Outcome, Spec, write_verdict
from validation.policy import ConsumerContract, Policy, ServiceCall, Slice, parse, read_policy, section
from validation.policy import ContainerCheck as ContainerCheckSection
from validation.policy import Distribution as SectionOfDistribution
from validation.policy import Export as ExportSection
from validation.policy import Integration as IntegrationSection

POLICY = read_policy(ROOT / "dags" / "policies" / "digits.toml")
CLAIM = {
    "source_run": "r",
    "artifacts_uri": "http://127.0.0.1:1/a",
    "stable_version": 1,
    "stable_bundle_uri": "file:///s",
    "stable_bundle_sha256": "d",
}
EXPORT = {"bundle_uri": "file:///b", "bundle_sha256": "e"}


class FakeRuntime:
    """Answers each job with a prepared exit code and a verdict made from prepared findings."""

    def __init__(self, tmp_path: Path, *findings: Finding, exit_code: int = 0, verdict: bytes | None = None) -> None:
        self.tmp_path, self.findings, self.code, self.bytes = tmp_path, findings, exit_code, verdict
        self.jobs: dict[str, Job] = {}
        self.removed: list[str] = []
        self.beats = 0
        self.running_for = 0

    def start(self, job: Job) -> None:
        self.jobs[job.name] = job
        if self.code == 0 and self.bytes is None:
            decision = Decision(findings=self.findings, outputs={"key": "value"})
            write_verdict(decision, spec=Spec.from_json(job.spec_json), evidence_digest="0", out=self.tmp_path)

    def exit_code(self, name: str) -> int | None:
        self.running_for -= 1
        return None if self.running_for >= 0 else self.code

    def verdict(self, name: str) -> bytes | None:
        path = self.tmp_path / "verdict.json"
        return self.bytes if self.bytes is not None else path.read_bytes() if path.exists() else None

    def log(self, name: str) -> str:
        return "log"

    def keep_alive(self, name: str) -> None:
        self.beats += 1

    def remove(self, name: str) -> None:
        self.removed.append(name)


class FakeTaskInstance:
    """Holds what the operators push and pull, as Airflow's task instance would."""

    dag_id = "deliver_digits"

    def __init__(self, states: Mapping[str, str] | None = None, **verdicts: Mapping[str, Any]) -> None:
        self.rows = {name: {"task": name, "outcome": "passed", "why": "w", "outputs": dict(row)} for name, row in verdicts.items()}
        self.pushed: dict[str, Any] = {}
        self.states = dict(states or {})

    def xcom_pull(self, *, task_ids: list[str], key: str) -> list[Any]:
        assert key == "verdict"
        return [self.rows.get(name) for name in task_ids]

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_task_states(self, *, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run_ids[0]: self.states}


def context(ti: FakeTaskInstance | None = None, **params: Any) -> dict[str, Any]:
    defaults = {"version": 2, "strategy": "shadow then canary", "dry_run": False}
    return {"ti": ti or FakeTaskInstance(claim=CLAIM, export=EXPORT), "run_id": "deliver__digits__v2", "params": {**defaults, **params}}


def finding(outcome: Outcome) -> Finding:
    return Finding(name="accuracy_at_least", outcome=outcome, why="accuracy is 0.42 and must be at least 0.85")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    def choose(runtime: FakeRuntime) -> FakeRuntime:
        monkeypatch.setattr(task_module, "runtime_from_environ", lambda: runtime)
        return runtime

    return choose


def test_export_runs_where_the_models_framework_is(use) -> None:
    """The policy names the environment, and the spec the golden set's columns that the gate will need."""
    use(None)
    heavy = replace(POLICY, export=ExportSection(environment="export_torch"))
    sliced = replace(POLICY.golden_set, slices=(Slice(column="region", values=("north",)),))
    for policy, environment, columns in ((POLICY, "export", []), (replace(heavy, golden_set=sliced), "export_torch", ["region"])):
        operator = Export(policy=policy)
        job = operator.job(Spec(task="export", model="digits", version=1, delivery="d", evidence_uri="file:///e"))
        assert (job.environment, operator.limits({})) == (environment, {"columns": columns})


def test_a_passed_verdict_passes_and_is_recorded(use, tmp_path: Path) -> None:
    """The outputs of a passed verdict reach later tasks, and the job is forgotten."""
    runtime, here = use(FakeRuntime(tmp_path, finding(Outcome.PASSED))), context()
    assert GoldenSet(policy=POLICY).execute(here) == {"key": "value"}
    assert here["ti"].pushed["verdict"]["outcome"] == "passed"
    assert runtime.removed == list(runtime.jobs)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INCONCLUSIVE])
def test_a_verdict_that_does_not_pass_is_never_retried(use, tmp_path: Path, outcome: Outcome) -> None:
    """Failed and inconclusive end the task for good, with the reason in the message and on record."""
    use(FakeRuntime(tmp_path, finding(outcome)))
    here = context()
    with pytest.raises(AirflowFailException, match=f"golden_set says {outcome.word} of digits v2: .*must be at least 0.85"):
        GoldenSet(policy=POLICY).execute(here)
    assert here["ti"].pushed["verdict"]["outcome"] == outcome.word


def test_a_refusal_is_kept_until_restore(use, tmp_path: Path) -> None:
    """The job of a verdict that does not pass stays, so that a worker that died meanwhile gets the same verdict and no second try."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.FAILED)))
    with pytest.raises(AirflowFailException):
        GoldenSet(policy=POLICY).execute(context())
    assert runtime.removed == []


def test_without_a_claim_nothing_runs(use, tmp_path: Path) -> None:
    """A run whose claim left nothing (it was cleared alone) goes no further; a missing stable version is not a first version."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    here = context(FakeTaskInstance(export=EXPORT))
    for task in (GoldenSet(policy=POLICY), Promote(policy=POLICY), TrafficShift(policy=POLICY, step=POLICY.rollout.steps[-1])):
        with pytest.raises(AirflowFailException, match="clear the whole run"):
            task.execute(here)
    assert runtime.jobs == {}


def test_no_findings_do_not_pass(use, tmp_path: Path) -> None:
    """A task that found nothing has shown nothing."""
    use(FakeRuntime(tmp_path))
    with pytest.raises(AirflowFailException, match="inconclusive"):
        GoldenSet(policy=POLICY).execute(context())


@pytest.mark.parametrize(
    ("runtime", "why"),
    [
        ({"exit_code": 1}, "exit code 1 and no verdict"),
        ({"exit_code": 0, "verdict": b""}, "cannot be read"),
        ({"exit_code": 0, "verdict": b"x" * 4097}, "4097 bytes; the limit is 4096"),
        ({"exit_code": 0, "verdict": b'{"contract":1}'}, "cannot be read"),
    ],
)
def test_no_verdict_is_an_error_that_is_retried(use, tmp_path: Path, runtime: dict[str, Any], why: str) -> None:
    """A crash, an unreadable or an oversized verdict raises an ordinary exception, so that Airflow tries again, on a fresh job."""
    fake = use(FakeRuntime(tmp_path, **runtime))
    with pytest.raises(AirflowException, match=why) as caught:
        GoldenSet(policy=POLICY).execute(context())
    assert not isinstance(caught.value, AirflowFailException)
    assert fake.removed


def test_a_verdict_for_another_spec_is_an_error(use, tmp_path: Path) -> None:
    """A verdict that answers another spec counts as none."""
    other = Spec(task="golden_set", model="digits", version=1, delivery="other", evidence_uri="file:///e")
    write_verdict(Decision(findings=(finding(Outcome.PASSED),)), spec=other, evidence_digest="0", out=tmp_path)
    use(FakeRuntime(tmp_path, verdict=(tmp_path / "verdict.json").read_bytes()))
    with pytest.raises(AirflowException, match="answers spec"):
        GoldenSet(policy=POLICY).execute(context())


def test_a_bad_spec_fails_at_once(use, tmp_path: Path) -> None:
    """Exit code 64 is not retried: the spec would be the same."""
    use(FakeRuntime(tmp_path, exit_code=64))
    with pytest.raises(AirflowFailException, match="refused its spec"):
        GoldenSet(policy=POLICY).execute(context())


def test_the_spec_carries_bundle_stable_and_limits_but_no_credentials(use, tmp_path: Path) -> None:
    """A gate's spec names the bundles with their digests and the policy's limits; addresses come as environment."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    GoldenSet(policy=POLICY).execute(context())
    (job,) = runtime.jobs.values()
    spec = Spec.from_json(job.spec_json)
    assert (spec.bundle.uri, spec.stable.version, spec.stable.bundle.uri) == ("file:///b", 1, "file:///s")
    assert spec.limits["min_rows"] == POLICY.golden_set.min_rows
    assert "a-token" not in job.spec_json
    assert "PENSTOCK_DIRECTOR_TOKEN" not in job.environ


def with_suite(name: str) -> Policy:
    return replace(POLICY, distribution=replace(POLICY.distribution, expectations=name))


def test_a_suite_beside_the_policy_travels_in_the_spec(use, tmp_path: Path) -> None:
    """Gates do not see the policies' folder: the user's expectations are content of the limits; without a suite there is none."""
    suite = {"expectations": [{"type": "expect_column_to_exist", "kwargs": {"column": "label"}}]}
    (tmp_path / "digits.json").write_text(json.dumps(suite))
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    Distribution(policy=with_suite("digits.json"), folder=tmp_path).execute(context())
    (job,) = runtime.jobs.values()
    travelled = dict(Spec.from_json(job.spec_json).limits)
    assert travelled.pop("suite") == suite
    assert parse(SectionOfDistribution, travelled, "distribution") == with_suite("digits.json").distribution
    assert Distribution(policy=POLICY, folder=tmp_path).limits({}) == section(POLICY.distribution)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "digits.json beside the policy cannot be read as JSON: .*No such file"),
        (b"{", "cannot be read as JSON"),
        (b'{"expectations": [NaN]}', "NaN is no JSON number"),
        (b" " * (SUITE_BYTES + 1), "has 65537 bytes; a suite may have 65536: use fewer expectations"),
    ],
)
def test_a_suite_that_cannot_travel_ends_the_task(use, tmp_path: Path, content: bytes | None, why: str) -> None:
    """An absent, unreadable or oversized suite is no retry and no silent pass."""
    use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    if content is not None:
        (tmp_path / "digits.json").write_bytes(content)
    with pytest.raises(AirflowFailException, match=why):
        Distribution(policy=with_suite("digits.json"), folder=tmp_path).execute(context())


def with_contract(name: str = "contracts/digits.json") -> Policy:
    agreed = ConsumerContract(consumer="billing", file=name)
    call = ServiceCall(name="store", url="http://store/check", expect_schema="store.json")
    return replace(POLICY, integration=IntegrationSection(contracts=(agreed,), calls=(call,)))


def test_contracts_beside_the_policy_travel_in_the_spec(use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents by name, a schema once however many calls name it; the gate learns where the gateway is, and no token."""
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "digits.json").write_text('[{"request": {}}]')
    (tmp_path / "store.json").write_text("true")
    monkeypatch.setenv("PENSTOCK_GATEWAY", "127.0.0.1:18000")
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    Integration(policy=with_contract(), folder=tmp_path).execute(context())
    (job,) = runtime.jobs.values()
    travelled = dict(Spec.from_json(job.spec_json).limits)
    assert travelled.pop("files") == {"contracts/digits.json": [{"request": {}}], "store.json": True}
    assert parse(IntegrationSection, travelled, "integration") == with_contract().integration
    assert (job.environ["PENSTOCK_GATEWAY"], job.package, job.environment) == ("127.0.0.1:18000", "validation", "integration")
    assert "PENSTOCK_DIRECTOR_TOKEN" not in job.environ


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "integration: contracts/digits.json beside the policy cannot be read as JSON: .*No such file"),
        (b"{", "integration: contracts/digits.json beside the policy cannot be read as JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1e999}', "cannot be read as JSON: Out of range"),
        (b'{"a": "\\ud800"}', "cannot be read as JSON: .*surrogates"),
        (b" " * (SUITE_BYTES + 1), "contracts/digits.json has 65537 bytes; a contract may have 65536: keep one request of each kind"),
        (b'"' + b"a" * (SUITE_BYTES - 100) + b'"', "contracts and calls have 6[0-9]{4} bytes together; 65536 may travel"),
    ],
)
def test_a_contract_that_cannot_travel_ends_the_task(use, tmp_path: Path, content: bytes | None, why: str) -> None:
    """An absent, unreadable or oversized contract is the policy's fault: no retry, and no silent pass."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    (tmp_path / "contracts").mkdir()
    (tmp_path / "store.json").write_text("true")
    if content is not None:
        (tmp_path / "contracts" / "digits.json").write_bytes(content)
    with pytest.raises(AirflowFailException, match=why):
        Integration(policy=with_contract(), folder=tmp_path).execute(context())
    assert runtime.jobs == {}


def test_the_demos_contract_is_there(use) -> None:
    """The policy that people copy names a contract that can be read."""
    limits = Integration(policy=POLICY, folder=ROOT / "dags" / "policies").limits({})
    assert list(limits["files"]) == ["contracts/digits-sorter.json"]
    assert read_contract(limits["files"]["contracts/digits-sorter.json"])


def test_only_tasks_that_act_on_traffic_get_the_directors_token(use, tmp_path: Path) -> None:
    """The director's token reaches rollout tasks, and only as environment."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    TrafficShift(policy=POLICY, step=POLICY.rollout.steps[0]).execute(context())
    (job,) = runtime.jobs.values()
    assert job.environ["PENSTOCK_DIRECTOR_TOKEN"] == "a-token"
    assert "a-token" not in job.spec_json


def test_a_watch_leaves_the_worker(use, tmp_path: Path) -> None:
    """The rollback sensor starts its task and defers; the trigger carries the job's name."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    sensor = RollbackSensor(policy=POLICY, step=POLICY.rollout.steps[0])
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context())
    ((name, job),) = runtime.jobs.items()
    assert deferred.value.trigger.name == name
    assert job.environ["TASK_KEEPALIVE_S"] == "6.0"
    assert sensor.resume(context(), {"status": "ended"}, spec_json=job.spec_json, name=name) == {"key": "value"}


async def test_the_trigger_keeps_the_watch_alive_until_it_ends(use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the trigger waits it tells the job that somebody does; when the job has ended it fires once."""
    runtime = use(FakeRuntime(tmp_path))
    runtime.running_for = 3
    monkeypatch.setattr(task_module, "BEAT_S", 0)
    trigger = VerdictTrigger(name="job", timeout_s=60)
    events = [event.payload async for event in trigger.run()]
    assert (events, runtime.beats) == ([{"status": "ended"}], 3)


@pytest.mark.parametrize(
    ("params", "stable", "skipped"),
    [
        ({}, 1, []),
        ({}, 0, ["shadow", "traffic_shift_10", "traffic_shift_1000"]),
        ({"dry_run": True}, 1, ["integration", "shadow", "traffic_shift_10", "traffic_shift_1000", "promote"]),
        ({"strategy": "blue_green"}, 1, ["shadow", "traffic_shift_10"]),
        ({"strategy": "shadow then blue_green"}, 1, ["traffic_shift_10"]),
        ({"strategy": "canary"}, 1, ["shadow"]),
        ({"strategy": "shadow"}, 1, ["traffic_shift_10", "traffic_shift_1000", "promote"]),
    ],
)
def test_a_strategy_decides_which_tasks_run(use, tmp_path: Path, params: dict[str, Any], stable: int, skipped: list[str]) -> None:
    """Dry runs, strategies and a first version skip what has nothing to do, visibly; nothing else is skipped."""
    use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    first, last = POLICY.rollout.steps[0], POLICY.rollout.steps[-1]
    shifts = [TrafficShift(policy=POLICY, step=step) for step in (first, last)]
    tasks = [Integration(policy=POLICY, folder=tmp_path), Shadow(policy=POLICY), *shifts, Promote(policy=POLICY)]
    here = context(FakeTaskInstance(claim={**CLAIM, "stable_version": stable}, export=EXPORT), **params)
    assert [task.task_id for task in tasks if task.skip_reason(here)] == skipped


def test_a_skipped_task_starts_nothing(use, tmp_path: Path) -> None:
    """A task that is not part of the delivery is skipped before anything runs."""
    runtime = use(FakeRuntime(tmp_path))
    with pytest.raises(AirflowSkipException, match="dry run"):
        Shadow(policy=POLICY).execute(context(dry_run=True))
    assert runtime.jobs == {}


def test_restore_learns_what_ended_and_how(use, tmp_path: Path) -> None:
    """The teardown is told each task's outcome; one that failed without a verdict counts as an error."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    ti = FakeTaskInstance(states={"claim": "success", "golden_set": "failed"}, claim=CLAIM)
    with DAG(dag_id="deliver_digits", schedule=None):
        restore = Restore(policy=POLICY).as_teardown()
        _ = Claim(policy=POLICY) >> GoldenSet(policy=POLICY) >> restore
    restore.execute(context(ti))
    (job,) = runtime.jobs.values()
    inputs = Spec.from_json(job.spec_json).inputs
    assert [(row["task"], row["outcome"]) for row in inputs["verdicts"]] == [("claim", "passed"), ("golden_set", "error")]
    assert inputs["promoted"] is False
    assert Spec.from_json(job.spec_json).evidence_uri == f"{CLAIM['artifacts_uri']}/deliver__digits__v2/restore"


def test_restore_ignores_verdicts_of_an_earlier_attempt(use, tmp_path: Path) -> None:
    """After a run was cleared, what a task said before counts no longer: a promotion of then is none of now."""
    runtime = use(FakeRuntime(tmp_path, finding(Outcome.PASSED)))
    ti = FakeTaskInstance(states={"claim": "success", "promote": "upstream_failed"}, claim=CLAIM, promote={})
    with DAG(dag_id="deliver_digits", schedule=None):
        restore = Restore(policy=POLICY).as_teardown()
        _ = Claim(policy=POLICY) >> Promote(policy=POLICY) >> restore
    restore.execute(context(ti))
    (job,) = runtime.jobs.values()
    assert Spec.from_json(job.spec_json).inputs["promoted"] is False
    assert len(runtime.removed) == 4, "its own job, and one for each task of the delivery"


def test_a_broken_policy_is_the_error_of_its_deliveries() -> None:
    """Whoever looks at a waiting delivery reads what is wrong with the policy and what to do."""
    with pytest.raises(
        AirflowException, match="unknown key onwer; no traffic is with this delivery: mend the policy, and it goes on by itself"
    ):
        BrokenPolicy(why="unknown key onwer").execute(context())


def test_people_are_told_of_a_broken_policy_once(caplog: pytest.LogCaptureFixture) -> None:
    """A delivery that waits tries again every few seconds; only the first failure makes a message."""
    for attempt in (1, 2, 3):
        ti = SimpleNamespace(dag_id="deliver_digits", run_id="r", task_id="policy", try_number=attempt)
        tell_once({"ti": ti, "exception": "unknown key onwer"})
    assert [each.message for each in caplog.records] == ["deliver_digits r: policy failed: unknown key onwer"]


def test_job_names_are_stable_and_fit_a_container() -> None:
    """The same delivery and task have the same name on every try; another delivery has another."""
    one = Spec(task="golden_set", model="digits", version=2, delivery="manual__2026-11-22T06:00:00+00:00", evidence_uri="file:///e")
    other = Spec(task="golden_set", model="digits", version=2, delivery="deliver__digits__v2", evidence_uri="file:///e")
    assert job_name(one, "golden_set") == job_name(one, "golden_set") != job_name(other, "golden_set")
    assert set(job_name(one, "golden_set")) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_each_retraining_has_a_seed_of_its_own(use, tmp_path: Path) -> None:
    """Two runs train with different seeds; a retry of one trains with the same."""
    retrain = RetrainModel(policy=POLICY)
    seeds = [retrain.spec({**context(), "params": {}, "run_id": run}).seed for run in ("one", "two", "one")]
    assert seeds[0] == seeds[2] != seeds[1]


ENGINE = {
    "PENSTOCK_ENGINE": "tcp://engine:2375",
    "PENSTOCK_REGISTRY": "127.0.0.1:18500/penstock",
    "AIRFLOW_CONN_CONTAINER_REGISTRY": '{"conn_type": "http", "host": "registry", "login": "penstock", "password": "a-registry-password"}',
}
SPEC = Spec(task="x", model="digits", version=2, delivery="d", evidence_uri="file:///e")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENGINE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", [Package, ContainerCheck, StartCandidate, Promote, Restore, Claim])
def test_who_starts_containers_is_told_how_to_reach_engine_and_registry(kind: type[TaskOperator]) -> None:
    """The engine's address, the registry and its password come as environment, and the container joins the engine's network."""
    job = kind(policy=POLICY).job(SPEC)
    assert job.environ["DOCKER_HOST"] == "tcp://engine:2375"
    assert job.environ["PENSTOCK_REGISTRY_PASSWORD"] == "a-registry-password"
    assert "engine" in job.reaches
    assert "a-registry-password" not in job.spec_json


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", [Export, GoldenSet, LatencyBenchmark, Shadow])
def test_a_gate_or_an_export_never_reaches_the_engine(kind: type[TaskOperator]) -> None:
    """Neither its address nor its network nor the registry's password."""
    job = kind(policy=POLICY).job(SPEC)
    assert not {"DOCKER_HOST", "PENSTOCK_REGISTRY_PASSWORD"} & set(job.environ)
    assert "engine" not in job.reaches


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("job", [lambda: Bake(policy=POLICY).job(SPEC), lambda: Steer(task_id="steer").job(SPEC)])
def test_an_undo_has_the_registrys_tags_follow_and_reaches_no_engine(job: Any) -> None:
    """Bake and the form give undos; they sign in at the container registry, and start no container."""
    made = job()
    assert made.environ["PENSTOCK_REGISTRY_PASSWORD"] == "a-registry-password"
    assert "DOCKER_HOST" not in made.environ
    assert "engine" not in made.reaches


@pytest.mark.parametrize(("device", "gpu"), [("cpu", None), ("gpu0", 0), ("gpu7", 7)])
def test_a_benchmark_has_its_device_for_itself(device: str, gpu: int | None) -> None:
    """It runs in the device's pool, which has one slot, and sees no other device."""
    how = {"device": device, "protocol": "in_process", "provider": "cpu" if gpu is None else "cuda"}
    benchmark = LatencyBenchmark(policy=replace(POLICY, latency_benchmark=replace(POLICY.latency_benchmark, **how)))
    pools = json.loads((ROOT / "docker" / "airflow" / "pools.json").read_text())
    assert pools[benchmark.pool]["slots"] == 1
    job = benchmark.job(SPEC)
    assert (benchmark.pool, job.gpu) == (f"penstock-{device}", gpu)
    assert job.environment == ("latency_benchmark" if gpu is None else "latency_benchmark_gpu")


def test_the_only_job_that_puts_up_walls_of_its_own_is_export() -> None:
    """Nothing else is given the profile that lets a container leave its namespaces."""
    walled = {kind.noun: kind(policy=POLICY).job(SPEC).sandboxed for kind in (Export, GoldenSet, Package, LatencyBenchmark, Claim)}
    assert walled == {"export": True, "golden_set": False, "package": False, "latency_benchmark": False, "claim": False}


def test_without_an_engine_the_container_check_is_skipped_and_says_so(use, tmp_path: Path) -> None:
    """No pass: Airflow shows it skipped, and the delivery's teardown is told for the registry."""
    runtime = use(FakeRuntime(tmp_path))
    with pytest.raises(AirflowSkipException, match="container_check: not run, no engine"):
        ContainerCheck(policy=POLICY).execute(context())
    assert runtime.jobs == {}
    restore = Restore(policy=POLICY, dag=DAG("deliver_digits", schedule=None))
    assert restore.inputs(context())["not_run"] == {"container_check": "not run, no engine"}


def test_a_policy_can_insist_on_the_container_check(use, tmp_path: Path) -> None:
    """Where there is no engine, its versions are not delivered: inconclusive, and never retried."""
    use(FakeRuntime(tmp_path))
    strict, here = replace(POLICY, container_check=ContainerCheckSection(required=True)), context()
    with pytest.raises(AirflowFailException, match="deliver it where there is an engine"):
        ContainerCheck(policy=strict).execute(here)
    assert here["ti"].pushed["verdict"]["outcome"] == "inconclusive"


@pytest.mark.usefixtures("engine")
def test_with_an_engine_nothing_is_noted_as_not_run() -> None:
    """The registry then holds the check's own verdict."""
    assert Restore(policy=POLICY, dag=DAG("deliver_digits", schedule=None)).inputs(context())["not_run"] == {}


def test_in_containers_a_training_runs_in_its_own_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process the task starts the training's interpreter; in containers its image has both."""
    retrain = RetrainModel(policy=POLICY)
    assert retrain.job(SPEC).environment == "rollout"
    monkeypatch.setenv("PENSTOCK_RUNTIME", "docker")
    assert retrain.job(SPEC).environment == POLICY.retrain.environment
