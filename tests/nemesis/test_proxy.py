"""The proxies between the nodes: they know who calls, and do to bytes what the rules say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from amberblob.wire import WIRE_VERSIONS
from node.transport import frames
from node.transport.handshake import Hello
from tests.cluster.harness import DEADLINE_S, HOST, until
from tests.nemesis.proxy import Network

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def greeting(caller: str) -> bytes:
    hello = Hello(
        wire_version=WIRE_VERSIONS.oldest,
        cluster_id="c",
        node_id=caller,
        expects="b",
        lane="control",
        nonce=b"n" * 32,
        now_ms=1,
    )
    payload = msgspec.msgpack.encode(hello)
    return frames.header(frames.Kind.HELLO, 0, len(payload)) + payload


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """Node b answers everything with the same."""
    writers: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1000):
                writer.write(data)

    server = await asyncio.start_server(echo, HOST, 0)
    network = Network({"b": server.sockets[0].getsockname()[1]})
    await network.open()
    yield network
    await network.close()
    for writer in writers:
        writer.transport.abort()
    server.close()


async def call(network: Network, caller: str, *, greeted: bool = True) -> Connection:
    reader, writer = await asyncio.open_connection(HOST, network.ports["b"])
    writer.write(greeting(caller))
    if greeted:
        assert await asyncio.wait_for(reader.readexactly(len(greeting(caller))), DEADLINE_S) == greeting(caller)
    return reader, writer


async def says(connection: Connection, data: bytes) -> Any:
    connection[1].write(data)
    return await asyncio.wait_for(connection[0].readexactly(len(data)), DEADLINE_S)


async def silent(connection: Connection) -> bool:
    try:
        await asyncio.wait_for(connection[0].read(1), 0.2)
    except TimeoutError:
        return True
    return False


async def ended(connection: Connection) -> bool:
    try:
        return await asyncio.wait_for(connection[0].read(1), DEADLINE_S) == b""
    except ConnectionError:
        return True


async def test_passes_and_counts(network: Network) -> None:
    connection = await call(network, "a")
    assert await says(connection, b"hello") == b"hello"
    assert network.counts["passed", "a", "b"] == len(greeting("a")) + 5 == network.counts["passed", "b", "a"]


async def test_drops_one_way_of_one_caller(network: Network) -> None:
    one, other = await call(network, "a"), await call(network, "c")
    rule = network.add("drop", [("b", "a")])
    one[1].write(b"lost")
    assert await silent(one)
    assert await says(other, b"heard") == b"heard"
    await until(lambda: network.count("dropped", [("b", "a")]) == 4, "it is counted")
    assert network.count("dropped", [("a", "b")]) == 0
    network.remove(rule)
    assert await ended(one), "what lost bytes is not used again"
    assert await says(await call(network, "a"), b"again") == b"again"


async def test_holds_and_lets_go(network: Network) -> None:
    connection = await call(network, "a")
    rule = network.add("hold", [("a", "b")])
    connection[1].write(b"late")
    assert await silent(connection)
    await until(lambda: network.count("held", [("a", "b")]) == 4, "it is counted")
    network.remove(rule)
    assert await asyncio.wait_for(connection[0].readexactly(4), DEADLINE_S) == b"late"


async def test_hides_an_end_behind_a_cut(network: Network) -> None:
    connection = await call(network, "a")
    rule = network.add("drop", [("a", "b"), ("b", "a")])
    fresh = await call(network, "a", greeted=False)
    assert await silent(fresh), "nobody is told that there is a cut"
    fresh[1].write_eof()
    assert await silent(connection)
    network.remove(rule)
    assert await ended(fresh)


async def test_refuses_and_resets(network: Network) -> None:
    one, other = await call(network, "a"), await call(network, "c")
    rule = network.add("refuse", [("a", "b")])
    assert await ended(one)
    assert await ended(await call(network, "a", greeted=False))
    await until(lambda: network.counts["refused", "a", "b"] == 1, "it is counted")
    assert await says(other, b"heard") == b"heard"
    network.remove(rule)
    network.reset([("b", "c")])
    assert await ended(other)
    assert network.counts["reset", "c", "b"] == 1


async def test_slows(network: Network) -> None:
    connection = await call(network, "a")
    rule = network.add("slow", [("a", "b")], delay_s=0.3)
    connection[1].write(b"slow")
    assert await silent(connection)
    assert await asyncio.wait_for(connection[0].readexactly(4), DEADLINE_S) == b"slow"
    network.remove(rule)
    await until(lambda: network.count("delayed", [("a", "b")]) == 4, "it is counted")
