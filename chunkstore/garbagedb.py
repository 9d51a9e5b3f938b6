"""What of a slot's bytes is referred to, and what has expired. Belongs to the database thread.

A blob is **referred to** by a row of ``blobs``, or by the record of a register: its head, or the version before it. Nothing
that is referred to is ever removed. (That an intent says REFERENCED does not count: it is what became of a record that
another one took the place of.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import groupby
from typing import cast

from amberblob.manifest import Version
from chunkstore import archivedb
from chunkstore.interface import History
from chunkstore.rowcodec import UNREADABLE, VERSION_COLUMNS, register_of, version_of
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import ms_of

_PATHS_PER_PIECE = 300
_REGISTERS_PER_PIECE = 1000
_WRITES_PER_PIECE = 5000

_REFERENCE = (
    "INSERT INTO intents(blob_id, state, at_ms) VALUES (?, 'REFERENCED', ?) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'REFERENCED' WHERE state <> 'REFERENCED'"
)

_ULID = re.compile('"([0-9A-HJKMNP-TV-Z]{26})"')


def is_complete(database: SlotDatabase, disk_id: str) -> bool:
    """Whether the tables are all that the slot ever had here: a database that was lost is not, before it was filled.

    Until then nothing says what of the files belongs to somebody.
    """
    return database.state.incarnation == disk_id or database.state.synced_epoch > 0


def holder(database: SlotDatabase, blob_id: str) -> tuple[str, Version | None] | None:
    """The path and version that refer to the blob, the version as far as it can be read; None: nothing does.

    Without a row all registers are looked through, about 1 ms for 1,000 of them.
    """
    sql = database.connection
    row = sql.execute(f"SELECT path, {VERSION_COLUMNS} FROM blobs WHERE blob_id = ?", (blob_id,)).fetchone()
    if row is not None:
        try:
            return row[0], version_of(row[1:])
        except UNREADABLE:
            return row[0], None
    for path, *columns in sql.execute(
        "SELECT path, accepted_ballot, record, chosen FROM registers WHERE instr(record, ?)", (f'"{blob_id}"',)
    ):
        try:
            record = register_of(*columns).record
        except UNREADABLE:
            return path, None
        for version in (record.head, record.previous) if record is not None else ():
            if version is not None and version.blob_id == blob_id:
                return path, version
    return None


def referred(database: SlotDatabase, blob_ids: Collection[str]) -> set[str]:
    """Those of these blobs that something refers to. (One that a record only seems to name counts: that is the safe side.)"""
    query = "SELECT 1 FROM blobs WHERE blob_id = ?"
    found = {blob for blob in blob_ids if database.connection.execute(query, (blob,)).fetchone() is not None}
    lone, after = set(blob_ids) - found, cast("str | None", "")
    while lone and after is not None:
        claimed, after = claimed_after(database, lone, after)
        found |= claimed
        lone -= claimed
    return found


def want_damaged(database: SlotDatabase, blob_id: str, *, inline: bool, manifest: bool = False) -> None:
    """Something of the blob failed its hash and is in quarantine: it is wanted, if anything refers to it.

    Of a blob that lives by its archive rows only the manifest is needed here.
    """
    with database.transaction():
        if inline:
            database.connection.execute("DELETE FROM inline_bodies WHERE blob_id = ?", (blob_id,))
        path, version = holder(database, blob_id) or ("", None)
        if version is None or (database.is_marked(blob_id) and not (manifest and version.manifest_id)):
            return
        database.want(path, version, damaged=True)


def want(
    database: SlotDatabase, path: str, version: Version, *, damaged: bool, chunk_ids: Collection[str] | None = None
) -> None:
    """Remember that bytes are missing, if anything refers to the version, and it does not live by its archive rows.

    ``chunk_ids``: what those have to cover; None: its manifest is not here.
    """
    if chunk_ids is not None and archivedb.is_held(database, version.blob_id, chunk_ids):
        return
    if referred(database, [version.blob_id]):
        with database.transaction():
            database.want(path, version, damaged=damaged)


def keep_whole(database: SlotDatabase, versions: Collection[Version]) -> None:
    """All bytes of these are here: those that are referred to are wanted no more, not given up, and need no archive rows."""
    known = referred(database, {version.blob_id for version in versions})
    with database.transaction():
        for version in versions:
            if version.blob_id not in known:
                continue
            if database.is_marked(version.blob_id):
                if version.inline and database.body(version.blob_id) is None:
                    continue  # it was given up since
                database.unmark_evicted(version.blob_id)
            database.unwant(version.blob_id)
            if not version.inline:
                database.connection.execute(_REFERENCE, (version.blob_id, version.created_at_ms))


def release(database: SlotDatabase, blob_id: str, disk_id: str) -> bool:
    """Forget a blob that nothing refers to, with its inline body, so that it can be given up; whether it was so."""
    if not is_complete(database, disk_id) or referred(database, [blob_id]):
        return False
    with database.transaction():
        for table in ("inline_bodies", "intents"):
            database.connection.execute(f"DELETE FROM {table} WHERE blob_id = ?", (blob_id,))
        archivedb.forget(database, blob_id)
        database.unwant(blob_id)
    return True


# ---- orphans


def lone_bodies(database: SlotDatabase, disk_id: str) -> list[str]:
    """Blobs of inline bodies, and of archive rows that wait, that no row has."""
    if not is_complete(database, disk_id):
        return []
    query = "SELECT blob_id FROM inline_bodies AS b WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE blob_id = b.blob_id)"
    lone = [blob_id for (blob_id,) in database.connection.execute(query)]
    if database.tally.archive_staged:
        lone += archivedb.waiting_blobs(database)
    return lone


def without_claims(database: SlotDatabase, blob_ids: Collection[str], disk_id: str) -> set[str]:
    """Those of these blobs that no row, garbage or want knows. Not asked: registers (:func:`claimed_after`), and what is staged."""
    if not is_complete(database, disk_id):
        return set()
    query = (
        "SELECT EXISTS (SELECT 1 FROM blobs WHERE blob_id = ?1) "
        "OR EXISTS (SELECT 1 FROM garbage WHERE blob_id = ?1) OR EXISTS (SELECT 1 FROM wanted WHERE blob_id = ?1) "
        "OR EXISTS (SELECT 1 FROM intents WHERE blob_id = ?1 AND state = 'ARCHIVED')"
    )
    sql = database.connection
    return {blob_id for blob_id in blob_ids if not sql.execute(query, (blob_id,)).fetchone()[0]}


def claimed_after(database: SlotDatabase, suspects: Collection[str], after: str) -> tuple[set[str], str | None]:
    """Those of these blobs that occur in the records of some registers, and where to go on; None: that were all."""
    rows = database.connection.execute(
        "SELECT path, record FROM registers WHERE path > ? ORDER BY path LIMIT ?", (after, _REGISTERS_PER_PIECE)
    ).fetchall()
    claimed: set[str] = set()
    for _, record in rows:
        claimed.update(blob_id for blob_id in _ULID.findall(record or "") if blob_id in suspects)
    return claimed, rows[-1][0] if len(rows) == _REGISTERS_PER_PIECE else None


# ---- garbage


def garbage(database: SlotDatabase, limit: int) -> list[str]:
    """Blobs whose rows have expired, the oldest first as far as that is known."""
    query = "SELECT blob_id FROM garbage ORDER BY blob_id LIMIT ?"
    return [blob_id for (blob_id,) in database.connection.execute(query, (limit,))]


def still_garbage(database: SlotDatabase, blob_ids: Collection[str]) -> set[str]:
    """Those of these whose files may go: no row refers to them, and nobody brought their bytes anew since they expired.

    Registers are not asked: :func:`claimed_after`. (A record that came to hold one since then brought an intent with it.)
    """
    query = (
        "SELECT EXISTS (SELECT 1 FROM blobs WHERE blob_id = ?1) OR EXISTS (SELECT 1 FROM intents WHERE blob_id = ?1) "
        "OR EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = ?1)"
    )
    sql = database.connection
    return {blob_id for blob_id in blob_ids if not sql.execute(query, (blob_id,)).fetchone()[0]}


def end_garbage(database: SlotDatabase, blob_ids: Iterable[str]) -> None:
    """The files of these are gone, or belong to somebody again."""
    with database.transaction():
        database.connection.executemany("DELETE FROM garbage WHERE blob_id = ?", [(blob,) for blob in blob_ids])


# ---- retention


def histories(database: SlotDatabase, after: str, limit: int) -> tuple[list[History], str, bool]:
    """Of some paths above ``after`` those with something to expire, at most ``limit``; the last one, and whether it is the end."""
    sql = database.connection
    registers = sql.execute(
        "SELECT path, accepted_ballot, record, chosen, digest FROM registers WHERE path > ? ORDER BY path LIMIT ?",
        (after, _PATHS_PER_PIECE),
    ).fetchall()
    if not registers:
        return [], after, True
    rows = sql.execute(
        "SELECT path, version, created_at, tombstoned_at FROM blobs WHERE path > ? AND path <= ? ORDER BY path, version",
        (after, registers[-1][0]),
    ).fetchall()
    of_path = {path: list(group) for path, group in groupby(rows, key=lambda row: row[0])}
    found: list[History] = []
    for path, *columns, digest in registers:
        own = of_path.get(path, [])
        if digest is None or (len(own) == 1 and own[0][3] is None):
            after = path
            continue
        if len(found) == limit:
            return found, after, False
        after = path
        history = _history(path, columns, own)
        if history is not None:
            found.append(history)
    return found, after, len(registers) < _PATHS_PER_PIECE


def _history(
    path: str, columns: list[str | int | None], rows: list[tuple[str, int, str, str | None]]
) -> History | None:
    """None: something of it cannot be read. Scrub finds that; nothing expires meanwhile."""
    try:
        register = register_of(*columns)  # type: ignore[arg-type]
        told = tuple((row[1], ms_of(row[2]), None if row[3] is None else ms_of(row[3])) for row in rows)
    except UNREADABLE:
        return None
    return History(path=path, record=register.record if register.chosen else None, rows=told)


def forget_writes(
    database: SlotDatabase, after: tuple[str, str], older_than_ms: int, limit: int
) -> tuple[int, tuple[str, str] | None]:
    """Of the write ids after this one remove old ones, at most ``limit``; how many, and where to go on (None: the end).

    Those that the path's record names stay: a retry is answered from there, or from the table when the record is not chosen.
    """
    sql = database.connection
    rows = sql.execute(
        "SELECT path, write_id, at_ms FROM write_ids WHERE (path, write_id) > (?, ?) ORDER BY path, write_id LIMIT ?",
        (*after, _WRITES_PER_PIECE),
    ).fetchall()
    old: list[tuple[str, str]] = []
    for path, write_id, at_ms in rows:
        if len(old) == limit:
            break
        after = (path, write_id)
        if at_ms < older_than_ms and not _is_named(database, path, write_id):
            old.append(after)
    if old:
        with database.transaction():
            sql.executemany("DELETE FROM write_ids WHERE path = ? AND write_id = ?", old)
    return len(old), after if len(rows) == _WRITES_PER_PIECE else None


def _is_named(database: SlotDatabase, path: str, write_id: str) -> bool:
    query = "SELECT instr(record, ?) FROM registers WHERE path = ?"
    found = database.connection.execute(query, (f'"{write_id}"', path)).fetchone()
    return found is not None and bool(found[0])
