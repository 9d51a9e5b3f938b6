"""Chunks that a restore has just brought, for other copies: bounded, right, and gone with it; and what healing does with what is not the chunk."""

from __future__ import annotations

import pytest

from amberblob.errors import ArchiveDamaged, ChunkMissing, DigestMismatch
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version
from amberblob.wire import ReadChunk
from chunkstore.content import hash_of
from node.archive.healing import Healing
from node.archive.lent import Lent
from tests.unit.node.archive.kit import world
from tests.unit.node.objects.kit import CHUNK


def chunk_of(data: bytes) -> ChunkRef:
    return ChunkRef(content_hash(data), len(data))


def pieces(data: bytes) -> list[memoryview]:
    view = memoryview(data)
    return [view[at : at + 3] for at in range(0, len(data), 3)]


def test_what_was_lent_is_given_whole_and_the_oldest_goes_first():
    lent = Lent(20)
    bodies = [bytes([number]) * 8 for number in range(3)]
    lent.begin()
    for body in bodies:
        lent.put(chunk_of(body), pieces(body))
    assert [lent.get(chunk_of(body)) for body in bodies] == [None, bodies[1], bodies[2]]
    assert lent.size_bytes == 16
    lent.put(chunk_of(bodies[2]), pieces(bodies[2]))
    assert lent.size_bytes == 16, "the same is kept once"
    lent.put(chunk_of(b"x" * 21), pieces(b"x" * 21))
    assert lent.get(chunk_of(bodies[1])) == bodies[1], "what does not fit drives out nobody"
    assert lent.get(ChunkRef(content_hash(bodies[1]), 7)) is None


def test_nothing_is_kept_but_while_a_restore_is_under_way():
    lent, body = Lent(), b"some bytes"
    lent.put(chunk_of(body), pieces(body))
    assert lent.get(chunk_of(body)) is None
    lent.begin()
    lent.begin()
    lent.put(chunk_of(body), pieces(body))
    lent.end()
    assert lent.get(chunk_of(body)) == body
    lent.end()
    assert lent.get(chunk_of(body)) is None and lent.size_bytes == 0


async def test_a_copy_that_asks_gets_it_from_memory_and_a_client_from_the_disk(tmp_path):
    async with world(tmp_path) as made:
        data, view = await made.stored("p", 2 * CHUNK)
        chunk, replica = view.version.chunks[0], made[1].replica
        asked = ReadChunk(slot=made.cluster.slot("p"), blob_id=view.version.blob_id, chunk=chunk, repair=True)
        lent = made[1].parts.archive.lent
        lent.begin()
        lent.put(chunk, [memoryview(data)[: chunk.len]])
        read = []
        held = made[1].store.read_chunk

        async def read_chunk(slot, blob_id, wanted, **more):
            read.append(wanted.id)
            return await held(slot, blob_id, wanted, **more)

        made[1].store.read_chunk = read_chunk
        assert await replica.handle_read("n2", asked) == data[: chunk.len] and not read
        by_client = ReadChunk(slot=asked.slot, blob_id=asked.blob_id, chunk=chunk)
        assert await replica.handle_read("n2", by_client) == data[: chunk.len] and read == [chunk.id]
        lent.end()
        assert await replica.handle_read("n2", asked) == data[: chunk.len] and len(read) == 2


class Store:
    """Takes what is the chunk."""

    def __init__(self) -> None:
        self.installed: list[str] = []

    async def missing_chunks(self, slot, version, chunks):
        return [chunk for chunk in chunks if chunk.id not in self.installed]

    async def install_chunk(self, slot, version, chunk, data):
        if hash_of(data) != chunk.id:
            raise DigestMismatch("not the chunk")
        self.installed.append(chunk.id)


class Archive:
    """Pieces that are each right and together another chunk, as long as nobody checks; then what ``then`` says."""

    def __init__(self, then: bytes | None) -> None:
        self.then = then
        self.asked: list[bool] = []

    async def cached(self, chunk):
        return None

    async def pieces(self, course, slot, version, chunk, *, check_whole):
        self.asked.append(check_whole)
        if not check_whole:
            return pieces(b"of another chunk")
        if self.then is None:
            raise ArchiveDamaged("its content has another hash")
        return pieces(self.then)


@pytest.mark.parametrize("other_place", [True, False])
async def test_right_pieces_of_another_chunk_are_read_again_with_all_checks(other_place):
    data = b"what was archived"
    chunk = chunk_of(data)
    version = Version(1, "01ARZ3NDEKTSV4RRFFQ69G5FAV", len(data), chunk.id, 1, "t", {}, (chunk,), None, 1, False)
    store, archive, lent = Store(), Archive(data if other_place else None), Lent()
    lent.begin()
    healing = Healing(store, None, None, archive, lambda: 1, lent)
    if other_place:
        assert await healing.fetch(0, version) == len(data)
        assert store.installed == [chunk.id] and lent.get(chunk) == data
    else:
        with pytest.raises(ChunkMissing, match="another hash"):
            await healing.fetch(0, version)
        assert not store.installed and lent.get(chunk) is None
    assert archive.asked == [False, True]
