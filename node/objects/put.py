"""PUT: a small body travels with its COMMIT; a large one is staged on the replicas while it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator

from amberblob.errors import AmberError, BadRequest, DigestMismatch, OutcomeUnknown, VersionConflict
from amberblob.ids import EMPTY_HASH, content_hash
from amberblob.limits import INLINE_BYTES_MAX, MIB
from amberblob.manifest import ChunkRef, Version
from node.coordinator import Coordinator
from node.objects.bytes import Reading
from node.objects.first import MOVES_MAX, ArchivedWrite, WriteThrough
from node.objects.lookup import Lookup
from node.objects.restage import Restage
from node.objects.upload import Digests, Upload
from node.protocol.operations import NO_CONDITIONS, Put
from node.protocol.quorum import Electorate
from node.protocol.write import Applied, BytesElsewhere
from node.routing import Routing
from node.service import ObjectView, PutOptions

PIECE_BYTES = MIB
LARGE_BYTES_MIN = MIB + 1
LARGE_STAGING_S = 90.0
"""How long a large body that is here may take, beside its round, to be durable on the replicas (and archived, where it
is archived first), if a repeat of its write may be refused elsewhere: see :func:`_since`."""


class Putting:
    """Stores bodies. ``chunk_bytes`` is the cluster's chunk size.

    Attributes:
        through: archives bodies first where that is asked for; None: there is no archive.
    """

    def __init__(
        self, coordinator: Coordinator, routing: Routing, lookup: Lookup, reading: Reading, *, inline_bytes_max: int
    ) -> None:
        assert inline_bytes_max <= INLINE_BYTES_MAX
        self._coordinator = coordinator
        self._routing = routing
        self._lookup = lookup
        self._reading = reading
        self.through: WriteThrough | None = None
        self._inline_bytes_max = inline_bytes_max

    async def put(self, path: str, body: AsyncIterator[bytes] | bytes, options: PutOptions) -> ObjectView:
        """See :meth:`node.service.ObjectService.put`."""
        electorate = self._routing.of(path)
        blob_id = self._coordinator.mint.mint()
        if isinstance(body, bytes):
            first, pieces = body, _nothing()
        else:
            pieces = _pieces(body)
            first = await anext(pieces, b"")
        here_s = self._coordinator.began_s()
        if len(first) <= self._inline_bytes_max:
            return await self._put_inline(electorate, path, blob_id, first, here_s, options)
        return await self._put_staged(electorate, path, blob_id, first, here_s, pieces, options)

    async def _put_inline(
        self, electorate: Electorate, path: str, blob_id: str, body: bytes, here_s: float, options: PutOptions
    ) -> ObjectView:
        if options.digests:
            digests = Digests(name for name, _ in options.digests)
            digests.update(body)
            _check_body(options, len(body), digests)
            etag = digests.etag
        else:
            _check_size(options, len(body))
            etag = content_hash(body) if body else EMPTY_HASH
        chunks = (ChunkRef(etag, len(body)),) if body else ()
        draft = _draft(
            blob_id, self._coordinator.clock.now_ms(), len(body), etag, options, chunks, None, len(chunks), inline=True
        )
        operation = Put(draft=draft, requested=options.version, conditions=options.conditions)
        since_s = _since(here_s, options)
        if self.through is not None and self.through.wanted(path):
            return await self._put_through(self.through, electorate, path, draft, operation, body, since_s, options)
        applied = await self._coordinator.write(
            electorate, path, operation, write_id=options.write_id, repeat=options.repeat, body=body, since_s=since_s
        )
        return _same_content(await self._view(electorate, path, applied), etag)

    async def _put_through(
        self,
        through: WriteThrough,
        electorate: Electorate,
        path: str,
        draft: Version,
        operation: Put,
        body: bytes,
        since_s: float | None,
        options: PutOptions,
    ) -> ObjectView:
        """A small body is archived, then written."""
        await through.hint(electorate, path, options)

        async def read(chunk: ChunkRef) -> bytes:
            return body

        archived = await through.archive(electorate, path, draft, draft.chunks, None, read)
        keep = False
        try:
            electorate = await archived.stage(self._routing.electorate(electorate.slot))
            keep = True  # from here on a COMMIT that we lose sight of may refer to the rows, also when we are cancelled
            try:
                applied = await self._coordinator.write(
                    electorate,
                    path,
                    operation,
                    write_id=options.write_id,
                    repeat=options.repeat,
                    body=body,
                    since_s=since_s,
                )
            except OutcomeUnknown:
                raise
            except AmberError:
                keep = False
                raise
        finally:
            if not keep:
                await archived.give_up()
        view = _same_content(await self._view(electorate, path, applied), draft.etag)
        await archived.confirm(applied, view)
        return view

    async def _put_staged(
        self,
        electorate: Electorate,
        path: str,
        blob_id: str,
        first: bytes,
        here_s: float,
        pieces: AsyncIterator[bytes],
        options: PutOptions,
    ) -> ObjectView:
        chunk_bytes = self._routing.table().cluster.chunk_bytes
        upload = Upload(self._coordinator, electorate, blob_id=blob_id, chunk_bytes=chunk_bytes)
        digests = Digests(name for name, _ in options.digests)
        keep = False
        through = self.through if self.through is not None and self.through.wanted(path) else None
        archived: ArchivedWrite | None = None
        if through is not None:
            await through.hint(electorate, path, options)
        try:
            await upload.open(options.size)
            size = len(first)
            await upload.write(first, digests)
            del first
            async for piece in pieces:
                size += len(piece)
                await upload.write(piece, digests)
            _check_body(options, size, digests)
            if size >= LARGE_BYTES_MIN:
                here_s = self._coordinator.began_s() + LARGE_STAGING_S
            since_s = _since(here_s, options)
            chunks, manifest_id, chunk_count, holders = await upload.finish()
            draft = _draft(
                blob_id,
                self._coordinator.clock.now_ms(),  # the id is as old as the upload; the version is from now
                size,
                digests.etag,
                options,
                chunks,
                manifest_id,
                chunk_count,
                inline=False,
            )
            operation = Put(draft=draft, requested=options.version, conditions=options.conditions)
            applied: Applied | None = None
            if through is not None:
                archived = await self._archive(through, electorate, path, draft, upload, holders, options)
            for moves in range(MOVES_MAX):
                # The body took its time: the slot may have moved meanwhile. Nothing refers to the bytes yet.
                before, electorate = electorate, self._routing.electorate(electorate.slot)
                holders = electorate.still(holders, before)
                if not electorate.is_write_quorum_among(holders):
                    brought = Restage(
                        self._coordinator,
                        self._reading,
                        electorate,
                        draft,
                        upload.chunks,
                        upload.close,
                        upload.manifest,
                        chunk_bytes=chunk_bytes,
                    )
                    holders = await brought.bring(holders, last=moves + 1 == MOVES_MAX)
                    if not electorate.is_write_quorum_among(holders):
                        continue
                if archived is not None:
                    at = await archived.stage(electorate)
                    if at.epoch != electorate.epoch and moves + 1 < MOVES_MAX:
                        continue  # the bytes have to follow
                # From here on the bytes may be referred to by a COMMIT that we lose sight of, also when we are cancelled.
                keep = True
                try:
                    applied = await self._coordinator.write(
                        electorate,
                        path,
                        operation,
                        write_id=options.write_id,
                        repeat=options.repeat,
                        holders=holders,
                        since_s=since_s,
                    )
                    break
                except OutcomeUnknown:
                    raise
                except AmberError as error:
                    keep = False  # definite: nothing refers to them, and nothing will
                    if not isinstance(error, BytesElsewhere) or moves + 1 == MOVES_MAX:
                        raise
            assert applied is not None
            view = await self._view(electorate, path, applied)
            # An earlier try with the same write id may have been applied, with bytes of its own.
            keep = view.version.blob_id == blob_id
            view = _same_content(view, digests.etag)
            if archived is not None:
                await archived.confirm(applied, view)
            return view
        finally:
            if not keep:
                await upload.abort()
                if archived is not None:
                    await archived.give_up()

    async def _archive(
        self,
        through: WriteThrough,
        electorate: Electorate,
        path: str,
        draft: Version,
        upload: Upload,
        holders: frozenset[str],
        options: PutOptions,
    ) -> ArchivedWrite:
        """Send what was staged to the archive: it is read again from those that have it, a chunk at a time."""
        await through.hint(electorate, path, options)

        async def read(chunk: ChunkRef) -> bytes | memoryview:
            return await self._reading.staged(electorate.slot, draft, chunk, holders=holders)

        return await through.archive(electorate, path, draft, upload.chunks, upload.manifest, read)

    async def _view(self, electorate: Electorate, path: str, applied: Applied) -> ObjectView:
        record, mark = applied.record, applied.mark
        assert mark is not None
        if record is not None and record.head is not None and record.head.version == mark.version:
            return ObjectView(path=path, version=record.head)
        # A retry whose version is no longer the head: the first answer is found in the history, or nowhere any more.
        return await self._lookup.written(electorate, path, mark)


def _same_content(view: ObjectView, etag: str) -> ObjectView:
    """The view, if it is of the content that was sent. Raises: VersionConflict (write-id-reused)."""
    if view.version.etag != etag:
        raise VersionConflict(
            f"The write id was used before on this path, for other content (version {view.version.version}). Nothing was "
            "changed: a write id names one request; make a new one.",
            code="write-id-reused",
            extra={"version": view.version.version},
        )
    return view


def _since(here_s: float, options: PutOptions) -> float | None:
    """From when the time of the write counts, if that is not its round's beginning: ``here_s``, when the body may have been here.

    Whoever waited too long repeats the write elsewhere, and may be told there, once and for all, that its condition does
    not hold. So what is done with a body before its round must not put off the round's end. Without conditions a PUT is
    refused only for what stays so, and without a write id it is not repeated: it may take as long as it takes.
    """
    return None if options.write_id is None or options.conditions == NO_CONDITIONS else here_s


async def _nothing() -> AsyncIterator[bytes]:
    """What follows a body that came whole."""
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece


async def _pieces(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces of about a mebibyte; the first is short only if the whole body is."""
    parts: list[bytes] = []
    size = 0
    while True:
        data = await anext(body, None)
        if data is None:
            break
        if data:
            parts.append(data)
            size += len(data)
        if size >= PIECE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if size:
        yield b"".join(parts)


def _draft(
    blob_id: str,
    now_ms: int,
    size: int,
    etag: str,
    options: PutOptions,
    chunks: tuple[ChunkRef, ...],
    manifest_id: str | None,
    chunk_count: int,
    *,
    inline: bool,
) -> Version:
    return Version(
        version=0,
        blob_id=blob_id,
        size=size,
        etag=etag,
        created_at_ms=now_ms,
        content_type=options.content_type,
        meta=dict(options.meta),
        chunks=chunks,
        manifest_id=manifest_id,
        chunk_count=chunk_count,
        inline=inline,
    )


def _check_size(options: PutOptions, size: int) -> None:
    if options.size is not None and size != options.size:
        raise BadRequest(
            f"The body was announced with {options.size} bytes and ended after {size}. Nothing was stored: send it again.",
            code="incomplete-body",
        )


def _check_body(options: PutOptions, size: int, digests: Digests) -> None:
    _check_size(options, size)
    for algorithm, expected in options.digests:
        found = digests.value(algorithm)
        if found != expected:
            raise DigestMismatch(
                f"The body's {algorithm} digest is {found.hex()}, the request says {expected.hex()}. Nothing was stored: "
                "the body was changed on its way or the digest is of something else.",
                extra={"algorithm": algorithm, "expected": expected.hex(), "found": found.hex()},
            )
