"""What the garbage worker removes, and how it keeps out of the way."""

from __future__ import annotations

import pytest

from amberblob.ballot import Ballot
from amberblob.manifest import Record, Version, WriteMark
from amberblob.mutations import Chosen
from antientropy.step import Did
from chunkstore.memory import MemoryStore
from node.workers import garbage as garbage_module
from node.workers.garbage import Garbage
from tests.clocks import HandClock

DISK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000


class Path:
    """A path whose records are learnt one after the other, each with inline bytes."""

    def __init__(self, store: MemoryStore, slot: int, path: str) -> None:
        self.store, self.slot, self.path = store, slot, path
        self.record: Record | None = None

    def put(self, at_ms: int) -> None:
        old = self.record
        number = old.version_max + 1 if old else 1
        blob_id = f"01ARZ3NDEKTSV4RRFFQ69{self.slot}{number:04}"
        version = Version(number, blob_id, 0, "e", at_ms, "t", {}, ())
        mark = WriteMark(f"w{number}", "put", number, at_ms)
        writes = (*(old.writes if old else ()), mark)[-2:]
        self.learn(
            Record(number, "put", number, version, ((1, number),), (), at_ms, 0, old.added if old else None, writes)
        )

    def expire(self, high: int) -> None:
        old = self.record
        assert old is not None
        self.learn(
            Record(
                old.revision + 1,
                "expire",
                old.version_max,
                old.head,
                ((high + 1, old.version_max),),
                (),
                old.changed_at_ms,
                0,
                None,
                old.writes,
                ((1, high),),
            )
        )

    def learn(self, record: Record) -> None:
        self.record = record
        self.store.apply(Chosen(self.slot, self.path, Ballot(1, record.revision, "n", "a"), record))

    async def knows(self, write_id: str) -> bool:
        return await self.store.find_write(self.slot, self.path, write_id) is not None


async def clean(worker: Garbage, clock: HandClock) -> int:
    """One round; how many steps it took."""
    clock.now_s += garbage_module.EVERY_S
    for steps in range(500):
        if await worker.step() is Did.NOTHING:
            return steps
    raise AssertionError("the worker does not come to an end")


@pytest.fixture
def clock() -> HandClock:
    return HandClock(0.0, start_ms=NOW_MS)


@pytest.fixture
def store(clock) -> MemoryStore:
    return MemoryStore(DISK, wall_ms=clock.wall_ms)


async def test_expired_blobs_go_batch_by_batch_until_none_is_left(store, clock):
    for slot in (0, 3):
        path = Path(store, slot, "a")
        for _ in range(garbage_module.BLOBS_MAX + 10):
            path.put(NOW_MS)
        path.expire(garbage_module.BLOBS_MAX + 5)
    worker = Garbage(store, clock)
    await clean(worker, clock)
    assert worker.counts.blobs == 2 * (garbage_module.BLOBS_MAX + 5)
    assert len(await store.rows(0, "a")) == 5
    assert await clean(worker, clock) == 2, "one look at each slot, when there is nothing"


async def test_logs_are_cut_to_their_last_lines_but_not_line_by_line(store, clock, monkeypatch):
    monkeypatch.setattr(garbage_module, "LOG_LINES_KEPT", 20)
    monkeypatch.setattr(garbage_module, "LOG_SLACK", 5)
    path = Path(store, 0, "a")
    worker = Garbage(store, clock)
    for _ in range(25):
        path.put(NOW_MS)
    await clean(worker, clock)
    assert len((await store.log_lines(0, 0, 1000))[0]) == 25
    assert worker.counts.log_lines == 0
    path.put(NOW_MS)
    await clean(worker, clock)
    lines, cut = await store.log_lines(0, 0, 1000)
    assert cut and [line.seq for line in lines] == list(range(7, 27)), "the last 20"
    await clean(worker, clock)
    for _ in range(5):
        path.put(NOW_MS)
    await clean(worker, clock)
    assert worker.counts.log_lines == 6
    path.put(NOW_MS)
    await clean(worker, clock)
    assert worker.counts.log_lines == 12


async def test_write_ids_are_known_for_a_day(store, clock):
    path = Path(store, 0, "a")
    for number in range(6):
        path.put(NOW_MS - DAY_MS + number * 3600_000)
    worker = Garbage(store, clock)
    clock.now_s = 2.5 * 3600 - garbage_module.EVERY_S
    await clean(worker, clock)
    assert [await path.knows(f"w{number}") for number in range(1, 7)] == [False] * 3 + [True] * 3
    assert worker.counts.writes == 3


async def test_it_rests_longer_than_it_works(store, clock, monkeypatch):
    Path(store, 0, "a").put(NOW_MS)
    Path(store, 1, "b").put(NOW_MS)
    real = store.sweep_garbage

    async def slow(slot: int, limit: int) -> int:
        clock.now_s += 0.2
        return await real(slot, limit)

    monkeypatch.setattr(store, "sweep_garbage", slow)
    worker = Garbage(store, clock)
    assert await worker.step() is Did.WORK
    assert await worker.step() is Did.NOTHING
    assert worker.pause_s == pytest.approx(1.8)
    clock.now_s += worker.pause_s
    assert await worker.step() is Did.WORK
    clock.now_s += 2
    assert await worker.step() is Did.NOTHING
    assert worker.pause_s > 500
