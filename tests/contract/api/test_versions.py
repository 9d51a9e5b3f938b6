"""DELETE, restore, ?versions, client-given versions."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.cluster.harness import KIB, Api, content, object_url

pytestmark = pytest.mark.cluster


async def write(api: Api, name: str, *bodies: bytes) -> None:
    for body in bodies:
        await api.put(name, body)


async def state(api: Api, name: str) -> dict[int, bool]:
    """Version to tombstoned, as every node tells it."""
    told = [{row["version"]: row["tombstoned"] for row in await api.versions(name, node=node)} for node in api.nodes]
    assert all(one == told[0] for one in told), told
    assert list(told[0]) == sorted(told[0], reverse=True)
    return told[0]


async def test_versions_newest_first(api: Api, name: str) -> None:
    bodies = [content(f"{name}{index}", size) for index, size in enumerate((10, 100 * KIB, 0, 10, 70 * KIB))]
    await write(api, name, *bodies)
    rows = await api.versions(name)
    assert [row["version"] for row in rows] == [5, 4, 3, 2, 1]
    assert [row["size"] for row in rows] == [len(body) for body in reversed(bodies)]
    assert len({row["blob_id"] for row in rows}) == 5
    assert not any(row["tombstoned"] for row in rows)
    for row in rows:
        answer = await api.get(name, query=f"version={row['version']}")
        assert answer.body == bodies[row["version"] - 1]
        assert (answer.version, answer.etag, answer.blob_id) == (row["version"], row["etag"], row["blob_id"])


async def test_a_version_that_is_not_there(api: Api, name: str) -> None:
    await api.get(name, query="versions", expect=404)
    await write(api, name, b"1")
    await api.get(name, query="version=2", expect=404)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.0", "9223372036854775808", "99999999999999999999999", "１"])
async def test_a_version_that_is_no_number(api: Api, name: str, value: str, nothing_stored: None) -> None:
    await write(api, name, b"1")
    target = object_url(name, f"version={quote(value)}")
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        answer = await api(method, target, data=b"x" * 100 * KIB if method == "PUT" else None)
        assert answer.status == 400, (method, answer)
    assert await state(api, name) == {1: False}


async def test_delete_is_a_tombstone(api: Api, name: str) -> None:
    await write(api, name, b"1", b"2")
    await api.delete(name)
    for node in api.nodes:
        assert (await api.get(name, expect=404, node=node)).problem == "no-such-object"
        await api.head(name, expect=404, node=node)
        assert (await api.get(name, query="version=1", node=node)).body == b"1"
        assert (await api.get(name, query="version=2", node=node)).body == b"2"
    rows = await state(api, name)
    assert rows[2] is True
    await api.delete(name, expect=404)
    assert await state(api, name) == rows


async def test_deleting_what_never_was(api: Api, name: str) -> None:
    assert (await api.delete(name, expect=404)).problem == "no-such-object"
    await api.delete(name, query="version=1", expect=404)
    await api.restore(name, expect=404)
    await api.absent(name)


async def test_a_put_after_a_delete_never_takes_an_old_version(api: Api, name: str) -> None:
    await write(api, name, b"1", b"2")
    await api.delete(name)
    version = (await api.put(name, b"3")).json["version"]
    assert version > 2
    assert (await api.get(name)).body == b"3"
    assert (await api.get(name, query="version=2")).body == b"2"


async def test_deleting_versions_one_by_one(api: Api, name: str) -> None:
    await write(api, name, b"1", b"2", b"3")
    await api.delete(name, query="version=3")
    answer = await api.get(name)
    assert (answer.version, answer.body) == (2, b"2")
    assert (await api.get(name, query="version=3")).body == b"3"
    assert await state(api, name) == {3: True, 2: False, 1: False}

    await api.delete(name, query="version=1")
    assert (await api.get(name)).version == 2
    await api.delete(name, query="version=1", expect=404)
    await api.delete(name, query="version=7", expect=404)

    await api.delete(name, query="version=2")
    await api.get(name, expect=404)
    assert await state(api, name) == {3: True, 2: True, 1: True}
    await api.delete(name, expect=404)

    assert (await api.put(name, b"4")).json["version"] == 4


async def test_restore_lifts_what_the_last_delete_took_away(api: Api, name: str) -> None:
    await write(api, name, b"1", b"2")
    await api.delete(name)
    restored = await api.restore(name)
    assert restored.json["version"] == 2
    answer = await api.get(name)
    assert (answer.version, answer.body) == (2, b"2")

    await api.delete(name, query="version=1")
    await api.restore(name)
    assert await state(api, name) == {2: False, 1: False}
    assert (await api.get(name)).version == 2


async def test_a_delete_of_the_path_does_not_own_an_earlier_one(api: Api, name: str) -> None:
    await write(api, name, b"1", b"2", b"3")
    await api.delete(name, query="version=2")
    await api.delete(name)
    await api.restore(name)
    rows = await state(api, name)
    assert rows[3] is False
    assert rows[2] is True
    assert (await api.get(name)).version == 3


async def test_restore_of_one_version(api: Api, name: str) -> None:
    await write(api, name, b"1", b"2", b"3")
    await api.delete(name)
    await api.restore(name, 1)
    assert (await state(api, name))[1] is False
    answer = await api.get(name)
    assert (answer.version, answer.body) == (1, b"1")
    await api.restore(name, 3)
    assert (await api.get(name)).body == b"3"
    await api.restore(name, 9, expect=404)


async def test_nothing_to_restore(api: Api, name: str) -> None:
    await write(api, name, b"1")
    await api.restore(name, expect=404)
    assert await state(api, name) == {1: False}


async def test_post_without_restore(api: Api, name: str) -> None:
    await write(api, name, b"1")
    await api.delete(name)
    assert (await api("POST", object_url(name))).status in (400, 405)
    for value in ("x", "0", "-1", "1.5"):
        assert (await api("POST", object_url(name, f"restore={value}"))).status == 400
    await api.get(name, expect=404)


@pytest.mark.parametrize("size", [5, 100 * KIB])
async def test_a_version_given_by_the_client(api: Api, name: str, size: int) -> None:
    data = content(name, size)
    assert (await api.put(name, data, query="version=10")).json["version"] == 10
    for version in (1, 9, 10):
        refused = await api.put(name, data, query=f"version={version}", expect=409)
        assert refused.problem == "version-conflict"
    assert (await api.put(name, data)).json["version"] == 11
    assert (await api.put(name, data, query="version=1000000000000")).json["version"] == 1_000_000_000_000
    await api.delete(name)
    await api.put(name, data, query="version=1000000000000", expect=409)
    assert (await api.put(name, data)).json["version"] == 1_000_000_000_001
    assert sorted(await state(api, name)) == [10, 11, 10**12, 10**12 + 1]


async def test_a_history_longer_than_any_short_list(api: Api, name: str) -> None:
    for index in range(40):
        await api.put(name, str(index + 1).encode())
    for version in range(2, 41, 2):
        await api.delete(name, query=f"version={version}")
    rows = await state(api, name)
    assert rows == {version: version % 2 == 0 for version in range(40, 0, -1)}
    answer = await api.get(name)
    assert (answer.version, answer.body) == (39, b"39")
    for version in range(1, 41):
        assert (await api.get(name, query=f"version={version}")).body == str(version).encode()
