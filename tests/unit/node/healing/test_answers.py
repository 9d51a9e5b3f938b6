"""What a node answers to those who compare: only copies with a voice, and nothing that a power cut could take back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from amberblob.ballot import BALLOT_ZERO
from amberblob.digests import BUCKETS, DIGEST_BYTES, SHORT_BYTES
from amberblob.errors import BadRequest
from amberblob.mutations import EpochSeen, Synced
from amberblob.wire import Done, Refused
from amberblob.wire_repair import (
    AskCopies,
    AskHealth,
    BucketsReply,
    CompareBuckets,
    CompareRoots,
    CopiesReply,
    HeadsReply,
    HealthReply,
    ItemsReply,
    LogHeads,
    LogReply,
    LookAtPath,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    RootsReply,
    bitmap_of,
    slots_in,
)
from node.repairs import SLOTS_MAX
from tests.unit.node.healing.healing_kit import healed
from tests.unit.node.objects.kit import Cluster, cluster, put


async def ask(made: Cluster, number: int, request):
    """What another node is answered, through the codec."""
    return await made[1 + number % 3].peers.call(f"n{number}", request, timeout_s=30.0)


async def written(made: Cluster) -> int:
    path = made.path(1)
    for text in (b"one", b"two"):
        await put(made[1], path, text)
    await made.settle()
    return made.slot(path)


def questions(slot: int, incarnation: str) -> list:
    return [
        CompareBuckets(slot=slot),
        PullDiffering(slot=slot, known={bucket: b"" for bucket in range(BUCKETS)}),
        PullPaths(slot=slot, paths=("p",)),
        PullSlot(slot=slot, epoch=1),
        ReadLog(slot=slot, incarnation=incarnation, after=0),
    ]


async def test_every_question_has_its_answer():
    async with cluster() as made:
        slot = await written(made)
        incarnation = made[2].store.disk_id
        kinds = [BucketsReply, ItemsReply, ItemsReply, ItemsReply, LogReply]
        for question, kind in zip(questions(slot, incarnation), kinds, strict=True):
            reply = await ask(made, 2, question)
            assert type(reply) is kind and reply.incarnation == incarnation
        roots = await ask(made, 2, CompareRoots(slots=bitmap_of([0, slot])))
        assert type(roots) is RootsReply and len(roots.roots) == len({0, slot}) * DIGEST_BYTES and roots.without == b""
        heads = await ask(made, 2, LogHeads(slots=bitmap_of([slot])))
        assert type(heads) is HeadsReply and int.from_bytes(heads.heads, "little") >= 1
        health = await ask(made, 2, AskHealth())
        assert type(health) is HealthReply and [one.slot for one in health.slots] == list(range(8))
        sums = await ask(made, 2, CompareBuckets(slot=slot))
        assert len(sums.sums) == BUCKETS * SHORT_BYTES and any(sums.sums)


@pytest.mark.parametrize("why", ["lost", "named-and-not-filled", "not-named"])
async def test_a_copy_without_a_voice_answers_no_comparison(why):
    async with cluster() as made:
        slot = await written(made)
        store = made[2].store
        if why == "lost":
            store.lose_slot(slot, "01FRESH")
        elif why == "named-and-not-filled":
            store.lose_slot(slot, "01FRESH")
            await made[2].parts.rejoin.step()
            await made.see_routes()
        else:
            store.disk_id = "01OTHER"
            slot = next(slot for slot in range(8) if slot not in store.slots())
        for question in questions(slot, store.slot_state(slot).incarnation):
            reply = await ask(made, 2, question)
            assert type(reply) is Refused and reply.reason == "unsynced", question
        roots = await ask(made, 2, CompareRoots(slots=bitmap_of([slot])))
        assert slots_in(roots.without) == [slot] and roots.roots == bytes(DIGEST_BYTES)
        (health,) = [one for one in (await ask(made, 2, AskHealth())).slots if one.slot == slot]
        assert health.unsynced
        assert type(await ask(made, 2, LookAtPath(slot=slot, path="p"))) is Done


async def test_a_path_that_is_written_while_it_is_looked_at_is_no_damaged_one(monkeypatch: pytest.MonkeyPatch):
    async with cluster() as made:
        slot = await written(made)
        store, path, wrong = made[2].store, made.path(1), []
        real = store.fingerprints

        async def fingerprints(*given):
            await put(made[1], path, b"meanwhile")
            await made.settle()
            return await real(*given)

        monkeypatch.setattr(store, "fingerprints", fingerprints)
        monkeypatch.setattr(
            made[2].parts.repairer, "_remakes", SimpleNamespace(found=lambda *found: wrong.append(found))
        )
        assert type(await ask(made, 2, LookAtPath(slot=slot, path=path))) is Done
        assert not wrong


async def test_a_page_of_all_leaves_older_epochs_and_needs_no_newer_ones():
    async with cluster() as made:
        slot = await written(made)
        store = made[2].store
        page = await ask(made, 2, PullSlot(slot=slot, epoch=3))
        assert page.epoch == 3 and store.slot_state(slot).epoch == 3
        refused = await ask(made, 2, PullSlot(slot=slot, epoch=2))
        assert type(refused) is Refused and (refused.reason, refused.epoch) == ("epoch", 3)
        assert (await ask(made, 2, PullSlot(slot=slot, epoch=3))).items == page.items != ()


@pytest.mark.parametrize("brought", ["by this request", "by another, a moment ago"])
async def test_a_page_of_all_is_told_when_the_fence_is_on_the_disk(tmp_path: Path, brought):
    async with cluster(folder=tmp_path) as made:
        slot = await written(made)
        store = made[2].store
        synced = asyncio.Event()
        real = store._core.durable

        async def durable(position: int) -> None:
            await synced.wait()
            await real(position)

        store._core.durable = durable
        if brought != "by this request":
            store.apply(EpochSeen(slot, 2))
        asked = asyncio.create_task(ask(made, 2, PullSlot(slot=slot, epoch=2)))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert store.slot_state(slot).epoch == 2, "it refuses older ones already"
        assert not asked.done()
        synced.set()
        assert type(await asked) is ItemsReply


async def test_a_copy_that_is_lost_while_it_is_asked_says_nothing():
    async with cluster() as made:
        slot = await written(made)
        store = made[2].store
        real = store.bucket_sums

        async def lost(asked: int) -> bytes:
            store.lose_slot(asked, "01FRESH")
            return await real(asked)

        store.bucket_sums = lost
        assert type(await ask(made, 2, CompareBuckets(slot=slot))) is Refused

        async def settle(slots) -> None:
            for asked in slots:
                store.lose_slot(asked, "01FRESHER")

        store.settle = settle
        roots = await ask(made, 2, CompareRoots(slots=bitmap_of([slot, 0])))
        assert set(slots_in(roots.without)) == {slot, 0}


async def test_what_would_not_fit_is_refused():
    async with cluster() as made:
        repairs = made[1].parts.replica._repairs
        for kind in (CompareRoots, LogHeads):
            with pytest.raises(BadRequest):
                await repairs.answer(kind(slots=b"\xff" * (SLOTS_MAX // 8) + b"\x01"))


async def test_asking_to_heal_compares_and_hurries():
    async with cluster() as made:
        slot = await written(made)
        await healed(made)
        made.net.fault("Learn", "drop")
        await put(made[1], made.path(1, "q"))
        await made.settle()
        made.net.heal()
        assert made[2].resolver.waiting == 1
        made.net.sent.clear()
        told = await ask(made, 2, AskHealth(heal=True))
        assert sum(one.undecided for one in told.slots) == 1
        for _ in range(300):
            for worker in (made[2].resolver, made[2].parts.repairer):
                await worker.step()
        await made.settle()
        assert made.net.count("CompareRoots", "n1") and made.net.count("CompareRoots", "n3")
        assert made[2].register(made.path(1, "q")).chosen
        assert slot in made[2].store.slots()


async def test_a_synced_copy_answers_again():
    async with cluster() as made:
        slot = await written(made)
        store = made[2].store
        store.lose_slot(slot, "01FRESH")
        await made[2].parts.rejoin.step()
        await made.see_routes()
        assert type(await ask(made, 2, CompareBuckets(slot=slot))) is Refused
        store.apply(Synced(slot, 2, BALLOT_ZERO, 0))
        assert type(await ask(made, 2, CompareBuckets(slot=slot))) is BucketsReply


async def test_a_copy_is_told_to_be_filled_only_by_what_is_durable(monkeypatch):
    """A slot leaves other nodes because of this answer: a sync that ends while it is made is not in it."""
    async with cluster(3) as made:
        node = made[1]
        path = made.path(1)
        await put(node, path, b"x")
        await made.settle()
        slot = node.routing.slot_of(path)
        settle = node.store.settle

        async def ends_meanwhile(slots):
            await settle(slots)
            node.store.apply(Synced(slot, 7, BALLOT_ZERO, 0))

        monkeypatch.setattr(node.store, "settle", ends_meanwhile)
        reply = await ask(made, 1, AskCopies(slots=bitmap_of({slot})))
        assert isinstance(reply, CopiesReply)
        assert [copy.synced_epoch for copy in reply.copies] == [0]
        monkeypatch.undo()
        reply = await ask(made, 1, AskCopies(slots=bitmap_of({slot})))
        assert [copy.synced_epoch for copy in reply.copies] == [7]
