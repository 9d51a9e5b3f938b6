"""What a dry run found: per rule, what would be sent and what would be freed. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from archive.policy import Disk, Judgement, Policy, Rule, Why, room_wanted
from chunkstore.interface import ArchiveView


class RuleSavings(msgspec.Struct, kw_only=True):
    """The tally of one rule on one node. Bytes are of plain content, as clients see it: what is compressed takes less.

    Attributes:
        prefix, action: of the rule; ``action`` is empty for paths that no rule fits.
        objects, versions: that the rule is for; ``bytes``: of those versions.
        send_versions, send_bytes: that would be sent from here. (Chunks that the archive has under another path are not sent again, so it may be less.)
        archived_bytes: that the archive has already, verified or not.
        free_versions, free_bytes: whose bytes here may go, once the archive's copy was read back.
        room_bytes: so many of these would go now, as the disk is as full as it is.
        evicted_bytes: that went already.
        left: versions that are not sent, by :class:`archive.policy.Why`.
    """

    prefix: str
    action: str
    objects: int = 0
    versions: int = 0
    bytes: int = 0
    send_versions: int = 0
    send_bytes: int = 0
    archived_bytes: int = 0
    free_versions: int = 0
    free_bytes: int = 0
    room_bytes: int = 0
    evicted_bytes: int = 0
    left: dict[str, int] = {}


class Savings:
    """Adds up what was judged. Versions of one path come after one another, as the store's pages have them."""

    def __init__(self, policy: Policy, disk: Disk) -> None:
        self._disk = disk
        self._rules: dict[Rule | None, RuleSavings] = {
            rule: RuleSavings(prefix=rule.prefix, action=rule.action) for rule in policy.rules
        }
        self._path: str | None = None

    def add(self, view: ArchiveView, judgement: Judgement, *, sends: bool = True) -> None:
        """Count a version.

        Args:
            sends: whether this node is the one that would send it; the other copies only free their bytes.
        """
        tally = self._rules.get(judgement.rule)
        if tally is None:
            tally = self._rules[judgement.rule] = RuleSavings(prefix="", action="")
        size = view.version.size
        if view.path != self._path:
            self._path = view.path
            tally.objects += 1
        tally.versions += 1
        tally.bytes += size
        there = size * min(view.uploaded, view.chunk_count) // max(1, view.chunk_count)
        tally.archived_bytes += there
        if judgement.send is not Why.DUE:
            tally.left[judgement.send] = tally.left.get(judgement.send, 0) + 1
        elif sends:
            tally.send_versions += 1
            tally.send_bytes += size - there
        if view.evicted:
            tally.evicted_bytes += size
        elif not view.wanted and judgement.evict in (Why.DUE, Why.NOT_VERIFIED):
            tally.free_versions += 1
            tally.free_bytes += size

    def rules(self) -> list[RuleSavings]:
        """The tallies so far, in the order in which the rules are tried."""
        for rule, tally in self._rules.items():
            wanted = None if rule is None else room_wanted(rule, self._disk)
            tally.room_bytes = tally.free_bytes if wanted is None else min(tally.free_bytes, wanted)
        return list(self._rules.values())


def add_up(nodes: Iterable[Iterable[RuleSavings]]) -> list[RuleSavings]:
    """The tallies of several nodes as one. ``objects``, ``versions`` and what the archive has count each copy, then."""
    sums: dict[tuple[str, str], RuleSavings] = {}
    for rules in nodes:
        for told in rules:
            total = sums.setdefault((told.prefix, told.action), RuleSavings(prefix=told.prefix, action=told.action))
            for name in _NUMBERS:
                setattr(total, name, getattr(total, name) + getattr(told, name))
            for why, count in told.left.items():
                total.left[why] = total.left.get(why, 0) + count
    return list(sums.values())


_NUMBERS = tuple(field.name for field in msgspec.structs.fields(RuleSavings) if field.type is int)
