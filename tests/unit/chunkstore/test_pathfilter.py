"""The path filter: it may call a new path known, and never a known path new."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.ballot import EMPTY_REGISTER
from amberblob.mutations import Accepted, Chosen
from chunkstore import DiskStore, filling
from chunkstore.filling import MISSES_MIN
from chunkstore.pathfilter import Budget, Layer, PathFilter, crc_of, fill, layer_for
from chunkstore.slotdb import SlotDatabase


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=200), st.integers(0, 200))
def test_what_was_added_is_never_new(paths: list[str], loaded: int):
    found = PathFilter(Budget(), complete=False)
    before, after = paths[:loaded], paths[loaded:]
    for path in after:
        assert not found.add(path)
        assert not found.is_new(path)
    layer = layer_for(len(before))
    fill(layer, map(crc_of, before))
    found.begin_with(layer)
    assert found.complete
    assert not any(map(found.is_new, paths))


def test_layers_grow_and_false_alarms_stay_rare():
    budget = Budget()
    found = PathFilter(budget, complete=True)
    for number in range(30_000):
        found.add(f"folder/object-{number:09d}")
    assert not any(found.is_new(f"folder/object-{number:09d}") for number in range(30_000))
    alarms = sum(not found.is_new(f"folder/object-{number:09d}") for number in range(30_000, 60_000))
    assert alarms < 30_000 * 0.04
    taken = Budget().left_bytes - budget.left_bytes
    assert taken < 30_000 * 60 / 8


def test_adding_a_path_again_takes_no_room():
    budget = Budget()
    found = PathFilter(budget, complete=True)
    for _ in range(100_000):
        found.add("p")
    assert Budget().left_bytes - budget.left_bytes == 512


def test_beyond_its_budget_a_filter_says_nothing():
    budget = Budget(2000)
    found = PathFilter(budget, complete=True)
    for number in range(1000):
        found.add(str(number))
    assert found.given_up
    assert not found.is_new("other")
    assert not found.add("other")
    assert budget.left_bytes == 2000
    late = PathFilter(budget, complete=False)
    late.begin_with(Layer(1 << 20))
    assert not late.is_new("other")


def test_the_bits_are_the_same_in_every_process():
    program = "from chunkstore.pathfilter import *; one = Layer(4096); fill(one, map(crc_of, ['a', 'ä/b'])); print(one.bits.hex())"
    one = Layer(4096)
    fill(one, map(crc_of, ["a", "ä/b"]))
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == one.bits.hex()


# ---- in a store


@contextlib.contextmanager
def count_questions(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    original = SlotDatabase.register

    def register(self: SlotDatabase, path: str):
        asked.append(path)
        return original(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(SlotDatabase, "register", register)
        yield asked


async def test_a_new_path_of_a_slot_that_began_empty_asks_nobody(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d")
    with count_questions(monkeypatch) as asked:
        assert store.peek(0, "p") is EMPTY_REGISTER
        await kit.put(store, 0, "p")
        assert store.peek(0, "other") is EMPTY_REGISTER
        assert await store.load(0, "other") is EMPTY_REGISTER
        # What was applied without having been loaded is not blind: it was known to be new.
        record, ballot = kit.record(), kit.ballot()
        store.apply(Accepted(0, "q", ballot, record, b"body"))
        found = store.peek(0, "q")
        assert found is not None and found.record == record
    assert asked == []


async def test_a_loaded_slot_says_nothing_before_it_was_walked(kit, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filling, "_PIECE_PATHS", 7)
    store = await kit.open(tmp_path / "d")
    paths = [f"p{number}" for number in range(50)]
    for path in paths:
        await kit.put(store, 0, path)
    await store.close()

    store = await kit.open(tmp_path / "d", registers_clean_max=4)
    with count_questions(monkeypatch) as asked:
        for path in paths:
            await store.load(0, path)
        assert len(asked) == 50
        assert not store._core.overlay._filters, "loads of what is there are no reason for a walk"
        for number in range(MISSES_MIN):
            assert store.peek(0, f"new{number}") is None
            await store.load(0, f"new{number}")
        # While the walk goes on, a path comes in.
        late = kit.record()
        await store.load(0, "late")
        store.apply(Accepted(0, "late", kit.ballot(), late, b"body"))
        await kit.until(lambda: store._core.overlay._filters[0].complete)
        for path in [*paths, "late"]:
            assert store.peek(0, path) != EMPTY_REGISTER
            assert (await store.load(0, path)).record is not None
        known = sum(store.peek(0, f"other{number}") is EMPTY_REGISTER for number in range(500))
        assert known > 450


def is_complete(store: DiskStore) -> bool:
    return store._core.overlay._filters[0].complete


async def test_over_lost_slots_and_restarts_nothing_that_is_there_is_new(kit, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filling, "_PIECE_PATHS", 5)
    options = {"registers_clean_max": 2, "linger_s": 0.0}
    store = await kit.open(tmp_path / "d", **options)
    there: dict[str, object] = {}
    number = 0
    for turn in range(6):
        for _ in range(25):
            number += 1
            path = f"p{number}"
            there[path] = await kit.put(store, 0, path)
        if turn % 2:
            # The walk is under way when the slot is lost: what is applied then must be found afterwards.
            for miss in range(MISSES_MIN):
                await store.load(0, f"miss{turn}-{miss}")
            await store._core.ask(0, lambda database: None)
            lost = list(there)
            await store._core._database.call(partial(store._pool.retire, 0, "a test"))
            there = {path: await kit.put(store, 0, path) for path in lost[::2]}
            await kit.until(partial(is_complete, store))
        else:
            await store.close()
            store = await kit.open(tmp_path / "d", **options)
        for path, record in there.items():
            assert store.peek(0, path) is not EMPTY_REGISTER, path
            assert (await store.load(0, path)).record == record


async def test_a_blind_path_is_not_new(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 0, "p")
    await store.close()
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    record, ballot = kit.record(), kit.ballot()
    store.apply(Accepted(0, "q", ballot, record, b"body"))
    assert store.peek(0, "q") is None
    for number in range(MISSES_MIN):
        await store.load(0, f"new{number}")
    await kit.until(lambda: store._core.overlay._filters.get(0) and store._core.overlay._filters[0].complete)
    assert store.peek(0, "new") is EMPTY_REGISTER
    assert store.peek(0, "q") is None
    assert (await store.load(0, "q")).record == record
    store.apply(Chosen(0, "q", ballot))
    found = store.peek(0, "q")
    assert found is not None and found.chosen


async def test_a_disk_that_fails_during_the_walk_gives_the_filter_up(kit, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(filling, "_PIECE_PATHS", 5)
    store = await kit.open(tmp_path / "d")
    for number in range(20):
        await kit.put(store, 0, f"p{number}")
    await store.close()
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    store.apply(Accepted(0, "q", kit.ballot(), kit.record(), b"body"))
    store._core.fail("a test")
    for number in range(MISSES_MIN):
        await store.load(0, f"new{number}")
    await kit.until(lambda: store._core.overlay._filters[0].given_up)
    assert store.peek(0, "other") is None
