"""Runs this node's parts of jobs: starts, stops, resumes them after a restart, and writes down how far they are.

What a job does is registered by its kind (:class:`node.archive.jobs.JobWork`). One job of a kind runs at a time; a dry run counts as a kind
of its own. What was finished is kept, the last :data:`KEPT_MAX` of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec
import structlog

from amberblob.archivejobs import JobKind
from amberblob.errors import AmberError, JobConflict, NoSuchJob, NotReady
from node.archive.jobs import JobRequest, JobState, JobStatus, JobWork, Progress

log = structlog.get_logger(__name__)

KEPT_MAX = 50
SAVE_EVERY_S = 1.0

_decode = msgspec.json.Decoder(JobStatus).decode


class JobNotes(Protocol):
    """Where parts of jobs are written down (:class:`archive.state.ArchiveState`)."""

    async def jobs(self) -> Mapping[str, bytes]:
        """Every job's document, by its id."""
        ...

    async def save_job(self, job: str, status: bytes) -> None:
        """Keep it. Those of many jobs ago may be forgotten for it."""
        ...


class _Running:
    """A part that is being done.

    Attributes:
        stopping: it was asked to stop; else whoever cancels it ends the node, and it goes on after the restart.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stopping = False
        self.task: asyncio.Task[None] | None = None


class JobRunner:
    """This node's parts of jobs.

    Args:
        node: this node's id.
        notes: where they are written down.
        now_ms: the hybrid clock.
    """

    def __init__(self, node: str, notes: JobNotes, now_ms: Callable[[], int]) -> None:
        self._node = node
        self._notes = notes
        self._now_ms = now_ms
        self._works: dict[JobKind, JobWork] = {}
        self._known: dict[str, Progress] = {}
        self._running: dict[str, _Running] = {}
        self._saving = asyncio.Lock()
        self._loaded = False
        self._closed = False
        self._failed_before = 0

    @property
    def failures(self) -> int:
        """What jobs could not do and left since the node started; only grows."""
        return self._failed_before + sum(progress.status.failures for progress in self._known.values())

    def register(self, kind: JobKind, work: JobWork) -> None:
        """Have jobs of a kind carried out by ``work``."""
        assert kind not in self._works, kind
        self._works[kind] = work

    async def resume(self) -> None:
        """Load what is written down, and go on with what was running when the node ended. Before anything else; a second time does nothing."""
        if self._loaded:
            return
        for job, document in sorted((await self._notes.jobs()).items()):
            try:
                self._known[job] = Progress(_decode(document))
            except msgspec.MsgspecError as error:
                log.warning("a job's notes cannot be read: forgotten", job=job, error=str(error))
        self._forget_old()
        self._failed_before = -sum(progress.status.failures for progress in self._known.values())
        self._loaded = True
        for progress in list(self._known.values()):
            if progress.status.state == "running":
                self._begin(progress)

    async def start(self, request: JobRequest) -> JobStatus:
        """Begin this node's part; one that is known already is told as it is. It is written down before this returns.

        Raises:
            JobConflict: another of the kind is running.
            NotReady: the node is starting or stopping.
        """
        if not self._loaded or self._closed:
            raise NotReady("The node is starting or stopping: try again.")
        known = self._known.get(request.job)
        if known is not None:
            return known.status
        if request.kind not in self._works:
            raise NotReady(f"This node cannot carry out jobs of the kind {request.kind}.")
        for other in self._running.values():
            theirs = other.progress.status.request
            if (theirs.kind, theirs.dry_run) == (request.kind, request.dry_run):
                raise JobConflict(
                    f"Job {theirs.job} ({theirs.kind}) is running: wait for it, or stop it by amberblob archive stop.",
                    extra={"job": theirs.job},
                )
        progress = Progress(JobStatus(request=request, node=self._node, began_ms=self._now_ms()))
        self._known[request.job] = progress
        self._begin(progress)
        await self._save(progress)
        self._forget_old()
        return progress.status

    async def stop(self, job: str) -> JobStatus:
        """End this node's part where it is, and never go on with it; one that failed, or had problems, is taken note of by that. Raises: NoSuchJob."""
        progress = self._known.get(job)
        if progress is None:
            raise NoSuchJob(f"There is no job {job} here.")
        running, status = self._running.get(job), progress.status
        if running is not None and running.task is not None:
            running.stopping = True
            running.task.cancel()
            await asyncio.wait([running.task])
        elif status.state == "failed" or (status.state == "done" and status.failures):
            await self._stopped(progress, f"{status.detail or f'{status.failures} problems'} (noted by the operator)")
        elif status.state == "done" and not self.is_complete(progress):
            # Its own part is done, and not the job: a node that is away now may ask later what became of it.
            await self._stopped(progress, "stopped by the operator")
        return status

    async def _stopped(self, progress: Progress, why: str) -> None:
        progress.status.state = "stopped"
        progress.say(why)
        await self._save(progress)

    def go_on(self, job: str) -> None:
        """Begin again with a part that was done: there is more to do, which another node left."""
        progress = self._known.get(job)
        if progress is None or job in self._running or self._closed or progress.status.state != "done":
            return
        progress.status.state, progress.status.ended_ms = "running", 0
        progress.changed = True
        log.info("job goes on with what another node left", job=job, kind=progress.status.request.kind)
        self._begin(progress)

    def known(self) -> Iterable[Progress]:
        """All parts that are known, oldest first."""
        return list(self._known.values())

    def statuses(self) -> list[JobStatus]:
        """All parts that are known, oldest first."""
        return [progress.status for progress in self._known.values()]

    def status(self, job: str) -> JobStatus | None:
        """One part; None: there is none here."""
        progress = self._known.get(job)
        return None if progress is None else progress.status

    def running(self, kind: JobKind) -> bool:
        """Whether a job of the kind, dry runs left aside, is under way here."""
        requests = (running.progress.status.request for running in self._running.values())
        return any(request.kind == kind and not request.dry_run for request in requests)

    def count(self, state: JobState) -> int:
        """How many parts are in that state."""
        return sum(status.state == state for status in self.statuses())

    @staticmethod
    def mark_complete(progress: Progress, *, all_done: bool = False) -> None:
        """There is nothing left of the job on any node: it is not looked at again. ``all_done``: see :class:`JobStatus`."""
        if all_done and not progress.status.all_done:
            progress.status.all_done = progress.changed = True
        if not progress.note(COMPLETE):
            progress.set_note(COMPLETE, "1")

    @staticmethod
    def is_complete(progress: Progress) -> bool:
        """See :meth:`mark_complete`."""
        return bool(progress.note(COMPLETE))

    async def close(self) -> None:
        """Cancel what runs, and write down how far it is: it goes on at the next start."""
        self._closed = True
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for progress in self._known.values():
            with contextlib.suppress(AmberError):
                await self._save(progress)

    def _begin(self, progress: Progress) -> None:
        running = _Running(progress)
        job = progress.status.request.job
        self._running[job] = running
        running.task = asyncio.get_running_loop().create_task(self._run(running), name=f"archive job {job}")

    async def _run(self, running: _Running) -> None:
        progress = running.progress
        status, request = progress.status, progress.status.request
        saver = asyncio.get_running_loop().create_task(self._save_often(progress))
        try:
            work = self._works.get(request.kind)
            if work is None:
                raise NotReady(f"This node cannot carry out jobs of the kind {request.kind}.")
            log.info("job runs", job=request.job, kind=request.kind, prefix=request.prefix, dry_run=request.dry_run)
            await work(request, progress)
            status.state = "done"
            progress.say("")
        except asyncio.CancelledError:
            if running.stopping:
                status.state = "stopped"
                progress.say("stopped by the operator")
            else:
                raise
        except AmberError as error:
            status.state = "failed"
            progress.say(error.detail)
            log.warning("job failed", job=request.job, kind=request.kind, code=error.code, error=error.detail)
        except Exception as error:
            # A programmer's error: of the job alone, not of the node.
            status.state = "failed"
            progress.say(f"internal error ({type(error).__name__}): the node's log has the reason")
            log.error("job failed", job=request.job, kind=request.kind, exc_info=True)
        finally:
            saver.cancel()
            self._running.pop(request.job, None)
            if status.state != "running":
                status.ended_ms = self._now_ms()
                log.info("job ended", job=request.job, kind=request.kind, state=status.state, failures=status.failures)
                with contextlib.suppress(AmberError):
                    await self._save(progress)

    async def _save_often(self, progress: Progress) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            try:
                await self._save(progress)
            except AmberError as error:
                log.warning("a job's progress was not written down", error=error.detail)

    async def _save(self, progress: Progress) -> None:
        async with self._saving:
            if progress.changed:
                progress.changed = False
                try:
                    await self._notes.save_job(progress.status.request.job, msgspec.json.encode(progress.status))
                except BaseException:
                    progress.changed = True  # the next time, then
                    raise

    def _forget_old(self) -> None:
        over = [job for job, progress in self._known.items() if progress.status.state != "running"]
        for job in over[: max(0, len(over) - KEPT_MAX)]:
            self._failed_before += self._known.pop(job).status.failures


COMPLETE = "complete"
"""The note of a part: see :meth:`JobRunner.mark_complete`."""
