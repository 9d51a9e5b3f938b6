"""Frames: whatever cut they arrive in, what comes out is what went in, or ArchiveDamaged."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged, ChunkCorrupt
from amberblob.ids import content_hash
from archive import frames
from archive.frames import PIECE_BYTES, Frame, FrameReader, encode_frame, header_bytes, inflate
from tests.unit.archive.pack_kit import frame_of, noise, row_of, text

BODIES = {
    "one byte": b"x",
    "small text": text(3000),
    "small noise": noise(3000),
    "a piece": noise(PIECE_BYTES),
    "a piece and one byte": text(PIECE_BYTES + 1),
    "text of four pieces": text(4 * PIECE_BYTES - 100),
    "noise of three pieces": noise(2 * PIECE_BYTES + 5),
    "half and half": text(2 * PIECE_BYTES) + noise(PIECE_BYTES),
    "nothing": b"",
}
FRAMES: dict[str, tuple[bytes, Frame]] = {name: (body, frame_of(body)) for name, body in BODIES.items()}


def read(row: ArchivedChunk, stored: bytes, cuts: list[int], start: int = 0, end: int | None = None) -> bytes:
    reader = FrameReader(row, start, end)
    at, out = 0, b""
    for cut in [*sorted(cuts), len(stored)]:
        out += b"".join(reader.feed(stored[at:cut]))
        at = max(at, cut)
    reader.finish()
    return out


@st.composite
def some_frame(draw: st.DrawFn) -> tuple[bytes, Frame, bytes]:
    body, frame = FRAMES[draw(st.sampled_from(sorted(FRAMES)))]
    return body, frame, b"".join(frame.parts)


@settings(deadline=None)
@given(some_frame(), st.data())
def test_any_cut_of_the_stream_gives_the_content_back(some, data):
    body, frame, stored = some
    cuts = data.draw(st.lists(st.integers(0, len(stored)), max_size=12))
    assert read(row_of(frame), stored, cuts) == body


@settings(deadline=None)
@given(some_frame(), st.data())
def test_any_part_of_the_content_takes_the_header_and_its_pieces(some, data):
    body, frame, stored = some
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    cuts = data.draw(st.lists(st.integers(0, len(stored)), max_size=5))
    row = row_of(frame)
    assert read(row, stored, cuts, start, end) == body[start:end]
    reader = FrameReader(row, start, end)
    assert reader.feed(stored[: reader.header_bytes]) == [] and reader.wanted is not None
    first, last = reader.wanted
    reader.jump()
    assert b"".join(reader.feed(stored[first:last])) == body[start:end] and reader.done
    pieces = -(-end // PIECE_BYTES) - start // PIECE_BYTES if start < end else 0
    assert last - first <= pieces * PIECE_BYTES


@settings(deadline=None)
@given(some_frame(), st.data())
def test_any_byte_that_is_another_is_found_and_nothing_wrong_comes_out(some, data):
    body, frame, stored = some
    # Half of the tries hit the header.
    most = data.draw(st.sampled_from([min(len(stored), header_bytes(len(body))), len(stored)]))
    at = data.draw(st.integers(0, most - 1))
    wrong = stored[:at] + bytes([stored[at] ^ data.draw(st.integers(1, 255))]) + stored[at + 1 :]
    reader, out = FrameReader(row_of(frame)), b""
    try:
        for cut in range(0, len(wrong), 100_000):
            out += b"".join(reader.feed(wrong[cut : cut + 100_000]))
    except ArchiveDamaged:
        assert not reader.done and body.startswith(out)
    else:
        # zstd can say the same in several ways: another byte may be another way.
        assert reader.done and out == body and at >= header_bytes(len(body)) and frame.size_bytes < len(body)


@settings(deadline=None)
@given(some_frame(), st.data())
def test_a_stream_that_ends_too_early_is_damaged(some, data):
    body, frame, stored = some
    reader = FrameReader(row_of(frame))
    out = b"".join(reader.feed(stored[: data.draw(st.integers(0, len(stored) - 1))]))
    assert body.startswith(out)
    with pytest.raises(ArchiveDamaged, match="too early"):
        reader.finish()


@given(st.binary(max_size=400), st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_rubbish_is_damaged_whatever_the_row_says(rubbish, length, size, matching):
    """Also a header whose hash is right but which says nothing sensible: the row may be made up."""
    cut = min(len(rubbish), header_bytes(length))
    head = blake3(rubbish[:cut]).hexdigest() if matching else "0" * 64
    row = ArchivedChunk("1" * 64, length, "packs/x", 0, size, head, 1)
    with pytest.raises(ArchiveDamaged):
        reader = FrameReader(row)
        assert reader.feed(rubbish) == []
        reader.finish()


def test_tiny_cuts_take_no_more_memory_than_the_piece():
    body, frame = FRAMES["a piece"]
    reader, out = FrameReader(row_of(frame)), b""
    stored = b"".join(frame.parts)
    for at in range(0, len(stored), 7):
        out += b"".join(reader.feed(stored[at : at + 7]))
        assert len(reader._parts) <= 2
    assert out == body and reader.done


def test_pieces_come_out_before_the_rest_has_come_and_raw_ones_are_not_copied():
    body, frame = FRAMES["noise of three pieces"]
    reader = FrameReader(row_of(frame))
    data = b"".join(frame.parts)[: reader.header_bytes + PIECE_BYTES + 10]
    (piece,) = reader.feed(data)
    assert bytes(piece) == body[:PIECE_BYTES] and isinstance(piece, memoryview) and piece.obj is data


def test_what_saves_little_is_stored_as_it_is():
    for name in ("small noise", "a piece", "noise of three pieces"):
        body, frame = FRAMES[name]
        assert frame.size_bytes == header_bytes(len(body)) + len(body)
    # Not more than a tenth of the whole: one text piece in twelve.
    body = noise(11 * PIECE_BYTES) + text(PIECE_BYTES)
    frame = frame_of(body)
    assert frame.size_bytes == header_bytes(len(body)) + len(body)
    assert frame.parts[1] is body


def test_what_shrinks_is_compressed_piece_by_piece():
    for name in ("small text", "text of four pieces"):
        body, frame = FRAMES[name]
        assert frame.size_bytes < len(body) / 2
    body, frame = FRAMES["half and half"]
    reader = FrameReader(row_of(frame))
    reader.feed(b"".join(frame.parts)[: reader.header_bytes])
    assert reader._stored[0] < PIECE_BYTES / 2 and reader._stored[2] == PIECE_BYTES


def test_incompressible_content_is_not_compressed_but_for_a_sample(monkeypatch):
    tried = 0

    class Counting:
        def compress(self, data):
            nonlocal tried
            tried += len(data)
            return bytes(data)

    monkeypatch.setattr(frames, "_compressor", lambda level: Counting())
    body = noise(8 * 1024 * 1024)
    encode_frame(content_hash(body), body)
    assert 0 < tried <= len(body) // 50


def test_bytes_of_another_chunk_do_not_enter():
    for body in (b"x", noise(PIECE_BYTES + 1)):
        with pytest.raises(ChunkCorrupt):
            encode_frame("0" * 64, body)


def remade(frame: Frame, **change: object) -> tuple[bytes, ArchivedChunk]:
    """A header that was changed, and a row whose head fits to it: only the header's own sense can be wrong."""
    fields = dict(magic=b"AMBF", version=1, codec=frame.parts[0][5], zero=0, piece=PIECE_BYTES, length=frame.length)
    fields |= change
    header = struct.pack("<4sBBHIQ", *fields.values()) + frame.parts[0][20:]
    return header, msgspec.structs.replace(row_of(frame), head=blake3(header).hexdigest())


@pytest.mark.parametrize(
    "change",
    [{"magic": b"XXXX"}, {"version": 2}, {"codec": 2}, {"codec": 0}, {"zero": 1}, {"piece": 2**17}, {"length": 2}],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_refused_even_if_its_hash_is_right(change):
    _, frame = FRAMES["text of four pieces"]
    header, row = remade(frame)
    assert len(FrameReader(row).feed(header + frame.parts[1])) == 4
    header, row = remade(frame, **change)
    with pytest.raises(ArchiveDamaged, match=r"contradicts itself|does not know"):
        FrameReader(row).feed(header)


def test_a_chunk_of_right_pieces_in_the_wrong_order_is_found_before_its_last_piece():
    one, two = noise(PIECE_BYTES, 1), noise(PIECE_BYTES, 2)
    frame = frame_of(one + two)
    row = msgspec.structs.replace(row_of(frame), chunk_id=content_hash(two + one))
    reader = FrameReader(row)
    first = reader.feed(b"".join(frame.parts)[: reader.header_bytes + PIECE_BYTES])
    assert b"".join(first) == one
    with pytest.raises(ArchiveDamaged, match="content has another hash"):
        reader.feed(two)


@pytest.mark.parametrize("name", ["one byte", "small text", "noise of three pieces"])
def test_a_right_frame_of_another_chunk_is_damaged(name):
    _, frame = FRAMES[name]
    row = msgspec.structs.replace(row_of(frame), chunk_id="0" * 64)
    with pytest.raises(ArchiveDamaged, match="another hash"):
        FrameReader(row).feed(b"".join(frame.parts))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    bomb = zstandard.ZstdCompressor().compress(bytes(2**28))
    assert len(bomb) < 2**15
    tracemalloc.start()
    assert inflate(bomb, 2**28, PIECE_BYTES) is None
    assert inflate(bomb, PIECE_BYTES, PIECE_BYTES) is None
    assert tracemalloc.get_traced_memory()[1] < 4 * PIECE_BYTES
    tracemalloc.stop()
    # One that does not say how long it is, or lies about it.
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**28))
    assert inflate(unsaid, PIECE_BYTES, PIECE_BYTES) is None
    honest = bytearray(zstandard.ZstdCompressor().compress(text(PIECE_BYTES)))
    assert inflate(bytes(honest), PIECE_BYTES, PIECE_BYTES) == text(PIECE_BYTES)
    assert inflate(bytes(honest) + b"x", PIECE_BYTES, PIECE_BYTES) is None
    assert inflate(bytes(honest) + bytes(honest), PIECE_BYTES, PIECE_BYTES) is None


@pytest.mark.parametrize("row", [
    ArchivedChunk("1" * 64, -1, "packs/x", 0, 100, "2" * 64, 1),
    ArchivedChunk("1" * 64, 10, "packs/x", 0, 10, "2" * 64, 1),
    ArchivedChunk("1" * 64, 10, "packs/x", 50, 40, "2" * 64, 1),
    ArchivedChunk("1" * 64, 2**62, "packs/x", 0, 100, "2" * 64, 1),
    ArchivedChunk("1" * 64, 10, "packs/x", -66, 0, "2" * 64, 1),
    ArchivedChunk("1" * 64, 10, "packs/x", 0, 2**60, "2" * 64, 1),
])  # fmt: skip
def test_a_row_that_cannot_be_is_damaged(row):
    with pytest.raises(ArchiveDamaged):
        FrameReader(row)


def test_what_is_asked_wrongly_is_the_callers_fault():
    row = row_of(FRAMES["small text"][1])
    for start, end in ((-1, 2), (2, 1), (0, 3001)):
        with pytest.raises(ValueError):
            FrameReader(row, start, end)
    with pytest.raises(ValueError):
        FrameReader(msgspec.structs.replace(row, head=""))
