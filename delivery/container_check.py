"""The task `container_check`, a gate: starts the serving image as production would, and proves what is asked of it.

Runs after `package`. The container is removed whatever comes of it, and no traffic reaches it. What is wrong with the image or the model
in it is a failed finding; an engine or a registry that does not work is an error, and worth another try. It reads the limits from the
policy's section, and judges no quality and no latency: other gates do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import APIError, NotFound

from delivery.container_servers import PROJECT_LABEL, Place, address_in, died, files_in, hardened, log_of, why_of
from delivery.engine import EngineTrouble, engine, image_of, told, trouble
from delivery.findings import Refusal, failed, passed, refused
from delivery.image import BUNDLE_LABEL, PORTS, tags
from delivery.image_registry import Credentials, DigestChanged, ImageRegistry, Reference
from delivery.start_candidate import AGAIN, chain, probe
from delivery.triton import NotReady, Server, answers_ready
from validation.bundle import OpenBundle, read_bundle
from validation.contract import BadSpec, Decision, Finding, Outcome, Spec
from validation.policy import ContainerCheck, parse

MB, MIB = 1_000_000, 1 << 20
POLL_S = 0.05
HEALTH_WAIT_S = 60.0
STOPPED = (0, 143)  # of its own will, or by SIGTERM's default
UNPRIVILEGED_FROM = 1


def run(spec: Spec, evidence: Path) -> Decision:
    del evidence
    return container_check(spec, engine(), Place.from_env())


def container_check(spec: Spec, client: DockerClient, place: Place) -> Decision:
    """Findings image, size_mb, non_root, ready_s, chain, probe_http, probe_grpc, health, memory_mib, stop_s; the first that does not pass
    ends the task. Raises what is worth another try: `EngineTrouble`, `RegistryTrouble`, `ServerTrouble`.
    """
    limits, image = parse(ContainerCheck, spec.limits), _reference(spec)
    findings: list[Finding] = []
    try:
        with read_bundle(spec.need_bundle()) as bundle:
            if _all_passed(_looked_at(spec, client, image, bundle, limits), findings):
                with _container(spec, client, place, image, limits) as container:
                    _all_passed(_lived(spec, container, place, bundle, limits), findings)
    except Refusal as refusal:
        return Decision(findings=(*findings, refusal.finding))
    return Decision(findings=tuple(findings))


def _reference(spec: Spec) -> Reference:
    try:
        return Reference.parse(str(spec.inputs.get("image")))
    except ValueError as error:
        raise BadSpec(f"inputs.{error}: run `package` again") from error


def _all_passed(steps: Iterable[Finding], findings: list[Finding]) -> bool:
    """Takes steps, one by one, and none after the first that does not pass."""
    for finding in steps:
        findings.append(finding)
        if finding.outcome is not Outcome.PASSED:
            return False
    return True


def _looked_at(spec: Spec, client: DockerClient, image: Reference, bundle: OpenBundle, limits: ContainerCheck) -> Iterator[Finding]:
    """What is seen without starting it: digest, labels, size, user."""
    registry = ImageRegistry.of(image.host)
    yield _unchanged(spec, registry, image, bundle)
    yield _sized(registry.size_bytes(image) / MB, limits)
    known = _pulled(client, image)
    yield _labelled(spec, known)
    yield _unprivileged(str(known.attrs["Config"].get("User") or ""))


def _unchanged(spec: Spec, registry: ImageRegistry, image: Reference, bundle: OpenBundle) -> Finding:
    """The tag that was pushed names this digest still; whoever pushed another image under it meant this version."""
    tag = tags(bundle.manifest, spec.need_bundle())[0]
    try:
        named = registry.digest(image.repository, tag)
    except DigestChanged as error:
        raise refused("image", str(error), AGAIN) from error
    if named != image.digest:
        return failed(
            "image", f"{image.repository}:{tag} names {named or 'nothing'} and not {image.digest}, which was pushed", advice=AGAIN
        )
    return passed("image", f"{image.repository}:{tag} names {image.digest}")


def _sized(size_mb: float, limits: ContainerCheck) -> Finding:
    why = f"a machine without any of it downloads {size_mb:.0f} MB; the budget is {limits.size_mb:g} MB"
    details = {"observed": round(size_mb, 1), "limit": limits.size_mb}
    if size_mb > limits.size_mb:
        return failed("size_mb", why, advice="deliver a smaller model, or raise container_check.size_mb", **details)
    return passed("size_mb", why, **details)


def _pulled(client: DockerClient, image: Reference) -> Any:
    """The image on this engine, from the registry by its digest where it is not there yet."""
    credentials = Credentials.from_env()
    with told(f"{image} cannot be pulled"):
        try:
            client.images.get(str(image))
        except NotFound:
            client.images.pull(str(image), auth_config=credentials.for_engine() if credentials else None)
    return image_of(client, str(image))


def _labelled(spec: Spec, image: Any) -> Finding:
    label, promised = image.labels.get(BUNDLE_LABEL), spec.need_bundle().sha256
    if label != promised:
        return failed("label", f"the image says that it holds bundle {label} and not {promised}", advice=AGAIN)
    return passed("label", f"the image's label names the bundle {promised[:12]}")


def _unprivileged(user: str) -> Finding:
    number = user.partition(":")[0]
    if not number.isdecimal() or int(number) < UNPRIVILEGED_FROM:
        return failed(
            "non_root", f"the image runs as user {user or 'root'!r}; it needs a number above 0", advice="mend the serving image's USER"
        )
    return passed("non_root", f"it runs as user {user}")


@contextmanager
def _container(spec: Spec, client: DockerClient, place: Place, image: Reference, limits: ContainerCheck) -> Iterator[Any]:
    """The running container; removed at the end, and one that a killed try of this task left is removed first."""
    name = f"{place.project}-check-{spec.model}--v{spec.version}"
    labels = {PROJECT_LABEL: place.project, "penstock.check": f"{spec.model}--v{spec.version}"}
    _remove(client, name)
    try:
        with told(f"the image {image} cannot be started"):
            container = client.containers.create(
                str(image), name=name, labels=labels, network=place.network, **hardened(limits.memory_mib, place.gpus)
            )
            container.start()
            container.reload()
        yield container
    finally:
        _remove(client, name)


def _remove(client: DockerClient, name: str) -> None:
    try:
        client.containers.get(name).remove(v=True, force=True)
    except NotFound:
        pass
    except APIError as error:
        raise trouble(f"the container {name} cannot be removed", error) from error


def _lived(spec: Spec, container: Any, place: Place, bundle: OpenBundle, limits: ContainerCheck) -> Iterator[Finding]:
    """From its start to its end."""
    name = f"{spec.model}--v{spec.version}"
    yield _ready(spec, container, place, limits)
    with told(f"the files of {container.name} cannot be read"):
        loaded = files_in(container)
    yield chain(bundle.manifest, loaded, name)
    address = address_in(container, place.network)
    for protocol in ("http", "grpc"):
        yield _alive(spec, container, probe(bundle, f"{address}:{PORTS[protocol]}", protocol, limits.rows, least=limits.rows))
    yield _healthy(container)
    _insist_alive(spec, container)  # a process of it may have been killed for its memory after the answers
    yield _bounded(container, limits)
    yield _stopped(container, limits)


def _ready(spec: Spec, container: Any, place: Place, limits: ContainerCheck) -> Finding:
    """The time counts from the engine's start of the container. The limit is not a deadline: three times as long it is waited, to say how
    long it took.
    """
    start = time.monotonic()
    server = Server(name=spec.model, **{kind: f"{address_in(container, place.network)}:{port}" for kind, port in PORTS.items()})

    def looked() -> bool:
        _insist_alive(spec, container)
        return answers_ready(server, spec.model)

    if not _within(3 * limits.ready_seconds, looked):
        why = f"not ready after {3 * limits.ready_seconds:g} s: {_last_line(log_of(container))}"
        return failed(
            "ready_s", why, limit=limits.ready_seconds, advice="see why the model loads so slowly, or raise container_check.ready_seconds"
        )
    took_s = time.monotonic() - start
    details = {"observed": round(took_s, 2), "limit": limits.ready_seconds}
    if took_s > limits.ready_seconds:
        return failed(
            "ready_s", f"ready after {took_s:.1f} s", advice="deliver a smaller model, or raise container_check.ready_seconds", **details
        )
    return passed("ready_s", f"ready after {took_s:.1f} s, read-only, without any capability", **details)


def _alive(spec: Spec, container: Any, finding: Finding) -> Finding:
    """A wrong answer of a container that was killed meanwhile is told by its reason."""
    if finding.outcome is not Outcome.PASSED:
        _insist_alive(spec, container)
    return finding


def _insist_alive(spec: Spec, container: Any) -> None:
    with told(f"{container.name} cannot be looked at"):
        container.reload()
    if how := died(container):
        error = why_of(f"{spec.model}--v{spec.version}", spec.model, how, log_of(container))
        if isinstance(error, NotReady):
            raise refused(
                "ready_s", str(error), "deliver a smaller model, or raise container_check.memory_mib" if "memory" in how else None
            )
        raise error


def _healthy(container: Any) -> Finding:
    """The image's own health check, as engines run it."""

    def looked() -> bool:
        with told(f"{container.name} cannot be looked at"):
            container.reload()
        return bool((container.attrs["State"].get("Health") or {}).get("Status") == "healthy")

    if "Health" not in container.attrs["State"]:
        return failed("health", "the image has no HEALTHCHECK: an engine could not tell when it is stuck", advice="mend the serving image")
    if not _within(HEALTH_WAIT_S, looked):
        state = container.attrs["State"]["Health"]
        said = (state.get("Log") or [{}])[-1].get("Output", "")
        return failed("health", f"its health check says {state['Status']} after {HEALTH_WAIT_S:g} s: {said[:200]}")
    return passed("health", "its own health check says healthy")


def _bounded(container: Any, limits: ContainerCheck) -> Finding:
    with told(f"the memory of {container.name} cannot be read"):
        memory = container.stats(stream=False)["memory_stats"]
    if "usage" not in memory:
        raise EngineTrouble("the engine tells no memory of its containers: enable the memory cgroup")
    if memory.get("limit") != limits.memory_mib * MIB:
        raise EngineTrouble(
            f"the engine holds it to {memory.get('limit')} bytes and not to {limits.memory_mib} MiB: enable the memory cgroup"
        )
    used = memory["usage"] - memory.get("stats", {}).get("inactive_file", memory.get("stats", {}).get("total_inactive_file", 0))
    why = f"{used / MIB:.0f} MiB in use after the answers; it is given {limits.memory_mib} MiB and no swap"
    if not 0 < used < limits.memory_mib * MIB:
        return failed("memory_mib", why, observed=round(used / MIB, 1), limit=limits.memory_mib, advice="raise container_check.memory_mib")
    return passed("memory_mib", why, observed=round(used / MIB, 1), limit=limits.memory_mib)


def _stopped(container: Any, limits: ContainerCheck) -> Finding:
    """SIGTERM, and no SIGKILL within the limit: a server that is taken away must end its last requests by itself."""
    start = time.monotonic()
    with told(f"{container.name} cannot be stopped"):
        container.kill(signal="SIGTERM")

    def looked() -> bool:
        with told(f"{container.name} cannot be looked at"):
            container.reload()
        return bool(container.attrs["State"]["Status"] == "exited")

    if not _within(limits.stop_seconds, looked):
        return failed(
            "stop_s", f"it still runs {limits.stop_seconds:g} s after SIGTERM", limit=limits.stop_seconds, advice="mend the serving image"
        )
    took_s, code = time.monotonic() - start, container.attrs["State"]["ExitCode"]
    if code not in STOPPED:
        return failed("stop_s", f"it ended with exit code {code} upon SIGTERM: {_last_line(log_of(container))}", observed=round(took_s, 2))
    return passed("stop_s", f"it ended {took_s:.1f} s after SIGTERM", observed=round(took_s, 2), limit=limits.stop_seconds)


def _within(limit_s: float, looked: Callable[[], bool]) -> bool:
    end = time.monotonic() + limit_s
    while not looked():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True


def _last_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "its log is empty"
