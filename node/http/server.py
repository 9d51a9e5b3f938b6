"""Listening, and closing gracefully."""

from __future__ import annotations

import asyncio

import structlog

from amberblob.openfiles import DATABASES_MAX
from node.http.app import App
from node.http.connection import Connection, ConnectionServer, Timeouts
from node.http.fast_lane import FastConnection

__all__ = ["HttpServer", "Timeouts"]

BACKLOG = 1024
FLUSH_S_MIN = 1.0
"""Answers that are complete get at least so long to leave the process."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("amberblob.http")


class HttpServer:
    """The public port of one process.

    Args:
        app: what answers.
        host: the address to listen on.
        port: 0 lets the system choose; see :attr:`address`.
        reuse_port: let other processes listen on the same port (SO_REUSEPORT), the kernel spreading connections.
        timeouts: how long clients may let the server wait.
        fast_lane: answer small requests without aiohttp (rfc/0008).
        databases: so many the store would have open; connections leave it the files for them.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str,
        port: int,
        reuse_port: bool = False,
        timeouts: Timeouts | None = None,
        fast_lane: bool = True,
        databases: int = DATABASES_MAX,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._reuse_port = reuse_port
        self._timeouts = timeouts or Timeouts()
        self._connection: type[Connection] = FastConnection if fast_lane else Connection
        self._databases = databases
        self._connections: ConnectionServer | None = None
        self._listener: asyncio.Server | None = None
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens. Only after :meth:`start`."""
        assert self._address is not None, "not started"
        return self._address

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.
        """
        assert self._connections is None, "started twice"
        self._connections = ConnectionServer(self._app, self._timeouts, self._connection, self._databases)
        self._listener = await asyncio.get_running_loop().create_server(
            self._connections.accept, self._host, self._port, backlog=BACKLOG, reuse_port=self._reuse_port or None
        )
        self._address = self._listener.sockets[0].getsockname()[:2]

    def begin_shutdown(self) -> None:
        """``/readyz`` turns 503 shutting-down; everything else goes on. For a pause before :meth:`close`, in which
        whoever balances load can notice."""
        self._app.begin_shutdown()

    async def close(self, grace_s: float) -> None:
        """Stop accepting, let requests under way finish, close every connection.

        A connection that is kept alive may bring one more request until the last one under way is done; its
        answer closes it. What is not done after ``grace_s`` seconds is cancelled, and its client sees the
        connection break.
        """
        self._app.begin_shutdown()
        if self._connections is None:
            return
        loop = asyncio.get_running_loop()
        end_s = loop.time() + grace_s
        if self._listener is not None:
            self._listener.close()
        try:
            async with asyncio.timeout_at(end_s):
                await self._connections.hurry()
                await self._app.drained()
        except TimeoutError:
            _log.warning("shutdown_cuts_off_requests", in_flight=self._app.in_flight, grace_s=grace_s)
        await self._connections.close(max(FLUSH_S_MIN, end_s - loop.time()))
        self._connections = None
        self._app.close()
