"""Reading objects back: whether the archive still has what the rows say, chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.errors import AmberError, ArchiveDamaged, ArchiveError, ArchiveMissing
from amberblob.limits import KIB
from archive.closing import closing
from archive.frames import FrameReader, damaged
from archive.targets.guarded import confirm
from archive.targets.interface import Source

Outcome = Literal["verified", "damaged", "missing", "unknown"]

MOSTLY = 0.5
"""If at least this share of the span is wanted, it is read in one request."""
GAP_BYTES = 256 * KIB
"""Otherwise so many unwanted bytes are read rather than asking once more."""
LOOKS_MAX = 16
"""Frames that were found damaged are read once more, each by itself, so that what went wrong on the way is no fact; so many of one object."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen of one row's chunk.

    Attributes:
        outcome: ``verified``: every byte was read back and has the chunk's hash. ``damaged``, ``missing``: facts. ``unknown``: it could not be looked at now.
        error: why it is not verified.
    """

    row: ArchivedChunk
    outcome: Outcome
    error: AmberError | None = None

    def told(self, now_ms: int) -> ArchivedChunk | None:
        """The row as it is to be told from now on; None: there is no news of it."""
        if self.outcome == "unknown":
            return None
        return msgspec.structs.replace(self.row, state=now_ms if self.outcome == "verified" else DAMAGED)


async def verify_object(target: Source, name: str, rows: Sequence[ArchivedChunk]) -> list[Verdict]:
    """Read the frames that these rows name back from one object, and check each to its chunk id. Verdicts in the order of the rows.

    In one request when most of the object is wanted, by ranges when little is. Raises nothing of the archive's: what cannot be reached is ``unknown``.
    Imported content has no hash to check: its rows are ``unknown``, too.
    """
    return await _Check(target, name).carry_out(rows)


class _Check:
    """One call of :func:`verify_object`."""

    def __init__(self, target: Source, name: str) -> None:
        self._target, self._name = target, name
        self._seen: dict[ArchivedChunk, tuple[Outcome, AmberError | None]] = {}

    async def carry_out(self, rows: Sequence[ArchivedChunk]) -> list[Verdict]:
        for row in rows:
            if row.target_path != self._name:
                raise ValueError(f"{row.target_path} is not {self._name}")
        frames = {row: row.frame for row in rows if not row.foreign}
        await self._read_all([row for row in set(frames.values()) if self._possible(row)])
        await self._look_again()
        await self._look_whose()
        return [Verdict(row, *self._seen.get(frames.get(row, row), ("unknown", None))) for row in rows]

    def _possible(self, row: ArchivedChunk) -> bool:
        try:
            FrameReader(row)
        except ArchiveDamaged as error:
            self._seen[row] = "damaged", error
            return False
        return True

    async def _read_all(self, rows: list[ArchivedChunk], *, again: bool = False) -> None:
        """Read all of these; each has been seen on return."""
        try:
            for run in runs(rows):
                await self._read(run)
        except ArchiveMissing as error:
            self._unseen(rows, "missing", error)
        except ArchiveDamaged as error:
            if again:
                self._unseen(rows, "unknown", error)
            else:
                await self._shorter(rows, error)
        except ArchiveError as error:
            self._unseen(rows, "unknown", error)

    async def _read(self, run: list[ArchivedChunk]) -> None:
        loop, walk = asyncio.get_running_loop(), _Walk(run)
        async with closing(self._target.read(self._name, run[0].start, run[-1].end)) as arriving:
            async for data in arriving:
                for row, error in await loop.run_in_executor(None, walk.feed, data):
                    self._seen[row] = ("verified", None) if error is None else ("damaged", error)
        if walk.left:
            raise damaged(walk.left[0], "it ends too early")

    async def _shorter(self, rows: list[ArchivedChunk], error: ArchiveDamaged) -> None:
        """The object does not have all bytes that were asked for: what lies beyond its end is damaged, the rest may be right."""
        try:
            size = (await self._target.head(self._name)).size_bytes
        except ArchiveMissing as missing:
            self._unseen(rows, "missing", missing)
        except ArchiveError as other:
            self._unseen(rows, "unknown", other)
        else:
            self._unseen([row for row in rows if row.end > size], "damaged", error)
            await self._read_all([row for row in rows if row not in self._seen], again=True)

    def _unseen(self, rows: Iterable[ArchivedChunk], outcome: Outcome, error: AmberError) -> None:
        for row in rows:
            self._seen.setdefault(row, (outcome, error))

    async def _look_again(self) -> None:
        """Read what looked damaged once more: damage is a fact that is never taken back, so it must not be the network's."""
        bad = [row for row, (outcome, _) in self._seen.items() if outcome == "damaged" and self._possible(row)]
        confirmed = True
        for row in bad[:LOOKS_MAX]:
            del self._seen[row]
            try:
                await self._read([row])
            except ArchiveDamaged as error:
                self._seen[row] = "damaged", error
            except ArchiveMissing as error:
                self._seen[row] = "missing", error
            except ArchiveError as error:
                self._seen[row] = "unknown", error
            confirmed = confirmed and self._seen[row][0] in ("damaged", "missing")
        if not confirmed:
            for row in bad[LOOKS_MAX:]:
                self._seen[row] = "unknown", self._seen[row][1]

    async def _look_whose(self) -> None:
        """Of a target that is another one than what the rows are of, or may be, nothing is known."""
        if not any(outcome in ("damaged", "missing") for outcome, _ in self._seen.values()):
            return
        try:
            await confirm(self._target)
        except ArchiveError as error:
            for row, (outcome, _) in self._seen.items():
                if outcome != "verified":
                    self._seen[row] = "unknown", error


class _Walk:
    """Checks frames that lie one behind the other in one stream of bytes. For any thread, one at a time.

    Attributes:
        left: what has not come whole yet, in order.
    """

    def __init__(self, run: list[ArchivedChunk]) -> None:
        self.left = run[::-1]
        self._at = run[0].start
        self._reader = FrameReader(run[0])
        self._error: ArchiveDamaged | None = None

    def feed(self, data: bytes) -> list[tuple[ArchivedChunk, ArchiveDamaged | None]]:
        """The next bytes; returns the frames that are through, and what is wrong with them."""
        out: list[tuple[ArchivedChunk, ArchiveDamaged | None]] = []
        view = memoryview(data)
        while view and self.left:
            row = self.left[-1]
            until = row.start if self._at < row.start else row.end
            part = view[: until - self._at]
            view = view[len(part) :]
            if self._at >= row.start and self._error is None:
                self._check(part)
            self._at += len(part)
            if self._at < row.end:
                continue
            if self._error is None:
                self._check(None)
            out.append((row, self._error))
            self.left.pop()
            if self.left:
                self._reader, self._error = FrameReader(self.left[-1]), None
        return out

    def _check(self, part: memoryview | None) -> None:
        try:
            if part is None:
                self._reader.finish()
            else:
                self._reader.feed(part)
        except ArchiveDamaged as error:
            self._error = error


def runs(rows: list[ArchivedChunk]) -> list[list[ArchivedChunk]]:
    """Which frames are read by one request: one behind the other, with no more between them than is cheaper to read than to ask again."""
    rows = sorted(rows, key=lambda row: (row.start, row.end))
    if not rows:
        return []
    wanted = sum(row.end - row.start for row in rows)
    span = max(row.end for row in rows) - rows[0].start
    gap = span if wanted >= MOSTLY * span else GAP_BYTES
    runs = [[rows[0]]]
    for row in rows[1:]:
        if 0 <= row.start - runs[-1][-1].end <= gap:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
