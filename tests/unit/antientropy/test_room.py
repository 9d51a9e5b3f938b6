"""Bounded memory for what is on its way."""

from __future__ import annotations

import asyncio
import random

import pytest

from antientropy.room import Room


async def test_neither_more_pieces_nor_more_bytes_than_there_is_room_for():
    room, chance = Room(4, 100), random.Random(1)
    inside, most, done = [], 0, []

    async def one(number: int, size: int) -> None:
        nonlocal most
        async with room.of(size):
            inside.append(size)
            most = max(most, len(inside))
            assert len(inside) <= 4
            assert sum(inside) <= 100 or len(inside) == 1
            assert sum(inside) <= room.taken_bytes and (room.taken_bytes <= 100 or len(inside) == 1)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            inside.remove(size)
        done.append(number)

    sizes = [chance.choice((1, 10, 30, 60, 250)) for _ in range(300)]
    await asyncio.gather(*(one(number, size) for number, size in enumerate(sizes)))
    assert sorted(done) == list(range(300)) and most == 4 and room.taken_bytes == 0


async def test_a_large_piece_is_not_overtaken_for_ever():
    room, order = Room(4, 100), []

    async def one(name: str, size: int) -> None:
        async with room.of(size):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(one("first", 90), one("large", 250), *(one(f"small{n}", 1) for n in range(5)))
    assert order[:2] == ["first", "large"]


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_gives_up_leaves_no_trace(seed):
    room, chance = Room(2, 100), random.Random(seed)
    ended = 0

    async def one(size: int) -> None:
        nonlocal ended
        async with room.of(size):
            await asyncio.sleep(0)
            ended += 1

    tasks = [asyncio.get_running_loop().create_task(one(chance.choice((10, 60, 120)))) for _ in range(40)]
    for _ in range(15):
        await asyncio.sleep(0)
        chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ended == sum(not task.cancelled() for task in tasks) >= 25
    assert room.taken_bytes == 0
    async with asyncio.timeout(30.0), room.of(1000):
        pass
