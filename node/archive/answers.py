"""Answers the messages of :mod:`amberblob.wire_archive`: what other nodes ask of this node's archive rows, jobs and condemned objects.

Rows are facts, so copies without a voice answer questions about theirs, too. What changes a copy (``StageArchived``) goes by the rules of bytes
that are staged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol, assert_never

import msgspec

from amberblob.archives import DAMAGED, ArchivedBlob, ArchivedChunk, ArchiveLine
from amberblob.errors import BadRequest, DiskFailed, NoSuchJob
from amberblob.ids import valid_hash, valid_ulid
from amberblob.limits import FRAME_BYTES_MAX, SLOT_COUNT_MAX
from amberblob.wire import Done, Reply, StagedReply
from amberblob.wire_archive import (
    ARCHIVED_LINES_MAX,
    CONDEMN_MAX,
    FIND_ARCHIVED_MAX,
    ArchivedBlobReply,
    ArchivedLines,
    ArchiveHeads,
    ArchiveInfo,
    ArchiveInfoReply,
    ArchiveJob,
    ArchiveJobReply,
    ArchiveRequest,
    AskArchived,
    Condemned,
    CondemnObjects,
    FindArchived,
    FoundArchived,
    InstallRows,
    ObjectUses,
    ObjectUsesReply,
    ReadArchived,
    ReprieveObjects,
    StageArchived,
)
from amberblob.wire_repair import HeadsReply, slots_in
from chunkstore.interface import BlobState, ReplicaStore
from node.archive.facts import Facts
from node.archive.installing import Admission, Installing
from node.archive.jobs import JobRequest, told
from node.archive.runner import JobRunner
from node.archive.status import ArchiveNodeStatus
from node.repairs import SLOTS_MAX

LINES_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Of the rows in one answer, by an estimate that errs upwards."""

LINE_BYTES = 320
"""What a row takes beside its names, at most."""

TARGET_PATH_CHARS_MAX = 4096

_request = msgspec.json.Decoder(JobRequest).decode


class Condemning(Protocol):
    """Objects that are to be deleted (rfc/0016, "Deleting from the bucket")."""

    async def condemn(self, names: Sequence[str], token: str) -> tuple[tuple[str, ...], str]:
        """Write the token down for those of which no row is here, durably; the others are returned, and the name of the file that has it."""
        ...

    async def reprieve(self, names: Sequence[str], token: str) -> None:
        """Forget the token of these, or of all."""
        ...


class TellsUses(Protocol):
    """Which objects rows of this node name (:class:`node.archive.uses.Uses`)."""

    async def of(self, names: Sequence[str], *, sizes: bool) -> ObjectUsesReply:
        """Those that are named; ``sizes``: and how much of them."""
        ...


class Finding(Protocol):
    """The node's index by chunk id."""

    async def find(self, chunk_ids: Sequence[str], *, verified: bool) -> Sequence[ArchivedChunk]:
        """Places of those that are known; ``verified``: only such as were read back."""
        ...


class KeepManifest(Protocol):
    """Fetches a staged blob's manifest from the archive and keeps it."""

    async def __call__(self, slot: int, blob_id: str, manifest_id: str) -> None:
        """Durable on return. Raises: ArchiveError, StorageError."""
        ...


class ArchiveAnswers:
    """Answers for one node.

    Args:
        own: how this node's archive is.
        nodes: those of the route table, as this node knows it. Raises: NotReady.

    Attributes:
        condemning, keep_manifest, installing: set once, while the node is put together.
    """

    def __init__(
        self,
        store: ReplicaStore,
        facts: Facts,
        finding: Finding,
        runner: JobRunner,
        admission: Admission,
        *,
        own: Callable[[], Awaitable[ArchiveNodeStatus]],
        nodes: Callable[[], Collection[str]],
        now_ms: Callable[[], int],
    ) -> None:
        self.condemning: Condemning | None = None
        self.uses: TellsUses | None = None
        self.keep_manifest: KeepManifest | None = None
        self.installing: Installing | None = None
        self._store = store
        self._facts = facts
        self._finding = finding
        self._runner = runner
        self._admission = admission
        self._own = own
        self._nodes = nodes
        self._now_ms = now_ms

    async def answer(self, peer: str, message: ArchiveRequest) -> Reply:
        """The answer to a node; it fits a frame. Raises: AmberError, which the asker is told as a ``Failed``."""
        match message:
            case StageArchived():
                return await self._stage(peer, message)
            case ArchiveHeads():
                return self._heads(message)
            case ReadArchived():
                return await self._read(message)
            case AskArchived():
                if not valid_ulid(message.blob_id):
                    raise BadRequest(f"{message.blob_id!r} is no blob id")
                incarnation = self._store.slot_state(message.slot).incarnation
                blob = await self._store.archived(message.slot, message.blob_id)
                return ArchivedBlobReply(incarnation=incarnation, blob=_asked(blob, message.chunk_ids))
            case FindArchived():
                return await self._find(message)
            case CondemnObjects() | ReprieveObjects():
                return await self._condemn(message)
            case ObjectUses():
                if len(message.names) > CONDEMN_MAX or self.uses is None:
                    raise BadRequest(f"more than {CONDEMN_MAX} names")
                return await self.uses.of(message.names, sizes=message.sizes)
            case ArchiveJob():
                return await self._job(message)
            case InstallRows():
                if self.installing is None:
                    raise BadRequest("this node does not take older versions")
                return await self.installing.answer(message)
            case ArchiveInfo():
                return ArchiveInfoReply(info=msgspec.json.encode(await self._own()))
            case _:
                assert_never(message)

    async def _stage(self, peer: str, message: StageArchived) -> Reply:
        slot, blob_id = message.slot, message.blob_id
        if not valid_ulid(blob_id) or not message.chunks or len(message.chunks) > ARCHIVED_LINES_MAX:
            raise BadRequest("a blob id that cannot be, or no rows, or too many")
        for chunk in message.chunks:
            check_row(chunk)
            if message.evicted and not chunk.verified:
                raise BadRequest("a row that nobody has read back cannot stand for bytes")
        if message.manifest_id is not None and (not valid_hash(message.manifest_id) or self.keep_manifest is None):
            raise BadRequest(f"{message.manifest_id[:100]!r} is no manifest id that can be fetched here")
        if (refused := await self._admission.stage_refused(slot, message.epoch)) is not None:
            return refused
        if peer not in self._nodes():
            # Collectors ask the nodes of the route table alone: what the rows of another one name may be gone.
            return self._admission.refused(
                slot, "not-a-member", f"{peer} is not in the route table, its rows do not count"
            )
        try:
            if len(self._facts.admitted(message.chunks)) < len(message.chunks):
                # The copy would hold less than the sender counts on.
                return self._admission.refused(slot, "bytes-missing", "an object that the rows name is being deleted")
            position = self._facts.take(slot, blob_id, message.chunks, at_ms=self._now_ms(), evicted=message.evicted)
            await self._store.durable(position)
            if await self._store.blob_state(slot, blob_id) is BlobState.ABORTED:
                # Its rows were passed over: nothing may come to refer to it.
                return self._admission.refused(slot, "aborted", "the blob was given up here")
        except DiskFailed as error:
            return self._admission.refused(slot, "disk-failed", error.detail)
        if message.manifest_id is not None and self.keep_manifest is not None:
            await self.keep_manifest(slot, blob_id, message.manifest_id)
        return StagedReply(incarnation=self._store.slot_state(slot).incarnation)

    def _heads(self, message: ArchiveHeads) -> HeadsReply:
        slots = slots_in(message.slots)
        if len(slots) > SLOTS_MAX or any(slot >= SLOT_COUNT_MAX for slot in slots):
            raise BadRequest(f"{len(slots)} slots in one question, or such as there are not; at most {SLOTS_MAX}")
        asked = set(slots)
        return HeadsReply(
            incarnation=self._store.disk_id,
            heads=b"".join(self._store.tally(slot).archive_head.to_bytes(8, "little") for slot in slots),
            incarnations={slot: told for slot, told in self._store.incarnations().items() if slot in asked},
        )

    async def _read(self, message: ReadArchived) -> ArchivedLines:
        incarnation = self._store.slot_state(message.slot).incarnation
        if message.incarnation != incarnation:
            return ArchivedLines(incarnation=incarnation, lines=())
        limit = max(1, min(message.limit, ARCHIVED_LINES_MAX))
        found, more = await self._store.archived_after(message.slot, message.after, limit)
        fitting = _fitting(found)
        if self._store.slot_state(message.slot).incarnation != incarnation:
            # Lost meanwhile: what was read last may be of the blank one.
            return ArchivedLines(incarnation=self._store.slot_state(message.slot).incarnation, lines=())
        return ArchivedLines(incarnation=incarnation, lines=tuple(fitting), more=more or len(fitting) < len(found))

    async def _find(self, message: FindArchived) -> FoundArchived:
        if len(message.chunk_ids) > FIND_ARCHIVED_MAX or not all(map(valid_hash, message.chunk_ids)):
            raise BadRequest(f"chunk ids that cannot be, or more than {FIND_ARCHIVED_MAX} of them")
        found = await self._finding.find(message.chunk_ids, verified=False)
        return FoundArchived(chunks=self._facts.admitted(chunk for chunk in found if chunk.state != DAMAGED))

    async def _condemn(self, message: CondemnObjects | ReprieveObjects) -> Reply:
        if len(message.names) > CONDEMN_MAX or not message.token or self.condemning is None:
            raise BadRequest(f"no token, or more than {CONDEMN_MAX} names")
        if isinstance(message, CondemnObjects):
            refused, marks = await self.condemning.condemn(message.names, message.token)
            return Condemned(refused=refused, marks=marks)
        await self.condemning.reprieve(message.names, message.token)
        return Done()

    async def _job(self, message: ArchiveJob) -> ArchiveJobReply:
        if message.action == "start":
            try:
                request = _request(message.request)
            except msgspec.MsgspecError as error:
                raise BadRequest(f"a job that this node does not understand: {error}") from None
            statuses = [await self._runner.start(request)]
        elif message.action == "stop":
            statuses = [await self._runner.stop(message.job)]
        elif message.job:
            status = self._runner.status(message.job)
            if status is None:
                raise NoSuchJob(f"There is no job {message.job} here.")
            statuses = [status]
        else:
            statuses = self._runner.statuses()
        return ArchiveJobReply(jobs=msgspec.json.encode([told(one, slots=bool(message.job)) for one in statuses]))


def check_row(chunk: ArchivedChunk) -> None:
    """Whether a row that somebody told can be one. Raises: BadRequest."""
    if (
        not valid_hash(chunk.chunk_id)
        or not 0 <= chunk.start < chunk.end
        or chunk.length < 0
        or not chunk.target_path
        or len(chunk.target_path) > TARGET_PATH_CHARS_MAX
        or (chunk.head and not valid_hash(chunk.head))
        or not chunk.possible
    ):
        raise BadRequest(f"an archive row that cannot be: {chunk.target_path[:100]!r} {chunk.start}-{chunk.end}")


def _asked(blob: ArchivedBlob | None, chunk_ids: Sequence[str]) -> ArchivedBlob | None:
    """The rows that were asked for (all, if none are named), as many as one answer holds, those that were named first before others."""
    if blob is None:
        return None
    of_chunk = {chunk.chunk_id: chunk for chunk in blob.chunks}
    wanted = [of_chunk[one] for one in dict.fromkeys(chunk_ids or of_chunk) if one in of_chunk]
    size = 0
    for count, chunk in enumerate(wanted):
        size += LINE_BYTES + 4 * len(chunk.target_path) + len(chunk.etag)
        if count and size > LINES_BYTES_MAX:
            wanted = wanted[:count]
            break
    return msgspec.structs.replace(blob, chunks=tuple(wanted))


def _fitting(lines: list[ArchiveLine]) -> list[ArchiveLine]:
    """As many from the front as one answer holds; at least one."""
    size = 0
    for count, line in enumerate(lines):
        size += LINE_BYTES + 4 * len(line.chunk.target_path) + len(line.chunk.etag)
        if count and size > LINES_BYTES_MAX:
            return lines[:count]
    return lines
