"""Which objects rows of a node name, and how much of them."""

from __future__ import annotations

from pathlib import Path

from amberblob.wire_archive import ObjectUses, ObjectUsesReply
from archive.packs import ENTRY_BYTES
from tests.unit.node.archive.archive_kit import world
from tests.unit.node.objects.kit import content, put

NOWHERE = "packs/2000/01/01/01ARZ3NDEKTSV4RRFFQ69G5FAV.pack"


async def test_names_of_all_copies_and_bytes_of_those_that_are_looked_after(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for number in range(12):
            await put(it[1], f"p/{number}", content(5000, number))
        await it.cluster.settle()
        await it.run()
        await it.follow()
        packs = it.bucket.names("packs/")
        assert len(packs) == 3
        ask = ObjectUses(names=(NOWHERE, *packs), sizes=True)
        replies = [await it.archive(index).ground.ask(f"n{index}", ask) for index in (1, 2, 3)]
        total = 0
        for reply in replies:
            assert isinstance(reply, ObjectUsesReply)
            assert reply.used == tuple(packs), "every copy has rows of all of them"
            assert sum(size > 0 for size in reply.sizes) == 1, "a pack is of one node's slots"
            total += sum(reply.sizes)
        frames = sum(
            {line.chunk.location: line.chunk.end - line.chunk.start for slot in range(8) for line in (await it[1].store.archived_after(slot, 0, 100))[0]}.values()
        )  # fmt: skip
        assert total == frames + 12 * ENTRY_BYTES
        plain = await it.archive(1).ground.ask("n2", ObjectUses(names=(NOWHERE, *packs)))
        assert plain == ObjectUsesReply(used=tuple(packs))


async def test_sums_are_kept_for_a_while(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        uses = it.archive(1).answers.uses
        assert uses is not None
        assert await uses.sums() == {}  # type: ignore[attr-defined]
        path = it.cluster.path(1)
        await put(it[1], path, content(5000))
        await it.cluster.settle()
        await it.run()
        await it.follow()
        (pack,) = it.bucket.names("packs/")
        index = next(index for index in (1, 2, 3) if it.archive(index).ground.looks_after(it.cluster.slot(path)))
        its = it.archive(index).answers.uses
        assert its is not None
        if index == 1:
            assert (await its.of([pack], sizes=True)).sizes == (0,)
        it.cluster.clock.ahead_s += 301
        assert (await its.of([pack], sizes=True)).sizes[0] > 0
