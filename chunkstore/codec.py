"""The journal's bytes: batch frames, segment headers, and the decision what a broken end means. Pure.

A *batch* is one group commit: every entry that waited when the journal thread came round. It is one frame::

    magic 4 | format 1 | flags 1 | reserved 2 | sequence 8 | payload length 4 | payload CRC-32 4 | header CRC-32 4
    payload: MessagePack list of (position, entry), padded with zeros to a multiple of 8 bytes

all little-endian. A segment is a header block and then frames; what is not written yet is zero.

**Torn or corrupt.** Batch n+1 is written only after batch n was synced. So a frame that fails its checks is a
torn tail, which nobody was told of, exactly when no valid frame header of a higher sequence number follows
anywhere after it. Otherwise it was durable once, and somebody may rely on it: that is corruption, and it is said.

A client's bytes travel inside payloads. So that no body can pose as a frame header, header checksums are
seeded with random salt of the segment, which never leaves the disk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from amberblob.errors import DiskMismatch, JournalCorrupt
from amberblob.mutations import Accepted, Chosen, Forgotten, Installed, Mutation

JOURNAL_FORMAT = 1
"""In every header of a segment and a frame. Whatever a later format changes: magic, format and the header's checksum stay in
their place, so that every version can tell a format that it does not know from damage."""

FRAME_MAGIC = b"\xabAJb"
SEGMENT_MAGIC = b"AMBERJNL"
SEGMENT_HEADER_BYTES = 4096
ALIGN_BYTES = 8

_FRAME = struct.Struct("<4sBBHQIII")
FRAME_HEADER_BYTES = _FRAME.size
_FRAME_CHECKED = FRAME_HEADER_BYTES - 4
_SEGMENT = struct.Struct("<8sHH26s16sQQI")
_SEGMENT_CHECKED = _SEGMENT.size - 4
SALT_BYTES = 16

_REMEDY = (
    "Acknowledged changes may be lost on this disk, so it must not vote. Stop the node, keep a copy of the disk's "
    "folder, move the folder away and start the node again: an empty disk joins as a learner and is rebuilt from its peers."
)


class BodyKept(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """An inline body that was put back by a repair. The only entry that is the disk's own business."""

    slot: int
    blob_id: str
    body: bytes


Entry = Mutation | BodyKept
OfRegister = Accepted | Chosen | Installed | Forgotten
"""Entries that may change a register."""

Batch = list[tuple[int, Entry]]
"""(position, entry), positions consecutive."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Batch] = msgspec.msgpack.Decoder(Batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What a segment says of itself.

    Attributes:
        disk_id: ULID of the disk that it belongs to.
        salt: 16 random bytes that seed the frames' header checksums.
        first_position: position of the first entry that it may hold.
        first_sequence: sequence number of the first batch that it may hold.
    """

    disk_id: str
    salt: bytes
    first_position: int
    first_sequence: int


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The header block, ``SEGMENT_HEADER_BYTES`` long."""
    assert len(header.salt) == SALT_BYTES and len(header.disk_id) == 26
    fields = (header.disk_id.encode(), header.salt, header.first_position, header.first_sequence)
    block = bytearray(_SEGMENT.pack(SEGMENT_MAGIC, JOURNAL_FORMAT, 0, *fields, 0))
    struct.pack_into("<I", block, _SEGMENT_CHECKED, zlib.crc32(block[:_SEGMENT_CHECKED]))
    return bytes(block).ljust(SEGMENT_HEADER_BYTES, b"\0")


def _foreign(version: int, crc: int, checked: bytes, seed: int) -> int | None:
    """The format of a sound header, if it is one that this version does not know."""
    return version if version != JOURNAL_FORMAT and crc == zlib.crc32(checked, seed) else None


def _foreign_segment(data: bytes) -> int | None:
    if len(data) < _SEGMENT.size:
        return None
    magic, version, *_, crc = _SEGMENT.unpack_from(data)
    return _foreign(version, crc, data[:_SEGMENT_CHECKED], 0) if magic == SEGMENT_MAGIC else None


def _foreign_frame(raw: bytes, salt_crc: int) -> int | None:
    if len(raw) < FRAME_HEADER_BYTES:
        return None
    magic, version, *_, crc = _FRAME.unpack(raw)
    return _foreign(version, crc, raw[:_FRAME_CHECKED], salt_crc) if magic == FRAME_MAGIC else None


def decode_segment_header(data: bytes) -> SegmentHeader | None:
    """The header in the first bytes of a segment; None when they are not a valid one of a known format."""
    if len(data) < _SEGMENT.size:
        return None
    magic, version, _, disk_id, salt, position, sequence, crc = _SEGMENT.unpack_from(data)
    if magic != SEGMENT_MAGIC or version != JOURNAL_FORMAT or crc != zlib.crc32(data[:_SEGMENT_CHECKED]):
        return None
    return SegmentHeader(
        disk_id=disk_id.decode("ascii", "replace"), salt=salt, first_position=position, first_sequence=sequence
    )


def encode_batch(batch: Batch, sequence: int, salt: bytes) -> bytes:
    """One frame, padded to ``ALIGN_BYTES``."""
    payload = _encoder.encode(batch)
    head = _FRAME.pack(FRAME_MAGIC, JOURNAL_FORMAT, 0, 0, sequence, len(payload), zlib.crc32(payload), 0)[
        :_FRAME_CHECKED
    ]
    crc = zlib.crc32(head, zlib.crc32(salt))
    padding = -(FRAME_HEADER_BYTES + len(payload)) % ALIGN_BYTES
    return b"".join((head, crc.to_bytes(4, "little"), payload, bytes(padding)))


def decode_payload(payload: bytes) -> Batch:
    """The entries of a frame whose checksum held.

    Raises:
        msgspec.MsgspecError: they are not entries of this format.
    """
    try:
        return _decoder.decode(payload)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a valid frame lies in its segment (bytes from the segment's start)."""

    sequence: int
    payload_offset: int
    payload_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentScan:
    """What reading one segment found, before anything is decided.

    Attributes:
        number: of the segment file.
        header: None when it fails its checks.
        blank: the file holds nothing but zeros after (or in place of) its header.
        frames: the valid frames from the start on, sequence numbers consecutive.
        stop: offset (bytes) at which the reading stopped.
        problem: why it stopped; empty at a clean end (zeros, or the end of the file).
        later_sequence: the highest sequence number of a valid frame header after ``stop``; 0 when there is none.
        foreign_format: of the header at ``stop``, when that is sound and of a format that is not known.
    """

    number: int
    header: SegmentHeader | None
    blank: bool
    frames: tuple[Frame, ...]
    stop: int
    problem: str
    later_sequence: int
    foreign_format: int | None = None


def _frame_at(data: Any, offset: int, salt_crc: int) -> tuple[int, int, int] | None:
    """(sequence, payload length, payload CRC) of a valid frame header at ``offset``; None when there is none."""
    raw = bytes(data[offset : offset + FRAME_HEADER_BYTES])
    if len(raw) < FRAME_HEADER_BYTES:
        return None
    magic, version, _, _, sequence, length, payload_crc, crc = _FRAME.unpack(raw)
    if magic != FRAME_MAGIC or version != JOURNAL_FORMAT or crc != zlib.crc32(raw[:_FRAME_CHECKED], salt_crc):
        return None
    return sequence, length, payload_crc


def is_frame(data: bytes, sequence: int, salt: bytes) -> bool:
    """Whether ``data`` begins with a whole valid frame of this sequence number."""
    found = _frame_at(data, 0, zlib.crc32(salt))
    if found is None or found[0] != sequence:
        return False
    _, length, payload_crc = found
    return zlib.crc32(data[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + length]) == payload_crc


def _later_sequence(data: Any, start: int, salt_crc: int) -> int:
    highest, at = 0, data.find(FRAME_MAGIC, start)
    while at >= 0:
        found = _frame_at(data, at, salt_crc)
        if found is not None:
            highest = max(highest, found[0])
        at = data.find(FRAME_MAGIC, at + 1)
    return highest


def _is_zero(data: Any, start: int) -> bool:
    step = 1 << 20
    return all(not bytes(data[at : at + step]).strip(b"\0") for at in range(start, len(data), step))


def scan_segment(data: Any, number: int) -> SegmentScan:
    """Read one segment (``bytes`` or an ``mmap``) up to its end or to the first frame that fails."""
    header = decode_segment_header(bytes(data[:SEGMENT_HEADER_BYTES]))
    if header is None:
        return SegmentScan(
            number=number, header=None, blank=_is_zero(data, SEGMENT_HEADER_BYTES), frames=(), stop=0,
            problem="the segment's header fails its checksum", later_sequence=0,
            foreign_format=_foreign_segment(bytes(data[:SEGMENT_HEADER_BYTES])),
        )  # fmt: skip
    salt_crc = zlib.crc32(header.salt)
    frames: list[Frame] = []
    offset, expected, problem = SEGMENT_HEADER_BYTES, header.first_sequence, ""
    foreign: int | None = None
    while offset < len(data):
        found = _frame_at(data, offset, salt_crc)
        if found is None:
            lead = bytes(data[offset : offset + FRAME_HEADER_BYTES])
            problem = "the frame's header fails its checksum" if lead.strip(b"\0") else ""
            foreign = _foreign_frame(lead, salt_crc)
            break
        sequence, length, payload_crc = found
        if sequence != expected:
            problem = f"batch {sequence} stands where batch {expected} belongs"
            break
        begin = offset + FRAME_HEADER_BYTES
        payload = bytes(data[begin : begin + length])
        if len(payload) < length or zlib.crc32(payload) != payload_crc:
            problem = f"the payload of batch {sequence} fails its checksum"
            break
        frames.append(Frame(sequence=sequence, payload_offset=begin, payload_length=length))
        expected += 1
        offset = begin + length + (-(FRAME_HEADER_BYTES + length) % ALIGN_BYTES)
    stop = min(offset, len(data))
    return SegmentScan(
        number=number, header=header, blank=not frames and not problem, frames=tuple(frames), stop=stop, problem=problem,
        later_sequence=_later_sequence(data, stop, salt_crc), foreign_format=foreign,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do with the journal that was read.

    Attributes:
        next_sequence: of the next batch.
        cuts: (segment number, offset in bytes, why): cut the segment there; what follows was never durable.
        drops: numbers of segments whose creation was interrupted: delete.
    """

    next_sequence: int
    cuts: tuple[tuple[int, int, str], ...]
    drops: tuple[int, ...]


def _corrupt(number: int, offset: int, why: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"journal segment {number:08d}.log, byte {offset}: {why}, although it was durable. {_REMEDY}",
        extra={"segment": number, "offset": offset},
    )


def decide(scans: Sequence[SegmentScan], disk_id: str) -> Verdict:
    """Judge all segments of a journal, given in ascending order of their numbers.

    Raises:
        JournalCorrupt: something that was durable is damaged or missing.
        DiskMismatch: something is of a format that this version does not know. It is sound, and is neither cut nor dropped.
    """
    for scan in scans:
        if scan.foreign_format is not None:
            raise DiskMismatch(
                f"journal segment {scan.number:08d}.log, byte {scan.stop}: has format {scan.foreign_format}, and this version "
                f"of AmberBlob knows format {JOURNAL_FORMAT}. Nothing is damaged and nothing was changed: start the version "
                "that wrote it."
            )
    cuts: list[tuple[int, int, str]] = []
    drops: list[int] = []
    expected = 0
    before: SegmentScan | None = None
    for index, scan in enumerate(scans):
        if before is not None and scan.number != before.number + 1:
            raise _corrupt(before.number + 1, 0, "the segment is missing")
        if scan.header is None:
            if index == len(scans) - 1 and scan.blank:
                drops.append(scan.number)
                continue
            raise _corrupt(scan.number, 0, scan.problem)
        if scan.header.disk_id != disk_id:
            raise _corrupt(scan.number, 0, f"the segment belongs to disk {scan.header.disk_id}, not {disk_id}")
        if before is not None and scan.header.first_sequence != expected:
            why = f"batches {expected} to {scan.header.first_sequence - 1} are missing before this segment"
            raise _corrupt(before.number, before.stop, f"{before.problem or 'the frames end'}, and {why}")
        expected = scan.header.first_sequence + len(scan.frames)
        if scan.later_sequence > expected:
            why = scan.problem or f"batch {expected} is all zeros"
            raise _corrupt(scan.number, scan.stop, f"{why}, and batch {scan.later_sequence} follows")
        if scan.problem or scan.later_sequence:
            cuts.append((scan.number, scan.stop, scan.problem or "stray bytes after the end"))
        before = scan
    return Verdict(next_sequence=max(expected, 1), cuts=tuple(cuts), drops=tuple(drops))
