"""Peers that are not what they should be: strangers, other clusters, broken and silent ones."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import struct
import subprocess
import sys

import pytest
import structlog

from amberblob.errors import PeerRefused, PeerUnreachable, WireError
from amberblob.limits import FRAME_BYTES_MAX, STREAM_WINDOW_BYTES
from amberblob.manifest import ChunkRef
from amberblob.wire import Done, Ping, ReadChunk, WireVersions
from node.transport import frames
from node.transport.frames import HEADER, HEADER_BYTES, Kind
from node.transport.handshake import DiallerHandshake, Established, ListenerHandshake, Send
from tests.unit.node.transport.transport_kit import (
    WAIT_S,
    Cluster,
    cluster,
    identity,
    incarnation,
    query,
    stage_open,
    until,
)

READ = ReadChunk(slot=1, blob_id="b", chunk=ChunkRef("0" * 64, 1))


async def refused(c: Cluster) -> PeerRefused:
    with pytest.raises(PeerRefused) as caught:
        await c.clients.call("n2", query(), timeout_s=30)
    assert c.handler.started == 0
    assert not c.clients.reachable("n2")
    return caught.value


@pytest.mark.parametrize(
    ("server", "client", "reason", "words"),
    [
        (identity("n2"), identity("n1", secret=b"x" * 32), "wrong-secret", "secret"),
        (identity("n2"), identity("n1", cluster="c2"), "other-cluster", "cluster"),
        (identity("n3"), identity("n1"), "unexpected-node", "n3 answers where n2 was expected"),
        (identity("n2"), identity("n1", ahead_ms=90_000), "clock-ahead", "clock of n1 is"),
        (identity("n2", ahead_ms=90_000), identity("n1"), "clock-ahead", "clock of n2 is"),
        (identity("n2"), identity("n1", versions=WireVersions(8, 9)), "wire-version", "Upgrade n2"),
        (identity("n2", versions=WireVersions(8, 9)), identity("n1"), "wire-version", "Upgrade n1"),
    ],
)
async def test_refused_with_a_reason(server, client, reason, words):
    with structlog.testing.capture_logs() as logs:
        async with cluster(server, client) as c:
            error = await refused(c)
            assert error.extra["reason"] == reason
            assert words in error.detail
            for _ in range(20):
                with pytest.raises(PeerRefused):
                    await c.clients.call("n2", query(), timeout_s=30)
    told = [(log["event"], log["peer"]) for log in logs if log.get("reason") == reason]
    assert told and len(told) == len(set(told)), "once per reason, however many attempts"


async def test_a_request_that_the_peers_version_does_not_know_is_not_sent(monkeypatch):
    monkeypatch.setattr("amberblob.wire.SINCE", {"Query": 2, "StageOpen": 2, "ReadChunk": 2})
    async with cluster(identity("n2", versions=WireVersions(1, 1)), identity("n1")) as c:
        told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        errors = []
        for asked in range(2):  # before the connection stands, and after
            with pytest.raises(PeerRefused) as caught:
                await c.clients.call("n2", query(), timeout_s=30)
            errors.append(caught.value)
            if asked:
                c.clients.ask("n2", query(), told.set_result, timeout_s=30)
        errors.append(await told)
        with pytest.raises(PeerRefused) as caught:
            await c.clients.stage("n2", stage_open(), timeout_s=30)
        errors.append(caught.value)
        with pytest.raises(PeerRefused) as caught:
            async for _ in c.clients.fetch("n2", READ, timeout_s=30):
                pass
        errors.append(caught.value)
        for error in errors:
            assert error.extra == {"reason": "wire-version", "sent": False}
            assert "upgrade n2" in error.detail
        assert c.handler.started == 0
        assert isinstance(await c.clients.call("n2", Ping(now_ms=1), timeout_s=30), Done), "others are sent as ever"


async def test_a_request_is_sent_to_a_peer_whose_version_knows_it(monkeypatch):
    monkeypatch.setattr("amberblob.wire.SINCE", {"Query": 2})
    async with cluster() as c:
        assert incarnation(await c.clients.call("n2", query(), timeout_s=30)) == "a"


async def test_a_clock_that_runs_away_is_noticed_by_pings():
    wandering = identity("n2")
    async with cluster(wandering, ping_interval_s=0.05) as c:
        await c.clients.call("n2", query(), timeout_s=30)
        wandering.clock._last_ms += 200_000
        await until(lambda: not c.clients.reachable("n2"))
        with pytest.raises(PeerRefused):
            await c.clients.call("n2", query(), timeout_s=30)


# ---- bytes on the port


class Raw:
    """A socket that speaks as much of the protocol as it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> "Raw":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, kind: int, stream: int, payload: bytes = b"") -> None:
        self.writer.write(HEADER.pack(len(payload), kind, stream) + payload)

    async def receive(self) -> tuple[int, int, bytes]:
        length, kind, stream = HEADER.unpack(await self.reader.readexactly(HEADER_BYTES))
        return kind, stream, await self.reader.readexactly(length)

    async def shake(self, handshake) -> None:
        done = False
        actions = handshake.begin() if isinstance(handshake, DiallerHandshake) else []
        while not done:
            for action in actions:
                match action:
                    case Send():
                        self.send(action.kind, 0, action.payload)
                    case Established():
                        done = True
                    case _:
                        raise AssertionError(action)
            if not done:
                kind, _, payload = await self.receive()
                actions = handshake.receive(kind, payload)

    async def closed(self) -> bytes:
        """Everything until the other side closes."""
        async with asyncio.timeout(30):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.transport.abort()


async def shaken(c: Cluster) -> Raw:
    raw = await Raw.connect(c.server.port)
    await raw.shake(DiallerHandshake(identity("n7"), expects="n2", lane="control", nonce=os.urandom(32)))
    return raw


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(2000),
        random.Random(5).randbytes(5000),
        HEADER.pack(5, Kind.HELLO, 0) + b"\xc1\xc1\xc1\xc1\xc1",
        HEADER.pack(1100, Kind.HELLO, 0) + bytes(1100),
        HEADER.pack(0, Kind.REQUEST, 1),
        b"".join(HEADER.pack(900, Kind.HELLO, 0) + bytes(900) for _ in range(3)),
    ],
)
async def test_garbage_is_cut_off(garbage):
    async with cluster() as c:
        raw = await Raw.connect(c.server.port)
        raw.writer.write(garbage)
        await raw.closed()
        raw.close()
        assert incarnation(await c.clients.call("n2", query("fine"), timeout_s=30)) == "fine"


NO_UTF8 = b"\xa2\xff\xfe"
"""A text of two bytes, in MessagePack."""


async def test_a_hello_whose_text_is_no_utf8_is_refused():
    hello = b"\x98\xabamber-hello\x01" + NO_UTF8 + b"\xa2n1\xa2n2\xa7control\xc4\x20" + bytes(32) + b"\x01"
    with structlog.testing.capture_logs() as logs:
        async with cluster() as c:
            raw = await Raw.connect(c.server.port)
            raw.send(Kind.HELLO, 0, hello)
            kind, _, payload = await raw.receive()
            assert kind == Kind.REFUSAL and b"bad-handshake" in payload
            assert await raw.closed() == b""
            raw.close()
    assert [log["reason"] for log in logs if log["event"] == "peer refused"] == ["bad-handshake"]


async def test_a_challenge_or_refusal_whose_text_is_no_utf8_is_none():
    dialler = DiallerHandshake(identity("n1"), expects="n2", lane="control", nonce=bytes(32))
    dialler.begin()
    assert "refuses us" in dialler.receive(Kind.REFUSAL, b"\x93\xadamber-refusal" + NO_UTF8 + b"\xa1d")[0].detail
    dialler = DiallerHandshake(identity("n1"), expects="n2", lane="control", nonce=bytes(32))
    dialler.begin()
    challenge = b"\x97\xafamber-challenge\x01" + NO_UTF8 + b"\xa2n2\xa7control\xc4\x20" + bytes(32) + b"\x01"
    (refused,) = dialler.receive(Kind.CHALLENGE, challenge)
    assert refused.reason == "bad-handshake"


async def test_half_a_handshake_is_cut_off_in_time(monkeypatch):
    monkeypatch.setattr("node.transport.connection.HANDSHAKE_TIMEOUT_S", 0.1)
    async with cluster() as c:
        for start in (b"", b"\x00\x00", HEADER.pack(100, Kind.HELLO, 0) + b"half"):
            raw = await Raw.connect(c.server.port)
            raw.writer.write(start)
            assert await raw.closed() == b""
            raw.close()
        await until(lambda: not c.server._connections)


@pytest.mark.parametrize("bound", ["for one port", "by open files"])
async def test_too_many_strangers(monkeypatch, bound):
    if bound == "for one port":
        monkeypatch.setattr("node.transport.server.HANDSHAKES_MAX", 3)
    else:
        monkeypatch.setattr("node.transport.server.strangers_max", lambda: 3)
    async with cluster() as c:
        raws = [await Raw.connect(c.server.port) for _ in range(3)]
        await until(lambda: len(c.server._connections) == 3)
        late = await Raw.connect(c.server.port)
        assert await late.closed() == b""
        for raw in raws:
            raw.close()
        await until(lambda: not c.server._connections)
        await c.clients.call("n2", query(), timeout_s=30)


@pytest.mark.parametrize(
    "bad",
    [
        HEADER.pack(FRAME_BYTES_MAX + 1, Kind.REQUEST, 1),
        HEADER.pack(0, 99, 1),
        HEADER.pack(0, Kind.REPLY, 1),
        HEADER.pack(0, Kind.REQUEST, 1),
        HEADER.pack(3, Kind.PING, 0) + b"abc",
        HEADER.pack(2, Kind.REQUEST, 0) + b"\x00\xc0",
    ],
)
async def test_whoever_breaks_the_rules_is_cut_off(bad):
    with structlog.testing.capture_logs() as logs:
        async with cluster() as c:
            raw = await shaken(c)
            raw.writer.write(bad)
            await raw.closed()
            raw.close()
            assert incarnation(await c.clients.call("n2", query("fine"), timeout_s=30)) == "fine"
    assert [log["peer"] for log in logs if log["event"] == "peer breaks the wire rules"] == ["n7"]


async def test_more_data_than_there_is_credit_for():
    async with cluster() as c:
        c.handler.hold = True
        raw = await shaken(c)
        from amberblob import wire

        raw.send(Kind.REQUEST, 1, frames.pack_request("", wire.encode(stage_open())))
        for _ in range(STREAM_WINDOW_BYTES // 65536 + 1):
            raw.send(Kind.DATA, 1, bytes(65536))
        await raw.closed()
        raw.close()
        assert c.handler.streams[0].receiver.window.unread_bytes_peak <= STREAM_WINDOW_BYTES


@pytest.mark.parametrize("message", [b"\x91\xa1?", b"\x94\xa1Q\x01" + NO_UTF8 + b"\x01"])
async def test_a_request_that_cannot_be_decoded_fails_alone(message):
    async with cluster() as c:
        raw = await shaken(c)
        raw.send(Kind.REQUEST, 1, b"\x00" + message)
        kind, stream, payload = await raw.receive()
        assert (kind, stream) == (Kind.REPLY, 1) and b"wire-error" in payload
        raw.send(Kind.PING, 0, struct.pack("!Q", 1))
        assert (await raw.receive())[0] == Kind.PONG
        raw.close()


def is_let_go(buffer: bytearray) -> bool:
    """Whether nobody has a view of it."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    return True


async def test_a_lost_connection_gives_its_buffer_back_at_once():
    """A megabyte each: it must not wait until the cycle collector comes round."""
    gc.disable()
    try:
        async with cluster() as c:
            raw = await Raw.connect(c.server.port)
            await raw.shake(DiallerHandshake(identity("n7"), expects="n2", lane="bulk", nonce=os.urandom(32)))
            raw.send(Kind.PING, 0, struct.pack("!Q", 1))
            assert (await raw.receive())[0] == Kind.PONG
            (connection,) = c.server._connections
            buffer = connection._reader._view.obj
            assert len(buffer) == 1024 * 1024 and not is_let_go(buffer)
            raw.close()
            await until(lambda: is_let_go(buffer))
    finally:
        gc.enable()


async def test_late_frames_are_dropped():
    async with cluster() as c:
        raw = await shaken(c)
        for kind, payload in ((Kind.DATA, b"x"), (Kind.END, b""), (Kind.CANCEL, b""), (Kind.CREDIT, bytes(4))):
            raw.send(kind, 77, payload)
        raw.send(Kind.PING, 0, struct.pack("!Q", 1))
        assert (await raw.receive())[0] == Kind.PONG
        raw.close()


# ---- peers that answer wrongly or not at all


class FakePeer:
    """A listener under test control that completes the handshake and then runs ``after``."""

    def __init__(self, after) -> None:
        self._after = after
        self._raws: list[Raw] = []

    async def __aenter__(self) -> "FakePeer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *exc) -> None:
        self._server.close()
        for raw in self._raws:
            raw.close()

    async def _serve(self, reader, writer) -> None:
        raw = Raw(reader, writer)
        self._raws.append(raw)
        try:
            await raw.shake(ListenerHandshake(identity("n2"), nonce=os.urandom(32)))
            await self._after(raw)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass


async def read_for_ever(raw: Raw) -> None:
    while await raw.reader.read(65536):
        pass


async def test_a_silent_peer_is_given_up():
    async with FakePeer(read_for_ever) as peer:
        c = Cluster()
        c.addresses["n2"] = peer.address
        clients = c.connect(ping_interval_s=0.05)
        calls = [asyncio.create_task(clients.call("n2", query(), timeout_s=60)) for _ in range(3)]
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        assert all(isinstance(result, PeerUnreachable) and "said nothing" in str(result) for result in results)
        await clients.close()


@pytest.mark.parametrize("message", [b"\x91\xa1?", b"\x93\xa1f" + NO_UTF8 + b"\xa1d"])
async def test_an_answer_that_cannot_be_decoded_fails_alone(message):
    async def answer(raw: Raw) -> None:
        while True:
            kind, stream, _ = await raw.receive()
            if kind == Kind.REQUEST:
                raw.send(Kind.REPLY, stream, message)

    async with FakePeer(answer) as peer:
        c = Cluster()
        c.addresses["n2"] = peer.address
        clients = c.connect()
        for _ in range(2):
            with pytest.raises(WireError, match="decoded"):
                await clients.call("n2", query(), timeout_s=30)
        assert clients.reachable("n2")
        await clients.close()


async def test_a_connection_that_breaks_at_once_is_not_dialled_in_a_loop():
    made = []

    async def hang_up(raw: Raw) -> None:
        made.append(raw)
        raw.close()

    async with FakePeer(hang_up) as peer:
        c = Cluster()
        c.addresses["n2"] = peer.address
        clients = c.connect()
        clients.reachable("n2")
        await until(lambda: len(made) >= 4)
        took_s = asyncio.get_running_loop().time()
        await until(lambda: len(made) >= 6)
        assert asyncio.get_running_loop().time() - took_s > 0.3
        await clients.close()


_CHILD = """
import asyncio, sys
from tests.unit.node.transport.transport_kit import Handler, identity
from node.transport import PeerServer
async def main():
    server = PeerServer("127.0.0.1", int(sys.argv[1]), Handler(), identity("n2"), ping_interval_s=0.1)
    print(await server.start(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_real_process_that_stops_goes_on_and_dies():
    def spawn(port: int = 0) -> "tuple[subprocess.Popen[str], int]":
        args = [sys.executable, "-c", _CHILD, str(port)]
        child = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
        assert child.stdout is not None
        return child, int(child.stdout.readline())

    child, port = spawn()
    c = Cluster()
    c.addresses["n2"] = ("127.0.0.1", port)
    clients = c.connect(ping_interval_s=0.1)

    async def answered(path: str) -> str:
        """It answers, though either process may now and then be silent for as long as a connection bears."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(PeerUnreachable):
                    return incarnation(await clients.call("n2", query(path), timeout_s=30))
                await asyncio.sleep(0.01)

    try:
        assert await answered("a") == "a"
        await until(lambda: clients.reachable("n2"))
        child.send_signal(signal.SIGSTOP)
        await until(lambda: not clients.reachable("n2"))
        with pytest.raises(PeerUnreachable, match=r"no connection|no handshake"):
            await clients.call("n2", query(), timeout_s=0.1)
        child.send_signal(signal.SIGCONT)
        await until(lambda: clients.reachable("n2"))
        assert await answered("b") == "b"
        child.kill()
        child.wait()
        await until(lambda: not clients.reachable("n2"))
        child, _ = spawn(port)
        await until(lambda: clients.reachable("n2"))
        assert await answered("back") == "back"
    finally:
        child.kill()
        child.wait()
        await clients.close()
