"""What the memory store keeps of a path and of a slot.

Digests are kept as a disk keeps them: they change by what a mutation changes, and are not made anew from the rows. So what
a test damages behind their back (:mod:`chunkstore.memory_damage`) leaves them as they were, and scrub can find it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from amberblob.archives import ArchivedChunk
from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.digests import BUCKETS, DIGEST_MODULUS, bucket_of, record_term, row_term
from amberblob.manifest import Record, Version, WriteMark, covers, decode_manifest
from chunkstore.interface import Wanted
from chunkstore.overlay import Intent


@dataclass(slots=True)
class PathState:
    """What is kept of one path beside its register.

    Attributes:
        rows: by version: the row, and when it was tombstoned (epoch ms).
        terms: by version: the row that was added to the path's digest, and what it added.
        record_term: likewise for the chosen record.
    """

    rows: dict[int, tuple[Version, int | None]] = field(default_factory=dict)
    writes: dict[str, WriteMark] = field(default_factory=dict)
    newest_chosen: Record | None = None
    terms: dict[int, tuple[Version, int]] = field(default_factory=dict)
    record_term: tuple[Record, int] | None = None

    def learn(self, record: Record, *, replace: bool = False) -> None:
        """A record is chosen; :meth:`bury` is to follow. With ``replace`` it takes the place of another of its revision."""
        newest = self.newest_chosen
        rotten = replace and newest is not None and record.revision == newest.revision and record != newest
        if newest is None or record.revision > newest.revision or rotten:
            self.newest_chosen = record
        self.add_row(record.previous)
        self.add_row(record.added)
        self.add_writes(record.writes)

    def add_row(self, version: Version | None, *, replace: bool = False) -> None:
        """A version is chosen; :meth:`bury` is to follow."""
        if version is not None:
            known = self.rows.get(version.version)
            if known is None or (replace and known[0] != version):
                self.rows[version.version] = (version, None)

    def is_expired(self, number: int) -> bool:
        """Whether the version's retention is over."""
        return self.newest_chosen is not None and covers(self.newest_chosen.expired, number)

    def drop_expired(self) -> list[Version]:
        """Remove the rows whose retention is over; returns them."""
        gone = [version for number, (version, _) in self.rows.items() if self.is_expired(number)]
        for version in gone:
            del self.rows[version.version]
            self.terms.pop(version.version, None)
        return gone

    def add_writes(self, marks: Iterable[WriteMark]) -> None:
        """These writes are chosen."""
        for mark in marks:
            self.writes.setdefault(mark.write_id, mark)

    def bury(self) -> bool:
        """Set the tombstones as the newest chosen record says; whether any was otherwise."""
        newest, changed = self.newest_chosen, False
        if newest is None:
            return False
        for number, (version, dead_at) in self.rows.items():
            if covers(newest.live, number):
                changed = changed or dead_at is not None
                self.rows[number] = (version, None)
            elif dead_at is None and number <= newest.version_max:
                changed = True
                self.rows[number] = (version, newest.deleted_at_ms or newest.changed_at_ms)
        return changed

    def newest_first(self, below: int | None = None) -> Iterator[Version]:
        """The rows below ``below``, newest first."""
        for number in sorted(self.rows, reverse=True):
            if below is None or number < below:
                yield self.rows[number][0]

    def add_terms(self, path: str, register: Register) -> int:
        """Bring the terms up to what mutations did; returns the path's digest."""
        for number, (version, _) in self.rows.items():
            known = self.terms.get(number)
            if known is None or known[0] is not version:
                self.terms[number] = (version, row_term(path, version))
        record = register.record if register.chosen else None
        if record is None:
            self.record_term = None
        elif self.record_term is None or self.record_term[0] is not record:
            self.record_term = (record, record_term(path, record))
        own = self.record_term[1] if self.record_term is not None else 0
        return (own + sum(term for _, term in self.terms.values())) % DIGEST_MODULUS


def true_digest(path: str, register: Register, rows: Iterable[Version]) -> int:
    """A path's digest, made anew from what is here."""
    digest = sum(row_term(path, version) for version in rows)
    if register.chosen and register.record is not None:
        digest += record_term(path, register.record)
    return digest % DIGEST_MODULUS


@dataclass(slots=True)
class MemorySlot:
    """One slot: state, registers, history, intents, bytes.

    Attributes:
        digests: by path, of those that have anything chosen.
        sums: of the buckets.
        touched: paths whose digest is to be brought up to date before anybody is told of one.
        log: ``(path, revision)`` of what became chosen; the first has number ``log_cut + 1``.
        log_cut: how many lines were cut.
        wanted, garbage: by blob id; ``garbage`` is in the order in which they expired.
        archives, waiting: archive rows by blob id and chunk id; ``waiting``: of blobs that no row has yet.
        archive_seqs: by blob id and chunk id, ascending. evicted: blobs that live by their archive rows.
    """

    state: SlotState
    registers: dict[str, Register] = field(default_factory=dict)
    paths: dict[str, PathState] = field(default_factory=dict)
    intents: dict[str, tuple[Intent, int]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
    digests: dict[str, int] = field(default_factory=dict)
    sums: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    touched: set[str] = field(default_factory=set)
    log: list[tuple[str, int]] = field(default_factory=list)
    log_cut: int = 0
    wanted: dict[str, Wanted] = field(default_factory=dict)
    garbage: dict[str, Version] = field(default_factory=dict)
    memos: dict[str, str] = field(default_factory=dict)
    archives: dict[str, dict[str, ArchivedChunk]] = field(default_factory=dict)
    waiting: dict[str, dict[str, ArchivedChunk]] = field(default_factory=dict)
    archive_seqs: dict[tuple[str, str], int] = field(default_factory=dict)
    archive_head: int = 0
    evicted: set[str] = field(default_factory=set)

    def path(self, path: str) -> PathState:
        """What is kept of a path that is about to change."""
        self.touched.add(path)
        return self.paths.setdefault(path, PathState())

    def refresh(self) -> None:
        """Bring the digests up to all mutations."""
        for path in self.touched:
            known = self.paths.get(path)
            register = self.registers.get(path, EMPTY_REGISTER)
            digest = known.add_terms(path, register) if known is not None else 0
            bucket = bucket_of(path)
            self.sums[bucket] = (self.sums[bucket] + digest - self.digests.pop(path, 0)) % DIGEST_MODULUS
            if known is not None and (known.rows or register.chosen):
                self.digests[path] = digest
        self.touched.clear()

    def known_paths(self, after: str = "") -> list[str]:
        """Paths above ``after`` of which anything is known that others may be told, ascending."""
        having_rows = (path for path, known in self.paths.items() if known.rows)
        return sorted(path for path in {*self.registers, *having_rows} if path > after)

    def chunk_ids(self, version: Version) -> list[tuple[str, int | None]] | None:
        """The files of a version with their lengths; None: its manifest is not here."""
        chunks = version.chunks
        names: list[tuple[str, int | None]] = []
        if version.manifest_id is not None:
            manifest = self.files.get(version.blob_id, {}).get(version.manifest_id)
            if manifest is None:
                return None
            try:
                chunks = decode_manifest(manifest)
            except ValueError:
                return None
            names.append((version.manifest_id, None))
        return [*names, *((chunk.id, chunk.len) for chunk in chunks)]

    def is_whole(self, version: Version) -> bool:
        """Whether all bytes of a version are here, by length."""
        if version.size == 0:
            return True
        if version.inline:
            body = self.bodies.get(version.blob_id)
            return body is not None and len(body) == version.size
        here, names = self.files.get(version.blob_id, {}), self.chunk_ids(version)
        if names is None:
            return False
        return all(name in here and (size is None or len(here[name]) == size) for name, size in names)

    # -- living by archive rows

    def row_of(self, blob_id: str) -> tuple[str, Version] | None:
        """The path and version whose row has this blob."""
        for path, known in self.paths.items():
            for version, _ in known.rows.values():
                if version.blob_id == blob_id:
                    return path, version
        return None

    def needed_ids(self, version: Version) -> tuple[str, ...] | None:
        """What has to have a row for the version to live by them; None: its manifest is not here."""
        names = self.chunk_ids(version)
        return None if names is None else tuple(dict.fromkeys(name for name, _ in names))

    def is_covered_by(self, blob_id: str, chunk_ids: Iterable[str]) -> bool:
        """Whether verified rows, of those of one kind, say of all these chunks where they are."""
        for known in (self.archives.get(blob_id), self.waiting.get(blob_id)):
            if known is not None and all(one in known and known[one].verified for one in chunk_ids):
                return True
        return False

    def is_covered(self, version: Version) -> bool:
        """Whether verified rows cover the version."""
        ids = self.needed_ids(version)
        return ids is not None and self.is_covered_by(version.blob_id, ids)

    def mark_evicted(self, version: Version) -> None:
        """The version lives by its rows from now on."""
        self.evicted.add(version.blob_id)
        self.wanted.pop(version.blob_id, None)

    def manifest_names(self, blob_id: str) -> set[str] | None:
        """The id of the manifest that is here, and all that it lists; None: there is none."""
        for name, data in self.files.get(blob_id, {}).items():
            with contextlib.suppress(ValueError):
                return {name, *(chunk.id for chunk in decode_manifest(data))}
        return None

    def want(self, path: str, version: Version, *, damaged: bool) -> None:
        """Remember that bytes are missing; that something was damaged is not forgotten before it is whole.

        It lives by its archive rows no more, if it did.
        """
        self.evicted.discard(version.blob_id)
        known = self.wanted.get(version.blob_id)
        damaged = damaged or (known is not None and known.damaged)
        self.wanted[version.blob_id] = Wanted(slot=self.state.slot, path=path, version=version, damaged=damaged)

    def keep_whole(self, version: Version) -> None:
        """All bytes of a version that is referred to are here."""
        self.wanted.pop(version.blob_id, None)
        self.evicted.discard(version.blob_id)
        self.intents[version.blob_id] = (Intent.REFERENCED, version.created_at_ms)

    def referred(self, blob_id: str) -> tuple[str, Version] | None:
        """The path and version that have this blob: a row, or what a register holds. None: nothing refers to it."""
        for path, known in self.paths.items():
            for version, _ in known.rows.values():
                if version.blob_id == blob_id:
                    return path, version
        for path, register in self.registers.items():
            record = register.record
            for held in (record.head, record.previous) if record is not None else ():
                if held is not None and held.blob_id == blob_id and not self._expired(path, held):
                    return path, held
        return None

    def _expired(self, path: str, version: Version) -> bool:
        known = self.paths.get(path)
        return known is not None and known.is_expired(version.version)
