"""The faults of the target in memory do what they say: other tests rely on them."""

import asyncio

import pytest

from amberblob.errors import ArchiveDenied, ArchiveMissing, ArchiveUnavailable
from archive.targets.memory import MemoryBucket, MemoryTarget
from tests.archive_parts import collect, names_of, parts_of

CONTENT = bytes(range(200)) * 5000


@pytest.fixture
def bucket():
    return MemoryBucket()


@pytest.fixture
def target(bucket):
    return MemoryTarget(bucket)


async def test_errors_by_kind_name_and_number(bucket, target):
    bucket.fault("unavailable", "put", "packs/b*", times=2, skip=1)
    await target.put("packs/a", parts_of(b"x"))
    await target.put("packs/b0", parts_of(b"x"))
    for name in ("packs/b1", "packs/b2"):
        with pytest.raises(ArchiveUnavailable):
            await target.put(name, parts_of(b"x"))
    await target.put("packs/b3", parts_of(b"x"))
    assert names_of(await target.page("", "", 10)) == ["packs/a", "packs/b0", "packs/b3"]
    for what, error in (("denied", ArchiveDenied), ("missing", ArchiveMissing), ("throttled", ArchiveUnavailable)):
        bucket.fault(what, "*", times=1)
        with pytest.raises(error):
            await target.head("packs/a")
    assert target.traffic.throttles == 1
    bucket.fault("unavailable")
    bucket.heal()
    assert await collect(target.read("packs/a")) == b"x"


async def test_faults_of_one_node_and_of_all(bucket, target):
    other = MemoryTarget(bucket)
    await target.put("packs/a", parts_of(b"x"))
    fault = bucket.fault("unavailable")
    bucket.faults.clear()
    target.faults.append(fault)
    with pytest.raises(ArchiveUnavailable):
        await target.head("packs/a")
    with pytest.raises(ArchiveUnavailable):
        await target.paced(target._pace).head("packs/a")
    assert (await other.head("packs/a")).size_bytes == 1


async def test_damage(bucket, target):
    bucket.fault("damage", "put", times=1)
    await target.put("packs/stored-wrong", parts_of(CONTENT))
    await target.put("packs/p", parts_of(CONTENT))
    wrong = await collect(target.read("packs/stored-wrong"))
    assert wrong == await collect(target.read("packs/stored-wrong"))
    assert [at for at in range(len(CONTENT)) if wrong[at] != CONTENT[at]] == [len(CONTENT) // 2]
    bucket.fault("damage", "get", times=1)
    came = await collect(target.read("packs/p", 100, 300))
    assert sum(a != b for a, b in zip(came, CONTENT[100:300], strict=True)) == 1
    assert await collect(target.read("packs/p", 100, 300)) == CONTENT[100:300]
    bucket.damage("packs/p", 5)
    assert (await collect(target.read("packs/p")))[5] == CONTENT[5] ^ 255


async def test_cut_and_lost(bucket, target):
    bucket.fault("cut", "put", times=1)
    with pytest.raises(ArchiveUnavailable):
        await target.put("packs/a", parts_of(CONTENT))
    assert await target.page("", "", 10) == []
    bucket.fault("lost", "put", times=1)
    with pytest.raises(ArchiveUnavailable):
        await target.put("packs/a", parts_of(CONTENT))
    assert names_of(await target.page("", "", 10)) == ["packs/a"]
    bucket.fault("cut", "get", times=1)
    came = []
    with pytest.raises(ArchiveUnavailable):
        async for piece in target.read("packs/a"):
            came.append(piece)
    assert b"".join(came) == CONTENT[: len(CONTENT) // 2]
    bucket.fault("lost", "delete", times=1)
    with pytest.raises(ArchiveUnavailable, match="packs/a was not deleted"):
        await target.delete(["packs/a"])
    assert await target.page("", "", 10) == []


async def test_hang_and_delay(bucket):
    naps = []

    async def sleep(seconds):
        naps.append(seconds)

    target = MemoryTarget(bucket, sleep=sleep)
    hanging = bucket.fault("hang", "put")
    putting = asyncio.create_task(target.put("packs/a", parts_of(b"x")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not putting.done()
    hanging.release()
    await putting
    bucket.heal()
    bucket.fault(None, "get", delay_s=7.5)
    assert await collect(target.read("packs/a")) == b"x"
    assert naps == [7.5]


async def test_a_name_is_not_used_for_two_contents(target):
    await target.put("packs/a", parts_of(b"x"))
    await target.put("packs/a", parts_of(b"x"))
    with pytest.raises(AssertionError, match="a second time"):
        await target.put("packs/a", parts_of(b"y"))
