"""Whether own paths are what their digests were made of."""

from __future__ import annotations

from collections.abc import Callable

from amberblob.digests import SHORT_BYTES, bucket_of, path_key
from amberblob.wire_repair import PathItem
from antientropy.mending import state_of
from chunkstore.interface import ReplicaStore

_PATHS = 8
"""So many are checked at once: hardly ever more than one is looked at."""


async def is_wrong(store: ReplicaStore, slot: int, path: str) -> bool:
    """Whether it is not, by rows and a digest that were read together."""
    after: str | None = _just_below(path)
    while after is not None and after < path:
        page = await store.check_page(slot, after, _PATHS)
        if path in page.wrong:
            return True
        after = page.next_after
    return False


def _just_below(path: str) -> str:
    """A text between which and the path hardly any other path is."""
    if not path:
        return path
    last = ord(path[-1])
    if last == 0 or 0xD800 <= last - 1 <= 0xDFFF:
        return path[:-1]
    return path[:-1] + chr(last - 1) + chr(0x10FFFF)


async def sound(
    store: ReplicaStore, slot: int, items: list[PathItem], found_wrong: Callable[[int, str], None]
) -> list[PathItem]:
    """The items without those that rotted here: who lacks a path would take them for right, and outvote who has it."""
    doubtful = await _unlike_digest(store, slot, items)
    if doubtful:
        # Read again: it may have changed between the two looks.
        paths = [item.path for item in doubtful]
        again = {item.path: item for item in await store.items(slot, paths)}
        gone = set(paths) - set(again)
        items = [again.get(item.path, item) for item in items if item.path not in gone]
        for item in await _unlike_digest(store, slot, list(again.values())):
            # One that is written all the time may have changed between any two looks; it is no damaged one.
            if await is_wrong(store, slot, item.path):
                found_wrong(slot, item.path)
                items.remove(item)
                continue
            # Nor is what was read before that look to be trusted: it may have been damaged, and was replaced meanwhile.
            fresh = await store.items(slot, (item.path,))
            items[items.index(item) : items.index(item) + 1] = fresh
    return items


async def _unlike_digest(store: ReplicaStore, slot: int, items: list[PathItem]) -> list[PathItem]:
    """Those of the own items that are not what their digest was made of, or have changed meanwhile."""
    whole = [item for item in items if item.more_below is None]
    if not whole:
        return []
    step = 2 * SHORT_BYTES
    states: dict[bytes, bytes] = {}
    for pairs in (await store.fingerprints(slot, sorted({bucket_of(item.path) for item in whole}))).values():
        for at in range(0, len(pairs), step):
            states[pairs[at : at + SHORT_BYTES]] = pairs[at + SHORT_BYTES : at + step]
    nothing = bytes(SHORT_BYTES)
    return [item for item in whole if states.get(path_key(item.path), nothing) != state_of(item)]
