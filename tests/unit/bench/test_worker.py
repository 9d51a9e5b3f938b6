"""The load generator against a server of the test's own: every kind of answer, both loops. No timing."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from bench.job import Job, Operation, get, put
from bench.load import Measured, run_load, run_through


class Server:
    """Answers by path; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.heads: list[str] = []
        self.bodies: set[bytes] = set()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, target, _ = head.split(" ", 2)
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        self.bodies.add(await reader.readexactly(int(line.partition(":")[2])))
                self.asked[f"{method} {target}"] += 1
                self.heads.append(head)
                writer.write(self.answer(method, target))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def answer(self, method: str, target: str) -> bytes:
        if "chunked" in target:
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        if "gone" in target:
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        if "refused" in target:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
        if "busy" in target and self.asked[f"{method} {target}"] < 3:
            return b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
        body = b"" if method == "HEAD" else b"x" * 100_000
        return b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body


@asynccontextmanager
async def running():
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


async def through(job: Job) -> Measured:
    return await asyncio.to_thread(run_through, job)


@pytest.mark.parametrize(
    "operation",
    [
        get("p", paths=2),
        get("p", paths=2, method="HEAD"),
        put("p"),
        Operation(method="DELETE", target="/gone/{client}/{turn}"),
        Operation(method="GET", target="/chunked?limit=1"),
    ],
    ids=lambda operation: f"{operation.method} {operation.target}",
)
async def test_every_kind_of_answer_ends(operation):
    async with running() as server:
        job = Job(ports=(server.port,), clients=3, operations=(operation,), body_bytes=10, requests_each=4)
        found = await through(job)
    assert found.count == sum(server.asked.values()) == 12
    assert not found.errors


async def test_templates_are_filled():
    operation = Operation(
        method="PUT", target="/v1/{client}/{turn}/{round}", headers="X-Id: {unique}\r\nX-Auth: a\r\n", paths=2
    )
    async with running() as server:
        await through(Job(ports=(server.port,), clients=1, operations=(operation,), first_client=5, requests_each=3))
    assert list(server.asked) == ["PUT /v1/5/0/0", "PUT /v1/5/1/0", "PUT /v1/5/0/1"]
    ids = [head.partition("X-Id: ")[2].partition("\r\n")[0] for head in server.heads]
    assert len(set(ids)) == 3
    assert all(len(one) == 24 for one in ids)


@pytest.mark.parametrize(("own", "kinds"), [(True, 12), (False, 1)])
async def test_bodies_are_equal_or_each_its_own(own, kinds):
    async with running() as server:
        job = Job(
            ports=(server.port,), clients=3, operations=(put("p"),), body_bytes=64, own_bodies=own, requests_each=4
        )
        await through(job)
    assert {len(body) for body in server.bodies} == {64}
    assert len(server.bodies) == kinds


async def test_bodies_of_their_own_differ_where_one_target_begins_with_another():
    async with running() as server:
        for target in ("/v1/3", "/v1/32"):
            operation = Operation(method="PUT", target=target)
            await through(
                Job(
                    ports=(server.port,),
                    clients=1,
                    operations=(operation,),
                    body_bytes=64,
                    own_bodies=True,
                    requests_each=1,
                )
            )
    assert {body.partition(b"\n")[0] for body in server.bodies} == {b"/v1/3", b"/v1/32"}


async def test_what_is_not_ok_is_an_error_and_what_may_be_repeated_is():
    async with running() as server:
        job = Job(ports=(server.port,), clients=1, operations=(get("refused", paths=1),), requests_each=1)
        with pytest.raises(RuntimeError, match="status 404"):
            await through(job)
        job = Job(
            ports=(server.port,), clients=1, operations=(get("busy", paths=1),), requests_each=1, deadline_s=30
        )  # fmt: skip
        found = await through(job)
    assert found.retries == 2
    assert found.statuses == {503: 2, 200: 1}


@pytest.mark.parametrize("rate_per_s", [0.0, 200.0])
async def test_both_loops(rate_per_s):
    operations = (get("p", paths=2, share=0.5), put("p", share=0.5))
    async with running() as server:
        job = Job(ports=(server.port,), clients=4, operations=operations, rate_per_s=rate_per_s, arrivals="even")
        for seconds in (0.5, 2.0, 8.0, 30.0):
            # A busy machine may need a longer window until something of each kind is done in it.
            found = await asyncio.to_thread(run_load, job, seconds, warm_up_s=0.0)
            assert not found.errors
            if rate_per_s:
                assert found.count + found.unsent == pytest.approx(seconds * rate_per_s, abs=2)
            if all(found.by_operation_us.values()):
                break
    assert set(found.by_operation_us) == {"GET", "PUT"}
    assert all(found.by_operation_us.values())
