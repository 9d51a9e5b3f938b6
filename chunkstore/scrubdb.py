"""What a slot's tables say against their digests. Belongs to the database thread.

Nothing here decides what is right: a path that is wrong is named, and what is right comes from another copy. Only what the
record tells by itself (the tombstones) and what the paths' digests tell (the bucket sums) is mended at once.
"""

from __future__ import annotations

from dataclasses import replace

from amberblob.ballot import EMPTY_REGISTER, Register
from amberblob.digests import DIGEST_MODULUS, row_term
from amberblob.manifest import Version, covers
from chunkstore import digestdb
from chunkstore.batchtables import BatchTables
from chunkstore.rowcodec import UNREADABLE, VERSION_COLUMNS, register_of, version_of
from chunkstore.slotdb import SlotDatabase

_ROWS_PER_PIECE = 300
"""A piece ends after about 8 ms, or with one path of more rows."""


class Piece:
    """What was found among some paths, and the last one of them; ``done``: there is none after it."""

    __slots__ = ("count", "done", "last", "versions", "wrong")

    def __init__(self, last: str) -> None:
        self.last = last
        self.done = False
        self.count = 0
        self.wrong: list[str] = []
        self.versions: list[tuple[str, Version]] = []


def check(database: SlotDatabase, after: str, limit: int) -> Piece:
    """Check paths above ``after``, at most ``limit`` of them."""
    piece, weight = Piece(after), 0
    paths = _paths(database, after, limit + 1)
    for path in paths[:limit]:
        if weight >= _ROWS_PER_PIECE:
            return piece
        before = len(piece.versions)
        if not _is_right(database, path, piece.versions):
            piece.wrong.append(path)
        weight += 1 + len(piece.versions) - before
        piece.last = path
        piece.count += 1
    piece.done = len(paths) <= limit
    return piece


def _paths(database: SlotDatabase, after: str, limit: int) -> list[str]:
    """Paths that have a register, or a row that lost its register."""
    sql = database.connection
    query = "SELECT path FROM registers WHERE path > ? ORDER BY path LIMIT ?"
    paths = [path for (path,) in sql.execute(query, (after, limit))]
    bound, values = ("AND path < ?", (after, paths[-1])) if len(paths) == limit else ("", (after,))
    lone = (
        f"SELECT DISTINCT path FROM blobs WHERE path > ? {bound} "
        "AND NOT EXISTS (SELECT 1 FROM registers WHERE registers.path = blobs.path) ORDER BY path"
    )
    paths += [path for (path,) in sql.execute(lone, values)]
    return sorted(paths, key=str.encode)[:limit]


def _is_right(database: SlotDatabase, path: str, versions: list[tuple[str, Version]]) -> bool:
    """Whether a path is what its digest was made of; adds its rows, as far as they can be read. Mends tombstones."""
    sql = database.connection
    found = sql.execute(
        "SELECT accepted_ballot, record, chosen, digest FROM registers WHERE path = ?", (path,)
    ).fetchone()
    right, register, stored = found is not None, EMPTY_REGISTER, None
    if found is not None:
        stored = found[3]
        try:
            register = register_of(*found[:3])
        except UNREADABLE:
            right = False
    digest = digestdb.register_term(path, register)
    dead: dict[int, bool] = {}
    for row in sql.execute(f"SELECT {VERSION_COLUMNS} FROM blobs WHERE path = ? ORDER BY version DESC", (path,)):
        try:
            version = version_of(row)
        except UNREADABLE:
            right = False
            continue
        versions.append((path, version))
        digest += row_term(path, version)
        dead[version.version] = row[11] is not None
    if not right or digestdb.stored(digest % DIGEST_MODULUS) != stored:
        return False
    _mend_tombstones(database, path, register, dead)
    return True


def _mend_tombstones(database: SlotDatabase, path: str, register: Register, dead: dict[int, bool]) -> None:
    record = register.record
    if not register.chosen or record is None:
        return  # the record that is known to be chosen is not here any more; the next one sets them
    # A version above version_max is no business of this record.
    if all(is_dead != covers(record.live, number) for number, is_dead in dead.items() if number <= record.version_max):
        return
    with database.transaction():
        BatchTables(database).tombstones(path, record)


def check_sums(database: SlotDatabase) -> bool:
    """Whether the bucket sums, and the count of paths, are those of the registers; makes them anew if not.

    One piece, so that nothing changes meanwhile: about 4 µs per path, 20 ms for a slot of 4,000 paths.
    """
    sql = database.connection
    kept = sql.execute("SELECT sums FROM bucket_sums").fetchone()
    right = digestdb.sums_of_paths(sql)
    (objects,) = sql.execute("SELECT count(*) FROM registers WHERE record IS NOT NULL").fetchone()
    if kept is not None and kept[0] == right == database.sums and objects == database.tally.objects:
        return True
    with database.transaction():
        database.write_sums(right)
        database.tally = replace(database.tally, root=digestdb.root_of(right), objects=objects)
        database.write_meta(database.state, database.applied)
    return False
