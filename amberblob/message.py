"""The base of everything that travels between nodes."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, gc=False, frozen=True, array_like=True, kw_only=True):
    """The base of everything that travels between nodes. Made of plain values, so that the cycle collector need not look."""
