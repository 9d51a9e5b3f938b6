"""Bodies that are sent past the transport, on both kinds of event loop, from memory that is used again at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from amberblob.limits import MIB
from node.http import Timeouts
from node.http.sending import SendThreads
from tests.unit.node.http.conftest import Raw, World, serving
from tests.unit.node.http.fake_service import until

SIZE = 24 * MIB + 12_345
BODY = os.urandom(SIZE)
GET = b"GET /objects/a HTTP/1.1\r\nHost: x\r\n\r\n"


def use_again(world: World) -> None:
    """Pieces are 4 MiB, in one and the same memory: whoever keeps one beyond its time sends rubbish."""
    world.service.piece_bytes = 4 * MIB
    read = world.service.read

    async def reading(view: Any, offset: int, length: int) -> AsyncIterator[memoryview]:
        memory = memoryview(bytearray(4 * MIB))
        pieces = read(view, offset, length)
        try:
            async for piece in pieces:
                memory[: len(piece)] = piece
                yield memory[: len(piece)]
                memory[:] = bytes(len(memory))
        finally:
            memory[:] = bytes(len(memory))
            await pieces.aclose()  # type: ignore[attr-defined]

    world.service.read = reading  # type: ignore[method-assign]


async def filled(world: World) -> None:
    async with world.request("PUT", "/objects/a", data=BODY) as answer:
        assert answer.status == 201
    use_again(world)


@pytest.fixture
async def large() -> AsyncIterator[World]:
    async with serving() as world:
        await filled(world)
        yield world


async def test_whole_parts_and_no_body_at_all(large: World) -> None:
    async with large.request("GET", "/objects/a") as answer:
        assert answer.status == 200
        assert await answer.read() == BODY
        etag = answer.headers["ETag"]
    for first, last in ((0, SIZE - 1), (5, 4 * MIB), (4 * MIB - 1, 9 * MIB), (SIZE - 2 * MIB, SIZE - 1), (7, 1007)):
        headers = {"Range": f"bytes={first}-{last}"}
        async with large.request("GET", "/objects/a", headers=headers) as answer:
            assert answer.status == 206
            assert await answer.read() == BODY[first : last + 1]
    async with large.request("HEAD", "/objects/a") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(SIZE))
    async with large.request("GET", "/objects/a", headers={"If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")


async def test_requests_behind_a_large_answer_keep_their_order(large: World) -> None:
    """The head of an answer finds the socket full of the body before it."""
    raw = await narrow(large)
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    await raw.send(GET + GET + health + GET + health)
    assert (await raw.answer()).body == BODY
    for _ in range(2):
        assert (await raw.answer()).body == BODY
        assert (await raw.answer()).body == b'{"status":"ok"}'
    await raw.send(GET)
    assert (await raw.answer()).body == BODY


async def test_a_client_that_has_closed_its_side_gets_everything(large: World) -> None:
    raw = await large.raw()
    await raw.send(GET)
    raw.writer.write_eof()
    assert (await raw.answer()).body == BODY
    assert await raw.closed() == b""


async def test_clients_that_leave_leave_nothing_behind(large: World) -> None:
    before = sockets()
    for read in (0, 1, 100_000, 6 * MIB):
        raw = await large.raw()
        await raw.send(GET)
        await raw.reader.readexactly(read)
        raw.writer.transport.abort()
    await until(lambda: large.app.in_flight == 0)
    await until(lambda: large.service.reads_closed == 4)
    await until(lambda: sockets() <= before)
    async with large.request("GET", "/objects/a") as answer:
        assert await answer.read() == BODY


async def test_an_error_in_the_middle_breaks_the_connection(large: World) -> None:
    large.service.fail_read_after = 8 * MIB
    raw = await large.raw()
    await raw.send(GET)
    await raw.reader.readuntil(b"\r\n\r\n")
    got = await raw.closed()
    assert len(got) <= 8 * MIB and BODY.startswith(got)
    await until(lambda: large.app.in_flight == 0)


async def test_stalled_clients_stop_nobody_else(large: World) -> None:
    stalled = []
    for _ in range(12):
        raw = await large.raw()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(GET)
        stalled.append(raw)
    await until(lambda: large.app.in_flight == 12)
    async with asyncio.timeout(60):
        async with large.request("GET", "/objects/a") as answer:
            assert await answer.read() == BODY
    for raw in stalled:
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await raw.answer()).body == BODY


async def test_a_stalled_client_is_let_go_and_a_slow_one_is_not() -> None:
    async with serving(timeouts=Timeouts(write_stall_s=0.5)) as world:
        await filled(world)
        raw = await narrow(world)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(GET)
        await until(lambda: world.service.reads_closed == 1)
        await until(lambda: world.app.in_flight == 0)

        async def slowly() -> bytearray:
            raw = await narrow(world)
            await raw.send(b"GET /objects/a?end=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (8 * MIB))
            await raw.reader.readuntil(b"\r\n\r\n")
            got = bytearray()
            while len(got) < 8 * MIB:
                got += await raw.reader.readexactly(min(512 * 1024, 8 * MIB - len(got)))
                await asyncio.sleep(0.1)
            return got

        got = bytearray()
        for _ in range(10):
            # On a busy machine it may stand still itself for as long as is too long.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                got = await slowly()
                break
        assert got == BODY[: 8 * MIB]


async def test_a_shutdown_breaks_off_what_a_client_does_not_take() -> None:
    async with serving() as world:
        await filled(world)
        raw = await narrow(world)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(GET)
        await until(lambda: world.app.in_flight == 1)
        async with asyncio.timeout(30):
            await world.server.close(0.2)
        assert world.app.in_flight == 0 and world.service.reads_closed == 1
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await raw.closed()) < SIZE


async def test_without_a_socket_the_transport_sends(large: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SendThreads, "sender", lambda *_, **__: None)
    async with large.request("GET", "/objects/a") as answer:
        assert await answer.read() == BODY


def sockets() -> int:
    """How many this process has open."""
    count = 0
    for entry in os.scandir("/proc/self/fd"):
        try:
            count += os.readlink(entry.path).startswith("socket:")
        except OSError:
            continue
    return count


async def narrow(world: World) -> Raw:
    """A connection whose client side buffers little."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, world.server.address)
    raw = Raw(*await asyncio.open_connection(sock=own))
    world._raws.append(raw)
    return raw
