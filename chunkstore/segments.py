"""The journal's files: read and judge them at start, append to them, begin new ones.

A segment is created with its room reserved and its header synced, and the folder synced, before the first
batch goes in. After every start a new one is begun; of what older ones hold, only the end is written again.

**Read is not durable.** A process that was killed between its write and its sync leaves a good frame that only
the page cache has, and after a failed sync such a page even counts as clean. So before anything that was read is
used, the last batch of every segment is written again, the same bytes in the same place, and synced. More is not
needed: batch n+1 is written, and a segment begun, only after batch n was synced. It takes no room, and a crash
within it leaves what was there: the batch, or a torn tail that nobody was told of.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from amberblob.errors import JournalCorrupt
from amberblob.limits import MIB
from chunkstore.codec import (
    FRAME_HEADER_BYTES,
    SALT_BYTES,
    SEGMENT_HEADER_BYTES,
    Batch,
    Frame,
    SegmentHeader,
    SegmentScan,
    Verdict,
    decide,
    decode_payload,
    decode_segment_header,
    encode_batch,
    encode_segment_header,
    is_frame,
    scan_segment,
)
from chunkstore.fileops import FileOps, is_no_room

_log = structlog.get_logger(__name__)

SEGMENT_BYTES_DEFAULT = 64 * MIB
_SMALL_SEGMENT_BYTES = 1 * MIB
_NAME = re.compile(r"\A(\d{8})\.log\Z")


def segment_path(folder: Path, number: int) -> Path:
    """``journal/00000001.log``."""
    return folder / f"{number:08d}.log"


def segment_numbers(folder: Path) -> list[int]:
    """The segments in a journal folder, ascending."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.match(name)))


def scan_file(folder: Path, number: int) -> SegmentScan:
    """Read one segment file as it is. Changes nothing."""
    with segment_path(folder, number).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return scan_segment(b"", number)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return scan_segment(data, number)


def read_batch(path: Path, fd: int, frame: Frame) -> Batch:
    """Decode one frame that :func:`scan_file` found valid.

    Raises:
        JournalCorrupt: the entries are of another format, although the checksum holds.
    """
    try:
        return decode_payload(os.pread(fd, frame.payload_length, frame.payload_offset))
    except msgspec.MsgspecError as error:
        raise JournalCorrupt(
            f"{path}, byte {frame.payload_offset}: batch {frame.sequence} has a good checksum, but its entries cannot "
            f"be read ({error}). Start the version of AmberBlob that wrote it."
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A journal that was read and mended.

    Attributes:
        next_number: of the segment to begin.
        next_sequence: of the next batch.
        next_position: of the next entry.
    """

    folder: Path
    scans: tuple[SegmentScan, ...]
    next_number: int
    next_sequence: int
    next_position: int

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Every batch in order, with its segment's number. Raises JournalCorrupt."""
        for scan in self.scans:
            path = segment_path(self.folder, scan.number)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for frame in scan.frames:
                    yield scan.number, read_batch(path, fd, frame)
            finally:
                os.close(fd)


def judge(folder: Path, disk_id: str) -> tuple[list[SegmentScan], Verdict]:
    """Read all segments and say what is to be done. Changes nothing. Raises JournalCorrupt."""
    scans = [scan_file(folder, number) for number in segment_numbers(folder)]
    return scans, decide(scans, disk_id)


def _settle(folder: Path, scan: SegmentScan, ops: FileOps) -> None:
    """Make durable for sure what a segment holds, by writing its last batch (or its header) again."""
    assert scan.header is not None
    path = segment_path(folder, scan.number)
    start = scan.frames[-1].payload_offset - FRAME_HEADER_BYTES if scan.frames else 0
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        data = os.pread(fd, scan.stop - start, start)
        # A page whose sync failed may have left the cache since the scan, and then the disk's older bytes are read.
        if scan.frames:
            same = len(data) == scan.stop - start and is_frame(data, scan.frames[-1].sequence, scan.header.salt)
        else:
            same = decode_segment_header(data) == scan.header
        if not same:
            raise OSError(errno.EIO, "the end of the segment changed while it was read; start again", str(path))
        ops.write_at(fd, [data], start)
        ops.fsync(fd)
    finally:
        os.close(fd)


def recover(folder: Path, disk_id: str, ops: FileOps, *, is_new: bool) -> Recovered:
    """Read the journal, cut a torn tail, delete a segment whose creation was interrupted, make the rest durable.

    Raises:
        JournalCorrupt: something that was durable is damaged or missing.
        OSError: what was read cannot be made durable, so nobody may be told of it.
    """
    ops.make_dirs(folder)
    scans, verdict = judge(folder, disk_id)
    if not is_new and not any(scan.header for scan in scans):
        raise JournalCorrupt(
            f"{folder} holds no journal, but the disk was in use before: changes that were acknowledged may be lost. "
            "Restore the folder; or move the disk's folder away and let the node rebuild an empty one from its peers."
        )
    for number, offset, why in verdict.cuts:
        _log.warning("journal-torn-tail", segment=number, offset=offset, why=why, action="cut; nobody was told of it")
        ops.truncate(segment_path(folder, number), offset)
    for number in verdict.drops:
        _log.warning("journal-segment-unfinished", segment=number, action="deleted; it was never used")
        ops.unlink(segment_path(folder, number))
        ops.fsync_dir(folder)
    kept = tuple(scan for scan in scans if scan.header is not None)
    for scan in kept:
        _settle(folder, scan, ops)
    # A killed process may have left the names unsynced too: of the segments, and of the folder itself.
    ops.fsync_dir(folder)
    ops.fsync_dir(folder.parent)
    next_position = 1
    for scan in kept:
        assert scan.header is not None
        next_position = max(next_position, scan.header.first_position)
        if scan.frames:
            path = segment_path(folder, scan.number)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                next_position = read_batch(path, fd, scan.frames[-1])[-1][0] + 1
            finally:
                os.close(fd)
    return Recovered(
        folder=folder,
        scans=kept,
        # A deleted segment's number is used again: a gap would look like a loss.
        next_number=max((scan.number for scan in kept), default=0) + 1,
        next_sequence=verdict.next_sequence,
        next_position=next_position,
    )


class SegmentWriter:
    """Appends batches. Belongs to the journal thread. After any error it must not be used again."""

    def __init__(
        self, recovered: Recovered, disk_id: str, ops: FileOps, token: Callable[[int], bytes],
        release_ballast: Callable[[], bool], *, segment_bytes: int = SEGMENT_BYTES_DEFAULT,
    ) -> None:  # fmt: skip
        self._folder = recovered.folder
        self._disk_id = disk_id
        self._ops = ops
        self._token = token
        self._release_ballast = release_ballast
        self._segment_bytes = segment_bytes
        self._next_number = recovered.next_number
        self._sequence = recovered.next_sequence
        self._fd = -1
        self._offset = 0
        self._size = 0
        self._salt = b""
        self.number = recovered.next_number - 1
        """Of the segment that the last batch went to."""

    def begin(self, first_position: int, need_bytes: int = 0) -> None:
        """Begin a new segment with room for at least ``need_bytes`` of frames.

        Raises:
            OSError: no room even for a small one, or an I/O error.
        """
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        number = self._next_number
        path = segment_path(self._folder, number)
        wanted = SEGMENT_HEADER_BYTES + need_bytes
        fd = self._ops.create(path)
        try:
            size = max(wanted, self._segment_bytes)
            try:
                self._ops.allocate(fd, size)
            except OSError as error:
                if not is_no_room(error):
                    raise
                self._release_ballast()
                size = max(wanted, min(_SMALL_SEGMENT_BYTES, self._segment_bytes))
                self._ops.allocate(fd, size)
                os.ftruncate(fd, size)
            salt = self._token(SALT_BYTES)
            header = SegmentHeader(
                disk_id=self._disk_id, salt=salt, first_position=first_position, first_sequence=self._sequence
            )
            self._ops.write_at(fd, [encode_segment_header(header)], 0)
            self._ops.fsync(fd)
            self._ops.fsync_dir(self._folder)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size, self._offset, self._salt = fd, size, SEGMENT_HEADER_BYTES, salt
        self.number, self._next_number = number, number + 1

    def append(self, batch: Batch) -> None:
        """Write one batch and sync it.

        Raises:
            OSError: it may or may not be durable; the writer is at its end.
        """
        frame = encode_batch(batch, self._sequence, self._salt)
        if self._fd < 0 or self._offset + len(frame) > self._size:
            self.begin(batch[0][0], len(frame))
            frame = encode_batch(batch, self._sequence, self._salt)
        self._ops.write_at(self._fd, [frame], self._offset)
        self._ops.fdatasync(self._fd)
        self._offset += len(frame)
        self._sequence += 1

    def close(self) -> None:
        """Close the file. What was appended is durable already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
