"""Pulling bytes onto one disk from nodes that are away, lie, or have only a part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from amberblob.ballot import Ballot
from amberblob.clock import HybridClock, SeededRandomness, SystemClock
from amberblob.errors import AmberError, ChunkMissing, DigestMismatch, DiskFull, PeerUnreachable
from amberblob.ids import UlidMint, content_hash
from amberblob.limits import CHUNK_BYTES_MIN
from amberblob.manifest import ChunkRef, Record, Version, encode_manifest
from amberblob.mutations import Aborted, Chosen
from antientropy.pull import complete, inline_body, stage_from
from chunkstore.interface import BlobState, ReplicaStore
from chunkstore.memory import MemoryStore
from chunkstore.store import DiskStore

SLOT = 3
_mint = UlidMint(HybridClock(SystemClock().wall_ms), SeededRandomness(1))


async def _disk(folder: Path) -> ReplicaStore:
    return await DiskStore.open(
        folder / "disk",
        cluster_id="c",
        node_id="n",
        clock=SystemClock(),
        randomness=SeededRandomness(2),
        reserve_bytes=0,
    )


async def _memory(folder: Path) -> ReplicaStore:
    return MemoryStore(_mint.mint(), wall_ms=SystemClock().wall_ms)


MAKERS: dict[str, Callable[[Path], Awaitable[ReplicaStore]]] = {"disk": _disk, "memory": _memory}


@pytest.fixture(params=sorted(MAKERS))
async def store(request, tmp_path) -> AsyncIterator[ReplicaStore]:
    made = await MAKERS[request.param](tmp_path)
    yield made
    await made.close()


class Blob:
    """A version and its bytes."""

    def __init__(self, count: int, *, inline: bool = False, last: int = 17) -> None:
        chance = SeededRandomness(count)
        sizes = [CHUNK_BYTES_MIN] * (count - 1) + [last]
        self.parts = [chance.token(size) for size in sizes]
        self.chunks = tuple(ChunkRef(content_hash(part), len(part)) for part in self.parts)
        self.by_id = {chunk.id: part for chunk, part in zip(self.chunks, self.parts, strict=True)}
        self.manifest = encode_manifest(self.chunks)
        big = count > 64
        self.version = Version(
            1,
            _mint.mint(),
            sum(sizes),
            "e" * 64,
            0,
            "t",
            {},
            () if big else self.chunks,
            content_hash(self.manifest) if big else None,
            count,
            inline,
        )


class Nodes:
    """A source: what each node has of a blob."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.faults: dict[str, Callable[[str], AmberError | None]] = {}
        self.asked: list[tuple[str, str]] = []
        self.distrusted: list[str] = []

    def order(self, nodes, size_bytes, likely):
        return list(nodes)

    def _ask(self, node: str, name: str) -> None:
        self.asked.append((node, name))
        if node in self.faults and (error := self.faults[node](name)) is not None:
            raise error

    async def fetch_chunk(self, node, slot, version, chunk) -> bytes:
        assert slot == SLOT
        self._ask(node, chunk.id)
        return self.blob.by_id[chunk.id]

    async def fetch_pieces(self, node, slot, version, chunk) -> list[bytes]:
        data = await self.fetch_chunk(node, slot, version, chunk)
        return [data[at : at + 60] for at in range(0, len(data), 60)]

    def distrust(self, node: str) -> None:
        self.distrusted.append(node)

    async def fetch_manifest(self, node, slot, version) -> bytes:
        self._ask(node, "manifest")
        return self.blob.manifest


def refer(store: ReplicaStore, blob: Blob) -> None:
    """The record is learnt to be chosen, without its bytes."""
    record = Record(1, "put", 1, blob.version, ((1, 1),), (), 0, 0, None, ())
    store.apply(Chosen(SLOT, "p", Ballot(1, 1, "n", "a"), record))


async def all_of(store: ReplicaStore, blob: Blob) -> bytes:
    return b"".join([await store.read_chunk(SLOT, blob.version.blob_id, chunk) for chunk in blob.chunks])


COUNTS = [1, 3, 70]


@pytest.mark.parametrize("count", COUNTS)
async def test_staging_what_nothing_refers_to_yet(store, count):
    blob = Blob(count)
    await stage_from(store, Nodes(blob), SLOT, blob.version, ["a"])
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.DURABLE
    assert await all_of(store, blob) == b"".join(blob.parts)
    if count > 64:
        found = await store.read_manifest(SLOT, blob.version.blob_id, blob.version.manifest_id)
        assert found == blob.manifest


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("error", [PeerUnreachable("away"), ChunkMissing("not here"), DigestMismatch("lies")])
async def test_each_chunk_comes_from_the_first_holder_that_has_it(store, count, error):
    blob = Blob(count)
    nodes = Nodes(blob)
    nodes.faults = {"a": lambda _: error, "b": lambda name: error if name == blob.chunks[-1].id else None}
    await stage_from(store, nodes, SLOT, blob.version, ["a", "b", "c"])
    assert await all_of(store, blob) == b"".join(blob.parts)
    assert ("c", blob.chunks[-1].id) in nodes.asked


async def test_a_holder_that_gives_other_bytes_is_passed_over_and_not_asked_first_any_more(store):
    blob = Blob(3)
    nodes = Nodes(blob)
    honest = nodes.fetch_pieces

    async def lying(node, slot, version, chunk):
        got = await honest(node, slot, version, chunk)
        return [*got[:-1], b"\0" * len(got[-1])] if node == "a" else got

    nodes.fetch_pieces = lying
    refer(store, blob)
    assert await complete(store, nodes, SLOT, blob.version, ["a", "b"]) == blob.version.size
    assert await all_of(store, blob) == b"".join(blob.parts)
    assert nodes.distrusted == ["a"] * 3
    blob = Blob(1)
    nodes.blob = blob
    refer(store, blob)
    with pytest.raises(DigestMismatch, match="a: "):
        await complete(store, nodes, SLOT, blob.version, ["a"])


@pytest.mark.parametrize("count", COUNTS)
async def test_a_chunk_that_nobody_has_leaves_nothing_behind(store, count, tmp_path):
    blob = Blob(count)
    nodes = Nodes(blob)
    for node in "ab":
        nodes.faults[node] = lambda name: ChunkMissing("not here") if name == blob.chunks[-1].id else None
    with pytest.raises(ChunkMissing):
        await stage_from(store, nodes, SLOT, blob.version, ["a", "b"])
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.ABSENT
    # And it can be had later.
    nodes.faults.clear()
    await stage_from(store, nodes, SLOT, blob.version, ["a"])
    assert await all_of(store, blob) == b"".join(blob.parts)


@pytest.mark.parametrize("count", COUNTS)
async def test_without_holders(store, count):
    blob = Blob(count)
    with pytest.raises(ChunkMissing):
        await stage_from(store, Nodes(blob), SLOT, blob.version, [])
    refer(store, blob)
    with pytest.raises(ChunkMissing):
        await complete(store, Nodes(blob), SLOT, blob.version, [])
    with pytest.raises(ChunkMissing):
        await inline_body(Nodes(blob), SLOT, Blob(1, inline=True).version, [])


async def test_a_manifest_that_is_none_is_an_error_not_a_crash(store):
    blob = Blob(70)
    for text in (b"", b"{}", b'[{"id":"x","len":1}]'):
        nodes = Nodes(blob)
        nodes.blob.manifest = text
        with pytest.raises(AmberError):
            await stage_from(store, nodes, SLOT, blob.version, ["a"])
        assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.ABSENT


@pytest.mark.parametrize("count", COUNTS)
async def test_completing_what_is_referred_to(store, count):
    blob = Blob(count)
    refer(store, blob)
    nodes = Nodes(blob)
    fetched = await complete(store, nodes, SLOT, blob.version, ["a"])
    assert fetched == blob.version.size + (len(blob.manifest) if count > 64 else 0)
    assert await all_of(store, blob) == b"".join(blob.parts)
    assert await complete(store, nodes, SLOT, blob.version, ["a"]) == 0
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.DURABLE


@pytest.mark.parametrize("count", COUNTS)
async def test_completing_goes_on_where_it_stopped(store, count):
    blob = Blob(count)
    refer(store, blob)
    nodes = Nodes(blob)
    nodes.faults["a"] = lambda name: PeerUnreachable("away") if name == blob.chunks[-1].id else None
    with pytest.raises(PeerUnreachable):
        await complete(store, nodes, SLOT, blob.version, ["a"])
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.ABSENT
    nodes.faults.clear()
    assert await complete(store, nodes, SLOT, blob.version, ["a"]) == blob.chunks[-1].len
    assert await all_of(store, blob) == b"".join(blob.parts)


async def test_an_inline_body(store):
    blob = Blob(1, inline=True)
    nodes = Nodes(blob)
    nodes.faults["a"] = lambda _: PeerUnreachable("away")
    assert await inline_body(nodes, SLOT, blob.version, ["a", "b"]) == blob.parts[0]
    refer(store, blob)
    assert await complete(store, nodes, SLOT, blob.version, ["a", "b"]) == 17
    assert await all_of(store, blob) == blob.parts[0]
    assert await complete(store, nodes, SLOT, blob.version, ["a", "b"]) == 0


async def test_an_object_of_one_repeated_chunk(store):
    blob = Blob(1)
    part = SeededRandomness(5).token(CHUNK_BYTES_MIN)
    chunk = ChunkRef(content_hash(part), len(part))
    blob.parts, blob.chunks, blob.by_id = [part] * 5, (chunk,) * 5, {chunk.id: part}
    blob.version = Version(1, _mint.mint(), 5 * len(part), "e" * 64, 0, "t", {}, blob.chunks, None, 5, False)
    await stage_from(store, Nodes(blob), SLOT, blob.version, ["a"])
    assert await all_of(store, blob) == part * 5
    other = Blob(1)
    other.parts, other.chunks, other.by_id = blob.parts, blob.chunks, blob.by_id
    other.version = Version(1, _mint.mint(), 5 * len(part), "e" * 64, 0, "t", {}, blob.chunks, None, 5, False)
    refer(store, other)
    await complete(store, Nodes(other), SLOT, other.version, ["a"])
    assert await all_of(store, other) == part * 5


async def test_an_empty_object_needs_nothing(store):
    version = Version(1, _mint.mint(), 0, "e" * 64, 0, "t", {}, (), None, 0, True)
    assert await complete(store, Nodes(Blob(1)), SLOT, version, []) == 0


async def test_a_blob_that_was_given_up_is_staged_again_for_a_record_that_others_accepted(store):
    blob = Blob(3)
    await store.durable(store.apply(Aborted(SLOT, blob.version.blob_id)))
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.ABORTED
    await stage_from(store, Nodes(blob), SLOT, blob.version, ["a"])
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.DURABLE
    assert await all_of(store, blob) == b"".join(blob.parts)
    refer(store, blob)
    await store.discard(SLOT, blob.version.blob_id)
    assert await all_of(store, blob) == b"".join(blob.parts)


async def test_a_full_disk_refuses_and_nothing_is_left():
    store = MemoryStore(_mint.mint())
    store.full = True
    blob = Blob(3)
    with pytest.raises(DiskFull):
        await stage_from(store, Nodes(blob), SLOT, blob.version, ["a"])
    refer(store, blob)
    with pytest.raises(DiskFull):
        await complete(store, Nodes(blob), SLOT, blob.version, ["a"])
    store.full = False
    await complete(store, Nodes(blob), SLOT, blob.version, ["a"])
    assert await all_of(store, blob) == b"".join(blob.parts)
