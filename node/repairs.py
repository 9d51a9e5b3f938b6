"""Answers what other nodes ask in order to compare and mend their copies (:mod:`amberblob.wire_repair`).

What is told of slots is said in :mod:`antientropy.answers`; here is who may ask for how much, and what is told of health.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from amberblob.ballot import SlotState
from amberblob.clock import Clock
from amberblob.digests import DIGEST_BYTES
from amberblob.errors import BadRequest
from amberblob.limits import FRAME_BYTES_MAX
from amberblob.wire import RefusalReason, Reply
from amberblob.wire_repair import (
    AskHealth,
    CompareBuckets,
    CompareRoots,
    HealthReply,
    LogHeads,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    SlotHealth,
)
from antientropy.answers import answer
from chunkstore.interface import ReplicaStore

SLOTS_MAX = FRAME_BYTES_MAX // (2 * DIGEST_BYTES)
"""In one question about roots or logs. Half a frame of roots; the heads of logs, with the incarnations of all of them, fit too."""

HEALTH_SLOTS_MAX = FRAME_BYTES_MAX // 160
"""In one answer about health."""

Question = CompareRoots | CompareBuckets | PullDiffering | PullPaths | PullSlot | LogHeads | ReadLog | AskHealth
"""All of :mod:`amberblob.wire_repair` but ForgetStub, which changes something: that is the protocol's."""


def _never(slot: int) -> int:
    return 0


def _nothing() -> None:
    """Nobody compares."""


def _nobody(slot: int, path: str) -> None:
    """Nobody mends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What the workers of this node know and others ask about.

    Attributes:
        undecided: how many records are not known here to be chosen, by slot; a slot without any may be left out.
        compared_ms: when a slot was last known to lack nothing that another voter had (epoch ms); 0: never since the start.
        scrubbed_ms: when a slot was last read and checked as a whole (epoch ms); 0: never.
        received_bytes: fetched for repair since the start.
        unrecoverable: versions of which nobody had some bytes when all were asked last.
        heal: compare all slots with all others, now.
        found_wrong: told of a path here whose rows are not what its digest was made of.
    """

    undecided: Callable[[], Mapping[int, int]] = dict
    compared_ms: Callable[[int], int] = _never
    scrubbed_ms: Callable[[int], int] = _never
    received_bytes: Callable[[], int] = int
    unrecoverable: Callable[[], int] = int
    heal: Callable[[], None] = _nothing
    found_wrong: Callable[[int, str], None] = _nobody


class Repairs:
    """Answers for the copies on one disk.

    Args:
        store: the disk.
        mute: why the copy of this state has no voice here; None: it has one.
        own_slots: the slots of which this node is to have a copy, ascending.
        clock: for the time of an answer about health.

    Attributes:
        vitals: what is told of the workers; set once they are put together.
    """

    def __init__(
        self,
        store: ReplicaStore,
        *,
        mute: Callable[[SlotState], RefusalReason | None],
        own_slots: Callable[[], tuple[int, ...]],
        clock: Clock,
    ) -> None:
        self.vitals = Vitals()
        self._store = store
        self._mute = mute
        self._own_slots = own_slots
        self._clock = clock

    async def answer(self, message: Question) -> Reply:
        """The answer; it fits a frame. Raises: BadRequest, DiskFailed."""
        if isinstance(message, AskHealth):
            return await self._health(message)
        if isinstance(message, CompareRoots | LogHeads):
            slots = sum(byte.bit_count() for byte in message.slots)
            if slots > SLOTS_MAX:
                raise BadRequest(f"{slots} slots in one question; at most {SLOTS_MAX}")
        return await answer(self._store, message, standing=self._standing, found_wrong=self.vitals.found_wrong)

    def _standing(self, slot: int) -> RefusalReason | None:
        return self._mute(self._store.slot_state(slot))

    async def _health(self, message: AskHealth) -> HealthReply:
        if message.heal and not message.first:
            self.vitals.heal()
        slots = [slot for slot in self._own_slots() if slot >= message.first]
        told, rest = slots[:HEALTH_SLOTS_MAX], slots[HEALTH_SLOTS_MAX:]
        if message.heal:
            # Whoever waits for all copies to be equal must not be told what they were before the last writes.
            await self._store.settle(told)
        undecided = self.vitals.undecided()
        return HealthReply(
            now_ms=self._clock.wall_ms(),
            slots=tuple(self._slot_health(slot, undecided.get(slot, 0)) for slot in told),
            received_bytes=self.vitals.received_bytes(),
            unrecoverable=self.vitals.unrecoverable(),
            next_first=rest[0] if rest else None,
        )

    def _slot_health(self, slot: int, undecided: int) -> SlotHealth:
        tally, vitals = self._store.tally(slot), self.vitals
        return SlotHealth(
            slot=slot,
            root=tally.root,
            objects=tally.objects,
            undecided=undecided,
            wanted=tally.wanted,
            wanted_bytes=tally.wanted_bytes,
            damaged=tally.damaged,
            unsynced=self._standing(slot) is not None,
            compared_ms=vitals.compared_ms(slot),
            scrubbed_ms=vitals.scrubbed_ms(slot),
        )
