import asyncio
import re
import threading
from pathlib import Path

import msgspec
import pytest

from amberblob.clock import SeededRandomness, SystemClock
from amberblob.errors import NotReady
from registry import view
from registry.bootstrap import ClusterSettings, ensure_cluster, ensure_routes, register_node
from registry.cache import load_cache, save_cache
from registry.interface import Entry, put
from registry.keys import Keys
from registry.memory import MemoryRegistry, MemoryStore
from registry.readmit import readmit
from registry.routes import Liveness, Member, Membership, Move, NodeState, RouteTable, encode
from registry.trust import RegistryRefused, check_known
from registry.view import RouteWatcher
from tests.unit.registry.kit import info

KEYS = Keys("test")
SETTINGS = ClusterSettings(name="test", slot_count=4, replicas=1, chunk_bytes=8, bootstrap_nodes=("n1",))


async def until(condition, what: str = "") -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class World:
    """A registry with a cluster of one node, and watchers that are stopped at the end."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.registry = MemoryRegistry(self.store)
        self.watchers: list[RouteWatcher] = []

    async def bootstrap(self) -> RouteTable:
        cluster = await ensure_cluster(self.registry, SETTINGS, mint=lambda: "01CLUSTER", now_ms=0)
        await register_node(self.registry, cluster, info("n1"))
        return await ensure_routes(self.registry, cluster, SETTINGS, timeout_s=30)

    def watcher(self, **options) -> RouteWatcher:
        watcher = RouteWatcher(
            MemoryRegistry(self.store), "test", clock=SystemClock(), randomness=SeededRandomness(1), **options
        )
        self.watchers.append(watcher)
        watcher.start()
        return watcher

    async def change_route(self, slot: int, epoch: int) -> None:
        entry = await self.registry.get(KEYS.route(slot))
        assert entry is not None
        table = self.watchers[0].require_table()
        route = msgspec.structs.replace(table.route(slot), epoch=epoch)
        assert await self.registry.compare_and_set(entry.key, entry.revision, encode(route)) is not None


@pytest.fixture
async def world():
    world = World()
    yield world
    for watcher in world.watchers:
        await watcher.stop()


async def test_it_finds_the_table_and_follows_it(world):
    watcher = world.watcher()
    with pytest.raises(NotReady):
        watcher.require_table()
    table = await world.bootstrap()
    assert await watcher.wait_table(timeout_s=30) == table
    await until(lambda: watcher.registry_ok)
    seen: list[RouteTable] = []
    remove = watcher.add_listener(seen.append)
    await world.change_route(2, 7)
    await until(lambda: seen)
    assert seen[-1].epochs() == (1, 1, 7, 1)
    assert watcher.table == seen[-1]
    remove()
    await world.change_route(2, 8)
    await until(lambda: watcher.require_table().route(2).epoch == 8)
    assert len(seen) == 1


async def test_no_news_come_in_once_it_has_stopped(world):
    """A node that stops ends it first, and has requests to end still: none is to wait for a route."""
    await world.bootstrap()
    watcher = world.watcher()
    await until(lambda: watcher.follows)
    await watcher.stop()
    assert watcher.registry_ok and not watcher.follows


async def test_an_outage_keeps_the_table_and_is_told(world):
    table = await world.bootstrap()
    watcher = world.watcher()
    await until(lambda: watcher.registry_ok)
    before_ms = watcher.registry_since_ms
    world.store.set_down(True)
    await until(lambda: not watcher.registry_ok)
    assert not watcher.follows
    assert "down" in watcher.registry_error
    assert watcher.registry_since_ms >= before_ms
    assert watcher.table == table
    world.store.set_down(False)
    await until(lambda: watcher.registry_ok)
    await world.change_route(0, 2)
    await until(lambda: watcher.require_table().route(0).epoch == 2)


async def test_it_serves_from_the_cache_while_the_registry_is_down(world, tmp_path: Path):
    cache = tmp_path / "routes.json"
    table = await world.bootstrap()
    first = world.watcher(cache_path=cache)
    await until(cache.exists)
    await first.stop()
    world.store.set_down(True)
    second = world.watcher(table=load_cache(cache), cache_path=cache)
    await until(lambda: second.registry_error != "not asked yet")
    assert second.require_table() == table
    assert not second.registry_ok


async def test_news_do_not_wait_for_the_cache(world, tmp_path: Path, monkeypatch):
    """A disk that syncs slowly holds up no route; what was seen last is in the cache in the end."""
    slow, saved = threading.Event(), []

    def save(path: Path, table: RouteTable) -> None:
        assert slow.wait(60)
        saved.append(table.route(0).epoch)
        save_cache(path, table)

    monkeypatch.setattr(view, "save_cache", save)
    cache = tmp_path / "routes.json"
    await world.bootstrap()
    watcher = world.watcher(cache_path=cache)
    await watcher.wait_table(timeout_s=30)
    for epoch in range(2, 6):
        await world.change_route(0, epoch)
        await until(lambda epoch=epoch: watcher.require_table().route(0).epoch == epoch)
    slow.set()
    await watcher.stop()
    assert saved == [1, 5]
    assert load_cache(cache) == watcher.table


async def test_an_older_epoch_is_never_taken(world, tmp_path: Path):
    cache = tmp_path / "routes.json"
    await world.bootstrap()
    watcher = world.watcher(cache_path=cache)
    await watcher.wait_table(timeout_s=30)
    await world.change_route(0, 9)
    await until(lambda: watcher.require_table().route(0).epoch == 9)
    await until(lambda: load_cache(cache) == watcher.table)
    await world.change_route(0, 3)
    await until(lambda: watcher.registry_refused)
    assert not watcher.registry_ok
    assert "epoch 3 there, and epoch 9 was seen" in watcher.registry_error
    await world.change_route(1, 5)
    restarted = world.watcher(table=load_cache(cache))
    await until(lambda: restarted.registry_refused)
    assert watcher.require_table().epochs() == restarted.require_table().epochs() == (9, 1, 1, 1)
    # Its newest state comes back.
    await world.change_route(0, 9)
    await until(lambda: watcher.registry_ok and restarted.registry_ok)
    assert not watcher.registry_refused
    assert watcher.require_table().epochs() == restarted.require_table().epochs() == (9, 5, 1, 1)


async def test_an_epoch_given_twice_is_refused(world):
    await world.bootstrap()
    watcher = world.watcher()
    await watcher.wait_table(timeout_s=30)
    await until(lambda: watcher.registry_ok)
    table = watcher.require_table()
    other = msgspec.structs.replace(table.route(1), voters=(Member("n1", "another-copy"),))
    await put(world.registry, KEYS.route(1), encode(other))
    await until(lambda: watcher.registry_refused)
    assert "slot 1 has other members" in watcher.registry_error
    assert watcher.table == table


async def test_an_epoch_given_twice_with_other_learners_is_refused(world):
    await world.bootstrap()
    watcher = world.watcher()
    await watcher.wait_table(timeout_s=30)
    await until(lambda: watcher.registry_ok)
    route = watcher.require_table().route(1)
    for learner in ("n2", "n3"):
        learns = msgspec.structs.replace(route, epoch=2, learners=(Member(learner, f"disk-{learner}", 2),))
        await put(world.registry, KEYS.route(1), encode(learns))
        await until(lambda: watcher.registry_refused or watcher.require_table().route(1).epoch == 2)
        await until(lambda learner=learner: watcher.registry_refused or learner == "n2")
    assert "slot 1 has other members" in watcher.registry_error
    assert [each.node for each in watcher.require_table().route(1).learners] == ["n2"]


async def test_another_cluster_in_the_registry_is_not_taken(world):
    table = await world.bootstrap()
    watcher = world.watcher()
    await until(lambda: watcher.registry_ok)
    await put(world.registry, KEYS.cluster, encode(msgspec.structs.replace(table.cluster, cluster_id="01OTHER")))
    await until(lambda: watcher.registry_refused)
    assert "01OTHER" in watcher.registry_error
    assert watcher.table == table


def set_back(store: MemoryStore, kept: dict[str, Entry], revision: int) -> None:
    """The store is what it was; the clients notice when they are connected again."""
    store.set_down(True)
    store.entries = dict(kept)
    store.owners.clear()
    store.leases.clear()
    store.history.clear()
    store.revision = store.compacted = revision
    store.set_down(False)


@pytest.mark.parametrize("later", [False, True])
async def test_a_registry_that_came_back_empty_is_refused(world, later: bool):
    """Also when others wrote so much that its revision is beyond what was seen."""
    table = await world.bootstrap()
    kept, revision = dict(world.store.entries), world.store.revision
    watcher = world.watcher(me=info("n1"), alive_ttl_s=0.2)
    await until(lambda: watcher.registry_ok and watcher.alive == {"n1"})
    set_back(world.store, {}, 1000 if later else 0)
    await until(lambda: watcher.registry_refused)
    assert ("came back empty" if later else "restored from a backup") in watcher.registry_error
    assert watcher.table == table
    # Nothing is written into it, whatever the node's sign of life would like.
    await asyncio.sleep(0.5)
    assert world.store.entries == {}
    set_back(world.store, kept, revision + 1000)
    await until(lambda: watcher.registry_ok and watcher.alive == {"n1"})


async def test_a_registry_whose_revision_went_back_is_refused(world):
    """Though its routes are those that are known: somebody restored a backup, and is to look at it."""
    table = await world.bootstrap()
    kept, revision = dict(world.store.entries), world.store.revision
    watcher = world.watcher(me=info("n1"), alive_ttl_s=0.2)
    await until(lambda: watcher.alive == {"n1"})
    for i in range(5):
        await put(world.registry, f"test/alive/x{i}", encode(Liveness(disk_id="d", started_at_ms=0)))
    await until(lambda: len(watcher.alive) == 6)
    newest = world.store.revision
    set_back(world.store, kept, revision)
    await until(lambda: watcher.registry_refused)
    # Six keys came, and its lease may have ended and come again meanwhile.
    told = re.search(r"revision (\d+), and (\d+) was seen", watcher.registry_error)
    assert told is not None and int(told[1]) == revision and revision + 6 <= int(told[2]) <= newest
    assert watcher.table == table
    # Its sign of life would let the revision grow, until nothing was to be seen any more.
    await asyncio.sleep(0.5)
    assert (world.store.entries, world.store.revision) == (kept, revision)
    assert watcher.registry_refused
    restarted = world.watcher(table=table)
    await until(lambda: restarted.registry_ok)
    assert not watcher.registry_ok


async def test_a_sign_of_life_that_ended_does_not_come_again_into_a_registry_that_was_set_back(world):
    """Whoever hears of that first: the watch, or the lease, which after a pause of this process may both have news."""
    await world.bootstrap()
    kept, revision = dict(world.store.entries), world.store.revision
    watcher = world.watcher(me=info("n1"))
    await until(lambda: watcher.alive == {"n1"})
    await until(lambda: watcher._revision > revision)
    for entries, at in ((kept, revision), ({}, revision + 100)):
        set_back(world.store, dict(entries), at)
        watcher._registry_error = None  # as long as nothing was heard
        with pytest.raises(RegistryRefused):
            await watcher._enroll()
        assert (world.store.entries, world.store.revision) == (entries, at)


async def test_a_registry_that_lost_a_route_is_refused(world):
    table = await world.bootstrap()
    kept = dict(world.store.entries)
    watcher = world.watcher()
    await until(lambda: watcher.registry_ok)
    del kept[KEYS.route(2)]
    set_back(world.store, kept, 1000)
    await until(lambda: watcher.registry_refused)
    assert "no route for slot 2" in watcher.registry_error
    assert watcher.table == table


async def test_nothing_is_written_into_another_clusters_registry(world):
    table = await world.bootstrap()
    cluster = msgspec.structs.replace(table.cluster, cluster_id="01MINE")
    before = world.store.revision
    with pytest.raises(RegistryRefused, match="01CLUSTER"):
        await register_node(world.registry, cluster, info("n1", disk="another"))
    with pytest.raises(RegistryRefused, match="01CLUSTER"):

        async def never(slot: int, named: str) -> str:
            raise AssertionError("asked")

        await readmit(world.registry, cluster, "n1", [0], never, seen_epoch=lambda slot: 0)
    known = msgspec.structs.replace(table, cluster=cluster)
    with pytest.raises(RegistryRefused, match="01CLUSTER"):
        await check_known(world.registry, known)
    assert world.store.revision == before


async def test_what_cannot_be_read_is_told_and_the_table_kept(world):
    table = await world.bootstrap()
    watcher = world.watcher()
    await until(lambda: watcher.registry_ok)
    await put(world.registry, KEYS.route(0), b"junk")
    await until(lambda: not watcher.registry_ok)
    assert KEYS.route(0) in watcher.registry_error
    assert watcher.table == table
    await put(world.registry, KEYS.route(0), encode(table.route(0)))
    await until(lambda: watcher.registry_ok)


async def test_compaction_is_survived(world):
    world.store.history_max = 3
    await world.bootstrap()
    watcher = world.watcher()
    await watcher.wait_table(timeout_s=30)
    for epoch in range(2, 30):
        await world.change_route(0, epoch)
    await until(lambda: watcher.require_table().route(0).epoch == 29)


async def test_a_listener_that_fails_does_not_end_the_following(world):
    await world.bootstrap()
    watcher = world.watcher()
    await until(lambda: watcher.registry_ok)

    def fail(table: RouteTable) -> None:
        raise RuntimeError("a fault")

    watcher.add_listener(fail)
    await world.change_route(0, 2)
    await until(lambda: watcher.require_table().route(0).epoch == 2 and watcher.registry_ok)
    await world.change_route(0, 3)
    await until(lambda: watcher.require_table().route(0).epoch == 3)


async def test_a_node_is_alive_while_it_runs(world):
    table = await world.bootstrap()
    looker = world.watcher()
    one = world.watcher(me=info("n1"), table=table, alive_ttl_s=0.3)
    await until(lambda: looker.alive == {"n1"})
    # Longer than the lease: it is kept alive.
    world.store.set_down(True)
    await until(lambda: not looker.registry_ok)
    world.store.set_down(False)
    await until(lambda: looker.registry_ok and looker.alive == {"n1"})
    await one.stop()
    await until(lambda: looker.alive == frozenset())


async def test_a_lost_lease_is_taken_anew(world):
    table = await world.bootstrap()
    looker = world.watcher()
    world.watcher(me=info("n1"), table=table, alive_ttl_s=0.3)
    await until(lambda: looker.alive == {"n1"})
    await loses_its_lease(world, looker)


async def test_a_node_that_comes_back_in_the_same_life_is_told_before_it_is_known_again(world):
    """Removed, struck off and forgotten while it went on: meanwhile nobody asked it whether an object may be deleted."""
    table = await world.bootstrap()
    looker = world.watcher()
    met: list[bool] = []

    async def arriving() -> None:
        met.append(KEYS.node("n1") in world.store.entries)

    world.watcher(me=info("n1"), table=table, alive_ttl_s=0.3, arriving=arriving)
    await until(lambda: looker.alive == {"n1"})
    await loses_its_lease(world, looker)
    assert met == []
    entry = await world.registry.get(KEYS.node("n1"))
    await world.registry.delete(entry.key, entry.revision)
    await loses_its_lease(world, looker)
    assert met == [False] and KEYS.node("n1") in world.store.entries


async def loses_its_lease(world: World, looker: RouteWatcher) -> None:
    """And takes another, which is seen. That it had none for a moment may pass unseen."""
    before = set(world.store.leases)
    world.store.drop_keys_of(before)
    await until(lambda: KEYS.alive_node("n1") in world.store.entries and not before & set(world.store.leases))
    await until(lambda: looker.alive == {"n1"})


async def test_a_fault_of_the_program_does_not_end_the_signs_of_life(world, monkeypatch):
    table = await world.bootstrap()
    looker = world.watcher()
    keep, failed = MemoryRegistry.keep_lease, 0

    async def fails_twice(registry: MemoryRegistry, lease_id: str) -> bool:
        nonlocal failed
        if failed < 2:
            failed += 1
            raise RuntimeError("a fault")
        return await keep(registry, lease_id)

    monkeypatch.setattr(MemoryRegistry, "keep_lease", fails_twice)
    world.watcher(me=info("n1"), table=table, alive_ttl_s=0.3)
    await until(lambda: failed == 2)
    await loses_its_lease(world, looker)


async def test_a_node_that_started_in_an_outage_registers_later(world):
    table = await world.bootstrap()
    world.store.set_down(True)
    moved = msgspec.structs.replace(info("n1"), http_address="elsewhere:1")
    watcher = world.watcher(me=moved, table=table)
    await until(lambda: watcher.registry_error != "not asked yet")
    world.store.set_down(False)
    await until(lambda: watcher.require_table().node("n1") == moved)


async def test_many_changes_are_taken_together_and_none_is_lost(world):
    await world.bootstrap()
    watcher = world.watcher()
    await watcher.wait_table(timeout_s=30)
    tables: list[RouteTable] = []
    watcher.add_listener(tables.append)
    for generation in range(1, 301):
        for slot in range(2):
            await put(world.registry, KEYS.move(slot), encode(Move(slot=slot, generation=generation, nodes=("n1",))))
        await asyncio.sleep(0)
    await until(lambda: tables and tables[-1].moves.get(1, tables[-1].moves[0]).generation == 300, "the last move")
    assert len(tables) < 200
    entry = await world.registry.get(KEYS.move(1))
    await world.registry.delete(entry.key, entry.revision)
    await put(world.registry, KEYS.membership, encode(Membership(generation=1, nodes={"n1": NodeState.DRAINING})))
    await until(lambda: watcher.require_table().membership is not None)
    assert set(watcher.require_table().moves) == {0}
    assert watcher.require_table().state_of("n1") is NodeState.DRAINING


async def test_the_cache_keeps_moves_and_membership(world, tmp_path):
    await world.bootstrap()
    path = tmp_path / "routes.json"
    move = Move(slot=1, generation=2, nodes=("n1",))
    membership = Membership(generation=2, nodes={"n1": NodeState.ACTIVE}, planning=True, moves=1)
    await put(world.registry, KEYS.move(1), encode(move))
    await put(world.registry, KEYS.membership, encode(membership))
    world.watcher(cache_path=path)
    await until(path.exists)
    kept = load_cache(path)
    assert (kept.moves, kept.membership) == ({1: move}, membership)
