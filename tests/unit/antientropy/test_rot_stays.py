"""What rotted in one copy is never taken for right because the copies that could tell are away."""

from __future__ import annotations

from tests.unit.antientropy.kit import SLOT, Cluster, ballot, put, row


async def test_a_row_that_only_a_silent_copy_could_vouch_for_stays_in_doubt():
    cluster = Cluster(3)
    first = put("p", None)
    second = put("p", first)
    third = put("p", second)
    for record, number in ((first, 1), (second, 2)):
        cluster.write("p", record, ballot(number), at=[0, 2])
    # Copy 1 has the newest record, which brings the version before, and not the first one.
    cluster.write("p", third, ballot(3))
    assert {one.version for one in (await cluster.contents(1))["p"][1]} == {2, 3}
    cluster[0].damage_row(SLOT, "p", 1)
    cluster.replicas[2].away = True
    assert await cluster.scrub(0), "nobody says what the first version was"
    assert (await cluster[0].check_page(SLOT, "", 10)).wrong == ("p",), "and it is known to be in doubt"
    await cluster.compare(1, 0)
    assert {one.version for one in (await cluster.contents(1))["p"][1]} == {2, 3}, "it is not handed on"
    cluster.replicas[2].away = False
    assert not await cluster.scrub(0)
    await cluster.compare(1, 0)
    assert len(cluster.roots()) == 1
    assert row("p", 1) in (await cluster.contents(1))["p"][1]


async def test_a_record_that_only_a_silent_copy_could_vouch_for_stays_in_doubt():
    cluster = Cluster(3)
    first = put("p", None)
    second = put("p", first)
    cluster.write("p", first, ballot(1))
    cluster.write("p", second, ballot(2), at=[0, 2])
    cluster[0].damage_record(SLOT, "p")
    cluster.replicas[2].away = True
    assert await cluster.scrub(0)
    await cluster.compare(1, 0)
    assert cluster.register(1, "p").record == first, "what rotted is not handed on"
    cluster.replicas[2].away = False
    assert not await cluster.scrub(0)
    await cluster.compare(1, 0)
    assert [cluster.register(at, "p").record for at in range(3)] == [second] * 3
