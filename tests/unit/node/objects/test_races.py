"""Many clients on one path."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from amberblob.clock import SeededRandomness
from amberblob.errors import NotFound, PreconditionFailed, QuorumUnavailable
from node.protocol.operations import Conditions
from tests.unit.node.objects.kit import STAGED, cluster, content, delete, get, look, put, read


@pytest.mark.parametrize("faults", [False, True])
async def test_conditional_increments_lose_no_update(faults):
    async with cluster() as made:
        await put(made[1], "n", b"0")
        chance = SeededRandomness(5)
        if faults:
            made.net.fault("Learn", "drop", when=lambda _: chance.fraction() < 0.5)
            made.net.fault("Commit", "lose", when=lambda _: chance.fraction() < 0.1)
            made.net.fault("Prepare", "drop", when=lambda _: chance.fraction() < 0.1)

        async def increment(number: int) -> None:
            node = made[number % 3 + 1]
            while True:
                view = await look(node, "n")
                value = int(await read(node, view))
                try:
                    await put(
                        node, "n", b"%d" % (value + 1), conditions=Conditions(version=view.version.version),
                        write_id=f"{number}-{view.version.version}",
                    )  # fmt: skip
                    return
                except (PreconditionFailed, QuorumUnavailable):
                    await asyncio.sleep(chance.fraction() * 0.02)

        await asyncio.gather(*(increment(number) for number in range(20)))
        made.net.heal()
        for node in made:
            assert await get(node, "n") == b"20"
        assert len(await made[1].objects.versions("n")) == 21


@pytest.mark.parametrize("size", [5, STAGED])
async def test_racing_creates_have_one_winner(size):
    async with cluster() as made:

        async def create(number: int) -> int | None:
            try:
                await put(
                    made[number % 3 + 1], "p", content(size, number), conditions=Conditions(absent=True),
                    write_id=f"w{number}" if number % 2 else None,
                )  # fmt: skip
                return number
            except PreconditionFailed:
                return None

        winners = [w for w in await asyncio.gather(*(create(n) for n in range(20))) if w is not None]
        assert len(winners) == 1
        for node in made:
            assert await get(node, "p") == content(size, winners[0])
        assert len(await made[2].objects.versions("p")) == 1
        await made.settle()
        assert made.staged() == {}


async def test_what_was_read_never_goes_back():
    """Readers at every node while writers write and LEARNs get lost: versions seen by one reader only grow."""
    async with cluster() as made:
        chance = SeededRandomness(9)
        made.net.fault("Learn", "drop", when=lambda _: chance.fraction() < 0.7)
        await put(made[1], "p", b"0")
        seen = 1
        over = False

        async def reader() -> None:
            nonlocal seen
            number = 0
            while not over:
                number += 1
                floor = seen
                found = (await look(made[number % 3 + 1], "p")).version.version
                assert found >= floor
                seen = max(seen, found)
                await asyncio.sleep(0)

        readers = [asyncio.create_task(reader()) for _ in range(3)]
        for index in range(30):
            await put(made[index % 3 + 1], "p", b"%d" % index)
        over = True
        await asyncio.gather(*readers)


async def test_puts_and_deletes_at_once_leave_one_history():
    async with cluster() as made:

        async def writer(number: int) -> None:
            for turn in range(4):
                await put(made[(number + turn) % 3 + 1], "p", b"%d-%d" % (number, turn))
                with contextlib.suppress(NotFound):
                    await delete(made[(number + turn + 1) % 3 + 1], "p")

        await asyncio.gather(*(writer(number) for number in range(5)))
        await made.settle()
        histories = []
        for node in made:
            histories.append([(v.version.version, v.version.blob_id) for v in await node.objects.versions("p")])
        assert histories[0] == histories[1] == histories[2]
        assert [version for version, _ in histories[0]] == list(range(20, 0, -1))
