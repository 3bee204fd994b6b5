"""The switchboard: all models' traffic as it is, and every change of it, brought into force at the gateway and only then called done.

`delivery.director` serves it over HTTP. Set, then verify: no change returns before Envoy shows what was asked for, and what fails half-way
is taken back. What must survive a restart (who is stable, previous, candidate) is in one state file; leases are not in it, so a restart
begins with everything on stable and nothing mirrored. It judges no version and renews no lease by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from delivery import gateway, traffic
from delivery.gateway import Json, Timeouts
from delivery.gateway_admin import Admin, GatewayAway, NotConfirmed, shown_hosts
from delivery.observations import Observations, read_entry
from delivery.splits import SplitStreams
from delivery.state_file import StateFile
from delivery.traffic import Backend, Lease, ModelTraffic

Check = Callable[[], Awaitable[bool]]
ROLES = ("stable", "previous", "candidate")
PROMOTION_S = 60.0  # longer than the slowest promotion; the lease is not let lapse inside of one
log = logging.getLogger("director")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Times of the director. A lease that nobody renews ends within its own time to live plus, if the director is gone, `split_ttl_s`."""

    split_ttl_s: float = 5.0
    heartbeat_s: float = 1.0
    lapse_every_s: float = 0.1
    confirm_s: float = 3.0
    healthy_s: float = 6.0
    look_every_s: float = 0.02
    timeouts: Timeouts = field(default_factory=Timeouts)
    recorder_permille: int = 0  # of every model's requests, mirrored to the recorder


class Configuration:
    """Clusters and routes as they should be in force, by model, and their files. Files are written whole: models never undo each other."""

    def __init__(self, files: Path) -> None:
        self._files = files
        self.clusters: dict[str, list[Json]] = {}
        self.routes: dict[str, list[Json]] = {}
        self.revisions = {"cds": "", "rds": ""}

    def write_clusters(self) -> None:
        self._write("cds", gateway.cds(_flat(self.clusters)))

    def write_routes(self) -> None:
        self._write("rds", gateway.rds(_flat(self.routes)))

    def _write(self, name: str, resources: Json) -> None:
        gateway.write_resources(self._files, name, resources)
        self.revisions[name] = resources["version_info"]


class Switchboard:
    """All models' traffic. Changes of one model wait for each other; giving traffic back never waits for anything."""

    def __init__(
        self, *, state: StateFile, files: Path, admin: Admin, settings: Settings, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._admin = admin
        self._settings = settings
        self._now_s = now_s
        self._models = state.read()
        self._leases: dict[str, Lease] = {}
        self._mirrors: dict[str, float] = {}  # until when each mirror holds; its share is in the model's traffic
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._addresses: dict[str, str] = {}
        self._dropped = 0
        self._configuration = Configuration(files)
        self.observations = Observations()
        self.splits = SplitStreams(self._weights, ttl_s=settings.split_ttl_s, heartbeat_s=settings.heartbeat_s)
        self._restore_files()

    @property
    def models(self) -> list[str]:
        """The models that have a server, by name."""
        return sorted(self._models)

    def traffic(self, model: str) -> ModelTraffic:
        return self._models.get(model, ModelTraffic(model=model))

    def lease(self, model: str) -> Lease | None:
        """The lease that is alive now."""
        lease = self._leases.get(model)
        return lease if lease is not None and lease.alive(self._now_s()) else None

    def describe(self, model: str) -> Json:
        """The API's view of a model; unknown models have nothing."""
        known, lease = self.traffic(model), self.lease(model)
        roles = {name: _plain(getattr(known, name)) for name in ROLES}
        split = lease and {"holder": lease.holder, "permille": lease.permille, "expires_in_s": round(lease.expires_at_s - self._now_s(), 3)}
        archived = [_plain(each) for each in known.archived]
        return {"model": model, **roles, "archived": archived, "shadow_permille": known.shadow_permille, "split": split}

    def targets(self) -> list[Json]:
        """Every server that tells its own figures, in the words of Prometheus's HTTP service discovery; the others are left out."""
        roles = [(model, role, getattr(known, role)) for model, known in sorted(self._models.items()) for role in ROLES]
        return [_target(model, role, backend) for model, role, backend in roles if backend is not None and backend.metrics is not None]

    async def put_candidate(self, model: str, backend: Backend, *, slice_header: str | None = None) -> None:
        """Clusters first, confirmed and healthy, then the route that knows them with share 0."""
        async with self._changing(model):
            after = self.traffic(model).with_candidate(backend, self.lease(model)).with_slices(slice_header)
            await self._install(after, healthy=backend)

    async def delete_candidate(self, model: str, version: int) -> None:
        """Takes the share away at once, then route and clusters. Nothing happens when `version` is not the candidate."""
        if self.traffic(model).without_candidate(version) != self.traffic(model):
            self._drop(model)
        async with self._changing(model):
            await self._install(self.traffic(model).without_candidate(version))

    async def put_shadow(self, model: str, *, permille: int, ttl_s: float | None) -> None:
        """Sets the mirror for `ttl_s`, confirmed. The same share again, while it holds, only begins its time anew."""
        time_s = traffic.mirror_ttl(permille, ttl_s)
        if self._mirror_holds(model) and self.traffic(model).shadow_permille == permille:
            self._mirrors[model] = self._now_s() + time_s
            return
        async with self._changing(model):
            await self._install(self.traffic(model).with_shadow(permille))
            self._mirrors[model] = self._now_s() + time_s

    async def put_split(self, model: str, *, holder: str, permille: int, ttl_s: float) -> Lease:
        """Sets, then verifies; on failure the earlier lease holds again, if it has not lapsed meanwhile."""
        async with self._changing(model):
            before = self.lease(model)
            lease = traffic.taken(self.traffic(model), before, holder=holder, permille=permille, ttl_s=ttl_s, now_s=self._now_s())
            self._leases[model] = lease
            try:
                await self._confirm_split(model)
            except Exception:
                self._put_back(model, before)
                raise
            return lease

    def renew(self, model: str, *, holder: str, ttl_s: float) -> Lease:
        lease = self._leases[model] = traffic.renewed(self.lease(model), holder=holder, ttl_s=ttl_s, now_s=self._now_s())
        return lease

    async def release(self, model: str, holder: str) -> None:
        """The weights go at once; returns when Envoy shows that they are gone."""
        traffic.may_release(self.lease(model), holder)
        self._drop(model)
        await self._confirm_split(model)

    async def put_stable(self, model: str, version: int) -> None:
        """Promotes without a blip: routes are rewritten while the leased weights say the same, then the lease ends."""
        async with self._changing(model):
            after = self.traffic(model).promoted(version)
            new = after != self.traffic(model)
            with self._lease_held(model):
                await self._install(after, healthy=after.stable if new else None)

    async def undo(self, model: str, version: int) -> None:
        """The version before, or an archived one, is stable again with one change of the routes. One that is not healthy is refused."""
        async with self._changing(model):
            before = self.traffic(model)
            after = before.undone(version, self.lease(model))
            new = after.stable if after != before else None
            if new is not None and new == before.previous and not _own(model, new) <= await self._healthy():
                raise NotConfirmed(f"{model} v{version} at {new.http} is not healthy, so nothing was changed; start it again first")
            await self._install(after, healthy=new)

    async def take_back(self, model: str) -> None:
        """The candidate's share goes at once, its mirror too; what a change under way sets meanwhile goes when that change is over."""
        self._drop(model)
        async with self._locks[model]:
            self._drop(model)
            if self.traffic(model).shadow_permille:
                self._end_mirror(model)
        await self._confirm_split(model)

    async def put_archived(self, model: str, backends: Iterable[Backend]) -> None:
        """These versions and no others answer those who pin them, from the archive. No share of any other traffic changes."""
        async with self._changing(model):
            await self._install(self.traffic(model).with_archived(backends))

    async def delete_previous(self, model: str) -> None:
        async with self._changing(model):
            await self._install(self.traffic(model).without_previous())

    async def mirrored(self, model: str) -> dict[str, int]:
        """Attempts at the candidate's own servers, and how many failed, since its clusters were added or Envoy was started."""
        candidate = self.traffic(model).candidate
        if candidate is None:
            raise traffic.Unknown(f"{model} has no candidate; register one first")
        own = _own(model, candidate)
        counted = [each for each in await self._admin.endpoints() if (each.cluster, each.address) in own]
        return {"requests": sum(each.requests for each in counted), "failures": sum(each.failures for each in counted)}

    async def health(self, model: str) -> dict[str, bool]:
        """Whether each role's own server is reached over both protocols and says that it is ready."""
        backends, healthy = self.traffic(model).backends, await self._healthy()
        return {str(each.version): _own(model, each) <= healthy for each in backends}

    async def seen_after(self, model: str, number: int) -> Json:
        """The rows of `Observations.after`; what Envoy dropped until now counts among the gaps, as far as Envoy can be asked."""
        with contextlib.suppress(GatewayAway):
            self._note_dropped(await self._admin.dropped_rows())
        return self.observations.after(model, number)

    def _note_dropped(self, dropped: int) -> None:
        """Envoy's counter begins anew with Envoy."""
        self.observations.interrupted(dropped - self._dropped if dropped >= self._dropped else dropped)
        self._dropped = dropped

    def see(self, entry: Any) -> None:
        """Takes one entry of the access log."""
        request = read_entry(entry, self._addresses)
        if request is not None:
            self.observations.add(request)

    def lapse(self) -> None:
        """Ends the leases and the mirrors that ran out; a mirror not while a change of its model goes on, which has its own routes."""
        for model, lease in list(self._leases.items()):
            if not lease.alive(self._now_s()):
                log.warning("%s: the lease of %s ran out at %d per mille; all traffic to stable", model, lease.holder, lease.permille)
                self._drop(model)
        for model, known in list(self._models.items()):
            if known.shadow_permille and not self._mirror_holds(model) and not self._locks[model].locked():
                log.warning("%s: the mirror of %d per mille ran out", model, known.shadow_permille)
                self._end_mirror(model)

    async def end_splits(self) -> None:
        """Takes every share and every mirror back, for a stop in good order."""
        for model, known in list(self._models.items()):
            if known.shadow_permille:
                self._end_mirror(model)
        self._leases.clear()
        revision = self.splits.push()

        async def heard() -> bool:
            return not self.splits.connected or self.splits.acknowledged(revision)

        with contextlib.suppress(NotConfirmed):
            await self._until(heard, "end of all splits", self._settings.confirm_s)

    @contextlib.asynccontextmanager
    async def _changing(self, model: str) -> AsyncIterator[None]:
        async with self._locks[model]:
            if not self.splits.connected:
                raise GatewayAway("the gateway is not connected to the director; is Envoy running? Nothing was changed")
            yield

    def _mirror_holds(self, model: str) -> bool:
        return self._mirrors.get(model, float("-inf")) > self._now_s()

    def _end_mirror(self, model: str) -> None:
        """Waits for nothing: Envoy takes the routes from their file when it can."""
        after = self.traffic(model).with_shadow(0)
        self._mirrors.pop(model, None)
        self._configuration.routes[model] = self._rendered(after)
        self._configuration.write_routes()
        self._remember(after)

    @contextlib.contextmanager
    def _lease_held(self, model: str) -> Iterator[None]:
        before = self.lease(model)
        if before is not None:
            self._leases[model] = replace(before, expires_at_s=self._now_s() + PROMOTION_S)
        try:
            yield
        except Exception:
            self._put_back(model, before)
            raise

    async def _install(self, after: ModelTraffic, healthy: Backend | None = None) -> None:
        """Brings `after` into force and makes it durable, or takes everything back and raises."""
        model = after.model
        try:
            await self._show_routes(after, healthy)
            self._remember(after)
        except Exception:
            self._take_back(model)
            raise
        if after.candidate is None:
            self._drop(model)
            await self._confirm_split(model)
        await self._show_clusters(model, gateway.render_clusters(after))

    async def _show_routes(self, after: ModelTraffic, healthy: Backend | None) -> None:
        """Clusters of before and after first: Envoy would take a route to an unknown cluster, and answer its share with 503."""
        model = after.model
        self._know_addresses(after)
        await self._show_clusters(model, self._both(after, healthy))
        if healthy is not None:
            await self._confirm_healthy(model, healthy)
        self._configuration.routes[model] = self._rendered(after)
        self._configuration.write_routes()
        await self._confirm(self._in_force("rds"), f"routes of {model}", self._settings.confirm_s)

    def _both(self, after: ModelTraffic, fresh: Backend | None) -> list[Json]:
        """Clusters of before and after. Those of before stay as they are, but for the `fresh` backend's, which may have moved."""
        added = {each["name"]: each for each in gateway.render_clusters(after)}
        names = gateway.version_clusters(after.model, fresh.version) if fresh else set()
        kept = {each["name"]: each for each in self._configuration.clusters.get(after.model, []) if each["name"] not in names}
        return list({**added, **kept}.values())

    async def _show_clusters(self, model: str, clusters: list[Json]) -> None:
        left = {each["name"] for each in self._configuration.clusters.get(model, [])} - {each["name"] for each in clusters}
        with contextlib.suppress(NotConfirmed):  # what takes longer than the gateway's own time-out is cut by that anyway
            await self._until(lambda: self._idle(left), "requests in flight", self._settings.timeouts.total_s)
        self._configuration.clusters[model] = clusters
        self._configuration.write_clusters()
        await self._confirm(self._in_force("cds"), f"clusters of {model}", self._settings.confirm_s)
        await self._confirm(lambda: self._has_hosts(clusters, left), f"hosts of {model}", self._settings.confirm_s)

    def _take_back(self, model: str) -> None:
        before = self.traffic(model)
        self._configuration.routes[model] = self._rendered(before)
        self._configuration.write_routes()
        self._configuration.clusters[model] = gateway.render_clusters(before)
        self._configuration.write_clusters()
        self._know_addresses(before)

    def _remember(self, after: ModelTraffic) -> None:
        models = {name: each for name, each in {**self._models, after.model: after}.items() if not each.empty}
        self._state.write(models)
        self._models = models

    def _restore_files(self) -> None:
        """Files may lag behind or run ahead of the state after a crash: they are written anew from it."""
        for model, known in self._models.items():
            self._configuration.clusters[model] = gateway.render_clusters(known)
            self._configuration.routes[model] = self._rendered(known)
            self._know_addresses(known)
        self._configuration.write_clusters()
        self._configuration.write_routes()

    def _rendered(self, known: ModelTraffic) -> list[Json]:
        return gateway.render_routes(known, self._settings.timeouts, self._settings.recorder_permille)

    def _know_addresses(self, known: ModelTraffic) -> None:
        """Addresses of versions that are gone are kept: their last rows arrive later."""
        for backend in known.backends:
            for each in traffic.PROTOCOLS:
                self._addresses[traffic.cluster_name(known.model, backend.version, each)] = backend.address(each)

    def _weights(self) -> dict[str, int]:
        alive = [(model, self.lease(model)) for model in self._leases]
        return {key: weight for model, lease in alive if lease is not None for key, weight in lease.weights(model).items()}

    def _drop(self, model: str) -> None:
        self._leases.pop(model, None)
        self.splits.push()

    def _put_back(self, model: str, before: Lease | None) -> None:
        if model not in self._leases:
            return  # released meanwhile, which holds
        if before is None:
            self._leases.pop(model)
        else:
            self._leases[model] = before
        self.splits.push()

    async def _confirm_split(self, model: str) -> None:
        revision = self.splits.push()

        async def holds() -> bool:
            heard = self.splits.acknowledged(revision) or (self.lease(model) is None and not self.splits.connected)
            return heard and await self._shows_weights(model)

        await self._confirm(holds, f"split of {model}", self._settings.confirm_s)

    async def _shows_weights(self, model: str) -> bool:
        lease = self.lease(model)
        expected = {} if lease is None else {key: str(weight) for key, weight in lease.weights(model).items()}
        prefix = f"{traffic.runtime_prefix(model)}."
        return {key: value for key, value in (await self._admin.weights()).items() if key.startswith(prefix)} == expected

    def _in_force(self, name: str) -> Check:
        async def holds() -> bool:
            return (await self._admin.versions())[name] == self._configuration.revisions[name]

        return holds

    async def _has_hosts(self, clusters: list[Json], left: set[str]) -> bool:
        shown = shown_hosts(await self._admin.endpoints())
        expected = gateway.expected_hosts(clusters)
        return not left & set(shown) and all(shown.get(name) == hosts for name, hosts in expected.items())

    async def _idle(self, clusters: set[str]) -> bool:
        return not clusters or not any(each.active for each in await self._admin.endpoints() if each.cluster in clusters)

    async def _confirm_healthy(self, model: str, backend: Backend) -> None:
        async def holds() -> bool:
            return _own(model, backend) <= await self._healthy()

        await self._confirm(holds, f"health of {model} v{backend.version} at {backend.http} and {backend.grpc}", self._settings.healthy_s)

    async def _healthy(self) -> set[tuple[str, str]]:
        return {(each.cluster, each.address) for each in await self._admin.endpoints() if each.healthy}

    async def _confirm(self, holds: Check, what: str, within_s: float) -> None:
        try:
            await self._until(holds, what, within_s)
        except NotConfirmed as error:
            with contextlib.suppress(GatewayAway):
                raise NotConfirmed(f"{error} ({await self._admin.refusals()})") from error
            raise

    async def _until(self, holds: Check, what: str, within_s: float) -> None:
        deadline_s = self._now_s() + within_s
        while not await _unless_away(holds):
            if self._now_s() > deadline_s:
                raise NotConfirmed(f"the gateway did not confirm the {what} within {within_s:g} s")
            await asyncio.sleep(self._settings.look_every_s)


async def _unless_away(holds: Check) -> bool:
    try:
        return await holds()
    except GatewayAway:
        return False


def _own(model: str, backend: Backend) -> set[tuple[str, str]]:
    """Clusters of a version, each with the version's own address in it."""
    return {(traffic.cluster_name(model, backend.version, each), backend.address(each)) for each in traffic.PROTOCOLS}


def _flat(rows: dict[str, list[Json]]) -> Iterable[Json]:
    return [each for _, group in sorted(rows.items()) for each in group]


def _plain(backend: Backend | None) -> Json | None:
    return None if backend is None else asdict(backend)


def _target(model: str, role: str, backend: Backend) -> Json:
    return {"targets": [backend.metrics], "labels": {"model": model, "version": str(backend.version), "role": role}}
