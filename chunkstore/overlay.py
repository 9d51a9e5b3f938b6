"""What the disk's state is *now*: everything applied but not yet in the databases, and a cache of the rest.

Belongs to the event loop. An entry is **dirty** from apply until its position is in the databases; dirty
registers, bodies and intents are pinned. Clean registers are kept while there is room.

A mutation of a register that is not in memory leaves it **blind**: nothing can be said of it before the
databases have the mutation. Callers load a register before they change it, so this is rare.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque

from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.manifest import Version
from amberblob.mutations import (
    Aborted,
    Accepted,
    Archived,
    Chosen,
    EpochSeen,
    Evicted,
    Forgotten,
    Installed,
    Reserved,
    Staged,
    Synced,
)
from chunkstore import rules
from chunkstore.bodycache import BODY_CACHE_BYTES_DEFAULT, BodyCache
from chunkstore.codec import BodyKept, Entry
from chunkstore.pathfilter import Budget, Layer, PathFilter

REGISTERS_CLEAN_MAX = 20_000
_COMPLETE_MAX = 20_000
_ENTRY_BYTES = 400
_VERSION_BYTES = 300
_CHUNK_BYTES = 110
_MARK_BYTES = 120
_ARCHIVED_BYTES = 300
_ID_BYTES = 66

Key = tuple[int, str]


class Intent(enum.Enum):
    """The state of a blob, as the table ``intents`` has it."""

    STAGED = "STAGED"
    REFERENCED = "REFERENCED"
    ABORTED = "ABORTED"
    ARCHIVED = "ARCHIVED"
    """Archive rows wait for it, and none of its bytes is known to be here. Only the tables say so, never memory."""


def _version_bytes(version: Version | None) -> int:
    return 0 if version is None else _VERSION_BYTES + _CHUNK_BYTES * len(version.chunks)


def entry_bytes(entry: Entry) -> int:
    """About how much memory and journal an entry takes."""
    size = _ENTRY_BYTES
    body: bytes | None = None
    if isinstance(entry, Accepted):
        body = entry.body
        size += _version_bytes(entry.record.head) + _version_bytes(entry.record.previous)
    elif isinstance(entry, Chosen | Installed):
        if entry.record is not None:
            size += _version_bytes(entry.record.head) + _version_bytes(entry.record.previous)
        if isinstance(entry, Installed):
            size += sum(map(_version_bytes, entry.rows)) + _MARK_BYTES * len(entry.writes)
    elif isinstance(entry, BodyKept):
        body = entry.body
    elif isinstance(entry, Archived):
        size += _ARCHIVED_BYTES * len(entry.chunks)
    elif isinstance(entry, Evicted):
        size += _ID_BYTES * len(entry.chunk_ids)
    return size if body is None else size + len(body)


class Overlay:
    """Memory of one disk."""

    def __init__(
        self,
        disk_id: str,
        *,
        clean_max: int = REGISTERS_CLEAN_MAX,
        body_cache_bytes: int = BODY_CACHE_BYTES_DEFAULT,
    ) -> None:
        self._disk_id = disk_id
        self._clean_max = clean_max
        self._dirty: dict[Key, tuple[Register, int, int]] = {}
        """Beside the register: the position of its last change, and that of the last one that an answer waits for."""
        self._clean: OrderedDict[Key, Register] = OrderedDict()
        self._blind: dict[Key, int] = {}
        self._states: dict[int, SlotState] = {}
        self._filters: dict[int, PathFilter] = {}
        self._filter_budget = Budget()
        self._state_position: dict[int, int] = {}
        self._slot_position: dict[int, int] = {}
        self._intents: dict[tuple[int, str], tuple[Intent, int]] = {}
        self._bodies: dict[tuple[int, str], tuple[bytes, int]] = {}
        self._archived: dict[tuple[int, str], int] = {}
        """By blob: position of the last change of its archive rows or of the mark that it lives by them."""
        self._archive_position: dict[int, int] = {}
        self.verified = BodyCache(body_cache_bytes)
        """Inline bodies that were read from the databases, or are in there by now."""
        self._newest: dict[int, str] = {}
        self._log: deque[tuple[int, Entry, int]] = deque()
        self.staged: dict[tuple[int, str], int] = {}
        """Blobs that nothing refers to: (slot, blob id) to the time of staging in epoch ms. Exact."""
        self._complete: OrderedDict[tuple[int, str], None] = OrderedDict()
        self.unapplied_bytes = 0

    # -- slots

    def set_slot(self, state: SlotState, newest_blob_id: str, staged: dict[str, int]) -> None:
        """What a slot's database says, at start."""
        self._states[state.slot] = state
        self._newest[state.slot] = newest_blob_id
        for blob_id, at_ms in staged.items():
            self.staged[state.slot, blob_id] = at_ms

    def replace_slot(self, state: SlotState) -> None:
        """The slot's database was lost: forget what was read from it. What is dirty will reach the fresh one."""
        known = self.slot_state(state.slot)
        self._states[state.slot] = SlotState(
            slot=state.slot, incarnation=state.incarnation, epoch=max(known.epoch, state.epoch),
            ballot_floor=max(known.ballot_floor, state.ballot_floor),
            version_floor=max(known.version_floor, state.version_floor),
            promise_ceiling=max(known.promise_ceiling, state.promise_ceiling),
            # What it was filled with is gone.
            synced_epoch=0,
        )  # fmt: skip
        for key in [key for key in self._clean if key[0] == state.slot]:
            del self._clean[key]
        # A register that waits to be applied was built upon what the lost database had: only the fresh one knows
        # what is left of it, once it has the entry.
        for key in [key for key in self._dirty if key[0] == state.slot]:
            self._blind[key] = self._dirty.pop(key)[1]
        self._complete.clear()
        self.verified.drop_slot(state.slot)

    def slot_state(self, slot: int) -> SlotState:
        """The slot's state; the defaults for one that was never written."""
        return self._states.get(slot) or SlotState(slot=slot, incarnation=self._disk_id)

    def incarnations(self) -> dict[int, str]:
        """Slots that bear another incarnation than the disk's."""
        return {slot: state.incarnation for slot, state in self._states.items() if state.incarnation != self._disk_id}

    def known(self) -> dict[int, SlotState]:
        """The slots that have any state. Not to be changed."""
        return self._states

    def slots(self) -> list[int]:
        """Slots that have any state, ascending."""
        return sorted(self._states)

    # -- registers

    def peek(self, slot: int, path: str) -> Register | None:
        """The register as of now, if it is in memory, or known to be empty."""
        key = (slot, path)
        dirty = self._dirty.get(key)
        if dirty is not None:
            return dirty[0]
        register = self._clean.get(key)
        if register is not None:
            self._clean.move_to_end(key)
            return register
        return EMPTY_REGISTER if self._is_new(slot, path) else None

    def _is_new(self, slot: int, path: str) -> bool:
        """Whether no entry ever named the path, and the slot's database does not; see :mod:`pathfilter`."""
        paths = self._filters.get(slot)
        return slot not in self._states if paths is None else paths.is_new(path)

    def begin_filter(self, slot: int) -> int | None:
        """Begin the filter of a slot that was loaded: the position up to which its database is to be read for it."""
        if slot in self._filters:
            return None
        self._filters[slot] = PathFilter(self._filter_budget, complete=False)
        return self.slot_position(slot)

    def end_filter(self, slot: int, layer: Layer | None) -> None:
        """What the database held, or nothing when it could not be read."""
        if layer is None:
            self._filters[slot].give_up()
        else:
            self._filters[slot].begin_with(layer)

    def loaded(self, slot: int, path: str, register: Register, barrier: int) -> None:
        """A register was read from the database when it held everything up to ``barrier``."""
        key = (slot, path)
        blind = self._blind.get(key, 0)
        if key in self._dirty or key in self._clean or blind > barrier:
            return
        self._blind.pop(key, None)
        self._keep(key, register)

    def _keep(self, key: Key, register: Register) -> None:
        self._clean[key] = register
        self._clean.move_to_end(key)
        if len(self._clean) > self._clean_max:
            self._clean.popitem(last=False)

    def path_position(self, slot: int, path: str) -> int:
        """Position of the register's last change that is not in the database; else 0."""
        key = (slot, path)
        dirty = self._dirty.get(key)
        return dirty[1] if dirty is not None else self._blind.get(key, 0)

    def slot_position(self, slot: int) -> int:
        """Position of the last change of anything in the slot; it may be applied already."""
        return self._slot_position.get(slot, 0)

    def position(self, slot: int, path: str) -> int:
        """Position of the last change of the register or of the slot's own state; it may be applied already.

        The mere mark that a record is chosen does not count: it is true whether this disk remembers it or not, because a
        majority holds the record on its disks. What this disk itself holds is what nobody may be told of too early.
        """
        key = (slot, path)
        dirty = self._dirty.get(key)
        position = dirty[2] if dirty is not None else self._blind.get(key, 0)
        return max(position, self._state_position.get(slot, 0))

    # -- blobs

    def intent(self, slot: int, blob_id: str) -> Intent | None:
        """What is known of a blob without the database; None says nothing."""
        known = self._intents.get((slot, blob_id))
        if known is not None:
            return known[0]
        return Intent.STAGED if (slot, blob_id) in self.staged else None

    def is_unheard_of(self, slot: int, blob_id: str) -> bool:
        """Whether the blob id is greater than every one that the slot has seen. False says nothing."""
        return blob_id > self._newest.get(slot, "")

    def body(self, slot: int, blob_id: str) -> bytes | None:
        """An inline body that is not yet in the database."""
        known = self._bodies.get((slot, blob_id))
        return None if known is None else known[0]

    def blob_position(self, slot: int, blob_id: str) -> int:
        """Position that the database must have reached to know the blob as well as memory does; else 0."""
        blob = (slot, blob_id)
        known, body = self._intents.get(blob), self._bodies.get(blob)
        return max(
            known[1] if known else 0, body[1] if body else 0, self._archived.get(blob, 0) if self._archived else 0
        )

    def archive_position(self, slot: int) -> int:
        """Position of the last entry that told of the archive, of whatever blob of the slot; it may be applied already."""
        return self._archive_position.get(slot, 0)

    def mark_complete(self, slot: int, blob_id: str, *, complete: bool) -> None:
        """Remember that all files of a blob were seen in place, or forget it."""
        if not complete:
            self._complete.pop((slot, blob_id), None)
            return
        self._complete[slot, blob_id] = None
        if len(self._complete) > _COMPLETE_MAX:
            self._complete.popitem(last=False)

    def forget_files(self, slot: int) -> None:
        """No blob of the slot has its files in place any more."""
        for blob in [blob for blob in self._complete if blob[0] == slot]:
            del self._complete[blob]

    def is_complete(self, slot: int, blob_id: str) -> bool:
        """Whether the blob's files were seen in place. False says nothing."""
        return (slot, blob_id) in self._complete

    # -- changes

    def apply(self, entry: Entry, position: int, size_bytes: int) -> Register | None:
        """Take in an entry that gets ``position`` in the journal; returns its register, if it has one and that is known."""
        slot = entry.slot
        if slot not in self._states:
            self._states[slot] = SlotState(slot=slot, incarnation=self._disk_id)
            self._filters[slot] = PathFilter(self._filter_budget, complete=True)
        self._slot_position[slot] = position
        self._log.append((position, entry, size_bytes))
        self.unapplied_bytes += size_bytes
        match entry:
            case Accepted() | Chosen() | Installed():
                return self._change_register(entry, position)
            case Reserved() | EpochSeen() | Synced():
                self._states[slot] = rules.change_slot(self._states[slot], entry)
                self._state_position[slot] = position
            case Forgotten():
                self._states[slot] = rules.change_slot(self._states[slot], entry)
                self._state_position[slot] = position
                return self._forget(entry, position)
            case Staged():
                self._saw(slot, entry.blob_id)
                intent = self.intent(slot, entry.blob_id)
                if intent is None or (entry.revived and intent is Intent.ABORTED):
                    self._intents[slot, entry.blob_id] = (Intent.STAGED, position)
                    self.staged[slot, entry.blob_id] = entry.at_ms
            case Aborted():
                self._saw(slot, entry.blob_id)
                self.verified.drop((slot, entry.blob_id))
                if self.intent(slot, entry.blob_id) is not Intent.REFERENCED:
                    self._intents[slot, entry.blob_id] = (Intent.ABORTED, position)
                    self.staged.pop((slot, entry.blob_id), None)
            case BodyKept():
                self._saw(slot, entry.blob_id)
                self._bodies[slot, entry.blob_id] = (entry.body, position)
            case Archived() | Evicted():
                # What becomes of it depends on its rows: only the database knows.
                self._saw(slot, entry.blob_id)
                if isinstance(entry, Archived) and entry.evicted and self.intent(slot, entry.blob_id) is Intent.ABORTED:
                    del self._intents[slot, entry.blob_id]  # it may be revived
                self._archived[slot, entry.blob_id] = self._archive_position[slot] = position
        return None

    def _forget(self, entry: Forgotten, position: int) -> Register | None:
        """Whether the register goes depends on its rows, too: unless it surely stays, only the database knows."""
        key = (entry.slot, entry.path)
        dirty = self._dirty.get(key)
        before = dirty[0] if dirty is not None else self._clean.get(key)
        if before is not None and not rules.forget(before, entry):
            return before
        self._dirty.pop(key, None)
        self._clean.pop(key, None)
        paths = self._filters.get(entry.slot)
        if paths is not None:
            paths.add(entry.path)
        self._blind[key] = position
        return None

    def _change_register(self, entry: Accepted | Chosen | Installed, position: int) -> Register | None:
        slot, record = entry.slot, entry.record
        key = (slot, entry.path)
        dirty = self._dirty.get(key)
        before = dirty[0] if dirty is not None else self._clean.pop(key, None)
        paths = self._filters.get(slot)
        # What is dirty was taken in when it became so.
        if dirty is None and paths is not None and paths.add(entry.path) and before is None:
            before = EMPTY_REGISTER
        added = record.added if record is not None else None
        if record is not None and record.previous is not None:
            self._saw(slot, record.previous.blob_id)
        for row in entry.rows if isinstance(entry, Installed) else ():
            self._saw(slot, row.blob_id)
        after: Register | None = None
        if before is None or key in self._blind:
            self._blind[key] = position
        else:
            if isinstance(entry, Accepted):
                after = rules.accept(before, entry)
            else:
                after = rules.choose(before, entry) if isinstance(entry, Chosen) else rules.install(before, entry)
            is_mark = after.record is before.record and not isinstance(entry, Accepted)
            told_after = position if not is_mark else 0 if dirty is None else dirty[2]
            self._dirty[key] = (after, position, told_after)
            if isinstance(entry, Accepted) and after is before:
                added = None
        if added is None:
            return after
        self._saw(slot, added.blob_id)
        blob = (slot, added.blob_id)
        if isinstance(entry, Accepted) and entry.body is not None:
            self._bodies[blob] = (entry.body, position)
        self._intents[blob] = (Intent.REFERENCED, position)
        self.staged.pop(blob, None)
        return after

    def _saw(self, slot: int, blob_id: str) -> None:
        if blob_id > self._newest.get(slot, ""):
            self._newest[slot] = blob_id

    def applied(self, position: int, limit: int | None = None) -> bool:
        """Everything up to ``position`` is in the databases: unpin it, or ``limit`` entries; whether that was all."""
        log = self._log
        while log and log[0][0] <= position:
            if limit is not None:
                if not limit:
                    return False
                limit -= 1
            at, entry, size_bytes = log.popleft()
            self.unapplied_bytes -= size_bytes
            match entry:
                case Accepted() | Chosen() | Installed() | Forgotten():
                    key = (entry.slot, entry.path)
                    dirty = self._dirty.get(key)
                    if dirty is not None and dirty[1] == at:
                        del self._dirty[key]
                        self._keep(key, dirty[0])
                    if self._blind.get(key) == at:
                        del self._blind[key]
                    record = None if isinstance(entry, Forgotten) else entry.record
                    added = record.added if record is not None else None
                    if added is not None:
                        self._settle(entry.slot, added.blob_id, at)
                case Staged() | Aborted() | BodyKept():
                    self._settle(entry.slot, entry.blob_id, at)
                case Archived() | Evicted():
                    if self._archived.get((entry.slot, entry.blob_id)) == at:
                        del self._archived[entry.slot, entry.blob_id]
                case _:
                    pass
        return True

    def _settle(self, slot: int, blob_id: str, at: int) -> None:
        blob = (slot, blob_id)
        known = self._intents.get(blob)
        if known is not None and known[1] == at:
            del self._intents[blob]
        body = self._bodies.get(blob)
        if body is not None and body[1] == at:
            del self._bodies[blob]
            self.verified.put(blob, body[0])


__all__ = ["EMPTY_REGISTER", "Intent", "Overlay", "entry_bytes"]
