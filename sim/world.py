"""A world: machines, a network, clients, and what goes wrong; then the healing, and the judgement."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import shutil
import tempfile
from collections import Counter, deque
from pathlib import Path
from random import Random

from amberblob.config import RepairSection, RetentionSection
from amberblob.config.values import Duration, Keep
from registry.routes import FORMAT_VERSION, ClusterInfo, Member, NodeInfo, Route, RouteTable
from sim.archivewitness import Witness
from sim.archivists import Archivists
from sim.bucket import SimBucket, WorldClock
from sim.check import judge
from sim.clients import Client, Library, Violation
from sim.disk import SimDisk
from sim.faults import Faults
from sim.history import Call
from sim.logs import listen
from sim.loop import Deadlock, SimLoop
from sim.machine import CLUSTER_ID, WALL_MS, Machine, Settings
from sim.network import Network
from sim.registry import SimRegistry
from sim.shape import Shape

CHUNK_BYTES = 64 * 1024
_HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
EVENTS_SHOWN = 40
CALLS_SHOWN = 40
_SHORTER = (
    ("Conditions", ""),
    ("absent=False, ", ""),
    ("etags=(), ", ""),
    (", version=None", ""),
    (", version_max=None", ""),
)
PROGRESS_S = 60.0
"""Within this virtual time after the healing everything must work again through every node."""

BEGINNING_S = 120.0
COURSE_S = 3600.0
TURNS_MAX = 6_000_000
LINES_AT_ONCE = 1024


class World:
    """One seed's world. :meth:`run` raises :class:`Violation` when a promise was broken.

    Args:
        operations: how many the clients do in all.
        folder: where the disks go; a folder in memory is best. Removed at the end.
        keep_trace: whether :attr:`trace` is filled.
    """

    def __init__(
        self, seed: int, *, operations: int = 200, folder: Path | None = None, keep_trace: bool = False
    ) -> None:
        self.seed = seed
        self.shape = Shape.draw(shape_chance(seed), operations)
        self.operations_left = self.shape.operations
        self.calls: list[Call] = []
        self.fired: Counter[str] = Counter()
        self.events: list[str] = []
        self.trace: deque[str] | None = deque(maxlen=200_000) if keep_trace else None
        self.library = Library(self._chance("library"), shares=self.shape.archive is not None)
        self._lines: list[str] = []
        """Of the trace, not in the digest yet."""
        self._digest = hashlib.blake2b(digest_size=16)
        self._folder = folder
        self._broken: BaseException | None = None
        self._root = "disks"
        self.bucket: SimBucket | None = None
        self.witness: Witness | None = None
        self.archivists: Archivists | None = None

    def _chance(self, what: str) -> Random:
        """A stream of chance of its own, so that one part's draws do not move another's."""
        return Random(f"{what} {self.seed}")

    @property
    def digest(self) -> str:
        """Of the whole trace: equal for equal runs."""
        self._take_lines()
        return self._digest.hexdigest()

    def note(self, text: str) -> None:
        """A line of the trace."""
        self._lines.append(f"{self.loop._now:12.6f} {text}")
        if len(self._lines) >= LINES_AT_ONCE:
            self._take_lines()

    def _take_lines(self) -> None:
        # Where the disks are is not the same twice.
        self._digest.update("".join(self._lines).replace(self._root, "disks").encode())
        if self.trace is not None:
            self.trace.extend(line.replace(self._root, "disks") for line in self._lines)
        self._lines.clear()

    def event(self, text: str) -> None:
        """A line of the trace that a reader of the history wants to see too."""
        self.note(text)
        self.events.append(f"{self.loop.time():9.3f} {text}")

    @property
    def table(self) -> RouteTable | None:
        """The routes as they are now."""
        return self.registry.table

    def broken(self, error: BaseException | None) -> None:
        """Something that runs beside the clients found a violation."""
        self._broken = self._broken or error

    # -- the course

    def run(self) -> World:
        """Play it all."""
        root = Path(tempfile.mkdtemp(prefix=f"amber-sim-{self.seed}-", dir=self._folder or _memory()))
        self._root = str(root)
        self.loop = SimLoop()
        self.loop.turns_max = TURNS_MAX
        self.loop.set_exception_handler(self._unhandled)
        listen(self._surprised, self.note if self.trace is not None else None)
        try:
            self._build(root)
            try:
                self.loop.run_until_complete(self._play())
            except Deadlock as error:
                raise Violation(f"everything stands still: {error}") from error
            if self._broken is not None:
                raise self._broken
        finally:
            self._bury()
            shutil.rmtree(root, ignore_errors=True)
        return self

    def _build(self, root: Path) -> None:
        shape = self.shape
        self.network = Network(
            loop=self.loop,
            random=self._chance("network"),
            fired=self.fired,
            note=self.note,
            loss=shape.loss,
            doubling=shape.doubling,
            latency_s=shape.latency_s,
            spikes=shape.spikes,
        )
        settings = Settings(
            write_quorum=shape.write_quorum,
            read_quorum=shape.read_quorum,
            registers_clean_max=shape.registers_clean_max,
            open_databases_max=shape.open_databases_max,
            linger_s=shape.linger_s,
            body_cache_bytes=shape.body_cache_bytes,
            move_lost_s=shape.move_lost_s,
            repair=RepairSection(
                follow_every_s=shape.follow_every_s,
                compare_every_s=shape.compare_every_s,
                scrub_days=shape.scrub_s / 86_400,
            ),
            retention=RetentionSection(
                keep=Keep(shape.keep_s if shape.expires else math.inf),
                versions=shape.keep_versions,
                stub_keep=Duration(shape.keep_s),
                # Where nothing expires there is nothing to be found either.
                check_every_s=1.0 if shape.expires else 10.0,
            ),
        )
        if shape.archive is not None:
            settings.archive = shape.archive.section()
            settings.bucket = self.bucket = SimBucket(
                self.loop,
                WorldClock(self.loop, WALL_MS),
                self._chance("bucket"),
                self.fired,
                self.note,
                latency_s=shape.archive.latency_s,
            )
        self.registry = SimRegistry(
            self.loop, self._chance("registry"), self.fired, self.note, late_s=shape.routes_late_s
        )
        self.machines = [
            Machine(
                name,
                loop=self.loop,
                random=self._chance(f"threads {name}"),
                disk=SimDisk(
                    name,
                    root,
                    self.loop,
                    self._chance(f"disk {name}"),
                    self.fired,
                    self.note,
                    latency_s=shape.disk_latency_s,
                    strict=shape.strict_disk,
                ),
                network=self.network,
                settings=settings,
                registry=self.registry,
                keys=self.registry.for_node(name, self._chance(f"registry {name}")),
            )
            for name in (f"n{number}" for number in range(1, shape.nodes + shape.spares + 1))
        ]
        if self.bucket is not None:
            self.witness = Witness(self, self._chance("witness"))

    async def _play(self) -> None:
        await self._begin()
        faults = Faults(self, self._chance("faults"))
        clients = [Client(self, self._chance(f"client {number}")) for number in range(self.shape.clients)]
        working = [self.loop.create_task(client.run()) for client in clients]
        beside = [self.loop.create_task(faults.breaking()), self.loop.create_task(faults.operating())]
        if self.shape.archive is not None and self.witness is not None:
            beside.append(self.loop.create_task(self.witness.watching()))
            self.archivists = Archivists(self, self._chance("archivists"), faults)
            beside.append(self.loop.create_task(self.archivists.working(self.shape.archive.job_gap_s)))
        for task in beside:
            task.add_done_callback(self._beside_ended)
        async with asyncio.timeout(COURSE_S):
            for task in working:
                await task
        for task in (beside[0], *beside[2:]):
            task.cancel()
        faults.heal()
        await judge(self)
        beside[1].cancel()

    def _beside_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.broken(task.exception())

    async def _begin(self) -> None:
        for machine in self.machines:
            machine.boot()
        async with asyncio.timeout(BEGINNING_S):
            while any(machine.store is None for machine in self.machines):
                await asyncio.sleep(0.05)
            self.registry.begin(self._routes())
            while not all(machine.serving for machine in self.machines):
                await asyncio.sleep(0.05)
        self.event("all nodes serve")

    def _routes(self) -> RouteTable:
        shape = self.shape
        disks = {machine.name: machine.store.disk_id for machine in self.machines if machine.store is not None}
        names = list(disks)[: shape.nodes]
        info = ClusterInfo(
            cluster_id=CLUSTER_ID,
            name="sim",
            slot_count=shape.slots,
            replicas=shape.replicas,
            chunk_bytes=CHUNK_BYTES,
            format_version=1,
            created_at_ms=0,
        )
        nodes = {
            name: NodeInfo(
                node_id=name,
                disk_id=disk_id,
                zone=name,
                host=name,
                http_address=f"{name}:80",
                peer_address=f"{name}:81",
                capacity_bytes=1,
                version="0",
                started_at_ms=0,
                registry_format=FORMAT_VERSION,
            )
            for name, disk_id in disks.items()
        }

        def voters(slot: int) -> tuple[Member, ...]:
            chosen = [names[(slot + step) % len(names)] for step in range(shape.replicas)]
            return tuple(Member(name, disks[name]) for name in chosen)

        routes = tuple(Route(slot=slot, epoch=1, voters=voters(slot)) for slot in range(shape.slots))
        return RouteTable(cluster=info, routes=routes, nodes=nodes)

    def _surprised(self, error: BaseException, line: str) -> None:
        violation = Violation(f"a node met an error that nobody foresaw: {error!r}; {line}")
        violation.__cause__ = error
        self.broken(violation)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        violation = Violation(f"nobody handled {error!r}: {context.get('message')}")
        violation.__cause__ = error if isinstance(error, BaseException) else None
        self.broken(violation)

    def _bury(self) -> None:
        """End everything without letting it do anything any more."""
        for machine in getattr(self, "machines", ()):
            if machine.process is not None and machine.process.alive:
                self.loop.kill(machine.process)
        self.loop.close()

    # -- for people

    def story(self, error: BaseException, *, path: str | None = None, until_s: float | None = None) -> str:
        """What happened, short enough to be read."""
        last_s = self.loop.time() if until_s is None else until_s
        calls = [call for call in self.calls if path in (None, call.path) and call.invoked <= last_s]
        events = [line for line in self.events if float(line[:9]) <= last_s]
        told = [call for call in calls if not call.void]
        lines = [
            f"seed {self.seed}: {error}",
            f"world: {self.shape}",
            "the last events:",
            *events[-EVENTS_SHOWN:],
            f"the last operations ({len(calls) - len(told)} of {len(calls)} certainly did nothing and are left out):",
            *(str(call) for call in told[-CALLS_SHOWN:]),
        ]
        text = _HASH.sub(r"\1", "\n".join(lines))
        for long, short in _SHORTER:
            text = text.replace(long, short)
        return text


def shape_chance(seed: int) -> Random:
    """What a world's shape is drawn from."""
    return Random(f"shape {seed}")


def _memory() -> Path | None:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else None
