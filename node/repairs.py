"""Answers what other nodes ask in order to compare and mend their copies (:mod:`amberblob.wire_repair`).

A copy that has no voice (the route does not name it, or it was not filled yet) answers no comparison: an asker would take
what it lacks for the truth. Everything told includes what was applied before, is durable, and fits a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from amberblob.ballot import SlotState
from amberblob.clock import Clock
from amberblob.digests import BUCKETS, DIGEST_BYTES, SHORT_BYTES
from amberblob.errors import BadRequest
from amberblob.limits import FRAME_BYTES_MAX
from amberblob.mutations import EpochSeen
from amberblob.wire import RefusalReason, Refused, Reply
from amberblob.wire_repair import (
    AskHealth,
    BucketsReply,
    CompareBuckets,
    CompareRoots,
    HeadsReply,
    HealthReply,
    ItemsReply,
    LogHeads,
    LogReply,
    PathItem,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    RootsReply,
    SlotHealth,
    bitmap_of,
    slots_in,
)
from chunkstore.interface import ReplicaStore
from chunkstore.paging import ItemPage

PAGE_BYTES = FRAME_BYTES_MAX // 4
"""Of items in one answer. A single path may be larger by itself; it fits a frame all the same."""

ROOTS_MAX = FRAME_BYTES_MAX // (2 * DIGEST_BYTES)
"""Slots in one question about roots."""

HEADS_MAX = FRAME_BYTES_MAX // 64
"""Slots in one question about logs."""

HEALTH_SLOTS_MAX = FRAME_BYTES_MAX // 160
"""Slots in one answer about health."""

ITEMS_AT_ONCE = 16
LOG_LINES_MAX = 1000

NOBODY = ""
"""The incarnation that is told of a copy without a voice: no route names it."""

Question = (
    CompareRoots | CompareBuckets | PullDiffering | PullPaths | PullSlot | LogHeads | ReadLog | AskHealth
)  # ForgetStub is the protocol's: node.replica


def _none(slot: int) -> int:
    return 0


@dataclass(slots=True)
class Vitals:
    """What the workers of this node know and others ask about. Set once they are put together.

    Attributes:
        undecided: how many records are not known here to be chosen, by slot; a slot without any may be left out.
        compared_ms: when a slot was last known to lack nothing that another voter had; 0: never since the start.
        scrubbed_ms: when a slot was last read and checked as a whole; 0: never.
        received_bytes: fetched for repair since the start.
        unrecoverable: chunks that no replica could give when last asked.
        heal: compare all slots with all others, now.
    """

    undecided: Callable[[], Mapping[int, int]] = dict
    compared_ms: Callable[[int], int] = _none
    scrubbed_ms: Callable[[int], int] = _none
    received_bytes: Callable[[], int] = int
    unrecoverable: Callable[[], int] = int
    heal: Callable[[], None] = lambda: None


class Repairs:
    """Answers for the copies on one disk.

    Args:
        store: the disk.
        mute: why the copy of this state has no voice here; None: it has one.
        own_slots: the slots of which this node is to have a copy, ascending.
        clock: for the time of an answer about health.

    Attributes:
        vitals: what is told of the workers.
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
        """The answer. Raises: BadRequest, DiskFailed."""
        match message:
            case CompareRoots():
                return await self._roots(message)
            case LogHeads():
                return self._heads(message)
            case AskHealth():
                return await self._health(message)
            case CompareBuckets() | PullDiffering() | PullPaths() | ReadLog():
                return self._refused(message.slot) or await self._of_slot(message)
            case PullSlot():
                return self._fenced(message) or await self._page_of_all(message)
            case _:
                assert_never(message)

    async def _of_slot(self, message: CompareBuckets | PullDiffering | PullPaths | ReadLog) -> Reply:
        match message:
            case CompareBuckets():
                return await self._buckets(message)
            case PullDiffering():
                return await self._differing(message)
            case PullPaths():
                return await self._paths(message)
            case ReadLog():
                return await self._log(message)

    # ---- who may answer

    def _is_mute(self, slot: int) -> bool:
        return self._mute(self._store.slot_state(slot)) is not None

    def _refused(self, slot: int) -> Refused | None:
        state = self._store.slot_state(slot)
        reason = self._mute(state)
        return None if reason is None else _refusal(state, reason)

    def _fenced(self, message: PullSlot) -> Refused | None:
        """Leave older epochs before anything is read: what is chosen in them by this vote is in the answer, or never will be."""
        refused = self._refused(message.slot)
        if refused is not None:
            return refused
        state = self._store.slot_state(message.slot)
        if message.epoch < state.epoch:
            return _refusal(state, "epoch")
        if message.epoch > state.epoch:
            self._store.apply(EpochSeen(message.slot, message.epoch))
        return None

    # ---- comparing

    async def _roots(self, message: CompareRoots) -> RootsReply:
        slots = _slots_of(message.slots, ROOTS_MAX)
        await self._store.settle([slot for slot in slots if not self._is_mute(slot)])
        # Only now: a copy that lost its memory meanwhile is empty, and that is no news of the others.
        without = [slot for slot in slots if self._is_mute(slot)]
        silent, nothing = set(without), bytes(DIGEST_BYTES)
        roots = b"".join(nothing if slot in silent else self._store.tally(slot).root for slot in slots)
        return RootsReply(roots=roots, without=bitmap_of(without))

    async def _buckets(self, message: CompareBuckets) -> Reply:
        sums = await self._store.bucket_sums(message.slot)
        short = b"".join(sums[at : at + SHORT_BYTES] for at in range(0, BUCKETS * DIGEST_BYTES, DIGEST_BYTES))
        return self._refused(message.slot) or BucketsReply(incarnation=self._incarnation(message.slot), sums=short)

    def _incarnation(self, slot: int) -> str:
        return self._store.slot_state(slot).incarnation

    # ---- items

    async def _differing(self, message: PullDiffering) -> Reply:
        if any(not 0 <= bucket < BUCKETS or len(pairs) % (2 * SHORT_BYTES) for bucket, pairs in message.known.items()):
            raise BadRequest("not buckets with pairs of keys and states")
        items, next_after = await self._store.items_differing(message.slot, message.known, message.after, PAGE_BYTES)
        return self._items_reply(message.slot, items, next_after)

    async def _page_of_all(self, message: PullSlot) -> Reply:
        slot = message.slot
        items, next_after = await self._store.items_after(slot, message.after, PAGE_BYTES)
        state = self._store.slot_state(slot)
        await self._store.durable(self._store.position(slot, message.after))
        return self._items_reply(slot, items, next_after, state)

    async def _paths(self, message: PullPaths) -> Reply:
        paths = sorted(set(message.paths))
        page, last = ItemPage(PAGE_BYTES), ""
        for at in range(0, len(paths), ITEMS_AT_ONCE):
            some = paths[at : at + ITEMS_AT_ONCE]
            for item in await self._store.items(message.slot, some, below=message.below):
                if not page.add(item):
                    return self._items_reply(message.slot, page.items, last)
                last = item.path
            last = some[-1]
        return self._items_reply(message.slot, page.items, None)

    def _items_reply(
        self, slot: int, items: list[PathItem], next_after: str | None, state: SlotState | None = None
    ) -> Reply:
        """What was read; refused after all if the copy lost its voice meanwhile (its database was found to be damaged)."""
        state = state or self._store.slot_state(slot)
        return self._refused(slot) or ItemsReply(
            incarnation=state.incarnation,
            epoch=state.epoch,
            items=tuple(items),
            ballot_floor=state.ballot_floor,
            version_floor=state.version_floor,
            next_after=next_after,
        )

    # ---- logs

    def _heads(self, message: LogHeads) -> HeadsReply:
        slots = _slots_of(message.slots, HEADS_MAX)
        store = self._store
        incarnations = {slot: NOBODY if self._is_mute(slot) else self._incarnation(slot) for slot in slots}
        return HeadsReply(
            incarnation=store.disk_id,
            heads=b"".join(store.tally(slot).log_head.to_bytes(8, "little") for slot in slots),
            incarnations={slot: told for slot, told in incarnations.items() if told != store.disk_id},
        )

    async def _log(self, message: ReadLog) -> Reply:
        slot = message.slot
        if message.incarnation != self._incarnation(slot):
            return LogReply(incarnation=self._incarnation(slot), lines=(), gap=True)
        limit = max(1, min(message.limit, LOG_LINES_MAX))
        lines, gap = await self._store.log_lines(slot, message.after, limit)
        return self._refused(slot) or LogReply(incarnation=self._incarnation(slot), lines=tuple(lines), gap=gap)

    # ---- health

    async def _health(self, message: AskHealth) -> HealthReply:
        if message.heal and not message.first:
            self.vitals.heal()
        slots = [slot for slot in self._own_slots() if slot >= message.first]
        told, rest = slots[:HEALTH_SLOTS_MAX], slots[HEALTH_SLOTS_MAX:]
        if message.heal:
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
            unsynced=self._is_mute(slot),
            compared_ms=vitals.compared_ms(slot),
            scrubbed_ms=vitals.scrubbed_ms(slot),
        )


def _refusal(state: SlotState, reason: RefusalReason) -> Refused:
    return Refused(incarnation=state.incarnation, reason=reason, ballot=state.ballot_floor, epoch=state.epoch)


def _slots_of(bitmap: bytes, limit: int) -> list[int]:
    slots = slots_in(bitmap)
    if len(slots) > limit:
        raise BadRequest(f"{len(slots)} slots in one question; at most {limit}")
    return slots
