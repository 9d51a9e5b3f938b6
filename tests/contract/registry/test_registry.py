"""What every registry does, on all of :data:`tests.contract.registry.backends.BACKENDS`."""

import asyncio
import contextlib
import itertools
import signal
import time
from contextlib import aclosing

import pytest

from amberblob.errors import RegistryUnavailable
from registry.interface import (
    TRANSACTION_OPS_MAX,
    Change,
    Compacted,
    CompareAndDelete,
    CompareAndSet,
    Delete,
    Entry,
    Put,
    Registry,
    put,
)
from tests.contract.registry.backends import (
    HISTORY_MAX,
    HURRIED_S,
    LATE_S,
    RESUME_S,
    Embedded,
    Etcd,
    Memory,
    OnServer,
    Redis,
)
from tests.contract.registry.servers import Patience
from tests.contract.registry.tries import answered, back_again, create, until

on_servers = pytest.mark.parametrize("backend", [Etcd, Redis], indirect=True, ids=["etcd", "redis"])
"""For what only a server can do: stop, stand still, come back with other data."""


async def collect(registry: Registry, prefix: str, from_revision: int, count: int) -> list[Change | Compacted]:
    items: list[Change | Compacted] = []
    async with asyncio.timeout(2 * LATE_S), aclosing(registry.watch(prefix, from_revision)) as changes:
        async for item in changes:
            items.append(item)
            if len(items) == count or isinstance(item, Compacted):
                break
    return items


def cas(key: str, expected: int, value: bytes = b"v") -> CompareAndSet:
    return CompareAndSet(key=key, expected_revision=expected, value=value)


# -- get, range, compare-and-set


async def test_an_empty_registry_has_nothing(clients):
    registry, _ = clients
    assert await registry.get("a") is None
    snapshot = await registry.range("")
    assert snapshot.entries == ()
    assert snapshot.revision >= 0


async def test_what_one_client_sets_the_other_gets(clients):
    one, two = clients
    revision = await one.compare_and_set("a", 0, b"\x00\xff")
    assert revision is not None and revision > 0
    assert await two.get("a") == Entry("a", b"\x00\xff", revision)


async def test_create_only_once(clients):
    one, two = clients
    assert await one.compare_and_set("a", 0, b"1") is not None
    assert await two.compare_and_set("a", 0, b"2") is None
    entry = await two.get("a")
    assert entry is not None and entry.value == b"1"


async def test_a_stale_revision_is_a_conflict(clients):
    one, two = clients
    first = await one.compare_and_set("a", 0, b"1")
    second = await two.compare_and_set("a", first, b"2")
    assert second > first
    assert await one.compare_and_set("a", first, b"3") is None
    assert await one.compare_and_set("missing", second, b"3") is None


async def test_revisions_grow_over_all_keys_and_through_deletion(clients):
    one, two = clients
    a = await one.compare_and_set("a", 0, b"")
    b = await two.compare_and_set("b", 0, b"")
    gone = await one.delete("a", a)
    again = await two.compare_and_set("a", 0, b"")
    assert a < b < gone < again
    assert (await one.range("")).revision == again


async def test_delete_compares(clients):
    one, two = clients
    revision = await one.compare_and_set("a", 0, b"1")
    assert await two.delete("a", revision + 1) is None
    assert await two.delete("missing", 1) is None
    assert await two.delete("a", revision) is not None
    assert await one.get("a") is None


async def test_range_is_by_prefix_and_ordered(clients):
    one, two = clients
    for key in ("x/2", "x/10", "x", "x/é", "y/1", "w/9", "x/%", "X/1"):
        await one.compare_and_set(key, 0, key.encode())
    snapshot = await two.range("x/")
    assert [entry.key for entry in snapshot.entries] == ["x/%", "x/10", "x/2", "x/é"]
    assert all(entry.value == entry.key.encode() for entry in snapshot.entries)


async def test_a_race_has_one_winner(clients):
    async def tries(registry: Registry, who: int) -> int | None:
        return await registry.compare_and_set("a", 0, str(who).encode())

    results = await asyncio.gather(*(tries(clients[i % 2], i) for i in range(20)))
    won = [i for i, revision in enumerate(results) if revision is not None]
    assert len(won) == 1
    assert (await clients[0].get("a")).value == str(won[0]).encode()


async def test_concurrent_increments_lose_nothing(clients):
    async def increment(registry: Registry) -> None:
        while True:
            entry = await registry.get("n")
            count, revision = (int(entry.value), entry.revision) if entry else (0, 0)
            if await registry.compare_and_set("n", revision, str(count + 1).encode()) is not None:
                return

    await asyncio.gather(*(increment(clients[i % 2]) for i in range(12)))
    assert (await clients[0].get("n")).value == b"12"


# -- transactions


async def test_a_transaction_is_all_or_none(clients):
    one, two = clients
    a = await one.compare_and_set("a", 0, b"1")
    before = (await one.range("")).revision
    assert await two.transact([cas("b", 0), cas("a", a + 1)]) is None
    assert await two.get("b") is None
    assert (await one.range("")).revision == before
    revision = await two.transact([cas("b", 0), CompareAndDelete(key="a", expected_revision=a), cas("c", 0)])
    assert [(entry.key, entry.revision) for entry in (await one.range("")).entries] == [
        ("b", revision),
        ("c", revision),
    ]


async def test_the_largest_transaction(clients):
    one, two = clients
    assert await one.transact([cas(f"k/{i:03d}", 0) for i in range(TRANSACTION_OPS_MAX)]) is not None
    assert len((await two.range("k/")).entries) == TRANSACTION_OPS_MAX
    with pytest.raises(AssertionError):
        await one.transact([cas(f"l/{i}", 0) for i in range(TRANSACTION_OPS_MAX + 1)])
    with pytest.raises(AssertionError):
        await one.transact([cas("same", 0), cas("same", 0)])


async def test_put_overwrites(clients):
    one, two = clients
    assert await put(one, "a", b"1") is not None
    assert await put(two, "a", b"2") is not None
    assert (await one.get("a")).value == b"2"


# -- watch


async def test_a_watch_replays_and_then_follows(clients):
    one, two = clients
    first = await one.compare_and_set("p/a", 0, b"1")
    await one.compare_and_set("q/a", 0, b"other prefix")
    task = asyncio.create_task(collect(two, "p/", first, 4))
    second = await one.compare_and_set("p/a", first, b"2")
    third = await two.compare_and_set("p/b", 0, b"own write")
    fourth = await one.delete("p/a", second)
    assert await task == [
        Change(first, (Put("p/a", b"1"),)),
        Change(second, (Put("p/a", b"2"),)),
        Change(third, (Put("p/b", b"own write"),)),
        Change(fourth, (Delete("p/a"),)),
    ]


async def test_a_watch_from_a_snapshot_misses_nothing(clients):
    one, two = clients
    await one.compare_and_set("p/a", 0, b"1")
    snapshot = await two.range("p/")
    revision = await one.compare_and_set("p/b", 0, b"2")
    assert await collect(two, "p/", snapshot.revision + 1, 1) == [Change(revision, (Put("p/b", b"2"),))]


async def test_a_transaction_is_one_change(clients):
    one, two = clients
    before = (await one.range("")).revision
    revision = await one.transact([cas("p/b", 0), cas("q/x", 0), cas("p/a", 0)])
    (change,) = await collect(two, "p/", before + 1, 1)
    assert change == Change(revision, (Put("p/b", b"v"), Put("p/a", b"v")))


async def test_two_watches_see_the_same(clients):
    one, two = clients
    start = (await one.range("")).revision + 1
    tasks = [asyncio.create_task(collect(registry, "", start, 10)) for registry in (one, two, two)]
    for i in range(10):
        await clients[i % 2].compare_and_set(f"k{i}", 0, b"")
    first, second, third = await asyncio.gather(*tasks)
    assert first == second == third
    assert [change.revision for change in first] == sorted({change.revision for change in first})


async def test_a_compacted_revision_is_told(clients, backend):
    one, two = clients
    await one.compare_and_set("a", 0, b"")
    start = (await one.range("")).revision
    await one.compare_and_set("b", 0, b"")
    revision = await one.compare_and_set("c", 0, b"")
    backend.compact()
    assert await collect(two, "", start, 1) == [Compacted(revision)]
    after = await one.compare_and_set("d", 0, b"")
    assert await collect(two, "", revision + 1, 1) == [Change(after, (Put("d", b""),))]
    assert [entry.key for entry in (await two.range("")).entries] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("backend", [Memory, Embedded, Redis], indirect=True, ids=["memory", "embedded", "redis"])
async def test_history_is_bounded(clients):
    """By ourselves; etcd forgets when its operator lets it (--auto-compaction-retention)."""
    one, two = clients
    for i in range(HISTORY_MAX + 5):
        await one.compare_and_set(f"k{i}", 0, b"")
    revision = (await one.range("")).revision
    assert await collect(two, "", 1, 1) == [Compacted(revision)]
    assert len(await collect(two, "", revision - HISTORY_MAX + 1, HISTORY_MAX)) == HISTORY_MAX


async def test_a_revision_of_the_future_is_of_another_store(clients):
    one, two = clients
    revision = await one.compare_and_set("a", 0, b"")
    assert await collect(two, "", revision + 2, 1) == [Compacted(revision)]


async def test_a_watch_that_is_cancelled_while_it_hears_something_ends(clients):
    """A cancellation is not lost to the change that comes at the same moment (as asyncio.wait_for of Python 3.11 loses it)."""
    one, two = clients
    start = (await one.range("")).revision + 1
    await one.lease(30)  # so that a watch waits for its end too, not only for changes

    async def follow(heard: list[Change | Compacted]) -> None:
        async with aclosing(two.watch("", start)) as changes:
            async for item in changes:
                heard.append(item)

    for turns in range(12):
        heard: list[Change | Compacted] = []
        task = asyncio.create_task(follow(heard))
        if turns:
            await until(lambda turns=turns, heard=heard: asyncio.sleep(0, len(heard) == turns))
        await asyncio.sleep(0.02)  # it waits for more
        await one.compare_and_set(f"k{turns}", 0, b"")
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=LATE_S)
        assert done, f"goes on after {turns} turns of the loop"
        assert task.cancelled()


# -- leases


class Late(Exception):
    """The machine was too slow for a lease that is so short: it may have ended before it was looked at."""


class Held:
    """A lease, and whether it must be there: it was kept less than its time ago."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self.kept_s = time.monotonic()

    def check(self, there: object) -> None:
        """What a look told. Raises Late when nothing can be said."""
        if there is None or there is False:
            if time.monotonic() - self.kept_s >= self._ttl_s:
                raise Late
            raise AssertionError("the lease ended too soon")


async def in_time(backend, attempt) -> None:
    """Run ``attempt`` with the time of a lease, with longer ones until the machine is quick enough for them."""
    for factor in (1, 2, 4, 8, 16):
        with contextlib.suppress(Late):
            await attempt(backend.ttl_s * factor, f"{factor}/")
            return
    raise AssertionError("the machine is never quick enough")


async def test_keys_vanish_with_their_lease(clients, backend):
    one, two = clients

    async def attempt(ttl_s: float, at: str) -> None:
        held = Held(ttl_s)
        lease = await one.lease(ttl_s)
        assert lease.ttl_s == ttl_s
        await one.compare_and_set(f"{at}lasting", 0, b"")
        start = await one.compare_and_set(f"{at}a", 0, b"1", lease_id=lease.id)
        held.check(start)
        await backend.elapse(0.5 * ttl_s)
        held.check(await two.get(f"{at}a"))
        watching = asyncio.create_task(collect(two, at, start + 1, 1))
        await backend.elapse(0.7 * ttl_s)

        async def gone() -> bool:
            return await two.get(f"{at}a") is None

        await until(gone, deadline_s=LATE_S)
        assert [entry.key for entry in (await two.range(at)).entries] == [f"{at}lasting"]
        (change,) = await watching
        assert isinstance(change, Change) and change.events == (Delete(f"{at}a"),)
        assert not await lease.keepalive()
        assert await one.compare_and_set(f"{at}b", 0, b"", lease_id=lease.id) is None
        assert await two.compare_and_set(f"{at}a", 0, b"free again") is not None

    await in_time(backend, attempt)


async def test_a_watch_alone_sees_a_lease_end(clients, backend):
    """Nobody reads or writes meanwhile."""
    one, two = clients

    async def attempt(ttl_s: float, at: str) -> None:
        patience, held = Patience(), Held(ttl_s)
        lease = await one.lease(ttl_s)
        start = await one.compare_and_set(f"{at}a", 0, b"", lease_id=lease.id)
        held.check(start)
        watching = asyncio.create_task(collect(two, at, start + 1, 1))
        await asyncio.sleep(0.05)
        if isinstance(backend, OnServer):
            (change,) = await watching
            assert 0.5 * ttl_s < patience.took_s < ttl_s + LATE_S
        else:
            await backend.elapse(1.1 * ttl_s)
            await one.range("wakes the other's watch: these clocks move without a sound")
            (change,) = await watching
        assert isinstance(change, Change) and change.events == (Delete(f"{at}a"),)

    await in_time(backend, attempt)


async def test_keepalive_keeps_alive(clients, backend):
    one, two = clients

    async def attempt(ttl_s: float, at: str) -> None:
        held = Held(ttl_s)
        lease = await one.lease(ttl_s)
        held.check(await one.compare_and_set(f"{at}a", 0, b"", lease_id=lease.id))
        for _ in range(3):
            await backend.elapse(0.5 * ttl_s)
            keeping_s = time.monotonic()
            held.check(await lease.keepalive())
            held.kept_s = keeping_s
        held.check(await two.get(f"{at}a"))

    await in_time(backend, attempt)


async def test_revoke_ends_a_lease_at_once(clients):
    one, two = clients
    lease = await one.lease(1000)
    revision = await one.transact(
        [CompareAndSet(key=key, expected_revision=0, value=b"", lease_id=lease.id) for key in ("a", "b")]
    )
    await lease.revoke()
    await lease.revoke()
    assert (await two.range("")).entries == ()
    (change,) = await collect(two, "", revision + 1, 1)
    assert change.events == (Delete("a"), Delete("b"))
    assert not await lease.keepalive()


async def test_a_key_that_changed_its_lease_outlives_the_old_one(clients):
    one, two = clients
    old = await one.lease(1000)
    revision = await one.compare_and_set("a", 0, b"1", lease_id=old.id)
    new = await two.lease(1000)
    assert await two.compare_and_set("a", revision, b"2", lease_id=new.id) is not None
    await old.revoke()
    assert not await old.keepalive()
    assert (await one.get("a")).value == b"2"
    free = await put(one, "a", b"3")
    await new.revoke()
    assert await two.get("a") == Entry("a", b"3", free)


# -- outages


async def test_an_outage_is_told_and_survived(clients, backend):
    one, two = clients
    revision = await one.compare_and_set("a", 0, b"1")
    lease = await one.lease(1000)
    watching = asyncio.create_task(collect(two, "", revision + 1, 1))
    await two.get("a")
    with backend.outage():
        with pytest.raises(RegistryUnavailable):
            await one.get("a")
        with pytest.raises(RegistryUnavailable):
            await one.compare_and_set("b", 0, b"")
        with pytest.raises(RegistryUnavailable):
            await lease.keepalive()
        with pytest.raises(RegistryUnavailable):
            await asyncio.wait_for(watching, LATE_S)
    await back_again(*clients)
    assert await one.get("a") == Entry("a", b"1", revision)
    assert await lease.keepalive()
    assert await two.compare_and_set("b", 0, b"") is not None


@on_servers
async def test_a_watch_goes_on_across_a_restart(clients, server):
    """By itself, or from where its reader was: nothing is missed, nothing comes in another order."""
    one, two = clients
    start = (await one.range("")).revision + 1
    seen: list[Change] = []

    async def follow() -> None:
        following = start
        while len(seen) < 4:
            with contextlib.suppress(RegistryUnavailable):
                async with aclosing(two.watch("k", following)) as changes:
                    async for change in changes:
                        assert isinstance(change, Change)
                        seen.append(change)
                        following = change.revision + 1
                        if len(seen) == 4:
                            return

    task = asyncio.create_task(follow())
    made = [await one.compare_and_set("k0", 0, b"")]

    async def first_came() -> bool:
        return len(seen) == 1

    await until(first_came)
    for number in (signal.SIGKILL, signal.SIGTERM):
        await asyncio.to_thread(server.stop, number)
        await asyncio.to_thread(server.start)

        made.append(await create(one, f"k{len(made)}"))
        await back_again(*clients)
    await one.compare_and_set("other", 0, b"")
    made.append(await two.compare_and_set(f"k{len(made)}", 0, b""))
    await asyncio.wait_for(task, LATE_S)
    assert [(change.revision, change.events[0].key) for change in seen] == [(at, f"k{i}") for i, at in enumerate(made)]


@on_servers
async def test_what_was_acknowledged_survives_a_crash(clients, server):
    _, two = clients
    acknowledged: dict[str, int] = {}
    ended = False

    async def write(who: int) -> None:
        with contextlib.suppress(RegistryUnavailable):
            for i in itertools.count():
                if ended:  # the crash came between two writes, and the next one waited until it was over
                    return
                revision = await clients[who % 2].compare_and_set(f"{who}/{i}", 0, b"")
                assert revision is not None
                acknowledged[f"{who}/{i}"] = revision

    tasks = [asyncio.create_task(write(who)) for who in range(4)]
    await asyncio.sleep(0.3)
    await until(lambda: asyncio.sleep(0, len(acknowledged) > 10))
    await asyncio.to_thread(server.restart)
    ended = True
    await asyncio.gather(*tasks)

    async def read() -> dict[str, int]:
        with contextlib.suppress(RegistryUnavailable):
            return {entry.key: entry.revision for entry in (await two.range("")).entries}
        return {}

    found = await until(read)
    assert acknowledged.items() <= found.items()
    assert len(found) <= len(acknowledged) + 4


@on_servers
async def test_a_server_that_is_away_is_told_in_bounded_time(clients, server):
    one, two = clients
    await one.get("a")
    watching = asyncio.create_task(collect(two, "", (await two.range("")).revision + 1, 1))
    await asyncio.sleep(0.1)
    server.stop()
    patience = Patience()
    calls = [one.get("a"), one.range(""), one.compare_and_set("a", 0, b""), one.lease(10), watching]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results if not isinstance(result, RegistryUnavailable)] == []
    assert patience.took_s < RESUME_S + LATE_S
    server.start()
    await back_again(two)


@on_servers
async def test_a_server_that_stands_still_is_told_in_bounded_time(hurried, server):
    one, two = hurried
    revision = await create(one, "a", b"1")
    await back_again(two)
    lease = await until(lambda: answered(one.lease(1000)))
    watching = asyncio.create_task(collect(two, "", revision + 1, 1))
    await asyncio.sleep(0.1)
    server.stand_still()
    try:
        patience = Patience()
        calls = [
            one.get("a"),
            one.range(""),
            one.compare_and_set("b", 0, b""),
            lease.keepalive(),
            two.lease(10),
            watching,
        ]
        # More than there are connections or threads: those that have to queue are bounded too.
        calls += [one.get(f"{i}") for i in range(40)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results if not isinstance(result, RegistryUnavailable)] == []
        assert patience.took_s < 3 * HURRIED_S + LATE_S
    finally:
        server.send(signal.SIGCONT)
    assert (await until(lambda: answered(one.get("a")))).value == b"1"

    async def overwritten() -> bool:
        entry = await two.get("b")  # made or not, it was not told
        return await two.compare_and_set("b", entry.revision if entry else 0, b"2") is not None

    assert await until(lambda: answered(overwritten()))
    assert (await until(lambda: answered(one.get("b")))).value == b"2"
    assert await until(lambda: answered(lease.keepalive()))


@on_servers
async def test_a_store_that_comes_back_empty_is_recognised(clients, server):
    one, two = clients
    for i in range(3):
        await one.compare_and_set(f"k{i}", 0, b"")
    revision = (await two.range("")).revision
    watching = asyncio.create_task(collect(two, "", revision + 1, 1))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(server.empty)
    with pytest.raises(RegistryUnavailable):
        await watching
    for call in (lambda: two.range(""), lambda: one.get("k0"), lambda: one.compare_and_set("new", 0, b"")):

        async def refused(call=call) -> bool:
            """By what it holds, once it is reached again."""
            with pytest.raises(RegistryUnavailable) as caught:
                await call()
            return "older than it was" in caught.value.detail or "another one than before" in caught.value.detail

        await until(refused)


@on_servers
async def test_a_store_that_was_set_back_is_recognised(clients, server):
    one, two = clients
    await one.compare_and_set("a", 0, b"")
    await asyncio.to_thread(server.save, "backup")
    await back_again(*clients)
    for i in range(3):
        await one.compare_and_set(f"k{i}", 0, b"")
    await two.range("")
    await asyncio.to_thread(server.set_back, "backup")

    async def refused() -> str:
        try:
            await two.range("")
        except RegistryUnavailable as error:
            return error.detail if "older than it was" in error.detail else ""
        raise AssertionError("an older store was taken")

    await until(refused)


async def test_close_ends_watches_and_calls(backend):
    registry = backend.client()
    await back_again(registry)
    revision = await registry.compare_and_set("a", 0, b"")
    task = asyncio.create_task(collect(registry, "", revision, 2))
    await registry.get("a")
    await registry.close()
    with contextlib.suppress(RegistryUnavailable):
        assert len(await asyncio.wait_for(task, LATE_S)) <= 1
    with pytest.raises(RegistryUnavailable):
        await registry.get("a")
    await registry.close()


async def test_a_cancelled_call_breaks_nothing(clients):
    one, two = clients
    for i in range(20):
        task = asyncio.create_task(one.transact([cas(f"{i}/a", 0), cas(f"{i}/b", 0)]))
        for _ in range(i % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await one.compare_and_set("after", 0, b"") is not None
    for i in range(20):
        assert len((await two.range(f"{i}/")).entries) in (0, 2)
