"""What this node has seen of a slot's epochs."""

from __future__ import annotations

from amberblob.errors import NotReady
from chunkstore.interface import ReplicaStore
from node.routing import Routing


def seen_epoch(routing: Routing, store: ReplicaStore, slot: int) -> int:
    """The highest epoch of the slot that this node knows of, by its routes or by its copy. A registry that shows less was set back."""
    epoch = store.slot_state(slot).epoch
    try:
        return max(epoch, routing.table().route(slot).epoch)
    except NotReady:
        return epoch
