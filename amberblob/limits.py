"""Every bound of the system in one place, with the relations between them asserted at import.

Sizes are bytes, durations seconds. What an operator may change is in :mod:`amberblob.config`; what is
here is fixed, because other nodes or the disk format rely on it.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

PATH_BYTES_MAX = 1024
WRITE_ID_CHARS_MAX = 64
META_BYTES_MAX = 8 * KIB
CONTENT_TYPE_BYTES_MAX = 256
VERSION_MAX = 2**63 - 1
NUMBER_MAX = 2**62
"""Of counters, epochs and the like in messages: room enough to count on from, and SQLite can hold it."""

SLOT_COUNT_DEFAULT = 256
SLOT_COUNT_MAX = 65_536

CHUNK_BYTES_DEFAULT = 8 * MIB
CHUNK_BYTES_MIN = 64 * KIB
CHUNK_BYTES_MAX = 64 * MIB

INLINE_BYTES_MAX = 64 * KIB
"""Bodies up to this size live in the slot's database and reach it through the journal: one fsync, no folder."""

MANIFEST_INLINE_CHUNKS_MAX = 64
"""Longer chunk lists are a file of their own, named by its hash."""

LIVE_RANGES_MAX = 1024
"""How many ranges of live versions one path may have; single-version deletes beyond it are refused (409)."""

RECENT_WRITES_MAX = 8
"""Write ids that a record carries; older ones are looked up in the slot's database."""

LIST_LIMIT_MAX = 1000
HISTORY_PAGE_MAX = 1000

HTTP_HEADER_BYTES_MAX = 16 * KIB

FRAME_BYTES_MAX = 2 * MIB
"""One frame between nodes. Bodies are cut into data frames far below this."""

DATA_FRAME_BYTES = 256 * KIB
STREAM_WINDOW_BYTES = 2 * MIB
"""How much of one stream may be on its way, unread by the receiver."""

PEER_REQUESTS_MAX = 4096
"""Requests under way on one connection; more are refused at once."""

READ_BLOBS_MAX = 512
READ_BLOBS_BYTES_MAX = 4 * MIB
"""How many small blobs a copy may ask for at once, and how large they may be together."""

CLOCK_AHEAD_MAX_S = 60.0
"""A peer whose clock is further ahead than this is refused (its ids would sort into the future)."""

PROMISE_RESERVE = 4096
"""Ballot counters reserved by one durable write, so that a promise needs no fsync of its own."""

PROMISES_IN_MEMORY_MAX = 256
"""Per slot. Beyond it the oldest promises are folded into the slot's floor, which refuses at least as much."""

assert CHUNK_BYTES_MIN >= INLINE_BYTES_MAX, "an inline body is never more than one chunk"
assert CHUNK_BYTES_MIN <= CHUNK_BYTES_DEFAULT <= CHUNK_BYTES_MAX
assert DATA_FRAME_BYTES * 4 <= STREAM_WINDOW_BYTES, "a stream keeps flowing while one frame is consumed"
assert (
    INLINE_BYTES_MAX + MANIFEST_INLINE_CHUNKS_MAX * 128 + LIVE_RANGES_MAX * 24 + META_BYTES_MAX + 64 * KIB
    <= FRAME_BYTES_MAX
)
assert DATA_FRAME_BYTES + KIB <= FRAME_BYTES_MAX
assert SLOT_COUNT_DEFAULT & (SLOT_COUNT_DEFAULT - 1) == 0, "a power of two"
