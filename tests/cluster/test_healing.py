"""Copies heal by themselves: nobody reads what is missing, and in the end each node has everything on its own disk."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.cluster.harness import KIB, Api, Cluster, content, is_sound, object_url, until

pytestmark = pytest.mark.cluster

SLOTS = 16
LOCAL = {"X-Amber-Consistency": "local"}


@dataclass
class Objects:
    """What was written through the public face, and what must be there."""

    api: Api
    prefix: str
    bodies: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    async def put(self, path: str, *, nodes: list[int], seed: str = "") -> None:
        path = f"{self.prefix}/{path}"
        size = 200 * KIB if len(self.bodies) % 8 == 0 else 1000
        body = content(path + seed, size)
        await self.api.put(path, body, node=nodes[len(self.bodies) % len(nodes)])
        self.bodies[path] = body
        self.gone.discard(path)

    async def delete(self, path: str, *, nodes: list[int]) -> None:
        path = f"{self.prefix}/{path}"
        await self.api.delete(path, node=nodes[0])
        del self.bodies[path]
        self.gone.add(path)

    async def all_there(self, node: int) -> None:
        """Read everything through a node."""
        for path, body in self.bodies.items():
            assert (await self.api.get(path, node=node)).body == body
        for path in self.gone:
            await self.api.get(path, node=node, expect=404)

    async def all_on(self, cluster: Cluster, node: int) -> None:
        """Read everything from one node's disk: the others are stopped meanwhile, so that it cannot ask them."""
        others = [other for other in range(len(cluster.nodes)) if other != node]
        for other in others:
            cluster.pause(other)
        try:
            for path, body in self.bodies.items():
                answer = await self.api("GET", object_url(path), node=node, headers=LOCAL)
                assert (answer.status, answer.body) == (200, body), path
            for path in self.gone:
                assert (await self.api("GET", object_url(path), node=node, headers=LOCAL)).status == 404
        finally:
            for other in others:
                cluster.resume(other)
            await cluster.wait_ready()


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[Cluster]:
    """One cluster for all tests here. Each begins with copies that are equal, and with objects of its own."""
    cluster = Cluster(slot_count=SLOTS)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def objects(api: Api, name: str) -> Objects:
    made = Objects(api, name)
    for index in range(40):
        await made.put(f"o/{index}", nodes=[0, 1, 2])
    for index in range(0, 40, 5):
        await made.delete(f"o/{index}", nodes=[index % 3])
    return made


async def view_of(api: Api, *, since: str = "", node: int = 0) -> dict[str, Any]:
    answer = await api("GET", f"/cluster?slots=1&since={quote(since)}", node=node)
    assert answer.status == 200, answer
    document: dict[str, Any] = answer.json
    return document


async def healed(api: Api, *, node: int = 0) -> dict[str, Any]:
    """Until all copies were compared, are equal, and have all their bytes. Nothing is read for it."""
    asked = await api("POST", "/cluster/heal", node=node)
    assert asked.status in (200, 202), asked
    seen: dict[str, Any] = {}

    looks = itertools.count(1)

    async def well() -> bool:
        if next(looks) % 100 == 0:
            # What could not be mended a moment ago is tried again by itself, at growing intervals: here it is now.
            await api("POST", "/cluster/heal", node=node)
        seen.update((await view_of(api, since=asked.json["since"], node=node))["heal"])
        return bool(seen["healed"])

    try:
        await until(well, "all copies are equal and whole", deadline_s=120.0)
    except AssertionError as error:
        raise AssertionError({key: value for key, value in seen.items() if key != "by_slot"}) from error
    for row in seen["by_slot"]:
        assert len({copy["root"] for copy in row["copies"]}) == 1 and len(row["copies"]) == 3
    return seen


def epochs(view: dict[str, Any]) -> dict[int, int]:
    return {row["slot"]: row["epoch"] for row in view["by_slot"]}


def raised(before: dict[int, int], *slots: int) -> dict[int, int]:
    """The epochs after the copies of these slots were named anew."""
    return {slot: epoch + (slot in slots) for slot, epoch in before.items()}


async def test_a_node_that_was_away(cluster: Cluster, objects: Objects) -> None:
    before = epochs((await view_of(objects.api))["heal"])
    cluster.kill(1)
    for index in range(20):
        await objects.put(f"o/{index}", nodes=[0, 2], seed="again")
        await objects.put(f"new/{index}", nodes=[0, 2])
    for index in range(31, 35):
        await objects.delete(f"o/{index}", nodes=[2])
    cluster.start(1)
    await cluster.wait_ready()
    assert epochs(await healed(objects.api)) == before
    await objects.all_on(cluster, 1)


async def test_an_empty_disk_and_the_old_one_again(cluster: Cluster, objects: Objects) -> None:
    before = epochs((await view_of(objects.api))["heal"])
    api, disk = objects.api, cluster.nodes[1].disk
    old = disk.with_name("old")
    assert cluster.stop(1) == 0
    disk.rename(old)
    cluster.start(1)
    # Nobody waits for it: the others are a majority.
    for index in range(10):
        await objects.put(f"meanwhile/{index}", nodes=[0, 2])
    await cluster.wait_ready()
    named = raised(before, *range(SLOTS))
    assert epochs(await healed(api)) == named
    await objects.all_on(cluster, 1)
    # It votes again: with one of the others gone nothing goes without it.
    cluster.pause(2)
    for index in range(4):
        await objects.put(f"o/{index}", nodes=[0, 1], seed="voted")
    cluster.resume(2)

    # The disk that was thought to be dead comes back, and remembers what was deleted since.
    for index in range(21, 25):
        await objects.delete(f"o/{index}", nodes=[0])
    assert cluster.stop(1) == 0
    shutil.rmtree(disk)
    old.rename(disk)
    cluster.start(1)
    await cluster.wait_ready()
    assert epochs(await healed(api)) == raised(named, *range(SLOTS))
    for node in range(3):
        await objects.all_there(node)
    await objects.all_on(cluster, 1)
    assert quarantined(cluster), "what it held is kept"


async def test_a_slot_database_that_is_lost_while_the_node_is_down_and_while_it_runs(
    cluster: Cluster, objects: Objects
) -> None:
    api = objects.api
    before = epochs(await healed(api))
    down = next(iter(objects.bodies))
    live = next(path for path in objects.bodies if cluster.slot_folder(1, path) != cluster.slot_folder(1, down))
    slots = [int(cluster.slot_folder(1, path).name) for path in (down, live)]
    assert cluster.stop(1) == 0
    (cluster.slot_folder(1, down) / "meta.sqlite3").write_bytes(b"garbage, no database at all. " * 500)
    cluster.start(1)
    await cluster.wait_ready()
    await objects.all_there(1)
    assert epochs(await healed(api)) == raised(before, slots[0])
    kept = len(quarantined(cluster))

    database = cluster.slot_folder(1, live) / "meta.sqlite3"
    with database.open("r+b") as file:
        file.write(b"\xff" * database.stat().st_size)
    for log in database.parent.glob("meta.sqlite3-wal"):
        log.write_bytes(b"\xff" * log.stat().st_size)

    async def noticed() -> bool:
        await api.put(live, objects.bodies[live], node=0)
        await api.versions(live, node=1)
        return len(quarantined(cluster)) > kept

    await until(noticed, "the node finds its database damaged")
    await objects.all_there(1)
    assert epochs(await healed(api)) == raised(before, *slots)
    await objects.all_on(cluster, 1)


async def test_bytes_that_rot_on_a_node_that_serves_others(cluster: Cluster, objects: Objects) -> None:
    """The reader asks another node, which has to fetch from the one whose chunks are bad: that one mends itself."""
    api = objects.api
    await healed(api)
    (path,) = [path for path, body in objects.bodies.items() if len(body) > 64 * KIB][:1]
    blob_id = (await api.head(path)).blob_id
    files = {node: cluster.chunk_files(node, path, blob_id)[0] for node in range(3)}
    files[0].unlink()
    rot(files[1])
    files[2].unlink()
    assert (await api("GET", object_url(path), node=0)).status >= 500, "nobody has it now"
    files[2].write_bytes(objects.bodies[path])
    await until(
        lambda: all(map(is_sound, files.values())),
        "all copies are whole again, and nobody read them",
    )
    small = next(path for path, body in objects.bodies.items() if len(body) < 64 * KIB)
    await lose_body(cluster, 1, small, (await api.head(small)).blob_id)
    for _ in range(3):
        assert (await api.get(small, node=1)).body == objects.bodies[small]
    await healed(api)
    await objects.all_on(cluster, 1)


def quarantined(cluster: Cluster) -> list[Path]:
    return cluster.quarantined(1)


def rot(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


async def lose_body(cluster: Cluster, node: int, path: str, blob_id: str) -> None:
    """Spoil an inline body in the database of a node, which is stopped for it."""
    assert cluster.stop(node) == 0
    with closing(sqlite3.connect(cluster.slot_folder(node, path) / "meta.sqlite3")) as database:
        query = "UPDATE inline_bodies SET body = zeroblob(length(body)) WHERE blob_id = ?"
        assert database.execute(query, (blob_id,)).rowcount == 1
        database.commit()
    cluster.start(node)
    await cluster.wait_ready()
