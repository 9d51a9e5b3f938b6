"""What is stored, what the cluster should hold of it, and the comparison of every byte."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from blake3 import blake3

SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__"})
NAME_BYTES_MAX = 1024
EXCERPT_BYTES = 16
HASH_PIECE_BYTES = 1024 * 1024


class Failed(Exception):
    """The demonstration found something that must not be; ``str()`` says what."""


class Difference(Failed):
    """The bytes that came back are not those that were stored."""

    def __init__(self, what: str, offset: int, expected: bytes, found: bytes) -> None:
        super().__init__(
            f"{what}: first difference at offset {offset:,}: expected {_excerpt(expected)}, found {_excerpt(found)}"
        )
        self.offset = offset


# -- the files


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file on this machine, and the name of its object."""

    name: str
    file: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The regular files of a folder, sorted by name."""

    root: Path
    files: tuple[SourceFile, ...]
    skipped: int

    @property
    def size_bytes(self) -> int:
        return sum(source.size_bytes for source in self.files)


def scan_tree(root: Path, prefix: str) -> Tree:
    """Every regular file under the folder. Links are not followed; what no object can be named after is skipped."""
    files: list[SourceFile] = []
    skipped = 0
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in names:
            file = Path(folder, name)
            status = file.lstat()
            object_name = f"{prefix}/{file.relative_to(root).as_posix()}"
            if stat.S_ISREG(status.st_mode) and _can_be_stored(file, object_name):
                files.append(SourceFile(name=object_name, file=file, size_bytes=status.st_size))
            else:
                skipped += 1
    return Tree(root=root, files=tuple(sorted(files, key=lambda source: source.name)), skipped=skipped)


def _can_be_stored(file: Path, name: str) -> bool:
    try:
        return len(name.encode()) <= NAME_BYTES_MAX and os.access(file, os.R_OK)
    except UnicodeEncodeError:
        return False


def build_archive(tree: Tree, target: Path, size_bytes_min: int) -> Iterator[int]:
    """Write a tar of the tree, copy after copy, until it is large enough; yields how large it is so far.

    Each copy has a folder of its own, so that no two stretches of the archive are the same. The same tree gives the
    same bytes: owners and times are left out.
    """
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        copy = 0
        while archive.offset < size_bytes_min:
            copy += 1
            for source in tree.files:
                with open(source.file, "rb") as content:
                    member = tarfile.TarInfo(f"copy-{copy:04d}/{source.name}")
                    member.size = os.fstat(content.fileno()).st_size
                    archive.addfile(member, content)
                yield archive.offset
                if archive.offset >= size_bytes_min:
                    break
    yield target.stat().st_size


# -- what the cluster should hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """What one version of an object holds: the file as it is, or the file rewritten."""

    rewritten: bool
    size_bytes: int
    digest: str


@dataclass(slots=True, kw_only=True)
class Record:
    """One object as it should be.

    Attributes:
        versions: what each version holds that was acknowledged.
        head: the newest of them.
        deleted: whether it was deleted and not restored.
    """

    source: SourceFile
    versions: dict[int, Edition] = field(default_factory=dict)
    head: int = 0
    deleted: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    def stored(self, version: int, edition: Edition) -> None:
        """The cluster acknowledged a version.

        Raises:
            Failed: its number is not above all that came before.
        """
        if version <= self.head:
            raise Failed(f"{self.name}: the new version is {version}, but there was a version {self.head} before")
        self.versions[version] = edition
        self.head = version
        self.deleted = False

    def open(self, version: int) -> IO[bytes]:
        """The content that this version must have, from the file it came from."""
        if self.versions[version].rewritten:
            return io.BytesIO(rewritten(self.source))
        return open(self.source.file, "rb")

    def source_unchanged(self, version: int) -> bool:
        """Whether the file on this machine still is what was stored."""
        with self.open(version) as content:
            return digest_of(content) == self.versions[version].digest


def digest_of(content: IO[bytes]) -> str:
    """The blake3 of a file, read in pieces."""
    hasher = blake3()
    while piece := content.read(HASH_PIECE_BYTES):
        hasher.update(piece)
    return hasher.hexdigest()


def original(source: SourceFile) -> bytes:
    """The file as it is, in memory."""
    return source.file.read_bytes()


def rewritten(source: SourceFile) -> bytes:
    """What an overwritten object holds: a line of our own, and the file backwards."""
    return f"# {source.name}, overwritten by the demonstration\n".encode() + original(source)[::-1]


def edition_of(content: bytes, *, is_rewritten: bool) -> Edition:
    """The edition that holds these bytes."""
    return Edition(rewritten=is_rewritten, size_bytes=len(content), digest=blake3(content).hexdigest())


def edition_of_file(file: Path) -> Edition:
    """The edition that holds a file too large for the memory."""
    digest = blake3().update_mmap(file).hexdigest()
    return Edition(rewritten=False, size_bytes=file.stat().st_size, digest=digest)


# -- comparing


async def compare(
    what: str, pieces: AsyncIterable[bytes], expected: IO[bytes], size_bytes_max: int | None = None
) -> int:
    """Compare a download with what it must be, or with the beginning of that; how many bytes were compared.

    Raises:
        Difference: at the first byte that differs, is missing or too many.
    """
    offset = 0
    async for piece in pieces:
        wanted = expected.read(len(piece))
        if piece != wanted:
            at = first_difference(wanted, piece)
            # Beyond the end of what is expected nothing can be read, which is what the message shall say.
            raise Difference(what, offset + at, wanted[at:], piece[at:])
        offset += len(piece)
    if (size_bytes_max is None or offset < size_bytes_max) and (rest := expected.read(EXCERPT_BYTES)):
        raise Difference(what, offset, rest, b"")
    return offset


def first_difference(left: bytes, right: bytes) -> int:
    """The index of the first byte in which two strings differ; the length of the shorter one if it has none."""
    length = min(len(left), len(right))
    low, high = 0, length
    while low < high:  # left[:low] == right[:low] always holds
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _excerpt(content: bytes) -> str:
    return repr(content[:EXCERPT_BYTES]) if content else "the end"
