"""Runs sessions: gives each need what it asks for, one at a time, and counts what that costs.

A session is advanced by bounded steps (:meth:`Running.advance`), so that several can take turns and none holds the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, assert_never

from amberblob.clock import Clock
from amberblob.errors import ClusterError, PeerError
from amberblob.mutations import EpochSeen, Installed, Synced
from amberblob.wire import Query, Reply, encode
from amberblob.wire_repair import ItemsReply, RepairRequest
from antientropy.checks import Belongs, check_reply
from antientropy.needs import (
    Ask,
    CheckSums,
    Flush,
    Install,
    Need,
    OwnFingerprints,
    OwnItems,
    OwnRegisters,
    OwnRoots,
    OwnState,
    OwnSums,
    OwnUndecided,
    Refresh,
    Rest,
    Settle,
    Steps,
)
from chunkstore.interface import ReplicaStore

T = TypeVar("T")

Call = Callable[[str, RepairRequest | Query], Awaitable[Reply]]
"""One request to one node, one answer. Raises PeerError; ``Failed`` and ``Refused`` are answers."""

Finish = Callable[[int, str], Awaitable[None]]
"""Runs an ordinary round on a path (slot, path) of this node's route. Raises ClusterError when it came to nothing."""


Again = Callable[[int, str, str], Awaitable[None]]
"""The same, above all floors, about what a node (the third) has: others may have forgotten it. Raises ClusterError."""


class Pace(Protocol):
    """Repair yields to clients."""

    async def turn(self, size_bytes: int) -> None:
        """Return when so many bytes may be moved, or (0) when it is somebody else's turn no more."""
        ...

    async def rest(self, worked_s: float) -> None:
        """Leave the machine to clients for a while, if there are any, after work of so many seconds."""
        ...

    @property
    def busy(self) -> bool:
        """Whether clients are served."""
        ...


def nobody(mutation: Installed) -> None:
    """Nobody wants to know."""


class Unhurried:
    """A pace that only lets others have their turn."""

    busy = False

    async def turn(self, size_bytes: int) -> None:
        """See :class:`Pace`."""
        await asyncio.sleep(0)

    async def rest(self, worked_s: float) -> None:
        """See :class:`Pace`."""


@dataclass(slots=True)
class Costs:
    """What the sessions of a node cost, in messages as they are encoded, without frames.

    Attributes:
        requests: how many were sent.
        asked_bytes, answered_bytes: of all requests and answers.
        item_bytes: of the answers, those that tell paths: what is to be mended itself.
        installed: mutations that were applied.
    """

    requests: int = 0
    asked_bytes: int = 0
    answered_bytes: int = 0
    item_bytes: int = 0
    installed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a session's needs are met with.

    Attributes:
        belongs: whether a path belongs to a slot: nothing else is taken over there, whoever tells it.
        settle: finishes what may be chosen of a path.
        refresh: proposes again, above all floors, what a node has of a path.
        installed: told of what was taken over; it must not raise.
    """

    store: ReplicaStore
    call: Call
    belongs: Belongs
    settle: Finish
    refresh: Again
    pace: Pace
    clock: Clock
    costs: Costs
    installed: Callable[[Installed], None] = nobody


class Running(Generic[T]):
    """A session under way. It is about the copies that are here when it begins: in one that takes their place it installs nothing.

    Attributes:
        due_s: monotonic time before which it rests.
        over: it has ended; ``result`` is what it returned.
    """

    def __init__(self, world: World, session: Steps[T]) -> None:
        self.due_s = 0.0
        self.over = False
        self._world = world
        self._session = session
        self._begun = False
        self._answer: Any = None
        self._error: Exception | None = None
        self._position = 0
        self._begun_anew = world.store.incarnations()
        self._result: T

    @property
    def result(self) -> T:
        """What the session returned; only when it is over."""
        assert self.over, "the session is not over"
        return self._result

    async def advance(self) -> None:
        """Meet one need.

        Raises:
            PeerError, ClusterError, StorageError: the session could not do without it, and has ended.
        """
        assert not self.over, "the session is over"
        try:
            if self._error is not None:
                error, self._error = self._error, None
                need = self._session.throw(error)
            else:
                need = self._session.send(self._answer)
        except StopIteration as stop:
            self.over = True
            self._result = stop.value
            return
        self._answer = None
        try:
            self._answer = await self._meet(need)
        except (PeerError, ClusterError) as error:
            self._error = error

    def close(self) -> None:
        """Give it up."""
        self._session.close()

    async def _meet(self, need: Need) -> Any:
        store = self._world.store
        match need:
            case Ask(node, request):
                return await self._ask(node, request)
            case OwnRoots(slots):
                await store.settle(slots)
                return {slot: store.tally(slot).root for slot in slots}
            case OwnSums(slot):
                return await store.bucket_sums(slot)
            case OwnFingerprints(slot, buckets):
                return await store.fingerprints(slot, buckets)
            case OwnItems(slot, paths, below):
                return await store.items(slot, paths, below=below)
            case OwnRegisters(slot, paths):
                return [store.peek(slot, path) or await store.load(slot, path) for path in paths]
            case OwnUndecided(slot):
                return await store.undecided(slot)
            case OwnState(slot):
                return store.slot_state(slot)
            case Install(mutations, incarnation):
                return await self._install(mutations, incarnation)
            case Flush():
                return await store.durable(self._position)
            case CheckSums(slot):
                return await store.check_sums(slot)
            case Settle(slot, path):
                return await self._world.settle(slot, path)
            case Refresh(slot, path, holder):
                return await self._world.refresh(slot, path, holder)
            case Rest(seconds):
                self.due_s = self._world.clock.monotonic_s() + seconds
                return None
            case _:
                assert_never(need)

    async def _ask(self, node: str, request: RepairRequest | Query) -> Reply:
        costs = self._world.costs
        asked = len(encode(request))
        costs.requests += 1
        costs.asked_bytes += asked
        reply = await self._world.call(node, request)
        check_reply(node, request, reply, self._world.belongs)
        answered = len(encode(reply))
        costs.answered_bytes += answered
        if isinstance(reply, ItemsReply):
            costs.item_bytes += answered
        await self._world.pace.turn(asked + answered)
        return reply

    async def _install(self, mutations: tuple[Installed | Synced | EpochSeen, ...], incarnation: str) -> bool:
        store = self._world.store
        if incarnation and any(store.slot_state(one.slot).incarnation != incarnation for one in mutations):
            return False
        for mutation in mutations:
            if store.slot_state(mutation.slot).incarnation != self._begun_anew.get(mutation.slot, store.disk_id):
                # The one that is here now is blank and has no floors: what was forgotten since would come back with it.
                raise PeerError("the own copy was lost meanwhile", code="unsynced")
        for mutation in mutations:
            if isinstance(mutation, Installed) and self._is_below_floor(mutation):
                # Garbage was collected since the session looked.
                continue
            self._position = max(self._position, store.apply(mutation))
            self._world.costs.installed += 1
            if isinstance(mutation, Installed):
                self._world.installed(mutation)
        await self._world.pace.turn(0)
        return True

    def _is_below_floor(self, mutation: Installed) -> bool:
        if mutation.ballot is None or mutation.replace:
            return False
        return mutation.ballot <= self._world.store.slot_state(mutation.slot).ballot_floor
