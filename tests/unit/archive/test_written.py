"""Segments of writes that were archived first: whatever is written can be read again."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from archive import written
from archive.gathered import GatheredSlot
from archive.segments import ArchivedEntry, PartReader, PathEntry
from archive.written import Written, encode_written
from tests.unit.archive.export_kit import CLUSTER, item, row, version


def read_back(data: bytes) -> dict[int, GatheredSlot]:
    found: dict[int, GatheredSlot] = {}
    line = data.find(b"\n") + 1
    reader = PartReader("seg", line)
    for slot, entries in reader.feed(data[line:]):
        found.setdefault(slot, GatheredSlot()).add(entries)
    reader.finish()
    return found


@pytest.mark.parametrize("parts", [1, 7])
def test_writes_of_many_rows_and_of_many_slots_are_read_back_whole(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    # As it is with a body of many thousand chunks, whose rows do not fit into one part.
    monkeypatch.setattr(written, "ENTRY_ROWS", 3)
    monkeypatch.setattr(written, "PART_BYTES", 10**9 if parts == 1 else 100)
    one, other = version(1), version(2)
    rows = tuple(replace(row(one, name=f"packs/{at}"), chunk_id=f"{at:064x}") for at in range(10))
    data = encode_written(
        CLUSTER,
        "n1",
        5,
        [Written(3, item("a", one), one.blob_id, rows), Written(1, item("b", other), other.blob_id, ())],
    )
    found = read_back(data)
    assert found.keys() == {1, 3}
    assert set(found[3].archived[one.blob_id].values()) == set(rows)
    assert (found[3].items["a"], found[1].items["b"]) == (item("a", one), item("b", other))


def test_no_part_is_longer_than_one_can_be() -> None:
    rows = tuple(replace(row(version(1)), chunk_id=f"{at:064x}") for at in range(12_000))
    data = encode_written(CLUSTER, "n1", 5, [Written(3, item("a", version(1)), version(1).blob_id, rows)])
    line = data.find(b"\n") + 1
    parts = list(PartReader("seg", line).feed(data[line:]))
    assert len(parts) > 1
    assert all(isinstance(entry, PathEntry | ArchivedEntry) for _, entries in parts for entry in entries)
    assert sum(
        len(entry.chunks) for _, entries in parts for entry in entries if isinstance(entry, ArchivedEntry)
    ) == len(rows)
