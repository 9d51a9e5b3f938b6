"""Whole nodes that lost this and that: *healed* is said when every copy really has everything, not before, and it comes to that."""

from __future__ import annotations

import random
from typing import Any

import pytest

from amberblob.cli.healing import Healed, HealWatch
from amberblob.errors import AmberError, ChunkCorrupt, NotFound
from node.http.times import parse_time_ms
from tests.unit.node.healing.healing_kit import round_of
from tests.unit.node.objects.kit import STAGED, Cluster, cluster, content, delete, get, put
from tests.unit.node.objects.status_kit import status_of

PATHS = [f"p{n}" for n in range(24)]
ROUNDS_MAX = 40


async def suffer(made: Cluster, dice: random.Random) -> dict[str, bytes]:
    """Writes while copies are away, deaf or damaged; what must be read in the end."""
    bodies: dict[str, bytes] = {}
    for at in range(60):
        if at % 10 == 0:
            made.net.heal()
            made.net.down = {f"n{dice.randint(1, 3)}"} if dice.random() < 0.6 else set()
            if dice.random() < 0.5:
                made.net.fault("Learn", "drop", to=f"n{dice.randint(1, 3)}")
        up = [number for number in (1, 2, 3) if f"n{number}" not in made.net.down]
        path, node = dice.choice(PATHS), made[dice.choice(up)]
        if path in bodies and dice.random() < 0.2:
            await delete(node, path)
            del bodies[path]
        else:
            body = content(dice.choice([10, 500, STAGED]), at)
            await put(node, path, body)
            bodies[path] = body
    await made.settle()
    made.net.heal()
    for path in dice.sample(PATHS, 4):
        store, slot = made[dice.randint(1, 3)].store, made.slot(path)
        register = await store.load(slot, path)
        if dice.random() < 0.5:
            store.forget_path(slot, path)
        elif register.chosen and register.record.head is not None:
            version = register.record.head
            for chunk in version.chunks[:1] if not version.inline else ():
                store.corrupt_chunk(slot, version.blob_id, chunk.id)
                # What nobody reads nobody knows of: somebody does.
                with pytest.raises(ChunkCorrupt):
                    await store.read_chunk(slot, version.blob_id, chunk)
                await store.set_wanted(slot, path, version, damaged=True)
    return bodies


async def lacking(made: Cluster, bodies: dict[str, bytes]) -> list[str]:
    """What some node on its own has not: the newest record of each path, and its bytes. Looks at nothing that health looks at."""
    found: list[str] = []
    got: Any
    for path in PATHS:
        registers = {node.name: await node.store.load(made.slot(path), path) for node in made}
        if len({str(register.record) for register in registers.values()}) > 1:
            found.append(f"{path} is not the same everywhere: {registers}")
        found += [
            f"{path} is not known to be chosen at {name}" for name, r in registers.items() if r.record and not r.chosen
        ]
    for number in (1, 2, 3):
        made.net.down = {"n1", "n2", "n3"} - {f"n{number}"}
        for path in PATHS:
            try:
                got = await get(made[number], path, consistency="local")
            except AmberError as error:
                got = None if isinstance(error, NotFound) else error
            if got != bodies.get(path):
                found.append(f"{path} at n{number}: {str(got)[:60]}")
        made.net.down = set()
    return found


@pytest.mark.parametrize("seed", range(12))
async def test_healed_means_healed(seed: int) -> None:
    dice = random.Random(seed)
    async with cluster() as made:
        bodies = await suffer(made, dice)
        status, watch = status_of(made, dice.randint(1, 3)), HealWatch()
        asked = await status.heal()
        assert asked["silent_nodes"] == []
        states = []
        for second in range(ROUNDS_MAX):
            told: dict[str, Any] = await status.cluster(slots="unhealed", since_ms=parse_time_ms(asked["since"]))
            heal = told["heal"]
            states.append(heal["state"])
            end = watch.look(told["slot_count"], heal, float(second))
            if heal["healed"]:
                assert heal["bytes_waiting"] == heal["objects_below_target"] == heal["undecided"] == 0
            if isinstance(end, Healed):
                assert await lacking(made, bodies) == []
                assert heal["healed"], "nobody writes"
                break
            await round_of(made)
        else:
            raise AssertionError((states, heal))
        assert states[0] != "whole", "or nothing was tried"
