"""A write id is applied once, and a retry gets the first answer."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from amberblob.errors import NotFound, PreconditionFailed
from node.protocol.operations import Conditions
from tests.unit.node.objects.kit import CHUNK, STAGED, cluster, content, delete, get, look, put, restore


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
@pytest.mark.parametrize("later", [0, 1, 30])
async def test_a_retry_of_a_put_gets_the_first_answer(size, later):
    async with cluster() as made:
        data = content(size)
        first = await put(made[1], "p", data, write_id="w")
        for index in range(later):
            await put(made[index % 3 + 1], "p", b"%d" % index, write_id=f"l{index}")
        for node in made:
            again = await put(node, "p", data, write_id="w")
            assert again.version == first.version
        assert len(await made[1].objects.versions("p")) == later + 1
        await made.settle()
        assert made.staged() == {}


@pytest.mark.parametrize("later", [0, 12])
async def test_a_retry_with_a_node_down_at_either_time(later):
    async with cluster() as made:
        made.net.down.add("n3")
        first = await put(made[1], "p", b"x", write_id="w")
        for index in range(later):
            await put(made[2], "p", b"%d" % index)
        made.net.down = {"n1"}
        for number in (2, 3):
            assert (await put(made[number], "p", b"x", write_id="w")).version == first.version


async def test_a_retry_whose_condition_does_not_hold_any_more_still_gets_the_first_answer():
    async with cluster() as made:
        absent = Conditions(absent=True)
        first = await put(made[1], "p", b"x", write_id="w", conditions=absent)
        again = await put(made[2], "p", b"x", write_id="w", conditions=absent)
        assert again.version == first.version
        with pytest.raises(PreconditionFailed):
            await put(made[2], "p", b"x", write_id="v", conditions=absent)


async def test_a_retry_of_a_put_whose_version_was_deleted_gets_the_first_answer():
    async with cluster() as made:
        first = await put(made[1], "p", b"x", write_id="w")
        await delete(made[2], "p")
        assert (await put(made[3], "p", b"x", write_id="w")).version == first.version
        with pytest.raises(NotFound):
            await look(made[1], "p")


@pytest.mark.parametrize("later", [0, 1, 20])
async def test_a_retry_of_a_delete_does_not_delete_again(later):
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await delete(made[1], "p", write_id="d")
        for index in range(later):
            await put(made[1], "p", b"%d" % index)
        await delete(made[2], "p", write_id="d")
        if later:
            assert await get(made[3], "p") == b"%d" % (later - 1)
        else:
            with pytest.raises(NotFound):
                await look(made[3], "p")


@pytest.mark.parametrize("later", [0, 1, 20])
async def test_a_retry_of_a_delete_of_one_version(later):
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await put(made[1], "p", b"y")
        await delete(made[1], "p", version=1, write_id="d")
        await restore(made[2], "p", version=1)
        for index in range(later):
            await put(made[1], "p", b"%d" % index)
        await delete(made[3], "p", version=1, write_id="d")
        assert (await look(made[1], "p", version=1)).tombstoned_at_ms is None


async def test_a_retry_of_a_restore_is_applied_once():
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await delete(made[1], "p")
        await restore(made[1], "p", write_id="r")
        await delete(made[1], "p", write_id="again")
        with contextlib.suppress(NotFound):
            await restore(made[2], "p", write_id="r")
        with pytest.raises(NotFound):
            await look(made[3], "p")


@pytest.mark.parametrize("later", ["put", "delete", "many"])
async def test_a_retry_of_a_restore_gets_the_first_answer(later):
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await delete(made[1], "p")
        first = await restore(made[1], "p", write_id="r")
        assert first.version.version == 1
        if later == "delete":
            await delete(made[1], "p")
        for index in range({"put": 1, "delete": 0, "many": 12}[later]):
            await put(made[2], "p", b"%d" % index)
        again = await restore(made[2], "p", write_id="r")
        assert again.version == first.version


async def test_the_same_write_id_at_once_through_all_nodes_is_applied_once():
    async with cluster() as made:
        data = content(3 * CHUNK)
        views = await asyncio.gather(*(put(made[i % 3 + 1], "p", data, write_id="w") for i in range(9)))
        assert len({view.version.blob_id for view in views}) == 1
        assert len(await made[1].objects.versions("p")) == 1
        await made.settle()
        assert made.staged() == {}
        kept = views[0].version.blob_id
        # A copy that accepted a record which was not chosen keeps its bytes too; that is for the garbage collection.
        assert all(kept in blobs for blobs in made.blobs().values()), made.blobs()


async def test_a_write_id_belongs_to_one_path():
    async with cluster() as made:
        await put(made[1], "p", b"x", write_id="w")
        await put(made[1], "q", b"y", write_id="w")
        assert await get(made[2], "q") == b"y"
