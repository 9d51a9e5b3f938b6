"""What rots on a disk, played on each kind of store: bits change behind the back of whoever keeps them.

Everything that was applied is in the database before (``settle``), so that it is what rots.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec.structs import replace

from amberblob.digests import DIGEST_BYTES, digest_bytes, digest_of
from amberblob.manifest import Record, Version
from chunkstore import DiskStore, MemoryStore, ReplicaStore

SLOT = 7


class Rot(Protocol):
    """Harm to the slot of the tests."""

    async def chunk(self, version: Version) -> None:
        """A bit of the version's first chunk flips."""
        ...

    async def row(self, path: str, version: int) -> None:
        """A row says something else."""
        ...

    async def lost_row(self, path: str, version: int) -> None:
        """A row is gone."""
        ...

    async def record(self, path: str) -> None:
        """The chosen record says something else."""
        ...

    async def tombstone(self, path: str, version: int) -> None:
        """A row forgets that it was tombstoned."""
        ...

    async def path(self, path: str) -> None:
        """Register and rows of a path are gone."""
        ...

    async def digest(self, path: str) -> None:
        """The digest of a path is another."""
        ...

    async def bucket(self, bucket: int) -> None:
        """The digest of a bucket is another."""
        ...


class MemoryRot:
    """Of a memory store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def chunk(self, version: Version) -> None:
        self._store.corrupt_chunk(SLOT, version.blob_id, version.chunks[0].id)

    async def row(self, path: str, version: int) -> None:
        self._store.damage_row(SLOT, path, version)

    async def lost_row(self, path: str, version: int) -> None:
        self._store.lose_row(SLOT, path, version)

    async def record(self, path: str) -> None:
        self._store.damage_record(SLOT, path)

    async def tombstone(self, path: str, version: int) -> None:
        self._store.lose_tombstone(SLOT, path, version)

    async def path(self, path: str) -> None:
        self._store.lose_path(SLOT, path)

    async def digest(self, path: str) -> None:
        self._store.damage_digest(SLOT, path)

    async def bucket(self, bucket: int) -> None:
        self._store.damage_sum(SLOT, bucket)


class DiskRot:
    """Of a disk: through the connection of the slot's database, and in its files."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store

    async def _change(self, change: Callable[[sqlite3.Connection], object]) -> None:
        await self._store.settle([SLOT])
        await self._store._core.ask(SLOT, lambda database: change(database.connection))

    async def _execute(self, statement: str, *values: object) -> None:
        def change(connection: sqlite3.Connection) -> None:
            assert connection.execute(statement, values).rowcount > 0, "there was nothing to harm"

        await self._change(change)

    async def chunk(self, version: Version) -> None:
        if not version.inline:
            file = self._store.path / "slots" / str(SLOT) / "blobs" / version.blob_id / "chunks" / version.chunks[0].id
            data = bytearray(file.read_bytes())
            data[0] ^= 1
            file.write_bytes(data)
            return

        def change(connection: sqlite3.Connection) -> None:
            query = "SELECT body FROM inline_bodies WHERE blob_id = ?"
            body = bytearray(connection.execute(query, (version.blob_id,)).fetchone()[0])
            body[0] ^= 1
            connection.execute("UPDATE inline_bodies SET body = ? WHERE blob_id = ?", (bytes(body), version.blob_id))

        await self._change(change)
        self._store._core.overlay.verified.drop((SLOT, version.blob_id))

    async def row(self, path: str, version: int) -> None:
        await self._execute(
            "UPDATE blobs SET content_type = content_type || '-rotten' WHERE path = ? AND version = ?", path, version
        )

    async def lost_row(self, path: str, version: int) -> None:
        await self._execute("DELETE FROM blobs WHERE path = ? AND version = ?", path, version)

    async def record(self, path: str) -> None:
        def change(connection: sqlite3.Connection) -> None:
            (text,) = connection.execute("SELECT record FROM registers WHERE path = ?", (path,)).fetchone()
            record = msgspec.json.decode(text, type=Record)
            wrong = msgspec.json.encode(replace(record, changed_at_ms=record.changed_at_ms + 1)).decode()
            connection.execute("UPDATE registers SET record = ? WHERE path = ?", (wrong, path))

        await self._change(change)

    async def tombstone(self, path: str, version: int) -> None:
        await self._execute(
            "UPDATE blobs SET tombstoned_at = NULL WHERE path = ? AND version = ? AND tombstoned_at IS NOT NULL",
            path, version,
        )  # fmt: skip

    async def path(self, path: str) -> None:
        await self._execute("DELETE FROM registers WHERE path = ?", path)
        await self._execute("DELETE FROM blobs WHERE path = ?", path)

    async def digest(self, path: str) -> None:
        await self._execute("UPDATE registers SET digest = ? WHERE path = ?", digest_bytes(1234567), path)

    async def bucket(self, bucket: int) -> None:
        def change(connection: sqlite3.Connection) -> None:
            sums = bytearray(connection.execute("SELECT sums FROM bucket_sums").fetchone()[0])
            at = slice(bucket * DIGEST_BYTES, (bucket + 1) * DIGEST_BYTES)
            sums[at] = digest_bytes((digest_of(bytes(sums[at])) + 1) % 2**256)
            connection.execute("UPDATE bucket_sums SET sums = ?", (bytes(sums),))

        await self._change(change)


def rot_of(store: ReplicaStore) -> Rot:
    """How to harm this store."""
    if isinstance(store, MemoryStore):
        return MemoryRot(store)
    assert isinstance(store, DiskStore)
    return DiskRot(store)
