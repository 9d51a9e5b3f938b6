"""The registry of one machine: a SQLite file that several processes use at once.

Why these settings: the rollback journal (``journal_mode=DELETE``) and not WAL, because several processes write
and SQLite from 3.7.0 to 3.51.2 can corrupt a WAL database when two connections write and checkpoint at once;
``synchronous=EXTRA``, because with a rollback journal FULL may lose the last commit in a power cut (the journal's
removal is not synced), and a route change that others have acted on must not come undone.

Every write is one ``BEGIN IMMEDIATE`` transaction that first ends the leases which have run out. A watch looks at
``PRAGMA data_version`` every ``poll_s`` and reads the change log only when it moved. The file must lie on a local
file system (SQLite's locks), so all users share one wall clock; leases count by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from itertools import groupby
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import aiosqlite

from amberblob.clock import Clock, Randomness, SystemClock, SystemRandomness
from amberblob.errors import ConfigError, RegistryUnavailable
from registry.common import KeptLease, Transacting
from registry.interface import (
    Change,
    Compacted,
    CompareAndSet,
    Delete,
    Entry,
    Event,
    Operation,
    Put,
    Snapshot,
    check_operations,
)

_T = TypeVar("_T")

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
POLL_S = 0.2
HISTORY_MAX = 10_000
"""Past changes kept for watchers; older ones are compacted away by later writes."""

_SCHEMA = (
    """CREATE TABLE entries (
         key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL, lease_id TEXT) WITHOUT ROWID""",
    "CREATE INDEX entries_by_lease ON entries (lease_id) WHERE lease_id IS NOT NULL",
    # One row per changed key; value NULL is a deletion.
    "CREATE TABLE changes (pk INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB)",
    "CREATE INDEX changes_by_revision ON changes (revision)",
    "CREATE TABLE leases (id TEXT PRIMARY KEY NOT NULL, ttl_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL)",
    # revision: of the whole store. compacted: changes up to here are forgotten.
    "CREATE TABLE store (revision INTEGER NOT NULL, compacted INTEGER NOT NULL)",
    "INSERT INTO store VALUES (0, 0)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

# A lease that expires later than its whole time from now was written before the wall clock was set back: ended too.
_ENDED = "(expires_at_ms <= :now OR expires_at_ms > :now + ttl_ms)"
_LIVE_ENTRY = f"(lease_id IS NULL OR lease_id IN (SELECT id FROM leases WHERE NOT {_ENDED}))"


def path_of_url(url: str) -> str:
    """The file that ``embedded:///absolute/path`` names.

    Raises:
        ConfigError: no absolute path.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path.endswith("/") or parts.query or parts.fragment:
        raise ConfigError(
            f"[cluster] registry = {url!r}: wants embedded:///absolute/path/registry.sqlite3 (three slashes)."
        )
    return path


class EmbeddedRegistry(Transacting):
    """One process's connection to the file. See :class:`registry.interface.Registry`.

    The connection is opened by the first call and opened anew after an error, so that a registry that is down
    at start is no different from one that goes down later. An absent file is made only if ``create``, and only
    until this object has once opened it: one that disappears is an outage, not a new and empty registry.

    Args:
        path: absolute; its folder must exist.
        clock: wall time for leases.
        create: whether an absent file may be made.
        poll_s: how often a watch looks for other processes' changes, seconds.
        busy_timeout_s: how long a call waits for other processes' transactions.
        history_max: how many past changes are kept for watchers.
    """

    def __init__(
        self,
        path: str,
        *,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        create: bool = True,
        poll_s: float = POLL_S,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        history_max: int = HISTORY_MAX,
    ) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._randomness = randomness or SystemRandomness()
        self._create = create
        self._poll_s = poll_s
        self._busy_timeout_s = busy_timeout_s
        self._history_max = history_max
        self._connection: aiosqlite.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._generation = 0
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._written = asyncio.Event()
        self._closed = False

    # -- the interface

    async def get(self, key: str) -> Entry | None:
        async def work(db: aiosqlite.Connection) -> Entry | None:
            rows = await db.execute_fetchall(
                f"SELECT key, value, revision FROM entries WHERE key = :key AND {_LIVE_ENTRY}",
                {"key": key, "now": self._clock.wall_ms()},
            )
            return next((Entry(*row) for row in rows), None)

        return await self._run(work)

    async def range(self, prefix: str) -> Snapshot:
        async def work(db: aiosqlite.Connection) -> Snapshot:
            async with _transaction(db, "BEGIN"):
                revision, _ = await _store(db)
                rows = await db.execute_fetchall(
                    f"""SELECT key, value, revision FROM entries
                        WHERE key >= :prefix AND substr(key, 1, length(:prefix)) = :prefix AND {_LIVE_ENTRY}
                        ORDER BY key""",
                    {"prefix": prefix, "now": self._clock.wall_ms()},
                )
                return Snapshot(tuple(Entry(*row) for row in rows), revision)

        return await self._run(work)

    async def transact(self, operations: Sequence[Operation]) -> int | None:
        check_operations(operations)

        async def work(db: aiosqlite.Connection) -> int | None:
            for operation in operations:
                if not await _holds(db, operation):
                    return None
            revision = await self._next_revision(db)
            for operation in operations:
                await _carry_out(db, operation, revision)
            return revision

        return await self._write(work)

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Change | Compacted, None]:
        seen: tuple[int, int] | None = None
        while not self._closed:
            written = self._written
            state = await self._state()
            if state != seen:
                revision, compacted, changes = await self._changes(from_revision)
                if from_revision <= compacted or from_revision > revision + 1:
                    yield Compacted(revision)
                    return
                for change in changes:
                    events = tuple(event for event in change.events if event.key.startswith(prefix))
                    if events:
                        yield Change(change.revision, events)
                from_revision = revision + 1
                seen = state
            if written is self._written:
                with contextlib.suppress(TimeoutError):
                    # Not asyncio.wait_for: of Python 3.11 it loses a cancellation that comes together with the event.
                    async with asyncio.timeout(self._poll_s):
                        await written.wait()
            if written.is_set():
                seen = None

    async def lease(self, ttl_s: float) -> KeptLease[str]:
        lease_id = self._randomness.token(16).hex()
        ttl_ms = max(1, round(ttl_s * 1000))

        async def work(db: aiosqlite.Connection) -> None:
            await db.execute("INSERT INTO leases VALUES (?, ?, ?)", (lease_id, ttl_ms, self._clock.wall_ms() + ttl_ms))

        await self._write(work)
        return KeptLease(self, lease_id, ttl_s)

    async def close(self) -> None:
        self._closed = True
        self._wake()
        async with self._lock:
            await self._disconnect()

    # -- for leases

    async def keep_lease(self, lease_id: str) -> bool:
        """Move a lease's end away; False when it has ended."""

        async def work(db: aiosqlite.Connection) -> bool:
            cursor = await db.execute(
                "UPDATE leases SET expires_at_ms = ? + ttl_ms WHERE id = ?", (self._clock.wall_ms(), lease_id)
            )
            return cursor.rowcount == 1

        return await self._write(work)

    async def end_lease(self, lease_id: str) -> None:
        """End a lease, and its keys with it."""

        async def work(db: aiosqlite.Connection) -> None:
            await self._end_leases(db, [lease_id])

        await self._write(work)

    # -- within a write transaction

    async def _next_revision(self, db: aiosqlite.Connection) -> int:
        """Take the next revision, and forget changes that are too old."""
        await db.execute("UPDATE store SET revision = revision + 1")
        revision, compacted = await _store(db)
        forget = revision - self._history_max
        if forget > compacted:
            await db.execute("DELETE FROM changes WHERE revision <= ?", (forget,))
            await db.execute("UPDATE store SET compacted = ?", (forget,))
        return revision

    async def _end_leases(self, db: aiosqlite.Connection, ended: Sequence[str]) -> None:
        keys: list[sqlite3.Row] = []
        for lease_id in ended:
            keys += await db.execute_fetchall("SELECT key FROM entries WHERE lease_id = ? ORDER BY key", (lease_id,))
            await db.execute("DELETE FROM entries WHERE lease_id = ?", (lease_id,))
            await db.execute("DELETE FROM leases WHERE id = ?", (lease_id,))
        if keys:
            revision = await self._next_revision(db)
            await db.executemany(
                "INSERT INTO changes (revision, key, value) VALUES (?, ?, NULL)", [(revision, row[0]) for row in keys]
            )

    async def _expired(self, db: aiosqlite.Connection) -> list[str]:
        rows = await db.execute_fetchall(f"SELECT id FROM leases WHERE {_ENDED}", {"now": self._clock.wall_ms()})
        return [row[0] for row in rows]

    # -- for watches

    async def _state(self) -> tuple[int, int]:
        """Equal to the last one while no other process has written. Ends run-out leases on the way."""

        async def work(db: aiosqlite.Connection) -> tuple[tuple[int, int], bool]:
            rows = list(await db.execute_fetchall("PRAGMA data_version"))
            return (self._generation, rows[0][0]), bool(await self._expired(db))

        state, expired = await self._run(work)
        if expired:

            async def nothing(db: aiosqlite.Connection) -> None:
                """The transaction itself ends the leases."""

            await self._write(nothing)
        return state

    async def _changes(self, from_revision: int) -> tuple[int, int, list[Change]]:
        """The store's revision, what is compacted, and the changes from a revision on; all at one moment."""

        async def work(db: aiosqlite.Connection) -> tuple[int, int, list[Change]]:
            async with _transaction(db, "BEGIN"):
                revision, compacted = await _store(db)
                rows = await db.execute_fetchall(
                    "SELECT revision, key, value FROM changes WHERE revision >= ? ORDER BY pk", (from_revision,)
                )
            changes = [
                Change(number, tuple(_event(key, value) for _, key, value in group))
                for number, group in groupby(rows, key=lambda row: int(row[0]))
            ]
            return revision, compacted, changes

        return await self._run(work)

    # -- the connection

    async def _write(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        """Run ``work`` in a transaction of its own, after ending run-out leases; wake this process's watches."""

        async def transaction(db: aiosqlite.Connection) -> _T:
            async with _transaction(db, "BEGIN IMMEDIATE"):
                await self._end_leases(db, await self._expired(db))
                return await work(db)

        result = await self._run(transaction)
        self._wake()
        return result

    def _wake(self) -> None:
        self._written.set()
        self._written = asyncio.Event()

    async def _run(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        """One piece of work at a time on the connection. A cancelled caller does not break it off half way."""

        async def alone() -> _T:
            async with self._lock:
                try:
                    return await work(await self._connect())
                except (sqlite3.Error, OSError) as error:
                    # Opening anew mends a broken connection and a replaced file, and costs little after being busy.
                    await self._disconnect()
                    raise RegistryUnavailable(
                        f"The registry {self._path} cannot be used: {error}. Look at the file and its folder."
                    ) from error

        task = asyncio.create_task(alone())
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, if it still waits

    async def _connect(self) -> aiosqlite.Connection:
        if self._closed:
            raise RegistryUnavailable("The registry client is closed.")
        if self._connection is not None:
            if _identity(self._path) == self._identity:
                return self._connection
            await self._disconnect()
        # Asked first, because aiosqlite starts a thread even for what cannot be opened.
        _identity(os.path.dirname(self._path) if self._create else self._path)
        mode = "rwc" if self._create else "rw"
        opening = aiosqlite.connect(
            f"file:{quote(self._path)}?mode={mode}", uri=True, isolation_level=None, timeout=self._busy_timeout_s
        )
        _let_exit(opening)
        db = await opening
        try:
            await self._prepare(db)
        except BaseException:
            await db.close()
            raise
        self._identity = _identity(self._path)
        self._generation += 1
        self._create = False
        self._connection = db
        return db

    async def _prepare(self, db: aiosqlite.Connection) -> None:
        for pragma in ("journal_mode=DELETE", "synchronous=EXTRA"):
            await db.execute(f"PRAGMA {pragma}")
        if await _schema_version(db) == 0:
            async with _transaction(db, "BEGIN IMMEDIATE"):
                if await _schema_version(db) == 0:
                    for statement in _SCHEMA:
                        await db.execute(statement)
        found = await _schema_version(db)
        if found != SCHEMA_VERSION:
            raise RegistryUnavailable(
                f"The registry {self._path} has schema version {found}; this software knows {SCHEMA_VERSION}. "
                "Run the version of AmberBlob that made it, or a newer one."
            )

    async def _disconnect(self) -> None:
        db, self._connection = self._connection, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                await db.close()


def _let_exit(connection: aiosqlite.Connection) -> None:
    """Let the process end although the connection was not closed: one that fails at start must not hang instead.

    aiosqlite has no public way to say so; before 0.22 the connection itself is the thread.
    """
    thread = getattr(connection, "_thread", connection)
    if isinstance(thread, threading.Thread):
        thread.daemon = True


@contextlib.asynccontextmanager
async def _transaction(db: aiosqlite.Connection, begin: str) -> AsyncIterator[None]:
    await db.execute(begin)
    try:
        yield
        await db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            await db.execute("ROLLBACK")
        raise


async def _schema_version(db: aiosqlite.Connection) -> int:
    rows = list(await db.execute_fetchall("PRAGMA user_version"))
    return int(rows[0][0])


async def _store(db: aiosqlite.Connection) -> tuple[int, int]:
    """The store's revision, and the one up to which changes are forgotten."""
    rows = list(await db.execute_fetchall("SELECT revision, compacted FROM store"))
    return int(rows[0][0]), int(rows[0][1])


async def _holds(db: aiosqlite.Connection, operation: Operation) -> bool:
    """Whether the operation's comparison holds and its lease lives (run-out ones are gone already)."""
    rows = list(await db.execute_fetchall("SELECT revision FROM entries WHERE key = ?", (operation.key,)))
    if (rows[0][0] if rows else 0) != operation.expected_revision:
        return False
    if isinstance(operation, CompareAndSet) and operation.lease_id is not None:
        return bool(list(await db.execute_fetchall("SELECT 1 FROM leases WHERE id = ?", (operation.lease_id,))))
    return True


async def _carry_out(db: aiosqlite.Connection, operation: Operation, revision: int) -> None:
    value: bytes | None = None
    if isinstance(operation, CompareAndSet):
        value = operation.value
        await db.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (operation.key, value, revision, operation.lease_id)
        )
    else:
        await db.execute("DELETE FROM entries WHERE key = ?", (operation.key,))
    await db.execute("INSERT INTO changes (revision, key, value) VALUES (?, ?, ?)", (revision, operation.key, value))


def _event(key: str, value: bytes | None) -> Event:
    return Delete(key) if value is None else Put(key, value)


def _identity(path: str) -> tuple[int, int]:
    """Device and inode: whether the path still names the file that was opened. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
