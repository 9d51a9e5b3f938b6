"""Archive rows for the contract tests."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from amberblob.archives import ArchivedChunk
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Record, Version, encode_manifest
from amberblob.mutations import Archived
from chunkstore import ReplicaStore
from tests.contract.chunkstore.kit import NOW, SLOT, choose, file_put, head_of, put, stage

PACK = "packs/2026/11/21/01ARZ3NDEKTSV4RRFFQ69G5FAV.pack"
OTHER = "packs/2026/11/22/01ARZ3NDEKTSV4RRFFQ69G5FAW.pack"


def row(chunk_id: str, length: int, *, state: int = NOW, at_ms: int = NOW, target: str = PACK, start: int = 0):
    return ArchivedChunk(chunk_id, length, target, start, start + length + 9, "ab" * 32, at_ms, state)


def rows_of(
    version: Version, parts: tuple[ChunkRef, ...] = (), *, manifest: bytes | None = None, **changes
) -> tuple[ArchivedChunk, ...]:
    """A row for every chunk of the version, and for its manifest."""
    chunks = {chunk.id: chunk.len for chunk in parts or version.chunks}
    if manifest is not None:
        chunks[content_hash(manifest)] = len(manifest)
    return tuple(row(chunk_id, length, start=1000 * at, **changes) for at, (chunk_id, length) in enumerate(chunks.items()))  # fmt: skip


async def tell(
    store: ReplicaStore, version: Version, chunks: tuple[ArchivedChunk, ...], *, evicted: bool = False
) -> None:
    await store.durable(store.apply(Archived(SLOT, version.blob_id, chunks, NOW, evicted)))


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A version with all that is needed to bring it, to archive it, and to put it back."""

    path: str
    record: Record
    parts: tuple[bytes, ...]
    manifest: bytes | None = None

    @property
    def version(self) -> Version:
        return head_of(self.record)

    @property
    def chunks(self) -> tuple[ChunkRef, ...]:
        return tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in self.parts)

    def rows(self, **changes) -> tuple[ArchivedChunk, ...]:
        return rows_of(self.version, self.chunks, manifest=self.manifest, **changes)

    @property
    def size_bytes(self) -> int:
        """Of what lies on the disk but for the manifest."""
        return sum(chunk.len for chunk in set(self.chunks))


def made(kind: str, path: str = "a", *, before: Record | None = None) -> Stored:
    """A version that is ``inline``, a ``file``, of many ``files``, or of files with a ``manifest``."""
    number = before.version_max + 1 if before else 1
    if kind == "inline":
        body = f"inline {path} {number}".encode()
        return Stored(path=path, record=put(number, before=before, body=body), parts=(body,))
    parts = tuple(
        f"{kind} {path} {number} {at % 3}".encode().ljust(40, b".") for at in range(1 if kind == "file" else 4)
    )
    record = file_put(number, b"".join(parts), before=before)
    chunks = tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts)
    manifest = encode_manifest(chunks) if kind == "manifest" else None
    head = replace(
        head_of(record), chunks=() if manifest else chunks, chunk_count=len(parts),
        manifest_id=None if manifest is None else content_hash(manifest),
    )  # fmt: skip
    return Stored(path=path, record=replace(record, head=head), parts=parts, manifest=manifest)


KINDS = ("inline", "file", "files", "manifest")


async def bring(store: ReplicaStore, one: Stored, counter: int = 1) -> None:
    """The version's bytes and record come as by a PUT."""
    if not one.version.inline:
        await stage(store, one.version.blob_id, list(one.parts), manifest=one.manifest)
    await choose(store, one.path, one.record, counter, body=one.parts[0])


async def brought(store: ReplicaStore, kind: str, path: str = "a", counter: int = 1) -> Stored:
    """The same of a new version."""
    one = made(kind, path)
    await bring(store, one, counter)
    return one


async def brought_and_evicted(store: ReplicaStore, kind: str, path: str = "a", counter: int = 1) -> Stored:
    """A version that lives by its archive rows."""
    one = await brought(store, kind, path, counter)
    await tell(store, one.version, one.rows())
    assert await store.evict(SLOT, path, one.version) == one.size_bytes
    return one


async def put_back(store: ReplicaStore, one: Stored) -> None:
    """All bytes of the version, as a repair puts them back."""
    if one.manifest is not None:
        await store.install_manifest(SLOT, one.version, one.manifest)
    for chunk, part in zip(one.chunks, one.parts, strict=True):
        await store.install_chunk(SLOT, one.version, chunk, part)
