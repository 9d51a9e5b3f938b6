"""What a disk must answer, told by a dict: every entry is folded into plain dictionaries, in the order of the journal.

:class:`Author` plays the cluster: it makes records as coordinators would, each upon the chosen one before it, some
of which are never chosen. :func:`fold` is the model. Nothing here is shared with the code under test but the value
types and the hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from amberblob.ballot import Ballot
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Op, Record, Version, WriteMark, encode_manifest
from amberblob.mutations import Aborted, Accepted, Archived, Chosen, EpochSeen, Evicted, Reserved, Staged
from amberblob.wire import ScanEntry
from chunkstore.codec import BodyKept, Entry

PATHS = ("a", "a/1", "a/2", "a/b/1", "a/b/2", "b", "é/x", "z/\uffff", "z/\U0001f600")
SLOTS = 3
CHUNK_BYTES = 64
NOW_MS = 1_700_000_000_000


def slot_of(path: str) -> int:
    """Fixed, so that every slot has several paths and neighbours in the listing lie in different slots."""
    return PATHS.index(path) % SLOTS


# ---- what clients send


@dataclass(frozen=True, eq=False)
class Blob:
    """The bytes of one put."""

    slot: int
    blob_id: str
    data: bytes
    inline: bool
    has_manifest: bool

    @property
    def parts(self) -> list[bytes]:
        step = max(len(self.data), 1) if self.inline else CHUNK_BYTES
        return [self.data[at : at + step] for at in range(0, len(self.data), step)]

    @property
    def chunks(self) -> tuple[ChunkRef, ...]:
        return tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in self.parts)

    @property
    def manifest(self) -> bytes | None:
        return encode_manifest(self.chunks) if self.has_manifest else None

    def version(self, number: int, at_ms: int) -> Version:
        manifest = self.manifest
        return Version(
            number, self.blob_id, len(self.data), content_hash(self.data), at_ms, "text/plain", {"n": str(number)},
            () if manifest else self.chunks, content_hash(manifest) if manifest else None, len(self.parts), self.inline,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Proposal:
    """A record that some coordinator tried to have chosen, and whether it was."""

    path: str
    ballot: Ballot
    record: Record
    blob: Blob | None
    is_chosen: bool


class Author:
    """Coordinators, seen from a replica."""

    def __init__(self) -> None:
        self.tips: dict[str, Record] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        self._counter = 0
        self._now_ms = NOW_MS

    def _ballot(self) -> Ballot:
        self._counter += 1
        return Ballot(1, self._counter, "node-1", f"attempt-{self._counter}")

    def propose(self, path: str, op: Op, blob: Blob | None, version: int, *, is_chosen: bool) -> Proposal | None:
        """A record of this kind upon the chosen one; None when it would make no sense there."""
        tip = self.tips.get(path)
        self._now_ms += 7
        ballot, at_ms = self._ballot(), self._now_ms
        live = set(_numbers(tip.live)) if tip else set()
        number, taken, head = (tip.version_max if tip else 0), (tip.taken if tip else ()), None
        if op == "put":
            assert blob is not None
            number += 1
            live.add(number)
            head = blob.version(number, at_ms)
        elif tip is None:
            return None
        elif op == "restore":
            wanted = set(_numbers(tip.taken))
            if not wanted:
                return None
            live |= wanted
        else:
            gone = set(live) if op == "delete" else {version} & live
            if not gone:
                return None
            live -= gone
            taken = _ranges(gone)
        if head is None and live:
            head = self._versions[path][max(live)]
        revision = tip.revision + 1 if tip else 1
        marks = (*(tip.writes if tip else ()), WriteMark(f"w{ballot.counter}", op, number, at_ms))[-3:]
        deleted_at_ms = at_ms if op.startswith("delete") else (tip.deleted_at_ms if tip else 0)
        record = Record(
            revision, op, number, head, _ranges(live), taken, at_ms, deleted_at_ms, tip.added if tip else None, marks
        )  # fmt: skip
        made = Proposal(path, ballot, record, blob if op == "put" else None, is_chosen)
        if is_chosen:
            self._choose(made)
        return made

    def propose_again(self, old: Proposal) -> Proposal | None:
        """Another coordinator finds an unfinished record and has it chosen at a higher ballot."""
        tip = self.tips.get(old.path)
        if old.record.revision != (tip.revision if tip else 0) + 1:
            return None
        made = replace(old, ballot=self._ballot(), is_chosen=True)
        self._choose(made)
        return made

    def _choose(self, made: Proposal) -> None:
        self.tips[made.path] = made.record
        if made.record.added is not None:
            self._versions.setdefault(made.path, {})[made.record.added.version] = made.record.added


def _numbers(ranges: tuple[tuple[int, int], ...]) -> Iterable[int]:
    return (number for low, high in ranges for number in range(low, high + 1))


def _ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


# ---- what a slot must know


@dataclass
class ModelSlot:
    """Everything that entries say of one slot."""

    epoch: int = 0
    ceiling: int = 0
    registers: dict[str, tuple[Ballot, Record, bool]] = field(default_factory=dict)
    rows: dict[str, dict[int, Version]] = field(default_factory=dict)
    writes: dict[str, dict[str, WriteMark]] = field(default_factory=dict)
    intents: dict[str, str] = field(default_factory=dict)
    staged_at_ms: dict[str, int] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    verified: dict[str, set[str]] = field(default_factory=dict)
    """By blob: chunks of which a verified archive row is here. (Rows of one place only, of which none is ever damaged.)"""
    evicted: set[str] = field(default_factory=set)

    def is_referenced(self, blob_id: str) -> bool:
        """Whether the blob may not be given up."""
        rows = (version.blob_id for path in self.rows.values() for version in path.values())
        return self.intents.get(blob_id) == "REFERENCED" or blob_id in self.bodies or blob_id in rows

    def row(self, blob_id: str) -> tuple[str, Version] | None:
        """The path and version whose row has this blob."""
        found = ((path, one) for path, rows in self.rows.items() for one in rows.values() if one.blob_id == blob_id)
        return next(found, None)

    def is_covered(self, path: str, version: int, blob_id: str, chunk_ids: Iterable[str]) -> bool:
        """Whether the version may be evicted."""
        row = self.row(blob_id)
        if row is None or (row[0], row[1].version) != (path, version):
            return False
        return set(chunk_ids) <= self.verified.get(blob_id, set())

    def apply(self, entry: Entry) -> None:
        """Fold one entry in."""
        match entry:
            case Reserved():
                self.ceiling = max(self.ceiling, entry.ceiling)
            case EpochSeen():
                self.epoch = max(self.epoch, entry.epoch)
            case Staged():
                known = self.intents.get(entry.blob_id)
                if not self.is_referenced(entry.blob_id) and (known is None or (known == "ABORTED" and entry.revived)):
                    self.intents[entry.blob_id] = "STAGED"
                    self.staged_at_ms[entry.blob_id] = entry.at_ms
            case Aborted():
                if not self.is_referenced(entry.blob_id):
                    self.intents[entry.blob_id] = "ABORTED"
            case BodyKept():
                self.bodies[entry.blob_id] = entry.body
                self.evicted.discard(entry.blob_id)
            case Archived():
                if self.row(entry.blob_id) is not None:
                    verified = {chunk.chunk_id for chunk in entry.chunks if chunk.verified}
                    self.verified.setdefault(entry.blob_id, set()).update(verified)
            case Evicted():
                if self.is_covered(entry.path, entry.version, entry.blob_id, entry.chunk_ids):
                    self.bodies.pop(entry.blob_id, None)
                    self.evicted.add(entry.blob_id)
            case Accepted():
                self._accepted(entry)
            case Chosen():
                self._chosen(entry)

    def _accepted(self, entry: Accepted) -> None:
        known, record = self.registers.get(entry.path), entry.record
        # The record before it is chosen, whatever becomes of this one.
        self._learn(entry.path, record.previous, record.writes[:-1])
        if known is not None and (known[0] > entry.ballot or (known[0] == entry.ballot and known[2])):
            return
        self.registers[entry.path] = (entry.ballot, record, False)
        if record.added is not None:
            if entry.body is not None:
                self.bodies[record.added.blob_id] = entry.body
            elif not record.added.inline:
                self.intents[record.added.blob_id] = "REFERENCED"

    def _chosen(self, entry: Chosen) -> None:
        known, record = self.registers.get(entry.path), entry.record
        if known is not None and known[0] == entry.ballot:
            record = known[1]
        if record is None:
            return
        if known is None or known[0] <= entry.ballot:
            self.registers[entry.path] = (entry.ballot, record, True)
        if entry.record is not None and record.added is not None and not record.added.inline:
            self.intents[record.added.blob_id] = "REFERENCED"
        self._learn(entry.path, record.previous, record.writes)
        self._learn(entry.path, record.added, ())

    def _learn(self, path: str, version: Version | None, marks: tuple[WriteMark, ...]) -> None:
        if version is not None:
            self.rows.setdefault(path, {}).setdefault(version.version, version)
        for mark in marks:
            self.writes.setdefault(path, {}).setdefault(mark.write_id, mark)

    @property
    def undecided(self) -> list[str]:
        """Paths whose record is not known to be chosen, in byte order."""
        return sorted((path for path, known in self.registers.items() if not known[2]), key=str.encode)


Log = list[tuple[int, Entry]]


def fold(log: Log) -> dict[int, ModelSlot]:
    """The state after these entries."""
    slots: dict[int, ModelSlot] = {}
    for _, entry in log:
        slots.setdefault(entry.slot, ModelSlot()).apply(entry)
    return slots


# ---- the listing


def entry_of(slot: int, path: str, known: tuple[Ballot, Record, bool]) -> ScanEntry:
    """What the listing must show of a register."""
    ballot, record, chosen = known
    head = record.head
    if head is None:
        return ScanEntry(
            path, slot, ballot, chosen, 0, "", 0, "", 0, record.changed_at_ms, "", record.version_max
        )  # fmt: skip
    return ScanEntry(
        path, slot, ballot, chosen, head.version, head.blob_id, head.size, head.etag, head.created_at_ms,
        record.changed_at_ms, head.content_type, record.version_max,
    )  # fmt: skip


def listing(
    slots: dict[int, ModelSlot], prefix: str, start: str, delimiter: str, limit: int
) -> tuple[list[ScanEntry], str | None]:
    """A page, by walking over everything."""
    entries = [entry_of(slot, *item) for slot, known in slots.items() for item in known.registers.items()]
    page: list[ScanEntry] = []
    groups: set[str] = set()
    for entry in sorted(entries, key=lambda entry: entry.path.encode()):
        if not entry.path.startswith(prefix) or entry.path.encode() < start.encode():
            continue
        rest = entry.path[len(prefix) :]
        if delimiter and delimiter in rest:
            group = prefix + rest[: rest.index(delimiter) + len(delimiter)]
            if group in groups or (entry.version == 0 and entry.chosen):
                continue
            groups.add(group)
        if len(page) == limit:
            return page, entry.path
        page.append(entry)
    return page, None


# ---- files


@dataclass
class Folder:
    """A blob's folder: which files are in it (True: as they should be), and whether it is marked incomplete."""

    files: dict[str, bool] = field(default_factory=dict)
    is_marked: bool = False


@dataclass
class Model:
    """The disk: the log of entries, what it folds to, the files, and what of them was acknowledged."""

    log: Log = field(default_factory=list)
    acknowledged: int = 0
    slots: dict[int, ModelSlot] = field(default_factory=dict)
    folders: dict[tuple[int, str], Folder] = field(default_factory=dict)
    bad_bodies: set[tuple[int, str]] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    """Slots whose database was lost at least once: of them a suffix of the log is known."""
    position: int = 0

    def append(self, entry: Entry, *, acknowledge: bool = False) -> int:
        """The next entry; returns its position."""
        self.position += 1
        self.log.append((self.position, entry))
        self.slots.setdefault(entry.slot, ModelSlot()).apply(entry)
        if isinstance(entry, Accepted | BodyKept):
            blob_id = (
                entry.blob_id if isinstance(entry, BodyKept) else entry.record.added and entry.record.added.blob_id
            )
            if blob_id and entry.body is not None and self.slots[entry.slot].bodies.get(blob_id) == entry.body:
                self.bad_bodies.discard((entry.slot, blob_id))
        if acknowledge:
            self.acknowledge(self.position)
        return self.position

    def acknowledge(self, position: int) -> None:
        """Somebody was told that everything up to here is durable."""
        self.acknowledged = max(self.acknowledged, position)

    def cut(self, last: int) -> None:
        """A new process knows the entries up to ``last`` and no others."""
        assert self.acknowledged <= last <= self.position, (self.acknowledged, last, self.position)
        before = self.slots
        self.log = [item for item in self.log if item[0] <= last]
        self.slots = fold(self.log)
        for slot, known in self.slots.items():
            if slot in before:
                # What was found bad went to quarantine, and that is no entry.
                there = {*before[slot].bodies, *before[slot].evicted}
                known.bodies = {blob_id: body for blob_id, body in known.bodies.items() if blob_id in there}
        self.position = self.acknowledged = last

    def adopt(self, slot: int, matches: Callable[[ModelSlot], bool]) -> bool:
        """The slot's database was lost: find the longest suffix of its entries that explains what it knows now."""
        mine = [entry for _, entry in self.log if entry.slot == slot]
        for count in range(len(mine) + 1):
            known = ModelSlot()
            for entry in mine[count:]:
                known.apply(entry)
            if matches(known):
                self.slots[slot] = known
                self.lost.add(slot)
                return True
        return False
