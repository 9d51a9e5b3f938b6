"""Ordinary rounds that anti-entropy asks for, because what it found cannot be installed."""

from __future__ import annotations

from node.coordinator import Coordinator
from node.protocol.operations import Finish
from node.routing import Routing


class Finishes:
    """Rounds by this node, on the newest route."""

    def __init__(self, coordinator: Coordinator, routing: Routing) -> None:
        self._coordinator = coordinator
        self._routing = routing

    async def settle(self, slot: int, path: str) -> None:
        """Finish what may be chosen of a path, so that it is known. Raises: ClusterError."""
        await self._run(slot, path, Finish())

    async def refresh(self, slot: int, path: str) -> None:
        """Propose the path's record again, at a ballot above all floors, for copies that may not take it as it is.

        Raises: ClusterError.
        """
        await self._run(slot, path, Finish(again=True))

    async def _run(self, slot: int, path: str, operation: Finish) -> None:
        electorate = self._routing.electorate(slot)
        # The own copy is the one that lacks it: a round that did not hear it would not tell it either.
        hear = self._routing.node if self._routing.own_votes().get(slot) else None
        await self._coordinator.write(electorate, path, operation, hear=hear)
