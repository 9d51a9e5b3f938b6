"""The error tree of AmberBlob.

Every error says whose fault it is, whether trying again can help, what was seen, and what to do now::

    AmberError
    ├── RequestError                 the caller's: the same request fails again
    │   ├── BadRequest          400  bad-path, path-too-long, bad-parameter, bad-range, bad-header, incomplete-body, ...
    │   ├── Unauthorized        401  unauthorized
    │   ├── Forbidden           403  reserved-path
    │   ├── NotFound            404  no-such-object, no-such-version, nothing-to-restore
    │   │   ├── NoSuchNode      404  no-such-node
    │   │   └── NoSuchJob       404  no-such-job
    │   ├── MethodNotAllowed    405  method-not-allowed
    │   ├── VersionConflict     409  version-conflict
    │   ├── MembershipConflict  409  membership-conflict
    │   ├── NoArchive           409  no-archive (none is configured on the node that was asked)
    │   ├── JobConflict         409  job-conflict (a job of that kind is running already)
    │   ├── PreconditionFailed  412  precondition-failed
    │   ├── RangeNotSatisfiable 416  range-not-satisfiable
    │   └── DigestMismatch      422  digest-mismatch
    ├── ClusterError                 the cluster's: the same request may succeed later
    │   ├── QuorumUnavailable   503  quorum-unavailable (nothing was applied)
    │   │   └── StaleRoute      503  stale-route (this node cannot hear of the newest route: another one may have)
    │   ├── NotReady            503  not-ready, shutting-down, contended, too-slow, nodes-too-old
    │   ├── RegistryUnavailable 503  registry-unavailable (membership cannot change; data goes on)
    │   ├── ArchiveError        503  the archive's: what is only there cannot be had now
    │   │   ├── ArchiveUnavailable   archive-unavailable (not reached, throttled or too slow: try again)
    │   │   ├── ArchiveDenied        archive-denied (credentials, rights or bucket: the operator's)
    │   │   │   └── ArchiveNotOurs   archive-not-ours (the bucket is another one than what was archived to)
    │   │   ├── ArchiveMissing       archive-missing (the object is gone)
    │   │   └── ArchiveDamaged       archive-damaged (what came is not what was stored)
    │   ├── OutcomeUnknown      504  outcome-unknown (may yet be applied: retry with the same write id)
    │   └── InsufficientStorage 507  insufficient-storage
    ├── StorageError                 one disk's: the other replicas go on
    │   ├── DiskFailed               an I/O error or failed fsync: the disk takes no more writes
    │   ├── DiskFull                 below the reserve: refuses bytes, still takes tombstones and commits
    │   ├── DiskInUse                another process holds the disk
    │   ├── DiskMismatch             a disk of another cluster, or of an unknown format
    │   ├── JournalCorrupt           a journal entry that was durable fails its checksum
    │   ├── ChunkMissing             the bytes are not on this disk
    │   └── ChunkCorrupt             the bytes fail their hash; they went to quarantine
    ├── PeerError                    one peer's or the network's
    │   ├── PeerUnreachable          not connected, or the connection broke
    │   ├── PeerTimeout              no answer within the deadline
    │   ├── PeerRefused              wrong secret, wrong cluster, clock too far ahead, unknown wire version
    │   └── WireError                a frame that cannot be decoded
    └── ConfigError                  the operator's configuration
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

SEEN_CHARS_MAX = 300
"""Of what was seen, where an error is told in short."""


class AmberError(Exception):
    """The root. ``str(error)`` is the detail: what was seen and what to do now.

    Attributes:
        code: a stable short name, the ``type`` of a problem+json answer.
        status: the HTTP status that carries it.
        title: one line for people.
        retryable: whether the same request can succeed later without a change.
        detail: what was seen and what to do next.
        extra: further members of the problem document (plain JSON values).
    """

    code: str = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", *, code: str | None = None, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        if code is not None:
            self.code = code
        self.extra: dict[str, Any] = dict(extra or {})


class RequestError(AmberError):
    """The caller's: the same request fails again."""

    code = "bad-request"
    status = 400
    title = "Bad request"


class BadRequest(RequestError):
    """The request cannot be understood."""


class Unauthorized(RequestError):
    """The cluster asks for a token, and this is none of its."""

    code = "unauthorized"
    status = 401
    title = "Unauthorized"


class Forbidden(RequestError):
    """Understood and refused."""

    code = "forbidden"
    status = 403
    title = "Forbidden"


class NotFound(RequestError):
    """No such object or version."""

    code = "no-such-object"
    status = 404
    title = "No such object"


class NoSuchNode(NotFound):
    """The cluster does not know a node of that id."""

    code = "no-such-node"
    title = "No such node"


class NoSuchJob(NotFound):
    """No node that can be reached knows a job of that id."""

    code = "no-such-job"
    title = "No such job"


class MethodNotAllowed(RequestError):
    """The resource does not have this method."""

    code = "method-not-allowed"
    status = 405
    title = "Method not allowed"


class VersionConflict(RequestError):
    """A client-given version that is not greater than every version the path has had."""

    code = "version-conflict"
    status = 409
    title = "Version conflict"


class MembershipConflict(RequestError):
    """What is asked of a node does not go with what the cluster is now; the detail says what would."""

    code = "membership-conflict"
    status = 409
    title = "Membership conflict"


class NoArchive(RequestError):
    """Something of the archive was asked of a node that has none."""

    code = "no-archive"
    status = 409
    title = "No archive"

    def __init__(self, detail: str = "", *, code: str | None = None, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(
            detail or "No archive is configured: set [archive] target on every node and start them again.",
            code=code,
            extra=extra,
        )


class JobConflict(RequestError):
    """A job of that kind is under way already; ``extra`` names it."""

    code = "job-conflict"
    status = 409
    title = "Job conflict"


class PreconditionFailed(RequestError):
    """A condition of the request does not hold; ``extra`` tells the current head."""

    code = "precondition-failed"
    status = 412
    title = "Precondition failed"


class RangeNotSatisfiable(RequestError):
    """The range lies outside of the object."""

    code = "range-not-satisfiable"
    status = 416
    title = "Range not satisfiable"


class DigestMismatch(RequestError):
    """The body does not have the digest that the client gave; nothing was stored."""

    code = "digest-mismatch"
    status = 422
    title = "Digest mismatch"


class ClusterError(AmberError):
    """The cluster's: the same request may succeed later."""

    code = "cluster-error"
    status = 503
    title = "Cluster error"
    retryable = True


class QuorumUnavailable(ClusterError):
    """Too few replicas answered; nothing was applied. ``extra`` has wanted, got and each failure."""

    code = "quorum-unavailable"
    title = "Quorum unavailable"

    @classmethod
    def of(cls, wanted: int, got: int, failures: Mapping[str, str], *, raced: bool = False) -> QuorumUnavailable:
        """Build it from the evidence: replicas wanted, replicas that answered well, and why the others did not.

        ``raced``: others wrote the same path, and came first each time.
        """
        seen = "; ".join(f"{node}: {why}" for node, why in sorted(failures.items())) or (
            "lost races" if raced else "no answer in time"
        )
        why = "others who write the same path came first" if raced else "look at /cluster for nodes that are down"
        return cls(
            f"{got} of the {wanted} replicas that are needed answered ({seen}). "
            f"Nothing was changed by this: try again, {'since' if raced else 'and'} {why}.",
            extra={"wanted": wanted, "got": got, "failures": dict(failures)},
        )


class StaleRoute(QuorumUnavailable):
    """This node has not heard of the slot's newest route, and does not follow the registry now; another node may have. Nothing was applied."""

    code = "stale-route"
    title = "Route not known yet"

    @classmethod
    def behind(cls, slot: int, known: int, newest: int, failures: Mapping[str, str]) -> StaleRoute:
        """Build it from the epochs of the route that is known here and of the newest that a replica told of."""
        return cls(
            f"Slot {slot} has a route of epoch {newest}, and this node knows that of epoch {known}: it cannot follow the registry at this "
            "time. Nothing was changed by this: ask another node, and mend what /cluster says of the registry.",
            extra={"slot": slot, "known_epoch": known, "newest_epoch": newest, "failures": dict(failures)},
        )


class NotReady(ClusterError):
    """The node is starting or stopping, or has no routes yet."""

    code = "not-ready"
    title = "Node not ready"


class RegistryUnavailable(ClusterError):
    """The registry does not answer, or holds what cannot be read. A change that was asked for may have been made."""

    code = "registry-unavailable"
    title = "Registry unavailable"


class ArchiveError(ClusterError):
    """The archive's: what is only there cannot be had now. Everything else serves.

    Attributes:
        fault: whose fault it is, in a sentence for clients. mend: what they do now, in another.
    """

    code = "archive-error"
    title = "Archive error"
    fault: ClassVar[str] = "That is the archive's fault, not this cluster's."
    mend: ClassVar[str] = "`amberblob archive status` tells what to do."

    def in_short(self, what: str, extra: Mapping[str, Any]) -> Self:
        """The same for a client, in three sentences: ``what`` it is for and what was seen, whose fault it is, what to do. ``extra``: further members."""
        seen = _first_sentence(self.detail)
        return type(self)(f"{what} ({seen}). {self.fault} {self.mend}", code=self.code, extra={**self.extra, **extra})


def _first_sentence(detail: str) -> str:
    """What was seen, without what else there is to say of it."""
    seen = detail.partition(". ")[0].removesuffix(".")
    return seen if len(seen) <= SEEN_CHARS_MAX else f"{seen[: SEEN_CHARS_MAX - 1]}…"


class ArchiveUnavailable(ArchiveError):
    """The target was not reached, throttles, or is too slow. Trying again helps once it is back."""

    code = "archive-unavailable"
    title = "Archive unavailable"
    fault = "The archive's server, or the network to it, is at fault; nothing is lost."
    mend = "Try again in some seconds: it goes on by itself when the archive is back."


class ArchiveDenied(ArchiveError):
    """The target refuses: wrong credentials, missing rights, no such bucket. Helps: to mend the configuration or the bucket."""

    code = "archive-denied"
    title = "Archive denied"
    fault = "The archive refuses this cluster, which its operator has to mend; nothing is lost."
    mend = "`amberblob archive status` tells the operator what to do; then try again."


class ArchiveNotOurs(ArchiveDenied):
    """The target is not the one that the cluster's archive rows are of. Nothing of what is not there is lost. Helps: to set it right."""

    code = "archive-not-ours"
    title = "Not this cluster's archive"
    fault = "The operator's configuration points to another archive than the one that was filled; nothing is lost."


class ArchiveMissing(ArchiveError):
    """The target has no such object. Somebody removed it."""

    code = "archive-missing"
    title = "Missing in the archive"
    fault = "Somebody else than this cluster removed it there."
    mend = "Put it back there if you can; `amberblob archive verify` tells what is lost, `amberblob explain PATH` who has the rest."


class ArchiveDamaged(ArchiveError):
    """What the target gave is not what was stored: overwritten or damaged by somebody else. It is never handed on."""

    code = "archive-damaged"
    title = "Damaged in the archive"
    fault = "Somebody else than this cluster overwrote it there, or it rotted; what came was not handed on."
    mend = "Put it back there if you can; `amberblob archive verify` tells what is lost, `amberblob explain PATH` who has the rest."


class OutcomeUnknown(ClusterError):
    """The write may or may not be applied: retry with the same write id to learn which."""

    code = "outcome-unknown"
    status = 504
    title = "Outcome unknown"


class InsufficientStorage(ClusterError):
    """Too few disks have room for the object."""

    code = "insufficient-storage"
    status = 507
    title = "Insufficient storage"
    retryable = False

    @classmethod
    def of(cls, full: Iterable[str]) -> InsufficientStorage:
        """Build it from the evidence: the nodes whose disks refused the bytes."""
        nodes = sorted(full)
        return cls(
            f"The disks of {', '.join(nodes)} are full, so too few replicas can take the object. "
            "Nothing was stored: delete something or add disks.",
            extra={"full": nodes},
        )


class StorageError(AmberError):
    """One disk's: the other replicas go on."""

    code = "storage-error"
    title = "Storage error"


class DiskFailed(StorageError):
    """An I/O error or a failed fsync. The disk takes no more writes until its process starts anew."""

    code = "disk-failed"
    title = "Disk failed"


class DiskFull(StorageError):
    """Free space is below the reserve. Bytes are refused; tombstones and commits still go through."""

    code = "disk-full"
    status = 507
    title = "Disk full"


class DiskInUse(StorageError):
    """Another process holds the disk."""

    code = "disk-in-use"
    title = "Disk in use"


class DiskMismatch(StorageError):
    """A disk of another cluster or node, or of a format that this version does not know."""

    code = "disk-mismatch"
    title = "Wrong disk"


class JournalCorrupt(StorageError):
    """A journal entry that was durable fails its checksum: acknowledged state may be lost on this disk."""

    code = "journal-corrupt"
    title = "Journal corrupt"


class ChunkMissing(StorageError):
    """The bytes are not on this disk."""

    code = "chunk-missing"
    title = "Chunk missing"


class ChunkCorrupt(StorageError):
    """The bytes on this disk fail their hash; they were moved to quarantine."""

    code = "chunk-corrupt"
    title = "Chunk corrupt"


class PeerError(AmberError):
    """One peer's, or the network's between."""

    code = "peer-error"
    status = 503
    title = "Peer error"
    retryable = True


class PeerUnreachable(PeerError):
    """Not connected, or the connection broke before the answer."""

    code = "peer-unreachable"
    title = "Peer unreachable"


class PeerTimeout(PeerError):
    """No answer within the deadline."""

    code = "peer-timeout"
    title = "Peer timeout"


class PeerRefused(PeerError):
    """The peer speaks, but not with us: wrong secret, other cluster, clock too far ahead, unknown wire version."""

    code = "peer-refused"
    title = "Peer refused"
    retryable = False


class WireError(PeerError):
    """A frame that cannot be decoded."""

    code = "wire-error"
    title = "Wire error"
    retryable = False


class ConfigError(AmberError):
    """The operator's configuration cannot be used; the detail names the key and what it wants."""

    code = "bad-config"
    title = "Bad configuration"
