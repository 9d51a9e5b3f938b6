"""The files of the cache: ``<folder>/<2 hex>/<chunk id>``, of imported content ``<chunk id>.<its blake3>``. Every function blocks: for threads.

They are written without fsync, under another name first: after a power cut a file may hold anything, so each is checked when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from amberblob.ids import valid_hash
from archive.frames import Buffer

BLOCK_BYTES = 4096
_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class CacheFile:
    """One file.

    Attributes:
        content_hash: blake3 of its content, 64 hex; of other than imported content the chunk's id.
        size_bytes: what it takes on the disk, about.
    """

    chunk_id: str
    content_hash: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Its path within the folder."""
        tail = "" if self.content_hash == self.chunk_id else f".{self.content_hash}"
        return f"{self.chunk_id[:2]}/{self.chunk_id}{tail}"


def blocks(length: int) -> int:
    """What a file of that length takes on the disk."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def scan(folder: Path) -> list[CacheFile]:
    """All files, the one that was used longest ago first; what a crash left half-written is removed. Raises: OSError."""
    found: list[tuple[int, CacheFile]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for pair in os.scandir(folder):
        if not pair.is_dir(follow_symlinks=False):
            continue
        for entry in os.scandir(pair.path):
            chunk_id, _, content_hash = entry.name.partition(".")
            if valid_hash(chunk_id) and pair.name == chunk_id[:2] and valid_hash(content_hash or chunk_id):
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    file = CacheFile(chunk_id, content_hash or chunk_id, blocks(facts.st_size))
                    found.append((facts.st_mtime_ns, file))
            elif entry.name.endswith(_TEMPORARY):
                with suppress(OSError):
                    os.unlink(entry.path)
    found.sort(key=lambda pair: pair[0])
    return [file for _, file in found]


def load(folder: Path, file: CacheFile, length: int) -> bytes | None:
    """Its content, verified, and noted as used now. None: it is gone or cannot be read, or was not what it should be and was removed."""
    path = folder / file.name
    try:
        with open(path, "rb", buffering=0) as source:
            data = source.read(length + 1)
            if len(data) == length and blake3(data).hexdigest() == file.content_hash:
                os.utime(source.fileno())
                return data
    except OSError:
        return None
    with suppress(OSError):
        os.unlink(path)
    return None


def store(folder: Path, chunk_id: str, buffers: Sequence[Buffer], *, foreign: bool, token: str) -> CacheFile | None:
    """Write a chunk's content; readers see all of it or none. None: it is not that chunk's.

    Args:
        foreign: the id is not the content's hash.
        token: a word that no other call uses.

    Raises: OSError; nothing is left behind.
    """
    hasher = blake3()
    for buffer in buffers:
        hasher.update(buffer)
    found = hasher.hexdigest()
    if not foreign and found != chunk_id:
        return None
    file = CacheFile(chunk_id, found, blocks(sum(len(buffer) for buffer in buffers)))
    path = folder / file.name
    temporary = path.with_name(f"{token}{_TEMPORARY}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb", buffering=0) as sink:
            for buffer in buffers:
                left = memoryview(buffer)
                while left:
                    left = left[sink.write(left) :]
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return file


def remove(folder: Path, files: Sequence[CacheFile]) -> None:
    """Remove them; such as cannot be are left, and found by the next :func:`scan`."""
    for file in files:
        with suppress(OSError):
            os.unlink(folder / file.name)
