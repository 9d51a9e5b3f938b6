"""The memory store and a disk hear of the archive, of records, repairs and expiries in any order: both answer the same, and neither
ever gives up what it cannot live without.

The chains of records are those of :mod:`tests.unit.chunkstore.test_twins`. The disk is killed in between: what it tells of its rows,
their numbers included, is afterwards what it was.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from amberblob.archives import DAMAGED, UPLOADED, ArchivedChunk
from amberblob.manifest import Version
from amberblob.mutations import Aborted, Accepted, Archived, Chosen, Evicted, Installed, Reserved
from chunkstore import BlobState, MemoryStore, ReplicaStore
from tests.unit.chunkstore.test_twins import BODY, PATHS, SLOT, Chain

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))
NOW = 1_700_000_000_000
TARGETS = ("packs/a", "packs/b")


def _versions(chain: Chain) -> list[Version]:
    versions = {}
    for mutation in chain.heard:
        record = getattr(mutation, "record", None)
        if record is not None and record.added is not None:
            versions[record.added.blob_id] = record.added
    return list(versions.values())


def _told(chance: random.Random, version: Version) -> Archived:
    (chunk,) = version.chunks
    at = chance.randrange(4)
    row = ArchivedChunk(
        chunk.id, chunk.len, TARGETS[at % 2], 10 * at, 10 * at + 9, "ab" * 32, NOW + at,
        chance.choice([UPLOADED, DAMAGED, NOW + 10, NOW + 10, NOW + 20]),
    )  # fmt: skip
    return Archived(SLOT, version.blob_id, (row,), NOW, chance.random() < 0.5)


async def _answers(store: ReplicaStore, versions: list[Version]) -> dict[str, object]:
    """All that a store tells of its archive rows."""
    await store.settle([SLOT])
    tally = store.tally(SLOT)
    lines, more = await store.archived_after(SLOT, 0, 10_000)
    assert not more and [line.seq for line in lines] == sorted({line.seq for line in lines})
    views, after = await store.archive_page(SLOT, ("", 0), 1000)
    assert after is None
    return {
        "tally": (
            tally.archive_head, tally.archived_rows, tally.archive_staged, tally.evicted, tally.evicted_bytes, tally.wanted,
            tally.damaged,
        ),
        "lines": sorted((line.blob_id, line.chunk, line.evicted) for line in lines),
        "views": [(v.path, v.version, v.uploaded, v.verified, v.chunk_count, v.evicted, v.wanted) for v in views],
        "objects": await store.archive_objects(SLOT),
        "named": await store.archive_named(SLOT, TARGETS),
        "blobs": {one.blob_id: await store.archived(SLOT, one.blob_id) for one in versions},
        "states": {v.version.blob_id: await store.blob_state(SLOT, v.version.blob_id) for v in views},
        "whole": {v.version.blob_id: v.evicted or not v.wanted for v in views},
        "wanted": [(one.path, one.version.blob_id, one.damaged) for one in await store.wanted(SLOT, 1000)],
        "orphans": await store.orphans(SLOT, 1 << 47),
    }  # fmt: skip


def _same(memory: dict[str, object], disk: dict[str, object]) -> None:
    for name, told in memory.items():
        assert disk[name] == told, name


async def _held(store: ReplicaStore, *, damaged: bool = False) -> None:
    """Every chosen version is held, as bytes or by a verified row, or it is wanted."""
    views, _ = await store.archive_page(SLOT, ("", 0), 1000)
    for view in views:
        blob_id, (chunk,) = view.version.blob_id, view.version.chunks
        body_is_here = not await store.missing_chunks(SLOT, view.version, (chunk,))
        known = await store.archived(SLOT, blob_id)
        row = known.find(chunk.id) if known is not None else None
        assert view.evicted + view.wanted < 2
        if view.evicted:
            assert row is not None and row.verified and known is not None and known.evicted and not known.staged
        elif not view.wanted:
            assert body_is_here, f"{blob_id} is neither here nor wanted"
        assert (known is not None and known.evicted) == view.evicted
        if view.evicted or body_is_here:
            assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE


@pytest.mark.parametrize("seed", range(EXAMPLES or 24))
async def test_both_answer_the_same_and_hold_what_they_say(kit, tmp_path: Path, seed: int):
    chance = random.Random(seed)
    # What a look at the bytes found is not in the journal: after a kill it is found again.
    killed = chance.random() < 0.5
    memory: ReplicaStore = MemoryStore(kit.mint())
    folder, kills = tmp_path / "d0", 0
    disk = await kit.open(folder, linger_s=chance.choice([0.0, 0.02, 5.0]))
    chains = [Chain(path, chance, kit) for path in PATHS]
    for _ in range(12):
        for chain in chains:
            if chance.random() < 0.5:
                await chain.grow()
            versions = _versions(chain)
            mutations: list[Accepted | Chosen | Installed | Archived | Evicted | Aborted] = []
            for mutation in chance.choices(chain.heard, k=3) if chain.heard else []:
                mutations.append(mutation)
            for version in chance.choices(versions, k=4) if versions else []:
                mutations.append(_told(chance, version))
                if chance.random() < 0.4:
                    ids = tuple(chunk.id for chunk in version.chunks)
                    mutations.append(Evicted(SLOT, chain.path, version.version, version.blob_id, ids))
            chance.shuffle(mutations)
            for entry in mutations:
                for store in (memory, disk):
                    await store.load(SLOT, chain.path)
                    store.apply(entry)
            if versions and chance.random() < 0.5:
                version = chance.choice(versions)
                went = [await store.evict(SLOT, chain.path, version) for store in (memory, disk)]
                assert went[0] == went[1]
            if versions and chance.random() < 0.4:
                version = chance.choice(versions)
                for store in (memory, disk):
                    await store.install_bodies(SLOT, [(version, BODY)])
                whole = [await store.is_whole(SLOT, version) for store in (memory, disk)]
                # Of what has expired memory has the bytes until they are swept.
                assert whole[0] == whole[1] or await memory.referred(SLOT, version.blob_id) is None
            if versions and not killed and chance.random() < 0.2:
                await memory.set_wanted(SLOT, chain.path, versions[0], damaged=True)
                await disk.set_wanted(SLOT, chain.path, versions[0], damaged=True)
        every = [version for chain in chains for version in _versions(chain)]
        if killed and chance.random() < 0.25:
            kills += 1
            await disk.durable(disk.apply(Reserved(SLOT, kills)))
            memory.apply(Reserved(SLOT, kills))
            folder = await kit.copy_still(disk, tmp_path / f"d{kills}")
            lines = await disk.archived_after(SLOT, 0, 10_000)
            await disk.close()
            disk = await kit.open(folder)
            assert await disk.archived_after(SLOT, 0, 10_000) == lines
        if chance.random() < 0.6:
            _same(await _answers(memory, every), await _answers(disk, every))
            for store in (memory, disk):
                await _held(store)
    every = [version for chain in chains for version in _versions(chain)]
    _same(await _answers(memory, every), await _answers(disk, every))
    for store in (memory, disk):
        await _held(store)
