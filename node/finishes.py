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
        # The own copy is the one that lacks it: a round that did not hear it would not tell it either.
        await self._run(slot, path, Finish(), self._routing.node if self._routing.own_votes().get(slot) else None)

    async def refresh(self, slot: int, path: str, holder: str) -> None:
        """Propose again what ``holder`` has of the path, at a ballot above all floors, for copies that may not take it as it is.

        A round that did not hear it may find that all others have forgotten the path, and would leave its stub with it for ever.

        Raises: ClusterError.
        """
        await self._run(slot, path, Finish(again=True), holder)

    async def _run(self, slot: int, path: str, operation: Finish, hear: str | None) -> None:
        await self._coordinator.write(self._routing.electorate(slot), path, operation, hear=hear)
