"""What is fetched together, and what is tried again when."""

from __future__ import annotations

from amberblob.manifest import ChunkRef, Version
from antientropy import failures as failures_module
from antientropy.failures import RETRY_FIRST_S, RETRY_MAX_S, Failures
from antientropy.wants import SMALL_BYTES_MAX, Want, WantQueue, is_small


def version(number: int, size: int, chunks: int = 1) -> Version:
    refs = tuple(ChunkRef(f"{index:064x}", size // chunks) for index in range(chunks))
    return Version(1, f"01ARZ3NDEKTSV4RRFFQ69G{number:04}", size, "e", 0, "t", {}, refs, None, chunks, False)


def test_small_is_one_chunk_of_at_most_a_mebibyte():
    assert is_small(version(1, SMALL_BYTES_MAX))
    assert not is_small(version(1, SMALL_BYTES_MAX + 1))
    assert not is_small(version(1, 1000, chunks=2))


def test_slots_take_turns_and_small_ones_of_a_slot_come_together():
    queue = WantQueue(100)
    for number in range(6):
        assert queue.add(Want(number % 2, version(number, 100)))
    assert queue.add(Want(0, version(6, 5000, chunks=2)))
    assert not queue.add(Want(0, version(6, 5000, chunks=2)))
    assert (len(queue), queue.size_bytes) == (7, 5600)
    taken = [[want.version.blob_id[-1] for want in queue.take(10, 250)] for _ in range(6)]
    assert taken == [["0", "2"], ["1", "3"], ["4"], ["5"], ["6"], []]
    assert (len(queue), queue.size_bytes) == (0, 0)


def test_one_is_taken_even_if_it_is_larger_than_what_may_be():
    queue = WantQueue(100)
    queue.add(Want(0, version(1, 1000)))
    queue.add(Want(0, version(2, 1000)))
    assert [len(queue.take(1, 10)), len(queue.take(5, 10)), len(queue.take(5, 10))] == [1, 1, 0]


def test_the_queue_is_bounded():
    queue = WantQueue(3)
    assert [queue.add(Want(0, version(number, 1))) for number in range(5)] == [True, True, True, False, False]


def test_failures_are_tried_again_later_each_time():
    failures, now_s, waits = Failures(), 1000.0, []
    for _ in range(12):
        failed, _ = failures.note(3, "a", now_s, nowhere=False)
        assert not failures.is_due("a", failed.due_s - 0.1) and failures.is_due("a", failed.due_s)
        waits.append(failed.due_s - now_s)
    assert waits[0] == 2 * RETRY_FIRST_S and waits[-1] == RETRY_MAX_S and waits == sorted(waits)
    assert failures.count(3) == 1 and failures.nowhere(3) == 0
    failures.hasten("a", now_s)
    assert failures.is_due("a", now_s) and failures.count(3) == 1


def test_that_nobody_has_it_is_news_once_and_forgotten_when_somebody_may():
    failures = Failures()
    assert failures.note(3, "a", 0.0, nowhere=True)[1]
    assert not failures.note(3, "a", 0.0, nowhere=True)[1]
    failures.hasten("a", 0.0)
    assert failures.nowhere(3) == 1
    failures.note(3, "a", 0.0, nowhere=False)
    assert failures.nowhere(3) == 0
    assert failures.note(3, "a", 0.0, nowhere=True)[1]
    failures.forgive("a")
    assert (failures.nowhere(3), failures.count(3)) == (0, 0)


def test_failures_are_bounded(monkeypatch):
    monkeypatch.setattr(failures_module, "FAILURES_MAX", 10)
    failures = Failures()
    for number in range(30):
        failures.note(number % 2, f"b{number}", 0.0, nowhere=True)
    assert failures.count(0) + failures.count(1) == 10 == failures.nowhere(0) + failures.nowhere(1)
    assert "b29" in failures and "b0" not in failures
