"""What follows jobs by itself: an export after what was archived, a look at the exported metadata after the archive was read back (rfc/0016)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from amberblob.errors import ArchiveError
from archive.export import check_exports
from archive.targets.interface import Target
from node.archive.export import ExportWork
from node.archive.jobs import JobRequest, JobWork, Progress
from node.archive.patience import Outlasting
from node.archive.reach import Reach


class ThenExport:
    """A :class:`node.archive.jobs.JobWork`: another one, and after it an export, so that what was archived can be recovered from now on."""

    def __init__(self, work: JobWork, exporting: ExportWork, reach: Reach) -> None:
        self._work = work
        self._exporting = exporting
        self._reach = reach

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Do the work, and export; that the export failed is a problem of a job that did its work. Raises as the work does."""
        await self._work(request, progress)
        if request.dry_run:
            return
        target = self._exporting.ground.means.for_job(request)
        progress.say("exporting the metadata")
        error = await _outlasting(self._reach, progress, lambda: self._exporting.export(target, progress))
        if error is not None:
            progress.problem(f"The metadata was not exported: {error.detail}")


class ThenCheck:
    """A :class:`node.archive.jobs.JobWork`: another one, and after it a look at the exported metadata; what of it is damaged is told anew."""

    def __init__(self, work: JobWork, exporting: ExportWork, reach: Reach) -> None:
        self._work = work
        self._exporting = exporting
        self._reach = reach

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Do the work, and check. Raises as the work does."""
        await self._work(request, progress)
        if request.dry_run or request.prefix:
            return
        target = self._exporting.ground.means.for_job(request)
        progress.say("reading the exported metadata back")
        error = await _outlasting(self._reach, progress, lambda: self._check(target, progress))
        if error is not None:
            progress.problem(f"The exported metadata was not looked at: {error.detail}")

    async def _check(self, target: Target, progress: Progress) -> None:
        ground = self._exporting.ground
        cluster = ground.routing.table().cluster.cluster_id
        problems: list[str] = []
        wrong = await check_exports(target, cluster, ground.led_slots(), problems.append)
        for problem in problems:  # told once, however often it is looked
            progress.problem(problem)
        if wrong:
            await self._exporting.export(target, progress, anew=wrong)


async def _outlasting(
    reach: Reach, progress: Progress, attempt: Callable[[], Awaitable[object]]
) -> ArchiveError | None:
    """Try, and try again when the archive answers that was away; what went wrong in the end."""
    tries = Outlasting(reach, progress)
    try:
        while True:
            try:
                await attempt()
                return None
            except ArchiveError as error:
                if not await tries.again(error):
                    raise
    except ArchiveError as error:
        return error
