"""The job ``import``: takes over an existing bucket by listing it (rfc/0016). What it held can be read at once, and is fetched when it is.

One node does it for all. It goes by the source's listing, and notes down how far it is; an object that is here already is found so, and skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDenied, ArchiveError, BadRequest, PreconditionFailed, RequestError, VersionConflict
from amberblob.manifest import ChunkRef, Version
from amberblob.paths import check_path
from amberblob.wire import Query
from archive.groups import GroupUploader
from archive.importing import Imported, imported, is_of, is_same
from archive.packs import Item
from archive.targets.interface import Source, Stored, Target
from archive.upload import Uploader
from archive.verifying import verify_object
from node.archive.ground import Ground
from node.archive.jobs import JobRequest, Progress
from node.archive.parallel import in_parallel
from node.archive.patience import Patience
from node.archive.placing import Placing
from node.protocol.operations import Conditions, Put
from node.protocol.quorum import Electorate

log = structlog.get_logger(__name__)

AT_ONCE = 16
PAGE = 1000
OPTIONS = frozenset(("to", "strip", "changed"))

OpenSource = Callable[[str], tuple[Source, str]]
"""The bucket that a URL is of, whole, and the rest of the URL: what its keys are to begin with. Raises: ConfigError."""


class ImportWork:
    """A :class:`node.archive.jobs.JobWork`.

    Options: ``to``: what the paths begin with, before the key. ``strip``: ``yes``: without that part of the key that the URL has. ``changed``:
    ``version``: what has another content at the source since becomes a new version; else it is told as a problem.
    """

    def __init__(self, ground: Ground, open_source: OpenSource) -> None:
        self._ground = ground
        self._open_source = open_source
        self._placing = Placing(ground)

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Import all keys that begin with the URL's rest, and whose paths begin with the prefix.

        Raises:
            BadRequest: the options make no sense. ConfigError: the URL is none.
            ArchiveError: the source cannot be listed, or the archive takes no manifest.
            QuorumUnavailable, PeerError: too few copies answered for half an hour; what was done stays done.
        """
        unknown = sorted(request.options.keys() - OPTIONS)
        if unknown:
            raise BadRequest(f"import has no option {', '.join(unknown)}; it has {', '.join(sorted(OPTIONS))}.")
        ground = self._ground
        source, rest = self._open_source(request.source)
        pace = ground.means.traffic.job(request.bytes_per_s, request.requests_per_s)
        patience = Patience(ground.clock, progress)
        run = _Run(ground, self._placing, patience, request, progress, _root(request.source, rest), rest)
        paced = source.paced(pace)
        if not request.dry_run:
            await patience.of(ground.identity.enter)  # manifests go there, and reads of the rows ask whose it is
        after = progress.note("after")
        while page := await patience.of(partial(_page, paced, request.source, rest, after)):
            await in_parallel(run.one, page, AT_ONCE)
            after = page[-1].name
            progress.set_note("after", after)
            progress.say(f"imported up to {after!r}")


async def _page(source: Source, url: str, rest: str, after: str) -> list[Stored]:
    """What comes next in the listing. Raises: ArchiveError; where somebody has to mend something, it says what was to be listed."""
    try:
        return await source.page(rest, after, PAGE)
    except ArchiveDenied as error:
        raise ArchiveDenied(f"The source {url} cannot be listed: {error.detail}", code=error.code) from error


def _root(url: str, rest: str) -> str:
    """The URL of the bucket, with a slash at its end."""
    root = url[: len(url) - len(rest)] if rest else url
    return root if root.endswith("/") else root + "/"


class _Run:
    """One run of the job."""

    def __init__(
        self,
        ground: Ground,
        placing: Placing,
        patience: Patience,
        request: JobRequest,
        progress: Progress,
        root: str,
        rest: str,
    ) -> None:
        self._patience = patience
        self._ground = ground
        self._placing = placing
        self._request = request
        self._progress = progress
        self._root = root
        self._own = ground.target.url.rstrip("/") + "/"
        self._to = request.options.get("to", "")
        self._strip = rest if request.options.get("strip") in ("yes", "1", "true") else ""
        self._renew = request.options.get("changed") == "version"
        self._manifests = _Manifests(ground, request)

    async def one(self, stored: Stored) -> None:
        """Import one object. Raises: ClusterError, PeerError (see :class:`node.archive.patience.Patience`)."""
        if (self._root + stored.name).startswith(self._own):
            return  # the archive itself
        path = self._to + stored.name.removeprefix(self._strip)
        if not path.startswith(self._request.prefix):
            return
        self._progress.bytes(total=stored.size_bytes)
        try:
            check_path(path)
        except RequestError as error:
            self._progress.problem(f"{self._root}{stored.name}: {error.detail}")
            return
        if self._request.dry_run:
            self._progress.add(objects=1, object_bytes=stored.size_bytes)
            return
        try:
            await self._patience.of(lambda: self._import(path, stored))
        except (PreconditionFailed, VersionConflict) as error:
            self._progress.problem(f"{path!r} was written while it was imported: {error.detail}")
        else:
            self._progress.bytes(done=stored.size_bytes)

    async def _import(self, path: str, stored: Stored) -> None:
        ground, url = self._ground, self._root + stored.name
        electorate = ground.routing.of(path)
        conditions = await self._conditions(electorate, path, url, stored.etag)
        if conditions is None:
            return
        made = imported(url, stored, path, blob_id=ground.mint.mint(), now_ms=ground.now_ms())
        draft, holders = made.draft, None
        if made.chunks:
            rows = [*made.chunks, *await self._manifests.archive(electorate.slot, path, made)]
            holders = await self._placing.stage(electorate, draft.blob_id, rows, manifest_id=draft.manifest_id)
        applied = await ground.coordinator.write(
            electorate, path, Put(draft=draft, conditions=conditions), write_id=draft.blob_id, holders=holders
        )
        if applied.fresh:
            self._progress.add(objects=1, object_bytes=stored.size_bytes)
            if conditions.version is not None:
                self._progress.add(objects_changed=1)

    async def _conditions(self, electorate: Electorate, path: str, url: str, etag: str) -> Conditions | None:
        """What has to hold of the path for the version to be written; None: it is not to be."""
        query = Query(slot=electorate.slot, path=path, epoch=electorate.epoch)
        record = (await self._ground.coordinator.read(electorate, query)).finding.record
        head = record.head if record is not None else None
        if head is None:
            return Conditions(absent=True)
        if is_same(head, url, etag):
            self._progress.add(objects_present=1)
            return None
        if not is_of(head, url):
            self._progress.problem(f"{path!r} is another object here (version {head.version}): it was not imported")
            return None
        if self._renew:
            return Conditions(version=head.version)
        self._progress.add(objects_changed=1)
        self._progress.problem(
            f"{path!r} has another content at its source since it was imported: import it as a new version by option changed=version"
        )
        return None


class _Manifests:
    """Puts the manifests of long objects into this cluster's own archive: copies fetch them from there."""

    def __init__(self, ground: Ground, request: JobRequest) -> None:
        section = ground.section
        self._ground = ground
        self._target: Target = ground.means.for_job(request)
        self._uploader = GroupUploader(
            Uploader(
                self._target,
                now_ms=ground.now_ms,
                mint=ground.mint.mint,
                pack_size=section.pack_size,
                lone_size=section.lone_size,
                parallel=1,
            )
        )

    async def archive(self, slot: int, path: str, made: Imported) -> list[ArchivedChunk]:
        """The verified row of the manifest, if there is one. Raises: ArchiveError."""
        draft: Version = made.draft
        if made.manifest is None or draft.manifest_id is None:
            return []
        chunk = ChunkRef(draft.manifest_id, len(made.manifest))
        item = Item(chunk=chunk, slot=slot, blob_id=draft.blob_id, path=path, version=1, index=-1)
        (row,) = await self._uploader.archive([(item, made.manifest)])
        (verdict,) = await verify_object(self._target, row.target_path, [row])
        if verdict.outcome != "verified":
            raise verdict.error or ArchiveError(f"{row.target_path} was stored, and cannot be read back")
        return [msgspec.structs.replace(row, state=max(1, self._ground.now_ms()))]
