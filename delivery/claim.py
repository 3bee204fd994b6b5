"""The task `claim`: takes a version for one delivery, and finds out what the later tasks need to know of it.

First task of every delivery. It refuses a version that does not exist, that another live delivery has, that is production already, or that
has no source run or no model to deliver; each refusal is a failed finding. Before that it repairs what a crash between gateway and registry
left half done. It starts no server and moves no traffic, but for putting stable back into a gateway that forgot it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from delivery import servers as places
from delivery.claimed_traffic import traffic_outputs
from delivery.director_client import Director
from delivery.findings import Refusal, passed, refused
from delivery.orders import wanted
from delivery.promote import finish
from delivery.recorder_client import Recorder
from delivery.registry import (
    DELIVERY,
    ENDED,
    ENDED_AT,
    EVIDENCE,
    OUTCOME,
    PRODUCTION,
    PROMOTING,
    UNDONE_BY,
    WHY,
    ModelVersion,
    NotRegistered,
    Registry,
    SourceRun,
)
from delivery.triton import Server, server_name
from delivery.undo import follow, undone
from validation.contract import Bundle, Decision, Finding, Outcome, Spec

Servers = Callable[[], Mapping[str, Server]]


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """What a claim found out; `outputs` is what later tasks read of it."""

    run: SourceRun
    source: str
    version: ModelVersion
    stable: ModelVersion | None

    @property
    def outputs(self) -> dict[str, str | int]:
        bundle = (self.stable.bundle if self.stable else None) or Bundle(uri="", sha256="")
        return {
            "source_run": self.run.run_id,
            "source_uri": self.source,
            "artifacts_uri": f"{self.run.artifacts}/penstock/v{self.version.number}",
            "stable_version": self.stable.number if self.stable else 0,
            "stable_bundle_uri": bundle.uri,
            "stable_bundle_sha256": bundle.sha256,
        }


def run(spec: Spec, evidence: Path) -> Decision:
    decision = claim(spec, Registry.from_env(), Director.from_env(), lambda: places.from_env().running())
    if any(each.outcome is not Outcome.PASSED for each in decision.findings):
        return decision
    stable = bool(decision.outputs["stable_version"])
    return replace(decision, outputs={**decision.outputs, **traffic_outputs(spec, evidence, Recorder.from_env(), stable=stable)})


def claim(spec: Spec, registry: Registry, director: Director, servers: Servers) -> Decision:
    """Claims the spec's version for the spec's delivery. Claiming again with the same delivery changes nothing."""
    try:
        version = _not_production(_free(_existing(spec, registry), spec.delivery), registry)
        version = _taken(version, spec.delivery, registry)  # first, so that the teardown may say how what follows ended
        _not_older(version, spec.delivery, registry)
        _not_aborted(version, spec.delivery, director)
        agreement = _repaired(spec.model, registry, director, servers)
        claimed = _source(_not_production(version, registry), _stable(spec.model, registry), registry)
    except Refusal as refusal:
        return refusal.decision
    mine = passed("claimed", f"{version.name} is claimed by {spec.delivery}")
    return Decision(findings=(mine, agreement), outputs=claimed.outputs)


def _existing(spec: Spec, registry: Registry) -> ModelVersion:
    try:
        return registry.version(spec.model, spec.version)
    except NotRegistered as error:
        raise refused("version_exists", str(error), "register the version first, or deliver one that is there") from error


def _free(version: ModelVersion, delivery: str) -> ModelVersion:
    if holder := version.claimed_by_another(delivery):
        advice = f"wait for its end; if that delivery is long gone, remove the tag {DELIVERY} from {version.name}"
        raise refused("not_claimed", f"{version.name} is being delivered by {holder}", advice)
    return version


def _not_production(version: ModelVersion, registry: Registry) -> ModelVersion:
    if registry.production(version.model) == version.number:
        raise refused("not_production", f"{version.name} is production already", "deliver another version")
    return version


def _not_older(version: ModelVersion, delivery: str, registry: Registry) -> None:
    """A late event must not lead back behind production; a person who asks for an older version by hand means it."""
    production = registry.production(version.model) or 0
    if delivery == f"deliver__{version.model}__v{version.number}" and version.number < production:
        advice = f"to go back on purpose, trigger deliver_{version.model} by hand"
        raise refused("not_older", f"{version.name} is older than production, v{production}, which came first", advice)


def _taken(version: ModelVersion, delivery: str, registry: Registry) -> ModelVersion:
    """Sets the claim, reads it back (two people may press the button at once), and clears what an earlier delivery wrote."""
    if version.tags.get(DELIVERY) != delivery:
        registry.tag(version, {DELIVERY: delivery})
    registry.untag(version, OUTCOME, ENDED_AT, ENDED, WHY, EVIDENCE, UNDONE_BY)
    return _free(registry.version(version.model, version.number), delivery)


def _not_aborted(version: ModelVersion, delivery: str, director: Director) -> None:
    """Tells the director, so that people's orders find the delivery; a claim that is tried again may have been aborted meanwhile."""
    ordered = wanted(director.begin_delivery(version.model, version.number, delivery).of(delivery))
    if ordered.aborted is not None:
        raise refused("not_aborted", f"aborted by {ordered.aborted.said}", f"penstock retry {version.model} --version {version.number}")


def _source(version: ModelVersion, stable: ModelVersion | None, registry: Registry) -> Claimed:
    if not version.run_id:
        advice = "register versions from a run (log_model with registered_model_name): bundle and evidence are kept in its artifacts"
        raise refused("source_run", f"{version.name} names no source run", advice)
    try:
        run, source, files = registry.run(version.run_id), registry.source(version), registry.files(version)
    except (NotRegistered, ValueError) as error:
        raise refused("source_run", f"{version.name} cannot be delivered: {error}") from error
    _is_model(version, source, sorted(files))
    return Claimed(run=run, source=source, version=version, stable=stable)


def _is_model(version: ModelVersion, source: str, files: list[str]) -> None:
    if not files:
        raise refused("artifacts", f"{version.name} has no artifacts at {source}", "log the model again and register that")
    if "MLmodel" not in files:
        held = ", ".join(files[:5])
        why = f"{version.name} is not a model: {source} holds {held} and no MLmodel"
        raise refused("artifacts", why, "register a folder written by log_model")


def _stable(model: str, registry: Registry) -> ModelVersion | None:
    number = registry.production(model)
    if number is None:
        return None
    stable = _production_version(model, number, registry)
    if stable.bundle is None:
        why = f"{PRODUCTION} points at {stable.name}, which has no bundle: it was not delivered by Penstock"
        raise refused("stable_bundle", why, f"remove the alias {PRODUCTION} from it and deliver it first")
    return stable


def _production_version(model: str, number: int, registry: Registry) -> ModelVersion:
    try:
        return registry.version(model, number)
    except NotRegistered as error:
        raise refused("stable_bundle", f"{PRODUCTION} points at v{number}: {error}", f"remove the alias {PRODUCTION}") from error


def _repaired(model: str, registry: Registry, director: Director, servers: Servers) -> Finding:
    """Makes registry and gateway agree on what is stable, or refuses and says who says what."""
    traffic = director.model(model)
    served, production = traffic.stable.version if traffic.stable else None, registry.production(model)
    if served == production:
        return passed("registry_agrees", f"registry and gateway agree on {f'v{served}' if served else 'nothing'} as stable")
    if served is None:
        return _put_back(model, production or 0, director, servers)
    return _finished(model, served, production, registry, director)


def _finished(model: str, served: int, production: int | None, registry: Registry, director: Director) -> Finding:
    """The gateway is ahead: finishes a promotion that crashed before its aliases, or an undo; anything else is a person's work."""
    try:
        version = registry.version(model, served)
    except NotRegistered as error:
        raise refused("registry_agrees", f"the gateway serves v{served}: {error}", "deliver a version that is there") from error
    if PROMOTING in version.tags:
        finish(registry, version, why="promoted; the delivery after it moved the aliases, because its own was stopped before")
        return passed("registry_agrees", f"a promotion of v{served} was half done and is finished now")
    if undone(model, production, director):
        return passed("registry_agrees", follow(model, registry, director))
    said = f"v{production}" if production else "no version"
    why = f"the gateway serves v{served} and the registry's {PRODUCTION} is {said}: somebody moved one without the other"
    raise refused("registry_agrees", why, f"set the alias {PRODUCTION} back to v{served}")


def _put_back(model: str, production: int, director: Director, servers: Servers) -> Finding:
    """The registry is ahead: the gateway lost its state. If the server of production still runs, it becomes stable again."""
    server = servers().get(server_name(model, production))
    if server is None:
        why = f"the registry's {PRODUCTION} is v{production} and the gateway serves no version of {model}; no server of v{production} runs"
        raise refused("registry_agrees", why, f"remove the alias {PRODUCTION} from v{production} and deliver it again")
    director.put_candidate(model, production, server.http, server.grpc, metrics=server.metrics)
    director.put_stable(model, production)
    return passed("registry_agrees", f"the gateway had forgotten v{production}; its server runs, so it is stable again")
