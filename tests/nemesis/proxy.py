"""The network between the nodes: a TCP proxy before each node's peer port, and rules for each direction.

The registry knows one address per node, so all callers of a node meet in its proxy. The proxy reads the first frame of
a connection, the caller's ``Hello``, to know who calls (``node.transport.handshake``); from then on bytes of both ways
are passed on by the rule for (from, to). Two connections lie between two nodes, one dialled by each: a rule for one
direction holds on both, as for packets.

``drop`` throws bytes away, and breaks what it damaged once it is over; ``hold`` keeps them back, and lets them go
again, as TCP does after a short partition; ``slow`` delays them. A closed end is not told through a cut: whoever dies
behind it falls silent. ``refuse`` breaks the connections and every new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from node.transport.frames import HEADER, HEADER_BYTES, Kind
from node.transport.handshake import HANDSHAKE_BYTES_MAX, Hello
from tests.cluster.harness import HOST

Mode = Literal["refuse", "drop", "hold", "slow"]
Way = tuple[str, str]
"""(from, to): node ids."""

PIECE_BYTES = 64 * 1024
STRENGTH: dict[Mode, int] = {"slow": 1, "hold": 2, "drop": 3, "refuse": 4}


@dataclass(frozen=True, eq=False)
class Rule:
    """What happens to bytes on these ways."""

    mode: Mode
    ways: frozenset[Way]
    delay_s: float = 0.0


@dataclass(eq=False)
class Pipe:
    """One connection through a proxy."""

    caller: str
    target: str
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    damaged: bool = False

    def reset(self) -> None:
        for writer in (self.near, self.far):
            _linger_not(writer)
            writer.transport.abort()


@dataclass
class Network:
    """The proxies of one cluster. :attr:`counts` tells by (what, from, to) how many bytes or connections."""

    peer_ports: dict[str, int]
    """By node: where it listens."""
    ports: dict[str, int] = field(default_factory=dict)
    """By node: where its proxy listens; filled by :meth:`open`, or kept if given."""
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rules: list[Rule] = []
        self._pipes: set[Pipe] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def open(self) -> None:
        for node in self.peer_ports:

            async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str = node) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._accepted(target, reader, writer)
                writer.transport.abort()

            server = await asyncio.start_server(accepted, HOST, self.ports.get(node, 0), limit=PIECE_BYTES)
            self._servers.append(server)
            self.ports[node] = server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    # -- rules

    def add(self, mode: Mode, ways: Iterable[Way], *, delay_s: float = 0.0) -> Rule:
        """Let a rule hold until :meth:`remove`."""
        rule = Rule(mode, frozenset(ways), delay_s)
        self._rules.append(rule)
        if mode == "refuse":
            self.reset(rule.ways)
        self._change()
        return rule

    def remove(self, rule: Rule) -> None:
        self._rules.remove(rule)
        for pipe in list(self._pipes):
            if pipe.damaged and not any(self._mode(way) == "drop" for way in _ways(pipe)):
                pipe.reset()
        self._change()

    def reset(self, ways: Iterable[Way]) -> None:
        """Break every connection that carries one of these ways."""
        ways = frozenset(ways)
        for pipe in list(self._pipes):
            if ways & _ways(pipe):
                self.counts["reset", pipe.caller, pipe.target] += 1
                pipe.reset()

    def count(self, what: str, ways: Iterable[Way]) -> int:
        return sum(self.counts[what, source, target] for source, target in ways)

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _rule(self, way: Way) -> Rule | None:
        rules = [rule for rule in self._rules if way in rule.ways]
        return max(rules, key=lambda rule: STRENGTH[rule.mode], default=None)

    def _mode(self, way: Way) -> str:
        rule = self._rule(way)
        return rule.mode if rule else "pass"

    # -- connections

    async def _accepted(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(10):
            head = await reader.readexactly(HEADER_BYTES)
            size, kind, _ = HEADER.unpack(head)
            assert kind == Kind.HELLO and size <= HANDSHAKE_BYTES_MAX, "a node greets first"
            payload = await reader.readexactly(size)
        caller = msgspec.msgpack.decode(payload, type=Hello).node_id
        if any(self._mode(way) == "refuse" for way in ((caller, target), (target, caller))):
            self.counts["refused", caller, target] += 1
            _linger_not(writer)
            return
        far_reader, far_writer = await asyncio.open_connection(HOST, self.peer_ports[target], limit=PIECE_BYTES)
        pipe = Pipe(caller, target, writer, far_writer)
        self._pipes.add(pipe)
        try:
            there = asyncio.create_task(self._pump(pipe, (caller, target), reader, far_writer, head + payload))
            back = asyncio.create_task(self._pump(pipe, (target, caller), far_reader, writer, b""))
            try:
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (there, back):
                    task.cancel()
                await asyncio.wait((there, back))
        finally:
            self._pipes.discard(pipe)
            pipe.reset()

    async def _pump(
        self, pipe: Pipe, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                if not data:
                    data = await reader.read(PIECE_BYTES)
                if not data:
                    break
                rule = self._rule(way)
                if rule is not None and rule.mode == "hold":
                    self.counts["held", *way] += len(data)
                    while self._mode(way) == "hold":
                        await self._changed.wait()
                    rule = self._rule(way)
                if rule is not None and rule.mode == "drop":
                    self.counts["dropped", *way] += len(data)
                    pipe.damaged = True
                    data = b""
                    continue
                if rule is not None and rule.mode == "slow":
                    self.counts["delayed", *way] += len(data)
                    await asyncio.sleep(rule.delay_s)
                writer.write(data)
                self.counts["passed", *way] += len(data)
                data = b""
                await writer.drain()
        while self._mode(way) in ("hold", "drop"):
            await self._changed.wait()


def _ways(pipe: Pipe) -> frozenset[Way]:
    return frozenset(((pipe.caller, pipe.target), (pipe.target, pipe.caller)))


def _linger_not(writer: asyncio.StreamWriter) -> None:
    """Let the close that comes be a reset."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
