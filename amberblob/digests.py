"""Digests by which replicas compare what they hold, without sending it (rfc/0012).

A slot's paths are dealt to 256 **buckets**. Each path has a **path digest**: the sum modulo 2^256 of one term for every
version row that is known to be chosen, and one for its register's record if that is known to be chosen. A bucket's digest is the
sum over its paths, a slot's **root** the sum over its buckets. A sum can be kept up to date in the transaction that changes a row, whatever
order the rows come in. Everything that two replicas must agree on is in it, and nothing else: not the ballot (the same record
may be accepted at two), not the time at which a replica heard of it. Whether a version is tombstoned is told by the record.
"""

from __future__ import annotations

import msgspec
from blake3 import blake3

from amberblob.manifest import Record, Version

BUCKETS = 256
"""Per slot."""

DIGEST_BYTES = 32
DIGEST_MODULUS = 1 << (8 * DIGEST_BYTES)

SHORT_BYTES = 8
"""Of a path's key and of its state, and of a bucket's digest, where they are compared: what differs by chance in 1 of 2^64."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")


def bucket_of(path: str) -> int:
    """The bucket of a path within its slot: byte 8 of blake3(path) (the slot uses the bytes before)."""
    return blake3(path.encode()).digest(9)[8]


def path_key(path: str) -> bytes:
    """The short name of a path: 8 bytes of blake3(path), the first of which is its bucket."""
    return blake3(path.encode()).digest(8 + SHORT_BYTES)[8:]


def row_term(path: str, version: Version) -> int:
    """What a chosen version adds to its path's digest."""
    return int.from_bytes(blake3(b"row" + _encoder.encode((path, version))).digest(DIGEST_BYTES), "little")


def record_term(path: str, record: Record) -> int:
    """What a chosen record adds to its path's digest."""
    return int.from_bytes(blake3(b"record" + _encoder.encode((path, record))).digest(DIGEST_BYTES), "little")


def digest_bytes(digest: int) -> bytes:
    """A sum as bytes, least significant first, so that the first 8 are its value modulo 2^64."""
    return digest.to_bytes(DIGEST_BYTES, "little")


def digest_of(data: bytes) -> int:
    """The sum behind :func:`digest_bytes`."""
    return int.from_bytes(data, "little")
