"""A disk that forgets: what may be left of a folder after the power went.

A recording (:mod:`tests.crash.tracing`) is played onto a model of files, folders and the page cache. At a *cut*
everything is on the disk that was synced; of the rest, any part. What may be lost is decided by one of two sets
of rules:

``strict``: only what POSIX promises.
  * Bytes and sizes of a file (write, truncate, fallocate) are durable after an fsync or fdatasync of that file which
    was entered after they had returned, and which has returned itself. Each one that is not may be there or not,
    regardless of the others and of their order. A write may be torn: any prefix, or any of its 512-byte sectors.
  * Names (create, mkdir, rename, unlink, rmdir) are durable after an fsync of their folder, each by itself. An fsync of
    a new file does not make its name durable, one of a folder not the folder's own name.
  * syncfs makes all of it durable.
  * The one thing beyond POSIX: a rename is atomic. Every Linux file system with a journal (or a log) has that.

``journaled``: what ext4, XFS and btrfs do. Names are changed in order, so what is left is a prefix of the changes; any
  fsync of anything makes all the names durable that were changed before it. Bytes are as above.

What the strict rules allow includes states that no real disk shows (later names without earlier ones): a store
that survives them relies on nothing but what it synced. ``-shm`` files are left out: nothing in them is meant to last.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.crash.lines import Line, decode_lines
from tests.crash.tracing import FORBIDDEN, MUTATING, OPENS, RECORDED, SYNCS, WRITES, Call, strings
from tests.crash.verify import Promises

SECTOR_BYTES = 512


class Inode:
    """A file or a folder, whatever its name is."""

    __slots__ = ("changes", "is_folder", "names", "number")

    def __init__(self, number: int, *, is_folder: bool) -> None:
        self.number = number
        self.is_folder = is_folder
        self.names: dict[bytes, Inode] = {}
        self.changes: list[Change] = []


@dataclass(eq=False, slots=True)
class Change:
    """Bytes or size of a file. ``data`` None: the size becomes ``size`` (``grow``: at least that)."""

    begin: int
    end: int
    inode: Inode
    offset: int = 0
    data: bytes | None = None
    size: int = 0
    grow: bool = False
    durable_at: int = 1 << 60


@dataclass(eq=False, slots=True)
class Naming:
    """Names that change in one step: (folder, name, what it names from now on)."""

    begin: int
    end: int
    what: str
    sets: list[tuple[Inode, bytes, Inode | None]]
    durable_at: int = 1 << 60
    journaled_at: int = 1 << 60


@dataclass(slots=True)
class Said:
    """A line of the scenario, and when it began to be written."""

    begin: int
    line: Line


@dataclass(slots=True)
class Recording:
    """Everything that happened to the folder ``base``, in the order of the log's lines.

    More than one log may be played: a process that was killed, and the next one.

    Attributes:
        in_flight: calls of the last one that never returned, as far as known: each may have changed the folder or not.
    """

    base: Path
    root: Inode = field(default_factory=lambda: Inode(0, is_folder=True))
    changes: list[Change] = field(default_factory=list)
    namings: list[Naming] = field(default_factory=list)
    syncs: list[tuple[int, int, Inode | None]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    length: int = 0
    last_life: int = 0
    in_flight: list[str] = field(default_factory=list)
    _count: int = 0

    # -- playing

    def given(self, name: bytes) -> None:
        """A folder in ``base`` that was there, durably, before anything was recorded."""
        inode = self.new_inode(is_folder=True)
        self.root.names[name] = inode
        self.namings.append(Naming(-1, -1, "given", [(self.root, name, inode)], -1, -1))

    def play(self, calls: Iterable[Call], lines: int) -> None:
        """Play one process's log of so many lines."""
        start = self.last_life = self.length
        self.in_flight.clear()
        player = _Player(self, start)
        # In the order in which they returned; what never returned comes last.
        events: list[tuple[int, int, Callable[[], None]]] = []
        for call in calls:
            assert call.name not in FORBIDDEN, f"the model does not know {call.name}"
            # A descriptor is free as soon as close is entered; all else has happened when it returns.
            at = call.begin if call.name == "close" else call.end
            events.append((at, call.begin, lambda call=call: player.play(call)))  # type: ignore[misc]
        for _, _, event in sorted(events, key=lambda event: event[:2]):
            event()
        self.length = start + lines
        self._settle()

    def _settle(self) -> None:
        """Say of every change when it became durable."""
        by_inode: dict[Inode | None, list[tuple[int, int]]] = {}
        for begin, end, inode in self.syncs:
            by_inode.setdefault(inode, []).append((begin, end))

        def durable_at(after: int, *inodes: Inode) -> int:
            ends = [end for inode in (*inodes, None) for begin, end in by_inode.get(inode, ()) if begin > after]
            return min(ends, default=1 << 60)

        for change in self.changes:
            change.durable_at = durable_at(change.end, change.inode)
        for naming in self.namings:
            if naming.what == "given":
                continue
            naming.durable_at = durable_at(naming.end, *(folder for folder, _, _ in naming.sets))
            naming.journaled_at = min((end for begin, end, _ in self.syncs if begin > naming.end), default=1 << 60)

    def new_inode(self, *, is_folder: bool) -> Inode:
        """A file or folder that was just made."""
        self._count += 1
        return Inode(self._count, is_folder=is_folder)

    def in_memory(self) -> dict[bytes, bytes | None]:
        """The folder as a running system sees it, as :func:`as_left` gives it."""
        entries: dict[bytes, bytes | None] = {}

        def walk(folder: Inode, prefix: bytes) -> None:
            for name, inode in folder.names.items():
                if inode.is_folder:
                    entries[prefix + name] = None
                    walk(inode, prefix + name + b"/")
                elif not name.endswith(b"-shm"):
                    entries[prefix + name] = _content(inode.changes)

        walk(self.root, b"")
        return entries

    # -- cuts

    def promises(self, cut: int) -> Promises:
        """What was said before the cut. A line that began to be written tells of what had already happened."""
        return Promises.of(said.line for said in self.said if said.begin <= cut)

    def cuts(self) -> dict[int, int]:
        """Moments to cut the power at, in the last life, and their weights."""
        weights: dict[int, int] = {}
        for said in self.said:
            weights[said.begin] = 6
        for begin, end, _ in self.syncs:
            # Nothing is safe yet, and just now it is.
            weights.setdefault(end - 1, 2)
            weights.setdefault(end, 1)
            weights.setdefault(begin, 1)
        for naming in self.namings:
            weights.setdefault(naming.end, 4 if naming.what in ("rename", "unlink") else 2)
        for change in self.changes:
            weights.setdefault(change.end, 1)
        return {cut: weight for cut, weight in weights.items() if self.last_life <= cut < self.length}


class _Player:
    """Turns one process's calls into changes."""

    def __init__(self, recording: Recording, start: int) -> None:
        self._recording = recording
        self._start = start
        self._base = os.fsencode(recording.base)
        self._fds: dict[int, Inode] = {}
        self._positions: dict[int, int] = {}

    def play(self, call: Call) -> None:
        """One call."""
        if call.result is None:
            # Killed within it: whether it happened is told by what is found later; see the caller.
            if call.lost or call.name not in RECORDED or self._concerns(call):
                self._recording.in_flight.append(call.name)
            return
        if call.name == "close":
            self._fds.pop(call.fd(), None)
            return
        if call.result < 0:
            return
        if call.name in OPENS:
            self._open(call)
        elif call.name in WRITES:
            self._write(call)
        elif call.name in SYNCS:
            inode = self._fds.get(call.fd())
            if inode is not None or call.name == "syncfs":
                inode = None if call.name == "syncfs" else inode
                self._recording.syncs.append((self._start + call.begin, self._start + call.end, inode))
        elif call.name == "mmap":
            assert not ("MAP_SHARED" in call.arguments[3] and "PROT_WRITE" in call.arguments[2]) or (
                call.fd_path(4).endswith(b"-shm")
            ), "somebody writes through memory"
        else:
            self._change(call)

    def _concerns(self, call: Call) -> bool:
        return call.name in (*MUTATING, *OPENS) and self._base.hex() in " ".join(call.arguments).replace("\\x", "")

    # -- names

    def _find(self, path: bytes, folder: Inode | None) -> tuple[Inode, bytes] | None:
        """The folder that holds the path's last name, and that name; None when it is none of ours."""
        at = folder
        if path.startswith(b"/"):
            if not path.startswith(self._base + b"/"):
                return None
            path, at = path[len(self._base) + 1 :], self._recording.root
        if at is None:
            return None
        *parents, name = [part for part in path.split(b"/") if part]
        for parent in parents:
            at = at.names[parent]
        return at, name

    def _place(self, call: Call, index: int, *, at: bool) -> tuple[Inode, bytes] | None:
        """As :meth:`_find`, for argument ``index``, which with ``at`` is a descriptor followed by a path."""
        if not at:
            return self._find(call.string(index), None)
        fd = call.fd(index)
        return self._find(call.string(index + 1), self._fds.get(fd))

    def _name(self, call: Call, what: str, *sets: tuple[Inode, bytes, Inode | None]) -> None:
        for folder, name, inode in sets:
            if inode is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = inode
        self._recording.namings.append(Naming(self._start + call.begin, self._start + call.end, what, list(sets)))

    def _open(self, call: Call) -> None:
        at = call.name == "openat"
        flags = "O_CREAT|O_TRUNC" if call.name == "creat" else call.arguments[2 if at else 1]
        path = call.string(1 if at else 0)
        assert call.result is not None
        if path.rstrip(b"/") == self._base:
            self._fds[call.result] = self._recording.root
            return
        place = self._place(call, 0, at=at)
        if place is None:
            return
        folder, name = place
        inode = folder.names.get(name)
        if inode is None:
            assert "O_CREAT" in flags, f"{path!r} was opened, and nobody made it"
            inode = self._recording.new_inode(is_folder=False)
            self._name(call, "create", (folder, name, inode))
        elif "O_TRUNC" in flags:
            self._add(call, inode, size=0)
        self._fds[call.result] = inode

    def _change(self, call: Call) -> None:
        name = call.name
        if name in ("mkdir", "mkdirat"):
            place = self._place(call, 0, at=name == "mkdirat")
            if place is not None:
                self._name(call, "mkdir", (*place, self._recording.new_inode(is_folder=True)))
        elif name in ("unlink", "unlinkat", "rmdir"):
            place = self._place(call, 0, at=name == "unlinkat")
            if place is not None:
                self._name(call, "unlink", (*place, None))
        elif name in ("rename", "renameat", "renameat2"):
            at = name != "rename"
            source, target = self._place(call, 0, at=at), self._place(call, 2 if at else 1, at=at)
            if source is not None and target is not None:
                moved = source[0].names[source[1]]
                self._name(call, "rename", (*source, None), (*target, moved))
            else:
                assert source is target, "a rename into or out of the folder"
        elif name in ("ftruncate", "fallocate"):
            inode = self._fds.get(call.fd())
            if inode is not None and name == "ftruncate":
                self._add(call, inode, size=int(call.arguments[1]))
            elif inode is not None:
                assert call.arguments[1] == "0", "only plain fallocate is known"
                self._add(call, inode, size=int(call.arguments[2]) + int(call.arguments[3]), grow=True)
        else:
            raise AssertionError(f"the model does not know {name}")

    # -- bytes

    def _write(self, call: Call) -> None:
        fd = call.fd()
        if fd == 1 and call.name == "write":
            for line in decode_lines(strings(call.arguments[1])[0]):
                self._recording.said.append(Said(self._start + call.begin, line))
            return
        inode = self._fds.get(fd)
        if inode is None:
            assert not call.fd_path().startswith(self._base + b"/"), f"a write to a file nobody opened: {call}"
            return
        assert call.name in ("pwrite64", "pwritev", "pwritev2"), "the model does not follow file positions"
        data = b"".join(strings(call.arguments[1]))[: call.result]
        self._add(call, inode, offset=int(call.arguments[3]), data=data)

    def _add(
        self, call: Call, inode: Inode, *, offset: int = 0, data: bytes | None = None, size: int = 0, grow: bool = False
    ) -> None:
        change = Change(self._start + call.begin, self._start + call.end, inode, offset, data, size, grow)
        inode.changes.append(change)
        self._recording.changes.append(change)


def _content(
    changes: Iterable[Change], torn: Callable[[Change], list[tuple[int, bytes]] | None] | None = None
) -> bytes:
    """What a file holds after these changes; ``torn`` gives the pieces of a write that are left of it."""
    content = bytearray()
    for change in changes:
        if change.data is None:
            if change.grow and change.size <= len(content):
                continue
            if change.size < len(content):
                del content[change.size :]
            else:
                content.extend(bytes(change.size - len(content)))
            continue
        pieces = (torn(change) if torn is not None else None) or [(change.offset, change.data)]
        for offset, data in pieces:
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
    return bytes(content)


Rules = str
"""``strict`` or ``journaled``."""

MODES = ("nothing", "bytes", "names", "all", "without-one", "only-one", "some", "few", "most")
"""What is left of that which is not durable. ``without-one`` and ``only-one`` find a missing sync, one at a time."""


@dataclass(frozen=True, slots=True)
class State:
    """One way in which a folder may be found after a cut: which of the pending changes are there, and how torn."""

    cut: int
    rules: Rules
    mode: str
    seed: int

    def __str__(self) -> str:
        return f"cut {self.cut}, {self.rules}, {self.mode}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder as it is found after a cut: content of files, None for folders, by relative path."""

    entries: dict[bytes, bytes | None]
    lost: int
    """How many changes are not there."""

    def digest(self) -> bytes:
        """The same for equal folders."""
        digest = hashlib.blake2b()
        for path, content in sorted(self.entries.items()):
            digest.update(path + b"\0" + (b"/" if content is None else hashlib.blake2b(content).digest()))
        return digest.digest()

    def write(self, base: Path) -> None:
        """Make it so in the folder ``base``, which is emptied first."""
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        for path, content in sorted(self.entries.items()):
            target = base / os.fsdecode(path)
            if content is None:
                target.mkdir()
            else:
                target.write_bytes(content)


def found_after(recording: Recording, state: State) -> Disk:
    """What is left in this state."""
    chance = random.Random(f"{state.cut} {state.rules} {state.mode} {state.seed}")
    cut = state.cut
    strict = state.rules == "strict"
    # What was entered before the cut may have happened; what had not returned is never safe.
    namings = [naming for naming in recording.namings if naming.begin <= cut]
    changes = [change for change in recording.changes if change.begin <= cut]
    loose_names = [naming for naming in namings if (naming.durable_at if strict else naming.journaled_at) > cut]
    loose_bytes = [change for change in changes if change.durable_at > cut]
    dropped = _dropped(loose_names, loose_bytes, state.mode, chance, strict=strict)
    kept_loose = [change for change in loose_bytes if change not in dropped]
    torn: dict[Change, list[tuple[int, bytes]]] = {}
    if kept_loose and state.mode not in ("bytes",):
        # The last write is torn now and then, and in the mixed modes any other as well.
        victims = [kept_loose[-1]] if chance.random() < 0.5 else []
        if state.mode in ("some", "few", "most"):
            victims += [change for change in kept_loose if chance.random() < 0.1]
        for change in victims:
            torn[change] = _tear(change, chance)
    folders: dict[Inode, dict[bytes, Inode]] = {}
    for naming in namings:
        if naming not in dropped:
            for folder, name, inode in naming.sets:
                names = folders.setdefault(folder, {})
                if inode is None:
                    names.pop(name, None)
                else:
                    names[name] = inode
    kept: dict[Inode, list[Change]] = {}
    for change in changes:
        if change not in dropped:
            kept.setdefault(change.inode, []).append(change)
    entries: dict[bytes, bytes | None] = {}

    def walk(folder: Inode, prefix: bytes, above: tuple[Inode, ...]) -> None:
        for name, inode in folders.get(folder, {}).items():
            if name.endswith(b"-shm") or inode in above:
                continue
            if inode.is_folder:
                entries[prefix + name] = None
                walk(inode, prefix + name + b"/", (*above, inode))
            else:
                entries[prefix + name] = _content(kept.get(inode, ()), torn.get)

    walk(recording.root, b"", (recording.root,))
    return Disk(entries, len(dropped))


def _tear(change: Change, chance: random.Random) -> list[tuple[int, bytes]]:
    """What is left of a torn write: a prefix of sectors or of bytes, or some sectors."""
    if not change.data:
        return []
    offset, data = change.offset, change.data
    how = chance.choice(("sectors", "prefix", "byte"))
    if how == "byte":
        return [(offset, data[: chance.randrange(len(data) + 1)])]
    first = SECTOR_BYTES - offset % SECTOR_BYTES
    bounds = [0, *range(first, len(data), SECTOR_BYTES), len(data)]
    if how == "prefix":
        return [(offset, data[: chance.choice(bounds)])]
    pieces = [(offset + a, data[a:b]) for a, b in pairwise(bounds)]
    return [piece for piece in pieces if chance.random() < 0.5] or [(offset, b"")]


def _dropped(
    names: list[Naming], changes: list[Change], mode: str, chance: random.Random, *, strict: bool
) -> set[Naming | Change]:
    """Which of the changes that are not durable are lost."""
    loose: list[Naming | Change] = [*names, *changes]
    dropped: set[Naming | Change]
    match mode:
        case "nothing":
            return set(loose)
        case "bytes":
            return set(names)
        case "names":
            return set(changes)
        case "all":
            return set()
        case "without-one":
            dropped = {chance.choice(loose)} if loose else set()
        case "only-one":
            dropped = set(loose) - ({chance.choice(loose)} if loose else set())
        case _:
            share = {"some": 0.5, "few": 0.85, "most": 0.15}[mode]
            dropped = {change for change in loose if chance.random() < share}
    if not strict:
        # Names are lost from some moment on.
        first = next((at for at, naming in enumerate(names) if naming in dropped), len(names))
        if mode in ("some", "few", "most"):
            first = chance.randrange(len(names) + 1)
        dropped = {change for change in dropped if isinstance(change, Change)} | set(names[first:])
    return dropped


def states(recording: Recording, count: int, seed: int) -> list[State]:
    """So many states, the same ones for the same seed; every acknowledgement with nothing left that was not synced."""
    chance = random.Random(seed)
    cuts = recording.cuts()
    chosen = [State(said.begin, "strict", "nothing", 0) for said in recording.said if said.begin >= recording.last_life]
    if len(chosen) > count // 2:
        chosen = chance.sample(chosen, count // 2)
    places, weights = list(cuts), list(cuts.values())
    while len(chosen) < count:
        (cut,) = chance.choices(places, weights)
        chosen.append(State(cut, chance.choice(("strict", "strict", "journaled")), chance.choice(MODES), len(chosen)))
    return chosen


def as_left(base: Path) -> dict[bytes, bytes | None]:
    """The real folder, in the same form, without what is not meant to last."""
    entries: dict[bytes, bytes | None] = {}
    for folder, names, files in os.walk(os.fsencode(base)):
        for name in names:
            entries[os.path.relpath(os.path.join(folder, name), os.fsencode(base))] = None
        for name in files:
            if not name.endswith(b"-shm"):
                path = os.path.join(folder, name)
                entries[os.path.relpath(path, os.fsencode(base))] = Path(os.fsdecode(path)).read_bytes()
    return entries
