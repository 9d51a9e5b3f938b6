"""Corrupt and missing bytes: never wrong ones, from a peer when need be, and mended afterwards."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.errors import ChunkCorrupt, ClusterError
from node.objects import bytes as bytes_module
from node.objects.bytes import CHUNKS_IN_MEMORY, CHUNKS_IN_RESERVE
from node.objects.memory import Buffers
from tests.folders import files_below
from tests.unit.node.objects.kit import CHUNK, STAGED, Cluster, Node, cluster, content, delete, get, look, put, read


@pytest.fixture
async def made():
    async with cluster() as running:
        yield running


async def stored(made: Cluster, size: int, path: str = "p"):
    data = content(size)
    view = await put(made[1], path, data)
    await made.settle()
    for node in made:
        await node.pull()
    chunks = await made[1].reading.chunks(made.slot(path), view.version)
    return data, view, chunks


def spoil(made: Cluster, node: Node, view, chunk_id: str) -> None:
    node.store.corrupt_chunk(made.slot(view.path), view.version.blob_id, chunk_id)


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
async def test_a_corrupt_local_chunk_comes_from_a_peer_and_is_mended(made, size):
    data, view, chunks = await stored(made, size)
    spoil(made, made[1], view, chunks[-1].id)
    assert await get(made[1], "p") == data
    assert made[1].puller.waiting == 1
    await made[1].pull()
    assert made[1].puller.waiting == 0
    made.net.sent.clear()
    assert await get(made[1], "p") == data
    assert made.net.count("ReadChunk") == 0


async def test_a_corrupt_local_manifest_comes_from_a_peer_and_is_mended(made):
    data, view, _ = await stored(made, 70 * CHUNK)
    spoil(made, made[1], view, view.version.manifest_id)
    assert await get(made[1], "p") == data
    await made[1].pull()
    made.net.sent.clear()
    assert await get(made[1], "p") == data
    assert made.net.count("ReadManifest") == 0


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
async def test_two_corrupt_copies_are_served_from_the_third(made, size):
    data, view, chunks = await stored(made, size)
    for number in (1, 2):
        spoil(made, made[number], view, chunks[0].id)
    for number in (3, 1, 2):
        assert await get(made[number], "p") == data
    for number in (1, 2):
        await made[number].pull()
    made.net.down = {"n3"}
    for number in (1, 2):
        assert await get(made[number], "p") == data


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
async def test_all_copies_corrupt_is_an_error_never_wrong_bytes(made, size):
    data, view, chunks = await stored(made, size)
    for node in made:
        spoil(made, node, view, chunks[-1].id)
    for node in made:
        for _ in range(2):
            with pytest.raises(ClusterError) as caught:
                await get(node, "p")
            assert caught.value.code == "bytes-unavailable"
            assert set(caught.value.extra["failures"]) == {"n1", "n2", "n3"}
    if len(chunks) > 1:
        whole = len(data) - chunks[-1].len
        assert await read(made[2], view, 0, whole) == data[:whole]


async def test_all_manifests_corrupt(made):
    _, view, _ = await stored(made, 70 * CHUNK)
    for node in made:
        spoil(made, node, view, view.version.manifest_id)
    with pytest.raises(ClusterError) as caught:
        await get(made[1], "p")
    assert caught.value.code == "bytes-unavailable"


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
async def test_a_copy_that_missed_everything_serves_and_is_completed_by_its_learn(made, size):
    made.net.fault("Commit", "drop", to="n3")
    for phase in ("StageOpen", "Prepare"):
        made.net.fault(phase, "drop", to="n3")
    data = content(size)
    await put(made[1], "p", data)
    await made.settle()
    made.net.heal()
    assert made[3].register("p").chosen and made[3].puller.waiting == 1
    assert await get(made[3], "p") == data
    await made[3].pull()
    made.net.down = {"n1", "n2"}
    assert await get(made[3], "p", consistency="local") == data


async def test_a_node_that_goes_away_in_the_middle_of_a_download(made):
    size = 6 * CHUNK
    data, view, chunks = await stored(made, size)
    for chunk in chunks:
        spoil(made, made[1], view, chunk.id)
    parts = made[1].objects.read(view, 0, size)
    got = bytes(await anext(parts))
    made.net.down = {"n2"}
    async for part in parts:
        got += bytes(part)
    assert got == data


async def test_a_peer_that_sends_other_bytes_is_not_believed(made):
    data, view, chunks = await stored(made, 3 * CHUNK)
    spoil(made, made[1], view, chunks[1].id)
    honest = made[2].replica.handle_read

    async def lying(peer, request):
        return (await honest(peer, request))[::-1]

    made[2].replica.handle_read = lying
    assert await get(made[1], "p") == data


async def test_many_readers_at_once(made):
    data, view, _ = await stored(made, 8 * CHUNK)
    answers = await asyncio.gather(*(read(made[n % 3 + 1], view) for n in range(60)))
    assert all(answer == data for answer in answers)


async def test_readers_that_pause_do_not_stop_the_others(made):
    """Clients that take nothing for a while (a paused player, a slow line) are as many as chunks in memory."""
    data, view, _ = await stored(made, 4 * CHUNK)
    paused = []
    for _ in range(bytes_module.CHUNKS_IN_MEMORY):
        parts = made[1].objects.read(view, 0, len(data))
        try:
            async with asyncio.timeout(5):
                await anext(parts)
        except TimeoutError:
            break
        paused.append(parts)
    try:
        async with asyncio.timeout(60):
            assert await read(made[1], view) == data
    finally:
        for parts in paused:
            await parts.aclose()


async def test_mending_on_real_disks(tmp_path):
    async with cluster(folder=tmp_path) as made:
        data, _, chunks = await stored(made, 70 * CHUNK)
        [file] = [f for f in files_below(tmp_path / "n1") if f.name == chunks[3].id]
        spoilt = bytearray(file.read_bytes())
        spoilt[100] ^= 1
        file.write_bytes(spoilt)
        assert await get(made[1], "p") == data
        await made[1].pull()
        made.net.down = {"n2", "n3"}
        assert await get(made[1], "p", consistency="local") == data


async def test_mending_a_manifest_on_real_disks(tmp_path):
    async with cluster(folder=tmp_path) as made:
        data, view, _ = await stored(made, 70 * CHUNK)
        [file] = [f for f in files_below(tmp_path / "n1") if "manifest" in f.name and view.version.blob_id in str(f)]
        file.unlink()
        assert await get(made[1], "p") == data
        await made[1].pull()
        made.net.down = {"n2", "n3"}
        assert await get(made[1], "p", consistency="local") == data


# ---- explain


async def explain(node: Node, path: str = "p"):
    return await node.objects.explain(path)


@pytest.mark.parametrize("size", [0, 5, STAGED, 70 * CHUNK])
async def test_explain_a_healthy_object(made, size):
    await stored(made, 5)
    data = content(size) if size else b""
    await put(made[2], "p", data)
    await made.settle()
    for node in made:
        told = await explain(node)
        assert told["healthy"], told["advice"]
        assert told["head"] == 2 and told["revision"] == 2 and told["slot"] == made.slot("p")
        assert [replica["state"] for replica in told["replicas"]] == ["chosen"] * 3
        assert [version["version"] for version in told["versions"]] == [2, 1]
        assert all(set(version["copies"].values()) == {"all"} for version in told["versions"])


async def test_explain_an_unreachable_node(made):
    await stored(made, STAGED)
    made.net.down = {"n2"}
    told = await explain(made[1])
    assert not told["healthy"] and "n2" in told["advice"]
    assert {r["node"]: r["state"] for r in told["replicas"]} == {"n1": "chosen", "n2": "unreachable", "n3": "chosen"}
    assert told["versions"][0]["copies"] == {"n1": "all", "n2": "unreachable", "n3": "all"}


async def test_explain_with_a_majority_away(made):
    await stored(made, STAGED)
    made.net.down = {"n1", "n2"}
    told = await explain(made[3])
    assert not told["healthy"] and told["head"] == 1


async def test_explain_a_copy_that_is_behind(made):
    await stored(made, 5)
    made.net.down = {"n3"}
    await put(made[1], "p", content(STAGED))
    await made.settle()
    made.net.heal()
    told = await explain(made[2])
    assert not told["healthy"]
    assert {r["node"]: r["state"] for r in told["replicas"]} == {"n1": "chosen", "n2": "chosen", "n3": "behind"}
    assert told["versions"][0]["copies"] == {"n1": "all", "n2": "all", "n3": "none"}


async def test_explain_missing_bytes_then_mend_as_it_says(made):
    data, view, chunks = await stored(made, 3 * CHUNK)
    spoil(made, made[1], view, chunks[0].id)
    assert await get(made[1], "p") == data  # finds it out
    told = await explain(made[2])
    assert told["versions"][0]["copies"]["n1"] in ("some", "damaged")
    assert not told["healthy"] and "n1" in told["advice"]
    await made[1].pull()
    assert (await explain(made[2]))["healthy"]


async def test_explain_a_missing_manifest_then_mend_as_it_says(made):
    """The advice is to read the object at that node."""
    data, view, _ = await stored(made, 70 * CHUNK)
    spoil(made, made[1], view, view.version.manifest_id)
    assert await get(made[1], "p") == data
    assert await get(made[1], "p") == data
    await made[1].pull()
    assert (await explain(made[2]))["healthy"]


async def test_explain_a_failed_disk_and_a_lost_copy(made):
    await stored(made, 5)
    made[2].store.fail("broken")
    made[3].store.lose_slot(made.slot("p"), "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    told = await explain(made[1])
    assert {r["node"]: r["state"] for r in told["replicas"]} == {"n1": "chosen", "n2": "disk-failed", "n3": "unsynced"}
    assert {r["node"]: r.get("incarnation") for r in told["replicas"]}["n3"] == "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert not told["healthy"] and "n2" in told["advice"] and "n3" in told["advice"]


async def test_explain_what_a_copy_knows_to_be_damaged(made):
    _, view, _ = await stored(made, STAGED)
    slot = made.slot("p")
    neighbour = next(f"q{index}" for index in range(1000) if made.slot(f"q{index}") == slot)
    _, other, _ = await stored(made, STAGED, neighbour)
    await made[1].store.set_wanted(slot, "p", view.version, damaged=True)
    await made[2].store.set_wanted(slot, neighbour, other.version, damaged=True)
    told = await explain(made[2])
    assert told["versions"][0]["copies"] == {"n1": "damaged", "n2": "all", "n3": "all"}
    replicas = {r["node"]: r for r in told["replicas"]}
    assert (replicas["n1"]["wanted"], replicas["n2"]["wanted"]) == ([1], [])
    assert (replicas["n2"]["chosen"], replicas["n2"]["revision"]) == (True, 1)
    assert replicas["n2"]["incarnation"] == made[2].store.disk_id and replicas["n2"]["ballot"]
    assert not told["healthy"] and "rotted on n1;" in told["advice"] and "heal --wait" in told["advice"]


async def test_explain_an_object_of_which_no_copy_is_complete(made):
    _, view, chunks = await stored(made, 3 * CHUNK)
    slot = made.slot("p")
    for node in made:
        node.store.corrupt_chunk(slot, view.version.blob_id, chunks[0].id)
        with pytest.raises(ChunkCorrupt):
            await node.store.read_chunk(slot, view.version.blob_id, chunks[0])
        await node.store.set_wanted(slot, "p", view.version, damaged=True)
    told = await explain(made[1])
    assert set(told["versions"][0]["copies"].values()) == {"damaged"}
    assert [r["wanted"] for r in told["replicas"]] == [[1]] * 3
    assert "rotted on n1, n2, n3" in told["advice"] and "No copy of version 1 is complete" in told["advice"]
    assert "amberblob cluster heal --wait" in told["advice"]


async def test_explain_a_deleted_object(made):
    await stored(made, STAGED)
    await delete(made[1], "p")
    await made.settle()
    told = await explain(made[2])
    assert told["healthy"] and told["head"] is None
    assert [(v["version"], v["tombstoned"]) for v in told["versions"]] == [(1, True)]


async def test_explain_an_object_with_a_long_history(made):
    """One copy was not told yet that the newest version is chosen: no bytes are missing anywhere."""
    for index in range(104):
        await put(made[1], "p", b"%d" % index)
    await made.settle()
    made.net.fault("Learn", "drop", to="n3")
    await put(made[1], "p", b"last")
    await made.settle()
    told = await explain(made[1])
    lacking = [v["version"] for v in told["versions"] if set(v["copies"].values()) != {"all"}]
    assert lacking == [], told["advice"]
    await look(made[1], "p")


async def test_memory_is_used_again_only_when_nobody_writes_to_it(tmp_path):
    async with cluster(folder=tmp_path) as made:
        data, view, _ = await stored(made, 6 * CHUNK)
        reading, store = made[1].reading, made[1].store
        assert await read(made[1], view) == data
        kept = [id(buffer) for buffer in reading._buffers._free]
        assert 0 < len(kept) <= bytes_module.BUFFERS_KEPT
        assert await read(made[1], view) == data
        assert {id(buffer) for buffer in reading._buffers._free} >= set(kept)

        # A client goes away while a thread still reads the next chunk: that memory is not seen again.
        honest, used = store.read_chunk_into, []

        async def slowly(slot, blob_id, chunk, into):
            used.append(into)
            if len(used) > 1:
                await asyncio.sleep(60)
            return await honest(slot, blob_id, chunk, into)

        store.read_chunk_into = slowly
        parts = made[1].objects.read(view, 0, len(data))
        assert bytes(await anext(parts)) == data[:CHUNK]
        await parts.aclose()
        free = [id(buffer) for buffer in reading._buffers._free]
        assert id(used[0]) in free and id(used[1]) not in free


async def test_a_reader_without_memory_gives_its_place_back(monkeypatch):
    """Otherwise so many failures leave no place, and every large read is refused until a restart."""
    async with cluster() as made:
        data = content(3 * CHUNK)
        await put(made[1], "p", data)
        view = await look(made[1], "p")
        buffers = made[1].reading._buffers
        monkeypatch.setattr(buffers, "take", lambda size: (_ for _ in ()).throw(OSError(12, "no memory")))
        for _ in range(CHUNKS_IN_MEMORY + CHUNKS_IN_RESERVE + 1):
            with pytest.raises(OSError, match="no memory"):
                await anext(made[1].objects.read(view, 0, len(data)))
        monkeypatch.undo()
        assert await get(made[1], "p") == data


def test_memory_is_had_where_the_kernel_knows_no_large_pages(monkeypatch):
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 10**6)
    assert len(Buffers(1).take(CHUNK)) == CHUNK
