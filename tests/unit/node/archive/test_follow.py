"""Rows reach the other copies, and the node's own index."""

from __future__ import annotations

from pathlib import Path

import pytest

from amberblob.archives import ArchivedChunk, ArchiveLine
from amberblob.ids import content_hash
from amberblob.manifest import Version
from amberblob.mutations import Installed
from amberblob.wire import Reply, Request
from amberblob.wire_archive import ArchivedLines
from amberblob.wire_repair import HeadsReply
from node.archive.facts import NothingBarred
from node.archive.followed import Followed
from node.archive.ground import Ground
from tests.unit.node.archive.archive_kit import EVICT, World, world
from tests.unit.node.objects.kit import content, put


def row_of(version: Version, *, at_ms: int = 5, name: str = "packs/2026/01/01/A.pack", state: int = 9) -> ArchivedChunk:
    chunk = version.chunks[0]
    return ArchivedChunk(chunk.id, chunk.len, name, 16, 16 + chunk.len, content_hash(b"head"), at_ms, state)


async def given(it: World, index: int, path: str, version: Version, row: ArchivedChunk) -> None:
    """A row comes to that node's copy."""
    facts = it.archive(index).ground.facts
    position = facts.take(it.cluster.slot(path), version.blob_id, [row], at_ms=1)
    await it[index].store.durable(position)


async def installed(it: World, source: int, index: int, path: str) -> None:
    """What one copy knows of a path comes to another, without bytes."""
    slot = it.cluster.slot(path)
    [item] = await it[source].store.items(slot, [path])
    position = it[index].store.apply(
        Installed(slot=slot, path=path, ballot=item.ballot, record=item.record, rows=item.rows)
    )
    await it[index].store.durable(position)


async def placed(it: World, path: str, size: int = 5000) -> Version:
    view = await put(it[1], path, content(size))
    await it.cluster.settle()
    return view.version


async def test_a_row_is_told_once_and_is_no_news_afterwards(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        version = await placed(it, path)
        await given(it, 1, path, version, row_of(version))
        await it.follow()
        await it.follow()
        for index in (1, 2, 3):
            blob = await it[index].store.archived(it.cluster.slot(path), version.blob_id)
            assert blob is not None and blob.chunks == (row_of(version),)
        assert [it.archive(index).follower.counts.news for index in (1, 2, 3)] == [0, 1, 1]
        asked = it.cluster.net.count("ReadArchived")
        await it.follow()
        assert it.cluster.net.count("ReadArchived") == asked, "nothing is read when nothing came"
        assert [parts.follower.behind for parts in it.archives()] == [0, 0, 0]


async def test_the_index_by_chunk_id_follows_the_own_copies(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        version = await placed(it, path)
        await given(it, 1, path, version, row_of(version))
        await it.follow()
        for index in (1, 2, 3):
            state = it.archive(index).ground.means.state
            assert await state.find([version.chunks[0].id]) == [row_of(version)]


async def test_cursors_outlive_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        version = await placed(it, path)
        await given(it, 1, path, version, row_of(version))
        await it.follow()
        await it.follow()
        asked = it.cluster.net.count("ReadArchived")
        it.cluster.start("n2")
        await it.follow(2)
        assert it.cluster.net.count("ReadArchived") == asked
        assert it.archive(2).follower.counts.lines == 0


async def test_a_copy_that_began_anew_is_read_from_its_beginning_and_reads_the_others_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        slot = it.cluster.slot(path)
        version = await placed(it, path)
        await given(it, 1, path, version, row_of(version))
        await it.follow()
        await it.follow()
        before = it.archive(1).follower._copies[slot, "n2"].incarnation
        await it[2].store.begin_anew(slot)
        await it.follow()
        state = it.archive(2).ground.means.state
        now = it[2].store.slot_state(slot).incarnation
        assert (await state.cursors())[slot, "n2"][0] == now != before
        assert it.archive(2).follower._copies[slot, "n1"].waiting, "the row is read again, and waits for its version"


async def test_rows_of_unknown_blobs_stop_the_cursor_and_not_the_work(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        first = it.cluster.path(1)
        slot = it.cluster.slot(first)
        second = next(path for path in (f"q/{index}" for index in range(999)) if it.cluster.slot(path) == slot)
        it.cluster.net.down.add("n3")
        unknown = await placed(it, first)
        it.cluster.net.down.clear()
        known = (await put(it[1], second, content(70))).version
        await it.cluster.settle()
        await given(it, 1, first, unknown, row_of(unknown))
        await given(it, 1, second, known, row_of(known))
        assert await it[3].store.referred(slot, unknown.blob_id) is None
        await it.follow(3)
        assert await it[3].store.archived(slot, known.blob_id) is not None
        assert await it[3].store.archived(slot, unknown.blob_id) is None
        assert (await it.archive(3).ground.means.state.cursors()).get((slot, "n1"), ("", 0))[1] == 0
        assert it.archive(3).follower.behind == 1
        await installed(it, 1, 3, first)
        await it.follow(3)
        assert await it[3].store.archived(slot, unknown.blob_id) is not None
        assert it.archive(3).follower.behind == 0
        assert (await it.archive(3).ground.means.state.cursors())[slot, "n1"][1] == 2


async def test_a_row_of_a_condemned_object_is_kept_out_and_waits(tmp_path: Path) -> None:
    class Bars(NothingBarred):
        names = {"packs/2026/01/01/A.pack"}

        def bars(self, target_path: str) -> bool:
            return target_path in self.names

    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        version = await placed(it, path)
        barred = it.archive(2).ground.facts.barred = Bars()
        await given(it, 1, path, version, row_of(version))
        await it.follow()
        assert (it.rows(1, path), it.rows(2, path), it.rows(3, path)) == (1, 0, 1)
        barred.names.clear()
        await it.follow(2)
        assert it.rows(2, path) == 1, "it was reprieved"


async def test_a_copy_that_lacks_the_bytes_lives_by_the_rows_of_one_that_does(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        path = it.cluster.path(1)
        slot = it.cluster.slot(path)
        it.cluster.net.down.add("n3")
        version = await placed(it, path)
        it.cluster.net.down.clear()
        await it.run(1)
        assert it.evicted(1) == 1
        await installed(it, 1, 3, path)
        assert it[3].store.tally(slot).wanted == 1
        await it.follow(3)
        assert it[3].store.tally(slot).wanted == 0
        assert await it[3].store.is_evicted(slot, version.blob_id)
        assert it.archive(3).follower.counts.adopted == 1


async def test_nodes_without_an_archive_are_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path, archives=2) as it:
        path = it.cluster.path(1)
        version = await placed(it, path)
        await given(it, 1, path, version, row_of(version))
        for _ in range(2):
            await it.follow(1, 2)
        assert it.rows(2, path) == 1 and it.rows(3, path) == 0


async def test_what_waits_for_long_is_read_again_and_forgotten_if_it_is_gone_there(tmp_path: Path) -> None:
    async with world(tmp_path, replicas=2, count=2) as it:
        path = it.cluster.path(1)
        slot = it.cluster.slot(path)
        row = ArchivedChunk("1" * 64, 3, "packs/x", 16, 20, "2" * 64, 5, 9)
        lines = [ArchiveLine(seq=1, blob_id=it[1].coordinator.mint.mint(), chunk=row)]
        follower = it.archive(2).follower
        await follower.step()
        copy = follower._copies[slot, "n1"] = Followed(it[1].store.slot_state(slot).incarnation, 1, head=1)
        await follower._merging.take(slot, "n1", copy, lines)
        assert copy.waiting and copy.cursor == 0
        it.cluster.clock.ahead_s += 700
        await it.follow(2)
        assert not copy.waiting and follower.behind == 0


async def test_rows_that_come_while_a_page_is_on_its_way_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may be empty, as rows go with their versions; what is heard of meanwhile was not in it."""
    async with world(tmp_path) as it:
        slot, follower = it.cluster.slot(it.cluster.path(1)), it.archive(2).follower
        copy = follower._copies[slot, "n1"] = Followed(it[1].store.slot_state(slot).incarnation, 0, head=1)

        async def ask(ground: Ground, node: str, request: Request, **more: float) -> Reply:
            copy.head = 2
            return ArchivedLines(incarnation=copy.incarnation, lines=())

        monkeypatch.setattr(Ground, "ask", ask)
        assert await follower._page(slot, "n1", copy)
        assert (copy.at, copy.has_more) == (1, True)


@pytest.mark.parametrize("number", [2**62 + 1, 2**64 - 1])
async def test_numbers_that_no_table_can_hold_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async with world(tmp_path) as it:
        slot, follower = it.cluster.slot(it.cluster.path(1)), it.archive(2).follower
        incarnation = it[1].store.slot_state(slot).incarnation
        follower._heard(
            "n1", [slot], HeadsReply(incarnation=incarnation, heads=number.to_bytes(8, "little"), incarnations={})
        )
        assert follower.behind == 0
        copy = follower._copies[slot, "n1"] = Followed(incarnation, 0, head=1)
        version = await placed(it, it.cluster.path(1))
        line = ArchiveLine(number, version.blob_id, row_of(version))

        async def ask(ground: Ground, node: str, request: Request, **more: float) -> Reply:
            return ArchivedLines(incarnation=incarnation, lines=(line,))

        monkeypatch.setattr(Ground, "ask", ask)
        assert not await follower._page(slot, "n1", copy)
        assert copy.at == 0 and follower.counts.failures == 1
