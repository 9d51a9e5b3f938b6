"""Reading objects back: verdicts are facts, or there is none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.errors import ArchiveError
from archive.frames import header_bytes
from archive.packs import HEADER
from archive.targets.memory import MemoryTarget
from archive.verifying import LOOKS_MAX, Verdict, verify_object
from tests.unit.archive.pack_kit import Told, each, noise, pairs_of, text, uploader_to


async def packed(bodies: list[bytes]) -> tuple[MemoryTarget, str, list[ArchivedChunk]]:
    target, told = MemoryTarget(), Told()
    await uploader_to(target, pack_size=10**8, lone_size=10**8, parallel=1).run(
        each(pairs_of(bodies)), told.stored, told.failed
    )
    (name,) = target.bucket.objects
    rows = sorted((row for _, row in told.rows), key=lambda row: row.start)
    return target, name, rows


def outcomes(verdicts: list[Verdict]) -> list[str]:
    assert all((verdict.error is None) is (verdict.outcome == "verified") for verdict in verdicts)
    return [verdict.outcome for verdict in verdicts]


def gets(target: MemoryTarget) -> int:
    return sum(count for (kind, _), count in target.traffic.requests.items() if kind == "get")


BODIES = [noise(3000, seed) if seed % 3 else text(300_000, seed) for seed in range(30)]


async def test_what_is_right_is_verified_in_one_request_in_the_order_of_the_rows():
    target, name, rows = await packed(BODIES)
    asked = [*rows[::-1], rows[3]]
    verdicts = await verify_object(target, name, asked)
    assert outcomes(verdicts) == ["verified"] * 31 and [verdict.row for verdict in verdicts] == asked
    assert gets(target) == 1
    assert verdicts[0].told(77).state == 77 and verdicts[0].told(77).verified


async def test_little_of_an_object_is_read_by_ranges():
    target, name, rows = await packed([noise(700_000, seed) for seed in range(8)])
    assert outcomes(await verify_object(target, name, [rows[0], rows[6], rows[7]])) == ["verified"] * 3
    assert gets(target) == 2 and target.traffic.received_bytes == sum(
        row.end - row.start for row in (rows[0], *rows[6:])
    )


@settings(deadline=None, max_examples=40)
@given(st.data())
async def test_any_byte_that_is_another_damages_its_frame_and_no_other(data):
    target, name, rows = PACKED or PACKED.extend(await packed(BODIES)) or PACKED
    content = target.bucket.objects[name].content
    hurt = data.draw(st.sampled_from(rows))
    # Of what is compressed another byte may be another way to say the same: there only the header is hurt.
    raw = hurt.end - hurt.start > hurt.length
    most = hurt.end if raw else hurt.start + header_bytes(hurt.length)
    at = data.draw(st.one_of(st.integers(hurt.start, hurt.start + 55), st.integers(hurt.start, most - 1)))
    wanted = data.draw(st.lists(st.sampled_from(rows), unique=True))
    target.bucket.damage(name, at)
    try:
        verdicts = await verify_object(target, name, wanted)
    finally:
        target.bucket.objects[name].content = content
    assert outcomes(verdicts) == ["damaged" if row == hurt else "verified" for row in wanted]
    assert all(verdict.told(5).state == (DAMAGED if verdict.row == hurt else 5) for verdict in verdicts)


PACKED: list = []


async def test_damage_on_the_way_is_no_fact():
    target, name, rows = await packed(BODIES)
    target.bucket.fault("damage", "get", times=1)
    assert outcomes(await verify_object(target, name, rows)) == ["verified"] * 30 and gets(target) == 2


async def test_an_object_that_was_cut_off_damages_what_lay_behind():
    target, name, rows = await packed(BODIES)
    target.bucket.store(name, target.bucket.objects[name].content[: rows[20].end - 1])
    verdicts = await verify_object(target, name, rows)
    assert outcomes(verdicts) == ["verified"] * 20 + ["damaged"] * 10


async def test_an_object_that_is_another_one_damages_all_with_few_requests():
    target, name, rows = await packed(BODIES)
    target.bucket.store(name, HEADER + noise(rows[-1].end))
    assert outcomes(await verify_object(target, name, rows)) == ["damaged"] * 30
    assert gets(target) == 1 + LOOKS_MAX


async def test_what_is_gone_is_missing():
    target, name, rows = await packed(BODIES)
    del target.bucket.objects[name]
    verdicts = await verify_object(target, name, rows)
    assert outcomes(verdicts) == ["missing"] * 30 and verdicts[0].told(5).state == DAMAGED


@pytest.mark.parametrize("what", ["unavailable", "throttled", "denied"])
async def test_what_cannot_be_reached_has_no_verdict(what):
    target, name, rows = await packed(BODIES)
    target.bucket.fault(what, "get")
    verdicts = await verify_object(target, name, rows)
    assert outcomes(verdicts) == ["unknown"] * 30 and gets(target) == 1
    assert verdicts[0].told(5) is None and isinstance(verdicts[0].error, ArchiveError)


async def test_a_connection_that_breaks_half_way_leaves_verdicts_of_what_came():
    target, name, rows = await packed(BODIES)
    target.bucket.fault("cut", "get")
    seen = outcomes(await verify_object(target, name, rows))
    came = seen.index("unknown")
    assert 5 < came < 25 and seen == ["verified"] * came + ["unknown"] * (30 - came)


async def test_damage_that_cannot_be_looked_at_again_has_no_verdict():
    target, name, rows = await packed(BODIES)
    target.bucket.store(name, HEADER + noise(rows[-1].end))
    target.bucket.fault("unavailable", "get", skip=3)
    assert outcomes(await verify_object(target, name, rows)) == ["damaged"] * 2 + ["unknown"] * 28


async def test_rows_that_contradict_each_other_are_judged_one_by_one():
    target, name, rows = await packed(BODIES)
    swapped = msgspec.structs.replace(rows[0], start=rows[1].start, end=rows[1].end)
    shifted = msgspec.structs.replace(rows[4], start=rows[4].start + 1, end=rows[4].end + 1)
    impossible = msgspec.structs.replace(rows[5], end=rows[5].start)
    beyond = msgspec.structs.replace(rows[5], start=rows[5].start + 10**9, end=rows[5].end + 10**9)
    asked = [rows[0], swapped, shifted, rows[4], impossible, beyond, rows[6]]
    seen = outcomes(await verify_object(target, name, asked))
    assert seen == ["verified", "damaged", "damaged", "verified", "damaged", "damaged", "verified"]
    with pytest.raises(ValueError):
        await verify_object(target, "packs/other", rows)


async def test_imported_content_has_no_hash_to_be_verified_by():
    target, name, rows = await packed(BODIES[:2])
    foreign = msgspec.structs.replace(rows[0], head="", etag="x")
    (one, two) = await verify_object(target, name, [foreign, rows[1]])
    assert (one.outcome, one.error, two.outcome) == ("unknown", None, "verified")
