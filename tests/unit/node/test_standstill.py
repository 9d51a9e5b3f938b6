"""Requests that came while the node stood still count as old; those that come later do not."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.errors import NotFound, NotReady
from node.protocol.operations import Conditions
from node.standstill import AFTERWARDS_S, STANDSTILL_S, TICK_S, Standstill
from tests.unit.node.objects.kit import cluster, content, delete, get, put


class Loop:
    """A clock, and the timer that was asked for last."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timer = lambda: None

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s, timer):
        assert delay_s == TICK_S
        self.timer = timer
        return asyncio.get_running_loop().call_later(3600, timer)

    def turn(self, seconds: float) -> None:
        self.now_s += seconds
        self.timer()


@pytest.fixture
async def watched():
    standstill, loop = Standstill(), Loop()
    standstill._loop = loop
    standstill.start()
    yield standstill, loop
    await standstill.stop()


async def test_a_loop_that_turns_is_never_late(watched):
    standstill, loop = watched
    for _ in range(20):
        loop.turn(STANDSTILL_S * 0.9)
        assert standstill.late_s() == 0


async def test_what_is_met_after_a_standstill_may_have_come_when_it_began(watched):
    standstill, loop = watched
    loop.turn(TICK_S)
    loop.now_s += 20  # and the sockets are read before the timer has its turn
    assert standstill.late_s() == 20
    loop.turn(0.5)
    assert standstill.late_s() == 20.5
    for _ in range(int(AFTERWARDS_S / TICK_S)):
        loop.turn(TICK_S)
    assert standstill.late_s() == 0


async def test_what_came_in_one_standstill_may_be_read_after_the_next(watched):
    standstill, loop = watched
    loop.turn(20)
    loop.turn(TICK_S)
    loop.turn(STANDSTILL_S)
    assert standstill.late_s() == 20 + TICK_S + STANDSTILL_S
    for _ in range(int(AFTERWARDS_S / TICK_S)):
        loop.turn(TICK_S)
    assert standstill.late_s() == 0
    loop.turn(5)
    assert standstill.late_s() == 5, "what was read long ago is not late any more"


async def test_the_timer_may_see_it_first(watched):
    standstill, loop = watched
    loop.turn(5)
    assert standstill.late_s() == 5


async def test_it_ends():
    standstill = Standstill()
    standstill.start()
    timer = standstill._timer
    await standstill.stop()
    assert timer is not None and timer.cancelled()


@pytest.mark.parametrize("size", [5, 200_000])
async def test_a_write_that_may_have_been_refused_elsewhere_meanwhile_is_not_begun(size):
    """A repeat may have been told 412 (or 404, for a delete) since: what was refused must not happen after all."""
    async with cluster() as made:
        node = made[1]
        node.coordinator.late_s = lambda: 3600.0
        with pytest.raises(NotReady) as caught:
            await put(node, "a", content(size), conditions=Conditions(absent=True), write_id="once")
        assert caught.value.code == "too-slow" and "stood still" in caught.value.detail
        with pytest.raises(NotReady):
            await delete(node, "a", write_id="once")
        # What nothing refuses later, and what nobody repeats, goes on.
        await put(node, "a", b"1", write_id="once")
        await put(node, "a", b"2", conditions=Conditions(version=1))
        await delete(node, "a")
        node.coordinator.late_s = lambda: 0.0
        with pytest.raises(NotFound):
            await get(node, "a")
        await put(node, "a", b"3", conditions=Conditions(absent=True), write_id="another")
        assert await get(node, "a") == b"3"
