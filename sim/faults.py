"""What goes wrong in a world, and how it is put right: one coroutine that breaks things and one that is the operator."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from archive.targets.memory import RequestKind
from sim.archiveshape import FAULTS_OF_ARCHIVES
from sim.check import judge_losses
from sim.clients import Violation
from sim.machine import Machine
from sim.operators import Operators
from sim.shape import FAULTS_OF_MEMBERS

if TYPE_CHECKING:
    from sim.world import World

EXPECTED_AT_START = ("simulated:", "free room", "in reserve", "no room left for a start")
"""What a start may fail for: the faults that are injected, and their consequences while they last."""


FAULTS_MAX = 150
"""In one world; a few seeds would else do little but start nodes."""


WORST_S = 4.0
"""How long a step of a disk's loss at the worst moment takes, on average: a readmission takes two or three seconds."""


class Faults:
    """Breaks machines, disks and links of a world; :meth:`heal` ends it all."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._undo: dict[int, Callable[[], None]] = {}
        self._numbers = 0
        self._may_damage = world.machines[random.randrange(len(world.machines))]
        self._operators = Operators(world, Random(f"operators {world.seed}"))
        self._watches_joint = False
        self._to_damage = False
        self._to_replace = False
        self._notes_to_lose = False
        self._at_worst = False
        self._over = False

    # -- the two coroutines

    async def breaking(self) -> None:
        """One fault after another."""
        world, random = self._world, self._random
        for _ in range(FAULTS_MAX):
            await asyncio.sleep(random.expovariate(1.0) * world.shape.fault_gap_s)
            self._strike(random.choice(world.shape.faults))

    async def operating(self) -> None:
        """Start anew what died or whose disk failed, after a while."""
        world, random = self._world, self._random
        while True:
            await asyncio.sleep(0.5)
            for machine in world.machines:
                process = machine.process
                if process is None or process.paused or not process.alive:
                    continue
                failed = machine.error or (machine.store.failed if machine.store is not None else None)
                if failed and (self._over or random.random() < 0.3):
                    self.check_error(machine)
                    self._note(f"operator: {machine.name} is started anew: {failed[:60]}")
                    machine.kill(power=False)
                    machine.boot()

    def check_error(self, machine: Machine) -> None:
        """A node that cannot start for another reason than those that are injected is a finding, or that gave a sound database up."""
        judge_losses(machine)
        if machine.error is not None and not any(text in machine.error for text in EXPECTED_AT_START):
            raise Violation(f"{machine.name} does not start: {machine.error}")

    def _note(self, text: str) -> None:
        self._world.event(text)

    # -- faults

    def _some(self) -> Machine | None:
        """A machine that runs."""
        running = [machine for machine in self._world.machines if machine.process and machine.process.alive]
        return self._random.choice(running) if running else None

    def _for_a_while(self, what: str, undo: Callable[[], None]) -> None:
        self._note(what)
        self._world.fired[what.split(":", maxsplit=1)[0]] += 1
        self._numbers += 1
        number = self._numbers
        self._undo[number] = undo
        world = self._world

        def end() -> None:
            if self._undo.pop(number, None) is not None:
                self._note(f"end of {what}")
                undo()

        world.loop.call_later(self._random.expovariate(1.0) * world.shape.fault_s, end)

    def _strike(self, fault: str) -> None:
        random = self._random
        machine = self._some()
        if machine is None:
            return
        name = machine.name
        others = [other.name for other in self._world.machines if other is not machine]
        match fault:
            case "kill" | "power cut":
                self._crash(machine, fault)
            case "kill all" | "power cut all":
                for each in self._world.machines:
                    if each.process and each.process.alive and not each.process.paused:
                        self._crash(each, fault)
            case "restart":
                self._spawn(self._restart(machine))
            case "pause":
                self._pause(machine)
            case "isolate":
                self._cut(f"isolate: {name}", {(name, o) for o in others} | {(o, name) for o in others})
            case "cut one way":
                links = {(name, o) for o in others} if random.random() < 0.5 else {(o, name) for o in others}
                if random.random() < 0.5:
                    links = {random.choice(sorted(links))}
                self._cut(f"cut one way: {sorted(links)}", links)
            case "split":
                side = {each.name for each in self._world.machines if random.random() < 0.5}
                rest = {each.name for each in self._world.machines} - side
                self._cut(
                    f"split: {sorted(side)}",
                    {(a, b) for a in side for b in rest} | {(b, a) for a in side for b in rest},
                )
            case "slow node":
                slow = self._world.network.slow
                slow[name] = random.choice((5.0, 50.0, 400.0))
                self._for_a_while(f"slow node: {name} x{slow[name]:g}", lambda: _drop(slow, name))
            case "slow disk" | "full disk" | "sync error":
                self._disk(machine, fault)
            case "clock jump":
                machine.clock.skew_ms = random.choice((-3_600_000, -40_000, -500, 0, 500, 40_000, 3_600_000))
                machine.clock.drift = random.choice((0.0, 0.01, -0.01))
                self._world.fired[fault] += 1
                self._note(f"clock jump: {name} by {machine.clock.skew_ms} ms")
            case "bit rot":
                # On one machine only: what has rotted everywhere is lost, and nobody promised otherwise.
                if self._may_damage.disk.damage_chunk():
                    self._world.fired[fault] += 1
            case "database damage":
                self._to_damage = True
            case "new disk":
                self._to_replace = True
                if not self._at_worst and random.random() < 0.5:
                    self._at_worst = True
                    self._spawn(self._new_disk_at_the_worst_moment())
            case "registry down":
                registry = self._world.registry
                registry.down = True
                self._for_a_while("registry down", lambda: setattr(registry, "down", False))
            case "bad network":
                network = self._world.network
                network.loss, network.spikes = random.choice((0.05, 0.3, 0.7)), random.choice((0.0, 0.2))

                def back() -> None:
                    network.loss, network.spikes = self._world.shape.loss, self._world.shape.spikes

                self._for_a_while(f"bad network: loses {network.loss}", back)
            case "killed evicting":
                machine.disk.when_removed = lambda: self._removed(machine)
            case "notes lost":
                self._notes_to_lose = True
            case _ if fault in FAULTS_OF_ARCHIVES:
                self._archive(fault)
            case _ if fault in FAULTS_OF_MEMBERS:
                self._spawn(self._operators.change(fault))
                if fault == "killed in joint" and not self._watches_joint:
                    self._watches_joint = True
                    self._spawn(self._kill_in_joint())
            case _:
                raise AssertionError(fault)

    def _cut(self, what: str, links: set[tuple[str, str]]) -> None:
        cut = self._world.network.cut
        new = links - cut
        cut |= new
        self._for_a_while(what, lambda: cut.difference_update(new))

    async def _new_disk_at_the_worst_moment(self) -> None:
        """One machine is away while the others write; then a disk is lost, and only the one that was away can be reached.

        What was acknowledged meanwhile is on the third one only. A blank copy that counted now, with or without having asked
        the one that was away, would outvote it.
        """
        lost, random = self._may_damage, self._random
        away, third = random.sample([machine for machine in self._world.machines if machine is not lost], 2)
        cut = self._world.network.cut
        links = self._links_of(away)
        cut |= links
        self._note(f"at the worst moment: {away.name} is away")
        await asyncio.sleep(WORST_S * (0.5 + random.random()))
        if not self._over:
            cut -= links
            links = self._links_of(third)
            cut |= links
            self._note(f"at the worst moment: {away.name} is back, {third.name} is away")
            self._to_replace = True
            if lost.process and lost.process.alive:
                self._crash(lost, "power cut")
            await asyncio.sleep(2 * WORST_S * (0.5 + random.random()))
        if not self._over:
            cut -= links
        self._at_worst = False

    async def _kill_in_joint(self) -> None:
        """As soon as a slot is in a joint epoch, or a little later, members of it die; one of them may lose its disk."""
        route = await self._operators.joint()
        await asyncio.sleep(self._random.choice((0.0, 0.05, 0.5)))
        self._watches_joint = False
        if route is None or self._over:
            return
        self._note(f"slot {route.slot} is in joint epoch {route.epoch}")
        for machine in self._operators.victims(route, self._may_damage):
            if machine.process and machine.process.alive and not machine.process.paused:
                if machine is self._may_damage and "new disk" in self._world.shape.faults:
                    self._to_replace = True
                self._crash(machine, self._random.choice(("kill", "power cut")))
                self._world.fired["killed in joint"] += 1

    def _links_of(self, machine: Machine) -> set[tuple[str, str]]:
        others = [other.name for other in self._world.machines if other is not machine]
        return {(machine.name, other) for other in others} | {(other, machine.name) for other in others}

    def _disk(self, machine: Machine, fault: str) -> None:
        trouble = machine.disk.trouble
        name = machine.name
        if fault == "slow disk":
            trouble.slow = self._random.choice((10.0, 100.0, 1000.0))
            self._for_a_while(f"slow disk: {name} x{trouble.slow:g}", lambda: setattr(trouble, "slow", 1.0))
        elif fault == "full disk":
            trouble.full = True
            self._for_a_while(f"full disk: {name}", lambda: setattr(trouble, "full", False))
        else:
            trouble.syncs_fail = True
            self._for_a_while(f"sync error: {name}", lambda: setattr(trouble, "syncs_fail", False))

    def _removed(self, machine: Machine) -> None:
        """A file of bytes goes from its disk: that, or what comes a moment later, is the last that the machine does."""
        process, random = machine.process, self._random
        archive = machine.parts.archive if machine.parts is not None else None
        if archive is None or not archive.evictor.is_at_work:
            return  # what is swept was given up by all: that is not what this waits for
        machine.disk.when_removed = None

        def crash() -> None:
            if machine.process is process and process is not None and process.alive and not self._over:
                self._crash(machine, random.choice(("kill", "power cut", *2 * ("power cut at its worst",))))
                self._world.fired["killed evicting"] += 1
                assert self._world.witness is not None
                self._world.witness.died_evicting(machine)

        delay_s = random.choice((0.0, 1.0, 4.0)) * machine.disk.latency_s * random.random()
        self._world.loop.call_later(delay_s, crash, context=contextvars.Context())

    def _archive(self, fault: str) -> None:
        bucket, random = self._world.bucket, self._random
        assert bucket is not None
        if fault == "archive answers late":
            bucket.late_s = random.choice((0.5, 2.0, 6.0))
            self._for_a_while(f"{fault}: {bucket.late_s:g} s", lambda: setattr(bucket, "late_s", 0.0))
            return
        if fault == "archive loses objects":
            bucket.loses = 0.5
            self._for_a_while(fault, lambda: setattr(bucket, "loses", 0.0))
            return
        kinds: tuple[RequestKind, ...] = ("*", "*", "put", "get", "delete", "list")
        kind = random.choice(kinds)
        match fault:
            case "archive away":
                broken = bucket.fault("unavailable", kind)
            case "archive slow":
                broken = bucket.fault(None, kind, delay_s=random.choice((0.3, 1.5, 4.0)))
            case "archive throttles":
                broken = bucket.fault("throttled", kind)
            case "archive stores damage":
                # Before it was read back: what is damaged later is gone, and nobody promised otherwise.
                broken = bucket.fault("damage", "put", random.choice(("packs/*", "chunks/*")))
            case "archive hangs":
                broken = bucket.fault("hang", kind)
            case _:
                broken = bucket.fault("lost", kind)

        def over() -> None:
            broken.release()
            if broken in bucket.faults:
                bucket.faults.remove(broken)

        self._for_a_while(f"{fault}: {kind}", over)

    def _pause(self, machine: Machine) -> None:
        process = machine.process
        if process is None or process.paused:
            return
        loop = self._world.loop
        loop.pause(process)
        self._for_a_while(f"pause: {process.name}", lambda: loop.resume(process))

    def off(self, machine: Machine, back_s: float) -> None:
        """It is killed, and starts so much later."""
        if machine.process is not None and machine.process.alive:
            self._crash(machine, "kill", back_s)

    def on(self, machine: Machine) -> None:
        """It starts now, if it is off."""
        self._boot(machine)

    def _crash(self, machine: Machine, fault: str, back_s: float | None = None) -> None:
        process = machine.process
        assert process is not None
        if process.paused:
            return
        self.check_error(machine)
        self._world.fired[fault] += 1
        self._note(f"{fault}: {process.name}")
        machine.kill(power=fault.startswith("power"), worst=fault == "power cut at its worst")
        if self._to_damage and machine is self._may_damage and machine.disk.damage_database():
            self._to_damage = False
            self._world.fired["database damage"] += 1
        if self._to_replace and machine is self._may_damage:
            self._to_replace = False
            machine.become_new()
            self._world.fired["new disk"] += 1
        if self._notes_to_lose and machine is self._may_damage:
            self._notes_to_lose = False
            machine.notes.lose()
            self._world.fired["notes lost"] += 1
        if back_s is None:
            back_s = self._random.expovariate(1.0) * self._world.shape.fault_s
        self._world.loop.call_later(back_s, self._boot, machine)

    def _boot(self, machine: Machine) -> None:
        if machine.process is not None and not machine.process.alive:
            self._note(f"{machine.name} starts")
            machine.boot()

    async def _restart(self, machine: Machine) -> None:
        """Stop a node as an operator does, and start it again."""
        process, parts, store = machine.process, machine.parts, machine.store
        if process is None or parts is None or store is None or process.paused:
            return
        self._note(f"restart: {process.name}")
        self._world.fired["restart"] += 1
        machine.parts = None  # its public port is closed first

        async def stop() -> None:
            await parts.puller.close()
            await parts.runner.close()
            if parts.archive is not None:
                await parts.archive.close()
            await parts.coordinator.close(2.0)
            await store.close()
            if parts.archive is not None:
                await parts.archive.ground.means.state.close()

        task = self._world.loop.create_task(stop(), context=process.context())
        while not task.done() and process.alive:
            await asyncio.sleep(0.05)
        if process.alive and machine.process is process:
            if not task.cancelled() and task.exception() is not None:
                raise Violation(f"{process.name} cannot be stopped: {task.exception()!r}") from task.exception()
            judge_losses(machine)
            machine.kill(power=False)
            machine.boot()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._world.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._world.broken(task.exception())

    # -- the end

    def heal(self) -> None:
        """Everything works from now on."""
        self._over = True
        undo, self._undo = self._undo, {}
        for number in undo:
            undo[number]()
        self._world.registry.down = self._world.registry.unlucky = False
        if self._world.bucket is not None:
            self._world.bucket.heal()
            self._world.bucket.late_s = self._world.bucket.loses = 0.0
        network = self._world.network
        network.cut.clear()
        network.slow.clear()
        network.late.clear()
        network.loss = network.spikes = network.doubling = 0.0
        for machine in self._world.machines:
            machine.disk.when_removed = None
            trouble = machine.disk.trouble
            trouble.full = trouble.syncs_fail = False
            trouble.slow = 1.0
            self._boot(machine)
        self._note("everything is healed")


def _drop(slow: dict[str, float], name: str) -> None:
    slow.pop(name, None)
