"""The memory twin of a disk: same answers, no files. For tests and simulations.

Durability is modelled by one promise only: nothing is lost while the object lives. :attr:`MemoryStore.full` and the methods of
:class:`chunkstore.memory_damage.MemoryDamage` play a bad disk. The store is made of layers, each a module: what they share
(``memory_base``), comparing and mending (``memory_repair``), scrub and garbage (``memory_upkeep``), damage, and registers and
bytes here.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator
from typing import assert_never

from msgspec.structs import replace

from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.errors import ChunkCorrupt, ChunkMissing, DigestMismatch, DiskFailed, StorageError
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version, WriteMark
from amberblob.mutations import (
    Aborted,
    Accepted,
    Archived,
    Chosen,
    EpochSeen,
    Evicted,
    Forgotten,
    Installed,
    Mutation,
    Reserved,
    Staged,
    Synced,
)
from amberblob.prefixes import group_of
from amberblob.wire import HistoryRow, ScanEntry
from chunkstore import rules
from chunkstore.content import Content, joined
from chunkstore.files import checked_hash, checked_ulid
from chunkstore.index import Page
from chunkstore.interface import BlobState, Buffer
from chunkstore.memory_damage import MemoryDamage
from chunkstore.memory_state import MemorySlot, PathState
from chunkstore.overlay import Intent


class MemoryStaging:
    """One blob on its way in."""

    def __init__(self, store: MemoryStore, slot: int, blob_id: str, chunk_bytes: int, *, revive: bool) -> None:
        self._store = store
        self._revive = revive
        self._slot = slot
        self._blob_id = blob_id
        self._chunk_bytes = chunk_bytes
        self._data = bytearray()
        self._over = False

    async def write(self, data: Buffer) -> None:
        """Append bytes."""
        assert not self._over, "write after the end"
        self._store.guard()
        self._data += data

    async def finish(self, chunks: tuple[ChunkRef, ...], manifest: bytes | None) -> None:
        """Check and keep."""
        assert not self._over, "finish after the end"
        self._over = True
        self._store.guard()
        data, step = bytes(self._data), self._chunk_bytes
        parts = [data[at : at + step] for at in range(0, len(data), step)]
        if tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts) != tuple(chunks):
            raise DigestMismatch("the bytes are not the chunks that were announced; nothing was stored")
        self._store.publish(self._slot, self._blob_id, parts, manifest, revive=self._revive)

    async def abort(self) -> None:
        """Forget it."""
        self._over = True
        self._data.clear()


class MemoryStore(MemoryDamage):
    """A :class:`chunkstore.interface.ReplicaStore` in memory.

    Args:
        wall_ms: milliseconds since the Unix epoch, for the time of staging.
    """

    def __init__(self, disk_id: str, *, wall_ms: Callable[[], int] = lambda: 0) -> None:
        super().__init__(disk_id, wall_ms=wall_ms)
        self._begun_anew = 0

    def counts(self) -> dict[str, int]:
        """See the interface."""
        return {}

    # -- registers

    def slot_state(self, slot: int) -> SlotState:
        """See the interface; so for all that follows."""
        known = self._slots.get(slot)
        return known.state if known else SlotState(slot=slot, incarnation=self.disk_id)

    def incarnations(self) -> dict[int, str]:
        return {
            slot: known.state.incarnation
            for slot, known in self._slots.items()
            if known.state.incarnation != self.disk_id
        }

    async def begin_anew(self, slot: int, *, fresh: bool = False) -> str:
        self._raise_if_failed()
        known = self._slots.get(slot)
        if known is None and not fresh:
            return self.disk_id
        state = self.slot_state(slot)
        if fresh or known is None or known.registers or known.paths or state.synced_epoch:
            self._begun_anew += 1
            incarnation = f"{self.disk_id}.{self._begun_anew}"
            self.lose_slot(slot, incarnation)
            self._slots[slot].state = replace(state, incarnation=incarnation, synced_epoch=0)
        return self._slots[slot].state.incarnation

    async def holds(self, slot: int) -> bool:
        known = self._slots.get(slot)
        return known is not None and bool(known.registers or known.paths or known.state.synced_epoch or known.files)

    async def leave(self, slot: int) -> str:
        incarnation = await self.begin_anew(slot)
        known = self._slots.get(slot)
        if known is not None:
            known.files.clear()
            known.incomplete.clear()
        return incarnation

    async def sweep_left(self, slot: int, limit: int) -> tuple[int, int]:
        return 0, 0

    def peek(self, slot: int, path: str) -> Register | None:
        known = self._slots.get(slot)
        return known.registers.get(path, EMPTY_REGISTER) if known else EMPTY_REGISTER

    async def load(self, slot: int, path: str) -> Register:
        return self.peek(slot, path) or EMPTY_REGISTER

    def position(self, slot: int, path: str) -> int:
        return 0

    def when_durable(self, position: int, callback: Callable[[DiskFailed | None], None]) -> None:
        assert position <= self._position, "nobody can wait for what was not applied"
        callback(None if self.failed is None else DiskFailed(self.failed))

    async def durable(self, position: int) -> None:
        assert position <= self._position, "nobody can wait for what was not applied"
        self._raise_if_failed()

    def apply(self, mutation: Mutation) -> int:
        self._raise_if_failed()
        at = self._slot(mutation.slot)
        match mutation:
            case Accepted():
                self._accepted(at, mutation)
            case Chosen():
                self._chosen(at, mutation)
            case Installed():
                self._installed(at, mutation)
            case Forgotten():
                self._forgotten(at, mutation)
                at.state = rules.change_slot(at.state, mutation)
            case Reserved() | EpochSeen() | Synced():
                at.state = rules.change_slot(at.state, mutation)
            case Staged():
                known = at.intents.get(mutation.blob_id)
                if known is None or known[0] is Intent.ARCHIVED or (mutation.revived and known[0] is Intent.ABORTED):
                    at.intents[mutation.blob_id] = (Intent.STAGED, mutation.at_ms)
            case Aborted():
                known = at.intents.get(mutation.blob_id)
                if known is None or known[0] is not Intent.REFERENCED:
                    at.intents[mutation.blob_id] = (Intent.ABORTED, 0)
                    if at.waiting.pop(mutation.blob_id, None) is not None:
                        at.evicted.discard(mutation.blob_id)
            case Archived():
                self._archived(at, mutation)
            case Evicted():
                self._evicted(at, mutation)
            case _:
                assert_never(mutation)
        self._position += 1
        return self._position

    def _accepted(self, at: MemorySlot, mutation: Accepted) -> None:
        before = at.registers.get(mutation.path, EMPTY_REGISTER)
        after, record = rules.accept(before, mutation), mutation.record
        with self._changing(at, mutation.path, logged=False) as path:
            path.add_row(record.previous)
            path.add_writes(record.writes[:-1])
        if after is before:
            return
        self._set_register(at, mutation.path, after)
        if record.added is not None:
            at.intents[record.added.blob_id] = (Intent.REFERENCED, record.added.created_at_ms)
            if mutation.body is not None:
                at.bodies[record.added.blob_id] = mutation.body
            # It is accepted only once its bytes are here, whatever was missing of them before.
            at.wanted.pop(record.added.blob_id, None)
        self._release(at, mutation.path, before)

    def _chosen(self, at: MemorySlot, mutation: Chosen) -> None:
        before = at.registers.get(mutation.path, EMPTY_REGISTER)
        record, after = rules.chosen_record(before, mutation), rules.choose(before, mutation)
        if after is not before:
            self._set_register(at, mutation.path, after)
        if record is None:
            return
        with self._changing(at, mutation.path) as path:
            path.learn(record)
        self._release(at, mutation.path, before)

    def _installed(self, at: MemorySlot, mutation: Installed) -> None:
        before = at.registers.get(mutation.path, EMPTY_REGISTER)
        after = rules.install(before, mutation)
        if after is not before:
            self._set_register(at, mutation.path, after)
        with self._changing(at, mutation.path) as path:
            if mutation.replace:
                # What is here is not what its digest was made of: it is made anew.
                path.terms.clear()
                path.record_term = None
            if mutation.record is not None:
                path.learn(mutation.record, replace=mutation.replace)
            for version in sorted(mutation.rows, key=lambda row: row.version):
                path.add_row(version, replace=mutation.replace)
            path.add_writes(mutation.writes)
        self._release(at, mutation.path, before)

    def _release(self, at: MemorySlot, name: str, before: Register) -> None:
        """The register held a record that is no longer there: what it kept of expired versions is garbage."""
        if before.record is None or before.record is at.registers[name].record:
            return
        for version in (before.record.head, before.record.previous):
            if version is None or not at.paths[name].is_expired(version.version):
                continue
            if at.referred(version.blob_id) is None:
                at.wanted.pop(version.blob_id, None)
                self._archives_expire(at, version.blob_id)
                at.garbage[version.blob_id] = version

    def _forgotten(self, at: MemorySlot, mutation: Forgotten) -> None:
        known = at.paths.get(mutation.path)
        if (known is not None and known.rows) or not rules.forget(
            at.registers.get(mutation.path, EMPTY_REGISTER), mutation
        ):
            return
        del at.registers[mutation.path]
        at.path(mutation.path).newest_chosen = None
        self._unlist(mutation.path)

    @contextlib.contextmanager
    def _changing(self, at: MemorySlot, name: str, *, logged: bool = True) -> Iterator[PathState]:
        """A path whose rows change: what is wanted, kept or garbage afterwards follows from how they differ.

        ``logged``: a change is a line of the commit log.
        """
        path = at.path(name)
        before = {number: version for number, (version, _) in path.rows.items()}
        newest, writes = path.newest_chosen, len(path.writes)
        yield path
        path.bury()
        for version in path.drop_expired():
            if before.pop(version.version, None) is not None:
                at.wanted.pop(version.blob_id, None)
                self._archives_expire(at, version.blob_id)
                at.garbage[version.blob_id] = version
        changed = newest is not path.newest_chosen or writes != len(path.writes)
        for number, (version, _) in path.rows.items():
            old = before.get(number)
            if old is version:
                continue
            changed = True
            if old is not None:
                at.wanted.pop(old.blob_id, None)
                if old.blob_id != version.blob_id:
                    self._row_renamed(at, old.blob_id)
            at.intents[version.blob_id] = (Intent.REFERENCED, version.created_at_ms)
            if self._row_came(at, name, version):
                continue
            is_held = at.is_covered(version) if version.blob_id in at.evicted else at.is_whole(version)
            if not is_held:
                at.want(name, version, damaged=False)
        if changed and logged:
            at.log.append((name, path.newest_chosen.revision if path.newest_chosen is not None else 0))

    # -- history and listing

    def _path(self, slot: int, path: str) -> PathState:
        known = self._slots.get(slot)
        return known.paths.get(path, PathState()) if known else PathState()

    async def rows(
        self, slot: int, path: str, *, version: int | None = None, below: int | None = None, limit: int = 1000
    ) -> list[HistoryRow]:
        rows = self._path(slot, path).rows
        numbers = sorted(
            (n for n in rows if (version is None or n == version) and (below is None or n < below)), reverse=True
        )
        return [HistoryRow(*rows[number]) for number in numbers[:limit]]

    async def find_write(self, slot: int, path: str, write_id: str) -> WriteMark | None:
        return self._path(slot, path).writes.get(write_id)

    async def undecided(self, slot: int) -> list[str]:
        known = self._slots.get(slot)
        return sorted(path for path, register in known.registers.items() if not register.chosen) if known else []

    def slots(self) -> list[int]:
        return sorted(self._slots)

    async def scan(self, prefix: str, start: str, delimiter: str, limit: int, *, dead: bool = True) -> Page:
        entries: list[ScanEntry] = []
        done: str | None = None
        for path in self._paths[bisect.bisect_left(self._paths, max(prefix, start)) :]:
            if not path.startswith(prefix):
                break
            group, entry = group_of(path, prefix, delimiter), self._index[path]
            if not dead and not rules.is_visible(entry):
                continue
            if group is not None:
                if group == done or not rules.is_visible(entry):
                    continue
                done = group
            if len(entries) == limit:
                return Page(tuple(entries), path)
            entries.append(entry)
        return Page(tuple(entries), None)

    # -- bytes

    async def blob_state(self, slot: int, blob_id: str) -> BlobState:
        checked_ulid(blob_id)
        at = self._slots.get(slot)
        if at is None:
            return BlobState.ABSENT
        intent = at.intents.get(blob_id)
        if intent is not None and intent[0] is Intent.ABORTED:
            return BlobState.ABORTED
        here = blob_id in at.bodies or (blob_id in at.files and blob_id not in at.incomplete)
        if blob_id in at.evicted:
            here = here or blob_id not in at.waiting or self._waiting_suffice(at, blob_id)
        return BlobState.DURABLE if here else BlobState.ABSENT

    async def stage(
        self, slot: int, blob_id: str, *, chunk_bytes: int, size: int | None, revive: bool = False
    ) -> MemoryStaging:
        checked_ulid(blob_id)
        self.guard()
        return MemoryStaging(self, slot, blob_id, chunk_bytes, revive=revive)

    def publish(self, slot: int, blob_id: str, parts: list[bytes], manifest: bytes | None, *, revive: bool) -> None:
        """Keep a blob that was checked. For :class:`MemoryStaging`."""
        at = self._slot(slot)
        intent = at.intents.get(blob_id)
        if intent is not None and intent[0] is Intent.ABORTED and not revive:
            raise StorageError(f"blob {blob_id} was given up here before; a new attempt needs a new blob id")
        self.apply(Staged(slot, blob_id, self._wall_ms(), revive))
        at.files[blob_id] = {content_hash(part): part for part in parts}
        if manifest is not None:
            at.files[blob_id][content_hash(manifest)] = manifest
        at.incomplete.discard(blob_id)

    async def discard(self, slot: int, blob_id: str) -> None:
        checked_ulid(blob_id)
        at = self._slot(slot)
        if at.referred(blob_id) is not None:
            return
        is_staged = at.intents.get(blob_id, (None, 0))[0] is Intent.STAGED
        if self._is_being_filled(at) and not is_staged and (blob_id in at.files or blob_id in at.bodies):
            return
        # REFERENCED by a record that another one took the place of: it has neither row nor register.
        at.intents.pop(blob_id, None)
        self.apply(Aborted(slot, blob_id))
        at.files.pop(blob_id, None)
        at.bodies.pop(blob_id, None)
        if at.waiting.pop(blob_id, None) is not None:
            at.evicted.discard(blob_id)

    def peek_body(self, slot: int, blob_id: str) -> bytes | None:
        at = self._slots.get(slot)
        return None if at is None or blob_id in at.corrupt else at.bodies.get(blob_id)

    async def read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef, *, fresh: bool = False) -> bytes:
        checked_ulid(blob_id)
        at = self._slots.get(slot)
        body = at.bodies.get(blob_id) if at else None
        data = body if body is not None else self._file(slot, blob_id, checked_hash(chunk.id))
        if len(data) == chunk.len and content_hash(data) == chunk.id:
            return data
        raise self._give_up(slot, blob_id, chunk.id)

    async def read_chunk_into(self, slot: int, blob_id: str, chunk: ChunkRef, into: memoryview) -> bytes:
        return await self.read_chunk(slot, blob_id, chunk)

    async def read_manifest(self, slot: int, blob_id: str, manifest_id: str) -> bytes:
        checked_ulid(blob_id)
        data = self._file(slot, blob_id, checked_hash(manifest_id))
        if content_hash(data) == manifest_id:
            return data
        raise self._give_up(slot, blob_id, manifest_id)

    def _file(self, slot: int, blob_id: str, name: str) -> bytes:
        at = self._slots.get(slot)
        data = at.files.get(blob_id, {}).get(name) if at else None
        if data is None:
            raise ChunkMissing(f"{name} of blob {blob_id} (slot {slot}) is not in this store")
        return data

    def _give_up(self, slot: int, blob_id: str, name: str) -> ChunkCorrupt:
        at = self._slots[slot]
        holder = at.referred(blob_id)
        if holder is not None and (blob_id not in at.evicted or name == holder[1].manifest_id):
            at.want(*holder, damaged=True)
        if blob_id in at.bodies:
            del at.bodies[blob_id]
            at.corrupt.discard(blob_id)
        else:
            del at.files[blob_id][name]
            at.incomplete.add(blob_id)
        return ChunkCorrupt(f"chunk {name} of blob {blob_id} (slot {slot}) fails its hash")

    async def missing_chunks(self, slot: int, version: Version, chunks: tuple[ChunkRef, ...]) -> list[ChunkRef]:
        at = self._slot(slot)
        if version.inline:
            body = at.bodies.get(version.blob_id)
            return [chunk for chunk in chunks if body is None or len(body) != chunk.len]
        here = at.files.get(version.blob_id, {})
        return [chunk for chunk in chunks if len(here.get(chunk.id, b"")) != chunk.len]

    async def install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        self._install(slot, version, chunk.id, joined(data), body=version.inline)

    async def install_manifest(self, slot: int, version: Version, manifest: bytes) -> None:
        if version.manifest_id is None:
            raise DigestMismatch("the version has no manifest file")
        self._install(slot, version, version.manifest_id, manifest, body=False)

    def _install(self, slot: int, version: Version, name: str, data: bytes, *, body: bool) -> None:
        self.guard()
        if content_hash(data) != name:
            raise DigestMismatch(f"the bytes are not {name}; nothing was stored")
        at = self._slot(slot)
        if body:
            at.bodies[version.blob_id] = data
            at.corrupt.discard(version.blob_id)
            at.evicted.discard(version.blob_id)
            return
        if version.blob_id not in at.files:
            at.incomplete.add(version.blob_id)
        files = at.files.setdefault(version.blob_id, {})
        files[name] = data
        if at.is_whole(version):
            at.incomplete.discard(version.blob_id)

    async def sweep_staged(self, older_than_ms: int, limit: int) -> int:
        old = [
            (slot, blob_id)
            for slot, at in self._slots.items()
            for blob_id, (intent, at_ms) in at.intents.items()
            if intent in (Intent.STAGED, Intent.ARCHIVED) and at_ms < older_than_ms
        ][:limit]
        for slot, blob_id in old:
            await self.discard(slot, blob_id)
        return len(old)

    async def close(self) -> None:
        """Nothing to let go of."""
