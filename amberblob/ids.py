"""Names: blob ids (ULID), chunk ids (blake3), slots, and the checks that guard the file system.

Every name that becomes part of a file path went through a ``valid_*`` function here.
"""

from __future__ import annotations

import re

from blake3 import blake3
from ulid import ULID

from amberblob.clock import HybridClock, Randomness

_ULID = re.compile(r"\A[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_HASH = re.compile(r"\A[0-9a-f]{64}\Z")
_NODE_ID = re.compile(r"\A[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")

_RANDOM_BITS = 80
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(first + second for first in _BASE32 for second in _BASE32)
_SHIFTS = tuple(range(120, -1, -10))


def valid_ulid(text: str) -> bool:
    """Whether ``text`` is a ULID in its canonical form (26 upper-case Crockford base32 characters)."""
    return _ULID.match(text) is not None


def valid_hash(text: str) -> bool:
    """Whether ``text`` is a blake3 digest in lower-case hex (64 characters)."""
    return _HASH.match(text) is not None


def valid_node_id(text: str) -> bool:
    """Whether ``text`` can name a node: 1 to 63 lower-case letters, digits, dots and hyphens."""
    return _NODE_ID.match(text) is not None


_KEEPING_LOCK_BYTES = 2047
_HASHED_IN_PARTS_BYTES = 8 * 1024


def content_hash(data: bytes | bytearray | memoryview) -> str:
    """The blake3 digest of ``data``, 64 hex characters: the id of a chunk, the etag of a content.

    blake3 lets the interpreter lock go for 2 KiB and more. Whoever then takes it may keep it for a whole switch interval:
    with one busy thread in the process hashing 4 KiB was measured to take 228 µs, and 5 µs in parts that keep the lock
    (alone: 2 µs). So what is small is hashed in such parts.
    """
    size = len(data)
    if _KEEPING_LOCK_BYTES < size <= _HASHED_IN_PARTS_BYTES:
        view, hasher = memoryview(data), blake3()
        for at in range(0, size, _KEEPING_LOCK_BYTES):
            hasher.update(view[at : at + _KEEPING_LOCK_BYTES])
        return hasher.hexdigest()
    return blake3(data).hexdigest()


EMPTY_HASH = content_hash(b"")
"""The etag of an empty object."""


def slot_of(path: str, slot_count: int) -> int:
    """The slot of a path: the first 8 bytes of blake3(path) modulo ``slot_count``."""
    return int.from_bytes(blake3(path.encode()).digest(8), "big") % slot_count


def ulid_time_ms(ulid: str) -> int:
    """The milliseconds since the Unix epoch that a valid ULID bears."""
    return int.from_bytes(ULID.from_str(ulid).bytes[:6], "big")


class UlidMint:
    """Makes ULIDs that grow strictly within this process.

    The library's own generator is monotonic within one thread only, so there is one mint per node and it
    lives on the event loop. The time is the node's hybrid clock; within one millisecond the random part
    counts up (the ULID specification's monotonic rule).
    """

    def __init__(self, clock: HybridClock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._last_ms = -1
        self._last_random = 0

    def mint(self) -> str:
        """A new ULID, greater than every one minted here before."""
        now_ms = self._clock.now_ms()
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            # One bit less, so that counting up within the millisecond cannot overflow in practice.
            self._last_random = int.from_bytes(self._randomness.token(10), "big") >> 1
        else:
            self._last_random += 1
            if self._last_random > _RANDOM_MASK:
                self._last_ms += 1
                self._last_random = 0
        value = (self._last_ms << _RANDOM_BITS) | self._last_random
        # As str(ULID.from_int(value)), at a fifth of the price: every write needs two.
        return "".join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])
