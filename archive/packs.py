"""Objects of the archive that hold chunks: packs of many, and lone ones (rfc/0016). Pure: bytes in, bytes out.

::

    object = header (magic, version), frames, index, footer
    index  = zstd of msgpack: for each item (one chunk of one version) a PackEntry
    footer = magic "AMBX", version, position, stored length and plain length of the index, number of entries, blake3 of index and footer so far, magic

A lone chunk's object has the same form with one frame. Whoever reads chunks does so by the rows alone; the index is for whoever has lost them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import zstandard
from blake3 import blake3

from amberblob.errors import ArchiveDamaged
from amberblob.ids import ulid_time_ms, valid_hash, valid_ulid
from amberblob.limits import KIB, MIB, PATH_BYTES_MAX
from amberblob.manifest import ChunkRef
from archive.frames import Frame, frame_bytes_max, header_bytes, inflate

PACKS = "packs/"
CHUNKS = "chunks/"

HEADER = b"AMBERBLOB-PACK\x00\x01"
ENTRY_BYTES = 96
"""What an entry takes in the stored index, about: two hashes and a ULID, which do not shrink. Of tiny chunks that is more than their frames."""
FRAME_OF_PACK_BYTES = 160
"""What a pack has beside frames and entries, about: header, footer, the beginning of the index."""
ENTRIES_MAX = 32_768
"""Of one object: its index must fit into memory with the longest paths."""
INDEX_BYTES_MAX = 64 * MIB
FOOTER_MAGIC = b"AMBX"
FOOTER_VERSION = 1
TAIL_BYTES = 64 * KIB
"""How much of an object's end is asked for first: the footer and most indexes are in it."""

_FOOTER = struct.Struct("<4sB3xQIII")
_FOOTER_END = struct.Struct("<32s4s")
FOOTER_BYTES = _FOOTER.size + _FOOTER_END.size

_PACK_NAME = re.compile(r"\Apacks/\d{4}/\d{2}/\d{2}/([0-9A-Z]{26})\.pack\Z")
_LONE_NAME = re.compile(r"\Achunks/([0-9a-f]{2})/([0-9a-f]{64})\.([0-9A-Z]{26})\Z")

assert ENTRIES_MAX * (PATH_BYTES_MAX + 300) <= INDEX_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One chunk of one version that is to be archived; ``index``: its place in the version, -1: its manifest; ``version`` 0: not chosen yet."""

    chunk: ChunkRef
    slot: int
    blob_id: str
    path: str
    version: int
    index: int


class PackEntry(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One item of an object, as its index tells. Several may share a frame.

    Attributes:
        start, end, head: of the frame, as in :class:`amberblob.archives.ArchivedChunk`.
        length: of the plain content.
        version: 0: it was not chosen yet, as nothing is when a write is archived first.
        index: the chunk's place in the version, -1: its manifest.
    """

    chunk_id: str
    length: int
    start: int
    end: int
    head: str
    slot: int
    blob_id: str
    path: str
    version: int
    index: int


def pack_name(ulid: str) -> str:
    """The name of a pack that is begun now; its folder is the day (UTC) of the ULID."""
    day = datetime.fromtimestamp(ulid_time_ms(ulid) / 1000, UTC)
    return f"{PACKS}{day:%Y/%m/%d}/{ulid}.pack"


def lone_name(chunk_id: str, ulid: str) -> str:
    """The name of the object of one chunk."""
    return f"{CHUNKS}{chunk_id[:2]}/{chunk_id}.{ulid}"


def object_ulid(name: str) -> str | None:
    """The ULID of an object of chunks; None: the name is of nothing that is written here."""
    found = _PACK_NAME.match(name)
    if found is not None and valid_ulid(found[1]) and pack_name(found[1]) == name:
        return found[1]
    lone = _LONE_NAME.match(name)
    if lone is not None and lone[1] == lone[2][:2] and valid_ulid(lone[3]):
        return lone[3]
    return None


@dataclass(frozen=True, slots=True)
class Footer:
    """What the last bytes of an object tell of its index: where it lies and how large it is, stored and plain."""

    start: int
    stored_bytes: int
    plain_bytes: int
    entries: int
    fixed: bytes
    digest: bytes


class PackWriter:
    """Lays an object out: what it says goes to the target in this order: ``HEADER``, the parts of every frame added, :meth:`finish`.

    Attributes:
        size_bytes: of the object so far.
        frames, entries: how many it has.
    """

    def __init__(self) -> None:
        self.size_bytes = len(HEADER)
        self.frames = 0
        self._places: dict[str, tuple[int, int, int, str]] = {}
        self._entries: list[PackEntry] = []

    @property
    def entries(self) -> int:
        return len(self._entries)

    def add(self, frame: Frame) -> tuple[int, int]:
        """The frame comes next; returns its range in the object."""
        assert frame.chunk_id not in self._places, "one frame per chunk: share it"
        start = self.size_bytes
        self.size_bytes += frame.size_bytes
        self.frames += 1
        # Not the frame itself: its bytes are gone from memory once they are sent.
        self._places[frame.chunk_id] = frame.length, start, self.size_bytes, frame.head
        return start, self.size_bytes

    def enter(self, item: Item) -> None:
        """Name an item of a frame that was added, in the index. At most :data:`ENTRIES_MAX` times."""
        length, start, end, head = self._places[item.chunk.id]
        assert len(self._entries) < ENTRIES_MAX
        self._entries.append(
            PackEntry(
                item.chunk.id, length, start, end, head,
                item.slot, item.blob_id, item.path, item.version, item.index,
            )
        )  # fmt: skip

    def finish(self) -> bytes:
        """Index and footer: the object's last bytes. Takes a moment for many entries; for any thread, when nothing is added any more."""
        plain = msgspec.msgpack.encode(self._entries)
        stored = zstandard.ZstdCompressor(level=3).compress(plain)
        fixed = _FOOTER.pack(FOOTER_MAGIC, FOOTER_VERSION, self.size_bytes, len(stored), len(plain), len(self._entries))
        end = stored + fixed + _FOOTER_END.pack(blake3(stored).update(fixed).digest(), FOOTER_MAGIC)
        self.size_bytes += len(end)
        return end


def read_footer(name: str, tail: bytes, size_bytes: int) -> Footer:
    """Where the index of an object of that size lies, by its last bytes (at least :data:`FOOTER_BYTES`, if it has so many).

    Raises: ArchiveDamaged: this is no end of such an object.
    """
    if len(tail) < FOOTER_BYTES or size_bytes < len(HEADER) + FOOTER_BYTES:
        raise _damaged(name, "it is too short")
    fixed = tail[-FOOTER_BYTES : -_FOOTER_END.size]
    digest, end_magic = _FOOTER_END.unpack_from(tail, len(tail) - _FOOTER_END.size)
    magic, version, start, stored, plain, entries = _FOOTER.unpack(fixed)
    if magic != FOOTER_MAGIC or end_magic != FOOTER_MAGIC:
        raise _damaged(name, "it has no index at its end")
    if version > FOOTER_VERSION:
        raise _damaged(name, f"its index is of version {version}, which is newer than this program")
    if (
        start < len(HEADER)
        or start + stored + FOOTER_BYTES != size_bytes
        or plain > INDEX_BYTES_MAX
        or entries > ENTRIES_MAX
    ):
        raise _damaged(name, "its footer contradicts itself")
    return Footer(start, stored, plain, entries, fixed, digest)


_decoder = msgspec.msgpack.Decoder(list[PackEntry])


def read_index(name: str, footer: Footer, stored: bytes) -> list[PackEntry]:
    """The entries, from the bytes where the footer says that the index lies; every one makes sense by itself.

    Raises: ArchiveDamaged: it is not what was stored. Takes a moment for many entries.
    """
    if len(stored) != footer.stored_bytes or blake3(stored).update(footer.fixed).digest() != footer.digest:
        raise _damaged(name, "its index has another hash")
    plain = inflate(stored, footer.plain_bytes, INDEX_BYTES_MAX)
    try:
        entries = _decoder.decode(plain) if plain is not None else None
    except msgspec.MsgspecError:
        entries = None
    if entries is None or len(entries) != footer.entries or not all(_sensible(entry, footer) for entry in entries):
        raise _damaged(name, "its index contradicts itself")
    return entries


def _sensible(entry: PackEntry, footer: Footer) -> bool:
    return (
        entry.length >= 0
        and len(HEADER) <= entry.start
        and entry.end <= footer.start
        and header_bytes(entry.length) <= entry.end - entry.start <= frame_bytes_max(entry.length)
        and valid_hash(entry.chunk_id)
        and valid_hash(entry.head)
        and valid_ulid(entry.blob_id)
        and entry.slot >= 0
        and entry.version >= 0
        and entry.index >= -1
    )


def _damaged(name: str, seen: str) -> ArchiveDamaged:
    return ArchiveDamaged(
        f"{name} is not an object of chunks as it was stored: {seen}. It was overwritten or damaged by somebody else.",
        extra={"object": name},
    )
