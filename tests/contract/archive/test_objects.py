"""What lies in the bucket comes back from it, on every kind of target: packs of several parts, lone chunks, their indexes."""

from __future__ import annotations

import msgspec

from archive.packs import object_ulid
from archive.reading import fetch_index, read_chunk
from archive.verifying import verify_object
from tests.unit.archive.pack_kit import Told, each, noise, pairs_of, text, uploader_to

MIB = 1024 * 1024


async def test_chunks_go_there_and_come_back(target):
    told = Told()
    bodies = [noise(MIB + seed, seed) for seed in range(8)] + [text(3000, seed) for seed in range(300)]
    bodies += [noise(6 * MIB), text(5 * MIB)]
    pairs = pairs_of(bodies)
    uploader = uploader_to(target, pack_size=7 * MIB, lone_size=4 * MIB, parallel=3)
    await uploader.run(each(pairs), told.stored, told.failed)
    assert not told.failures and len(told.rows) == len(pairs)
    listed = {stored.name: stored.size_bytes for stored in await target.page("", "", 1000)}
    assert told.objects == set(listed) and all(object_ulid(name) for name in listed)
    named = [entry.path for name, size in listed.items() for entry in await fetch_index(target, name, size)]
    assert sorted(named) == sorted(item.path for item, _ in pairs)
    for item, data in pairs[:12] + pairs[-2:]:
        row = told.row(item)
        for start, end in ((0, len(data)), (len(data) * 2 // 3, len(data) * 2 // 3 + 9)):
            pieces = [bytes(piece) async for piece in read_chunk(target, row, start, end)]
            assert b"".join(pieces) == data[start:end]
    for name in listed:
        rows = [row for _, row in told.rows if row.target_path == name]
        verdicts = await verify_object(target, name, rows)
        assert {verdict.outcome for verdict in verdicts} == {"verified"}
        beyond = msgspec.structs.replace(rows[0], start=rows[0].start + 10**8, end=rows[0].end + 10**8)
        verdicts = await verify_object(target, name, [*rows, beyond])
        assert [verdict.outcome for verdict in verdicts] == ["verified"] * len(rows) + ["damaged"]
        lost = msgspec.structs.replace(rows[0], target_path=name + "x")
        assert (await verify_object(target, lost.target_path, [lost]))[0].outcome == "missing"
