"""Routes that change under the nodes of one process: newer epochs, copies that begin anew, nodes that have not heard of it yet."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from amberblob.ballot import BALLOT_ZERO
from amberblob.mutations import Synced
from registry.routes import Member, Route
from tests.unit.node.objects.kit import Cluster, Node


def away(node: Node) -> None:
    """The registry cannot be reached by this node: no route comes."""
    node.coordinator.hears_routes = lambda: False


def reroute(made: Cluster, slot: int, change: Callable[[Route], Route]) -> None:
    """The registry has a newer route of the slot, and every node sees it."""
    assert made.table is not None
    route = change(made.table.routes[slot])
    routes = (*made.table.routes[:slot], route, *made.table.routes[slot + 1 :])
    made.table = msgspec.structs.replace(made.table, routes=routes)


def raise_epoch(made: Cluster, slot: int) -> None:
    reroute(made, slot, lambda route: msgspec.structs.replace(route, epoch=route.epoch + 1))


def readmit(made: Cluster, slot: int, node: Node) -> None:
    """The route names what the node's copy is now, in the next epoch."""

    def change(route: Route) -> Route:
        epoch, incarnation = route.epoch + 1, node.store.slot_state(slot).incarnation
        voters = tuple(
            Member(member.node, incarnation, epoch) if member.node == node.name else member for member in route.voters
        )
        return msgspec.structs.replace(route, epoch=epoch, voters=voters)

    reroute(made, slot, change)


def lag(made: Cluster, *nodes: Node) -> Callable[[], None]:
    """These nodes go on with the routes of now, until what this returns is called."""
    table = made.table
    for node in nodes:
        node.routing._table = lambda: table

    def catch_up() -> None:
        for node in nodes:
            node.routing._table = lambda: made.table

    return catch_up


def filled(node: Node, slot: int, epoch: int) -> None:
    """The copy was filled from a majority."""
    node.store.apply(Synced(slot, epoch, BALLOT_ZERO, 0))


async def anew(made: Cluster, slot: int, node: Node) -> None:
    """The node's copy begins anew, is named so by the next route, and is filled."""
    await node.store.begin_anew(slot, fresh=True)
    readmit(made, slot, node)
    assert made.table is not None
    filled(node, slot, made.table.routes[slot].epoch)
