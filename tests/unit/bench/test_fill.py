"""A disk that was filled in bulk is what the store would have made of the same writes."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from amberblob.clock import SeededRandomness, SystemClock
from amberblob.ids import slot_of
from amberblob.limits import PROMISE_RESERVE, SLOT_COUNT_DEFAULT
from amberblob.mutations import Reserved
from bench.fill import fill_disks, mutations_of, path_of
from chunkstore import DiskStore
from chunkstore.doctor import examine

COUNT = 120
DELETED = 30


async def opened(disk: Path) -> DiskStore:
    return await DiskStore.open(
        disk, cluster_id="c", node_id="n", clock=SystemClock(), randomness=SeededRandomness(1), reserve_bytes=0
    )


def rows(disk: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything in the databases but for identities and positions."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for path in sorted([*disk.glob("slots/*/meta.sqlite3"), disk / "index.sqlite3"]):
        connection = sqlite3.connect(path)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        found[f"{path.relative_to(disk)}"] = [(version, mode)]
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = "*"
            if table == "slot_meta":
                columns = "epoch, ballot_floor, version_floor, promise_ceiling"
            elif table == "index_meta":
                columns = "complete"
            found[f"{path.relative_to(disk)}:{table}"] = sorted(
                connection.execute(f"SELECT {columns} FROM {table}").fetchall()
            )
        connection.close()
    return found


async def test_a_filled_disk_is_as_the_store_makes_it(tmp_path: Path):
    own, filled = tmp_path / "own", tmp_path / "filled"
    store = await opened(own)
    seen: set[int] = set()
    for number in range(COUNT):
        path = path_of(number)
        slot = slot_of(path, SLOT_COUNT_DEFAULT)
        if slot not in seen:
            seen.add(slot)
            store.apply(Reserved(slot, PROMISE_RESERVE))
        await store.load(slot, path)
        for mutation in mutations_of(number, slot, deleted=number < DELETED):
            position = store.apply(mutation)
    await store.durable(position)
    await store.close()

    store = await opened(filled)
    await store.close()
    await asyncio.to_thread(fill_disks, [filled], COUNT, timeout_s=280.0, deleted=DELETED)
    assert rows(filled) == rows(own)
    for disk in (own, filled):
        report = examine(disk, deep=True)
        assert report.healthy and not report.findings and report.counts["versions"] == COUNT

    # It goes on: what is written next has a later position than all that was filled in, also after another start.
    for turn in range(2):
        store = await opened(filled)
        assert not store.lost_slots and store.slots() == sorted(seen)
        listed = [entry for entry in (await store.scan("", "", "", 1000)).entries if entry.version]
        assert [entry.path for entry in listed] == [path_of(number) for number in range(DELETED, COUNT)]
        number = COUNT - 1
        slot = slot_of(path_of(number), SLOT_COUNT_DEFAULT)
        register = await store.load(slot, path_of(number))
        assert register.chosen and register.record is not None and register.record.head is not None
        chunk = register.record.head.chunks[0]
        assert await store.read_chunk(slot, register.record.head.blob_id, chunk) == b"object %d" % number
        deleted = mutations_of(turn, slot_of(path_of(turn), SLOT_COUNT_DEFAULT), deleted=True)
        await store.durable(store.apply(deleted[-1]))
        await store.close()
