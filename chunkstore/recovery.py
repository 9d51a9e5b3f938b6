"""From a folder to a state: what happens between opening a disk and its first answer. Blocks.

Belongs to the database thread. In order: the journal is judged (and its torn tail cut), names
that a killed process left unsynced are synced, leftovers in staging
are removed, every slot database is opened once (a lost one is replaced), what the databases lack is replayed
from the journal, the index is filled if it has to be, what went to quarantine and is missing since is wanted, and a
new journal segment is begun.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from amberblob.ballot import SlotState
from amberblob.errors import JournalCorrupt
from amberblob.mutations import Aborted
from chunkstore import garbagedb
from chunkstore.applier import Applier, DurableBatch
from chunkstore.codec import Batch
from chunkstore.dbthread import UNIT_ENTRIES
from chunkstore.fileops import FileOps
from chunkstore.files import BlobFiles
from chunkstore.overlay import Intent
from chunkstore.pool import SlotPool, is_damage
from chunkstore.segments import Recovered, SegmentWriter, recover
from chunkstore.slotdb import SlotDatabase

_log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """What memory needs of a slot from the start."""

    state: SlotState
    newest_blob_id: str
    staged: dict[str, int]


def recover_journal(disk: Path, disk_id: str, ops: FileOps, *, is_new: bool) -> Recovered:
    """Judge and mend the journal. Raises JournalCorrupt."""
    # A disk that died between its formatting and its first segment holds nothing yet.
    untouched = is_new or not (disk / "slots").exists()
    return recover(disk / "journal", disk_id, ops, is_new=untouched)


def recover_databases(
    disk: Path, recovered: Recovered, pool: SlotPool, files: BlobFiles, applier: Applier, writer: SegmentWriter,
) -> list[SlotFacts]:  # fmt: skip
    """Bring the databases up to the journal's end and begin a new segment.

    Raises:
        JournalCorrupt: the databases are ahead of the journal, so a part of it is missing.
    """
    files.sync_names()
    removed = files.clear_staging()
    if removed:
        _log.info("staging-cleared", folders=removed)
    applied: dict[int, int] = {}
    unfinished = 0
    for slot in pool.known_slots():
        unfinished += pool.remake_unfinished(slot)
        applied[slot] = applier.with_room(partial(pool.get, slot)).applied
    if unfinished:
        _log.info("slot-databases-unfinished", slots=unfinished, action="made anew from the journal")
    applier.open_index(recovered.scans[0].header.first_position if recovered.scans and recovered.scans[0].header else 1)
    index = applier.index
    assert index is not None
    for lost in pool.lost:
        index.forget_slot(lost.slot)
    ahead = max([index.applied, *applied.values()])
    if ahead >= recovered.next_position:
        raise JournalCorrupt(
            f"the databases of {disk} reach to position {ahead}, and the journal ends at {recovered.next_position - 1}: "
            "segments are missing, or files of different times were mixed. Keep a copy of the folder, move it away and "
            "start again: the node rebuilds an empty disk from its peers."
        )
    # The journal gives a slot that was lost while the process ran more than the index was told of afterwards.
    regained = {slot for slot, at in applied.items() if at < index.applied and pool.was_lost(slot)}
    aborted: set[tuple[int, str]] = set()
    count = _replay(recovered, applied, applier, aborted)
    if count:
        _log.info("journal-replayed", entries=count)
    applier.begin_at(recovered.next_position - 1)
    applier.ready_index()
    for slot in sorted({lost.slot for lost in pool.lost} | regained):
        applier.relist(slot)
    for slot, blob_id in aborted:
        if _ask(pool, slot, partial(_is_given_up, blob_id)):
            files.remove_blob(slot, blob_id)
    known = pool.known_slots()
    for slot, blob_id, lacks_manifest in files.quarantined():
        if slot in known:
            # Who found it damaged may not have come to write that down, or a power cut took it back.
            question = partial(garbagedb.want_damaged, blob_id=blob_id, inline=False, manifest=lacks_manifest)
            applier.with_room(partial(_ask, pool, slot, question))
    facts = []
    for slot in known:
        facts.append(_ask(pool, slot, _facts_of))
    writer.begin(recovered.next_position)
    applier.add_segment(writer.number, recovered.next_position - 1)
    return facts


def _facts_of(database: SlotDatabase) -> SlotFacts:
    return SlotFacts(state=database.state, newest_blob_id=database.newest_blob_id(), staged=database.staged())


def _is_given_up(blob_id: str, database: SlotDatabase) -> bool:
    return database.blob_facts(blob_id).intent == Intent.ABORTED.value


def _ask(pool: SlotPool, slot: int, question: Callable[[SlotDatabase], T]) -> T:
    """Ask a slot's database; one that turns out to be damaged is replaced, and the other slots go on."""
    try:
        return question(pool.get(slot))
    except (sqlite3.Error, msgspec.DecodeError) as error:
        if not is_damage(error):
            raise
        return question(pool.retire(slot, str(error)))


def _replay(
    recovered: Recovered, applied: dict[int, int], applier: Applier, aborted: set[tuple[int, str]]
) -> int:  # fmt: skip
    """Apply what the databases lack; returns how many entries that were."""
    index = applier.index
    assert index is not None
    count = 0
    for scan in recovered.scans:
        applier.add_segment(scan.number, 0)
    for number, batch in recovered.batches():
        lacking: Batch = []
        for item in batch:
            position, entry = item
            if isinstance(entry, Aborted):
                aborted.add((entry.slot, entry.blob_id))
            if position > applied.get(entry.slot, 0) or (index.complete and position > index.applied):
                lacking.append(item)
        applier.touch(number, {entry.slot for _, entry in batch}, batch[-1][0])
        if lacking:
            applier.take(DurableBatch(number, lacking, [], 0))
            count += len(lacking)
        if applier.waiting_entries >= UNIT_ENTRIES:
            applier.apply_all()
    applier.apply_all()
    return count
