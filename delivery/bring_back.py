"""Starts again what the gateway points at and no engine runs: after `docker compose down`, on a new host after a restore.

    python -m delivery.bring_back

The service `servers` of docker-compose.yaml runs it at each start, before Airflow. For each model the director names stable, previous and
what is archived, the registry their images, and each server gets the address back at which the gateway looks for it. A local stack needs
none of this: its servers are supervisord's programs. It moves no traffic; a version that cannot be brought back is told, and the others go
on.
"""

from __future__ import annotations

import sys

from delivery.container_servers import ContainerServers
from delivery.director_client import Director
from delivery.engine import EngineTrouble
from delivery.registry import IMAGE, NotRegistered, Registry
from delivery.traffic import Backend, host_and_port
from delivery.triton import ServerTrouble, server_name

READY_WITHIN_S = 120


def main() -> int:
    """0 when every version that the gateway points at has its server, else 1."""
    director, registry, servers = Director.from_env(), Registry.from_env(), ContainerServers.from_env()
    troubles = [
        why for model in director.models() for each in _pointed_at(director, model) if (why := bring(model, each, registry, servers))
    ]
    for why in troubles:
        print(why, file=sys.stderr)
    return 1 if troubles else 0


def bring(model: str, backend: Backend, registry: Registry, servers: ContainerServers) -> str | None:
    """Why this version has no server now, or None. One that runs already is left alone."""
    name, address = server_name(model, backend.version), host_and_port(backend.http)[0]
    try:
        image = registry.version(model, backend.version).tags.get(IMAGE)
        if image is None:
            return f"{name}: the registry names no image of it; deliver another version"
        server = servers.start(name, image, address)
        servers.wait_ready(server, model, READY_WITHIN_S)
    except (NotRegistered, EngineTrouble, ServerTrouble, ValueError) as error:
        return f"{name}: {error}"
    print(f"{name} runs at {server.http}")
    return None


def _pointed_at(director: Director, model: str) -> list[Backend]:
    view = director.model(model)
    return [each for each in (view.stable, view.previous, *view.archived) if each is not None]


if __name__ == "__main__":
    sys.exit(main())
