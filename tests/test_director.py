"""The director with a real Envoy and real servers behind it: what clients see while traffic moves."""

import asyncio
import itertools
import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import httpx
import pytest
from gateway_fixtures import (
    ROOT,
    TOKEN,
    Client,
    Load,
    Stack,
    begin_rollout,
    call,
    make_stable,
    rows_after,
    running,
    share,
    until,
    versions,
    wait_until,
)

from delivery.director_client import Director, DirectorUnreachable, LeaseHeld, LeaseLost, NotThere, Refused
from delivery.gateway_admin import Admin, GatewayAway
from delivery.state_file import StateFile
from delivery.switchboard import Settings, Switchboard
from delivery.traffic import Backend, Lease, ModelTraffic

NAMES = itertools.count(1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Stack]:
    """One stack for all tests that leave it as they found it; each uses a model of its own."""
    with running(Stack(tmp_path_factory.mktemp("shared"))) as stack:
        yield stack


@pytest.fixture
def own(tmp_path) -> Iterator[Stack]:
    """A stack that may be killed, with a short time to live."""
    with running(Stack(tmp_path, ttl_s=1.0)) as stack:
        yield stack


@pytest.fixture
def model() -> str:
    return f"m{next(NAMES)}"


# ---- the rollout's way


async def test_nothing_stable_is_not_found_and_says_so(shared, model):
    """A candidate alone serves nobody: 404 with the reason; an unknown model has another reason."""
    async with versions(model, 1) as (v1,):
        await call(shared.client.put_candidate, model, *v1.address)
        answers = [await call(httpx.post, f"{shared.gateway_url}/v2/models/{each}/infer") for each in (model, "unknown")]
    assert [(each.status_code, each.headers["x-penstock"]) for each in answers] == [(404, "no-stable-version"), (404, "unknown-model")]


async def test_the_first_version_serves_both_protocols(shared, model):
    """After its promotion the first version has all traffic, and the answer names its cluster."""
    async with versions(model, 1) as (v1,), Client(shared, model) as client:
        await make_stable(shared, v1)
        answers = [await client.http(), await client.grpc()]
        named = await call(lambda: httpx.post(f"{shared.gateway_url}/v2/models/{model}/infer", json={}))
    assert [(each.status, each.version) for each in answers] == [(200, 1), (200, 1)]
    assert named.headers["x-penstock-version"] == f"{model}--v1--http"


@pytest.mark.parametrize("path", ["index", "{model}/trace/setting", "{model}/unload", "../repository/models/{model}/load"])
async def test_clients_cannot_manage_the_server(shared, model, path):
    """Only calls that serve the model pass; Triton's settings and its repository do not exist for clients."""
    async with versions(model, 1) as (v1,):
        await make_stable(shared, v1)
        answer = await call(httpx.post, f"{shared.gateway_url}/v2/models/{path.format(model=model)}")
    assert (answer.status_code, answer.headers["x-penstock"]) == (404, "unknown-model")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_split_is_in_force_when_its_call_returns(shared, model, protocol):
    """The very next requests are shared as set; before it and after its release the candidate gets exactly none."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        before = await client.many(200, protocol)
        await call(shared.client.put_split, model, "me", 500, 10)
        during = await client.many(400, protocol)
        await call(shared.client.release, model, "me")
        after = await client.many(200, protocol)
    assert (share(before, 2), share(after, 2)) == (0, 0)
    assert 0.4 < share(during, 2) < 0.6  # four standard deviations


async def test_a_user_stays_with_a_version_while_the_share_grows(shared, model):
    """The same user gets the same version over both protocols, and nobody goes back to stable as the share grows."""
    users = [f"user-{number}" for number in range(60)]
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        seen = []
        for permille in (200, 600):
            await call(shared.client.put_split, model, "me", permille, 10)
            seen.append([(await client.http(user)).version for user in users])
            assert [(await client.grpc(user)).version for user in users] == seen[-1]
    assert [late for early, late in zip(*seen, strict=True) if early == 2] == [2] * seen[0].count(2)


async def test_the_second_holder_is_refused(shared, model):
    """One lease, one holder: setting, renewing and releasing are refused to others, and the holder is named."""
    async with versions(model, 1, 2) as (v1, v2):
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 100, 10)
        for ask in (
            lambda: shared.client.put_split(model, "you", 1, 1),
            lambda: shared.client.renew(model, "you", 1),
            lambda: shared.client.release(model, "you"),
        ):
            with pytest.raises(LeaseHeld) as refused:
                await call(ask)
            assert refused.value.holder == "me"
        split = shared.client.model(model).split
    assert (split.holder, split.permille) == ("me", 100)


async def test_a_lease_that_nobody_renews_lapses(shared, model):
    """All traffic is on stable after its time, and who comes late is told."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 1000, 0.5)

        async def lapsed() -> bool:
            return (await client.http()).version == 1

        await until(lapsed, "the lease lapses")
        with pytest.raises(LeaseLost):
            await call(shared.client.renew, model, "me", 1)
        assert share(await client.many(100), 2) == 0
        assert shared.client.model(model).split is None


async def test_a_renewed_lease_outlives_its_first_time(shared, model):
    """Renewing begins the time anew and keeps the share."""
    async with versions(model, 1, 2) as (v1, v2):
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 30, 1)
        assert await call(shared.client.renew, model, "me", 60) == 30
        assert shared.client.model(model).split.expires_in_s > 50


async def test_promotion_under_load_has_no_error(shared, model):
    """From the candidate's registration to the removal of the old version clients get answers, and after it none of the old one's."""
    async with versions(model, 1, 2, 3) as (v1, v2, v3), Client(shared, model) as client:
        await make_stable(shared, v1)
        async with Load(client) as load:
            for version in (v2, v3):
                await call(shared.client.put_candidate, model, *version.address)
                for permille in (100, 1000):
                    await call(shared.client.put_split, model, "me", permille, 10)
                    await load.more(40)
                promoted = await call(shared.client.put_stable, model, version.number)
                after = await load.more(60)
            await call(shared.client.delete_previous, model)
            await load.more(60)
    assert load.errors == []
    assert (promoted.stable.version, promoted.previous.version, promoted.candidate, promoted.split) == (3, 2, None, None)
    assert share(after[20:], 3) == 1
    assert shared.clusters() & {f"{model}--v{number}--http" for number in (1, 2, 3)} == {f"{model}--v3--http"}


async def test_promotion_twice_is_promotion_once(shared, model):
    """A task that is tried again finds its work done."""
    async with versions(model, 1, 2) as (v1, v2):
        await begin_rollout(shared, v1, v2)
        first = await call(shared.client.put_stable, model, 2)
        assert await call(shared.client.put_stable, model, 2) == first


async def test_removing_a_candidate_takes_its_traffic_first(shared, model):
    """Its clusters go without one client error, and removing it again is no error either."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 500, 10)
        async with Load(client) as load:
            await load.more(60)
            await call(shared.client.delete_candidate, model, 2)
            after = await load.more(60)
        again = await call(shared.client.delete_candidate, model, 2)
    assert load.errors == []
    assert share(after[20:], 2) == 0
    assert (again.candidate, again.split) == (None, None)
    assert f"{model}--v2--http" not in shared.clusters()


async def test_a_candidate_that_moved_is_reached_at_its_new_address(shared, model):
    """The same version at other ports replaces its clusters."""
    async with versions(model, 1, 2, 2) as (v1, old, new), Client(shared, model) as client:
        await begin_rollout(shared, v1, old)
        await old.stop()
        await call(shared.client.put_candidate, model, *new.address)
        await call(shared.client.put_split, model, "me", 1000, 10)
        assert {each.version for each in await client.many(20)} == {2}
        assert new.asked == 20


async def test_a_candidate_that_is_not_ready_is_not_registered(shared, model):
    """Nothing of it stays behind: no role, no cluster."""
    async with versions(model, 1) as (v1,):
        await make_stable(shared, v1)
        with pytest.raises(DirectorUnreachable, match=f"health of {model} v2"):
            await call(shared.client.put_candidate, model, 2, "127.0.0.1:1", "127.0.0.1:1")
        assert shared.client.model(model).candidate is None
        wait_until(lambda: f"{model}--v2--http" not in shared.clusters(), "the clusters are gone")


# ---- the archive


@pytest.mark.parametrize("suffix", ["", "--v1"])
async def test_an_archived_version_answers_those_who_pin_it(shared, model, suffix):
    """Also where its server knows it by another name; nobody else gets there, and nothing of it is evidence."""
    name = f"{model}{suffix}"
    async with versions(model, 2) as (v2,), versions(name, 1) as (old,), Client(shared, model) as client:
        await make_stable(shared, v2)
        await call(shared.client.put_archived, model, [replace(old.backend, name=name if suffix else None)])
        pinned = [await client.http(x_model_version="1"), await client.grpc(x_model_version="1")]
        others = await client.many(20)
        rows = await rows_after(shared, model, 0, 20)
    assert [(each.status, each.version) for each in pinned] == [(200, 1), (200, 1)]
    assert {each.version for each in others} == {2}
    assert (old.asked, {row.version for row in rows}) == (2, {2})


async def test_what_left_the_archive_is_an_unknown_version(shared, model):
    """Its clusters go with its routes; the director tells who is archived until then."""
    async with versions(model, 2) as (v2,), versions(f"{model}--v1", 1) as (old,), Client(shared, model) as client:
        await make_stable(shared, v2)
        await call(shared.client.put_archived, model, [old.backend])
        assert shared.client.model(model).archived == (old.backend,)
        await call(shared.client.put_archived, model, [])
        assert (await client.http(x_model_version="1")).status == 404
    assert not any(name.startswith(f"{model}--v1--") for name in shared.clusters())


async def test_no_version_with_a_role_is_archived(shared, model):
    """The director refuses it and says why."""
    async with versions(model, 2) as (v2,):
        await make_stable(shared, v2)
        with pytest.raises(Refused, match="v2 has a server of its own"):
            await call(shared.client.put_archived, model, [v2.backend])


# ---- what is judged


async def test_every_request_leaves_a_row(shared, model):
    """HTTP and gRPC requests are rows of the version that they were sent to, with a latency."""
    async with versions(model, 1) as (v1,), Client(shared, model) as client:
        await make_stable(shared, v1)
        await client.many(10)
        await client.many(10, "grpc")
        rows = await rows_after(shared, model, 0, 20)
    assert [(row.number, row.version, row.ok) for row in rows] == [(number, 1, True) for number in range(1, 21)]
    assert all(0 < row.latency_ms < 5000 for row in rows)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_failures_of_a_candidate_reach_the_judge_and_no_client(shared, model, protocol):
    """A candidate that fails every second request: clients see answers only, rows see the failures."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        v2.fails = lambda number: number % 2 == 0
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 1000, 10)
        answers = await client.many(40, protocol)
        rows = await rows_after(shared, model, 0, 40)
    assert {each.status for each in answers} == {200}
    assert {row.version for row in rows} == {2}
    assert sum(not row.ok for row in rows) == sum(each.version == 1 for each in answers) > 0


@pytest.mark.parametrize("status", ["UNKNOWN", "INTERNAL", "UNAVAILABLE", "CANCELLED"])
async def test_what_a_candidate_says_when_it_breaks_or_ends_is_not_passed_on(shared, model, status):
    """A server on its way down cancels the calls that it has: stable answers them, like those that broke."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        v2.fails, v2.grpc_failure = lambda _: True, grpc.StatusCode[status]
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 1000, 10)
        answers = await client.many(10, "grpc")
        rows = await rows_after(shared, model, 0, 10)
    assert {(each.status, each.version) for each in answers} == {(200, 1)}
    assert {(row.version, row.ok) for row in rows} == {(2, False)}


async def test_a_killed_candidate_fails_every_request_that_was_meant_for_it(shared, model):
    """Its requests are answered by stable and count against it, also after Envoy has given it up."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 500, 10)
        async with Load(client) as load:
            await load.more(40)
            await v2.stop()
            seen = shared.client.observations(model).last
            await load.more(300)
        rows = [row for row in await rows_after(shared, model, seen, 300) if row.version == 2]
    assert load.errors == []
    assert len(rows) > 50
    assert [row for row in rows[20:] if row.ok] == []


async def test_a_candidate_that_hangs_costs_time_and_no_error(shared, model):
    """Stable is asked after one second; the hanging version's requests are failures."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_split, model, "me", 1000, 10)
        v2.delay_s = 4
        answers = await client.many(20)
        rows = await rows_after(shared, model, 0, 20)
    assert {(each.status, each.version) for each in answers} == {(200, 1)}
    assert not any(row.ok for row in rows)


async def test_mirrored_requests_are_counted_with_their_failures(shared, model):
    """A full mirror repeats every request at the candidate; clients get stable's answers and the judge gets the failures."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        v2.fails = lambda number: number % 3 == 0  # never three in a row, which would eject it
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_shadow, model, 1000, 60)
        answers = [*await client.many(30), *await client.many(30, "grpc")]

        async def counted() -> bool:
            return shared.client.mirrored(model).requests == 60

        await until(counted, "60 mirrored requests")
        await call(shared.client.put_shadow, model, 0)
        await client.many(30)
        mirrored = shared.client.mirrored(model)
    assert {(each.status, each.version) for each in answers} == {(200, 1)}
    assert (mirrored.requests, mirrored.failures, v2.asked) == (60, 20, 60)


async def test_a_mirror_that_nobody_renews_lapses(shared, model):
    """A copy of the traffic is candidate traffic: it ends with its time, though nobody takes it back."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_shadow, model, 1000, 2)
        await client.many(20)
        await until(lambda: _no_mirror(shared, model), "the mirror lapses")
        await call(shared.client.put_split, model, "me", 0, 10)  # a confirmed change: Envoy is up to date
        await until(lambda: _no_mirror_route(shared, model), "the routes are without it")
        before = v2.asked
        await client.many(20)
    assert before > 0
    assert v2.asked == before


async def _no_mirror(stack: Stack, model: str) -> bool:
    return stack.client.model(model).shadow_permille == 0


async def _no_mirror_route(stack: Stack, model: str) -> bool:
    page = (await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{stack.port['admin']}/config_dump?resource=dynamic_route_configs")).json()
    routes = [each for table in page["configs"] for host in table["route_config"]["virtual_hosts"] for each in host["routes"]]
    return not any(each.get("route", {}).get("request_mirror_policies") for each in routes if each["name"].startswith(f"{model}-"))


async def test_traffic_cannot_be_moved_past_the_director(shared, model):
    """Envoy's own admin interface sets no weight: there is no layer that it could write to."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        key = f"split.{model}.{model}--v2--http"
        answer = await call(httpx.post, f"http://127.0.0.1:{shared.port['admin']}/runtime_modify?{key}=1000")
        assert share(await client.many(50), 2) == 0
    assert (answer.is_success, key in shared.runtime()) == (False, False)


# ---- when something dies


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_its_director_the_gateway_gives_everything_to_stable(own, blow):
    """Killed or frozen, nobody tells Envoy anything: the split's time to live ends in Envoy itself, without a client error."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 60)
        async with Load(client) as load:
            assert share(await load.more(20), 2) == 1
            own.director.send(blow)

            async def on_stable() -> bool:
                return share(load.answers[-20:], 2) == 0

            await until(on_stable, "all traffic on stable")
    assert load.errors == []
    own.director.stop(signal.SIGKILL)


async def test_a_frozen_director_wakes_up_without_the_lease_that_ran_out(own):
    """What it sends first after waking is not the split of a lease that ended while it slept."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 1.5)
        over_s = time.monotonic() + 1.5
        own.director.send(signal.SIGSTOP)

        async def on_stable_and_over() -> bool:
            return (await client.http()).version == 1 and time.monotonic() > over_s

        await until(on_stable_and_over, "Envoy drops the split and the lease's time is over")
        own.director.send(signal.SIGCONT)
        await until(lambda: _awake(own), "the director answers")
        assert share(await client.many(100), 2) == 0
        assert own.client.model("digits").split is None


async def _awake(stack: Stack) -> bool:
    return (await asyncio.to_thread(httpx.get, f"{stack.director_url}/health")).status_code == 200


async def test_a_restarted_director_knows_its_models_and_has_no_leases(own):
    """Roles are durable, leases and mirrors are not; the rollout can go on with a new split."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 60)
        await call(own.client.put_shadow, "digits", 500, 60)
        before = own.client.observations("digits").epoch
        own.director.stop(signal.SIGKILL)
        own.director.start()
        await asyncio.to_thread(own.wait_connected)
        view = own.client.model("digits")
        assert (view.stable, view.candidate, view.split, view.shadow_permille) == (v1.backend, v2.backend, None, 0)
        assert share(await client.many(100), 2) == 0
        await call(own.client.put_split, "digits", "me", 1000, 60)
        assert share(await client.many(20), 2) == 1
        assert own.client.observations("digits").epoch != before


async def test_a_director_that_is_stopped_takes_the_splits_back_first(own):
    """SIGTERM ends with status 0 and everything on stable at once, not after the time to live."""
    async with versions("digits", 1, 2) as (v1, v2):
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 60)
        assert await asyncio.to_thread(own.director.stop) == 0
        assert [key for key in own.runtime() if key.startswith("split.")] == []


async def test_without_a_gateway_nothing_is_changed(own):
    """Every change is refused with the reason, and the state on disk stays as it was."""
    async with versions("digits", 1, 2) as (v1, v2):
        await begin_rollout(own, v1, v2)
        before = own.state.read_bytes()
        own.envoy.stop()
        wait_until(lambda: httpx.get(f"{own.director_url}/health").json()["gateway"] == "waiting", "the director notices")
        for ask in (
            lambda: own.client.put_candidate("digits", 3, *v2.address[1:]),
            lambda: own.client.put_shadow("digits", 10, 10),
            lambda: own.client.put_split("digits", "me", 10, 10),
            lambda: own.client.put_stable("digits", 2),
        ):
            with pytest.raises(DirectorUnreachable, match="gateway is not connected"):
                await call(ask)
        assert (own.state.read_bytes(), own.client.model("digits").split) == (before, None)


async def test_a_frozen_gateway_confirms_nothing_and_everything_is_taken_back(own):
    """What Envoy does not show is not done: the split is given back, the promotion is not remembered."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        before = own.state.read_bytes()
        own.envoy.send(signal.SIGSTOP)
        for ask in (lambda: own.client.put_split("digits", "me", 1000, 60), lambda: own.client.put_stable("digits", 2)):
            with pytest.raises(DirectorUnreachable):
                await call(ask)
        own.envoy.send(signal.SIGCONT)
        assert (own.state.read_bytes(), own.client.model("digits").split) == (before, None)
        await asyncio.to_thread(own.wait_connected)
        await call(own.client.put_split, "digits", "me", 0, 60)  # a confirmed change: Envoy is up to date
        assert share(await client.many(50), 2) == 0


async def test_a_restarted_gateway_comes_back_with_the_routes(own):
    """Routes are files: Envoy serves stable without asking anybody, and gets the split again from the director."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 60)
        own.envoy.stop(signal.SIGKILL)
        own.envoy.start()

        async def on_candidate() -> bool:
            return (await client.http()).version == 2

        await until(on_candidate, "the split is in force again")
        assert (await client.grpc()).status == 200


def test_no_lease_is_sent_after_its_time(tmp_path):
    """What is sent depends on the clock alone, not on a timer that may come late."""
    clock = [0.0]
    models = {"digits": ModelTraffic(model="digits", stable=backend(1), candidate=backend(2))}
    state = StateFile(tmp_path / "state.json")
    state.write(models)
    board = Switchboard(state=state, files=tmp_path, admin=Admin(_nobody), settings=Settings(), now_s=lambda: clock[0])
    board._leases["digits"] = Lease(holder="me", permille=300, expires_at_s=10.0, stable=1, candidate=2)
    before = board._weights()
    clock[0] = 10.0
    assert (before["split.digits.digits--v2--http"], board._weights(), board.lease("digits")) == (300, {}, None)


async def test_a_mirror_is_renewed_without_touching_the_gateway(tmp_path):
    """The same share again begins its time anew and renders nothing; unrenewed it ends, in the routes' file and in the state."""
    clock = [0.0]
    models = {"digits": ModelTraffic(model="digits", stable=backend(1), candidate=backend(2))}
    state = StateFile(tmp_path / "state.json")
    state.write(models)
    board = Switchboard(state=state, files=tmp_path, admin=Admin(_nobody), settings=Settings(), now_s=lambda: clock[0])
    board._remember(models["digits"].with_shadow(100))
    board._mirrors["digits"] = 5.0
    before = (tmp_path / "rds" / "rds.json").stat().st_mtime_ns
    clock[0] = 4.0
    await board.put_shadow("digits", permille=100, ttl_s=5)  # nobody is connected: a change would be refused
    clock[0] = 8.9
    board.lapse()
    assert (board.traffic("digits").shadow_permille, (tmp_path / "rds" / "rds.json").stat().st_mtime_ns) == (100, before)
    clock[0] = 9.0
    with pytest.raises(GatewayAway):
        await board.put_shadow("digits", permille=100, ttl_s=5)
    async with board._locks["digits"]:
        board.lapse()
        assert board.traffic("digits").shadow_permille == 100
    board.lapse()
    assert (board.traffic("digits").shadow_permille, state.read()["digits"]) == (0, models["digits"])


def backend(version: int) -> Backend:
    return Backend(version=version, http=f"127.0.0.1:{8000 + version}", grpc=f"127.0.0.1:{9000 + version}")


async def _nobody(path: str) -> bytes:
    raise GatewayAway(path)


def test_a_damaged_state_stops_the_director(tmp_path):
    """No director is better than one that forgets what is stable: it ends and names what it found."""
    stack = Stack(tmp_path)
    stack.state.parent.mkdir(parents=True)
    stack.state.write_text('{"format": 1, "models": {"digits": {"model": "digits", "share": 1}}}')
    stack.director.start()
    try:
        assert stack.director.wait() == 1
    finally:
        stack.director.stop()
    assert "unknown key models.digits.share" in (tmp_path / "director.log").read_text()


# ---- what Prometheus is told


async def test_servers_that_tell_their_figures_are_targets(shared, model):
    """Each with its model, its version and its role of now; the form is that of Prometheus's HTTP service discovery."""
    async with versions(model, 1, 2) as (v1, v2):
        await call(lambda: shared.client.put_candidate(model, *v1.address, metrics="127.0.0.1:7001"))
        await call(shared.client.put_stable, model, 1)
        await call(lambda: shared.client.put_candidate(model, *v2.address, metrics="127.0.0.1:7002"))
        before = await call(targets, shared, model)
        await call(shared.client.put_stable, model, 2)
        after = await call(targets, shared, model)
    assert before == {("127.0.0.1:7001", "1", "stable"), ("127.0.0.1:7002", "2", "candidate")}
    assert after == {("127.0.0.1:7001", "1", "previous"), ("127.0.0.1:7002", "2", "stable")}


async def test_a_server_that_tells_no_figures_is_no_target(shared, model):
    """A version of before there were metrics serves on, and Prometheus is not sent to a guessed address."""
    async with versions(model, 1) as (v1,):
        await make_stable(shared, v1)
        assert (shared.client.model(model).stable.metrics, targets(shared, model)) == (None, set())


def targets(stack: Stack, model: str) -> set[tuple[str, str, str]]:
    answer = ask(stack, "GET", "/v1/targets")
    assert answer.headers["content-type"].startswith("application/json")  # Prometheus takes no other
    rows = [each for each in answer.json() if each["labels"]["model"] == model]
    assert all(set(each) == {"targets", "labels"} and set(each["labels"]) == {"model", "version", "role"} for each in rows)
    return {(each["targets"][0], each["labels"]["version"], each["labels"]["role"]) for each in rows}


async def test_alerts_are_made_of_what_envoy_tells(shared, model):
    """Every Envoy counter that the rules name is one that this Envoy shows for a version's cluster, under this label."""
    named = set(re.findall(r"envoy_cluster_\w*rq_\w+", (ROOT / "docker" / "prometheus" / "rules.yml").read_text()))
    async with versions(model, 1) as (v1,), Client(shared, model) as client:
        await make_stable(shared, v1)
        v1.fails = lambda _: True
        await client.many(4)
        page = (await call(httpx.get, f"http://127.0.0.1:{shared.port['admin']}/stats/prometheus")).text
    lines = [line for line in page.splitlines() if f'envoy_cluster_name="{model}--v1--http"' in line]
    assert len(named) == 3
    assert named <= {line.partition("{")[0] for line in lines}
    assert all(any(line.startswith(f"{name}{{") and 'class="5"' in line for line in lines) for name in named if name.endswith("_xx"))


# ---- the API's edges


def ask(stack: Stack, method: str, path: str, **more) -> httpx.Response:
    return httpx.request(method, f"{stack.director_url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, **more)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer \xe9"}])
@pytest.mark.parametrize("path", ["/v1/models/digits", "/v1/models/digits/observations?after=0", "/v1/targets", "/anything"])
def test_without_the_token_nothing_is_told(shared, headers, path):
    """Missing or wrong: 401 for every path."""
    coded = {key: value.encode("latin-1") for key, value in headers.items()}
    assert httpx.get(f"{shared.director_url}{path}", headers=coded).status_code == 401


def test_health_is_open(shared):
    """Supervisors ask without a token."""
    assert httpx.get(f"{shared.director_url}/health").json() == {"status": "ok", "gateway": "connected"}


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("PUT", "split", {"holder": "a", "permille": 1, "ttl_s": 1, "weight": 2}, "weight"),
        ("PUT", "split", {"holder": "a", "permille": 1}, "ttl_s"),
        ("PUT", "split", {"holder": "a", "permille": 1.5, "ttl_s": 1}, "permille"),
        ("PUT", "split", {"holder": "a", "permille": True, "ttl_s": 1}, "permille"),
        ("PUT", "shadow", {"permille": 1001, "ttl_s": 5}, "permille"),
        ("PUT", "shadow", {"permille": 1}, "ttl_s"),
        ("PUT", "shadow", {"permille": 1, "ttl_s": 1}, "ttl_s"),
        ("PUT", "candidate", {"version": 1, "http": "example.org:80", "grpc": "127.0.0.1:1"}, "example.org"),
        ("PUT", "candidate", {"version": 0, "http": "127.0.0.1:1", "grpc": "127.0.0.1:1"}, "version"),
        ("PUT", "candidate", {"version": 1, "http": "127.0.0.1:1", "grpc": "127.0.0.1:1", "slice_header": "X:"}, "slice_header"),
        ("PUT", "candidate", {"version": 1, "http": "127.0.0.1:1", "grpc": "127.0.0.1:1", "metrics": "triton:8002"}, "triton"),
        ("PUT", "stable", {"version": "2"}, "version"),
        ("POST", "undo", {}, "version"),
        ("POST", "undo", {"version": 1, "holder": "a"}, "holder"),
        ("PUT", "stable", [], "JSON object"),
        ("POST", "split/renew", {"holder": "a", "ttl_s": 1, "permille": 3}, "permille"),
        ("DELETE", "split", None, "holder"),
        ("DELETE", "candidate?version=x", None, "version"),
        ("GET", "observations?after=-1", None, "after"),
        ("GET", "observations?before=1", None, "after"),
    ],
)
def test_a_wrong_request_is_refused_and_named(shared, method, path, body, named):
    """400 with the key at fault, and nothing changed."""
    answer = ask(shared, method, f"/v1/models/digits/{path}", json=body)
    assert (answer.status_code, named in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("name", ["Digits", "a--b", "a.b"])
def test_names_that_are_no_models_are_refused(shared, name):
    """What could not be part of a cluster's name is 400, not an empty model."""
    assert ask(shared, "GET", f"/v1/models/{name}").status_code == 400


@pytest.mark.parametrize(
    ("content", "status"), [(b"{", 400), (b"\xff\xfe", 400), (b"", 400), (b'{"permille": NaN}', 400), (b" " * 70_000, 413)]
)
def test_a_body_that_is_no_json_or_too_large_is_refused(shared, content, status):
    """The error is JSON as well."""
    answer = ask(shared, "PUT", "/v1/models/digits/shadow", content=content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_unknown_models_have_nothing(shared):
    """Asking for a model that was never delivered is no error."""
    view = shared.client.model("never-seen")
    assert (view.stable, view.previous, view.candidate, view.shadow_permille, view.split) == (None, None, None, 0, None)


def test_shares_of_nothing_are_not_found(shared):
    """A split, a mirror or its counters without a candidate: not there."""
    for call_it in (
        lambda: shared.client.put_split("nobody", "me", 10, 1),
        lambda: shared.client.put_shadow("nobody", 10, 10),
        lambda: shared.client.put_stable("nobody", 1),
        lambda: shared.client.mirrored("nobody"),
    ):
        with pytest.raises(NotThere):
            call_it()


def test_clean_up_of_nothing_succeeds(shared):
    """Teardowns run whatever happened before them."""
    assert shared.client.release("nobody", "me").split is None
    assert shared.client.put_shadow("nobody", 0).shadow_permille == 0
    assert shared.client.delete_candidate("nobody", 1).candidate is None
    assert shared.client.delete_previous("nobody").previous is None
    assert shared.client.health("nobody") == {}
    assert "nobody" not in json.loads(shared.state.read_text())["models"]


def test_a_wrong_token_is_refused_for_good(shared):
    """The client tells it from a director that is away."""
    with pytest.raises(Refused, match="token"):
        Director(shared.director_url, "wrong").model("digits")


def test_no_director_is_worth_a_retry():
    """Nobody listens: unreachable, with the address."""
    with pytest.raises(DirectorUnreachable, match=r"127\.0\.0\.1:1"):
        Director("http://127.0.0.1:1", TOKEN).model("digits")
