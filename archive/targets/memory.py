"""A target in memory, with faults that tests and the simulation choose. Deterministic: it draws no chance, and its time is an argument.

A :class:`MemoryBucket` is what the nodes of a cluster share; each opens its own :class:`MemoryTarget` there. Faults of the bucket happen to
everybody, those of a target to that node alone. Nothing is tried again here: a fault is seen by who asked.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from blake3 import blake3

from amberblob.clock import Clock, SystemClock
from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing, ArchiveUnavailable
from archive.targets.interface import Stored
from archive.targets.names import DELETE_MAX, LIST_MAX, check_name, check_prefix
from archive.traffic import FREE, Pace, Traffic

PIECE_BYTES = 256 * 1024

RequestKind = Literal["put", "get", "head", "list", "delete", "*"]
FaultKind = Literal["unavailable", "throttled", "denied", "missing", "damage", "cut", "hang", "lost"]
_RESULTS: dict[type[ArchiveError], str] = {
    ArchiveUnavailable: "unavailable",
    ArchiveDenied: "denied",
    ArchiveMissing: "missing",
    ArchiveDamaged: "damaged",
}


@dataclass(kw_only=True, eq=False)
class Fault:
    """What goes wrong with the requests that it fits.

    Attributes:
        what: unavailable, throttled, denied, missing: the error. hang: nothing until :meth:`release` (or cancelled). damage: of a put,
            one byte is stored wrong; of a get, one byte comes wrong. cut: of a get, it breaks off half-way; of a put, as unavailable, when the
            content has come. lost: it is done, and the answer is unavailable. None: only ``delay_s``.
        kind, name: the requests that it fits; ``name`` may have ``*`` and ``?``. A list has its prefix as a name.
        times: so many of them; None: all.
        skip: after so many that go well.
        delay_s: each waits so long, by the target's sleep.
    """

    what: FaultKind | None = None
    kind: RequestKind = "*"
    name: str = "*"
    times: int | None = None
    skip: int = 0
    delay_s: float = 0.0
    met: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def fits(self, kind: str, name: str) -> bool:
        """Whether it happens to this request; counts it."""
        if self.kind not in ("*", kind) or not fnmatchcase(name, self.name):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.met >= self.times:
            return False
        self.met += 1
        return True

    def release(self) -> None:
        """Let go of those that hang; they go on, and no others hang."""
        self._released.set()

    async def hang(self) -> None:
        """Until released."""
        await self._released.wait()


@dataclass(slots=True)
class MemoryObject:
    """What is stored under a name."""

    content: bytes
    etag: str
    modified_ms: int


class MemoryBucket:
    """Objects by name, and what goes wrong with them."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.objects: dict[str, MemoryObject] = {}
        self.faults: list[Fault] = []

    def fault(
        self, what: FaultKind | None = None, kind: RequestKind = "*", name: str = "*", **more: int | float
    ) -> Fault:
        """Add a fault (:class:`Fault` has its arguments); it is removed by :meth:`heal`."""
        fault = Fault(what=what, kind=kind, name=name, **more)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults; what hangs goes on."""
        for fault in self.faults:
            fault.release()
        self.faults.clear()

    def store(self, name: str, content: bytes) -> MemoryObject:
        """As somebody would who overwrites it."""
        etag = blake3(content).hexdigest()[:32]
        stored = self.objects[name] = MemoryObject(content, etag, self._clock.wall_ms())
        return stored

    def damage(self, name: str, at: int = 0) -> None:
        """One byte is another one; everything else is as it was."""
        self.objects[name].content = damaged(self.objects[name].content, at)

    def names(self, prefix: str = "") -> list[str]:
        """Of all objects that begin with it, ascending."""
        return sorted(name for name in self.objects if name.startswith(prefix))


def damaged(content: bytes, at: int) -> bytes:
    """With all bits of one byte turned; unchanged if there is no such byte."""
    if not 0 <= at < len(content):
        return content
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


class MemoryTarget:
    """One node's view of a bucket. A :class:`~archive.targets.interface.Target`, and a Source if ``strict`` is false."""

    def __init__(
        self,
        bucket: MemoryBucket | None = None,
        traffic: Traffic | None = None,
        *,
        url: str = "memory:///archive",
        pace: Pace = FREE,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        strict: bool = True,
    ) -> None:
        clock = clock or SystemClock()
        self.bucket = bucket if bucket is not None else MemoryBucket(clock)
        self.faults: list[Fault] = []
        self.traffic = traffic or Traffic(clock, sleep=sleep)
        self._clock = clock
        self._url = url
        self._pace = pace
        self._sleep = sleep
        self._strict = strict

    @property
    def url(self) -> str:
        """Which bucket."""
        return self._url

    def paced(self, pace: Pace) -> MemoryTarget:
        """The same for a job; it has this one's faults."""
        twin = MemoryTarget(
            self.bucket,
            self.traffic,
            url=self._url,
            pace=pace,
            clock=self._clock,
            sleep=self._sleep,
            strict=self._strict,
        )
        twin.faults = self.faults
        return twin

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store it. Raises: ArchiveError."""
        self._check(name)
        content = bytearray()
        async for part in parts:
            await self._pace.bytes(len(part))
            content += part
        fault = await self._request("put", name)
        self.traffic.sent_bytes += len(content)
        if fault == "cut":
            raise self._failed("put", ArchiveUnavailable(f"{self._url}: the connection broke"))
        data = bytes(content)
        known = self.bucket.objects.get(name)
        assert known is None or known.content == data, f"{name} is stored a second time, with another content"
        stored = self.bucket.store(name, data)
        if fault == "damage":
            self.bucket.damage(name, len(data) // 2)
        self._answer("put", fault)
        return self._stored(name, stored)

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. Raises: ArchiveError."""
        self._check(name)
        if end is not None and end <= start:
            return
        fault = await self._request("get", name)
        stored = self._find("get", name)
        size = len(stored.content)
        if etag and etag != stored.etag:
            raise self._failed("get", ArchiveDamaged(f"{name} was overwritten: its ETag is {stored.etag}, not {etag}"))
        if max(start, end or 0) > size:
            raise self._failed(
                "get", ArchiveDamaged(f"{name} has {size} bytes, and {start} to {end or ''} were wanted")
            )
        content = stored.content[start:end]
        if fault == "damage":
            content = damaged(content, len(content) // 2)
        stop = len(content) // 2 if fault == "cut" else len(content)
        for at in range(0, stop, PIECE_BYTES):
            piece = content[at : min(at + PIECE_BYTES, stop)]
            await self._pace.bytes(len(piece))
            self.traffic.received_bytes += len(piece)
            yield piece
        if fault == "cut":
            raise self._failed("get", ArchiveUnavailable(f"{self._url}: the connection broke"))
        self._answer("get", fault)

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        self._check(name)
        fault = await self._request("head", name)
        stored = self._find("head", name)
        self._answer("head", fault)
        return self._stored(name, stored)

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        assert 1 <= limit <= LIST_MAX
        if self._strict:
            check_prefix(prefix)
        fault = await self._request("list", prefix)
        names = self.bucket.names(prefix)
        first = bisect.bisect_right(names, after) if after else 0
        self._answer("list", fault)
        return [self._stored(name, self.bucket.objects[name]) for name in names[first : first + limit]]

    async def delete(self, names: Sequence[str]) -> None:
        """Delete them, one request each as far as faults are concerned. Raises: ArchiveError, naming those that stayed."""
        assert len(names) <= DELETE_MAX
        failures: list[ArchiveError] = []
        for name in names:
            self._check(name)
            try:
                fault = await self._request("delete", name)
                self.bucket.objects.pop(name, None)
                self._answer("delete", fault)
            except ArchiveError as error:
                failures.append(type(error)(f"{name} was not deleted: {error.detail}"))
        if failures:
            raise type(failures[0])("; ".join(failure.detail for failure in failures))

    async def probe(self) -> None:
        """As the others do. Raises: ArchiveError."""
        name = "probe/memory"

        async def parts() -> AsyncIterator[bytes]:
            yield b"probe"

        await self.put(name, parts())
        async for piece in self.read(name):
            if piece != b"probe":
                raise ArchiveDamaged(f"{self._url} gave something else than was stored")
        await self.delete([name])

    async def sweep(self, before_ms: int) -> int:
        """There is never anything."""
        return 0

    async def close(self) -> None:
        """Nothing to let go of."""

    def _check(self, name: str) -> None:
        if self._strict:
            check_name(name)

    def _find(self, kind: str, name: str) -> MemoryObject:
        try:
            return self.bucket.objects[name]
        except KeyError:
            raise self._failed(kind, ArchiveMissing(f"{self._url} has no {name}")) from None

    def _stored(self, name: str, stored: MemoryObject) -> Stored:
        return Stored(name=name, size_bytes=len(stored.content), etag=stored.etag, modified_ms=stored.modified_ms)

    async def _request(self, kind: str, name: str) -> FaultKind | None:
        """A request begins: wait, fail, or tell what will be wrong with it."""
        await self._pace.request()
        await asyncio.sleep(0)  # as anything does that asks somebody else
        found: FaultKind | None = None
        for fault in [*self.faults, *self.bucket.faults]:
            if not fault.fits(kind, name):
                continue
            if fault.delay_s:
                await self._sleep(fault.delay_s)
            match fault.what:
                case "hang":
                    await fault.hang()
                case "unavailable":
                    raise self._failed(
                        kind, ArchiveUnavailable(f"{self._url} was not reached (by a fault of the test)")
                    )
                case "throttled":
                    self.traffic.count(kind, "throttled")
                    raise ArchiveUnavailable(f"{self._url} throttles (by a fault of the test)")
                case "denied":
                    raise self._failed(kind, ArchiveDenied(f"{self._url} refuses (by a fault of the test)"))
                case "missing":
                    raise self._failed(kind, ArchiveMissing(f"{self._url} has no {name} (by a fault of the test)"))
                case "damage" | "cut" | "lost":
                    found = fault.what
                case None:
                    pass
        return found

    def _answer(self, kind: str, fault: FaultKind | None) -> None:
        """A request that was done is answered, unless the answer is lost."""
        if fault == "lost":
            raise self._failed(kind, ArchiveUnavailable(f"{self._url}: the connection broke before the answer"))
        self.traffic.count(kind, "ok")

    def _failed(self, kind: str, error: ArchiveError) -> ArchiveError:
        self.traffic.count(kind, _RESULTS[type(error)])
        return error
