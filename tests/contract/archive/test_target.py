"""What every target does (archive/targets/interface.py)."""

import asyncio
import hashlib
import time

import pytest

from amberblob.errors import ArchiveDamaged, ArchiveMissing
from archive.targets.names import PIECE_BYTES_MAX
from tests.archive_parts import collect, names_of, parts_of
from tests.contract.archive.conftest import MIB, PART_BYTES

CONTENT = bytes(range(256)) * 40


async def test_what_was_put_is_read_and_known(target):
    for name, size in (("packs/empty", 0), ("packs/one", 1), ("chunks/ab/x.y", 3 * MIB + 7)):
        content = (CONTENT * (size // len(CONTENT) + 1))[:size]
        before_ms = int(time.time() * 1000)
        stored = await target.put(name, parts_of(content, 300_000))
        assert (stored.name, stored.size_bytes) == (name, size)
        assert stored.etag
        assert abs(stored.modified_ms - before_ms) < 60_000
        pieces = [piece async for piece in target.read(name)]
        assert b"".join(pieces) == content
        assert all(0 < len(piece) <= PIECE_BYTES_MAX for piece in pieces)
        known = await target.head(name)
        assert (known.name, known.size_bytes, known.etag) == (name, size, stored.etag)
        assert abs(known.modified_ms - before_ms) < 60_000


async def test_one_of_many_parts(target):
    content = hashlib.shake_256(b"parts").digest(2 * PART_BYTES + 12_345)
    stored = await target.put("packs/large", parts_of(content, 3 * MIB - 11))
    assert stored.size_bytes == len(content)
    assert await collect(target.read("packs/large")) == content
    around = PART_BYTES - 100
    assert await collect(target.read("packs/large", around, around + 200)) == content[around : around + 200]
    assert (await target.head("packs/large")).etag == stored.etag
    assert [each.size_bytes for each in await target.page("packs/", "", 10)] == [len(content)]


async def test_a_part_of_just_the_size_of_a_part(target):
    for name, size in (("packs/just", PART_BYTES), ("packs/twice", 2 * PART_BYTES)):
        await target.put(name, parts_of(bytes(size), PART_BYTES))
        assert (await target.head(name)).size_bytes == size


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, None), (5, 17), (10_000, None), (len(CONTENT) - 1, len(CONTENT)), (0, len(CONTENT)), (7, 7), (9, 3), (len(CONTENT), None)],
)  # fmt: skip
async def test_ranges(target, start, end):
    await target.put("packs/p", parts_of(CONTENT))
    assert await collect(target.read("packs/p", start, end)) == CONTENT[start:end]


@pytest.mark.parametrize(
    ("start", "end"), [(0, len(CONTENT) + 1), (len(CONTENT), len(CONTENT) + 1), (len(CONTENT) + 1, None)]
)
async def test_what_ends_too_soon_is_damaged(target, start, end):
    await target.put("packs/p", parts_of(CONTENT))
    with pytest.raises(ArchiveDamaged):
        await collect(target.read("packs/p", start, end))


async def test_another_etag_is_damage(target):
    stored = await target.put("packs/p", parts_of(CONTENT))
    assert await collect(target.read("packs/p", 3, 9, etag=stored.etag)) == CONTENT[3:9]
    with pytest.raises(ArchiveDamaged, match="overwritten"):
        await collect(target.read("packs/p", etag="0123456789abcdef0123456789abcdef"))


async def test_what_is_not_there(target):
    await target.put("packs/there", parts_of(CONTENT))
    for name in ("packs/not-there", "packs/there/below", "packs"):
        with pytest.raises(ArchiveMissing):
            await collect(target.read(name))
        with pytest.raises(ArchiveMissing):
            await collect(target.read(name, 5, 10))
        with pytest.raises(ArchiveMissing):
            await target.head(name)


async def test_pages_are_in_order(target):
    names = ["a-b", "a.c", "a/b", "a/b.c", "a/c/d", "a0", "b/a", "B/a", "packs/2026/11/21/x", "packs/2026/11/22/x"]
    for name in names:
        await target.put(name, parts_of(name.encode()))
    everything = sorted(names, key=str.encode)
    assert names_of(await target.page("", "", 1000)) == everything
    for limit in (1, 3):
        seen, after = [], ""
        while page := await target.page("", after, limit):
            assert len(page) <= limit
            seen += names_of(page)
            after = seen[-1]
        assert seen == everything
    assert names_of(await target.page("a/", "", 10)) == ["a/b", "a/b.c", "a/c/d"]
    assert names_of(await target.page("a/b", "a/b", 10)) == ["a/b.c"]
    assert names_of(await target.page("a", "a/b", 2)) == ["a/b.c", "a/c/d"]
    assert names_of(await target.page("packs/2026/11/2", "packs/2026/11/21/zzz", 10)) == ["packs/2026/11/22/x"]
    assert names_of(await target.page("b", "a", 10)) == ["b/a"]
    assert await target.page("b", "c", 10) == []
    assert await target.page("nothing/", "", 10) == []
    for each in await target.page("", "", 1000):
        assert (each.size_bytes, each.etag) == (len(each.name), (await target.head(each.name)).etag)


async def test_deleting(target):
    for name in ("packs/a", "packs/b", "packs/c", "chunks/aa/d"):
        await target.put(name, parts_of(CONTENT))
    await target.delete([])
    await target.delete(["packs/a", "packs/never", "chunks/aa/d", "packs/a/below"])
    assert names_of(await target.page("", "", 10)) == ["packs/b", "packs/c"]
    await target.delete(["packs/a", "packs/b", "packs/c"])
    assert await target.page("", "", 10) == []
    with pytest.raises(ArchiveMissing):
        await target.head("packs/b")
    await target.put("packs/e", parts_of(CONTENT))
    assert await collect(target.read("packs/e")) == CONTENT


@pytest.mark.parametrize("size", [100_000, 2 * PART_BYTES + 5])
async def test_a_put_whose_content_fails_leaves_nothing(target, size):
    async def parts():
        async for part in parts_of(bytes(size), 1 * MIB):
            yield part
        raise RuntimeError("the disk of the caller")

    with pytest.raises(RuntimeError, match="the disk of the caller"):
        await target.put("packs/broken", parts())
    assert await target.page("", "", 10) == []
    assert await target.sweep(2**53) == 0


@pytest.mark.parametrize("size", [100_000, 2 * PART_BYTES + 5])
async def test_a_put_that_is_cancelled_leaves_nothing(target, size):
    waits = asyncio.Event()

    async def parts():
        async for part in parts_of(bytes(size), 1 * MIB):
            yield part
        waits.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(target.put("packs/broken", parts()))
    await waits.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await target.page("", "", 10) == []
    assert await target.sweep(2**53) == 0


async def test_a_put_that_is_cancelled_at_any_time_is_whole_or_nothing(target):
    async def parts():
        yield CONTENT

    for moment in range(12):
        putting = asyncio.create_task(target.put(f"packs/{moment}", parts()))
        await asyncio.sleep(moment * 0.002)
        if putting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await putting
        is_there = bool(await target.page(f"packs/{moment}", "", 1))
        assert is_there == (not putting.cancelled())


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a/./b", "a\0b", "a\nb", "ä", "x" * 513, ".amberblob-archive", "a b"],
)  # fmt: skip
async def test_names_that_cannot_be(target, name):
    with pytest.raises(ArchiveMissing, match="cannot be the name"):
        await target.put(name, parts_of(b"x"))
    with pytest.raises(ArchiveMissing, match="cannot be the name"):
        await collect(target.read(name))
    with pytest.raises(ArchiveMissing, match="cannot be the name"):
        await target.head(name)
    with pytest.raises(ArchiveMissing, match="cannot be the name"):
        await target.delete([name])


async def test_the_longest_name(target):
    name = "/".join(["n" * 50] * 10) + "/xx"
    assert len(name) == 512
    await target.put(name, parts_of(CONTENT))
    assert names_of(await target.page(name[:100], "", 5)) == [name]
    assert await collect(target.read(name)) == CONTENT


async def test_a_probe_leaves_nothing(target):
    await target.probe()
    assert await target.page("", "", 10) == []


async def test_a_reader_that_leaves_early_holds_nothing_up(target):
    content = bytes(3 * MIB)
    await target.put("packs/p", parts_of(content))
    for _ in range(50):
        reading = target.read("packs/p")
        assert await anext(reading)
        await reading.aclose()
    assert len(await collect(target.read("packs/p"))) == len(content)


async def test_many_at_once(target):
    async def one(number):
        content = f"{number}".encode() * 1000
        await target.put(f"packs/{number:03}", parts_of(content))
        assert await collect(target.read(f"packs/{number:03}", 5, 900)) == content[5:900]

    await asyncio.gather(*(one(number) for number in range(24)))
    assert len(await target.page("packs/", "", 1000)) == 24


class Recorded:
    """A pace that lets everybody go, and knows for what."""

    def __init__(self):
        self.requests = self.count = 0

    async def request(self):
        self.requests += 1

    async def bytes(self, count):
        self.count += count


async def test_a_job_keeps_its_pace_and_others_do_not(opened):
    target, pace = opened.target, Recorded()
    paced = target.paced(pace)
    await paced.put("packs/p", parts_of(CONTENT))
    assert (pace.requests, pace.count) == (1, len(CONTENT))
    await collect(paced.read("packs/p", 0, 5000))
    assert (pace.requests, pace.count) == (2, len(CONTENT) + 5000)
    await paced.page("", "", 10)
    await paced.head("packs/p")
    await paced.delete(["packs/p"])
    assert (pace.requests, pace.count) == (5, len(CONTENT) + 5000)
    await target.put("packs/q", parts_of(CONTENT))
    assert pace.requests == 5
    assert names_of(await target.page("", "", 10)) == ["packs/q"]


async def test_traffic_is_counted(opened):
    target, traffic = opened.target, opened.traffic
    await target.put("packs/p", parts_of(CONTENT))
    await collect(target.read("packs/p", 100, 300))
    with pytest.raises(ArchiveMissing):
        await target.head("packs/q")
    await target.paced(Recorded()).page("", "", 5)
    await target.delete(["packs/p"])
    assert (traffic.sent_bytes, traffic.received_bytes, traffic.retries) == (len(CONTENT), 200, 0)
    for key in (("put", "ok"), ("get", "ok"), ("head", "missing"), ("list", "ok"), ("delete", "ok")):
        assert traffic.requests[key] == 1, key


async def test_its_url_says_where_and_no_secret(target):
    assert target.url.split("://")[0] in ("memory", "file", "s3")
    assert not target.url.endswith("/")
    assert "@" not in target.url
    assert "secret" not in target.url
