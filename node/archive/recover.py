"""The job ``recover``: builds a cluster from what another one left in the archive (rfc/0016).

One node does it for all. Slot by slot of the lost cluster, every path is written by an ordinary round that says "this record, if the path has
none", after the archive rows of its versions were staged on the copies; older versions follow as rows. A path that was brought back before is
found so by the id of its last write, so that the job may be stopped, and begun again, at any point, on any node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from amberblob.errors import (
    AmberError,
    ArchiveError,
    BadRequest,
    ClusterError,
    PeerError,
    VersionConflict,
)
from amberblob.manifest import Version
from amberblob.wire_repair import PathItem
from archive.export import exported_clusters, note_recovered
from archive.gathered import GatheredSlot
from archive.lost import LostCluster
from archive.recent import RecentChunks
from archive.recovering import Revival, revive
from archive.targets.interface import Target
from node.archive.ground import Ground
from node.archive.holding import Held, Holding
from node.archive.jobs import JobRequest, Progress
from node.archive.parallel import in_parallel
from node.archive.placing import Placing
from node.protocol.operations import Recover

log = structlog.get_logger(__name__)

AT_ONCE = 32
TRIES = 5
PAUSE_S = 0.5
LEFT_MAX = 100
"""After so many paths that could not be written the cluster is taken to be unable to, and the job fails."""
LOST_TOLD_MAX = 10


class RecoverWork:
    """A :class:`node.archive.jobs.JobWork`. Options: ``cluster``: which one, if the bucket has the metadata of several."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._placing = Placing(ground)

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Recover all paths that begin with the prefix.

        Raises:
            BadRequest: it is not clear from what.
            ArchiveError: the archive cannot be read.
            QuorumUnavailable: too few copies answer; what was done stays done.
        """
        ground = self._ground
        target = ground.means.for_job(request)
        if request.source and request.source.rstrip("/") != target.url.rstrip("/"):
            raise BadRequest(
                f"What is recovered stays in its archive, so that [archive] target has to be {request.source} on every node, and it is {target.url}."
            )
        own = ground.routing.table().cluster.cluster_id
        cluster = await chosen(target, own, request.options.get("cluster", ""))
        lost = LostCluster(target, cluster, progress.problem)
        await lost.open()
        progress.status.slots_total = lost.slot_count
        recent = RecentChunks(target, lost.since_ms, progress.problem)
        run = _Run(ground, self._placing, Holding(target, recent, ground.now_ms), request, progress)
        for slot in range(lost.slot_count):
            if not progress.is_done(slot):
                progress.say(f"slot {slot} of cluster {cluster}")
                if await run.slot(await lost.slot(slot)):
                    progress.slot_done(slot)
        if run.error is not None:
            raise run.error
        everything = not request.prefix and not request.dry_run
        if everything and not run.conflicts and len(progress.status.done_slots) == lost.slot_count:
            await note_recovered(target, cluster, own)


async def chosen(target: Target, own: str, wanted: str) -> str:
    """The cluster whose metadata is to be recovered: ``wanted``, or the only one beside ``own``. Raises: BadRequest, ArchiveError."""
    clusters = await exported_clusters(target)
    if wanted:
        if wanted not in clusters:
            raise BadRequest(f"{target.url} has no metadata of cluster {wanted}; it has that of {_listed(clusters)}.")
        return wanted
    others = [cluster for cluster in clusters if cluster != own]
    if len(others) == 1:
        return others[0]
    if not others:
        raise BadRequest(
            f"{target.url} has no metadata of another cluster: nothing was ever exported there (amberblob archive export), or [archive] target "
            "is not what it was."
        )
    raise BadRequest(
        f"{target.url} has the metadata of several clusters: say which by option cluster={_listed(others)}."
    )


def _listed(clusters: Iterable[str]) -> str:
    return ", ".join(clusters) or "none"


class _Run:
    """One run of the job.

    Attributes:
        error: why some paths could not be written; None: all could.
        conflicts: paths that hold something else.
    """

    def __init__(
        self, ground: Ground, placing: Placing, holding: Holding, request: JobRequest, progress: Progress
    ) -> None:
        self.error: AmberError | None = None
        self.conflicts = 0
        self._left = 0
        self._ground = ground
        self._placing = placing
        self._holding = holding
        self._request = request
        self._progress = progress

    async def slot(self, gathered: GatheredSlot) -> bool:
        """Bring the paths of a slot back; whether all of them are. Raises: ArchiveError, and what too many paths could not be written for."""
        left = self._left
        prefix = self._request.prefix
        items = [item for path, item in sorted(gathered.items.items()) if path.startswith(prefix)]

        async def one(item: PathItem) -> None:
            await self._path(item, gathered)

        await in_parallel(one, items, AT_ONCE)
        return self._left == left

    async def _path(self, item: PathItem, gathered: GatheredSlot) -> None:
        held: dict[int, Held] = {}
        for version in _versions(item):
            found = await self._holding.held(version, gathered.rows(version))
            if found is not None:
                held[version.version] = found
        revival = revive(item, lambda version: version.version in held, self._ground.now_ms())
        self._tell_lost(revival)
        if self._request.dry_run:
            self._count(revival, fresh=True)
            return
        for tries in range(TRIES):
            try:
                self._count(revival, fresh=await self._write(revival, held))
                return
            except VersionConflict as error:
                self.conflicts += 1
                self._progress.problem(f"{item.path!r}: {error.detail}")
                return
            except (ClusterError, PeerError) as error:
                if isinstance(error, ArchiveError) or tries == TRIES - 1:
                    await self._leave(item.path, error)
                    return
                await asyncio.sleep(PAUSE_S * (tries + 1))

    async def _leave(self, path: str, error: AmberError) -> None:
        """The path could not be written now: it is left to the next run."""
        self._left += 1
        self.error = error
        self._progress.problem(f"{path!r} could not be written now: {error.detail}")
        if self._left >= LEFT_MAX:
            raise error

    async def _write(self, revival: Revival, held: dict[int, Held]) -> bool:
        """Bring a path back; whether it was not here before. Raises: VersionConflict, ClusterError, PeerError."""
        ground, path = self._ground, revival.path
        electorate = ground.routing.of(path)
        added = revival.record.added
        holders: frozenset[str] | None = None
        for version in revival.rows:
            chunks = held[version.version].chunks
            if not chunks:
                continue
            staged = await self._placing.stage(electorate, version.blob_id, chunks, manifest_id=version.manifest_id)
            if added is not None and version.version == added.version:
                holders = staged
        applied = await ground.coordinator.write(
            electorate,
            path,
            Recover(record=revival.record),
            write_id=revival.write_id,
            repeat=True,
            holders=holders,
        )
        # A path that was brought back, deleted and forgotten since has no record that its rows could belong to.
        wanted = revival.older or set(revival.writes) - set(revival.record.writes)
        if wanted and applied.record is not None:
            await self._placing.install(electorate, path, revival.older, revival.writes)
        return applied.fresh

    def _count(self, revival: Revival, *, fresh: bool) -> None:
        size = sum(version.size for version in revival.rows)
        if fresh:
            live = revival.record.head is not None
            self._progress.add(
                paths=1, objects=int(live), deleted=int(not live), versions=len(revival.rows), version_bytes=size
            )
        else:
            self._progress.add(paths_present=1)

    def _tell_lost(self, revival: Revival) -> None:
        if not revival.lost:
            return
        told = ", ".join(map(str, revival.lost[:LOST_TOLD_MAX]))
        more = f" and {len(revival.lost) - LOST_TOLD_MAX} more" if len(revival.lost) > LOST_TOLD_MAX else ""
        log.warning("versions are lost", path=revival.path, versions=revival.lost[:1000], count=len(revival.lost))
        self._progress.problem(f"{revival.path!r}: the archive does not have the bytes of version {told}{more}")
        self._progress.add(lost_paths=1, lost_versions=len(revival.lost))


def _versions(item: PathItem) -> list[Version]:
    """All versions that may come back."""
    record = item.record
    known = (
        {row.version: row for row in (record.head, record.previous) if row is not None} if record is not None else {}
    )
    known.update((row.version, row) for row in item.rows)
    return list(known.values())
