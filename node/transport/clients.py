"""All peers by node id (:class:`~node.transport.interface.Peers`): two connections to each, none to oneself."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from amberblob import wire
from amberblob.clock import Randomness, SystemRandomness
from amberblob.errors import PeerError, PeerUnreachable
from amberblob.tracing import request_id
from amberblob.wire import BytesRequest, Reply, Request, StageOpen
from node.transport import frames
from node.transport.connection import PING_INTERVAL_S
from node.transport.handshake import Identity, Lane
from node.transport.interface import OutgoingStage, PeerHandler, Told
from node.transport.link import Address, Link
from node.transport.local import LocalPeer
from node.transport.refusals import RefusalLog


class PeerClients:
    """Calls, blobs and reads to any node. Make it inside of the running event loop.

    Messages go over the ``control`` connection of a peer, blobs and reads over ``bulk``, so that no message
    waits behind bodies. A connection is made at its first use and kept from then on.

    Args:
        identity: who we are.
        addresses: host and port of a node, None when there is none. Asked again at each attempt and every
            2 s; when it says something else, the connection is given up for one to the new address.
        handler: what answers calls to the own node id.
        randomness: for nonces and jitter.
        ping_interval_s: how long a peer may be silent before it is asked; three times that, and it is lost.
    """

    def __init__(
        self,
        identity: Identity,
        addresses: Callable[[str], Address | None],
        handler: PeerHandler,
        *,
        randomness: Randomness | None = None,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        self._identity = identity
        self._addresses = addresses
        self._randomness = randomness or SystemRandomness()
        self._ping_interval_s = ping_interval_s
        self._loop = asyncio.get_running_loop()
        self._refusals = RefusalLog(self._loop.time)
        self._context = contextvars.copy_context()
        self._local = LocalPeer(identity.node_id, handler, identity.clock)
        self._links: dict[tuple[str, Lane], Link] = {}
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._packed_of: Request | None = None
        self._packed = b""

    def ask(self, node: str, request: Request, told: Told, *, timeout_s: float) -> None:
        """One request, one answer, no task. See :meth:`node.transport.interface.Peers.ask`."""
        if node == self._identity.node_id:
            self._local.ask(request, told, timeout_s=timeout_s)
            return
        link = self._links.get((node, "control"))
        connection = link.connection if link is not None else None
        if connection is None:
            task = self._loop.create_task(self._ask_once_connected(node, request, told, timeout_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if request is not self._packed_of:
            # The same message goes to each replica: it is encoded once.
            self._packed_of, self._packed = request, frames.pack_request(request_id(), wire.encode(request))
        connection.ask(self._packed, type(request).__name__, told, timeout_s=timeout_s)

    async def _ask_once_connected(self, node: str, request: Request, told: Told, timeout_s: float) -> None:
        try:
            reply = await self.call(node, request, timeout_s=timeout_s)
        except PeerError as error:
            told(error)
        else:
            told(reply)

    async def call(self, node: str, request: Request, *, timeout_s: float) -> Reply:
        """One request, one answer. See :meth:`node.transport.interface.Peers.call`."""
        assert not isinstance(request, StageOpen | BytesRequest), "stage() and fetch() are for these"
        if node == self._identity.node_id:
            return await self._local.call(request, timeout_s=timeout_s)
        link = self._links.get((node, "control")) or self._link(node, "control")
        connection = link.connection
        if connection is None:
            deadline_s = self._loop.time() + timeout_s
            connection = await link.connected(timeout_s=timeout_s)
            timeout_s = max(0.0, deadline_s - self._loop.time())
        return await connection.call(request, request_id=request_id(), timeout_s=timeout_s)

    async def stage(self, node: str, message: StageOpen, *, timeout_s: float) -> OutgoingStage:
        """Open a stream for a blob; does not wait for the peer.

        ``timeout_s`` bounds the wait for a connection here, and each later wait for the peer to take bytes.
        """
        if node == self._identity.node_id:
            return self._local.stage(message, stall_s=timeout_s)
        connection = await self._link(node, "bulk").connected(timeout_s=timeout_s)
        return connection.stage(message, request_id=request_id(), stall_s=timeout_s)

    async def fetch(self, node: str, request: Request, *, timeout_s: float) -> AsyncIterator[bytes]:
        """The bytes of chunks or a manifest file. Close the iterator when you leave it early."""
        assert isinstance(request, BytesRequest)
        if node == self._identity.node_id:
            frames = self._local.fetch(request, timeout_s=timeout_s)
        else:
            connection = await self._link(node, "bulk").connected(timeout_s=timeout_s)
            frames = connection.fetch(request, request_id=request_id(), timeout_s=timeout_s)
        async with aclosing(frames):
            async for data in frames:
                yield data

    def reachable(self, node: str) -> bool:
        """Whether the control connection stands. The first question about a node starts to connect to it."""
        if node == self._identity.node_id:
            return True
        if self._closed:
            return False
        link = self._link(node, "control")
        if link.connection is None:
            link.start()
            return False
        return True

    async def close(self) -> None:
        """Break all connections; calls under way get PeerUnreachable."""
        self._closed = True
        await asyncio.gather(*(link.close() for link in self._links.values()))
        await self._local.close(grace_s=1.0)

    def _link(self, node: str, lane: Lane) -> Link:
        if self._closed:
            raise PeerUnreachable("the node is stopping", extra={"sent": False})
        link = self._links.get((node, lane))
        if link is None:
            link = self._links[node, lane] = Link(
                self._identity,
                self._refusals,
                self._randomness,
                node=node,
                lane=lane,
                address=self._addresses,
                context=self._context,
                ping_interval_s=self._ping_interval_s,
            )
        return link
