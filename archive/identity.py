"""Whose target this is (rfc/0016, "Whose bucket").

A cluster's document, ``meta/<cluster>/cluster.json``, is there before any copy of the cluster has an archive row. So a target without it is
another one than what the rows are of, whatever else it has: a typing error in ``[archive] target``, another endpoint, an empty file system mounted in
the place. Nothing that is not there, or is something else there, is then a fact about what was archived, and nothing may be stored or deleted there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from amberblob.clock import Clock
from amberblob.errors import ArchiveMissing, ArchiveNotOurs
from archive.clusters import clusters_in
from archive.packs import CHUNKS, PACKS
from archive.segments import META, ClusterDocument, cluster_name, encode_cluster
from archive.targets.interface import Target
from archive.targets.small import store

KNOWN_S = 60.0
"""A target that was seen to be the cluster's own is stored to for so long without another look."""
NAMED_MAX = 3
"""Clusters that an error names."""


class Identity:
    """Looks whether the target is this cluster's. May be asked by many at once: those who wait for a look share the next one.

    Args:
        target: where to look; unguarded.
        document: this cluster's; raises NotReady.
        has_rows: whether any copy of the cluster that can be asked has archive rows.
        on_strange: told whenever the target turned out to be another one.
    """

    def __init__(
        self,
        target: Target,
        document: Callable[[], ClusterDocument],
        has_rows: Callable[[], Awaitable[bool]],
        clock: Clock,
        *,
        on_strange: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = target
        self._document = document
        self._has_rows = has_rows
        self._clock = clock
        self._on_strange = on_strange
        self._lock = asyncio.Lock()
        self._entering = asyncio.Lock()
        self._begun = self._answered = 0
        self._is_ours = False
        self._known_s = float("-inf")

    async def confirm(self) -> None:
        """Before it is believed that an object is gone or damaged: the target is looked at now.

        Raises: ArchiveNotOurs: it is not what the cluster's rows are of; other ArchiveErrors: it is not known.
        """
        if not await self._look() and await self._has_rows() and not await self._look():
            raise await self._strange()

    async def require(self) -> None:
        """Before something is looked for as a whole, or deleted: as :meth:`confirm`, and what others keep there is not for this cluster to judge.

        A target with nothing in it is fine as long as the cluster has no rows either. Raises: ArchiveNotOurs, ArchiveError.
        """
        await self.confirm()
        if not self._is_ours and (seen := await self._seen()) and not await self._look():
            self._on_strange()
            raise ArchiveNotOurs(
                f"{self._target.url} has {seen}, and nothing of cluster {self._document().cluster}. Another cluster archives there, or did; nothing was stored "
                "there. Give this one a target of its own, or build that one again in it first: amberblob archive recover."
            )

    async def enter(self) -> None:
        """Before something is stored: the first who does that makes the target the cluster's own. Raises as :meth:`require`."""
        if self._is_known():
            return
        async with self._entering:
            if self._is_known():
                return
            await self.require()
            if not self._is_ours:
                await self._introduce()

    async def claim(self) -> None:
        """Make the target the cluster's own, whatever is there: an operator says so, or a lost cluster is built again from it.

        Raises: ArchiveUnavailable, ArchiveDenied, NotReady.
        """
        if not await self._look():
            await self._introduce()

    def _is_known(self) -> bool:
        return self._clock.monotonic_s() - self._known_s < KNOWN_S

    async def _introduce(self) -> None:
        document, began_s = self._document(), self._clock.monotonic_s()
        await store(self._target, cluster_name(document.cluster), encode_cluster(document))
        self._is_ours, self._known_s = True, began_s

    async def _look(self) -> bool:
        """Whether the cluster's document is there, or anything else of its metadata; by a look that began after this call."""
        arrived = self._begun
        async with self._lock:
            # One that began since may have found no answer: what was seen before that does not count.
            if self._answered <= arrived:
                self._begun = number = self._begun + 1
                began_s, self._is_ours = self._clock.monotonic_s(), await self._has_document()
                self._known_s = began_s if self._is_ours else float("-inf")
                self._answered = number
            return self._is_ours

    async def _has_document(self) -> bool:
        cluster = self._document().cluster
        try:
            await self._target.head(cluster_name(cluster))
        except ArchiveMissing:
            return bool(await self._target.page(f"{META}{cluster}/", "", 1))
        return True

    async def _seen(self) -> str:
        """What of an archive is there, for people; empty: nothing."""
        others = await clusters_in(self._target)
        if others:
            return f"the metadata of cluster {_few(others)}"
        for prefix in (PACKS, CHUNKS):
            if await self._target.page(prefix, "", 1):
                return "objects of an archive, but no cluster's metadata"
        return ""

    async def _strange(self) -> ArchiveNotOurs:
        seen = await self._seen() or "nothing of an archive"
        cluster = self._document().cluster
        self._on_strange()
        return ArchiveNotOurs(
            f"{self._target.url} is not the archive of cluster {cluster}: it has {seen}. [archive] target or endpoint is not what it was, or what "
            f"is behind it was exchanged; nothing was written down as lost. Have it be the one with meta/{cluster}/ again, then start failed jobs again."
        )


def _few(clusters: Sequence[str]) -> str:
    shown = ", ".join(clusters[:NAMED_MAX])
    return shown if len(clusters) <= NAMED_MAX else f"{shown} and {len(clusters) - NAMED_MAX} more"
