"""Follow: a session that reads a peer's commit logs on from where it stood (rfc/0012).

It finds within seconds what this copy missed, and costs 8 bytes a slot when nothing was. It finds nothing else: a row in
the middle that was missed before the newest record came, or what rotted, is found by comparing. So whatever is not plain
(a gap in the log, another incarnation, a record that cannot be taken as it is) is answered with "compare this slot".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amberblob.ballot import Register
from amberblob.errors import PeerError, WireError
from amberblob.wire_repair import HeadsReply, LogHeads, LogReply, ReadLog, bitmap_of
from antientropy.needs import PER_SLOT, SLOTS_MAX, Steps, ask, by_few, own_registers, pull_paths
from antientropy.taking import Copy, Taken, take

HEAD_BYTES = 8
LINES_MAX = 1000
"""Lines of a log in one answer."""

PAGES_MAX = 20
"""Pages of one slot's log that one session reads. Who is further behind compares, which costs less then."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the log of another copy was read: to ``seq`` of the log that ``incarnation`` writes."""

    incarnation: str
    seq: int


@dataclass(slots=True, kw_only=True)
class Followed:
    """What came of it.

    Attributes:
        cursors: by slot, from where to go on.
        compare: the slots that are to be compared.
        paths, size_bytes: of how many paths something was installed, and the size of the versions among that.
    """

    cursors: dict[int, Cursor] = field(default_factory=dict)
    compare: set[int] = field(default_factory=set)
    paths: int = 0
    size_bytes: int = 0


def follow(peer: str, slots: Mapping[int, str], cursors: Mapping[int, Cursor]) -> Steps[Followed]:
    """Take over what became chosen at ``peer`` since.

    Args:
        slots: those of which both hold a copy, with the incarnation of the peer's.
        cursors: where the last session ended. A slot without one begins at the head that is told now, and is to be compared.

    Raises:
        PeerError: the peer does not answer at all.
    """
    heads: dict[int, Cursor] = {}
    for part in by_few(sorted(slots), SLOTS_MAX):
        heads.update((yield from _heads(peer, part)))
    result = Followed()
    silent = False
    for slot, now in heads.items():
        head = now.seq
        before = cursors.get(slot)
        if now.incarnation != slots[slot]:
            # Not the copy that the route names: whatever it logs, it is no voter's.
            continue
        if before is None or before.incarnation != now.incarnation or before.seq > head:
            result.cursors[slot] = now
            result.compare.add(slot)
        elif before.seq == head or silent:
            result.cursors[slot] = before
        else:
            try:
                result.cursors[slot] = yield from _read(Copy(peer, now.incarnation, slot), before, now, result)
            except PeerError as error:
                result.cursors[slot] = before
                silent = error.code not in PER_SLOT
    return result


def _heads(peer: str, slots: tuple[int, ...]) -> Steps[dict[int, Cursor]]:
    """Where the peer's logs of these slots end."""
    reply = yield from ask(peer, LogHeads(slots=bitmap_of(slots)), HeadsReply)
    if len(reply.heads) != HEAD_BYTES * len(slots):
        raise WireError(f"{peer} told {len(reply.heads)} bytes of heads for {len(slots)} slots")
    return {
        slot: Cursor(
            reply.incarnations.get(slot, reply.incarnation),
            int.from_bytes(reply.heads[HEAD_BYTES * at : HEAD_BYTES * (at + 1)], "little"),
        )
        for at, slot in enumerate(slots)
    }


def _may_lack(register: Register, revision: int) -> bool:
    """Whether a record of that revision, known to be chosen elsewhere, may be news here.

    What was written after a stub had been forgotten begins with the first revision again: beside a dead record here, any other
    revision may be news. (One that has come to the stub's own again is found by comparing.)
    """
    record = register.record
    if record is None or not register.chosen or record.revision < revision:
        return True
    return record.head is None and not record.live and record.revision != revision


def _read(copy: Copy, cursor: Cursor, head: Cursor, result: Followed) -> Steps[Cursor]:
    """Read one slot's log on; where it ended."""
    taken = Taken()
    for _ in range(PAGES_MAX):
        request = ReadLog(slot=copy.slot, incarnation=cursor.incarnation, after=cursor.seq, limit=LINES_MAX)
        page = yield from ask(copy.node, request, LogReply)
        if page.gap or page.incarnation != cursor.incarnation:
            result.compare.add(copy.slot)
            return head
        if not page.lines:
            break
        newest: dict[str, int] = {}
        for line in page.lines:
            newest[line.path] = max(line.revision, newest.get(line.path, 0))
        paths = sorted(newest)
        registers = yield from own_registers(copy.slot, paths)
        lacking = [path for path, register in zip(paths, registers, strict=True) if _may_lack(register, newest[path])]
        items = yield from pull_paths(copy.node, copy.incarnation, copy.slot, lacking)
        yield from take(copy, items, taken)
        last = page.lines[-1].seq
        if last <= cursor.seq:
            raise WireError(f"{copy.node} tells its log in no order")
        cursor = Cursor(cursor.incarnation, last)
        if last >= head.seq:
            break
    else:
        result.compare.add(copy.slot)
        cursor = head
    result.paths += taken.paths
    result.size_bytes += taken.size_bytes
    if taken.below_floor or taken.suspect:
        # What is undecided is being decided: it was logged seconds ago.
        result.compare.add(copy.slot)
    return cursor
