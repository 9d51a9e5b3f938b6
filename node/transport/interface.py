"""How nodes talk: the caller's side (:class:`Peers`) and the answerer's (:class:`PeerHandler`).

Both sides know messages (``amberblob.wire``) and byte streams, never sockets. A simulation implements the
same two roles without any.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from amberblob.errors import PeerError
from amberblob.wire import Reply, Request, StageClose, StageOpen

Buffer = bytes | bytearray | memoryview

Told = Callable[[Reply | PeerError], None]
"""Takes the answer to a request, or why there is none. Called once, on the loop; must not raise."""

Respond = Callable[[Reply], None]
"""Takes an answer to send. Called once, on the loop."""


class OutgoingStage(Protocol):
    """A blob on its way to one peer."""

    async def write(self, data: Buffer) -> None:
        """Send bytes; waits while the peer's window is full. ``data`` must not change afterwards.

        Raises:
            PeerError: the stream is broken, or the peer refused it.
        """
        ...

    async def close(self, message: StageClose, manifest: bytes | None, *, timeout_s: float) -> Reply:
        """Tell the chunks and wait for StagedReply or Refused. Raises PeerError."""
        ...

    async def abort(self) -> None:
        """Give the blob up; the peer removes what it has. Never raises, may be called twice."""
        ...


class Peers(Protocol):
    """The other nodes, by node id. The own id works too and goes through no socket."""

    def ask(self, node: str, request: Request, told: Told, *, timeout_s: float) -> None:
        """One request, one answer, and no task for it: what many small requests are made with.

        ``told`` is called later, never before this returns: with the answer (``Failed`` is one), or with PeerUnreachable,
        PeerTimeout, PeerRefused or WireError.
        """
        ...

    async def call(self, node: str, request: Request, *, timeout_s: float) -> Reply:
        """One request, one answer. The current request id (log context) travels along.

        Raises:
            PeerUnreachable, PeerTimeout, PeerRefused, WireError: and the answer ``Failed`` is returned as it is.
        """
        ...

    async def stage(self, node: str, message: StageOpen, *, timeout_s: float) -> OutgoingStage:
        """Open a stream for a blob. Raises PeerError."""
        ...

    def fetch(self, node: str, request: Request, *, timeout_s: float) -> AsyncIterator[bytes]:
        """The data frames that follow the ``Done`` answer to a :data:`amberblob.wire.BytesRequest`.

        ``timeout_s`` bounds the wait for each frame. Raises PeerError; a ``Failed`` answer becomes
        ChunkMissing, ChunkCorrupt or PeerError by its code.
        """
        ...

    def reachable(self, node: str) -> bool:
        """Whether the last contact with the node went well. A hint for ordering, never for quorums.

        To ask about one that is out of reach has it contacted in the background from then on, until it answers: those who
        leave such nodes alone rely on that, because nobody else might ever talk to it again.
        """
        ...


class IncomingStage(Protocol):
    """A blob on its way in, as the answerer sees it."""

    def frames(self) -> AsyncIterator[bytes | memoryview]:
        """The blob's bytes, which do not change any more; ends at StageClose. Credit goes back to the sender as frames are taken.

        Raises:
            PeerUnreachable: the sender went away or gave up; nothing more will come.
        """
        ...

    def closing(self) -> tuple[StageClose, bytes | None]:
        """The chunks, and the manifest file if there is one; valid once :meth:`frames` has ended."""
        ...


class PeerHandler(Protocol):
    """What a node does for its peers. Exceptions of the error tree become ``Failed`` answers."""

    def answer(self, peer: str, request: Request, respond: Respond) -> bool:
        """Answer without a task, if nothing has to be read from the disk for it.

        True: ``respond`` was called, or will be as soon as what the answer says is durable. False: nothing was done,
        :meth:`handle` has to do it. An exception stands for an answer, as in :meth:`handle`.
        """
        ...

    async def handle(self, peer: str, request: Request) -> Reply:
        """Answer anything but StageOpen and :data:`amberblob.wire.BytesRequest`."""
        ...

    async def handle_stage(self, peer: str, message: StageOpen, stream: IncomingStage) -> Reply:
        """Take in a blob; the answer is StagedReply or Refused."""
        ...

    async def handle_read(self, peer: str, request: Request) -> bytes:
        """The verified bytes of chunks or a manifest file; the transport sends them as data frames."""
        ...
