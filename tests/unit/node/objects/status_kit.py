"""The status of a node of the kit's clusters."""

from __future__ import annotations

from typing import Any

from node.service import MembershipAction
from node.status import Status
from node.workers.runner import Runner
from tests.unit.node.objects.kit import Cluster


async def _unchanged(action: MembershipAction, nodes: tuple[str, ...], *, dry_run: bool, force: bool) -> dict[str, Any]:
    raise AssertionError("nobody asks for changes here")


def status_of(made: Cluster, number: int = 1) -> Status:
    """What the node says of itself; its phase is still that of the start."""
    node = made[number]
    return Status(
        node=node.name,
        routing=node.routing,
        watcher=lambda: None,
        peers=node.peers,
        store=node.store,
        resolver=node.resolver,
        health=node.parts.health,
        runner=Runner(),
        membership=_unchanged,
        version="0",
        compare_every_s=600.0,
    )
