"""A cluster is built again from its bucket alone: every archived object, version and tombstone is back and readable."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from amberblob.errors import AmberError
from node.protocol.operations import Expire
from tests.unit.node.archive.disaster_kit import (
    SECOND,
    Exporters,
    Store,
    archive,
    contents,
    picture,
    recover,
    world,
)
from tests.unit.node.objects import kit
from tests.unit.node.objects.kit import Cluster

SIZES = (0, 1, 50, 4000, kit.STAGED, 3 * kit.CHUNK + 7)


async def live_through(cluster: Cluster, seed: int, *, paths: int = 6, steps: int = 40) -> None:
    """A random history."""
    chance = random.Random(seed)
    names = [f"d{number % 3}/p{number}" for number in range(paths)]
    done = 0
    for step in range(steps):
        path, node = chance.choice(names), cluster[chance.randint(1, 3)]
        acts: list[Callable[[], Awaitable[object]]] = [
            lambda: kit.put(node, path, kit.content(chance.choice(SIZES), seed=seed * 1000 + step)),
            lambda: kit.put(
                node, path, kit.content(60, seed=step), write_id=f"own-{step}", meta={"step": str(step)}
            ),
            lambda: kit.delete(node, path),
            lambda: kit.delete(node, path, version=chance.randint(1, 6)),
            lambda: kit.restore(node, path),
            lambda: kit.restore(node, path, version=chance.randint(1, 6)),
            lambda: node.coordinator.write(
                node.routing.of(path), path, Expire(versions=((1, chance.randint(1, 3)),))
            ),
        ]
        act = chance.choices(acts, weights=(8, 4, 2, 2, 2, 2, 1))[0]
        try:
            await act()
            done += 1
        except AmberError as error:
            assert error.status in (404, 409), error
    assert done > steps // 2
    await cluster.settle()


@pytest.mark.parametrize("seed", range(6))
async def test_everything_comes_back_as_it_was(seed: int, tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        await live_through(first, seed)
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
        bytes_before = await contents(first, before)
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=(4, 1, 16)[seed % 3]) as second:
        told = await recover(second)
        assert told.status.failures == 0, told.status.problems
        assert await picture(second) == before
        assert await contents(second, before) == bytes_before
