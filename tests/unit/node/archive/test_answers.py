"""What other nodes are answered, and what they may ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.errors import AmberError, NoArchive, PeerError
from amberblob.limits import FRAME_BYTES_MAX
from amberblob.wire import Discard, Refused, StagedReply, encode
from amberblob.wire_archive import (
    ARCHIVED_LINES_MAX,
    FIND_ARCHIVED_MAX,
    ArchivedBlobReply,
    ArchivedLines,
    ArchiveHeads,
    ArchiveInfo,
    ArchiveJob,
    AskArchived,
    CondemnObjects,
    FindArchived,
    FoundArchived,
    ReadArchived,
    StageArchived,
)
from amberblob.wire_repair import HeadsReply, bitmap_of
from chunkstore.interface import BlobState
from node.archive.facts import NothingBarred
from node.archive.jobs import PROBLEMS_MAX, JobRequest, Progress
from node.archive.runner import KEPT_MAX
from tests.unit.node.archive.archive_kit import World, world
from tests.unit.node.objects.kit import content, put

NAME = "packs/2026/01/01/01ARZ3NDEKTSV4RRFFQ69G5FAV.pack"
SLOT = 0


def row(number: int = 1, **changes: Any) -> ArchivedChunk:
    made = ArchivedChunk(f"{number:064x}", 10, NAME, 20 * number, 20 * number + 15, "f" * 64, 5, 9)
    return replace(made, **changes)


def blob(it: World) -> str:
    return it[1].coordinator.mint.mint()


def stage(it: World, blob_id: str, *chunks: ArchivedChunk, epoch: int = 1, **more: Any) -> StageArchived:
    return StageArchived(slot=SLOT, epoch=epoch, blob_id=blob_id, chunks=chunks or (row(),), **more)


async def ask(it: World, message: Any) -> Any:
    return await it.archive(2).ground.ask("n1", message)


async def test_rows_are_staged_for_a_blob_that_is_not_known_yet_and_with_evicted_it_is_held(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        blob_id, store = blob(it), it[1].store
        assert isinstance(await ask(it, stage(it, blob_id)), StagedReply)
        assert await store.blob_state(SLOT, blob_id) is BlobState.ABSENT, "rows alone hold nothing"
        assert isinstance(await ask(it, stage(it, blob_id, row(2), evicted=True)), StagedReply)
        assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE
        reply = await ask(it, AskArchived(slot=SLOT, blob_id=blob_id))
        assert isinstance(reply, ArchivedBlobReply) and reply.blob is not None
        assert reply.blob.staged and set(reply.blob.chunks) == {row(1), row(2)}


async def test_rows_of_a_node_that_was_struck_off_are_refused(tmp_path: Path) -> None:
    """It may not have heard of it, and have rows of objects that were deleted: who deletes them asks the nodes of the table."""
    async with world(tmp_path, count=4) as it:
        table = it.cluster.table
        assert table is not None and "n4" not in table.route(SLOT).all_nodes
        blob_id, message = blob(it), stage(it, blob(it))
        assert isinstance(await it.archive(4).ground.ask("n1", stage(it, blob_id)), StagedReply)
        it.cluster.table = replace(table, nodes={node: info for node, info in table.nodes.items() if node != "n4"})
        reply = await it.archive(4).ground.ask("n1", message)
        assert isinstance(reply, Refused) and reply.reason == "not-a-member" and "n4" in reply.detail
        assert await it[1].store.archived(SLOT, message.blob_id) is None


async def test_what_was_not_read_back_stands_for_no_bytes_and_is_not_said_to(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for unseen in (row(2, state=0), row(2, state=DAMAGED)):
            blob_id = blob(it)
            with pytest.raises(PeerError, match="nobody has read back"):
                await ask(it, stage(it, blob_id, row(), unseen, evicted=True))
            assert await it[1].store.archived(SLOT, blob_id) is None


async def test_a_manifest_that_cannot_be_is_refused_before_any_row_is_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        blob_id = blob(it)
        with pytest.raises(PeerError, match="no manifest id"):
            await ask(it, stage(it, blob_id, evicted=True, manifest_id="x"))
        assert await it[1].store.blob_state(SLOT, blob_id) is BlobState.ABSENT


@pytest.mark.parametrize("evicted", [False, True])
async def test_rows_of_a_blob_that_was_given_up_are_not_said_to_be_taken(tmp_path: Path, evicted: bool) -> None:
    """Unless they stand for its bytes: then it is built anew."""
    async with world(tmp_path) as it:
        blob_id = blob(it)
        await ask(it, stage(it, blob_id, evicted=evicted))
        await ask(it, Discard(slot=SLOT, blob_id=blob_id))
        reply = await ask(it, stage(it, blob_id, evicted=evicted))
        if evicted:
            assert await it[1].store.blob_state(SLOT, blob_id) is BlobState.DURABLE
        else:
            assert isinstance(reply, Refused) and reply.reason == "aborted"


async def test_what_is_told_of_many_jobs_fits_a_frame_however_much_went_wrong(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        runner = it.archive(1).runner

        async def goes_wrong(request: JobRequest, progress: Progress) -> None:
            for number in range(100):
                progress.problem(f"{number} " + "é" * 5000)
            progress.say("é" * 10_000)

        runner._works["gc"] = goes_wrong
        for _ in range(KEPT_MAX):
            await it.run(1, request=it.request("gc"))
        info = await ask(it, ArchiveInfo())
        assert len(info.info) < FRAME_BYTES_MAX
        listed = await ask(it, ArchiveJob(action="status"))
        assert len(listed.jobs) < FRAME_BYTES_MAX
        newest = runner.statuses()[-1].request.job
        one = await ask(it, ArchiveJob(action="status", job=newest))
        assert len(msgspec.json.decode(one.jobs)[0]["problems"]) == PROBLEMS_MAX
        assert msgspec.json.decode(one.jobs)[0]["failures"] == 100


async def test_what_stages_bytes_refuses_rows_by_the_same_rules(tmp_path: Path) -> None:
    async with world(tmp_path, count=4) as it:
        stranger = it.cluster.nodes["n4"].routing
        assert not stranger.is_member(SLOT)
        with pytest.raises(PeerError) as caught:
            await it.archive(2).ground.ask("n4", stage(it, blob(it), row(start=-1)))
        assert caught.value.code == "bad-request"
        reply = await it.archive(2).ground.ask("n4", stage(it, blob(it)))
        assert isinstance(reply, Refused) and reply.reason == "not-a-member"


async def test_rows_are_durable_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as it:
        waited: list[int] = []
        durable = it[1].store.durable

        async def noting(position: int) -> None:
            waited.append(position)
            await durable(position)

        monkeypatch.setattr(it[1].store, "durable", noting)
        await ask(it, stage(it, blob(it)))
        assert waited and waited[-1] > 0


@pytest.mark.parametrize(
    "bad",
    [
        {"chunk_id": "x"},
        {"start": 30},
        {"target_path": ""},
        {"target_path": "x" * 5000},
        {"head": "x"},
        {"length": -1},
    ],
)
async def test_rows_that_cannot_be_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    async with world(tmp_path, count=1, replicas=1) as it:
        with pytest.raises(PeerError) as caught:
            await it.archive(1).ground.ask("n1", stage(it, blob(it), row(end=30, **{"start": 20, **bad})))
        assert caught.value.code == "bad-request"


async def test_rows_of_an_object_that_is_being_deleted_are_refused(tmp_path: Path) -> None:
    class Bars(NothingBarred):
        def bars(self, target_path: str) -> bool:
            return target_path == NAME

    async with world(tmp_path) as it:
        it.archive(1).ground.facts.barred = Bars()
        reply = await ask(it, stage(it, blob(it), row(), row(2, target_path="packs/other")))
        assert isinstance(reply, Refused) and reply.reason == "bytes-missing"
        await it.archive(1).ground.means.state.learn([row()])
        found = await ask(it, FindArchived(chunk_ids=(row().chunk_id,)))
        assert found == FoundArchived(chunks=())


async def test_heads_and_pages(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        view = await put(it[1], it.cluster.path(1), content(100))
        await it.cluster.settle()
        slot = it.cluster.slot(it.cluster.path(1))
        facts, store = it.archive(1).ground.facts, it[1].store
        rows = [row(number) for number in range(1, 6)]
        await store.durable(facts.take(slot, view.version.blob_id, rows, at_ms=1))
        heads = await ask(it, ArchiveHeads(slots=bitmap_of([slot, 7])))
        assert isinstance(heads, HeadsReply) and heads.incarnation == store.disk_id
        assert heads.heads == (5).to_bytes(8, "little") + (0).to_bytes(8, "little")
        page = await ask(it, ReadArchived(slot=slot, incarnation=store.disk_id, after=1, limit=2))
        assert isinstance(page, ArchivedLines) and page.more and [line.seq for line in page.lines] == [2, 3]
        page = await ask(it, ReadArchived(slot=slot, incarnation=store.disk_id, after=3))
        assert not page.more and len(page.lines) == 2
        other = await ask(it, ReadArchived(slot=slot, incarnation="another", after=0))
        assert (other.incarnation, other.lines, other.more) == (store.disk_id, (), False)


async def test_an_answer_fits_a_frame_however_long_the_names_are(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        view = await put(it[1], it.cluster.path(1), content(100))
        await it.cluster.settle()
        slot, store = it.cluster.slot(it.cluster.path(1)), it[1].store
        rows = [row(number, target_path="packs/" + "é" * 500) for number in range(1, 3000)]
        await store.durable(it.archive(1).ground.facts.take(slot, view.version.blob_id, rows, at_ms=1))
        page = await ask(it, ReadArchived(slot=slot, incarnation=store.disk_id, after=0, limit=ARCHIVED_LINES_MAX))
        assert page.more and 0 < len(page.lines) < 2999
        assert len(encode(page)) < FRAME_BYTES_MAX


async def test_places_are_found_in_the_index_but_for_damaged_ones(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        known = [row(1), row(2, state=0), row(3, state=DAMAGED)]
        await it.archive(1).ground.means.state.learn(known)
        reply = await ask(it, FindArchived(chunk_ids=tuple(one.chunk_id for one in known)))
        assert set(reply.chunks) == {row(1), row(2, state=0)}
        with pytest.raises(PeerError):
            await ask(it, FindArchived(chunk_ids=tuple(f"{number:064x}" for number in range(FIND_ARCHIVED_MAX + 1))))


@pytest.mark.parametrize(
    "message",
    [
        ArchiveHeads(slots=b"\x01" * 9000),
        AskArchived(slot=1, blob_id="x"),
        FindArchived(chunk_ids=("x",)),
        CondemnObjects(names=(), token=""),
        ArchiveJob(action="start", request=b"{}"),
        ArchiveJob(action="start", request=b"\xff"),
    ],
)
async def test_questions_that_make_no_sense_are_refused(tmp_path: Path, message: Any) -> None:
    async with world(tmp_path, count=1, replicas=1) as it:
        with pytest.raises(PeerError) as caught:
            await it.archive(1).ground.ask("n1", message)
        assert caught.value.code in ("bad-request", "wire-error")


async def test_a_node_without_an_archive_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, archives=1) as it:
        for message in (ArchiveInfo(), ArchiveHeads(slots=b"\x01"), ArchiveJob(action="status")):
            with pytest.raises(PeerError) as caught:
                await it.archive(1).ground.ask("n2", message)
            assert caught.value.code == NoArchive.code and "[archive] target" in caught.value.detail
        assert issubclass(NoArchive, AmberError)
