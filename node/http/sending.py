"""A large body on its way out: from memory into the client's socket, by a thread, past the transport.

The event loop would copy it piece by piece, holding the interpreter lock; a thread does one system call after
another without it, while the next chunk is read and hashed beside it. (sendfile was measured too: the hash needs the
bytes in memory anyway, and from there they are cheaper to send than a second time from the file. It also would send
pages that may have changed since they were hashed.)

The thread has a descriptor of its own of the same connection, so that nothing goes wrong when the transport closes
its own meanwhile. It sends as long as the client takes, and gives up its place for whoever else sends when the client
does not; the event loop then waits for room, so stalled clients cost no threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from concurrent.futures import ThreadPoolExecutor

import structlog

from amberblob.limits import MIB
from chunkstore.staging import settled

DIRECT_BYTES_MIN = MIB
"""Below this the way to a thread and back costs more than it saves."""

_THREADS = 4
_WAIT_MS = 2
"""How long a thread waits for a client that reads as fast as it can, but just now has not."""
_LOOK_S = 1.0
"""How often a wait is interrupted to see whether the connection is still wanted and the client still reads."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("amberblob.http")


class SendThreads:
    """The threads of a process that send. Made when first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def sender(self, transport: asyncio.Transport | None, *, stall_s: float) -> SocketSender | None:
        """Past ``transport``; None when it has no plain socket that could be sent to."""
        if transport is None or transport.is_closing() or transport.get_extra_info("sslcontext") is not None:
            return None
        own = transport.get_extra_info("socket")
        if own is None or own.type != socket.SOCK_STREAM:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="send")
        return SocketSender(self._pool, transport, socket.socket(fileno=os.dup(own.fileno())), stall_s)

    def close(self) -> None:
        """Nothing is sent any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)


class SocketSender:
    """Sends to one client. Everything that was written to the transport must have left it: see :meth:`begin`."""

    def __init__(
        self, pool: ThreadPoolExecutor, transport: asyncio.Transport, own: socket.socket, stall_s: float
    ) -> None:
        self._pool = pool
        self._transport = transport
        self._socket = own
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._room = select.poll()
        self._room.register(own, select.POLLOUT)

    def begin(self) -> None:
        """From now on whoever writes to the transport is paused until all of it has left the process."""
        self._transport.set_write_buffer_limits(high=0)

    async def send(self, piece: memoryview) -> None:
        """Returns when the kernel has all of it; the memory may be used again then.

        Raises:
            ConnectionError: the client went away, or took nothing for too long.
        """
        assert self._transport.is_closing() or self._transport.get_write_buffer_size() == 0, "bytes would overtake"
        sent = 0
        while True:
            if self._transport.is_closing():
                raise ConnectionResetError("the connection was closed in the middle of an answer")
            try:
                # Also when nobody waits for it any more: the memory must not be used again before it ends.
                sent += await settled(self._loop.run_in_executor(self._pool, self._send_some, piece[sent:]))
            except ConnectionError:
                raise
            except OSError as error:
                raise ConnectionResetError(f"the client cannot be sent to: {error}") from error
            if sent == len(piece):
                return
            await self._until_room()

    def _send_some(self, piece: memoryview) -> int:
        """In a thread: as much as the client takes now, and how much that was."""
        sent = 0
        while sent < len(piece):
            try:
                sent += self._socket.send(piece[sent:])
            except BlockingIOError:
                if not self._room.poll(_WAIT_MS):
                    break
        return sent

    async def _until_room(self) -> None:
        """Wait until something can be sent. Raises ConnectionResetError when nothing was taken for too long."""
        loop = self._loop
        room: asyncio.Future[None] = loop.create_future()

        def there() -> None:
            if not room.done():
                room.set_result(None)

        loop.add_writer(self._socket, there)
        try:
            unread_bytes, since_s = self._unread_bytes(), loop.time()
            while not room.done():
                await asyncio.wait([room], timeout=min(_LOOK_S, self._stall_s))
                if self._transport.is_closing():
                    return  # send tells it
                now_bytes = self._unread_bytes()
                if now_bytes < unread_bytes:
                    unread_bytes, since_s = now_bytes, loop.time()
                elif not room.done() and loop.time() - since_s >= self._stall_s:
                    _log.info("client_stalled", waiting_bytes=now_bytes)
                    self._transport.abort()
                    raise ConnectionResetError(f"the client took nothing for {self._stall_s:g} s")
        finally:
            loop.remove_writer(self._socket)

    def _unread_bytes(self) -> int:
        """What the kernel holds of us that the client's side has not confirmed."""
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0])

    def close(self) -> None:
        """Let the connection be the transport's alone again."""
        self._socket.close()
        with contextlib.suppress(Exception):
            self._transport.set_write_buffer_limits()
