"""The job ``gc``: deletes objects that nobody refers to, and has packs that are mostly dead written anew (rfc/0016).

Every node rewrites for the slots that it looks after. One of them, the first in the route table that can be reached, deletes as well; two at
once would be harmless. What was listed is gone through in order of the names, and where it is is noted: after a restart it goes on there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from amberblob.errors import ArchiveError, NotReady
from amberblob.ids import ulid_time_ms
from amberblob.wire_archive import CONDEMN_MAX, ObjectUses, ObjectUsesReply
from archive.packs import CHUNKS, FRAME_OF_PACK_BYTES, PACKS, object_ulid
from archive.targets.interface import Stored, Target
from node.archive.collector import Collector
from node.archive.exported import ExportedObjects
from node.archive.ground import Ground
from node.archive.jobs import JobRequest, Progress
from node.archive.patience import Patience
from node.archive.rewriting import Rewriter
from node.archive.uses import Uses

log = structlog.get_logger(__name__)

LISTED_AT_ONCE = 1000
SIZES_TIMEOUT_S = 300.0
"""How long a node may take to add up its rows."""
UPLOAD_STALE_MS = 86_400_000
"""What a broken upload left is removed after this, or after ``grace``, if that is longer: one that is under way must not be."""

assert LISTED_AT_ONCE <= CONDEMN_MAX


@dataclass(frozen=True, slots=True)
class Now:
    """The time by two clocks, epoch milliseconds."""

    own_ms: int
    target_ms: int

    def age_ms(self, object: Stored) -> int:
        """How old an object is at the least: by the clock of who made it, against this node's, and by the target's against its own.

        A clock that is wrong makes it look younger by one of them, at worst; it is then looked at later.
        """
        ulid = object_ulid(object.name)
        assert ulid is not None
        return min(self.own_ms - ulid_time_ms(ulid), self.target_ms - object.modified_ms)


class Exporting(Protocol):
    """Exports what this node looks after (:class:`node.archive.export.ExportWork`)."""

    async def export(self, target: Target, progress: Progress) -> None:
        """Raises: ArchiveError."""
        ...


class GarbageWork:
    """Carries out ``gc``: a :class:`node.archive.jobs.JobWork`."""

    def __init__(self, ground: Ground, collector: Collector, uses: Uses, exporting: Exporting) -> None:
        self._ground = ground
        self._collector = collector
        self._uses = uses
        self._exporting = exporting

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """See the module. Raises: ArchiveDenied (the target is another one, or refuses), ArchiveUnavailable, DiskFailed, NotReady."""
        await Patience(self._ground.clock, progress).of(self._ground.identity.require)
        if not request.dry_run:
            progress.say("exporting the metadata: what an older export needs is not deleted")
            try:
                await self._exporting.export(self._ground.means.for_job(request), progress)
            except ArchiveError as error:
                progress.problem(f"The metadata was not exported: {error.detail}")
        await _Gc(self._ground, self._collector, self._uses, request, progress).carry_out()


class _Gc:
    """One run."""

    def __init__(
        self, ground: Ground, collector: Collector, uses: Uses, request: JobRequest, progress: Progress
    ) -> None:
        self._ground = ground
        self._collector = collector
        self._uses = uses
        self._dry_run = request.dry_run
        self._progress = progress
        self._target: Target = ground.means.for_job(request)
        self._exported = ExportedObjects(self._target, ground.routing.table().cluster.cluster_id)
        self._rewriter = Rewriter(ground, request, progress)
        self._grace_ms = round(ground.section.grace * 1000)

    async def carry_out(self) -> None:
        progress = self._progress
        collects = self._collects()
        if collects and not self._dry_run:
            progress.say("ending what an earlier run began")
            for problem in await self._collector.go_on():
                progress.problem(problem)
        if collects and (strangers := await self._exported.strangers()):
            collects = False
            progress.problem(
                f"nothing is deleted: the target is also used by {', '.join(strangers)}, and what nobody here needs may be theirs. "
                "Give each cluster a target with a prefix of its own; of a cluster that is gone for good, remove its folder below meta/."
            )
        now = await self._now()
        await self._uses.sums(fresh=True)
        for prefix in (PACKS, CHUNKS) if collects else (PACKS,):
            async for page in self._pages(prefix):
                await self._look(page, now, collects)
        if collects and not self._dry_run:
            progress.say("removing what broken uploads left")
            stale_ms = max(UPLOAD_STALE_MS, self._grace_ms)
            progress.add(uploads_removed=await self._target.sweep(now.target_ms - stale_ms))

    def _collects(self) -> bool:
        """Whether this node is the one that deletes: the first that can be reached."""
        reachable = self._ground.coordinator.peers.reachable
        nodes = self._ground.nodes()
        return next((node for node in nodes if node == self._ground.node or reachable(node)), "") == self._ground.node

    async def _now(self) -> Now:
        """The target's clock is read by storing a small object there."""
        name = f"probe/gc-{self._ground.mint.mint()}"

        async def parts() -> AsyncIterator[bytes]:
            yield b"what time is it?"

        await self._target.put(name, parts())
        try:
            stored = await self._target.head(name)
        finally:
            await self._target.delete([name])
        return Now(self._ground.clock.wall_ms(), stored.modified_ms)

    async def _pages(self, prefix: str) -> AsyncIterator[list[Stored]]:
        progress = self._progress
        while True:
            after = progress.note(prefix)
            progress.say(f"looking at {prefix} after {after}" if after else f"looking at {prefix}")
            page = await self._target.page(prefix, after, LISTED_AT_ONCE)
            if not page:
                return
            yield page
            progress.add(listed=len(page), listed_bytes=sum(object.size_bytes for object in page))
            progress.set_note(prefix, page[-1].name)

    async def _look(self, page: list[Stored], now: Now, collects: bool) -> None:
        """Find out who needs these; the rest goes."""
        ours = [object for object in page if object_ulid(object.name) is not None]
        old = [object for object in ours if now.age_ms(object) >= self._grace_ms]
        if collects:
            self._progress.add(foreign=len(page) - len(ours), young=len(ours) - len(old))
        if not old:
            return
        needed = await self._needed(old)
        if needed is None:
            return
        if collects:
            await self._delete([object for object in old if object.name not in needed])
        await self._rewrite([object for object in old if object.name in needed], needed)

    async def _needed(self, objects: Sequence[Stored]) -> dict[str, int] | None:
        """Those of which rows are somewhere, and how many bytes of each; None: not every node answered."""
        names = tuple(object.name for object in objects)
        sizes = names[0].startswith(PACKS)
        message = ObjectUses(names=names, sizes=sizes)
        try:
            replies = await self._ground.ask_all(self._ground.nodes(), message, timeout_s=SIZES_TIMEOUT_S)
        except NotReady as error:
            self._progress.problem(f"objects were left alone: {error.detail}")
            return None
        silent = sorted(node for node, reply in replies.items() if not isinstance(reply, ObjectUsesReply))
        if silent:
            self._progress.problem(
                f"objects were left alone: {', '.join(silent)} did not tell whether they are needed. Run gc again when all nodes are up."
            )
            return None
        needed: dict[str, int] = {}
        for reply in replies.values():
            assert isinstance(reply, ObjectUsesReply)
            for at, name in enumerate(reply.used):
                needed[name] = needed.get(name, 0) + (reply.sizes[at] if at < len(reply.sizes) else 0)
        return needed

    async def _delete(self, objects: Sequence[Stored]) -> None:
        """Delete those that no export needs, either."""
        if not objects:
            return
        sizes = {object.name: object.size_bytes for object in objects}
        kept = await self._exported.needed(sizes.keys(), self._progress.say)
        if self._exported.damaged:
            self._progress.problem(
                f"objects were left alone: what the export needs cannot be read ({self._exported.damaged[0]}). Export anew."
            )
            return
        if kept:
            self._progress.add(kept_for_export=len(kept), kept_for_export_bytes=sum(sizes[name] for name in kept))
        names = [name for name in sizes if name not in kept]
        if not names:
            return
        if self._dry_run:
            self._progress.add(would_delete=len(names), would_delete_bytes=sum(sizes[name] for name in names))
            return
        self._progress.bytes(total=sum(sizes[name] for name in names))
        outcome = await self._collector.collect(names)
        self._progress.add(
            deleted=len(outcome.deleted),
            deleted_bytes=sum(sizes[name] for name in outcome.deleted),
            refused=len(outcome.refused),
        )
        self._progress.bytes(
            total=sum(sizes[name] for name in outcome.deleted) - sum(sizes[name] for name in names),
            done=sum(sizes[name] for name in outcome.deleted),
        )
        if outcome.why:
            self._progress.problem(f"{len(names) - len(outcome.deleted)} objects were not deleted: {outcome.why}")

    async def _rewrite(self, objects: Sequence[Stored], needed: dict[str, int]) -> None:
        """Write packs anew of which less than a share is needed, as far as rows of this node's slots name them."""
        share, own = self._ground.section.rewrite_below, await self._uses.sums()
        dead = [
            object
            for object in objects
            if object.name.startswith(PACKS)
            and own.get(object.name)
            and needed[object.name] < share * (object.size_bytes - FRAME_OF_PACK_BYTES)
        ]
        if not dead:
            return
        self._progress.add(mostly_dead=len(dead), mostly_dead_bytes=sum(object.size_bytes for object in dead))
        if self._dry_run:
            return
        try:
            await self._rewriter.rewrite([object.name for object in dead])
        except ArchiveError as error:
            self._progress.problem(f"packs were not written anew: {error.detail}")
