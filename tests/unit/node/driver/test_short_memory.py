"""A replica whose store keeps few registers in memory (``registers_clean_max``): requests push each other's out, and get on all the same."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.ballot import Ballot
from amberblob.clock import HybridClock
from amberblob.ids import content_hash
from amberblob.manifest import Record, Version
from amberblob.wire import AcceptedReply, Commit
from chunkstore import BlobState, MemoryStore
from node.repairs import Repairs
from node.replica import Replica

SLOT = 0
LOAD_STEPS, LOOK_STEPS = 2, 4
"""Turns of the event loop that a load of a register takes, and a look for bytes."""
STEPS_MAX = 200
"""Turns in which all have to be answered. One COMMIT alone takes about ten."""


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class OneRegister(MemoryStore):
    """Has one register in memory at a time, and takes some turns of the loop for each question to its databases."""

    def __init__(self) -> None:
        super().__init__("disk")
        self.loads = 0
        self._in_memory = ""

    def peek(self, slot, path):
        return super().peek(slot, path) if path == self._in_memory else None

    async def load(self, slot, path):
        await turns(LOAD_STEPS)
        self.loads += 1
        self._in_memory = path
        return await super().load(slot, path)

    async def blob_state(self, slot, blob_id):
        await turns(LOOK_STEPS)
        return BlobState.DURABLE


class NoPulls:
    def later(self, slot, version, holders):
        raise AssertionError("every byte is here")


def commit(number: int) -> Commit:
    """Of a path of its own; its bytes came before, so that the store is asked for them."""
    head = Version(
        version=1,
        blob_id=f"B{number}",
        size=1,
        etag=content_hash(b"x"),
        created_at_ms=0,
        content_type="t",
        meta={},
        chunks=(),
        chunk_count=1,
        inline=False,
    )
    record = Record(1, "put", 1, head, ((1, 1),), (), 0, 0, None, ())
    return Commit(slot=SLOT, path=f"p{number}", epoch=1, ballot=Ballot(1, 1, "n", "a"), record=record)


@pytest.mark.parametrize("apart", range(LOAD_STEPS + LOOK_STEPS))
@pytest.mark.parametrize("count", [2, 3])
async def test_commits_that_ask_for_their_bytes_do_not_push_each_others_register_out_for_ever(count, apart):
    """Each begins so many turns after the one before. Where one's load falls between another's load and look, and so on in turn, none ever
    found its own register in memory."""
    store = OneRegister()
    replica = Replica(
        store,
        mute=lambda state: None,
        newcomers=tuple,
        epoch_of=lambda slot: 1,
        pulls=NoPulls(),
        repairs=Repairs(store, mute=lambda state: None),
        clock=HybridClock(lambda: 0),
    )
    commits = [commit(number) for number in range(count)]
    asking = []
    for message in commits:
        asking.append(asyncio.create_task(replica.handle("peer", message)))
        await turns(apart)
    await turns(STEPS_MAX)
    waiting = sum(not task.done() for task in asking)
    for task in asking:
        task.cancel()
    assert not waiting, f"{waiting} of {count} were not answered within {STEPS_MAX} turns and {store.loads} loads"
    assert all(isinstance(task.result(), AcceptedReply) for task in asking)
    # Each its first load, and one more for whom another's came in between.
    assert store.loads <= 2 * count
    for message in commits:
        assert (await store.load(SLOT, message.path)).accepted == message.ballot
