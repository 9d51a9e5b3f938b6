"""Bytes that rot on one disk: right answers all the same, and the copy mends itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.harness import KIB, MIB, Answer, Api, Cluster, content, is_sound, object_url, until

pytestmark = pytest.mark.cluster


async def stored(api: Api, cluster: Cluster, name: str, data: bytes) -> Answer:
    put = await api.put(name, data)
    blob_id = put.json["blob_id"]
    chunks = -(-len(data) // (8 * MIB))
    await until(
        lambda: all(len(cluster.chunk_files(node, name, blob_id)) == chunks for node in range(3)),
        "every node has the chunks",
    )
    return put


def damage(file: Path, kind: str) -> None:
    data = bytearray(file.read_bytes())
    match kind:
        case "bit":
            data[len(data) // 2] ^= 1
            # At once: a copy that is just being completed must not meet a file of the wrong length in between.
            other = file.with_name("damaged")
            other.write_bytes(data)
            other.replace(file)
        case "truncated":
            file.write_bytes(data[:-1])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()


@pytest.mark.parametrize("kind", ["bit", "truncated", "empty", "missing"])
@pytest.mark.parametrize("size", [200 * KIB, 9 * MIB])
async def test_a_chunk_that_rots(api: Api, cluster: Cluster, name: str, kind: str, size: int) -> None:
    data = content(name, size)
    put = await stored(api, cluster, name, data)
    victim = cluster.chunk_files(1, name, put.json["blob_id"])[0]
    quarantined = set(cluster.quarantined(1))
    damage(victim, kind)
    assert (await api.get(name, node=1)).body == data
    await until(lambda: is_sound(victim), "the chunk came back by itself")
    moved = len(set(cluster.quarantined(1)) - quarantined)
    if kind == "bit":
        assert moved == 1
    else:
        # A file of the wrong length may also be noticed and replaced by the copy's own completion, before it is read.
        assert moved <= 1
    assert (await api.get(name, node=1)).body == data
    half = size // 2
    part = await api.get(name, node=1, headers={"Range": f"bytes={half}-"}, expect=206)
    assert part.body == data[half:]


async def test_the_same_chunk_rots_on_two_of_three(api: Api, cluster: Cluster, name: str) -> None:
    data = content(name, 300 * KIB)
    put = await stored(api, cluster, name, data)
    victims = [cluster.chunk_files(node, name, put.json["blob_id"])[0] for node in (0, 2)]
    for victim in victims:
        damage(victim, "bit")
    for node in range(3):
        assert (await api.get(name, node=node)).body == data
    for victim in victims:
        await until(lambda victim=victim: is_sound(victim), "mended")


async def test_all_copies_rot_and_nothing_wrong_is_served(api: Api, cluster: Cluster, name: str) -> None:
    data = content(name, 300 * KIB)
    put = await stored(api, cluster, name, data)
    for node in range(3):
        damage(cluster.chunk_files(node, name, put.json["blob_id"])[0], "bit")
    for node in range(3):
        answer = await api("GET", object_url(name), node=node)
        assert answer.status >= 500, answer
    for node in range(3):
        assert cluster.quarantined(node), "the last copies are kept for an operator"
    await api.put(name, b"anew")
    assert (await api.get(name)).body == b"anew"


async def test_an_inline_body_that_rots(api: Api, cluster: Cluster, name: str) -> None:
    data = content(name, 2000)
    put = (await api.put(name, data)).json
    for _ in range(30):
        await api.put(f"{name}/other", b"x")

    async def learned() -> bool:
        answer = await api("GET", object_url(name), node=1, headers={"X-Amber-Consistency": "local"})
        return answer.status == 200

    await until(learned, "node 1 has its copy")
    assert cluster.stop(1) == 0
    with closing(sqlite3.connect(cluster.slot_folder(1, name) / "meta.sqlite3")) as database:
        changed = database.execute(
            "UPDATE inline_bodies SET body = zeroblob(length(body)) WHERE blob_id = ?", (put["blob_id"],)
        ).rowcount
        database.commit()
    assert changed == 1
    cluster.start(1)
    await cluster.wait_ready()
    for _ in range(2):
        got = await api.get(name, node=1)
        assert got.body == data

    async def local() -> bool:
        answer = await api("GET", object_url(name), node=1, headers={"X-Amber-Consistency": "local"})
        return answer.body == data

    await until(local, "right again")


async def test_a_slot_database_that_is_garbage(api: Api, cluster: Cluster, name: str) -> None:
    slot = cluster.slot_folder(1, name).name
    other = next(f"{name}-{n}" for n in range(1000) if cluster.slot_folder(1, f"{name}-{n}").name != slot)
    large = next(f"{name}+{n}" for n in range(1000) if cluster.slot_folder(1, f"{name}+{n}").name == slot)
    bodies = {name: b"in the lost slot", other: b"in another slot", large: content(name, 300 * KIB)}
    for path, body in bodies.items():
        await api.put(path, body)
    assert cluster.stop(1) == 0
    database = cluster.slot_folder(1, name) / "meta.sqlite3"
    database.write_bytes(b"garbage, no database at all. " * 500)
    cluster.start(1)
    await cluster.wait_ready()
    assert cluster.quarantined(1), "what was there is kept"

    for node in range(3):
        for path, body in bodies.items():
            assert (await api.get(path, node=node)).body == body
        assert sorted(e["path"] for e in (await api.page(prefix=name, node=node))["objects"]) == sorted(bodies)
        await api.put(f"{other}", bodies[other], node=node)
        await api.put(name, b"written after the loss", node=node)
        assert (await api.get(name, node=node)).body == b"written after the loss"
        bodies[name] = b"written after the loss"

    # Nobody but the node itself did anything, and it votes again: with one of the two others gone, it is needed.
    async def votes() -> bool:
        view = (await api("GET", "/cluster", node=1)).json
        return view["self"]["disk"]["lost_slots"] == []

    await until(votes, f"slot {slot} was rebuilt from the others")
    cluster.kill(2)
    api.nodes = [0, 1]
    for node in (0, 1):
        for path in (name, other):
            assert (await api.get(path, node=node)).body == bodies[path]
            await api.put(path, bodies[path], node=node)
    cluster.start(2)
    await cluster.wait_ready()
    api.nodes = [0, 1, 2]
    for node in range(3):
        assert (await api.get(name, node=node)).body == bodies[name]
