"""When the stub of a deleted path may go.

A deleted path is a register whose record is a stub, and rows of versions whose bytes retention may drop. To remove
the register is to forget: who asks a majority afterwards finds nothing, and must not find anything *older* either.

1. A clock nominates: the stub is older than the retention by the collector's clock. Nothing rests on the clock.
2. STABLE epoch, no learners: there is no copy beside the voters that could hold something older and vote later.
   (Copies that are named later begin blank: membership, rule 7.)
3. *Every* voter says, in this epoch, that it holds this stub at one ballot. So it is chosen, and no voter holds anything
   older. If one does not, the collector finishes the stub with a round and comes back another time. A mute copy
   (:mod:`sim.model.readmission`) cannot say it, so nothing is collected while there is one: it may have read a page that tells of what
   the stub deleted, and what the other pages say of floors may be older than the collection.
4. Then each voter removes it, in one transaction: only if its register is still at that ballot, and only in that epoch;
   and it raises ``ballot_floor`` to the ballot (so a COMMIT or LEARN from before, still under way, is refused)
   and ``version_floor`` to the record's highest version (so no version is given twice).
5. Promises stay. A round that PREPARED above the stub and saw it may still bring it back, as a stub; without its promises
   it could bring it back *over* a record that was written since.
6. Write ids stay, in the table, for longer than any client repeats a write. A write whose id is forgotten happens again.
   This is the one place where a duration matters; it is days against the seconds of a client's patience.

The floors are the slot's, so they bind its other paths: those' ballots and versions jump, which is harmless, and a copy
that missed a record of another path below the floor does not take it by LEARN any more. Such a copy is repaired by an
ordinary round, which has a ballot above the floor. (rfc/0007, "Consequences".)
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sim.model.coordinator import finish
from sim.model.replica import Copy
from sim.model.values import majority_of, quorate
from sim.model.world import Answers, Ask, Node, Wait, World

LOOKS = 3
"""How often a collector looks before it leaves a path to the next scan."""


def collect(node: Node, path: int) -> Generator[Wait, Any, None]:
    """Remove the stub of a path if it may go."""
    world = node.world
    rules, counts = world.rules, world.counts
    for look in range(LOOKS):
        if look:
            yield 1.0 + 2.0 * world.random.random()
        route = node.route
        if (route.joint and rules.collects_stable) or (route.learners and rules.collects_without_learners):
            counts["collections not in this epoch"] += 1
            return
        voters = route.voters
        needed = () if rules.collects_at_all else (majority_of(voters),)
        answers: Answers = yield Ask(voters, Copy.query, (route, path, False), needed)
        shown = answers.replies
        if not quorate((majority_of(voters),), shown):
            continue
        register = max((reply.register for reply in shown.values()), key=lambda register: register.accepted)
        record = register.record
        if record is None or record.head is not None or node.clock() - record.stamp < world.shape.retention:
            return
        same = [reply for reply in shown.values() if reply.register.accepted == register.accepted]
        silent = 0 if rules.collects_with_voices else sum(1 for refused in answers.refusals if refused.mute)
        if len(same) + silent == len(voters) or not rules.collects_at_all:
            counts["stubs collected"] += 1
            world.retire(path, record.version_max)
            world.note(
                "stub of path %d collected at %s, versions up to %d", path, register.accepted, record.version_max
            )
            node.tell(voters, Copy.collect, (route, path, register.accepted, record))
            return
        counts["collections that some voter was not ready for"] += 1
        yield from finish(node, path)


def send_collector(world: World, path: int) -> None:
    """Have some node look at a path, if that node is up."""
    node = world.nodes[int(world.random.random() * len(world.nodes))]
    if node.up:
        node.start(collect(node, path))
