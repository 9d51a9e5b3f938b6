"""What the transport tests share: a handler that can be steered, and nodes on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from amberblob.clock import HybridClock, SystemClock
from amberblob.manifest import ChunkRef
from amberblob.tracing import request_id
from amberblob.wire import (
    WIRE_VERSIONS,
    Done,
    Failed,
    Query,
    ReadChunk,
    RegisterReply,
    Reply,
    Request,
    StageClose,
    StagedReply,
    StageOpen,
    WireVersions,
)
from node.transport import Identity, PeerClients, PeerServer
from node.transport.interface import IncomingStage, Respond

SECRET = b"s" * 32
WAIT_S = 60.0


def identity(
    node: str,
    *,
    cluster: str = "c1",
    secret: bytes = SECRET,
    ahead_ms: int = 0,
    versions: WireVersions = WIRE_VERSIONS,
) -> Identity:
    wall_ms = SystemClock().wall_ms
    clock = HybridClock(lambda: wall_ms() + ahead_ms)
    return Identity(cluster_id=cluster, node_id=node, secret=secret, clock=clock, versions=versions)


def query(path: str = "a") -> Query:
    return Query(slot=1, path=path, epoch=1)


def stage_open() -> StageOpen:
    return StageOpen(slot=1, epoch=1, blob_id="b", chunk_bytes=65536)


def stage_close(manifest_id: str | None = None) -> StageClose:
    return StageClose(chunks=(), manifest_id=manifest_id)


def read_chunk() -> ReadChunk:
    return ReadChunk(slot=1, blob_id="b", chunk=ChunkRef(id="x", len=1))


async def until(condition: Callable[[], Any], what: str = "") -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Handler:
    """Answers queries with their path as the incarnation; ``gate`` holds answers and consumers back."""

    data: bytes = b""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    hold: bool = False
    error: Exception | None = None
    early: Reply | None = None
    started: int = 0
    cancelled: int = 0
    contexts: list[dict[str, Any]] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    closings: list[tuple[StageClose, bytes | None]] = field(default_factory=list)
    stage_errors: list[Exception] = field(default_factory=list)

    async def _hold(self) -> None:
        self.started += 1
        self.contexts.append({"request_id": request_id(), **structlog.contextvars.get_contextvars()})
        try:
            if self.hold:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def answer(self, peer: str, request: Request, respond: Respond) -> bool:
        return False

    async def handle(self, peer: str, request: Request) -> Reply:
        await self._hold()
        if isinstance(request, Query):
            return RegisterReply(incarnation=request.path, accepted=None, record=None, chosen=False)
        return Done()

    async def handle_stage(self, peer: str, message: StageOpen, stream: IncomingStage) -> Reply:
        self.streams.append(stream)
        await self._hold()
        if self.early is not None:
            return self.early
        try:
            async for data in stream.frames():
                self.received += data
        except Exception as error:
            self.stage_errors.append(error)
            raise
        self.closings.append(stream.closing())
        return StagedReply(incarnation="i")

    async def handle_read(self, peer: str, request: Request) -> bytes:
        await self._hold()
        return self.data


class Cluster:
    """Node n1 calls node n2; both can be changed before they start."""

    def __init__(self) -> None:
        self.handler = Handler()
        self.own_handler = Handler()
        self.addresses: dict[str, tuple[str, int]] = {}
        self.server: PeerServer
        self.clients: PeerClients

    async def serve(self, who: Identity | None = None, *, port: int = 0, **options: Any) -> PeerServer:
        self.server = PeerServer("127.0.0.1", port, self.handler, who or identity("n2"), **options)
        self.addresses["n2"] = ("127.0.0.1", await self.server.start())
        return self.server

    def connect(self, who: Identity | None = None, **options: Any) -> PeerClients:
        self.clients = PeerClients(who or identity("n1"), self.addresses.get, self.own_handler, **options)
        return self.clients


@asynccontextmanager
async def cluster(
    server: Identity | None = None, client: Identity | None = None, **options: Any
) -> AsyncIterator[Cluster]:
    made = Cluster()
    await made.serve(server, **options)
    made.connect(client)
    try:
        yield made
    finally:
        made.handler.gate.set()
        await made.clients.close()
        await made.server.close(grace_s=1)


def incarnation(reply: Reply) -> str:
    assert isinstance(reply, RegisterReply), reply
    return reply.incarnation


def failed_code(reply: Reply) -> str:
    assert isinstance(reply, Failed), reply
    return reply.code
