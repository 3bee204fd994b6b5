"""delivery.start_candidate: a real Triton answers golden rows, and only then does the director hear of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fakes import FakeDirector
from local_supervisor import local_supervisor  # noqa: F401 - a fixture
from made_bundles import MODEL, answers, golden_rows, make_bundle, weights

from delivery.director_client import DirectorUnreachable, Refused
from delivery.servers import LocalServers
from delivery.start_candidate import chain, start_candidate
from delivery.triton import running, server_name, stop_server
from stack.settings import Settings
from validation.bundle import read_bundle
from validation.contract import BadSpec, Bundle, Decision, Outcome, Spec


@pytest.fixture
def store(local_supervisor: Settings) -> Iterator[Path]:  # noqa: F811
    yield local_supervisor.state / "store"
    for name in running():
        stop_server(name)


def delivered(bundle: Bundle, store: Path, version: int) -> Spec:
    """The spec after `package`: the bundle's model directory lies in the store."""
    repository = store / MODEL / f"v{version}"
    repository.mkdir(parents=True)
    with read_bundle(bundle) as opened:
        opened.model_directory.rename(repository / MODEL)
    inputs = {"repository": str(repository)}
    return Spec(task="start_candidate", model=MODEL, version=version, delivery="d", evidence_uri="file:///x", bundle=bundle, inputs=inputs)


def outcomes(decision: Decision) -> dict[str, Outcome]:
    return {finding.name: finding.outcome for finding in decision.findings}


def test_a_version_that_answers_right_becomes_the_candidate(store: Path, tmp_path: Path):
    """Ready, right over both protocols, registered, its figures too; the addresses go on to later tasks. A second try finds it all done."""
    spec, director = delivered(make_bundle(tmp_path), store, 1), FakeDirector()
    for _ in range(2):
        decision = start_candidate(spec, LocalServers(store.parent), director)
        assert outcomes(decision) == dict.fromkeys(("ready_s", "chain", "probe_http", "probe_grpc", "registered"), Outcome.PASSED)
        candidate = director.model(MODEL).candidate
        assert decision.outputs == {"http": candidate.http, "grpc": candidate.grpc}
        assert candidate.metrics == running()[server_name(MODEL, 1)].metrics
    figures = httpx.get(f"http://{candidate.metrics}/metrics")
    assert f'nv_inference_request_success{{model="{MODEL}"' in figures.text
    assert figures.headers["content-type"].startswith("text/plain")  # Prometheus 3 takes nothing without a type


def test_a_version_that_answers_otherwise_than_its_source_never_meets_the_gateway(store: Path, tmp_path: Path):
    """The values decide, not the readiness: what is served must be what was judged."""
    rows = golden_rows()
    spec = delivered(make_bundle(tmp_path, reference=answers(rows.inputs, weights(seed=5))), store, 2)
    director = FakeDirector()
    decision = start_candidate(spec, LocalServers(store.parent), director)
    assert outcomes(decision) == {"ready_s": Outcome.PASSED, "chain": Outcome.PASSED, "probe_http": Outcome.FAILED}
    assert (director.calls, decision.outputs) == (["orders"], {})


def test_a_model_that_does_not_load_is_failed_with_the_reason(store: Path, tmp_path: Path):
    """It is the version's fault, and the finding carries the server's own words."""
    spec = delivered(make_bundle(tmp_path), store, 3)
    (store / MODEL / "v3" / MODEL / "1" / "model.onnx").write_bytes(b"no model")
    decision = start_candidate(spec, LocalServers(store.parent), FakeDirector())
    assert outcomes(decision) == {"ready_s": Outcome.FAILED}
    assert "Protobuf parsing failed" in decision.findings[0].why


def test_too_few_golden_rows_show_nothing(store: Path, tmp_path: Path):
    """Below twenty rows the probe is inconclusive, and the version stays away from the gateway."""
    director = FakeDirector()
    decision = start_candidate(delivered(make_bundle(tmp_path, rows=golden_rows(19)), store, 4), LocalServers(store.parent), director)
    assert outcomes(decision) == {"ready_s": Outcome.PASSED, "chain": Outcome.PASSED, "probe_http": Outcome.INCONCLUSIVE}
    assert director.calls == ["orders"]


@pytest.mark.parametrize("elsewhere", ["/etc", None, "{store}/irises/../other/v1", "{store}/irises/v2"])
def test_only_the_versions_own_folder_is_served(tmp_path: Path, elsewhere: str | None):
    """A spec cannot make a server load another folder of this machine."""
    path = elsewhere and elsewhere.format(store=tmp_path / "store")
    spec = Spec(task="start_candidate", model=MODEL, version=1, delivery="d", evidence_uri="file:///x", inputs={"repository": path})
    with pytest.raises(BadSpec, match=r"only .*/irises/v1 is served"):
        start_candidate(spec, LocalServers(tmp_path), FakeDirector())


class RefusingDirector(FakeDirector):
    def put_candidate(self, *_, **__):
        raise Refused("another candidate's split is held")


def test_a_refusal_of_the_director_is_a_finding_and_its_silence_an_error(store: Path, tmp_path: Path):
    """Asked again, a refusal would come again; a director that is away is worth another try."""
    spec = delivered(make_bundle(tmp_path), store, 5)
    decision = start_candidate(spec, LocalServers(store.parent), RefusingDirector())
    assert outcomes(decision)["registered"] is Outcome.FAILED
    with pytest.raises(DirectorUnreachable):
        start_candidate(spec, LocalServers(store.parent), FakeDirector(broken={"put_candidate"}))
    assert server_name(MODEL, 5) in running()


def test_a_server_of_other_files_than_the_bundles_is_refused(store: Path, tmp_path: Path):
    """A folder that was changed after `package` breaks the chain of checksums, however well the server answers."""
    spec = delivered(make_bundle(tmp_path), store, 6)
    (store / MODEL / "v6" / MODEL / "1" / "note.txt").write_text("not in the bundle")
    decision = start_candidate(spec, LocalServers(store.parent), FakeDirector())
    assert outcomes(decision) == {"ready_s": Outcome.PASSED, "chain": Outcome.FAILED}
    assert "1/note.txt" in decision.findings[-1].why


def test_a_link_of_the_chain_that_is_missing_or_different_is_named(tmp_path: Path):
    """Every file that the manifest promises must be there with its digest; nothing at all is no agreement either."""
    with read_bundle(make_bundle(tmp_path)) as bundle:
        promised = bundle.manifest.served
        assert chain(bundle.manifest, promised, "s").outcome is Outcome.PASSED
        for loaded in ({}, {**promised, f"{MODEL}/1/model.onnx": "0" * 64}, {name: promised[name] for name in list(promised)[:1]}):
            finding = chain(bundle.manifest, loaded, "s")
            assert (finding.outcome, MODEL in finding.why) == (Outcome.FAILED, True)
