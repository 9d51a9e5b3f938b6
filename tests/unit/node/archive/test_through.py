"""Writes that are archived before they are acknowledged."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from amberblob.config import ArchiveRule, ArchiveSection
from amberblob.errors import (
    ArchiveUnavailable,
    ClusterError,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
)
from amberblob.manifest import decode_manifest
from archive.gathered import GatheredSlot
from archive.reading import read_chunk
from archive.segments import ArchivedEntry, PartReader, PathEntry, decode_cluster
from archive.targets.memory import Fault
from archive.written import merged
from node import coordinator
from node.archive import through
from node.objects.bytes import Reading
from node.protocol.operations import Conditions
from tests.unit.node.archive.kit import World, world
from tests.unit.node.driver.routes_kit import anew, lag
from tests.unit.node.healing.test_moving import member, route_is
from tests.unit.node.objects.kit import CHUNK, PATIENCE_S, STAGED, content, delete, get, look, put, until

SECTION = ArchiveSection(
    target="file:///archive",
    timeout_s=30.0,
    rules=(ArchiveRule(prefix="w/", action="write-through"), ArchiveRule(prefix="", action="archive")),
)
CLUSTER = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
async def made(tmp_path):
    async with world(tmp_path, section=SECTION) as running:
        yield running


def told(made: World) -> dict[int, GatheredSlot]:
    """What the bucket alone tells of all writes, as recover reads it."""
    slots: dict[int, GatheredSlot] = {}
    for name in made.bucket.names(f"meta/{CLUSTER}/through/"):
        content_ = made.bucket.objects[name].content
        line, _, parts = content_.partition(b"\n")
        reader = PartReader(name, len(line) + 1)
        for slot, entries in reader.feed(parts):
            known = slots.setdefault(slot, GatheredSlot())
            for entry in entries:
                match entry:
                    case PathEntry(item):
                        known.items[item.path] = merged(known.items.get(item.path), item)
                    case ArchivedEntry(blob_id, chunks):
                        known.learn(blob_id, chunks)
        reader.finish()
    return slots


async def recovered(made: World, path: str) -> dict[int, bytes]:
    """The versions of a path that the bucket alone gives back."""
    slot = told(made)[made.cluster.slot(path)]
    bodies: dict[int, bytes] = {}
    for row in slot.items[path].rows:
        rows = slot.rows(row)
        body = b""
        chunks = row.chunks
        if row.manifest_id is not None:
            chunks = decode_manifest(await whole(made, rows[row.manifest_id]))
        for chunk in chunks:
            body += await whole(made, rows[chunk.id])
        bodies[row.version] = body
    return bodies


async def whole(made: World, row) -> bytes:
    return b"".join([bytes(piece) async for piece in read_chunk(made.targets["n1"], row)])


@pytest.mark.parametrize("size", [0, 5, STAGED, 70 * CHUNK])
async def test_what_was_acknowledged_is_in_the_bucket_with_its_metadata(made, size):
    data = content(size)
    view = await put(made[1], "w/a", data, meta={"colour": "red"})
    gets = made.gets()
    assert await get(made[2], "w/a") == data
    assert made.gets() == gets, "the bytes stay on the disks"
    assert await recovered(made, "w/a") == {1: data}
    (row,) = told(made)[made.cluster.slot("w/a")].items["w/a"].rows
    assert row == view.version and row.meta == {"colour": "red"}
    name = f"meta/{CLUSTER}/cluster.json"
    assert decode_cluster(name, made.bucket.objects[name].content).slot_count == 8


async def test_every_copy_has_the_rows(made):
    view = await put(made[1], "w/a", content(STAGED))
    await made.cluster.settle()
    for number in (1, 2, 3):
        known = await made[number].store.archived(made.cluster.slot("w/a"), view.version.blob_id)
        assert {row.chunk_id for row in known.chunks} == {chunk.id for chunk in view.version.chunks}
        assert not known.staged and not known.evicted


async def test_other_paths_do_not_wait_for_the_archive(made):
    before = made.bucket.names()
    made.bucket.fault("unavailable")
    await put(made[1], "p", content(STAGED))
    assert made.bucket.names() == before


@pytest.mark.parametrize("size", [5, STAGED])
async def test_a_write_with_a_condition_is_not_begun_when_the_archive_took_too_long(made, monkeypatch, size):
    """Whoever asked has repeated it elsewhere by then, and may have been told there that the condition does not hold."""
    made[1].parts.archive.through._patience_s = 600.0
    fault = made.bucket.fault("hang", "put", "packs/*")
    absent = Conditions(absent=True)
    first = asyncio.create_task(put(made[1], "w/a", content(size), write_id="once", conditions=absent))
    plain = asyncio.create_task(put(made[1], "w/b", content(size), write_id="plain"))
    await until(lambda: fault.met)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + PATIENCE_S)
    fault.release()
    assert (await plain).version.version == 1
    with pytest.raises(NotReady) as caught:
        await first
    assert caught.value.code == "too-slow"
    await made.cluster.settle()
    assert not made.cluster.staged()
    assert made[1].store.tally(made.cluster.slot("w/a")).archive_staged == 0


async def test_versions_and_a_later_record(made):
    for number in range(3):
        await put(made[number + 1], "w/a", f"body {number}".encode())
    assert await recovered(made, "w/a") == {1: b"body 0", 2: b"body 1", 3: b"body 2"}
    item = told(made)[made.cluster.slot("w/a")].items["w/a"]
    assert item.record.revision == 3 and item.record.head.version == 3


async def test_those_that_come_at_once_share_packs_and_metadata(made):
    fault = made.bucket.fault("hang", "put")
    writes = [asyncio.ensure_future(put(made[1], f"w/{n}", f"body {n}".encode())) for n in range(40)]
    await until(lambda: fault.met)
    await asyncio.sleep(0.5)  # the others come
    fault.release()
    await asyncio.gather(*writes)
    assert len(made.bucket.names("packs/")) <= 4
    for n in range(40):
        assert await recovered(made, f"w/{n}") == {1: f"body {n}".encode()}


@pytest.mark.parametrize("size", [5, STAGED])
@pytest.mark.parametrize("what", ["unavailable", "hang"])
async def test_an_archive_that_is_down_or_too_slow_applies_nothing_and_leaves_nothing(made, size, what):
    fault = made.bucket.fault(what)
    through = made[1].parts.archive.through
    through._patience_s = 0.5
    with pytest.raises(ArchiveUnavailable) as caught:
        await put(made[1], "w/a", content(size))
    assert caught.value.status == 503 and "Nothing was written" in caught.value.detail
    through._patience_s = SECTION.timeout_s
    fault.release()
    made.bucket.heal()
    with pytest.raises(NotFound):
        await look(made[1], "w/a")
    await made.cluster.settle()
    assert not made.cluster.staged()
    for number in (1, 2, 3):
        assert made[number].store.tally(made.cluster.slot("w/a")).archive_staged == 0
    await put(made[1], "w/a", content(size))
    assert await recovered(made, "w/a") == {1: content(size)}


async def test_what_was_staged_and_cannot_be_read_for_the_archive_is_told_to_have_changed_nothing(made, monkeypatch):
    async def away(*args, **options):
        raise ClusterError("n2 and n3 cannot be reached.")

    with monkeypatch.context() as patched:
        patched.setattr(Reading, "chunk", away)
        with pytest.raises(QuorumUnavailable, match="Nothing was changed") as caught:
            await put(made[1], "w/a", content(STAGED))
    assert caught.value.status == 503 and "n2 and n3 cannot be reached" in caught.value.detail
    with pytest.raises(NotFound):
        await look(made[1], "w/a")
    await made.cluster.settle()
    assert not made.cluster.staged()
    await put(made[1], "w/a", content(STAGED))
    assert await recovered(made, "w/a") == {1: content(STAGED)}


async def test_metadata_that_does_not_get_there_is_an_unknown_outcome_and_a_retry_brings_it(made):
    made.targets["n1"].faults.append(Fault(what="unavailable", kind="put", name=f"meta/{CLUSTER}/through/*"))
    data = content(STAGED)
    with pytest.raises(OutcomeUnknown) as caught:
        await put(made[1], "w/a", data, write_id="once")
    assert caught.value.extra["version"] == 1
    assert await get(made[1], "w/a") == data, "it was applied"
    assert not told(made)
    made.targets["n1"].faults.clear()
    view = await put(made[1], "w/a", data, write_id="once", repeat=True)
    assert view.version.version == 1
    assert await recovered(made, "w/a") == {1: data}


async def test_a_retry_at_another_node_gets_the_first_answer(made):
    first = await put(made[1], "w/a", b"body", write_id="once")
    again = await put(made[2], "w/a", b"body", write_id="once", repeat=True)
    assert again == first
    assert await recovered(made, "w/a") == {1: b"body"}


@pytest.mark.parametrize("size", [5, STAGED])
async def test_a_condition_that_does_not_hold_sends_nothing_to_the_archive(made, size):
    await put(made[1], "w/a", b"there")
    before = len(made.bucket.objects)
    with pytest.raises(PreconditionFailed):
        await put(made[1], "w/a", content(size), conditions=Conditions(absent=True))
    assert len(made.bucket.objects) == before
    await made.cluster.settle()
    assert not made.cluster.staged()


async def test_a_condition_that_fails_in_the_round_leaves_no_metadata(made):
    """Another writer is quicker while the chunks are on their way."""
    fault = made.bucket.fault("hang", "put", "packs/*", times=1)
    slow = asyncio.ensure_future(put(made[1], "w/a", b"slow", conditions=Conditions(absent=True)))
    await until(lambda: fault.met)
    await put(made[2], "w/a", b"quick")
    fault.release()
    with pytest.raises(PreconditionFailed):
        await slow
    await made.cluster.settle()
    assert await recovered(made, "w/a") == {1: b"quick"}
    assert all(node.store.tally(made.cluster.slot("w/a")).archive_staged == 0 for node in made.cluster)


async def test_a_retry_of_an_applied_write_is_not_refused_by_the_hint(made):
    for number in range(20):
        await put(made[1], "w/a", f"body {number}".encode(), write_id=f"w{number}")
    view = await put(made[1], "w/a", b"body 0", write_id="w0", repeat=True, conditions=Conditions(absent=True))
    assert view.version.version == 1


async def test_a_quorum_that_is_away_applies_nothing(made):
    made.cluster.net.down = {"n2", "n3"}
    with pytest.raises(Exception) as caught:
        await put(made[1], "w/a", b"body")
    assert caught.value.code == "quorum-unavailable"
    made.cluster.net.heal()
    await made.cluster.settle()
    with pytest.raises(NotFound):
        await look(made[1], "w/a")
    assert not told(made)


@pytest.mark.parametrize("size", [5, STAGED])
async def test_a_node_that_was_struck_off_sends_nothing_of_what_is_archived_first(tmp_path, size):
    """Who deletes from the archive does not ask it any more, so nobody would take its rows, however often it tries."""
    async with world(tmp_path, section=SECTION, count=4) as made:
        table = made.cluster.table
        assert table is not None
        path = next(f"w/{number}" for number in range(99) if "n4" not in table.route_of(f"w/{number}").all_nodes)
        await put(made[4], path, b"before", write_id="before")
        nodes = {name: info for name, info in table.nodes.items() if name != "n4"}
        made.cluster.table = replace(table, nodes=nodes)
        names = made.bucket.names()
        for write_id, repeat in (("after", False), ("before", True)):
            with pytest.raises(NotReady) as caught:
                await put(made[4], path, content(size), write_id=write_id, repeat=repeat)
            assert caught.value.code == "not-ready" and "removed from the cluster" in caught.value.detail
        await made.cluster.settle()
        assert made.bucket.names() == names and not made.cluster.staged()
        assert await get(made[4], path) == b"before", "it answers who asks it"
        await put(made[4], "p", content(size))
        await put(made[1], path, content(size), write_id="after")
        assert await get(made[4], path) == content(size)


async def test_a_deleted_path_keeps_its_write_in_the_bucket_until_the_next_export(made):
    await put(made[1], "w/a", b"body")
    await delete(made[1], "w/a")
    assert await recovered(made, "w/a") == {1: b"body"}


@pytest.mark.parametrize("size", [5, STAGED])
async def test_the_slot_moves_while_the_chunks_are_on_their_way(tmp_path, size):
    """The rows are on a write quorum of the newer voters before it is acknowledged."""
    async with world(tmp_path, 5, section=SECTION, slots=1) as made:
        data = content(size)
        fault = made.bucket.fault("hang", "put", "packs/*", times=1)
        writing = asyncio.ensure_future(put(made[1], "w/a", data))
        await until(lambda: fault.met)
        route_is(made.cluster, 2, [member(made.cluster, number) for number in (3, 4, 5)])
        fault.release()
        view = await writing
        rows = [await made[number].store.archived(0, view.version.blob_id) for number in (3, 4, 5)]
        assert sum(known is not None and len(known.chunks) == len(view.version.chunks) for known in rows) >= 2
        assert await get(made[4], "w/a") == data
        assert await recovered(made, "w/a") == {1: data}


@pytest.mark.parametrize("size", [5, STAGED])
async def test_the_slot_moves_between_the_rows_and_the_round(tmp_path, size):
    async with world(tmp_path, 5, section=SECTION, slots=1) as made:
        data = content(size)
        rule = made.cluster.net.fault("Prepare", "hold")
        writing = asyncio.ensure_future(put(made[1], "w/a", data))
        await until(lambda: rule.hits)
        route_is(made.cluster, 2, [member(made.cluster, number) for number in (3, 4, 5)])
        made.cluster.net.heal()
        view = await writing
        rows = [await made[number].store.archived(0, view.version.blob_id) for number in (3, 4, 5)]
        assert sum(known is not None and len(known.chunks) == len(view.version.chunks) for known in rows) >= 2
        assert await get(made[4], "w/a") == data
        assert await recovered(made, "w/a") == {1: data}


async def test_a_client_that_goes_away_while_its_body_is_archived_leaves_nothing(made):
    fault = made.bucket.fault("hang", "put", "packs/*")
    writing = asyncio.ensure_future(put(made[1], "w/a", content(STAGED)))
    await until(lambda: fault.met)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    made.bucket.heal()
    await made.cluster.settle()
    assert not made.cluster.staged()
    assert all(node.store.tally(made.cluster.slot("w/a")).archive_staged == 0 for node in made.cluster)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("size", [5, STAGED])
async def test_rows_that_a_copy_took_which_the_route_does_not_name_go_to_the_next_routes(
    tmp_path, size, when, monkeypatch
):
    """n1 has not heard that n2's copy is a new one, and n3 is down: the two that are alive are enough for the write."""
    monkeypatch.setattr(
        coordinator, "NEWER_PATIENCE_S", PATIENCE_S
    )  # also if the machine stands still for some seconds
    monkeypatch.setattr(through, "STAGE_S", PATIENCE_S)
    async with world(tmp_path, 3, section=SECTION, slots=1) as made:
        nodes = made.cluster
        catch_up = lag(nodes, nodes[1])
        held = nodes.net.fault("StageArchived", "hold", to="n2", times=1)
        if when == "before":
            await anew(nodes, 0, nodes[2])
            nodes.net.down.add("n3")
            held.released.set()
        # The bytes of the larger one wait for the route, too.
        writing = asyncio.create_task(put(nodes[1], "w/a", content(size)))
        if when == "meanwhile":
            await until(lambda: held.hits)
            await anew(nodes, 0, nodes[2])
            nodes.net.down.add("n3")
            held.released.set()
        await asyncio.sleep(0.2)
        assert not writing.done()
        catch_up()
        assert (await writing).version.version == 1
        assert await get(nodes[2], "w/a") == content(size)


@pytest.mark.parametrize("size", [5, STAGED])
async def test_a_client_that_goes_away_while_rows_are_staged_leaves_none(made, size):
    held = made.cluster.net.fault("StageArchived", "hold", to="n2")
    writing = asyncio.create_task(put(made.cluster[1], "w/a", content(size)))
    await until(lambda: held.hits)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    held.released.set()
    await until(lambda: made.cluster.net.count("Discard") >= 3)
    with pytest.raises(NotFound):
        await look(made.cluster[3], "w/a")
