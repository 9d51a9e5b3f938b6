"""A connection to one peer on one lane that comes back when it breaks."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import structlog

from amberblob.clock import Randomness
from amberblob.errors import PeerError, PeerUnreachable
from node.transport.answers import again
from node.transport.caller import CallerConnection
from node.transport.connection import PING_INTERVAL_S
from node.transport.handshake import NONCE_BYTES, Identity, Lane
from node.transport.refusals import RefusalLog

_log = structlog.get_logger(__name__)

Address = tuple[str, int]

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
FAIL_FAST_S = 0.1
"""So long after a failed attempt calls fail at once, instead of trying again."""

LIVED_S = 1.0
"""A connection that broke sooner than this counts as a failed attempt for the backoff."""

CONNECT_TIMEOUT_S = 5.0
ADDRESS_CHECK_S = 2.0


class Link:
    """Keeps one connection to ``node`` alive, from the first use until :meth:`close` or until it has no address.

    A call that finds no connection triggers an attempt at once (but not within 100 ms of a failed one) and
    shares its fate: a refused attempt fails the calls that wait for it, one that hangs keeps them waiting
    until their own timeout.

    Attributes:
        connection: ready for use, or None.
    """

    def __init__(
        self,
        identity: Identity,
        refusals: RefusalLog,
        randomness: Randomness,
        *,
        node: str,
        lane: Lane,
        address: Callable[[str], Address | None],
        context: contextvars.Context,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        self.connection: CallerConnection | None = None
        self._identity = identity
        self._refusals = refusals
        self._randomness = randomness
        self._node = node
        self._lane: Lane = lane
        self._address = address
        self._context = context
        self._ping_interval_s = ping_interval_s
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._attempt: asyncio.Future[PeerError | None] | None = None
        self._pending: CallerConnection | None = None
        self._wake = asyncio.Event()
        self._failed_at_s = float("-inf")
        self._failure: PeerError | None = None
        self._closed = False

    def start(self) -> None:
        """Connect in the background, unless that is under way."""
        if not self._closed and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._run(), context=self._context.copy())

    async def connected(self, *, timeout_s: float) -> CallerConnection:
        """The connection, once there is one.

        Raises:
            PeerUnreachable, PeerRefused: there is none; nothing was sent (``extra["sent"]`` is False).
        """
        deadline_s = self._loop.time() + timeout_s
        while self.connection is None:
            if self._closed:
                raise PeerUnreachable("the node is stopping", extra={"sent": False})
            if self._failure is not None and self._loop.time() - self._failed_at_s < FAIL_FAST_S:
                raise again(self._failure, sent=False)
            if self._attempt is None:
                self._attempt = self._loop.create_future()
            self.start()
            self._wake.set()
            try:
                async with asyncio.timeout_at(deadline_s):
                    failure = await asyncio.shield(self._attempt)
            except TimeoutError:
                why = f"no connection with {self._node} within {timeout_s:.3g} s"
                raise PeerUnreachable(why, extra={"sent": False}) from None
            if failure is not None:
                raise again(failure, sent=False)
        return self.connection

    async def close(self) -> None:
        """Break the connection and try no more."""
        self._closed = True
        error = PeerUnreachable("the node is stopping")
        for connection in (self.connection, self._pending):
            if connection is not None:
                connection.close(error)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._settle(error)

    async def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._closed:
            address = self._address(self._node)
            if address is None:
                self._fail(PeerUnreachable(f"no address is known for {self._node}"))
                return
            if self._attempt is None:
                self._attempt = self._loop.create_future()
            try:
                connection = await self._dial(address)
            except PeerError as error:
                self._fail(error)
            else:
                connected_at_s = self._loop.time()
                await self._use(connection, address)
                if self._loop.time() - connected_at_s >= LIVED_S:
                    backoff_s = BACKOFF_FIRST_S
            await self._rest(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _dial(self, address: Address) -> CallerConnection:
        """One attempt. Raises PeerError."""
        host, port = address
        connection = self._pending = CallerConnection(
            self._identity,
            self._refusals,
            expects=self._node,
            lane=self._lane,
            nonce=self._randomness.token(NONCE_BYTES),
            ping_interval_s=self._ping_interval_s,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._loop.create_connection(lambda: connection, host, port)
            failure = await connection.ready
        except (OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise PeerUnreachable(f"cannot connect to {self._node} at {host}:{port}: {why}") from None
        except asyncio.CancelledError:
            connection.close(PeerUnreachable("the node is stopping"))
            raise
        finally:
            self._pending = None
        if failure is not None:
            raise failure
        return connection

    async def _use(self, connection: CallerConnection, address: Address) -> None:
        """Until the connection breaks, or the node has another address."""
        if connection.established:
            self.connection = connection
            _log.info("peer connected", peer=self._node, lane=self._lane, wire_version=connection.wire_version)
            self._failure = None
            self._settle(None)
        while not connection.lost.done():
            await asyncio.wait([connection.lost], timeout=ADDRESS_CHECK_S)
            if not connection.lost.done() and self._address(self._node) != address:
                connection.close(PeerUnreachable(f"the address of {self._node} changed"))
        self.connection = None
        if self._attempt is not None:
            self._fail(connection.lost.result())

    async def _rest(self, backoff_s: float) -> None:
        """Wait a random part of ``backoff_s``; a call ends the wait, but not before the fail-fast time is over."""
        try:
            async with asyncio.timeout(backoff_s * (0.5 + 0.5 * self._randomness.fraction())):
                await self._wake.wait()
        except TimeoutError:
            return

    def _fail(self, error: PeerError) -> None:
        self._failure = error
        self._failed_at_s = self._loop.time()
        self._settle(error)

    def _settle(self, outcome: PeerError | None) -> None:
        attempt, self._attempt = self._attempt, None
        self._wake.clear()
        if attempt is not None and not attempt.done():
            attempt.set_result(outcome)
