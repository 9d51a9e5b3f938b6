"""Frames: how one chunk lies in an object of the archive (rfc/0016). Pure: bytes in, bytes out.

::

    frame  = header, piece, piece, ...
    header = magic "AMBF", version, codec, 2 bytes of zero, piece size, plain length, then for each piece: stored length, blake3 of its plain content

Numbers are little-endian. All pieces but the last hold :data:`PIECE_BYTES` of plain content. A piece that is stored in its plain length is raw;
a shorter one is a zstd frame of its own, which says how long its content is. So the header's size follows from the plain length alone,
whoever has the header's hash can check each piece as it comes, and a part of a chunk takes the header and the pieces that it lies in.
What is checked is the content: zstd can say the same in several ways, and stored bytes that unpack to the right content are as good as those that were sent.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass

import zstandard
from blake3 import blake3

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged, ChunkCorrupt
from amberblob.ids import EMPTY_HASH
from amberblob.limits import KIB, MIB

Buffer = bytes | memoryview
"""Plain content on its way out: whatever memory it lies in already."""

PIECE_BYTES = 256 * KIB
LEVEL_DEFAULT = 1
"""Of zstd. Measured on pieces of logs, source text and programs: 1.4 to 1.9 times as fast as level 3, which saves at most a twelfth more of what is stored."""
MAGIC = b"AMBF"
VERSION = 1
RAW, ZSTD = 0, 1

_FIXED = struct.Struct("<4sBBHIQ")
_PIECE = struct.Struct("<I32s")
_SMALL_BYTES = 4 * KIB
"""Shorter cuts are copied together: a view for each would take more memory than they do."""
_SAMPLES, _SAMPLE_BYTES = 8, 16 * KIB
_LENGTH_MAX = 2**62
_WINDOW_MAX = 8 * MIB
"""No level that is used needs more; a zstd frame that asks for more is not ours."""

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Frame:
    """A chunk as it is stored.

    Attributes:
        chunk_id, length: of the plain content.
        head: blake3 of the header, 64 hex.
        parts: the frame's bytes, in order, none of them empty.
        size_bytes: of all parts.
    """

    chunk_id: str
    length: int
    head: str
    parts: tuple[bytes, ...]
    size_bytes: int


def piece_count(length: int) -> int:
    """How many pieces a chunk of so many bytes has."""
    return -(-length // PIECE_BYTES)


def header_bytes(length: int) -> int:
    """The size of the header of a chunk of so many bytes."""
    return _FIXED.size + _PIECE.size * piece_count(length)


def frame_bytes_max(length: int) -> int:
    """No frame of a chunk of so many bytes is longer: content that does not shrink is stored as it is."""
    return header_bytes(length) + length


def encode_frame(chunk_id: str, data: bytes, *, level: int = LEVEL_DEFAULT) -> Frame:
    """The frame of a chunk, compressed if that saves more than a tenth of it. For any thread; hashing and zstd let the others run.

    Raises:
        ChunkCorrupt: the bytes are not those of that chunk. Nothing wrong may enter the archive under its name.
    """
    length = len(data)
    view = memoryview(data)
    plain = [view[at : at + PIECE_BYTES] for at in range(0, length, PIECE_BYTES)]
    hashes = [blake3(piece).digest() for piece in plain]
    if (hashes[0] if len(hashes) == 1 else blake3(data).digest()).hex() != chunk_id:
        raise ChunkCorrupt(
            f"The {length} bytes that were to be archived as chunk {chunk_id} have another hash. Nothing was sent: scrub the disk that they came from."
        )
    stored = _compressed(plain, length, level) if _promising(view, level) else None
    codec = RAW if stored is None else ZSTD
    header = _FIXED.pack(MAGIC, VERSION, codec, 0, PIECE_BYTES, length) + b"".join(
        [_PIECE.pack(len(piece), digest) for piece, digest in zip(stored or plain, hashes, strict=True)]
    )
    body = data if stored is None else b"".join(stored)
    parts = (header, body) if body else (header,)
    return Frame(chunk_id, length, blake3(header).hexdigest(), parts, len(header) + len(body))


def _promising(view: memoryview, level: int) -> bool:
    """Whether some samples shrink: what is compressed already must not cost the time of trying all of it."""
    length = len(view)
    if length <= 2 * _SAMPLES * _SAMPLE_BYTES:
        return length > 0
    step = (length - _SAMPLE_BYTES) // (_SAMPLES - 1)
    sample = b"".join([view[at : at + _SAMPLE_BYTES] for at in range(0, step * _SAMPLES, step)])
    # Less than the whole must save: a sample has less to refer back to.
    return len(_compressor(level).compress(sample)) * 20 < len(sample) * 19


def _compressed(plain: list[memoryview], length: int, level: int) -> list[Buffer] | None:
    """Every piece as it is stored; None if all together do not save more than a tenth."""
    compressor = _compressor(level)
    stored: list[Buffer] = []
    size = 0
    for piece in plain:
        small = compressor.compress(piece)
        # What saves next to nothing is not worth being unpacked at each reading.
        stored.append(small if len(small) * 16 < len(piece) * 15 else piece)
        size += len(stored[-1])
    return stored if size * 10 < length * 9 else None


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One per thread and level: none may be used by two threads at once."""
    found = getattr(_thread, "compressors", None)
    if found is None:
        found = _thread.compressors = {}
    if level not in found:
        found[level] = zstandard.ZstdCompressor(level=level)
    compressor: zstandard.ZstdCompressor = found[level]
    return compressor


def inflate(stored: Buffer, length: int, length_max: int) -> bytes | None:
    """The content of one zstd frame that says of itself that it has ``length`` bytes, at most ``length_max``; None: it is something else."""
    try:
        # Asked first: the library makes room for whatever the frame says.
        if not 0 < length <= length_max or zstandard.get_frame_parameters(stored).content_size != length:
            return None
        found = getattr(_thread, "decompressor", None)
        if found is None:
            found = _thread.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        plain: bytes = found.decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError:
        return None
    return plain if len(plain) == length else None


class FrameReader:
    """Takes a frame's bytes as they arrive, in any cut, and gives the plain content of ``[start, end)`` back, checked piece by piece.

    Not for two threads at once; for several, one after the other.

    Args:
        check_whole: False: whoever gets a whole chunk checks that it has the chunk's hash.

    Attributes:
        header_bytes: the frame begins with so many bytes of header.
        wanted: which bytes of the frame the wanted pieces take, end exclusive; None until the header has come and is right.
        done: all that is wanted was given back; and if that is the whole chunk, it has the chunk's hash (but for ``check_whole``).

    Raises:
        ValueError: imported content has no frame; or ``[start, end)`` is not within the chunk.
        ArchiveDamaged: there can be no such frame as the row tells of.
    """

    def __init__(self, row: ArchivedChunk, start: int = 0, end: int | None = None, *, check_whole: bool = True) -> None:
        if row.foreign:
            raise ValueError("imported content has no frame")
        size = row.end - row.start
        if not (
            row.start >= 0
            and 0 <= row.length <= _LENGTH_MAX
            and header_bytes(row.length) <= size <= frame_bytes_max(row.length)
        ):
            raise damaged(row, f"a frame of {size} bytes cannot hold {row.length}")
        end = row.length if end is None else end
        if not 0 <= start <= end <= row.length:
            raise ValueError(f"{start} to {end} is not within a chunk of {row.length} bytes")
        self.header_bytes = header_bytes(row.length)
        self.wanted: tuple[int, int] | None = None
        self.done = False
        self._row = row
        self._start, self._end = start, end
        self._header = bytearray()
        self._stored: list[int] = []
        self._hashes: list[bytes] = []
        self._piece, self._last = start // PIECE_BYTES, piece_count(end)
        self._skip = 0
        self._parts: list[memoryview | bytearray] = []
        self._missing = 0
        whole = start == 0 and end == row.length
        # The hash of a chunk's only piece is the chunk's own.
        self._only = whole and piece_count(row.length) == 1
        self._all = blake3() if check_whole and whole and not self._only else None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Buffer]:
        """The frame's next bytes; returns what they complete, in order. What lies behind the last wanted piece is left unread.

        Raises: ArchiveDamaged: this is not what was stored. Nothing of the piece was given back, and the reader is of no use any more.
        """
        out: list[Buffer] = []
        view = memoryview(data)
        if self.wanted is None:
            missing = self.header_bytes - len(self._header)
            self._header += view[:missing]
            if len(self._header) < self.header_bytes:
                return out
            self._open()
            view = view[missing:]
        if self._skip:
            passed = min(self._skip, len(view))
            self._skip -= passed
            view = view[passed:]
        while len(view) and not self.done:
            taken = min(self._missing, len(view))
            self._keep(view[:taken])
            view = view[taken:]
            self._missing -= taken
            if not self._missing:
                out += self._complete()
        return out

    def jump(self) -> None:
        """The next bytes fed are the first of :attr:`wanted`: those between were not fetched. Only right after the header became complete."""
        assert self.wanted is not None and not self._parts
        self._skip = 0

    def finish(self) -> None:
        """No more bytes come. Raises: ArchiveDamaged: something that is wanted has not come."""
        if not self.done:
            raise damaged(self._row, "it ends too early")

    def _open(self) -> None:
        """Check the header, and learn where the pieces lie."""
        row, header = self._row, self._header
        if blake3(header).hexdigest() != row.head:
            raise damaged(row, "its header has another hash")
        # It is what its writer wrote; who gave us the row may still have made up both.
        magic, version, codec, zero, piece_bytes, length = _FIXED.unpack_from(header)
        if (magic, zero) != (MAGIC, 0) or version > VERSION or codec not in (RAW, ZSTD):
            raise damaged(row, "its header is of a form that this version does not know")
        count = piece_count(row.length)
        table = list(_PIECE.iter_unpack(memoryview(header)[_FIXED.size :]))
        self._stored = [stored for stored, _ in table]
        self._hashes = [digest for _, digest in table]
        right = piece_bytes == PIECE_BYTES and length == row.length and len(table) == count
        right = right and sum(self._stored) + self.header_bytes == row.end - row.start
        right = right and all(0 < stored <= self._plain(at) for at, stored in enumerate(self._stored))
        if not right or (codec == RAW and sum(self._stored) != length):
            raise damaged(row, "its header contradicts itself")
        first = self.header_bytes + sum(self._stored[: self._piece])
        if self._start == self._end:
            self.wanted = first, first
            if not row.length and row.chunk_id != EMPTY_HASH:
                raise damaged(row, "it is empty")
            self.done = True
        else:
            self.wanted = first, first + sum(self._stored[self._piece : self._last])
            self._skip = first - self.header_bytes
            self._missing = self._stored[self._piece]

    def _plain(self, piece: int) -> int:
        """The plain length of a piece."""
        return min(PIECE_BYTES, self._row.length - piece * PIECE_BYTES)

    def _keep(self, part: memoryview) -> None:
        """Hold a part of the piece that is coming: as it is, unless it is so short that to copy it is cheaper."""
        if len(part) >= _SMALL_BYTES:
            self._parts.append(part)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += part
        else:
            self._parts.append(bytearray(part))

    def _complete(self) -> list[Buffer]:
        """The piece has come whole: check it and give it back, as far as it is wanted."""
        piece, parts = self._piece, self._parts
        self._parts = []
        length = self._plain(piece)
        if self._stored[piece] < length:
            stored = parts[0] if len(parts) == 1 else b"".join(parts)
            plain = inflate(memoryview(stored), length, PIECE_BYTES)
            if plain is None:
                raise damaged(self._row, f"its piece {piece} cannot be unpacked")
            parts = [memoryview(plain)]
        hasher = blake3()
        for part in parts:
            hasher.update(part)
        digest = hasher.digest()
        if digest != self._hashes[piece] or (self._only and digest.hex() != self._row.chunk_id):
            raise damaged(self._row, f"its piece {piece} has another hash")
        if self._all is not None:
            for part in parts:
                self._all.update(part)
        self._piece += 1
        if self._piece == self._last:
            if self._all is not None and self._all.hexdigest() != self._row.chunk_id:
                raise damaged(self._row, "its content has another hash")
            self.done = True
        else:
            self._missing = self._stored[self._piece]
        return _cut(parts, self._start - piece * PIECE_BYTES, self._end - piece * PIECE_BYTES)


def _cut(parts: list[memoryview | bytearray], start: int, end: int) -> list[Buffer]:
    """What of these parts, one behind the other, lies in ``[start, end)``."""
    out: list[Buffer] = []
    for part in parts:
        inside = memoryview(part)[max(0, start) : max(0, end)]
        if len(inside):
            out.append(inside)
        start -= len(part)
        end -= len(part)
    return out


def damaged(row: ArchivedChunk, seen: str) -> ArchiveDamaged:
    """The error that says that a chunk's frame is not what was stored."""
    return ArchiveDamaged(
        f"{row.target_path}, bytes {row.start} to {row.end}, is not the frame of chunk {row.chunk_id} that was stored there: {seen}. "
        "It was overwritten or damaged: the chunk is taken from another copy or object if there is one, and `amberblob archive verify` tells what else is affected.",
        extra={"object": row.target_path, "start": row.start, "end": row.end, "chunk": row.chunk_id},
    )
