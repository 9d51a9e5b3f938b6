"""The job ``run``: sends what the policy wants archived, of the slots that this node looks after, and reads back what is to be evicted.

One stage reads, packs and stores (:class:`archive.upload.Uploader`); rows become facts of this node's copies as each object is stored. The second
stage reads objects back meanwhile. Then comes what of other slots only this node can mend (:mod:`node.archive.deputy`). At the end this node evicts what it may of its own copies. A slot is done when nothing of it is under way any
more; packs hold chunks of many slots, so that is later than when its pages were read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog

from amberblob.archives import ArchivedChunk
from amberblob.errors import AmberError, ArchiveDenied, ArchiveError
from amberblob.manifest import Version
from archive.heat import Heat
from archive.packs import Item
from archive.policy import Policy
from archive.savings import Savings
from archive.upload import Uploader
from node.archive.contents import Contents
from node.archive.deputy import Deputy
from node.archive.evictor import Evictor
from node.archive.finder import Finder
from node.archive.ground import Ground
from node.archive.jobs import JobRequest, Progress
from node.archive.patience import PATIENCE_S, Patience
from node.archive.reach import Reach
from node.archive.readback import ReadBack
from node.archive.selection import PAGE_VERSIONS, Only, Place, Selection, needs_reading_back, prefixes_within

log = structlog.get_logger(__name__)

TRIES_MAX = 2
"""A slot of which something failed because the archive did not answer is gone through so often."""
READ_BACK_SHARE = 2
"""Of the requests at once, every so many-th reads back."""


class Ledger:
    """What of which slot is under way: tells when a slot is done.

    Args:
        all_of_it: slots are gone through as a whole; of others it is not said that they are done.
    """

    def __init__(self, progress: Progress, *, all_of_it: bool = True) -> None:
        self._progress = progress
        self._all_of_it = all_of_it
        self._open: dict[int, int] = {}
        self._through: set[int] = set()
        self._tries: dict[int, int] = {}
        self.failed: set[int] = set()

    def began(self, slot: int) -> None:
        """Its pages are read now."""
        self._tries[slot] = self._tries.get(slot, 0) + 1
        self._through.discard(slot)
        self.failed.discard(slot)

    def opened(self, slot: int, count: int) -> None:
        """So much more of it is under way."""
        self._open[slot] = self._open.get(slot, 0) + count

    def closed(self, slot: int, count: int) -> None:
        """So much of it is not under way any more."""
        self._open[slot] -= count
        self._look(slot)

    def through(self, slot: int) -> None:
        """Its pages were read to the end."""
        self._through.add(slot)
        self._look(slot)

    def again(self, slot: int) -> bool:
        """Something of it failed for a reason that may be over soon; whether it is gone through once more."""
        if self._tries.get(slot, 0) < TRIES_MAX:
            self.failed.add(slot)
        return slot in self.failed

    def _look(self, slot: int) -> None:
        if self._all_of_it and slot in self._through and not self._open.get(slot) and slot not in self.failed:
            self._progress.slot_done(slot)


class Archiver:
    """Carries out ``run``: a :class:`node.archive.jobs.JobWork`."""

    def __init__(
        self, ground: Ground, policy: Policy, heat: Heat, contents: Contents, reach: Reach, evictor: Evictor
    ) -> None:
        self._ground = ground
        self._policy = policy
        self._heat = heat
        self._contents = contents
        self._reach = reach
        self._evictor = evictor

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Send, read back, evict. Raises: ArchiveError, when the archive is not to be had at all; DiskFailed."""
        if request.dry_run:
            await self._dry_run(request, progress)
            return
        progress.say("looking whether the archive answers")
        await self._reach.wait(PATIENCE_S, progress.say)
        await Patience(self._ground.clock, progress).of(self._ground.identity.require)
        while slots := self._left(progress):
            progress.status.slots_total = len(progress.status.done_slots) + len(slots)
            await _Pass(self, request, progress).carry_out(slots)
        deputy = Deputy(self._ground)
        if slots := deputy.slots():
            await _Pass(self, request, progress, only=deputy.sends).carry_out(slots)
        progress.say("evicting")
        await self._evictor.evict_all(request.prefix, progress)

    def _left(self, progress: Progress) -> list[int]:
        """The slots that this node looks after now and that are not done yet."""
        return [slot for slot in self._ground.led_slots() if not progress.is_done(slot)]

    async def _dry_run(self, request: JobRequest, progress: Progress) -> None:
        """Judge every version of this node's copies, and add up what would be sent from here and what its disk would win."""
        ground = self._ground
        savings = Savings(self._policy, ground.means.disk())
        slots = [slot for slot in ground.own_slots() if not progress.is_done(slot)]
        progress.status.slots_total = len(slots)
        for slot in slots:
            sends = ground.looks_after(slot)
            for prefix in prefixes_within(self._policy, request.prefix):
                after: tuple[str, int] | None = ("", 0)
                while after is not None:
                    page, after = await ground.store.archive_page(slot, after, PAGE_VERSIONS, prefix=prefix)
                    now_ms = ground.now_ms()
                    for view in page:
                        version = view.version
                        last_read_ms = self._heat.last_read_ms(version.blob_id, version.created_at_ms)
                        savings.add(view, self._policy.judge(view, last_read_ms, now_ms), sends=sends)
                    progress.add(versions=len(page))
            if sends:
                progress.slot_done(slot)
            progress.status.savings = savings.rules()
        for rule in savings.rules():
            progress.add(
                send_versions=rule.send_versions,
                send_bytes=rule.send_bytes,
                free_versions=rule.free_versions,
                free_bytes=rule.free_bytes,
                room_bytes=rule.room_bytes,
            )
        progress.status.savings = savings.rules()


class _Pass:
    """Goes through some slots once; ``only``: see :class:`node.archive.selection.Selection`."""

    def __init__(
        self, archiver: Archiver, request: JobRequest, progress: Progress, *, only: Only | None = None
    ) -> None:
        self._ground = archiver._ground
        self._policy = archiver._policy
        self._reach = archiver._reach
        self._contents = archiver._contents
        self._prefix = request.prefix
        self._progress = progress
        self._ledger = Ledger(progress, all_of_it=only is None)
        section, target = self._ground.section, self._ground.means.for_job(request)
        self._uploader = Uploader(
            target,
            now_ms=self._ground.rows_ms,
            mint=self._ground.mint.mint,
            pack_size=int(section.pack_size),
            lone_size=int(section.lone_size),
            parallel=section.parallel,
        )
        finder = Finder(self._ground)
        self._read_back = ReadBack(
            self._ground,
            target,
            progress,
            closed=self._ledger.closed,
            again=self._ledger.again,
            find=finder.find_verified,
        )
        self._selection = Selection(
            self._ground,
            self._policy,
            archiver._heat,
            self._contents,
            finder,
            self,
            progress,
            only=only,
        )

    async def carry_out(self, slots: list[int]) -> None:
        """Raises: ArchiveError, DiskFailed."""
        try:
            async with asyncio.TaskGroup() as group:
                at_once = max(1, self._ground.section.parallel // READ_BACK_SHARE)
                readers = [group.create_task(self._read_back.work()) for _ in range(at_once)]
                while slots:
                    await self._uploader.run(self._contents_of(slots), self._stored, self._not_stored)
                    await self._read_back.flush()
                    slots = sorted(self._ledger.failed)
                for reader in readers:
                    reader.cancel()
        except BaseExceptionGroup as error:
            raise _first(error) from None

    async def add(self, places: Sequence[Place]) -> None:
        """Rows of earlier uploads are to be read back: see :class:`node.archive.selection.ReadBackLater`."""
        for slot, _, _ in places:
            self._ledger.opened(slot, 1)
        await self._read_back.add(places)

    async def _contents_of(self, slots: list[int]) -> AsyncIterator[tuple[Item, bytes]]:
        async for item, data in self._contents.ahead(self._wanted(slots)):
            if not isinstance(data, AmberError):
                yield item, data
                continue
            self._progress.problem(f"{item.path} version {item.version}: {data.detail}")
            self._ledger.closed(item.slot, 1)

    async def _wanted(self, slots: list[int]) -> AsyncIterator[tuple[Item, Version]]:
        for slot in slots:
            self._ledger.began(slot)
            async for item, version in self._selection.slot(slot, self._prefix):
                if self._reach.reached is False:
                    await self._reach.wait(PATIENCE_S, self._progress.say)
                self._progress.say(f"slot {slot}")
                self._ledger.opened(slot, 1)
                yield item, version
            self._ledger.through(slot)

    async def _stored(self, told: list[tuple[Item, ArchivedChunk]]) -> None:
        """The rows of an object: facts of this node's copies from now on."""
        ground, now_ms = self._ground, self._ground.now_ms()
        by_blob: dict[tuple[int, str], list[ArchivedChunk]] = {}
        for item, row in told:
            by_blob.setdefault((item.slot, item.blob_id), []).append(row)
        positions = [
            # A slot that was left meanwhile has no copy here; what was sent of it is swept from the bucket some day.
            ground.facts.take(slot, blob_id, rows, at_ms=now_ms) if ground.routing.is_member(slot) else 0
            for (slot, blob_id), rows in by_blob.items()
        ]
        await ground.store.durable(max(positions, default=0))
        again: list[Place] = []
        for item, row in told:
            self._progress.bytes(done=row.length)
            if needs_reading_back(self._policy.rule(item.path)) and not row.verified:
                again.append((item.slot, item.blob_id, row))
            else:
                self._ledger.closed(item.slot, 1)
        frames = {row.location: row for _, row in told}
        self._progress.add(
            chunks=len(told),
            bytes_sent=sum(row.end - row.start for row in frames.values()),
            bytes_archived=sum(row.length for row in frames.values()),
            archive_objects=len({row.target_path for row in frames.values()}),
        )
        await self._read_back.object_stored(again)

    async def _not_stored(self, items: list[Item], error: AmberError) -> None:
        """An object, or one chunk, could not be archived; the rest goes on."""
        log.warning("not archived", path=items[0].path, chunks=len(items), code=error.code, error=error.detail)
        # What is sent once more, when the archive answers again, is no problem yet.
        left = [item for item in items if not (isinstance(error, ArchiveError) and self._ledger.again(item.slot))]
        if left:
            self._progress.problem(f"{left[0].path} version {left[0].version}: {error.detail}", count=len(left))
        for item in items:
            self._progress.bytes(total=-item.chunk.len)
            self._ledger.closed(item.slot, 1)
        if isinstance(error, ArchiveError):
            # Is it this object, or all of the archive? The next look tells; meanwhile nothing more is read.
            await self._reach.look_again(error)
            if isinstance(error, ArchiveDenied):
                self._reach.require()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, without the groups around it."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
