"""Reading what no disk has: streamed, verified, fetched once, and told honestly when it cannot be had."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from amberblob.archives import DAMAGED
from amberblob.ballot import BALLOT_ZERO
from amberblob.errors import AmberError, ArchiveDamaged, ArchiveMissing, ArchiveUnavailable, ClusterError
from amberblob.wire import Refused
from archive.targets.memory import Fault, damaged
from node.archive import answers
from node.archive import reads as reads_module
from node.objects.cold import Course
from tests.unit.node.archive.kit import World, world
from tests.unit.node.archive.test_restore import restore
from tests.unit.node.objects.kit import CHUNK, PATIENCE_S, get, look, put, read, until

MIB = 1024 * 1024


@pytest.fixture
async def made(tmp_path):
    async with world(tmp_path, chunk_bytes=MIB) as running:
        yield running


@pytest.mark.parametrize("size", [5, CHUNK + 1, 3 * MIB + 7])
async def test_what_all_copies_gave_up_comes_from_the_archive(made, size):
    data, view = await made.cold("p", size)
    for number in (1, 2, 3):
        assert await get(made[number], "p") == data
        assert await get(made[number], "p", consistency="local") == data
        assert await read(made[number], view, size // 2, size - size // 2) == data[size // 2 :]
    assert all(node.puller.waiting == 0 for node in made.cluster), "nothing is missing"
    assert [await made.evicted(view, number) for number in (1, 2, 3)] == [True] * 3


async def test_a_manifest_of_many_chunks(tmp_path):
    async with world(tmp_path) as made:
        data, view = await made.cold("p", 70 * CHUNK)
        assert view.version.manifest_id is not None
        assert await get(made[2], "p") == data


async def test_the_second_reader_is_served_from_the_cache(made):
    data, _ = await made.cold("p", 2 * MIB)
    assert await get(made[1], "p") == data
    await until(lambda: len(made.means["n1"].cache) == 2)
    before = made.gets()
    assert await get(made[1], "p") == data
    assert made.gets() == before


async def test_a_copy_that_has_the_file_gives_it(made):
    data, _ = await made.cold("p", 2 * MIB, (1, 2))
    assert await get(made[1], "p") == data
    assert made.gets() == 0


async def test_copies_without_files_are_asked_once_and_not_for_every_chunk(made):
    data, _ = await made.cold("p", 8 * MIB)
    made.cluster.net.sent.clear()
    assert await get(made[1], "p") == data
    # One chunk is fetched ahead, so that two may ask before the first has heard anything.
    assert made.cluster.net.count("ReadChunk") <= 4


async def test_a_node_without_a_copy_reads_by_what_the_copies_know(tmp_path):
    async with world(tmp_path, 4, chunk_bytes=MIB) as made:
        path = made.cluster.path(1)
        data, _ = await made.cold(path, 3 * MIB)
        made.cluster.net.sent.clear()
        assert await get(made[4], path) == data
        assert made.cluster.net.count("AskArchived") <= 2, "the chunk, and the one ahead"
        assert made.means["n4"].traffic.received_bytes >= 3 * MIB, "it streams itself"


async def test_what_one_answer_could_not_hold_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "LINES_BYTES_MAX", 1500)
    async with world(tmp_path, 4) as made:
        path = made.cluster.path(1)
        data, view = await made.cold(path, 8 * CHUNK)
        told = await made[4].parts.archive.rows.of("n1", made.cluster.slot(path), view.version.blob_id)
        assert len(told.chunks) < 8
        assert await get(made[4], path) == data


async def test_the_first_byte_goes_out_before_the_chunk_has_come(made):
    """The target holds back everything behind the first pieces of the chunk."""
    data, view = await made.cold("p", MIB)
    target = made.targets["n1"]
    held = asyncio.Event()
    whole = target.read

    async def slow(name, start=0, end=None, *, etag=""):
        at = 0
        async for piece in whole(name, start, end, etag=etag):
            if at >= 512 * 1024:
                await held.wait()
            at += len(piece)
            yield piece

    target.read = slow
    parts = made[1].objects.read(view, 0, MIB)
    got = bytes(await asyncio.wait_for(anext(parts), 30))
    assert got and data.startswith(got)
    rest = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.05)
    held.set()
    got += bytes(await rest)
    async for piece in parts:
        got += bytes(piece)
    assert got == data


async def test_readers_of_one_chunk_share_one_fetch(made):
    data, _ = await made.cold("p", MIB)
    fault = made.bucket.fault("hang", "get")
    readers = [asyncio.ensure_future(get(made[1], "p")) for _ in range(10)]
    await until(lambda: fault.met)
    await asyncio.sleep(0.05)
    fault.release()
    assert all(body == data for body in await asyncio.gather(*readers))
    assert made.gets() == 1


async def test_a_client_that_goes_away_ends_the_fetch(made):
    await made.cold("p", 4 * MIB)
    fault = made.bucket.fault("hang", "get")
    reader = asyncio.ensure_future(get(made[1], "p"))
    await until(lambda: fault.met == 2)  # the chunk, and the next one
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    cache = made.means["n1"].cache
    await until(lambda: not cache._fetching and not cache._tasks)
    for _ in range(30):  # no place in memory was lost
        made.bucket.heal()
        assert len(await get(made[1], "p")) == 4 * MIB


async def test_a_small_part_of_a_chunk_is_not_the_whole(tmp_path):
    async with world(tmp_path, chunk_bytes=4 * MIB) as made:
        data, view = await made.cold("p", 8 * MIB)
        assert await read(made[1], view, 5 * MIB, 1000) == data[5 * MIB : 5 * MIB + 1000]
        assert made.means["n1"].traffic.received_bytes < 2 * MIB


async def test_an_archive_that_is_down_is_told_before_the_first_byte_and_nothing_else_is_kept_from_working(made):
    await made.cold("p", MIB)
    await made.stored("q", MIB)
    made.bucket.fault("unavailable")
    with pytest.raises(ArchiveUnavailable) as caught:
        await get(made[1], "p")
    assert caught.value.status == 503 and caught.value.code == "archive-unavailable"
    assert set(caught.value.extra["failures"]) == {"n1", "n2", "n3"}
    assert len(await get(made[1], "q")) == MIB
    await put(made[1], "p", b"anew")
    assert await get(made[1], "p") == b"anew"
    made.bucket.heal()
    assert len(await get(made[1], "p", version=1)) == MIB


async def test_a_body_that_breaks_off_does_not_end_as_if_it_were_whole(made):
    data, view = await made.cold("p", 3 * MIB, alone=True)
    parts = made[1].objects.read(view, 0, 3 * MIB)
    got = bytes(await anext(parts))
    for target in made.targets.values():
        target.faults.append(Fault(what="unavailable"))
    with pytest.raises(ArchiveUnavailable):
        async for piece in parts:
            got += bytes(piece)
    assert len(got) < len(data) and data.startswith(got)


async def test_bytes_that_stop_coming_are_asked_for_from_there(made):
    data, _ = await made.cold("p", MIB)
    made.targets["n1"].faults.append(Fault(what="cut", kind="get", times=1))
    assert await get(made[1], "p") == data
    assert made.gets() == 2


async def test_what_was_damaged_on_its_way_is_no_fact(made):
    data, view = await made.cold("p", MIB)
    made.targets["n1"].faults.append(Fault(what="damage", kind="get", times=1))
    assert await get(made[1], "p") == data
    known = await made[1].store.archived(made.cluster.slot("p"), view.version.blob_id)
    assert all(row.verified for row in known.chunks)


async def test_damage_on_its_way_in_two_places_of_one_chunk_is_no_fact_either(made):
    """Each place is asked for a second time before it is judged."""
    data, view = await made.cold("p", MIB)
    slot, blob_id = made.cluster.slot("p"), view.version.blob_id
    row = (await made[1].store.archived(slot, blob_id)).chunks[0]
    size, target, spoilt = row.end - row.start, made.targets["n1"], []
    whole = target.read

    async def spoils(name, start=0, end=None, *, etag=""):
        spoilt.append(row.start + size * (len(spoilt) + 1) * 3 // 8)  # the first time in the front half, then behind it
        at = start
        async for piece in whole(name, start, end, etag=etag):
            yield damaged(piece, spoilt[-1] - at) if len(spoilt) < 3 else piece
            at += len(piece)

    target.read = spoils
    assert await get(made[1], "p") == data
    assert len(spoilt) == 3
    assert (await made[1].store.archived(slot, blob_id)).chunks[0].verified


async def test_what_a_client_is_told_is_what_it_is_whose_fault_and_what_to_do(made):
    await made.cold("p", MIB)
    made.bucket.fault("unavailable")
    with pytest.raises(ArchiveUnavailable) as caught:
        await get(made[1], "p")
    sentences = caught.value.detail.split(". ")
    assert len(sentences) == 3, caught.value.detail
    assert "only in the archive" in sentences[0] and "at fault" in sentences[1] and "Try again" in sentences[2]


async def test_a_copy_that_refuses_to_hear_of_damage_is_not_the_last_that_is_told(tmp_path):
    async with world(tmp_path, 4, chunk_bytes=MIB) as made:
        path = made.cluster.path(1)
        _, view = await made.cold(path, MIB)
        slot = made.cluster.slot(path)
        rows = made[4].parts.archive.rows
        known = await made[1].store.archived(slot, view.version.blob_id)
        first = rows._copies(slot)[0]
        call = rows._peers.call

        async def refused_there(node, request, *, timeout_s):
            if node == first:
                return Refused(incarnation="", reason="unsynced", ballot=BALLOT_ZERO, epoch=1)
            return await call(node, request, timeout_s=timeout_s)

        rows._peers.call = refused_there
        await rows.report(Course(), slot, view.version.blob_id, known.chunks[0])
        states = set()
        for node in made.cluster:
            if node.name not in (first, "n4"):
                told = await node.store.archived(slot, view.version.blob_id)
                states.add(told.chunks[0].state)
        assert DAMAGED in states


@pytest.mark.parametrize("how", ["damaged", "missing"])
async def test_an_object_that_is_damaged_or_gone_is_told_to_the_copies(made, how):
    _, view = await made.cold("p", 2 * MIB, alone=True)
    await made.cold("other", MIB)
    slot = made.cluster.slot("p")
    known = await made[1].store.archived(slot, view.version.blob_id)
    row = known.find(view.version.chunks[1].id)
    if how == "damaged":
        made.bucket.damage(row.target_path, row.start + 500_000)
    else:
        del made.bucket.objects[row.target_path]
    expected = ArchiveDamaged if how == "damaged" else ArchiveMissing
    with pytest.raises(expected) as caught:
        await get(made[1], "p")
    assert row.target_path in caught.value.detail
    if how == "missing":  # else it was seen behind the first byte
        assert set(caught.value.extra["failures"]) == {"n1", "n2", "n3"}
    now = await made[1].store.archived(slot, view.version.blob_id)
    assert now.find(row.chunk_id).state == DAMAGED
    assert now.find(view.version.chunks[0].id).verified


async def test_a_damaged_object_is_read_from_a_copy_that_could_not_be_asked_before(made):
    """n3 alone has the file, and is not connected when the reader begins; the archive's object is damaged in its second half."""
    data, view = await made.cold("p", MIB, (1, 2))
    known = await made[1].store.archived(made.cluster.slot("p"), view.version.blob_id)
    row = known.chunks[0]
    made.bucket.damage(row.target_path, row.end - 1000)
    reachable = made[1].peers.reachable
    made[1].peers.reachable = lambda node: node != "n3" and reachable(node)
    assert await get(made[1], "p") == data


async def test_another_place_of_the_chunk_is_found_at_another_copy(made):
    data, view = await made.cold("p", MIB)
    slot = made.cluster.slot("p")
    known = await made[1].store.archived(slot, view.version.blob_id)
    made.bucket.damage(known.chunks[0].target_path, known.chunks[0].end - 1000)
    made.clock.ahead_s += 10
    await made.evict(view, ())
    again = await _sent_again(made, view, data)
    await made.take(view, again, (2,))
    assert await get(made[1], "p") == data


async def _sent_again(made: World, view, data: bytes):
    from archive.packs import Item

    chunk = view.version.chunks[0]
    item = Item(chunk=chunk, slot=0, blob_id=view.version.blob_id, path="p", version=1, index=0)
    return await made.upload([(item, data)])


async def test_nobody_knows_of_it_is_said_as_ever(made):
    _, view = await made.stored("p", MIB)
    for node in made.cluster:
        node.store.corrupt_chunk(made.cluster.slot("p"), view.version.blob_id, view.version.chunks[0].id)
    with pytest.raises(ClusterError) as caught:
        await get(made[1], "p")
    assert caught.value.code == "bytes-unavailable"


async def test_what_every_disk_lost_and_the_archive_has_is_served_and_mended(made):
    """Not evicted: all three rotted. Readers get it, and the copies get it back."""
    data, view = await made.stored("p", MIB)
    await made.take(view, await made.send(view))
    for node in made.cluster:
        node.store.corrupt_chunk(made.cluster.slot("p"), view.version.blob_id, view.version.chunks[0].id)
    assert await get(made[1], "p") == data
    await made[1].pull()
    assert made[1].puller.unrecoverable(made.cluster.slot("p")) == 0
    gets = made.gets()
    made.means["n1"].cache._files.clear()
    assert await get(made[1], "p", consistency="local") == data
    assert made.gets() == gets


async def test_head_needs_no_bytes(made):
    await made.cold("p", MIB)
    assert (await look(made[1], "p")).version.size == MIB
    assert made.gets() == 0


async def test_explain_tells_who_lives_by_the_archive_and_where_it_is(made):
    _, view = await made.cold("p", 2 * MIB, (1, 2), alone=True)
    told = await made[1].objects.explain("p")
    (version,) = told["versions"]
    assert version["copies"] == {"n1": "archived", "n2": "archived", "n3": "all"}
    assert {place["chunk"] for place in version["archive"]} == {chunk.id for chunk in view.version.chunks}
    for place in version["archive"]:
        assert place["object"] in made.bucket.objects and place["state"] == "verified" and place["end"] > place["start"]
    assert told["healthy"]
    health = made[1].parts.health.own()
    (slot,) = (one for one in health.slots if one.slot == made.cluster.slot("p"))
    assert (slot.wanted, slot.evicted, slot.evicted_bytes) == (0, 1, 2 * MIB)


async def test_explain_blames_the_archive_and_not_a_disk_for_what_was_damaged_there(made):
    await made.cold("p", MIB)
    for name in list(made.bucket.objects):
        if name.startswith(("packs/", "chunks/")):
            made.bucket.damage(name, 20_000)
    with pytest.raises(AmberError):
        await get(made[1], "p")
    advice = ""
    async with asyncio.timeout(30):
        while "amberblob archive verify" not in advice:
            await asyncio.sleep(0.02)
            advice = (await made[1].objects.explain("p"))["advice"]
    assert "rotted" not in advice


async def test_an_archive_that_is_known_to_be_down_is_not_waited_for_as_long_and_is_noticed_when_it_is_back(
    made, monkeypatch
):
    data, _ = await made.cold("p", MIB)
    made.bucket.fault("hang")
    made[1].parts.archive.reach.failed(ArchiveUnavailable("it does not answer"))
    with monkeypatch.context() as patched, pytest.raises(ArchiveUnavailable) as caught:
        patched.setattr(reads_module, "DOWN_PATIENCE_S", 0.05)
        await get(made[1], "p")
    assert "was not reached lately" in caught.value.detail
    made.bucket.heal()
    # It is still known to be down, and this machine may be slow.
    monkeypatch.setattr(reads_module, "DOWN_PATIENCE_S", PATIENCE_S)
    assert await get(made[1], "p") == data


async def test_on_real_disks(tmp_path):
    async with world(tmp_path, on_disk=True) as made:
        bodies = {}
        for at, size in enumerate((5, CHUNK + 1, 70 * CHUNK)):
            bodies[f"p{at}"], _ = await made.cold(f"p{at}", size)
        for number in (1, 2):
            for path, data in bodies.items():
                assert await get(made[number], path) == data
                assert await get(made[number], path, consistency="local") == data
        for number in (1, 2, 3):
            assert sum(made[number].store.tally(slot).evicted for slot in range(8)) == 3
            status = await restore(made, number)
            assert status.failures == 0 and status.counts["restored"] == 3
            assert sum(made[number].store.tally(slot).evicted for slot in range(8)) == 0
        made.bucket.objects.clear()
        for path, data in bodies.items():
            assert await get(made[3], path, consistency="local") == data


async def test_an_older_place_by_which_another_copy_lives_serves_when_the_newer_one_is_damaged(made):
    """One was away while the others took to a newer upload, and heard only that it is damaged: it keeps what it has."""
    data, view = await made.cold("p", CHUNK + 1)
    slot, blob_id = made.cluster.slot("p"), view.version.blob_id
    for number in (1, 3):
        store, facts = made[number].store, made[number].parts.archive.ground.facts
        blob = await store.archived(slot, blob_id)
        newer = [replace(row, target_path="packs/newer", archived_at_ms=row.archived_at_ms + 1) for row in blob.chunks]
        facts.take(slot, blob_id, newer, at_ms=1)
        facts.take(slot, blob_id, [replace(row, state=DAMAGED) for row in newer], at_ms=1)
        assert not await made.evicted(view, number)
    assert await made.evicted(view, 2)
    assert await get(made[1], "p") == data
