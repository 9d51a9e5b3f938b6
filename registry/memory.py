"""The registry in memory: the twin of :mod:`registry.embedded` for tests and simulation, held by one process.

A :class:`MemoryStore` is the registry; each :class:`MemoryRegistry` is one client of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from amberblob.clock import Clock, SystemClock
from amberblob.errors import RegistryUnavailable
from registry.common import KeptLease, Transacting
from registry.interface import (
    Change,
    Compacted,
    CompareAndDelete,
    CompareAndSet,
    Delete,
    Entry,
    Event,
    Operation,
    Put,
    Snapshot,
    check_operations,
)


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    expires_s: float


@dataclass(slots=True)
class MemoryStore:
    """The shared state. ``down`` makes every client raise RegistryUnavailable, as an outage would.

    Attributes:
        history_max: how many past changes are kept for watchers.
    """

    history_max: int = 10_000
    down: bool = False
    revision: int = 0
    compacted: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    leases: dict[str, _Lease] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    leases_made: int = 0

    def set_down(self, down: bool) -> None:
        """Begin or end an outage; watches end with RegistryUnavailable at once."""
        self.down = down
        self.wake()

    def wake(self) -> None:
        """Let every waiting watch look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def commit(self, events: list[Event]) -> int:
        """Make ``events`` the next revision. Called with the entries already changed."""
        self.revision += 1
        self.history.append(Change(self.revision, tuple(events)))
        if len(self.history) > self.history_max:
            self.compact(self.history[-self.history_max].revision)
        self.wake()
        return self.revision

    def compact(self, first_kept: int) -> None:
        """Forget the changes before a revision; watches from there or earlier get Compacted."""
        self.compacted = max(self.compacted, first_kept - 1)
        self.history = [change for change in self.history if change.revision >= first_kept]

    def drop_keys_of(self, ended: set[str]) -> None:
        """End leases and delete their keys, in one revision."""
        for lease_id in ended:
            self.leases.pop(lease_id, None)
        keys = sorted(key for key, lease_id in self.owners.items() if lease_id in ended)
        for key in keys:
            del self.entries[key], self.owners[key]
        if keys:
            self.commit([Delete(key) for key in keys])

    def expire(self, now_s: float) -> None:
        """End the leases that have run out."""
        self.drop_keys_of({lease_id for lease_id, lease in self.leases.items() if lease.expires_s <= now_s})


_shared: dict[str, MemoryStore] = {}


def shared_store(name: str) -> MemoryStore:
    """The store called ``name`` in this process; ``memory://name`` opens it."""
    return _shared.setdefault(name, MemoryStore())


class MemoryRegistry(Transacting):
    """One client of a :class:`MemoryStore`. See :class:`registry.interface.Registry`."""

    def __init__(self, store: MemoryStore | None = None, *, clock: Clock | None = None) -> None:
        self.store = store or MemoryStore()
        self.clock = clock or SystemClock()
        self._closed = False

    def ready_store(self) -> MemoryStore:
        """The store with run-out leases ended. Raises RegistryUnavailable while it is down or after close."""
        if self.store.down or self._closed:
            raise RegistryUnavailable("The registry is down." if self.store.down else "The registry client is closed.")
        self.store.expire(self.clock.monotonic_s())
        return self.store

    async def get(self, key: str) -> Entry | None:
        return self.ready_store().entries.get(key)

    async def range(self, prefix: str) -> Snapshot:
        store = self.ready_store()
        found = sorted((key for key in store.entries if key.startswith(prefix)), key=str.encode)
        return Snapshot(tuple(store.entries[key] for key in found), store.revision)

    async def transact(self, operations: Sequence[Operation]) -> int | None:
        check_operations(operations)
        store = self.ready_store()
        for operation in operations:
            entry = store.entries.get(operation.key)
            if (entry.revision if entry else 0) != operation.expected_revision:
                return None
            if isinstance(operation, CompareAndSet) and operation.lease_id not in {None, *store.leases}:
                return None
        revision = store.revision + 1
        events: list[Event] = []
        for operation in operations:
            store.owners.pop(operation.key, None)
            if isinstance(operation, CompareAndDelete):
                del store.entries[operation.key]
                events.append(Delete(operation.key))
                continue
            store.entries[operation.key] = Entry(operation.key, operation.value, revision)
            if operation.lease_id is not None:
                store.owners[operation.key] = operation.lease_id
            events.append(Put(operation.key, operation.value))
        return store.commit(events)

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Change | Compacted, None]:
        while not self._closed:
            store = self.ready_store()
            changed = store.changed
            if from_revision <= store.compacted or from_revision > store.revision + 1:
                yield Compacted(store.revision)
                return
            for change in [change for change in store.history if change.revision >= from_revision]:
                from_revision = change.revision + 1
                events = tuple(event for event in change.events if event.key.startswith(prefix))
                if events:
                    yield Change(change.revision, events)
            if store.revision >= from_revision:
                continue
            # Not asyncio.wait_for: of Python 3.11 it loses a cancellation that comes together with the event, and the watch goes on for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_expiry_s()):
                    await changed.wait()

    def _until_expiry_s(self) -> float | None:
        if not self.store.leases:
            return None
        first_s = min(lease.expires_s for lease in self.store.leases.values())
        return max(0.01, first_s - self.clock.monotonic_s())

    async def lease(self, ttl_s: float) -> KeptLease[str]:
        store = self.ready_store()
        store.leases_made += 1
        lease_id = f"lease-{store.leases_made}"
        store.leases[lease_id] = _Lease(ttl_s, self.clock.monotonic_s() + ttl_s)
        store.wake()
        return KeptLease(self, lease_id, ttl_s)

    async def keep_lease(self, lease_id: str) -> bool:
        """Move a lease's end away; False when it has ended."""
        lease = self.ready_store().leases.get(lease_id)
        if lease is None:
            return False
        lease.expires_s = self.clock.monotonic_s() + lease.ttl_s
        return True

    async def end_lease(self, lease_id: str) -> None:
        """End a lease, and its keys with it."""
        self.ready_store().drop_keys_of({lease_id})

    async def close(self) -> None:
        self._closed = True
        self.store.wake()
