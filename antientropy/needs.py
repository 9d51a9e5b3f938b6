"""What a repair session needs from outside, as data, and how it asks for it.

A session (``compare``, ``follow``, ``sync``, ``remake``) is a generator: it yields a need, is sent the answer, and returns
its result. It knows no loop, no clock, no socket and no disk, so a test can feed it anything, in any order, and stop
it anywhere. Whoever runs it (``antientropy.driving``) raises into it what goes wrong: PeerError where it asked a peer,
ClusterError where it wanted a round. What it does not catch ends it, and what it had installed stays.

The functions here are the needs with their types: ``reply = yield from ask(node, request, BucketsReply)``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from amberblob.ballot import Register, SlotState
from amberblob.errors import PeerError, WireError
from amberblob.mutations import EpochSeen, Installed, Synced
from amberblob.wire import Failed, Query, Refused, Reply
from amberblob.wire_repair import ItemsReply, PathItem, PullPaths, RepairRequest

INSTALL_FEW = 16
"""Mutations that are applied without a pause: the loop belongs to the clients."""

OWN_ITEMS_FEW = 64
"""Paths of the own copy that are read at a time."""

SLOTS_MAX = 16_384
"""In one question about all slots: its answer is half a megabyte of roots, or of heads, with another incarnation for each."""

PULL_PATHS_MAX = 256
"""Paths in one request; with the longest paths it is an eighth of a frame."""


PER_SLOT = frozenset({"unsynced", "not-a-member"})
"""Refusals that say nothing about the peer's other slots."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one peer; answered with its reply, whatever it is. Raises PeerError."""

    node: str
    request: RepairRequest | Query


@dataclass(frozen=True, slots=True)
class OwnRoots:
    """32 bytes for each of these slots, of everything that was applied here."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnSums:
    """The bucket digests, 32 bytes each."""

    slot: int


@dataclass(frozen=True, slots=True)
class OwnFingerprints:
    """As the store has it: for each bucket path keys and states."""

    slot: int
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnItems:
    """What this copy has of these paths; few at a time."""

    slot: int
    paths: tuple[str, ...]
    below: int | None = None


@dataclass(frozen=True, slots=True)
class OwnRegisters:
    """The registers of these paths, in their order."""

    slot: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnUndecided:
    """The paths whose record is not known to be chosen here, ascending; with everything that was applied here."""

    slot: int


@dataclass(frozen=True, slots=True)
class OwnState:
    """The slot's own state."""

    slot: int


@dataclass(frozen=True, slots=True)
class Install:
    """Apply these; few. A record at or below the slot's ballot floor by now is left out.

    With ``incarnation`` only if the copy is still that one; answered with whether it was.
    """

    mutations: tuple[Installed | Synced | EpochSeen, ...]
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class Flush:
    """Everything that this session installed is durable."""


@dataclass(frozen=True, slots=True)
class CheckSums:
    """Make the slot's bucket digests anew if they are not the sums of their paths'."""

    slot: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Finish what may be chosen of a path with an ordinary round. Raises ClusterError."""

    slot: int
    path: str


@dataclass(frozen=True, slots=True)
class Refresh:
    """Propose again, above all floors, the record that ``holder`` has of a path. Raises ClusterError."""

    slot: int
    path: str
    holder: str


@dataclass(frozen=True, slots=True)
class Rest:
    """Go on later: what is under way now is decided by then."""

    seconds: float


Need = (
    Ask
    | OwnRoots
    | OwnSums
    | OwnFingerprints
    | OwnItems
    | OwnRegisters
    | OwnUndecided
    | OwnState
    | Install
    | Flush
    | CheckSums
    | Settle
    | Refresh
    | Rest
)

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

Steps = Generator[Need, Any, T]
"""A session, or a part of one, that returns a T."""


S = TypeVar("S")


def by_few(values: Sequence[S], count: int) -> Iterator[tuple[S, ...]]:
    """The values in order, ``count`` at a time."""
    for at in range(0, len(values), count):
        yield tuple(values[at : at + count])


def ask(node: str, request: RepairRequest | Query, kind: type[R]) -> Steps[R]:
    """The peer's reply.

    Raises:
        PeerError: none, a refusal (its ``code`` is the reason), a failure (with its code), or another kind of reply.
    """
    reply = yield Ask(node, request)
    if isinstance(reply, kind):
        return reply
    if isinstance(reply, Refused):
        raise PeerError(
            f"{node} does not answer for the slot: {reply.reason} {reply.detail}".rstrip(), code=reply.reason
        )
    if isinstance(reply, Failed):
        raise PeerError(f"{node} failed: {reply.detail}", code=reply.code)
    raise WireError(f"{node} answered with {type(reply).__name__} instead of {kind.__name__}")


def own_roots(slots: Sequence[int]) -> Steps[dict[int, bytes]]:
    """The own roots."""
    roots: dict[int, bytes] = yield OwnRoots(tuple(slots))
    return roots


def own_sums(slot: int) -> Steps[bytes]:
    """The own bucket digests."""
    sums: bytes = yield OwnSums(slot)
    return sums


def own_fingerprints(slot: int, buckets: Iterable[int]) -> Steps[dict[int, bytes]]:
    """The own fingerprints."""
    found: dict[int, bytes] = yield OwnFingerprints(slot, tuple(buckets))
    return found


def own_items(slot: int, paths: Sequence[str], *, below: int | None = None) -> Steps[dict[str, PathItem]]:
    """What this copy has of these paths, by path."""
    found: dict[str, PathItem] = {}
    for few in by_few(paths, OWN_ITEMS_FEW):
        items: list[PathItem] = yield OwnItems(slot, few, below)
        found.update((item.path, item) for item in items)
    return found


def own_registers(slot: int, paths: Sequence[str]) -> Steps[list[Register]]:
    """The own registers."""
    registers: list[Register] = yield OwnRegisters(slot, tuple(paths))
    return registers


def own_undecided(slot: int) -> Steps[list[str]]:
    """The paths whose record is not known to be chosen here."""
    paths: list[str] = yield OwnUndecided(slot)
    return paths


def own_state(slot: int) -> Steps[SlotState]:
    """The slot's own state."""
    state: SlotState = yield OwnState(slot)
    return state


def install(mutations: Sequence[Installed]) -> Steps[None]:
    """Apply these, a few at a time."""
    for few in by_few(mutations, INSTALL_FEW):
        yield Install(few)


def make_voter(incarnation: str, done: Synced) -> Steps[bool]:
    """Say, durably, that the copy of this incarnation is filled; False: it was lost meanwhile."""
    still: bool = yield Install((done,), incarnation)
    yield Flush()
    return still


def see_epoch(incarnation: str, slot: int, epoch: int) -> Steps[bool]:
    """Have the copy of this incarnation leave all older epochs, durably; False: it was lost meanwhile."""
    still: bool = yield Install((EpochSeen(slot, epoch),), incarnation)
    yield Flush()
    return still


def flush() -> Steps[None]:
    """Wait until what was installed is durable."""
    yield Flush()


def pull_paths(
    node: str, incarnation: str, slot: int, paths: Iterable[str], *, below: int | None = None
) -> Steps[list[PathItem]]:
    """What one copy has of these paths, ascending; those that it does not know are left out.

    Raises:
        PeerError: it does not answer, or is not the copy that the route names.
    """
    found: list[PathItem] = []
    for few in by_few(sorted(set(paths)), PULL_PATHS_MAX):
        left = few
        while left:
            reply = yield from ask(node, PullPaths(slot=slot, paths=left, below=below), ItemsReply)
            checked_page(node, incarnation, "", reply)
            found.extend(reply.items)
            end = reply.next_after
            rest = () if end is None else tuple(path for path in left if path > end)
            if len(rest) == len(left):
                raise WireError(f"{node} tells its pages in no order")
            left = rest
    return found


def checked_page(node: str, incarnation: str, after: str, page: ItemsReply) -> ItemsReply:
    """The page, if it is the named copy's and goes forward.

    Raises:
        PeerError: it is another copy's, which is no voter.
        WireError: it does not ascend (a walk would not end).
    """
    if page.incarnation != incarnation:
        raise PeerError(
            f"{node} answered for copy {page.incarnation}; the route names {incarnation}", code="not-a-member"
        )
    last = after
    for item in page.items:
        if item.path <= last:
            raise WireError(f"{node} tells its paths in no order")
        last = item.path
    if page.next_after is not None and page.next_after <= after:
        raise WireError(f"{node} tells its pages in no order")
    return page
