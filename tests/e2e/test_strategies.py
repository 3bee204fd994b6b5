"""What a person or a policy chooses: blue-green, a mirror alone, and what becomes of a version that another one meets."""

from __future__ import annotations

import httpx
import pytest

from bench.world import DELIVER, MODEL, World

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(400)]


def states(world: World, run: str) -> dict[str, str]:
    return {each.task: each.state for each in world.airflow.tasks(DELIVER, run)}


def pinned(world: World, number: int, call: str, **body: object) -> httpx.Response:
    """What the gateway answers to a call of Triton's about one version, pinned by its header."""
    url = f"http://{world.stage.settings.gateway_address}/v2/models/{MODEL}/{call}"
    headers = {"x-model-version": str(number)}
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.post(url, headers=headers, json=body) if body else client.get(url, headers=headers)


TUNED = """
[tune_serving]
p99_ms = 2000.0
rate_per_s = 200.0
max_seconds = 30.0
instances = [1, 2]
threads = [1]
delay_us = [0]
preferred = [0]
"""


def test_blue_green_shifts_at_once_and_a_newer_version_waits(world: World) -> None:
    """All traffic at one go, watched, then promoted, served as tuned; a version that comes meanwhile waits and has its own answer after."""
    stable = world.share().stable
    number = world.register_again(stable)
    with world.policy_with(("\n[retrain]", f"{TUNED}\n[retrain]")):
        world.until(lambda: "tune_serving" in world.airflow.task_ids(DELIVER) or None, "the task in the DAG", 60)
        run = world.airflow.trigger(DELIVER, version=number, strategy="blue_green")
        world.until_share(1000)
        newer = world.register("s3://nowhere/model")
        world.until(lambda: world.run_state(newer) == "queued" or None, "the newer version's run", 60)
        assert world.ended(number, run) == "promoted", world.why(number)
        assert world.outcome(newer) == "refused"
    assert world.findings(number, "tune_serving")["tuned"]["outcome"] == "passed"
    assert pinned(world, number, "config").json()["parameters"] == {"intra_op_thread_count": {"string_value": "1"}}
    assert {name for name, state in states(world, run).items() if state == "skipped"} == {
        "container_check",  # the local stack has no engine
        "shadow",
        *(f"{noun}_{share}" for noun in ("traffic_shift", "rollback_sensor") for share in (10, 100, 500)),
    }
    ended, began = world.airflow.started_and_ended(DELIVER, run)[1], world.airflow.started_and_ended(DELIVER, world.run_of(newer))[0]
    assert None not in (ended, began)
    assert ended <= began
    assert (world.registry.alias(MODEL, "production"), world.share().stable) == (number, number)
    assert (world.registry.alias(MODEL, "previous"), world.director.previous(MODEL)) == (stable, stable)


def test_a_shadow_mirrors_and_promotes_nothing(world: World) -> None:
    """The strategy `shadow` ends after the mirror: nobody's answer came from the candidate, and production stays."""
    stable = world.share().stable
    number = world.register_again(stable)
    run = world.airflow.trigger(DELIVER, version=number, strategy="shadow")
    world.until(lambda: world.share().shadow_permille == 1000 or None, "the mirror", 300)
    assert world.ended(number, run) == "dry_run", world.why(number)
    told = states(world, run)
    assert (told["shadow"], told["traffic_shift_10"], told["promote"]) == ("success", "skipped", "skipped")
    share = world.share()
    assert (share.stable, share.candidate, share.shadow_permille) == (stable, 0, 0)
    assert world.registry.alias(MODEL, "production") == stable


def test_a_newer_version_takes_the_place_where_the_policy_says_so(world: World) -> None:
    """Under `supersedes` a version in mid-canary is taken back when a newer one wants its turn, and both end with a reason."""
    stable = world.share().stable
    with world.policy_with(('newer = "waits"', 'newer = "supersedes"')):
        number = world.register_again(stable)
        run = world.airflow.trigger(DELIVER, version=number)
        world.until_share(10)
        newer = world.register("s3://nowhere/model")
        assert world.ended(number, run) == "superseded"
        assert f"v{newer} arrived" in world.why(number)
        assert world.outcome(newer) == "refused"
    share = world.share()
    assert (share.stable, share.candidate, share.permille) == (stable, 0, 0)


def test_a_person_pauses_aborts_and_retries_a_rollout(world: World) -> None:
    """In mid-canary: paused it keeps its share, aborted it is back on stable at once; a retry is a delivery of its own."""
    stable = world.share().stable
    number = world.register_again(stable)
    run = world.airflow.trigger(DELIVER, version=number)
    world.until_share(10)
    assert world.command("pause", MODEL, "--why", "deploy freeze") == 0
    assert world.command("promote", MODEL, "--why", "hurry") == 1
    assert world.command("abort", MODEL, "--why", "wrong data") == 0
    share = world.share()
    assert (share.stable, share.permille) == (stable, 0)
    assert world.ended(number, run) == "rolled_back"
    assert "aborted by ada: wrong data" in world.why(number)
    again = f"retry__{MODEL}__v{number}__{order(world, 'retry')}"
    world.until(lambda: states(world, again).get("claim") == "success" or None, "the retry's claim", 120)
    order(world, "abort")
    assert world.ended(number, again) == "refused"
    assert "aborted by airflow:admin: as the form says" in world.why(number)
    assert world.share().stable == stable


def order(world: World, action: str) -> str:
    """Gives an order as Airflow's form does; the id of its run."""
    run = world.airflow.trigger("steer", model=MODEL, action=action, why="as the form says")
    world.until(lambda: world.airflow.run_state("steer", run) == "success" or None, f"the order {action}", 120)
    return run


def test_a_version_that_turns_bad_while_it_bakes_is_undone(world: World) -> None:
    """The policy says blue-green, and its word counts; promoted, the version fails on new inputs: the one before is stable again.

    What was stable two promotions ago is in the archive from then on, and answers those who pin it; where the version before is bad too, an
    undo by command leads further back to it, on a server of its own.
    """
    words = (
        ('strategy = "shadow then canary"', 'strategy = "blue_green"'),
        ("bake_seconds = 5", "bake_seconds = 60"),
        ("\n[retrain]", "\n[archive]\nversions = 2\n\n[retrain]"),
    )
    if not world.director.previous(MODEL):  # this test alone
        again = world.register_again(world.share().stable)
        assert world.ended(again, world.airflow.trigger(DELIVER, version=again, strategy="blue_green")) == "promoted", world.why(again)
    stable, before = world.share().stable, world.director.previous(MODEL)
    with world.policy_with(*words):
        number = world.deliver("v4")
        world.until(lambda: world.share().stable == number or None, "the promotion", 300)
        world.stage.use_new_scanner(200)
        assert world.outcome(number) == "rolled_back", world.why(number)
        world.stage.use_new_scanner(0)
    told = states(world, world.run_of(number))
    assert (told["shadow"], told["traffic_shift_10"], told["promote"], told["bake"]) == ("skipped", "skipped", "success", "failed")
    assert "requests failed" in world.why(number)
    assert (world.registry.alias(MODEL, "production"), world.share().stable) == (stable, stable)
    assert world.director.archived(MODEL) == {before}
    assert served_as(world, before) == f"{MODEL}--v{before}"
    assert world.command("undo", MODEL, "--to", str(before), "--why", "it was wrong as well") == 0
    world.until(lambda: world.registry.alias(MODEL, "production") == before or None, "the undo to the archived version", 120)
    assert (world.share().stable, world.director.previous(MODEL), served_as(world, before)) == (before, stable, MODEL)
    assert "undone by airflow:admin: ada: it was wrong as well" in world.why(stable)


def served_as(world: World, number: int) -> str:
    """What the server that answers a pinned request calls the model."""
    pixels = {"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}
    answer = pinned(world, number, "infer", inputs=[pixels])
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_name"])
