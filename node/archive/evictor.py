"""Lets the bytes of this node's copies go, as the policy says and the archive's rows allow (rfc/0016, "Evicting").

Two kinds of rules. Those that always evict let a version go as soon as its rows are verified. Those with a high water mark wait until the disk is
fuller than that, and then let the coldest go (of two that chance picks, the colder; old versions before current ones) until it is as empty as they
want: by the bytes that went since it was looked at, so that nothing goes for room which the disk is about to have.

Nothing is evicted while the archive cannot be reached: who cannot look whether it is there must not give away the last copy that can be served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from amberblob.errors import AmberError, DiskFailed
from antientropy.rest import Rest
from antientropy.step import Did, Wake
from archive.heat import Heat
from archive.policy import Candidate, Candidates, Disk, Policy, Rule, Water, Why, is_old
from chunkstore.interface import ArchiveView
from node.archive.ground import Ground
from node.archive.jobs import Progress
from node.archive.reach import Reach
from node.archive.selection import PAGE_VERSIONS, prefixes_within

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
"""How often it is looked whether the disk is full, or rows came."""
AGAIN_AFTER_S = 15.0
"""After how long it is looked again into a slot of which something stayed that was due: its bytes had perhaps not all come yet. Then after twice as
long, and so on; what comes by then with everything that is gone through is not asked for."""
ALL_EVERY_S = 600.0
"""How often everything is gone through: what is due by its age, or was not read."""
REST_PER_WORK = 9.0
"""After going through everything the worker rests at least so many times as long as that took."""
AT_ONCE = 128
"""Versions that one step lets go, of whichever slots: each waits for the journal and for the database's thread, and side by side they wait together."""


@dataclass(slots=True)
class EvictCounts:
    """What was done since the start; each only grows."""

    versions: int = 0
    bytes: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Again:
    """When it is looked into a slot again, monotonic, and how long after the look before. None: that look has begun."""

    at_s: float | None
    pause_s: float


class Evictor:
    """A worker. Of its sweeps one runs at a time.

    Args:
        warm: returns once ``heat`` knows what was read before the node started.

    Attributes:
        counts: for the metrics.
    """

    name = "archive-evict"

    def __init__(
        self, ground: Ground, policy: Policy, heat: Heat, reach: Reach, warm: Callable[[], Awaitable[None]]
    ) -> None:
        self.wake = Wake()
        self.pause_s = LOOK_EVERY_S
        self.counts = EvictCounts()
        self._ground = ground
        self._policy = policy
        self._heat = heat
        self._reach = reach
        self._warm = warm
        self._water = Water()
        self._lock = asyncio.Lock()
        self._changed: set[int] = set()
        self._again: dict[int, _Again] = {}
        self._all_s = float("-inf")
        self._sweep: AsyncIterator[None] | None = None
        self._began_s = 0.0
        self._rest = Rest(ground.clock, max_s=ALL_EVERY_S)

    @property
    def is_at_work(self) -> bool:
        """Whether a sweep is going on."""
        return self._lock.locked()

    def rows_came(self, slot: int) -> None:
        """Rows were taken into the slot's copy: something may be evicted now."""
        self._changed.add(slot)
        self._again.pop(slot, None)

    async def step(self) -> Did:
        """Do some of what is due; or rest."""
        if not self._policy.evicts:
            self._changed.clear()
            self.pause_s = ALL_EVERY_S
            return Did.NOTHING
        self.pause_s = LOOK_EVERY_S
        if self._lock.locked() or self._reach.reached is not True:
            return Did.NOTHING
        if self._sweep is None and not self._begin():
            return Did.NOTHING
        assert self._sweep is not None
        async with self._lock:
            try:
                await anext(self._sweep)
                return Did.WORK
            except StopAsyncIteration:
                self._sweep = None
            except BaseException:
                self._sweep = None
                raise
        self._rest.begin(self._began_s, REST_PER_WORK)
        self._all_s = max(self._all_s, self._rest.until_s)
        return Did.NOTHING

    def _begin(self) -> bool:
        """Begin a sweep, if one is due: of everything, or of the slots to which rows came."""
        self._began_s = self._ground.clock.monotonic_s()
        disk = self._ground.means.disk()
        pressed = any(rule.evict_above and self._water.lets_go(rule, disk) for rule in self._evicting())
        if self._began_s >= self._all_s:
            self._all_s = self._began_s + ALL_EVERY_S
            slots = self._ground.own_slots()
        elif pressed and self._rest.left_s(self._began_s) <= 0:
            slots = self._ground.own_slots()
        else:
            due = {
                slot for slot, again in self._again.items() if again.at_s is not None and again.at_s <= self._began_s
            }
            slots = sorted((self._changed | due) & set(self._ground.own_slots()))
            for slot in due:
                self._again[slot] = _Again(None, self._again[slot].pause_s)
        self._changed.difference_update(slots)
        if not slots:
            return False
        self._sweep = self._swept(slots, "", None, disk)
        return True

    async def evict_all(self, prefix: str, progress: Progress) -> None:
        """Evict all that may go now, below the prefix. Raises: DiskFailed."""
        if not self._policy.evicts:
            return
        async with self._lock:
            await self._reach.wait(0.0)
            async for _ in self._swept(self._ground.own_slots(), prefix, progress, self._ground.means.disk()):
                await asyncio.sleep(0)

    def _evicting(self) -> Iterable[Rule]:
        return (rule for rule in self._policy.rules if rule.action == "archive-and-evict")

    async def _swept(
        self, slots: Iterable[int], prefix: str, progress: Progress | None, disk: Disk
    ) -> AsyncIterator[None]:
        """Look through these slots and evict; yields after each bit of work."""
        await self._warm()
        rules = {rule for rule in self._evicting() if self._water.lets_go(rule, disk)}
        waiting = Candidates(self._ground.randomness)
        at_once: list[Candidate] = []
        freed = 0
        for slot in slots:
            for begin in prefixes_within(self._policy, prefix):
                if not any(rule.prefix.startswith(begin) or begin.startswith(rule.prefix) for rule in rules):
                    continue
                after: tuple[str, int] | None = ("", 0)
                while after is not None:
                    page, after = await self._ground.store.archive_page(slot, after, PAGE_VERSIONS, prefix=begin)
                    due = self._due(slot, page, rules)
                    for candidate in due:
                        if candidate.rule.evict_above:
                            waiting.offer(candidate)
                    at_once += [candidate for candidate in due if not candidate.rule.evict_above]
                    while len(at_once) >= AT_ONCE:
                        some, at_once = at_once[:AT_ONCE], at_once[AT_ONCE:]
                        freed += await self._evict_some(some, progress)
                        yield
                    yield
        freed += await self._evict_some(at_once, progress)
        yield
        while some := self._coldest(waiting, disk, freed):
            freed += await self._evict_some(some, progress)
            yield

    def _coldest(self, waiting: Candidates, disk: Disk, freed: int) -> list[Candidate]:
        """The next to go, as many as the rules let go yet.

        By what was freed, not by looking at the disk again: a database's file does not shrink, so one that is full of small bodies would never
        be empty enough.
        """
        some: list[Candidate] = []
        while len(some) < AT_ONCE and (candidate := waiting.take()) is not None:
            if self._water.lets_go(candidate.rule, Disk(used=max(0, disk.used - freed), total=disk.total)):
                some.append(candidate)
                freed += candidate.version.size
        return some

    async def _evict_some(self, some: list[Candidate], progress: Progress | None) -> int:
        """Let these go, side by side: they share the journal's syncs."""
        return sum(await asyncio.gather(*(self._evict(candidate, progress) for candidate in some)))

    def _due(self, slot: int, page: list[ArchiveView], rules: set[Rule]) -> list[Candidate]:
        now_ms, due = self._ground.now_ms(), []
        for view in page:
            last_read_ms = self._heat.last_read_ms(view.version.blob_id, view.version.created_at_ms)
            judgement = self._policy.judge(view, last_read_ms, now_ms)
            if judgement.evict is Why.DUE and judgement.rule is not None and judgement.rule in rules:
                due.append(
                    Candidate(
                        slot=slot,
                        path=view.path,
                        version=view.version,
                        rule=judgement.rule,
                        old=is_old(view),
                        last_read_ms=last_read_ms,
                    )
                )
        return due

    async def _evict(self, candidate: Candidate, progress: Progress | None) -> int:
        """Let one version go; how many bytes went. What the store does not let go stays."""
        version = candidate.version
        if self._reach.reached is not True or not self._ground.has_voice(candidate.slot):
            return 0
        try:
            freed = await self._ground.store.evict(candidate.slot, candidate.path, version)
        except DiskFailed:
            raise
        except AmberError as error:
            self.counts.failures += 1
            log.warning("not evicted", path=candidate.path, version=version.version, error=error.detail)
            if progress is not None:
                progress.problem(f"{candidate.path} version {version.version} was not evicted: {error.detail}")
            return 0
        if freed is None:
            self._stayed(candidate.slot)
            return 0
        self.counts.versions += 1
        self.counts.bytes += freed
        if progress is not None:
            progress.add(evicted=1, evicted_bytes=freed)
        return freed

    def _stayed(self, slot: int) -> None:
        """The store did not let something of the slot go, and no rows will come that tell when it would."""
        now_s, before = self._ground.clock.monotonic_s(), self._again.get(slot)
        if before is not None and before.at_s is not None:
            return
        pause_s = AGAIN_AFTER_S if before is None else 2 * before.pause_s
        if pause_s < ALL_EVERY_S:
            self._again[slot] = _Again(now_s + pause_s, pause_s)
        else:
            self._again.pop(slot, None)
