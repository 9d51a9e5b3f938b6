"""Scrub: reads all that a disk holds, little by little, and sees to it that what is wrong is mended.

Slot by slot, page by page: rows and records against their digests, chunks and manifest files against their hashes, and that
they are there at all; at the end of a slot its bucket digests, and blobs that nothing refers to. What fails is told on: a path
whose rows are wrong is told (``found_wrong``) until it is found to be right, bytes that are missing or failed their hash are
remembered as wanted, and the puller is woken. Nothing is removed but orphans, and those only where a whole pass found every
row as it should be and the copy was compared with all others since the last pass: a row that rotted away must not take its
bytes with it.

The rate follows from how much there is and how soon it has to be done (:mod:`antientropy.scrubpace`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from amberblob.clock import Clock
from antientropy.scrubbytes import ByteChecks, Current, ScrubCounts
from antientropy.scrubpace import (
    AIM,
    PATH_UNITS,
    UNITS_PER_PATH_UNKNOWN,
    Job,
    Pace,
    SlotPass,
    decode_pass,
    needed_rate,
    units_left,
)
from antientropy.soundness import is_wrong
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore

log = structlog.get_logger(__name__)

PASS_MEMO = "scrub"
SCRUBBED_MEMO = "scrubbed_ms"
"""A slot's memo: when its last whole pass ended, milliseconds since the Unix epoch, as a decimal number."""

PAGE_PATHS = 64
REST_MAX_S = 60.0
"""Rests are cut into pieces of this length, so that a change of the rate is heeded soon."""
RETRY_FIRST_S = 30.0
RETRY_MAX_S = 3600.0
WRONG_MAX = 1000
"""Paths of a slot that are known to be wrong; with more the slot rests: its database has worse troubles than scrub mends."""
ORPHAN_AGE_S = 86_400.0
RECALLED_MAX = 8
RECALL_REST_S = 0.5
"""Between the slots whose memos are read at the start, so many at a time: each may open a database."""


@dataclass(slots=True)
class _Told:
    """When a path that was told of is to be looked at again, and how long that is after it was told."""

    due_s: float
    delay_s: float


class Scrub:
    """A worker.

    Args:
        slots: the slots of which this node has a copy that counts. (Of others nobody can say what belongs in them.)
        found_wrong: told of a path whose rows or record here are wrong, so that it has what the other copies have installed
            over them. It is told again, ever more rarely, as long as they are wrong.
        bytes_wanted: called when bytes turned out to be wanted.
        compared_ms: when the slot's copy was last known to lack nothing that another has (epoch ms).
        days: within this time everything is read once.
        bytes_per_s: but never faster than this.
    """

    name = "scrub"

    def __init__(
        self,
        store: ReplicaStore,
        clock: Clock,
        *,
        slots: Callable[[], Iterable[int]],
        found_wrong: Callable[[int, str], None],
        bytes_wanted: Callable[[], None],
        compared_ms: Callable[[int], int],
        days: float,
        bytes_per_s: float,
    ) -> None:
        self.wake = Wake()
        self.pause_s = REST_MAX_S
        self.counts = ScrubCounts()
        self._store = store
        self._clock = clock
        self._slots = slots
        self._found_wrong = found_wrong
        self._bytes = ByteChecks(store, clock, self.counts, bytes_wanted)
        self._compared_ms = compared_ms
        self._period_ms = days * 86_400_000
        self._pace = Pace(bytes_per_s)
        self._passes: dict[int, tuple[str, SlotPass]] = {}
        self._scrubbed_ms: dict[int, int] = {}
        self._here: frozenset[int] | None = None
        self._current: Current | None = None
        self._told: dict[tuple[int, str], _Told] = {}

    # -- what others may know

    def scrubbed_ms(self, slot: int) -> int:
        """When the slot was last read and checked as a whole (epoch ms); 0: never, or not known yet.

        A slot that nothing was ever written to is checked now: there is nothing to read.
        """
        if self._here is not None and slot not in self._here:
            return self._clock.wall_ms()
        return self._scrubbed_ms.get(slot, 0)

    def wrong(self, slot: int) -> int:
        """How many paths of the slot had wrong rows when they were last looked at."""
        known = self._passes.get(slot)
        return len(known[1].wrong) if known else 0

    # -- steps

    async def step(self) -> Did:
        """See to one wrong path, or check a page of rows, or about a megabyte of bytes; or rest."""
        # A slot that nothing was ever written to has no database, and gets none here.
        self._here = frozenset(self._store.slots())
        slots = [slot for slot in self._slots() if slot in self._here]
        if unknown := [slot for slot in slots if not self._knows(slot)]:
            for slot in unknown[:RECALLED_MAX]:
                await self._recall(slot)
            return self._rest(RECALL_REST_S)
        now_s = self._clock.monotonic_s()
        if (found := self._next_wrong(slots, now_s)) is not None:
            await self._see_to(*found, now_s)
            return Did.WORK
        rest_s = self._pace.rest_s(now_s, self._rate(slots))
        if rest_s > 0:
            return self._rest(rest_s)
        at = self._choose(slots)
        if at is None:
            return self._rest(REST_MAX_S)
        known = self._passes[at.slot][1]
        if at.versions or at.chunks:
            units, busy_s = await self._bytes.check(at)
        elif at.page is None:
            units, busy_s = await self._check_rows(at, known)
        else:
            units, busy_s = await self._turn_page(at, known)
        known.units += units
        self._pace.spent(units, began_s=now_s, busy_s=busy_s)
        return Did.WORK

    def _rest(self, seconds: float) -> Did:
        self.pause_s = min(seconds, REST_MAX_S)
        return Did.NOTHING

    def _knows(self, slot: int) -> bool:
        """Whether it is known where the slot's pass is. A copy that began anew has no memos, and begins anew here too."""
        known = self._passes.get(slot)
        return known is not None and known[0] == self._store.slot_state(slot).incarnation

    async def _recall(self, slot: int) -> None:
        incarnation = self._store.slot_state(slot).incarnation
        scrubbed = await self._store.memo(slot, SCRUBBED_MEMO)
        text = await self._store.memo(slot, PASS_MEMO)
        found = decode_pass(text, self._clock.wall_ms())
        self._passes[slot] = incarnation, found
        self._scrubbed_ms[slot] = int(scrubbed) if scrubbed.isdecimal() else 0
        if not text:
            await self._store.set_memo(slot, PASS_MEMO, found.encoded())

    def _rate(self, slots: list[int]) -> float:
        """Units per second that are needed now."""
        objects = {slot: self._store.tally(slot).objects for slot in slots}
        known = [
            (self._passes[slot][1].last_units, objects[slot]) for slot in slots if self._passes[slot][1].last_units
        ]
        counted = sum(count for _, count in known)
        per_object = sum(units for units, _ in known) / counted if counted else UNITS_PER_PATH_UNKNOWN
        return needed_rate(
            (
                Job(due_ms=self._due_ms(slot), units=units_left(self._passes[slot][1], objects[slot], per_object))
                for slot in slots
            ),
            self._clock.wall_ms(),
        )

    def _due_ms(self, slot: int) -> float:
        return self._passes[slot][1].since_ms + self._period_ms * AIM

    def _choose(self, slots: list[int]) -> Current | None:
        """The slot that is under way, if it still counts and is the same; else the one that is due first."""
        at = self._current
        if at is not None and at.slot in slots and self._store.slot_state(at.slot).incarnation == at.incarnation:
            return at
        ready = [slot for slot in slots if self.wrong(slot) < WRONG_MAX]
        if not ready:
            self._current = None
            return None
        slot = min(ready, key=self._due_ms)
        self._current = Current(slot, self._store.slot_state(slot).incarnation)
        return self._current

    # -- rows

    async def _check_rows(self, at: Current, known: SlotPass) -> tuple[int, float]:
        began_s = self._clock.monotonic_s()
        page = at.page = await self._store.check_page(at.slot, known.after, PAGE_PATHS)
        busy_s = self._clock.monotonic_s() - began_s
        at.versions.extend(page.versions)
        for path in page.wrong:
            self.counts.paths_wrong += 1
            log.warning("rows or record fail their digest", slot=at.slot, path=path)
        if page.wrong:
            known.clean = False
            known.wrong = sorted({*known.wrong, *page.wrong})
            await self._store.set_memo(at.slot, PASS_MEMO, known.encoded())
        return PATH_UNITS * max(1, len({path for path, _ in page.versions})), busy_s

    def _next_wrong(self, slots: list[int], now_s: float) -> tuple[int, str] | None:
        for slot in slots:
            for path in self._passes[slot][1].wrong:
                told = self._told.get((slot, path))
                if told is None or told.due_s <= now_s:
                    return slot, path
        return None

    async def _see_to(self, slot: int, path: str, now_s: float) -> None:
        """Tell of a wrong path; the next time, look whether it still is wrong."""
        known, told = self._passes[slot][1], self._told.pop((slot, path), None)
        if told is not None and not await is_wrong(self._store, slot, path):
            known.wrong.remove(path)
            self.counts.paths_mended += 1
            log.info("wrong rows were mended", slot=slot, path=path)
            await self._store.set_memo(slot, PASS_MEMO, known.encoded())
            return
        delay_s = RETRY_FIRST_S if told is None else min(RETRY_MAX_S, 2 * told.delay_s)
        self._told[slot, path] = _Told(now_s + delay_s, delay_s)
        self._found_wrong(slot, path)

    # -- going on

    async def _turn_page(self, at: Current, known: SlotPass) -> tuple[int, float]:
        page, at.page = at.page, None
        assert page is not None
        if page.next_after is not None:
            known.after = page.next_after
            await self._store.set_memo(at.slot, PASS_MEMO, known.encoded())
            return 0, 0.0
        began_s = self._clock.monotonic_s()
        right = await self._store.check_sums(at.slot)
        busy_s = self._clock.monotonic_s() - began_s
        if not right:
            self.counts.sums_wrong += 1
            log.warning("bucket digests were wrong and are made anew", slot=at.slot)
        elif known.clean and not known.wrong and self._compared_ms(at.slot) > known.since_ms:
            await self._remove_orphans(at.slot)
        now_ms = self._clock.wall_ms()
        after = known.ended(now_ms)
        self._passes[at.slot] = at.incarnation, after
        self._scrubbed_ms[at.slot] = now_ms
        self._current = None
        self.counts.slots_checked += 1
        await self._store.set_memo(at.slot, PASS_MEMO, after.encoded())
        await self._store.set_memo(at.slot, SCRUBBED_MEMO, str(now_ms))
        return 0, busy_s

    async def _remove_orphans(self, slot: int) -> None:
        older_than_ms = self._clock.wall_ms() - int(ORPHAN_AGE_S * 1000)
        orphans = await self._store.orphans(slot, older_than_ms)
        for blob_id in orphans:
            await self._store.discard(slot, blob_id)
        if orphans:
            self.counts.orphans_removed += len(orphans)
            log.info("bytes removed that nothing refers to", slot=slot, count=len(orphans))
