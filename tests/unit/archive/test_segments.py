"""The form of exported metadata: what is written is read again, and no damage goes unseen."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import zstandard
from msgspec.structs import replace

from amberblob.errors import ArchiveDamaged, ArchiveError
from amberblob.ids import content_hash
from archive import segments
from archive.gathered import GatheredSlot
from archive.segments import (
    FORMAT,
    ArchivedEntry,
    ClusterDocument,
    Entry,
    GoneEntry,
    Head,
    PartReader,
    PathEntry,
    Ref,
    SlotHead,
    cluster_of,
    decode_cluster,
    decode_head,
    encode_cluster,
    encode_entry,
    encode_head,
    encode_part,
    head_name,
    segment_name,
    ulid_in,
)
from tests.unit.archive.export_kit import CLUSTER, Hand, item, row, version


def part(slot: int, *entries: Entry) -> bytes:
    return encode_part(slot, [encode_entry(entry) for entry in entries])


def entries_of(data: bytes, *, slot: int | None = None, step: int = 7) -> list[tuple[int, list[Entry]]]:
    reader = PartReader("seg", 100, slot)
    found = [one for at in range(0, len(data), step) for one in reader.feed(data[at : at + step])]
    reader.finish()
    return found


TWO = (PathEntry(item("a/b", version(1), version(2))), ArchivedEntry(version(2).blob_id, (row(version(2)),)))


def test_parts_come_back_as_they_were_however_their_bytes_arrive() -> None:
    data = part(3, *TWO) + part(4, GoneEntry("c"))
    for step in (1, 50, len(data)):
        assert entries_of(data, step=step) == [(3, list(TWO)), (4, [GoneEntry("c")])]


def test_every_single_changed_byte_is_found_and_told_by_name_and_place() -> None:
    data = part(3, *TWO)
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        with pytest.raises((ArchiveDamaged, ArchiveError), match="seg"):
            entries_of(broken, step=len(broken))


def test_a_part_that_is_cut_is_found_wherever_that_is() -> None:
    data = part(3, *TWO)
    for at in range(1, len(data)):
        with pytest.raises(ArchiveDamaged, match="seg is damaged at byte 100"):
            entries_of(data[:at], step=len(data))


def test_a_part_of_another_slot_is_not_taken_for_one_of_this() -> None:
    with pytest.raises(ArchiveDamaged, match="slot 3, not of slot 4"):
        entries_of(part(3, *TWO), slot=4)


def _head() -> Head:
    ref = Ref(Hand().ulid(), 5, 9, "0" * 32)
    slot = SlotHead(slot=1, copy="c", log=5, archived=6, base_log=1, base_archived=2, base=(ref,), changes=(ref,))
    return Head(format=FORMAT, cluster=CLUSTER, slot_count=8, node="n1", at_ms=7, slots=(slot,), unchanged=(3,))


def test_heads_and_documents_come_back_and_bear_a_hash() -> None:
    data = encode_head(_head())
    assert decode_head("h", data) == _head()
    for at in range(0, len(data), 3):
        with pytest.raises(ArchiveDamaged, match=r"^h "):
            decode_head("h", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    document = ClusterDocument(
        format=FORMAT, cluster=CLUSTER, name="c", slot_count=8, chunk_bytes=65536, replicas=3, created_at_ms=1
    )
    assert decode_cluster("d", encode_cluster(document)) == document


def test_a_newer_format_is_refused_as_such() -> None:
    with pytest.raises(ArchiveError, match="format 2") as caught:
        decode_head("h", encode_head(replace(_head(), format=2)))
    assert caught.value.code == "archive-format"


def test_names_tell_what_they_are_of() -> None:
    ulid = Hand().ulid()
    assert ulid_in(head_name(CLUSTER, ulid)) == ulid == ulid_in(segment_name(CLUSTER, ulid))
    assert cluster_of(head_name(CLUSTER, ulid)) == CLUSTER
    assert cluster_of("packs/2026/a") is None and cluster_of("meta/x/cluster.json") is None
    assert ulid_in(f"meta/{CLUSTER}/cluster.json") is None


def test_what_comes_later_of_a_path_takes_the_place_of_what_came_before() -> None:
    gathered = GatheredSlot()
    gathered.add([PathEntry(item("p", version(1))), PathEntry(item("q", version(1)))])
    whole = item("p", version(1), version(2), version(3))
    gathered.add(
        [
            PathEntry(replace(whole, rows=whole.rows[:1], more_below=3)),
            PathEntry(replace(whole, rows=whole.rows[1:], ballot=None, record=None), continued=True),
            GoneEntry("q"),
        ]
    )
    assert gathered.items == {"p": whole}


def test_rows_merge_in_any_order() -> None:
    v = version(1)
    rows = [row(v, state=0), row(v, state=5), row(v, state=9), row(v, state=-1)]
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        gathered = GatheredSlot()
        for one in rows:
            gathered.add([ArchivedEntry(v.blob_id, (one,))])
        assert gathered.rows(v)[v.chunks[0].id].state == -1


def test_what_unpacks_to_more_than_it_says_is_damage_and_takes_no_memory() -> None:
    stored = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    fields = segments._HEADER.pack(b"AMBP", FORMAT, 0, 3, 1, 100, len(stored), bytes(32))[: segments._HASHED]
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveDamaged, match="unpacked"):
            entries_of(fields + bytes.fromhex(content_hash(fields + stored)) + stored, step=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
