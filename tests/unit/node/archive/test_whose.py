"""A bucket that is not the cluster's own: nothing of it is believed, nothing is stored there, nothing deleted (rfc/0016, "Whose bucket")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amberblob.archives import DAMAGED
from amberblob.errors import ArchiveMissing, ArchiveNotOurs, ArchiveUnavailable
from archive.clusters import clusters_in
from archive.identity import KNOWN_S, Identity
from archive.segments import FORMAT, ClusterDocument, cluster_name, encode_cluster
from archive.targets.guarded import GuardedTarget
from archive.targets.interface import Stored
from archive.targets.memory import MemoryObject, MemoryTarget
from tests.archive_parts import collect, parts_of
from tests.unit.node.archive.archive_kit import EVICT, World, world
from tests.unit.node.objects.kit import SkewedClock, content, get, put

OWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
PACK = "packs/2020/01/01/01E0000000RRRRRRRRRRRRRRRR.pack"
THEIRS = {cluster_name(OTHER): b"{}", f"meta/{OTHER}/heads/01E0000000RRRRRRRRRRRRRRRR.json": b"{}", PACK: b"theirs"}

DOCUMENT = ClusterDocument(
    format=FORMAT, cluster=OWN, name="c", slot_count=8, chunk_bytes=65536, replicas=3, created_at_ms=0
)


# ---- the look


class Scene:
    def __init__(self, *, rows: bool = False) -> None:
        self.clock = SkewedClock()
        self.raw = MemoryTarget(clock=self.clock)
        self.rows, self.strange = rows, 0
        self.identity = Identity(self.raw, lambda: DOCUMENT, self.has_rows, self.clock, on_strange=self._strange)
        self.target = GuardedTarget(self.raw, self.identity)

    async def has_rows(self) -> bool:
        return self.rows

    def _strange(self) -> None:
        self.strange += 1

    def count(self, kind: str) -> int:
        return sum(count for (found, _), count in self.raw.traffic.requests.items() if found == kind)


async def test_the_first_upload_makes_a_blank_bucket_the_clusters_own() -> None:
    it = Scene()
    await asyncio.gather(*(it.target.put(f"packs/{number}", parts_of(b"1")) for number in range(8)))
    assert it.raw.bucket.names("meta/") == [cluster_name(OWN)]
    assert it.count("put") == 9 and it.count("head") == 1, "one looks for all"
    it.rows = True
    with pytest.raises(ArchiveMissing):
        await it.target.head("packs/none")
    it.clock.ahead_s += KNOWN_S
    await it.target.put("packs/9", parts_of(b"1"))
    assert it.count("head") == 4, "what is gone, whose it is, and again after a while"


@pytest.mark.parametrize("there", [{}, THEIRS, {PACK: b"x"}])
async def test_where_the_cluster_has_rows_and_no_document_nothing_is_missing(there: dict[str, bytes]) -> None:
    it = Scene(rows=True)
    for name, data in there.items():
        it.raw.bucket.store(name, data)
    for failing in (
        it.target.head("packs/1"),
        collect(it.target.read("packs/1")),
        it.target.put("packs/1", parts_of(b"")),
    ):
        with pytest.raises(ArchiveNotOurs, match=f"not the archive of cluster {OWN}"):
            await failing
    with pytest.raises(ArchiveNotOurs):
        await it.target.delete([PACK])
    with pytest.raises(ArchiveNotOurs):
        await it.target.sweep(2**60)
    assert it.raw.bucket.names() == sorted(there) and it.strange == 5
    await it.target.probe()  # whether it answers is another question


async def test_what_is_there_instead_is_told() -> None:
    it = Scene(rows=True)
    for name, data in THEIRS.items():
        it.raw.bucket.store(name, data)
    with pytest.raises(ArchiveNotOurs, match=f"it has the metadata of cluster {OTHER}"):
        await it.identity.confirm()


async def test_a_bucket_of_others_is_not_made_the_own_by_the_way() -> None:
    it = Scene()
    for name, data in THEIRS.items():
        it.raw.bucket.store(name, data)
    with pytest.raises(ArchiveNotOurs, match=f"the metadata of cluster {OTHER}, and nothing of cluster {OWN}.*recover"):
        await it.target.put("packs/1", parts_of(b"1"))
    with pytest.raises(ArchiveMissing):
        await it.target.head("packs/1")  # a lost cluster that is to be recovered from may lack something
    await it.identity.claim()
    await it.target.put("packs/1", parts_of(b"1"))
    assert await clusters_in(it.raw) == [OWN, OTHER]


async def test_one_that_lost_its_document_alone_is_still_the_own() -> None:
    it = Scene(rows=True)
    it.raw.bucket.store(f"meta/{OWN}/heads/01E0000000RRRRRRRRRRRRRRRR.json", b"{}")
    await it.target.put("packs/1", parts_of(b"1"))
    with pytest.raises(ArchiveMissing):
        await it.target.head("packs/2")


async def test_as_long_as_nobody_can_tell_whose_it_is_nothing_is_missing() -> None:
    it = Scene(rows=True)
    it.raw.bucket.fault("unavailable", "head", name="meta/*")
    with pytest.raises(ArchiveUnavailable):
        await it.target.head("packs/1")


async def as_far_as_they_come() -> None:
    """All is in memory: turns of the loop count, not time, of which others may take any amount."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ends", ["in vain", "cancelled"])
async def test_who_waited_for_a_look_that_found_no_answer_looks_again(ends: str) -> None:
    it = Scene(rows=True)
    it.raw.bucket.store(cluster_name(OWN), b"{}")
    looks = [it.raw.bucket.fault("hang", "head", name="meta/*", times=1, skip=skip) for skip in range(2)]
    if ends == "in vain":
        it.raw.bucket.fault("unavailable", "list", name="meta/*", times=1)
    first, second = (asyncio.ensure_future(it.identity.confirm()) for _ in range(2))
    third = asyncio.ensure_future(it.target.head("packs/1"))
    await as_far_as_they_come()
    looks[0].release()
    await first
    await as_far_as_they_come()
    del it.raw.bucket.objects[cluster_name(OWN)]  # another bucket is in the place
    if ends == "cancelled":
        second.cancel()
    looks[1].release()
    with pytest.raises((ArchiveUnavailable, asyncio.CancelledError)):
        await second
    with pytest.raises(ArchiveNotOurs):
        await third


async def test_rows_that_come_by_another_nodes_first_upload_meanwhile_are_no_proof() -> None:
    it = Scene()

    async def another_was_first() -> bool:
        it.raw.bucket.store(cluster_name(OWN), b"{}")
        return True

    identity = Identity(it.raw, lambda: DOCUMENT, another_was_first, it.clock)
    await identity.enter()


async def test_what_another_node_of_the_cluster_stores_meanwhile_is_nobody_elses() -> None:
    it = Scene()
    listed = it.raw.page

    async def another_is_quicker(prefix: str, after: str, limit: int) -> list[Stored]:
        found = await listed(prefix, after, limit)
        if prefix == f"meta/{OWN}/":
            it.raw.bucket.store(cluster_name(OWN), encode_cluster(DOCUMENT))
        return found

    it.raw.page = another_is_quicker  # type: ignore[method-assign]
    await it.target.put("packs/1", parts_of(b"1"))


# ---- a cluster


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, EVICT, count=2, replicas=2, slots=4) as made:
        for number in range(4):
            await put(made[1], f"p/{number}", content(3000, number))
        await made.cluster.settle()
        await made.run()
        await made.follow()
        await made.evict()
        assert made.evicted(1) == made.evicted(2) == 4
        yield made


def exchange(it: World) -> dict[str, MemoryObject]:
    """Another bucket is in the place; what was in it."""
    kept, it.bucket.objects = it.bucket.objects, {}
    for name, data in THEIRS.items():
        it.bucket.store(name, data)
    it.cluster.clock.ahead_s += KNOWN_S
    return kept


async def states(it: World) -> set[int]:
    found: set[int] = set()
    for node in it.cluster:
        for slot in node.store.slots():
            lines, _ = await node.store.archived_after(slot, 0, 1000)
            found.update(line.chunk.state for line in lines)
    return found


async def test_a_wrong_bucket_is_told_as_such_by_reads_and_jobs_and_no_row_is_marked(it: World) -> None:
    before, kept = await states(it), exchange(it)
    assert DAMAGED not in before
    for number in (1, 2):
        with pytest.raises(ArchiveNotOurs) as caught:
            await get(it[number], f"p/{number}")
        assert caught.value.status == 503 and OTHER in caught.value.detail
    for kind in ("verify", "gc", "run", "restore"):
        for status in (await it.run(request=it.request(kind))).values():
            assert status.state == "failed" or status.failures, kind
            assert "is not the archive of cluster" in status.detail + "".join(status.problems), kind
            assert status.state == "failed" or kind == "restore", kind
    assert it.bucket.names() == sorted(THEIRS), "nothing was stored, nothing deleted"
    assert await states(it) == before and it.evicted(1) == 4
    await it.archive(1).reach.step()
    it.archive(1).reach.pause_s = 0.0
    assert (await it.archive(1).cluster.view()).nodes[0].code == "archive-not-ours"
    it.bucket.objects = kept
    await it.archive(1).reach.step()
    assert it.archive(1).reach.reached
    for number in range(4):
        assert await get(it[1], f"p/{number}") == content(3000, number)


async def test_an_operator_may_say_that_a_new_bucket_is_the_archive_from_now_on(it: World) -> None:
    """After everything was brought back: what is not there is gone then, and is sent anew."""
    for status in (await it.run(request=it.request("restore"))).values():
        assert status.state == "done" and not status.failures
    it.bucket.objects.clear()
    it.cluster.clock.ahead_s += KNOWN_S
    for status in (await it.run()).values():
        assert status.state == "failed"
    for status in (await it.run(request=it.request("export", options={"claim": "yes"}))).values():
        assert status.state == "done", status.detail
    await it.run(request=it.request("verify"))
    await it.follow()
    await it.run()
    assert it.bucket.names("packs/")
    counts = [status.counts for status in (await it.run(request=it.request("verify"))).values()]
    assert not any({"chunks_damaged", "chunks_missing"} & one.keys() for one in counts)
    for number in range(4):
        assert await get(it[2], f"p/{number}") == content(3000, number)
