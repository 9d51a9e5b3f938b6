"""Objects of chunks: laid out, and explained by their own index."""

from __future__ import annotations

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged
from amberblob.ids import content_hash
from archive.frames import FrameReader
from archive.packs import (
    FOOTER_BYTES,
    HEADER,
    PackEntry,
    PackWriter,
    lone_name,
    object_ulid,
    pack_name,
    read_footer,
    read_index,
)
from tests.unit.archive.pack_kit import BLOB, frame_of, item_of, noise, text

ULID = "01JD6Z4E80ABCDEFGHJKMNPQRS"


def packed(bodies: list[bytes]) -> bytes:
    writer, out = PackWriter(), [HEADER]
    for number, body in enumerate(bodies):
        frame = frame_of(body)
        start, end = writer.add(frame)
        assert start == sum(map(len, out))
        out += frame.parts
        assert end == sum(map(len, out))
        for again in range(1 + number % 2):
            writer.enter(item_of(body, 10 * number + again))
    out.append(writer.finish())
    data = b"".join(out)
    assert writer.size_bytes == len(data)
    return data


def entries_of(data: bytes) -> list[PackEntry]:
    footer = read_footer("packs/x", data[-FOOTER_BYTES:], len(data))
    return read_index("packs/x", footer, data[footer.start : footer.start + footer.stored_bytes])


def content(data: bytes, entry: PackEntry) -> bytes:
    row = ArchivedChunk(entry.chunk_id, entry.length, "packs/x", entry.start, entry.end, entry.head, 1)
    reader = FrameReader(row)
    out = b"".join(reader.feed(data[entry.start : entry.end]))
    reader.finish()
    return out


BODIES = [noise(10), text(3000, 2), noise(5000, 3), text(300_000, 4), b"x"]
PACK = packed(BODIES)


def test_the_index_leads_to_every_chunk():
    entries = entries_of(PACK)
    assert [(entry.path, entry.version, entry.slot, entry.blob_id, entry.index) for entry in entries] == [
        (item.path, item.version, item.slot, BLOB, 0)
        for number, body in enumerate(BODIES)
        for item in [item_of(body, 10 * number + again) for again in range(1 + number % 2)]
    ]
    assert {entry.chunk_id: content(PACK, entry) for entry in entries} == {content_hash(body): body for body in BODIES}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=2000), unique=True, max_size=8))
def test_any_chunks_can_be_packed(bodies):
    data = packed(bodies)
    assert {content(data, entry) for entry in entries_of(data)} == set(bodies)


@given(st.data())
def test_any_byte_of_the_index_or_footer_that_is_another_is_found(data):
    start = entries_of(PACK)[-1].end
    at = data.draw(st.integers(start, len(PACK) - 1))
    wrong = PACK[:at] + bytes([PACK[at] ^ data.draw(st.integers(1, 255))]) + PACK[at + 1 :]
    with pytest.raises(ArchiveDamaged):
        entries_of(wrong)


@given(st.integers(0, len(PACK) - 1))
def test_an_object_that_was_cut_off_is_damaged(size):
    with pytest.raises(ArchiveDamaged):
        entries_of(PACK[:size])


@given(st.binary(max_size=300))
def test_rubbish_is_damaged(rubbish):
    with pytest.raises(ArchiveDamaged):
        entries_of(rubbish)


GOOD = entries_of(PACK)[1]


@pytest.mark.parametrize("change", [
    {"chunk_id": "../../etc/passwd"}, {"head": ""}, {"length": -1}, {"start": 0}, {"end": len(PACK)}, {"end": GOOD.start + 5},
    {"blob_id": "x"}, {"slot": -1}, {"version": -1}, {"index": -2}, {"path": 5},
], ids=str)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_damaged_even_if_all_hashes_are_right(change):
    """Whoever can write to the bucket can make hashes; what an index says must not lead anywhere."""
    for good in (GOOD, msgspec.structs.replace(GOOD, version=0, index=-1)):
        assert entries_of(forged(good)) == [good]
    with pytest.raises(ArchiveDamaged, match="contradicts itself"):
        entries_of(forged(msgspec.structs.replace(GOOD, **change)))


def forged(entry: PackEntry) -> bytes:
    writer = PackWriter()
    writer.size_bytes = GOOD.end
    writer._entries = [entry]
    return PACK[: GOOD.end] + writer.finish()


def test_an_index_of_a_newer_version_says_so():
    footer = bytearray(PACK[-FOOTER_BYTES:])
    footer[4] += 1
    with pytest.raises(ArchiveDamaged, match="newer"):
        entries_of(PACK[:-FOOTER_BYTES] + bytes(footer))


def test_an_index_that_is_a_bomb_is_not_unpacked(monkeypatch):
    footer = read_footer("packs/x", PACK, len(PACK))
    stored = PACK[footer.start : footer.start + footer.stored_bytes]
    smaller = footer.__class__(footer.start, footer.stored_bytes, footer.plain_bytes - 1, footer.entries, footer.fixed, blake3(stored).update(footer.fixed).digest())  # fmt: skip
    with pytest.raises(ArchiveDamaged, match="contradicts itself"):
        read_index("packs/x", smaller, stored)


def test_names_tell_their_ulid_and_nothing_else_does():
    assert pack_name(ULID).startswith("packs/2024/11/2") and object_ulid(pack_name(ULID)) == ULID
    chunk = content_hash(b"x")
    assert (
        lone_name(chunk, ULID) == f"chunks/{chunk[:2]}/{chunk}.{ULID}" and object_ulid(lone_name(chunk, ULID)) == ULID
    )
    for name in (
        "", "packs/", f"packs/1999/01/01/{ULID}.pack", pack_name(ULID) + "x", "x" + pack_name(ULID), "meta/" + pack_name(ULID),
        f"chunks/00/{chunk}.{ULID}", f"chunks/{chunk[:2]}/{chunk}", pack_name(ULID).replace(ULID, ULID.lower()), "packs/2024/11/21/" + "I" * 26 + ".pack",
    ):  # fmt: skip
        assert object_ulid(name) is None
