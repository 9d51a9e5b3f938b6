"""The port that peers connect to."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars

from amberblob.clock import Randomness, SystemRandomness
from amberblob.errors import ConfigError, PeerUnreachable
from amberblob.limits import PEER_REQUESTS_MAX
from amberblob.openfiles import strangers_max
from node.transport.answerer import AnswererConnection
from node.transport.connection import PING_INTERVAL_S, Connection
from node.transport.handshake import NONCE_BYTES, Identity
from node.transport.interface import PeerHandler
from node.transport.refusals import RefusalLog

GRACE_S = 5.0
HANDSHAKES_MAX = 256
"""Connections that have not proved the secret yet; further ones are closed at once."""


class PeerServer:
    """Accepts connections of peers and has ``handler`` answer them.

    Args:
        host: the address to listen on.
        port: 0 takes a free one, see :attr:`port` after :meth:`start`.
        handler: must bear cancellation, see :mod:`node.transport.answerer`.
        identity: who we are.
        randomness: for nonces.
        requests_max: requests under way per connection; more get ``Failed`` "overloaded".
        ping_interval_s: how long a peer may be silent before it is asked; three times that, and it is lost.
    """

    def __init__(
        self,
        host: str,
        port: int,
        handler: PeerHandler,
        identity: Identity,
        *,
        randomness: Randomness | None = None,
        requests_max: int = PEER_REQUESTS_MAX,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        self._host = host
        self._port = port
        self._handler = handler
        self._identity = identity
        self._randomness = randomness or SystemRandomness()
        self._requests_max = requests_max
        self._ping_interval_s = ping_interval_s
        self._server: asyncio.Server | None = None
        self._connections: set[AnswererConnection] = set()
        self._refusals: RefusalLog | None = None
        self._context = contextvars.Context()

    @property
    def port(self) -> int:
        """The port that is listened on; valid after :meth:`start`."""
        return self._port

    def peers(self) -> list[str]:
        """Node ids with at least one established connection to here, sorted."""
        return sorted({connection.peer for connection in self._connections if connection.established})

    async def start(self) -> int:
        """Listen; returns the actual port.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        self._refusals = RefusalLog(loop.time)
        self._context = contextvars.copy_context()
        try:
            self._server = await loop.create_server(self._accept, self._host, self._port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen for peers on {self._host}:{self._port}: {error}. Is another process using it?"
            ) from None
        self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    async def close(self, *, grace_s: float = GRACE_S) -> None:
        """Accept nothing more, let requests under way finish for up to ``grace_s``, then close all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = list(self._connections)
        for connection in connections:
            connection.stop()
        tasks = [task for connection in connections for task in connection.tasks()]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(connection.answered() for connection in connections))
        for connection in connections:
            connection.close_soon(PeerUnreachable("the node is stopping"))
        left = [task for connection in connections for task in connection.tasks()]
        if left:
            await asyncio.wait(left, timeout=grace_s)

    def _accept(self) -> Connection:
        assert self._refusals is not None
        connection = AnswererConnection(
            self._identity,
            self._refusals,
            self._handler,
            nonce=self._randomness.token(NONCE_BYTES),
            context=self._context,
            requests_max=self._requests_max,
            ping_interval_s=self._ping_interval_s,
        )
        strangers = strangers_max()
        handshakes_max = HANDSHAKES_MAX if strangers is None else min(HANDSHAKES_MAX, strangers)
        if sum(not other.established for other in self._connections) >= handshakes_max:
            connection.close(PeerUnreachable("too many handshakes are under way"))
            return connection
        self._connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        return connection
