"""The job ``verify``: reads back what rows say is in the archive (rfc/0016).

Each node looks at the objects that rows of the slots name which it looks after: first those that were never read back, then those of which that
is longest ago. What is right gets rows that say so; what is damaged or gone gets rows that say that, and copies that lived by it want their bytes
again. What could not be reached, or is no business of ours to judge (imported content), keeps its rows.

Option: ``newer_than`` (a duration): objects that were read back since are left alone. A scheduled job has 30d by default; one that was asked
for looks at everything.

What was found damaged is looked at again as well: an object may have been put back from an older version of the bucket. If it is right now, that
is told as if it had been uploaded now, for what was seen of an upload is never taken back. In a target that is not the cluster's own (:mod:`archive.identity`) nothing is missing: the
job fails, and nothing is written down.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.config import parse_duration
from amberblob.errors import AmberError, BadRequest, PeerError, StorageError
from amberblob.manifest import ChunkRef
from amberblob.wire import ReadChunk
from archive.targets.interface import Target
from archive.verifying import Verdict, verify_object
from node.archive.ground import PEER_TIMEOUT_S, Ground
from node.archive.jobs import SCHEDULED, JobRequest, Progress
from node.archive.patience import Outlasting, Patience
from node.archive.reach import Reach
from node.archive.rewriting import rows_of

log = structlog.get_logger(__name__)

PAGE_LINES = 2000
NEWER_THAN_SCHEDULED = "30d"
NAMED_MAX = 3
"""Paths that a problem names."""
LOOKED_UP_MAX = 50
"""Chunks of a damaged object for which is looked whether a disk still has them."""

_Place = tuple[int, str, ArchivedChunk]
"""Slot, blob id and row."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen of one object."""

    name: str
    places: Sequence[_Place]
    verdicts: dict[ArchivedChunk, Verdict]


class VerifyWork:
    """Carries out ``verify``: a :class:`node.archive.jobs.JobWork`."""

    def __init__(self, ground: Ground, reach: Reach) -> None:
        self._ground = ground
        self._reach = reach

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """See the module. Raises: BadRequest (an option), ArchiveDenied (the target is another one, or refuses), ArchiveUnavailable (for half an hour), DiskFailed."""
        await _Verify(self._ground, self._reach, request, progress).carry_out()


class _Verify:
    """One run."""

    def __init__(self, ground: Ground, reach: Reach, request: JobRequest, progress: Progress) -> None:
        self._ground = ground
        self._reach = reach
        self._prefix = request.prefix
        self._dry_run = request.dry_run
        self._progress = progress
        self._target: Target = ground.means.for_job(request)
        self._before_ms = self._cutoff(request)

    def _cutoff(self, request: JobRequest) -> int:
        """Rows that were read back since then are left alone."""
        began_ms = self._progress.status.began_ms or self._ground.now_ms()
        text = request.options.get("newer_than", NEWER_THAN_SCHEDULED if SCHEDULED in request.options else "0")
        try:
            return began_ms - round(parse_duration(text) * 1000)
        except ValueError as error:
            raise BadRequest(f"newer_than: {error}; wants a duration such as 30d") from error

    async def carry_out(self) -> None:
        await Patience(self._ground.clock, self._progress).of(self._ground.identity.require)
        slots = [slot for slot in self._ground.led_slots() if not self._progress.is_done(slot)]
        self._progress.status.slots_total = len(self._progress.status.done_slots) + len(slots)
        names = await self._due(slots)
        if self._dry_run:
            self._progress.add(would_verify=len(names))
        else:
            queue = iter(names)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._ground.section.parallel, len(names))):
                        group.create_task(self._work(queue, slots))
            except BaseExceptionGroup as error:
                raise _first(error) from None
        for slot in slots:
            self._progress.slot_done(slot)

    async def _due(self, slots: Sequence[int]) -> list[str]:
        """The objects that are to be read, in the order in which it is done."""
        oldest: dict[str, int] = {}
        for slot in slots:
            self._progress.say(f"looking through the rows of slot {slot}")
            after, more = 0, True
            while more:
                lines, more = await self._ground.store.archived_after(slot, after, PAGE_LINES)
                for line in lines:
                    row = line.chunk
                    if row.state < self._before_ms and not row.foreign:
                        oldest[row.target_path] = min(oldest.get(row.target_path, row.state), row.state)
                after = lines[-1].seq if lines else after
                more = more and bool(lines)
        return sorted(oldest, key=lambda name: (oldest[name], name))

    async def _work(self, names: Iterator[str], slots: Sequence[int]) -> None:
        for name in names:  # shared by all who work
            self._progress.say(f"reading {name}")
            places = [place async for place in self._places(name, slots)]
            if places:
                await self._read(name, places)

    async def _places(self, name: str, slots: Sequence[int]) -> AsyncIterator[_Place]:
        for slot in slots:
            async for line in rows_of(self._ground, slot, name):
                if not line.chunk.foreign and await self._is_wanted(slot, line.blob_id):
                    yield slot, line.blob_id, line.chunk

    async def _is_wanted(self, slot: int, blob_id: str) -> bool:
        """Whether it is of a path that the job is for."""
        if not self._prefix:
            return True
        referred = await self._ground.store.referred(slot, blob_id)
        return referred is not None and referred[0].startswith(self._prefix)

    async def _read(self, name: str, places: list[_Place]) -> None:
        rows = list(dict.fromkeys(row for _, _, row in places))
        size = sum({row.location: row.end - row.start for row in rows}.values())
        self._progress.bytes(total=size)
        verdicts = {verdict.row: verdict for verdict in await self._looked_at(name, rows)}
        seen = _Seen(name, places, verdicts)
        self._progress.bytes(done=size)
        self._progress.add(objects=1)
        await self._tell(seen)

    async def _looked_at(self, name: str, rows: list[ArchivedChunk]) -> list[Verdict]:
        """An archive that is away for a while is waited for; what of one object cannot be looked at then has no verdict."""
        tries = Outlasting(self._reach, self._progress)
        while True:
            verdicts = await verify_object(self._target, name, rows)
            away = [verdict.error for verdict in verdicts if verdict.outcome == "unknown" and verdict.error is not None]
            if not away or not await tries.again(away[0]):
                return verdicts

    async def _tell(self, seen: _Seen) -> None:
        """Write down what was seen, and say what is wrong."""
        ground, now_ms = self._ground, self._ground.now_ms()
        right = [verdict for verdict in seen.verdicts.values() if verdict.outcome == "verified"]
        self._progress.add(
            chunks_verified=len(right), bytes_verified=sum(verdict.row.end - verdict.row.start for verdict in right)
        )
        wrong = [verdict for verdict in seen.verdicts.values() if verdict.outcome in ("damaged", "missing")]
        unknown = [verdict for verdict in seen.verdicts.values() if verdict.outcome == "unknown"]
        text = await self._problem(seen, wrong) if wrong else ""
        by_blob: dict[tuple[int, str], list[ArchivedChunk]] = {}
        for slot, blob_id, row in seen.places:
            told = seen.verdicts[row].told(now_ms)
            if told is not None and told.verified and row.state == DAMAGED:
                ground.facts.give_way(row)
                told = replace(told, archived_at_ms=ground.rows_ms())
            if told is not None and told != row:
                by_blob.setdefault((slot, blob_id), []).append(told)
        position = 0
        for (slot, blob_id), rows in by_blob.items():
            position = max(position, ground.facts.take(slot, blob_id, rows, at_ms=now_ms))
        await ground.store.durable(position)
        if wrong:
            self._progress.add(**{f"chunks_{outcome}": count for outcome, count in _outcomes(wrong).items()})
            self._progress.problem(text, count=len(wrong))
            log.error("damaged in the archive", object=seen.name, what=text, **_outcomes(wrong))
        if unknown:
            error = unknown[0].error
            why = error.detail if isinstance(error, AmberError) else "it could not be looked at"
            self._progress.problem(f"{seen.name}: no verdict on {len(unknown)} chunks: {why}", count=len(unknown))

    async def _problem(self, seen: _Seen, wrong: Sequence[Verdict]) -> str:
        """What is wrong with an object, whose it is, and whether the bytes are anywhere else."""
        error = wrong[0].error
        why = error.detail if isinstance(error, AmberError) else wrong[0].outcome
        rows = {verdict.row for verdict in wrong}
        places = [place for place in seen.places if place[2] in rows]
        paths: dict[str, None] = {}
        lost: dict[str, None] = {}
        for slot, blob_id, row in places[:LOOKED_UP_MAX]:
            referred = await self._ground.store.referred(slot, blob_id)
            if referred is None:
                continue
            shown = f"{referred[0]} version {referred[1].version}"
            paths[shown] = None
            if not await self._elsewhere(slot, blob_id, row):
                lost[shown] = None
        said = [f"{count} chunk{'s' if count > 1 else ''} {outcome}" for outcome, count in _outcomes(wrong).items()]
        text = f"{seen.name}: {', '.join(said)} ({why})"
        if paths:
            text += f"; of {_few(list(paths))}"
        if lost:
            return (
                f"{text}. No disk that could be asked has the bytes of {_few(list(lost))}: they are lost, unless the object is put back "
                "(from an older version of the bucket, for instance) and verify is run again"
            )
        if len(places) > LOOKED_UP_MAX:
            return f"{text}, and more. Disks have the bytes of those that were looked for: they are sent anew by the next run"
        return f"{text}. Disks have the bytes: they are sent anew by the next run"

    async def _elsewhere(self, slot: int, blob_id: str, row: ArchivedChunk) -> bool:
        """Whether a disk has the bytes, as far as can be told now."""
        chunk = ChunkRef(id=row.chunk_id, len=row.length)
        try:
            await self._ground.store.read_chunk(slot, blob_id, chunk)
            return True
        except StorageError:
            pass
        # Reading is the only proof: a copy whose archived chunk was found damaged counts as one that wants bytes, no longer as evicted.
        request = ReadChunk(slot=slot, blob_id=blob_id, chunk=chunk, repair=True)
        for node in self._ground.others(slot):
            try:
                async for _ in self._ground.coordinator.peers.fetch(node, request, timeout_s=PEER_TIMEOUT_S):
                    pass
                return True
            except (PeerError, StorageError):
                continue
        return False


def _outcomes(wrong: Sequence[Verdict]) -> dict[str, int]:
    """How many are ``damaged``, and how many ``missing``; what there is none of is left out."""
    return dict(sorted(Counter(verdict.outcome for verdict in wrong).items()))


def _few(texts: Sequence[str]) -> str:
    """The first of them, and how many more."""
    shown = ", ".join(texts[:NAMED_MAX])
    return shown if len(texts) <= NAMED_MAX else f"{shown} and {len(texts) - NAMED_MAX} more"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, without the groups around it."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
