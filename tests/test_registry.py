"""The registry layer, against a real MLflow server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from registry_fixtures import mlflow_address_fixture, model_fixture, register, register_any, register_files, registry_fixture  # noqa: F401 - found by name

from delivery.registry import (
    BUNDLE_SHA256,
    BUNDLE_URI,
    DELIVERY,
    GOLDEN_SHA256,
    GOLDEN_URI,
    OUTCOME,
    WHY,
    ModelVersion,
    NoGoldenSet,
    NotRegistered,
    Registry,
    http_address,
)
from validation.contract import Bundle
from validation.policy import Trigger

BY_ANY = Trigger(on=("created", "tag", "alias"), marker="candidate")
BY_TAG = Trigger(on=("tag",), marker="candidate")
BY_ALIAS = Trigger(on=("alias",), marker="candidate")


@pytest.mark.parametrize(
    ("artifact_uri", "address"),
    [
        ("mlflow-artifacts:/1/run/artifacts", "http://m:5/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts"),
        ("mlflow-artifacts:/1/run/a b", "http://m:5/api/2.0/mlflow-artifacts/artifacts/1/run/a%20b"),
        ("mlflow-artifacts://other:6/1/x", "http://other:6/api/2.0/mlflow-artifacts/artifacts/1/x"),
        ("https://store/x", "https://store/x"),
        ("file:///x/y", "file:///x/y"),
        ("/x/y", "file:///x/y"),
    ],
)
def test_artifact_addresses_become_plain_ones(artifact_uri: str, address: str) -> None:
    """Gates read artifacts with plain HTTP or from files, so every address that they get is of that kind."""
    assert http_address("http://m:5/", artifact_uri) == address


def test_a_store_that_needs_credentials_is_refused() -> None:
    """An address that gates could not read is refused with what to do instead of failing in each gate."""
    with pytest.raises(ValueError, match="--artifacts-destination"):
        http_address("http://m:5", "s3://bucket/x")


def test_what_is_not_registered_is_told_apart_from_a_silent_server(registry: Registry, model: str) -> None:
    """An unknown model, version or run raises `NotRegistered`: asking again would give the same answer."""
    with pytest.raises(NotRegistered, match="nowhere v1"):
        registry.version("nowhere", 1)
    with pytest.raises(NotRegistered, match=f"{model} v7"):
        registry.version(model, 7)
    with pytest.raises(NotRegistered, match="nowhere"):
        registry.aliases("nowhere")
    with pytest.raises(NotRegistered, match="run"):
        registry.run("0" * 32)


def test_versions_come_oldest_first_with_their_tags(registry: Registry, model: str) -> None:
    """All versions of a model are listed by number; of an unknown model none."""
    numbers = [register_any(registry, model, candidate="yes") for _ in range(3)]
    found = registry.versions(model)
    assert [each.number for each in found] == numbers == [1, 2, 3]
    assert found[0].tags == {"candidate": "yes"}
    assert registry.versions("nowhere") == []


def test_a_version_knows_its_bundle_only_with_address_and_digest() -> None:
    """An address without its digest is no bundle: nobody could check what is read there."""
    tags = {BUNDLE_URI: "file:///x", BUNDLE_SHA256: "ab"}
    whole = ModelVersion(model="m", number=1, run_id="r", tags=tags)
    half = ModelVersion(model="m", number=1, run_id="r", tags={BUNDLE_URI: "file:///x"})
    assert whole.bundle == Bundle(uri="file:///x", sha256="ab")
    assert half.bundle is None


def test_a_claim_is_live_until_an_outcome_stands() -> None:
    """A version belongs to the delivery in its tag until that delivery has an outcome."""
    live = ModelVersion(model="m", number=1, run_id="r", tags={DELIVERY: "a"})
    over = ModelVersion(model="m", number=1, run_id="r", tags={DELIVERY: "a", OUTCOME: "error"})
    assert live.claimed_by_another("b") == "a"
    assert live.claimed_by_another("a") is None
    assert over.claimed_by_another("b") is None


def test_production_moves_and_previous_follows(registry: Registry, model: str) -> None:
    """`previous` takes the old production; moving to where production is already changes nothing."""
    for _ in range(3):
        register_any(registry, model)
    assert registry.production(model) is None
    for number in (1, 2, 2, 3):
        registry.move_production(model, number)
    assert registry.aliases(model) == {"production": 3, "previous": 2}


def test_a_crash_between_the_aliases_is_finished_by_moving_again(registry: Registry, model: str) -> None:
    """After `previous` moved and `production` did not, the same move ends as if nothing had happened."""
    for _ in range(2):
        register_any(registry, model)
    registry.move_production(model, 1)
    registry._client.set_registered_model_alias(model, "previous", "1")
    registry.move_production(model, 2)
    assert registry.aliases(model) == {"production": 2, "previous": 1}


def test_an_ending_is_written_with_a_short_reason(registry: Registry, model: str) -> None:
    """The reason is cut to a sentence, and empty values are not written."""
    version = registry.version(model, register_any(registry, model))
    registry.end(version, outcome="refused", at="golden_set", why="x" * 900)
    tags = registry.version(model, 1).tags
    assert tags[OUTCOME] == "refused"
    assert len(tags[WHY]) == 500
    assert "penstock.evidence" not in tags


def test_untagging_what_is_not_there_changes_nothing(registry: Registry, model: str) -> None:
    """Tags are removed if they are there; MLflow's error about a missing tag is nobody's problem."""
    version = registry.version(model, register_any(registry, model, a="1"))
    registry.untag(version, "a", "b")
    assert registry.version(model, 1).tags == {}


def test_a_run_is_read_with_its_metrics_and_http_address(registry: Registry, model: str, mlflow_address: str) -> None:
    """The source run gives metrics, commit and the plain address of its artifacts."""
    run = registry._client.create_run("0", tags={"mlflow.source.git.commit": "abc"})
    registry._client.log_metric(run.info.run_id, "accuracy", 0.9)
    read = registry.run(run.info.run_id)
    assert (read.git_commit, read.metrics) == ("abc", {"accuracy": 0.9})
    assert read.artifacts == f"{mlflow_address}/api/2.0/mlflow-artifacts/artifacts/0/{run.info.run_id}/artifacts"


def test_files_of_a_version_are_listed_and_copied(registry: Registry, model: str, tmp_path: Path) -> None:
    """A version's artifacts are found whether or not they are a model."""
    number = register_files(registry, model, {"MLmodel": b"x", "data/y": b"yy"})
    version = registry.version(model, number)
    assert sorted(registry.files(version)) == ["MLmodel", "data"]
    copied = registry.download(version, tmp_path)
    assert (copied / "data/y").read_bytes() == b"yy"


def test_a_version_without_artifacts_has_no_files(registry: Registry, model: str) -> None:
    """A version that points at nothing has no files, which is for the claim to refuse."""
    run = registry._client.create_run("0")
    number = register(registry, model, f"{run.info.artifact_uri}/nothing", run.info.run_id)
    assert registry.files(registry.version(model, number)) == {}


def test_a_golden_set_needs_address_and_digest(registry: Registry, model: str, mlflow_address: str) -> None:
    """Each missing tag is named; MLflow's own address becomes a plain one."""
    with pytest.raises(NoGoldenSet, match=GOLDEN_URI):
        registry.golden_set(model)
    registry._client.set_registered_model_tag(model, GOLDEN_URI, "mlflow-artifacts:/0/r/artifacts/golden.parquet")
    with pytest.raises(NoGoldenSet, match=GOLDEN_SHA256):
        registry.golden_set(model)
    registry._client.set_registered_model_tag(model, GOLDEN_SHA256, "ab")
    assert registry.golden_set(model).uri == f"{mlflow_address}/api/2.0/mlflow-artifacts/artifacts/0/r/artifacts/golden.parquet"


def wanted(registry: Registry, model: str, trigger: Trigger) -> list[int]:
    return [each.number for each in registry.wanted(model, trigger)]


def test_wanted_are_marked_versions_without_a_delivery(registry: Registry, model: str) -> None:
    """A marker as tag or alias asks for a delivery; one that began, or ended, does not ask again."""
    register_any(registry, model, candidate="yes")
    register_any(registry, model)
    register_any(registry, model, **{"candidate": "yes", DELIVERY: "d"})
    register_any(registry, model)
    registry._client.set_registered_model_alias(model, "candidate", "4")
    assert wanted(registry, model, BY_ANY) == [1, 4]
    assert wanted(registry, model, BY_TAG) == [1]
    assert wanted(registry, model, BY_ALIAS) == [4]
    assert wanted(registry, "nowhere", BY_ANY) == []


def test_a_marked_version_older_than_production_is_left_alone(registry: Registry, model: str) -> None:
    """An event that was lost and overtaken must not bring an old version back; an alias put there by hand may."""
    for _ in range(2):
        register_any(registry, model, candidate="yes")
    registry.move_production(model, 2)
    assert wanted(registry, model, BY_ANY) == []
    registry._client.set_registered_model_alias(model, "candidate", "1")
    assert wanted(registry, model, BY_ANY) == [1]


def test_the_newest_wanted_version_supersedes(registry: Registry, model: str) -> None:
    """Newer means a higher number with the marker and without an outcome."""
    for tags in ({}, {"candidate": "yes"}, {"candidate": "yes"}, {"candidate": "yes", OUTCOME: "refused"}):
        register_any(registry, model, **tags)
    assert registry.newer_wanted(model, 1, BY_ANY) == 3
    assert registry.newer_wanted(model, 3, BY_ANY) is None


def test_a_dry_run_is_no_delivery(registry: Registry, model: str) -> None:
    """A version that somebody tried out is wanted still, and supersedes; when its own event's run was the dry run, it had its turn."""
    register_any(registry, model)
    register_any(registry, model, **{"candidate": "yes", OUTCOME: "dry_run", DELIVERY: "manual__1"})
    register_any(registry, model, **{"candidate": "yes", OUTCOME: "dry_run", DELIVERY: f"deliver__{model}__v3"})
    register_any(registry, model, **{OUTCOME: "dry_run", DELIVERY: "manual__2"})
    assert wanted(registry, model, BY_ANY) == [2]
    assert registry.newer_wanted(model, 1, BY_ANY) == 2


def test_a_dead_delivery_supersedes_for_a_day_only(registry: Registry, model: str) -> None:
    """A newer version that is claimed, or waits, stops older ones; without an outcome a day later it does no more."""
    for tags in ({}, {"candidate": "yes"}, {"candidate": "yes", DELIVERY: "d"}):
        register_any(registry, model, **tags)
    created_s = registry.version(model, 3).created_s
    assert abs(created_s - time.time()) < 3600
    assert registry.newer_wanted(model, 1, BY_ANY) == 3
    assert registry.newer_wanted(model, 1, BY_ANY, now_s=created_s + 86_399) == 3
    assert registry.newer_wanted(model, 1, BY_ANY, now_s=created_s + 86_401) is None
