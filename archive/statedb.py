"""The file of :mod:`archive.state`: one connection, its schema, and what happens when it is damaged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import aiosqlite
import structlog

from amberblob.clock import Clock, Randomness
from amberblob.errors import DiskFailed, DiskFull, DiskMismatch, StorageError

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE about (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE cursors (slot INTEGER, node TEXT, incarnation TEXT NOT NULL, seq INTEGER NOT NULL,
           PRIMARY KEY (slot, node)) WITHOUT ROWID""",
        """CREATE TABLE known_chunks (chunk_id TEXT PRIMARY KEY, length INTEGER NOT NULL, target_path TEXT NOT NULL,
           range_start INTEGER NOT NULL, range_end INTEGER NOT NULL, head TEXT NOT NULL, archived_at_ms INTEGER NOT NULL,
           state INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX known_chunks_of_an_object ON known_chunks (target_path)",
        """CREATE TABLE condemned (name TEXT, token TEXT, own INTEGER NOT NULL, at_ms INTEGER NOT NULL,
           PRIMARY KEY (name, token, own)) WITHOUT ROWID""",
        "CREATE TABLE jobs (job TEXT PRIMARY KEY, status BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE heat (blob_id TEXT PRIMARY KEY, minute INTEGER NOT NULL) WITHOUT ROWID",
    ),
)
"""What leads from one version (``user_version``) to the next, the first from an empty file."""

_RUINED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
BUSY_TIMEOUT_S = 10.0
IDENTITY = "identity"


class StateFile:
    """One SQLite database, used by one connection, one piece of work after another.

    ``path`` None: in memory, for tests and simulations; it is gone when it is closed.
    What turns out to be damaged is moved aside (``*.damaged-<epoch ms>``) and begun anew with another :attr:`identity`.
    """

    def __init__(self, path: Path | None, *, clock: Clock, randomness: Randomness) -> None:
        self._path = path
        self._clock = clock
        self._randomness = randomness
        self._lock = asyncio.Lock()
        self._db: aiosqlite.Connection | None = None
        self._running: set[asyncio.Task[object]] = set()
        self._closed = False
        self.identity = ""
        """Another one for each file that was begun here: whoever was told something under this one knows whether it is still written down."""

    async def read(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        """Run ``work``. Raises: DiskFailed, DiskFull, DiskMismatch."""
        return await self._run(work)

    async def write(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]], *, durable: bool = False) -> _T:
        """Run ``work`` in a transaction; ``durable``: it outlasts a power cut once this returns (else the last ones may not). Raises as read."""

        async def transaction(db: aiosqlite.Connection) -> _T:
            if durable:
                await db.execute("PRAGMA synchronous=FULL")
            try:
                return await _in_transaction(db, work)
            finally:
                if durable:
                    await db.execute("PRAGMA synchronous=NORMAL")

        return await self._run(transaction)

    def new_identity(self) -> str:
        """Which no file ever had."""
        return self._randomness.token(16).hex()

    async def identify(self, db: aiosqlite.Connection, identity: str) -> None:
        """Have the file be called so, within a transaction."""
        await db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (IDENTITY, identity))
        self.identity = identity

    async def close(self) -> None:
        """Let go of the file; what is under way ends first."""
        async with self._lock:
            self._closed = True
            await self._disconnect()

    # -- the connection

    async def _run(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        """A cancelled caller does not break it off half way."""

        async def alone() -> _T:
            async with self._lock:
                try:
                    return await self._attempt(work)
                except sqlite3.Error as error:
                    await self._disconnect()
                    raise _told(self._path, error) from error
                except OSError as error:
                    raise DiskFailed(f"{self._path} cannot be used: {error}.") from error

        task = asyncio.create_task(alone())
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _attempt(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        try:
            return await work(await self._connect())
        except sqlite3.DatabaseError as error:
            if _code(error) not in _RUINED:
                raise
            await self._disconnect()
            self._move_aside(error)
            return await work(await self._connect())

    def _done(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, if it still waits

    async def _connect(self) -> aiosqlite.Connection:
        if self._closed:
            raise DiskFailed(f"{self._path} is closed: the node is ending.")
        if self._db is not None:
            return self._db
        if self._path is None:
            opening = aiosqlite.connect(":memory:", isolation_level=None)
        else:
            await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)
            opening = aiosqlite.connect(
                f"file:{quote(str(self._path))}?mode=rwc", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S
            )
        _let_exit(opening)
        db = await opening
        try:
            await self._prepare(db)
        except BaseException:
            await db.close()
            raise
        self._db = db
        return db

    async def _prepare(self, db: aiosqlite.Connection) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            await db.execute(f"PRAGMA {pragma}")
        found = next(iter(await db.execute_fetchall("PRAGMA user_version")))[0]
        if found > SCHEMA_VERSION:
            raise DiskMismatch(
                f"{self._path} has schema version {found}; this software knows {SCHEMA_VERSION}. Run the version of AmberBlob that "
                "made it, or a newer one; or move the file away: all but which objects are being deleted is found again."
            )
        for version in range(found, SCHEMA_VERSION):

            async def step(db: aiosqlite.Connection, version: int = version) -> None:
                for statement in _MIGRATIONS[version]:
                    await db.execute(statement)
                await db.execute(f"PRAGMA user_version = {version + 1}")

            await _in_transaction(db, step)

        async def first(db: aiosqlite.Connection) -> None:
            rows = await db.execute_fetchall("SELECT text FROM about WHERE name = ?", (IDENTITY,))
            await self.identify(db, next((str(row[0]) for row in rows), "") or self.new_identity())

        await _in_transaction(db, first)
        # A file that was just made must not go with a power cut, either.
        if self._path is not None:
            await asyncio.to_thread(_sync_folder, self._path.parent)
        await db.execute("PRAGMA synchronous=NORMAL")

    async def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                await db.close()

    def _move_aside(self, error: sqlite3.Error) -> None:
        if self._path is None:
            return
        suffix = f".damaged-{self._clock.wall_ms()}"
        for part in ("", "-wal", "-shm"):
            file = self._path.with_name(self._path.name + part)
            if file.exists():
                file.rename(file.with_name(f"{self._path.name}{suffix}{part}"))
        _log.error(
            "archive.state.damaged",
            file=str(self._path),
            moved_to=self._path.name + suffix,
            error=str(error),
            lost="jobs under way, when blobs were read, and which objects are being deleted; deletions under way begin again",
        )


async def _in_transaction(db: aiosqlite.Connection, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
    async with _transaction(db):
        return await work(db)


@contextlib.asynccontextmanager
async def _transaction(db: aiosqlite.Connection) -> AsyncIterator[None]:
    await db.execute("BEGIN IMMEDIATE")
    try:
        yield
        await db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            await db.execute("ROLLBACK")
        raise


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _told(path: Path | None, error: sqlite3.Error) -> StorageError:
    if _code(error) == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path} cannot grow: the disk is full. Nothing was noted; make room.")
    return DiskFailed(f"{path} cannot be used: {error}. Look at the file, its folder and the disk.")


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _let_exit(connection: aiosqlite.Connection) -> None:
    """Let the process end although the connection was not closed; aiosqlite has no public way to say so."""
    thread = getattr(connection, "_thread", connection)
    if isinstance(thread, threading.Thread):
        thread.daemon = True
