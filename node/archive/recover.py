"""The job ``recover``: builds a cluster from what another one left in the archive (rfc/0016).

One node does it for all. Slot by slot of the lost cluster, every path is written by an ordinary round that says "this record, if the path has
none", after the archive rows of its versions were staged on the copies; older versions follow as rows. A path that was brought back before is
found so by the id of its last write, so that the job may be stopped, and begun again, at any point, on any node.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import structlog

from amberblob.errors import BadRequest, VersionConflict
from amberblob.manifest import Version
from amberblob.wire_repair import PathItem
from archive.clusters import exported_clusters, note_recovered
from archive.gathered import GatheredSlot
from archive.lost import NOT_YET, LostCluster
from archive.recent import RecentChunks
from archive.recovering import Revival, revive
from archive.targets.interface import Target
from node.archive.ground import Ground
from node.archive.holding import Held, Holding
from node.archive.jobs import JobRequest, Progress
from node.archive.parallel import in_parallel
from node.archive.patience import Patience
from node.archive.placing import Placing
from node.protocol.operations import Recover

log = structlog.get_logger(__name__)

AT_ONCE = 32
LOST_TOLD_MAX = 10
LEFT_BEHIND = "left-behind"
"""The note that something of the lost cluster did not come: a path that holds something else here, or metadata that could not be read. Nothing
here refers to its objects, so they must not be taken for garbage; also when the job went on after a restart, and does not look at that slot again.
"""


class RecoverWork:
    """A :class:`node.archive.jobs.JobWork`. Options: ``cluster``: which one, if the bucket has the metadata of several."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._placing = Placing(ground)

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Recover all paths that begin with the prefix. While the archive, or a majority of a slot's copies, is away it waits, and says so.

        Raises:
            BadRequest: it is not clear from what.
            ArchiveDenied: the archive cannot be read before somebody mends it.
            ArchiveUnavailable, QuorumUnavailable, PeerError: nothing went on for half an hour. What was done stays done; the next job does the rest.
        """
        ground = self._ground
        target = ground.means.for_job(request)
        if request.source and request.source.rstrip("/") != target.url.rstrip("/"):
            raise BadRequest(
                f"What is recovered stays in its archive, so that [archive] target has to be {request.source} on every node, and it is {target.url}."
            )
        patience = Patience(ground.clock, progress)
        own = ground.routing.table().cluster.cluster_id
        cluster = await patience.of(lambda: chosen(target, own, request.options.get("cluster", "")))
        if not request.dry_run:
            await patience.of(ground.identity.claim)
        told: set[str] = set()

        def unread(text: str) -> None:
            if text in told:
                return  # a slot that is gone through again because the archive went away meanwhile
            told.add(text)
            progress.problem(text)
            if not text.endswith(NOT_YET):
                progress.set_note(LEFT_BEHIND, "1")

        async def open_lost() -> LostCluster:
            lost = LostCluster(target, cluster, unread)
            await lost.open()
            return lost

        lost = await patience.of(open_lost)
        progress.status.slots_total = lost.slot_count
        recent = RecentChunks(target, lost.since_ms, unread)
        holding = Holding(target, recent, ground.now_ms)
        run = _Run(ground, self._placing, holding, patience, request, progress)
        for slot in range(lost.slot_count):
            if not progress.is_done(slot):
                progress.say(f"slot {slot} of cluster {cluster}")
                await run.slot(await patience.of(partial(lost.slot, slot)))
                progress.slot_done(slot)
        everything = not request.prefix and not request.dry_run
        if everything and not progress.note(LEFT_BEHIND) and len(progress.status.done_slots) == lost.slot_count:
            await patience.of(lambda: note_recovered(target, cluster, own))


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
    """One run of the job."""

    def __init__(
        self,
        ground: Ground,
        placing: Placing,
        holding: Holding,
        patience: Patience,
        request: JobRequest,
        progress: Progress,
    ) -> None:
        self._ground = ground
        self._placing = placing
        self._holding = holding
        self._patience = patience
        self._request = request
        self._progress = progress

    async def slot(self, gathered: GatheredSlot) -> None:
        """Bring the paths of a slot back, but for those that hold something else here. Raises: ClusterError, PeerError (see :class:`Patience`)."""
        prefix = self._request.prefix
        items = [item for path, item in sorted(gathered.items.items()) if path.startswith(prefix)]

        async def one(item: PathItem) -> None:
            await self._path(item, gathered)

        await in_parallel(one, items, AT_ONCE)

    async def _path(self, item: PathItem, gathered: GatheredSlot) -> None:
        held: dict[int, Held] = {}
        for version in _versions(item):
            found = await self._patience.of(partial(self._holding.held, version, gathered.rows(version)))
            if found is not None:
                held[version.version] = found
        revival = revive(item, lambda version: version.version in held, self._ground.now_ms())
        self._tell_lost(revival)
        if self._request.dry_run:
            self._count(revival, fresh=True)
            return
        try:
            fresh = await self._patience.of(lambda: self._write(revival, held))
        except VersionConflict as error:
            self._progress.set_note(LEFT_BEHIND, "1")
            self._progress.problem(f"{item.path!r}: {error.detail}")
        else:
            self._count(revival, fresh=fresh)

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
