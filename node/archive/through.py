"""Writes that are acknowledged only when they are archived, too (rfc/0016, "Writes that are archived first").

The order is: chunks into the bucket, their rows onto a write quorum, the round, the write's metadata into the bucket. What fails before the
round has written nothing; what fails after it is an unknown outcome, and the same write sent again gets to the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import structlog

from amberblob.archives import ArchivedChunk
from amberblob.errors import (
    AmberError,
    ArchiveError,
    ArchiveUnavailable,
    NotReady,
    OutcomeUnknown,
    PeerError,
    QuorumUnavailable,
)
from amberblob.limits import MIB
from amberblob.manifest import ChunkRef, Version
from amberblob.wire import Discard, StagedReply
from amberblob.wire_archive import ARCHIVED_LINES_MAX, StageArchived
from amberblob.wire_repair import PathItem
from archive.groups import GroupUploader
from archive.targets.interface import Target
from archive.upload import Item, Uploader
from archive.written import Written
from node.archive.known import KnownRows
from node.archive.metadata import Metadata
from node.archive.reads import DOWN_PATIENCE_S
from node.coordinator import Coordinator, not_counted
from node.objects.first import MOVES_MAX, ReadBack
from node.objects.lookup import Lookup
from node.protocol.operations import NO_CONDITIONS, Put, Refuse, Situation, decide
from node.protocol.quorum import Electorate
from node.protocol.write import Applied
from node.routing import Routing
from node.service import ObjectView, PutOptions

log = structlog.get_logger(__name__)

SMALL_BYTES_MAX = MIB
"""A body of up to so many bytes waits for others to share a pack."""
PACE_BYTES_PER_S = MIB
"""An upload may take a second longer for so many bytes; else the archive is too slow to be waited for."""
STAGE_S = 5.0


class Rules(Protocol):
    """Which paths are archived first (:class:`archive.policy.Policy`)."""

    def write_through(self, path: str) -> bool:
        """Whether a PUT of this path is acknowledged only when it is archived, too."""
        ...


class Through:
    """Implements :class:`node.objects.first.WriteThrough`.

    Args:
        uploader: for what is large. groups: for what is small, with an uploader of its own.
        patience_s: how long the archive may take for what is small; larger bodies may take longer.
        is_down: whether the target is known not to answer: then it is only tried whether it is back.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        routing: Routing,
        lookup: Lookup,
        rows: KnownRows,
        rules: Rules,
        target: Target,
        uploader: Uploader,
        groups: GroupUploader,
        metadata: Metadata,
        *,
        patience_s: float,
        is_down: Callable[[], bool] = lambda: False,
    ) -> None:
        self.coordinator = coordinator
        self.routing = routing
        self.rows = rows
        self._lookup = lookup
        self._rules = rules
        self._target = target
        self._uploader = uploader
        self._groups = groups
        self.metadata = metadata
        self._patience_s = patience_s
        self._is_down = is_down

    async def close(self) -> None:
        """Give up what is under way."""
        await self._groups.close()
        await self.metadata.close()

    def wanted(self, path: str) -> bool:
        return self._rules.write_through(path)

    async def hint(self, electorate: Electorate, path: str, options: PutOptions) -> None:
        if not self.routing.is_registered():
            raise NotReady(_STRUCK_OFF)
        if options.conditions == NO_CONDITIONS and options.version is None:
            return
        record = await self._lookup.record(electorate, path)
        if options.write_id and (options.repeat or (record is not None and record.revision > len(record.writes))):
            return  # an earlier try may have been applied, and what it did is not told by this record
        draft = _NOTHING
        situation = Situation(
            current=record,
            version_floor=0,
            prior=None,
            write_id=options.write_id or "",
            now_ms=self.coordinator.clock.now_ms(),
        )
        decision = decide(Put(draft=draft, requested=options.version, conditions=options.conditions), situation)
        if isinstance(decision, Refuse):
            raise decision.error

    async def archive(
        self,
        electorate: Electorate,
        path: str,
        draft: Version,
        chunks: Sequence[ChunkRef],
        manifest: bytes | None,
        read: ReadBack,
    ) -> ArchivedPut:
        items = [
            Item(chunk=chunk, slot=electorate.slot, blob_id=draft.blob_id, path=path, version=0, index=index)
            for index, chunk in enumerate(chunks)
        ]
        size = sum(chunk.len for chunk in chunks)
        patience_s = min(self._patience_s, DOWN_PATIENCE_S) if self._is_down() else self._patience_s
        patience_s += size / PACE_BYTES_PER_S
        try:
            async with asyncio.timeout(patience_s):
                if manifest is None and size <= SMALL_BYTES_MAX:
                    body = [(item, bytes(await read(item.chunk))) for item in items]
                    rows = await self._groups.archive(body)
                else:
                    rows = await self._send(self._bodies_of(items, draft, path, manifest, read))
        except TimeoutError:
            seen = f"{self._target.url} did not take {size} bytes within {patience_s:.0f} s"
            raise ArchiveUnavailable(seen).in_short(_REFUSED, {}) from None
        except ArchiveError as error:
            raise error.in_short(_REFUSED, {}) from error
        return ArchivedPut(self, path, draft, tuple({row.chunk_id: row for row in rows}.values()))

    async def _bodies_of(
        self, items: list[Item], draft: Version, path: str, manifest: bytes | None, read: ReadBack
    ) -> AsyncIterator[tuple[Item, bytes]]:
        for item in items:
            yield item, bytes(await read(item.chunk))
        if manifest is not None:
            assert draft.manifest_id is not None
            chunk = ChunkRef(draft.manifest_id, len(manifest))
            yield Item(chunk=chunk, slot=items[0].slot, blob_id=draft.blob_id, path=path, version=0, index=-1), manifest

    async def _send(self, source: AsyncIterator[tuple[Item, bytes]]) -> list[ArchivedChunk]:
        """Upload; the rows, one for each chunk id. Raises: ArchiveError, and what the source raises."""
        rows: dict[str, ArchivedChunk] = {}
        errors: list[AmberError] = []

        async def stored(told: list[tuple[Item, ArchivedChunk]]) -> None:
            rows.update((row.chunk_id, row) for _, row in told)

        async def failed(items: list[Item], error: AmberError) -> None:
            errors.append(error)

        await self._uploader.run(source, stored, failed)
        if errors:
            raise errors[0]
        return list(rows.values())


class ArchivedPut:
    """Implements :class:`node.objects.first.ArchivedWrite`: one write whose chunks the archive has."""

    def __init__(self, through: Through, path: str, draft: Version, rows: tuple[ArchivedChunk, ...]) -> None:
        self._through = through
        self._path = path
        self._draft = draft
        self._rows = rows
        self._have: frozenset[str] = frozenset()
        self._at: Electorate | None = None

    async def stage(self, electorate: Electorate) -> Electorate:
        for moves in range(MOVES_MAX if self._rows else 0):
            if self._at is not None:
                self._have = electorate.still(self._have, self._at)
            self._at = electorate
            if electorate.is_write_quorum_among(self._have):
                break
            strangers: set[str] = set()
            try:
                self._have |= await self._staged(electorate, self._draft.blob_id, strangers)
                break
            except QuorumUnavailable:
                if moves + 1 == MOVES_MAX or not await self._through.coordinator.moves_on(electorate, strangers):
                    raise
                electorate = self._through.routing.electorate(electorate.slot)
        return electorate

    async def _staged(self, electorate: Electorate, blob_id: str, strangers: set[str]) -> frozenset[str]:
        """Who has the rows now: at least a write quorum. Raises: QuorumUnavailable; ``strangers`` took them as other copies than are named."""
        out: dict[str, str] = {}

        async def one(node: str) -> str:
            for at in range(0, len(self._rows), ARCHIVED_LINES_MAX):
                request = StageArchived(
                    slot=electorate.slot,
                    epoch=electorate.epoch,
                    blob_id=blob_id,
                    chunks=self._rows[at : at + ARCHIVED_LINES_MAX],
                )
                try:
                    reply = await self._through.coordinator.peers.call(node, request, timeout_s=STAGE_S)
                except PeerError as error:
                    out[node] = error.detail
                    return ""
                if not isinstance(reply, StagedReply) or not electorate.counts(node, reply.incarnation):
                    out[node] = not_counted(reply)
                    if isinstance(reply, StagedReply):
                        strangers.add(node)
                    return ""
            return node

        names = {row.target_path for row in self._rows}
        with self._through.rows.using(self._rows) as may:
            if not names <= may:
                # This node has agreed to its being deleted, and so may all others have: nobody may get rows of it any more.
                raise QuorumUnavailable.of(
                    *electorate.writes_short(frozenset()),
                    {self._through.routing.node: f"{min(names - may)} is being deleted from the archive"},
                )
            nodes = await asyncio.gather(*map(one, electorate.voters))
        have = frozenset(node for node in nodes if node)
        if not electorate.is_write_quorum(have):
            raise QuorumUnavailable.of(*electorate.writes_short(have), out)
        return have

    async def give_up(self) -> None:
        at, self._at = self._at, None
        if at is None:
            return
        for node in at.voters:
            self._through.coordinator.spawn(self._discard(node, at.slot))

    async def _discard(self, node: str, slot: int) -> None:
        try:
            await self._through.coordinator.call(node, Discard(slot=slot, blob_id=self._draft.blob_id))
        except PeerError as error:
            log.info("discard not delivered; the node's sweep will remove it", peer=node, error=error.detail)

    async def confirm(self, applied: Applied, view: ObjectView) -> None:
        through, version = self._through, view.version
        electorate = through.routing.of(self._path)
        try:
            if version.blob_id == self._draft.blob_id:
                await self.stage(electorate)  # the slot may have moved meanwhile
            elif self._rows and version.etag == self._draft.etag:
                # An earlier try of this write was applied; the archive may have got to know of it or not. The content is the same.
                # No newer route is waited for: whoever is told that it is unknown sends it again.
                await self._staged(electorate, version.blob_id, set())
            if applied.record is None or applied.ballot is None:
                return  # the path was deleted and forgotten since: there is nothing that could be brought back
            item = PathItem(
                path=self._path,
                ballot=applied.ballot,
                record=applied.record,
                chosen=True,
                rows=(version,),
                writes=applied.record.writes,
            )
            await through.metadata.tell(Written(electorate.slot, item, version.blob_id, self._rows))
        except (ArchiveError, QuorumUnavailable, TimeoutError) as error:
            why = error.detail if isinstance(error, AmberError) else "it did not answer in time"
            raise OutcomeUnknown(
                f"The write was applied as version {version.version}, but it is not certain that it can be brought back from the archive "
                f"alone ({why}) Send it again with the same X-Amber-Write-Id to have it archived.",
                extra={
                    "version": version.version,
                    "write_id": applied.mark.write_id if applied.mark is not None else "",
                },
            ) from error


_REFUSED = (
    "Nothing was written, as this path is to be archived before it is acknowledged, and the archive did not take it"
)

_STRUCK_OFF = (
    "Nothing was written, as this path is to be archived before it is acknowledged, and this node was removed from the cluster: whoever "
    "deletes from the archive does not ask it any more, so nobody takes its word for what is there. Use another node; this one should be stopped."
)

_NOTHING = Version(
    version=0, blob_id="", size=0, etag="", created_at_ms=0, content_type="", meta={}, chunks=(), chunk_count=0
)
"""A draft for a decision of which only the refusals count."""
