"""Exported metadata in a target: segments of bounded size, the newest readable head, and what is removed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from amberblob.clock import SeededRandomness
from amberblob.errors import ArchiveDamaged, ArchiveError, ArchiveMissing, ArchiveUnavailable
from archive import export, segmentwriter
from archive.clusters import clusters_in, exported_clusters, note_recovered, unrecovered
from archive.export import Exports
from archive.segments import (
    FORMAT,
    ClusterDocument,
    Entry,
    Head,
    PathEntry,
    Ref,
    SlotHead,
    cluster_name,
    head_name,
    segment_name,
)
from archive.segmentwriter import SegmentWriter
from archive.targets.memory import MemoryTarget
from archive.written import through_name
from tests.unit.archive.export_kit import CLUSTER, NOW_MS, Hand, item, target, version

DAY_MS = 86_400_000
OTHER = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
DOCUMENT = ClusterDocument(
    format=FORMAT, cluster=CLUSTER, name="c", slot_count=4, chunk_bytes=65536, replicas=3, created_at_ms=1
)


class Scene:
    """One exporting node."""

    def __init__(self) -> None:
        self.target = target()
        self.hand = Hand()
        self.exports = Exports(self.target, CLUSTER)

    def writer(self) -> SegmentWriter:
        return SegmentWriter(self.target, CLUSTER, "n1", mint=self.hand.ulid, now_ms=self.hand.time)

    async def write(self, slots: dict[int, list[Entry]]) -> dict[int, tuple[Ref, ...]]:
        writer, refs = self.writer(), {}
        for slot, entries in slots.items():
            writer.begin(slot)
            for entry in entries:
                await writer.add(entry)
            refs[slot] = await writer.end()
        await writer.flush()
        return refs

    async def publish(self, *slots: SlotHead, unchanged: tuple[int, ...] = ()) -> str:
        self.hand.now_ms += 1000
        ulid = self.hand.ulid()
        head = Head(
            format=FORMAT,
            cluster=CLUSTER,
            slot_count=4,
            node="n1",
            at_ms=self.hand.now_ms,
            slots=slots,
            unchanged=unchanged,
        )
        await self.exports.publish(ulid, head)
        return head_name(CLUSTER, ulid)

    def slot(self, slot: int, base: tuple[Ref, ...], *changes: Ref) -> SlotHead:
        return SlotHead(
            slot=slot,
            copy="c",
            log=1,
            archived=1,
            base_log=1,
            base_archived=1,
            base=base,
            changes=changes,
            at_ms=self.hand.now_ms,
        )


def entries(count: int, *, tag: str = "p", size: int = 20) -> list[Entry]:
    """Entries that do not compress."""
    noise = SeededRandomness(count)
    found: list[Entry] = []
    for number in range(count):
        meta = {"noise": noise.token(size).hex()}
        one = item(f"{tag}{number:05}", replace(version(1, seed=number), meta=meta))
        found.append(PathEntry(one))
    return found


async def test_many_slots_share_a_segment_and_each_reads_its_own() -> None:
    scene = Scene()
    told = {slot: entries(3, tag=f"s{slot}-") for slot in range(4)}
    refs = await scene.write(told)
    assert len(scene.target.bucket.names("meta/")) == 1
    for slot, parts in refs.items():
        gathered = await scene.exports.gather(scene.slot(slot, parts))
        assert sorted(gathered.items) == [f"s{slot}-{number:05}" for number in range(3)]


async def test_a_large_slot_is_cut_into_segments_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentwriter, "SEGMENT_BYTES", 64 * 1024)
    monkeypatch.setattr(segmentwriter, "PART_BYTES", 16 * 1024)
    scene = Scene()
    refs = (await scene.write({1: entries(300, size=1000)}))[1]
    assert len(refs) > 3
    assert all(len(stored.content) < 100 * 1024 for stored in scene.target.bucket.objects.values())
    assert len((await scene.exports.gather(scene.slot(1, refs))).items) == 300


async def test_what_is_abandoned_is_named_by_nobody() -> None:
    scene = Scene()
    writer = scene.writer()
    writer.begin(1)
    await writer.add(entries(1)[0])
    writer.abandon()
    writer.begin(2)
    await writer.add(entries(1, tag="q")[0])
    refs = await writer.end()
    await writer.flush()
    assert sorted((await scene.exports.gather(scene.slot(2, refs))).items) == ["q00000"]


@pytest.mark.parametrize("small", [True, False])
async def test_damage_of_a_segment_is_told_by_its_name(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(export, "_SHARED_BYTES_MAX", 0)
    scene = Scene()
    refs = (await scene.write({1: entries(5)}))[1]
    name = segment_name(CLUSTER, refs[0].segment)
    whole = scene.target.bucket.objects[name].content
    for at in range(refs[0].start, refs[0].end, 17):
        scene.target.bucket.store(name, whole)
        scene.target.bucket.damage(name, at)
        with pytest.raises(ArchiveDamaged, match=name):
            await Exports(scene.target, CLUSTER).gather(scene.slot(1, refs))
    scene.target.bucket.store(name, whole[: refs[0].end - 5])
    with pytest.raises(ArchiveDamaged, match=name):
        await Exports(scene.target, CLUSTER).gather(scene.slot(1, refs))
    del scene.target.bucket.objects[name]
    with pytest.raises(ArchiveMissing, match=name):
        await Exports(scene.target, CLUSTER).gather(scene.slot(1, refs))


async def test_parts_that_somebody_replaced_by_others_are_not_taken() -> None:
    scene = Scene()
    old = (await scene.write({1: entries(5)}))[1]
    new = (await scene.write({1: entries(5)}))[1]
    for tag in "abcdefghijklmnop":  # one whose parts are as long
        other = (await scene.write({1: entries(5, tag=tag)}))[1]
        if other[0].end == new[0].end and tag != "p":
            break
    else:
        raise AssertionError("none is as long")
    scene.target.bucket.store(
        segment_name(CLUSTER, new[0].segment),
        scene.target.bucket.objects[segment_name(CLUSTER, other[0].segment)].content,
    )
    with pytest.raises(ArchiveDamaged, match="other parts"):
        await scene.exports.gather(scene.slot(1, new))
    assert len((await scene.exports.gather(scene.slot(1, old))).items) == 5


async def test_heads_are_told_newest_first_and_damaged_ones_by_name() -> None:
    scene = Scene()
    first = await scene.publish(scene.slot(1, ()), scene.slot(2, ()))
    second = await scene.publish(scene.slot(2, ()), unchanged=(1,))
    third = await scene.publish(scene.slot(1, ()))
    scene.target.bucket.damage(third, 30)
    known = await scene.exports.load()
    assert list(known.heads) == [second, first] and list(known.damaged) == [third]
    assert {slot: len(heads) for slot, heads in known.by_slot().items()} == {1: 1, 2: 2}
    assert known.as_of_ms() == {1: known.heads[second].at_ms, 2: known.heads[second].slots[0].at_ms}


async def test_heads_that_were_read_are_not_read_again() -> None:
    scene = Scene()
    for _ in range(20):
        await scene.publish(scene.slot(1, ()))
    await scene.exports.load()
    scene.target.bucket.fault("unavailable", "get")
    assert len((await scene.exports.load()).heads) == 20


async def test_what_cannot_be_reached_is_not_taken_for_gone() -> None:
    scene = Scene()
    await scene.publish(scene.slot(1, ()))
    scene.target.bucket.fault("unavailable", "get")
    with pytest.raises(ArchiveUnavailable):
        await Exports(scene.target, CLUSTER).load()


async def test_what_newer_heads_have_taken_the_place_of_is_removed_when_it_is_old() -> None:
    scene = Scene()
    one = await scene.write({1: entries(2), 2: entries(2)})
    first = await scene.publish(scene.slot(1, one[1]), scene.slot(2, one[2]))
    two = await scene.write({1: entries(3)})
    second = await scene.publish(scene.slot(1, two[1]), unchanged=(2,))
    scene.hand.now_ms += DAY_MS
    left_over = await scene.write({3: entries(1)})  # of an exporter that died before its head
    before = scene.hand.now_ms - 1000
    # Slot 2 is told by the first head alone.
    assert await scene.exports.prune(await scene.exports.load(), before, 4) == 0
    third = await scene.publish(scene.slot(2, one[2]), scene.slot(1, two[1]))
    assert await scene.exports.prune(await scene.exports.load(), before, 4) == 2
    assert scene.target.bucket.names("meta/" + CLUSTER + "/heads") == [third]
    assert first != second
    for slot, refs in ((1, two[1]), (2, one[2]), (3, left_over[3])):
        await scene.exports.gather(scene.slot(slot, refs))
    scene.hand.now_ms += DAY_MS
    assert await scene.exports.prune(await scene.exports.load(), scene.hand.now_ms - 1000, 4) == 1
    with pytest.raises(ArchiveMissing):
        await Exports(scene.target, CLUSTER).gather(scene.slot(3, left_over[3]))
    for slot, refs in ((1, two[1]), (2, one[2])):
        await Exports(scene.target, CLUSTER).gather(scene.slot(slot, refs))


async def test_heads_that_cannot_be_read_go_when_they_are_old() -> None:
    scene = Scene()
    name = await scene.publish(scene.slot(1, ()))
    scene.target.bucket.damage(name, 30)
    assert await scene.exports.prune(await scene.exports.load(), NOW_MS, 4) == 0
    assert await scene.exports.prune(await scene.exports.load(), scene.hand.now_ms + 1, 4) == 1
    assert (await scene.exports.load()).damaged == {}


async def test_writes_that_were_archived_first_stay_until_every_slot_has_them_for_a_day() -> None:
    scene = Scene()
    name = through_name(CLUSTER, scene.hand.ulid())
    scene.target.bucket.store(name, b"x")
    scene.hand.now_ms += 10_000
    heads = [scene.slot(slot, ()) for slot in range(3)]
    await scene.publish(*heads)
    scene.hand.now_ms += 2 * DAY_MS
    assert await scene.exports.prune(await scene.exports.load(), scene.hand.now_ms, 4) == 0, "slot 3 never was exported"
    await scene.publish(scene.slot(3, ()), unchanged=(0, 1))
    assert await scene.exports.prune(await scene.exports.load(), scene.hand.now_ms, 4) == 0, "slot 2 has it only now"
    await scene.publish(unchanged=(0, 1, 2, 3))
    await scene.exports.prune(await scene.exports.load(), scene.hand.now_ms, 4)
    assert name not in scene.target.bucket.objects


async def test_clusters_of_one_bucket_are_told_apart() -> None:
    scene = Scene()
    scene.target.bucket.store("packs/2026/01/01/x.pack", b"")
    scene.target.bucket.store("meta/README", b"")
    assert await exported_clusters(scene.target) == []
    await scene.exports.introduce(DOCUMENT)
    await scene.publish(scene.slot(1, ()))
    await Exports(scene.target, OTHER).introduce(replace(DOCUMENT, cluster=OTHER))
    assert await exported_clusters(scene.target) == [CLUSTER], "of the other one there is nothing to recover yet"
    assert await clusters_in(scene.target) == [CLUSTER, OTHER]
    assert await unrecovered(scene.target, OTHER) == [CLUSTER]
    await note_recovered(scene.target, CLUSTER, OTHER)
    assert await unrecovered(scene.target, OTHER) == []
    assert await unrecovered(scene.target, CLUSTER) == [OTHER]


async def test_a_cluster_is_introduced_once_and_not_as_another() -> None:
    scene = Scene()
    await scene.exports.introduce(DOCUMENT)
    stored = scene.target.bucket.objects[cluster_name(CLUSTER)]
    await scene.exports.introduce(DOCUMENT)
    assert scene.target.bucket.objects[cluster_name(CLUSTER)] is stored
    assert await scene.exports.document() == DOCUMENT
    with pytest.raises(ArchiveError, match="8"):
        await scene.exports.introduce(replace(DOCUMENT, slot_count=8))


async def test_a_segment_that_cannot_be_stored_is_said_to_be() -> None:
    scene = Scene()
    scene.target.bucket.fault("unavailable", "put", times=1)
    with pytest.raises(ArchiveUnavailable):
        await scene.write({1: entries(1)})
    assert isinstance(scene.target, MemoryTarget) and not scene.target.bucket.objects
