"""What clients ask, how they repeat it, and what they were told: the history that is judged."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from sim.model import coordinator
from sim.model.coordinator import DEADLINE, FAILED, UNKNOWN
from sim.model.garbage import send_collector
from sim.model.shape import Ask
from sim.model.values import Version
from sim.model.world import Node, Wait, World

PATIENCE = DEADLINE + 20.0
"""Longer than any round lasts: a 412 to a retry is final only if the first try is over (rfc/0002)."""

HASTE = 6.0
"""The patience of a client that does not keep to the rule."""

TRIES = 3


@dataclass(slots=True, eq=False)
class Call:
    """One operation: all tries of one write id. Its number is its write id, and the blob that a put brings.

    Attributes:
        kind: what was asked.
        path: of what.
        expected: the blob that a conditional put wants to replace; None: that nothing lives.
        version: the version that a ``get-version`` asks for.
        ended: when it was answered for good; None: never.
        result: what was told: ("ok", version), ("412", 0), ("404", 0), ("read", head, rows). None: unknown.
        void: certainly without effect (503 and no doubtful try), or a read that failed.
        tries: how many.
    """

    number: int
    kind: Ask
    path: int
    invoked: float
    expected: int | None = None
    version: int = 0
    ended: float | None = None
    result: tuple[Any, ...] | None = None
    void: bool = False
    doubtful: bool = False
    tries: int = 0
    trying: bool = False
    """Whether the client waits for the answer of the last of them."""

    def __str__(self) -> str:
        asked = {
            "put-if-etag": f"put if b{self.expected}",
            "put-if-absent": "put if absent",
            "get-version": f"get version {self.version}",
        }.get(self.kind, self.kind)
        if "put" in asked:
            asked = asked.replace("put", f"put b{self.number}")
        told = "nothing happened" if self.void else "unknown" if self.result is None else _told(self.result)
        end = "     …" if self.ended is None else f"{self.ended:6.1f}"
        tries = f"  ({self.tries} tries)" if self.tries > 1 else ""
        return f"#{self.number:<3} path {self.path}  [{self.invoked:6.1f},{end}]  {asked:18} → {told}{tries}"


def _told(result: tuple[Any, ...]) -> str:
    if result[0] != "read":
        return f"version {result[1]}" if result[0] == "ok" else str(result[0])
    _, head, rows = result
    shown = "nothing" if head is None else f"version {head[0]} = b{head[1]}"
    if rows is None:
        return shown
    return f"{shown}; history {' '.join(f'{number}=b{blob}' for number, blob in sorted(rows.items())) or 'empty'}"


READS = ("get", "get-version", "versions")


class Clients:
    """All clients of one world."""

    __slots__ = ("calls", "open", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[Call] = []
        self.open = 0

    def ask(self, kind: Ask, path: int) -> Call:
        """A client begins an operation now."""
        world, random = self.world, self.world.random
        call = Call(len(self.calls) + 1, kind, path, world.now)
        puts = [other.number for other in self.calls[-6:] if other.path == path and other.kind.startswith("put")]
        if kind == "put-if-etag":
            call.expected = random.choice(puts[-2:]) if puts else None
        elif kind == "get-version":
            call.version = random.randrange(1, len(puts) + 2)
        self.calls.append(call)
        self.open += 1
        self._try(call)
        return call

    def _try(self, call: Call) -> None:
        world = self.world
        call.tries += 1
        call.trying = True
        if call.tries > 1:
            world.counts["retries"] += 1
        # The home is the node with the highest number: so rivals' ballots may well be just below its own.
        luck, home = world.random.random(), world.shape.home
        node = world.nodes[-1 if luck < home else int((luck - home) / (1 - home) * len(world.nodes))]
        if not node.up:
            self._answered(call, call.tries, FAILED)
            return
        tries = call.tries
        process = node.start(self._steps(node, call), lambda result: self._answered(call, tries, result))
        if not process.alive:
            return
        if not world.calm and world.random.random() < world.shape.killed:

            def kill() -> None:
                if process.kill():
                    world.counts["coordinators killed"] += 1

            world.after(world.random.random() * 8, kill)
        world.after(PATIENCE if world.rules.clients_wait or world.calm else HASTE, self._impatient, call, tries)

    def _steps(self, node: Node, call: Call) -> Generator[Wait, Any, Any]:
        kind, number, path, first = call.kind, call.number, call.path, call.tries == 1
        if kind in READS:
            return coordinator.read(node, path, with_rows=kind != "get")
        if kind == "delete":
            return coordinator.write(node, path, number, coordinator.delete(node, number), first_try=first)
        expected = call.expected

        def holds(head: Version | None) -> bool:
            return kind == "put" or (None if head is None else head[1]) == expected

        return coordinator.write(node, path, number, coordinator.put(node, number, number, holds), first_try=first)

    def _impatient(self, call: Call, tries: int) -> None:
        """No answer for so long that no round of that try can be running any more."""
        if call.trying and call.tries == tries:
            self._end_try(call, None)

    def _answered(self, call: Call, tries: int, result: tuple[Any, ...]) -> None:
        world = self.world
        if not call.trying or call.tries != tries:
            return
        if not world.calm and world.random.random() < 0.03:
            world.counts["answers lost on the way to the client"] += 1
            return  # The client will be impatient.
        self._end_try(call, result)

    def _end_try(self, call: Call, result: tuple[Any, ...] | None) -> None:
        """A try is over. Doubtful ones are repeated, through whatever node, with the same write id."""
        world = self.world
        call.trying = False
        definite = result is not None and result not in (UNKNOWN, FAILED)
        if not definite and call.kind not in READS:
            call.doubtful = call.doubtful or result != FAILED
            if call.tries < TRIES and (call.doubtful or world.random.random() < 0.3) and world.random.random() < 0.8:
                world.after(world.random.random() * 5, self._try, call)
                return
        self.open -= 1
        if not definite:
            # Nobody waits any more; a write that is in doubt may still happen at any time.
            call.void = call.kind in READS or not call.doubtful
            if call.void:
                call.ended = world.now
            world.counts["outcomes unknown" if not call.void else "failed without effect"] += 1
            return
        assert result is not None
        call.ended = world.now
        if result[0] == "read":
            record, rows = result[1], result[2]
            head = None if record is None else record.head
            call.result = ("read", head, rows if call.kind != "get" else None)
        else:
            call.result = result
        world.counts[f"told {result[0]}"] += 1
        if call.tries > 1:
            world.counts["retries that were answered"] += 1
        if call.kind == "delete" and result[0] == "ok" and world.random.random() < world.shape.tidy:
            world.after(0.3 + 4.0 * world.random.random(), send_collector, world, call.path)
        world.note("#%d is told: %s", call.number, _told(call.result))
