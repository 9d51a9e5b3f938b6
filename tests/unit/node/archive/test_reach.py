"""Whether the target answers."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.errors import ArchiveDenied, ArchiveError, ArchiveNotOurs, ArchiveUnavailable, NotReady
from archive.targets.failures import Throttled
from archive.targets.memory import MemoryTarget
from node.archive import reach as reach_module
from node.archive.reach import LOOK_EVERY_S, RETRY_FIRST_S, RETRY_STRANGE_S, Reach
from tests.unit.node.objects.kit import SkewedClock, until


def made() -> tuple[MemoryTarget, Reach]:
    clock = SkewedClock()
    target = MemoryTarget(clock=clock)
    return target, Reach(target, target.traffic, clock, now_ms=lambda: 7)


async def test_it_is_looked_at_thoroughly_once_and_then_cheaply() -> None:
    target, reach = made()
    assert reach.reached is None
    await reach.step()
    assert reach.reached and reach.since_ms == 7 and reach.pause_s == LOOK_EVERY_S
    assert target.traffic.requests[("put", "ok")] == 1
    await reach.step()
    assert target.traffic.requests[("put", "ok")] == 1 and target.traffic.requests[("list", "ok")] == 1
    [_ async for _ in _reading(target)]
    await reach.step()
    assert target.traffic.requests[("list", "ok")] == 1, "what others did there tells as much"


async def _reading(target: MemoryTarget):
    target.bucket.store("x", b"1")
    async for data in target.read("x"):
        yield data


async def test_what_is_wrong_is_told_and_looked_at_again_every_few_seconds() -> None:
    target, reach = made()
    target.bucket.fault("denied")
    pauses = []
    for _ in range(6):
        await reach.step()
        pauses.append(reach.pause_s)
    assert pauses == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 5.0, 5.0, 5.0, 5.0]
    assert reach.reached is False and isinstance(reach.error, ArchiveDenied)
    with pytest.raises(ArchiveDenied):
        reach.require()
    with pytest.raises(ArchiveDenied):
        await reach.wait(1000.0)
    target.bucket.heal()
    await reach.step()
    reach.require()
    assert reach.reached and reach.error is None


async def test_a_job_waits_for_it_but_not_for_ever() -> None:
    target, reach = made()
    target.bucket.fault("unavailable", times=1)
    await reach.step()
    assert not reach.reached
    await reach.wait(60.0)
    assert reach.reached
    target.bucket.fault("unavailable")
    reach.failed(ArchiveUnavailable("away"))
    assert reach.wake.is_set()
    with pytest.raises(ArchiveError):
        await reach.wait(0.0)


async def test_a_job_that_waits_goes_on_as_soon_as_anybody_sees_that_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach_module, "RETRY_FIRST_S", 36_000.0)
    target, reach = made()
    target.bucket.fault("unavailable")
    await reach.step()
    said = asyncio.Event()
    job = asyncio.create_task(reach.wait(72_000.0, lambda why: said.set()))
    await said.wait()
    target.bucket.heal()
    await reach.step()
    await until(job.done)
    await job
    assert reach.reached


async def test_a_request_that_fails_has_it_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_module, "DOUBT_PAUSE_S", 0.0)
    target, reach = made()
    await reach.step()
    reach.wake.clear()
    target.bucket.fault("unavailable")
    with pytest.raises(ArchiveUnavailable):
        [_ async for _ in _reading(target)]
    assert reach.wake.is_set() and reach.reached, "one failure is no proof"
    await reach.step()
    assert reach.reached is False
    target.bucket.heal()
    reach.wake.clear()
    await reach.step()
    assert reach.reached and not reach.wake.is_set()


async def test_one_that_throttles_is_told_as_that_to_who_requires_it() -> None:
    _, reach = made()
    reach.failed(Throttled("503 SlowDown", 3.0))
    with pytest.raises(Throttled, match="SlowDown") as caught:
        reach.require()
    assert caught.value.code == "archive-unavailable"


async def test_one_that_is_another_one_is_not_reached() -> None:
    async def is_ours() -> None:
        raise ArchiveNotOurs("it has other things")

    clock = SkewedClock()
    target = MemoryTarget(clock=clock)
    reach = Reach(target, target.traffic, clock, now_ms=lambda: 7, is_ours=is_ours)
    for _ in range(6):
        await reach.step()
    assert reach.reached is False and reach.pause_s == RETRY_STRANGE_S, "to find out what is there takes more requests"
    with pytest.raises(ArchiveNotOurs):
        await reach.wait(1000.0)


async def test_as_long_as_there_are_no_routes_nobody_asks_whose_it_is() -> None:
    async def is_ours() -> None:
        raise NotReady("no routes yet")

    clock = SkewedClock()
    target = MemoryTarget(clock=clock)
    reach = Reach(target, target.traffic, clock, now_ms=lambda: 7, is_ours=is_ours)
    await reach.step()
    assert reach.reached
