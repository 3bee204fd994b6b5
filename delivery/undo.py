"""Has the registry follow an undo: aliases and tags say what the gateway does already.

An undo is the director's (order `undo`): stable and previous change places at once, with no registry asked. Whoever comes
next writes it down: the command, form or bake that ordered it, the delivery's teardown, or the claim of the next delivery. Done twice it
changes nothing the second time.
"""

from __future__ import annotations

from delivery.director_client import Director
from delivery.orders import UNDO, Order
from delivery.registry import PREVIOUS, PRODUCTION, UNDONE_BY, Registry
from delivery.serving_tag import follow_image

ROLLED_BACK = "rolled_back"


def follow(model: str, registry: Registry, director: Director) -> str:
    """What was done, in a sentence. Raises what registry or director raise when they do not answer."""
    stable, production = director.model(model).stable, registry.production(model)
    order = undone(model, production, director)
    if order is None or stable is None or stable.version == production:
        return f"nothing to follow: {PRODUCTION} is {f'v{production}' if production else 'no version'}"
    version = registry.version(model, order.version)
    registry.end(version, outcome=ROLLED_BACK, at=order.at if order.delivery else UNDO, why=f"undone by {order.said}")
    registry.tag(version, {UNDONE_BY: order.who})
    follow_image(registry.version(model, stable.version))
    registry.move_production(model, stable.version)  # last: until then another try finds that there is something to follow
    return f"{PRODUCTION} is v{stable.version} again, {PREVIOUS} is v{order.version}: undone by {order.said}"


def undone(model: str, production: int | None, director: Director) -> Order | None:
    """The latest order that took this version out of production, if the last undo was about it."""
    orders = [each for each in director.orders(model).orders if each.action == UNDO]
    return orders[-1] if orders and orders[-1].version == production else None
