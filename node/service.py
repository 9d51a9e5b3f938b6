"""What the public face (``node.http``) asks of the node: one Protocol, and the values that cross it.

The implementation is ``node.objects``; HTTP knows only this page. Every method may raise the errors of
:mod:`amberblob.errors` that it names, plus :class:`~amberblob.errors.NotReady`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from amberblob.archivejobs import JobWanted
from amberblob.errors import NoArchive
from amberblob.manifest import Version
from node.archive.status import ArchiveView, JobStarted, JobsView, JobView
from node.protocol.operations import NO_CONDITIONS, Conditions

__all__ = [
    "NO_CONDITIONS",
    "ArchiveService",
    "Conditions",
    "Consistency",
    "ListPage",
    "ListedObject",
    "MembershipAction",
    "NoArchiveHere",
    "NodeStatus",
    "ObjectService",
    "ObjectView",
    "PutOptions",
    "SlotsWanted",
]

SlotsWanted = Literal["", "1", "unhealed"]
"""Of ``GET /cluster?slots=``: no list of slots, all of them, or those that are not whole or not compared yet."""

MembershipAction = Literal["join", "drain", "remove", "forget"]
"""Of ``POST /cluster/membership``; what they mean is :class:`registry.membership.Action`."""

Consistency = Literal["strong", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOptions:
    """Everything of a PUT but its path and its bytes.

    Attributes:
        size: the body's length in bytes if the client told it; a body that ends elsewhere is refused.
        version: the version that the client wants; None: the next one.
        digests: ``(algorithm, expected digest)``, algorithm one of blake3, sha-256, sha-512; all must match.
        write_id: the client's, or None for one made up here.
        repeat: an earlier attempt of this write may have been applied. Then it is looked for also where that costs a query:
            the path may have been deleted and forgotten since.
    """

    size: int | None
    content_type: str
    meta: Mapping[str, str]
    version: int | None = None
    conditions: Conditions = NO_CONDITIONS
    digests: tuple[tuple[str, bytes], ...] = ()
    write_id: str | None = None
    repeat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectView:
    """One version, ready to be read.

    Attributes:
        path: the object's name.
        version: what is known of this version.
        tombstoned_at_ms: when it was deleted, if it is (readable all the same until retention ends).
        is_head: it is what an unversioned GET serves.
    """

    path: str
    version: Version
    tombstoned_at_ms: int | None = None
    is_head: bool = True


class ListedObject(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a listing. ``tombstoned`` objects appear only when they were asked for."""

    path: str
    version: int
    blob_id: str
    size: int
    etag: str
    created_at_ms: int
    content_type: str
    tombstoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """A page of a listing, in byte order. ``next_start`` is where the next page begins; None at the end."""

    objects: list[ListedObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_start: str | None = None


class ObjectService(Protocol):
    """Objects of the whole cluster, whichever node is asked."""

    async def put(self, path: str, body: AsyncIterator[bytes] | bytes, options: PutOptions) -> ObjectView:
        """Store the body, whole or as it comes, as a new version; returns once it is durable on a write quorum.

        Raises: DigestMismatch, PreconditionFailed, VersionConflict, BadRequest (incomplete-body),
        QuorumUnavailable, OutcomeUnknown, InsufficientStorage. An exception of ``body`` itself passes
        through after what was staged is given up.
        """
        ...

    async def delete(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> None:
        """Tombstone every live version of the path, or one. ``repeat``: see :class:`PutOptions`.

        Raises: NotFound (nothing there to delete), PreconditionFailed, QuorumUnavailable, OutcomeUnknown.
        """
        ...

    async def restore(
        self, path: str, *, version: int | None, conditions: Conditions, write_id: str | None, repeat: bool = False
    ) -> ObjectView:
        """Lift the tombstone of a version, or what the last delete took away; returns the head afterwards.
        ``repeat``: see :class:`PutOptions`.

        Raises: NotFound, PreconditionFailed, QuorumUnavailable, OutcomeUnknown.
        """
        ...

    async def lookup(
        self, path: str, *, version: int | None, at_ms: int | None, consistency: Consistency
    ) -> ObjectView:
        """The head, one version, or the version that was the head at a time.

        Raises: NotFound (no-such-object, no-such-version; ``extra`` may tell deleted_at), QuorumUnavailable.
        """
        ...

    def read(self, view: ObjectView, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes of a version, verified against their hashes, from the nearest replica that has them.

        A piece is up to a chunk, and valid until the next one is asked for or the iterator is closed: its memory is
        used again.

        Raises: QuorumUnavailable when no replica that answers has a chunk (while iterating).
        """
        ...

    def peek(self, view: ObjectView) -> bytes | None:
        """All bytes of a version, if they are in this node's memory, verified; None says nothing."""
        ...

    async def versions(self, path: str) -> list[ObjectView]:
        """Every version, newest first, tombstoned ones marked. Raises: NotFound, QuorumUnavailable."""
        ...

    async def list(
        self, *, prefix: str, delimiter: str, limit: int, start: str, tombstoned: bool, at_ms: int | None
    ) -> ListPage:
        """A page of objects whose path begins with ``prefix`` and is ``>= start``. Complete, or QuorumUnavailable."""
        ...

    async def explain(self, path: str) -> dict[str, Any]:
        """Slot, replicas, versions, chunks, where each copy is and in what state, and the command that mends it."""
        ...


class NodeStatus(Protocol):
    """What the node says of itself and of the cluster."""

    def not_ready(self) -> str | None:
        """Why the node does not serve reads and writes; None when it does."""
        ...

    def warning(self) -> str | None:
        """What is wrong although the node may serve; None: nothing."""
        ...

    async def cluster(self, *, slots: SlotsWanted = "", since_ms: int | None = None) -> dict[str, Any]:
        """The answer of ``GET /cluster``; asks all nodes how their copies are, and waits for each at most a second.

        ``since_ms`` (since 1970): from when on comparisons count; None: those of the last two rounds.
        """
        ...

    async def heal(self) -> dict[str, Any]:
        """The answer of ``POST /cluster/heal``: every node that can be reached compares its copies now.

        Raises: NotReady (no route table yet).
        """
        ...

    async def change_membership(
        self, action: MembershipAction, nodes: tuple[str, ...], *, dry_run: bool, force: bool
    ) -> dict[str, Any]:
        """The answer of ``POST /cluster/membership``: the plan, written down for the nodes unless it is a dry run.

        Raises: BadRequest, NotFound (no-such-node), MembershipConflict, NotReady, RegistryUnavailable.
        """
        ...


class ArchiveService(Protocol):
    """The cluster's archive (rfc/0016), whichever node is asked. Every method may raise NoArchive and NotReady."""

    async def view(self) -> ArchiveView:
        """The answer of ``GET /archive``."""
        ...

    async def start(self, wanted: JobWanted) -> JobStarted:
        """The answer of ``POST /archive/jobs``. Raises: BadRequest, JobConflict, QuorumUnavailable."""
        ...

    async def jobs(self) -> JobsView:
        """The answer of ``GET /archive/jobs``."""
        ...

    async def job(self, job: str) -> JobView:
        """The answer of ``GET /archive/jobs/{id}``. Raises: BadRequest, NoSuchJob."""
        ...

    async def stop(self, job: str) -> JobView:
        """The answer of ``DELETE /archive/jobs/{id}``. Raises: BadRequest, NoSuchJob."""
        ...


class NoArchiveHere:
    """The archive of a node for which none is configured."""

    async def view(self) -> ArchiveView:
        raise NoArchive

    async def start(self, wanted: JobWanted) -> JobStarted:
        raise NoArchive

    async def jobs(self) -> JobsView:
        raise NoArchive

    async def job(self, job: str) -> JobView:
        raise NoArchive

    async def stop(self, job: str) -> JobView:
        raise NoArchive
