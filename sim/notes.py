"""What a simulated node notes down of the archive: the real SQL, over a database in memory that outlives the process as a file would.

A transaction that was to be durable outlasts a power cut; of the others the last ones may go, in order, as SQLite's log has it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

from amberblob.clock import Clock, Randomness
from amberblob.errors import DiskFailed, DiskFull
from archive.state import ArchiveState
from archive.statedb import _MIGRATIONS, IDENTITY, StateFile
from sim.disk import SimDisk

T = TypeVar("T")

IMAGES_MAX = 16
"""So many states are told apart that a power cut may leave."""


class Notes:
    """The file, as it outlives processes.

    Attributes:
        images: what it may be after a power cut, oldest first: the durable one, and each state since. Empty: there is no file.
    """

    def __init__(self) -> None:
        self.images: list[bytes] = []

    def crash(self, disk: SimDisk, *, power: bool) -> None:
        """The process is dead."""
        if self.images:
            self.images = [disk.random.choice(self.images) if power else self.images[-1]]

    def lose(self) -> None:
        """There is no file any more."""
        self.images.clear()

    def add(self, image: bytes) -> None:
        """The process has written it, and nothing was synced."""
        self.images.append(image)
        if len(self.images) > IMAGES_MAX:
            del self.images[1]

    def synced(self, image: bytes) -> None:
        """That state, if there is no newer one, is what is left at the least."""
        at = next((at for at, known in enumerate(self.images) if known is image), 0)
        del self.images[:at]


class SimConnection:
    """What is used of :class:`aiosqlite.Connection`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    @property
    def in_transaction(self) -> bool:
        return self.db.in_transaction

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        return self.db.execute(sql, tuple(parameters))

    async def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        return self.db.executemany(sql, parameters)

    async def execute_fetchall(self, sql: str, parameters: Iterable[Any] = ()) -> list[Any]:
        return self.db.execute(sql, tuple(parameters)).fetchall()

    async def close(self) -> None:
        self.db.close()


@cache
def _blank() -> bytes:
    """A file with its schema."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA page_size=1024")
    for statements in _MIGRATIONS:
        for statement in statements:
            db.execute(statement)
    image = db.serialize()
    db.close()
    return image


class SimStateFile(StateFile):
    """One process's view of the file. Slow, full and failing as the machine's disk is."""

    def __init__(self, notes: Notes, disk: SimDisk, *, clock: Clock, randomness: Randomness) -> None:
        super().__init__(Path("archive.sqlite3"), clock=clock, randomness=randomness)
        self._notes = notes
        self._disk = disk

    async def write(self, work: Callable[[aiosqlite.Connection], Awaitable[T]], *, durable: bool = False) -> T:
        async def written(db: aiosqlite.Connection) -> T:
            if self._disk.trouble.full:
                raise DiskFull("simulated: no room for notes")
            before = cast(SimConnection, db).db.serialize()
            await db.execute("BEGIN IMMEDIATE")
            try:
                result = await work(db)
                await db.execute("COMMIT")
            except BaseException:
                await db.execute("ROLLBACK")
                raise
            image = cast(SimConnection, db).db.serialize()
            self._notes.add(image)
            if durable:
                await self._sync(image, before)
            return result

        return await self._run(written)

    async def _sync(self, image: bytes, before: bytes) -> None:
        disk = self._disk
        await asyncio.sleep(disk.latency_s * min(disk.trouble.slow, 100.0) * disk.random.expovariate(1.0))
        if disk.trouble.syncs_fail:
            # What was to be written is not; some of it may be found after a power cut all the same.
            await self._disconnect()
            self._notes.add(before)
            raise DiskFailed("simulated: the notes' sync failed")
        self._notes.synced(image)

    async def _connect(self) -> aiosqlite.Connection:
        await asyncio.sleep(0)
        if self._closed:
            raise DiskFailed("the notes are closed")
        if self._db is None:
            db = sqlite3.connect(":memory:", isolation_level=None)
            db.deserialize(self._notes.images[-1] if self._notes.images else _blank())
            self._db = cast(aiosqlite.Connection, SimConnection(db))
            rows = db.execute("SELECT text FROM about WHERE name = ?", (IDENTITY,)).fetchall()
            await self.identify(self._db, rows[0][0] if rows else self.new_identity())
            if not rows:
                self._notes.images = [db.serialize()]
        return self._db


class SimArchiveState(ArchiveState):
    """The notes of one life of a node."""

    def __init__(self, notes: Notes, disk: SimDisk, *, clock: Clock, randomness: Randomness) -> None:
        super().__init__(Path("archive.sqlite3"), clock=clock, randomness=randomness)
        self._file = SimStateFile(notes, disk, clock=clock, randomness=randomness)
