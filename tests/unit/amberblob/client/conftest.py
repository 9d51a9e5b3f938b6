"""A small real server that speaks the public interface, and can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from blake3 import blake3

from amberblob.client import AsyncClient, RetryPolicy, Timeouts
from amberblob.paths import decode_path

Misbehaviour = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]


@dataclass
class Stored:
    version: int
    data: bytes
    content_type: str
    meta: dict[str, str]

    @property
    def etag(self) -> str:
        return blake3(self.data).hexdigest()

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.etag}"',
            "X-Amber-Version": str(self.version),
            "X-Amber-Blob-Id": f"{self.version:026d}",
            "Last-Modified": "Sat, 31 Jan 2026 12:00:00 GMT",
            **{f"X-Amber-Meta-{name}": value for name, value in self.meta.items()},
        }

    def json(self, path: str) -> dict:
        return {
            "path": path,
            "version": self.version,
            "blob_id": f"{self.version:026d}",
            "size": len(self.data),
            "etag": self.etag,
            "created_at": "2026-01-31T12:00:00.123Z",
        }


@dataclass
class FakeStore:
    """What all nodes share."""

    objects: dict[str, list[Stored]] = field(default_factory=dict)
    writes: dict[tuple[str, str], Stored] = field(default_factory=dict)


@dataclass
class FakeNode:
    """One node: remembers the requests, and does first what it is told to do wrong."""

    store: FakeStore
    misbehave: list[Misbehaviour] = field(default_factory=list)
    always: Misbehaviour | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    discard_bodies: bool = False
    knows_expect: bool = True
    url: str = ""
    runner: web.ServerRunner | None = None

    async def start(self) -> None:
        server = web.Server(self.handle)
        self.runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = request.raw_path
        self.requests.append((request.method, raw, dict(request.headers)))
        wrong = self.misbehave.pop(0) if self.misbehave else self.always
        if wrong is not None:
            answer = await wrong(request)
            if answer is not None:
                return answer
        target, _, query = raw.partition("?")
        if not target.startswith("/objects/"):
            return web.json_response({"nodes": []})
        path = decode_path(target.removeprefix("/objects/"))
        parameters = dict(part.partition("=")[::2] for part in query.split("&") if part)
        if request.method == "PUT":
            return await self.put(request, path)
        return await self.get(request, path, parameters)

    async def put(self, request, path):
        if "Expect" in request.headers and self.knows_expect:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        hasher, data, size = blake3(), bytearray(), 0
        async for piece in request.content.iter_any():
            size += len(piece)
            if self.discard_bodies:
                hasher.update(piece)
            else:
                data += piece
        if self.discard_bodies:
            return web.json_response(
                {"version": 1, "size": size, "etag": hasher.hexdigest(), "blob_id": "x", "path": path}, status=201
            )
        key = (path, request.headers["X-Amber-Write-Id"])
        if key not in self.store.writes:
            history = self.store.objects.setdefault(path, [])
            meta = {n.lower()[13:]: v for n, v in request.headers.items() if n.lower().startswith("x-amber-meta-")}
            stored = Stored(len(history) + 1, bytes(data), request.headers["Content-Type"], meta)
            history.append(stored)
            self.store.writes[key] = stored
        stored = self.store.writes[key]
        return web.json_response(stored.json(path), status=201, headers=stored.headers)

    async def get(self, request, path, parameters):
        history = self.store.objects.get(path, [])
        if not history:
            return problem(404, "no-such-object", "There is no such object.")
        stored = history[int(parameters["version"]) - 1] if "version" in parameters else history[-1]
        start, end, status = 0, len(stored.data), 200
        headers = {**stored.headers, "Content-Type": stored.content_type}
        if "Range" in request.headers:
            span = request.http_range
            start, end, _ = slice(span.start, span.stop).indices(len(stored.data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(stored.data)}"
            status = 206
        return web.Response(status=status, body=stored.data[start:end], headers=headers)


async def drain(request) -> None:
    async for _ in request.content.iter_any():
        pass


async def say_go_on(request) -> None:
    if "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **extra) -> web.Response:
    return web.json_response(
        {"type": code, "title": "T", "status": status, "detail": detail, "request_id": "r-1", **extra},
        status=status,
        headers={"X-Amber-Error": code, **(headers or {})},
        content_type="application/problem+json",
    )


@pytest.fixture
def make_problem():
    return problem


@pytest.fixture
def refuse():
    """A misbehaviour that answers with a problem after it has read the body."""

    def build(status: int, code: str, **options) -> Misbehaviour:
        async def wrong(request):
            await drain(request)
            return problem(status, code, "It is so.", **options)

        return wrong

    return build


@pytest.fixture
def break_off():
    """A misbehaviour that reads the request, lets the store do it if told so, and closes the connection."""

    def build(*, applied_by: FakeNode | None = None) -> Misbehaviour:
        async def wrong(request):
            await say_go_on(request)
            if applied_by is not None:
                await applied_by.put(request, decode_path(request.raw_path.removeprefix("/objects/")))
            else:
                await drain(request)
            request.transport.abort()
            return web.Response()

        return wrong

    return build


@pytest.fixture
def cut_after():
    """A misbehaviour that sends the right head, some bytes of the body, and closes the connection."""

    def build(node: FakeNode, count: int) -> Misbehaviour:
        async def wrong(request):
            path = decode_path(request.raw_path.partition("?")[0].removeprefix("/objects/"))
            stored = node.store.objects[path][-1]
            start = 0
            headers = {**stored.headers, "Content-Type": stored.content_type}
            response = web.StreamResponse(headers=headers)
            if "Range" in request.headers:
                start = request.http_range.start
                response.set_status(206)
                size = len(stored.data)
                response.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            response.content_length = len(stored.data) - start
            await response.prepare(request)
            await response.write(stored.data[start : start + count])
            await asyncio.sleep(0.05)
            request.transport.close()
            return response

        return wrong

    return build


@pytest.fixture
async def nodes() -> AsyncIterator[list[FakeNode]]:
    """Three nodes of one store."""
    store = FakeStore()
    members = [FakeNode(store) for _ in range(3)]
    for node in members:
        await node.start()
    yield members
    for node in members:
        await node.stop()


@pytest.fixture
async def client(nodes: list[FakeNode]) -> AsyncIterator[AsyncClient]:
    """A client that knows all three, rests little, and is not misled by a machine that is busy."""
    async with AsyncClient(
        [node.url for node in nodes],
        retry=RetryPolicy(attempts_max=6, deadline_s=60, pause_s=0.01, pause_max_s=0.05),
        timeouts=Timeouts(connect_s=30, idle_s=30, answer_s=30, answer_large_s=30, expect_s=30),
    ) as opened:
        yield opened
