"""As :mod:`sim.mutants`, of the archive: played in worlds that have one. Each is to be caught within 60 of these; of marks that
are told before they are durable it is not known how many it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

from msgspec.structs import replace

from amberblob.mutations import Archived, Evicted
from archive import policy
from chunkstore import archivedb, archiverows
from chunkstore.archivetables import ArchiveTables
from chunkstore.archiving import Archiving
from node.archive import garbage
from node.archive.collection import Action, Answer, ObjectCollection
from node.archive.condemned import CondemnedObjects
from sim.notes import SimStateFile

ARCHIVE_MUTANTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {}


def mutant(make: Callable[[], contextlib.AbstractContextManager[Any]]) -> Callable[[], Any]:
    """Register a mutant under its function's name."""
    ARCHIVE_MUTANTS[make.__name__.replace("_", "-")] = make
    return make


def _together(*patches: Any) -> contextlib.AbstractContextManager[Any]:
    stack = contextlib.ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


@mutant
def bytes_go_when_rows_are_there_verified_or_not() -> contextlib.AbstractContextManager[Any]:
    """What was uploaded is taken for what can be read back."""

    def covers(sql: Any, blob_id: str, chunk_ids: Any, *, table: str = archiverows.ARCHIVES) -> bool:
        query = f"SELECT chunk_id FROM {table} WHERE blob_id = ? AND state >= 0"
        return set(chunk_ids) <= {chunk_id for (chunk_id,) in sql.execute(query, (blob_id,))}

    return _together(
        mock.patch.object(archiverows, "covers", covers),
        mock.patch.object(archivedb, "covers", covers),
        mock.patch.object(policy, "_covered", lambda view: view.uploaded >= view.chunk_count),
    )


@mutant
def files_go_before_the_journal_has_it() -> contextlib.AbstractContextManager[Any]:
    """A kill comes between the two."""
    original = Archiving._evict

    async def evict(self: Archiving, slot: int, path: str, version: Any) -> int | None:
        ids = await self.chunk_ids(slot, version)
        if ids is not None and version.size and not version.inline:
            covered = partial(archivedb.evictable_bytes, path=path, version=version, chunk_ids=ids)
            if await self._core.ask(slot, covered, barrier=self._barrier(slot)) is not None:
                await self._remove_files(slot, version.blob_id)
        return await original(self, slot, path, version)

    return mock.patch.object(Archiving, "_evict", evict)


@mutant
def bytes_go_before_the_mark_is_durable() -> contextlib.AbstractContextManager[Any]:
    """The journal has the mark, and a power cut takes it back."""

    async def evict(self: Archiving, slot: int, path: str, version: Any) -> int | None:
        core, blob_id = self._core, version.blob_id
        async with self._blobs.work.alone((slot, blob_id)):
            ids = await self.chunk_ids(slot, version)
            if ids is None or not version.size:
                return None
            covered = partial(archivedb.evictable_bytes, path=path, version=version, chunk_ids=ids)
            if await core.ask(slot, covered, barrier=self._barrier(slot)) is None:
                return None
            position = core.apply(Evicted(slot, path, version.version, blob_id, ids))
            if not version.inline:
                await self._remove_files(slot, blob_id)
            await core.durable(position)
            core.overlay.verified.drop((slot, blob_id))
            return int(version.size)

    return mock.patch.object(Archiving, "_evict", evict)


@mutant
def a_majority_may_delete() -> contextlib.AbstractContextManager[Any]:
    """Who gives no answer has agreed, if most have."""
    original = ObjectCollection.answered

    def answered(self: ObjectCollection, answers: Mapping[str, Answer | None]) -> Action:
        there = {node: answer for node, answer in answers.items() if answer is not None}
        if 2 * len(self._first.keys() | there.keys()) <= len(self._first.keys() | answers.keys()):
            return original(self, answers)
        for node in answers.keys() - there.keys():
            # Else it would be asked once more by itself, as one that is new.
            self._first.setdefault(node, "")
        return original(self, there)

    async def needed(self: Any, objects: Sequence[Any]) -> Any:
        return {}

    return _together(
        mock.patch.object(ObjectCollection, "answered", answered),
        mock.patch.object(garbage._Gc, "_needed", needed),
    )


@mutant
def rows_of_condemned_objects_are_taken() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(CondemnedObjects, "bars", lambda self, target_path: False)


@mutant
def marks_are_told_before_they_are_durable() -> contextlib.AbstractContextManager[Any]:
    """A power cut takes the promise back, in the same file."""
    original = SimStateFile.write

    async def write(self: SimStateFile, work: Any, *, durable: bool = False) -> Any:
        return await original(self, work)

    return mock.patch.object(SimStateFile, "write", write)


@mutant
def rows_are_adopted_unverified() -> contextlib.AbstractContextManager[Any]:
    """A copy that lacks bytes lives by whatever rows it is told, also by those of copies that have the bytes."""
    lines_of = archivedb._lines_of

    def all_evicted(rows: Any) -> Any:
        return [replace(line, evicted=True) for line in lines_of(rows)]

    return _together(
        mock.patch.object(ArchiveTables, "_is_covered", lambda self, version: True),
        mock.patch.object(archivedb, "_lines_of", all_evicted),
    )


@mutant
def who_agreed_looks_at_nothing() -> contextlib.AbstractContextManager[Any]:
    """A node agrees to everything that is condemned, without a look at its rows."""

    async def named(self: CondemnedObjects, names: Sequence[str]) -> set[str]:
        return set()

    async def needed(self: Any, objects: Sequence[Any]) -> Any:
        return {}

    return _together(
        mock.patch.object(CondemnedObjects, "_named", named), mock.patch.object(garbage._Gc, "_needed", needed)
    )


@mutant
def evicted_copies_forget_their_rows() -> contextlib.AbstractContextManager[Any]:
    """Rows are told with the mark alone: whoever follows takes none."""

    original = ArchiveTables.archived

    def archived(self: ArchiveTables, entry: Archived) -> None:
        original(self, entry)
        if entry.evicted:
            self._sql.execute("DELETE FROM blob_chunk_archives WHERE blob_id = ?", (entry.blob_id,))

    return mock.patch.object(ArchiveTables, "archived", archived)
