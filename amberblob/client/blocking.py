"""The blocking face: the same client, run on one background thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from amberblob.client.aio import AsyncClient
from amberblob.client.archive import BlockingArchiveCalls
from amberblob.client.bodies import Source
from amberblob.client.http import Timeouts
from amberblob.client.reader import ObjectReader
from amberblob.client.retry import RetryPolicy
from amberblob.client.types import ByteRange, Consistency, ListPage, ObjectInfo, Progress, SlotsShown
from amberblob.limits import LIST_LIMIT_MAX

T = TypeVar("T")


class Client:
    """:class:`~amberblob.client.AsyncClient` for code without asyncio; the same methods, arguments and errors.

    ::

        with Client("http://127.0.0.1:7700") as client:
            client.put("albums/1.jpg", Path("1.jpg"))
            with client.get("albums/1.jpg") as file:
                shutil.copyfileobj(file, out)

    It may be shared by threads. ``progress`` callbacks are called on the background thread.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """See :class:`~amberblob.client.AsyncClient`."""
        self._client = AsyncClient(endpoint, token=token, timeout_s=timeout_s, retry=retry, timeouts=timeouts)
        self._runner = _LoopThread()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The nodes that are spoken to."""
        return self._client.endpoints

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection and end the background thread. Closing twice is fine."""
        self._runner.close(self._client.close)

    def put(
        self,
        path: str,
        data: Source,
        *,
        size: int | None = None,
        content_type: str | None = None,
        meta: Mapping[str, str] | None = None,
        version: int | None = None,
        if_none_match: str | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
        write_id: str | None = None,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store a new version: see :meth:`AsyncClient.put <amberblob.client.AsyncClient.put>`."""
        return self._runner.run(
            self._client.put(
                path,
                data,
                size=size,
                content_type=content_type,
                meta=meta,
                version=version,
                if_none_match=if_none_match,
                if_match=if_match,
                if_version=if_version,
                write_id=write_id,
                progress=progress,
            )
        )

    def delete(
        self,
        path: str,
        *,
        version: int | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
        write_id: str | None = None,
    ) -> None:
        """Tombstone the object, or one version of it."""
        self._runner.run(
            self._client.delete(path, version=version, if_match=if_match, if_version=if_version, write_id=write_id)
        )

    def restore(
        self,
        path: str,
        *,
        version: int | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
        write_id: str | None = None,
    ) -> ObjectInfo:
        """Lift the tombstone of a version, or of what the last delete took away; the head afterwards."""
        return self._runner.run(
            self._client.restore(path, version=version, if_match=if_match, if_version=if_version, write_id=write_id)
        )

    def get(
        self,
        path: str,
        *,
        version: int | None = None,
        at: datetime | str | None = None,
        range: ByteRange | None = None,
        consistency: Consistency | None = None,
        progress: Progress | None = None,
    ) -> ObjectFile:
        """A file to read the object from; close it, or use ``with``."""

        async def opened() -> ObjectReader:
            return await self._client.get(
                path, version=version, at=at, range=range, consistency=consistency, progress=progress
            )

        return ObjectFile(self._runner.run(opened()), self._runner)

    def get_bytes(
        self,
        path: str,
        *,
        version: int | None = None,
        at: datetime | str | None = None,
        range: ByteRange | None = None,
        consistency: Consistency | None = None,
    ) -> bytes:
        """The whole content (or range) in memory, verified."""
        return self._runner.run(
            self._client.get_bytes(path, version=version, at=at, range=range, consistency=consistency)
        )

    def head(
        self,
        path: str,
        *,
        version: int | None = None,
        at: datetime | str | None = None,
        consistency: Consistency | None = None,
    ) -> ObjectInfo:
        """What is known of the object, without its bytes."""
        return self._runner.run(self._client.head(path, version=version, at=at, consistency=consistency))

    def versions(self, path: str) -> Sequence[ObjectInfo]:
        """Every version, newest first, tombstoned ones marked."""
        return self._runner.run(self._client.versions(path))

    def list_page(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        limit: int = LIST_LIMIT_MAX,
        cursor: str | None = None,
        tombstoned: bool = False,
        at: datetime | str | None = None,
    ) -> ListPage:
        """One page of a listing, in byte order."""
        return self._runner.run(
            self._client.list_page(
                prefix, delimiter=delimiter, limit=limit, cursor=cursor, tombstoned=tombstoned, at=at
            )
        )

    def list(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = LIST_LIMIT_MAX,
        tombstoned: bool = False,
        at: datetime | str | None = None,
    ) -> Iterator[ListPage]:
        """Page after page, until the end."""
        cursor = None
        while True:
            page = self.list_page(
                prefix, delimiter=delimiter, limit=page_size, cursor=cursor, tombstoned=tombstoned, at=at
            )
            yield page
            cursor = page.cursor
            if cursor is None:
                return

    def explain(self, path: str) -> Mapping[str, Any]:
        """Slot, replicas, versions, chunks, and where each copy is and in what state."""
        return self._runner.run(self._client.explain(path))

    def cluster(
        self, endpoint: str | None = None, *, slots: SlotsShown | None = None, since: datetime | str | None = None
    ) -> Mapping[str, Any]:
        """What a node knows of the cluster."""
        return self._runner.run(self._client.cluster(endpoint, slots=slots, since=since))

    def heal(self) -> Mapping[str, Any]:
        """Have every node compare its copies with the others now; returns before they have."""
        return self._runner.run(self._client.heal())

    def change_membership(
        self, action: str, nodes: Sequence[str], *, dry_run: bool = False, force: bool = False
    ) -> Mapping[str, Any]:
        """Have nodes join, drain, be removed or forgotten; returns the plan before it is carried out."""
        return self._runner.run(self._client.change_membership(action, nodes, dry_run=dry_run, force=force))

    @property
    def archive(self) -> BlockingArchiveCalls:
        """The cluster's archive."""
        return BlockingArchiveCalls(self._client.archive, self._runner.run)

    def ready(self) -> Mapping[str, str | None]:
        """For each endpoint why it does not serve; None when it does."""
        return self._runner.run(self._client.ready())


class ObjectFile(io.RawIOBase):
    """A download as a file: ``read``, ``readinto``, ``with``; ``chunks`` is the quickest way through it.

    It cannot seek. Wrap it in :class:`io.BufferedReader` to read lines.
    """

    def __init__(self, reader: ObjectReader, runner: _LoopThread) -> None:
        super().__init__()
        self._reader = reader
        self._runner = runner
        self._rest = b""

    @property
    def info(self) -> ObjectInfo:
        """The version that is read."""
        return self._reader.info

    @property
    def length(self) -> int:
        """How many bytes there are to read in all."""
        return self._reader.length

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end; everything with -1 or None."""
        self._require_open()
        rest, self._rest = self._rest, b""
        if size is None or size < 0:
            return rest + self._runner.run(self._reader.read())
        if len(rest) >= size:
            self._rest = rest[size:]
            return rest[:size]
        return rest + self._runner.run(self._reader.read(size - len(rest)))

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer from what comes next; 0 only at the end."""
        self._require_open()
        view = memoryview(buffer).cast("B")
        if not len(view):
            return 0
        piece = self._rest or self._runner.run(self._reader.read_piece())
        length = min(len(piece), len(view))
        view[:length] = piece[:length]
        self._rest = piece[length:]
        return length

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they come, in pieces of any length."""
        self._require_open()
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        while piece := self._runner.run(self._reader.read_piece()):
            yield piece

    def close(self) -> None:
        """Give the connection back."""
        if not self.closed:
            super().close()
            self._runner.run_if_open(self._reader.close)

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


class _LoopThread:
    """An event loop on a daemon thread, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the loop and wait for it; Ctrl-C cancels it."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._started())
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def run_if_open(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it, unless the loop is gone and everything with it."""
        if self._loop is not None and not self._closed and threading.current_thread() is not self._thread:
            with contextlib.suppress(concurrent.futures.CancelledError, RuntimeError):
                self.run(function())

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, args=(loop,), name="amberblob-client", daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            for task in (tasks := asyncio.all_tasks(loop)):
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run one last coroutine and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(last(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
