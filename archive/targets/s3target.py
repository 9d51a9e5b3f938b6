"""A bucket, or a part of it, as a target: what is asked of S3 for each of a target's methods. Uploads are in ``s3upload``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from operator import methodcaller
from typing import Any, TypeVar

from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing, ArchiveUnavailable
from archive.targets.failures import Unsupported
from archive.targets.interface import Stored
from archive.targets.names import DELETE_MAX, LIST_MAX, check_name, check_prefix, s3_url
from archive.targets.retrying import Retrying
from archive.targets.s3 import S3Requests
from archive.targets.s3stream import Stream
from archive.targets.s3upload import Upload, Uploads
from archive.traffic import FREE, Pace, Sleep

_T = TypeVar("_T")
_NAMED_MAX = 10
_CLOSING_S = 5.0


class S3Target:
    """A :class:`~archive.targets.interface.Target`; a Source if ``strict`` is false.

    Args:
        prefix: what all keys begin with; a slash is added to it if it is not empty.
    """

    def __init__(
        self,
        requests: S3Requests,
        bucket: str,
        prefix: str,
        *,
        strict: bool = True,
        pace: Pace = FREE,
        sleep: Sleep = asyncio.sleep,
        uploads: tuple[Uploads, Uploads] | None = None,
    ) -> None:
        self._requests = requests
        self._bucket = bucket
        self._prefix = prefix.rstrip("/") + "/" if strict and prefix.strip("/") else ""
        self._strict = strict
        self._pace = pace
        self._sleep = sleep
        # A job that waits for its pace does not hold up uploads that somebody waits for.
        self._uploads, self._uploads_of_jobs = uploads or Uploads.twins(requests.section.parallel)
        self._retrying = Retrying(requests.section.tries, requests.traffic, requests.chance, sleep)
        self._one_by_one = False

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return s3_url(self._bucket, self._prefix).rstrip("/")

    def paced(self, pace: Pace) -> S3Target:
        """The same for a job."""
        return S3Target(
            self._requests,
            self._bucket,
            self._prefix,
            strict=self._strict,
            pace=pace,
            sleep=self._sleep,
            uploads=(self._uploads_of_jobs, self._uploads_of_jobs),
        )

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store it: in one request up to ``part_size``, else in parts, ``parallel`` at once over all uploads. Raises: ArchiveError."""
        assert self._strict, "a source is only read"
        check_name(name)
        return await Upload(self, name, self._uploads, self._requests.section.part_size).run(parts)

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. A stream that breaks, or stalls for ``timeout_s``, is asked for again from there. Raises: ArchiveError."""
        self._check(name)
        if end is not None and end <= start:
            return
        at, failed = start, 0
        while True:
            stream = await self._open(name, at, end, etag)
            if stream is None:
                return
            etag = etag or stream.etag  # the rest must be of the same object
            try:
                async for piece in stream.pieces(self._pace):
                    at += len(piece)
                    failed = 0
                    self._requests.traffic.received_bytes += len(piece)
                    yield piece
                return
            except ArchiveUnavailable as error:
                failed += 1
                self._requests.traffic.count("stream", "unavailable")
                await self._retrying.pause(failed, error)
            finally:
                stream.close()

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        self._check(name)
        return await self.retried(lambda: self.look(name))

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        assert 1 <= limit <= LIST_MAX
        if self._strict:
            check_prefix(prefix)
        more: dict[str, Any] = {"StartAfter": self._prefix + after} if after else {}
        while True:
            where = {"Bucket": self._bucket, "Prefix": self._prefix + prefix, "MaxKeys": limit, **more}
            answer = await self.ask("list", prefix, methodcaller("list_objects_v2", **where))
            found = [self._listed(each) for each in answer.get("Contents", [])]
            if found or not answer.get("IsTruncated"):
                return found
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    async def delete(self, names: Sequence[str]) -> None:
        """Delete them, in one request where the server can. Raises: ArchiveError, naming those that stayed."""
        assert len(names) <= DELETE_MAX
        assert self._strict, "a source is only read"
        for name in names:
            check_name(name)
        if not names:
            return
        if not self._one_by_one:
            try:
                return await self._delete_many(names)
            except Unsupported:
                self._one_by_one = True
        await self._delete_each(names)

    async def probe(self) -> None:
        """Store, list, read and delete a small object. Raises: ArchiveError."""
        chance = self._requests.chance
        name, content = f"probe/{chance.token(12).hex()}", chance.token(256)

        async def parts() -> AsyncIterator[bytes]:
            yield content

        await self.put(name, parts())
        try:
            listed = await self.page(name, "", 1)
            got = b"".join([piece async for piece in self.read(name, 1, 256)])
        finally:
            await self.delete([name])
        if got != content[1:] or [each.name for each in listed] != [name]:
            raise ArchiveDamaged(
                f"{self.url} ({self._requests.where}) did not list, or gave back otherwise, what was stored there a moment ago: "
                "it is not an S3 that an archive can rely on"
            )

    async def sweep(self, before_ms: int) -> int:
        """Abort uploads in parts that began before that time and were not completed. Raises: ArchiveError."""
        swept, more = 0, dict[str, str]()
        while True:
            where = {"Bucket": self._bucket, "Prefix": self._prefix, **more}
            try:
                answer = await self.ask("uploads", "", methodcaller("list_multipart_uploads", **where))
            except Unsupported:
                return swept
            for each in answer.get("Uploads", []):
                if each["Initiated"].timestamp() * 1000 < before_ms:
                    await self.abort(each["Key"], each["UploadId"])
                    swept += 1
            if not answer.get("IsTruncated"):
                return swept
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    async def close(self) -> None:
        """Wait a moment for what broken uploads have to clean, and let go of connections and threads."""
        if self._uploads.cleanups:
            await asyncio.wait(self._uploads.cleanups, timeout=_CLOSING_S)
            for task in list(self._uploads.cleanups):
                task.cancel()
        self._requests.close()

    # -- for this class and Upload

    async def ask(
        self, kind: str, name: str, function: Callable[[Any], _T], *, size_bytes: int = 0, finish: bool = False
    ) -> _T:
        """A request with all its tries, each at its pace; ``size_bytes`` are sent with it. Raises: ArchiveError."""
        return await self.retried(lambda: self.once(kind, name, function, size_bytes=size_bytes, finish=finish))

    async def retried(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """As often as is configured. Raises: ArchiveError."""
        return await self._retrying.run(attempt)

    async def once(
        self, kind: str, name: str, function: Callable[[Any], _T], *, size_bytes: int = 0, finish: bool = False
    ) -> _T:
        """One try. Raises: ArchiveError."""
        await self._pace.request()
        await self._pace.bytes(size_bytes)
        self._requests.traffic.sent_bytes += size_bytes
        return await self._requests.attempt(kind, self._bucket, self._prefix + name, function, finish=finish)

    def now_ms(self) -> int:
        """This machine's time, epoch milliseconds."""
        return self._requests.clock.wall_ms()

    def place(self, name: str) -> dict[str, str]:
        """The parameters of every request for that object."""
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    async def look(self, name: str) -> Stored:
        """One try of :meth:`head`. A refused HEAD comes without words: only a GET tells why, or what is missing, object or bucket. Raises: ArchiveError."""
        place = self.place(name)
        try:
            facts = await self.once("head", name, lambda client: client.head_object(**place))
        except (ArchiveMissing, ArchiveDenied):
            await self.once("get", name, lambda client: client.get_object(**place)["Body"].close())
            facts = await self.once(
                "head", name, lambda client: client.head_object(**place)
            )  # it had the keys read again
        return Stored(
            name=name,
            size_bytes=facts["ContentLength"],
            etag=plain_etag(facts.get("ETag", "")),
            modified_ms=int(facts["LastModified"].timestamp() * 1000),
            version=_version(facts.get("VersionId")),
        )

    async def abort(self, key: str, upload: str) -> None:
        """Give up an upload in parts; fine if there is none. Raises: ArchiveError."""

        def call(client: Any) -> None:
            with contextlib.suppress(client.exceptions.NoSuchUpload):
                client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

        await self.retried(lambda: self._requests.attempt("abort", self._bucket, key, call))

    # -- within

    def _check(self, name: str) -> None:
        if self._strict:
            check_name(name)
        elif not name or "\0" in name or name.encode(errors="ignore").decode() != name:
            raise ArchiveMissing(f"{name!r} cannot be a key of {self.url}")

    def _listed(self, each: Any) -> Stored:
        return Stored(
            name=each["Key"][len(self._prefix) :],
            size_bytes=each["Size"],
            etag=plain_etag(each.get("ETag", "")),
            modified_ms=int(each["LastModified"].timestamp() * 1000),
        )

    async def _open(self, name: str, at: int, end: int | None, etag: str) -> Stream | None:
        """Begin to read; None: there is nothing from ``at`` on, and nothing else was wanted."""
        more: dict[str, str] = {}
        if at or end is not None:
            more["Range"] = f"bytes={at}-{'' if end is None else end - 1}"
        if etag:
            more["IfMatch"] = f'"{etag}"'
        place = self.place(name)

        def call(client: Any) -> Any:
            return client.get_object(**place, **more)

        try:
            answer = await self.ask("get", name, call)
        except ArchiveDamaged:
            if at and end is None:
                stored = await self.head(name)
                if stored.size_bytes == at and etag in ("", stored.etag):
                    return None
            raise
        stream = Stream(self._requests, self._bucket, self._prefix + name, answer)
        try:
            stream.check(at, end, etag)
        except ArchiveError:
            stream.close()
            raise
        return stream

    async def _delete_many(self, names: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": self._prefix + name} for name in names], "Quiet": True}
        answer = await self.ask(
            "delete", names[0], lambda client: client.delete_objects(Bucket=self._bucket, Delete=wanted)
        )
        stayed = [each for each in answer.get("Errors", []) if each.get("Code") not in ("NoSuchKey", "NoSuchVersion")]
        if stayed:
            # Its code alone says whether it helps to try again, or whose fault it is: one of them is asked for by itself.
            again = [each["Key"][len(self._prefix) :] for each in stayed]
            await self._delete_each(again)

    async def _delete_each(self, names: Sequence[str]) -> None:
        """One request for each. Raises: ArchiveError: the first one's, naming all that stayed."""
        stayed: dict[str, ArchiveError] = {}
        for name in names:
            place = self.place(name)
            try:
                await self.ask("delete", name, methodcaller("delete_object", **place))
            except ArchiveMissing:
                continue
            except ArchiveError as error:
                stayed[name] = error
                if isinstance(error, ArchiveUnavailable):
                    stayed |= dict.fromkeys(names[names.index(name) :], error)
                    break
        if stayed:
            first = next(iter(stayed.values()))
            more = f" and {len(stayed) - _NAMED_MAX} more" if len(stayed) > _NAMED_MAX else ""
            named = ", ".join(list(stayed)[:_NAMED_MAX])
            raise type(first)(f"{len(stayed)} of {len(names)} objects were not deleted ({named}{more}): {first.detail}")


def plain_etag(etag: str) -> str:
    """Without quotes, and without the mark of a weak one."""
    return etag.removeprefix("W/").strip('"')


def _version(version: str | None) -> str | None:
    return None if version in (None, "", "null") else version
