"""What a node notes down of the archive, and what happens when that is lost."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
import structlog

from amberblob.archives import DAMAGED, UPLOADED, ArchivedChunk
from amberblob.clock import SeededRandomness
from amberblob.errors import DiskFailed, DiskMismatch
from archive import state as module
from archive.state import JOBS_KEPT, ArchiveState, Mark, Part


class FixedClock:
    now_ms = 1_800_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return 0.0


SEEDS = iter(range(1_000_000))


async def opened(path: Path) -> ArchiveState:
    state = ArchiveState(path, clock=FixedClock(), randomness=SeededRandomness(next(SEEDS)))
    await state.open()
    return state


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive" / "archive.sqlite3"


def chunk(
    number: int = 1, target: str = "packs/a.pack", *, at: int = 100, state: int = 5, head: str = "h"
) -> ArchivedChunk:
    return ArchivedChunk(
        chunk_id=f"c{number}", length=10, target_path=target, start=number, end=number + 5, head=head, archived_at_ms=at, state=state,
    )  # fmt: skip


async def test_everything_is_there_again_after_a_restart(path):
    state = await opened(path)
    assert await state.cursor(3, "n2", "i1") == 0
    await state.set_cursors([(3, "n2", "i1", 7), (4, "n2", "i2", 1)])
    await state.learn([chunk(1), chunk(2)])
    await state.condemn(["packs/x"], "n1/1", Part.OTHERS)
    await state.save_job("J1", b"{}")
    await state.set_note("schedule", "{}")
    await state.save_heat([("b1", 5), ("b2", 9)])
    identity = state.identity
    await state.close()
    with pytest.raises(DiskFailed, match="is closed"):
        await state.jobs()

    state = await opened(path)
    assert state.identity == identity and identity
    assert await state.cursor(3, "n2", "i1") == 7
    assert await state.cursor(3, "n2", "another incarnation") == 0
    assert await state.cursors() == {(3, "n2"): ("i1", 7), (4, "n2"): ("i2", 1)}
    assert await state.find(["c1", "c2", "c3"]) == [chunk(1), chunk(2)]
    assert await state.marks() == [Mark("packs/x", "n1/1", Part.OTHERS, FixedClock.now_ms)]
    assert await state.jobs() == {"J1": b"{}"}
    assert (await state.note("schedule"), await state.note("other"), await state.note("identity")) == ("{}", "", "")
    assert await state.heat() == [("b2", 9), ("b1", 5)]
    await state.close()


async def test_of_two_places_the_later_is_known_and_what_is_damaged_is_not(path):
    state = await opened(path)
    await state.learn([chunk(1, "b", at=200), chunk(1, "a", at=100)])
    assert await state.find(["c1"]) == [chunk(1, "b", at=200)]
    await state.learn([chunk(1, "c", at=300, state=UPLOADED)])
    assert await state.find(["c1"]) == [], "not read back yet"
    assert await state.find(["c1"], verified=False) == [chunk(1, "c", at=300, state=UPLOADED)]
    await state.learn([chunk(1, "c", at=300, state=9)])
    assert await state.find(["c1"]) == [chunk(1, "c", at=300, state=9)]
    await state.learn([chunk(1, "b", at=200, state=DAMAGED)])
    assert await state.find(["c1"]) == [chunk(1, "c", at=300, state=9)], "another place"
    await state.learn(iter([chunk(1, "c", at=300, state=DAMAGED)]))
    assert await state.find(["c1"], verified=False) == []
    await state.learn([chunk(2, "s3://elsewhere/key", head="")])
    assert await state.find(["c2"], verified=False) == [], "its id names no content"
    await state.close()


async def test_many_chunks_are_found_at_once(path):
    state = await opened(path)
    await state.learn([chunk(number) for number in range(1300)])
    assert len(await state.find([f"c{number}" for number in range(0, 2600, 2)])) == 650
    await state.forget_objects(["packs/a.pack"])
    assert await state.find(["c1"]) == []
    await state.close()


async def test_who_was_away_for_long_knows_of_nothing_any_more(path):
    state = await opened(path)
    await state.learn([chunk(1), chunk(2, "packs/b.pack")])
    await state.forget_known()
    assert await state.find(["c1", "c2"], verified=False) == []
    await state.learn([chunk(1)])
    assert await state.find(["c1"]) == [chunk(1)]
    await state.close()


async def test_what_is_condemned_is_not_offered_and_not_learnt_again(path):
    state = await opened(path)
    await state.learn([chunk(1, "packs/x"), chunk(2, "packs/y")])
    assert await state.condemn(["packs/x"], "n1/1", Part.OTHERS) == state.identity
    assert await state.find(["c1", "c2"]) == [chunk(2, "packs/y")]
    await state.learn([chunk(1, "packs/x")])
    assert await state.find(["c1"]) == []
    await state.reprieve(["packs/x"], "n2/1", Part.OTHERS)
    await state.learn([chunk(1, "packs/x")])
    assert await state.find(["c1"]) == [], "another's token"
    await state.reprieve(["packs/x"], "n1/1", Part.OTHERS)
    await state.learn([chunk(1, "packs/x")])
    assert await state.find(["c1"]) == [chunk(1, "packs/x")]
    await state.close()


async def test_the_collectors_own_record_is_apart_from_its_answer(path):
    state = await opened(path)
    await state.condemn(["x", "y"], "n1/1", Part.ASKING)
    await state.condemn(["x", "y"], "n1/1", Part.OTHERS)
    await state.reprieve(["x"], "n1/1", Part.OTHERS)
    await state.decide(["y"], "n1/1")
    assert [(mark.name, mark.part) for mark in await state.marks()] == [
        ("x", Part.ASKING), ("y", Part.OTHERS), ("y", Part.DECIDED),
    ]  # fmt: skip
    await state.reprieve([], "n1/1", Part.ASKING)
    assert {mark.part for mark in await state.marks()} == {Part.OTHERS, Part.DECIDED}
    await state.close()


async def test_a_mark_is_on_the_disk_before_it_is_told(path, monkeypatch):
    """With synchronous=NORMAL a WAL is not synced by a commit, and a power cut takes the mark back."""
    state = await opened(path)
    seen: list[int] = []
    real = state._file.write

    async def write(work, *, durable=False):
        async def looked(db):
            rows = await db.execute_fetchall("PRAGMA synchronous")
            seen.append(next(iter(rows))[0])
            return await work(db)

        return await real(looked, durable=durable)

    monkeypatch.setattr(state._file, "write", write)
    await state.condemn(["x"], "t", Part.OTHERS)
    await state.decide(["x"], "t")
    await state.reprieve(["x"], "t", Part.OTHERS)
    await state.set_note("a", "b")
    assert seen == [2, 2, 2, 1]
    await state.close()


@pytest.mark.parametrize("ruin", ["all", "page", "gone"])
async def test_a_lost_file_begins_anew_under_another_identity(path, ruin):
    state = await opened(path)
    await state.condemn([f"packs/{number}" for number in range(500)], "t", Part.OTHERS)
    identity = state.identity
    await state.close()
    if ruin == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        keep = 0 if ruin == "all" else 4096
        path.write_bytes(data[:keep] + b"\xa5" * (len(data) - keep))
    with structlog.testing.capture_logs() as logs:
        state = await opened(path)
        assert await state.marks() == []
    assert state.identity not in ("", identity)
    await state.condemn(["z"], "t", Part.OTHERS)
    assert [mark.name for mark in await state.marks()] == ["z"]
    await state.close()
    aside = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    if ruin == "gone":
        assert not aside and not logs
    else:
        assert aside and aside[0].stat().st_size == len(data)
        assert logs[0]["event"] == "archive.state.damaged" and logs[0]["moved_to"] == aside[0].name


async def test_a_newer_file_is_left_alone(path):
    state = await opened(path)
    await state.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(DiskMismatch, match="schema version 99"):
        await opened(path)
    assert path.exists()


async def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    (tmp_path / "archive").write_text("in the way")
    with pytest.raises(DiskFailed, match="cannot be used"):
        await opened(tmp_path / "archive" / "archive.sqlite3")


async def test_a_caller_that_goes_away_does_not_leave_half_of_it(path):
    state = await opened(path)
    task = asyncio.create_task(state.condemn([str(number) for number in range(2000)], "t", Part.OTHERS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await state.marks()) in (0, 2000)
    await state.set_note("a", "b")
    assert len(await state.marks()) in (0, 2000)
    await state.close()


async def test_old_jobs_and_cold_blobs_are_forgotten(path, monkeypatch):
    monkeypatch.setattr(module, "HEAT_MAX", 3)
    state = await opened(path)
    for number in range(JOBS_KEPT + 5):
        await state.save_job(f"J{number:04}", b"")
    assert list(await state.jobs()) == [f"J{number:04}" for number in range(5, JOBS_KEPT + 5)]
    await state.save_heat([("a", 1), ("b", 4), ("c", 3), ("d", 2)])
    assert await state.heat() == [("b", 4), ("c", 3), ("d", 2)]
    await state.close()


async def test_of_too_many_marks_the_oldest_go_and_the_file_is_another_one(path):
    state = await opened(path)
    clock = state._clock
    assert isinstance(clock, FixedClock)
    for number in range(5):
        clock.now_ms = 1000 + number
        await state.condemn([f"packs/{number}"], "n2/1", Part.OTHERS)
        await state.condemn([f"packs/{number}"], "n1/1", Part.ASKING)
    identity = state.identity
    assert await state.prune_marks(5) == 0 and state.identity == identity
    assert await state.prune_marks(3) == 2
    assert state.identity != identity
    kept = await state.marks()
    assert [mark.name for mark in kept if mark.part is Part.OTHERS] == ["packs/2", "packs/3", "packs/4"]
    assert sum(mark.part is Part.ASKING for mark in kept) == 5, "a collector's own record is never forgotten"
    again = state.identity
    await state.close()
    state = await opened(path)
    assert state.identity == again and list(state.found) == kept
    await state.close()


async def test_in_memory_nothing_is_left(tmp_path):
    state = ArchiveState(None, clock=FixedClock(), randomness=SeededRandomness(1))
    await state.open()
    assert await state.condemn(["x"], "t", Part.OTHERS) == state.identity
    assert [mark.name for mark in await state.marks()] == ["x"]
    await state.close()
