"""Write ids through the real driver of a replica (``node.replica``), over the memory store."""

from __future__ import annotations

import msgspec
import pytest

from amberblob.clock import HybridClock, SystemClock
from amberblob.limits import RECENT_WRITES_MAX
from amberblob.wire import Learn
from chunkstore import MemoryStore
from node.protocol.operations import Operation, Put
from node.protocol.quorum import Electorate
from node.protocol.write import Applied, Finished, Outcome, Send, Spread, Wait, WriteRound
from node.repairs import Repairs
from node.replica import Replica
from tests.unit.node.protocol.model import PATH, SLOT, draft


class NoPulls:
    async def now(self, slot, version, holders):
        return None

    def later(self, slot, version, holders):
        pass

    def missed(self, slot, blob_id, *, damaged):
        pass


class Cluster:
    def __init__(self, nodes: str = "abd") -> None:
        clock = HybridClock(SystemClock().wall_ms)
        self.stores = {node: MemoryStore(f"disk-{node}", wall_ms=SystemClock().wall_ms) for node in nodes}
        self.replicas = {
            node: Replica(
                store,
                mute=lambda state: None,
                newcomers=tuple,
                epoch_of=lambda slot: 1,
                pulls=NoPulls(),
                repairs=Repairs(store, mute=lambda state: None),
                clock=clock,
            )
            for node, store in self.stores.items()
        }
        self.electorate = Electorate(
            slot=SLOT,
            epoch=1,
            voters={node: store.slot_state(SLOT).incarnation for node, store in self.stores.items()},
            write_quorum=len(nodes) // 2 + 1,
        )
        self._ids = 0

    async def run(self, operation: Operation, up: str, *, write_id: str | None = None, counter: int = 0) -> Outcome:
        """A round that reaches the nodes in ``up``; its LEARNs reach them too."""
        self._ids += 1
        round_ = WriteRound(
            electorate=self.electorate,
            node=up[0],
            path=PATH,
            operation=operation,
            operation_id=f"op{self._ids:03}",
            write_id=write_id or f"op{self._ids:03}",
            now_ms=self._ids,
            counter=counter,
            body=b"",
            may_be_retry=write_id is not None,
        )
        todo = list(round_.start())
        outcome: Outcome | None = None
        while todo:
            action = todo.pop(0)
            match action:
                case Send():
                    if action.node in up:
                        reply = await self.replicas[action.node].handle("peer", action.request)
                        todo += round_.answer(action.node, action.token, reply)
                    else:
                        todo += round_.failed(action.node, action.token, "down")
                case Wait():
                    todo += round_.wake(action.token)
                case Spread():
                    if action.node in up:
                        await self.replicas[action.node].handle("peer", Learn(items=(action.item,)))
                case Finished():
                    outcome = action.outcome
        assert outcome is not None
        return outcome


def empty(blob_id: str):
    return msgspec.structs.replace(draft(blob_id), size=0, chunk_count=0)


@pytest.mark.parametrize("alone", range(1, 12))
async def test_a_write_id_is_found_by_every_majority(alone):
    """a and b take the first ``alone`` writes, b and d the ninth after the first; then a and d are asked for the first again."""
    cluster = Cluster()
    await cluster.run(Put(draft=empty("B0")), "ab", write_id="W")
    for number in range(1, alone):
        await cluster.run(Put(draft=empty(f"X{number}")), "ba", counter=10 * number)
    for number in range(alone, RECENT_WRITES_MAX + 1):
        await cluster.run(Put(draft=empty(f"X{number}")), "bd", counter=10 * number)

    again = await cluster.run(Put(draft=empty("B0")), "ad", write_id="W", counter=1000)
    assert isinstance(again, Applied)
    assert not again.fresh, f"applied a second time: {again.mark}"
    assert again.mark is not None and again.mark.version == 1
