"""A door before a server of somebody else's: as long as it is shut, nobody listens there and every connection is broken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tests.cluster.harness import HOST, free_ports


class Gate:
    """Passes TCP connections on to ``upstream`` (a URL). Open when it is made by :func:`gate`."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._server: asyncio.Server | None = None
        # Not one of those that the system gives to outgoing connections, while nobody listens there.
        (self._port,) = free_ports(1)
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    async def open(self) -> None:
        """Listen; always on the same port."""
        self._server = await asyncio.start_server(self._pass, HOST, self._port)

    async def shut(self) -> None:
        """Connections are refused from now on, and those that there are break."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upwards: asyncio.StreamWriter | None = None
        try:
            from_upstream, upwards = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
            self._writers.add(upwards)
            await asyncio.gather(_pump(reader, upwards), _pump(from_upstream, writer))
        except OSError:
            pass
        finally:
            for each in (writer, upwards):
                if each is not None:
                    self._writers.discard(each)
                    each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


@contextlib.asynccontextmanager
async def gate(upstream: str) -> AsyncIterator[Gate]:
    """An open gate before that URL; shut at the end."""
    door = Gate(upstream)
    await door.open()
    try:
        yield door
    finally:
        await door.shut()
