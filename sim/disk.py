"""A disk that remembers what was not synced, so that a power cut can take it back.

Files are real files (in a folder in memory), SQLite is the real SQLite. :class:`SimFileOps` does what
:class:`chunkstore.fileops.FileOps` does and keeps a log of what is not durable yet: bytes of a file until that file is
synced, entries of a folder until that folder is. After a kill everything written is there. After a power cut

* of the bytes written to a file since its last sync any part may be missing, the last write may be torn;
* of the changes to a folder since its last sync only the first few are there (journalling file systems keep their order);
* of SQLite's write-ahead log everything behind the last checkpoint may be cut off, at any byte; a database that was
  never recorded as durable may be missing or cut.

The process that had the disk is dead by then; its successor gets a copy of the folder, so that nothing that is still
open in the dead one can reach it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from chunkstore.fileops import Buffer, FileOps
from chunkstore.identity import IDENTITY_NAME, read_identity
from sim.loop import Gone, Process, SimLoop

FREE_BYTES = 1 << 30
SLOW_S_MAX = 10.0
"""The longest that one sync takes: well below what a node takes for a disk that hangs (30 s)."""


@dataclass(slots=True)
class Unsynced:
    """Bytes of one file that a power cut may take."""

    inode: int
    offset: int
    before: bytes
    size_before: int
    length: int


@dataclass(slots=True)
class Entry:
    """A change of a folder that a power cut may take back. ``undo`` is given the folder of the copy."""

    parent: Path
    what: str
    undo: Callable[[Path], None]


@dataclass(slots=True)
class Trouble:
    """What is wrong with a disk at the moment."""

    full: bool = False
    syncs_fail: bool = False
    slow: float = 1.0
    """Factor on every wait."""


@dataclass(slots=True, eq=False)
class SimDisk:
    """One machine's disk through all its lives.

    Args:
        root: where its folders go.
        fired: counts the faults that really struck.
        note: told of each, for the trace.
    """

    name: str
    root: Path
    loop: SimLoop
    random: Random
    fired: Counter[str]
    note: Callable[[str], None]
    latency_s: float = 0.0005
    strict: bool = True
    """Folders are made durable one by one; else, as on ext4, a sync of any makes all older changes durable."""
    trouble: Trouble = field(default_factory=Trouble)
    life: int = 0
    unsynced: list[Unsynced] = field(default_factory=list)
    dropped: list[Unsynced] = field(default_factory=list)
    """Bytes whose sync failed: the kernel takes them for clean and may forget them, power cut or not."""
    entries: list[Entry] = field(default_factory=list)
    when_removed: Callable[[], None] | None = None
    """Told when the files of a blob's chunks go."""
    damaged: set[int] = field(default_factory=set)
    """Slots whose database was damaged on purpose."""
    rotted: set[str] = field(default_factory=set)
    """Blobs of which a chunk was damaged on purpose."""
    _kept: int = 0
    _folder: Path = Path()
    _folder_life: int = -1
    _checkpointed: dict[tuple[Path, bytes], int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the disk is mounted in its present life."""
        if self._folder_life != self.life:
            self._folder, self._folder_life = self.root / f"{self.name}.{self.life}", self.life
        return self._folder

    def relative(self, path: Path) -> Path:
        """A path as it is on every life of this disk."""
        return path.relative_to(self.folder)

    def keep(self) -> Path:
        """A name outside of the disk for something that a power cut may bring back."""
        self._kept += 1
        return self.root / f"{self.name}.kept.{self._kept}"

    # -- what becomes durable

    def file_synced(self, inode: int) -> None:
        """A file's bytes are durable."""
        if self.unsynced:
            self.unsynced = [write for write in self.unsynced if write.inode != inode]

    def sync_failed(self, inode: int) -> None:
        """Nobody knows what of a file's bytes is durable, and no later sync makes them so."""
        self.dropped += [write for write in self.unsynced if write.inode == inode]
        self.file_synced(inode)

    def folder_synced(self, path: Path) -> None:
        """A folder's entries are durable."""
        if not self.entries:
            return
        if self.strict:
            self.entries = [entry for entry in self.entries if entry.parent != path]
            return
        last = max((index for index, entry in enumerate(self.entries) if entry.parent == path), default=-1)
        del self.entries[: last + 1]

    # -- ends

    def crash(self, *, power: bool, worst: bool = False) -> None:
        """The machine's process is dead: put what it finds when it starts again into a new folder.

        ``worst``: the power cut that is worst for who removes something: no byte that was not synced is there, and every change of a folder is.
        """
        old = self.folder
        lost = [*self.dropped, *self.unsynced] if power else self.dropped
        inodes = self._inodes(old, [*self.dropped, *self.unsynced])
        self.life += 1
        new = self.folder
        _copy_life(str(old), str(new))
        self._lose_databases(old, new, lose=power, worst=worst)
        self._lose_bytes(new, lost, inodes, worst=worst)
        self.dropped.clear()
        if power:
            if not worst:
                self._lose_entries(new)
            self.unsynced.clear()
            self.entries.clear()
        else:
            # The system goes on: what the process did not sync is there, and still only in memory.
            self.unsynced = [
                replace(write, inode=(new / inodes[write.inode]).stat().st_ino)
                for write in self.unsynced
                if write.inode in inodes
            ]

    def _inodes(self, folder: Path, writes: list[Unsynced]) -> dict[int, Path]:
        wanted = {write.inode for write in writes}
        found: dict[int, Path] = {}
        if wanted:
            for base, _, names in os.walk(folder):
                for name in names:
                    path = Path(base, name)
                    inode = path.stat().st_ino
                    if inode in wanted:
                        found[inode] = path.relative_to(folder)
        return found

    def _lose_bytes(self, new: Path, lost: list[Unsynced], inodes: dict[int, Path], *, worst: bool) -> None:
        by_inode: dict[int, list[Unsynced]] = {}
        for write in lost:
            if write.inode in inodes:
                by_inode.setdefault(write.inode, []).append(write)
        for inode, writes in by_inode.items():
            mode = 0.0 if worst else self.random.random()
            kept = [self.random.random() < mode for _ in writes]
            path = new / inodes[inode]
            with open(path, "r+b") as file:
                size = writes[0].size_before
                for write, keep in reversed(list(zip(writes, kept, strict=True))):
                    cut = 0 if not keep else self._torn(write) if write is writes[-1] else write.length
                    if cut < write.length:
                        self.fired["lost write" if cut == 0 else "torn write"] += 1
                        # Beyond the old end there was nothing: a block that was never written reads as zeros.
                        file.seek(write.offset + cut)
                        file.write(write.before[cut:].ljust(write.length - cut, b"\0"))
                    if cut:
                        size = max(size, write.offset + cut)
                file.truncate(max(size, writes[0].size_before))

    def _torn(self, write: Unsynced) -> int:
        if write.length < 2 or self.random.random() < 0.5:
            return write.length
        at = self.random.randrange(1, write.length)
        return at if self.random.random() < 0.5 else at // 512 * 512

    def _lose_entries(self, new: Path) -> None:
        if not self.entries:
            return
        keep_to: dict[Path, int] = {}
        undone: list[Entry] = []
        if self.strict:
            for parent in {entry.parent: None for entry in self.entries}:
                count = sum(entry.parent == parent for entry in self.entries)
                keep_to[parent] = self.random.randint(0, count)
            for entry in self.entries:
                if keep_to[entry.parent] > 0:
                    keep_to[entry.parent] -= 1
                else:
                    undone.append(entry)
        else:
            undone = self.entries[self.random.randint(0, len(self.entries)) :]
        for entry in reversed(undone):
            self.fired["lost folder entry"] += 1
            self.note(f"power cut takes back {entry.what}")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                entry.undo(new)

    def _lose_databases(self, old: Path, new: Path, *, lose: bool, worst: bool) -> None:
        for log in sorted(new.glob("**/*.sqlite3-wal")):
            self._cut_log(old / log.relative_to(new), log, lose=lose, worst=worst)
        if not lose:
            return
        durable = read_identity(new).slots_created if (new / IDENTITY_NAME).exists() else set()
        for folder in sorted(new.glob("slots/*")):
            database = folder / "meta.sqlite3"
            if int(folder.name) not in durable and database.exists() and self.random.random() < 0.5:
                self.fired["lost database"] += 1
                if self.random.random() < 0.5:
                    for part in ("", "-wal"):
                        database.with_name(database.name + part).unlink(missing_ok=True)
                else:
                    os.truncate(database, self.random.randint(0, database.stat().st_size))

    def _cut_log(self, old: Path, log: Path, *, lose: bool, worst: bool) -> None:
        """Cut a write-ahead log somewhere behind what was ever checkpointed.

        SQLite's shared memory tells how many frames that are, but forgets it when the database is opened again.
        """
        shared = old.with_name(old.name.removesuffix("-wal") + "-shm")
        size = log.stat().st_size
        if size <= 32 or not shared.exists():
            return
        head = shared.read_bytes()[:136]
        if len(head) < 136:
            return
        page_size = struct.unpack_from("=H", head, 14)[0]
        page_size = (page_size & 0xFE00) + ((page_size & 0x0001) << 16)
        frames, moved = struct.unpack_from("=I", head, 16)[0], struct.unpack_from("=I", head, 96)[0]
        frame = 24 + page_size
        with open(log, "rb") as file:
            salt = file.read(24)[16:]
        key = (log.relative_to(self.folder), salt)
        moved = self._checkpointed[key] = max(moved, self._checkpointed.get(key, 0))
        if not lose or moved >= frames:
            return
        cut = 32 + moved * frame
        if not worst:
            cut = self.random.randint(cut, 32 + frames * frame)
        if cut < size:
            self.fired["cut database log"] += 1
            os.truncate(log, cut)

    # -- damage

    def damage_chunk(self) -> bool:
        """Flip a bit in some chunk file; whether there was one."""
        chunks = sorted(self.folder.glob("slots/*/blobs/*/chunks/*"))
        chunks = [chunk for chunk in chunks if chunk.stat().st_size]
        if not chunks:
            return False
        chunk = self.random.choice(chunks)
        with open(chunk, "r+b") as file:
            offset = self.random.randrange(chunk.stat().st_size)
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << self.random.randrange(8)]))
        self.rotted.add(chunk.parent.parent.name)
        self.note(f"bit rot in {self.relative(chunk)}")
        return True

    def damage_database(self) -> bool:
        """Fill a page of some slot's database with rubbish while nobody has it open; whether there was one."""
        databases = [path for path in sorted(self.folder.glob("slots/*/meta.sqlite3")) if path.stat().st_size >= 8192]
        if not databases:
            return False
        database = self.random.choice(databases)
        with open(database, "r+b") as file:
            # The first pages are the ones that are always looked at.
            file.seek(4096 * self.random.randrange(min(3, database.stat().st_size // 4096)))
            file.write(self.random.randbytes(4096))
        self.damaged.add(int(database.parent.name))
        self.note(f"rubbish in {self.relative(database)}")
        return True

    def become_new(self) -> None:
        """An empty disk takes this one's place, while nobody uses it."""
        self.note(f"{self.name} has a new disk")
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.rotted.clear()
        self.dropped.clear()
        self.unsynced.clear()
        self.entries.clear()


def _copy_life(old: str, new: str) -> None:
    """Give a disk's next life what its last one left.

    Nothing of a dead process writes to files any more but the SQLite of its connections, when they are collected: only
    databases and their logs have to be copied. All else is the same file under another name.
    """
    os.mkdir(new)
    with os.scandir(old) as entries:
        for entry in entries:
            target = f"{new}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                _copy_life(entry.path, target)
            elif entry.name.endswith((".sqlite3", ".sqlite3-wal")):
                shutil.copyfile(entry.path, target)
            elif not entry.name.endswith("-shm") and entry.name != "lock":
                os.link(entry.path, target)


class SimFileOps(FileOps):
    """The system calls of one life of a disk. Waits, fails, and writes down what is not durable."""

    def __init__(self, disk: SimDisk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._life = disk.life

    # -- before each call

    def _enter(self, *, sync: bool = False, writes: bool = False) -> None:
        disk, loop = self._disk, self._disk.loop
        self._alive()
        if loop.may_wait:
            if sync:
                slow_s = disk.latency_s * disk.trouble.slow * (0.2 + disk.random.expovariate(1.0))
                # One that takes longer counts as broken, which is a fault of its own, and none that heals.
                loop.sleep(min(slow_s, SLOW_S_MAX))
            elif disk.random.random() < 0.3:
                loop.sleep(disk.latency_s * 0.1 * disk.trouble.slow * disk.random.random())
            self._alive()
        if sync and disk.trouble.syncs_fail:
            disk.fired["sync error"] += 1
            disk.note(f"{disk.name}: sync fails")
            raise OSError(errno.EIO, "simulated: the disk lost what was to be synced")
        if writes and disk.trouble.full:
            disk.fired["disk full"] += 1
            raise OSError(errno.ENOSPC, "simulated: no space left on the disk")

    def _alive(self) -> None:
        if not self._process.alive:
            raise Gone

    def _changed(self, parent: Path, what: str, undo: Callable[[Path], None]) -> None:
        disk = self._disk
        if parent.is_relative_to(disk.folder):
            disk.entries.append(Entry(disk.relative(parent), what, undo))

    # -- the calls

    def create(self, path: Path) -> int:
        self._enter(writes=True)
        fd = super().create(path)
        at = self._disk.relative(path)
        self._changed(path.parent, f"the creation of {at}", lambda new: (new / at).unlink())
        return fd

    def write_at(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._enter(writes=True)
        length = sum(len(buffer) for buffer in buffers)
        stat = os.fstat(fd)
        self._disk.unsynced.append(Unsynced(stat.st_ino, offset, os.pread(fd, length, offset), stat.st_size, length))
        return super().write_at(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        try:
            self._enter(sync=True)
        except OSError:
            self._disk.sync_failed(inode)
            raise
        self._disk.file_synced(inode)

    def fsync(self, fd: int) -> None:
        self.fdatasync(fd)

    def fsync_dir(self, path: Path) -> None:
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        self._enter(sync=True)
        if path.is_relative_to(self._disk.folder):
            self._disk.folder_synced(self._disk.relative(path))

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._enter(writes=True)
        # Without the blocks: whole memories would be filled by hundreds of small worlds.
        if size_bytes > os.fstat(fd).st_size:
            os.ftruncate(fd, size_bytes)

    def truncate(self, path: Path, size_bytes: int) -> None:
        self._enter(sync=True)
        os.truncate(path, size_bytes)
        self._disk.file_synced(path.stat().st_ino)

    def rename(self, source: Path, target: Path) -> None:
        self._enter()
        kept: Path | None = None
        if target.is_file():
            kept = self._disk.keep()
            os.link(target, kept)
        super().rename(source, target)
        if self._disk.when_removed is not None and (source.name == "chunks" or source.parent.name == "blobs"):
            self._disk.when_removed()
        before, after = self._disk.relative(source), self._disk.relative(target)

        def undo(new: Path) -> None:
            if (new / after).exists():
                (new / before).parent.mkdir(parents=True, exist_ok=True)
                os.rename(new / after, new / before)
            if kept is not None:
                shutil.copyfile(kept, new / after)

        self._changed(target.parent, f"the rename of {before} to {after}", undo)

    def unlink(self, path: Path) -> None:
        self._take_away(path, shutil.copyfile)

    def remove_tree(self, path: Path) -> None:
        self._take_away(path, shutil.copytree)

    def _take_away(self, path: Path, bring_back: Callable[[Path, Path], object]) -> None:
        self._enter()
        if not path.exists():
            return
        kept, at = self._disk.keep(), self._disk.relative(path)
        os.rename(path, kept)

        def undo(new: Path) -> None:
            if not (new / at).exists():
                bring_back(kept, new / at)

        self._changed(path.parent, f"the removal of {at}", undo)

    def free_bytes(self, path: Path) -> int:
        self._alive()
        return 0 if self._disk.trouble.full else FREE_BYTES

    def make_dirs(self, path: Path) -> None:
        missing = []
        at = path
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for folder in reversed(missing):
            self._enter(writes=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                here = self._disk.relative(folder)
                self._changed(folder.parent, f"the folder {here}", lambda new, here=here: shutil.rmtree(new / here))  # type: ignore[misc]
            self.fsync_dir(folder.parent)
