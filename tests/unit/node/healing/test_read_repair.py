"""A read that sees a stale or damaged copy mends it in passing, on whichever node that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.node.objects.kit import CHUNK, STAGED, Cluster, cluster, content, get, look, put, until

SIZES = [100, STAGED, 70 * CHUNK]


async def stored(made: Cluster, size: int) -> bytes:
    data = content(size)
    await put(made[1], "p", data)
    await made.settle()
    for node in made:
        await node.pull()
    return data


async def test_a_stale_register():
    async with cluster() as made:
        path = made.path(3)
        await put(made[1], path, b"one")
        await made.settle()
        for kind in ("Prepare", "Commit", "Learn"):
            made.net.fault(kind, "drop", to="n3")
        await put(made[1], path, b"two")
        await made.settle()
        made.net.heal()
        assert made[3].register(path).record.head.version == 1
        # Two of three are asked: until the one that is behind is among them.
        for number in (3, 1, 2):
            assert await get(made[number], path) == b"two"
        await made.settle()
        await until(lambda: made[3].register(path).record.head.version == 2)
        await made[3].pull()
        made.net.down = {"n1", "n2"}
        assert await get(made[3], path, consistency="local") == b"two"


async def test_a_register_that_was_never_heard_of():
    async with cluster() as made:
        path = made.path(3)
        for kind in ("Prepare", "Commit", "Learn", "StageOpen"):
            made.net.fault(kind, "drop", to="n3")
        await put(made[1], path, content(STAGED))
        await made.settle()
        made.net.heal()
        assert await get(made[3], path) == content(STAGED)
        await made.settle()
        await made[3].pull()
        made.net.down = {"n1", "n2"}
        assert await get(made[3], path, consistency="local") == content(STAGED)


@pytest.mark.parametrize("rot", [False, True])
@pytest.mark.parametrize("reader", [1, 2, 3])
async def test_a_row_that_is_missing(reader, rot):
    """A version in the middle, which no newer record names: whoever sees that a copy lacks it has it looked at."""
    async with cluster() as made:
        path = made.path(1)
        for text in (b"one", b"two", b"three", b"four"):
            await put(made[1], path, text)
        await made.settle()
        for node in made:
            for _ in range(100):
                await node.parts.repairer.step()
        slot = made.slot(path)
        lose_row(made[2].store, slot, path, 2, rot=rot)
        assert [row.version.version for row in await made[2].store.rows(slot, path)] == [4, 3, 1]
        made.net.down = {"n3"} if reader != 3 else {"n1"}
        assert await get(made[reader], path, version=2) == b"two"
        made.net.down = set()
        await made.settle()
        for _ in range(300):
            await made[2].parts.repairer.step()
        assert [row.version.version for row in await made[2].store.rows(slot, path)] == [4, 3, 2, 1]
        await made[2].pull()
        made.net.down = {"n1", "n3"}
        assert await get(made[2], path, version=2, consistency="local") == b"two"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("damage", ["corrupt", "missing"])
async def test_bytes_on_the_own_disk(size, damage):
    async with cluster() as made:
        data = await stored(made, size)
        view = await look(made[1], "p")
        await spoil(made, 1, view, damage)
        assert await get(made[1], "p") == data
        assert made[1].puller.noting or made[1].puller.waiting
        await mended(made, 1, data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("damage", ["corrupt", "missing"])
async def test_bytes_on_the_disk_of_the_node_that_is_asked_for_them(size, damage):
    """n1 has nothing and asks n2, whose bytes are bad; n3 has them."""
    async with cluster() as made:
        data = await stored(made, size)
        view = await look(made[1], "p")
        for number in (1, 2):
            await spoil(made, number, view, damage)
        ask_last(made, "n3")
        assert await get(made[1], "p") == data
        assert made.net.count("ReadChunk", "n2") + made.net.count("ReadManifest", "n2") > 0
        await mended(made, 2, data)


@pytest.mark.parametrize("size", [100, STAGED])
async def test_that_bytes_are_wanted_survives_a_restart(size):
    async with cluster() as made:
        data = await stored(made, size)
        view = await look(made[1], "p")
        await spoil(made, 1, view, "missing")
        held = made.net.fault("ReadChunk", "drop", source="n1")
        with pytest.raises(Exception, match="No replica"):
            await get(made[1], "p")
        assert held.hits
        await until(lambda: not made[1].puller.noting)
        await made[1].coordinator.close(0.1)
        made.start("n1")
        made.net.heal()
        assert made[1].puller.waiting == 1
        await mended(made, 1, data)


async def test_bytes_on_real_disks(tmp_path: Path):
    """An inline body and chunk files, damaged and gone, on the own disk and on another's."""
    async with cluster(folder=tmp_path) as made:
        data = {path: content(size, size) for path, size in (("small", 100), ("large", 3 * CHUNK))}
        for path, body in data.items():
            await put(made[1], path, body)
        await made.settle()
        blob_id = (await look(made[1], "large")).version.blob_id
        for number, what in ((1, "corrupt"), (2, "missing")):
            for file in sorted((tmp_path / f"n{number}").glob(f"slots/*/blobs/{blob_id}/chunks/*"))[:2]:
                if what == "missing":
                    file.unlink()
                else:
                    file.write_bytes(bytes(file.stat().st_size))
        ask_last(made, "n3")
        assert await get(made[1], "large") == data["large"]
        for number in (1, 2):
            puller = made[number].puller
            await until(lambda puller=puller: not puller.noting)  # type: ignore[misc]
            assert made[number].store.tally(made.slot("large")).wanted == 1
            assert made[number].store.tally(made.slot("large")).damaged == (number == 1)
            await made[number].pull()
        for number in (1, 2):
            made.net.down = {"n1", "n2", "n3"} - {f"n{number}"}
            assert await get(made[number], "large", consistency="local") == data["large"]
            assert made[number].store.tally(made.slot("large")).wanted == 0


def ask_last(made: Cluster, name: str) -> None:
    """n1 takes this node for one that it cannot reach, and asks the others for bytes first."""
    setattr(made[1].peers, "reachable", lambda node: node != name)  # noqa: B010


# ---- damage


def lose_row(store, slot: int, path: str, version: int, *, rot: bool) -> None:
    """A row is gone: with ``rot`` behind the back of its digest, else as if it had never been heard of."""
    store.lose_row(slot, path, version)
    if not rot:
        at = store._look(slot)
        del at.paths[path].terms[version]
        at.touched.add(path)


async def spoil(made: Cluster, number: int, view, damage: str) -> None:
    store, slot, version = made[number].store, made.slot(view.path), view.version
    if damage == "missing":
        store.lose_bytes(slot, version.blob_id)
        return
    chunks = await made[number].reading.chunks(slot, version)
    store.corrupt_chunk(slot, version.blob_id, chunks[0].id)


async def mended(made: Cluster, number: int, data: bytes) -> None:
    node = made[number]
    await until(lambda: not node.puller.noting)
    await node.pull()
    assert node.store.tally(made.slot("p")).wanted == 0
    made.net.down = {"n1", "n2", "n3"} - {f"n{number}"}
    assert await get(node, "p", consistency="local") == data
