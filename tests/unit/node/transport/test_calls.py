import asyncio
import os

import pytest

from amberblob.ballot import BALLOT_ZERO
from amberblob.errors import (
    ChunkCorrupt,
    ChunkMissing,
    DiskFull,
    PeerError,
    PeerTimeout,
    PeerUnreachable,
)
from amberblob.limits import FRAME_BYTES_MAX, MIB, STREAM_WINDOW_BYTES
from amberblob.tracing import set_request_id
from amberblob.wire import Failed, Refused, StagedReply
from node.transport import PeerClients, PeerServer
from tests.unit.node.transport.transport_kit import (
    Cluster,
    Handler,
    cluster,
    failed_code,
    identity,
    incarnation,
    query,
    read_chunk,
    stage_close,
    stage_open,
    until,
)


async def test_thousands_of_calls_at_once():
    async with cluster() as c:
        replies = await asyncio.gather(*(c.clients.call("n2", query(str(i)), timeout_s=30) for i in range(4000)))
        assert [incarnation(reply) for reply in replies] == [str(i) for i in range(4000)]
        assert c.clients.reachable("n2")
        assert c.server.peers() == ["n1"]


async def test_one_connection_per_lane():
    async with cluster() as c:
        await c.clients.call("n2", query(), timeout_s=30)
        await asyncio.gather(*(c.clients.call("n2", query(), timeout_s=30) for _ in range(100)))
        assert len(c.server._connections) == 1
        assert [data async for data in c.clients.fetch("n2", read_chunk(), timeout_s=30)] == []
        assert len(c.server._connections) == 2


async def test_errors_become_failed():
    async with cluster() as c:
        for node, handler in (("n2", c.handler), ("n1", c.own_handler)):
            handler.error = DiskFull("no room")
            reply = await c.clients.call(node, query(), timeout_s=30)
            assert reply == Failed(code="disk-full", detail="no room")
            handler.error = ZeroDivisionError("secret detail")
            reply = await c.clients.call(node, query(), timeout_s=30)
            assert failed_code(reply) == "internal-error" and "secret detail" not in reply.detail


async def test_a_timeout_stops_the_peer():
    async with cluster() as c:
        await c.clients.call("n2", query(), timeout_s=30)  # there is a connection, however long that takes
        c.handler.hold = True
        with pytest.raises(PeerTimeout):
            await c.clients.call("n2", query(), timeout_s=0.05)
        await until(lambda: c.handler.cancelled == 1)
        c.handler.hold = False
        assert incarnation(await c.clients.call("n2", query("b"), timeout_s=30)) == "b"


async def test_cancellation_stops_the_peer():
    async with cluster() as c:
        c.handler.hold = True
        task = asyncio.create_task(c.clients.call("n2", query(), timeout_s=30))
        await until(lambda: c.handler.started == 1)
        task.cancel()
        await until(lambda: c.handler.cancelled == 1)
        assert task.cancelled()


async def test_overload_is_told_at_once():
    async with cluster(requests_max=3) as c:
        c.handler.hold = True
        tasks = [asyncio.create_task(c.clients.call("n2", query(), timeout_s=30)) for _ in range(3)]
        await until(lambda: c.handler.started == 3)
        assert failed_code(await c.clients.call("n2", query(), timeout_s=30)) == "overloaded"
        c.handler.gate.set()
        await asyncio.gather(*tasks)


async def test_the_request_id_travels():
    async with cluster() as c:
        set_request_id("r-77")
        await c.clients.call("n2", query(), timeout_s=30)
        stage = await c.clients.stage("n2", stage_open(), timeout_s=30)
        await stage.close(stage_close(), None, timeout_s=30)
        [_ async for _ in c.clients.fetch("n2", read_chunk(), timeout_s=30)]
        set_request_id("")
        await c.clients.call("n2", query(), timeout_s=30)
        seen = [(context.get("request_id"), context.get("peer")) for context in c.handler.contexts]
        assert seen == [("r-77", "n1")] * 3 + [("", "n1")]


async def test_too_large_a_message_fails_alone():
    async with cluster() as c:
        with pytest.raises(PeerError, match="does not fit"):
            await c.clients.call("n2", query("x" * FRAME_BYTES_MAX), timeout_s=30)
        assert incarnation(await c.clients.call("n2", query("y" * (FRAME_BYTES_MAX // 2)), timeout_s=30)).startswith(
            "y"
        )


async def test_too_large_a_message_is_told_to_who_asks_without_a_task():
    async with cluster() as c:
        await c.clients.call("n2", query(), timeout_s=30)
        told: list[object] = []
        c.clients.ask("n2", query("x" * FRAME_BYTES_MAX), told.append, timeout_s=30)
        assert not told, "never before ask() has returned"
        await until(lambda: told)
        assert isinstance(told[0], PeerError) and "does not fit" in str(told[0])
        assert incarnation(await c.clients.call("n2", query("b"), timeout_s=30)) == "b"


async def test_the_peer_dies():
    async with cluster() as c:
        c.handler.hold = True
        tasks = [asyncio.create_task(c.clients.call("n2", query(), timeout_s=30)) for _ in range(10)]
        await until(lambda: c.handler.started == 10)
        for connection in c.server._connections:
            connection._transport.abort()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, PeerUnreachable) and "sent" not in result.extra for result in results)
        assert len({id(result) for result in results}) == 10
        await until(lambda: c.handler.cancelled == 10)


async def test_nobody_listens():
    c = Cluster()
    await c.serve()
    await c.server.close()
    clients = c.connect()
    for _ in range(20):
        # And not because its time was over.
        with pytest.raises(PeerUnreachable, match="cannot connect") as caught:
            await clients.call("n2", query(), timeout_s=30)
        assert caught.value.extra["sent"] is False
    assert not clients.reachable("n2")
    with pytest.raises(PeerUnreachable, match="no address"):
        await clients.call("n9", query(), timeout_s=30)
    await clients.close()


async def test_reconnects_after_a_restart_by_itself():
    async with cluster() as c:
        await c.clients.call("n2", query(), timeout_s=30)
        port = c.server.port
        await c.server.close()
        await until(lambda: not c.clients.reachable("n2"))
        with pytest.raises(PeerUnreachable):
            await c.clients.call("n2", query(), timeout_s=30)
        await c.serve(port=port)
        await until(lambda: c.clients.reachable("n2"))
        assert incarnation(await c.clients.call("n2", query("again"), timeout_s=30)) == "again"


async def test_nothing_works_after_close():
    async with cluster() as c:
        await c.clients.call("n2", query(), timeout_s=30)
        await c.clients.close()
        assert not c.clients.reachable("n2") and not c.clients.reachable("n3")
        for node in ("n2", "n3"):
            with pytest.raises(PeerUnreachable, match="stopping"):
                await c.clients.call(node, query(), timeout_s=30)


async def test_follows_a_changed_address(monkeypatch):
    monkeypatch.setattr("node.transport.link.ADDRESS_CHECK_S", 0.02)
    async with cluster() as c:
        await c.clients.call("n2", query(), timeout_s=30)
        other = Handler()
        server = PeerServer("127.0.0.1", 0, other, identity("n2"))
        c.addresses["n2"] = ("127.0.0.1", await server.start())
        await until(lambda: server.peers() == ["n1"])
        await c.clients.call("n2", query(), timeout_s=30)
        assert other.started == 1
        del c.addresses["n2"]
        await until(lambda: not server.peers())
        assert not c.clients.reachable("n2")
        await server.close()


async def test_close_lets_requests_finish():
    async with cluster() as c:
        c.handler.hold = True
        task = asyncio.create_task(c.clients.call("n2", query("last"), timeout_s=30))
        await until(lambda: c.handler.started == 1)
        closing = asyncio.create_task(c.server.close(grace_s=30))
        await until(lambda: c.server._server is None)
        assert failed_code(await c.clients.call("n2", query(), timeout_s=30)) == "shutting-down"
        c.handler.gate.set()
        assert incarnation(await task) == "last"
        await closing


async def test_close_does_not_wait_for_ever():
    async with cluster() as c:
        c.handler.hold = True
        task = asyncio.create_task(c.clients.call("n2", query(), timeout_s=30))
        await until(lambda: c.handler.started == 1)
        await c.server.close(grace_s=0.05)
        with pytest.raises(PeerUnreachable):
            await task


async def test_own_calls_go_through_no_socket():
    c = Cluster()
    clients = c.connect()
    assert clients.reachable("n1")
    assert incarnation(await clients.call("n1", query("mine"), timeout_s=30)) == "mine"
    c.own_handler.hold = True
    with pytest.raises(PeerTimeout):
        await clients.call("n1", query(), timeout_s=0.02)
    assert c.own_handler.cancelled == 1
    await clients.close()


# ---- streams, the same for a peer and for oneself


@pytest.fixture(params=["n2", "n1"])
async def ends(request):
    async with cluster() as c:
        yield c.clients, request.param, c.handler if request.param == "n2" else c.own_handler


async def connected(clients: PeerClients, node: str) -> None:
    """What comes next does not have to connect in the short time that it has."""
    assert [data async for data in clients.fetch(node, read_chunk(), timeout_s=30)] == []


async def test_a_stage_arrives(ends):
    clients, node, handler = ends
    body = os.urandom(5 * MIB + 17)
    stage = await clients.stage(node, stage_open(), timeout_s=30)
    for part in (body[:10], memoryview(body)[10:70_000], bytearray(body[70_000:]), b""):
        await stage.write(part)
    manifest = os.urandom(3 * MIB)
    reply = await stage.close(stage_close("m"), manifest, timeout_s=30)
    assert reply == StagedReply(incarnation="i")
    assert handler.received == body
    assert handler.closings == [(stage_close("m"), manifest)]
    await stage.abort()


async def test_a_slow_consumer_holds_the_sender_back(ends):
    clients, node, handler = ends
    handler.hold = True
    stage = await clients.stage(node, stage_open(), timeout_s=30)
    body = os.urandom(16 * MIB)
    writing = asyncio.create_task(stage.write(body))
    sender = stage.sender if node == "n2" else stage._sender
    await until(lambda: sender.window.credit_bytes == 0)
    await until(lambda: handler.streams and handler.streams[0].receiver.window.unread_bytes == STREAM_WINDOW_BYTES)
    assert not writing.done()
    handler.gate.set()
    await writing
    await stage.close(stage_close(), None, timeout_s=30)
    assert handler.received == body
    assert handler.streams[0].receiver.window.unread_bytes_peak == STREAM_WINDOW_BYTES


async def test_a_stuck_consumer_is_a_timeout(ends):
    clients, node, handler = ends
    await connected(clients, node)
    handler.hold = True
    stage = await clients.stage(node, stage_open(), timeout_s=0.1)
    with pytest.raises(PeerTimeout):
        await stage.write(bytes(4 * MIB))
    await stage.abort()
    handler.gate.set()
    await until(lambda: handler.stage_errors)
    assert isinstance(handler.stage_errors[0], PeerUnreachable)


async def test_an_abort_reaches_the_consumer(ends):
    clients, node, handler = ends
    stage = await clients.stage(node, stage_open(), timeout_s=30)
    await stage.write(b"some")
    await until(lambda: handler.received)
    await stage.abort()
    await stage.abort()
    await until(lambda: handler.stage_errors)
    assert isinstance(handler.stage_errors[0], PeerUnreachable)
    with pytest.raises(PeerError):
        await stage.write(b"more")


async def test_an_early_refusal_ends_the_writing(ends):
    clients, node, handler = ends
    handler.early = Refused(incarnation="i", reason="disk-full", ballot=BALLOT_ZERO, epoch=1)
    stage = await clients.stage(node, stage_open(), timeout_s=30)
    with pytest.raises(PeerError):
        while True:
            await stage.write(bytes(MIB))
    assert await stage.close(stage_close(), None, timeout_s=30) == handler.early


async def test_a_failing_consumer(ends):
    clients, node, handler = ends
    handler.error = DiskFull("no room")
    stage = await clients.stage(node, stage_open(), timeout_s=30)
    with pytest.raises(PeerError, match="no room") as caught:
        while True:
            await stage.write(bytes(MIB))
    assert caught.value.code == "disk-full"
    assert failed_code(await stage.close(stage_close(), None, timeout_s=30)) == "disk-full"


async def test_closing_times_out(ends):
    clients, node, handler = ends
    handler.hold = True
    stage = await clients.stage(node, stage_open(), timeout_s=30)
    with pytest.raises(PeerTimeout):
        await stage.close(stage_close(), None, timeout_s=0.05)
    handler.gate.set()


async def test_a_read(ends):
    clients, node, handler = ends
    handler.data = os.urandom(9 * MIB + 1)
    got = [data async for data in clients.fetch(node, read_chunk(), timeout_s=30)]
    assert all(type(data) is bytes for data in got)
    assert b"".join(got) == handler.data


async def test_a_failed_read(ends):
    clients, node, handler = ends
    for error in (ChunkMissing("x"), ChunkCorrupt("x")):
        handler.error = error
        with pytest.raises(type(error)):
            [_ async for _ in clients.fetch(node, read_chunk(), timeout_s=30)]
    handler.error = RuntimeError()
    with pytest.raises(PeerError) as caught:
        [_ async for _ in clients.fetch(node, read_chunk(), timeout_s=30)]
    assert caught.value.code == "internal-error"


async def test_a_read_times_out(ends):
    clients, node, handler = ends
    await connected(clients, node)
    handler.hold = True
    with pytest.raises(PeerTimeout):
        [_ async for _ in clients.fetch(node, read_chunk(), timeout_s=0.05)]
    await until(lambda: handler.cancelled == 1)


# ---- streams, over sockets only


async def test_a_slow_reader_holds_the_peer_back():
    async with cluster() as c:
        c.handler.data = os.urandom(16 * MIB)
        got = bytearray()
        reading = c.clients.fetch("n2", read_chunk(), timeout_s=30)
        got += await anext(reading)
        [connection] = c.server._connections
        await until(lambda: connection._senders and next(iter(connection._senders.values())).window.credit_bytes == 0)
        peak = 0
        async for data in reading:
            got += data
            [fetch] = c.clients._links["n2", "bulk"].connection._streams.values() or [None]
            if fetch is not None:
                peak = max(peak, fetch.receiver.window.unread_bytes_peak)
        assert got == c.handler.data
        assert peak <= STREAM_WINDOW_BYTES


async def test_leaving_a_read_early_stops_the_peer():
    async with cluster() as c:
        c.handler.data = bytes(32 * MIB)
        reading = c.clients.fetch("n2", read_chunk(), timeout_s=30)
        await anext(reading)
        await reading.aclose()
        [connection] = c.server._connections
        await until(lambda: not connection.tasks() and not connection._senders)
        c.handler.data = b"still fine"
        assert [data async for data in c.clients.fetch("n2", read_chunk(), timeout_s=30)] == [b"still fine"]


async def test_the_sender_dies_in_mid_stream():
    async with cluster() as c:
        stage = await c.clients.stage("n2", stage_open(), timeout_s=30)
        await stage.write(bytes(MIB))
        await until(lambda: len(c.handler.received) == MIB)
        c.clients._links["n2", "bulk"].connection._transport.abort()
        await until(lambda: c.handler.stage_errors)
        assert isinstance(c.handler.stage_errors[0], PeerUnreachable)
        with pytest.raises(PeerUnreachable):
            await stage.write(b"x")
        with pytest.raises(PeerUnreachable):
            await stage.close(stage_close(), None, timeout_s=30)


async def test_the_reader_s_peer_dies_in_mid_stream():
    async with cluster() as c:
        c.handler.data = bytes(32 * MIB)
        reading = c.clients.fetch("n2", read_chunk(), timeout_s=30)
        await anext(reading)
        for connection in c.server._connections:
            connection._transport.abort()
        with pytest.raises(PeerUnreachable):
            async for _ in reading:
                pass


async def test_messages_do_not_wait_behind_bodies():
    async with cluster() as c:
        c.handler.hold = True
        stages = [await c.clients.stage("n2", stage_open(), timeout_s=30) for _ in range(4)]
        writing = [asyncio.create_task(stage.write(bytes(8 * MIB))) for stage in stages]
        await until(lambda: all(stage.sender.window.credit_bytes == 0 for stage in stages))
        c.handler.hold = False
        assert incarnation(await c.clients.call("n2", query("quick"), timeout_s=30)) == "quick"
        c.handler.gate.set()
        await asyncio.gather(*writing)
        for stage in stages:
            await stage.close(stage_close(), None, timeout_s=30)
