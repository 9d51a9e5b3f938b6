"""The cache: what comes out is what the chunk is; one fetch at a time; within its budget; gives way to the disk."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged, ArchiveUnavailable, NotReady
from amberblob.ids import content_hash
from archive import cachefiles
from archive.cache import MARGIN_BYTES, WHOLE_BYTES, Cache
from tests.folders import files_below
from tests.unit.archive.pack_kit import noise

PIECE = 1000
PLENTY = 10**12


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


class Origin:
    """Where chunks are fetched from, piece by piece; tells how often, and may be held up."""

    def __init__(self) -> None:
        self.fetches: list[tuple[str, int, int]] = []
        self.open = 0
        self.error_at: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def of(self, data: bytes):
        async def fetch(start: int, end: int):
            self.fetches.append((content_hash(data), start, end))
            self.open += 1
            try:
                for at in range(start, end, PIECE):
                    if at > start:
                        await self.gate.wait()
                    if self.error_at is not None and at >= self.error_at:
                        raise ArchiveUnavailable("gone")
                    yield data[at : min(at + PIECE, end)]
            finally:
                self.open -= 1

        return fetch


def row_of(data: bytes, *, foreign: bool = False) -> ArchivedChunk:
    chunk_id = "f" * 64 if foreign else content_hash(data)
    return ArchivedChunk(chunk_id, len(data), "packs/x", 0, len(data) + 1000, "" if foreign else "2" * 64, 1, 1)


class Disk:
    """What the cache asks of its surroundings."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spare = folder / "archive" / "cache", PLENTY
        self.words = itertools.count()

    async def cache(self, budget: int = 10**9) -> Cache:
        cache = Cache(
            self.folder, budget, spare_bytes=lambda: self.spare, token=lambda: f"{os.getpid()}-{next(self.words)}"
        )
        await cache.open()
        return cache

    def files(self) -> list[Path]:
        return files_below(self.folder)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


async def take(cache: Cache, data: bytes, origin: Origin, *part: int, row: ArchivedChunk | None = None) -> bytes:
    return b"".join([bytes(piece) async for piece in cache.read(row or row_of(data), origin.of(data), *part)])


async def kept(cache: Cache) -> None:
    """Until what is being written is written."""
    await asyncio.gather(*cache._tasks)


DATA = noise(20 * PIECE + 5)


async def test_what_was_fetched_once_comes_from_the_disk_and_after_a_restart_too(disk):
    origin, cache = Origin(), await disk.cache()
    assert await take(cache, DATA, origin) == DATA
    await kept(cache)
    assert [path.relative_to(disk.folder).as_posix() for path in disk.files()] == [
        f"{content_hash(DATA)[:2]}/{content_hash(DATA)}"
    ]
    assert content_hash(DATA) in cache and len(cache) == 1 and cache.size_bytes == 20480
    assert await take(cache, DATA, origin) == DATA and await take(cache, DATA, origin, 1500, 7777) == DATA[1500:7777]
    assert (cache.hits, cache.misses, len(origin.fetches)) == (2, 1, 1)
    await cache.close()
    again = await disk.cache()
    assert await take(again, DATA, origin, 3, 4) == DATA[3:4] and await again.get(row_of(DATA)) == DATA
    assert len(origin.fetches) == 1 and again.size_bytes == 20480


async def test_readers_of_one_chunk_share_a_fetch_and_get_the_first_bytes_at_once(disk):
    origin, cache = Origin(), await disk.cache()
    origin.gate.clear()
    async with aclosing(cache.read(row_of(DATA), origin.of(DATA))) as one:
        assert bytes(await anext(one)) == DATA[:PIECE]
        others = [asyncio.create_task(take(cache, DATA, origin, start, len(DATA))) for start in (0, 500, 19_000)]
        async with aclosing(cache.read(row_of(DATA), origin.of(DATA), 100, 300)) as part:
            assert bytes(await anext(part)) == DATA[100:300]
        await asyncio.sleep(0.01)
        assert not any(other.done() for other in others)
        origin.gate.set()
        assert await asyncio.gather(*others) == [DATA, DATA[500:], DATA[19_000:]]
        assert b"".join([bytes(piece) async for piece in one]) == DATA[PIECE:]
    assert len(origin.fetches) == 1


async def test_a_fetch_that_nobody_wants_any_more_is_given_up(disk):
    origin, cache = Origin(), await disk.cache()
    origin.gate.clear()
    one, two = (cache.read(row_of(DATA), origin.of(DATA)) for _ in range(2))
    assert bytes(await anext(one)) == bytes(await anext(two)) == DATA[:PIECE]
    await one.aclose()
    await asyncio.sleep(0.01)
    assert origin.open == 1
    await two.aclose()
    await until(lambda: origin.open == 0 and not cache._tasks)
    assert not disk.files()
    origin.gate.set()
    assert await take(cache, DATA, origin) == DATA and len(origin.fetches) == 2


async def test_an_error_reaches_all_readers_where_it_happened_and_is_not_remembered(disk):
    origin, cache = Origin(), await disk.cache()
    origin.error_at = 5 * PIECE

    async def until_error() -> bytes:
        came = b""
        with pytest.raises(ArchiveUnavailable):
            async for piece in cache.read(row_of(DATA), origin.of(DATA)):
                came += bytes(piece)
        return came

    assert await asyncio.gather(until_error(), until_error()) == [DATA[: 5 * PIECE]] * 2
    assert len(origin.fetches) == 1 and not disk.files()
    origin.error_at = None
    assert await take(cache, DATA, origin) == DATA


async def test_a_fetch_that_ends_early_is_an_error_and_not_kept(disk):
    cache = await disk.cache()

    async def short(start: int, end: int):
        yield DATA[:-1]

    with pytest.raises(ArchiveDamaged):
        async for _ in cache.read(row_of(DATA), short):
            pass
    assert not disk.files()


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(DATA[:-1] + b"?"), lambda path: path.write_bytes(DATA[:-1]), lambda path: path.write_bytes(DATA + b"x"),
    lambda path: path.write_bytes(b""),
])  # fmt: skip
async def test_a_file_that_is_not_the_chunk_is_removed_and_fetched_anew(disk, spoil):
    origin, cache = Origin(), await disk.cache()
    await take(cache, DATA, origin)
    await kept(cache)
    (path,) = disk.files()
    spoil(path)
    assert await cache.get(row_of(DATA)) is None and not path.exists() and cache.size_bytes == 0
    assert await take(cache, DATA, origin) == DATA
    await kept(cache)
    assert path.read_bytes() == DATA and len(origin.fetches) == 2


async def test_a_file_that_somebody_removed_is_fetched_anew(disk):
    origin, cache = Origin(), await disk.cache()
    await take(cache, DATA, origin)
    await kept(cache)
    disk.files()[0].unlink()
    assert await take(cache, DATA, origin) == DATA and len(origin.fetches) == 2


async def test_what_was_used_longest_ago_goes_first_also_after_a_restart(disk):
    origin, cache = Origin(), await disk.cache(4 * 4096)
    chunks = [noise(3000, seed) for seed in range(6)]
    for data in chunks[:4]:
        await take(cache, data, origin)
        await kept(cache)
        await asyncio.sleep(0.01)
    await take(cache, chunks[0], origin)
    await take(cache, chunks[4], origin)
    await kept(cache)
    there = [number for number, data in enumerate(chunks) if content_hash(data) in cache]
    assert there == [0, 2, 3, 4] and cache.size_bytes == 4 * 4096 and len(disk.files()) == 4
    await cache.close()
    smaller = await disk.cache(2 * 4096)
    assert [number for number, data in enumerate(chunks) if content_hash(data) in smaller] == [0, 4]
    assert len(disk.files()) == 2
    await take(smaller, noise(3 * 4096, 77), origin)
    await kept(smaller)
    assert len(smaller) == 2, "what is larger than the budget is not kept, and nothing goes for it"


async def test_the_budget_holds_whoever_writes_at_the_same_time(disk):
    origin, cache = Origin(), await disk.cache(5 * 4096)
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, len(disk.files()))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    chunks = [noise(3000, seed) for seed in range(40)]
    assert await asyncio.gather(*(take(cache, data, origin) for data in chunks)) == chunks
    await kept(cache)
    watching.cancel()
    assert 0 < most <= 5 and cache.size_bytes == 4096 * len(cache) == 4096 * len(disk.files()) <= 5 * 4096


async def test_it_gives_way_when_the_disk_comes_near_its_reserve(disk):
    origin, cache = Origin(), await disk.cache()
    for seed in range(4):
        await take(cache, noise(3000, seed), origin)
        await kept(cache)
    disk.spare = MARGIN_BYTES - 4097
    assert await cache.give_room() == 2 * 4096 and len(disk.files()) == len(cache) == 2
    await take(cache, noise(3000, 9), origin)
    await kept(cache)
    assert len(cache) == 0, "each look at the disk says again that two have to go, and the new one did not come"
    disk.spare = PLENTY
    await take(cache, noise(3000, 9), origin)
    await kept(cache)
    assert len(cache) == 1 and await cache.give_room() == 0


async def test_without_a_budget_nothing_is_kept_and_parts_are_fetched_as_parts(disk):
    origin, cache = Origin(), await disk.cache(0)
    assert await take(cache, DATA, origin) == DATA and await take(cache, DATA, origin, 5, 9000) == DATA[5:9000]
    await kept(cache)
    assert not disk.files() and [fetch[1:] for fetch in origin.fetches] == [(0, len(DATA)), (5, 9000)]


async def test_a_small_part_of_a_large_chunk_is_fetched_alone_the_first_time(disk):
    origin, cache = Origin(), await disk.cache()
    large = noise(WHOLE_BYTES + 5 * PIECE)
    assert await take(cache, large, origin, 10, 20) == large[10:20]
    assert await take(cache, large, origin, 30, 40) == large[30:40]
    assert await take(cache, noise(len(large), 2), origin, 0, len(large) // 2 + 5)
    assert [fetch[1:] for fetch in origin.fetches] == [(10, 20), (0, len(large)), (0, len(large))]


async def test_imported_content_is_kept_with_its_true_hash(disk):
    origin, cache = Origin(), await disk.cache()
    row = row_of(DATA, foreign=True)
    assert await take(cache, DATA, origin, row=row) == DATA
    await kept(cache)
    (path,) = disk.files()
    assert path.name == f"{row.chunk_id}.{content_hash(DATA)}"
    again = await disk.cache()
    assert (
        await again.get(row) == DATA and await take(again, DATA, origin, row=row) == DATA and len(origin.fetches) == 1
    )
    path.write_bytes(DATA[::-1])
    assert await again.get(row) is None and not path.exists()


async def test_a_row_cannot_name_a_file_elsewhere(disk):
    origin, cache = Origin(), await disk.cache()
    row = msgspec.structs.replace(row_of(DATA, foreign=True), chunk_id="../stolen")
    assert await take(cache, DATA, origin, row=row) == DATA
    await kept(cache)
    assert not [path for path in disk.folder.parents[1].rglob("*") if path.is_file()] and len(cache) == 0


async def test_bytes_that_are_not_the_chunk_are_not_kept(disk):
    origin, cache = Origin(), await disk.cache()
    await take(cache, DATA, origin, row=msgspec.structs.replace(row_of(DATA), chunk_id="a" * 64))
    await kept(cache)
    assert not disk.files() and len(cache) == 0 and cache.size_bytes == 0


async def test_what_a_crash_left_half_written_goes_and_what_is_not_ours_stays(disk):
    folder = disk.folder / "ab"
    folder.mkdir(parents=True)
    (folder / "7-1.tmp").write_bytes(b"half")
    (folder / "notes").write_bytes(b"not ours")
    (folder / ("c" * 64)).write_bytes(b"in the wrong folder")
    cache = await disk.cache()
    assert len(cache) == 0 and [path.name for path in disk.files()] == ["c" * 64, "notes"]


async def test_a_folder_that_cannot_be_written_is_no_obstacle(disk):
    disk.folder.parent.mkdir(parents=True)
    disk.folder.write_bytes(b"a file in its place")
    origin, cache = Origin(), await disk.cache()
    assert await take(cache, DATA, origin) == DATA
    await kept(cache)
    assert len(cache) == 0


async def test_a_write_that_fails_leaves_nothing(disk, monkeypatch):
    origin, cache = Origin(), await disk.cache()
    monkeypatch.setattr(cachefiles.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert await take(cache, DATA, origin) == DATA
    await kept(cache)
    assert not disk.files() and cache.size_bytes == 0 and len(cache) == 0


async def test_the_loop_goes_on_while_files_are_read_and_written(disk, monkeypatch):
    """Both wait for what only the loop does."""
    origin, cache = Origin(), await disk.cache()
    real_store, real_load = cachefiles.store, cachefiles.load
    begun, go_on = threading.Event(), threading.Event()

    def held(real):
        def call(*args, **options):
            begun.set()
            assert go_on.wait(60), "the loop did not go on"
            return real(*args, **options)

        return call

    monkeypatch.setattr(cachefiles, "store", held(real_store))
    monkeypatch.setattr(cachefiles, "load", held(real_load))

    async def ends(task) -> None:
        """It is held up in a thread while the loop goes on; then it ends."""
        await until(begun.is_set)
        assert not task.done()
        go_on.set()
        await task
        begun.clear()
        go_on.clear()

    assert await take(cache, DATA, origin) == DATA
    await ends(asyncio.gather(*cache._tasks))
    await ends(asyncio.create_task(take(cache, DATA, origin)))
    assert cache.hits == 1


async def test_who_reads_when_the_node_stops_is_told(disk):
    origin, cache = Origin(), await disk.cache()
    origin.gate.clear()
    reading = asyncio.create_task(take(cache, DATA, origin))
    await asyncio.sleep(0.01)
    await cache.close()
    with pytest.raises(NotReady):
        await reading
    with pytest.raises(NotReady):
        await take(cache, DATA, origin)
    assert origin.open == 0
