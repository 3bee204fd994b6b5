"""The recorder behind a live Envoy: what it keeps, what it pairs, and that users never notice it."""

import io
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from gateway_fixtures import TOKEN, Client, Load, Stack, Version, begin_rollout, call, make_stable, running, until, versions, wait_until

from delivery.inference import read_http, read_request, write_answer, write_request
from delivery.recorder_client import Recorder, RecorderUnreachable

FEATURES = 4


@dataclass(kw_only=True)
class Classifier(Version):
    """Answers each row with a label, 1 from `threshold` on, and a score."""

    threshold: float = 0.5
    breaks: str = ""

    async def _infer(self, request: web.Request) -> web.Response:
        self.asked += 1
        outputs = self._outputs(read_http(await request.read()))
        rows = [
            {"name": name, "datatype": "FP32", "shape": list(each.shape), "data": each.ravel().tolist()} for name, each in outputs.items()
        ]
        return web.json_response({"outputs": rows})

    async def _grpc_infer(self, request: bytes, context: Any) -> bytes:
        self.asked += 1
        return write_answer(self.model, self._outputs(read_request(request)[1]))

    def _outputs(self, inputs: Any) -> dict[str, np.ndarray]:
        score = inputs["X"].mean(axis=1).astype(np.float32)
        if self.breaks == "nan":
            score[:] = np.nan
        label = (inputs["X"].mean(axis=1) >= self.threshold).astype(np.int64)
        outputs = {"label": label, "score": score[:, None]}
        return {"label": label} if self.breaks == "missing" else outputs


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    built = Stack(tmp_path_factory.mktemp("recorded"), recorder_permille=1000)
    with running(built):
        start_recorder(built)
        yield built


def start_recorder(stack: Stack) -> None:
    stack.recorder.start()
    wait_until(lambda: answers(f"http://127.0.0.1:{stack.port['recorder_http']}/health"), "the recorder answers")
    wait_until(lambda: in_gateway(stack) == {"recorder-http", "recorder-grpc"}, "the gateway finds the recorder healthy")


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def in_gateway(stack: Stack) -> set[str]:
    """The recorder's clusters that Envoy finds healthy."""
    page = httpx.get(f"http://127.0.0.1:{stack.port['admin']}/clusters?format=json").json()
    mine = [each for each in page["cluster_statuses"] if each["name"].startswith("recorder")]
    return {each["name"] for each in mine if set(each["host_statuses"][0]["health_status"]) == {"eds_health_status"}}


def reader(stack: Stack) -> Recorder:
    return Recorder(f"http://127.0.0.1:{stack.port['recorder_http']}", TOKEN)


def body(values: np.ndarray) -> dict[str, Any]:
    return {"inputs": [{"name": "X", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}]}


async def ask(stack: Stack, model: str, rows: np.ndarray, protocol: str) -> None:
    async with Client(stack, model) as client:
        if protocol == "http":
            async with client._session.post(client._url, json=body(rows)) as answer:
                assert answer.status == 200
        else:
            await client._call(write_request(model, {"X": rows}), metadata=[("x-model", model)], timeout=10)


async def pairs_of(stack: Stack, model: str, number: int) -> list[dict[str, Any]]:
    """All pairs, once there are so many."""
    recorder = reader(stack)

    async def came() -> bool:
        return len((await call(recorder.pairs, model)).rows) >= number

    await until(came, f"{number} pairs of {model}")
    return list(recorder.pairs(model).rows)


@pytest.fixture
async def started() -> AsyncIterator[list[Version]]:
    """Servers that a test started, to be stopped."""
    made: list[Version] = []
    yield made
    for each in made:
        await each.stop()


async def rolled_out(stack: Stack, started: list[Version], model: str, **candidate: Any) -> tuple[Classifier, Classifier]:
    stable, new = Classifier(model=model, number=1), Classifier(model=model, number=2, **candidate)
    for each in (stable, new):
        await each.start()
        started.append(each)
    await begin_rollout(stack, stable, new)
    return stable, new


ROWS = np.linspace(0, 1, 20, dtype=np.float32)[:, None].repeat(FEATURES, axis=1)  # one row each of mean 0 to 1


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_both_versions_answer_the_same_request(stack, started, protocol):
    """Every mirrored request becomes a pair whose label flipped just where the thresholds differ, over both protocols."""
    model = f"paired-{protocol}"
    await rolled_out(stack, started, model, threshold=0.7)
    for row in ROWS:
        await ask(stack, model, row[None], protocol)
    pairs = await pairs_of(stack, model, len(ROWS))
    assert {(each["stable"], each["candidate"], each["state"]) for each in pairs} == {(1, 2, "compared")}
    assert sum(each["flipped"] for each in pairs) == int(((ROWS.mean(axis=1) >= 0.5) & (ROWS.mean(axis=1) < 0.7)).sum())
    assert {each["difference"] for each in pairs} == {0.0}


@pytest.mark.parametrize(("breaks", "state", "named"), [("nan", "unfinite", "'score'"), ("missing", "other_form", "'score' is missing")])
async def test_an_answer_of_another_form_is_told_apart(stack, started, breaks, state, named):
    """NaN where stable has a number, and an output that is not there, are states of their own, with a reason."""
    model = f"form-{breaks}"
    await rolled_out(stack, started, model, breaks=breaks)
    await ask(stack, model, ROWS[:1], "http")
    (pair,) = await pairs_of(stack, model, 1)
    assert (pair["state"], named in pair["why"]) == (state, True)


async def test_a_silent_candidate_is_the_candidates_silence(stack, started):
    """A candidate that is gone leaves a pair that says whose answer is missing."""
    model = "silent"
    _, new = await rolled_out(stack, started, model)
    await new.stop()
    await ask(stack, model, ROWS[:1], "http")
    (pair,) = await pairs_of(stack, model, 1)
    assert pair["state"] == "candidate_silent"
    assert "UNAVAILABLE" in pair["why"]


async def test_inputs_are_kept_without_a_candidate_and_survive_a_restart(stack, started):
    """The sample holds the rows as they came, in order, in a file that only its owner reads; a killed recorder still has them."""
    model, recorder = "kept", reader(stack)
    stable = Classifier(model=model, number=1)
    await stable.start()
    started.append(stable)
    await make_stable(stack, stable)
    for row in ROWS:
        await ask(stack, model, row[None], "grpc")
    await until(lambda: call(has_rows, recorder, model, len(ROWS)), "all rows kept")
    await call(restart_recorder, stack)
    table = pq.read_table(io.BytesIO(await call(recorder.sample, model, 5)))
    assert np.allclose(np.stack(table.column("X").to_numpy()), ROWS[-5:])
    files = list((stack.state.parent.parent / "recorder" / model).iterdir())
    assert {each.stat().st_mode & 0o777 for each in files} == {0o600}


def has_rows(recorder: Recorder, model: str, number: int) -> bool:
    data = recorder.sample(model, 1000)
    return data is not None and pq.read_metadata(io.BytesIO(data)).num_rows == number


def restart_recorder(stack: Stack) -> None:
    stack.recorder.stop(signal.SIGKILL)
    start_recorder(stack)


async def test_users_do_not_notice_a_recorder_that_is_gone(stack):
    """Frozen and then killed while every request is mirrored to it: no client sees an error, nor waits for it."""
    model = "unnoticed"
    async with versions(model, 1) as (v1,), Client(stack, model) as client:
        await make_stable(stack, v1)
        async with Load(client) as load:
            await load.more(50)
            stack.recorder.send(signal.SIGSTOP)
            seen = await load.more(300)
            stack.recorder.send(signal.SIGKILL)
            seen += await load.more(200)
    await call(restart_recorder, stack)
    assert (load.errors, len(seen) >= 500) == ([], True)
    assert max(each.waited_s for each in seen) < 4.9  # a request that waited for the recorder would take the whole time-out


def test_what_is_kept_is_not_told_without_the_token(stack):
    """Reading needs the director's token; health does not."""
    url = f"http://127.0.0.1:{stack.port['recorder_http']}"
    statuses = [httpx.get(f"{url}{path}").status_code for path in ("/v1/models/m/pairs?after=0", "/v1/models/m/sample?rows=1", "/health")]
    assert statuses == [401, 401, 200]
    with pytest.raises(RecorderUnreachable, match="401"):
        Recorder(url, "another").pairs("m")
