"""The delaying proxy passes every byte on, in order, also while the delay changes."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from bench.cluster import free_ports
from bench.delay import delay_line
from node.transport.frames import Kind, header
from node.transport.handshake import Hello

_DELAY_S = 0.1


def greeting(node: str) -> bytes:
    hello = Hello(
        wire_version=1, cluster_id="c", node_id=node, expects="node-1", lane="control", nonce=b"", now_ms=0
    )  # fmt: skip
    payload = msgspec.msgpack.encode(hello)
    return header(Kind.HELLO, 0, len(payload)) + payload


@pytest.mark.parametrize(("caller", "late"), [("node-2", False), ("node-3", True)])
async def test_what_goes_to_and_from_the_far_node_is_late_and_whole(caller, late):
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = free_ports(1)
    async with server:
        with delay_line({proxy: ("node-1", port)}) as line:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
            first = greeting(caller)
            writer.write(first)
            assert await reader.readexactly(len(first)) == first
            line.set("node-3", _DELAY_S)
            took_s = 0.0
            while took_s < 2 * _DELAY_S:  # until the proxy has heard of it, and for ever if it delays nothing
                began = time.monotonic()
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                took_s = time.monotonic() - began
                if not late:
                    break
            sent = b""
            for number in range(200):
                if number % 50 == 25:
                    line.set("node-3", 0.0 if number % 100 == 25 else _DELAY_S)
                piece = b"%06d" % number * 200
                sent += piece
                writer.write(piece)
                await asyncio.sleep(0.002)
            assert await reader.readexactly(len(sent)) == sent
            writer.close()
