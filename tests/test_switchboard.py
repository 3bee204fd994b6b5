"""Pins, slices, undo and gaps with a real Envoy, several models behind it, and what is left when something dies."""

import asyncio
import itertools
import signal
import time
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest
from gateway_fixtures import Client, Load, Stack, begin_rollout, call, make_stable, rows_after, running, share, until, versions, wait_until
from scipy.stats import binomtest

from delivery.director_client import DirectorUnreachable, LeaseHeld, Refused
from delivery.gateway_admin import Admin, GatewayAway
from delivery.state_file import StateFile
from delivery.switchboard import Settings, Switchboard

NAMES = itertools.count(1)
UNLIKELY = 1e-4  # of a correct gateway, for each share that is tested


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
    return f"s{next(NAMES)}"


# ---- pinned versions


async def test_testers_get_the_version_that_they_name(shared, model):
    """Stable, previous and candidate, over both protocols, whatever the split says; the answer names the version's cluster."""
    async with versions(model, 1, 2, 3) as (v1, v2, v3), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_stable, model, 2)
        await call(shared.client.put_candidate, model, *v3.address)
        got = [(await ask(x_model_version=str(number))).version for ask in (client.http, client.grpc) for number in (1, 2, 3)]
        url, headers = f"{shared.gateway_url}/v2/models/{model}/infer", {"x-model-version": "3"}
        named = await call(lambda: httpx.post(url, json={}, headers=headers))
    assert got == [1, 2, 3, 1, 2, 3]
    assert named.headers["x-penstock-version"] == f"{model}--v3--http"


async def test_an_unknown_version_is_not_answered_by_another(shared, model):
    """404 with the reason for whatever is not exactly a version that is there; gRPC: unimplemented."""
    pins = ("9", "", "02", "2,2", "stable")
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        url = f"{shared.gateway_url}/v2/models/{model}/infer"
        answers = [await call(lambda pin=pin: httpx.post(url, json={}, headers={"x-model-version": pin})) for pin in pins]
        over_grpc = [(await client.grpc(x_model_version=pin)).status for pin in pins]
        assert (v1.asked, v2.asked) == (0, 0)
    assert [(each.status_code, each.headers["x-penstock"]) for each in answers] == [(404, "unknown-version")] * 5
    assert over_grpc == [12] * 5


async def test_a_pinned_version_answers_for_itself(shared, model):
    """Its error is what the tester gets, after one try, and after its death there is no answer: stable never stands in."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        v2.fails = lambda _: True
        await begin_rollout(shared, v1, v2)
        failed = [(await client.http(x_model_version="2")).status for _ in range(10)]
        failed_grpc = (await client.grpc(x_model_version="2")).status
        asked = v2.asked
        await v2.stop()
        dead = (await client.http(x_model_version="2")).status
    assert (failed, failed_grpc, asked, dead, v1.asked) == ([500] * 10, 13, 11, 503, 0)


async def test_pinned_requests_are_no_evidence(shared, model):
    """Neither the rows nor the mirror's counters know them: testers are no random sample, and may break what they test."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        for _ in range(20):
            await client.http(x_model_version="2")
            await client.grpc(x_model_version="1")
        await client.many(3)
        rows = await rows_after(shared, model, 0, 3)
        mirrored = shared.client.mirrored(model)
    assert [row.number for row in rows] == [1, 2, 3]
    assert (mirrored.requests, v2.asked) == (0, 20)


# ---- slices


async def test_each_row_knows_its_slice(shared, model):
    """The policy's header is copied, at most 40 characters of it; what a client sends under our own name is nobody's slice."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await make_stable(shared, v1)
        await call(shared.client.put_candidate, model, *v2.address, "x-country")
        for ask in (client.http, client.grpc):
            await ask(x_country="nl")
            await ask(x_penstock_slice="forged")
            await ask(x_country="de", x_penstock_slice="forged")
            await ask(x_country="x" * 100)
        rows = await rows_after(shared, model, 0, 8)
    assert [row.slice for row in rows] == ["nl", "", "de", "x" * 40] * 2


async def test_slices_last_until_another_candidate_is_put_without_them(shared, model):
    """A promoted version is judged on by slices; the next delivery's policy says what holds from then on."""
    async with versions(model, 1, 2, 3) as (v1, v2, v3), Client(shared, model) as client:
        await make_stable(shared, v1)
        await call(shared.client.put_candidate, model, *v2.address, "x-country")
        await call(shared.client.put_stable, model, 2)
        await client.http(x_country="nl")
        await call(shared.client.put_candidate, model, *v3.address)
        await client.http(x_country="nl")
        rows = await rows_after(shared, model, 0, 2)
    assert [row.slice for row in rows] == ["nl", ""]


# ---- undo


async def test_undo_under_load_has_no_error(shared, model):
    """The version before is stable again when the call returns, without a lost request; asking again changes nothing."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_stable, model, 2)
        async with Load(client) as load:
            before = await load.more(60)
            undone = await call(shared.client.undo, model, 1)
            after = await load.more(60)
        again = await call(shared.client.undo, model, 1)
    assert load.errors == []
    assert (share(before[20:], 2), share(after[20:], 1)) == (1, 1)
    assert (undone.stable.version, undone.previous.version, again) == (1, 2, undone)


async def test_undo_to_an_archived_version_under_load_has_no_error(shared, model):
    """It serves when the call returns; the versions that had a role are loaded still, and answer those who pin them."""
    async with versions(model, 1, 2, 3) as (v1, v2, v3), Client(shared, model) as client:
        await begin_rollout(shared, v2, v3)
        await call(shared.client.put_stable, model, 3)
        await call(shared.client.put_archived, model, [v1.backend])
        async with Load(client) as load:
            before = await load.more(60)
            undone = await call(shared.client.undo, model, 1)
            after = await load.more(60)
        pinned = [(await client.http(x_model_version=str(number))).version for number in (1, 2, 3)]
    assert load.errors == []
    assert (share(before[20:], 3), share(after[20:], 1)) == (1, 1)
    assert (undone.stable.version, undone.previous.version, undone.archived) == (1, 3, (v2.backend,))
    assert pinned == [1, 2, 3]


async def test_undo_to_a_dead_archived_version_is_refused(shared, model):
    """It must be ready before the routes change: else stable stays stable, and serves."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await make_stable(shared, v2)
        await call(shared.client.put_archived, model, [v1.backend])
        await v1.stop()
        with pytest.raises(DirectorUnreachable, match=f"health of {model} v1"):
            await call(shared.client.undo, model, 1)
        assert share(await client.many(40), 2) == 1
    view = shared.client.model(model)
    assert (view.stable.version, view.archived) == (2, (v1.backend,))


async def test_undo_is_refused_without_a_previous_version_and_while_a_split_is_held(shared, model):
    """409 both times, with what to do, and nothing moves."""
    async with versions(model, 1, 2, 3) as (v1, v2, v3):
        await begin_rollout(shared, v1, v2)
        with pytest.raises(Refused, match="cannot go back to v7"):
            await call(shared.client.undo, model, 7)
        await call(shared.client.put_stable, model, 2)
        await call(shared.client.put_candidate, model, *v3.address)
        await call(shared.client.put_split, model, "me", 10, 10)
        with pytest.raises(LeaseHeld, match="'me'"):
            await call(shared.client.undo, model, 1)
        await call(shared.client.release, model, "me")
        view = await call(shared.client.undo, model, 1)
    assert (view.stable.version, view.previous.version, view.candidate.version) == (1, 2, 3)


async def test_undo_to_a_dead_version_is_refused(shared, model):
    """The previous version must be healthy: else stable stays stable, and serves."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_stable, model, 2)
        await v1.stop()
        await until(lambda: _unhealthy(shared, model, 1), "the gateway notices")
        with pytest.raises(DirectorUnreachable, match=f"{model} v1 at 127.0.0.1:{v1.http_port} is not healthy"):
            await call(shared.client.undo, model, 1)
        assert share(await client.many(40), 2) == 1
        assert shared.client.model(model).stable.version == 2


async def _unhealthy(stack: Stack, model: str, version: int) -> bool:
    return not (await call(stack.client.health, model))[version]


# ---- shares


async def test_shares_are_exact(shared, model):
    """Nothing at 0, everything at 1000, and what lies between as a binomial draw would have it."""
    async with versions(model, 1, 2) as (v1, v2), Client(shared, model) as client:
        await begin_rollout(shared, v1, v2)
        for permille in (0, 10, 500, 990, 1000):
            await call(shared.client.put_split, model, "me", permille, 30)
            answers = await client.many(600)
            got = sum(each.version == 2 for each in answers)
            assert {each.status for each in answers} == {200}
            assert binomtest(got, len(answers), permille / 1000).pvalue > UNLIKELY, (permille, got)
            assert permille not in {0, 1000} or got == 600 * permille // 1000


async def test_models_do_not_disturb_each_other(shared):
    """One is promoted, undone and loses its candidate while others' splits, mirrors and clients go on as if they were alone."""
    names = [f"many{number}" for number in range(3)]
    async with versions(names[0], 1, 2) as (a1, a2), versions(names[1], 1, 2) as (b1, b2), versions(names[2], 1, 2) as (c1, c2):
        for stable, candidate in ((a1, a2), (b1, b2), (c1, c2)):
            await begin_rollout(shared, stable, candidate)
        await call(shared.client.put_split, names[1], "b", 1000, 60)
        await call(shared.client.put_split, names[2], "c", 500, 60)
        async with Client(shared, names[1]) as b, Client(shared, names[2]) as c, Load(b, per_s=100) as b_load, Load(c, per_s=100) as c_load:
            await call(shared.client.put_split, names[0], "a", 300, 60)
            await call(shared.client.put_stable, names[0], 2)
            await call(shared.client.undo, names[0], 1)
            await call(shared.client.delete_previous, names[0])
            await b_load.more(100)
        views = [shared.client.model(name) for name in names]
    assert (b_load.errors, c_load.errors) == ([], [])
    assert share(b_load.answers, 2) == 1
    assert binomtest(round(share(c_load.answers, 2) * len(c_load.answers)), len(c_load.answers), 0.5).pvalue > UNLIKELY
    assert [(each.stable.version, each.split and each.split.holder) for each in views] == [(1, None), (1, "b"), (1, "c")]


# ---- when something dies


async def test_a_restarted_gateway_never_gives_more_than_was_acknowledged(own):
    """Killed under a lease it comes back to stable or to the leased split; a lease that ended meanwhile is not remembered."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 300, 60)
        await _restart(own)
        answers = await client.many(400)
        assert {each.status for each in answers} == {200}
        assert binomtest(sum(each.version == 2 for each in answers), 400, 0.3, alternative="greater").pvalue > UNLIKELY
        own.envoy.stop(signal.SIGKILL)
        with pytest.raises(DirectorUnreachable, match="did not confirm"):
            await call(own.client.release, "digits", "me")  # released all the same
        own.envoy.start()
        await until(lambda: _serves(client), "the gateway serves")
        assert share(await client.many(200), 2) == 0


async def test_a_gateway_that_cannot_reach_its_director_serves_stable(own):
    """Started while the director is gone, it has routes from its files and no split from anybody."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 60)
        own.director.stop(signal.SIGKILL)
        own.envoy.stop(signal.SIGKILL)
        own.envoy.start()
        await until(lambda: _serves(client), "the gateway serves")
        answers = await client.many(100)
    assert {(each.status, each.version) for each in answers} == {(200, 1)}


async def test_a_reader_of_the_rows_is_told_of_gaps(own):
    """Rows under way when Envoy is killed are lost: the gap is counted, and what comes later has the next numbers."""
    async with versions("digits", 1) as (v1,), Client(own, "digits") as client:
        await make_stable(own, v1)
        await client.many(10)
        rows = await rows_after(own, "digits", 0, 10)
        before = own.client.observations("digits")
        await _restart(own)
        await until(lambda: _serves(client), "the gateway serves")

        async def told() -> bool:
            return own.client.observations("digits").gaps > before.gaps

        await until(told, "the gap is told")
        later = await rows_after(own, "digits", before.last, 1)
    assert (before.lost, before.gaps, [row.number for row in rows]) == (0, 0, list(range(1, 11)))
    assert later[0].number == 11


async def test_what_the_gateway_dropped_is_a_gap(tmp_path):
    """Envoy's count is added as it grows and begins anew with Envoy; an Envoy that cannot be asked adds nothing of its own."""
    pages = iter([b"", b"a.logs_dropped: 5", b"a.logs_dropped: 5", b"a.logs_dropped: 2"])

    async def fetch(path: str) -> bytes:
        try:
            return next(pages)
        except StopIteration:
            raise GatewayAway(path) from None

    board = Switchboard(state=StateFile(tmp_path / "state.json"), files=tmp_path, admin=Admin(fetch), settings=Settings())
    assert [(await board.seen_after("digits", 0))["gaps"] for _ in range(5)] == [0, 5, 5, 7, 7]


async def test_stable_dies_and_previous_answers(shared, model):
    """Where a previous version is kept nobody notices; where none is, it is told as unhealthy and clients get errors, not silence."""
    alone = f"{model}-alone"
    async with (
        versions(model, 1, 2) as (v1, v2),
        versions(alone, 1) as (lone,),
        Client(shared, model) as client,
        Client(shared, alone) as other,
    ):
        await begin_rollout(shared, v1, v2)
        await call(shared.client.put_stable, model, 2)
        await make_stable(shared, lone)
        async with Load(client) as load:
            await load.more(20)
            await v2.stop()
            await lone.stop()
            await until(lambda: _unhealthy(shared, model, 2), "the gateway notices")
            await until(lambda: _unhealthy(shared, alone, 1), "the gateway notices")
            after = await load.more(40)
        refused = await other.http()
        health = await call(shared.client.health, model)
    assert load.errors == []
    assert (share(after, 1), health, refused.status) == (1, {2: False, 1: True}, 503)


async def test_a_second_director_is_refused(own):
    """It ends before it touches anything and names the first; what the first has set goes on. After a SIGKILL the lock is free."""
    async with versions("digits", 1, 2) as (v1, v2), Client(own, "digits") as client:
        await begin_rollout(own, v1, v2)
        await call(own.client.put_split, "digits", "me", 1000, 60)
        second = await asyncio.to_thread(own.second_director)
        assert (second.returncode, f"another director, process {own.director.pid}; stop" in second.stderr) == (75, True)
        assert share(await client.many(40), 2) == 1
        own.director.stop(signal.SIGKILL)
        own.director.start()
        await asyncio.to_thread(own.wait_connected)
        assert own.client.model("digits").stable == v1.backend


async def test_a_clock_set_back_an_hour_moves_no_lease(tmp_path):
    """Leases run on a clock that nobody sets: not a moment longer, and not ended early either."""
    stack = Stack(tmp_path, ttl_s=1.0, clock=tmp_path / "clock")
    with running(stack):
        async with versions("digits", 1, 2) as (v1, v2), Client(stack, "digits") as client:
            await begin_rollout(stack, v1, v2)
            set_s = time.monotonic()
            await call(stack.client.put_split, "digits", "me", 1000, 2)
            (tmp_path / "draft").write_text("-3600")
            (tmp_path / "draft").rename(tmp_path / "clock")
            assert share(await client.many(40), 2) == 1
            left = stack.client.model("digits").split.expires_in_s
            await until(lambda: _all_stable(client), "the lease lapses")
            held_s = time.monotonic() - set_s
        await asyncio.to_thread(wait_until, lambda: "ran out" in (tmp_path / "director.log").read_text(), "the director says so")
    log = (tmp_path / "director.log").read_text()
    assert (0 < left <= 2, held_s >= 2) == (True, True)
    shifted_s, lapsed_s = (datetime.fromisoformat(_line(log, words)[:19]) for words in ("serving HTTP", "ran out"))
    assert (shifted_s - lapsed_s).total_seconds() == pytest.approx(3600, abs=60)


def _line(log: str, words: str) -> str:
    return next(line for line in log.splitlines() if words in line)


async def _all_stable(client: Client) -> bool:
    return (await client.http()).version == 1


async def _serves(client: Client) -> bool:
    return (await client.http()).status == 200


async def _restart(stack: Stack) -> None:
    stack.envoy.stop(signal.SIGKILL)
    stack.envoy.start()
    await asyncio.to_thread(stack.wait_connected)
    await asyncio.to_thread(wait_until, lambda: _listens(stack), "the gateway listens")


def _listens(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.gateway_url}/").status_code == 404
    except httpx.TransportError:
        return False
