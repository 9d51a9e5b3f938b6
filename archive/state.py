"""What a node notes down of the archive: ``<disk>/archive/archive.sqlite3``.

Most of it is derived, or harmless when it is lost: how far the other copies were followed, where known chunks are, how far jobs are, what
was read when. The marks of condemned objects are not: they are durable before they are told. Should they be lost nevertheless (the file was
damaged, or removed), the file that is begun anew has another :attr:`ArchiveState.identity`, by which a collector finds out before
it deletes anything (rfc/0016, "Deleting from the bucket").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import aiosqlite

from amberblob.archives import ArchivedChunk
from amberblob.clock import Clock, Randomness
from archive.heat import HEAT_MAX
from archive.statedb import StateFile

MARKS_MAX = 200_000
"""Marks of other collectors that are kept; the oldest go at a start. (What was deleted needs them no more: rfc/0016.)"""
JOBS_KEPT = 100
"""The newest jobs by id, whatever became of them."""


class Part(IntEnum):
    """Whose a mark is, and how far its owner is."""

    OTHERS = 0
    """Another node (or this one, as one of those that are asked) was asked to refuse the object's rows."""
    ASKING = 1
    """This node collects: it asks all nodes. To be reprieved, if that is not gone on with."""
    DECIDED = 2
    """This node collects: all have agreed, and it may have been deleted already. Never to be reprieved."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One token on one object. A node that collects has two for an object: its own record, and its answer to itself."""

    name: str
    token: str
    part: Part
    at_ms: int


class ArchiveState:
    """The notes; with no path, in memory only. All methods may raise DiskFailed and DiskFull; those that read return what was written before, also when not durable yet."""

    def __init__(self, path: Path | None, *, clock: Clock, randomness: Randomness) -> None:
        self._file = StateFile(path, clock=clock, randomness=randomness)
        self._clock = clock
        self.found: tuple[Mark, ...] = ()
        """The marks that were there when it was opened."""

    async def open(self) -> None:
        """Open the file, or begin one; a damaged one is moved aside. Raises: DiskMismatch as well: it is a newer version's."""
        await self.prune_marks()
        self.found = tuple(await self.marks())

    @property
    def identity(self) -> str:
        """Of the file; another one once marks may have been lost."""
        return self._file.identity

    async def close(self) -> None:
        """Let go of the file."""
        await self._file.close()

    # -- how far the other copies were followed

    async def cursor(self, slot: int, node: str, incarnation: str) -> int:
        """The ``seq`` up to which the rows of that node's copy were taken over; 0: from the beginning, as for another incarnation of it."""

        async def work(db: aiosqlite.Connection) -> int:
            rows = await db.execute_fetchall(
                "SELECT seq FROM cursors WHERE slot = ? AND node = ? AND incarnation = ?", (slot, node, incarnation)
            )
            return next((int(row[0]) for row in rows), 0)

        return await self._file.read(work)

    async def cursors(self) -> dict[tuple[int, str], tuple[str, int]]:
        """All of them: by slot and node, the incarnation and its ``seq``."""

        async def work(db: aiosqlite.Connection) -> dict[tuple[int, str], tuple[str, int]]:
            rows = await db.execute_fetchall("SELECT slot, node, incarnation, seq FROM cursors")
            return {(slot, node): (incarnation, seq) for slot, node, incarnation, seq in rows}

        return await self._file.read(work)

    async def set_cursors(self, cursors: Sequence[tuple[int, str, str, int]]) -> None:
        """Note ``(slot, node, incarnation, seq)`` of each. What they stand for must be durable by then."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)", cursors)

        await self._file.write(work)

    # -- where known chunks are

    async def learn(self, chunks: Iterable[ArchivedChunk]) -> None:
        """Rows of this node, as they came or changed. A later upload goes before an earlier; a damaged one is known no more.

        Imported content is left out (its chunk ids name no content), and so is what lies in a condemned object.
        """
        chunks = list(chunks)
        known = [_row(chunk) for chunk in chunks if not chunk.foreign and chunk.state >= 0]
        damaged = [
            (chunk.chunk_id, chunk.target_path, chunk.start)
            for chunk in chunks
            if not chunk.foreign and chunk.state < 0
        ]

        async def work(db: aiosqlite.Connection) -> None:
            await db.executemany(_LEARN, known)
            await db.executemany(
                "DELETE FROM known_chunks WHERE chunk_id = ? AND target_path = ? AND range_start = ?", damaged
            )

        if known or damaged:
            await self._file.write(work)

    async def find(self, chunk_ids: Sequence[str], *, verified: bool = True) -> list[ArchivedChunk]:
        """Where the archive has those of these chunks that are known here; ``verified``: only if they were read back."""

        async def work(db: aiosqlite.Connection) -> list[ArchivedChunk]:
            found: list[ArchivedChunk] = []
            for begin in range(0, len(chunk_ids), _FIND_AT_ONCE):
                some = chunk_ids[begin : begin + _FIND_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = await db.execute_fetchall(
                    f"SELECT * FROM known_chunks WHERE chunk_id IN ({marks}) AND state >= ?", (*some, int(verified))
                )
                found += [ArchivedChunk(*row) for row in rows]
            return found

        return await self._file.read(work)

    async def forget_objects(self, names: Sequence[str]) -> None:
        """Nothing in these objects is to be offered any more: they are gone, or damaged as a whole."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.executemany("DELETE FROM known_chunks WHERE target_path = ?", [(name,) for name in names])

        await self._file.write(work)

    async def forget_known(self) -> None:
        """Nothing that is known is to be offered any more: of what was deleted meanwhile this node was not told."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.execute("DELETE FROM known_chunks")

        await self._file.write(work, durable=True)

    # -- condemned objects

    async def marks(self) -> list[Mark]:
        """All of them, in the order of names and tokens."""

        async def work(db: aiosqlite.Connection) -> list[Mark]:
            rows = await db.execute_fetchall("SELECT name, token, own, at_ms FROM condemned ORDER BY name, token, own")
            return [Mark(name, token, Part(own), at_ms) for name, token, own, at_ms in rows]

        return await self._file.read(work)

    async def condemn(self, names: Sequence[str], token: str, part: Part) -> str:
        """Put the token on these objects; durable on return, which is the :attr:`identity` of the file that has it.

        What is known of chunks in them goes in the same transaction.
        """
        now_ms = self._clock.wall_ms()

        async def work(db: aiosqlite.Connection) -> str:
            await db.executemany(
                "INSERT OR REPLACE INTO condemned VALUES (?, ?, ?, ?)",
                [(name, token, int(part), now_ms) for name in names],
            )
            await db.executemany("DELETE FROM known_chunks WHERE target_path = ?", [(name,) for name in names])
            return self._file.identity

        return await self._file.write(work, durable=True)

    async def decide(self, names: Sequence[str], token: str) -> None:
        """What this node asked about under the token is decided: :attr:`Part.ASKING` becomes :attr:`Part.DECIDED`; durable on return."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.executemany(
                "UPDATE condemned SET own = ? WHERE name = ? AND token = ? AND own = ?",
                [(int(Part.DECIDED), name, token, int(Part.ASKING)) for name in names],
            )

        await self._file.write(work, durable=True)

    async def reprieve(self, names: Sequence[str], token: str, part: Part) -> None:
        """Take the token off these objects, of all when there are no ``names``; durable on return."""

        async def work(db: aiosqlite.Connection) -> None:
            if names:
                await db.executemany(
                    "DELETE FROM condemned WHERE name = ? AND token = ? AND own = ?",
                    [(name, token, int(part)) for name in names],
                )
            else:
                await db.execute("DELETE FROM condemned WHERE token = ? AND own = ?", (token, int(part)))

        await self._file.write(work, durable=True)

    async def prune_marks(self, keep: int = MARKS_MAX) -> int:
        """Forget the oldest marks of others beyond ``keep``; how many. As some may be of a deletion under way, the file is another one then."""
        fresh = self._file.new_identity()

        async def work(db: aiosqlite.Connection) -> int:
            cursor = await db.execute(
                """DELETE FROM condemned WHERE own = ?1 AND (name, token) IN
                   (SELECT name, token FROM condemned WHERE own = ?1 ORDER BY at_ms DESC, name LIMIT -1 OFFSET ?2)""",
                (int(Part.OTHERS), keep),
            )
            if cursor.rowcount > 0:
                await self._file.identify(db, fresh)
            return cursor.rowcount

        return await self._file.write(work, durable=True)

    # -- jobs

    async def save_job(self, job: str, status: bytes) -> None:
        """Note how far it is. Of all jobs the newest :data:`JOBS_KEPT` by id are kept (ids are ULIDs)."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job, status))
            await db.execute(
                "DELETE FROM jobs WHERE job <= (SELECT job FROM jobs ORDER BY job DESC LIMIT 1 OFFSET ?)", (JOBS_KEPT,)
            )

        await self._file.write(work)

    async def jobs(self) -> dict[str, bytes]:
        """By id, ascending."""

        async def work(db: aiosqlite.Connection) -> dict[str, bytes]:
            return {row[0]: row[1] for row in await db.execute_fetchall("SELECT job, status FROM jobs ORDER BY job")}

        return await self._file.read(work)

    # -- notes

    async def note(self, name: str) -> str:
        """A text that was noted under that name; empty: none."""

        async def work(db: aiosqlite.Connection) -> str:
            rows = await db.execute_fetchall("SELECT text FROM about WHERE name = ?", (f"note/{name}",))
            return next((str(row[0]) for row in rows), "")

        return await self._file.read(work)

    async def set_note(self, name: str, text: str) -> None:
        """Note a text, for instance when scheduled jobs began last."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (f"note/{name}", text))

        await self._file.write(work)

    # -- when blobs were read

    async def save_heat(self, read: Sequence[tuple[str, int]]) -> None:
        """Note blobs and the minute in which each was last read; the least recent beyond :data:`archive.heat.HEAT_MAX` are forgotten."""

        async def work(db: aiosqlite.Connection) -> None:
            await db.executemany("INSERT OR REPLACE INTO heat VALUES (?, ?)", read)
            count = next(iter(await db.execute_fetchall("SELECT count(*) FROM heat")))[0]
            if count > HEAT_MAX:
                await db.execute(
                    "DELETE FROM heat WHERE blob_id IN (SELECT blob_id FROM heat ORDER BY minute LIMIT ?)",
                    (count - HEAT_MAX,),
                )

        if read:
            await self._file.write(work)

    async def heat(self) -> list[tuple[str, int]]:
        """As noted, the last read first."""

        async def work(db: aiosqlite.Connection) -> list[tuple[str, int]]:
            rows = await db.execute_fetchall("SELECT blob_id, minute FROM heat ORDER BY minute DESC")
            return [(blob_id, minute) for blob_id, minute in rows]

        return await self._file.read(work)


_FIND_AT_ONCE = 500
_LEARN = """
INSERT INTO known_chunks SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE NOT EXISTS (SELECT 1 FROM condemned WHERE name = ?3)
ON CONFLICT (chunk_id) DO UPDATE SET length = excluded.length, target_path = excluded.target_path,
  range_start = excluded.range_start, range_end = excluded.range_end, head = excluded.head,
  archived_at_ms = excluded.archived_at_ms, state = excluded.state
WHERE (excluded.archived_at_ms, excluded.target_path, excluded.range_start, excluded.state)
    > (known_chunks.archived_at_ms, known_chunks.target_path, known_chunks.range_start, known_chunks.state)
"""


def _row(chunk: ArchivedChunk) -> tuple[str, int, str, int, int, str, int, int]:
    return (
        chunk.chunk_id, chunk.length, chunk.target_path, chunk.start, chunk.end, chunk.head, chunk.archived_at_ms, chunk.state,
    )  # fmt: skip
