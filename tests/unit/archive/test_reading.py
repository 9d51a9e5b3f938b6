"""Chunks come back by range, verified, the first piece before the whole."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
import pytest

from amberblob.archives import ArchivedChunk, import_id
from amberblob.errors import ArchiveDamaged, ArchiveMissing, ArchiveUnavailable
from amberblob.ids import content_hash
from archive import reading
from archive.frames import PIECE_BYTES, header_bytes
from archive.packs import TAIL_BYTES
from archive.reading import fetch_index, read_chunk
from archive.targets.memory import MemoryTarget
from tests.unit.archive.pack_kit import Told, each, noise, pairs_of, text, uploader_to

LENGTH = 9 * PIECE_BYTES + 77
RAW, SHRUNK = noise(LENGTH), text(LENGTH)


async def archived(*bodies: bytes, lone_size: int = 10**8) -> tuple[MemoryTarget, list[ArchivedChunk]]:
    target, told = MemoryTarget(), Told()
    uploader = uploader_to(target, pack_size=10**8, lone_size=lone_size, parallel=1)
    pairs = pairs_of(bodies)
    await uploader.run(each(pairs), told.stored, told.failed)
    return target, [told.row(item) for item, _ in pairs]


async def all_of(target, row, *part) -> bytes:
    return b"".join([bytes(piece) async for piece in read_chunk(target, row, *part)])


def gets(target: MemoryTarget) -> int:
    return sum(count for (kind, _), count in target.traffic.requests.items() if kind == "get")


@pytest.mark.parametrize("body", [RAW, SHRUNK, b"tiny"], ids=["raw", "shrunk", "tiny"])
async def test_any_part_comes_back_with_one_request_or_two(body):
    target, (_, row, _) = await archived(noise(50), body, noise(70, 2))
    size = len(body)
    parts = [
        (0, size),
        (0, None),
        (0, 1),
        (size - 1, size),
        (size // 2, size // 2 + 1),
        (size // 3, size),
        (size // 2, size // 2),
        (size, size),
    ]
    for start, end in parts:
        before = gets(target)
        assert await all_of(target, row, start, end) == body[start:end]
        assert gets(target) - before <= (2 if start >= PIECE_BYTES else 1)
    with pytest.raises(ValueError):
        await all_of(target, row, 0, size + 1)


async def test_of_a_part_no_more_is_fetched_than_its_pieces():
    target, (row,) = await archived(RAW)
    await all_of(target, row, 8 * PIECE_BYTES - 1, 8 * PIECE_BYTES + 1)
    assert target.traffic.received_bytes == header_bytes(LENGTH) + 2 * PIECE_BYTES and gets(target) == 2
    # A short way is read through rather than asked about twice.
    await all_of(target, row, PIECE_BYTES, PIECE_BYTES + 1)
    assert target.traffic.received_bytes == 2 * header_bytes(LENGTH) + 4 * PIECE_BYTES and gets(target) == 3


async def test_the_first_piece_comes_before_the_rest_was_fetched_and_leaving_early_fetches_no_more():
    target, (row,) = await archived(RAW)
    async with aclosing(read_chunk(target, row)) as pieces:
        async for piece in pieces:
            assert bytes(piece) == RAW[: len(piece)] and target.traffic.received_bytes <= 2 * PIECE_BYTES
            break
    assert target.traffic.received_bytes <= 2 * PIECE_BYTES


@pytest.mark.parametrize("body", [RAW, SHRUNK], ids=["raw", "shrunk"])
async def test_damage_is_told_when_it_is_met_and_all_before_it_was_right(body):
    target, (row,) = await archived(body)
    target.bucket.damage(row.target_path, row.end - 10)
    came = b""
    with pytest.raises(ArchiveDamaged) as caught:
        async for piece in read_chunk(target, row):
            came += bytes(piece)
    assert body.startswith(came) and len(came) >= (len(body) // 2 if body is RAW else 0)
    assert caught.value.extra["chunk"] == row.chunk_id
    assert await all_of(target, row, 0, PIECE_BYTES) == body[:PIECE_BYTES]
    target.bucket.damage(row.target_path, row.start + 30)
    with pytest.raises(ArchiveDamaged, match="header"):
        await all_of(target, row, 8 * PIECE_BYTES, None)


async def test_what_the_target_says_is_passed_on():
    target, (row,) = await archived(RAW)
    target.bucket.fault("cut", "get", times=1)
    with pytest.raises(ArchiveUnavailable):
        await all_of(target, row)
    target.bucket.store(row.target_path, target.bucket.objects[row.target_path].content[: row.end - 1])
    with pytest.raises(ArchiveDamaged):
        await all_of(target, row)
    target.bucket.objects.clear()
    with pytest.raises(ArchiveMissing):
        await all_of(target, row)


async def test_large_pieces_are_checked_in_threads(monkeypatch):
    target, (row,) = await archived(RAW)
    monkeypatch.setattr(reading, "CHECK_IN_THREAD_BYTES", 10**9)
    assert await all_of(target, row) == RAW


def imported(target: MemoryTarget, content: bytes, start: int = 0, end: int | None = None) -> ArchivedChunk:
    stored = target.bucket.store("some folder/a key", content)
    end = len(content) if end is None else end
    path = "s3://theirs/some folder/a key"
    return ArchivedChunk(import_id(path, stored.etag, start, end), end - start, path, start, end, "", 1, 1, stored.etag)


async def test_imported_content_is_read_as_it_is_as_long_as_nobody_changed_it():
    target = MemoryTarget(url="s3://theirs", strict=False)
    row = imported(target, RAW, 1000, 2_000_000)
    assert await all_of(target, row) == RAW[1000:2_000_000]
    assert await all_of(target, row, 500, 1500) == RAW[1500:2500] and await all_of(target, row, 7, 7) == b""
    target.bucket.store("some folder/a key", RAW[::-1])
    with pytest.raises(ArchiveDamaged):
        await all_of(target, row)
    with pytest.raises(ValueError):
        await all_of(target, row, 0, row.length + 1)
    with pytest.raises(ValueError):
        await all_of(MemoryTarget(url="s3://theirs2", strict=False), row)


async def test_nothing_but_imported_content_is_taken_from_elsewhere():
    """A row that says of a chunk of ours that it lies in somebody's bucket would have its readers take whatever is there."""
    target = MemoryTarget(url="s3://theirs", strict=False)
    row = imported(target, b"0123456789")
    for wrong in (
        msgspec.structs.replace(row, chunk_id=content_hash(b"abcdefghij")),
        msgspec.structs.replace(row, start=1),
        msgspec.structs.replace(row, length=9),
    ):
        with pytest.raises(ArchiveDamaged, match="never imported"):
            await all_of(target, wrong)


@pytest.mark.parametrize("odd", [b"012345678", b"0123456789x", b""])
async def test_imported_content_of_another_length_is_damaged(odd):
    class Odd(MemoryTarget):
        async def read(self, name, start=0, end=None, *, etag=""):
            yield odd

    target = Odd(url="s3://theirs", strict=False)
    row = imported(target, b"0123456789")
    with pytest.raises(ArchiveDamaged, match="too"):
        await all_of(target, row)


async def test_an_index_is_fetched_with_one_request_or_two():
    target, rows = await archived(b"a", b"b")
    name = rows[0].target_path
    assert [entry.chunk_id for entry in await fetch_index(target, name)] == [row.chunk_id for row in rows]
    assert gets(target) == 1
    target, rows = await archived(*[noise(20, seed) for seed in range(1500)])
    name = rows[0].target_path
    size = len(target.bucket.objects[name].content)
    assert size - max(row.end for row in rows) > TAIL_BYTES
    entries = await fetch_index(target, name, size)
    assert {(entry.chunk_id, entry.start) for entry in entries} == {(row.chunk_id, row.start) for row in rows}
    assert gets(target) == 2
    with pytest.raises(ArchiveDamaged):
        await fetch_index(target, name, size - 1)
    target.bucket.store("packs/x", b"")
    with pytest.raises(ArchiveDamaged):
        await fetch_index(target, "packs/x")
    with pytest.raises(ArchiveMissing):
        await fetch_index(target, "packs/y")


async def test_a_row_of_a_made_up_head_gives_nothing():
    target, (row,) = await archived(RAW)
    with pytest.raises(ArchiveDamaged):
        await all_of(target, msgspec.structs.replace(row, head="1" * 64), 0, 1)
