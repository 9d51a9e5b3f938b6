"""What comparing costs in bytes, and that answers and requests stay bounded."""

from __future__ import annotations

import pytest

from amberblob.mutations import Installed
from amberblob.wire import encode
from amberblob.wire_repair import PullDiffering
from antientropy import answers
from antientropy import compare as comparing
from antientropy.compare import Compared
from antientropy.needs import OwnFingerprints, own_fingerprints
from tests.unit.antientropy.kit import Cluster, ballot, put, row

SLOTS = tuple(range(16))


@pytest.mark.parametrize("slots", [16, 256])
async def test_a_quiet_round_costs_32_bytes_a_slot_and_peer(slots):
    cluster = Cluster(3)
    for slot in range(slots):
        cluster.write(f"p/{slot}", put(f"p/{slot}", None), ballot(1), slot=slot)
    for peer in (1, 2):
        result = await cluster.compare(0, peer, range(slots))
        assert result == {slot: Compared() for slot in range(slots)}
    costs = cluster.costs["n0"]
    assert costs.requests == 2, "one message to each peer"
    assert costs.asked_bytes + costs.answered_bytes <= 2 * (32 * slots + slots // 8 + 24)


async def test_what_was_missed_is_found_for_a_fraction_of_what_there_is():
    """A fiftieth of a million paths, a fiftieth of a thousand missed ones, in a sixteenth of the slots."""
    cluster = Cluster(2)
    paths, missed = 20_000, 20
    for at in range(paths):
        path = f"some/folder/{at:06}"
        there = (0, 1) if at % (paths // missed) else (1,)
        for one in there:
            record = put(path, None)
            cluster[one].apply(Installed(SLOTS[at % 16], path, ballot(at + 1), record, (row(path, 1),)))
    result = await cluster.compare(0, 1, SLOTS)
    assert sum(one.paths for one in result.values()) == missed
    assert not any(one.why for one in result.values())
    costs = cluster.costs["n0"]
    besides = costs.asked_bytes + costs.answered_bytes - costs.item_bytes
    # The bound is 1 MiB for 1,000 paths of a million in 256 slots. Each path that was missed costs its bucket's
    # fingerprints here as there, and each slot that differs 2 KiB.
    differing = sum(1 for one in result.values() if one.paths)
    assert besides <= 32 * 16 + differing * 2200 + missed * 16 * 120
    again = costs.asked_bytes + costs.answered_bytes
    await cluster.compare(0, 1, SLOTS)
    assert costs.asked_bytes + costs.answered_bytes - again < 32 * 16 + 64, "the second round is a quiet one"


async def test_a_slot_of_one_million_in_256_costs_what_the_bound_allows():
    """One slot as it is in a cluster of a million paths: 3,906 paths, 4 of them missed; times 256 it is below 1 MiB."""
    cluster = Cluster(2)
    for at in range(3906):
        path = f"some/folder/{at:06}"
        for one in (0, 1) if at % 1000 != 7 else (1,):
            cluster[one].apply(Installed(0, path, ballot(at + 1), put(path, None), (row(path, 1),)))
    result = await cluster.compare(0, 1, (0,))
    assert result[0].paths == 4
    costs = cluster.costs["n0"]
    besides = costs.asked_bytes + costs.answered_bytes - costs.item_bytes
    assert 256 * besides < 1024 * 1024


async def test_who_is_behind_costs_the_others_no_more_than_itself():
    cluster = Cluster(2)
    for at in range(400):
        path = f"p/{at:04}"
        for one in (0, 1) if at % 100 else (1,):
            cluster[one].apply(Installed(0, path, ballot(at + 1), put(path, None), (row(path, 1),)))
    result = await cluster.compare(1, 0, (0,))
    assert result == {0: Compared()}, "the peer is behind: nothing is lacking here"
    assert cluster.costs["n1"].item_bytes < 200


async def test_requests_and_answers_are_bounded(monkeypatch):
    monkeypatch.setattr(comparing, "REQUEST_BYTES", 512)
    monkeypatch.setattr(answers, "PAGE_BYTES", 1500)
    cluster = Cluster(2)
    for at in range(600):
        path = f"p/{at:04}"
        for one in (0, 1) if at % 3 else (1,):
            cluster[one].apply(Installed(0, path, ballot(at + 1), put(path, None), (row(path, 1),)))
    replies: list[int] = []
    original = cluster.call

    async def call(node, request):
        reply = await original(node, request)
        replies.append(len(encode(reply)))
        return reply

    cluster.call = call
    result = await cluster.compare(0, 1, (0,))
    assert result[0] == Compared(paths=200, size_bytes=result[0].size_bytes)
    assert len(cluster.roots(0)) == 1
    asked = [request for request in cluster.replicas[1].asked if isinstance(request, PullDiffering)]
    assert len(asked) > 20
    assert max(len(encode(request)) for request in asked) < 512 + 400
    assert max(replies) < 2200, "a page or the bucket sums"


async def test_a_bucket_too_large_to_be_told_is_asked_for_as_a_whole(monkeypatch):
    monkeypatch.setattr(comparing, "BUCKET_BYTES_MAX", 0)
    cluster = Cluster(2)
    for at in range(300):
        path = f"p/{at:04}"
        for one in (0, 1) if at else (1,):
            cluster[one].apply(Installed(0, path, ballot(at + 1), put(path, None), (row(path, 1),)))
    assert (await cluster.compare(0, 1, (0,)))[0].paths == 1
    asked = [request for request in cluster.replicas[1].asked if isinstance(request, PullDiffering)]
    assert all(pairs == b"" for request in asked for pairs in request.known.values())


def test_the_vocabulary_is_data():
    steps = own_fingerprints(3, [1, 2])
    assert next(steps) == OwnFingerprints(3, (1, 2))
