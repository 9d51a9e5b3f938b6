"""Repair yields while clients are served, and only then. Time is the test's own."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.limits import MIB
from antientropy.pace import BUSY_S, LOOK_S, REST_MAX_S, REST_S, REST_SHARE, SMALL_BYTES, Yielding

RATE = 4 * MIB


class Time:
    """A clock that goes on when somebody sleeps; ``at`` calls happen on the way."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.served = 0
        self.serves_every_s: float | None = None
        self._next_s = 0.0

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s

    def always_busy(self) -> None:
        self.serves_every_s, self._next_s = 0.1, self.now_s
        self.served += 1

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.serves_every_s is not None and self.now_s >= self._next_s:
            self.served += 1
            self._next_s = self.now_s + self.serves_every_s
        await asyncio.sleep(0)


@pytest.fixture
def time() -> Time:
    return Time()


def pace_of(time: Time) -> Yielding:
    return Yielding(time, lambda: time.served, RATE, time.sleep)


async def test_without_clients_nothing_is_waited_for(time):
    pace = pace_of(time)
    for _ in range(1000):
        await pace.turn(8 * MIB)
    assert time.now_s == 100.0 and not pace.busy


@pytest.mark.parametrize("size", [SMALL_BYTES, MIB, 8 * MIB])
async def test_while_clients_are_served_the_rate_is_kept(time, size):
    pace, began_s = pace_of(time), time.now_s
    time.always_busy()
    count = 20 * RATE // size
    for _ in range(count):
        await pace.turn(size)
    # The first of them waits for nobody.
    assert (count - 1) * size / RATE <= time.now_s - began_s <= count * size / RATE + LOOK_S


async def test_several_at_once_share_the_rate_in_the_order_in_which_they_came(time):
    pace, began_s, order = pace_of(time), time.now_s, []
    time.always_busy()

    async def move(number: int) -> None:
        await pace.turn(MIB)
        order.append(number)

    await asyncio.gather(*(move(number) for number in range(21)))
    assert order == list(range(21))
    assert 20 * MIB / RATE <= time.now_s - began_s < 20 * MIB / RATE + 2 * LOOK_S


async def test_small_turns_rest_and_are_paid_for_by_the_next_large_one(time):
    pace = pace_of(time)
    time.always_busy()
    began_s = time.now_s
    for _ in range(100):
        await pace.turn(SMALL_BYTES - 1)
    assert time.now_s - began_s == pytest.approx(100 * REST_S)
    await pace.turn(MIB)
    assert time.now_s - began_s >= 100 * (SMALL_BYTES - 1) / RATE - LOOK_S


async def test_who_waits_goes_on_soon_after_the_last_client(time):
    pace = pace_of(time)
    time.always_busy()
    await pace.turn(100 * RATE)
    time.serves_every_s = None
    began_s = time.now_s
    await pace.turn(MIB)
    assert time.now_s - began_s <= BUSY_S + 2 * LOOK_S
    assert not pace.busy
    await pace.turn(100 * RATE)
    assert time.now_s - began_s <= BUSY_S + 2 * LOOK_S


async def test_busy_begins_with_a_request_and_ends_after_a_while(time):
    pace = pace_of(time)
    assert not pace.busy
    time.served += 1
    assert pace.busy
    time.now_s += BUSY_S - 0.01
    assert pace.busy
    time.now_s += 0.02
    assert not pace.busy


async def test_who_gives_up_waiting_does_not_keep_the_others(time):
    pace = pace_of(time)
    time.always_busy()
    await pace.turn(RATE)
    first = asyncio.get_running_loop().create_task(pace.turn(MIB))
    second = asyncio.get_running_loop().create_task(pace.turn(MIB))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(30.0):
        await second
    assert first.cancelled()


async def test_work_is_followed_by_a_rest_only_while_clients_are_served(time):
    pace = pace_of(time)
    await pace.rest(5.0)
    assert time.now_s == 100.0
    time.served += 1
    await pace.rest(0.01)
    assert time.now_s == pytest.approx(100.0 + 0.01 * REST_SHARE)
    await pace.rest(5.0)
    assert time.now_s == pytest.approx(100.0 + 0.01 * REST_SHARE + REST_MAX_S)
