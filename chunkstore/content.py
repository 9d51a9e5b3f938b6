"""Bytes that are put back, in one piece or in the pieces in which they came: to join those of a large chunk costs as much as to write them."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from amberblob.ids import content_hash

Content = bytes | Sequence[bytes | memoryview]
"""The bytes of one chunk. Nobody changes them any more."""


def pieces_of(content: Content) -> Sequence[bytes | memoryview]:
    """The pieces, in order."""
    return (content,) if isinstance(content, bytes) else content


def size_of(content: Content) -> int:
    """How many bytes all pieces have."""
    return len(content) if isinstance(content, bytes) else sum(len(piece) for piece in content)


def hash_of(content: Content) -> str:
    """The blake3 digest of all pieces, one behind the other: 64 hex characters."""
    pieces = pieces_of(content)
    if len(pieces) == 1:
        return content_hash(pieces[0])
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def joined(content: Content) -> bytes:
    """All in one piece. For what is small."""
    return content if isinstance(content, bytes) else b"".join(content)
