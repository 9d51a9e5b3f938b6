"""What AmberBlob asks of a registry. One contract suite (tests/contract/registry) runs on every backend.

The model is etcd's, cut down to what is used, so that etcd fits as it is and Redis with a short script:

* The store has one **revision**, an integer that grows with every change. Everything changed by one call bears
  one revision. A key's own revision is that of its last change (etcd's ``mod_revision``).
* Writes are comparisons with a revision; there is no blind put. Revision 0 means "the key must not exist".
* :meth:`Registry.range` tells the revision that it was read at, and :meth:`Registry.watch` starts from one:
  ``watch(prefix, snapshot.revision + 1)`` misses nothing.
* A **lease** is a promise to come back within ``ttl_s``. Keys written under it vanish with it, as a deletion that
  watchers see. Leases tell who seems alive; nothing that guards data rests on them.

Any method raises :class:`~amberblob.errors.RegistryUnavailable` when the registry cannot be reached. After that
error a write may or may not have been made: read again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

TRANSACTION_OPS_MAX = 100
"""Operations in one :meth:`Registry.transact` (etcd refuses more than 128 by default)."""

VALUE_BYTES_MAX = 256 * 1024
"""One value. A whole transaction of usual values stays below etcd's 1.5 MiB per request."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it is now. ``revision`` is that of its last change."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The entries under a prefix, ascending by key, all as of ``revision`` (of the whole store)."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAndSet:
    """Set ``key`` if its revision is ``expected_revision`` (0: if it does not exist).

    ``lease_id`` ties the key to a lease; None frees it from any.
    """

    key: str
    expected_revision: int
    value: bytes
    lease_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAndDelete:
    """Delete ``key`` if its revision is ``expected_revision`` (1 or more)."""

    key: str
    expected_revision: int


Operation = CompareAndSet | CompareAndDelete


@dataclass(frozen=True, slots=True)
class Put:
    """The key has this value since the change's revision."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """The key is gone since the change's revision."""

    key: str


Event = Put | Delete


@dataclass(frozen=True, slots=True)
class Change:
    """Everything under the watched prefix that one revision changed: never half a transaction.

    Resume a broken watch from ``revision + 1``.
    """

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Compacted:
    """The requested revision is no longer known (or not of this store): read a snapshot and watch from there.

    Always the last item of a watch. ``revision`` is the store's revision now.
    """

    revision: int


class Lease(Protocol):
    """A promise to come back. Its keys vanish when it ends."""

    @property
    def id(self) -> str:
        """What :class:`CompareAndSet` names it by."""
        ...

    @property
    def ttl_s(self) -> float:
        """How long it lives after each :meth:`keepalive`, seconds."""
        ...

    async def keepalive(self) -> bool:
        """Live for another ``ttl_s``. False: it has ended, and its keys with it; take a new one."""
        ...

    async def revoke(self) -> None:
        """End it now, and its keys with it. Does nothing when it has ended already."""
        ...


class Registry(Protocol):
    """Keys (text), values (bytes), revisions (growing integers). Safe for concurrent use within one event loop."""

    async def get(self, key: str) -> Entry | None:
        """The key as it is now (linearizable), or None."""
        ...

    async def range(self, prefix: str) -> Snapshot:
        """Every key that begins with ``prefix``, all as of one revision."""
        ...

    async def compare_and_set(
        self, key: str, expected_revision: int, value: bytes, *, lease_id: str | None = None
    ) -> int | None:
        """:meth:`transact` of one :class:`CompareAndSet`: the key's new revision, or None for a conflict."""
        ...

    async def delete(self, key: str, expected_revision: int) -> int | None:
        """:meth:`transact` of one :class:`CompareAndDelete`: the store's new revision, or None for a conflict."""
        ...

    async def transact(self, operations: Sequence[Operation]) -> int | None:
        """All or none: the new revision, or None when a comparison does not hold or a named lease has ended.

        At most :data:`TRANSACTION_OPS_MAX` operations, each on a key of its own (asserted).
        """
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Change | Compacted, None]:
        """Every change under ``prefix`` at or after ``from_revision``, in order, each at least once, then new ones.

        Ends only by :class:`Compacted`, by the caller closing it (``contextlib.aclosing``), by :meth:`close`, or
        by RegistryUnavailable.
        """
        ...

    async def lease(self, ttl_s: float) -> Lease:
        """A new lease."""
        ...

    async def close(self) -> None:
        """Let go of connections; watches end. Leases are not revoked, they run out."""
        ...


def check_operations(operations: Sequence[Operation]) -> None:
    """Assert what :meth:`Registry.transact` asks of its caller; for backends."""
    assert 1 <= len(operations) <= TRANSACTION_OPS_MAX, f"{len(operations)} operations"
    assert len({operation.key for operation in operations}) == len(operations), "one operation per key"
    for operation in operations:
        assert operation.key, "a key is not empty"
        if isinstance(operation, CompareAndSet):
            assert operation.expected_revision >= 0
            assert len(operation.value) <= VALUE_BYTES_MAX, f"{operation.key}: {len(operation.value)} bytes"
        else:
            assert operation.expected_revision >= 1


async def put(registry: Registry, key: str, value: bytes, *, lease_id: str | None = None) -> int | None:
    """Set a key whatever it holds: for keys with one writer. The new revision; None when the lease has ended.

    Tries a few times against other writers, which for such a key are only former selves.
    """
    for _ in range(10):
        entry = await registry.get(key)
        revision = await registry.compare_and_set(key, entry.revision if entry else 0, value, lease_id=lease_id)
        if revision is not None:
            return revision
    return None
