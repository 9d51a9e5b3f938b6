"""LIST: complete, in order, whatever the replicas' indexes say."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.clock import SeededRandomness
from amberblob.errors import QuorumUnavailable
from amberblob.ids import UlidMint
from node.objects import listing as listing_module
from node.protocol.quorum import Electorate
from tests.unit.node.objects.kit import Cluster, cluster, delete, listing, put, restore, walk

LAST = "\U0010ffff"


@pytest.fixture
async def made():
    async with cluster() as running:
        yield running


@pytest.fixture(params=[2, 3, 1001])
def small_scans(request, monkeypatch):
    """Pages of the nodes' indexes that are much smaller than in life, so that borders fall everywhere."""
    monkeypatch.setattr(listing_module, "SCAN_LIMIT", request.param)
    monkeypatch.setattr(listing_module, "SCAN_LIMIT_MIN", min(2, request.param))


async def fill(made: Cluster, paths, *, dead=()) -> None:
    for index, path in enumerate(paths):
        await put(made[index % 3 + 1], path, b"x")
    for path in dead:
        await delete(made[1], path)
    await made.settle()


def expected(paths, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
    objects, groups = [], set()
    for path in sorted(paths):
        if path.startswith(prefix):
            at = path.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                objects.append(path)
            else:
                groups.add(path[: at + len(delimiter)])
    return objects, sorted(groups)


PATHS = [
    "a",
    "a/",
    "a/1",
    "a/2",
    "a/b/1",
    "a/b/2",
    "a0",
    "b",
    "b/1",
    "c/1",
    "c/2",
    "d//1",
    "d/1",
    "z",
    "é/1",
    LAST,
    LAST * 2 + "/x",
]


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
@pytest.mark.parametrize("delimiter", ["", "/", "//", "b/"])
async def test_pages_are_complete_and_in_order(made, small_scans, limit, delimiter):
    await fill(made, PATHS)
    for prefix in ("", "a", "a/", "a/b", "b/1", "zz", LAST, LAST * 3):
        found = await walk(made[2], limit=limit, prefix=prefix, delimiter=delimiter)
        assert found == expected(PATHS, prefix, delimiter), prefix


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_random_trees_with_dead_and_stale_copies(made, small_scans, limit):
    """Each write and delete misses one node's COMMIT and LEARN: every index is stale somewhere."""
    chance = SeededRandomness(limit)
    paths = sorted(
        {
            "/".join("ab"[int(chance.fraction() * 2)] for _ in range(1 + int(chance.fraction() * 4))) + str(n)
            for n in range(24)
        }
    )
    dead = set()
    for index, path in enumerate(paths):
        made.net.down = {f"n{index % 3 + 1}"}
        await put(made[(index + 1) % 3 + 1], path)
        if chance.fraction() < 0.5:
            made.net.down = {f"n{int(chance.fraction() * 3) + 1}"}
            node = next(node for node in made if node.name not in made.net.down)
            await delete(node, path)
            dead.add(path)
    await made.settle()
    alive = [path for path in paths if path not in dead]
    for away in (set(), {"n1"}, {"n2"}, {"n3"}):
        made.net.down = away
        node = next(node for node in made if node.name not in away)
        for delimiter in ("", "/"):
            for prefix in ("", "a", "b/"):
                assert await walk(node, limit=limit, prefix=prefix, delimiter=delimiter) == expected(
                    alive, prefix, delimiter
                )


async def test_a_group_whose_witness_is_deleted_is_not_shown(made):
    await fill(made, ["g/1", "h"])
    made.net.down.add("n3")
    await delete(made[1], "g/1")
    await made.settle()
    made.net.heal()
    for away in (set(), {"n1"}, {"n2"}):
        made.net.down = away
        assert await walk(made[3], limit=10, delimiter="/") == (["h"], [])


async def test_a_group_whose_witnesses_differ_is_shown_once(made):
    await fill(made, ["g/2", "h"])
    made.net.down.add("n3")
    await delete(made[1], "g/2")
    await put(made[1], "g/1")
    await put(made[1], "g/3")
    made.net.down = {"n2"}
    await delete(made[3], "g/1")
    await made.settle()
    for away in (set(), {"n1"}, {"n2"}, {"n3"}):
        made.net.down = away
        node = next(node for node in made if node.name not in away)
        assert await walk(node, limit=10, delimiter="/") == (["h"], ["g/"])
        assert await walk(node, limit=1, delimiter="/") == (["h"], ["g/"])


async def test_what_nobody_was_told_to_be_chosen_is_listed(made, small_scans):
    made.net.fault("Learn", "drop")
    await fill(made, PATHS, dead=["a/1", "b/1"])
    alive = [path for path in PATHS if path not in ("a/1", "b/1")]
    for away in (set(), {"n1"}, {"n2"}, {"n3"}):
        made.net.down = away
        node = next(node for node in made if node.name not in away)
        for delimiter in ("", "/"):
            assert await walk(node, limit=3, delimiter=delimiter) == expected(alive, "", delimiter)


async def test_a_record_on_one_replica_is_resolved_one_way_by_all_listings(made):
    for to in ("n2", "n3"):
        made.net.fault("Commit", "drop", to=to)
    task = asyncio.create_task(put(made[1], "g/x"))
    while made[1].register("g/x").accepted is None:
        await asyncio.sleep(0)
    task.cancel()
    made.net.heal()
    await made.settle()
    first = await walk(made[1], limit=5)
    for node in made:
        assert await walk(node, limit=5) in (first, (["g/x"], []))
    plain, grouped = await walk(made[2], limit=5), await walk(made[3], limit=5, delimiter="/")
    assert bool(plain[0]) == bool(grouped[1])


async def test_two_nodes_down_is_an_error_never_short(made):
    await fill(made, PATHS)
    made.net.down = {"n2", "n3"}
    with pytest.raises(QuorumUnavailable):
        await listing(made[1])


async def test_a_replica_that_fails_in_the_middle_of_a_listing(made, monkeypatch):
    monkeypatch.setattr(listing_module, "SCAN_LIMIT", 2)
    monkeypatch.setattr(listing_module, "SCAN_LIMIT_MIN", 2)
    await fill(made, PATHS)
    made.net.fault("QueryScan", "drop", to="n2", skip=2)
    made.net.fault("QueryScan", "lose", to="n1", skip=1, times=1)
    assert await walk(made[1], limit=1000) == expected(PATHS, "", "")


async def test_a_thousand_dead_entries_before_a_live_one():
    async with cluster() as made:
        dead = [f"d/{index:04}" for index in range(1100)]
        # All of them at once would have to come to their end within the time of one write.
        for first in range(0, len(dead), 50):
            group = dead[first : first + 50]
            await asyncio.gather(*(put(made[i % 3 + 1], path) for i, path in enumerate(group)))
            await asyncio.gather(*(delete(made[i % 3 + 1], path) for i, path in enumerate(group)))
        await put(made[1], "d/live")
        await put(made[1], "e")
        await made.settle()
        for delimiter in ("", "/"):
            for limit in (1, 7, 1000):
                found = await walk(made[1], limit=limit, delimiter=delimiter)
                assert found == expected(["d/live", "e"], "", delimiter), limit
        await delete(made[1], "d/live")
        for delimiter in ("", "/"):
            for limit in (1, 1000):
                assert await walk(made[2], limit=limit, delimiter=delimiter) == (["e"], [])


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_tombstoned_ones_on_demand(made, small_scans, limit):
    await fill(made, PATHS, dead=["a/1", "b/1", "z"])
    await put(made[1], "z")
    page = await listing(made[2], tombstoned=True)
    assert [item.path for item in page.objects] == sorted(PATHS)
    assert {item.path for item in page.objects if item.tombstoned} == {"a/1", "b/1"}
    assert await walk(made[3], limit=limit, tombstoned=True) == expected(PATHS, "", "")
    assert await walk(made[3], limit=limit, tombstoned=True, delimiter="/") == expected(PATHS, "", "/")
    await delete(made[1], "c/1")
    await delete(made[1], "c/2")
    assert await walk(made[3], limit=limit, prefix="c", delimiter="/") == ([], [])
    assert await walk(made[3], limit=limit, prefix="c", delimiter="/", tombstoned=True) == ([], ["c/"])
    await restore(made[2], "c/2")
    assert await walk(made[3], limit=limit, prefix="c", delimiter="/") == ([], ["c/"])


@pytest.mark.parametrize("delimiter", ["", "/"])
async def test_at_a_time(made, small_scans, delimiter):
    await fill(made, ["a/1", "b", "c/1"])
    made.clock.ahead_s += 10
    first = made.clock.wall_ms() - 5_000
    await put(made[1], "b", b"newer")
    await put(made[1], "a/0", b"newer")
    await delete(made[2], "c/1")
    made.clock.ahead_s += 10
    second = made.clock.wall_ms() - 5_000
    await delete(made[2], "b")
    await put(made[3], "c/1", b"again")
    await put(made[3], "d", b"x")
    for at_ms, paths in ((first - 60_000, []), (first, ["a/1", "b", "c/1"]), (second, ["a/0", "a/1", "b"])):
        for limit in (1, 1000):
            assert await walk(made[1], limit=limit, delimiter=delimiter, at_ms=at_ms) == expected(paths, "", delimiter)
    page = await listing(made[1], at_ms=first)
    assert [item.version for item in page.objects] == [1, 1, 1]
    page = await listing(made[1], at_ms=second, tombstoned=True)
    assert [(item.path, item.tombstoned) for item in page.objects] == [
        ("a/0", False),
        ("a/1", False),
        ("b", False),
        ("c/1", True),
    ]


def asked(made: Cluster) -> set[str]:
    """The nodes that were asked for a page since the last call."""
    names = {to for kind, _, to in made.net.sent if kind == "QueryScan"}
    made.net.sent.clear()
    return names


async def test_no_more_nodes_are_asked_than_a_majority_needs(made):
    await fill(made, PATHS)
    asked(made)
    for node in made:
        assert await walk(node, limit=1000) == expected(PATHS, "", "")
        assert len(asked(made) | {node.name}) == 2
    made.net.fault("QueryScan", "drop", to="n2", times=1)
    assert await walk(made[1], limit=1000) == expected(PATHS, "", "")
    assert asked(made) >= {"n2", "n3"}


async def test_a_slow_node_is_not_waited_for(made):
    await fill(made, PATHS)
    made.net.fault("QueryScan", "hold", to="n2")
    # Who waited for it would do so for half a minute each time.
    async with asyncio.timeout(25.0):
        assert await walk(made[1], limit=1000) == expected(PATHS, "", "")
    made.net.heal()


async def test_what_one_node_missed_is_not_read_path_by_path(made):
    paths = [f"k{index:03}" for index in range(4 * listing_module.UNSURE_MAX)]
    made.net.down = {"n2"}
    for path in paths:
        await put(made[1], path)
    await made.settle()
    made.net.heal()
    made.net.sent.clear()
    assert await walk(made[1], limit=1000) == (paths, [])
    assert made.net.count("Query") == 0
    assert asked(made) >= {"n2", "n3"}
    # Nobody else can be asked: then every path is.
    made.net.down = {"n3"}
    assert await walk(made[1], limit=1000) == (paths, [])
    assert await walk(made[2], limit=10, delimiter="0") == expected(paths, "", "0")


async def test_a_delete_that_only_some_know_of(made):
    await fill(made, ["a", "b", "c"])
    made.net.down = {"n2"}
    await delete(made[1], "b")
    await made.settle()
    for away in (set(), {"n1"}, {"n2"}, {"n3"}):
        made.net.down = away
        for node in made:
            if node.name not in away:
                assert await walk(node, limit=1000) == (["a", "c"], [])


def test_enough_nodes():
    def electorate(slot: int, *voters: str) -> Electorate:
        return Electorate(slot=slot, epoch=1, voters=dict.fromkeys(voters, "i"), write_quorum=len(voters))

    three = electorate(0, "a", "b", "c")
    assert listing_module._enough(["b", "c", "a"], [three]) == ["b", "c"]
    assert listing_module._enough(["a"], [electorate(0, "a")]) == ["a"]
    many = [three, electorate(1, "c", "d", "e"), electorate(2, "d", "e", "f")]
    chosen = listing_module._enough(["f", "a", "b", "c", "d", "e"], many)
    for one in many:
        assert one.is_majority(set(chosen) & set(one.voters))
    assert chosen == ["f", "a", "b", "c", "d"]


async def test_a_lost_copy_does_not_count(made):
    await fill(made, PATHS)
    slot = made.slot("a/1")
    made[1].store.lose_slot(slot, UlidMint(made[1].coordinator.clock, SeededRandomness(1)).mint())
    for delimiter in ("", "/"):
        for node in made:
            assert await walk(node, limit=3, delimiter=delimiter) == expected(PATHS, "", delimiter)
    made.net.down = {"n2"}
    with pytest.raises(QuorumUnavailable):
        await walk(made[3], limit=3)


async def test_a_lost_copy_that_learns_again_still_does_not_count(made):
    await put(made[1], "g/1")
    await made.settle()
    slot = made.slot("g/1")
    made[1].store.lose_slot(slot, UlidMint(made[1].coordinator.clock, SeededRandomness(1)).mint())
    made[3].store.lose_slot(slot, UlidMint(made[1].coordinator.clock, SeededRandomness(2)).mint())
    with pytest.raises(QuorumUnavailable):
        await listing(made[1])
    with pytest.raises(QuorumUnavailable):
        await listing(made[2], delimiter="/")


async def test_listing_while_others_write_shows_all_that_ended_before(made):
    await fill(made, [f"k{index:02}" for index in range(0, 40, 2)])

    async def write() -> None:
        for index in range(1, 40, 2):
            await put(made[index % 3 + 1], f"k{index:02}")
            await put(made[index % 3 + 1], f"k{index - 1:02}", b"again")

    writing = asyncio.create_task(write())
    while not writing.done():
        objects, _ = await walk(made[1], limit=7)
        assert set(objects) >= {f"k{index:02}" for index in range(0, 40, 2)}
    await writing


async def test_five_nodes(small_scans):
    async with cluster(5, replicas=3, slots=16) as made:
        await fill(made, PATHS, dead=["a/1"])
        alive = [path for path in PATHS if path != "a/1"]
        for away in (set(), {"n2"}, {"n5"}):
            made.net.down = away
            assert await walk(made[1], limit=3, delimiter="/") == expected(alive, "", "/")


async def test_real_disks(tmp_path, small_scans):
    async with cluster(folder=tmp_path) as made:
        await fill(made, PATHS, dead=["a/1", "c/1", "c/2"])
        alive = [path for path in PATHS if path not in ("a/1", "c/1", "c/2")]
        for prefix in ("", "a/", LAST):
            for delimiter in ("", "/"):
                for limit in (1, 1000):
                    assert await walk(made[1], limit=limit, prefix=prefix, delimiter=delimiter) == expected(
                        alive, prefix, delimiter
                    )
