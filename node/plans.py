"""Operators' changes of membership as a node finishes them: :class:`node.moving.Plans` with a registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from registry.interface import Registry
from registry.membership import resume, sweep_removed
from registry.routes import ClusterInfo


class RegistryPlans:
    """See the module.

    Args:
        now_ms: the time, since the Unix epoch.
        seen_epoch: the highest epoch of a slot that this node has seen.
    """

    def __init__(
        self,
        registry: Registry,
        cluster: ClusterInfo,
        *,
        now_ms: Callable[[], int],
        seen_epoch: Callable[[int], int],
    ) -> None:
        self._registry = registry
        self._cluster = cluster
        self._now_ms = now_ms
        self._seen_epoch = seen_epoch

    async def resume(self) -> bool:
        """See the protocol."""
        done = await resume(self._registry, self._cluster, now_ms=self._now_ms, seen_epoch=self._seen_epoch)
        return done is not None

    async def sweep_removed(self) -> Sequence[str]:
        """See the protocol."""
        return await sweep_removed(self._registry, self._cluster, seen_epoch=self._seen_epoch)
