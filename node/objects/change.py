"""DELETE and restore: one round each."""

from __future__ import annotations

from amberblob.errors import NotFound
from node.coordinator import Coordinator
from node.objects.lookup import Lookup, no_such_object
from node.protocol.operations import Conditions, Delete, DeleteVersion, Restore
from node.routing import Routing
from node.service import ObjectView


class Changing:
    """Tombstones and their lifting."""

    def __init__(self, coordinator: Coordinator, routing: Routing, lookup: Lookup) -> None:
        self._coordinator = coordinator
        self._routing = routing
        self._lookup = lookup

    async def delete(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> None:
        """See :meth:`node.service.ObjectService.delete`."""
        operation = (
            Delete(conditions=conditions) if version is None else DeleteVersion(version=version, conditions=conditions)
        )
        since_s = self._since(write_id)
        await self._coordinator.write(
            self._routing.of(path), path, operation, write_id=write_id, repeat=repeat, since_s=since_s
        )

    async def restore(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> ObjectView:
        """See :meth:`node.service.ObjectService.restore`."""
        operation = Restore(version=version, conditions=conditions)
        electorate, since_s = self._routing.of(path), self._since(write_id)
        applied = await self._coordinator.write(
            electorate, path, operation, write_id=write_id, repeat=repeat, since_s=since_s
        )
        record, mark = applied.record, applied.mark
        if (
            mark is not None
            and mark.version
            and (record is None or record.head is None or record.head.version != mark.version)
        ):
            # A retry after later writes: the first answer told the head of that time.
            return await self._lookup.written(electorate, path, mark)
        if record is None or record.head is None:
            # What was restored was deleted again before this answer, or does not exist any more.
            error = no_such_object(path, record)
            raise NotFound(error.detail, extra=error.extra)
        return ObjectView(path=path, version=record.head)

    def _since(self, write_id: str | None) -> float | None:
        """From when the write's time counts: whoever waited too long repeats it elsewhere, and may be told there that there is nothing to delete."""
        return None if write_id is None else self._coordinator.began_s()
