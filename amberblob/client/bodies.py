"""What can be uploaded, and what of it can be sent twice.

A retry sends the body again, so a body tells whether it is *replayable*: bytes, paths, seekable files and iterables
that are not their own iterator are; pipes and iterators are not. The first :data:`SPOOL_BYTES` of those are held in
memory: what fits is as good as bytes. Whatever the kind, a body is read in pieces, in threads where it may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import IO, Any, Protocol

from blake3 import blake3

PIECE_BYTES = 1024 * 1024
SPOOL_BYTES = 1024 * 1024
HASH_INLINE_BYTES_MAX = 128 * 1024

Buffer = bytes | bytearray | memoryview
Source = Buffer | str | os.PathLike[str] | IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]


class Body(Protocol):
    """A body on its way to being sent, once or several times."""

    @property
    def size(self) -> int | None:
        """Its length in bytes, if that is known."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether :meth:`pieces` may be called (again) now."""
        ...

    @property
    def one_shot(self) -> bool:
        """Whether it will not be replayable once it was begun."""
        ...

    def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """The bytes from the beginning."""
        ...

    def close(self) -> None:
        """Release what this module opened itself."""
        ...


class BytesBody:
    """Bytes in memory."""

    replayable = True
    one_shot = False

    def __init__(self, data: Buffer) -> None:
        self.data = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
        self.size = len(self.data)

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        for offset in range(0, self.size, PIECE_BYTES):
            yield self.data[offset : offset + PIECE_BYTES]

    def close(self) -> None:
        pass


class FileBody:
    """A seekable file, from where it stands now."""

    replayable = True
    one_shot = False

    def __init__(self, file: IO[bytes], *, owned: bool, size: int | None = None) -> None:
        self._file = file
        self._owned = owned
        self._start = file.tell()
        if size is None:
            size = max(0, file.seek(0, os.SEEK_END) - self._start)
            file.seek(self._start)
        self.size = size
        # An attempt that was cancelled may still have a read under way in its thread when the next one begins.
        self._lock = threading.Lock()

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        done = 0
        while done < self.size:
            piece = await asyncio.to_thread(self._read_at, done, min(PIECE_BYTES, self.size - done))
            if not piece:
                raise OSError(f"the file became shorter while it was read: {done} of {self.size} bytes")
            done += len(piece)
            yield piece

    def _read_at(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(self._start + offset)
            return _checked(self._file.read(length))

    def close(self) -> None:
        if self._owned:
            self._file.close()


class IterableBody:
    """Anything that can be iterated over from the beginning as often as one likes."""

    replayable = True
    one_shot = False

    def __init__(self, source: Iterable[bytes] | AsyncIterable[bytes], size: int | None) -> None:
        self._source = source
        self.size = size

    def pieces(self) -> AsyncIterator[bytes | memoryview]:
        return _iterate(self._source)

    def close(self) -> None:
        pass


class OneShotBody:
    """What can be read only once. ``replayable`` as long as nothing was taken from it."""

    one_shot = True

    def __init__(self, head: list[bytes], rest: AsyncIterator[bytes], size: int | None) -> None:
        self._head = head
        self._rest = rest
        self.size = size
        self.replayable = True

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        for piece in self._head:
            yield piece
        self.replayable = False
        self._head = []
        async for piece in self._rest:
            yield piece

    def close(self) -> None:
        pass


async def prepare_body(source: Source, size: int | None = None) -> Body:
    """The body for whatever the caller gave. A ``str`` is the path of a file, never text.

    Raises:
        TypeError: it is nothing that can be uploaded.
        OSError: the file cannot be opened.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesBody(source)
    if isinstance(source, (str, os.PathLike)):
        file = await asyncio.to_thread(_open, Path(source))
        if await asyncio.to_thread(file.seekable):
            return FileBody(file, owned=True)
        return await _spool(_read_pipe(file, owned=True), size)
    if isinstance(source, io.TextIOBase):
        raise TypeError("the file is open in text mode; open it with 'rb'")
    if callable(getattr(source, "read", None)):
        return await _prepare_file(source, size)
    if isinstance(source, (AsyncIterator, AsyncIterable)):
        if isinstance(source, AsyncIterator):
            return await _spool(_iterate(source), size)
        return IterableBody(source, size)
    if isinstance(source, Iterable):
        if iter(source) is source:
            return await _spool(_iterate(source), size)
        return IterableBody(source, size)
    raise TypeError(f"cannot upload a {type(source).__name__}; give bytes, a path, a file or an iterator of bytes")


async def _prepare_file(file: Any, size: int | None) -> Body:
    if asyncio.iscoroutinefunction(file.read):
        return await _spool(_read_async(file), size)
    seekable = getattr(file, "seekable", None)
    if seekable is not None and await asyncio.to_thread(seekable):
        return FileBody(file, owned=False)
    return await _spool(_read_pipe(file, owned=False), size)


async def _spool(pieces: AsyncIterator[bytes], size: int | None) -> Body:
    """Read the first bytes; a body that ends among them is kept in memory and can be sent again."""
    head: list[bytes] = []
    held = 0
    while held <= SPOOL_BYTES:
        try:
            piece = await anext(pieces)
        except StopAsyncIteration:
            return BytesBody(b"".join(head))
        head.append(piece)
        held += len(piece)
    return OneShotBody(head, pieces, size)


def _open(path: Path) -> IO[bytes]:
    return open(path, "rb", buffering=0)


async def _iterate(source: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(source, AsyncIterable):
        async for piece in source:
            if piece:
                yield _checked(piece)
        return
    iterator = iter(source)
    while (piece_or_none := await asyncio.to_thread(next, iterator, None)) is not None:
        if piece_or_none:
            yield _checked(piece_or_none)


async def _read_async(file: Any) -> AsyncIterator[bytes]:
    while piece := _checked(await file.read(PIECE_BYTES)):
        yield piece


async def _read_pipe(file: Any, *, owned: bool) -> AsyncIterator[bytes]:
    # read1 gives what is there instead of waiting for a whole piece.
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    try:
        while piece := _checked(await _in_daemon_thread(lambda: read(PIECE_BYTES))):
            yield piece
    finally:
        if owned:
            file.close()


async def _in_daemon_thread(function: Callable[[], Any]) -> Any:
    """Like to_thread, but a read that never returns (a terminal, an idle pipe) does not keep the process alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.done():
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="amberblob-read", daemon=True).start()
    return await done


def _checked(piece: Any) -> bytes:
    if piece is None:
        return b""
    if isinstance(piece, (bytearray, memoryview)):
        return bytes(piece)
    if not isinstance(piece, bytes):
        raise TypeError(f"a body is made of bytes, not of {type(piece).__name__}")
    return piece


class Hashed:
    """A body that learns its digest while it is sent."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.digest: str | None = None

    @property
    def size(self) -> int | None:
        return self._body.size

    @property
    def replayable(self) -> bool:
        return self._body.replayable

    @property
    def one_shot(self) -> bool:
        return self._body.one_shot

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        self.digest = None
        hasher = blake3()
        async for piece in self._body.pieces():
            if len(piece) < HASH_INLINE_BYTES_MAX:
                hasher.update(piece)
            else:
                await asyncio.to_thread(hasher.update, piece)
            yield piece
        self.digest = hasher.hexdigest()

    def close(self) -> None:
        self._body.close()
