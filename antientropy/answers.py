"""The other half of the sessions: what a copy answers when it is asked how it differs (rfc/0012).

Each answer is bounded, and says only what is durable here or known to be chosen. Whether a copy may answer at all is
told by ``standing``: a copy that the route does not name, or that was not filled from a majority yet, is mute.
"""

from __future__ import annotations

from collections.abc import Callable

from amberblob.ballot import BALLOT_ZERO, SlotState
from amberblob.digests import BUCKETS, DIGEST_BYTES, SHORT_BYTES
from amberblob.errors import BadRequest
from amberblob.limits import KIB
from amberblob.mutations import EpochSeen
from amberblob.wire import RefusalReason, Refused, Reply, encode
from amberblob.wire_repair import (
    BucketsReply,
    CompareBuckets,
    CompareRoots,
    HeadsReply,
    ItemsReply,
    LogHeads,
    LogReply,
    PathItem,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    RootsReply,
    bitmap_of,
    slots_in,
)
from antientropy.needs import PULL_PATHS_MAX, by_few
from antientropy.soundness import sound
from chunkstore.interface import ReplicaStore

PAGE_BYTES = 512 * KIB
"""Of items in one answer, about; a single item may be larger."""

ITEMS_FEW = 16
"""Paths that are read at a time for one answer."""

LOG_LINES_MAX = 1000

Asked = CompareRoots | CompareBuckets | PullDiffering | PullPaths | PullSlot | LogHeads | ReadLog

Standing = Callable[[int], RefusalReason | None]
"""Why the own copy of a slot does not count ("not-a-member", "unsynced"); None: it does."""


def _nobody(slot: int, path: str) -> None:
    """Nobody wants to know."""


async def answer(
    store: ReplicaStore,
    request: Asked,
    *,
    standing: Standing,
    found_wrong: Callable[[int, str], None] = _nobody,
) -> Reply:
    """The answer to one of the requests of a session.

    Args:
        standing: whether the own copies count.
        found_wrong: told of a path here whose rows are not what its digest was made of: it is not handed on, but
            to be mended from the others.

    Raises:
        BadRequest: the request is none that a session makes.
        DiskFailed: the own disk does not answer.
    """
    match request:
        case CompareRoots():
            return await _roots(store, slots_in(request.slots), standing)
        case LogHeads():
            return _heads(store, slots_in(request.slots))
        case _:
            pass
    state = store.slot_state(request.slot)
    if (reason := standing(request.slot)) is not None:
        return _refused(state, reason)
    reply = await _of_slot(store, request, state, found_wrong)
    if (reason := standing(request.slot)) is not None:
        # It lost its memory while it was asked: what was read last may be of the blank one.
        return _refused(store.slot_state(request.slot), reason)
    return reply


async def _of_slot(
    store: ReplicaStore,
    request: CompareBuckets | PullDiffering | PullPaths | PullSlot | ReadLog,
    state: SlotState,
    found_wrong: Callable[[int, str], None],
) -> Reply:
    match request:
        case CompareBuckets():
            sums = await store.bucket_sums(request.slot)
            short = b"".join(sums[at : at + SHORT_BYTES] for at in range(0, len(sums), DIGEST_BYTES))
            return BucketsReply(incarnation=state.incarnation, sums=short)
        case PullDiffering():
            return await _differing(store, request, found_wrong)
        case PullPaths():
            return await _paths(store, request, found_wrong)
        case PullSlot():
            return await _slot(store, request, found_wrong)
        case ReadLog():
            return await _log(store, request, state)


async def _roots(store: ReplicaStore, slots: list[int], standing: Standing) -> RootsReply:
    await store.settle([slot for slot in slots if standing(slot) is None])
    # Only now: a copy that lost its memory meanwhile is empty, and that must not be taken for what it knows.
    without = {slot for slot in slots if standing(slot) is not None}
    roots = b"".join(store.tally(slot).root if slot not in without else bytes(DIGEST_BYTES) for slot in slots)
    return RootsReply(roots=roots, without=bitmap_of(without))


def _heads(store: ReplicaStore, slots: list[int]) -> HeadsReply:
    # What is not in the databases yet is told next time: asking every few seconds must not cost their batches.
    heads = b"".join(store.tally(slot).log_head.to_bytes(8, "little") for slot in slots)
    asked = set(slots)
    others = {slot: incarnation for slot, incarnation in store.incarnations().items() if slot in asked}
    return HeadsReply(incarnation=store.disk_id, heads=heads, incarnations=others)


async def _differing(
    store: ReplicaStore, request: PullDiffering, found_wrong: Callable[[int, str], None]
) -> ItemsReply:
    for bucket, pairs in request.known.items():
        if not 0 <= bucket < BUCKETS or len(pairs) % (2 * SHORT_BYTES):
            raise BadRequest("fingerprints are pairs of 8 bytes each, by bucket")
    items, next_after = await store.items_differing(request.slot, request.known, request.after, PAGE_BYTES)
    return _page(store, request.slot, await sound(store, request.slot, items, found_wrong), next_after)


async def _paths(store: ReplicaStore, request: PullPaths, found_wrong: Callable[[int, str], None]) -> ItemsReply:
    if len(request.paths) > PULL_PATHS_MAX:
        raise BadRequest(f"more than {PULL_PATHS_MAX} paths at once")
    items: list[PathItem] = []
    size = 0
    next_after: str | None = None
    paths = sorted(set(request.paths))
    for few in by_few(paths, ITEMS_FEW):
        for item in await store.items(request.slot, few, below=request.below):
            item_size = len(encode(_page(store, request.slot, [item], None)))
            if items and size + item_size > PAGE_BYTES:
                return _page(store, request.slot, items, items[-1].path)
            items.append(item)
            size += item_size
    if request.below is None:
        items = await sound(store, request.slot, items, found_wrong)
    return _page(store, request.slot, items, next_after)


async def _slot(store: ReplicaStore, request: PullSlot, found_wrong: Callable[[int, str], None]) -> Reply:
    state = store.slot_state(request.slot)
    if request.epoch < state.epoch:
        return _refused(state, "epoch")
    if request.epoch > state.epoch:
        # From here on nothing becomes chosen by this copy's vote in an older epoch: what is told below is all there was.
        store.apply(EpochSeen(request.slot, request.epoch))
    # Also when somebody else's request brought the epoch a moment ago: it may not be on the disk yet.
    await store.durable(store.position(request.slot, request.after))
    items, next_after = await store.items_after(request.slot, request.after, PAGE_BYTES)
    right = {item.path: item for item in await sound(store, request.slot, items, found_wrong)}
    # Whoever is filled must not think that nothing was chosen of a path that rotted here: it hears that something may have been.
    told = [right.get(item.path) or _in_doubt(item) for item in items]
    return _page(store, request.slot, told, next_after)


def _in_doubt(item: PathItem) -> PathItem:
    """The item as one that is not decided: a round, and the other copies, say what it is."""
    return PathItem(item.path, item.ballot, None, False, (), ())


async def _log(store: ReplicaStore, request: ReadLog, state: SlotState) -> LogReply:
    if request.incarnation != state.incarnation:
        return LogReply(incarnation=state.incarnation, lines=(), gap=True)
    lines, gap = await store.log_lines(request.slot, request.after, min(request.limit, LOG_LINES_MAX))
    return LogReply(incarnation=state.incarnation, lines=tuple(lines), gap=gap)


def _page(store: ReplicaStore, slot: int, items: list[PathItem], next_after: str | None) -> ItemsReply:
    state = store.slot_state(slot)
    return ItemsReply(
        incarnation=state.incarnation,
        epoch=state.epoch,
        items=tuple(items),
        ballot_floor=state.ballot_floor,
        version_floor=state.version_floor,
        next_after=next_after,
    )


def _refused(state: SlotState, reason: RefusalReason) -> Refused:
    return Refused(incarnation=state.incarnation, reason=reason, ballot=BALLOT_ZERO, epoch=state.epoch)
