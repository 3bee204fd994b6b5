"""People's orders by command, against a director and an Envoy that run: what is kept, what it does at once, what is refused."""

from __future__ import annotations

import functools
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from gateway_fixtures import TOKEN, Client, Stack, begin_rollout, call, make_stable, running, share, until, versions

from delivery import command, orders_command
from delivery.addresses import Addresses
from delivery.airflow_client import Airflow, AirflowRefused
from delivery.director_client import Refused
from delivery.orders import Order
from delivery.traffic import Backend

NAMES = itertools.count(1)
RUN = "deliver__m__v2"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests; each uses a model of its own."""
    with running(Stack(tmp_path_factory.mktemp("shared"))) as stack:
        yield stack


@pytest.fixture
def own(tmp_path) -> Iterator[Stack]:
    """A stack whose director may be killed."""
    with running(Stack(tmp_path)) as stack:
        yield stack


@pytest.fixture
def model() -> str:
    return f"o{next(NAMES)}"


@pytest.fixture(autouse=True)
def _addresses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds the test's stack; there is no registry."""
    if stack := next((request.getfixturevalue(each) for each in ("own", "shared") if each in request.fixturenames), None):
        monkeypatch.setenv("PENSTOCK_DIRECTOR_URL", stack.director_url)
    monkeypatch.setenv("PENSTOCK_DIRECTOR_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PENSTOCK_AIRFLOW_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PENSTOCK_AIRFLOW_PASSWORD", "secret")


async def penstock(*words: str) -> int:
    """The command's exit status; orders are ada's and have a reason."""
    said = () if words[0] == "status" else ("--who", "ada", "--why", "because")
    return await call(command.main, [*words, *said])


async def share_of(stack: Stack, model: str) -> int | None:
    split = (await call(stack.client.model, model)).split
    return split and split.permille


async def test_an_abort_takes_the_share_at_once_and_for_good(shared, model, capsys):
    """When the command returns no client meets the candidate, and its delivery gets no share again; a second abort is refused."""
    async with versions(model, 1, 2) as started, Client(shared, model) as client:
        await begin_rollout(shared, *started)
        await call(shared.client.begin_delivery, model, 2, RUN)
        await call(shared.client.put_split, model, RUN, 500, 30)
        assert await penstock("abort", model) == 0
        assert share(await client.many(100), 2) == 0
        assert await share_of(shared, model) is None
        with pytest.raises(Refused, match="v2 was aborted by ada: because"):
            await call(shared.client.put_split, model, RUN, 500, 30)
        with pytest.raises(Refused, match="was aborted"):
            await call(shared.client.put_shadow, model, 1000, 30)
        with pytest.raises(Refused, match="was aborted"):
            await call(shared.client.put_stable, model, 2)
        assert await penstock("abort", model) == 1
    said = capsys.readouterr()
    assert f"abort of {model} v2 is ordered, by ada: because" in said.out
    assert "abort makes no sense there; allowed: nothing, it is being taken back" in said.err


async def test_an_undo_is_one_call_and_happens_once(shared, model, capsys):
    """The version before serves when it returns, delivery or not; the registry follows later, and a second undo leads nowhere."""
    async with versions(model, 1, 2) as started, Client(shared, model) as client:
        await begin_rollout(shared, *started)
        await call(shared.client.put_stable, model, 2)
        assert await penstock("undo", model, "--version", "1") == 1
        assert {each.version for each in await client.many(20)} == {2}
        assert await penstock("undo", model) == 0
        assert {each.version for each in await client.many(20)} == {1}
        assert await penstock("undo", model) == 1
        assert {each.version for each in await client.many(20)} == {1}
    said = capsys.readouterr()
    assert "the registry follows" in said.out
    assert "undo is about v2 there and not about v1" in said.err
    assert "allowed: retry" in said.err


async def test_an_undo_may_lead_to_an_archived_version(shared, model):
    """When the command returns the named version serves; one that is not loaded is refused and nothing moves."""
    async with versions(model, 1, 2, 3) as (v1, v2, v3), Client(shared, model) as client:
        await begin_rollout(shared, v2, v3)
        await call(shared.client.put_stable, model, 3)
        await call(shared.client.put_archived, model, [v1.backend])
        assert await penstock("undo", model, "--to", "7") == 1
        assert {each.version for each in await client.many(20)} == {3}
        assert await penstock("undo", model, "--to", "1") == 0
        assert {each.version for each in await client.many(20)} == {1}
        (order,) = (await call(shared.client.orders, model)).orders
    assert (order.version, order.back_to) == (3, 1)


async def test_a_pause_holds_and_the_rest_is_refused(shared, model, capsys):
    """The share stays; what is allowed while paused is said; status shows the order with who and why."""
    async with versions(model, 1, 2) as started:
        await begin_rollout(shared, *started)
        await call(shared.client.begin_delivery, model, 2, RUN)
        await call(shared.client.put_split, model, RUN, 100, 30)
        await call(shared.client.put_archived, model, [Backend(version=7, http="127.0.0.1:9", grpc="127.0.0.1:9")])
        done = [await penstock(*words) for words in (["pause", model], ["pause", model], ["promote", model], ["resume", model])]
        assert (done, await share_of(shared, model)) == ([0, 1, 1, 0], 100)
        assert [await penstock(*words) for words in (["promote", model], ["promote", model, "--fully"], ["approve", model])] == [0, 0, 0]
        assert await penstock("status", model) == 0
        orders = (await call(shared.client.orders, model)).of(RUN)
    said = capsys.readouterr()
    assert [each.action for each in orders] == ["pause", "resume", "promote_now", "promote_fully", "approve"]
    assert {(each.at, each.who, each.why) for each in orders} == {("100 per mille", "ada", "because")}
    assert "at 100 per mille, paused: promote_now makes no sense there; allowed: resume, approve, abort" in said.err
    assert f"{model}: stable v1, candidate v2, archived v7, 100 per mille with the candidate" in said.out
    assert "pause v2 at 100 per mille by ada: because" in said.out


async def test_orders_outlive_the_director(own, model):
    """Killed in mid-rollout and started again it knows what was ordered, and an abort keeps its force; the same order again is the same."""
    async with versions(model, 1, 2) as started:
        await begin_rollout(own, *started)
        await call(own.client.begin_delivery, model, 2, RUN)
        assert await penstock("pause", model) == 0
        assert await penstock("abort", model) == 0
        before = await call(own.client.orders, model)
        own.director.stop(signal.SIGKILL)
        own.director.start()
        await call(own.wait_connected)
        assert await call(own.client.orders, model) == before
        abort = before.orders[-1]
        for _ in range(2):
            words = {"order_id": abort.id, "action": "abort", "who": "ada", "why": "because"}
            assert await call(functools.partial(own.client.order, model, **words)) == before
        with pytest.raises(Refused, match="was aborted"):
            await call(own.client.put_split, model, RUN, 500, 30)
    journal = own.state.with_name("orders.jsonl")
    assert [json.loads(line)["event"] for line in journal.read_bytes().splitlines()].count("order") == 2


async def test_an_undo_that_the_gateway_does_not_carry_out_was_never_ordered(shared, model):
    """With the version before dead nothing changes, and no order is left behind that somebody would obey."""
    async with versions(model, 1, 2) as started, Client(shared, model) as client:
        await begin_rollout(shared, *started)
        await call(shared.client.put_stable, model, 2)
        await started[0].stop()

        async def unhealthy() -> bool:
            return not (await call(shared.client.health, model))[1]

        await until(unhealthy, "the gateway notices that v1 is dead")
        assert await penstock("undo", model) == 1
        assert {each.version for each in await client.many(20)} == {2}
        assert (await call(shared.client.orders, model)).orders == ()


def test_a_retry_is_recorded_and_runs(shared, model, monkeypatch, capsys):
    """The director keeps who and why, Airflow gets a run that is named after the order."""
    runs: list[httpx.Request] = []

    def airflow(request: httpx.Request) -> httpx.Response:
        runs.append(request)
        return httpx.Response(201, json={"access_token": "t"})

    monkeypatch.setattr(orders_command, "Airflow", lambda given: Airflow(given, httpx.MockTransport(airflow)))
    assert command.main(["retry", model, "--version", "7", "--who", "ada", "--why", "disk was full"]) == 0
    (order,) = shared.client.orders(model).orders
    body = json.loads(runs[-1].content)
    assert (order.action, order.version, order.said) == ("retry", 7, "ada: disk was full")
    assert (runs[-1].url.path, runs[-1].headers["Authorization"]) == (f"/api/v2/dags/deliver_{model}/dagRuns", "Bearer t")
    assert (body["dag_run_id"], body["conf"]) == (f"retry__{model}__v7__{order.id}", {"version": 7})
    assert f"deliver_{model} runs it as {body['dag_run_id']}" in capsys.readouterr().out


async def test_an_undo_to_a_version_that_shares_its_server_is_a_task(shared, model, monkeypatch, capsys):
    """Only a task can start it one of its own: the DAG `steer` gets the order, with who and why, and the director none yet."""
    runs: list[httpx.Request] = []

    def airflow(request: httpx.Request) -> httpx.Response:
        runs.append(request)
        return httpx.Response(201, json={"access_token": "t"})

    monkeypatch.setattr(orders_command, "Airflow", lambda given: Airflow(given, httpx.MockTransport(airflow)))
    async with versions(model, 2) as (v2,):
        await make_stable(shared, v2)
        await call(shared.client.put_archived, model, [Backend(version=1, http="127.0.0.1:9", grpc="127.0.0.1:9", name=f"{model}--v1")])
        assert await penstock("undo", model, "--version", "2", "--to", "1") == 0
    body = json.loads(runs[-1].content)
    assert (runs[-1].url.path, body["conf"]) == (
        "/api/v2/dags/steer/dagRuns",
        {"model": model, "action": "undo", "version": 2, "to": 1, "why": "ada: because"},
    )
    assert shared.client.orders(model).orders == ()
    assert f"makes it stable, as {body['dag_run_id']}" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "run"), [(409, True), (200, True), (403, False), (500, False)])
def test_a_run_that_is_there_already_is_no_trouble(status: int, *, run: bool) -> None:
    """The same retry twice is one run; any other answer of Airflow's is told."""
    answers = iter([httpx.Response(201, json={"access_token": "t"}), httpx.Response(status, text="no")])
    addresses = Addresses.from_env({"PENSTOCK_DIRECTOR_URL": "x", "PENSTOCK_DIRECTOR_TOKEN": "y", "PENSTOCK_AIRFLOW_URL": "http://a"})
    airflow = Airflow(addresses, httpx.MockTransport(lambda _: next(answers)))
    order = Order(id="12345678", model="m", version=7, action="retry", who="ada", why="because")
    if run:
        assert airflow.deliver(order) == "retry__m__v7__12345678"
    else:
        with pytest.raises(AirflowRefused, match=f"does not take retry__m__v7__12345678: {status}"):
            airflow.deliver(order)


@pytest.mark.parametrize("words", [["pause"], ["pause", "m"], ["pause", "m", "--why"], ["promot", "m"], []])
def test_wrong_usage_has_a_status_of_its_own(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """64 and a line of usage; a reason is never optional."""
    try:
        status = command.main(words)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert (status, capsys.readouterr().err.startswith("usage: penstock")) == (64, True)


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """No director: status 1. No address: 64, with what to set. No secret is printed."""
    monkeypatch.setenv("PENSTOCK_DIRECTOR_URL", "http://127.0.0.1:9")
    assert command.main(["status"]) == 1
    monkeypatch.delenv("PENSTOCK_DIRECTOR_TOKEN")
    monkeypatch.setenv("PENSTOCK_STATE", str(tmp_path))
    assert command.main(["status"]) == 64
    said = capsys.readouterr().err
    assert "set PENSTOCK_DIRECTOR_URL and _TOKEN" in said
    assert TOKEN not in said


def test_a_word_loads_its_own_module_only() -> None:
    """`penstock status` needs no numpy, and asking for help no httpx either."""
    code = "import sys; from delivery import command; command.main(['--help']); print('httpx' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
    code = "import sys; import delivery.orders_command; print('numpy' in sys.modules, 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
