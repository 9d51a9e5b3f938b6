"""Limits and counts (archive/traffic.py), in virtual time."""

import asyncio

import pytest

from archive.traffic import BURST_S, FREE, SPACING_MAX_S, Rate, Traffic


class Time:
    """A clock whose sleepers wake in the order of their times, when nobody can run."""

    def __init__(self):
        self.now_s = 100.0
        self.sleepers = []

    def wall_ms(self):
        return int(self.now_s * 1000)

    def monotonic_s(self):
        return self.now_s

    async def sleep(self, seconds):
        woken = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now_s + seconds, len(self.sleepers), woken))
        await woken

    async def run(self, *works):
        """All of them to their ends; how long that took."""
        began_s = self.now_s
        tasks = [asyncio.ensure_future(work) for work in works]
        while not all(task.done() for task in tasks):
            for _ in range(10):
                await asyncio.sleep(0)
            self.sleepers.sort()
            if self.sleepers and not all(task.done() for task in tasks):
                at_s, _, woken = self.sleepers.pop(0)
                self.now_s = max(self.now_s, at_s)
                if not woken.done():
                    woken.set_result(None)
        for task in tasks:
            task.result()
        return self.now_s - began_s


@pytest.fixture
def time():
    return Time()


async def times(count, ask):
    for _ in range(count):
        await ask()


async def test_a_rate_is_kept(time):
    rate = Rate(100, time, time.sleep)
    assert await time.run(times(1000, lambda: rate.take(1))) == pytest.approx(10 - BURST_S, abs=0.02)


async def test_a_rate_is_shared_and_in_turn(time):
    rate, order = Rate(10, time, time.sleep), []

    async def one(name):
        await rate.take(10)
        order.append(name)

    took_s = await time.run(*(one(name) for name in "abcdef"))
    assert order == list("abcdef")
    assert took_s == pytest.approx(5 - BURST_S)


async def test_one_taking_may_be_larger_than_the_bucket(time):
    rate = Rate(1000, time, time.sleep)
    assert await time.run(rate.take(64_000)) == 0
    assert await time.run(rate.take(1)) == pytest.approx(64 - BURST_S)


async def test_idle_time_is_not_saved_up(time):
    rate = Rate(10, time, time.sleep)
    await rate.take(1)
    time.now_s += 3600
    assert await time.run(times(100, lambda: rate.take(1))) == pytest.approx(10, abs=0.5)


async def test_who_is_cancelled_has_taken_nothing(time):
    rate = Rate(1, time, time.sleep)
    await rate.take(10)
    waiting = asyncio.ensure_future(rate.take(1000))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await time.run(rate.take(1)) == pytest.approx(10 - BURST_S)


async def test_no_limit_never_waits(time):
    traffic = Traffic(time, sleep=time.sleep)
    for pace in (traffic.job(), FREE):
        assert await time.run(times(1000, pace.request), times(1000, lambda pace=pace: pace.bytes(10**9))) == 0


async def test_jobs_share_the_limits_and_may_have_lower_ones(time):
    traffic = Traffic(time, bytes_per_s=1000, requests_per_s=100, sleep=time.sleep)
    first, second = traffic.job(), traffic.job()
    assert await time.run(times(10, lambda: first.bytes(500)), times(10, lambda: second.bytes(500))) == pytest.approx(
        10, abs=1
    )
    assert await time.run(times(500, first.request), times(500, second.request)) == pytest.approx(10, abs=0.5)
    slow = traffic.job(bytes_per_s=100, requests_per_s=10)
    assert await time.run(times(100, lambda: slow.bytes(10))) == pytest.approx(10, abs=0.5)
    assert await time.run(times(100, slow.request)) == pytest.approx(10, abs=0.5)
    free_s = await time.run(times(100, FREE.request), times(100, lambda: FREE.bytes(10**6)))
    assert free_s == 0


async def test_a_target_that_throttles_slows_jobs_down_until_it_is_content(time):
    traffic = Traffic(time, sleep=time.sleep)
    pace = traffic.job()
    traffic.count("put", "throttled")
    first_s = await time.run(times(100, pace.request))
    assert first_s > 1
    for _ in range(3):
        traffic.count("put", "throttled")
    assert await time.run(times(100, pace.request)) == pytest.approx(8 * first_s, rel=0.1)
    for _ in range(100):
        traffic.count("put", "throttled")
    assert traffic.spacing_s == SPACING_MAX_S
    assert await time.run(times(100, FREE.request)) == 0
    for _ in range(100):
        traffic.count("put", "ok")
    assert traffic.spacing_s == 0
    assert await time.run(times(100, pace.request)) == 0
    assert traffic.throttles == 104
    assert traffic.requests == {("put", "throttled"): 104, ("put", "ok"): 100}
