"""The DAGs as Airflow loads them: one delivery per policy, tasks named by their noun, a teardown that always runs."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow_home import ROOT

from validation.policy import STRATEGIES, read_policy

NOUNS = [
    "claim",
    "export",
    "golden_set",
    "distribution",
    "package",
    "container_check",
    "latency_benchmark",
    "start_candidate",
    "integration",
    "shadow",
]
STEPS = [f"{noun}_{permille}" for permille in (10, 100, 500, 1000) for noun in ("traffic_shift", "rollback_sensor")]


@pytest.fixture(scope="module")
def dags() -> DagBag:
    return DagBag(str(ROOT / "dags"))


def test_all_dag_files_load(dags: DagBag) -> None:
    """No DAG file has an import error, and each kind of DAG is there."""
    assert dags.import_errors == {}
    assert set(dags.dags) == {"deliver_digits", "retrain_digits", "registry_sweep", "steer"}


def test_a_delivery_is_one_chain_of_nouns(dags: DagBag) -> None:
    """The delivery's tasks stand in the designed order, each after the one before."""
    chain = [task.task_id for task in dags.dags["deliver_digits"].topological_sort()]
    assert chain == [*NOUNS, *STEPS, "promote", "bake", "restore"]
    for before, after in itertools.pairwise(chain):
        assert after in dags.dags["deliver_digits"].get_task(before).downstream_task_ids


def test_deliveries_of_a_model_never_overlap(dags: DagBag) -> None:
    """A newer version waits until the older delivery has ended; retraining and the sweep do not overlap themselves."""
    assert [dag.max_active_runs for name, dag in dags.dags.items() if name != "steer"] == [1, 1, 1]


def test_restore_runs_whatever_happened_and_does_not_hide_it(dags: DagBag) -> None:
    """Restore is a teardown: it runs after failures, and the run still counts as failed."""
    restore = dags.dags["deliver_digits"].get_task("restore")
    assert restore.is_teardown
    assert not restore.on_failure_fail_dagrun


def test_the_ui_names_the_policys_owner(dags: DagBag) -> None:
    """Whoever looks at a delivery or a training sees whose it is."""
    assert {dags.dags[name].owner for name in ("deliver_digits", "retrain_digits")} == {"ml-platform"}


def test_every_task_tells_when_it_fails(dags: DagBag) -> None:
    """Each task of a delivery has a failure callback."""
    assert all(task.on_failure_callback for task in dags.dags["deliver_digits"].tasks)


def test_the_form_offers_version_strategy_and_dry_run(dags: DagBag) -> None:
    """The trigger form in the UI asks for these three, and the version has no default."""
    params = dags.dags["deliver_digits"].params
    assert list(params) == ["version", "strategy", "dry_run"]
    assert params.get_param("strategy").schema["enum"] == list(STRATEGIES)
    assert params["strategy"] == read_policy(ROOT / "dags" / "policies" / "digits.toml").rollout.strategy
    assert params.get_param("version").schema["minimum"] == 1


def test_tasks_have_the_time_that_the_policy_gives_them(dags: DagBag) -> None:
    """The outer limit is longer than the task's own and a person's pause, so that the task itself says how it ended."""
    policy, tasks = read_policy(ROOT / "dags" / "policies" / "digits.toml"), dags.dags["deliver_digits"].task_dict
    pause_s = policy.rollout.pause_max_seconds
    assert tasks["shadow"].timeout_s == policy.shadow.max_seconds + pause_s + 60
    assert tasks["bake"].timeout_s == policy.rollout.bake_seconds + 60
    assert tasks["integration"].timeout_s == policy.integration.calls_seconds + 600
    assert tasks["latency_benchmark"].timeout_s == 3 * policy.latency_benchmark.max_seconds + 300
    assert [tasks[f"rollback_sensor_{step.permille}"].timeout_s - step.max_seconds for step in policy.rollout.steps] == [pause_s + 60] * 4


def test_a_training_runs_once_and_ends_by_its_own_limit(dags: DagBag) -> None:
    """Airflow neither trains a second time after a crash nor stops the training before its own limit does."""
    task = dags.dags["retrain_digits"].get_task("retrain")
    assert (task.timeout_s, task.retries) == (660.0, 0)


def test_an_offer_that_fails_is_told(dags: DagBag) -> None:
    """A version that the sweep found and could not offer is no secret."""
    assert dags.dags["registry_sweep"].get_task("offer").partial_kwargs["on_failure_callback"]


def told_of(policies: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code after the DAGs of these policies were loaded as `bag`, in a process of its own."""
    load = f"import airflow_home\nfrom airflow.dag_processing.dagbag import DagBag\nbag = DagBag({str(ROOT / 'dags')!r})\n"
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent), "PENSTOCK_POLICIES": str(policies), "HOME": str(policies)}
    return subprocess.run([sys.executable, "-c", load + code], env=environ, capture_output=True, text=True, check=True)


def test_a_broken_policy_stops_its_own_model_only(tmp_path: Path) -> None:
    """A policy with an unknown key becomes a delivery that fails with the reason; other models load as ever."""
    shutil.copy(ROOT / "dags" / "policies" / "digits.toml", tmp_path)
    text = (tmp_path / "digits.toml").read_text()
    (tmp_path / "fraud.toml").write_text(text.replace('"digits"', '"fraud"').replace("owner =", "onwer ="))
    (tmp_path / "spam.toml").write_bytes(b'model = "\xe4"')
    told = told_of(tmp_path, "print(bag.import_errors, sorted(bag.dags), bag.dags['deliver_fraud'].get_task('policy').why)").stdout
    assert "{} ['deliver_digits', 'deliver_fraud', 'deliver_spam', 'registry_sweep', 'retrain_digits', 'steer']" in told
    assert "fraud.toml: unknown key onwer; allowed here: model, owner" in told


def test_a_broken_policys_delivery_waits_for_the_mending(tmp_path: Path) -> None:
    """It says what is wrong, under a name that is no task of a delivery, and tries again for weeks."""
    text = (ROOT / "dags" / "policies" / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(text.replace("owner =", "onwer ="))
    code = """
dag = bag.dags['deliver_digits']
(task,) = dag.tasks
print(task.task_id, task.why == dag.description, (task.retries * task.retry_delay).days > 28)
"""
    assert told_of(tmp_path, code).stdout.endswith("policy True True\n")


def test_files_that_are_no_models_stop_nobody(tmp_path: Path) -> None:
    """A copy or an editor's lock file beside the policies makes no DAG and breaks none; the log says so."""
    for name in ("digits.toml", "digits copy.toml"):
        shutil.copy(ROOT / "dags" / "policies" / "digits.toml", tmp_path / name)
    (tmp_path / ".#digits.toml").symlink_to("nobody@nowhere")
    told = told_of(tmp_path, "print(bag.import_errors, sorted(bag.dags))")
    assert "{} ['deliver_digits', 'registry_sweep', 'retrain_digits', 'steer']" in told.stdout
    assert "no DAG is made of a file whose name is no model's: digits copy.toml: " in told.stdout + told.stderr


def test_a_training_may_be_started_by_hand_only(tmp_path: Path) -> None:
    """The schedule `none` makes a DAG that nothing starts but people."""
    text = (ROOT / "dags" / "policies" / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(text.replace('"0 3 * * 1"', '"none"'))
    assert "NullTimetable" in told_of(tmp_path, "print(type(bag.dags['retrain_digits'].timetable).__name__)").stdout


def test_a_policy_may_have_its_serving_tuned(tmp_path: Path) -> None:
    """With the section there is the task, before the package that it is for, and in the pool of the machine that it measures."""
    text = (ROOT / "dags" / "policies" / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(f"{text}\n[tune_serving]\np99_ms = 50\nrate_per_s = 100\nmax_seconds = 60\n")
    code = """
task = bag.dags['deliver_digits'].get_task('tune_serving')
print(task.upstream_task_ids, task.downstream_task_ids, task.pool, task.timeout_s)
"""
    assert told_of(tmp_path, code).stdout.endswith("{'distribution'} {'package'} penstock-cpu 180.0\n")
