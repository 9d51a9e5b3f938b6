"""The body of a GET from S3, taken in pieces while it comes."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from amberblob.errors import ArchiveDamaged, ArchiveError, ArchiveUnavailable
from archive.targets.names import PIECE_BYTES_MAX
from archive.targets.s3 import S3Requests
from archive.traffic import Pace

_READ_FIRST_BYTES = 128 * 1024
_READ_LEAST_BYTES = 64 * 1024
_SLOW_S = 0.03
"""A read that takes longer is followed by a smaller one, so that what comes slowly is handed on all the same; others by larger ones."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Stream:
    """One answer to a GET. Closed by whoever opened it, whatever happened.

    Attributes:
        etag: of the object.
    """

    def __init__(self, requests: S3Requests, bucket: str, key: str, answer: Any) -> None:
        self._requests = requests
        self._bucket = bucket
        self._key = key
        self._body = answer["Body"]
        self._length = int(answer["ContentLength"])
        self._range = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        self.etag = answer.get("ETag", "").removeprefix("W/").strip('"')

    def check(self, at: int, end: int | None, etag: str) -> None:
        """Whether it is what was asked for. Raises: ArchiveDamaged, ArchiveError."""
        what = f"s3://{self._bucket}/{self._key}"
        if etag and self.etag != etag:
            raise ArchiveDamaged(f"{what} was overwritten: its ETag is {self.etag}, not {etag}")
        first = int(self._range[1]) if self._range else 0
        if first != at:
            raise ArchiveError(f"{what}: {self._requests.where} does not answer a request for a range with that range")
        if end is None:
            return
        if self._length > end - at:
            raise ArchiveError(f"{what}: {self._requests.where} does not answer a request for a range with that range")
        if self._length < end - at:
            raise ArchiveDamaged(f"{what} ends after {at + self._length} bytes, and bytes {at} to {end} were wanted")

    async def pieces(self, pace: Pace) -> AsyncIterator[bytes]:
        """Its bytes. Raises: ArchiveUnavailable when it breaks, or ends too soon."""
        left, size = self._length, _READ_FIRST_BYTES
        while left:
            wanted = min(left, size)
            await pace.bytes(wanted)
            piece, took_s = await self._requests.pull(self._bucket, self._key, partial(self._take, wanted))
            size = max(size // 2, _READ_LEAST_BYTES) if took_s > _SLOW_S else min(2 * size, PIECE_BYTES_MAX)
            if not piece:
                raise ArchiveUnavailable(
                    f"s3://{self._bucket}/{self._key} ({self._requests.where}): the connection was closed {left} bytes too soon"
                )
            left -= len(piece)
            yield piece

    def close(self) -> None:
        """Let go of the connection: for others if everything was read. A thread that still reads there ends by its timeout."""
        self._requests.drop(self._body.close)

    def _take(self, wanted: int) -> tuple[bytes, float]:
        """In a thread: so many bytes, fewer only at the end; and how long that took."""
        began_s = time.monotonic()
        return self._body.read(wanted), time.monotonic() - began_s
