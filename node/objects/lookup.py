"""Which version a read is about: the head, one version, or the head at a time."""

from __future__ import annotations

from amberblob.errors import ClusterError, NotFound, OutcomeUnknown
from amberblob.limits import HISTORY_PAGE_MAX
from amberblob.manifest import Record, Version, WriteMark, covers
from amberblob.wire import HistoryReply, HistoryRow, Query, QueryHistory
from chunkstore.interface import ReplicaStore
from node.coordinator import Coordinator
from node.protocol.quorum import Electorate
from node.protocol.read import Read
from node.routing import Routing
from node.service import Consistency, ObjectView


class Lookup:
    """Finds versions by quorum reads, or on this node's own copy when the caller asks for ``local``."""

    def __init__(self, coordinator: Coordinator, routing: Routing, store: ReplicaStore) -> None:
        self._coordinator = coordinator
        self._routing = routing
        self._store = store

    async def lookup(
        self, path: str, *, version: int | None, at_ms: int | None, consistency: Consistency
    ) -> ObjectView:
        """See :meth:`node.service.ObjectService.lookup`."""
        electorate = self._routing.of(path)
        if consistency == "local" and at_ms is None and self._speaks(electorate.slot):
            return await self._local(electorate.slot, path, version)
        if version is not None:
            return await self.version(electorate, path, version)
        if at_ms is not None:
            return await self._at(electorate, path, at_ms)
        return await self._head(electorate, path)

    def _speaks(self, slot: int) -> bool:
        """Whether what this node's copy lacks is worth telling: one that is to be filled first is empty, and it is no news."""
        return self._routing.mute(self._store.slot_state(slot)) is None

    async def record(self, electorate: Electorate, path: str) -> Record | None:
        """The path's chosen record, strongly read. Raises: QuorumUnavailable."""
        query = Query(slot=electorate.slot, path=path, epoch=electorate.epoch)
        return (await self._coordinator.read(electorate, query)).finding.record

    async def _head(self, electorate: Electorate, path: str) -> ObjectView:
        record = await self.record(electorate, path)
        if record is None or record.head is None:
            raise no_such_object(path, record)
        return ObjectView(path=path, version=record.head)

    async def version(self, electorate: Electorate, path: str, version: int) -> ObjectView:
        """One version, tombstoned or not. Raises: NotFound, QuorumUnavailable."""
        query = QueryHistory(slot=electorate.slot, path=path, epoch=electorate.epoch, version=version)
        read = await self._coordinator.read(electorate, query)
        view = _views(path, read).get(version)
        if view is None:
            raise no_such_version(path, version)
        return view

    async def written(self, electorate: Electorate, path: str, mark: WriteMark) -> ObjectView:
        """The version that an earlier try of a write made, for the first answer to a retry.

        Raises: OutcomeUnknown when it cannot be read now: the write is applied, so no other error would be true.
        """
        query = QueryHistory(slot=electorate.slot, path=path, epoch=electorate.epoch, version=mark.version)
        try:
            # What was chosen stays what it is, however fast the path goes on being written.
            read = await self._coordinator.glance(electorate, query)
            version = _chosen(read, mark.version)
            if version is not None:
                return ObjectView(path=path, version=version, is_head=False)
            return await self.version(electorate, path, mark.version)
        except (ClusterError, NotFound) as error:
            raise OutcomeUnknown(
                f"The write was applied as version {mark.version}, but what it made cannot be read now ({error.detail}) "
                "Send it again with the same X-Amber-Write-Id for the whole answer.",
                extra={"version": mark.version, "write_id": mark.write_id},
            ) from error

    async def _at(self, electorate: Electorate, path: str, at_ms: int) -> ObjectView:
        for view in await self.versions(electorate, path):
            gone = view.tombstoned_at_ms is not None and view.tombstoned_at_ms <= at_ms
            if view.version.created_at_ms <= at_ms and not gone:
                return view
        raise NotFound(f"{path!r} had no live version at that time.", extra={"path": path})

    async def versions(self, electorate: Electorate, path: str) -> list[ObjectView]:
        """Every version, newest first; empty when the path never had one. Raises: QuorumUnavailable."""
        views: dict[int, ObjectView] = {}
        below: int | None = None
        while True:
            query = QueryHistory(
                slot=electorate.slot, path=path, epoch=electorate.epoch, below=below, limit=HISTORY_PAGE_MAX
            )
            read = await self._coordinator.read(electorate, query)
            for number, view in _views(path, read).items():
                views.setdefault(number, view)
            # A full page is complete only down to its lower end; the highest such end is safe for all.
            ends = [r.rows[-1].version.version for r in read.replies.values() if isinstance(r, HistoryReply) and r.more]
            if not ends:
                return [views[number] for number in sorted(views, reverse=True)]
            below = max(ends)

    async def _local(self, slot: int, path: str, version: int | None) -> ObjectView:
        """From this node's copy alone: what is known here to be chosen, and durable here."""
        register = await self._store.load(slot, path)
        position = self._store.position(slot, path)
        record = register.record if register.chosen else None
        if version is None and record is not None:
            await self._store.durable(position)
            if record.head is None:
                raise no_such_object(path, record)
            return ObjectView(path=path, version=record.head)
        # The newest record here may not be chosen. What it was built on is, and so is every row.
        rows = await self._store.rows(slot, path, version=version)
        await self._store.durable(position)
        for row in rows:
            if record is not None and covers(record.expired, row.version.version):
                continue  # the record was heard of while the rows were read
            if version is not None or row.tombstoned_at_ms is None:
                is_head = record is not None and record.head is not None and record.head.version == row.version.version
                return ObjectView(
                    path=path,
                    version=row.version,
                    tombstoned_at_ms=row.tombstoned_at_ms,
                    is_head=is_head or version is None,
                )
        if version is None:
            raise no_such_object(path, None)
        if record is not None and record.added is not None and record.added.version == version:
            return ObjectView(path=path, version=record.added)
        raise no_such_version(path, version)


def no_such_object(path: str, record: Record | None) -> NotFound:
    """The error of a path without a live version."""
    if record is None:
        return NotFound(f"There is no object {path!r}.", extra={"path": path})
    return NotFound(
        f"The object {path!r} was deleted. Its versions can be read with ?version=N; POST ?restore brings it back.",
        extra={"path": path, "version_max": record.version_max, "deleted_at_ms": record.deleted_at_ms},
    )


def no_such_version(path: str, version: int) -> NotFound:
    """The error of a version that never was, or is gone for good."""
    return NotFound(
        f"The object {path!r} has no version {version}. GET ?versions lists what there is.",
        code="no-such-version",
        extra={"path": path, "version": version},
    )


def _chosen(read: Read, number: int) -> Version | None:
    """A version that some answer shows to be chosen, whatever became of the path since."""
    for reply in read.replies.values():
        if isinstance(reply, HistoryReply):
            for row in reply.rows:
                if row.version.version == number:
                    return row.version
        # A record is only ever built on a chosen one.
        previous = reply.record.previous if reply.record is not None else None
        if previous is not None and previous.version == number:
            return previous
    return None


def _views(path: str, read: Read) -> dict[int, ObjectView]:
    """The versions that a majority's answers tell, as the decided record sees them."""
    record = read.finding.record
    if record is None:
        return {}
    versions: dict[int, Version] = {}
    deleted: dict[int, int] = {}
    for reply in read.replies.values():
        if isinstance(reply, HistoryReply):
            for row in reply.rows:
                # The rows were read a moment after the register: a newer version is not of this state.
                if row.version.version <= record.version_max and not covers(record.expired, row.version.version):
                    versions[row.version.version] = row.version
                    _note_tombstone(deleted, row)
    for version in (record.previous, record.added):
        if version is not None and not covers(record.expired, version.version):
            versions[version.version] = version
    views: dict[int, ObjectView] = {}
    for number, version in versions.items():
        live = covers(record.live, number)
        views[number] = ObjectView(
            path=path,
            version=version,
            # Whether it is deleted is the record's word; when, is what some replica noted, else the last delete.
            tombstoned_at_ms=None if live else deleted.get(number, record.deleted_at_ms),
            is_head=record.head is not None and record.head.version == number,
        )
    return views


def _note_tombstone(deleted: dict[int, int], row: HistoryRow) -> None:
    if row.tombstoned_at_ms is not None:
        number = row.version.version
        deleted[number] = min(row.tombstoned_at_ms, deleted.get(number, row.tombstoned_at_ms))
