"""A session about paths that are damaged, here or elsewhere: all voters are asked, and the copies vote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from amberblob.digests import SHORT_BYTES, bucket_of, path_key
from amberblob.errors import PeerError
from amberblob.mutations import Installed
from amberblob.wire_repair import PathItem
from antientropy.mending import elect, state_of
from antientropy.needs import Steps, flush, install, own_fingerprints, own_items, pull_paths


def remake(
    node: str, slot: int, paths: Iterable[str], voters: Mapping[str, str], *, trusted: bool
) -> Steps[dict[str, str]]:
    """Replace what is wrong here of these paths.

    Args:
        node: this node.
        voters: of the slot: node to incarnation, this one included.
        trusted: False: the own paths failed their check (scrub): own content has no vote.

    Returns:
        for the paths of which it cannot be told what is right: why.
    """
    failures: dict[str, str] = {}
    for path in sorted(set(paths)):
        why = yield from _remake(node, slot, path, voters, trusted=trusted)
        if why:
            failures[path] = why
    yield from flush()
    return failures


def _remake(node: str, slot: int, path: str, voters: Mapping[str, str], *, trusted: bool) -> Steps[str]:
    below: int | None = None
    certain, silent = True, ""
    found: list[Installed] = []
    state = None if trusted else (yield from _own_state(slot, path))
    while True:
        mine = (yield from own_items(slot, (path,), below=below)).get(path)
        others: dict[str, PathItem | None] = {}
        for peer, incarnation in voters.items():
            if peer == node:
                continue
            try:
                pulled = yield from pull_paths(peer, incarnation, slot, (path,), below=below)
            except PeerError as error:
                silent = f"; {peer}: {error}"
                continue
            others[peer] = pulled[0] if pulled else None
        bottom = max((item.more_below or 0 for item in (mine, *others.values()) if item is not None), default=0)
        if below is not None and bottom >= below:
            return "the copies tell their rows in no order"
        told = {peer: _down_to(item, bottom) for peer, item in others.items()}
        # The digest was made when the rows were right: whoever has what it was made of, has it right.
        right = next((item for item in told.values() if item is not None and state_of(item) == state), None)
        if right is not None and below is None and not bottom:
            yield from install([Installed(slot, path, right.ballot, right.record, right.rows, right.writes, True)])
            return ""
        if not trusted and all(item is None for item in told.values()):
            return f"no other copy has it{silent}"
        election = elect(slot, path, _down_to(mine, bottom), told, len(voters), trusted=trusted)
        certain = certain and election.certain
        if election.install is not None:
            found.append(election.install)
        if not bottom:
            if trusted or certain:
                yield from install(found)
            return "" if certain else f"copies differ, and no content has a majority{silent}"
        below = bottom


def _down_to(item: PathItem | None, bottom: int) -> PathItem | None:
    if item is None or not bottom:
        return item
    return PathItem(
        item.path,
        item.ballot,
        item.record,
        item.chosen,
        tuple(row for row in item.rows if row.version >= bottom),
        item.writes,
        bottom,
    )


def _own_state(slot: int, path: str) -> Steps[bytes | None]:
    """What the own digest says that the path's state was."""
    bucket, key = bucket_of(path), path_key(path)
    pairs = (yield from own_fingerprints(slot, (bucket,))).get(bucket, b"")
    step = 2 * SHORT_BYTES
    for at in range(0, len(pairs), step):
        if pairs[at : at + SHORT_BYTES] == key:
            return pairs[at + SHORT_BYTES : at + step]
    return None
