"""Threads for blocking calls (archive/targets/threads.py)."""

import asyncio
import subprocess
import sys
import threading

import pytest

from archive.targets.threads import Closed, Threads


@pytest.fixture
def threads():
    made = Threads(3, "of-the-test")
    yield made
    made.close()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def all_busy(threads, gate):
    """Each of the three threads has begun a call, which ends when the gate is opened."""
    running = []

    def work():
        running.append(1)
        return gate.wait(60)

    busy = [asyncio.ensure_future(threads.run(work)) for _ in range(3)]
    await until(lambda: len(running) == 3)
    return busy


async def test_results_and_errors(threads):
    assert await threads.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.finish(lambda: 8) == 8


async def test_at_most_so_many_and_they_are_used_again(threads):
    gate, running, most, names = threading.Event(), 0, 0, set()
    lock = threading.Lock()

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            names.add(threading.current_thread().name)
        gate.wait(60)
        with lock:
            running -= 1

    first = [asyncio.ensure_future(threads.run(work)) for _ in range(9)]
    await until(lambda: most == 3)
    gate.set()
    await asyncio.gather(*first)
    for _ in range(20):
        await threads.run(work)
    assert most == 3
    assert len(names) == 3


async def test_one_thread_is_enough_for_one_after_the_other(threads):
    seen = set()
    for _ in range(50):
        await threads.run(lambda: seen.add(threading.current_thread().name))
    assert len(seen) == 1


async def test_who_must_know_waits_for_the_end_though_cancelled(threads):
    gate, begun, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        gate.wait(60)
        ended.append(1)

    waiting = asyncio.ensure_future(threads.finish(work))
    await until(begun.is_set)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == [1]


async def test_what_has_not_begun_when_cancelled_never_does(threads):
    gate, begun = threading.Event(), []
    busy = await all_busy(threads, gate)
    waiting = asyncio.ensure_future(threads.finish(lambda: begun.append(1)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await asyncio.gather(*busy)
    await threads.run(lambda: None)
    assert begun == []


async def test_nothing_after_the_end(threads):
    gate, begun = threading.Event(), []
    busy = await all_busy(threads, gate)
    waiting = asyncio.ensure_future(threads.run(lambda: begun.append(1)))
    await asyncio.sleep(0.01)
    threads.close()
    with pytest.raises(Closed):
        await waiting
    threads.spend(lambda: begun.append(1))
    with pytest.raises(Closed):
        await threads.run(lambda: begun.append(1))
    gate.set()
    assert await asyncio.gather(*busy) == [True] * 3
    assert begun == []


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process():
    code = (
        "import asyncio, time\n"
        "from archive.targets.threads import Threads\n"
        "async def main():\n"
        "    threads = Threads(1, 'x')\n"
        "    task = asyncio.ensure_future(threads.run(lambda: time.sleep(600)))\n"
        "    await asyncio.sleep(0.05)\n"
        "    threads.close()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
