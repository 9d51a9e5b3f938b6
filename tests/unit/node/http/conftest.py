"""A real server on a real socket over a service in memory, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import uvloop
from yarl import URL

from amberblob.metrics import Metrics
from node.http import App, HttpServer, Timeouts, build_app
from tests.unit.node.http.fake_service import FakeService, FakeStatus


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """What hangs on how a loop sends is tried on both; the product runs on uvloop."""
    factories: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem == "test_large_bodies":
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@dataclass
class RawAnswer:
    """An answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document, checked for what each of them must have."""
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.headers, self.body)
        document: dict[str, Any] = json.loads(self.body)
        assert {"type", "title", "status", "detail", "request_id"} <= set(document)
        assert document["status"] == self.status
        assert document["request_id"] == self.headers["x-amber-request-id"]
        assert document["detail"]
        return document


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> RawAnswer:
        """The next answer."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw.decode().split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        length = 0 if head or status in (100, 204, 304) else int(headers.get("content-length", 0))
        return RawAnswer(status, headers, await self.reader.readexactly(length))

    async def closed(self) -> bytes:
        """Everything until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


@dataclass
class World:
    """A server and what is behind it."""

    service: FakeService
    status: FakeStatus
    metrics: Metrics
    app: App
    server: HttpServer
    client: aiohttp.ClientSession
    _raws: list[Raw] = field(default_factory=list)

    def url(self, target: str) -> URL:
        host, port = self.server.address
        return URL(f"http://{host}:{port}{target}", encoded=True)

    def request(self, method: str, target: str, **kwargs: Any) -> Any:
        """A request by aiohttp's client, its target sent as it is."""
        return self.client.request(method, self.url(target), **kwargs)

    async def raw(self) -> Raw:
        """A new connection."""
        host, port = self.server.address
        raw = Raw(*await asyncio.open_connection(host, port))
        self._raws.append(raw)
        return raw

    async def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> RawAnswer:
        """One request on a connection of its own, byte for byte as given."""
        raw = await self.raw()
        lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await raw.send("\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body)
        answer = await raw.answer(head=method == "HEAD")
        raw.writer.close()
        return answer


_fast_lane = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever goes over a socket is tried on both lanes."""
    if inspect.iscoroutinefunction(metafunc.function) and not hasattr(metafunc.module, "CHOOSES_LANES"):
        metafunc.fixturenames.append("lane")
        metafunc.parametrize("lane", ["fast", "aiohttp"], indirect=True)


@pytest.fixture
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which lane servers have that are not told."""
    name: str = request.param
    monkeypatch.setattr(sys.modules[__name__], "_fast_lane", name == "fast")
    return name


@asynccontextmanager
async def serving(
    *, timeouts: Timeouts | None = None, fast_lane: bool | None = None, **options: Any
) -> AsyncIterator[World]:
    service, status, metrics = FakeService(), FakeStatus(), Metrics(process=False)
    options.setdefault("token", None)
    app = build_app(service, status, metrics=metrics, **options)
    fast_lane = _fast_lane if fast_lane is None else fast_lane
    server = HttpServer(app, host="127.0.0.1", port=0, timeouts=timeouts, fast_lane=fast_lane)
    await server.start()
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        world = World(service, status, metrics, app, server, client)
        try:
            yield world
        finally:
            for raw in world._raws:
                raw.writer.close()
            await server.close(0.2)


Serve = Callable[..., Awaitable[World]]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A server with the usual options."""
    async with serving() as made:
        yield made
