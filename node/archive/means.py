"""What an archive is given by the machine: the target, the node's notes. Made by ``node.main``, or from memory by tests and simulations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from amberblob.config import ArchiveSection
from archive.cache import Cache
from archive.policy import Disk
from archive.state import ArchiveState
from archive.targets.interface import Source, Target
from archive.traffic import Traffic
from node.archive.jobs import JobRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveMeans:
    """One node's; whoever made it closes the target and the state, after the node's parts were closed.

    Attributes:
        section: what the operator set; its target is not empty.
        cluster_id: whose archive it is.
        target: requests by it are counted in ``traffic`` and never wait for a job's turn.
        disk: how full this node's disk is now.
        cache: what was fetched lately.
        newest_nodes: the nodes that the registry names at this moment (:func:`registry.newest.newest_nodes`); None: nobody can tell, and
            nothing is ever deleted from the target.
        sources: the bucket of ``s3://bucket/key`` that was imported from, and the key; raises ConfigError.
    """

    section: ArchiveSection
    cluster_id: str
    target: Target
    traffic: Traffic
    state: ArchiveState
    disk: Callable[[], Disk]
    cache: Cache
    sources: Callable[[str], tuple[Source, str]]
    newest_nodes: Callable[[], Awaitable[Collection[str]]] | None = None

    def for_job(self, request: JobRequest | None = None) -> Target:
        """The target at a job's pace: what all jobs of the node share, and the job's own limits."""
        if request is None:
            return self.target.paced(self.traffic.job())
        return self.target.paced(self.traffic.job(request.bytes_per_s, request.requests_per_s))
