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
    ArchiveMissing,
    ArchiveUnavailable,
    OutcomeUnknown,
    PeerError,
    QuorumUnavailable,
)
from amberblob.limits import MIB
from amberblob.manifest import ChunkRef, Version
from amberblob.wire import Discard, Refused, StagedReply
from amberblob.wire_archive import ARCHIVED_LINES_MAX, StageArchived
from amberblob.wire_repair import PathItem
from archive.export import store as store_object
from archive.groups import GroupUploader
from archive.segments import FORMAT, ClusterDocument, cluster_name, encode_cluster
from archive.targets.interface import Target
from archive.upload import Item, Uploader
from archive.written import Written, encode_written, through_name
from node.archive.known import KnownRows
from node.archive.reads import DOWN_PATIENCE_S
from node.archive.together import Together
from node.coordinator import Coordinator
from node.objects.first import ReadBack
from node.objects.lookup import Lookup
from node.protocol.operations import NO_CONDITIONS, Put, Refuse, Situation, decide
from node.protocol.quorum import Electorate
from node.protocol.write import Applied
from node.routing import Routing
from node.service import ObjectView, PutOptions

log = structlog.get_logger(__name__)

GROUPS = 2
"""Groups of metadata under way at once."""
GROUP_COUNT_MAX = 4096
"""Writes in one of them, and archive rows."""
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
        mint: makes ULIDs.
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
        *,
        mint: Callable[[], str],
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
        self._mint = mint
        self._patience_s = patience_s
        self._is_down = is_down
        self._told_cluster = False
        self._metadata: Together[Written, None] = Together(
            self._send_metadata,
            flights=GROUPS,
            count_max=GROUP_COUNT_MAX,
            size_max=GROUP_COUNT_MAX,
            size_of=lambda write: 1 + len(write.chunks),
        )

    async def close(self) -> None:
        """Give up what is under way."""
        await self._groups.close()
        await self._metadata.close()

    def wanted(self, path: str) -> bool:
        return self._rules.write_through(path)

    async def hint(self, electorate: Electorate, path: str, options: PutOptions) -> None:
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
            raise ArchiveUnavailable(
                f"The archive at {self._target.url} did not take {size} bytes within {patience_s:.0f} s, "
                "and this path is to be archived before it is acknowledged. Nothing was written: try again."
            ) from None
        except ArchiveError as error:
            raise type(error)(
                f"This path is to be archived before it is acknowledged, and the archive did not take it: {error.detail} Nothing was written.",
                code=error.code,
                extra=error.extra,
            ) from error
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

    # ---- metadata

    async def tell(self, write: Written) -> None:
        """Have the archive know of a write that is chosen; returns when it does. Raises: ArchiveError, TimeoutError."""
        async with asyncio.timeout(self._patience_s):
            await self._metadata.of(write)

    async def _send_metadata(self, writes: list[Written]) -> list[None]:
        info = self.routing.table().cluster
        async with asyncio.timeout(self._patience_s):
            if not self._told_cluster:
                await self._tell_cluster()
            data = encode_written(info.cluster_id, self.routing.node, self.coordinator.clock.now_ms(), writes)
            await store_object(self._target, through_name(info.cluster_id, self._mint()), data)
        return [None] * len(writes)

    async def _tell_cluster(self) -> None:
        """The bucket explains itself only with the cluster's document; before the first export there is none."""
        info = self.routing.table().cluster
        name = cluster_name(info.cluster_id)
        try:
            await self._target.head(name)
        except ArchiveMissing:
            document = ClusterDocument(
                format=FORMAT,
                cluster=info.cluster_id,
                name=info.name,
                slot_count=info.slot_count,
                chunk_bytes=info.chunk_bytes,
                replicas=info.replicas,
                created_at_ms=info.created_at_ms,
            )
            await store_object(self._target, name, encode_cluster(document))
        self._told_cluster = True


class ArchivedPut:
    """Implements :class:`node.objects.first.ArchivedWrite`: one write whose chunks the archive has."""

    def __init__(self, through: Through, path: str, draft: Version, rows: tuple[ArchivedChunk, ...]) -> None:
        self._through = through
        self._path = path
        self._draft = draft
        self._rows = rows
        self._have: frozenset[str] = frozenset()
        self._at: Electorate | None = None

    async def stage(self, electorate: Electorate) -> None:
        if not self._rows:
            return
        if self._at is not None:
            self._have = electorate.still(self._have, self._at)
        self._at = electorate
        if electorate.is_write_quorum(self._have & electorate.voters.keys()):
            return
        self._have |= await self._staged(electorate, self._draft.blob_id)

    async def _staged(self, electorate: Electorate, blob_id: str) -> frozenset[str]:
        """Who has the rows now: at least a write quorum. Raises: QuorumUnavailable."""
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
                    why = f"refused: {reply.reason} {reply.detail}".rstrip() if isinstance(reply, Refused) else ""
                    out[node] = why or f"answered {reply!r}"
                    return ""
            return node

        with self._through.rows.using(self._rows):
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
                await self._staged(electorate, version.blob_id)
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
            await through.tell(Written(electorate.slot, item, version.blob_id, self._rows))
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


_NOTHING = Version(
    version=0, blob_id="", size=0, etag="", created_at_ms=0, content_type="", meta={}, chunks=(), chunk_count=0
)
"""A draft for a decision of which only the refusals count."""
