"""Answers what other nodes ask in order to compare and mend their copies (:mod:`amberblob.wire_repair`).

What is told of slots is said in :mod:`antientropy.answers`; here is who may ask for how much, and what is told of health.
"""

from __future__ import annotations

from collections.abc import Callable

from amberblob.ballot import SlotState
from amberblob.digests import DIGEST_BYTES
from amberblob.errors import BadRequest
from amberblob.limits import FRAME_BYTES_MAX, SLOT_COUNT_MAX
from amberblob.wire import Done, RefusalReason, Reply
from amberblob.wire_repair import (
    AskCopies,
    AskHealth,
    CompareBuckets,
    CompareRoots,
    CopiesReply,
    CopyState,
    HealthReply,
    LogHeads,
    LookAtPath,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    slots_in,
)
from antientropy.answers import answer
from antientropy.soundness import is_wrong
from chunkstore.interface import ReplicaStore

SLOTS_MAX = FRAME_BYTES_MAX // (2 * DIGEST_BYTES)
"""In one question about roots or logs. Half a frame of roots; the heads of logs, with the incarnations of all of them, fit too."""

Question = (
    CompareRoots
    | CompareBuckets
    | PullDiffering
    | PullPaths
    | PullSlot
    | LogHeads
    | ReadLog
    | AskHealth
    | LookAtPath
    | AskCopies
)
"""All of :mod:`amberblob.wire_repair` but ForgetStub, which changes something: that is the protocol's."""


def _nothing() -> None:
    """Nobody compares."""


def _no_slot(slot: int) -> None:
    """Nobody compares."""


def _nobody(slot: int, path: str) -> None:
    """Nobody mends."""


def _unknown(message: AskHealth) -> HealthReply:
    return HealthReply(now_ms=0, slots=(), received_bytes=0)


class Repairs:
    """Answers for the copies on one disk.

    Args:
        store: the disk.
        mute: why the copy of this state has no voice here; None: it has one.

    Attributes:
        health: how the own copies are, from memory.
        heal: compare all slots with all others, now.
        compare: compare one slot with all others, now.
        found_wrong: told of a path here whose rows are not what its digest was made of.
    """

    def __init__(self, store: ReplicaStore, *, mute: Callable[[SlotState], RefusalReason | None]) -> None:
        self.health: Callable[[AskHealth], HealthReply] = _unknown
        self.heal: Callable[[], None] = _nothing
        self.compare: Callable[[int], None] = _no_slot
        self.found_wrong: Callable[[int, str], None] = _nobody
        self._store = store
        self._mute = mute

    async def answer(self, message: Question) -> Reply:
        """The answer; it fits a frame. Raises: BadRequest, DiskFailed."""
        if isinstance(message, AskHealth):
            return await self._health(message)
        if isinstance(message, LookAtPath):
            return await self._look_at(message.slot, message.path)
        if isinstance(message, CompareRoots | LogHeads | AskCopies):
            slots = sum(byte.bit_count() for byte in message.slots)
            if slots > SLOTS_MAX:
                raise BadRequest(f"{slots} slots in one question; at most {SLOTS_MAX}")
        if isinstance(message, AskCopies):
            return await self._copies(slots_in(message.slots))
        return await answer(self._store, message, standing=self._standing, found_wrong=self.found_wrong)

    def _standing(self, slot: int) -> RefusalReason | None:
        return self._mute(self._store.slot_state(slot))

    async def _look_at(self, slot: int, path: str) -> Done:
        """Have a path mended that a reader found incomplete here. Nothing that it says is believed: this copy looks itself."""
        if self._standing(slot) is None:
            if await is_wrong(self._store, slot, path):
                self.found_wrong(slot, path)
            else:
                self.compare(slot)
        return Done()

    async def _copies(self, slots: list[int]) -> CopiesReply:
        """How far these copies are, by what is durable; what is wanted of what was applied before the question is in it."""
        if any(slot >= SLOT_COUNT_MAX for slot in slots):
            raise BadRequest("slots that there are not")
        # As of now, and durable before it is told: a slot is moved away from others because of it.
        states = {slot: self._store.slot_state(slot) for slot in slots}
        position = max((self._store.position(slot, "") for slot in slots), default=0)
        await self._store.settle(slots)
        await self._store.durable(position)
        undecided = {slot: len(await self._store.undecided(slot)) for slot in slots}
        copies = []
        for slot in slots:
            state, tally = states[slot], self._store.tally(slot)
            if self._store.slot_state(slot).incarnation != state.incarnation:
                continue  # lost meanwhile: of that copy there is nothing to tell any more
            copies.append(
                CopyState(
                    slot=slot,
                    incarnation=state.incarnation,
                    epoch=state.epoch,
                    synced_epoch=state.synced_epoch,
                    objects=tally.objects,
                    wanted=tally.wanted,
                    wanted_bytes=tally.wanted_bytes,
                    undecided=undecided[slot],
                )
            )
        return CopiesReply(copies=tuple(copies))

    async def _health(self, message: AskHealth) -> HealthReply:
        if message.heal:
            if not message.first:
                self.heal()
            # Whoever waits for all copies to be equal must not be told what they were before the last writes.
            await self._store.settle(self._store.slots())
        return self.health(message)
