"""What all backends do alike: single operations are transactions of one, and a lease asks its registry for everything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from registry.interface import CompareAndDelete, CompareAndSet, Operation

Token_contra = TypeVar("Token_contra", contravariant=True)
Token = TypeVar("Token")


class Transacting(ABC):
    """The single operations of :class:`registry.interface.Registry`."""

    @abstractmethod
    async def transact(self, operations: Sequence[Operation]) -> int | None:
        """See the interface."""

    async def compare_and_set(
        self, key: str, expected_revision: int, value: bytes, *, lease_id: str | None = None
    ) -> int | None:
        """See the interface."""
        return await self.transact(
            [CompareAndSet(key=key, expected_revision=expected_revision, value=value, lease_id=lease_id)]
        )

    async def delete(self, key: str, expected_revision: int) -> int | None:
        """See the interface."""
        return await self.transact([CompareAndDelete(key=key, expected_revision=expected_revision)])


class LeaseKeeper(Protocol[Token_contra]):
    """A registry, as its leases see it; it knows them by a token."""

    async def keep_lease(self, token: Token_contra) -> bool:
        """Move a lease's end away; False when it has ended."""
        ...

    async def end_lease(self, token: Token_contra) -> None:
        """End a lease, and its keys with it."""
        ...


class KeptLease(Generic[Token]):
    """A :class:`registry.interface.Lease`."""

    def __init__(self, keeper: LeaseKeeper[Token], token: Token, ttl_s: float) -> None:
        self._keeper = keeper
        self._token = token
        self._ttl_s = ttl_s

    @property
    def id(self) -> str:
        """See the interface."""
        return str(self._token)

    @property
    def ttl_s(self) -> float:
        """See the interface."""
        return self._ttl_s

    async def keepalive(self) -> bool:
        """See the interface."""
        return await self._keeper.keep_lease(self._token)

    async def revoke(self) -> None:
        """See the interface."""
        await self._keeper.end_lease(self._token)
