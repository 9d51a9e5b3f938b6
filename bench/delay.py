"""A network with one far node: a TCP proxy before each node's peer port that delays what goes to and from that node.

The registry knows one address per node, so all callers of a node meet in its proxy. Two connections lie between two
nodes, one dialled by each, so the proxy reads the first frame of a connection, the caller's ``Hello``, to know whether
the far node is at either end. Bytes are delayed, not slowed: as many may be under way as on a long line.

``python -m bench.delay`` reads pairs of ports (``PROXY=PEER``, one line) from its standard input, says ``up``, and then
reads lines ``NODE SECONDS``: the far node and its delay from now on.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import uvloop

from bench.environment import ENVIRONMENT, HOST, end_with_parent
from node.transport.frames import HEADER, HEADER_BYTES, Kind
from node.transport.handshake import HANDSHAKE_BYTES_MAX, Hello

_PIECE_BYTES = 256 * 1024
_PIECES_MAX = 256
_HELLO_TIMEOUT_S = 10.0


class DelayLine:
    """The handle of the process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def set(self, node: str, delay_s: float) -> None:
        """From now on what goes to and from the node is late by this."""
        assert self._process.stdin is not None, "it was opened with a pipe"
        self._process.stdin.write(f"{node} {delay_s}\n".encode())
        self._process.stdin.flush()


@contextmanager
def delay_line(peer_ports: Mapping[int, tuple[str, int]]) -> Iterator[DelayLine]:
    """Run the proxies: by the port of each, the node behind it and the port where that listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.delay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while it starts
    )
    assert process.stdin is not None and process.stdout is not None, "they were opened with pipes"
    try:
        process.stdin.write(msgspec.json.encode(dict(peer_ports)) + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"up\n":
            raise RuntimeError("the delaying proxies did not start")
        yield DelayLine(process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class _Proxies:
    def __init__(self) -> None:
        self.far = ""
        self.delay_s = 0.0
        self._pumps: set[asyncio.Task[None]] = set()

    async def accepted(self, node: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                head = await reader.readexactly(HEADER_BYTES)
                size, kind, _ = HEADER.unpack(head)
                if kind != Kind.HELLO or size > HANDSHAKE_BYTES_MAX:
                    raise ValueError("a node greets first")
                payload = await reader.readexactly(size)
                caller = msgspec.msgpack.decode(payload, type=Hello).node_id
                far_reader, far_writer = await asyncio.open_connection(HOST, port, limit=_PIECE_BYTES)
        except (OSError, EOFError, ValueError):
            writer.transport.abort()
            return
        ends = frozenset((caller, node))
        tasks = [
            asyncio.create_task(self._pass(ends, reader, far_writer, head + payload)),
            asyncio.create_task(self._pass(ends, far_reader, writer, b"")),
        ]
        self._pumps.update(tasks)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
            self._pumps.discard(task)
        writer.transport.abort()
        far_writer.transport.abort()

    async def _pass(
        self, ends: frozenset[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes
    ) -> None:
        """One direction: what is read goes into a queue with the moment at which it is to arrive."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_MAX)

        under_way = 0  # in the queue or just taken from it: nothing may overtake these

        async def arrive() -> None:
            nonlocal under_way
            while True:
                due, data = await queue.get()
                if (early_s := due - loop.time()) > 0:
                    await asyncio.sleep(early_s)
                writer.write(data)
                under_way -= 1
                await writer.drain()

        arriving = asyncio.create_task(arrive())
        try:
            data = first or await reader.read(_PIECE_BYTES)
            while data and not arriving.done():
                late_s = self.delay_s if self.far in ends else 0.0
                if late_s or under_way:
                    under_way += 1
                    await queue.put((loop.time() + late_s, data))
                else:
                    writer.write(data)
                    await writer.drain()
                data = await reader.read(_PIECE_BYTES)
        except OSError:
            return
        finally:
            arriving.cancel()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    line = await loop.run_in_executor(None, sys.stdin.readline)
    proxies = _Proxies()
    servers = []
    for own, (node, port) in msgspec.json.decode(line, type=dict[int, tuple[str, int]]).items():

        async def accepted(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: str = node, port: int = port
        ) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await proxies.accepted(node, port, reader, writer)

        servers.append(await asyncio.start_server(accepted, HOST, own, limit=_PIECE_BYTES))
    print("up", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        far, delay_s = line.split()
        proxies.far, proxies.delay_s = far, float(delay_s)


if __name__ == "__main__":
    uvloop.run(_main())
