"""The task `promote`: the candidate becomes stable for good, and the registry says so.

Last task of a delivery that passed everything. The order makes a crash repairable at each point: a tag on the version announces the
promotion, then the gateway's stable changes, then the container registry's serving tag, then the aliases, then the outcome, then the tag
goes. Last the archive follows: what had to go is loaded there before its own server stops. A version that is stable at the gateway
and still carries the tag is a promotion to be finished; `claim` and `restore` do that with `finish`. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from delivery import servers as places
from delivery.director_client import Director, DirectorUnreachable, Refused
from delivery.findings import failed, passed
from delivery.orders_watch import not_aborted
from delivery.registry import DELIVERY, OUTCOME, PREVIOUS, PRODUCTION, PROMOTING, ModelVersion, Registry
from delivery.rollout import limit
from delivery.servers import Servers
from delivery.serving_tag import follow_image
from delivery.triton import NoFreePorts, ServerTrouble, server_name
from validation.contract import Decision, Finding, Outcome, Spec
from validation.policy import Archive

PROMOTED = "promoted"


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    servers = places.from_env()
    return promote(spec, Registry.from_env(), Director.from_env(), servers)


def promote(spec: Spec, registry: Registry, director: Director, servers: Servers) -> Decision:
    """Done twice it changes nothing the second time. Raises when gateway or registry do not answer; then Airflow retries it."""
    version = registry.version(spec.model, spec.version)
    if version.tags.get(DELIVERY) != spec.delivery:
        return Decision(findings=(_not_ours(version, spec.delivery),))
    if (shown := _shown(spec)).outcome is not Outcome.PASSED:
        return Decision(findings=(shown,))
    if (aborted := not_aborted(spec, director)) is not None:
        return Decision(findings=(aborted,))
    registry.tag(version, {PROMOTING: spec.delivery})
    director.put_stable(spec.model, spec.version)
    finish(registry, version, why=f"{version.name} passed every gate and every step", evidence=_delivery_evidence(spec))
    archived = _archived(spec, registry, director, servers)
    stopped = _stop_retired(spec.model, director, servers.running(), servers.stop)
    findings = (shown, _serving(spec, director), _aliases(spec, registry))
    return Decision(findings=findings, outputs={"stopped": stopped, "archived": archived})


def _shown(spec: Spec) -> Finding:
    """Nothing is promoted for lack of evidence: the watch over all of the traffic must have passed, of a first version the last gate."""
    told = {row.get("task"): row.get("outcome") for row in spec.inputs.get("verdicts") or ()}
    needed = "rollback_sensor_1000" if spec.stable else "integration"
    if told.get(needed) != "passed":
        why = f"{needed} has no passed verdict in this delivery ({told.get(needed) or 'none at all'})"
        return failed("shown", why, advice="deliver it again")
    return passed("shown", f"{needed} passed")


def finish(registry: Registry, version: ModelVersion, *, why: str, evidence: str = "") -> None:
    """What is left of a promotion once the gateway's stable has changed; can be done again from any point."""
    follow_image(version)
    registry.move_production(version.model, version.number)
    if registry.version(version.model, version.number).tags.get(OUTCOME) != PROMOTED:
        registry.end(version, outcome=PROMOTED, at="promote", why=why, evidence=evidence)
    registry.untag(version, PROMOTING)


def retired(model: str, names: Iterable[str], in_use: set[int]) -> list[str]:
    """Servers of a model that nothing points at any more: after a promotion that is the version before the previous one, or what left the
    archive for it.
    """
    kept = {server_name(model, number) for number in in_use}
    return sorted(name for name in names if name.startswith(f"{model}--v") and name not in kept)


def _stop_retired(model: str, director: Director, names: Iterable[str], stop: Callable[[str], None]) -> list[str]:
    names = retired(model, names, director.model(model).with_servers)
    for name in names:
        stop(name)
    return names


def _archived(spec: Spec, registry: Registry, director: Director, servers: Servers) -> str:
    """What the archive keeps. Nobody depends on it, so what it cannot keep is told, and the promotion stands; the next one tries again."""
    versions = limit(spec, "archive", Archive).versions
    try:
        return servers.archive(spec.model, versions, registry, director)
    except (OSError, ServerTrouble, NoFreePorts, Refused, DirectorUnreachable) as error:
        return f"the archive was not brought up to date: {error}"[:500]


def _serving(spec: Spec, director: Director) -> Finding:
    stable = director.model(spec.model).stable
    if stable is None or stable.version != spec.version:
        return failed("serving", f"the gateway serves {f'v{stable.version}' if stable else 'nothing'} and not v{spec.version}")
    return passed("serving", f"the gateway serves v{spec.version} as stable")


def _aliases(spec: Spec, registry: Registry) -> Finding:
    aliases = registry.aliases(spec.model)
    if aliases.get(PRODUCTION) != spec.version:
        return failed("registry", f"alias {PRODUCTION} is at {aliases.get(PRODUCTION)} and not at {spec.version}: somebody else moved it")
    return passed("registry", f"{PRODUCTION} is v{spec.version}, {PREVIOUS} is {aliases.get(PREVIOUS, 'none')}")


def _not_ours(version: ModelVersion, delivery: str) -> Finding:
    holder = version.tags.get(DELIVERY, "no delivery")
    return failed("claimed", f"{version.name} belongs to {holder} and not to {delivery}: nothing was promoted")


def _delivery_evidence(spec: Spec) -> str:
    """The folder of the delivery: the task's own evidence address without its last part."""
    return spec.evidence_uri.rsplit("/", 1)[0]
