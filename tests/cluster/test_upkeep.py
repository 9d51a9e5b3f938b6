"""Retention and scrub on real nodes, by their configuration: what goes goes from every disk, what rots comes back unread."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.cluster.harness import KIB, Api, Cluster, api_of, content, is_sound, until

pytestmark = pytest.mark.cluster

EAGER: dict[str, Any] = {
    "keep": 0,
    "stub_keep": 0,
    "check_every_s": 0.5,
    "rules": [{"prefix": "two/", "versions": 2}, {"prefix": "ever/", "keep": "all"}],
}
RESTLESS: dict[str, Any] = {"scrub_days": 5e-5, "compare_every_s": 86_400}
"""Everything about every four seconds; and what scrub finds is not found by a compare before."""


def configured(make_cluster: Callable[..., Cluster], **sections: dict[str, Any]) -> Cluster:
    made = make_cluster(slot_count=8)
    for node in made.nodes:
        node.settings |= sections
        node.write_config()
    made.start_all()
    return made


def files_of(cluster: Cluster, path: str, blob_ids: list[str]) -> list[list[int]]:
    """By node: of which of these blobs there are files."""
    return [
        [number for number, blob_id in enumerate(blob_ids) if cluster.chunk_files(node, path, blob_id)]
        for node in range(len(cluster.nodes))
    ]


async def numbers(api: Api, path: str) -> list[int]:
    return [row["version"] for row in await api.versions(path)]


async def test_versions_go_as_the_operator_set(make_cluster: Callable[..., Cluster]) -> None:
    cluster = configured(make_cluster, retention=EAGER)
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        blobs: dict[str, list[str]] = {}
        for path in ("one/a", "two/a", "ever/a", "gone/a"):
            blobs[path] = [(await api.put(path, content(f"{path}{i}", 100 * KIB))).json["blob_id"] for i in range(5)]
        await api.delete("gone/a")
        kept = {"one/a": [4], "two/a": [3, 4], "ever/a": [0, 1, 2, 3, 4], "gone/a": []}
        await until(
            lambda: all(files_of(cluster, path, blobs[path]) == [kept[path]] * 3 for path in kept),
            "the files of what expired are gone everywhere, and no others",
        )
        assert await numbers(api, "one/a") == [5]
        assert await numbers(api, "two/a") == [5, 4]
        assert await numbers(api, "ever/a") == [5, 4, 3, 2, 1]
        assert (await api.get("two/a", query="version=4")).body == content("two/a3", 100 * KIB)
        await api.get("gone/a", expect=404)
        await api.restore("gone/a", expect=404)

        async def stub_is_gone() -> bool:
            text = [(await api("GET", "/metrics", node=node)).body.decode() for node in range(3)]
            return any(
                re.search(r"^amberblob_retention_stubs_collected_total [1-9]", one, re.MULTILINE) for one in text
            )

        await until(stub_is_gone, "the stub of the deleted path is collected")
        assert (await api.put("gone/a", b"new")).version > 5
        assert (await api.get("gone/a", node=2)).body == b"new"


async def test_what_rots_while_nobody_reads_it_comes_back(make_cluster: Callable[..., Cluster]) -> None:
    cluster = configured(make_cluster, repair=RESTLESS)
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        blob_id = (await api.put("file", content("file", 200 * KIB))).json["blob_id"]
        await api.put("inline", content("inline", 1000))
        await api.put("row", content("row", 1000))
        await until(lambda: files_of(cluster, "file", [blob_id]) == [[0]] * 3, "every node has the file")
        for path in ("file", "inline", "row"):
            query = f"SELECT version FROM blobs WHERE path = '{path}'"
            await until(lambda path=path, query=query: ask(cluster, path, query) == 1, "node 1 knows that it is chosen")
        assert cluster.stop(1) == 0
        (file,) = cluster.chunk_files(1, "file", blob_id)
        data = bytearray(file.read_bytes())
        data[1000] ^= 1
        file.write_bytes(data)
        change(cluster, "inline", "UPDATE inline_bodies SET body = zeroblob(1000) WHERE length(body) = 1000 AND blob_id IN "
               "(SELECT blob_id FROM blobs WHERE path = 'inline')")  # fmt: skip
        change(cluster, "row", "UPDATE blobs SET content_type = 'rotten' WHERE path = 'row'")
        cluster.start(1)
        await cluster.wait_ready()

        def sound() -> bool:
            here = cluster.chunk_files(1, "file", blob_id)
            return (
                here != [] and all(map(is_sound, here))
                and ask(cluster, "inline", "SELECT body FROM inline_bodies WHERE blob_id IN "
                        "(SELECT blob_id FROM blobs WHERE path = 'inline')") == content("inline", 1000)
                and ask(cluster, "row", "SELECT content_type FROM blobs WHERE path = 'row'") not in ("rotten", None)
            )  # fmt: skip

        await until(sound, "what rotted is there again", deadline_s=120.0)
        assert len(cluster.quarantined(1)) >= 2, "what was damaged is kept"


def database_of(cluster: Cluster, path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{cluster.slot_folder(1, path) / 'meta.sqlite3'}?mode=rw", uri=True)


def change(cluster: Cluster, path: str, statement: str) -> None:
    with closing(database_of(cluster, path)) as database, database:
        assert database.execute(statement).rowcount == 1


def ask(cluster: Cluster, path: str, query: str) -> Any:
    """What a node's database says; None if there is nothing (yet)."""
    try:
        with closing(database_of(cluster, path)) as database:
            found = database.execute(query).fetchone()
    except sqlite3.OperationalError:
        return None
    return found[0] if found else None
