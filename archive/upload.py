"""Chunks on their way into the archive: packed, compressed, stored, and read back."""

from __future__ import annotations

from dataclasses import dataclass

from amberblob.manifest import ChunkRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One chunk of one version that is to be archived; ``index``: its place in the version, -1: its manifest."""

    chunk: ChunkRef
    slot: int
    blob_id: str
    path: str
    version: int
    index: int
