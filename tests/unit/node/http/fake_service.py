"""An object service in memory: as much of the semantics as the HTTP face can be seen to depend on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from blake3 import blake3

from amberblob.errors import DigestMismatch, NotFound, NotReady, PreconditionFailed, VersionConflict
from amberblob.ids import content_hash
from amberblob.manifest import Version
from node.service import (
    Conditions,
    Consistency,
    ListedObject,
    ListPage,
    MembershipAction,
    ObjectView,
    PutOptions,
    SlotsWanted,
)

START_MS = 1_700_000_000_123
PIECE_BYTES = 1000


class FakeService:
    """Objects in a dict. ``fail`` is raised by the next operations; ``gate`` holds puts back until it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, list[tuple[Version, bytes]]] = {}
        self.tombstones: dict[tuple[str, int], int] = {}
        self.taken: dict[str, list[int]] = {}
        self.now_ms = START_MS
        self.fail: BaseException | None = None
        self.fail_read_after: int | None = None
        self.gate: asyncio.Event | None = None
        self.gate_reached = asyncio.Event()
        self.body_error: BaseException | None = None
        self.body_failed = asyncio.Event()
        self.last_options: PutOptions | None = None
        self.last_repeat = False
        self.last_lookup: dict[str, Any] = {}
        self.last_list: dict[str, Any] = {}
        self.refuse_before_body: BaseException | None = None
        self.piece_bytes = PIECE_BYTES
        self.reads_closed = 0

    def _head(self, path: str) -> tuple[Version, bytes] | None:
        live = [one for one in self.objects.get(path, []) if (path, one[0].version) not in self.tombstones]
        return live[-1] if live else None

    def _check(self, path: str, conditions: Conditions) -> None:
        found = self._head(path)
        head = None if found is None else found[0]
        ok = not (conditions.absent and head is not None)
        if conditions.etags:
            ok &= head is not None and (conditions.etags == ("*",) or head.etag in conditions.etags)
        if conditions.version is not None:
            ok &= (head.version if head else 0) == conditions.version
        if not ok:
            told = head and {
                "version": head.version,
                "blob_id": head.blob_id,
                "etag": head.etag,
                "size": head.size,
                "created_at_ms": head.created_at_ms,
            }
            raise PreconditionFailed("the head is another", extra={"head": told})

    def _view(self, path: str, version: Version) -> ObjectView:
        head = self._head(path)
        return ObjectView(
            path=path,
            version=version,
            tombstoned_at_ms=self.tombstones.get((path, version.version)),
            is_head=head is not None and head[0].version == version.version,
        )

    async def put(self, path: str, body: AsyncIterator[bytes] | bytes, options: PutOptions) -> ObjectView:
        self.last_options = options
        self.last_repeat = options.repeat
        if self.fail:
            raise self.fail
        if self.refuse_before_body:
            raise self.refuse_before_body
        if self.gate is not None:
            self.gate_reached.set()
            await self.gate.wait()
        try:
            data = body if isinstance(body, bytes) else b"".join([chunk async for chunk in body])
        except BaseException as error:
            self.body_error = error
            self.body_failed.set()
            raise
        for algorithm, digest in options.digests:
            made = (
                blake3(data).digest()
                if algorithm == "blake3"
                else hashlib.new(algorithm.replace("-", ""), data).digest()
            )
            if made != digest:
                raise DigestMismatch(f"the {algorithm} digest is another")
        self._check(path, options.conditions)
        history = self.objects.setdefault(path, [])
        latest = history[-1][0].version if history else 0
        number = latest + 1 if options.version is None else options.version
        if number <= latest:
            raise VersionConflict(f"version {latest} exists")
        self.now_ms += 1000
        version = Version(
            version=number,
            blob_id=f"01J{number:023d}",
            size=len(data),
            etag=content_hash(data),
            created_at_ms=self.now_ms,
            content_type=options.content_type,
            meta=dict(options.meta),
            chunks=(),
        )
        history.append((version, data))
        return self._view(path, version)

    async def delete(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> None:
        self.last_repeat = repeat
        if self.fail:
            raise self.fail
        self._check(path, conditions)
        live = [v.version for v, _ in self.objects.get(path, []) if (path, v.version) not in self.tombstones]
        gone = [number for number in live if version in (None, number)]
        if not gone:
            raise NotFound("nothing there to delete")
        self.taken[path] = gone
        self.tombstones |= {(path, number): self.now_ms for number in gone}

    async def restore(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> ObjectView:
        self.last_repeat = repeat
        if self.fail:
            raise self.fail
        self._check(path, conditions)
        wanted = self.taken.get(path, []) if version is None else [version]
        back = [number for number in wanted if self.tombstones.pop((path, number), None) is not None]
        if not back:
            raise NotFound("nothing to restore", code="nothing-to-restore")
        head = self._head(path)
        assert head is not None
        return self._view(path, head[0])

    async def lookup(
        self, path: str, *, version: int | None, at_ms: int | None, consistency: Consistency
    ) -> ObjectView:
        self.last_lookup = {"version": version, "at_ms": at_ms, "consistency": consistency}
        if self.fail:
            raise self.fail
        history = self.objects.get(path, [])
        if version is not None:
            for found, _ in history:
                if found.version == version:
                    return self._view(path, found)
            raise NotFound("no such version", code="no-such-version")
        if at_ms is not None:
            history = [one for one in history if one[0].created_at_ms <= at_ms]
            if history:
                return self._view(path, history[-1][0])
        head = self._head(path)
        if head is None or at_ms is not None:
            raise NotFound("no such object")
        return self._view(path, head[0])

    def peek(self, view: ObjectView) -> bytes | None:
        return None

    async def read(self, view: ObjectView, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        data = next(data for version, data in self.objects[view.path] if version.version == view.version.version)
        sent = 0
        try:
            while sent < length:
                if self.fail_read_after is not None and sent >= self.fail_read_after:
                    raise RuntimeError("a secret of the inside")
                piece = memoryview(data)[offset + sent : offset + min(length, sent + self.piece_bytes)]
                sent += len(piece)
                yield piece
        finally:
            self.reads_closed += 1

    async def versions(self, path: str) -> list[ObjectView]:
        if path not in self.objects:
            raise NotFound("no such object")
        return [self._view(path, version) for version, _ in reversed(self.objects[path])]

    async def list(
        self, *, prefix: str, delimiter: str, limit: int, start: str, tombstoned: bool, at_ms: int | None
    ) -> ListPage:
        self.last_list = {"prefix": prefix, "delimiter": delimiter, "limit": limit, "start": start, "at_ms": at_ms}
        if self.fail:
            raise self.fail
        names = [p for p in self.objects if p.startswith(prefix) and p.encode() >= start.encode()]
        names = sorted((p for p in names if tombstoned or self._head(p)), key=str.encode)
        page = names[:limit]
        listed = []
        for path in page:
            head = self._head(path)
            version = head[0] if head else self.objects[path][-1][0]
            listed.append(
                ListedObject(
                    path=path,
                    version=version.version,
                    blob_id=version.blob_id,
                    size=version.size,
                    etag=version.etag,
                    created_at_ms=version.created_at_ms,
                    content_type=version.content_type,
                    tombstoned=head is None,
                )
            )
        return ListPage(objects=listed, next_start=names[limit] if len(names) > limit else None)

    async def explain(self, path: str) -> dict[str, Any]:
        return {"path": path, "slot": 7}


class FakeStatus:
    """A node that is ready until told otherwise."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.worry: str | None = None
        self.asked: list[tuple[str, int | None]] = []
        self.wanted: list[tuple[MembershipAction, tuple[str, ...], bool, bool]] = []

    def not_ready(self) -> str | None:
        return self.reason

    def warning(self) -> str | None:
        return self.worry

    async def cluster(self, *, slots: SlotsWanted = "", since_ms: int | None = None) -> dict[str, Any]:
        self.asked.append((slots, since_ms))
        return {"nodes": [{"id": "node-1"}]}

    async def heal(self) -> dict[str, Any]:
        if self.reason is not None:
            raise NotReady(self.reason)
        return {"since": "2026-01-31T12:00:00.000Z", "nodes": ["node-1"], "silent_nodes": []}

    async def change_membership(
        self, action: MembershipAction, nodes: tuple[str, ...], *, dry_run: bool, force: bool
    ) -> dict[str, Any]:
        self.wanted.append((action, nodes, dry_run, force))
        return {"action": f"{action} {' '.join(nodes)}", "dry_run": dry_run}


Predicate = Callable[[], bool]


async def until(true: Predicate, *, within_s: float = 60.0) -> None:
    """Wait for a state."""
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)
