"""What a peer tells is looked at before anything of it is used: nothing is installed that cannot be. Pure.

A peer whose memory, disk or software is broken must not break this copy: a row of another slot would be found by nobody and lost
with nobody's, a number that the database cannot hold would stop the disk, a name that is none would become part of a file's.
Whether what is told is *true* is another question; that copies agree is what digests are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from amberblob.errors import WireError
from amberblob.ids import valid_hash, valid_ulid
from amberblob.limits import NUMBER_MAX, PATH_BYTES_MAX, SLOT_COUNT_MAX, VERSION_MAX
from amberblob.manifest import Ranges, Record, Version, WriteMark, covers
from amberblob.wire import Query, RegisterReply, Reply
from amberblob.wire_repair import ItemsReply, LogReply, PathItem, PullPaths, RepairRequest, RootsReply

Belongs = Callable[[int, str], bool]
"""Whether a path belongs to a slot."""


def check_reply(node: str, request: RepairRequest | Query, reply: Reply, belongs: Belongs) -> None:
    """Look at what ``node`` answered.

    Raises:
        WireError: it tells what cannot be, or was not asked for.
    """
    match reply:
        case RootsReply():
            if len(reply.without) > SLOT_COUNT_MAX // 8:
                raise WireError(f"{node} tells of slots that there are not")
        case LogReply():
            slot = getattr(request, "slot", -1)
            for line in reply.lines:
                if not _is_path_of(slot, line.path, belongs):
                    raise WireError(f"{node} logs a path that is not slot {slot}'s")
        case ItemsReply():
            slot = getattr(request, "slot", -1)
            asked = set(request.paths) if isinstance(request, PullPaths) else None
            for item in reply.items:
                why = _why_not(slot, item, belongs, asked)
                if why:
                    raise WireError(f"{node} tells of slot {slot} what cannot be: {why}")
        case RegisterReply():
            if reply.record is not None and (reply.accepted is None or not _is_record(reply.record)):
                raise WireError(f"{node} tells of a register what cannot be")
        case _:
            pass


def _is_path_of(slot: int, path: str, belongs: Belongs) -> bool:
    return 0 < len(path.encode()) <= PATH_BYTES_MAX and belongs(slot, path)


def _why_not(slot: int, item: PathItem, belongs: Belongs, asked: set[str] | None) -> str:
    """Why the item cannot be; empty: it can."""
    if not _is_path_of(slot, item.path, belongs):
        return "a path that is not the slot's"
    if asked is not None and item.path not in asked:
        return "a path that was not asked for"
    if (item.record is not None) != item.chosen or (item.chosen and item.ballot is None):
        return "a chosen record without its ballot, or one that is not known to be chosen"
    if item.record is not None and not _is_record(item.record):
        return "a record that contradicts itself"
    last = VERSION_MAX + 1
    for row in item.rows:
        if row.version >= last or not _is_version(row):
            return "a version that cannot be, or versions in no order"
        last = row.version
    if item.more_below is not None and not 0 < item.more_below <= last:
        return "more versions than come next"
    return "" if _are_marks(item.writes) else "a write id's time or version that cannot be"


def _is_record(record: Record) -> bool:
    numbers = (record.version_max, record.changed_at_ms, record.deleted_at_ms)
    if not 0 < record.revision <= NUMBER_MAX or not all(0 <= number <= VERSION_MAX for number in numbers):
        return False
    if not all(map(_are_ranges, (record.live, record.taken, record.expired))) or not _are_marks(record.writes):
        return False
    head = record.head
    if head is not None and (
        not _is_version(head) or head.version > record.version_max or covers(record.expired, head.version)
    ):
        return False
    return record.previous is None or _is_version(record.previous)


def _is_version(version: Version) -> bool:
    if not 0 < version.version <= VERSION_MAX or not 0 <= version.size <= VERSION_MAX:
        return False
    if not 0 <= version.created_at_ms <= VERSION_MAX or not valid_ulid(version.blob_id):
        return False
    if version.manifest_id is not None:
        return valid_hash(version.manifest_id)
    if any(not valid_hash(chunk.id) or chunk.len < 0 for chunk in version.chunks):
        return False
    return sum(chunk.len for chunk in version.chunks) == version.size


def _are_ranges(ranges: Ranges) -> bool:
    last = -1
    for low, high in ranges:
        if not last < low <= high <= VERSION_MAX:
            return False
        last = high
    return True


def _are_marks(marks: Iterable[WriteMark]) -> bool:
    return all(0 <= mark.version <= VERSION_MAX and 0 <= mark.at_ms <= VERSION_MAX for mark in marks)
