"""The archive of the whole cluster, whichever node is asked: jobs on all nodes, and how all are. Behind ``/archive``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec
import structlog

from amberblob.archivejobs import JobWanted
from amberblob.errors import BadRequest, JobConflict, NoArchive, NoSuchJob, NotReady, PeerError, QuorumUnavailable
from amberblob.ids import valid_ulid
from amberblob.wire import Reply
from amberblob.wire_archive import ArchiveInfo, ArchiveInfoReply, ArchiveJob, ArchiveJobReply
from archive.policy import Policy
from node.archive.forewarned import warnings_for
from node.archive.ground import Ground
from node.archive.jobs import SCOPES, JobRequest, JobStatus
from node.archive.status import (
    ArchiveNodeStatus,
    ArchiveView,
    JobStarted,
    JobsView,
    JobView,
    total_of,
    view_job,
    view_jobs,
    warnings_of,
)

log = structlog.get_logger(__name__)

ASK_TIMEOUT_S = 3.0
"""How long one node is waited for where somebody looks; those that take longer are told as silent."""

T = TypeVar("T")

_jobs = msgspec.json.Decoder(list[JobStatus]).decode
_info = msgspec.json.Decoder(ArchiveNodeStatus).decode


class ClusterArchive:
    """Implements :class:`node.service.ArchiveService`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def view(self) -> ArchiveView:
        """How all nodes' archives are. Raises: NotReady."""
        replies = await self._ground.ask_all(self._ground.nodes(), ArchiveInfo(), timeout_s=ASK_TIMEOUT_S)
        nodes: list[ArchiveNodeStatus] = []
        for node, reply in sorted(replies.items()):
            told = _decoded(_info, reply.info) if isinstance(reply, ArchiveInfoReply) else None
            if told is not None:
                nodes.append(told)
            elif isinstance(reply, PeerError) and reply.code == NoArchive.code:
                nodes.append(ArchiveNodeStatus(node=node, reached=False, code=reply.code, why=reply.detail))
        silent = tuple(sorted(replies.keys() - {node.node for node in nodes}))
        return ArchiveView(
            target=self._ground.target.url,
            warnings=warnings_of(nodes),
            nodes=tuple(nodes),
            silent_nodes=silent,
            total=total_of(nodes),
        )

    async def has_rows(self) -> bool:
        """Whether any node that answers has archive rows; while there are no routes, nobody is asked."""
        try:
            return any(node.archived_rows for node in (await self.view()).nodes)
        except NotReady:
            return False

    async def start(self, wanted: JobWanted) -> JobStarted:
        """Begin a job on every node that can be reached, or on the one that it is for.

        Raises: BadRequest, JobConflict (every node that answered runs another of the kind), QuorumUnavailable (nobody began), NotReady.
        """
        if wanted.kind == "import" and not wanted.source:
            raise BadRequest("An import needs its source: s3://bucket/prefix.")
        ground = self._ground
        job = _checked(wanted.job) if wanted.job else ground.mint.mint()
        warnings = warnings_for(wanted, Policy.of(ground.section))
        request = JobRequest.taken(wanted, job=job, asked_at_ms=ground.now_ms(), warnings=warnings)
        message = ArchiveJob(action="start", job=request.job, request=msgspec.json.encode(request))
        if SCOPES[wanted.kind] == "one":
            replies = await self._start_one(message)
        else:
            replies = await ground.ask_all(ground.nodes(), message)
        started = {node for node, reply in replies.items() if isinstance(reply, ArchiveJobReply)}
        errors = {node: reply for node, reply in replies.items() if isinstance(reply, PeerError)}
        refused = {node: error.detail for node, error in errors.items() if error.code in _REFUSALS}
        if not started:
            raise _nobody(wanted, errors)
        log.info("job started", job=request.job, kind=request.kind, nodes=sorted(started), refused=sorted(refused))
        return JobStarted(
            job=request.job,
            nodes=tuple(sorted(started)),
            silent_nodes=tuple(sorted(errors.keys() - refused.keys())),
            refused=refused,
            warnings=warnings,
        )

    async def _start_one(self, message: ArchiveJob) -> dict[str, Reply | PeerError]:
        """On the first node of the route table that takes it. One that runs such a job already ends the search."""
        replies: dict[str, Reply | PeerError] = {}
        for node in self._ground.nodes():
            answer = await self._ground.ask_all([node], message)
            replies.update(answer)
            reply = answer[node]
            if not isinstance(reply, PeerError) or reply.code == JobConflict.code:
                break
        return replies

    async def jobs(self) -> JobsView:
        """All jobs that nodes tell of, newest first. Raises: NotReady."""
        replies = await self._ask_jobs(ArchiveJob(action="status"))
        told = {node: parts_in(reply) for node, reply in replies.items()}
        return view_jobs(told, slot_count=self._slot_count(), silent=_silent(replies))

    async def job(self, job: str) -> JobView:
        """One job. Raises: NoSuchJob, BadRequest, NotReady."""
        return self._view(job, await self._ask_jobs(ArchiveJob(action="status", job=_checked(job))))

    async def stop(self, job: str) -> JobView:
        """Stop a job on all nodes that can be reached. Raises: NoSuchJob, BadRequest, NotReady."""
        return self._view(job, await self._ask_jobs(ArchiveJob(action="stop", job=_checked(job))))

    async def _ask_jobs(self, message: ArchiveJob) -> dict[str, Reply | PeerError]:
        return await self._ground.ask_all(self._ground.nodes(), message, timeout_s=ASK_TIMEOUT_S)

    def _view(self, job: str, replies: dict[str, Reply | PeerError]) -> JobView:
        parts = [part for reply in replies.values() for part in parts_in(reply)]
        silent = _silent(replies)
        if not parts:
            raise NoSuchJob(
                f"No node that answered knows job {job}"
                + (
                    f"; {', '.join(silent)} did not answer."
                    if silent
                    else ". amberblob archive status lists the last ones."
                )
            )
        return view_job(parts, slot_count=self._slot_count(), silent=silent, slots=True)

    def _slot_count(self) -> int:
        return self._ground.routing.table().slot_count


_REFUSALS = frozenset(
    (NoArchive.code, JobConflict.code, NotReady.code, NoSuchJob.code, BadRequest.code, "peer-refused")
)
"""Codes of answers; with anything else the node was not reached, or gave no answer."""


def parts_in(reply: object) -> list[JobStatus]:
    """The parts of jobs that an answer tells; of an error, or of software that tells them in another way, none."""
    if not isinstance(reply, ArchiveJobReply):
        return []
    return _decoded(_jobs, reply.jobs) or []


def _decoded(decode: Callable[[bytes], T], data: bytes) -> T | None:
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("a node tells of its archive what cannot be read", error=str(error))
        return None


def _checked(job: str) -> str:
    if not valid_ulid(job):
        raise BadRequest(f"{job[:64]!r} is no job: its id is a ULID, as amberblob archive status lists the last ones.")
    return job


def _silent(replies: dict[str, Reply | PeerError]) -> list[str]:
    """Those that gave no answer; one that has no archive, or does not know the job, gave one."""
    return sorted(
        node for node, reply in replies.items() if isinstance(reply, PeerError) and reply.code not in _REFUSALS
    )


def _nobody(wanted: JobWanted, errors: dict[str, PeerError]) -> JobConflict | QuorumUnavailable:
    """Why no node began."""
    conflicts: Iterable[PeerError] = [error for error in errors.values() if error.code == JobConflict.code]
    for error in conflicts:
        return JobConflict(error.detail)
    seen = "; ".join(f"{node}: {error.detail}" for node, error in sorted(errors.items()))
    return QuorumUnavailable(f"No node began the job {wanted.kind} ({seen}). Nothing was done: try again.")
