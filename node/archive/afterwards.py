"""What follows jobs by itself: an export after what was archived, a look at the exported metadata after the archive was read back (rfc/0016)."""

from __future__ import annotations

from amberblob.errors import ArchiveError
from archive.export import check_exports
from node.archive.export import ExportWork
from node.archive.jobs import JobRequest, JobWork, Progress


class ThenExport:
    """A :class:`node.archive.jobs.JobWork`: another one, and after it an export, so that what was archived can be recovered from now on."""

    def __init__(self, work: JobWork, exporting: ExportWork) -> None:
        self._work = work
        self._exporting = exporting

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Do the work, and export; that the export failed is a problem of a job that did its work. Raises as the work does."""
        await self._work(request, progress)
        if request.dry_run:
            return
        progress.say("exporting the metadata")
        try:
            await self._exporting.export(self._exporting.ground.means.for_job(request), progress)
        except ArchiveError as error:
            progress.problem(f"The metadata was not exported: {error.detail}")


class ThenCheck:
    """A :class:`node.archive.jobs.JobWork`: another one, and after it a look at the exported metadata; what of it is damaged is told anew."""

    def __init__(self, work: JobWork, exporting: ExportWork) -> None:
        self._work = work
        self._exporting = exporting

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Do the work, and check. Raises as the work does."""
        await self._work(request, progress)
        if request.dry_run or request.prefix:
            return
        ground, target = self._exporting.ground, self._exporting.ground.means.for_job(request)
        progress.say("reading the exported metadata back")
        try:
            cluster = ground.routing.table().cluster.cluster_id
            wrong = await check_exports(target, cluster, ground.led_slots(), progress.problem)
            if wrong:
                await self._exporting.export(target, progress, anew=wrong)
        except ArchiveError as error:
            progress.problem(f"The exported metadata was not looked at: {error.detail}")
