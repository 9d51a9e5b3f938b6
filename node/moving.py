"""What the workers that move slots ask of the registry: the changes of routes of rfc/0013, each by one compare-and-set.

The real one is :class:`registry.moves.RegistryRouteChanges`; a simulation has its own. Every method rests on what the registry shows
at that moment, changes nothing when the route is not of ``epoch`` any more, and tells what became of it. A lost answer costs nothing: the
routes say afterwards what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from registry.moves import Changed


class RouteChanges(Protocol):
    """Changes of a slot's route. Methods raise RegistryUnavailable when it cannot be reached: then it may have been changed."""

    async def name_learner(self, slot: int, incarnation: str, *, seen_epoch: Callable[[int], int]) -> Changed:
        """Name this node's own blank copy as a learner, if the slot's move names this node and the route is stable without it.

        Args:
            incarnation: of a copy that was begun anew, durably, and that no route ever named.
            seen_epoch: see :func:`registry.readmit.why_not`.
        """
        ...

    async def drop_learners(self, slot: int, epoch: int, nodes: Sequence[str]) -> Changed:
        """Take these learners out of a stable route."""
        ...

    async def begin_joint(self, slot: int, epoch: int) -> Changed:
        """From a stable route, of which every node of the move is a voter or a learner, to the joint one."""
        ...

    async def finish(self, slot: int, epoch: int) -> Changed:
        """From the joint route of this epoch to the new set alone; the move is deleted with it if it is fulfilled."""
        ...

    async def abort(self, slot: int, epoch: int) -> Changed:
        """From the joint route of this epoch back to the old set; the new members stay as learners."""
        ...

    async def forget_move(self, slot: int, epoch: int) -> Changed:
        """Delete the slot's move, if the stable route of this epoch is what it asks for, without learners."""
        ...


class Plans(Protocol):
    """What is done about changes of membership by whoever is there. Methods raise AmberError, RegistryUnavailable among them."""

    async def resume(self) -> bool:
        """Finish a plan that was left half written, unless somebody still works at it; whether there was one to finish."""
        ...

    async def sweep_removed(self) -> Sequence[str]:
        """Forget the addresses of removed nodes that no route and no move names any more; which nodes."""
        ...
