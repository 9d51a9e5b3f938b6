"""Questions about what a slot's database holds, for comparing with other copies. Belongs to the database thread.

Every question is answered in bounded pieces: whoever asks comes again for the next, and others get their turn in between.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from amberblob.ballot import Register
from amberblob.digests import SHORT_BYTES, path_key
from amberblob.manifest import Version, WriteMark
from amberblob.wire_repair import LogLine, PathItem
from chunkstore.interface import Wanted
from chunkstore.paging import WRITES_MAX, ItemPage, item_of
from chunkstore.rowcodec import UNREADABLE, VERSION_COLUMNS, version_of
from chunkstore.slotdb import SlotDatabase

PATHS_PER_PIECE = 1000
"""Paths whose digest is looked at in one piece: about 2 ms."""

_WEIGHT_MAX = 300
_PATH_WEIGHT = 3
"""What reading one path costs beside its rows, in rows: a piece ends after 300 rows, about 8 ms, or with one path of more."""


@dataclass(slots=True)
class Piece:
    """Where a piece ended: at ``last``; ``done``: there is nothing after it; ``full``: the page has no more room."""

    last: str
    done: bool = False
    full: bool = False


def _marks(database: SlotDatabase, path: str, register: Register) -> list[WriteMark]:
    """What write ids did: by the table, and by the record that is chosen, whose last one is not in it yet."""
    query = "SELECT write_id, op, version, at_ms FROM write_ids WHERE path = ? ORDER BY at_ms DESC LIMIT ?"
    marks = {row[0]: WriteMark(*row) for row in database.connection.execute(query, (path, WRITES_MAX))}
    if register.chosen and register.record is not None:
        marks.update((mark.write_id, mark) for mark in register.record.writes)
    return list(marks.values())


def item(database: SlotDatabase, path: str, below: int | None = None) -> PathItem | None:
    """Everything about a path; None: it is not known here."""
    register = database.register(path)
    rows = iter(database.versions(path, below))
    first = next(rows, None)
    if first is None and register.accepted is None:
        return None

    def newest_first() -> Iterator[Version]:
        if first is not None:
            yield first
            yield from rows

    return item_of(path, register, newest_first(), _marks(database, path, register))


def items(database: SlotDatabase, paths: list[str], below: int | None) -> tuple[list[PathItem], int]:
    """Everything about some of these paths, and how many of them that were."""
    found: list[PathItem] = []
    weight = count = 0
    for path in paths:
        if weight >= _WEIGHT_MAX:
            break
        one = item(database, path, below)
        count += 1
        weight += _PATH_WEIGHT + (len(one.rows) if one is not None else 0)
        if one is not None:
            found.append(one)
    return found, count


def fingerprints(
    database: SlotDatabase, wanted: Mapping[int, list[tuple[bytes, bytes]]], after: str
) -> str | None:  # fmt: skip
    """Add the keys and states of paths above ``after`` to those of ``wanted`` buckets; where to go on, None: that is all."""
    query = "SELECT path, digest FROM registers WHERE path > ? ORDER BY path LIMIT ?"
    rows = database.connection.execute(query, (after, PATHS_PER_PIECE)).fetchall()
    for path, digest in rows:
        if digest is not None:
            key = path_key(path)
            pairs = wanted.get(key[0])
            if pairs is not None:
                pairs.append((key, digest[:SHORT_BYTES]))
    return rows[-1][0] if len(rows) == PATHS_PER_PIECE else None


def fill_page(
    database: SlotDatabase, page: ItemPage, after: str, buckets: Container[int], known: Mapping[bytes, bytes] | None
) -> Piece:
    """Put paths above ``after`` into the page, in order: those of ``buckets`` that ``known`` lacks or has otherwise.

    With ``known`` None all paths, also those of which nothing is known to be chosen.
    """
    query = "SELECT path, digest FROM registers WHERE path > ? ORDER BY path LIMIT ?"
    rows = database.connection.execute(query, (after, PATHS_PER_PIECE)).fetchall()
    weight = 0
    for path, digest in rows:
        if known is not None:
            if digest is None:
                after = path
                continue
            key = path_key(path)
            if key[0] not in buckets or known.get(key) == digest[:SHORT_BYTES]:
                after = path
                continue
        if weight >= _WEIGHT_MAX:
            return Piece(after)
        one = item(database, path)
        if one is not None:
            if not page.add(one):
                return Piece(after, full=True)
            weight += _PATH_WEIGHT + len(one.rows)
        after = path
    return Piece(after, done=len(rows) < PATHS_PER_PIECE)


def log_lines(database: SlotDatabase, after: int, limit: int) -> tuple[list[LogLine], bool]:
    """Lines of the commit log after ``after``, and whether lines between were cut."""
    query = "SELECT seq, path, revision FROM commit_log WHERE seq > ? ORDER BY seq LIMIT ?"
    lines = [LogLine(*row) for row in database.connection.execute(query, (after, limit))]
    if lines:
        return lines, lines[0].seq > after + 1
    return lines, limit > 0 and after < database.tally.log_head


def trim_log(database: SlotDatabase, keep: int, limit: int) -> int:
    """Cut the commit log to its last ``keep`` lines, at most ``limit`` at a time; how many went."""
    (first,) = database.connection.execute("SELECT min(seq) FROM commit_log").fetchone()
    if first is None or first > database.tally.log_head - keep:
        return 0
    last = min(database.tally.log_head - keep, first + limit - 1)
    with database.transaction():
        return database.connection.execute("DELETE FROM commit_log WHERE seq <= ?", (last,)).rowcount


def referred(database: SlotDatabase, blob_id: str) -> tuple[str, Version] | None:
    """The path and the version that the blob belongs to, by its row."""
    query = f"SELECT {VERSION_COLUMNS}, path FROM blobs WHERE blob_id = ?"
    row = database.connection.execute(query, (blob_id,)).fetchone()
    version = None if row is None else _readable(row)
    return None if version is None else (str(row[-1]), version)


def wanted(database: SlotDatabase, limit: int) -> list[Wanted]:
    """Versions whose bytes are not all here, smallest first."""
    columns = ", ".join(f"blobs.{column.strip()}" for column in VERSION_COLUMNS.split(","))
    query = (
        f"SELECT wanted.path, wanted.blob_id, wanted.damaged, {columns} FROM wanted "
        "LEFT JOIN blobs ON blobs.blob_id = wanted.blob_id ORDER BY wanted.bytes, wanted.path, wanted.version LIMIT ?"
    )
    found: list[Wanted] = []
    for path, blob_id, damaged, *row in database.connection.execute(query, (limit,)).fetchall():
        version = _held(database, path, blob_id) if row[0] is None else _readable(tuple(row))
        if version is not None:
            found.append(Wanted(slot=database.slot, path=path, version=version, damaged=bool(damaged)))
    return found


def _readable(row: tuple[str | int | None, ...]) -> Version | None:
    """A row's version; None when the row rotted: scrub finds it, and what is right comes with a new row."""
    try:
        return version_of(row)
    except UNREADABLE:
        return None


def _held(database: SlotDatabase, path: str, blob_id: str) -> Version | None:
    """The version with that blob that the path's register holds, of which no row is known to be chosen."""
    record = database.register(path).record
    for version in (record.head, record.previous) if record is not None else ():
        if version is not None and version.blob_id == blob_id:
            return version
    return None


def memo(database: SlotDatabase, name: str) -> str:
    """A note; empty: none."""
    found = database.connection.execute("SELECT text FROM memos WHERE name = ?", (name,)).fetchone()
    return "" if found is None else str(found[0])


def set_memo(database: SlotDatabase, name: str, text: str) -> None:
    """Keep a note; an empty one is none."""
    with database.transaction():
        if text:
            database.connection.execute("INSERT OR REPLACE INTO memos(name, text) VALUES (?, ?)", (name, text))
        else:
            database.connection.execute("DELETE FROM memos WHERE name = ?", (name,))
