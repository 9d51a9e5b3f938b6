"""Playing a bad disk: what tests and simulations do to a memory store.

Rows, records and tombstones change behind the back of their digests, as bits do that rot. :meth:`MemoryDamage.rewind` and
:meth:`MemoryDamage.forget_path` are the other kind: a state that the copy really was in before (its digests agree with it),
which others have left since.
"""

from __future__ import annotations

from msgspec.structs import replace

from amberblob.ballot import Register, SlotState
from amberblob.digests import DIGEST_MODULUS
from amberblob.manifest import Version, covers
from chunkstore.memory_archive import MemoryArchive
from chunkstore.memory_state import MemorySlot


class MemoryDamage(MemoryArchive):
    """What goes wrong with a disk."""

    def fail(self, why: str) -> None:
        """From now on the disk takes no more writes."""
        self.failed = why

    def lose_slot(self, slot: int, incarnation: str) -> None:
        """The slot's database is gone; a fresh one begins. Files stay."""
        old = self._slots.get(slot)
        fresh = MemorySlot(SlotState(slot=slot, incarnation=incarnation))
        if old is not None:
            fresh.files, fresh.incomplete = old.files, old.incomplete
            for path in old.registers:
                self._unlist(path)
        self._slots[slot] = fresh

    # -- bytes

    def corrupt_chunk(self, slot: int, blob_id: str, chunk_id: str) -> None:
        """Flip a bit of a chunk."""
        at = self._slots[slot]
        place = at.files.get(blob_id)
        data = bytearray(at.bodies[blob_id] if place is None else place[chunk_id])
        data[0] ^= 1
        if place is None:
            at.bodies[blob_id] = bytes(data)
            at.corrupt.add(blob_id)
        else:
            place[chunk_id] = bytes(data)

    def lose_bytes(self, slot: int, blob_id: str) -> None:
        """All bytes of a blob vanish, and nobody is told."""
        at = self._slots[slot]
        at.bodies.pop(blob_id, None)
        at.files.pop(blob_id, None)
        at.incomplete.discard(blob_id)

    # -- rows, behind the back of the digests

    def damage_row(self, slot: int, path: str, version: int) -> Version:
        """A row now says something else; returns that."""
        at = self._look(slot)
        known = at.paths[path]
        row, dead_at = known.rows[version]
        wrong = replace(row, content_type=row.content_type + "-rotten")
        known.rows[version] = (wrong, dead_at)
        known.terms[version] = (wrong, known.terms[version][1])
        return wrong

    def lose_row(self, slot: int, path: str, version: int) -> None:
        """A row is gone."""
        del self._look(slot).paths[path].rows[version]

    def damage_record(self, slot: int, path: str) -> None:
        """The record of a register that is known to be chosen now says something else."""
        at = self._look(slot)
        register, known = at.registers[path], at.paths[path]
        assert register.chosen and register.record is not None and known.record_term is not None
        wrong = replace(register.record, changed_at_ms=register.record.changed_at_ms + 1)
        at.registers[path] = Register(register.accepted, wrong, True)
        known.record_term = (wrong, known.record_term[1])

    def lose_archive_row(self, slot: int, blob_id: str, chunk_id: str) -> None:
        """A row that says where the archive has a chunk is gone."""
        at = self._look(slot)
        del at.archives[blob_id][chunk_id]
        del at.archive_seqs[blob_id, chunk_id]

    def lose_tombstone(self, slot: int, path: str, version: int) -> None:
        """A row forgets that it was tombstoned."""
        rows = self._look(slot).paths[path].rows
        assert rows[version][1] is not None, "it has none"
        rows[version] = (rows[version][0], None)

    def lose_path(self, slot: int, path: str) -> None:
        """Register and rows of a path are gone; the digests of its bucket still count it."""
        at = self._look(slot)
        sums = list(at.sums)
        self.forget_path(slot, path)
        at.refresh()
        at.sums = sums

    def damage_digest(self, slot: int, path: str) -> None:
        """The stored digest of a path now says something else."""
        self._look(slot).digests[path] ^= 1

    def damage_sum(self, slot: int, bucket: int) -> None:
        """The stored digest of a bucket now says something else."""
        sums = self._look(slot).sums
        sums[bucket] = (sums[bucket] + 1) % DIGEST_MODULUS

    def forget_log(self, slot: int) -> None:
        """The commit log is cut to nothing."""
        at = self._look(slot)
        at.log_cut += len(at.log)
        at.log.clear()

    # -- states that the copy was in before

    def forget_path(self, slot: int, path: str) -> None:
        """The copy never heard of the path (a hole): no register, rows, or write ids. Bytes stay."""
        at = self._look(slot)
        at.registers.pop(path, None)
        known = at.paths.pop(path, None)
        for version, _ in known.rows.values() if known is not None else ():
            at.wanted.pop(version.blob_id, None)
        at.touched.add(path)
        self._unlist(path)

    def rewind(self, slot: int, path: str, register: Register) -> None:
        """The copy missed everything after ``register`` (a stale head), which is known to be chosen."""
        at = self._look(slot)
        record, old = register.record, at.paths[path]
        assert register.chosen and record is not None
        self.forget_path(slot, path)
        known = at.path(path)
        known.newest_chosen = record
        for number, (version, _) in old.rows.items():
            if number <= record.version_max and not covers(record.expired, number):
                known.rows[number] = (version, None)
        known.bury()
        known.add_writes(mark for mark in old.writes.values() if mark.at_ms <= record.changed_at_ms)
        self._set_register(at, path, register)
