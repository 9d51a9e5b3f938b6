"""How much of a slot goes into one answer about it. Pure; every implementation uses it.

An answer has to fit a frame (:data:`amberblob.limits.FRAME_BYTES_MAX`) whatever the rows are: a row may list 64 chunks and
carry 8 KiB of metadata, and a path may have any number of rows and used write ids.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from amberblob.ballot import Register
from amberblob.limits import FRAME_BYTES_MAX, HISTORY_PAGE_MAX
from amberblob.manifest import Version, WriteMark
from amberblob.wire_repair import PathItem

ROWS_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Of one path's rows in one answer, as the wire has them. The row that reaches it is the last."""

WRITES_MAX = 1000
"""Write ids of one path in one answer: the newest. (A client that repeats a write does so within minutes.)"""

_encoder = msgspec.msgpack.Encoder()


def fitting_rows(newest_first: Iterable[Version]) -> tuple[tuple[Version, ...], int | None]:
    """As many rows as one answer takes, at least one; and below which version there are more (None: these are all)."""
    taken: list[Version] = []
    size = 0
    for row in newest_first:
        if len(taken) == HISTORY_PAGE_MAX or size >= ROWS_BYTES_MAX:
            return tuple(taken), taken[-1].version
        taken.append(row)
        size += len(_encoder.encode(row))
    return tuple(taken), None


def fitting_writes(marks: Iterable[WriteMark]) -> tuple[WriteMark, ...]:
    """The newest of these, oldest first."""
    return tuple(sorted(marks, key=lambda mark: (mark.at_ms, mark.write_id))[-WRITES_MAX:])


def item_of(path: str, register: Register, newest_first: Iterable[Version], marks: Iterable[WriteMark]) -> PathItem:
    """What is told of a path."""
    rows, more_below = fitting_rows(newest_first)
    record = register.record if register.chosen else None
    return PathItem(path, register.accepted, record, register.chosen, rows, fitting_writes(marks), more_below)


class ItemPage:
    """Gathers items until they are about ``size_bytes``; one at least."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.items: list[PathItem] = []

    def add(self, item: PathItem) -> bool:
        """Take it; False: there is no room for it, and the page ends before it."""
        size = len(_encoder.encode(item))
        if self.items and size > self._left:
            return False
        self._left -= size
        self.items.append(item)
        return True
