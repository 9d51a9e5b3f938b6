"""The memory store and a disk hear the same, in any order, with gaps and repetitions: they must answer the same.

What they hear is what a replica of a register hears: records in a chain, each of a higher ballot, losers of ballots in between,
and what other copies tell of the path at any time. The disk is killed and opened again in between.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from amberblob.ballot import Ballot
from amberblob.digests import BUCKETS
from amberblob.limits import MIB
from amberblob.manifest import Op, Record, Version, WriteMark, covers, merge_ranges, without
from amberblob.mutations import Accepted, Chosen, Forgotten, Installed, Reserved
from chunkstore import MemoryStore, ReplicaStore

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))
SLOT = 1
BODY = b"a body"
PATHS = ("a", "b/1", "b/2")


class Chain:
    """The records of one path, as they were chosen, and everything that a copy may hear of them."""

    def __init__(self, path: str, chance: random.Random, kit) -> None:
        self.path, self._chance, self._kit = path, chance, kit
        self.records: list[tuple[Ballot, Record]] = []
        self.truth = MemoryStore(kit.mint())
        self.heard: list[Accepted | Chosen | Installed] = []
        self._versions: dict[int, Version] = {}

    def _next(self) -> Record:
        chance, before = self._chance, self.records[-1][1] if self.records else None
        alive = [n for low, high in before.live for n in range(low, high + 1)] if before is not None else []
        dead = [n for n in self._versions if before is not None and n not in alive and not covers(before.expired, n)]
        ops: list[Op] = ["put", "put"]
        if alive:
            ops += ["delete", "delete-version"]
        if dead:
            ops += ["restore", "expire"]
        op = chance.choice(ops)
        made = self._kit.record(BODY, before)
        revision, version_max = made.revision, before.version_max if before is not None else 0
        live, head = before.live if before is not None else (), before.head if before is not None else None
        expired = before.expired if before is not None else ()
        deleted_at_ms = before.deleted_at_ms if before is not None else 0
        if op == "put":
            version_max, head, live = (
                made.version_max,
                made.head,
                merge_ranges((*live, (made.version_max, made.version_max))),
            )
            self._versions[version_max] = head
        elif op == "delete":
            head, live, deleted_at_ms = None, (), revision
        elif op == "delete-version":
            live, deleted_at_ms = without(live, chance.choice(alive)), revision
        elif op == "restore":
            one = chance.choice(dead)
            live = merge_ranges((*live, (one, one)))
        else:
            expired = merge_ranges((*expired, *((n, n) for n in dead if chance.random() < 0.7)))
        if op != "put":
            newest = max((high for _, high in live), default=0)
            head = self._versions[newest] if newest else None
        mark = WriteMark(f"{self.path}-{revision}", op, version_max, revision)
        marks = ((*before.writes, mark) if before is not None else (mark,))[-3:]
        previous = before.added if before is not None else None
        return Record(revision, op, version_max, head, live, (), revision, deleted_at_ms, previous, marks, expired)

    async def grow(self) -> None:
        """One more record is chosen."""
        if self.records and self._chance.random() < 0.3:
            loser = self._kit.record(BODY, self.records[-1][1])
            self.heard.append(Accepted(SLOT, self.path, self._kit.ballot(), self._based(loser), BODY))
        record, ballot = self._next(), self._kit.ballot()
        body = BODY if record.added is not None else None
        self.records.append((ballot, record))
        accepted, chosen = Accepted(SLOT, self.path, ballot, record, body), Chosen(SLOT, self.path, ballot)
        self.truth.apply(accepted)
        self.truth.apply(chosen)
        self.heard += [accepted, chosen, chosen, Chosen(SLOT, self.path, ballot, record)]
        (item,) = await self.truth.items(SLOT, [self.path])
        self.heard.append(Installed(SLOT, self.path, item.ballot, item.record, item.rows, item.writes))
        some = tuple(row for row in item.rows if self._chance.random() < 0.5)
        self.heard.append(Installed(SLOT, self.path, None, None, some, item.writes[:1]))

    def _based(self, loser: Record) -> Record:
        before = self.records[-1][1]
        return Record(
            loser.revision, "put", loser.version_max, loser.head, merge_ranges(loser.live), (), 1, before.deleted_at_ms,
            before.added, (*before.writes, WriteMark(f"{self.path}-lost-{loser.revision}", "put", 0, 1))[-3:], before.expired,
        )  # fmt: skip


async def _answers(store: ReplicaStore) -> dict[str, object]:
    """All that a store tells."""
    await store.settle([SLOT])
    tally = store.tally(SLOT)
    registers = {path: await store.load(SLOT, path) for path in PATHS}
    rows = {path: await store.rows(SLOT, path) for path in PATHS}
    histories, after = await store.histories(SLOT, "", 100)
    assert after is None
    # Under an undecided record a disk does not know of rows that come late whether they live, and learns of it later.
    lives = {
        path: [(row.version, row.tombstoned_at_ms is None or not registers[path].chosen) for row in told]
        for path, told in rows.items()
    }
    return {
        "tally": (tally.root, tally.objects, tally.wanted, tally.wanted_bytes, tally.damaged),
        "registers": registers,
        "rows": lives,
        "undecided": await store.undecided(SLOT),
        "sums": await store.bucket_sums(SLOT),
        "fingerprints": await store.fingerprints(SLOT, range(BUCKETS)),
        "items": await store.items(SLOT, PATHS),
        "everything": await store.items_after(SLOT, "", MIB),
        "wanted": await store.wanted(SLOT, 100),
        "page": await store.check_page(SLOT, "", 100),
        "sums right": await store.check_sums(SLOT),
        "histories": [
            (one.path, one.record, [row[:2] for row in one.rows]) for one in histories if one.record is not None
        ],
        "listing": list((await store.scan("", "", "", 100)).entries),
        "state": (store.slot_state(SLOT).ballot_floor, store.slot_state(SLOT).version_floor),
        "orphans": await store.orphans(SLOT, 1 << 47),
    }


def _same(memory: dict[str, object], disk: dict[str, object]) -> None:
    for name, told in memory.items():
        assert disk[name] == told, name


@pytest.mark.parametrize("seed", range(EXAMPLES or 24))
async def test_both_answer_the_same(kit, tmp_path: Path, seed: int):
    chance = random.Random(seed)
    memory: ReplicaStore = MemoryStore(kit.mint())
    folder, kills = tmp_path / "d0", 0
    disk = await kit.open(folder, linger_s=chance.choice([0.0, 0.02, 5.0]))
    chains = [Chain(path, chance, kit) for path in PATHS]
    floor = Ballot(0, 0, "", "")
    for _ in range(12):
        for chain in chains:
            if chance.random() < 0.5:
                await chain.grow()
            for mutation in chance.choices(chain.heard, k=4) if chain.heard else []:
                ballot = mutation.ballot
                # What is at or below the floor is not taken, and rows alone come only with what a copy holds.
                if ballot is not None and ballot <= floor:
                    continue
                if ballot is None and floor.counter:
                    continue
                for store in (memory, disk):
                    await store.load(SLOT, chain.path)
                    store.apply(mutation)
        if chance.random() < 0.15:
            chain = chance.choice(chains)
            register = await memory.load(SLOT, chain.path)
            if register.accepted is not None:
                floor = max(floor, register.accepted)
                for store in (memory, disk):
                    store.apply(Forgotten(SLOT, chain.path, register.accepted, 3))
        if chance.random() < 0.2:
            kills += 1
            await disk.durable(disk.apply(Reserved(SLOT, kills)))
            folder = await kit.copy_still(disk, tmp_path / f"d{kills}")
            await disk.close()
            disk = await kit.open(folder)
        if chance.random() < 0.5:
            _same(await _answers(memory), await _answers(disk))
    told = await _answers(memory)
    _same(told, await _answers(disk))
    for chain in chains:
        for store in (memory, disk):
            for ballot, record in chain.records[-1:]:
                if ballot > floor:
                    store.apply(Chosen(SLOT, chain.path, ballot, record))
    _same(await _answers(memory), await _answers(disk))
