"""Compare: a session with one peer over the slots that both hold (rfc/0012).

Roots of all slots in one message; for a slot that differs its bucket sums; for the buckets that differ the own fingerprints,
answered with what is lacking here. Everybody only pulls: what the peer lacks is its own session's affair.

A slot whose roots differ and of which nothing can be installed here is not lacking anything: the peer is behind.
What is not decided waits until all slots were looked at, because most of it decides itself meanwhile: under load
there is always a write between its accept and its LEARN, and a round on top of it would only be in its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from amberblob.digests import BUCKETS, DIGEST_BYTES, SHORT_BYTES
from amberblob.errors import PeerError, WireError
from amberblob.limits import KIB
from amberblob.wire_repair import (
    BucketsReply,
    CompareBuckets,
    CompareRoots,
    ItemsReply,
    PullDiffering,
    RootsReply,
    bitmap_of,
    slots_in,
)
from antientropy.needs import (
    PER_SLOT,
    SLOTS_MAX,
    CheckSums,
    Rest,
    Steps,
    ask,
    by_few,
    checked_page,
    own_fingerprints,
    own_roots,
    own_sums,
    pull_paths,
)
from antientropy.remake import remake
from antientropy.taking import OPEN_MAX, Copy, Taken, refresh_all, settle_all, still_as_seen, take

REQUEST_BYTES = 128 * KIB
"""Fingerprints in one request: about 8,000 paths."""

BUCKET_BYTES_MAX = 1536 * KIB
"""Fingerprints of one bucket that can be told at all (98,000 paths); beyond, everything in it is asked for."""

SETTLE_AFTER_S = 2.0
"""How long what is undecided may decide itself."""

DIFFERS = "differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What came of one slot.

    Attributes:
        paths, size_bytes: of how many paths something was installed, and the size of the versions among that.
        why: why it may still lack something that the peer has; empty: it lacks nothing.
    """

    paths: int = 0
    size_bytes: int = 0
    why: str = ""


def compare(node: str, peer: str, slots: Mapping[int, Mapping[str, str]]) -> Steps[dict[int, Compared]]:
    """Take over from ``peer`` what is lacking in the own copies.

    Args:
        node: this node.
        slots: those of which both hold a copy that counts, with their voters (node to incarnation).

    Returns:
        for every slot what came of it.

    Raises:
        PeerError: the peer does not answer at all.
    """
    results: dict[int, Compared] = {}
    differing: list[_Slot] = []
    for part in by_few(sorted(slots), SLOTS_MAX):
        for slot, why in (yield from _unlike(peer, part)).items():
            if why != DIFFERS:
                results[slot] = Compared(why=why)
            else:
                differing.append(_Slot(node, Copy(peer, slots[slot][peer], slot), slots[slot]))
    silent = ""
    for one in differing:
        silent = yield from one.attempt(one.compare(), silent)
    if any(one.taken.unsettled and not one.why for one in differing):
        yield Rest(SETTLE_AFTER_S)
    for one in differing:
        if not one.why and one.taken.is_open:
            silent = yield from one.attempt(one.finish(), silent)
        results[one.copy.slot] = Compared(paths=one.taken.paths, size_bytes=one.taken.size_bytes, why=one.why)
    return results


def _unlike(peer: str, slots: tuple[int, ...]) -> Steps[dict[int, str]]:
    """For each of these slots: empty if the peer's root is the own one, :data:`DIFFERS`, or why there is none to compare with."""
    reply = yield from ask(peer, CompareRoots(slots=bitmap_of(slots)), RootsReply)
    if len(reply.roots) != DIGEST_BYTES * len(slots):
        raise WireError(f"{peer} told {len(reply.roots)} bytes of roots for {len(slots)} slots")
    without = set(slots_in(reply.without))
    mine = yield from own_roots(slots)
    found: dict[int, str] = {}
    for at, slot in enumerate(slots):
        is_same = reply.roots[DIGEST_BYTES * at : DIGEST_BYTES * (at + 1)] == mine[slot]
        found[slot] = f"{peer} has no copy that counts" if slot in without else "" if is_same else DIFFERS
    return found


class _Slot:
    """One slot that differs."""

    def __init__(self, node: str, copy: Copy, voters: Mapping[str, str]) -> None:
        self.copy = copy
        self.taken = Taken()
        self.why = ""
        self._node = node
        self._voters = voters

    def attempt(self, steps: Steps[None], silent: str) -> Steps[str]:
        """Do this part, unless the peer was found ``silent``; returns why it is, so that not every slot waits for it."""
        if silent:
            self.why = silent
            return silent
        try:
            yield from steps
        except PeerError as error:
            self.why = str(error)
            return "" if error.code in PER_SLOT else self.why
        return ""

    def compare(self) -> Steps[None]:
        """Take over what can be taken as it is."""
        peer, slot = self.copy.node, self.copy.slot
        reply = yield from ask(peer, CompareBuckets(slot=slot), BucketsReply)
        if len(reply.sums) != SHORT_BYTES * BUCKETS:
            raise WireError(f"{peer} told {len(reply.sums)} bytes of bucket sums")
        if reply.incarnation != self.copy.incarnation:
            raise PeerError(f"{peer} answered for another copy than the route names", code="not-a-member")
        mine = yield from own_sums(slot)
        buckets = [bucket for bucket in range(BUCKETS) if _theirs(reply.sums, bucket) != _own(mine, bucket)]
        if not buckets:
            return
        known = yield from own_fingerprints(slot, buckets)
        again = yield from own_sums(slot)
        if any(
            _own(mine, bucket) == _own(again, bucket) != _sum_of_states(known.get(bucket, b"")) for bucket in buckets
        ):
            # Nothing changed meanwhile: the sum itself is wrong, and no row would ever make it right.
            yield CheckSums(slot)
        for request in _requests(known, buckets):
            yield from self._pull(request)

    def _pull(self, known: dict[int, bytes]) -> Steps[None]:
        """Take over what the peer has in these buckets and this copy has not."""
        states = _by_key(known.values())
        told = {bucket: pairs if len(pairs) <= BUCKET_BYTES_MAX else b"" for bucket, pairs in known.items()}
        after: str | None = ""
        while after is not None:
            request = PullDiffering(slot=self.copy.slot, known=told, after=after)
            reply = yield from ask(self.copy.node, request, ItemsReply)
            page = checked_page(self.copy.node, self.copy.incarnation, after, reply)
            yield from take(self.copy, page.items, self.taken, states)
            after = page.next_after

    def finish(self) -> Steps[None]:
        """See to what could not be taken as it was."""
        seen = self.taken.unsettled
        if seen:
            yield from self._again(seen)
            stuck = still_as_seen(seen, self.taken.unsettled)
            self.why = yield from settle_all(self.copy.slot, stuck)
            yield from self._again(stuck)
            left = len(still_as_seen(seen, self.taken.unsettled))
            if left and not self.why:
                self.why = f"{left} paths stay undecided"
        if self.taken.below_floor:
            why = yield from refresh_all(self.copy, sorted(self.taken.below_floor))
            left_below = yield from self._refreshed()
            self.why = self.why or why or (f"{left_below} paths stay below the ballot floor" if left_below else "")
        for paths, trusted in ((self.taken.wrong, False), (self.taken.suspect - self.taken.wrong, True)):
            voters = self._voters
            failures = yield from remake(self._node, self.copy.slot, paths, voters, trusted=trusted)
            if failures and not self.why:
                self.why = f"{len(failures)} paths are damaged in some copy: {next(iter(failures.values()))}"
        if self.taken.overflowed and not self.why:
            self.why = f"more than {OPEN_MAX} paths are undecided or damaged"

    def _again(self, paths: Iterable[str]) -> Steps[None]:
        """Ask for these paths once more; those that stay undecided are noted anew."""
        self.taken.unsettled = {}
        items = yield from pull_paths(self.copy.node, self.copy.incarnation, self.copy.slot, paths)
        yield from take(self.copy, items, self.taken)

    def _refreshed(self) -> Steps[int]:
        """Ask for the paths that were proposed again; how many are below the floor still."""
        paths, self.taken.below_floor = self.taken.below_floor, set()
        items = yield from pull_paths(self.copy.node, self.copy.incarnation, self.copy.slot, paths)
        yield from take(self.copy, items, self.taken)
        return len(self.taken.below_floor)


def _theirs(sums: bytes, bucket: int) -> bytes:
    return sums[SHORT_BYTES * bucket : SHORT_BYTES * (bucket + 1)]


def _own(sums: bytes, bucket: int) -> bytes:
    return sums[DIGEST_BYTES * bucket : DIGEST_BYTES * bucket + SHORT_BYTES]


def _by_key(pairs: Iterable[bytes]) -> dict[bytes, bytes]:
    """Keys to states."""
    step = 2 * SHORT_BYTES
    return {
        data[at : at + SHORT_BYTES]: data[at + SHORT_BYTES : at + step]
        for data in pairs
        for at in range(0, len(data), step)
    }


def _sum_of_states(pairs: bytes) -> bytes:
    """The first bytes of what the bucket's digest has to be (they are its value modulo 2^64)."""
    total = sum(int.from_bytes(state, "little") for state in _by_key([pairs]).values())
    return (total % (1 << 8 * SHORT_BYTES)).to_bytes(SHORT_BYTES, "little")


def _requests(known: Mapping[int, bytes], buckets: Iterable[int]) -> Iterator[dict[int, bytes]]:
    """The buckets, so many at a time as fit a request."""
    request: dict[int, bytes] = {}
    size = 0
    for bucket in buckets:
        pairs = known.get(bucket, b"")
        if request and size + len(pairs) > REQUEST_BYTES:
            yield request
            request, size = {}, 0
        request[bucket] = pairs
        size += len(pairs)
    if request:
        yield request
