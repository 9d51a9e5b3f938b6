"""Sees to it that jobs begin and come to an end: goes on with those of before a restart, begins what is scheduled, takes over what another left.

A job that goes by slots is complete when every slot was done by somebody. A node that is through with its own part looks now and then whether
slots came to it meanwhile, because a node before it in their routes cannot be reached, and asks the others what is done; what is left it does, too.

Also takes off what jobs of nodes that were removed have left here: their tokens on objects.
"""

from __future__ import annotations

import msgspec
import structlog

from amberblob.config import ArchiveJobRule
from amberblob.errors import JobConflict, NotReady, PeerError
from amberblob.wire import Reply
from amberblob.wire_archive import ArchiveJob
from antientropy.step import Did, Wake
from archive.schedule import Schedule, within
from node.archive.cluster import ClusterArchive, parts_in
from node.archive.condemned import CondemnedObjects
from node.archive.ground import Ground
from node.archive.jobs import SCHEDULED, SCOPES, JobRequest, Progress
from node.archive.runner import JobRunner

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
SETTLE_S = 5.0
"""After a start those that cannot be reached are waited for so long before jobs go on; looked at every :data:`SETTLE_LOOK_S`."""
SETTLE_LOOK_S = 0.2
TAKE_OVER_MS = 24 * 3_600_000
"""A job that ended here so long ago is not taken over any more: the next one does it."""
BEGAN_NOTE = "scheduled"

_began = msgspec.json.Decoder(dict[str, int]).decode


class Keeper:
    """A worker."""

    name = "archive-jobs"

    def __init__(self, ground: Ground, runner: JobRunner, cluster: ClusterArchive, condemned: CondemnedObjects) -> None:
        self.wake = Wake()
        self.pause_s = 0.0
        self._ground = ground
        self._runner = runner
        self._cluster = cluster
        self._condemned = condemned
        self._schedule: Schedule | None = None
        self._resumed: set[str] = set()
        self._began_s = ground.clock.monotonic_s()

    async def step(self) -> Did:
        """Look once."""
        if self._schedule is None:
            if not self._settled():
                self.pause_s = SETTLE_LOOK_S
                return Did.NOTHING
            self._schedule = await self._load()
        await self._scheduled(self._schedule)
        await self._stopped_meanwhile()
        for progress in self._runner.known():
            if self._may_be_left(progress):
                await self._take_over(progress)
        self.pause_s = LOOK_EVERY_S
        await self._condemned.let_go()
        return Did.NOTHING

    def _settled(self) -> bool:
        """Whether the others had time to be reached: before, this node would take all slots for its own, and send what they send."""
        ground = self._ground
        try:
            nodes = ground.nodes()
        except NotReady:
            return False
        unreached = [node for node in nodes if not ground.coordinator.peers.reachable(node)]
        return not unreached or ground.clock.monotonic_s() >= self._began_s + SETTLE_S

    async def _load(self) -> Schedule:
        await self._runner.resume()
        self._resumed = {
            status.request.job
            for status in self._runner.statuses()
            if status.state == "running" and SCHEDULED not in status.request.options
        }
        try:
            began = _began((await self._ground.means.state.note(BEGAN_NOTE)) or "{}")
        except msgspec.MsgspecError:
            began = {}
        now_ms = self._ground.clock.wall_ms()
        return Schedule(self._ground.section.jobs, began, now_ms, self._ground.node)

    # ---- what is scheduled

    async def _scheduled(self, schedule: Schedule) -> None:
        now_ms = self._ground.clock.wall_ms()
        await self._end_of_hours(now_ms)
        for rule in schedule.due(now_ms):
            if await self._begin(rule):
                schedule.begun(rule, now_ms)
                await self._ground.means.state.set_note(BEGAN_NOTE, msgspec.json.encode(schedule.began).decode())

    async def _begin(self, rule: ArchiveJobRule) -> bool:
        """Begin this node's part of a scheduled job; whether its turn is over until the next time."""
        ground = self._ground
        if SCOPES[rule.job] == "one" and not self._is_first():
            return True
        request = JobRequest(
            job=ground.mint.mint(),
            kind=rule.job,
            options={SCHEDULED: rule.between or "always"},
            asked_at_ms=ground.now_ms(),
        )
        try:
            await self._runner.start(request)
        except JobConflict:
            return True
        except NotReady as error:
            log.info("a scheduled job waits", kind=rule.job, error=error.detail)
            return False
        return True

    def _is_first(self) -> bool:
        """Whether no node before this one in the route table can be reached: it does what one node does for all."""
        try:
            nodes = self._ground.nodes()
        except NotReady:
            return False
        reachable = self._ground.coordinator.peers.reachable
        return next((node for node in nodes if reachable(node)), None) == self._ground.node

    async def _end_of_hours(self, now_ms: int) -> None:
        """A scheduled job whose hours are over is stopped; the next one goes on with what is left."""
        for status in self._runner.statuses():
            hours = status.request.options.get(SCHEDULED)
            if status.state != "running" or hours in (None, "always"):
                continue
            rules = [rule for rule in self._ground.section.jobs if rule.job == status.request.kind]
            if rules and not any(within(rule, now_ms) for rule in rules):
                await self._runner.stop(status.request.job)

    # ---- what was decided elsewhere

    async def _stopped_meanwhile(self) -> None:
        """A job that goes on after a restart may have been stopped while this node was away: some node that was there knows."""
        for job in sorted(self._resumed):
            parts = [part for reply in (await self._ask_others(job)).values() for part in parts_in(reply)]
            if any(part.state == "stopped" for part in parts):
                await self._runner.stop(job)
            if parts:
                self._resumed.discard(job)
            status = self._runner.status(job)
            if status is None or status.state != "running":
                self._resumed.discard(job)

    async def _ask_others(self, job: str) -> dict[str, Reply | PeerError]:
        try:
            others = [node for node in self._ground.nodes() if node != self._ground.node]
        except NotReady:
            return {}
        return await self._ground.ask_all(others, ArchiveJob(action="status", job=job))

    def _may_be_left(self, progress: Progress) -> bool:
        """Whether slots came to this node that it has not done in that job."""
        status, ground = progress.status, self._ground
        request = status.request
        if status.state != "done" or SCOPES[request.kind] != "slots" or self._runner.is_complete(progress):
            return False
        if SCHEDULED in request.options or status.ended_ms < ground.now_ms() - TAKE_OVER_MS:
            # Every node has a scheduled job of its own: the next one does what is left of all.
            self._runner.mark_complete(progress)
            return False
        return True

    async def _take_over(self, progress: Progress) -> None:
        ground, status = self._ground, progress.status
        job = status.request.job
        try:
            slot_count = ground.routing.table().slot_count
        except NotReady:
            return
        done = set(status.done_slots)
        others = [part for reply in (await self._ask_others(job)).values() for part in parts_in(reply)]
        for part in others:
            done.update(part.done_slots)
            if part.state == "stopped":
                self._runner.mark_complete(progress)
                return
        if len(done) >= slot_count:
            if any(part.state == "running" for part in others):
                return  # it evicts, or exports: should it go away now, that is left
            # What went wrong elsewhere is that node's to tell: while it is away, the job does not pass for done.
            all_well = all(part.state == "done" and not part.failures for part in others)
            self._runner.mark_complete(progress, all_done=all_well)
            return
        if status.state == "done" and any(slot not in done for slot in ground.led_slots()):
            progress.done_elsewhere(done)
            self._runner.go_on(job)
