"""The job ``restore``: bytes of evicted versions come back to the disks of the copies.

Each node does it for its own copies: from other copies' files where there are some, else from the archive. It begins with the slots of which it is the first
voter, then come those where it is the second, and so on: so most of what a later copy needs is on a disk when its turn comes. Small versions
are gathered over many slots and read pack by pack, in few requests; large ones chunk by chunk, some at once.

Imported content is written anew, as a version of its own, with its true hash, if it still is what the path's readers get; by the node that looks after the slot.
Older imported versions stay where they are. A rule that evicts will evict again what was brought back, in its own time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from amberblob.archives import ArchivedBlob, ArchivedChunk
from amberblob.errors import (
    AmberError,
    ArchiveError,
    DigestMismatch,
    DiskFull,
    PeerError,
    PreconditionFailed,
    StorageError,
    VersionConflict,
)
from amberblob.limits import MIB, READ_BLOBS_BYTES_MAX, READ_BLOBS_MAX
from amberblob.manifest import Version
from antientropy.pull import Source as PeerSource
from antientropy.room import Room
from antientropy.wants import is_small
from archive.fetching import fetch_rows
from archive.targets.interface import Target
from chunkstore.interface import ArchiveView
from node.archive.ground import Ground
from node.archive.healing import Healing
from node.archive.jobs import JobRequest, Progress
from node.archive.known import KnownRows
from node.archive.lent import Lent
from node.archive.patience import Outlasting
from node.archive.reach import Reach
from node.archive.reads import Reads
from node.archive.shares import Shares
from node.objects.bytes import Reading
from node.protocol.operations import Conditions
from node.service import ObjectView, PutOptions

log = structlog.get_logger(__name__)

PAGE = 500
GATHERED_MAX = 16_384
GATHERED_BYTES_MAX = 64 * MIB
"""Small versions that are read together. In memory are their names, and of their bytes what is being put back."""
PUT_BACK_BYTES = 4 * MIB
LARGE_MAX = 1000
"""Large versions that are gathered."""
PARALLEL = 4
"""Large versions, or objects with small ones, that are read at once."""
ROOM_BYTES = 64 * MIB

Rewrite = Callable[[str, AsyncIterator[bytes], PutOptions], Awaitable[ObjectView]]


@dataclass(frozen=True, slots=True)
class _Found:
    """A version that lives by its rows here."""

    slot: int
    path: str
    version: Version


class Restoring:
    """A :class:`node.archive.jobs.JobWork`.

    Args:
        source: other copies' files.
        put: writes an object (:meth:`node.objects.put.Putting.put`).
        reach: whether the archive answers; while it does not, the job waits.
        lent: where other copies find what was brought; None: on the disk.
    """

    def __init__(
        self,
        ground: Ground,
        rows: KnownRows,
        reading: Reading,
        source: PeerSource,
        put: Rewrite,
        reach: Reach,
        lent: Lent | None = None,
    ) -> None:
        self._lent = lent or Lent()
        self._ground = ground
        self._rows = rows
        self._reading = reading
        self._source = source
        self._put = put
        self._reach = reach

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """See :class:`node.archive.jobs.JobWork`. Raises: DiskFull, when there is no room for more; ArchiveUnavailable, when it did not answer for half an hour. What came stays, and it can be begun anew."""
        ground = self._ground
        target = ground.means.for_job(request)
        reads = Reads(self._rows, target, ground.means.cache, ground.means.sources, keep=False)
        healing = Healing(ground.store, self._rows, ground.facts, reads, ground.now_ms, self._lent)
        run = _Run(self, request, progress, target, healing)
        self._lent.begin()
        try:
            await run.carry_out(self._order(ground.own_slots()))
        finally:
            self._lent.end()

    def _order(self, slots: Sequence[int]) -> list[int]:
        """Those first of which this node is the first voter."""
        routing = self._ground.routing
        place: dict[int, int] = {}
        for slot in slots:
            voters = list(routing.electorate(slot).voters)
            place[slot] = voters.index(self._ground.node) if self._ground.node in voters else len(voters)
        return sorted(slots, key=lambda slot: (place[slot], slot))


class _Run:
    """One run of the job on this node."""

    def __init__(
        self, work: Restoring, request: JobRequest, progress: Progress, target: Target, healing: Healing
    ) -> None:
        self._ground = work._ground
        self._rows = work._rows
        self._reading = work._reading
        self._source = work._source
        self._put = work._put
        self._reach = work._reach
        self._request = request
        self._progress = progress
        self._target = target
        room = Room(PARALLEL * 2, ROOM_BYTES)
        self._shares = Shares(work._ground, work._source, healing, room, progress)
        self._large: list[_Found] = []
        self._small: list[_Found] = []
        self._small_bytes = 0
        self._slots: list[int] = []

    async def carry_out(self, slots: Sequence[int]) -> None:
        progress = self._progress
        progress.status.slots_total = max(progress.status.slots_total, len(slots))
        try:
            for slot in slots:
                if not progress.is_done(slot):
                    progress.say(f"slot {slot}")
                    await self._slot(slot)
            await self._flush()
        except DiskFull as error:
            raise DiskFull(
                f"{error.detail} What was brought back stays. Make room, or lower what is to be restored (--prefix), and begin the job again: it goes on with the rest."
            ) from error
        progress.say("done")

    async def _slot(self, slot: int) -> None:
        after: tuple[str, int] | None = ("", 0)
        while after is not None:
            page, after = await self._ground.store.archive_page(slot, after, PAGE, prefix=self._request.prefix)
            for view in page:
                if not view.evicted:
                    continue
                self._progress.bytes(total=view.version.size)
                self._progress.add(versions=1)
                if self._request.dry_run:
                    continue
                rows = await self._rows.here(slot, view.version.blob_id)
                if rows is not None and any(row.foreign for row in rows.chunks):
                    await self._imported(slot, view)
                elif is_small(view.version):
                    self._gather(_Found(slot, view.path, view.version))
                else:
                    self._large.append(_Found(slot, view.path, view.version))
            full = len(self._large) >= LARGE_MAX
            if full or len(self._small) >= GATHERED_MAX or self._small_bytes >= GATHERED_BYTES_MAX:
                await self._flush()
        self._slots.append(slot)

    async def _each(self, work: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """All of these, some at once. Raises: what one raises, when the others have ended."""
        places = asyncio.Semaphore(PARALLEL)

        async def one(some: Callable[[], Awaitable[None]]) -> None:
            async with places:
                await some()

        try:
            async with asyncio.TaskGroup() as group:
                for some in work:
                    group.create_task(one(some))
        except* (DiskFull, ArchiveError) as errors:
            raise errors.exceptions[0] from None

    # ---- large ones

    async def _bring(self, found: _Found) -> None:
        tries = Outlasting(self._reach, self._progress)
        while True:
            try:
                await self._shares.bring(found.slot, found.version)
                break
            except DiskFull:
                raise
            except AmberError as error:
                if not await tries.again(error):
                    self._failed(found, error)
                    return
        await self._brought_back(found)

    async def _brought_back(self, found: _Found) -> None:
        store, slot, version = self._ground.store, found.slot, found.version
        whole = await store.is_whole(slot, version)
        if await store.is_evicted(slot, version.blob_id):
            # Nothing is wrong with it: a rule that always evicts was quicker than this.
            self._progress.add(evicted_again=1)
        elif whole:
            self._progress.add(restored=1)
        else:
            self._failed(found, ArchiveError("not all of its bytes are here, although they came: try again"))
            return
        self._progress.bytes(done=version.size)

    def _failed(self, found: _Found, error: AmberError) -> None:
        self._progress.problem(f"{found.path} version {found.version.version}: {error.detail}")

    # ---- small ones

    def _gather(self, found: _Found) -> None:
        self._small.append(found)
        self._small_bytes += found.version.size

    async def _flush(self) -> None:
        """Bring back what was gathered; the slots that it is of are done then."""
        large, self._large = self._large, []
        small, self._small, self._small_bytes = self._small, [], 0
        slots, self._slots = self._slots, []
        left = await self._from_copies(small)
        by_object: dict[str, list[tuple[_Found, ArchivedChunk]]] = {}
        for found in left:
            row = _row_of(found, await self._rows.here(found.slot, found.version.blob_id))
            if row is None:
                self._failed(found, ArchiveError("no copy knows where the archive has it"))
            else:
                by_object.setdefault(row.target_path, []).append((found, row))
        await self._each([partial(self._from_object, name, wanted) for name, wanted in by_object.items()])
        # All nodes in the same order: they work on the same versions at the same time.
        large.sort(key=lambda found: (found.slot, found.path, found.version.version))
        await self._each([partial(self._bring, found) for found in large])
        if not self._request.dry_run:
            for slot in slots:
                self._progress.slot_done(slot)

    async def _from_copies(self, small: Sequence[_Found]) -> list[_Found]:
        """Take what other copies have as files; returns the rest."""
        left: list[_Found] = []
        for slot in dict.fromkeys(found.slot for found in small):
            wanted = [found for found in small if found.slot == slot]
            for node in self._source.order(self._ground.others(slot), sum(found.version.size for found in wanted), ()):
                wanted = await self._from_copy(node, slot, wanted)
            left += wanted
        return left

    async def _from_copy(self, node: str, slot: int, wanted: Sequence[_Found]) -> list[_Found]:
        """Take what one other copy has; returns the rest. One that has nothing of what it is asked first is not asked for more."""
        left: list[_Found] = []
        asked = True
        for group in _groups(wanted):
            if not asked:
                left += group
                continue
            try:
                parts = await self._source.fetch_blobs(node, slot, [found.version for found in group])
            except (PeerError, StorageError, DigestMismatch) as error:
                log.info("not from another copy", peer=node, slot=slot, error=error.detail)
                asked = False
                left += group
                continue
            got = [(found, part) for found, part in zip(group, parts, strict=True) if isinstance(part, bytes)]
            left += [found for found, part in zip(group, parts, strict=True) if not isinstance(part, bytes)]
            asked = bool(got)
            await self._install(got, "from_copies_bytes")
        return left

    async def _from_object(self, name: str, wanted: Sequence[tuple[_Found, ArchivedChunk]]) -> None:
        of_row: dict[tuple[str, int, int], list[_Found]] = {}
        for found, row in wanted:
            of_row.setdefault(row.location, []).append(found)
        got: list[tuple[_Found, bytes]] = []
        size = 0
        try:
            async for row, data in fetch_rows(self._target, name, [row for _, row in wanted]):
                for found in of_row.pop(row.location, ()):
                    if isinstance(data, bytes):
                        got.append((found, data))
                        size += len(data)
                    else:
                        # By itself once more: it is looked at twice, and another place of it is looked for.
                        await self._bring(found)
                if size >= PUT_BACK_BYTES:
                    await self._install(got, "from_archive_bytes")
                    got, size = [], 0
        except ArchiveError as error:
            log.info("object not read", object=name, error=error.detail)
        await self._install(got, "from_archive_bytes")
        for missing in of_row.values():
            for found in missing:
                await self._bring(found)

    async def _install(self, got: Sequence[tuple[_Found, bytes]], counted: str) -> None:
        store = self._ground.store
        for slot in dict.fromkeys(found.slot for found, _ in got):
            some = [(found.version, data) for found, data in got if found.slot == slot]
            bodies = [pair for pair in some if pair[0].inline]
            blobs = [pair for pair in some if not pair[0].inline]
            if bodies:
                await store.install_bodies(slot, bodies)
            if blobs:
                await store.install_blobs(slot, blobs)
        for found, data in got:
            self._progress.add(**{counted: len(data)})
            await self._brought_back(found)

    # ---- imported content

    async def _imported(self, slot: int, view: ArchiveView) -> None:
        if not view.is_head:
            self._progress.add(imported_left=1)
            return
        if not self._ground.looks_after(slot):
            return
        version = view.version
        options = PutOptions(
            size=version.size,
            content_type=version.content_type,
            meta=version.meta,
            conditions=Conditions(version=version.version),
        )
        body = self._reading.read(ObjectView(path=view.path, version=version), 0, version.size)
        try:
            written = await self._put(view.path, _as_bytes(body), options)
        except (PreconditionFailed, VersionConflict):
            self._progress.add(imported_left=1)  # somebody wrote it meanwhile
            return
        except AmberError as error:
            self._progress.problem(f"{view.path} version {version.version}, imported: {error.detail}")
            return
        log.info("imported content written anew", path=view.path, was=version.version, version=written.version.version)
        self._progress.add(imported_rewritten=1)
        self._progress.bytes(done=version.size)


async def _as_bytes(pieces: AsyncIterator[bytes | memoryview]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield bytes(piece)


def _row_of(found: _Found, rows: ArchivedBlob | None) -> ArchivedChunk | None:
    row = rows.find(found.version.chunks[0].id) if rows is not None else None
    return row if row is not None and row.state >= 0 else None


def _groups(found: Sequence[_Found]) -> list[list[_Found]]:
    """As many as one question may be for."""
    groups: list[list[_Found]] = []
    size = 0
    for one in found:
        if not groups or len(groups[-1]) == READ_BLOBS_MAX or size + one.version.size > READ_BLOBS_BYTES_MAX:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.version.size
    return groups
