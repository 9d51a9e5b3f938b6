"""Many objects on the disks of a stopped cluster, without a cluster and without a journal.

A million PUTs would take longer than the whole benchmark. What a PUT leaves on each replica is an Accepted and a
Chosen, and what the store makes of them; so these are handed to the very code that applies a journal's entries to a
slot's database, in large transactions that nobody syncs, slot after slot. The listing index gets the rows that the
applier would give it. At the end the journal begins a segment behind the positions that were given out, so the disk
is that of a node that wrote all this and stopped. Objects are a function of their number, so that the processes that
fill the disks need not speak to each other.

``python -m bench.fill DISK COUNT [DELETED]`` fills one disk; :func:`fill_disks` fills several.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path

import uvloop
from ulid import ULID

from amberblob.ballot import Ballot, Register
from amberblob.clock import SystemClock, SystemRandomness
from amberblob.ids import content_hash, slot_of
from amberblob.limits import PROMISE_RESERVE, SLOT_COUNT_DEFAULT
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.mutations import Accepted, Chosen, Mutation, Reserved
from amberblob.wire import ScanEntry
from chunkstore.applying import SlotBatch
from chunkstore.fileops import FileOps
from chunkstore.identity import DiskLock, read_identity
from chunkstore.index import INDEX_NAME, ListingIndex
from chunkstore.pool import DATABASE_NAME, SlotPool
from chunkstore.rules import scan_entry
from chunkstore.segments import SegmentWriter, recover
from chunkstore.slotdb import SlotDatabase
from chunkstore.store import DiskStore

OBJECTS_PER_PREFIX = 1000
PROCESSES_MAX = 2
_PARTS = 2
_AT_MS = 1_700_000_000_000
_EPOCH = 1
_COORDINATOR = "node-1"
_OBJECTS_PER_BATCH = 4096
_ENTRIES_PER_OBJECT = 4
_POLL_S = 0.05


def prefix_of(group: int) -> str:
    """The prefix of a group of :data:`OBJECTS_PER_PREFIX` objects."""
    return f"list/{group:06d}/"


def path_of(number: int) -> str:
    """The path of an object, in byte order of the numbers."""
    return f"{prefix_of(number // OBJECTS_PER_PREFIX)}{number % OBJECTS_PER_PREFIX:04d}"


def _records_of(number: int, *, deleted: bool) -> tuple[bytes, list[tuple[Ballot, Record]]]:
    """The body that was put, and with its ballot each record that the object's register has held."""
    at_ms = _AT_MS + number // 1000
    body = b"object %d" % number
    blob_id = str(ULID.from_int((at_ms << 80) | number))
    chunk = ChunkRef(id=content_hash(body), len=len(body))
    head = Version(1, blob_id, len(body), chunk.id, at_ms, "application/octet-stream", {}, (chunk,), None, 1, True)
    mark = WriteMark(blob_id, "put", 1, at_ms)
    put = Record(1, "put", 1, head, ((1, 1),), (), at_ms, 0, None, (mark,))
    records = [(Ballot(_EPOCH, 1, _COORDINATOR, blob_id), put)]
    if deleted:
        delete_id = str(ULID.from_int((at_ms << 80) | (1 << 40) | number))
        marks = (mark, WriteMark(delete_id, "delete", 1, at_ms))
        delete = Record(2, "delete", 1, None, (), ((1, 1),), at_ms, at_ms, head, marks)
        records.append((Ballot(_EPOCH, 2, _COORDINATOR, delete_id), delete))
    return body, records


def mutations_of(number: int, slot: int, *, deleted: bool = False) -> list[Mutation]:
    """What the PUT of the object (and its DELETE) leaves in the journal of each replica."""
    path = path_of(number)
    body, records = _records_of(number, deleted=deleted)
    mutations: list[Mutation] = []
    for ballot, record in records:
        mutations.append(Accepted(slot, path, ballot, record, body if record.op == "put" else None))
        mutations.append(Chosen(slot, path, ballot))
    return mutations


def _scan_entry_of(number: int, *, deleted: bool) -> ScanEntry:
    path = path_of(number)
    ballot, record = _records_of(number, deleted=deleted)[1][-1]
    return scan_entry(slot_of(path, SLOT_COUNT_DEFAULT), path, Register(ballot, record, True))


# ---- what a process of its own does


def _numbers_by_slot(count: int) -> list[array[int]]:
    by_slot = [array("L") for _ in range(SLOT_COUNT_DEFAULT)]
    for number in range(count):
        by_slot[slot_of(path_of(number), SLOT_COUNT_DEFAULT)].append(number)
    return by_slot


def _bulk(connection: sqlite3.Connection) -> None:
    """Nobody has to survive a crash here: no rollback journal, no syncs. :func:`_settle` ends it."""
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -65536")


def _settle(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill_slots(disk: Path, count: int, deleted: int, first_position: int, part: int) -> None:
    """Every slot whose number leaves ``part`` when divided by :data:`_PARTS`."""
    disk_id = read_identity(disk).disk_id
    by_slot = _numbers_by_slot(count)
    starts = list(accumulate((len(numbers) * _ENTRIES_PER_OBJECT + 1 for numbers in by_slot), initial=first_position))
    for slot in range(part, SLOT_COUNT_DEFAULT, _PARTS):
        if not by_slot[slot]:
            continue
        path = disk / "slots" / str(slot) / DATABASE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        database = SlotDatabase(slot, path, disk_id, create=not path.exists())
        _bulk(database.connection)
        position = starts[slot]
        SlotBatch(database).apply([(position, Reserved(slot, PROMISE_RESERVE))])
        numbers = iter(by_slot[slot])
        while batch := list(islice(numbers, _OBJECTS_PER_BATCH)):
            mutations = [m for number in batch for m in mutations_of(number, slot, deleted=number < deleted)]
            SlotBatch(database).apply(list(enumerate(mutations, start=position + 1)))
            position += len(mutations)
        _settle(database.connection, path)


def _fill_index(disk: Path, count: int, deleted: int, last_position: int) -> None:
    index = ListingIndex(disk, FileOps())
    _bulk(index.connection)
    for first in range(0, count, _OBJECTS_PER_BATCH):
        numbers = range(first, min(count, first + _OBJECTS_PER_BATCH))
        index.update((_scan_entry_of(number, deleted=number < deleted) for number in numbers), 0)
    index.end_rebuild(last_position)
    _settle(index.connection, disk / INDEX_NAME)


# ---- before and after


async def _open_and_close(disk: Path) -> None:
    """Bring everything that the journal holds into the databases."""
    identity = read_identity(disk)
    store = await DiskStore.open(
        disk,
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        clock=SystemClock(),
        randomness=SystemRandomness(),
    )
    await store.close()


def _prepare(disk: Path) -> int:
    """The first position that may be given out."""
    uvloop.run(_open_and_close(disk))
    return recover(disk / "journal", read_identity(disk).disk_id, FileOps(), is_new=False).next_position


def _finish(disk: Path, count: int, first_position: int) -> None:
    """Take the databases as the disk's own, and go on with the journal behind them."""
    ops, identity = FileOps(), read_identity(disk)
    lock = DiskLock(disk)
    try:
        pool = SlotPool(disk, identity, ops, lambda: "")
        pool.make_created(set(pool.known_slots()))
        recovered = recover(disk / "journal", identity.disk_id, ops, is_new=False)
        writer = SegmentWriter(recovered, identity.disk_id, ops, os.urandom, lambda: False, segment_bytes=1 << 20)
        writer.begin(_last_position(first_position, count) + 1)
        writer.close()
    finally:
        lock.close()


def _last_position(first_position: int, count: int) -> int:
    return first_position + count * _ENTRIES_PER_OBJECT + SLOT_COUNT_DEFAULT


def fill_disks(disks: Sequence[Path], count: int, *, timeout_s: float, deleted: int = 0) -> None:
    """Put ``count`` objects on each disk, the first ``deleted`` of them deleted again; no node may have them open.

    Raises:
        RuntimeError: it failed, or took longer than ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    first_positions = {disk: _prepare(disk) for disk in disks}
    todo = [
        [sys.executable, "-m", "bench.fill", str(disk), str(count), str(deleted), str(first_position), str(part)]
        for disk, first_position in first_positions.items()
        for part in range(_PARTS + 1)
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        while todo or running:
            while todo and len(running) < PROCESSES_MAX:
                running.append(subprocess.Popen(todo.pop(0), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                running.remove(process)
                if process.returncode != 0:
                    raise RuntimeError(f"filling a disk ended with status {process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"filling the disks with {count} objects took more than {timeout_s:.0f} s")
            if not ended:
                time.sleep(_POLL_S)
    finally:
        for process in running:
            process.kill()
            process.wait()
    for disk, first_position in first_positions.items():
        _finish(disk, count, first_position)


def _run_part(disk: Path, count: int, deleted: int, first_position: int, part: int) -> None:
    if part < _PARTS:
        _fill_slots(disk, count, deleted, first_position, part)
    else:
        _fill_index(disk, count, deleted, _last_position(first_position, count))


if __name__ == "__main__":
    _disk, _numbers = Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]]
    if len(_numbers) == 4:
        _run_part(_disk, *_numbers)
    else:
        fill_disks([_disk], _numbers[0], timeout_s=float("inf"), deleted=sum(_numbers[1:]))
