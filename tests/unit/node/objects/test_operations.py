"""PUT, GET, DELETE, restore, versions through every node, on memory and on real disks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from blake3 import blake3

from amberblob.errors import NotFound, PreconditionFailed, QuorumUnavailable, VersionConflict
from node.protocol.operations import Conditions
from tests.unit.node.objects.kit import (
    CHUNK,
    STAGED,
    cluster,
    content,
    delete,
    get,
    listing,
    look,
    put,
    read,
    restore,
    until,
)

SIZES = [0, 1, CHUNK, STAGED, 3 * CHUNK, 70 * CHUNK + 17]
KINDS = ["memory", "disk"]


@pytest.fixture(params=KINDS)
async def made(request, tmp_path):
    folder = tmp_path if request.param == "disk" else None
    async with cluster(folder=folder) as running:
        yield running


@pytest.mark.parametrize("size", SIZES)
async def test_what_one_node_stores_every_node_serves(made, size):
    for index, node in enumerate(list(made)[: 1 if size > 10 * CHUNK else 3]):
        data = content(size, index) if size else b""
        view = await put(node, "p", data, content_type="x/y", meta={"k": "vä"})
        assert view.version.version == index + 1
        assert view.version.size == size
        assert view.version.etag == blake3(data).hexdigest()
        assert (view.version.manifest_id is not None) is (size > 64 * CHUNK)
        for other in made:
            found = await look(other, "p")
            assert (found.version.content_type, found.version.meta) == ("x/y", {"k": "vä"})
            assert found.version == view.version and found.is_head and found.tombstoned_at_ms is None
            assert await read(other, found) == data


@pytest.mark.parametrize("size", [CHUNK, STAGED, 66 * CHUNK + 17])
async def test_ranges_over_chunk_borders(made, size):
    data = content(size)
    await put(made[1], "p", data)
    view = await look(made[2], "p")
    ranges = [(0, 1), (0, size), (size - 1, 1), (CHUNK - 1, 1), (CHUNK - 1, 2), (CHUNK, 1), (1, size - 2), (5, 0)]
    for offset, length in ranges:
        assert await read(made[2], view, offset, length) == data[offset : offset + length], (offset, length)


async def test_a_reader_that_leaves_early_gives_its_places_back(made):
    data = content(40 * CHUNK)
    await put(made[1], "p", data)
    view = await look(made[1], "p")
    for _ in range(40):
        chunks = made[1].objects.read(view, 0, len(data))
        assert bytes(await anext(chunks)) == data[:CHUNK]
        await chunks.aclose()
    assert await read(made[1], view) == data


async def test_delete_and_restore_through_different_nodes(made):
    for index, data in enumerate((b"one", content(STAGED), b"three")):
        await put(made[index + 1], "p", data)
    await delete(made[1], "p")
    for node in made:
        with pytest.raises(NotFound) as caught:
            await look(node, "p")
        assert caught.value.code == "no-such-object" and caught.value.extra["deleted_at_ms"] > 0
        assert await get(node, "p", version=1) == b"one"
        assert await get(node, "p", version=2) == content(STAGED)
        assert (await look(node, "p", version=3)).tombstoned_at_ms is not None
        assert (await listing(node)).objects == []
    with pytest.raises(NotFound):
        await delete(made[2], "p")
    assert (await restore(made[2], "p")).version.version == 3
    await delete(made[3], "p", version=3)
    assert await get(made[1], "p") == content(STAGED)
    await delete(made[3], "p", version=1)
    await delete(made[2], "p", version=2)
    with pytest.raises(NotFound):
        await look(made[1], "p")
    with pytest.raises(NotFound):
        await delete(made[1], "p", version=2)
    assert (await restore(made[1], "p", version=1)).version.version == 1
    assert (await restore(made[1], "p", version=3)).version.version == 3
    states = [(v.version.version, v.tombstoned_at_ms is None, v.is_head) for v in await made[2].objects.versions("p")]
    assert states == [(3, True, True), (2, False, False), (1, True, False)]
    assert (await put(made[3], "p", b"four")).version.version == 4


async def test_what_never_was(made):
    for node in made:
        with pytest.raises(NotFound):
            await look(node, "nothing")
        with pytest.raises(NotFound):
            await look(node, "nothing", version=1)
        with pytest.raises(NotFound):
            await node.objects.versions("nothing")
        with pytest.raises(NotFound):
            await delete(node, "nothing")
        with pytest.raises(NotFound):
            await delete(node, "nothing", version=1)
        with pytest.raises(NotFound):
            await restore(node, "nothing")
        with pytest.raises(NotFound):
            await restore(node, "nothing", version=3)
        with pytest.raises(NotFound):
            await node.objects.explain("nothing")
        assert (await listing(node)).objects == []


async def test_versions_that_the_client_asks_for(made):
    assert (await put(made[1], "p", version=10)).version.version == 10
    for number in (10, 9, 1):
        with pytest.raises(VersionConflict):
            await put(made[2], "p", version=number)
    assert (await put(made[2], "p")).version.version == 11
    with pytest.raises(NotFound):
        await look(made[3], "p", version=5)
    with pytest.raises(NotFound):
        await delete(made[3], "p", version=5)
    with pytest.raises(NotFound):
        await restore(made[3], "p", version=5)
    await delete(made[3], "p", version=11)
    assert (await look(made[1], "p")).version.version == 10
    assert (await put(made[1], "p")).version.version == 12


async def test_conditions(made):
    view = await put(made[1], "p", b"a", conditions=Conditions(absent=True))
    with pytest.raises(PreconditionFailed) as caught:
        await put(made[2], "p", content(STAGED), conditions=Conditions(absent=True))
    assert caught.value.extra["head"]["version"] == 1
    with pytest.raises(PreconditionFailed):
        await put(made[3], "p", b"b", conditions=Conditions(etags=("0" * 64,)))
    await put(made[3], "p", b"b", conditions=Conditions(etags=("0" * 64, view.version.etag)))
    with pytest.raises(PreconditionFailed):
        await put(made[1], "p", b"c", conditions=Conditions(version=1))
    with pytest.raises(PreconditionFailed):
        await delete(made[1], "p", conditions=Conditions(version=1))
    await delete(made[1], "p", conditions=Conditions(version=2))
    with pytest.raises(PreconditionFailed):
        await put(made[2], "p", b"c", conditions=Conditions(etags=("*",)))
    await put(made[2], "p", b"c", conditions=Conditions(version=0))


async def test_a_refused_upload_leaves_no_bytes():
    async with cluster() as made:
        await put(made[1], "p")
        with pytest.raises(PreconditionFailed):
            await put(made[2], "p", content(3 * CHUNK), conditions=Conditions(absent=True))
        with pytest.raises(VersionConflict):
            await put(made[3], "p", content(3 * CHUNK), version=1)
        await made.settle()
        assert made.staged() == {} and not any(made.blobs().values())


async def test_the_head_at_a_time(made):
    made.clock.ahead_s = 0.0
    times = []
    for index in range(3):
        view = await put(made[index + 1], "p", b"%d" % index)
        times.append(view.version.created_at_ms)
        made.clock.ahead_s += 10.0
    await delete(made[1], "p")
    deleted = times[2] + 10_000
    await made.settle()
    for node in made:
        for index, at_ms in enumerate(times):
            for later in (0, 5_000):
                assert (await look(node, "p", at_ms=at_ms + later)).version.version == index + 1
        with pytest.raises(NotFound):
            await look(node, "p", at_ms=times[0] - 1)
        with pytest.raises(NotFound):
            await look(node, "p", at_ms=deleted + 5_000)


async def test_many_versions_come_in_pages(made):
    for index in range(30):
        await put(made[index % 3 + 1], "p", b"%d" % index)
    await delete(made[1], "p", version=30)
    for node in made:
        views = await node.objects.versions("p")
        assert [v.version.version for v in views] == list(range(30, 0, -1))
        assert (await look(node, "p")).version.version == 29


async def test_more_versions_than_a_page_of_history(monkeypatch):
    monkeypatch.setattr("node.objects.lookup.HISTORY_PAGE_MAX", 4)
    async with cluster() as made:
        for index in range(23):
            if index == 9:
                made.net.down.add("n3")
            if index == 15:
                made.net.heal()
            await put(made[index % 2 + 1], "p", b"%d" % index)
        made.net.down.add("n1")
        for number in (2, 3):
            views = await made[number].objects.versions("p")
            assert [v.version.version for v in views] == list(range(23, 0, -1))


async def test_a_version_that_comes_up_while_the_history_is_read_is_not_shown_as_deleted():
    """A replica reads its register, then its rows; in between another write ends."""
    async with cluster() as made:
        await put(made[1], "p", b"one")
        await made.settle()
        gate, waiting = asyncio.Event(), []
        for node in made:
            rows = node.store.rows

            async def slow(*args, rows=rows, **options):
                waiting.append(1)
                await gate.wait()
                return await rows(*args, **options)

            node.store.rows = slow
        looking = asyncio.create_task(look(made[1], "p", version=2))
        history = asyncio.create_task(made[2].objects.versions("p"))
        await until(lambda: len(waiting) == 6)
        await put(made[3], "p", b"two")
        await until(
            lambda: all(
                n.register("p").chosen and len(n.store._path(n.routing.slot_of("p"), "p").rows) == 2 for n in made
            )
        )
        gate.set()
        with contextlib.suppress(NotFound):
            assert (await looking).tombstoned_at_ms is None
        assert [v for v in await history if v.tombstoned_at_ms is not None] == []


# ---- local


async def test_local_reads_are_stale_but_never_undecided():
    async with cluster() as made:
        await put(made[1], "p", b"one")
        await made.settle()
        made.net.down.add("n3")
        await put(made[1], "p", b"two")
        await made.settle()
        made.net.heal()
        assert await get(made[3], "p", consistency="local") == b"one"
        assert await get(made[3], "p") == b"two"
        made.net.fault("Learn", "drop")
        await put(made[1], "p", b"three")
        await made.settle()
        for number in (1, 2):
            assert await get(made[number], "p", consistency="local") == b"two"
        assert await get(made[3], "p") == b"three"
        assert await get(made[1], "p", version=2, consistency="local") == b"two"
        with pytest.raises(NotFound):
            await look(made[1], "p", version=3, consistency="local")


async def test_local_never_shows_a_first_version_that_is_undecided():
    async with cluster() as made:
        made.net.fault("Learn", "drop")
        await put(made[1], "p", b"one")
        await made.settle()
        for node in made:
            with pytest.raises(NotFound):
                await look(node, "p", consistency="local")
            assert await get(node, "p") == b"one"


async def test_local_goes_on_without_the_others():
    async with cluster() as made:
        await put(made[1], "p", content(STAGED))
        await put(made[1], "q", b"x")
        await delete(made[1], "q")
        await made.settle()
        made.net.down |= {"n1", "n2"}
        assert await get(made[3], "p", consistency="local") == content(STAGED)
        assert await get(made[3], "q", version=1, consistency="local") == b"x"
        with pytest.raises(NotFound):
            await look(made[3], "q", consistency="local")
        with pytest.raises(QuorumUnavailable):
            await look(made[3], "p")


async def test_a_node_without_a_copy_answers_local_reads_strongly():
    async with cluster(5, replicas=3) as made:
        await put(made[1], "p", b"x")
        for node in made:
            if not node.routing.is_member(made.slot("p")):
                assert await get(node, "p", consistency="local") == b"x"
