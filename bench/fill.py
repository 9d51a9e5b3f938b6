"""Many objects on the disks of a stopped cluster, through the store's own entrance.

A million PUTs would take longer than the whole benchmark. What a PUT leaves on each replica is an Accepted and a
Chosen in the journal and what the store makes of them, so exactly these are applied here, the same on every disk:
the same function of an object's number, so that the processes that fill the disks need not speak to each other.

``python -m bench.fill DISK COUNT`` fills one disk; :func:`fill_disks` runs that for all of them.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop
from ulid import ULID

from amberblob.ballot import Ballot
from amberblob.clock import SystemClock, SystemRandomness
from amberblob.ids import content_hash, slot_of
from amberblob.limits import PROMISE_RESERVE, SLOT_COUNT_DEFAULT
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.mutations import Accepted, Chosen, Reserved
from chunkstore.identity import read_identity
from chunkstore.store import DiskStore

OBJECTS_PER_PREFIX = 1000
PROCESSES_MAX = 2
_AT_MS = 1_700_000_000_000
_EPOCH = 1
_COORDINATOR = "node-1"
_CLEAN_MIN = 4096


def prefix_of(group: int) -> str:
    """The prefix of a group of :data:`OBJECTS_PER_PREFIX` objects."""
    return f"list/{group:06d}/"


def path_of(number: int) -> str:
    """The path of an object, in byte order of the numbers."""
    return f"{prefix_of(number // OBJECTS_PER_PREFIX)}{number % OBJECTS_PER_PREFIX:04d}"


def mutations_of(number: int, slot: int) -> tuple[Accepted, Chosen]:
    """What the one PUT of the object leaves in the journal of each replica."""
    path, at_ms = path_of(number), _AT_MS + number // 1000
    body = b"object %d" % number
    blob_id = str(ULID.from_int((at_ms << 80) | number))
    chunk = ChunkRef(id=content_hash(body), len=len(body))
    head = Version(1, blob_id, len(body), chunk.id, at_ms, "application/octet-stream", {}, (chunk,), None, 1, True)
    mark = WriteMark(blob_id, "put", 1, at_ms)
    record = Record(1, "put", 1, head, ((1, 1),), (), at_ms, 0, None, (mark,))
    ballot = Ballot(_EPOCH, 1, _COORDINATOR, blob_id)
    return Accepted(slot, path, ballot, record, body), Chosen(slot, path, ballot)


def _batches(count: int) -> Iterator[tuple[int, list[int]]]:
    """Slot and numbers, slot after slot, so that a batch of the applier meets few databases."""
    by_slot: list[list[int]] = [[] for _ in range(SLOT_COUNT_DEFAULT)]
    for number in range(count):
        by_slot[slot_of(path_of(number), SLOT_COUNT_DEFAULT)].append(number)
    for slot, numbers in enumerate(by_slot):
        if numbers:
            yield slot, numbers


async def _fill(disk: Path, count: int) -> None:
    identity = read_identity(disk)
    store = await DiskStore.open(
        disk,
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        clock=SystemClock(),
        randomness=SystemRandomness(),
        registers_clean_max=max(_CLEAN_MIN, count // 64),
    )
    try:
        for slot, numbers in _batches(count):
            # As a replica does: what a register holds is known before it is changed. Before the first entry of a
            # slot that is known without a question to its database.
            await asyncio.gather(*(store.load(slot, path_of(number)) for number in numbers))
            position = store.apply(Reserved(slot, PROMISE_RESERVE))
            for number in numbers:
                for mutation in mutations_of(number, slot):
                    position = store.apply(mutation)
            await store.durable(position)
    finally:
        await store.close()


def fill_disks(disks: Sequence[Path], count: int, *, timeout_s: float) -> None:
    """Put ``count`` objects on each disk; no node may have them open.

    Raises:
        RuntimeError: it failed, or took longer than ``timeout_s``.
    """
    todo, deadline = list(disks), time.monotonic() + timeout_s
    running: list[subprocess.Popen[bytes]] = []
    try:
        while todo or running:
            while todo and len(running) < PROCESSES_MAX:
                command = [sys.executable, "-m", "bench.fill", str(todo.pop()), str(count)]
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
            oldest = running[0]
            try:
                status = oldest.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"filling the disks with {count} objects took more than {timeout_s:.0f} s") from None
            running.pop(0)
            if status != 0:
                raise RuntimeError(f"filling a disk ended with status {status}")
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    uvloop.run(_fill(Path(sys.argv[1]), int(sys.argv[2])))
