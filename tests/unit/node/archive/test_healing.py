"""Copies that lack bytes which others gave up, or which only the archive has."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from amberblob.mutations import Aborted
from archive.targets.memory import Fault
from chunkstore.interface import BlobState
from node.protocol.operations import Finish
from tests.unit.node.archive.kit import World, world
from tests.unit.node.healing.healing_kit import healed, round_of
from tests.unit.node.healing.test_moving import SLOT, member, repair, route_is
from tests.unit.node.objects.kit import CHUNK, STAGED, content, get, put

SIZES = [5, STAGED, 70 * CHUNK]


@pytest.fixture
async def made(tmp_path):
    async with world(tmp_path, slots=1) as running:
        yield running


async def lost(made: World, number: int, view) -> None:
    """The bytes of a version are not there any more, and the copy knows it."""
    store = made[number].store
    store.lose_bytes(SLOT, view.version.blob_id)
    await store.set_wanted(SLOT, "p", view.version, damaged=False)
    made[number].puller.look_again()


async def tried(made: World, number: int) -> None:
    """The puller has done what can be done."""
    for _ in range(30):
        await made[number].puller.step()
        made.clock.ahead_s += 1.0


async def test_a_copy_that_lost_its_memory_lives_by_the_rows_of_the_others(made):
    bodies = {}
    for at, size in enumerate(SIZES * 3):
        data, _ = await made.cold(f"p{at}", size)
        bodies[f"p{at}"] = data
    warm, _ = await made.stored("warm", STAGED)
    made[2].store.lose_slot(SLOT, "01FRESH")
    assert await healed(made.cluster) < 20
    assert made.received() < 1000, "the bucket is not read for that, but for a probe"
    assert made[2].store.tally(SLOT).evicted == len(bodies)
    made.cluster.net.down = {"n1", "n3"}
    for path, data in bodies.items():
        assert await get(made[2], path, consistency="local") == data
    assert await get(made[2], "warm", consistency="local") == warm


@pytest.mark.parametrize("size", SIZES)
async def test_the_puller_asks_instead_of_fetching(made, size):
    """Before rows were followed: it hears it from the copy that it asks for the bytes."""
    data, view = await made.stored("p", size)
    await made.take(view, await made.send(view), (1, 3))
    await made.evict(view, (1, 3))
    await lost(made, 2, view)
    await made[2].pull()
    assert await made.evicted(view, 2) and made[2].puller.waiting == 0
    assert made[2].store.tally(SLOT).wanted == 0
    if view.version.manifest_id is None:
        assert made.gets() == 0
    made.cluster.net.down = {"n1", "n3"}
    assert await get(made[2], "p", consistency="local") == data


async def test_rows_that_do_not_fit_into_one_answer_are_asked_for_until_all_are_here(made, monkeypatch):
    monkeypatch.setattr("node.archive.answers.LINES_BYTES_MAX", 5000)
    monkeypatch.setattr("node.archive.healing.CHUNKS_ASKED", 20)
    data, view = await made.stored("p", 70 * CHUNK)
    await made.take(view, await made.send(view), (1, 3))
    await made.evict(view, (1, 3))
    await lost(made, 2, view)
    received = made.received()
    await made[2].pull()
    assert await made.evicted(view, 2) and made[2].puller.waiting == 0
    assert made.received() - received < CHUNK, "only the manifest was fetched"
    made.cluster.net.down = {"n1", "n3"}
    assert await get(made[2], "p", consistency="local") == data


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_blob_that_was_given_up_here_does_not_live_by_the_last_of_the_rows(tmp_path, monkeypatch, on_disk):
    """Rows that do not fit into one answer come in parts, and those that came first are passed over."""
    monkeypatch.setattr("node.archive.answers.LINES_BYTES_MAX", 5000)
    monkeypatch.setattr("node.archive.healing.CHUNKS_ASKED", 20)
    async with world(tmp_path, 4, slots=1, replicas=3, on_disk=on_disk) as made:
        _, view = await made.stored("p", 70 * CHUNK)
        await made.take(view, await made.send(view), (1, 3))
        await made.evict(view, (1, 3))
        store, blob_id = made[4].store, view.version.blob_id
        await store.durable(store.apply(Aborted(SLOT, blob_id)))
        archived = made[4].puller.archived
        assert archived is not None
        adopted = await archived.adopt(SLOT, view.version, ["n1", "n3"])
        rows = await store.archived(SLOT, blob_id)
        assert not adopted and rows is None, f"{len(rows.chunks)} of 71 rows"
        assert await store.blob_state(SLOT, blob_id) is BlobState.ABORTED


async def test_bytes_that_another_copy_has_are_fetched_from_there(made):
    data, view = await made.stored("p", STAGED)
    await made.take(view, await made.send(view))
    await lost(made, 2, view)
    await made[2].pull()
    assert not await made.evicted(view, 2) and made.gets() == 0
    made.cluster.net.down = {"n1", "n3"}
    assert await get(made[2], "p", consistency="local") == data


@pytest.mark.parametrize("size", SIZES)
async def test_what_no_disk_has_comes_from_the_archive_and_is_installed(made, size):
    data, view = await made.stored("p", size)
    await made.take(view, await made.send(view))
    for number in (1, 2, 3):
        await lost(made, number, view)
    for node in made.cluster:
        await node.pull()
        assert node.puller.waiting == 0 and node.puller.unrecoverable(SLOT) == 0
    gets = made.gets()
    for number in (1, 2, 3):
        assert not await made.evicted(view, number)
        assert await get(made[number], "p", consistency="local") == data
    assert made.gets() == gets


@pytest.mark.parametrize("size", [5, 3 * CHUNK])
async def test_unrecoverable_is_said_only_when_the_archive_lacks_it_too(made, size):
    _, view = await made.stored("p", size)
    _, other = await made.stored("other", STAGED)
    await made.send(other)
    await made.take(view, await made.send(view))
    for number in (1, 2, 3):
        await lost(made, number, view)
    made.bucket.fault("unavailable")
    await tried(made, 1)
    assert made[1].puller.unrecoverable(SLOT) == 0 and made[1].puller.waiting == 1
    made.bucket.heal()
    kept = {name: made.bucket.objects.pop(name) for name in made.bucket.names("packs/") if _is_of(made, name, view)}
    assert kept
    made.clock.ahead_s += 600
    await tried(made, 1)
    assert made[1].puller.unrecoverable(SLOT) == 1


def _is_of(made: World, name: str, view) -> bool:
    return view.version.blob_id.encode() in _index(made.bucket.objects[name].content)


def _index(content_: bytes) -> bytes:
    from archive.packs import FOOTER_BYTES, TAIL_BYTES, read_footer, read_index

    footer = read_footer("x", content_[-TAIL_BYTES:], len(content_))
    entries = read_index("x", footer, content_[footer.start : len(content_) - FOOTER_BYTES])
    return b" ".join(entry.blob_id.encode() for entry in entries)


async def test_a_damaged_row_is_passed_over_and_the_copy_asks_for_the_bytes(made):
    """n1 and n3 gave the bytes up, n2 did not; what is in the bucket is damaged: a reader finds out, and all are whole again."""
    data, view = await made.cold("p", STAGED, (1, 3))
    await made.cold("other", STAGED)
    known = await made[1].store.archived(SLOT, view.version.blob_id)
    made.cluster.net.down = {"n2"}
    for row in known.chunks:
        made.bucket.damage(row.target_path, row.end - 10)
    with pytest.raises(Exception) as caught:
        await get(made[1], "p")
    assert caught.value.code == "archive-damaged"
    made.cluster.net.heal()
    for _ in range(6):
        await round_of(made.cluster)
    assert not await made.evicted(view, 1)
    for number in (1, 2, 3):
        assert await get(made[number], "p", consistency="local") == data


@pytest.mark.parametrize("size", [5, STAGED])
async def test_an_undecided_evicted_head_is_accepted_by_its_rows(made, size):
    """n3 missed the write; the others gave its bytes up; now a round has to bring the record there."""
    for kind in ("StageOpen", "Prepare", "Commit", "Learn"):
        made.cluster.net.fault(kind, "drop", to="n3")
    data = content(size)
    view = await put(made[1], "p", data)
    await made.cluster.settle()
    made.cluster.net.heal()
    await made.take(view, await made.send(view), (1, 2))
    await made.evict(view, (1, 2))
    electorate = made[1].routing.electorate(SLOT)
    applied = await made[1].coordinator.write(electorate, "p", Finish(again=True), hear="n3")
    await made.cluster.settle()
    assert applied.record.head == view.version
    assert made[3].register("p").accepted == applied.ballot
    assert await made.evicted(view, 3) and made.gets() == 0
    made.cluster.net.down = {"n1", "n2"}
    assert await get(made[3], "p", consistency="local") == data


async def test_a_slot_full_of_evicted_versions_moves_without_reading_the_bucket(tmp_path):
    async with world(tmp_path, 5, replicas=3, slots=1) as made:
        bodies = {}
        for at in range(12):
            bodies[f"p{at}"], _ = await made.cold(f"p{at}", SIZES[at % 2], (1, 2, 3))
        old = [member(made.cluster, number) for number in (1, 2, 3)]
        learners = (member(made.cluster, 4, 2), member(made.cluster, 5, 2))
        route_is(made.cluster, 2, old, learners=learners)
        await repair(made.cluster, 4, 5)
        for number in (4, 5):
            assert made[number].store.tally(SLOT).evicted == len(bodies)
            assert made[number].puller.waiting == 0
        route_is(made.cluster, 3, old, state="joint", next_voters=(old[0], *learners))
        await repair(made.cluster, 1, 2, 3, 4, 5)
        route_is(made.cluster, 4, [old[0], *learners])
        assert made.gets() == 0
        made.cluster.net.down = {"n2", "n3"}
        for path, data in bodies.items():
            assert await get(made[4], path) == data


async def test_a_body_staged_while_the_archive_hangs_is_no_concern_of_healing(made):
    made.targets["n2"].faults.append(Fault(what="hang"))
    _, view = await made.stored("p", STAGED)
    await lost(made, 2, view)
    await made[2].pull()
    assert made[2].puller.waiting == 0
    made.targets["n2"].faults[0].release()


@pytest.mark.parametrize("size", [5, 3 * CHUNK])
async def test_copies_that_are_only_away_are_waited_for_before_the_bucket_is_read(made, size):
    data, view = await made.stored("p", size)
    await made.take(view, await made.send(view))
    await lost(made, 2, view)
    made.cluster.net.down = {"n1", "n3"}
    for _ in range(3):
        await made[2].puller.step()
    assert made.gets() == 0 and made[2].puller.waiting == 1
    await tried(made, 2)
    assert made.gets() > 0 and made[2].puller.waiting == 0
    assert await get(made[2], "p", consistency="local") == data


async def test_a_copy_does_not_live_by_rows_of_a_part(made, monkeypatch):
    """Whoever says that it gave the bytes up, and tells too few rows, is wrong, and must not be followed in that."""
    _, view = await made.cold("p", 3 * CHUNK, (1, 3))
    healing = made[2].parts.archive.healing
    of = healing._rows.of

    async def few(node, slot, blob_id, chunk_ids=()):
        told = await of(node, slot, blob_id, chunk_ids)
        return replace(told, chunks=told.chunks[:1])

    monkeypatch.setattr(healing._rows, "of", few)
    store = made[2].store
    blank = replace(view.version, blob_id=made[2].coordinator.mint.mint())
    assert not await healing.adopt(SLOT, view.version, ["n1", "n3"])

    async def as_if(node, slot, blob_id, chunk_ids=()):
        return replace(
            await of(node, slot, view.version.blob_id, chunk_ids),
            chunks=(await of(node, slot, view.version.blob_id)).chunks[:1],
        )

    monkeypatch.setattr(healing._rows, "of", as_if)
    assert not await healing.adopt(SLOT, blank, ["n1", "n3"]), (
        "before its record comes there is nothing else to compare with"
    )
    assert await store.blob_state(SLOT, blank.blob_id) is BlobState.ABSENT
