"""GET /objects."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from tests.cluster.harness import Api, etag_of, until

pytestmark = pytest.mark.cluster


async def put_all(api: Api, paths: list[str]) -> None:
    gate = asyncio.Semaphore(32)

    async def put(path: str) -> None:
        async with gate:
            await api.put(path, path.encode())

    await asyncio.gather(*map(put, paths))


def paths_of(objects: list[dict]) -> list[str]:
    return [entry["path"] for entry in objects]


async def test_what_a_line_tells(api: Api, name: str) -> None:
    put = (await api.put(name, b"abc", headers={"Content-Type": "text/x-own"})).json
    for node in api.nodes:
        page = await api.page(prefix=name, node=node)
        (line,) = page["objects"]
        assert {key: line[key] for key in put} == put
        assert line["etag"] == etag_of(b"abc")
        assert page["prefixes"] == []
        assert "cursor" not in page


async def test_byte_order_of_utf8(api: Api, name: str) -> None:
    # UTF-16 would put the surrogate pairs of 😀 before U+FF5E; a locale would put É beside e.
    tails = ["", "/", "A", "Z", "a", "a/b", "a0", "z", "~", "É", "é", "ø", "中", "豈", "\uff5e", "\ufffd", "𐍈", "😀"]
    paths = [f"{name}{tail}" for tail in tails]
    await put_all(api, paths)
    wanted = sorted(paths, key=str.encode)
    for node in api.nodes:
        assert paths_of((await api.page(prefix=name, node=node))["objects"]) == wanted
    objects, _, pages = await api.list_all(prefix=name, limit=1)
    assert paths_of(objects) == wanted
    assert pages == len(wanted)
    assert paths_of((await api.page(prefix=f"{name}é"))["objects"]) == [f"{name}é"]


async def test_exact_page_boundaries(api: Api, name: str) -> None:
    paths = [f"{name}/{index:03}" for index in range(30)]
    await put_all(api, paths)
    for limit in (1, 7, 10, 15, 29, 30, 31, 1000):
        objects, _, pages = await api.list_all(prefix=f"{name}/", limit=limit)
        assert paths_of(objects) == paths, limit
        assert pages == -(-len(paths) // limit), limit
    page = await api.page(prefix=f"{name}/", limit=30)
    assert "cursor" not in page, "nothing comes after the last one"


async def test_more_than_a_thousand(api: Api, name: str) -> None:
    paths = [f"{name}/{index:04}" for index in range(1003)]
    await put_all(api, paths)
    page = await api.page(prefix=f"{name}/")
    assert paths_of(page["objects"]) == paths[:1000]
    rest = await api.page(prefix=f"{name}/", cursor=page["cursor"])
    assert paths_of(rest["objects"]) == paths[1000:]
    assert "cursor" not in rest


async def test_delimiter(api: Api, name: str) -> None:
    tails = ["a", "b/1", "b/2", "b/c/3", "b0", "c/", "d//x", "é/x", "z"]
    await put_all(api, [f"{name}/{tail}" for tail in tails])
    for node in api.nodes:
        page = await api.page(prefix=f"{name}/", delimiter="/", node=node)
        assert paths_of(page["objects"]) == [f"{name}/{tail}" for tail in ("a", "b0", "z")]
        assert page["prefixes"] == [f"{name}/{tail}" for tail in ("b/", "c/", "d/", "é/")]
    inner = await api.page(prefix=f"{name}/b/", delimiter="/")
    assert paths_of(inner["objects"]) == [f"{name}/b/1", f"{name}/b/2"]
    assert inner["prefixes"] == [f"{name}/b/c/"]
    # The prefix itself holds a delimiter, and may end in the middle of a name.
    assert (await api.page(prefix=name, delimiter="/"))["prefixes"] == [f"{name}/"]
    longer = await api.page(prefix=f"{name}/", delimiter="/c/")
    assert longer["prefixes"] == [f"{name}/b/c/"]
    assert len(longer["objects"]) == len(tails) - 1


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 7])
async def test_pages_with_a_delimiter(api: Api, name: str, limit: int) -> None:
    tails = ["a", *(f"b/{index}" for index in range(9)), "c", *(f"d/{index}" for index in range(9)), "e/1", "f"]
    await put_all(api, [f"{name}/{tail}" for tail in tails])
    objects, prefixes, pages = await api.list_all(prefix=f"{name}/", delimiter="/", limit=limit)
    assert paths_of(objects) == [f"{name}/{tail}" for tail in ("a", "c", "f")]
    assert prefixes == [f"{name}/{tail}" for tail in ("b/", "d/", "e/")]
    assert pages == -(-6 // limit)


async def test_deleted_objects(api: Api, name: str) -> None:
    paths = [f"{name}/{index}" for index in range(6)]
    await put_all(api, paths)
    for path in paths[::2]:
        await api.delete(path)
    await put_all(api, [paths[0]])
    living = [paths[0], paths[1], paths[3], paths[5]]
    for node in api.nodes:
        assert paths_of((await api.page(prefix=f"{name}/", node=node))["objects"]) == living
        everything = (await api.page(prefix=f"{name}/", tombstoned=1, node=node))["objects"]
        assert paths_of(everything) == paths
        assert [entry["tombstoned"] for entry in everything] == [path not in living for path in paths]
    objects, _, _ = await api.list_all(prefix=f"{name}/", limit=1)
    assert paths_of(objects) == living
    objects, _, _ = await api.list_all(prefix=f"{name}/", limit=2, tombstoned=1)
    assert paths_of(objects) == paths


async def test_a_folder_of_deleted_objects_is_no_prefix(api: Api, name: str) -> None:
    await put_all(api, [f"{name}/gone/1", f"{name}/gone/2", f"{name}/there/1"])
    await api.delete(f"{name}/gone/1")
    assert (await api.page(prefix=f"{name}/", delimiter="/"))["prefixes"] == [f"{name}/gone/", f"{name}/there/"]
    await api.delete(f"{name}/gone/2")
    for node in api.nodes:
        assert (await api.page(prefix=f"{name}/", delimiter="/", node=node))["prefixes"] == [f"{name}/there/"]


async def test_a_listing_shows_what_was_just_acknowledged(api: Api, name: str) -> None:
    for index in range(20):
        path = f"{name}/{index:02}"
        await api.put(path, b"x")
        for node in api.nodes:
            assert paths_of((await api.page(prefix=path, node=node))["objects"]) == [path]
        await api.delete(path)
        for node in api.nodes:
            assert (await api.page(prefix=path, node=node))["objects"] == []


async def test_the_past(api: Api, name: str) -> None:
    async def moment() -> str:
        """A time between what was done and what is done next."""
        start = time.time()
        await until(lambda: time.time() > start + 0.01, "the clock goes on")
        text = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        middle = time.time()
        await until(lambda: time.time() > middle + 0.01, "the clock goes on")
        return text

    nothing = await moment()
    await put_all(api, [f"{name}/a", f"{name}/b"])
    two = await moment()
    await api.delete(f"{name}/a")
    await api.put(f"{name}/b", b"second")
    await api.put(f"{name}/c", b"c")
    changed = await moment()
    await api.delete(f"{name}/c")

    async def then(at: str) -> dict[str, int]:
        objects, _, _ = await api.list_all(prefix=f"{name}/", at=at, limit=2)
        return {entry["path"].rpartition("/")[2]: entry["version"] for entry in objects}

    assert await then(nothing) == {}
    assert await then(two) == {"a": 1, "b": 1}
    assert await then(changed) == {"b": 2, "c": 1}
    assert [entry["path"] for entry in (await api.page(prefix=f"{name}/"))["objects"]] == [f"{name}/b"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": -1},
        {"limit": "x"},
        {"limit": "1.5"},
        {"cursor": "nonsense"},
        {"cursor": "\0"},
        {"tombstoned": "maybe"},
        {"prefix": "x" * 1025},
        {"delimiter": "x" * 1025},
    ],
)
async def test_parameters_that_make_no_sense(api: Api, query: dict) -> None:
    await api.page(expect=400, **query)


async def test_a_prefix_that_nothing_has(api: Api, name: str) -> None:
    assert await api.page(prefix=f"{name}/nothing") == {"objects": [], "prefixes": []}
