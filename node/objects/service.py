"""Objects of the whole cluster: composes the operations behind :class:`node.service.ObjectService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from node.coordinator import Coordinator
from node.objects.bytes import Reading
from node.objects.change import Changing
from node.objects.explain import Explaining
from node.objects.listing import Listing
from node.objects.lookup import Lookup, no_such_object
from node.objects.put import Putting
from node.protocol.operations import Conditions
from node.routing import Routing
from node.service import Consistency, ListPage, ObjectView, PutOptions


class Objects:
    """Every method is as :class:`node.service.ObjectService` tells."""

    def __init__(
        self, coordinator: Coordinator, routing: Routing, lookup: Lookup, reading: Reading, *, inline_bytes_max: int
    ) -> None:
        self._routing = routing
        self._lookup = lookup
        self._reading = reading
        self.putting = Putting(coordinator, routing, lookup, reading, inline_bytes_max=inline_bytes_max)
        self._changing = Changing(coordinator, routing, lookup)
        self._listing = Listing(coordinator, routing, lookup)
        self._explaining = Explaining(coordinator, routing)

    async def put(self, path: str, body: AsyncIterator[bytes] | bytes, options: PutOptions) -> ObjectView:
        return await self.putting.put(path, body, options)

    async def delete(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> None:
        await self._changing.delete(path, version=version, conditions=conditions, write_id=write_id, repeat=repeat)

    async def restore(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> ObjectView:
        return await self._changing.restore(
            path, version=version, conditions=conditions, write_id=write_id, repeat=repeat
        )

    async def lookup(
        self, path: str, *, version: int | None, at_ms: int | None, consistency: Consistency
    ) -> ObjectView:
        return await self._lookup.lookup(path, version=version, at_ms=at_ms, consistency=consistency)

    def read(self, view: ObjectView, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        return self._reading.read(view, offset, length)

    def peek(self, view: ObjectView) -> bytes | None:
        return self._reading.peek(view)

    async def versions(self, path: str) -> list[ObjectView]:
        views = await self._lookup.versions(self._routing.of(path), path)
        if not views:
            raise no_such_object(path, None)
        return views

    async def list(
        self, *, prefix: str, delimiter: str, limit: int, start: str, tombstoned: bool, at_ms: int | None
    ) -> ListPage:
        return await self._listing.page(
            prefix=prefix, delimiter=delimiter, limit=limit, start=start, tombstoned=tombstoned, at_ms=at_ms
        )

    async def explain(self, path: str) -> dict[str, Any]:
        return await self._explaining.explain(path)
