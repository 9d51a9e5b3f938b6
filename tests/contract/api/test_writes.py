"""Conditional writes, write ids, and what a refused write leaves: nothing."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.cluster.harness import DEADLINE_S, KIB, Answer, Api, content, object_url

pytestmark = pytest.mark.cluster

SIZES = pytest.mark.parametrize("size", [20, 100 * KIB])
"""Inline, and with files of its own."""


def assert_refused(answer: Answer, head: Answer) -> None:
    """A 412 that bears the headers of the current head."""
    assert answer.status == 412
    assert answer.problem == "precondition-failed"
    for header in ("ETag", "X-Amber-Version", "X-Amber-Blob-Id", "Last-Modified"):
        assert answer.headers[header] == head.headers[header], header


# -- conditions


@SIZES
async def test_create_only(api: Api, name: str, size: int) -> None:
    create = {"If-None-Match": "*"}
    await api.put(name, content("1", size), headers=create)
    head = await api.head(name)
    for node in api.nodes:
        refused = await api("PUT", object_url(name), data=content("2", size), headers=create, node=node)
        assert_refused(refused, head)
    assert len(await api.versions(name)) == 1
    await api.delete(name)
    created = await api.put(name, content("3", size), headers=create)
    assert created.json["version"] > 1
    assert (await api.get(name)).body == content("3", size)


@SIZES
async def test_if_match(api: Api, name: str, size: int) -> None:
    first = (await api.put(name, content("1", size))).json["etag"]
    second = (await api.put(name, content("2", size), headers={"If-Match": f'"{first}"'})).json["etag"]
    head = await api.head(name)
    refused = await api("PUT", object_url(name), data=content("3", size), headers={"If-Match": f'"{first}"'})
    assert_refused(refused, head)
    await api.put(name, content("3", size), headers={"If-Match": f'"{first}", "{second}"'})
    await api.put(name, content("4", size), headers={"If-Match": "*"})
    assert [row["version"] for row in await api.versions(name)] == [4, 3, 2, 1]
    await api.delete(name)
    await api.put(name, b"5", headers={"If-Match": "*"}, expect=412)


@SIZES
async def test_if_version(api: Api, name: str, size: int) -> None:
    await api.put(name, content("x", size), headers={"X-Amber-If-Version": "1"}, expect=412)
    for version in range(5):
        created = await api.put(name, content(version, size), headers={"X-Amber-If-Version": str(version)})
        assert created.json["version"] == version + 1
    head = await api.head(name)
    for version in (0, 4, 6):
        headers = {"X-Amber-If-Version": str(version)}
        assert_refused(await api("PUT", object_url(name), data=content("x", size), headers=headers), head)
    await api.delete(name)
    await api.put(name, b"x", headers={"X-Amber-If-Version": "5"}, expect=412)
    await api.put(name, b"x", headers={"X-Amber-If-Version": "0"})


async def test_conditions_on_absent_objects(api: Api, name: str, nothing_stored: None) -> None:
    for headers in ({"If-Match": '"' + "0" * 64 + '"'}, {"If-Match": "*"}, {"X-Amber-If-Version": "3"}):
        for data in (b"x", b"x" * 100 * KIB):
            assert (await api.put(name, data, headers=headers, expect=412)).problem == "precondition-failed"
    await api.absent(name)


async def test_conditions_on_delete_and_restore(api: Api, name: str) -> None:
    etag = (await api.put(name, b"1")).json["etag"]
    head = await api.head(name)
    for headers in ({"If-Match": '"other"'}, {"X-Amber-If-Version": "2"}):
        assert_refused(await api("DELETE", object_url(name), headers=headers), head)
    await api.delete(name, headers={"If-Match": f'"{etag}"'})
    await api.restore(name, headers={"X-Amber-If-Version": "1"}, expect=412)
    await api.restore(name, headers={"X-Amber-If-Version": "0"})
    await api.delete(name, headers={"X-Amber-If-Version": "1"})
    await api.get(name, expect=404)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Amber-If-Version": "-1"},
        {"X-Amber-If-Version": "x"},
        {"X-Amber-If-Version": ""},
        {"X-Amber-If-Version": "99999999999999999999"},
        {"If-Match": "unquoted"},
        {"If-None-Match": '"an-etag"'},
    ],
)
async def test_conditions_that_make_no_sense(
    api: Api, name: str, headers: dict[str, str], nothing_stored: None
) -> None:
    await api.put(name, b"x" * 100 * KIB, headers=headers, expect=400)
    await api.absent(name)


# -- write ids


@SIZES
async def test_a_retry_gets_the_first_answer(api: Api, name: str, size: int) -> None:
    headers = {"X-Amber-Write-Id": "w" * 64}
    first = await api.put(name, content("1", size), headers=headers)
    for _ in range(4):
        assert (await api.put(name, content("1", size), headers=headers)).json == first.json
    assert len(await api.versions(name)) == 1


@SIZES
async def test_a_retry_after_twenty_other_writes_gets_the_first_answer(api: Api, name: str, size: int) -> None:
    headers = {"X-Amber-Write-Id": "the first"}
    first = await api.put(name, content("1", size), headers=headers)
    for index in range(20):
        await api.put(name, content(f"other {index}", 30), headers={"X-Amber-Write-Id": f"other {index}"})
    for node in api.nodes:
        assert (await api.put(name, content("1", size), headers=headers, node=node)).json == first.json
    again = await api.put(name, content("other 3", 30), headers={"X-Amber-Write-Id": "other 3"})
    assert again.json["version"] == 5
    assert len(await api.versions(name)) == 21
    assert (await api.get(name)).body == content("other 19", 30)


@SIZES
async def test_a_retried_conditional_create_is_no_conflict_with_itself(api: Api, name: str, size: int) -> None:
    headers = {"X-Amber-Write-Id": "create", "If-None-Match": "*"}
    first = await api.put(name, content("1", size), headers=headers)
    for node in api.nodes:
        assert (await api.put(name, content("1", size), headers=headers, node=node)).json == first.json
    await api.put(name, b"other", headers={"X-Amber-Write-Id": "other", "If-None-Match": "*"}, expect=412)
    await api.put(name, b"other")
    assert (await api.put(name, content("1", size), headers=headers)).json == first.json
    await api.delete(name)
    assert (await api.put(name, content("1", size), headers=headers)).json == first.json
    await api.get(name, expect=404)


@SIZES
async def test_one_write_id_many_times_at_once(api: Api, name: str, size: int) -> None:
    for round_number in range(5):
        headers = {"X-Amber-Write-Id": f"at once {round_number}"}

        async def put(headers: dict[str, str] = headers) -> Answer:
            """Repeated as users do while a busy machine has no time for it: its id makes that harmless."""
            end = time.monotonic() + DEADLINE_S
            while True:
                answer = await api("PUT", object_url(name), data=content("1", size), headers=headers)
                if answer.status not in (503, 504) or time.monotonic() > end:
                    return answer
                await asyncio.sleep(0.1)

        answers = await asyncio.gather(*(put() for _ in range(9)))
        assert {answer.status for answer in answers} == {201}, answers
        assert {answer.json["version"] for answer in answers} == {round_number + 1}
    assert len(await api.versions(name)) == 5


async def test_a_write_id_belongs_to_its_path(api: Api, name: str) -> None:
    headers = {"X-Amber-Write-Id": "shared"}
    one = await api.put(f"{name}/1", b"1", headers=headers)
    two = await api.put(f"{name}/2", b"2", headers=headers)
    assert one.json["blob_id"] != two.json["blob_id"]
    assert (await api.get(f"{name}/2")).body == b"2"


async def test_write_ids_of_delete_and_restore(api: Api, name: str) -> None:
    await api.put(name, b"1")
    for _ in range(2):
        await api.delete(name, headers={"X-Amber-Write-Id": "delete"})
    for _ in range(2):
        await api.restore(name, headers={"X-Amber-Write-Id": "restore"})
    await api.delete(name, headers={"X-Amber-Write-Id": "delete"})  # done already, and not done again
    assert (await api.get(name)).body == b"1"


@pytest.mark.parametrize("write_id", ["", "x" * 65, "tab\there", "ümlaut"])
async def test_write_ids_that_are_none(api: Api, name: str, write_id: str, nothing_stored: None) -> None:
    await api.put(name, b"x" * 100 * KIB, headers={"X-Amber-Write-Id": write_id}, expect=400)
    await api.absent(name)
