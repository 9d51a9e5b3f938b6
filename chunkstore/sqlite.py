"""How this package opens SQLite: one connection per database, one thread, checkpoints by our own hand."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from urllib.parse import quote

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SchemaTooNew(Exception):
    """The database was written by a later version of this software. Not damage: it must stay as it is."""


def _primary_code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", 0)
    return int(code or 0) & 0xFF


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is damaged or no database at all."""
    return _primary_code(error) in _CORRUPT


def is_full(error: sqlite3.Error) -> bool:
    """Whether SQLite ran out of room; the transaction was rolled back and can be tried again."""
    return _primary_code(error) == sqlite3.SQLITE_FULL


def is_io_error(error: Exception) -> bool:
    """Whether SQLite says that the system could not read, write or sync its files."""
    return isinstance(error, sqlite3.Error) and _primary_code(error) == sqlite3.SQLITE_IOERR


def connect(path: Path, *, cache_kib: int, create: bool) -> sqlite3.Connection:
    """Open a database for its one writer.

    A fresh file is created without syncs: until the journal segment that fills it is given up, it can be made anew.

    Raises:
        sqlite3.Error: it cannot be opened, is damaged or no database.
    """
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"file:{quote(os.path.abspath(path))}?mode={mode}",
        uri=True, isolation_level=None, check_same_thread=False, cached_statements=48, timeout=2.0,
    )  # fmt: skip
    try:
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        if create:
            connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {1 << 20}")
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> int:
    """Bring the schema forward; ``migrations[n]`` leads from ``user_version`` n to n+1. Returns the old version.

    Raises:
        SchemaTooNew: the file is of a later version.
        sqlite3.Error: a migration failed; the file is as it was.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise SchemaTooNew(f"schema version {version}, and this software knows versions up to {len(migrations)}")
    if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        # All that the migrations would write, in one transaction, and in a fifth of their time: a new node makes thousands of these.
        with _copying:
            _blank(tuple(migrations)).backup(connection)
        return 0
    _migrate_from(connection, version, migrations)
    return int(version)


_copying = threading.Lock()
"""One connection serves the database threads of all disks of the process, one at a time."""


@cache
def _blank(migrations: tuple[str, ...]) -> sqlite3.Connection:
    """A database in memory that the migrations were made to, and that is only read from then on: what a file begins as."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _migrate_from(connection, 0, migrations)
    return connection


def _migrate_from(connection: sqlite3.Connection, version: int, migrations: Sequence[str]) -> None:
    for number in range(version, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in migrations[number].split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def checkpoint(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the database and sync it; False when a reader was in the way: try later."""
    busy, logged, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(busy == 0 and logged == moved)


_second, _second_text = -1, ""


def iso_of(at_ms: int) -> str:
    """Epoch milliseconds as ISO-8601 UTC text, ``2024-05-01T12:00:00.123Z``. Belongs to the database thread."""
    global _second, _second_text
    second, ms = divmod(at_ms, 1000)
    if second != _second:
        _second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second
    return f"{_second_text}.{ms:03d}Z"


def ms_of(text: str) -> int:
    """The inverse of :func:`iso_of`."""
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000
