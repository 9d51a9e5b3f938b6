"""The quorum read: ask everyone, take a majority's word. Pure.

If a majority's answers show that the newest record is chosen, that is the value: one round trip, no fsync.
If not, the reader has to finish it (a :class:`~node.protocol.write.WriteRound` with ``Finish``) before relying
on it: a value that was shown must not vanish.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from amberblob.errors import QuorumUnavailable, StaleRoute
from amberblob.manifest import Record, covers
from amberblob.wire import Failed, HistoryReply, Refused, RegisterReply, Reply
from node.protocol.quorum import Electorate, Finding, Vote, weigh


class Read(msgspec.Struct, frozen=True):
    """A majority answered. ``finding.decided`` False: finish before use.

    ``replies`` are the answers that the finding rests on, by node.
    """

    finding: Finding
    replies: dict[str, RegisterReply | HistoryReply]


class NoQuorum(msgspec.Struct, frozen=True):
    """A majority cannot be had."""

    error: QuorumUnavailable


class Outdated(msgspec.Struct, frozen=True):
    """Not enough voters answer in this epoch, and a later one has these."""

    electorate: Electorate


@dataclass(slots=True)
class ReadRound:
    """Collects the answers to one Query or QueryHistory that was sent to every voter."""

    electorate: Electorate
    replies: dict[str, RegisterReply | HistoryReply] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)
    outdated_by: int = 0
    """The highest epoch for which a voter refused: a newer route than the electorate's."""

    def answer(self, node: str, reply: Reply) -> Read | NoQuorum | None:
        """A voter answered; the result once there is one."""
        if isinstance(reply, Failed):
            return self.failed(node, f"{reply.code}: {reply.detail}")
        if isinstance(reply, Refused):
            if reply.reason == "epoch":
                self.outdated_by = max(self.outdated_by, reply.epoch)
            return self.failed(node, f"refused: {reply.reason}")
        if not isinstance(reply, RegisterReply | HistoryReply):
            return self.failed(node, f"answered {type(reply).__name__}")
        if not self.electorate.counts(node, reply.incarnation):
            return self.failed(node, "its copy of the slot lost its memory and is no voter until it is synced")
        self.replies[node] = reply
        if not self.electorate.is_read_quorum(self.replies):
            return None
        votes = [Vote(name, r.accepted, r.record, r.chosen) for name, r in self.replies.items()]
        return Read(weigh(self.electorate, votes), dict(self.replies))

    def failed(self, node: str, why: str) -> NoQuorum | None:
        """A voter did not answer."""
        self.out[node] = why
        if self.electorate.read_quorum_possible(self.out):
            return None
        return NoQuorum(QuorumUnavailable.of(*self.electorate.reads_short(self.replies), self.out))

    def unheard(self) -> StaleRoute:
        """What to say when the newer route, without which no majority can be had, will not come soon."""
        return StaleRoute.behind(self.electorate.slot, self.electorate.epoch, self.outdated_by, self.out)


def lacks_rows(reply: HistoryReply, told: Iterable[RegisterReply | HistoryReply]) -> bool:
    """Whether a copy lacks a chosen version that another one told of in ``told``, though its own record is not older.

    What its record names (the version that it adds, and the one before) comes with that record's LEARN.
    """
    record = reply.record
    if record is None:
        return False
    histories = [other for other in told if isinstance(other, HistoryReply)]
    newest = max((other.record for other in histories if other.record is not None), key=_revision, default=record)
    bottom = reply.rows[-1].version.version if reply.more and reply.rows else 0
    named = {version.version for version in (record.added, record.previous) if version is not None}
    here = named | {row.version.version for row in reply.rows}
    return any(
        bottom <= row.version.version <= record.version_max
        and row.version.version not in here
        and not covers(newest.expired, row.version.version)
        for other in histories
        for row in other.rows
    )


def _revision(record: Record) -> int:
    return record.revision
