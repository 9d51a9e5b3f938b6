"""What each kind of write makes of the current record: pure functions, no ballots, no messages.

``decide`` gets the current record, which is known to be chosen (or known to be absent), and says what to do:
propose a new record, answer without writing, refuse, or first read some of the path's older versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from amberblob.errors import NotFound, PreconditionFailed, RequestError, VersionConflict
from amberblob.limits import LIVE_RANGES_MAX, RECENT_WRITES_MAX, VERSION_MAX
from amberblob.manifest import Op, Ranges, Record, Version, WriteMark, covers, merge_ranges, outside, without


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold of the current head for a write to happen.

    Attributes:
        absent: no version lives (``If-None-Match: *``).
        etags: the head's etag is one of these; ``("*",)``: any head (``If-Match``).
        version: the head's version; 0 means absent (``X-Amber-If-Version``).
    """

    absent: bool = False
    etags: tuple[str, ...] = ()
    version: int | None = None


NO_CONDITIONS = Conditions()


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Add ``draft`` as a new version. Its number is given here; ``requested`` is the client's wish."""

    draft: Version
    requested: int | None = None
    conditions: Conditions = NO_CONDITIONS


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Tombstone every live version."""

    conditions: Conditions = NO_CONDITIONS


class DeleteVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Tombstone one version."""

    version: int
    conditions: Conditions = NO_CONDITIONS


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """Lift the tombstone of one version, or (None) of what the last delete took away."""

    version: int | None = None
    conditions: Conditions = NO_CONDITIONS


class Expire(msgspec.Struct, frozen=True, kw_only=True):
    """Let go of versions for good, in whatever state they are: nobody can read, restore or be given them any more.

    Of ``versions``, those that exist or may have (up to ``version_max``) and are not the head.

    Attributes:
        live: what lived when they were named. A version that lives and is not among these was restored since: somebody wants
            it, and it stays. None: whatever lives may go.
    """

    versions: Ranges
    live: Ranges | None = None
    conditions: Conditions = NO_CONDITIONS


class Recover(msgspec.Struct, frozen=True, kw_only=True):
    """Have the path hold a record that another cluster had chosen, as it is, if the path never had one here (rfc/0016).

    The write id is that of the record's last write: who finds it done before knows that the record is here, or was.
    """

    record: Record
    conditions: Conditions = NO_CONDITIONS


class Finish(msgspec.Struct, frozen=True):
    """Write nothing new: make sure that what may be chosen is chosen.

    ``again``: propose the current record once more, at this round's ballot, also if it is known to be chosen: for copies
    that cannot learn it, because they forgot another path's stub at a higher ballot.
    """

    again: bool = False


Operation = Put | Delete | DeleteVersion | Restore | Expire | Recover | Finish

_OPS: Mapping[type[Operation], Op] = {
    Put: "put",
    Delete: "delete",
    DeleteVersion: "delete-version",
    Restore: "restore",
    Expire: "expire",
}


class Propose(msgspec.Struct, frozen=True):
    """Try to get this record chosen."""

    record: Record


class Answer(msgspec.Struct, frozen=True):
    """Nothing to write. ``mark`` is set when a write id was seen before: this is what it did."""

    mark: WriteMark | None = None


class Refuse(msgspec.Struct, frozen=True):
    """The caller's request cannot be done; definite, nothing happened."""

    error: RequestError


class NeedHistory(msgspec.Struct, frozen=True):
    """Read these rows from a majority and ask again: one version, or the newest below a bound."""

    version: int | None = None
    below: int | None = None


Decision = Propose | Answer | Refuse | NeedHistory


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Older versions read so far, from a majority.

    Attributes:
        rows: by version.
        asked: single versions that were asked for (so a version that is here and not in ``rows`` does not exist).
        below: the highest bound that was asked for.
        complete_down_to: every existing version at or above this and below ``below`` is in ``rows``; None when no
            bound was asked; 0 when the end was reached.
    """

    rows: Mapping[int, Version]
    asked: frozenset[int] = frozenset()
    below: int = 0
    complete_down_to: int | None = None


NO_HISTORY = History(rows={})


def head_facts(record: Record | None) -> dict[str, Any] | None:
    """The head as an error document tells it; None when no version lives."""
    if record is None or record.head is None:
        return None
    head = record.head
    return {
        "version": head.version,
        "blob_id": head.blob_id,
        "etag": head.etag,
        "size": head.size,
        "created_at_ms": head.created_at_ms,
    }


def check(conditions: Conditions, record: Record | None) -> PreconditionFailed | None:
    """The error of the first condition that does not hold of the (decided) current record."""
    head = record.head if record is not None else None
    found = f"version {head.version}, etag {head.etag}" if head else "no live version"
    wanted: str | None = None
    if conditions.absent and head is not None:
        wanted = "that no version lives (If-None-Match: *)"
    elif conditions.etags and (head is None or (conditions.etags != ("*",) and head.etag not in conditions.etags)):
        wanted = f"the etag {' or '.join(conditions.etags)} (If-Match)"
    elif conditions.version is not None and conditions.version != (head.version if head else 0):
        wanted = f"version {conditions.version} (X-Amber-If-Version; 0 means absent)"
    if wanted is None:
        return None
    return PreconditionFailed(
        f"The request asks for {wanted}, but the path has {found}. Nothing was changed: read the head again and decide anew.",
        extra={"head": head_facts(record)},
    )


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision rests on.

    Attributes:
        current: the chosen record; None when the path never had one.
        version_floor: new versions must be greater, whatever the record says.
        prior: what this write id did before, if a voter remembers.
        write_id: of this write.
        now_ms: the coordinator's hybrid time.
        history: rows read so far.
    """

    current: Record | None
    version_floor: int
    prior: WriteMark | None
    write_id: str
    now_ms: int
    history: History = NO_HISTORY


def decide(operation: Operation, situation: Situation) -> Decision:
    """What to do, given the chosen current record."""
    current = situation.current
    if isinstance(operation, Finish):
        return Answer()
    mark = situation.prior or (current.write(situation.write_id) if current else None)
    if isinstance(operation, Recover):
        return _recover(operation, current, mark)
    if mark is not None:
        if mark.op != _OPS[type(operation)]:
            return Refuse(
                VersionConflict(
                    f"The write id {mark.write_id!r} was used before on this path, for a {mark.op}. Nothing was changed: "
                    "a write id names one request; make a new one.",
                    code="write-id-reused",
                )
            )
        return Answer(mark)
    failed = check(operation.conditions, current)
    if failed is not None:
        return Refuse(failed)
    match operation:
        case Put():
            return _put(operation, situation)
        case Delete():
            return _delete(situation)
        case DeleteVersion():
            return _delete_version(operation, situation)
        case Restore():
            return _restore(operation, situation)
        case Expire():
            return _expire(operation, situation)
        case _:
            assert_never(operation)


def _record(
    situation: Situation,
    op: Op,
    *,
    head: Version | None,
    live: Ranges,
    taken: Ranges,
    version: int,
    deleted: bool = False,
    expired: Ranges | None = None,
) -> Record:
    current = situation.current
    mark = WriteMark(situation.write_id, op, version, situation.now_ms)
    writes = (*(current.writes if current else ()), mark)[-RECENT_WRITES_MAX:]
    version_max = max(current.version_max if current else 0, head.version if op == "put" and head else 0)
    return Record(
        revision=current.revision + 1 if current else 1,
        op=op,
        version_max=version_max,
        head=head,
        live=live,
        taken=taken,
        changed_at_ms=situation.now_ms,
        deleted_at_ms=situation.now_ms if deleted else (current.deleted_at_ms if current else 0),
        previous=current.added if current else None,
        writes=writes,
        expired=expired if expired is not None else current.expired if current else (),
    )


def _put(operation: Put, situation: Situation) -> Decision:
    current = situation.current
    highest = max(current.version_max if current else 0, situation.version_floor)
    version = operation.requested if operation.requested is not None else highest + 1
    if version <= highest:
        return Refuse(
            VersionConflict(
                f"Version {version} was asked for, but the path has had version {highest}. "
                "Nothing was stored: ask for a greater version, or for none.",
                extra={"version_max": highest, "head": head_facts(current)},
            )
        )
    if version > VERSION_MAX:
        return Refuse(
            VersionConflict(f"The path has had the highest version there is ({VERSION_MAX}).", code="version-exhausted")
        )
    live = current.live if current else ()
    if current and live and live[-1][1] == current.version_max:
        # Versions that a client skipped do not exist, so a range may run over them: gaps cost nothing.
        live = (*live[:-1], (live[-1][0], version))
    else:
        live = (*live, (version, version))
    head = msgspec.structs.replace(operation.draft, version=version)
    return Propose(
        _record(situation, "put", head=head, live=live, taken=current.taken if current else (), version=version)
    )


def _nothing_there() -> Refuse:
    return Refuse(NotFound("The path has no live version, so there is nothing to delete."))


def _delete(situation: Situation) -> Decision:
    current = situation.current
    if current is None or current.head is None:
        return _nothing_there()
    return Propose(
        _record(situation, "delete", head=None, live=(), taken=current.live, version=current.head.version, deleted=True)
    )


def _no_such_version(version: int) -> Refuse:
    return Refuse(NotFound(f"The path has no version {version} that this could apply to.", code="no-such-version"))


def _delete_version(operation: DeleteVersion, situation: Situation) -> Decision:
    current, version = situation.current, operation.version
    if current is None or not covers(current.live, version):
        return _no_such_version(version)
    live = without(current.live, version)
    head = current.head
    if head is not None and head.version == version:
        found = _newest_live(live, current, situation.history)
        if isinstance(found, NeedHistory):
            return found
        head = found
        if head is None:
            live = ()
    else:
        row = _row(version, current, situation.history)
        if isinstance(row, NeedHistory):
            return row
        if row is None:
            return _no_such_version(version)
    if len(live) > LIVE_RANGES_MAX:
        return Refuse(
            VersionConflict(
                f"The path has {len(live)} separate runs of live versions, and no more than {LIVE_RANGES_MAX} are kept "
                "track of. Delete versions next to deleted ones, or the whole path.",
                code="too-many-gaps",
            )
        )
    return Propose(
        _record(
            situation,
            "delete-version",
            head=head,
            live=live,
            taken=((version, version),),
            version=version,
            deleted=True,
        )
    )


def _nothing_taken() -> Refuse:
    return Refuse(
        NotFound(
            "Nothing to restore: no delete took anything away since the last restore. Name a version with ?restore=N.",
            code="nothing-to-restore",
        )
    )


def _restore(operation: Restore, situation: Situation) -> Decision:
    current, version = situation.current, operation.version
    if current is None:
        return Refuse(
            NotFound("The path never had a version, so there is nothing to restore.", code="nothing-to-restore")
        )
    lifted: Ranges
    taken: Ranges
    if version is None:
        if not current.taken:
            return _nothing_taken()
        # Ranges run over versions that a client skipped: what was taken may by now be nothing that exists.
        newest = _newest_live(current.taken, current, situation.history)
        if isinstance(newest, NeedHistory):
            return newest
        if newest is None:
            return _nothing_taken()
        lifted, taken = current.taken, ()
    else:
        row = _row(version, current, situation.history)
        if isinstance(row, NeedHistory):
            return row
        if row is None:
            return _no_such_version(version)
        if covers(current.live, version):
            return Answer()
        lifted, taken = ((version, version),), without(current.taken, version)
    live = merge_ranges((*current.live, *lifted))
    # A put may have made one run more than deletes are allowed to make; what a delete took can always come back.
    if len(live) > LIVE_RANGES_MAX + 1:
        return Refuse(
            VersionConflict(
                f"The path would have {len(live)} separate runs of live versions; no more than {LIVE_RANGES_MAX} are kept track of.",
                code="too-many-gaps",
            )
        )
    head = current.head
    if head is None or head.version < lifted[-1][1]:
        found = _newest_live(live, current, situation.history)
        if isinstance(found, NeedHistory):
            return found
        head = found
    return Propose(
        _record(situation, "restore", head=head, live=live, taken=taken, version=head.version if head else 0)
    )


def _expire(operation: Expire, situation: Situation) -> Decision:
    current = situation.current
    if current is None:
        return Answer()
    clipped = ((max(low, 1), min(high, current.version_max)) for low, high in operation.versions)
    given = merge_ranges((low, high) for low, high in clipped if low <= high)
    head = current.head
    if head is not None:
        given = without(given, head.version)
    if operation.live is not None:
        given = outside(given, outside(current.live, operation.live))
    expired = merge_ranges((*current.expired, *given))
    if expired == current.expired:
        return Answer()
    live = outside(current.live, expired)
    if max(len(live), len(expired)) > LIVE_RANGES_MAX + 1:
        return Refuse(
            VersionConflict(
                f"The path would have {len(live)} separate runs of live versions and {len(expired)} of expired ones; no more "
                f"than {LIVE_RANGES_MAX} are kept track of. Let versions go next to those that are gone.",
                code="too-many-gaps",
            )
        )
    return Propose(
        _record(
            situation,
            "expire",
            head=head,
            live=live,
            taken=outside(current.taken, expired),
            version=head.version if head is not None else 0,
            expired=expired,
        )
    )


def _recover(operation: Recover, current: Record | None, mark: WriteMark | None) -> Decision:
    if mark is not None:
        return Answer(mark)
    if current is None:
        return Propose(operation.record)
    return Refuse(
        VersionConflict(
            f"The path was written here (version {current.version_max}, revision {current.revision}), so that what it was in the other cluster "
            "cannot be brought back. Nothing was changed: recover into an empty cluster.",
            code="path-not-empty",
            extra={"version_max": current.version_max, "head": head_facts(current)},
        )
    )


def _known(version: int, current: Record, history: History) -> Version | None:
    for row in (current.head, current.previous, history.rows.get(version)):
        if row is not None and row.version == version:
            return row
    return None


def _row(version: int, current: Record, history: History) -> Version | NeedHistory | None:
    """A version's row; None when it does not exist (any more); or what to read first."""
    if covers(current.expired, version):
        return None  # whatever a copy still tells that has not heard of it
    row = _known(version, current, history)
    if row is not None or version in history.asked or version > current.version_max or version < 1:
        return row
    return NeedHistory(version=version)


def _newest_live(live: Ranges, current: Record, history: History) -> Version | NeedHistory | None:
    """The newest existing version in ``live``; None when there is none; or what to read first."""
    if not live:
        return None
    bound = live[-1][1] + 1
    candidates = {row.version: row for row in history.rows.values()}
    for row in (current.head, current.previous):
        if row is not None:
            candidates[row.version] = row
    best = max((version for version in candidates if covers(live, version)), default=None)
    # A candidate is the newest only if everything above it has been looked at.
    if best is not None and best == bound - 1:
        return candidates[best]
    seen = history.complete_down_to
    if seen is None or history.below < bound:
        return NeedHistory(below=bound)
    if best is not None and best >= seen:
        return candidates[best]
    if seen > 0:
        return NeedHistory(below=seen)
    return None
