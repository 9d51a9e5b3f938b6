"""Putting one object into S3: whole when it is small, else in parts, several at once, and nothing left when it does not come to its end.

An answer may be lost after the object was stored: then it is looked for, and found is stored. (Names are used once.)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from amberblob.errors import ArchiveError, ArchiveUnavailable
from archive.targets.interface import Stored
from archive.targets.s3 import content_md5
from archive.traffic import FREE

if TYPE_CHECKING:
    from archive.targets.s3target import S3Target

PARTS_MAX = 10_000
"""S3's own bound."""

_CLEANING_S = 2.0
"""Who is cancelled waits so long for what has to be taken back; it goes on behind after that."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """What all uploads to one target share.

    Attributes:
        slots: for each request that sends content.
        cleanups: what broken uploads have to take back still.
    """

    slots: asyncio.Semaphore
    cleanups: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def twins(cls, parallel: int) -> tuple[Uploads, Uploads]:
        """Two with slots of their own."""
        first = cls(asyncio.Semaphore(parallel))
        return first, cls(asyncio.Semaphore(parallel), first.cleanups)


class Upload:
    """One object on its way. In memory are at most the parts that are under way, one that is gathered, and one of the caller's."""

    def __init__(self, target: S3Target, name: str, shared: Uploads, part_bytes: int) -> None:
        self._target = target
        self._cleaner = target.paced(FREE)  # who cleans does not wait
        self._name = name
        self._place = target.place(name)
        self._shared = shared
        self._part_bytes = part_bytes

    async def run(self, parts: AsyncIterable[bytes]) -> Stored:
        """Store it. Raises: ArchiveError."""
        pieces = regrouped(parts, self._part_bytes)
        first, is_all = await anext(pieces)
        if is_all:
            return await self._whole(first)
        return await self._in_parts(first, pieces)

    # -- in one request

    async def _whole(self, body: bytes) -> Stored:
        place = self._place
        async with self._shared.slots:
            sending = asyncio.ensure_future(
                self._target.ask(
                    "put",
                    self._name,
                    lambda client: client.put_object(**place, Body=body, ContentMD5=content_md5(body)),
                    size_bytes=len(body),
                    finish=True,
                )
            )
            try:
                answer = await asyncio.shield(sending)
            except asyncio.CancelledError:
                sending.cancel()
                await self._clean(self._take_back(sending, body))
                raise
            except ArchiveUnavailable:
                found = await self._found()
                if found is None or found.etag != hashlib.md5(body, usedforsecurity=False).hexdigest():
                    raise
                return found
        return self._stored(answer, len(body))

    async def _take_back(self, sending: asyncio.Future[Any], body: bytes) -> None:
        """When the request is over: delete what it stored, if it did."""
        await asyncio.wait([sending])
        found = await self._found()
        if found is not None and found.etag == hashlib.md5(body, usedforsecurity=False).hexdigest():
            await self._cleaner.delete([self._name])

    # -- in parts

    async def _in_parts(self, first: bytes, rest: AsyncIterator[tuple[bytes, bool]]) -> Stored:
        place = self._place
        begun = await self._target.ask(
            "begin", self._name, lambda client: client.create_multipart_upload(**place), finish=True
        )
        upload = begun["UploadId"]
        sending: list[asyncio.Task[dict[str, Any]]] = []
        completing: asyncio.Future[Any] | None = None
        size = 0
        try:
            async for part in _chain(first, rest):
                size += len(part)
                await self._begin_part(upload, sending, part)
                for task in sending:
                    if task.done():
                        task.result()  # raises what one of them met, before more is read
            told = await asyncio.gather(*sending)
            completing = asyncio.ensure_future(self._complete(upload, told, size))
            return await asyncio.shield(completing)
        except BaseException:
            for each in (*sending, *([completing] if completing else [])):
                each.cancel()
            await self._clean(self._give_up(upload, sending, completing, size))
            raise

    async def _begin_part(self, upload: str, sending: list[asyncio.Task[dict[str, Any]]], part: bytes) -> None:
        if len(sending) == PARTS_MAX:
            raise ArchiveError(
                f"{self._name} has more than {PARTS_MAX} parts of {self._part_bytes} bytes: raise [archive] part_size"
            )
        await self._shared.slots.acquire()
        task = asyncio.create_task(self._part(upload, len(sending) + 1, part))
        task.add_done_callback(lambda _: self._shared.slots.release())
        sending.append(task)

    async def _part(self, upload: str, number: int, part: bytes) -> dict[str, Any]:
        """Send one; what completing has to tell of it."""
        place = self._place
        answer = await self._target.ask(
            "part",
            self._name,
            lambda client: client.upload_part(
                **place, UploadId=upload, PartNumber=number, Body=part, ContentMD5=content_md5(part)
            ),
            size_bytes=len(part),
            finish=True,
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    async def _complete(self, upload: str, told: list[dict[str, Any]], size: int) -> Stored:
        place = self._place

        async def attempt() -> Stored:
            try:
                answer = await self._target.once(
                    "complete",
                    self._name,
                    lambda client: client.complete_multipart_upload(
                        **place, UploadId=upload, MultipartUpload={"Parts": told}
                    ),
                    finish=True,
                )
                stored = self._stored(answer, size)
            except ArchiveUnavailable:
                found = await self._found()
                if found is None or found.size_bytes != size:
                    raise
                return found
            return stored if stored.etag else await self._cleaner.look(self._name)  # radosgw 16 does not tell it here

        return await self._target.retried(attempt)

    async def _give_up(
        self,
        upload: str,
        sending: list[asyncio.Task[dict[str, Any]]],
        completing: asyncio.Future[Any] | None,
        size: int,
    ) -> None:
        """Abort, once no part is under way any more: one that comes later would stay."""
        under_way: list[asyncio.Future[Any]] = [*sending, *([completing] if completing else [])]
        if under_way:
            await asyncio.wait(under_way)
        if completing is not None:
            found = await self._found()
            if found is not None and found.size_bytes == size:
                await self._cleaner.delete([self._name])
        await self._cleaner.abort(self._place["Key"], upload)

    # -- both

    async def _found(self) -> Stored | None:
        """What is there under the name; None: nothing, or it cannot be learnt."""
        try:
            return await self._cleaner.look(self._name)
        except ArchiveError:
            return None

    async def _clean(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done, and wait a moment for it. What it cannot do a sweep finds."""

        async def quietly() -> None:
            with contextlib.suppress(ArchiveError):
                await work

        task = asyncio.create_task(quietly())
        self._shared.cleanups.add(task)
        task.add_done_callback(self._shared.cleanups.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=_CLEANING_S)

    def _stored(self, answer: Any, size: int) -> Stored:
        version = answer.get("VersionId")
        return Stored(
            name=self._name,
            size_bytes=size,
            etag=answer.get("ETag", "").removeprefix("W/").strip('"'),
            modified_ms=_date_ms(answer) or self._target.now_ms(),
            version=None if version in (None, "", "null") else version,
        )


async def regrouped(parts: AsyncIterable[bytes], size: int) -> AsyncIterator[tuple[bytes, bool]]:
    """The same bytes in parts of ``size``, and whether that is the last one: it has fewer, or as many; none only if there are none at all."""
    waiting: deque[memoryview] = deque()
    total = 0
    async for part in parts:
        if not part:
            continue
        waiting.append(memoryview(part))
        total += len(part)
        while total > size:
            total -= size
            yield _take(waiting, size), False
    yield _take(waiting, total), True


def _take(waiting: deque[memoryview], size: int) -> bytes:
    taken: list[memoryview] = []
    while size:
        view = waiting.popleft()
        if len(view) > size:
            waiting.appendleft(view[size:])
            view = view[:size]
        taken.append(view)
        size -= len(view)
    return b"".join(taken)


async def _chain(first: bytes, rest: AsyncIterator[tuple[bytes, bool]]) -> AsyncIterator[bytes]:
    yield first
    async for part, _ in rest:
        yield part


def _date_ms(answer: Any) -> int:
    """When the server answered, by its own clock; 0: it does not say."""
    try:
        date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        return int(parsedate_to_datetime(date).timestamp() * 1000)
    except (KeyError, ValueError, TypeError):
        return 0
