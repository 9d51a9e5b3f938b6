"""Reading objects back: whether the archive still has what the rows say, chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import msgspec

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.errors import AmberError, ArchiveDamaged, ArchiveError, ArchiveMissing
from amberblob.limits import KIB
from archive.frames import FrameReader, damaged
from archive.targets.interface import Target

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


async def verify_object(target: Target, name: str, rows: Sequence[ArchivedChunk]) -> list[Verdict]:
    """Read the frames that these rows name back from one object, and check each to its chunk id. Verdicts in the order of the rows.

    In one request when most of the object is wanted, by ranges when little is. Raises nothing of the archive's: what cannot be reached is ``unknown``.
    Imported content has no hash to check: its rows are ``unknown``, too.
    """
    return await _Check(target, name).carry_out(rows)
