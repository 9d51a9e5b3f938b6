"""The form of exported metadata (rfc/0016): what ``meta/<cluster>/`` holds, so that a bucket alone is enough to build the cluster again. Pure.

Three kinds of objects, none of which is ever written twice under one name:

``cluster.json``
    :class:`ClusterDocument`: whose metadata this is, and into how many slots its paths were divided.
``segments/<ULID>.seg``
    One line of JSON that says what it is, then **parts**, each of one slot: a header with the hash of all of it, and entries as MessagePack in zstd.
``heads/<ULID>.json``
    Which parts of which segments are the state of a slot: a base, then changes in their order. A head tells of some slots; for each slot
    the newest readable head that tells of it counts.

What is damaged is told by the object's name and place; it is never taken for what it was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec
import zstandard

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged, ArchiveError
from amberblob.ids import content_hash, valid_ulid
from amberblob.limits import MIB, SLOT_COUNT_MAX
from amberblob.wire_repair import PathItem

FORMAT = 1
META = "meta/"

PART_BYTES = MIB
"""Of entries, before they are compressed: a part that has reached this is written. The entry that reaches it is the last."""
PART_BYTES_MAX = 16 * MIB
"""A part that says that it is larger is none."""
LINE_BYTES_MAX = 4096

_MAGIC = b"AMBP"
_HEADER = struct.Struct("<4sHHIIII32s")
"""magic, format, zero, slot, entries, plain length, stored length, blake3 of the fields before it and of what is stored."""
_HASHED = _HEADER.size - 32


class PathEntry(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="p"):
    """What is known to be chosen of a path; takes the place of all that came before about that path.

    ``continued``: older rows of the entry just before it, which is of the same path.
    """

    item: PathItem
    continued: bool = False


class GoneEntry(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="g"):
    """The path was deleted, let go of and forgotten: nothing is known of it any more."""

    path: str


class ArchivedEntry(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="a"):
    """Archive rows of a blob, to be merged with those that came before."""

    blob_id: str
    chunks: tuple[ArchivedChunk, ...]


Entry = PathEntry | GoneEntry | ArchivedEntry

_encoder = msgspec.msgpack.Encoder()
_entries_decoder: msgspec.msgpack.Decoder[list[Entry]] = msgspec.msgpack.Decoder(list[Entry])


class ClusterDocument(msgspec.Struct, frozen=True, kw_only=True):
    """``cluster.json``: what a cluster was when it was first exported, as far as it never changes (``name`` and ``replicas`` are told for people)."""

    format: int
    cluster: str
    name: str
    slot_count: int
    chunk_bytes: int
    replicas: int
    created_at_ms: int


class Ref(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """Parts of one slot that follow each other in a segment: its ULID, the byte range (end exclusive), and blake3 of those bytes (32 hex characters of it)."""

    segment: str
    start: int
    end: int
    digest: str

    @property
    def size_bytes(self) -> int:
        """Of the parts, as they are stored."""
        return self.end - self.start


class SlotHead(msgspec.Struct, frozen=True, kw_only=True):
    """The exported state of one slot.

    Attributes:
        slot: its number, of as many as :attr:`Head.slot_count`.
        copy: incarnation of the copy that was exported: only that one can go on with the changes.
        log, archived: how far its commit log and its archive rows are told.
        base_log, base_archived: how far the base tells them.
        base, changes: where that is, in the order in which it is to be read.
        at_ms: what was chosen there before this is in it, epoch milliseconds of the hybrid clock.
        base_ms: when the base was made.
    """

    slot: int
    copy: str
    log: int
    archived: int
    base_log: int
    base_archived: int
    base: tuple[Ref, ...]
    changes: tuple[Ref, ...] = ()
    at_ms: int = 0
    base_ms: int = 0

    @property
    def base_bytes(self) -> int:
        """The size of the base, stored."""
        return sum(ref.size_bytes for ref in self.base)

    @property
    def changes_bytes(self) -> int:
        """The size of the changes, stored."""
        return sum(ref.size_bytes for ref in self.changes)

    def refs(self) -> tuple[Ref, ...]:
        """All of it, in order."""
        return (*self.base, *self.changes)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What one node exported at a time: some slots.

    Attributes:
        at_ms: the earliest of the times at which its slots were looked at.
        unchanged: of these slots there was nothing new then since what older heads tell.
    """

    format: int
    cluster: str
    slot_count: int
    node: str
    at_ms: int
    slots: tuple[SlotHead, ...]
    unchanged: tuple[int, ...] = ()


class _Sealed(msgspec.Struct, frozen=True):
    """A head as it is written: its JSON and the hash of that."""

    hash: str
    head: msgspec.Raw


# ---- names


def cluster_name(cluster: str) -> str:
    """The name of a cluster's document."""
    return f"{META}{cluster}/cluster.json"


def segment_name(cluster: str, ulid: str) -> str:
    """The name of a segment."""
    return f"{META}{cluster}/segments/{ulid}.seg"


def head_name(cluster: str, ulid: str) -> str:
    """The name of a head."""
    return f"{META}{cluster}/heads/{ulid}.json"


def recovered_name(cluster: str, into: str) -> str:
    """The name of the note that a cluster was built again as another one."""
    return f"{META}{cluster}/recovered/{into}.json"


def cluster_of(name: str) -> str | None:
    """Whose metadata an object is, by its name; None: it is none's."""
    parts = name.split("/")
    return parts[1] if name.startswith(META) and len(parts) > 2 and valid_ulid(parts[1]) else None


def ulid_in(name: str) -> str | None:
    """The ULID of a segment's or head's name; None: it is neither."""
    stem, _, kind = name.rpartition("/")[2].partition(".")
    return stem if kind in ("seg", "json") and valid_ulid(stem) else None


# ---- documents


def encode_cluster(document: ClusterDocument) -> bytes:
    """The JSON of a cluster's document."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode_cluster(name: str, data: bytes) -> ClusterDocument:
    """What :func:`encode_cluster` made. Raises: ArchiveDamaged, ArchiveError (of a newer format)."""
    try:
        document = msgspec.json.decode(data, type=ClusterDocument)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveDamaged(f"{name} is no cluster's document: {error}.") from error
    _check_format(name, document.format)
    if not valid_ulid(document.cluster) or not 0 < document.slot_count <= SLOT_COUNT_MAX:
        raise ArchiveDamaged(f"{name} tells of a cluster that cannot be.")
    return document


def encode_head(head: Head) -> bytes:
    """The JSON of a head, with its hash."""
    raw = msgspec.json.encode(head)
    return msgspec.json.encode(_Sealed(content_hash(raw), msgspec.Raw(raw)))


def decode_head(name: str, data: bytes) -> Head:
    """What :func:`encode_head` made. Raises: ArchiveDamaged, ArchiveError (of a newer format)."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        raw = bytes(sealed.head)
        if content_hash(raw) != sealed.hash:
            raise ArchiveDamaged(f"{name} does not have the hash that it bears.")
        _check_format(name, msgspec.json.decode(raw, type=_Formatted).format)
        return msgspec.json.decode(raw, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveDamaged(f"{name} is no head of an export: {error}.") from error


class _Formatted(msgspec.Struct):
    format: int


def _check_format(name: str, found: int) -> None:
    if found != FORMAT:
        raise ArchiveError(
            f"{name} has format {found}, and this version of amberblob reads format {FORMAT}: use one that knows it.",
            code="archive-format",
        )


# ---- segments


def segment_line(cluster: str, node: str, at_ms: int) -> bytes:
    """The first line of a segment."""
    line = {"amberblob": "segment", "format": FORMAT, "cluster": cluster, "node": node, "at_ms": at_ms}
    return msgspec.json.encode(line) + b"\n"


def encode_part(slot: int, entries: Sequence[bytes]) -> bytes:
    """One part, of entries that :func:`encode_entry` made."""
    plain = _array_header(len(entries)) + b"".join(entries)
    stored = zstandard.ZstdCompressor(level=3).compress(plain)
    fields = _HEADER.pack(_MAGIC, FORMAT, 0, slot, len(entries), len(plain), len(stored), bytes(32))[:_HASHED]
    return fields + bytes.fromhex(content_hash(fields + stored)) + stored


def encode_entry(entry: Entry) -> bytes:
    """One entry as MessagePack."""
    return _encoder.encode(entry)


def _array_header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


class PartReader:
    """Takes the bytes of parts as they come, and gives the entries of each that is complete and right.

    Args:
        name: of the object, for what is said of damage.
        start: where in the object the bytes begin.
        slot: the only slot that may be told of; None: any.
    """

    def __init__(self, name: str, start: int, slot: int | None = None) -> None:
        self._name = name
        self._at = start
        self._slot = slot
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, list[Entry]]]:
        """More bytes: slot and entries of every part that is whole now. Raises: ArchiveDamaged."""
        self._data += data
        while True:
            found = self._next()
            if found is None:
                return
            yield found

    def finish(self) -> None:
        """That was all. Raises: ArchiveDamaged, if a part is cut."""
        if self._data:
            raise self._damaged(f"it ends within a part ({len(self._data)} bytes of one)")

    def _next(self) -> tuple[int, list[Entry]] | None:
        if len(self._data) < _HEADER.size:
            return None
        header = bytes(self._data[: _HEADER.size])
        magic, version, _, slot, count, plain_bytes, stored_bytes, digest = _HEADER.unpack(header)
        if magic != _MAGIC or max(plain_bytes, stored_bytes) > PART_BYTES_MAX:
            raise self._damaged("there is no part")
        if version != FORMAT:
            _check_format(self._name, version)
        if self._slot is not None and slot != self._slot:
            raise self._damaged(f"it is a part of slot {slot}, not of slot {self._slot}")
        end = _HEADER.size + stored_bytes
        if len(self._data) < end:
            return None
        stored = bytes(self._data[_HEADER.size : end])
        if bytes.fromhex(content_hash(header[:_HASHED] + stored)) != digest:
            raise self._damaged("the part does not have the hash that it bears")
        entries = self._entries(stored, plain_bytes, count)
        del self._data[:end]
        self._at += end
        return slot, entries

    def _entries(self, stored: bytes, plain_bytes: int, count: int) -> list[Entry]:
        try:
            plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=plain_bytes)
            entries = _entries_decoder.decode(plain)
        except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._damaged(f"the part cannot be read: {error}") from error
        if len(entries) != count:
            raise self._damaged(f"the part has {len(entries)} entries and says {count}")
        return entries

    def _damaged(self, why: str) -> ArchiveDamaged:
        return ArchiveDamaged(f"{self._name} is damaged at byte {self._at}: {why}.")
