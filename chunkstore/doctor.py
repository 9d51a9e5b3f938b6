"""Look at a disk and say what is wrong with it. Offline or beside a running node; changes nothing.

Every finding says what was seen, where, and what to do. The report is plain data: :meth:`Report.as_dict`.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from amberblob.errors import DiskMismatch, JournalCorrupt
from amberblob.ids import content_hash, valid_hash, valid_ulid
from amberblob.manifest import ChunkRef, decode_manifest
from chunkstore import archiverows, digestdb
from chunkstore.files import INCOMPLETE_NAME, MANIFEST_NAME
from chunkstore.identity import LOCK_NAME, DiskIdentity, read_identity
from chunkstore.pool import DATABASE_NAME
from chunkstore.rowcodec import UNREADABLE, VERSION_COLUMNS, register_of, version_of
from chunkstore.schema import INDEX_MIGRATIONS, SLOT_MIGRATIONS
from chunkstore.segments import judge

_VERSION_WITH_DIGESTS = 2
_VERSION_WITH_EVICTED = 3
"""Of the schema: databases that no node has opened since are older."""

Severity = Literal["info", "warning", "error"]
Progress = Callable[[str], None]

_REPAIR = "Reading the object through this node mends its copy, as long as a peer has the bytes."
_FETCHED = "Nothing to do: the node knows that it is missing, and fetches it from its peers."
_SCRUB = "The node's scrub finds it and asks a peer for what is right; until then nothing is to be done."
_UNCOVERED = "The node's scrub finds it and fetches the bytes from its peers, or a row of theirs; look at `amberblob archive verify`."
_REBUILD = "Start the node: the slot is set aside and rebuilt from its peers."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was seen.

    Attributes:
        severity: info: nothing to do; warning: mends itself or can wait; error: data of this disk is affected.
        what: what was seen.
        where: file, database or blob, relative to the disk.
        todo: what to do now.
    """

    severity: Severity
    what: str
    where: str
    todo: str


@dataclass(slots=True, kw_only=True)
class Report:
    """What an examination found.

    Attributes:
        in_use: a process holds the disk; what it wrote meanwhile may show as odd.
        counts: how much was looked at.
    """

    disk: str
    deep: bool
    in_use: bool = False
    disk_id: str = ""
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "healthy": self.healthy}

    def add(self, severity: Severity, where: str, what: str, todo: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(severity=severity, what=what, where=where, todo=todo))

    def count(self, name: str, more: int = 1) -> None:
        """Count what was looked at."""
        self.counts[name] = self.counts.get(name, 0) + more


def examine(disk: Path, *, deep: bool, progress: Progress = lambda text: None) -> Report:
    """Examine the disk in folder ``disk``.

    Args:
        deep: also read every chunk and check its hash, and check databases in full: reads the whole disk.
        progress: is told now and then what is being looked at.
    """
    report = Report(disk=str(disk), deep=deep)
    try:
        identity = read_identity(disk)
    except FileNotFoundError:
        report.add("error", "disk.toml", "there is no disk.toml: not an AmberBlob disk", "Check the path.")
        return report
    except DiskMismatch as error:
        report.add("error", "disk.toml", str(error), "See there.")
        return report
    report.disk_id = identity.disk_id
    report.in_use = _is_in_use(disk)
    if report.in_use:
        report.add(
            "info", LOCK_NAME, "a process is using the disk", "Findings about the newest changes may be passing."
        )
    progress("journal")
    _examine_journal(disk, identity, report)
    progress("index.sqlite3")
    with _examined(disk / "index.sqlite3", "index.sqlite3", report, len(INDEX_MIGRATIONS)):
        pass
    for slot in _slots(disk, identity):
        progress(f"slot {slot}")
        if slot in identity.slots_created or (disk / "slots" / str(slot) / DATABASE_NAME).exists():
            _examine_slot(disk, slot, report)
        else:
            # An upload made the folder; whatever else happened to the slot is still in the journal.
            report.add("info", f"slots/{slot}", "the slot has no database yet", "Nothing to do.")
    return report


def _is_in_use(disk: Path) -> bool:
    try:
        fd = os.open(disk / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _slots(disk: Path, identity: DiskIdentity) -> list[int]:
    names = os.listdir(disk / "slots") if (disk / "slots").is_dir() else []
    return sorted(identity.slots_created | {int(name) for name in names if name.isdecimal()})


def _examine_journal(disk: Path, identity: DiskIdentity, report: Report) -> None:
    try:
        scans, verdict = judge(disk / "journal", identity.disk_id)
    except JournalCorrupt as error:
        report.add("error", "journal", error.detail, "Rebuild the disk from its peers as told there.")
        return
    except DiskMismatch as error:
        report.add("error", "journal", error.detail, "Examine it with that version too.")
        return
    except FileNotFoundError as error:
        if not report.in_use:
            raise
        report.add("info", "journal", f"a segment was let go meanwhile: {error}", "Nothing to do.")
        return
    report.count("journal_segments", len(scans))
    report.count("journal_batches", sum(len(scan.frames) for scan in scans))
    if not scans:
        report.add("error", "journal", "there is no journal", "Restore the folder, or rebuild the disk from its peers.")
    if not report.in_use:
        for number, offset, why in verdict.cuts:
            report.add(
                "info", f"journal/{number:08d}.log", f"a torn tail at byte {offset}: {why}",
                "Nothing to do: nobody was told of it, the next start cuts it.",
            )  # fmt: skip


class _examined:
    """Opens a database read-only and checks it; gives the connection, or None when it cannot be read."""

    def __init__(self, path: Path, where: str, report: Report, version: int) -> None:
        self._path, self._where, self._report, self._version = path, where, report, version
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> sqlite3.Connection | None:
        report, is_index = self._report, self._where == "index.sqlite3"
        severity: Severity = "warning" if is_index else "error"
        todo = "Start the node: the index is made anew from the slots." if is_index else _REBUILD
        if not self._path.exists():
            report.add(severity, self._where, "the database is missing", todo)
            return None
        # Without a write-ahead log nothing is missing from the file itself, and nothing has to be created beside it.
        log = self._path.with_name(self._path.name + "-wal")
        immutable = not report.in_use and not (log.exists() and log.stat().st_size)
        try:
            uri = f"{self._path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
            self._connection = sqlite3.connect(uri, uri=True, timeout=2.0)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > self._version:
                report.add(
                    severity, self._where, f"schema version {version} is newer than this software", "Upgrade it."
                )
            check = "integrity_check" if report.deep else "quick_check"
            results = [str(row[0]) for row in self._connection.execute(f"PRAGMA {check}(5)")]
        except sqlite3.Error as error:
            results = [str(error)]
        if results != ["ok"]:
            report.add(severity, self._where, "SQLite says: " + "; ".join(results), todo)
            self.__exit__()
            return None
        report.count("databases")
        return self._connection

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _examine_slot(disk: Path, slot: int, report: Report) -> None:
    folder = disk / "slots" / str(slot)
    known: set[str] = set()
    evicted: set[str] = set()
    with _examined(folder / DATABASE_NAME, f"slots/{slot}/{DATABASE_NAME}", report, len(SLOT_MIGRATIONS)) as connection:
        if connection is not None:
            try:
                known = _examine_rows(connection, folder, slot, report, evicted)
            except sqlite3.Error as error:
                report.add("error", f"slots/{slot}/{DATABASE_NAME}", f"SQLite says: {error}", _REBUILD)
    blobs = folder / "blobs"
    for name in sorted(os.listdir(blobs)) if blobs.is_dir() else []:
        report.count("blob_folders")
        where = f"slots/{slot}/blobs/{name}"
        if not valid_ulid(name):
            report.add("warning", where, "not a blob's folder", "Nobody of this software put it there: look at it.")
        elif known and name not in known:
            report.add(
                "warning", where, "nothing in the database knows this blob", "The node's sweep looks at it later."
            )
        if report.deep:
            _examine_chunks(blobs / name, where, report, is_evicted=name in evicted)
    staging = folder / "staging"
    left = len(os.listdir(staging)) if staging.is_dir() else 0
    if left and not report.in_use:
        report.add(
            "info", f"slots/{slot}/staging", f"{left} unfinished uploads", "Nothing to do: the next start removes them."
        )


def _examine_rows(
    connection: sqlite3.Connection, folder: Path, slot: int, report: Report, evicted: set[str]
) -> set[str]:  # fmt: skip
    """Rows against files; returns the blob ids that the tables know, and puts those that live by archive rows into ``evicted``."""
    known = {blob_id for (blob_id,) in connection.execute("SELECT blob_id FROM intents")}
    query = "SELECT count(*) FROM registers WHERE chosen = 0 AND record IS NOT NULL"
    report.count("registers_undecided", connection.execute(query).fetchone()[0])
    wanted: set[str] = set()
    here: set[str] = set()
    schema_version = connection.execute("PRAGMA user_version").fetchone()[0]
    if schema_version >= _VERSION_WITH_EVICTED:
        evicted.update(blob_id for (blob_id,) in connection.execute("SELECT blob_id FROM evicted WHERE waiting = 0"))
        report.count("versions_evicted", len(evicted))
        report.count("archive_rows", connection.execute("SELECT count(*) FROM blob_chunk_archives").fetchone()[0])
    if schema_version >= _VERSION_WITH_DIGESTS:
        wanted = {blob_id for (blob_id,) in connection.execute("SELECT blob_id FROM wanted")}
        report.count("versions_wanted", len(wanted))
        garbage = {blob_id for (blob_id,) in connection.execute("SELECT blob_id FROM garbage")}
        report.count("blobs_garbage", len(garbage))
        known |= garbage
        if report.deep:
            _examine_digests(connection, slot, report)
    query = "SELECT path, version, blob_id, size, chunks, manifest_id, inline FROM blobs"
    for path, version, blob_id, size, chunks_text, manifest_id, inline in connection.execute(query):
        known.add(blob_id)
        here.add(blob_id)
        report.count("versions")
        where = f"slot {slot}, {path!r} version {version}, blob {blob_id}"
        if blob_id in evicted:
            found = _uncovered(connection, folder / "blobs" / blob_id, blob_id, chunks_text, manifest_id)
        elif inline:
            found = _wrong_body(connection, blob_id, chunks_text, deep=report.deep)
        else:
            found = _missing(folder / "blobs" / blob_id, chunks_text, manifest_id) if size else iter(())
        try:
            for what in found:
                if blob_id in wanted:
                    report.add("warning", where, what, _FETCHED)
                elif blob_id in evicted:
                    report.add("error", where, what, _UNCOVERED)
                else:
                    report.add("error", where, what, _REPAIR)
        except UNREADABLE as error:
            report.add("error", where, f"the row cannot be read: {error}", _SCRUB)
    for blob_id in sorted(evicted - here):
        report.add(
            "warning", f"slot {slot}, blob {blob_id}", "is marked as evicted, and no version has it",
            "Nothing to do: nothing reads it. If it lasts, tell the developers.",
        )  # fmt: skip
    return known


def _examine_digests(connection: sqlite3.Connection, slot: int, report: Report) -> None:
    """Rows against the digests of their paths, and those against the sums of their buckets."""
    where = f"slots/{slot}/{DATABASE_NAME}"
    query = "SELECT path, accepted_ballot, record, chosen, digest FROM registers"
    for path, accepted, record, chosen, digest in connection.execute(query):
        try:
            register = register_of(accepted, record, chosen)
            # The digest is made of those rows only that can be read.
            for row in connection.execute(f"SELECT {VERSION_COLUMNS} FROM blobs WHERE path = ?", (path,)):
                version_of(row)
        except UNREADABLE as error:
            report.add("error", where, f"a row of {path!r} cannot be read: {error}", _SCRUB)
            continue
        right = digestdb.path_digest(connection, path, register)
        if digestdb.stored(right) != digest:
            report.add("error", where, f"the rows of {path!r} are not what its digest was made of", _SCRUB)
    sums = connection.execute("SELECT sums FROM bucket_sums").fetchone()
    # Without any the next start makes them.
    if sums is not None and sums[0] != digestdb.sums_of_paths(connection):
        report.add("warning", where, "the digests of the buckets are not those of the paths", _SCRUB)


def _uncovered(
    connection: sqlite3.Connection, folder: Path, blob_id: str, chunks_text: str, manifest_id: str | None
) -> Iterator[str]:
    """What an evicted version lacks: verified archive rows of all its chunks, and its manifest."""
    ids = {chunk.id for chunk in msgspec.json.decode(chunks_text, type=tuple[ChunkRef, ...])}
    if manifest_id is not None:
        found = archiverows.manifest_in(folder.parent, blob_id)
        if found is None or found[0] != manifest_id:
            yield "it is evicted, and its manifest is missing or fails its hash"
            return
        ids = {manifest_id, *(chunk.id for chunk in found[1])}
    lacking = archiverows.uncovered(connection, blob_id, ids)
    if lacking:
        yield f"it is evicted, and {len(lacking)} of its {len(ids)} chunks have no verified archive row: nothing here holds them"


def _wrong_body(connection: sqlite3.Connection, blob_id: str, chunks_text: str, *, deep: bool) -> Iterator[str]:
    row = connection.execute("SELECT body FROM inline_bodies WHERE blob_id = ?", (blob_id,)).fetchone()
    chunks = msgspec.json.decode(chunks_text, type=tuple[ChunkRef, ...])
    if row is None:
        if chunks:
            yield "the inline body is missing"
    elif chunks and deep and content_hash(row[0]) != chunks[0].id:
        yield "the inline body fails its hash"


def _missing(folder: Path, chunks_text: str, manifest_id: str | None) -> Iterator[str]:
    if not folder.is_dir():
        yield "the blob's folder is missing"
        return
    chunks = msgspec.json.decode(chunks_text, type=tuple[ChunkRef, ...])
    if manifest_id is not None:
        try:
            manifest = (folder / MANIFEST_NAME).read_bytes()
            if content_hash(manifest) != manifest_id:
                yield "the manifest fails its hash"
                return
            chunks = decode_manifest(manifest)
        except (OSError, ValueError) as error:
            yield f"the manifest cannot be read: {error}"
            return
    absent = 0
    for chunk in {chunk.id: chunk for chunk in chunks}.values():
        try:
            absent += os.stat(folder / "chunks" / chunk.id).st_size != chunk.len
        except OSError:
            absent += 1
    if absent:
        yield f"{absent} chunks are missing or of the wrong length"


def _examine_chunks(folder: Path, where: str, report: Report, *, is_evicted: bool) -> None:
    if not is_evicted and (folder / INCOMPLETE_NAME).exists():
        report.add("info", where, "marked incomplete: a repair is under way", _REPAIR)
    chunks = folder / "chunks"
    for name in sorted(os.listdir(chunks)) if chunks.is_dir() else []:
        if not valid_hash(name):
            report.add(
                "warning", f"{where}/chunks/{name}", "not a chunk", "Left by an interrupted repair: may be deleted."
            )
            continue
        try:
            with closing(os.fdopen(os.open(chunks / name, os.O_RDONLY), "rb")) as file:
                data = file.read()
        except OSError as error:
            report.add("error", f"{where}/chunks/{name}", f"cannot be read: {error}", _REPAIR)
            continue
        report.count("chunks_hashed")
        report.count("bytes_hashed", len(data))
        if content_hash(data) != name:
            report.add("error", f"{where}/chunks/{name}", "fails its hash", _REPAIR)
